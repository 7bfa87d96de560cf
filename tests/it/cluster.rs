//! The product as an operator runs it: nats-server, PostgreSQL, `orgstream serve` and `orgstream work`, each a process
//! of its own that a test can kill, stop and start again on its old port. All of it is gone when dropped.
#![allow(dead_code, reason = "a harness has what its tests may need, whichever of them there are")]

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use orgstream::dev::issuer::DevIssuer;
use orgstream_events::{OrgId, Position};
use orgstream_servers::{Postgres, PostgresOptions, stable_listener};
use orgstream_stream::{Log, LogOptions, SyncMode};
use reqwest::{Method, RequestBuilder, header::HeaderMap};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{COMMIT_KEYS, TempDir, any_producer, commit_keys, connect_as};

/// Timeout for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_millis(20);
/// Timeout after which an answer counts as lost, as for an impatient client: longer than an append is tried.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const DATABASE: &str = "orgstream";
const DATABASE_PASSWORD: &str = "the password of the cluster";
const PEPPER: &str = "the pepper of the cluster, which is no secret";
const OPERATOR: &str = "operator-of-the-cluster-of-the-tests";

/// The options for running the product.
#[derive(Debug, Clone)]
pub(crate) struct ClusterOptions {
    pub(crate) shards: u16,
    pub(crate) workers: usize,
    pub(crate) lease_seconds: u64,
    /// More flags of `orgstream work`.
    pub(crate) work: Vec<String>,
    /// More flags of `orgstream serve`.
    pub(crate) serve: Vec<String>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { shards: 4, workers: 1, lease_seconds: 3, work: Vec::new(), serve: Vec::new() }
    }
}

/// The running product.
pub(crate) struct Cluster {
    pub(crate) api: Program,
    pub(crate) workers: Vec<Program>,
    pub(crate) client: Client,
    pub(crate) issuer: DevIssuer,
    pub(crate) options: ClusterOptions,
    pub(crate) postgres: Postgres,
    pub(crate) nats: orgstream_servers::Nats,
    /// The URL of the database for the superuser.
    pub(crate) owner_url: String,
    issuing: CancellationToken,
    // Last: everything else is in it.
    dir: TempDir,
}

impl Cluster {
    /// Starts all of it, and returns when API and workers are ready.
    pub(crate) async fn start(options: ClusterOptions) -> Self {
        Self::start_in(TempDir::new(), options).await
    }

    /// Starts it in a prepared folder: a disk may be mounted in it.
    pub(crate) async fn start_in(dir: TempDir, options: ClusterOptions) -> Self {
        let fast = PostgresOptions { without_fsync: true, ..PostgresOptions::default() };
        let (nats_dir, postgres_dir) = (dir.path().join("nats"), dir.path().join("postgres"));
        let (nats, postgres) =
            tokio::join!(orgstream_servers::Nats::start(&nats_dir, true), Postgres::start(&postgres_dir, fast));
        let (nats, postgres) = (nats.unwrap(), postgres.unwrap());
        let owner_url = postgres.create_database(DATABASE).await.unwrap();
        orgstream_projections::migrate(&owner_url, Some(DATABASE_PASSWORD)).await.unwrap();

        let streams = settings(&options, &nats, &postgres, &nats.access.admin());
        let made = program().args(["nats", "streams"]).envs(streams).output().unwrap();
        assert!(made.status.success(), "{made:?}");

        let issuing = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = DevIssuer::load_or_create(dir.path(), url).unwrap();
        tokio::spawn(issuer.clone().serve(listener, issuing.clone()));

        let settings = settings(&options, &nats, &postgres, &nats.access.serve());
        let api = Program::serve("api", dir.path(), &settings, issuer.url(), &options);
        let mut cluster = Self {
            client: Client { http: client(), base: api.url.clone(), trouble: Arc::default() },
            api,
            workers: Vec::new(),
            issuer,
            options,
            postgres,
            nats,
            owner_url,
            issuing,
            dir,
        };
        cluster.api.start();
        for _ in 0..cluster.options.workers {
            cluster.add_worker();
        }
        cluster.ready().await;
        cluster
    }

    /// Starts one more worker.
    pub(crate) fn add_worker(&mut self) -> &mut Program {
        let name = format!("worker-{}", self.workers.len());
        let settings = settings(&self.options, &self.nats, &self.postgres, &self.nats.access.work());
        let mut worker = Program::work(&name, self.dir.path(), &settings, &self.options);
        worker.start();
        self.workers.push(worker);
        self.workers.last_mut().unwrap()
    }

    /// One more API beside the first: another process, with caches of its own.
    pub(crate) fn second_api(&self) -> Program {
        self.another_api("second-api")
    }

    /// One more under a name of its own.
    pub(crate) fn another_api(&self, name: &str) -> Program {
        let settings = settings(&self.options, &self.nats, &self.postgres, &self.nats.access.serve());
        let mut api = Program::serve(name, self.dir.path(), &settings, self.issuer.url(), &self.options);
        api.start();
        api
    }

    /// Waits until API and workers are ready.
    pub(crate) async fn ready(&mut self) {
        self.api.ready().await;
        for worker in &mut self.workers {
            worker.ready().await;
        }
    }

    /// The folder that everything is in.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A connection that no row-level security binds: to check from outside what the program wrote.
    pub(crate) async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.owner_url).await.unwrap()
    }

    /// The event log, as another API process would open it.
    pub(crate) async fn log(&self) -> Log {
        let options = LogOptions {
            creds: Some(self.nats.access.serve()),
            shards: self.options.shards,
            sync: SyncMode::Durable,
            ..LogOptions::new(&self.nats.url, commit_keys())
        };
        Log::connect(&options).await.unwrap()
    }

    /// A connection to NATS, as a producer has it, for every organization.
    pub(crate) async fn producer(&self) -> async_nats::Client {
        any_producer(&self.nats.url, &self.nats.access).await
    }

    /// A connection to NATS with all rights in the streams' account.
    pub(crate) async fn administrator(&self) -> async_nats::Client {
        connect_as(&self.nats.url, &self.nats.access.admin()).await
    }

    /// A token of the user with this address.
    pub(crate) fn person(&self, email: &str) -> String {
        self.issuer.mint(email, Duration::from_hours(1)).unwrap()
    }

    /// The platform's operator.
    #[expect(clippy::unused_self, reason = "it reads as a property of the cluster")]
    pub(crate) fn operator(&self) -> &'static str {
        OPERATOR
    }

    /// A new organization, its owner, and a key with the role admin.
    pub(crate) async fn tenant(&self, slug: &str) -> Tenant {
        let owner = self.person(&format!("owner@{slug}.example"));
        let create = json!({"name": slug, "slug": slug});
        let made = self.client.post(&owner, "/v1/organizations", Some("found"), &create).await.expect(201);
        let id: OrgId = made.text("id").parse().unwrap();
        let path = format!("/v1/organizations/{id}/api-keys");
        let issue = json!({"name": "test", "role": "admin"});
        // An organization is answered before its owner is seen where that takes longer than seconds.
        let issued = eventually("the owner to be known", async || {
            let issued = self.client.post(&owner, &path, Some("first-key"), &issue).await;
            (issued.status != 404).then_some(issued)
        })
        .await
        .expect(201);
        Tenant { id, slug: slug.to_owned(), owner, key: issued.text("token"), key_id: issued.text("id") }
    }

    /// Several organizations, created concurrently.
    pub(crate) async fn tenants(&self, count: usize) -> Vec<Tenant> {
        let slugs: Vec<String> = (0..count).map(|number| format!("tenant-{number}")).collect();
        join_all(slugs.iter().map(|slug| self.tenant(slug))).await
    }

    /// Runs a client command of the program, with `credential`.
    pub(crate) async fn cli(&self, credential: &str, args: &[&str]) -> Said {
        self.command(credential, args).run().await
    }

    /// A client command, to be run by the test.
    pub(crate) fn command(&self, credential: &str, args: &[&str]) -> Cli {
        let mut command = program();
        let reader = self.nats.access.work();
        command.args(args).envs(settings(&self.options, &self.nats, &self.postgres, &reader));
        command.env("ORGSTREAM_URL", &self.client.base).env("ORGSTREAM_API_KEY", credential);
        command.current_dir(self.dir.path());
        Cli(command)
    }

    /// Waits until all pipelines have applied the organization's whole stream.
    pub(crate) async fn until_projected(&self, tenant: &Tenant) {
        let path = format!("/v1/organizations/{}/projections", tenant.id);
        let what = format!("all pipelines to be done with {}", tenant.slug);
        eventually(&what, async || {
            let answer = self.client.get(&tenant.key, &path).await.expect(200);
            let done = answer.body["data"].as_array().unwrap().iter().all(|pipeline| pipeline["behind"] == 0);
            done.then_some(())
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.issuing.cancel();
        if std::thread::panicking() {
            for program in std::iter::once(&self.api).chain(&self.workers) {
                program.print_end_of_log();
            }
        }
    }
}

/// An organization, and its credentials.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) id: OrgId,
    pub(crate) slug: String,
    /// A token of its owner.
    pub(crate) owner: String,
    /// An API key with the role admin.
    pub(crate) key: String,
    pub(crate) key_id: String,
}

impl Tenant {
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/v1/organizations/{}/{rest}", self.id)
    }
}

/// The settings that connect the parts of the product.
fn settings(
    options: &ClusterOptions,
    nats: &orgstream_servers::Nats,
    postgres: &Postgres,
    creds: &Path,
) -> Vec<(&'static str, String)> {
    vec![
        ("ORGSTREAM_NATS_URL", nats.url.clone()),
        ("ORGSTREAM_NATS_CREDS", creds.to_str().unwrap().to_owned()),
        ("ORGSTREAM_NATS_PRODUCERS", nats.access.producers().to_str().unwrap().to_owned()),
        ("ORGSTREAM_NATS_MONITOR_URL", nats.monitor_url.clone()),
        ("ORGSTREAM_COMMIT_KEYS", COMMIT_KEYS.to_owned()),
        ("ORGSTREAM_SHARDS", options.shards.to_string()),
        ("ORGSTREAM_DATABASE_URL", format!("postgres://{}:{}/{DATABASE}", postgres.host, postgres.port)),
        ("ORGSTREAM_DATABASE_PASSWORD", DATABASE_PASSWORD.to_owned()),
    ]
}

/// The program, without the settings of the user that runs the tests. The kernel ends it if the test dies.
pub(crate) fn program() -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    let path = env!("CARGO_BIN_EXE_orgstream");
    let mut command = if Path::new(SETPRIV).exists() {
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL", "--", path]);
        command
    } else {
        Command::new(path)
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ORGSTREAM_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build().unwrap()
}

/// A process of the program that answers over HTTP.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) url: String,
    command: Command,
    log: PathBuf,
    child: Option<Child>,
    http: reqwest::Client,
}

impl Program {
    fn serve(
        name: &str,
        dir: &Path,
        settings: &[(&'static str, String)],
        issuer: &str,
        options: &ClusterOptions,
    ) -> Self {
        let mut api = Self::new(name, "serve", dir, settings);
        api.command.args(["--issuer-url", issuer]).args(&options.serve);
        api.command.env("ORGSTREAM_PEPPER", PEPPER).env("ORGSTREAM_PLATFORM_TOKEN", OPERATOR);
        api
    }

    fn work(name: &str, dir: &Path, settings: &[(&'static str, String)], options: &ClusterOptions) -> Self {
        let mut worker = Self::new(name, "work", dir, settings);
        worker.command.args(["--lease-seconds", &options.lease_seconds.to_string()]).args(&options.work);
        worker
    }

    fn new(name: &str, job: &str, dir: &Path, settings: &[(&'static str, String)]) -> Self {
        // A port of its own, outside of the range that the kernel assigns to outgoing connections.
        let address = stable_listener(&dir.join(name)).unwrap().local_addr().unwrap();
        let mut command = program();
        command.args([job, "--http", &address.to_string()]).envs(settings.iter().cloned()).current_dir(dir);
        let log = dir.join(name).join("log");
        Self { name: name.to_owned(), url: format!("http://{address}"), command, log, child: None, http: client() }
    }

    /// Starts it, without waiting for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = append(&self.log);
        self.command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(self.command.spawn().unwrap());
    }

    /// Waits until it reports that it is ready.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status}: {}", self.name, self.log_text());
            }
            let last = match self.readiness().await {
                Some((200, _)) => return,
                Some((_, body)) => body.to_string(),
                None => "no answer".to_owned(),
            };
            assert!(Instant::now() < deadline, "{} is not ready: {last}", self.name);
            sleep(POLL).await;
        }
    }

    /// The answer of `/readyz`, if there is one.
    pub(crate) async fn readiness(&self) -> Option<(u16, Value)> {
        let answer = self.http.get(format!("{}/readyz", self.url)).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.json().await.ok()?))
    }

    /// A metric of `/metrics`, by its whole name, labels included; none when it was never set.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let text = self
            .http
            .get(format!("{}/metrics", self.url))
            .bearer_auth(OPERATOR)
            .send()
            .await
            .ok()?
            .text()
            .await
            .ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// Its present memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Its peak memory, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Kills it as a crash would.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Requests its stop, and waits for it.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        eventually(&format!("{} to end", self.name), async || child.try_wait().unwrap()).await
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Everything that it has logged, over all of its starts.
    pub(crate) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn print_end_of_log(&self) {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- the end of the log of {}", self.name);
        for line in &lines[lines.len().saturating_sub(40)..] {
            eprintln!("{line}");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill9();
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// A command of the program that ends by itself.
pub(crate) struct Cli(pub(crate) Command);

impl Cli {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    /// Runs it to its end.
    pub(crate) async fn run(self) -> Said {
        let output = tokio::process::Command::from(self.0).kill_on_drop(true).output();
        Said::from(tokio::time::timeout(2 * PATIENCE, output).await.expect("the command to end").unwrap())
    }
}

/// The output of a command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Said {
    /// Returns the output, if the command succeeded.
    pub(crate) fn success(self) -> Self {
        assert!(self.ok, "{self:?}");
        self
    }

    /// Returns the output, if it failed.
    pub(crate) fn failure(self) -> Self {
        assert!(!self.ok, "{self:?}");
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// An HTTP client of one API. Clones share their connections.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    /// Whether parts of the product may be down.
    trouble: Arc<AtomicBool>,
}

impl Client {
    /// The same client for another API.
    pub(crate) fn of(&self, api: &Program) -> Self {
        Self { base: api.url.clone(), ..self.clone() }
    }

    /// From now on parts may be down, as this test stops them: answers that report that are retried. Without this call,
    /// such an answer is not retried but seen by the test.
    pub(crate) fn expect_trouble(&self) {
        self.trouble.store(true, Ordering::Relaxed);
    }

    pub(crate) fn request(&self, method: Method, path: &str, bearer: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(bearer)
    }

    pub(crate) async fn get(&self, bearer: &str, path: &str) -> Answer {
        self.answered(|| self.request(Method::GET, path, bearer)).await
    }

    /// Reads once the data read includes `position`.
    pub(crate) async fn get_at(&self, bearer: &str, path: &str, position: &str) -> Answer {
        let request =
            || self.request(Method::GET, path, bearer).header("Min-Position", position).header("Prefer", "wait=10");
        self.answered(request).await
    }

    /// Sends until there is an answer, under the same key each time.
    pub(crate) async fn post(&self, bearer: &str, path: &str, key: Option<&str>, body: &Value) -> Answer {
        let request = || {
            let request = self.request(Method::POST, path, bearer).json(body);
            key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key))
        };
        self.answered(request).await
    }

    /// Sends once; where trouble is expected, until there is an answer that does not report a part as down.
    async fn answered(&self, request: impl Fn() -> RequestBuilder) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = Answer::of(request()).await;
            match answer {
                Some(answer) if !answer.is_passing() => return answer,
                other => {
                    let may_be = self.trouble.load(Ordering::Relaxed);
                    assert!(may_be && Instant::now() < deadline, "no answer, or one to come back with: {other:?}");
                }
            }
            sleep(POLL).await;
        }
    }

    /// Sends commands to an organization, until there is an answer.
    pub(crate) async fn command(&self, tenant: &Tenant, key: &str, command: &Value) -> Answer {
        self.post(&tenant.key, &tenant.path("commands"), Some(key), command).await
    }
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// One try. None when no answer came.
    pub(crate) async fn of(request: RequestBuilder) -> Option<Self> {
        let answer = request.send().await.ok()?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let bytes = answer.bytes().await.ok()?;
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Some(Self { status, headers, body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) })
    }

    /// Returns the answer, if it has this status.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// A text in the body.
    pub(crate) fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap_or_else(|| panic!("no {name} in {self:?}")).to_owned()
    }

    /// Whether it says that a retry can help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.status, 429 | 502 | 503 | 504)
    }
}

/// Polls until `look` returns a value.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(POLL).await;
    }
}

/// The sequence of a position token, which must be one of `tenant`.
pub(crate) fn seq_of(tenant: &Tenant, position: &str) -> u64 {
    let position: Position = position.parse().unwrap();
    assert_eq!(position.org, tenant.id);
    position.seq
}

/// A record of the kind `model` to create.
pub(crate) fn create(name: impl Into<String>) -> Value {
    json!({"type": "create_record", "kind": "model", "data": {"name": name.into()}})
}

/// An id as stored in the database.
pub(crate) fn uuid(id: OrgId) -> Uuid {
    id.uuid()
}
