//! The measured system: servers, and workers that are processes of their own, so that they can be killed and their
//! memory measured.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream::{
    config::{DatabaseArgs, NatsArgs},
    process as node,
    secret::Secret,
};
use orgstream_events::OrgId;
use orgstream_projections::{Database, migrate};
use orgstream_servers::{Nats, Postgres, PostgresOptions, child_command};
use orgstream_stream::broker::AccessFiles;
use orgstream_stream::{Log, Placement};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::load::creation;

const DATABASE: &str = "fairness";
const SHARDS: u16 = 16;
/// Timeout for a worker to have its shards, and to stop.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// In-flight appends during preparations.
const MAX_CONCURRENCY: usize = 128;

pub(super) struct Rig {
    pub(super) log: Log,
    pub(super) db: Database,
    pub(super) private: Option<Private>,
    pub(super) nats: NatsArgs,
    access: Option<AccessFiles>,
    database: DatabaseArgs,
    /// The workers' log output.
    worker_log: PathBuf,
    /// The organizations of each size of crowd, made once.
    crowds: HashMap<usize, Vec<Placement>>,
}

/// Servers that were started for the benchmark.
pub(super) struct Private {
    pub(super) nats: Nats,
    postgres: Postgres,
    /// The URL of the database's owner.
    pub(super) owner_url: String,
    dir: PathBuf,
}

/// The options of a benchmark's worker.
#[derive(Debug, Clone)]
pub(super) struct WorkerSetup {
    pub(super) policy: &'static str,
    /// The number that determines the shards it comes back to.
    pub(super) number: u128,
    pub(super) slots: usize,
    /// More flags of `orgstream work`.
    pub(super) flags: Vec<String>,
}

impl Rig {
    /// Starts private servers in a temporary folder.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("orgstream-fairness-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        let nats = Nats::start(&dir.join("nats"), false).await?;
        let options =
            PostgresOptions { commit_timestamps: true, shared_buffers_mib: 1024, ..PostgresOptions::default() };
        let postgres = Postgres::start(&dir.join("postgres"), options).await?;
        let owner_url = postgres.create_database(DATABASE).await?;
        let password = format!("{:032x}", rand::random::<u128>());
        migrate(&owner_url, Some(&password)).await?;
        let database_url = format!("postgres://{}:{}/{DATABASE}", postgres.host, postgres.port);
        let (nats_url, access) = (nats.url.clone(), nats.access.clone());
        let private = Private { nats, postgres, owner_url, dir };
        let keys = format!("bench:{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        Self::open(nats_url, Some(access), database_url, Some(password), keys, Some(private)).await
    }

    /// Uses running servers; the database must be migrated, and keep commit timestamps. Without the folder of its
    /// accounts, NATS must accept connections without credentials.
    pub(super) async fn yours(
        nats_url: String,
        access: Option<AccessFiles>,
        database_url: String,
        password: Option<String>,
        commit_keys: String,
    ) -> anyhow::Result<Self> {
        Self::open(nats_url, access, database_url, password, commit_keys, None).await
    }

    async fn open(
        nats_url: String,
        access: Option<AccessFiles>,
        database_url: String,
        database_password: Option<String>,
        commit_keys: String,
        private: Option<Private>,
    ) -> anyhow::Result<Self> {
        let nats = NatsArgs {
            nats_url: nats_url.into(),
            nats_creds: access.as_ref().map(AccessFiles::serve),
            nats_ca: None,
            nats_producers: None,
            allow_open_nats: access.is_none(),
            commit_keys: Some(commit_keys.into()),
            nats_monitor_url: None,
            replicas: 1,
            shards: SHARDS,
            region: "local".to_owned(),
            allow_unsafe_sync: true,
        };
        let (login_passwords, database_connections) = (Vec::new(), None);
        let database = DatabaseArgs {
            database_url: database_url.into(),
            database_password: database_password.map(Secret::from),
            login_passwords,
            database_connections,
            log_key: None,
        };
        let db = node::open_database(&database, 1).await?;
        let admin = access.as_ref().map(AccessFiles::admin);
        node::make_streams(&NatsArgs { nats_creds: admin, ..nats.clone() }).await?;
        let log = node::open_log(&nats, &db).await?;
        let worker_log = std::env::temp_dir().join(format!("orgstream-fairness-{}-worker.log", std::process::id()));
        Ok(Self { log, db, private, nats, access, database, worker_log, crowds: HashMap::new() })
    }

    /// A separate connection, as another tenant's producer has.
    pub(super) async fn other_log(&self) -> anyhow::Result<Log> {
        node::connect_log(&self.nats).await
    }

    /// Places `count` organizations, or returns those that were placed before.
    pub(super) async fn crowd(&mut self, count: usize) -> anyhow::Result<Vec<Placement>> {
        if !self.crowds.contains_key(&count) {
            self.crowds.insert(count, self.new_orgs(count).await?);
        }
        Ok(self.crowds.get(&count).cloned().unwrap_or_default())
    }

    /// New organizations.
    pub(super) async fn new_orgs(&self, count: usize) -> anyhow::Result<Vec<Placement>> {
        let orgs = self.new_places(count).await?;
        self.create(&orgs).await?;
        Ok(orgs)
    }

    /// Places new organizations, of which nothing is in the log yet.
    pub(super) async fn new_places(&self, count: usize) -> anyhow::Result<Vec<Placement>> {
        let ids = stream::iter((0..count).map(|_| OrgId::fresh(0, rand::random())));
        Ok(ids.map(|org| self.log.place(org)).buffer_unordered(MAX_CONCURRENCY).try_collect().await?)
    }

    /// Begins the history of each.
    pub(super) async fn create(&self, orgs: &[Placement]) -> anyhow::Result<()> {
        let created = stream::iter(orgs).map(async |org| {
            self.log.append(org, &creation(org.org)?, 0, None).await?;
            anyhow::Ok(())
        });
        created.buffer_unordered(MAX_CONCURRENCY).try_collect().await
    }

    /// Starts a worker process; the shards need not be its own yet.
    pub(super) async fn spawn(&self, setup: &WorkerSetup) -> anyhow::Result<WorkerProcess> {
        let program = program()?;
        let mut command = Command::from(child_command(&program, "KILL").await);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.worker_log)?;
        command
            .arg("work")
            .args(["--http", "127.0.0.1:0", "--policy", setup.policy, "--allow-unsafe-sync", "--log", "warn"])
            .args(["--slots", &setup.slots.to_string(), "--worker-id", &Uuid::from_u128(setup.number).to_string()])
            .args(["--shards", &SHARDS.to_string()])
            .args(&setup.flags)
            .env("ORGSTREAM_NATS_URL", self.nats.nats_url.whole())
            .env("ORGSTREAM_COMMIT_KEYS", self.nats.commit_keys.as_ref().map_or("", Secret::reveal))
            .env("ORGSTREAM_DATABASE_URL", self.database.database_url.whole())
            .env("ORGSTREAM_DATABASE_PASSWORD", self.database.database_password.as_ref().map_or("", Secret::reveal))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        match &self.access {
            Some(access) => command.env("ORGSTREAM_NATS_CREDS", access.work()),
            None => command.arg("--allow-open-nats"),
        };
        if ["fifo", "rr100"].contains(&setup.policy) {
            // The baselines must keep all of their one order in memory.
            command.args(["--lane-kib", "4194304", "--lanes-mib", "4096"]);
        }
        let child = command.spawn().context("a worker could not be started")?;
        Ok(WorkerProcess { child })
    }

    /// Starts workers, and returns when every shard has one of them.
    pub(super) async fn workers(&self, setups: &[WorkerSetup]) -> anyhow::Result<Vec<WorkerProcess>> {
        let mut workers = Vec::new();
        for setup in setups {
            workers.push(self.spawn(setup).await?);
        }
        self.wait_for_owners(&mut workers).await?;
        Ok(workers)
    }

    pub(super) async fn worker(&self, setup: &WorkerSetup) -> anyhow::Result<WorkerProcess> {
        let mut workers = self.workers(std::slice::from_ref(setup)).await?;
        workers.pop().context("a worker was started")
    }

    async fn wait_for_owners(&self, workers: &mut [WorkerProcess]) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let live = self.db.live_workers(Duration::from_secs(10)).await?.len();
            let owners: Vec<_> = self.db.leases().await?.into_iter().filter_map(|lease| lease.owner).collect();
            let different = owners.iter().collect::<std::collections::HashSet<_>>().len();
            if owners.len() == usize::from(SHARDS) && different == workers.len() && live == workers.len() {
                return Ok(());
            }
            if workers.iter_mut().any(WorkerProcess::has_ended) || since.elapsed() > TIMEOUT {
                bail!("a worker did not take its shards; its log is {}", self.worker_log.display());
            }
            sleep(POLL).await;
        }
    }

    /// Stops what was started, and removes it. After a failure the workers' log output is kept for its analysis.
    pub(super) async fn stop(self, went_well: bool) {
        if went_well {
            let _ = std::fs::remove_file(&self.worker_log);
        }
        self.db.close().await;
        if let Some(private) = self.private {
            private.postgres.stop().await;
            private.nats.stop().await;
            let _ = std::fs::remove_dir_all(&private.dir);
        }
    }
}

/// A worker, killed when dropped.
pub(super) struct WorkerProcess {
    child: Child,
}

impl WorkerProcess {
    fn has_ended(&mut self) -> bool {
        self.child.try_wait().ok().flatten().is_some()
    }

    /// Stops it gracefully.
    pub(super) async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        let pid = self.pid()?;
        kill_process(pid, Signal::TERM).context("the worker could not be asked to stop")?;
        Ok(timeout(TIMEOUT, self.child.wait()).await.context("the worker does not stop")??)
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        let pid = self.child.id().context("the worker has ended by itself")?;
        Pid::from_raw(i32::try_from(pid)?).context("a process has a number")
    }

    /// Kills it, as a crash would.
    pub(super) async fn kill9(mut self) -> anyhow::Result<()> {
        kill_process(self.pid()?, Signal::KILL).context("the worker could not be killed")?;
        self.child.wait().await.context("the worker does not end")?;
        Ok(())
    }

    /// Its peak memory so far, in bytes.
    pub(super) fn peak_rss(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    /// Its current memory, in bytes.
    pub(super) fn rss(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// Its processor time so far.
    pub(super) fn processor_time(&self) -> Duration {
        let stat = self.child.id().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
        let stat = stat.unwrap_or_default();
        // After the name, which may have spaces: user and system time are the 12th and 13th, in ticks.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100)
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = self.child.id().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    }
}

/// The program whose workers are measured.
fn program() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("this program's own path is not known")?;
    let program = here.with_file_name("orgstream");
    if !program.exists() {
        bail!("{} is not there: in a checkout `cargo build --release` builds it", program.display());
    }
    Ok(program)
}
