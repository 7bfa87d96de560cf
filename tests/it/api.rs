//! A whole API of one test alone: NATS, a database, a worker, an issuer, and a client for it.
//!
//! Tests that use it have a runtime of several threads: dropping the database waits for PostgreSQL, and PostgreSQL
//! waits for connections that are just being made, which would not proceed if the only thread waited too.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusBuilder;
use orgstream::{
    adapters::{
        dns::{DnsError, TxtRecords},
        identity_provider::{IdentityOrganizations, NoIdentityProvider},
        key_ring::{FileRing, KeyRing, RingFile},
        payments::PaymentProvider,
    },
    app::submit::Gateway,
    auth::Authenticator,
    config::{HttpArgs, IdentityArgs, MailArgs, SecretArgs},
    dev::issuer::DevIssuer,
    process as node,
};
use orgstream_domain::credentials::key::KeyToken;
use orgstream_events::UserId;
use orgstream_projections::{Database, search::target::SearchTargets};
use orgstream_stream::broker::Producers;
use orgstream_stream::{Log, LogOptions, SyncMode};
use orgstream_workers::{Worker, WorkerOptions, WorkerStatus};
use p256::{
    ecdsa::SigningKey,
    pkcs8::{EncodePublicKey, LineEnding},
};
use reqwest::{Method, RequestBuilder, Response, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    cluster::eventually,
    support::{Nats, TempDir, TestDatabase, commit_keys, database},
};

pub(crate) const PEPPER: &str = "the pepper of the tests, which is no secret";
pub(crate) const OPERATOR: &str = "the-platform-operator-of-the-tests";

/// The sender whose reports of leaked keys the API trusts.
pub(crate) const REPORTER: &str = "the-code-host-of-the-tests";

/// The key that signs reports.
pub(crate) fn reporter_key() -> SigningKey {
    SigningKey::from_slice(&[7; 32]).unwrap()
}

fn leak_reporter_keys(dir: &Path) -> PathBuf {
    let pem = reporter_key().verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
    let file = dir.join("reporters.json");
    let keys = json!({"public_keys": [{"key_identifier": REPORTER, "key": pem, "is_current": true}]});
    fs::write(&file, keys.to_string()).unwrap();
    file
}

/// Writes a key ring as the program does.
pub(crate) fn write_ring(path: &Path, ring: &RingFile) {
    let beside = path.with_extension("new");
    orgstream_servers::write_private(&beside, ring.to_text().unwrap().as_bytes()).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Timeout for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// The API. Its parts end with the test's runtime.
pub(crate) struct Api {
    pub(crate) base: String,
    pub(crate) nats: Nats,
    pub(crate) issuer: DevIssuer,
    pub(crate) gateway: Arc<Gateway>,
    auth: Arc<Authenticator>,
    /// The folder of its mails.
    pub(crate) outbox: PathBuf,
    /// The file of its key ring.
    pub(crate) key_ring: PathBuf,
    /// Its DNS.
    pub(crate) dns: Arc<FakeDns>,
    pub(crate) db: Database,
    outside: node::Adapters,
    http: reqwest::Client,
    log: Log,
    identity: IdentityArgs,
    worker: Mutex<Option<JoinHandle<()>>>,
    stop_worker: CancellationToken,
    stop: CancellationToken,
    secrets: SecretArgs,
    database: TestDatabase,
    _dir: TempDir,
}

/// DNS as configured by a test.
#[derive(Debug, Default)]
pub(crate) struct FakeDns(Mutex<HashMap<String, Vec<String>>>);

impl FakeDns {
    pub(crate) fn say(&self, name: &str, record: &str) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.entry(name.to_owned()).or_default().push(record.to_owned());
    }
}

impl TxtRecords for FakeDns {
    fn txt<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, DnsError>> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        Box::pin(async move { Ok(records.unwrap_or_default()) })
    }
}

/// An organization, and its credentials.
pub(crate) struct Org {
    pub(crate) id: String,
    pub(crate) slug: String,
    pub(crate) owner: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, text: answer.text().await.unwrap() }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    /// Returns the answer, if it has this status.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Returns the code of a problem, after checking everything else that a problem must have.
    pub(crate) fn problem(&self) -> String {
        let problem = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(problem["status"], self.status, "{self:?}");
        assert_eq!(problem["request_id"], self.header("x-request-id"), "{self:?}");
        for text in ["type", "title", "detail"] {
            assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        }
        assert_eq!(self.status == 401, self.headers.contains_key("www-authenticate"), "{self:?}");
        problem["code"].as_str().unwrap().to_owned()
    }
}

async fn serve(
    log: &Log,
    db: Database,
    secrets: &SecretArgs,
    identity: &IdentityArgs,
    outside: &node::Adapters,
    watch: Option<watch::Receiver<WorkerStatus>>,
    stop: &CancellationToken,
) -> (String, Arc<Authenticator>, Arc<Gateway>) {
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let api = node::Api::new(log.clone(), db, secrets, identity, metrics, watch, outside.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (auth, gateway) = (Arc::clone(&api.app.auth), Arc::clone(&api.gateway));
    tokio::spawn(api.run(listener, stop.clone()));
    (base, auth, gateway)
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with other settings for sign-ins.
    pub(crate) async fn start_with(change: impl FnOnce(&mut IdentityArgs)) -> Self {
        let mail = |folder| MailArgs { mail_folder: Some(folder), ..mail_args() };
        Self::start_as(change, mail, Arc::new(NoIdentityProvider), SearchTargets::default(), None).await
    }

    /// Starts with an external identity provider.
    pub(crate) async fn start_with_idp(idp: Arc<dyn IdentityOrganizations>) -> Self {
        let mail = |folder| MailArgs { mail_folder: Some(folder), ..mail_args() };
        Self::start_as(|_| {}, mail, idp, SearchTargets::default(), None).await
    }

    /// Starts with a payment provider.
    pub(crate) async fn start_paying(payments: Arc<dyn PaymentProvider>) -> Self {
        let mail = |folder| MailArgs { mail_folder: Some(folder), ..mail_args() };
        let (idp, targets) = (Arc::new(NoIdentityProvider), SearchTargets::default());
        Self::start_as(|_| {}, mail, idp, targets, Some(payments)).await
    }

    /// Starts with another grace period of deletions, in hours.
    pub(crate) async fn start_deleting(
        grace_hours: u32,
        idp: Arc<dyn IdentityOrganizations>,
        payments: Option<Arc<dyn PaymentProvider>>,
    ) -> Self {
        let mail = |folder| MailArgs { mail_folder: Some(folder), ..mail_args() };
        let grace = |identity: &mut IdentityArgs| identity.deletion_grace_hours = grace_hours;
        Self::start_as(grace, mail, idp, SearchTargets::default(), payments).await
    }

    /// The options of its database.
    pub(crate) fn database_options(&self) -> orgstream_projections::DatabaseOptions {
        self.database.options()
    }

    /// The URL of its database for one of the program's logins.
    pub(crate) fn login_url(&self, login: &str) -> String {
        self.database.app_url(login)
    }

    /// Starts with search targets, for the API and its worker.
    pub(crate) async fn start_searching(targets: SearchTargets) -> Self {
        let mail = |folder| MailArgs { mail_folder: Some(folder), ..mail_args() };
        Self::start_as(|_| {}, mail, Arc::new(NoIdentityProvider), targets, None).await
    }

    /// Starts with a mail transport other than a folder.
    pub(crate) async fn start_mailing(mail: impl FnOnce(PathBuf) -> MailArgs) -> Self {
        Self::start_as(|_| {}, mail, Arc::new(NoIdentityProvider), SearchTargets::default(), None).await
    }

    async fn start_as(
        change: impl FnOnce(&mut IdentityArgs),
        mail: impl FnOnce(PathBuf) -> MailArgs,
        idp: Arc<dyn IdentityOrganizations>,
        targets: SearchTargets,
        payments: Option<Arc<dyn PaymentProvider>>,
    ) -> Self {
        let nats = Nats::start(false).await;
        let database = database().await;
        let db = database.db.clone().searching(targets);
        let dir = TempDir::new();
        let stop = CancellationToken::new();
        let log = async |creds: PathBuf| {
            let options = LogOptions::new(&nats.url, commit_keys());
            let options = LogOptions { creds: Some(creds), shards: 2, sync: SyncMode::Relaxed, ..options };
            Log::connect(&options).await.unwrap()
        };
        log(nats.access.admin()).await.ensure_streams().await.unwrap();
        let (log, work_log) = (log(nats.access.serve()).await, log(nats.access.work()).await);

        let issuing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", issuing.local_addr().unwrap());
        let issuer = DevIssuer::load_or_create(dir.path(), url.clone()).unwrap();
        tokio::spawn(issuer.clone().serve(issuing, stop.clone()));

        let worker = Worker::new(work_log, db.clone(), WorkerOptions::new(Uuid::now_v7()));
        let watch = worker.status();
        let stop_worker = stop.child_token();
        let worker = Mutex::new(Some(tokio::spawn(worker.run(stop_worker.clone()))));
        let mut identity = IdentityArgs::of_issuer(&url);
        change(&mut identity);
        let secrets = SecretArgs {
            pepper: PEPPER.to_owned().into(),
            platform_token: Some(OPERATOR.to_owned().into()),
            leak_reporter_keys: Some(leak_reporter_keys(dir.path())),
            trusted_proxies: Vec::new(),
        };
        let key_ring = dir.path().join("key-ring.json");
        write_ring(&key_ring, &RingFile::new("first", &Zeroizing::new([1; 32])).unwrap());
        let ring: Arc<dyn KeyRing> = Arc::new(FileRing::open(key_ring.clone()).await.unwrap());
        let (outbox, dns) = (dir.path().join("outbox"), Arc::<FakeDns>::default());
        let mail = mail(outbox.clone()).mailer().unwrap();
        let producers = Some(Arc::new(Producers::load(&nats.access.producers()).unwrap()));
        let outside = node::Adapters {
            mail,
            dns: dns.clone(),
            idp,
            local_issuers: true,
            producers,
            key_ring: Some(ring),
            payments,
            ..node::Adapters::default()
        };
        let (base, auth, gateway) = serve(&log, db.clone(), &secrets, &identity, &outside, Some(watch), &stop).await;
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self {
            base,
            nats,
            issuer,
            gateway,
            auth,
            outbox,
            key_ring,
            dns,
            db,
            outside,
            http,
            log,
            secrets,
            identity,
            worker,
            stop_worker,
            stop,
            database,
            _dir: dir,
        }
    }

    /// Runs a statement that simulates the passing of time, or an accident.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut superuser = PgConnection::connect(&self.database.owner_url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut superuser).await.unwrap();
    }

    /// Returns the mails to an address so far, the oldest first.
    pub(crate) fn mails(&self, to: &str) -> Vec<String> {
        let mut mails = Vec::new();
        for entry in std::fs::read_dir(&self.outbox).unwrap() {
            let entry = entry.unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            if text.contains(&format!("To: {to}")) {
                mails.push((entry.metadata().unwrap().modified().unwrap(), text));
            }
        }
        mails.sort();
        mails.into_iter().map(|(_, text)| text).collect()
    }

    /// Returns the token of the `nth` mail to an address, once it is there.
    pub(crate) async fn invited(&self, to: &str, nth: usize) -> String {
        let token = async {
            loop {
                // A file may be visible before all of it is written.
                let token = self.mails(to).get(nth - 1).and_then(|mail| token_in(mail));
                match token {
                    Some(token) => return token,
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(PATIENCE, token).await.unwrap_or_else(|_| panic!("mail {nth} to {to} does not come"))
    }

    /// The URL of the database for the login that migrates, which no policy binds.
    pub(crate) fn owner_url(&self) -> &str {
        &self.database.owner_url
    }

    /// Starts one more API process on the same servers, as far as a process can be simulated, with empty caches;
    /// returns its address.
    pub(crate) async fn another(&self) -> String {
        let db = Database::connect(&self.database.options()).await.unwrap();
        serve(&self.log, db, &self.secrets, &self.identity, &self.outside, None, &self.stop).await.0
    }

    /// Starts one more with tighter limits, or other readers of its metrics.
    pub(crate) async fn another_with(&self, http: HttpArgs) -> String {
        let outside = node::Adapters { http, ..self.outside.clone() };
        let db = Database::connect(&self.database.options()).await.unwrap();
        serve(&self.log, db, &self.secrets, &self.identity, &outside, None, &self.stop).await.0
    }

    /// Starts one more with another key ring, or none.
    pub(crate) async fn another_with_ring(&self, key_ring: Option<Arc<dyn KeyRing>>) -> String {
        let outside = node::Adapters { key_ring, ..self.outside.clone() };
        let db = Database::connect(&self.database.options()).await.unwrap();
        serve(&self.log, db, &self.secrets, &self.identity, &outside, None, &self.stop).await.0
    }

    /// The event log, as the API has it.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the status of a read at another process.
    pub(crate) async fn status_at(&self, base: &str, bearer: &str, path: &str) -> u16 {
        self.http.get(format!("{base}{path}")).bearer_auth(bearer).send().await.unwrap().status().as_u16()
    }

    /// This API's authenticator.
    pub(crate) fn auth(&self) -> &Authenticator {
        &self.auth
    }

    /// A connection as the owner of the database.
    pub(crate) async fn owner(&self) -> PgConnection {
        PgConnection::connect(&self.database.owner_url).await.unwrap()
    }

    /// Signs in with a token of the issuer; returns the answer, whose `token` is the session.
    pub(crate) async fn sign_in(&self, token: &str) -> Value {
        self.post(token, "/v1/sessions", &json!({})).await.expect(201).json()
    }

    /// A session of the user with this address.
    pub(crate) async fn session(&self, email: &str) -> String {
        self.sign_in(&self.person(email)).await["token"].as_str().unwrap().to_owned()
    }

    /// Switches a session to another organization.
    pub(crate) async fn switch(&self, session: &str, org: &str) -> Answer {
        let request = self.request(Method::PUT, "/v1/session/active-org").bearer_auth(session);
        Answer::of(request.json(&json!({"org": org}))).await
    }

    /// Adds a member, by the address that the issuer of the tests knows; returns the member id.
    pub(crate) async fn join(&self, org: &Org, email: &str, role: &str) -> String {
        let user = UserId::from_login(self.issuer.url(), email);
        let body = json!({"email": email, "role": role, "user_id": user});
        let added = self.post(&org.owner, &org.path("members"), &body).await.expect(201);
        self.sees(org, added.header("stream-position")).await;
        added.json()["member_id"].as_str().unwrap().to_owned()
    }

    /// A token of the user with this address.
    pub(crate) fn person(&self, email: &str) -> String {
        self.issuer.mint(email, Duration::from_hours(1)).unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request at another process.
    pub(crate) fn request_at(&self, base: &str, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{base}{path}"))
    }

    pub(crate) async fn get(&self, bearer: &str, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path).bearer_auth(bearer)).await
    }

    pub(crate) async fn post(&self, bearer: &str, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).bearer_auth(bearer).json(body)).await
    }

    /// A new organization.
    pub(crate) async fn org(&self, slug: &str) -> Org {
        let owner = self.person(&format!("owner@{slug}.example"));
        let made = self.post(&owner, "/v1/organizations", &json!({"name": slug, "slug": slug})).await.expect(201);
        let org = Org { id: made.json()["id"].as_str().unwrap().to_owned(), slug: slug.to_owned(), owner };
        // Until the read models have its owner, it has none.
        self.until_status(&org.owner, &org.path("records"), 200).await;
        org
    }

    /// Waits until a read is answered with this status.
    pub(crate) async fn until_status(&self, bearer: &str, path: &str, status: u16) {
        eventually(&format!("{path} to be answered {status}"), async || {
            (self.get(bearer, path).await.status == status).then_some(())
        })
        .await;
    }

    /// A new API key: its id and its token.
    pub(crate) async fn key(&self, org: &Org, role: &str) -> (String, String) {
        let path = format!("/v1/organizations/{}/api-keys", org.slug);
        let made = self.post(&org.owner, &path, &json!({"name": role, "role": role})).await.expect(201);
        self.sees(org, made.header("stream-position")).await;
        let made = made.json();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }

    /// A token that names the key of one token and has the secret of another.
    pub(crate) fn forge(name: &str, secret: &str) -> String {
        let body = format!("{}_{}", &name[..20], &secret[21..53]);
        KeyToken::completed(&body)
    }

    /// Waits until the read models have what was written at `position`: on a busy machine access rights lag a little.
    pub(crate) async fn sees(&self, org: &Org, position: &str) {
        self.get_at(&org.owner, &org.path("records?limit=1"), position).await.expect(200);
    }

    /// A new record; its id and its position.
    pub(crate) async fn record(&self, org: &Org, name: &str) -> (String, String) {
        let made = self.post(&org.owner, &org.path("records"), &model(name)).await.expect(201).json();
        (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
    }

    /// Stops the worker: later events are in the log and in no table.
    pub(crate) async fn stop_worker(&self) {
        self.stop_worker.cancel();
        let worker = self.worker.lock().unwrap().take();
        if let Some(worker) = worker {
            worker.await.unwrap();
        }
    }

    /// A read that includes everything up to `position`.
    pub(crate) async fn get_at(&self, bearer: &str, path: &str, position: &str) -> Answer {
        let request = self.request(Method::GET, path).bearer_auth(bearer);
        Answer::of(request.header("min-position", position).header("prefer", "wait=20")).await
    }
}

/// A tail, event by event.
pub(crate) struct Tail {
    answer: Response,
    buffer: String,
}

impl Tail {
    pub(crate) async fn open(request: RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, buffer: String::new() }
    }

    /// The next event: its id (null when it has none) and its data.
    pub(crate) async fn next(&mut self) -> (Value, Value) {
        timeout(PATIENCE, self.following()).await.expect("the next event does not come")
    }

    async fn following(&mut self) -> (Value, Value) {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                let (id, data) = (field("id: "), field("data: "));
                self.buffer = rest.to_owned();
                if let Some(data) = data {
                    return (json!(id), serde_json::from_str(&data).unwrap());
                }
                continue;
            }
            let chunk = self.answer.chunk().await.unwrap().expect("the tail has ended");
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// Returns everything until the server ends it, unparsed.
    pub(crate) async fn rest(mut self) -> String {
        let rest = async {
            while let Some(chunk) = self.answer.chunk().await.unwrap() {
                self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        };
        timeout(PATIENCE, rest).await.expect("the tail does not end");
        self.buffer
    }

    /// Waits until the server ends it.
    pub(crate) async fn ends(self) {
        self.rest().await;
    }
}

impl Api {
    /// Starts a tail at the position in `path`.
    pub(crate) async fn tail(&self, bearer: &str, path: &str) -> Tail {
        Tail::open(self.request(Method::GET, path).bearer_auth(bearer)).await
    }

    /// Resumes after the last id that was seen.
    pub(crate) async fn tail_after(&self, bearer: &str, path: &str, id: &str) -> Tail {
        Tail::open(self.request(Method::GET, path).bearer_auth(bearer).header("last-event-id", id)).await
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Org {
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/v1/organizations/{}/{rest}", self.id)
    }
}

/// The token that a mail has on a line of its own.
pub(crate) fn token_in(mail: &str) -> Option<String> {
    let line = mail.lines().map(str::trim).find(|line| line.starts_with("osi_") && line.len() == 42);
    line.map(str::to_owned)
}

/// Mail settings like the program's, except for the transport.
pub(crate) fn mail_args() -> MailArgs {
    MailArgs {
        mail_from: "Orgstream <no-reply@orgstream.example>".to_owned(),
        invitation_link: "https://app.example/join#token={token}".to_owned(),
        ..MailArgs::default()
    }
}

/// A record of a kind that every installation has.
pub(crate) fn model(name: &str) -> Value {
    json!({"kind": "model", "data": {"name": name}})
}

/// The same record as a command.
pub(crate) fn create_model(name: &str) -> Value {
    json!({"type": "create_record", "kind": "model", "data": {"name": name}})
}
