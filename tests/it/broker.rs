//! Broker access: the operations that strangers, producers and each part of the program must not be allowed there,
//! tried on the server of `orgstream dev` and on the shipped configuration; and those that a valid producer can use.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, ServerError};
use nkeys::KeyPair;
use orgstream_domain::credentials::key::KeyToken;
use orgstream_events::{Chain, KeyPublicId, OrgId};
use orgstream_servers::nats_server;
use orgstream_stream::broker::{AccessFiles, Producers};
use orgstream_stream::{Credentials, Log, LogOptions, SyncMode};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    cluster::{Cluster, ClusterOptions, PATIENCE, Tenant, create, eventually, program},
    parking::{commit, created, fresh_record},
    support::{COMMIT_KEYS, TempDir, claims, commit_keys, connect_as, inbox, minted},
};

const SHARDS: u16 = 2;
/// A refusal comes within milliseconds; an operation not denied for so long was allowed.
const REFUSAL: Duration = Duration::from_secs(10);

/// A client of the broker, and the denials that it got.
struct Attacker {
    name: &'static str,
    client: Client,
    refusals: mpsc::Receiver<String>,
}

impl Attacker {
    async fn with(name: &'static str, url: &str, creds: &str) -> Self {
        let (refused, refusals) = mpsc::channel(1_000);
        let options = ConnectOptions::with_credentials(creds).unwrap();
        let options = options.custom_inbox_prefix(inbox(creds)).event_callback(move |event| {
            let refused = refused.clone();
            async move {
                if let Event::ServerError(ServerError::Other(text)) = event {
                    refused.send(text).await.unwrap();
                }
            }
        });
        Self { name, client: options.connect(url).await.unwrap(), refusals }
    }

    async fn of(name: &'static str, url: &str, creds: &Path) -> Self {
        Self::with(name, url, &fs::read_to_string(creds).unwrap()).await
    }

    async fn is_refused(&mut self, subject: &str) {
        let heard = async {
            loop {
                let text = self.refusals.recv().await.unwrap();
                if text.contains("ermissions") && text.to_lowercase().contains(&subject.to_lowercase()) {
                    return;
                }
            }
        };
        let heard = timeout(REFUSAL, heard).await;
        assert!(heard.is_ok(), "{} is not refused {subject}", self.name);
    }

    async fn cannot_publish(&mut self, subject: &str, payload: &[u8]) {
        let inbox = self.client.new_inbox();
        self.client.publish_with_reply(subject.to_owned(), inbox, payload.to_vec().into()).await.unwrap();
        self.is_refused(&format!("publish to \"{subject}\"")).await;
    }

    async fn cannot_subscribe(&mut self, subject: &str) {
        let _subscription = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.is_refused(&format!("subscription to \"{subject}\"")).await;
    }

    async fn cannot_answer(&mut self, subject: &str, queue: &str) {
        let _subscription = self.client.queue_subscribe(subject.to_owned(), queue.to_owned()).await.unwrap();
        self.is_refused(&format!("subscription to \"{subject}\"")).await;
    }

    /// Sends a request whose reply is directed to a forbidden subject.
    async fn sends_an_answer(&self, ask: &str, body: &str, to: &str) {
        let asked = self.client.publish_with_reply(ask.to_owned(), to.to_owned(), body.to_owned().into()).await;
        asked.unwrap();
    }
}

/// JetStream's state of each stream, which no attack may change.
async fn streams(administrator: &Client) -> Vec<Value> {
    let mut all = Vec::new();
    for name in (0..SHARDS).map(|shard| format!("EV_{shard}")).chain(["SYS", "SNAP", "VAULT"].map(str::to_owned)) {
        let answer = administrator.request(format!("$JS.API.STREAM.INFO.{name}"), "".into()).await.unwrap();
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(info["error"].is_null(), "{name}: {info}");
        all.push(json!([name, info["config"], info["state"]["messages"], info["state"]["last_seq"]]));
    }
    all
}

const DESTRUCTION: [&str; 7] = [
    "$JS.API.STREAM.PURGE.EV_0",
    "$JS.API.STREAM.DELETE.EV_0",
    "$JS.API.STREAM.UPDATE.EV_0",
    "$JS.API.STREAM.MSG.DELETE.EV_0",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.SNAPSHOT.EV_0",
    "$JS.API.STREAM.RESTORE.EV_0",
];

async fn nobody_without_credentials_is_let_in(url: &str) {
    let refused = |error: async_nats::ConnectError| {
        let kind = error.kind();
        assert!(matches!(kind, ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication), "{error}");
    };
    refused(async_nats::connect(url).await.unwrap_err());
    for options in [
        ConnectOptions::with_user_and_password("serve".to_owned(), "serve".to_owned()),
        ConnectOptions::with_token("serve".to_owned()),
        ConnectOptions::with_nkey(KeyPair::new_user().seed().unwrap()),
    ] {
        refused(options.connect(url).await.unwrap_err());
    }
    // Credentials signed with a key of the attacker's own.
    let everything = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let own = minted(&KeyPair::new_account().seed().unwrap(), "admin", &everything);
    refused(ConnectOptions::with_credentials(&own).unwrap().connect(url).await.unwrap_err());
}

async fn a_producer_reaches_its_own_organization_only(url: &str, access: &AccessFiles) {
    let producers = Producers::load(&access.producers()).unwrap();
    let (mine, other) = (OrgId::fresh(1, [1; 10]), OrgId::fresh(1, [2; 10]));
    let key: KeyPublicId = "GBxCK2BwmHM4".parse().unwrap();
    let creds = producers.issue(&key, mine, Some(&"mine".parse().unwrap()), None).unwrap();
    let mut producer = Attacker::with("a producer", url, &creds).await;
    let forged = b"a member.added with the actor of somebody else";
    for subject in [
        format!("ev.0.{mine}.roster.{mine}"),
        format!("ev.0.{other}.roster.{other}"),
        "sys.claim.slug.taken".to_owned(),
        format!("sys.placement.{other}"),
        format!("snap.0.{mine}.member.{mine}.0"),
        format!("vault.{mine}.sec_x"),
        format!("cmd.{other}"),
        "cmd.theirs".to_owned(),
        "cmd.mine.more".to_owned(),
        "orgstream.api.here".to_owned(),
        "orgstream.api.account.one".to_owned(),
        "orgstream.api.answer.one.1".to_owned(),
        "$JS.API.INFO".to_owned(),
        "$JS.API.STREAM.MSG.GET.EV_0".to_owned(),
        "$JS.API.CONSUMER.CREATE.EV_0.mine".to_owned(),
        "LOG.API.DIRECT.GET.EV_0".to_owned(),
        "_INBOX_serve.one.two".to_owned(),
        "_INBOX.one".to_owned(),
        "$SYS.REQ.SERVER.PING".to_owned(),
    ] {
        producer.cannot_publish(&subject, forged).await;
    }
    for subject in DESTRUCTION {
        producer.cannot_publish(subject, b"").await;
    }
    for subject in [
        ">",
        "ev.>",
        "snap.>",
        "vault.>",
        "sys.>",
        "cmd.>",
        "cmd.mine",
        "_INBOX.>",
        "_INBOX_serve.>",
        "_INBOX_GBxCK2BwmHM5.>",
        "_INBOX_*.>",
        "_R_.>",
        "*.>",
        "orgstream.api.here",
        "orgstream.api.account.*",
        "LOG.API.>",
        "$SYS.>",
        "$JS.>",
    ] {
        producer.cannot_subscribe(subject).await;
    }
    producer.cannot_answer("cmd.>", "orgstream-api").await;
    producer.cannot_answer(&format!("cmd.{mine}"), "orgstream-api").await;
    // Signed with the key that `serve` has, a user has a producer's permissions, whatever its claims are.
    let file: Value = serde_json::from_slice(&fs::read(access.producers()).unwrap()).unwrap();
    let wide = json!({"type": "user", "version": 2, "issuer_account": file["account"], "tags": ["org:mine"],
        "subs": -1, "data": -1, "payload": -1, "pub": {"allow": [">"]}, "sub": {"allow": [">"]}});
    let wide = minted(file["signing_seed"].as_str().unwrap(), "wide", &wide);
    assert!(ConnectOptions::with_credentials(&wide).unwrap().connect(url).await.is_err());
}

async fn a_worker_reads_and_does_nothing_else(url: &str, access: &AccessFiles) {
    let mut work = Attacker::of("work", url, &access.work()).await;
    for subject in [
        "ev.0.org.record.x",
        "ev.1.org.record.x",
        "snap.0.org.record.x.0",
        "vault.org.sec_x",
        "sys.claim.slug.taken",
        "cmd.mine",
        "orgstream.api.here",
        "orgstream.api.account.one",
    ] {
        work.cannot_publish(subject, b"forged").await;
    }
    for subject in DESTRUCTION {
        work.cannot_publish(subject, b"").await;
        work.cannot_publish(&subject.replace("$JS", "LOG"), b"").await;
    }
    for subject in [">", "ev.>", "cmd.>", "_INBOX_serve.>", "_INBOX.>", "_R_.>", "$JS.>", "orgstream.api.here"] {
        work.cannot_subscribe(subject).await;
    }
    // A request's reply subject is not checked by the server: it must not lead out of the worker's account.
    let consumer = json!({"stream_name": "EV_0", "action": "create",
        "config": {"name": "thief", "ack_policy": "none", "deliver_policy": "all", "headers_only": true}});
    let made = work.client.request("LOG.API.CONSUMER.CREATE.EV_0.thief", consumer.to_string().into()).await.unwrap();
    let made: Value = serde_json::from_slice(&made.payload).unwrap();
    assert!(made["error"].is_null(), "{made}");
    let next = "LOG.API.CONSUMER.MSG.NEXT.EV_0.thief";
    for to in ["ev.1.org.record.x", "sys.claim.slug.x", "$JS.API.STREAM.DELETE.EV_1", "LOG.API.STREAM.DELETE.EV_1"] {
        work.sends_an_answer(next, "1", to).await;
        work.sends_an_answer(next, r#"{"batch": 1, "no_wait": true}"#, to).await;
        work.sends_an_answer("LOG.API.STREAM.INFO.EV_0", "", to).await;
        work.sends_an_answer("LOG.API.DIRECT.GET.EV_0", r#"{"last_by_subj": "ev.0.none"}"#, to).await;
        let push = json!({"stream_name": "EV_0", "action": "create", "config": {"name": "push", "deliver_subject": to,
            "ack_policy": "none", "deliver_policy": "all", "headers_only": true, "mem_storage": true,
            "inactive_threshold": 1_000_000_000_u64, "idle_heartbeat": 100_000_000}});
        // Whether it is made or not, the next check of the streams shows the result.
        let asked = work.client.request("LOG.API.CONSUMER.CREATE.EV_0.push", push.to_string().into()).await;
        assert!(asked.is_ok(), "{asked:?}");
    }
}

async fn an_api_process_writes_and_does_not_destroy(url: &str, access: &AccessFiles) {
    let mut serve = Attacker::of("serve", url, &access.serve()).await;
    for subject in ["cmd.mine", "_INBOX_work.one", "_INBOX_GBxCK2BwmHM4.one", "$JS.API.CONSUMER.CREATE.EV_0.x"] {
        serve.cannot_publish(subject, b"forged").await;
    }
    for subject in DESTRUCTION {
        serve.cannot_publish(subject, b"").await;
        serve.cannot_publish(&subject.replace("$JS", "LOG"), b"").await;
    }
    serve.cannot_publish("LOG.API.CONSUMER.CREATE.EV_0.x", b"{}").await;
    // A snapshot is replaced by another one, and taken away by the administrator only.
    for verb in ["PURGE", "DELETE", "MSG.DELETE"] {
        serve.cannot_publish(&format!("LOG.API.STREAM.{verb}.SNAP"), b"").await;
        serve.cannot_publish(&format!("LOG.API.STREAM.{verb}.VAULT"), b"").await;
    }
    for subject in [">", "_INBOX_work.>", "_INBOX_GBxCK2BwmHM4.>", "_INBOX.>", "_R_.>", "$JS.>", "$SYS.>"] {
        serve.cannot_subscribe(subject).await;
    }
    for to in ["$JS.API.STREAM.DELETE.EV_1", "$JS.API.STREAM.PURGE.EV_1", "LOG.API.STREAM.DELETE.EV_1"] {
        serve.sends_an_answer("LOG.API.DIRECT.GET.EV_0", r#"{"last_by_subj": "ev.0.none"}"#, to).await;
        serve.sends_an_answer("LOG.API.STREAM.INFO.EV_0", "", to).await;
    }
    // Its earlier requests were all processed when this one is.
    serve.client.request("LOG.API.STREAM.INFO.EV_0", "".into()).await.unwrap();
}

async fn the_administrator_takes_nothing_out_of_a_stream(administrator: &Client) {
    for (verb, body) in [("PURGE", "{}"), ("PURGE", r#"{"seq": 1}"#), ("MSG.DELETE", r#"{"seq": 1}"#)] {
        let subject = format!("$JS.API.STREAM.{verb}.SYS");
        let answer = administrator.request(subject, body.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        let text = answer["error"]["description"].as_str().unwrap_or_default();
        assert!(text.contains("not permitted") || text.contains("denied"), "{verb}: {answer}");
    }
}

/// Every attack, on a server that has streams; afterwards these are as they were.
async fn attack(url: &str, access: &AccessFiles) {
    let administrator = connect_as(url, &access.admin()).await;
    let before = streams(&administrator).await;
    nobody_without_credentials_is_let_in(url).await;
    a_producer_reaches_its_own_organization_only(url, access).await;
    a_worker_reads_and_does_nothing_else(url, access).await;
    an_api_process_writes_and_does_not_destroy(url, access).await;
    the_administrator_takes_nothing_out_of_a_stream(&administrator).await;
    // Heartbeats of the consumers that the worker made would have come by now.
    eventually("the worker's consumers to be gone", async || {
        let names = administrator.request("$JS.API.CONSUMER.NAMES.EV_0", "".into()).await.unwrap();
        let names: Value = serde_json::from_slice(&names.payload).unwrap();
        let names = names["consumers"].as_array().cloned().unwrap_or_default();
        (!names.contains(&json!("push"))).then_some(())
    })
    .await;
    assert_eq!(streams(&administrator).await, before);
}

/// The files are for their owners alone.
fn assert_private(access: &AccessFiles) {
    for file in [access.serve(), access.producers(), access.work(), access.admin(), access.offline(), access.server()] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        let folder = file.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
    }
    let server = fs::read_to_string(access.server()).unwrap();
    for secret in ["SO", "SA", "SU"] {
        let is_seed = |word: &str| word.len() == 58 && word.starts_with(secret);
        assert!(!server.split(|c: char| !c.is_ascii_alphanumeric()).any(is_seed), "{secret}…");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_is_refused_by_what_dev_runs() {
    let cluster = Cluster::start(ClusterOptions { shards: SHARDS, ..ClusterOptions::default() }).await;
    let tenant = cluster.tenant("attacked").await;
    cluster.client.command(&tenant, "one", &create("one")).await.expect(201);
    cluster.until_projected(&tenant).await;
    assert_private(&cluster.nats.access);
    attack(&cluster.nats.url, &cluster.nats.access).await;
    // And everything continues to work.
    cluster.client.command(&tenant, "two", &create("two")).await.expect(201);
    cluster.until_projected(&tenant).await;
}

/// A nats-server with a given configuration, on ports of the kernel's choice.
struct Shipped {
    url: String,
    monitor_url: String,
    child: Child,
}

impl Shipped {
    /// Starts it with this text as its configuration, in `dir`.
    async fn start(dir: &Path, configuration: &str) -> Self {
        let config = dir.join("nats.conf");
        fs::write(&config, format!("{configuration}\nports_file_dir: {:?}\n", dir.display().to_string())).unwrap();
        let log = fs::File::create(dir.join("nats.log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(nats_server().await.unwrap()).arg("--config").arg(&config);
        let child = command.stderr(log).spawn().unwrap();
        let file = dir.join(format!("nats-server_{}.ports", child.id()));
        let ports = eventually("nats-server to say its ports", async || {
            let ports: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            Some(ports).filter(|ports| ports["monitoring"].is_array())
        })
        .await;
        let address = |kind: &str| ports[kind][0].as_str().unwrap().to_owned();
        Self { url: address("nats"), monitor_url: address("monitoring"), child }
    }
}

impl Drop for Shipped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// deploy/nats.conf as it is shipped, except its addresses and data folder.
fn shipped_configuration(dir: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = fs::read_to_string(root.join("deploy/nats.conf")).unwrap();
    let data = format!("{:?}", dir.join("data").display().to_string());
    for (from, to) in
        [("\"0.0.0.0:4222\"", "\"127.0.0.1:-1\""), ("\"0.0.0.0:8222\"", "\"127.0.0.1:-1\""), ("\"/data\"", &data)]
    {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

/// The files that `orgstream nats init` makes in `dir`, with the server's where its configuration includes it.
fn shipped_access(dir: &Path) -> AccessFiles {
    let made = dir.join("made");
    let init = || program().args(["nats", "init", "--dir"]).arg(&made).output().unwrap();
    let first = init();
    assert!(first.status.success(), "{first:?}");
    let access = AccessFiles::at(&made);
    let said = String::from_utf8(first.stdout).unwrap();
    for file in [access.server(), access.serve(), access.producers(), access.work(), access.admin(), access.offline()] {
        assert!(said.contains(file.to_str().unwrap()), "{said}");
    }
    // A second time would lock all users out, so it is refused.
    let (before, again) = (fs::read(access.serve()).unwrap(), init());
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--dir"), "{again:?}");
    assert_eq!(fs::read(access.serve()).unwrap(), before);
    std::os::unix::fs::symlink(made.join("server"), dir.join("access")).unwrap();
    access
}

fn log_options(url: &str, creds: PathBuf) -> LogOptions {
    let options = LogOptions::new(url, commit_keys());
    LogOptions { creds: Some(creds), shards: SHARDS, sync: SyncMode::Durable, ..options }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_is_refused_by_what_is_shipped() {
    let dir = TempDir::new();
    let access = shipped_access(dir.path());
    assert_private(&access);
    let server = Shipped::start(dir.path(), &shipped_configuration(dir.path())).await;
    let run = |creds: PathBuf| {
        let mut command = program();
        command.args(["nats", "streams", "--shards", "2"]).env("ORGSTREAM_NATS_URL", &server.url);
        command.env("ORGSTREAM_COMMIT_KEYS", COMMIT_KEYS);
        command.env("ORGSTREAM_NATS_CREDS", creds).env("ORGSTREAM_NATS_MONITOR_URL", &server.monitor_url);
        command.output().unwrap()
    };
    let made = run(access.admin());
    assert!(made.status.success() && String::from_utf8_lossy(&made.stderr).starts_with("5 streams"), "{made:?}");
    let again = run(access.admin());
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).starts_with("0 streams"), "{again:?}");

    // Each part can do its work.
    let serve = Log::connect(&log_options(&server.url, access.serve())).await.unwrap();
    let placement = serve.place(OrgId::fresh(1, [7; 10])).await.unwrap();
    serve.claim("slug", "shipped", placement.org).await.unwrap();
    let commit = commit(placement.org, fresh_record(), 0, vec![created("shipped")]);
    let appended = serve.append(&placement, &commit, 0, None).await.unwrap();
    let work = Log::connect(&log_options(&server.url, access.work())).await.unwrap();
    let mut cursor = work.cursor(placement.shard, 0).await.unwrap();
    let message = timeout(PATIENCE, cursor.next()).await.unwrap().unwrap();
    assert_eq!((message.seq, message.shard), (appended.seq, placement.shard));
    assert!(work.append(&placement, &commit, 0, None).await.is_err(), "a worker has appended");

    let producers = Producers::load(&access.producers()).unwrap();
    for log in [&serve, &work] {
        let probe = Credentials::parse(producers.probe().unwrap());
        assert!(probe.is_some());
        assert_eq!(log.door(probe).await.unwrap(), []);
    }
    let administrator = Log::connect(&log_options(&server.url, access.admin())).await.unwrap();
    let findings = administrator.door(None).await.unwrap();
    assert!(findings[0].to_string().contains("may delete streams"), "{findings:?}");
    assert_eq!(administrator.shard_end(placement.shard).await.unwrap(), 1);
    attack(&server.url, &access).await;
}

/// Credentials for the key that `tenant` has.
async fn credentials(cluster: &Cluster, tenant: &Tenant) -> String {
    let path = "/v1/nats-credentials";
    let made = cluster.client.post(&tenant.key, path, None, &Value::Null).await.expect(201);
    assert_eq!(made.headers["cache-control"], "no-store");
    let key: KeyToken = tenant.key.parse().unwrap();
    assert_eq!((made.text("org_id"), made.text("public_id")), (tenant.id.to_string(), key.public_id().to_string()));
    let credentials = made.text("credentials");
    assert_eq!(made.text("inbox_prefix"), inbox(&credentials));
    // A user has no key that they could be bound to.
    let refused = cluster.client.post(&tenant.owner, path, None, &Value::Null).await.expect(403);
    assert_eq!(refused.text("code"), "key_only");
    credentials
}

/// A command by NATS: its status and its answer.
async fn send(client: &Client, org: &str, headers: HeaderMap, name: &str) -> (String, Value) {
    let body = create(name).to_string();
    let request = client.request_with_headers(format!("cmd.{org}"), headers, body.into());
    let answer = timeout(PATIENCE, request).await.unwrap().unwrap();
    let status = answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap().to_string();
    (status, serde_json::from_slice(&answer.payload).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_producer_needs_no_key_in_its_requests_and_is_nobody_else() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("good").await, cluster.tenant("other").await);
    let creds = credentials(&cluster, &tenant).await;
    let said = cluster.cli(&tenant.key, &["key", "nats"]).await.success();
    assert!(said.stderr.contains(&inbox(&creds)), "{said:?}");
    assert_eq!(claims(&said.stdout)["name"], claims(&creds)["name"]);
    let producer = Attacker::with("a good producer", &cluster.nats.url, &creds).await.client;
    let mut position = String::new();
    for org in [tenant.id.to_string(), tenant.slug.clone(), "current".to_owned()] {
        let (status, answer) = send(&producer, &org, HeaderMap::new(), &org).await;
        assert_eq!(status, "201", "{answer}");
        position = answer["position"].as_str().unwrap().to_owned();
        assert!(position.starts_with(&tenant.id.to_string()), "{answer}");
    }
    // The key is the actor, and the address is this machine's.
    let path = tenant.path("audit/events?limit=1");
    let events = cluster.client.get_at(&tenant.owner, &path, &position).await.expect(200);
    let event = &events.body["data"][0];
    assert_eq!(event["actor"]["id"], tenant.key_id, "{event}");
    assert_eq!(event["context"]["ip"], "127.0.0.1", "{event}");

    // The issue of its credentials is recorded, each time, before they were returned.
    let path = tenant.path("audit/events?action=access.nats_credentials_issued");
    let events = cluster.client.get_at(&tenant.owner, &path, &position).await.expect(200);
    let issued = events.body["data"].as_array().unwrap();
    assert_eq!(issued.len(), 2, "{issued:?}");
    for event in issued {
        assert_eq!((&event["actor"]["id"], &event["targets"][0]["id"]), (&json!(tenant.key_id), &json!(tenant.key_id)));
        assert_eq!(event["data"]["public_id"], tenant.key.parse::<KeyToken>().unwrap().public_id().to_string());
    }

    // Its headers cannot change its identity.
    let theirs = credentials(&cluster, &other).await;
    let jwt = theirs.lines().find(|line| line.starts_with("eyJ")).unwrap();
    let account = claims(&theirs)["nats"]["issuer_account"].clone();
    let info = json!({"acc": account, "user": claims(&theirs)["sub"], "jwt": jwt, "host": "192.0.2.1"}).to_string();
    let mut forged = Vec::new();
    for name in ["Nats-Request-Info", "nats-request-info", "NATS-REQUEST-INFO", "Nats-Request-info"] {
        let (mut once, mut twice) = (HeaderMap::new(), HeaderMap::new());
        once.insert(name, info.as_str());
        twice.append(name, info.as_str());
        twice.append(name, info.as_str());
        forged.extend([once, twice]);
    }
    for headers in forged {
        let (status, answer) = send(&producer, "current", headers.clone(), "forged").await;
        assert_eq!(status, "201", "{headers:?} {answer}");
        assert!(answer["position"].as_str().unwrap().starts_with(&tenant.id.to_string()), "{headers:?} {answer}");
    }
    // Another organization's key in its own organization is unknown there, as by HTTP.
    let mut headers = HeaderMap::new();
    headers.insert("Authorization", format!("Bearer {}", other.key));
    let (status, answer) = send(&producer, &tenant.slug, headers, "foreign").await;
    assert_eq!(status, "404", "{answer}");
    // A process that answers without the server's report of the sender has no sender: without an account of ours there
    // is none.
    let nobody = cluster.producer().await;
    let mut headers = HeaderMap::new();
    headers.insert("nats-request-info", info.as_str());
    let (status, answer) = send(&nobody, &other.slug, headers, "nobody").await;
    assert_eq!(status, "401", "{answer}");

    // A revoked key stops working within a second, although the connection stays.
    let revoke = json!({"type": "revoke_api_key", "id": tenant.key_id});
    cluster.client.post(&tenant.owner, &tenant.path("commands"), Some("revoke"), &revoke).await.expect(200);
    let refused = async { while send(&producer, "current", HeaderMap::new(), "late").await.0 != "401" {} };
    timeout(Duration::from_secs(1), refused).await.expect("the key to be refused within a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_door_is_not_started_on() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let dir = TempDir::new();
    let data = dir.path().join("data").display().to_string();
    let open = format!(
        "listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\njetstream {{ store_dir: {data:?}, sync_interval: always }}\n"
    );
    let open = Shipped::start(dir.path(), &open).await;
    let openly = |args: &[&str]| {
        let command = cluster.command("", args).env("ORGSTREAM_NATS_URL", &open.url).env_remove("ORGSTREAM_NATS_CREDS");
        let command = command.env("ORGSTREAM_NATS_MONITOR_URL", &open.monitor_url);
        command.env("ORGSTREAM_PEPPER", "a pepper that is long enough for a test")
    };
    let said = openly(&["check-config"]).run().await.failure();
    assert!(said.stdout.contains("admits every client") && said.stdout.contains("orgstream nats init"), "{said:?}");
    for job in ["serve", "work"] {
        let said = openly(&[job, "--http", "127.0.0.1:0"]).run().await.failure();
        assert!(said.stderr.contains("admits every client"), "{job}: {said:?}");
    }
    let said = openly(&["check-config", "--allow-open-nats"]).run().await;
    assert!(said.stdout.contains("NATS        ok"), "{said:?}");
    // The administrator's credentials are denied for processes that run all day.
    let said = cluster
        .command("", &["check-config"])
        .env("ORGSTREAM_NATS_CREDS", cluster.nats.access.admin().to_str().unwrap());
    let said = said.run().await.failure();
    assert!(said.stdout.contains("may delete streams"), "{said:?}");
    // And those of another server are invalid.
    let (theirs, lazy) = (TempDir::new(), TempDir::new());
    let access = shipped_access(theirs.path());
    let lazy = orgstream_servers::Nats::start(lazy.path(), true).await.unwrap();
    let foreign = cluster.command("", &["check-config"]).env("ORGSTREAM_NATS_URL", &lazy.url);
    let foreign = foreign.env("ORGSTREAM_NATS_CREDS", access.serve().to_str().unwrap());
    let said = foreign.env("ORGSTREAM_NATS_MONITOR_URL", &lazy.monitor_url).run().await.failure();
    assert!(said.stdout.contains("authorization violation"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_over_the_wire_in_the_clear_when_tls_is_asked_for() {
    let dir = TempDir::new();
    let access = shipped_access(dir.path());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    // The block that is shipped, as a comment.
    let text = shipped_configuration(dir.path());
    let (_, block) = text.split_once("# tls {").unwrap();
    let block = format!("tls {{{}", block.replace("\n#", "\n"));
    let block = block.replace("/etc/nats/tls", dir.path().to_str().unwrap());
    let server = Shipped::start(dir.path(), &format!("{text}\n{block}")).await;
    let port = server.url.rsplit(':').next().unwrap();
    let options = |url: String, ca: Option<PathBuf>| LogOptions { ca, ..log_options(&url, access.admin()) };
    let log = Log::connect(&options(format!("tls://localhost:{port}"), Some(cert.clone()))).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    // A configured CA is required whatever the address says.
    Log::connect(&options(format!("nats://localhost:{port}"), Some(cert.clone()))).await.unwrap();
    let unknown = Log::connect(&options(format!("tls://localhost:{port}"), None)).await.unwrap_err();
    let unknown = Chain(&unknown).to_string();
    assert!(unknown.to_lowercase().contains("certificate"), "{unknown}");
    drop(server);
    // A server without TLS is not used unencrypted.
    let plain = Shipped::start(dir.path(), &text).await;
    let port = plain.url.rsplit(':').next().unwrap();
    assert!(Log::connect(&options(format!("tls://localhost:{port}"), Some(cert.clone()))).await.is_err());
    assert!(Log::connect(&options(format!("nats://localhost:{port}"), Some(cert))).await.is_err());
}
