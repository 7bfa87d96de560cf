//! Everything in one process: private servers, API, worker and issuer over one data folder.
//!
//! `orgstream dev` is this with a demo and a card; the benchmarks and the tests are this with something to measure.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use orgstream_events::Chain;
use orgstream_projections::{Database, audit::SigningDatabase};
use orgstream_servers::{Nats, Postgres, PostgresOptions, stable_listener, write_private};
use orgstream_stream::Log;
use orgstream_transparency::LogSigner;
use orgstream_workers::{Worker, WorkerOptions};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::issuer::DevIssuer;
use crate::{
    adapters::{
        key_ring::RingFile,
        payments::{FakeProvider, PaymentProvider},
    },
    app::submit::Gateway,
    audit::{
        keys::KeyFiles,
        signer::{Pace, Signer},
    },
    auth::Authenticator,
    auth::approval::GlassApproval,
    config::{DatabaseArgs, IdentityArgs, KeyRingArgs, MailArgs, NatsArgs, SecretArgs},
    jobs::{Failing, Jobs},
    process as node,
};

/// The folder of outgoing mails, inside the data folder.
pub const OUTBOX: &str = "outbox";
const DATABASE: &str = "orgstream";
/// The host name of the audit logs of one machine, before the org's id.
const HOST: &str = "localhost";
/// The folder of their keys, inside the data folder.
pub const KEYS: &str = "keys";
/// The file of the key ring, inside the data folder.
const RING: &str = "key-ring.json";
/// The file of the payment provider, inside the data folder.
const PAYMENTS: &str = "payments.json";
/// The polling interval of the servers.
const WATCH: Duration = Duration::from_millis(300);
/// The minimum interval between restarts of nats-server for shards that accept nothing: longer than a process reports a
/// failure that is over.
const AGAIN: Duration = Duration::from_secs(45);
/// How long API and worker may take to finish their work.
const GRACE: Duration = Duration::from_secs(20);

/// The options of the stack.
pub struct StackOptions {
    /// The data folder.
    pub dir: PathBuf,
    /// The listen address of the API; port 0 selects a free one.
    pub http: String,
    /// Whether NATS syncs every write before it acknowledges it.
    pub sync_always: bool,
    /// The options of PostgreSQL.
    pub postgres: PostgresOptions,
    /// The number of pooled streams.
    pub shards: u16,
    /// The worker; its id is replaced by the folder's own. None for an API alone.
    pub worker: Option<WorkerOptions>,
    /// The policy file with the witnesses of the audit logs, whose heads are then signed. None leaves them unsigned.
    pub signing: Option<String>,
    /// Whether a payment provider that moves no money collects what is owed.
    pub payments: bool,
}

impl StackOptions {
    /// Creates the options of `orgstream dev`, with everything in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            http: "127.0.0.1:0".to_owned(),
            sync_always: true,
            postgres: PostgresOptions::default(),
            shards: 16,
            worker: Some(WorkerOptions::new(Uuid::nil())),
            signing: None,
            payments: false,
        }
    }
}

/// The secrets of one data folder: created once, kept with the data, readable by its owner only.
#[derive(Serialize, Deserialize)]
pub struct Secrets {
    /// The secret that hashes API key secrets.
    pub pepper: String,
    /// The platform operator's token.
    pub platform_token: String,
    /// The keys that vouch for the events in the log.
    pub commit_keys: String,
    /// The password of the program's PostgreSQL logins.
    pub database_password: String,
    /// The worker's id, so that its own leases do not keep it waiting after a restart.
    pub worker_id: Uuid,
}

impl Secrets {
    /// Reads the file, or creates it.
    pub fn load_or_create(path: &Path) -> anyhow::Result<Self> {
        if path.exists() {
            let text = std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
            return serde_json::from_slice(&text).with_context(|| {
                format!("{} is damaged, or of an older version: remove the data folder to begin anew", path.display())
            });
        }
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let random = || hex(&rand::random::<[u8; 24]>());
        let secrets = Self {
            pepper: random(),
            platform_token: format!("operator_{}", random()),
            commit_keys: format!("first:{}", hex(&rand::random::<[u8; 32]>())),
            database_password: random(),
            worker_id: Uuid::now_v7(),
        };
        write_private(path, &serde_json::to_vec_pretty(&secrets)?)?;
        Ok(secrets)
    }
}

/// The running stack.
pub struct Stack {
    /// The URL of the API.
    pub base_url: String,
    /// The streams' server.
    pub nats: Nats,
    /// The tables' server.
    pub postgres: Postgres,
    /// The URL of the database with the login that owns it.
    pub owner_url: String,
    /// The URL of the database without a login, as the program is configured with it.
    pub database_url: String,
    /// The secrets of the data folder.
    pub secrets: Secrets,
    /// The event log, with the API's access.
    pub log: Log,
    /// The event log, with a worker's access.
    work_log: Log,
    database: DatabaseArgs,
    /// The read models and the audit log.
    pub db: Database,
    /// The entry point for commands.
    pub gateway: Arc<Gateway>,
    /// The authentication.
    pub auth: Arc<Authenticator>,
    /// The issuer of the people.
    pub issuer: DevIssuer,
    /// The payment provider, which moves no money.
    pub payments: Option<FakeProvider>,
    stop: CancellationToken,
    stop_worker: CancellationToken,
    worker: Option<JoinHandle<()>>,
    signing: Option<JoinHandle<()>>,
    api: JoinHandle<anyhow::Result<()>>,
    issuing: JoinHandle<anyhow::Result<()>>,
}

impl Stack {
    /// Starts everything; `say` receives the progress.
    pub async fn start(
        options: StackOptions,
        metrics: PrometheusHandle,
        say: impl Fn(&'static str),
    ) -> anyhow::Result<Self> {
        let dir = &options.dir;
        let secrets = Secrets::load_or_create(&dir.join("secrets.json"))?;
        let listener = node::listen(&options.http).await?;
        say("starting nats-server");
        let nats = Nats::start(&dir.join("nats"), options.sync_always).await?;
        say("starting PostgreSQL");
        let postgres = Postgres::start(&dir.join("postgres"), options.postgres).await?;
        say("migrating the database");
        let owner_url = postgres.create_database(DATABASE).await?;
        orgstream_projections::migrate(&owner_url, Some(&secrets.database_password)).await?;

        say("starting the API and a worker");
        let stop = CancellationToken::new();
        let (issuer, issuing) = start_issuer(&dir.join("issuer"), stop.clone())?;
        let nats_args = NatsArgs {
            nats_url: nats.url.clone().into(),
            nats_creds: Some(nats.access.serve()),
            nats_ca: None,
            nats_producers: Some(nats.access.producers()),
            allow_open_nats: false,
            commit_keys: Some(secrets.commit_keys.clone().into()),
            nats_monitor_url: Some(nats.monitor_url.clone().into()),
            replicas: 1,
            shards: options.shards,
            region: "local".to_owned(),
            allow_unsafe_sync: !options.sync_always,
        };
        let database_args = DatabaseArgs {
            database_url: format!("postgres://{}:{}/{DATABASE}", postgres.host, postgres.port).into(),
            database_password: Some(secrets.database_password.clone().into()),
            login_passwords: Vec::new(),
            database_connections: None,
            // Every component trusts the signing process's key, rather than the one that the database names.
            log_key: match &options.signing {
                Some(_) => Some(signing_key(&dir.join(KEYS))?.verifier().clone()),
                None => None,
            },
        };
        let secret_args = SecretArgs {
            pepper: secrets.pepper.clone().into(),
            platform_token: Some(secrets.platform_token.clone().into()),
            leak_reporter_keys: None,
            trusted_proxies: Vec::new(),
        };
        // On a developer's own machine there is no one else to ask.
        let identity =
            IdentityArgs { break_glass_approval: GlassApproval::Off, ..IdentityArgs::of_issuer(issuer.url()) };
        let db = node::open_database(&database_args, options.worker.as_ref().map_or(1, |worker| worker.slots)).await?;
        node::make_streams(&NatsArgs { nats_creds: Some(nats.access.admin()), ..nats_args.clone() }).await?;
        let log = node::open_log(&nats_args, &db).await?;
        // The worker uses its own credentials, so that its restrictions apply here, too.
        let work_args = NatsArgs { nats_creds: Some(nats.access.work()), nats_producers: None, ..nats_args.clone() };
        let work_log = node::connect_log(&work_args).await?;
        // Its result is not needed: it ends with the others.
        drop(Jobs::start(vec![node::watch_history(&work_log, &db)], &Failing::default(), &stop));
        let stop_worker = stop.child_token();
        let (mut watch, mut worker) = (None, None);
        if let Some(chosen) = options.worker {
            let id = if chosen.id.is_nil() { secrets.worker_id } else { chosen.id };
            // The worker has connections of its own: those that its threads opened end with it.
            let work_db = node::open_database(&database_args, chosen.slots).await?;
            let new = Worker::new(work_log.clone(), work_db, WorkerOptions { id, ..chosen });
            watch = Some(new.status());
            worker = Some(tokio::spawn(new.run(stop_worker.clone())));
        }
        let signing = match &options.signing {
            Some(witnesses) => {
                let signer = signer(&dir.join(KEYS), &database_args, witnesses).await?;
                Some(tokio::spawn(signer.run(stop.clone())))
            }
            None => None,
        };
        let base_url = format!("http://{}", listener.local_addr()?);
        let mail = MailArgs {
            mail_folder: Some(dir.join(OUTBOX)),
            mail_from: "Orgstream <no-reply@orgstream.example>".to_owned(),
            invitation_link: format!("{base_url}/join#token={{token}}"),
            ..MailArgs::default()
        };
        let key_ring =
            KeyRingArgs { key_ring: Some(key_ring(&dir.join(RING))?), ..KeyRingArgs::default() }.ring().await?;
        node::check_key_ring(&log, key_ring.clone()).await?;
        let mut payments = None;
        if options.payments {
            let mut provider = FakeProvider::start(Some(dir.join(PAYMENTS))).await?;
            provider.behave(|behaviour| behaviour.pays_invoices = true);
            provider.deliver_to(format!("{base_url}/v1/payment-reports"));
            payments = Some(provider);
        }
        let adapter = payments.as_ref().map(FakeProvider::adapter).transpose()?;
        let outside = node::Adapters {
            payments: adapter.map(|adapter| Arc::new(adapter) as Arc<dyn PaymentProvider>),
            mail: mail.mailer()?,
            key_ring,
            local_issuers: true,
            producers: nats_args.producers()?,
            ..node::Adapters::default()
        };
        let api = node::Api::new(log.clone(), db.clone(), &secret_args, &identity, metrics, watch, outside)?;
        let (gateway, auth) = (Arc::clone(&api.gateway), Arc::clone(&api.app.auth));
        let api = tokio::spawn(api.run(listener, stop.clone()));
        Ok(Self {
            base_url,
            nats,
            postgres,
            owner_url,
            database_url: database_args.database_url.whole().to_owned(),
            secrets,
            log,
            work_log,
            database: database_args,
            db,
            gateway,
            auth,
            issuer,
            payments,
            stop,
            stop_worker,
            worker,
            signing,
            api,
            issuing,
        })
    }

    /// Starts a worker beside the running parts, in place of the one that was stopped.
    pub async fn start_worker(&mut self, options: WorkerOptions) -> anyhow::Result<()> {
        let work_db = node::open_database(&self.database, options.slots).await?;
        self.stop_worker = self.stop.child_token();
        let worker = Worker::new(self.work_log.clone(), work_db, options);
        self.worker = Some(tokio::spawn(worker.run(self.stop_worker.clone())));
        Ok(())
    }

    /// Stops the worker and leaves the rest running.
    pub async fn stop_worker(&mut self) {
        self.stop_worker.cancel();
        if let Some(worker) = self.worker.take() {
            let _ = worker.await;
        }
    }

    /// Restarts a server that ended by itself, until `stop`; and nats-server when it has given up a stream, which it does
    /// when its disk is full and does not reverse when there is space.
    pub async fn watch_over(&mut self, stop: &CancellationToken) {
        let mut started: Option<Instant> = None;
        while stop.run_until_cancelled(tokio::time::sleep(WATCH)).await.is_some() {
            if let Some(status) = self.nats.ended() {
                tracing::warn!(%status, "nats-server ended by itself and is started again");
                if let Err(error) = self.nats.restart().await {
                    tracing::error!(error = %Chain(&error), "nats-server does not start");
                }
                started = Some(Instant::now());
            }
            let troubles = self.log.troubles();
            if let Some((shard, reason)) = troubles.first()
                && started.is_none_or(|at| at.elapsed() > AGAIN)
                && self.nats.has_space()
            {
                tracing::warn!(
                    shards = troubles.len(), %shard, reason,
                    "nats-server takes nothing for a shard though its disk has space: it is started again"
                );
                if let Err(error) = self.nats.restart().await {
                    tracing::error!(error = %Chain(&error), "nats-server does not start");
                }
                started = Some(Instant::now());
            }
            if let Some(status) = self.postgres.ended() {
                tracing::warn!(%status, "PostgreSQL ended by itself and is started again");
                if let Err(error) = self.postgres.restart().await {
                    tracing::error!(error = %Chain(&error), "PostgreSQL does not start");
                }
            }
            if self.api.is_finished() {
                return;
            }
        }
    }

    /// Finishes started work and stops everything, the servers last.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let finished = async {
            if let Some(worker) = self.worker.take() {
                worker.await?;
            }
            if let Some(signing) = self.signing.take() {
                signing.await?;
            }
            self.issuing.await??;
            self.api.await?
        };
        let result = tokio::time::timeout(GRACE, finished).await;
        self.db.close().await;
        self.log.close().await;
        self.work_log.close().await;
        self.postgres.stop().await;
        self.nats.stop().await;
        match result {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!("API and worker did not finish in time");
                Ok(())
            }
        }
    }
}

/// Returns the key of the audit logs in the data folder, which is created the first time.
fn signing_key(keys: &Path) -> anyhow::Result<LogSigner> {
    let files = KeyFiles::of_log(keys);
    if files.exist() { files.load() } else { files.make(HOST.parse()?) }
}

/// Returns the key ring of the data folder, which is created the first time.
fn key_ring(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.exists() {
        let ring = RingFile::new("first", &Zeroizing::new(rand::random()))?;
        write_private(path, ring.to_text()?.as_bytes())?;
    }
    Ok(path.to_owned())
}

/// Creates the signing process as a task, with a key of the data folder.
async fn signer(keys: &Path, database: &DatabaseArgs, witnesses: &str) -> anyhow::Result<Signer> {
    let (files, key) = (KeyFiles::of_log(keys), signing_key(keys)?);
    let db = SigningDatabase::connect(&database.options(2)).await.with_context(|| database.silent())?;
    Ok(Signer::new(db, key, witnesses, Pace::default())?.after(&files.handovers()?))
}

fn start_issuer(dir: &Path, stop: CancellationToken) -> anyhow::Result<(DevIssuer, JoinHandle<anyhow::Result<()>>)> {
    // The address is part of its users' identity, so it must be the same at every start.
    let listener = stable_listener(dir)?;
    let url = format!("http://{}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let issuer = DevIssuer::load_or_create(dir, url)?;
    let serving = tokio::spawn(issuer.clone().serve(TcpListener::from_std(listener)?, stop));
    Ok((issuer, serving))
}
