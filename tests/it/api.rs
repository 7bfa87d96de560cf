//! A whole API of one test alone: NATS, a database, a worker, an issuer, and a client for it.
//!
//! Tests that use it have a runtime of several threads: dropping the database waits for PostgreSQL, and PostgreSQL waits
//! for connections that are just being made, which nobody would go on making if the only thread waited too.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use orgstream::{
    auth::Authenticator,
    config::{IdentityArgs, SecretArgs},
    issuer::DevIssuer,
    node,
};
use orgstream_events::UserId;
use orgstream_stream::{Log, LogOptions, SyncMode};
use orgstream_workers::{Worker, WorkerOptions, WorkerStatus};
use reqwest::{Method, RequestBuilder, Response, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{Nats, TempDir, TestDatabase, database};

const PEPPER: &str = "the pepper of the tests, which is no secret";
pub(crate) const OPERATOR: &str = "the-platform-operator-of-the-tests";

/// How long something may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The API. What it consists of ends with the test's runtime.
pub(crate) struct Api {
    pub(crate) base: String,
    pub(crate) nats: Nats,
    pub(crate) issuer: DevIssuer,
    auth: Arc<Authenticator>,
    http: reqwest::Client,
    log: Log,
    identity: IdentityArgs,
    stop: CancellationToken,
    database: TestDatabase,
    _dir: TempDir,
}

/// An organization, and the ways into it.
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

    /// The status, if it is this one.
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// The code of a problem, with everything else that a problem must have.
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
    database: &TestDatabase,
    identity: &IdentityArgs,
    watch: Option<watch::Receiver<WorkerStatus>>,
    stop: &CancellationToken,
) -> (String, Arc<Authenticator>) {
    let secrets = SecretArgs { pepper: PEPPER.to_owned(), platform_token: Some(OPERATOR.to_owned()) };
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let db = database.db.clone();
    let api = node::Api::new(log.clone(), db, &secrets, identity, "local", metrics, watch).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let auth = Arc::clone(&api.app.auth);
    tokio::spawn(api.run(listener, stop.clone()));
    (base, auth)
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same, with other settings for people.
    pub(crate) async fn start_with(change: impl FnOnce(&mut IdentityArgs)) -> Self {
        let nats = Nats::start(false).await;
        let database = database().await;
        let dir = TempDir::new();
        let stop = CancellationToken::new();
        let options = LogOptions { url: nats.url.clone(), shards: 2, sync: SyncMode::Relaxed, ..LogOptions::default() };
        let log = Log::connect(&options).await.unwrap();
        log.ensure_streams().await.unwrap();

        let issuing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", issuing.local_addr().unwrap());
        let issuer = DevIssuer::load_or_create(dir.path(), url.clone()).unwrap();
        tokio::spawn(issuer.clone().serve(issuing, stop.clone()));

        let worker = Worker::new(log.clone(), database.db.clone(), WorkerOptions::new(Uuid::now_v7()));
        let watch = worker.status();
        tokio::spawn(worker.run(stop.clone()));
        let mut identity = IdentityArgs::of_issuer(&url);
        change(&mut identity);
        let (base, auth) = serve(&log, &database, &identity, Some(watch), &stop).await;
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { base, nats, issuer, auth, http, log, identity, stop, database, _dir: dir }
    }

    /// Another API beside this one, which remembers nothing that this one does; its address.
    pub(crate) async fn second(&self) -> String {
        serve(&self.log, &self.database, &self.identity, None, &self.stop).await.0
    }

    /// What checks credentials in this API.
    pub(crate) fn auth(&self) -> &Authenticator {
        &self.auth
    }

    /// The database as the login that owns it.
    pub(crate) async fn owner(&self) -> PgConnection {
        PgConnection::connect(&self.database.owner_url).await.unwrap()
    }

    /// Signs in with a token of the issuer; the answer, whose `token` is the session.
    pub(crate) async fn sign_in(&self, token: &str) -> Value {
        self.post(token, "/v1/sessions", &json!({})).await.expect(201).json()
    }

    /// A session of somebody.
    pub(crate) async fn session(&self, email: &str) -> String {
        self.sign_in(&self.person(email)).await["token"].as_str().unwrap().to_owned()
    }

    /// Lets a session act somewhere else.
    pub(crate) async fn switch(&self, session: &str, org: &str) -> Answer {
        let request = self.request(Method::PUT, "/v1/session/active-org").bearer_auth(session);
        Answer::of(request.json(&json!({"org": org}))).await
    }

    /// Makes somebody a member, as whom the issuer of the tests knows by this address; their member id.
    pub(crate) async fn join(&self, org: &Org, email: &str, role: &str) -> String {
        let user = UserId::from_login(self.issuer.url(), email);
        let body = json!({"email": email, "role": role, "user_id": user});
        let added = self.post(&org.owner, &org.path("members"), &body).await.expect(201);
        self.sees(org, added.header("stream-position")).await;
        added.json()["member_id"].as_str().unwrap().to_owned()
    }

    /// A token of somebody.
    pub(crate) fn person(&self, email: &str) -> String {
        self.issuer.mint(email, Duration::from_hours(1)).unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
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
        // Until the read models have its owner, it is nobody's.
        while self.get(&org.owner, &org.path("records")).await.status == 404 {}
        org
    }

    /// A new API key: its id and its token.
    pub(crate) async fn key(&self, org: &Org, role: &str) -> (String, String) {
        let path = format!("/v1/organizations/{}/api-keys", org.slug);
        let made = self.post(&org.owner, &path, &json!({"name": role, "role": role})).await.expect(201);
        self.sees(org, made.header("stream-position")).await;
        let made = made.json();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }

    /// Waits until the read models have what was written at `position`: on a busy machine access comes a little late.
    pub(crate) async fn sees(&self, org: &Org, position: &str) {
        self.get_at(&org.owner, &org.path("records?limit=1"), position).await.expect(200);
    }

    /// A new record; its id and its position.
    pub(crate) async fn record(&self, org: &Org, name: &str) -> (String, String) {
        let made = self.post(&org.owner, &org.path("records"), &model(name)).await.expect(201).json();
        (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
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
    async fn open(request: RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, buffer: String::new() }
    }

    /// The next event: its id (null when it has none) and its data.
    pub(crate) async fn next(&mut self) -> (Value, Value) {
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
            let chunk = timeout(PATIENCE, self.answer.chunk()).await.expect("the next event does not come");
            self.buffer.push_str(std::str::from_utf8(&chunk.unwrap().expect("the tail has ended")).unwrap());
        }
    }

    /// Everything until the server ends it, as it came.
    pub(crate) async fn rest(mut self) -> String {
        while let Some(chunk) = timeout(PATIENCE, self.answer.chunk()).await.expect("the tail does not end").unwrap() {
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        self.buffer
    }

    /// Waits until the server ends it.
    pub(crate) async fn ends(mut self) {
        while timeout(PATIENCE, self.answer.chunk()).await.expect("the tail does not end").unwrap().is_some() {}
    }
}

impl Api {
    /// Follows from wherever `path` says.
    pub(crate) async fn tail(&self, bearer: &str, path: &str) -> Tail {
        Tail::open(self.request(Method::GET, path).bearer_auth(bearer)).await
    }

    /// Comes back with the last id that was seen.
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

/// A record of a kind that every installation has.
pub(crate) fn model(name: &str) -> Value {
    json!({"kind": "model", "data": {"name": name}})
}

/// The same as a command.
pub(crate) fn create_model(name: &str) -> Value {
    json!({"type": "create_record", "kind": "model", "data": {"name": name}})
}
