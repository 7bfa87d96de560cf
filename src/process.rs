//! The parts of a running program, assembled after their checks.

use std::{
    fmt::Display,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use metrics_exporter_prometheus::PrometheusHandle;
use orgstream_domain::{ChangeKind, Command, RegisterKind, credentials::key::Pepper, own_kinds::OwnKindLimits};
use orgstream_events::{ActorType, Chain, Fingerprint, PLATFORM_ORG};
use orgstream_projections::Database;
use orgstream_stream::broker::Producers;
use orgstream_stream::{Credentials, Finding, Log, StreamName, SyncMode, Tip};
use orgstream_workers::WorkerStatus;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    adapters::{
        dns::{SystemDns, TxtRecords},
        identity_provider::{IdentityOrganizations, NoIdentityProvider},
        key_ring::KeyRing,
        mail::Mailer,
        payments::PaymentProvider,
    },
    api::{
        http::{self, kit::proxies::TrustedProxies},
        nats as producers,
    },
    app::{
        access_log::AccessLog,
        initial_kinds::{default_kinds, is_earlier_default},
        initial_plans::default_plans,
        quota_figures::QuotaFigures,
        submit::Gateway,
    },
    auth::{Authenticator, issuers::Issuers, leaks::LeakReporters},
    commands::{
        account_peers::AccountPeers,
        handler::CommandHandler,
        request::{Caller, CommandError, Request},
        vault::{Vault, VaultError},
    },
    config::{DatabaseArgs, HttpArgs, IdentityArgs, NatsArgs, SecretArgs},
    jobs::{
        Job, JobName, Jobs,
        audit_webhook::{WebhookKeys, Webhooks},
        deletions::Deletions,
        history::Histories,
        invoices,
        mail::Sender,
        payments,
        view_builds::ViewBuilds,
    },
    limits::{
        command_rate::{Admission, PlanRates},
        hourly::Quotas,
    },
    peers::{self, Announcer},
    secret::{Address, Secret},
};

/// The timeout of servers that are still starting.
const TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// Opens the log, with its streams present and valid, and with everything that `db` knows of; or fails with every finding,
/// one line each.
pub async fn open_log(nats: &NatsArgs, db: &Database) -> anyhow::Result<Log> {
    let (log, lost, findings) = reach_log(nats, db).await?;
    refuse(&[findings, lost].concat())?;
    // The platform keeps the kinds in its own org.
    patiently("the event log", || async { Ok(log.place(PLATFORM_ORG).await?) }).await?;
    Ok(log)
}

/// Creates the missing streams, as the administrator, and returns their number.
pub async fn make_streams(nats: &NatsArgs) -> anyhow::Result<usize> {
    let (missing, findings) = patiently("NATS", || async {
        let log = connect_log(nats).await?;
        let missing = log.missing_streams().await.context("the streams could not be looked at")?;
        let findings = log.ensure_streams().await.context("the streams could not be made")?;
        log.close().await;
        Ok((missing.len(), findings))
    })
    .await?;
    refuse(&findings)?;
    Ok(missing)
}

/// Opens the log for a worker. When the log has lost data it is left as it is, and the worker starts all the same: it will
/// do nothing, and report the reason in its readiness.
pub async fn open_log_for_work(nats: &NatsArgs, db: &Database) -> anyhow::Result<Log> {
    let (log, _, findings) = reach_log(nats, db).await?;
    refuse(&findings)?;
    for (stream, what) in patiently("the event log", || lost_streams(&log, db)).await? {
        log.lose(stream, &what);
    }
    Ok(log)
}

/// Returns the log, its lost data, and its other findings.
async fn reach_log(nats: &NatsArgs, db: &Database) -> anyhow::Result<(Log, Vec<Finding>, Vec<Finding>)> {
    // A missing or invalid setting is no server that still starts: it is not retried.
    nats.log_options(SyncMode::Relaxed)?;
    // All of it is retried when any of it fails: a server may go away between two queries.
    patiently("NATS", || async {
        let log = connect_log(nats).await?;
        let lost = lost_data(&log, db).await?;
        let findings = preflight_log(&log, nats).await?;
        // A missing stream may be about to be created; a missing one that had something was lost.
        let mut missing = log.missing_streams().await.context("the streams could not be looked at")?;
        if missing.pop_if(|name| Log::is_dispensable(name)).is_some() {
            tracing::warn!("there is no stream of snapshots, so long histories are read whole: make it with `orgstream nats streams`");
        }
        if lost.is_empty() && findings.is_empty() && !missing.is_empty() {
            bail!(
                "there is no stream {}: make the streams with `orgstream nats streams` and the administrator's credentials",
                missing.join(", ")
            );
        }
        Ok((log, lost, findings))
    })
    .await
}

/// Returns every shard that ends before what the workers have read from it, and every stream with lost history.
pub async fn lost_data(log: &Log, db: &Database) -> anyhow::Result<Vec<Finding>> {
    let mut lost = Vec::new();
    for shard in log.shards() {
        let mark = db.low_watermark(shard).await.context("the marks of the workers could not be read")?.seq;
        let last = log.shard_end(shard).await.context("the streams could not be looked at")?;
        if last < mark {
            lost.push(Finding {
                what: format!(
                    "shard {shard} ends at {last}, but its events were applied up to {mark}: the log lost data"
                ),
                fix: "restore the streams from a replica or a backup before anything is appended, and see \
                      `orgstream history list`"
                    .to_owned(),
            });
        }
    }
    lost.extend(lost_streams(log, db).await?.into_iter().map(|(stream, what)| Finding {
        what: format!("stream {stream}: {what}: the log lost data"),
        fix: "stop serve and work, and see `orgstream history list`".to_owned(),
    }));
    Ok(lost)
}

/// Returns every stream with lost history, and how that was found.
async fn lost_streams(log: &Log, db: &Database) -> anyhow::Result<Vec<(StreamName, String)>> {
    let mut lost = Vec::new();
    for history in db.histories().await.context("what is known of the streams could not be read")? {
        let Ok(stream) = history.stream.parse::<StreamName>() else { continue };
        if !log.streams().any(|known| known == stream) {
            continue;
        }
        let tip = Tip { seq: history.seq, digest: history.digest };
        let what = match history.lost {
            Some((what, at)) => Some(format!("{what} (found at {at})")),
            None => log.lacks(stream, tip).await.context("the streams could not be looked at")?,
        };
        lost.extend(what.map(|what| (stream, what)));
    }
    Ok(lost)
}

/// Connects, and detects which way of appending suits the server.
pub async fn connect_log(nats: &NatsArgs) -> anyhow::Result<Log> {
    let sync = match &nats.nats_monitor_url {
        Some(url) if syncs_always(url).await? => SyncMode::Durable,
        _ => SyncMode::Relaxed,
    };
    Log::connect(&nats.log_options(sync)?).await.with_context(|| format!("NATS at {} does not answer", nats.nats_url))
}

/// Returns the findings about the NATS side.
pub async fn preflight_log(log: &Log, nats: &NatsArgs) -> anyhow::Result<Vec<Finding>> {
    let monitor = nats.nats_monitor_url.as_ref().map(Address::whole);
    let preflight = orgstream_stream::preflight(log, monitor, nats.allow_unsafe_sync).await;
    let mut findings = preflight.context("NATS could not be looked at")?;
    if !nats.allow_open_nats {
        let producer = nats.producers()?.map(|producers| producers.probe()).transpose()?;
        findings.extend(log.door(producer.and_then(Credentials::parse)).await.context("NATS could not be looked at")?);
    }
    Ok(findings)
}

/// Checks that the key ring is the one that the secrets of this installation were sealed with. One that does not answer is checked
/// before its first use.
pub async fn check_key_ring(log: &Log, ring: Option<Arc<dyn KeyRing>>) -> anyhow::Result<()> {
    match Vault::new(log.clone(), ring).check().await {
        Ok(Some(true) | None) => Ok(()),
        Ok(Some(false)) => {
            tracing::warn!("there are secrets, and this process has no key ring to open them with: set --key-ring or --vault-url");
            Ok(())
        }
        Err(error @ (VaultError::AnotherRing(_) | VaultError::Lost(_) | VaultError::Destroyed(_))) => refuse(&[Finding {
            what: Chain(&error).to_string(),
            fix: "give it the key ring with all keys that are still needed (ORGSTREAM_KEY_RING): `orgstream secrets status` names \
                  them"
                .to_owned(),
        }]),
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the key ring could not be checked, and is before its first use");
            Ok(())
        }
    }
}

/// Opens the database, migrated and safe to use; or fails with every finding, one line each.
pub async fn open_database(database: &DatabaseArgs, slots: usize) -> anyhow::Result<Database> {
    database.check(slots)?;
    let (db, findings) = patiently("PostgreSQL", || async {
        let db = Database::connect(&database.options(slots)).await.with_context(|| database.silent())?;
        let db = db.pinning(database.log_key.clone());
        let findings = db.preflight().await.context("PostgreSQL could not be looked at")?;
        Ok((db, findings))
    })
    .await?;
    refuse(&findings)?;
    Ok(db)
}

/// Registers the kinds of records that every installation starts with, and renews those that are as an earlier version of
/// this program registered them. Repeating it changes nothing.
pub async fn register_default_kinds(handler: &CommandHandler) -> anyhow::Result<()> {
    let caller = Caller::program(PLATFORM_ORG, "system");
    for kind in default_kinds()? {
        let name = kind.kind.clone();
        match handler.handle(&caller, Request::from(Command::RegisterKind(kind.clone()))).await {
            Ok(_) => {}
            Err(CommandError::Rejected(rejection)) if rejection.code == "kind_exists" => {
                renew_default_kind(handler, &caller, kind).await?;
            }
            Err(error) => return Err(error).with_context(|| format!("the kind {name} could not be registered")),
        }
    }
    for plan in default_plans()? {
        let name = plan.plan.clone();
        if handler.plan(&name).await?.is_some() {
            continue;
        }
        // Another process or an operator may be quicker.
        let request = Request { expected_version: Some(0), ..Request::from(Command::PublishPlan(plan)) };
        match handler.handle(&caller, request).await {
            Ok(_) | Err(CommandError::VersionConflict { .. } | CommandError::Contention) => {}
            Err(error) => return Err(error).with_context(|| format!("the plan {name} could not be published")),
        }
    }
    Ok(())
}

/// Changes a kind that is as an earlier version registered it into what it is now. What an operator has changed stays.
async fn renew_default_kind(handler: &CommandHandler, caller: &Caller, kind: RegisterKind) -> anyhow::Result<()> {
    // A kind that was registered before can change its records, and goes on to: whether it is append-only is permanent.
    let RegisterKind { kind, title, schema, visibility, cost, views, append_only: _ } = kind;
    let Some(known) = handler.kind(PLATFORM_ORG, &kind).await? else { return Ok(()) };
    if known.retired || !is_earlier_default(&kind, &known.definition)? {
        return Ok(());
    }
    // An operator may have gone back to it.
    let by = handler.kind_changed_by(&kind).await?;
    if by.is_some_and(|by| by.actor_type != ActorType::System) {
        return Ok(());
    }
    let name = kind.clone();
    let (title, schema, visibility) = (Some(title), Some(schema), Some(visibility));
    let (cost, views) = (Some(cost), Some(views));
    let change = Command::ChangeKind(ChangeKind { kind, title, schema, visibility, cost, views });
    let request = Request { expected_version: Some(known.version), ..Request::from(change) };
    match handler.handle(caller, request).await {
        Ok(_) => tracing::info!(kind = %name, "a kind was renewed: it was as an earlier version had registered it"),
        // Another process or an operator was quicker.
        Err(CommandError::VersionConflict { .. } | CommandError::Contention) => {}
        Err(error) => return Err(error).with_context(|| format!("the kind {name} could not be renewed")),
    }
    Ok(())
}

/// Returns a token that is cancelled when the process is asked to stop, by Ctrl-C or SIGTERM. A second signal ends it at
/// once.
pub fn stop_when_asked() -> anyhow::Result<CancellationToken> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        for time in 0..2 {
            tokio::select! {
                _ = interrupted.recv() => {}
                _ = terminated.recv() => {}
            }
            if time == 0 {
                tracing::info!("stopping; ask again to stop at once");
                asked.cancel();
            } else {
                std::process::exit(130);
            }
        }
    });
    Ok(stop)
}

/// Returns the result of `starting`, unless the process is asked to stop before: then it waits for nothing.
pub async fn unless_asked<T>(
    stop: &CancellationToken,
    starting: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    stop.run_until_cancelled(Box::pin(starting)).await.transpose()
}

/// Listens; the error names the setting to change.
pub async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on: choose another with --http"))
}

/// The external systems of the API.
#[derive(Debug, Clone)]
pub struct Adapters {
    /// The mailer; without one, mails wait.
    pub mail: Option<Mailer>,
    /// The resolver that proves domains.
    pub dns: Arc<dyn TxtRecords>,
    /// The provider where organizations have counterparts.
    pub idp: Arc<dyn IdentityOrganizations>,
    /// The key ring that seals secrets, if there is one.
    pub key_ring: Option<Arc<dyn KeyRing>>,
    /// Whether organizations may have issuers of their own on this machine: for trials.
    pub local_issuers: bool,
    /// The signing keys of producers' NATS credentials, if there are any.
    pub producers: Option<Arc<Producers>>,
    /// The payment provider, if there is one.
    pub payments: Option<Arc<dyn PaymentProvider>>,
    /// The limits of HTTP, and who may read the metrics.
    pub http: HttpArgs,
}

impl Default for Adapters {
    fn default() -> Self {
        let (dns, idp, http) = (Arc::new(SystemDns), Arc::new(NoIdentityProvider), HttpArgs::default());
        Self { mail: None, dns, idp, key_ring: None, local_issuers: false, producers: None, payments: None, http }
    }
}

/// The API of a process: HTTP, commands by NATS, and their shared parts.
pub struct Api {
    /// The HTTP application.
    pub app: Arc<http::App>,
    /// The entry point for commands of this process itself.
    pub gateway: Arc<Gateway>,
    auth: Arc<Authenticator>,
    log: Log,
    peers: Announcer,
    sender: Option<Sender>,
    webhooks: Webhooks,
    producers: Option<Arc<Producers>>,
}

impl Api {
    /// Assembles the API. `worker` is this process's own, if it has one.
    pub fn new(
        log: Log,
        db: Database,
        secrets: &SecretArgs,
        identity: &IdentityArgs,
        metrics: PrometheusHandle,
        worker: Option<watch::Receiver<WorkerStatus>>,
        outside: Adapters,
    ) -> anyhow::Result<Self> {
        let pepper =
            Pepper::new(secrets.pepper.reveal().as_bytes()).context("the pepper (ORGSTREAM_PEPPER) is too short")?;
        if outside.http.metrics_token.as_ref().is_some_and(|token| token.reveal().len() < 32) {
            bail!("the token of the figures (ORGSTREAM_METRICS_TOKEN) must have at least 32 characters");
        }
        if secrets.platform_token.as_ref().is_some_and(|token| token.reveal().len() < 32) {
            bail!("the platform token (ORGSTREAM_PLATFORM_TOKEN) must have at least 32 characters");
        }
        let issuers = Issuers::new(identity.issuers())?;
        // Cursors are signed with a key of their own, so that neither can be used to make the other.
        let cursor_key = Fingerprint::of(&[b"orgstream cursor", secrets.pepper.reveal().as_bytes()]).0;
        let leak_reporters =
            secrets.leak_reporter_keys.as_deref().map(LeakReporters::load).transpose()?.unwrap_or_default();
        let operators = identity.operators(secrets.platform_token.as_ref().map(Secret::reveal))?;
        let auth = Authenticator::new(db.clone(), log.clone(), pepper.clone(), operators, issuers, identity.lifetime());
        let auth = Arc::new(if outside.local_issuers { auth.with_local_issuers() } else { auth });
        let sender = outside.mail.map(|mailer| Sender::new(db.clone(), mailer, pepper.clone()));
        let webhook_keys = WebhookKeys::new(pepper.clone());
        let webhooks = Webhooks::new(db.clone(), webhook_keys.clone(), outside.local_issuers)?;
        let (peers, known_peers) = peers::alone();
        let handler = CommandHandler::new(log.clone(), pepper, log.region().to_owned(), outside.dns);
        let handler = handler.with_account_peers(Arc::new(AccountPeers::new(log.clone(), known_peers.clone())));
        let own_kinds = OwnKindLimits::new(identity.plan_kinds.iter().cloned());
        let own_kinds = own_kinds.context("--plan-own-kinds (ORGSTREAM_PLAN_OWN_KINDS)")?;
        let handler = handler.with_own_kinds(own_kinds).with_currency(identity.currency.clone());
        let handler = handler.with_quotas(Arc::new(QuotaFigures::new(db.clone())));
        let handler = handler.with_deletion_grace(identity.deletion_grace());
        let handler = handler.with_identity_provider(outside.idp).with_key_ring(outside.key_ring);
        let handler = if outside.local_issuers { handler.with_local_issuers() } else { handler };
        let access_log = AccessLog::start(log.clone(), db.clone());
        let rates = PlanRates::new(identity.plan_rates.iter().cloned());
        let rates = rates.context("--plan-commands-per-second (ORGSTREAM_PLAN_COMMANDS_PER_SECOND)")?;
        let quotas = Quotas::new(identity.hourly(), known_peers.clone());
        let admission = Admission::new(rates, known_peers);
        let plan = identity.public_plan.clone();
        let gateway = Gateway::new(handler, Arc::clone(&auth), db.clone(), access_log, admission, quotas, plan);
        let gateway = Arc::new(gateway);
        let app = http::App::new(http::Parts {
            gateway: Arc::clone(&gateway),
            auth: Arc::clone(&auth),
            db,
            log: log.clone(),
            cursor_key,
            metrics,
            leak_reporters,
            proxies: TrustedProxies::new(secrets.trusted_proxies.iter().copied()),
            webhook_keys,
            break_glass_approval: identity.break_glass_approval,
            worker,
            producers: outside.producers.clone(),
            payments: outside.payments,
            limits: outside.http.limits(),
            metrics_token: outside.http.metrics_token,
        });
        let producers = outside.producers;
        Ok(Self { app, gateway, auth, log, peers, sender, webhooks, producers })
    }

    /// Serves until `stop`, then finishes started work.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let handler = self.gateway.handler();
        patiently("the event log", || register_default_kinds(handler)).await?;
        let access_log = Arc::clone(&self.gateway);
        let (app, jobs) = self.jobs();
        let jobs = Jobs::start(jobs, &app.failing, &stop);
        http::serve(listener, app, stop).await;
        jobs.ended().await;
        access_log.access_log().flush().await;
        Ok(())
    }

    /// What HTTP serves, and the jobs beside it.
    fn jobs(self) -> (Arc<http::App>, Vec<Job>) {
        let Self { app, gateway, auth, log, peers, sender, webhooks, producers } = self;
        let gateway_of_jobs = Arc::clone(&gateway);
        let collecting = app.payments.clone().map(|provider| collect(&log, Arc::clone(&gateway), provider));
        let boundary = producers::Boundary { auth, gateway, users: producers, bounds: Arc::clone(&app.bounds) };
        let accounts = (Arc::clone(&gateway_of_jobs), Arc::clone(&app.auth));
        let (client, webhooks) = (log.client().clone(), Arc::new(webhooks));
        let commands_by = client.clone();
        let mut jobs = vec![
            Job::new(JobName::NatsCommands, move |stop| producers::serve(commands_by.clone(), boundary.clone(), stop)),
            Job::new(JobName::ApiPeers, move |stop| {
                let (client, peers) = (client.clone(), peers.clone());
                async move { Ok(peers.run(client, stop).await?) }
            }),
            Job::new(JobName::AccountCommands, move |stop| {
                let (gateway, auth) = (Arc::clone(&accounts.0), Arc::clone(&accounts.1));
                async move { Ok(gateway.handler().serve_accounts(&auth, stop).await?) }
            }),
            Job::new(JobName::AuditWebhooks, move |stop| {
                let webhooks = Arc::clone(&webhooks);
                async {
                    webhooks.run(stop).await;
                    Ok(())
                }
            }),
            watch_history(&log, &app.db),
            build_views(&app.db),
            close_months(&log, Arc::clone(&gateway_of_jobs)),
            delete_organizations(&app.db, gateway_of_jobs, app.payments.is_some()),
        ];
        jobs.extend(collecting);
        match sender.map(Arc::new) {
            Some(sender) => jobs.push(Job::new(JobName::Outbox, move |stop| {
                let sender = Arc::clone(&sender);
                async move {
                    sender.run(stop).await;
                    Ok(())
                }
            })),
            None => tracing::warn!("there is no way for mails to leave, so they wait: set --smtp-url or --mail-folder"),
        }
        (app, jobs)
    }
}

/// Checks that the log has lost no history, until `stop`.
pub fn watch_history(log: &Log, db: &Database) -> Job {
    let histories = Arc::new(Mutex::new(Histories::new(log.clone(), db.clone())));
    Job::new(JobName::LogHistory, move |stop| {
        let histories = Arc::clone(&histories);
        async move {
            histories.lock().await.run(stop).await;
            Ok(())
        }
    })
}

/// Closes months that are over, until `stop`.
fn close_months(log: &Log, gateway: Arc<Gateway>) -> Job {
    let log = log.clone();
    Job::new(JobName::Invoices, move |stop| {
        let (log, gateway) = (log.clone(), Arc::clone(&gateway));
        async move {
            invoices::run(&log, gateway.handler(), stop).await;
            Ok(())
        }
    })
}

/// Deletes organizations, until `stop`.
fn delete_organizations(db: &Database, gateway: Arc<Gateway>, collects: bool) -> Job {
    let db = db.clone();
    Job::new(JobName::Deletions, move |stop| {
        let (db, gateway) = (db.clone(), Arc::clone(&gateway));
        async move {
            Box::pin(Deletions::new(&db, gateway.handler(), collects).run(stop)).await;
            Ok(())
        }
    })
}

/// Tells the payment provider what is owed, until `stop`.
fn collect(log: &Log, gateway: Arc<Gateway>, provider: Arc<dyn PaymentProvider>) -> Job {
    let log = log.clone();
    Job::new(JobName::Payments, move |stop| {
        let (log, gateway, provider) = (log.clone(), Arc::clone(&gateway), Arc::clone(&provider));
        async move {
            payments::run(&log, gateway.handler(), &*provider, stop).await;
            Ok(())
        }
    })
}

/// Has views built that were declared after there were records, until `stop`.
fn build_views(db: &Database) -> Job {
    let builds = Arc::new(ViewBuilds::new(db.clone()));
    Job::new(JobName::ViewBuilds, move |stop| {
        let builds = Arc::clone(&builds);
        async move {
            builds.run(stop).await;
            Ok(())
        }
    })
}

/// Fails with every finding, one line each, as the reason not to start.
pub fn refuse(findings: &[impl Display]) -> anyhow::Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings.iter().map(|finding| format!("  {finding}")).collect();
    bail!("this cannot be started safely:\n{}", lines.join("\n"))
}

/// Whether the server syncs every write before it acknowledges it.
async fn syncs_always(monitor: &Address) -> anyhow::Result<bool> {
    let url = format!("{}/jsz?config=true", monitor.whole().trim_end_matches('/'));
    let answer: serde_json::Value = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()?
        .get(&url)
        .send()
        .await
        .with_context(|| format!("the monitoring address {monitor} does not answer"))?
        .json()
        .await?;
    Ok(answer.pointer("/config/sync_always").and_then(serde_json::Value::as_bool).unwrap_or_default())
}

/// Retries until success or [`TIMEOUT`]: servers that are started together come up in any order.
async fn patiently<T, F: Future<Output = anyhow::Result<T>>>(what: &str, attempt: impl Fn() -> F) -> anyhow::Result<T> {
    let deadline = Instant::now() + TIMEOUT;
    let mut told = false;
    loop {
        match attempt().await {
            Ok(part) => return Ok(part),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => {
                if !told {
                    tracing::info!("waiting for {what}: {}", Chain(error.as_ref()));
                    told = true;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Makes the kernel allocate memory 4 KiB at a time, also to a program that grows: the allocator requests pages of 2 MiB,
/// and the thread that needs the next one waits until the kernel has found and cleared it, for milliseconds on a busy
/// machine. The servers that it starts inherit this.
pub fn small_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
