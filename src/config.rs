//! Settings, each read once: a flag, or the environment variable named in `--help`.

use std::{ffi::OsStr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{
    Arg, Args, Command, ValueEnum,
    builder::TypedValueParser,
    error::{Error as ClapError, ErrorKind},
};
use ipnet::IpNet;
use orgstream_domain::own_kinds::PlanKinds;
use orgstream_events::{Currency, PlanName};
use orgstream_projections::{DatabaseOptions, LoginPassword, Passwords, search::target::SearchTargets};
use orgstream_stream::broker::Producers;
use orgstream_stream::{LogOptions, SyncMode};
use orgstream_transparency::LogKey;
use orgstream_workers::{PlanWeight, PlanWeights, Policy, WorkerOptions};
use uuid::Uuid;

use crate::{
    adapters::{
        identity_provider::{Auth0, IdentityOrganizations, NoIdentityProvider},
        key_ring::{FileRing, KeyRing, Transit},
        mail::Mailer,
        payments::{PaymentProvider, Stripe},
        search_target,
    },
    api::http::kit::bounds::Limits,
    auth::{
        approval::GlassApproval,
        oidc::OidcError,
        operators::{OperatorClaim, Operators},
        session::Lifetime,
    },
    limits::{command_rate::PlanRate, hourly::HourlyLimits},
    secret::{Address, Secret},
};

/// The open files of a process other than its callers' connections.
const OTHER_FILES: usize = 256;

/// Where the streams are.
#[derive(Clone, Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// The NATS server or cluster, with JetStream, several addresses with commas; with `tls://` nothing is sent in the clear.
    #[arg(
        long,
        env = "ORGSTREAM_NATS_URL",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL"
    )]
    pub nats_url: Address,
    /// As whom to come: a credentials file, as `orgstream nats init` writes one for each part of the program.
    #[arg(long, env = "ORGSTREAM_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// The keys that vouch for what is in the log, `ID:HEX` with 64 hexadecimal digits (`openssl rand -hex 32`), several with
    /// commas: the first signs, and all are believed. Without one, no event can be published. A key is needed for as
    /// long as there is something that it signed; a new one is given to every process before it becomes the first.
    #[arg(long, env = "ORGSTREAM_COMMIT_KEYS", hide_env_values = true, value_name = "KEYS")]
    pub commit_keys: Option<Secret>,
    /// Who may have signed the server's certificate, in PEM, when this machine does not know them. With it, nothing is sent in
    /// the clear.
    #[arg(long, env = "ORGSTREAM_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// What producers' credentials are signed with: `serve/producers.json`, for `serve` alone. Without it no
    /// credentials are issued, and none are accepted.
    #[arg(long, env = "ORGSTREAM_NATS_PRODUCERS", value_name = "FILE")]
    pub nats_producers: Option<PathBuf>,
    /// Start although every client that reaches the NATS server can write and read every organization's history.
    /// For trying things out, on a server that only you reach.
    #[arg(long, env = "ORGSTREAM_ALLOW_OPEN_NATS")]
    pub allow_open_nats: bool,
    /// The server's monitoring address; with one replica, the only way to see that every write is synced to disk.
    #[arg(long, env = "ORGSTREAM_NATS_MONITOR_URL", hide_env_values = true, value_name = "URL")]
    pub nats_monitor_url: Option<Address>,
    /// Copies of every stream: 1 on a single server with `sync_interval: always`, 3 on a cluster.
    #[arg(long, env = "ORGSTREAM_REPLICAS", default_value_t = 1, value_name = "N")]
    pub replicas: usize,
    /// Pooled streams that organizations share. Fixed once the first organization exists.
    #[arg(long, env = "ORGSTREAM_SHARDS", default_value_t = 16, value_name = "N")]
    pub shards: u16,
    /// The region of this installation: the label of new organizations.
    #[arg(long, env = "ORGSTREAM_REGION", default_value = "local", value_name = "NAME")]
    pub region: String,
    /// Start although a power failure can lose acknowledged commands. For trying things out.
    #[arg(long, env = "ORGSTREAM_ALLOW_UNSAFE_SYNC")]
    pub allow_unsafe_sync: bool,
}

impl NatsArgs {
    /// Returns the signing keys of producers' credentials. A NATS server that is open to all authenticates none of them.
    pub fn producers(&self) -> anyhow::Result<Option<Arc<Producers>>> {
        let load = |file: &PathBuf| Producers::load(file).map(Arc::new);
        let found = self.nats_producers.as_ref().filter(|_| !self.allow_open_nats).map(load);
        found.transpose().context("--nats-producers (ORGSTREAM_NATS_PRODUCERS)")
    }

    /// Returns the settings as options of the log.
    pub fn log_options(&self, sync: SyncMode) -> anyhow::Result<LogOptions> {
        // Not of clap: `replay` has these settings and queries NATS only with --verify.
        let keys = self.commit_keys.as_ref().context(
            "--commit-keys (ORGSTREAM_COMMIT_KEYS) is missing: without the keys of the log nothing in it can be verified",
        )?;
        let keys = keys.reveal().parse().context("--commit-keys (ORGSTREAM_COMMIT_KEYS)")?;
        Ok(LogOptions {
            ca: self.nats_ca.clone(),
            creds: self.nats_creds.clone(),
            shards: self.shards,
            replicas: self.replicas,
            region: self.region.clone(),
            sync,
            ..LogOptions::new(self.nats_url.whole(), Arc::new(keys))
        })
    }
}

/// The minimum number of connections that are left for queries, the catalog, sign-ins and deletions.
const LEAST_QUERIES: u32 = 4;
const USUAL_QUERIES: u32 = 13;
/// More concurrent transactions gain nothing.
const MOST_SLOTS: u32 = 1_000;

/// Where the tables are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "PostgreSQL")]
pub struct DatabaseArgs {
    /// The database, without a user: the program logs in as `app_rw` and `app_ro`, which `orgstream migrate` makes.
    #[arg(
        long,
        env = "ORGSTREAM_DATABASE_URL",
        hide_env_values = true,
        default_value = "postgres://127.0.0.1:5432/orgstream",
        value_name = "URL"
    )]
    pub database_url: Address,
    /// The password of those logins.
    #[arg(long, env = "ORGSTREAM_DATABASE_PASSWORD", hide_env_values = true, value_name = "TEXT")]
    pub database_password: Option<Secret>,
    /// The password of one of those logins, where each has its own: `app_rw`, `app_ro` and `app_public` for `serve` and `work`,
    /// `app_identity` and `app_eraser` for `serve`, `app_sign` for `sign`. May be repeated; without commas.
    #[arg(
        long = "database-login-password",
        env = "ORGSTREAM_DATABASE_LOGIN_PASSWORDS",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = LoginPasswordParser,
        value_name = "LOGIN=TEXT"
    )]
    pub login_passwords: Vec<LoginPassword>,
    /// Connections of this process, all together: twice `--slots` for slices, three for leases and marks, and the others for
    /// queries, sign-ins and deletions. By default 13 of those: 24 with four slots.
    #[arg(long, env = "ORGSTREAM_DATABASE_CONNECTIONS", value_name = "N")]
    pub database_connections: Option<u32>,
    /// The public key of the audit logs, `log.vkey`, from wherever `orgstream sign` is: heads that it has not signed are then
    /// not believed, whatever the database says. Without it, the keys that the database names are, and a change of
    /// the database can name others.
    #[arg(long, env = "ORGSTREAM_LOG_KEY", value_parser = log_key, value_name = "FILE")]
    pub log_key: Option<LogKey>,
}

/// Reads the key from a file.
fn log_key(path: &str) -> Result<LogKey, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    text.trim_end().parse().map_err(|error| format!("{path} is not the public key of a log: {error}"))
}

impl DatabaseArgs {
    /// Returns the error for a database that does not answer, with its address but without the login in it.
    pub fn silent(&self) -> String {
        format!("PostgreSQL does not answer at {} (--database-url or ORGSTREAM_DATABASE_URL)", self.database_url)
    }

    /// Returns the settings as options of the projections: as many writing connections as a worker with `slots` needs, and
    /// the rest of all of them for everything else. Where too few are left, there are two; see [`DatabaseArgs::check`].
    pub fn options(&self, slots: usize) -> DatabaseOptions {
        let rw_connections = u32::try_from(slots).unwrap_or(u32::MAX).min(MOST_SLOTS);
        let beside = DatabaseOptions::beside_queries(rw_connections);
        DatabaseOptions {
            url: self.database_url.whole().to_owned(),
            passwords: Passwords::new(
                self.database_password.as_ref().map(|text| text.reveal().to_owned()),
                self.login_passwords.iter().cloned(),
            ),
            rw_connections,
            ro_connections: match self.database_connections {
                Some(all) => all.saturating_sub(beside).max(LEAST_QUERIES),
                None => USUAL_QUERIES,
            },
        }
    }

    /// Checks that the connections are enough for a process with so many slots.
    pub fn check(&self, slots: usize) -> anyhow::Result<()> {
        let least = DatabaseOptions::beside_queries(self.options(slots).rw_connections) + LEAST_QUERIES;
        let given = self.database_connections.unwrap_or(u32::MAX);
        anyhow::ensure!(
            given >= least,
            "--database-connections (ORGSTREAM_DATABASE_CONNECTIONS) is {given}, and this process needs {least}: allow more, \
             or let a worker have fewer --slots",
        );
        Ok(())
    }
}

/// Parses [`LoginPassword`]s: other parsers repeat a refused value on the terminal.
#[derive(Clone)]
pub(crate) struct LoginPasswordParser;

impl TypedValueParser for LoginPasswordParser {
    type Value = LoginPassword;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<LoginPassword, ClapError> {
        let said = |error| {
            let text = format!("--database-login-password (ORGSTREAM_DATABASE_LOGIN_PASSWORDS): {error}\n");
            ClapError::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        };
        value.to_str().unwrap_or_default().parse::<LoginPassword>().map_err(said)
    }
}

/// The secrets of the API processes.
#[derive(Clone, Args)]
#[command(next_help_heading = "Secrets")]
pub struct SecretArgs {
    /// What API keys and sessions are hashed with. Losing it ends all of them; at least 32 characters.
    #[arg(long, env = "ORGSTREAM_PEPPER", hide_env_values = true, value_name = "TEXT")]
    pub pepper: Secret,
    /// The platform operator's bearer token; at least 32 characters. Without one there is no operator.
    #[arg(long, env = "ORGSTREAM_PLATFORM_TOKEN", hide_env_values = true, value_name = "TEXT")]
    pub platform_token: Option<Secret>,
    /// The public keys of those who may report leaked API keys, as GitHub publishes those of its secret scanning. Without it,
    /// no report is taken.
    #[arg(long, env = "ORGSTREAM_LEAK_REPORTER_KEYS", value_name = "FILE")]
    pub leak_reporter_keys: Option<PathBuf>,
    /// The networks of the reverse proxies in front, like 10.0.0.0/8: only their `X-Forwarded-For` is believed.
    #[arg(
        long,
        env = "ORGSTREAM_TRUSTED_PROXIES",
        value_delimiter = ',',
        value_name = "NETWORKS",
        help_heading = "HTTP"
    )]
    pub trusted_proxies: Vec<IpNet>,
}

/// The key ring of records' secrets: a file, or the transit engine of a Vault.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Key ring")]
pub struct KeyRingArgs {
    /// The key ring that seals records' secrets: a file that only its owner reads, as `orgstream secrets init` makes it. Without
    /// it, and without --vault-url, no secret is taken or shown.
    #[arg(long, env = "ORGSTREAM_KEY_RING", conflicts_with = "vault_url", value_name = "FILE")]
    pub key_ring: Option<PathBuf>,
    /// A HashiCorp Vault or OpenBao whose transit engine wraps the keys of secrets, in place of the file.
    #[arg(long, env = "ORGSTREAM_VAULT_URL", requires_all = ["vault_key", "vault_token_file"], value_name = "URL")]
    pub vault_url: Option<String>,
    /// The name of the key there.
    #[arg(long, env = "ORGSTREAM_VAULT_KEY", value_name = "NAME")]
    pub vault_key: Option<String>,
    /// Where the transit engine is mounted.
    #[arg(long, env = "ORGSTREAM_VAULT_MOUNT", default_value = "transit", value_name = "PATH")]
    pub vault_mount: String,
    /// The file with the token for it, which is read for every request. It needs `encrypt` and `decrypt` with the key.
    #[arg(long, env = "ORGSTREAM_VAULT_TOKEN_FILE", value_name = "FILE")]
    pub vault_token_file: Option<PathBuf>,
}

impl KeyRingArgs {
    /// Returns the key ring of the settings; none when they name none.
    pub async fn ring(&self) -> anyhow::Result<Option<Arc<dyn KeyRing>>> {
        if let (Some(url), Some(key), Some(token)) = (&self.vault_url, &self.vault_key, &self.vault_token_file) {
            let transit = Transit::new(url, &self.vault_mount, key, token.clone());
            return Ok(Some(Arc::new(transit.context("--vault-url (ORGSTREAM_VAULT_URL)")?)));
        }
        let Some(path) = &self.key_ring else { return Ok(None) };
        let ring = FileRing::open(path.clone()).await.context("--key-ring (ORGSTREAM_KEY_RING)")?;
        Ok(Some(Arc::new(ring)))
    }
}

/// Where organizations' indexes of words may be, besides the database.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Search")]
pub struct SearchArgs {
    /// The search targets, in a JSON file: other PostgreSQL databases, and OpenSearch. Every `serve` and `work` needs the same.
    #[arg(long, env = "ORGSTREAM_SEARCH_TARGETS", value_name = "FILE")]
    pub search_targets: Option<PathBuf>,
}

impl SearchArgs {
    /// Returns the targets of the file; none without one.
    pub fn targets(&self) -> anyhow::Result<SearchTargets> {
        let targets = self.search_targets.as_deref().map(search_target::load).transpose();
        Ok(targets.context("--search-targets (ORGSTREAM_SEARCH_TARGETS)")?.unwrap_or_default())
    }
}

/// How much the API lets in, and who sees its figures.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Connections at the same time; one address that is no trusted proxy's has at most half of them. Fewer when the
    /// system allows fewer open files.
    #[arg(long, env = "ORGSTREAM_HTTP_CONNECTIONS", default_value_t = 8_192, value_name = "N")]
    pub http_connections: usize,
    /// Bodies of requests in memory at the same time, in MiB; one organization has at most a quarter. What a body becomes
    /// while it is carried out takes up to twenty times as much.
    #[arg(long, env = "ORGSTREAM_HTTP_BODY_MIB", default_value_t = 8, value_name = "MIB")]
    pub http_body_mib: usize,
    /// A token that `GET /metrics` is shown for, besides that of the platform's operator; at least 32 characters.
    #[arg(long, env = "ORGSTREAM_METRICS_TOKEN", hide_env_values = true, value_name = "TEXT")]
    pub metrics_token: Option<Secret>,
}

impl Default for HttpArgs {
    fn default() -> Self {
        Self { http_connections: 8_192, http_body_mib: 8, metrics_token: None }
    }
}

impl HttpArgs {
    /// Returns the settings as limits of the API.
    pub fn limits(&self) -> Limits {
        let connections = self.http_connections.min(connections_possible()).max(1);
        Limits::default().with_connections(connections).with_body_bytes(self.http_body_mib.saturating_mul(1 << 20))
    }
}

/// Returns how many connections there is room for beside [`OTHER_FILES`], with as many open files as the system permits.
fn connections_possible() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let known = getrlimit(Resource::Nofile);
    // Most systems start programs with fewer than they may have.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: known.maximum, maximum: known.maximum });
    let files = if raised.is_ok() { known.maximum } else { known.current };
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    files.saturating_sub(OTHER_FILES)
}

/// Who may sign in, for how long, and what comes with their plans.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "People")]
pub struct IdentityArgs {
    /// An OpenID Connect issuer whose users may sign in: `URL`, or `URL=AUDIENCE` with the audience of its tokens. May be
    /// given several times, or several with commas. An issuer is believed whatever address it calls verified.
    #[arg(long = "issuer-url", env = "ORGSTREAM_ISSUER_URL", value_delimiter = ',', value_name = "URL[=AUDIENCE]")]
    pub issuer_urls: Vec<String>,
    /// The audience that the tokens of an issuer must name for which none is given.
    #[arg(long, env = "ORGSTREAM_AUDIENCE", default_value = "orgstream", value_name = "TEXT")]
    pub audience: String,
    /// How long a session lasts without being used, in hours.
    #[arg(long, env = "ORGSTREAM_SESSION_IDLE_HOURS", default_value_t = 24, value_name = "N")]
    pub session_idle_hours: u32,
    /// How long a session lasts in any case, in hours.
    #[arg(long, env = "ORGSTREAM_SESSION_HOURS", default_value_t = 720, value_name = "N")]
    pub session_hours: u32,
    /// How many sessions one person has at a time.
    #[arg(long, env = "ORGSTREAM_SESSIONS_PER_PERSON", default_value_t = 100, value_name = "N")]
    pub sessions_per_person: u32,
    /// How many organizations one person makes in an hour; 0 for no limit.
    #[arg(long, env = "ORGSTREAM_ORGANIZATIONS_PER_HOUR", default_value_t = 20, value_name = "N")]
    pub organizations_per_hour: u32,
    /// How long after its request a deletion of an organization is carried out, in hours: until then an owner can cancel it.
    #[arg(long, env = "ORGSTREAM_DELETION_GRACE_HOURS", default_value_t = 168, value_name = "N")]
    pub deletion_grace_hours: u32,
    /// How many mails with invitations an organization sends in an hour; 0 for no limit.
    #[arg(long, env = "ORGSTREAM_INVITATIONS_PER_HOUR", default_value_t = 100, value_name = "N")]
    pub invitations_per_hour: u32,
    /// How many times an organization is shown the value of a secret in an hour; 0 for no limit.
    #[arg(
        long,
        env = "ORGSTREAM_SECRET_USES_PER_HOUR",
        default_value_t = 3_600,
        value_name = "N",
        help_heading = "Key ring"
    )]
    pub secret_uses_per_hour: u32,
    /// The OpenID Connect issuer of the platform's operators: `URL`, or `URL=AUDIENCE`. A person with a token of it and the
    /// claim of --operator-claim is an operator, named in every entry by their verified e-mail address.
    #[arg(long, env = "ORGSTREAM_OPERATOR_ISSUER", requires = "operator_claim", value_name = "URL[=AUDIENCE]")]
    pub operator_issuer: Option<String>,
    /// What the tokens of operators say and no others, like `groups=orgstream-operators`: a text, or one in a list.
    #[arg(long, env = "ORGSTREAM_OPERATOR_CLAIM", requires = "operator_issuer", value_name = "NAME=VALUE")]
    pub operator_claim: Option<OperatorClaim>,
    /// Whether a second operator, who is another person, must approve before one looks into an organization. Where it is
    /// `off`, the organization reads that in the entry.
    #[arg(
        long,
        env = "ORGSTREAM_BREAK_GLASS_APPROVAL",
        value_enum,
        default_value_t = GlassApproval::Required,
        value_name = "WHETHER"
    )]
    pub break_glass_approval: GlassApproval,
    /// The plan without organizations: whose personal organization is on it makes no others.
    #[arg(long, env = "ORGSTREAM_PUBLIC_PLAN", default_value = "public", value_name = "PLAN")]
    pub public_plan: PlanName,
    /// How many commands a second an organization on a plan may send, all API processes together; ten seconds of that at
    /// once after a pause. A plan that is not mentioned has no limit. May be repeated.
    #[arg(
        long = "plan-commands-per-second",
        env = "ORGSTREAM_PLAN_COMMANDS_PER_SECOND",
        value_delimiter = ',',
        value_name = "PLAN=N",
        help_heading = "HTTP"
    )]
    pub plan_rates: Vec<PlanRate>,
    /// How many kinds of its own an organization on a plan may have, and how many bytes of JSON one schema; a plan that is not
    /// mentioned has 20 kinds of 32768 bytes. May be repeated.
    #[arg(
        long = "plan-own-kinds",
        env = "ORGSTREAM_PLAN_OWN_KINDS",
        value_delimiter = ',',
        value_name = "PLAN=KINDS:BYTES",
        help_heading = "HTTP"
    )]
    pub plan_kinds: Vec<PlanKinds>,
    /// The currency of the prices and fees of plans, and of invoices: its code in ISO 4217. An invoice keeps the one that it was
    /// opened in.
    #[arg(long, env = "ORGSTREAM_CURRENCY", default_value = "EUR", value_name = "CODE", help_heading = "Billing")]
    pub currency: Currency,
}

impl IdentityArgs {
    /// Creates the settings for one issuer, with defaults for everything else.
    pub fn of_issuer(url: &str) -> Self {
        Self {
            issuer_urls: vec![url.to_owned()],
            audience: "orgstream".to_owned(),
            session_idle_hours: 24,
            session_hours: 720,
            sessions_per_person: 100,
            organizations_per_hour: 20,
            deletion_grace_hours: 168,
            invitations_per_hour: 100,
            secret_uses_per_hour: 3_600,
            operator_issuer: None,
            operator_claim: None,
            break_glass_approval: GlassApproval::Required,
            public_plan: PlanName::public(),
            plan_rates: Vec::new(),
            plan_kinds: Vec::new(),
            currency: Currency::default(),
        }
    }

    /// Iterates over all issuers with their audiences.
    pub fn issuers(&self) -> impl Iterator<Item = (String, String)> {
        self.issuer_urls.iter().map(|issuer| self.with_audience(issuer))
    }

    fn with_audience(&self, issuer: &str) -> (String, String) {
        let (url, audience) = issuer.split_once('=').unwrap_or((issuer, self.audience.as_str()));
        (url.to_owned(), audience.to_owned())
    }

    /// Returns the operators of the platform, besides the bearer of its static token.
    pub fn operators(&self, token: Option<&str>) -> Result<Operators, OidcError> {
        let operators = Operators::with_token(token);
        match (&self.operator_issuer, &self.operator_claim) {
            (Some(issuer), Some(claim)) => {
                let (issuer, audience) = self.with_audience(issuer);
                operators.and_people(issuer, audience, claim.clone())
            }
            _ => Ok(operators),
        }
    }

    /// Returns the time between the request for a deletion and what cannot be undone.
    pub fn deletion_grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.deletion_grace_hours) * 3600)
    }

    /// Returns the hourly quotas.
    pub fn hourly(&self) -> HourlyLimits {
        HourlyLimits::new(self.invitations_per_hour, self.organizations_per_hour)
            .with_secret_uses(self.secret_uses_per_hour)
    }

    /// Returns the lifetime of sessions.
    pub fn lifetime(&self) -> Lifetime {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours.max(1)) * 3600);
        let most = self.sessions_per_person.max(1);
        Lifetime { idle: hours(self.session_idle_hours), longest: hours(self.session_hours), most }
    }
}

/// How mails leave.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Mail")]
pub struct MailArgs {
    /// The mail server: `smtps://user:password@host`, or `smtp://host?tls=required`. Without it, and without
    /// --mail-folder, mails wait until there is a way for them.
    #[arg(long, env = "ORGSTREAM_SMTP_URL", hide_env_values = true, value_name = "URL")]
    pub smtp_url: Option<Secret>,
    /// Put each mail into a file of this folder in place of sending it.
    #[arg(long, env = "ORGSTREAM_MAIL_FOLDER", value_name = "DIR")]
    pub mail_folder: Option<PathBuf>,
    /// Who mails are from.
    #[arg(
        long,
        env = "ORGSTREAM_MAIL_FROM",
        default_value = "Orgstream <no-reply@orgstream.example>",
        value_name = "ADDRESS"
    )]
    pub mail_from: String,
    /// The address in invitation mails; `{token}` stands for the token.
    #[arg(
        long,
        env = "ORGSTREAM_INVITATION_LINK",
        default_value = "http://127.0.0.1:8080/join#token={token}",
        value_name = "URL"
    )]
    pub invitation_link: String,
}

impl MailArgs {
    /// Returns the mailer; none when the settings name none.
    pub fn mailer(&self) -> anyhow::Result<Option<Mailer>> {
        Mailer::new(
            self.smtp_url.as_ref().map(Secret::reveal),
            self.mail_folder.as_deref(),
            &self.mail_from,
            &self.invitation_link,
        )
    }
}

/// The external identity provider, where every organization has one that stands for it.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Auth0")]
pub struct Auth0Args {
    /// The Auth0 tenant, like `https://acme.eu.auth0.com`. Without it there is no external identity provider.
    #[arg(long, env = "ORGSTREAM_AUTH0_URL", requires_all = ["auth0_client_id", "auth0_client_secret"], value_name = "URL")]
    pub auth0_url: Option<String>,
    /// The machine-to-machine application that may read and create organizations there.
    #[arg(long, env = "ORGSTREAM_AUTH0_CLIENT_ID", value_name = "ID")]
    pub auth0_client_id: Option<String>,
    /// Its secret.
    #[arg(long, env = "ORGSTREAM_AUTH0_CLIENT_SECRET", hide_env_values = true, value_name = "TEXT")]
    pub auth0_client_secret: Option<Secret>,
}

impl Auth0Args {
    /// Returns the provider in the settings.
    pub fn provider(&self) -> anyhow::Result<Arc<dyn IdentityOrganizations>> {
        match (&self.auth0_url, &self.auth0_client_id, &self.auth0_client_secret) {
            (Some(url), Some(id), Some(secret)) => {
                Ok(Arc::new(Auth0::new(url, id.clone(), secret.reveal().to_owned())?))
            }
            _ => Ok(Arc::new(NoIdentityProvider)),
        }
    }
}

/// The payment provider, which collects what final invoices say.
#[derive(Clone, Default, Args)]
#[command(next_help_heading = "Billing")]
pub struct PaymentArgs {
    /// The secret key of an account at Stripe. Without it invoices are settled by hand.
    #[arg(
        long,
        env = "ORGSTREAM_STRIPE_KEY",
        hide_env_values = true,
        requires = "stripe_webhook_secret",
        value_name = "TEXT"
    )]
    pub stripe_key: Option<Secret>,
    /// The secret with which Stripe signs its reports to `POST /v1/payment-reports`.
    #[arg(
        long,
        env = "ORGSTREAM_STRIPE_WEBHOOK_SECRET",
        hide_env_values = true,
        requires = "stripe_key",
        value_name = "TEXT"
    )]
    pub stripe_webhook_secret: Option<Secret>,
    /// Where Stripe's API is.
    #[arg(long, env = "ORGSTREAM_STRIPE_URL", default_value = "https://api.stripe.com", value_name = "URL")]
    pub stripe_url: String,
}

impl PaymentArgs {
    /// Returns the provider in the settings.
    pub fn provider(&self) -> anyhow::Result<Option<Arc<dyn PaymentProvider>>> {
        match (&self.stripe_key, &self.stripe_webhook_secret) {
            (Some(key), Some(secret)) => {
                // With an empty one, everyone could sign reports.
                if key.reveal().len() < 16 || secret.reveal().len() < 16 {
                    anyhow::bail!(
                        "Stripe's secret key and webhook secret have more than 16 characters: check ORGSTREAM_STRIPE_KEY \
                         and ORGSTREAM_STRIPE_WEBHOOK_SECRET, or unset both"
                    );
                }
                Ok(Some(Arc::new(Stripe::new(&self.stripe_url, key.clone(), secret.clone())?)))
            }
            _ => Ok(None),
        }
    }
}

/// How a worker works.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Worker")]
pub struct WorkArgs {
    /// This worker among the others; a new one by default. One that comes back under its old id need not wait for its
    /// own leases to expire.
    #[arg(long, env = "ORGSTREAM_WORKER_ID", value_name = "UUID")]
    pub worker_id: Option<Uuid>,
    /// Transactions at the same time.
    #[arg(long, env = "ORGSTREAM_SLOTS", default_value_t = 4, value_name = "N")]
    pub slots: usize,
    /// Slots that organizations with a backlog leave free for other work; by default a third of them.
    #[arg(long, env = "ORGSTREAM_RESERVE", value_name = "N")]
    pub reserve: Option<usize>,
    /// What a plan weighs: an organization on a plan of weight 4 may have four times the database time that one of weight
    /// 1 has, when both want all they can get. 0.01 to 100; a plan that is not mentioned weighs 1. May be repeated.
    #[arg(long, env = "ORGSTREAM_PLAN_WEIGHT", value_delimiter = ',', value_name = "PLAN=WEIGHT")]
    pub plan_weight: Vec<PlanWeight>,
    /// Database time that a batch of one organization aims for, in milliseconds.
    #[arg(long, env = "ORGSTREAM_BATCH_MS", default_value_t = 4, value_name = "MS")]
    pub batch_ms: u64,
    /// Messages that every lane may have in memory, in KiB. While there is room a lane may have more; what is over reads the
    /// log again at its own pace.
    #[arg(long, env = "ORGSTREAM_LANE_KIB", default_value_t = 256, value_name = "KIB")]
    pub lane_kib: usize,
    /// Messages of all lanes in memory, in MiB.
    #[arg(long, env = "ORGSTREAM_LANES_MIB", default_value_t = 128, value_name = "MIB")]
    pub lanes_mib: usize,
    /// How long a single message may take to apply before it is tried again, and in the end parked, in seconds.
    #[arg(long, env = "ORGSTREAM_MESSAGE_SECONDS", default_value_t = 10, value_name = "S")]
    pub message_seconds: u64,
    /// Who goes first: `fair`, or what the benchmark compares it with.
    #[arg(long, value_enum, default_value_t = PolicyName::Fair, hide = true)]
    pub policy: PolicyName,
    /// How often checkpoints are compared with the log, in seconds. One that is behind and has not moved in between is
    /// reported.
    #[arg(long, env = "ORGSTREAM_WATCH_SECONDS", default_value_t = 30, value_name = "S")]
    pub watch_seconds: u64,
    /// How long a shard may stand still when its worker dies, in seconds: another takes it over by then.
    #[arg(long, env = "ORGSTREAM_LEASE_SECONDS", default_value_t = 6, value_name = "S")]
    pub lease_seconds: u64,
}

impl WorkArgs {
    /// Returns the settings as options of the workers.
    pub fn options(&self) -> anyhow::Result<WorkerOptions> {
        let weights = PlanWeights::new(self.plan_weight.iter().cloned());
        let id = self.worker_id.unwrap_or_else(Uuid::now_v7);
        let slots = self.slots.max(1);
        Ok(WorkerOptions {
            weights: weights.context("--plan-weight (ORGSTREAM_PLAN_WEIGHT)")?,
            slots,
            reserve: self.reserve.unwrap_or(WorkerOptions::usual_reserve(slots)).min(slots - 1),
            policy: self.policy.into(),
            batch: Duration::from_millis(self.batch_ms.max(1)),
            message_timeout: Duration::from_secs(self.message_seconds.max(1)),
            lane_bytes: self.lane_kib.max(1) * 1024,
            total_bytes: self.lanes_mib.max(1) * 1024 * 1024,
            lease: Duration::from_secs(self.lease_seconds.max(1)),
            watch: Duration::from_secs(self.watch_seconds.max(1)),
            ..WorkerOptions::new(id)
        })
    }
}

/// Who goes first when several organizations wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// The organization that had the least of the database's time.
    Fair,
    /// The organization whose message came first.
    Fifo,
    /// One after the other, a hundred messages each.
    Rr100,
    /// As fair, but large backlogs are left alone: what a burst costs others before anything of it is applied.
    #[value(hide = true)]
    Held,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Fair => Self::Fair,
            PolicyName::Fifo => Self::Fifo,
            PolicyName::Rr100 => Self::RoundRobin(100),
            PolicyName::Held => Self::Held,
        }
    }
}

/// How the program talks about itself.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// How logs look on standard error.
    #[arg(long, env = "ORGSTREAM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true, hide_short_help = true)]
    pub log_format: LogFormat,
    /// What is logged, in `tracing` filter syntax, for example `info,orgstream_workers=debug`. Without it: `info` by what
    /// runs until it is stopped, `error` by what ends by itself.
    #[arg(long, env = "ORGSTREAM_LOG", global = true, hide_short_help = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Send traces to this OpenTelemetry collector (OTLP over HTTP), at `/v1/traces` unless the address has a path. Spans that it
    /// does not take are counted and logged.
    #[arg(
        long,
        env = "ORGSTREAM_OTLP_URL",
        hide_env_values = true,
        global = true,
        hide_short_help = true,
        value_name = "URL"
    )]
    pub otlp_url: Option<Address>,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// Which API the client commands talk to, and as whom.
#[derive(Clone, Args)]
#[command(next_help_heading = "API")]
pub struct ClientArgs {
    /// The API.
    #[arg(long, env = "ORGSTREAM_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// An API key of the organization, or another bearer token. Better in the environment than on a command line.
    #[arg(long, env = "ORGSTREAM_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<Secret>,
    /// A session of a person, in place of an API key; without either, the one that `orgstream login` keeps.
    #[arg(long, env = "ORGSTREAM_SESSION", hide_env_values = true, value_name = "TOKEN")]
    pub session: Option<Secret>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Working {
        #[command(flatten)]
        work: WorkArgs,
    }

    #[test]
    fn a_worker_without_flags_is_the_usual_one() {
        let id = Uuid::from_u128(1);
        let command = Working::parse_from(["work", "--worker-id", &id.to_string()]);
        assert_eq!(format!("{:?}", command.work.options().unwrap()), format!("{:?}", WorkerOptions::new(id)));
    }

    #[derive(Parser)]
    struct Connecting {
        #[command(flatten)]
        database: DatabaseArgs,
    }

    #[test]
    fn all_connections_of_a_process_are_within_what_it_may_have() {
        for (slots, all) in [(1, 9), (1, 20), (4, 15), (4, 20), (16, 60)] {
            let flags = ["serve", "--database-connections", &all.to_string()];
            let database = Connecting::parse_from(flags).database;
            database.check(slots).unwrap();
            let options = database.options(slots);
            let needed = DatabaseOptions::beside_queries(options.rw_connections) + options.ro_connections;
            assert_eq!(needed, all, "{slots} slots");
        }
        let few = Connecting::parse_from(["work", "--database-connections", "13"]).database;
        let said = few.check(4).unwrap_err().to_string();
        assert!(said.contains("is 13") && said.contains("needs 15"), "{said}");
        Connecting::parse_from(["work"]).database.check(16).unwrap();
    }

    #[derive(Debug, Parser)]
    struct Told {
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        http: HttpArgs,
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn settings_show_nothing_of_the_secrets_in_them() {
        let told = Told::parse_from([
            "serve",
            "--database-url=postgres://app:hidden1@db:5432/orgstream?password=hidden2",
            "--database-password=hidden3",
            "--database-login-password=app_ro=hidden4",
            "--metrics-token=hidden5",
            "--otlp-url=https://hidden6@collector/?key=hidden7",
        ]);
        let shown = format!("{told:?} {:?} {}", told.database.options(1), told.database.silent());
        assert!(!shown.contains("hidden") && shown.contains("postgres://db:5432/orgstream"), "{shown}");
        let refused = Told::try_parse_from(["serve", "--database-login-password=app_owner=hidden"]).unwrap_err();
        let said = refused.to_string();
        assert!(!said.contains("hidden") && said.contains("app_ro") && said.contains("LOGIN=TEXT"), "{said}");
    }
}
