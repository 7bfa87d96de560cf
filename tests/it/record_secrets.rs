//! Secrets of records: sealed before anything is stored, masked wherever they are read, used by those who may, rotated while
//! everything runs; and by a Vault's transit engine, of which a fake speaks the protocol.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use orgstream::{
    adapters::key_ring::{DataKey, FileRing, KeyRing, KeyRingError, RingFile, Transit, WrappedKey},
    commands::vault::{ABANDONED_AFTER, Rewrapped, Vault},
    process as node,
};
use orgstream_events::{CommandId, Fingerprint, OrgId, SecretId, SecretPlace, VaultSubject};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::{net::TcpListener, sync::Mutex, time::timeout};
use zeroize::Zeroizing;

use crate::{
    api::{Answer, Api, Org, write_ring},
    cluster::{Cluster, ClusterOptions, eventually},
    support::TempDir,
};

/// Deadline of what must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// The mask of every secret.
const MASK: &str = "********";

fn with_key(name: &str, key: impl Into<Value>) -> Value {
    json!({"kind": "model", "data": {"name": name, "api_key": key.into()}})
}

/// A new text that nothing else has.
fn canary(what: &str) -> String {
    format!("canary-{what}-{:032x}", rand::random::<u128>())
}

fn key(byte: u8) -> DataKey {
    Zeroizing::new([byte; 32])
}

impl Api {
    async fn secret_record(&self, org: &Org, key: &str) -> String {
        let made = self.post(&org.owner, &org.path("records"), &with_key("m", key)).await.expect(201);
        made.json()["id"].as_str().unwrap().to_owned()
    }

    async fn put(&self, bearer: &str, path: &str, data: &Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).bearer_auth(bearer).json(&json!({"data": data}))).await
    }

    /// Uses the secret of a record.
    async fn reveal(&self, bearer: &str, org: &Org, id: &str) -> Answer {
        let asked = json!({"field": "api_key", "reason": "a test calls the provider"});
        self.post(bearer, &org.path(&format!("records/{id}/secret-uses")), &asked).await
    }

    async fn revealed(&self, org: &Org, id: &str) -> String {
        self.reveal(&org.owner, org, id).await.expect(200).json()["value"].as_str().unwrap().to_owned()
    }

    /// What stands in the record in place of its secret.
    async fn mask(&self, org: &Org, id: &str, position: &str) -> Value {
        let record = self.get_at(&org.owner, &org.path(&format!("records/{id}")), position).await.expect(200);
        record.json()["data"]["api_key"].clone()
    }

    /// The values in the vault of an organization: kept and destroyed.
    async fn in_vault(&self, org: &Org) -> (u64, u64) {
        let status = Vault::new(self.log().clone(), None).status(Some(org.id.parse().unwrap())).await.unwrap();
        assert_eq!(status.unreadable, 0);
        (status.by_key.values().sum(), status.destroyed)
    }
}

// --- where the value is not ---------------------------------------------------------------------

/// The forms in which a text may lie somewhere.
fn forms(text: &str) -> Vec<Vec<u8>> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Base64 at each place that it may have among other bytes, without what depends on its neighbours.
    let base64 = (0..3).map(|before| {
        let encoded = STANDARD.encode([vec![b'x'; before], text.as_bytes().to_vec()].concat());
        encoded.as_bytes()[4..encoded.len() - 4].to_vec()
    });
    [text.as_bytes().to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()].into_iter().chain(base64).collect()
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        // Servers remove files while this looks.
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if about.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
        } else if about.is_file() {
            found.push(path);
        }
    }
    found
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // Nearly no byte of a file is the first of the needle.
    let first = needle[0];
    let mut from = 0;
    while let Some(place) = haystack[from..].iter().position(|byte| *byte == first) {
        if haystack[from + place..].starts_with(needle) {
            return true;
        }
        from += place + 1;
    }
    false
}

/// Every row of every table, as text.
async fn all_rows(connection: &mut PgConnection) -> String {
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
                  WHERE schemaname NOT IN ('pg_catalog', 'information_schema')";
    let mut text = String::new();
    for table in sqlx::query(tables).fetch_all(&mut *connection).await.unwrap() {
        let table: String = table.get(0);
        let rows = sqlx::query(AssertSqlSafe(format!("SELECT t::text FROM {table} t"))).fetch_all(&mut *connection);
        for row in rows.await.unwrap() {
            text.push_str(&row.get::<String, _>(0));
            text.push('\n');
        }
    }
    text
}

type Received = Arc<Mutex<Vec<u8>>>;

async fn collect(State(received): State<Received>, body: Bytes) {
    received.lock().await.extend_from_slice(&body);
}

#[tokio::test(flavor = "multi_thread")]
async fn s1_6_a_planted_secret_is_nowhere_but_in_the_answer_to_its_use() {
    // A collector of traces.
    let traces = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/traces", post(collect)).with_state(Arc::clone(&traces));
    tokio::spawn(async move { axum::serve(listener, app).await });

    let dir = TempDir::new();
    let ring = dir.path().join("key-ring.json");
    write_ring(&ring, &RingFile::new("first", &key(1)).unwrap());
    let told = ["--log", "trace", "--otlp-url", &collector].map(str::to_owned).to_vec();
    let serve = [vec!["--key-ring".to_owned(), ring.to_str().unwrap().to_owned()], told.clone()].concat();
    let cluster = Cluster::start_in(dir, ClusterOptions { serve, work: told, ..ClusterOptions::default() }).await;
    let tenant = cluster.tenant("canaries").await;
    let client = &cluster.client;
    let mut answers: Vec<String> = Vec::new();

    // By HTTP and by NATS, alone and among others, new and again, and in requests that are refused.
    let (by_http, by_nats, in_batch, changed) = (canary("http"), canary("nats"), canary("batch"), canary("changed"));
    let refused = canary("refused");
    let records = tenant.path("records");
    let made =
        client.post(&tenant.key, &records, Some("one"), &with_key("visible-record", by_http.clone())).await.expect(201);
    let id = made.text("id");
    let again =
        client.post(&tenant.key, &records, Some("one"), &with_key("visible-record", by_http.clone())).await.expect(201);
    assert_eq!(again.text("id"), id);
    answers.extend([made.body.to_string(), again.body.to_string()]);
    let command = |key: &str, name: &str| json!({"type": "create_record", "kind": "model", "data": {"name": name, "api_key": key}});
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Content-Type", "application/json");
    headers.insert("Authorization", format!("Bearer {}", tenant.key).as_str());
    let request = async_nats::Request::new().headers(headers).payload(command(&by_nats, "n").to_string().into());
    let answer = cluster.producer().await.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
    assert_eq!(answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap().as_str(), "201");
    answers.push(String::from_utf8_lossy(&answer.payload).into_owned());
    let batch = json!([command(&in_batch, "b1"), command(&in_batch, "b2")]);
    answers.push(client.command(&tenant, "batch", &batch).await.expect(200).body.to_string());
    let put = |data: Value| {
        let request = client.request(Method::PUT, &tenant.path(&format!("records/{id}")), &tenant.key);
        async move { crate::cluster::Answer::of(request.json(&json!({"data": data}))).await.unwrap() }
    };
    answers.push(put(json!({"name": "visible-record", "api_key": changed})).await.expect(200).body.to_string());
    for (status, body) in [
        (422, with_key("x", format!("{refused}{}", "x".repeat(9_000)))),
        (422, with_key("x", json!({"masked": refused}))),
        (422, with_key("x", json!([refused]))),
        (422, json!({"kind": "model", "data": {"name": 7, "api_key": refused}})),
        (422, json!({"kind": "no_such_kind", "data": {"name": "x", "api_key": refused}})),
        (422, json!({"kind": "model", "data": {"name": "x", "api_key": refused}, "more": 1})),
        (422, json!({"kind": "model", "data": {"api_key": refused}})),
        (422, json!({"kind": refused, "data": {}})),
    ] {
        let answer = client.post(&tenant.key, &records, None, &body).await.expect(status);
        // What is no secret's place is the caller's own text, and comes back to the caller.
        if body["kind"] != json!(refused) {
            answers.push(answer.body.to_string());
        }
    }
    // The same idempotency key for another secret.
    let reused =
        client.post(&tenant.key, &records, Some("one"), &with_key("visible-record", refused.clone())).await.expect(422);
    assert_eq!(reused.text("code"), "idempotency_key_reused");
    answers.push(reused.body.to_string());
    let broken = client.request(Method::POST, &records, &tenant.key).header("Content-Type", "application/json");
    let broken =
        broken.body(format!("{{\"kind\": \"model\", \"data\": {{\"api_key\": \"{refused}\"")).send().await.unwrap();
    answers.push(broken.text().await.unwrap());

    // It is there for those who use it.
    let asked = json!({"field": "api_key", "reason": "to look"});
    let used =
        client.post(&tenant.owner, &tenant.path(&format!("records/{id}/secret-uses")), None, &asked).await.expect(200);
    assert_eq!((used.text("value"), used.headers["cache-control"].to_str().unwrap()), (changed.clone(), "no-store"));

    // Everything that can be read.
    cluster.until_projected(&tenant).await;
    for path in [
        "records?kind=model",
        "records?kind=model&sort=-updated&count=true",
        &format!("records/{id}"),
        "events",
        "audit/events",
        "audit/export",
        "audit/export?format=csv",
        "audit/export?format=ocsf",
    ] {
        let answer = Answer::of(client.request(Method::GET, &tenant.path(path), &tenant.owner)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(path.contains("csv") || path.contains("ocsf") || answer.text.contains(MASK), "{path} shows no mask");
        answers.push(answer.text);
    }
    for path in ["/v1/openapi.json", "/v1/kinds"] {
        answers.push(Answer::of(client.request(Method::GET, path, &tenant.owner)).await.text);
    }
    answers.push(Answer::of(client.request(Method::GET, "/metrics", cluster.operator())).await.text);
    let replayed = cluster.cli(&tenant.key, &["replay"]).await;
    answers.push(replayed.stdout);

    // Everything that is stored: the streams, the tables, their write-ahead logs, the processes' logs.
    let rows = all_rows(&mut cluster.superuser().await).await;
    eventually("spans to be sent", async || (!traces.lock().await.is_empty()).then_some(())).await;
    let traced = traces.lock().await.clone();
    let stored = files(cluster.dir());
    let (mut in_streams, mut in_tables, mut in_logs) = (0, 0, 0);
    for secret in [&by_http, &by_nats, &in_batch, &changed, &refused] {
        for form in forms(secret) {
            let shown = String::from_utf8_lossy(&form).into_owned();
            assert!(!contains(rows.as_bytes(), &form), "{shown} is in a table");
            assert!(!contains(&traced, &form), "{shown} is in a trace");
            for answer in &answers {
                assert!(!contains(answer.as_bytes(), &form), "{shown} is in an answer: {answer}");
            }
        }
    }
    let needles: Vec<Vec<u8>> =
        [&by_http, &by_nats, &in_batch, &changed].into_iter().flat_map(|secret| forms(secret)).collect();
    for path in &stored {
        let content = fs::read(path).unwrap_or_default();
        let place = path.display().to_string();
        for needle in &needles {
            assert!(!contains(&content, needle), "{} is in {place}", String::from_utf8_lossy(needle));
        }
        // The search finds what is there.
        let is_found = contains(&content, b"visible-record");
        in_streams += usize::from(is_found && place.contains("/nats/"));
        in_tables += usize::from(is_found && place.contains("/postgres/"));
        in_logs += usize::from(place.ends_with("/log") && contains(&content, b"create_record"));
    }
    assert!(in_streams > 0 && in_tables > 0, "{in_streams} {in_tables} {in_logs}");
    assert!(rows.contains("visible-record") && rows.contains(MASK));
    assert!(answers.iter().any(|answer| answer.contains("visible-record")));
}

// --- how it is read, changed and used -----------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_kept_by_its_mask_replaced_and_cleared() {
    let api = Api::start().await;
    let org = api.org("masks").await;
    let path = |id: &str| org.path(&format!("records/{id}"));
    let id = api.secret_record(&org, "first value").await;
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("first value".to_owned(), (1, 0)));
    let position = format!("{}:0", org.id);
    let found = eventually("the record to be there", async || {
        let record = api.get_at(&org.owner, &path(&id), &position).await;
        (record.status == 200).then_some(record)
    });
    let mask = found.await.json()["data"]["api_key"].clone();
    let fingerprint = mask["fingerprint"].as_str().unwrap();
    assert_eq!(mask, json!({"masked": MASK, "fingerprint": fingerprint, "version": 1}));
    assert!(fingerprint.len() == 8 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()));

    // As it was read, it stays.
    let kept = api.put(&org.owner, &path(&id), &json!({"name": "renamed", "api_key": mask})).await.expect(200);
    assert_eq!(api.mask(&org, &id, kept.header("stream-position")).await, mask);
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("first value".to_owned(), (1, 0)));

    // Another text replaces it, and the one before is destroyed.
    let replaced =
        api.put(&org.owner, &path(&id), &json!({"name": "renamed", "api_key": "second value"})).await.expect(200);
    let second = api.mask(&org, &id, replaced.header("stream-position")).await;
    assert_eq!(second["version"], 2);
    assert_ne!(second["fingerprint"], mask["fingerprint"]);
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("second value".to_owned(), (1, 1)));
    let stale = api.put(&org.owner, &path(&id), &json!({"name": "renamed", "api_key": mask})).await.expect(422);
    assert_eq!(
        (stale.problem().as_str(), &stale.json()["errors"][0]["pointer"]),
        ("validation_error", &json!("/data/api_key"))
    );
    assert_eq!(stale.json()["errors"][0]["code"], "not_the_secret");

    // The same text has the same fingerprint in this field, and another one in another record.
    let again =
        api.put(&org.owner, &path(&id), &json!({"name": "renamed", "api_key": "second value"})).await.expect(200);
    let again = api.mask(&org, &id, again.header("stream-position")).await;
    assert_eq!((&again["fingerprint"], &again["version"]), (&second["fingerprint"], &json!(3)));
    let same = api.secret_record(&org, "second value").await;
    let other = eventually("the record to be there", async || {
        let record = api.get(&org.owner, &path(&same)).await;
        (record.status == 200).then(|| record.json()["data"]["api_key"]["fingerprint"].clone())
    });
    assert_ne!(other.await, second["fingerprint"]);

    // Without it, it is gone, and so is its value.
    for cleared in [json!({"name": "renamed"}), json!({"name": "renamed", "api_key": "third value"})] {
        api.put(&org.owner, &path(&id), &cleared).await.expect(200);
    }
    api.put(&org.owner, &path(&id), &json!({"name": "renamed"})).await.expect(200);
    assert_eq!(api.reveal(&org.owner, &org, &id).await.expect(404).problem(), "not_found");
    assert_eq!(api.in_vault(&org).await, (1, 4));
    // An archived record keeps its own.
    api.request(Method::DELETE, &path(&same)).bearer_auth(&org.owner).send().await.unwrap();
    assert_eq!((api.revealed(&org, &same).await, api.in_vault(&org).await), ("second value".to_owned(), (1, 4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_use_a_secret_is_shown_it_and_the_audit_log_has_it_before() {
    let api = Api::start_with(|identity| identity.secret_uses_per_hour = 4).await;
    let (ours, theirs) = (api.org("users").await, api.org("strangers-of-secrets").await);
    let id = api.secret_record(&ours, "the value").await;
    for role in ["member", "viewer", "auditor"] {
        let (_, token) = api.key(&ours, role).await;
        assert_eq!(api.reveal(&token, &ours, &id).await.expect(403).problem(), "forbidden", "{role}");
    }
    // What another organization asks looks like what does not exist.
    let nobodys = api.reveal(&theirs.owner, &theirs, "res_01h455vb4pex5vsknk084sn02q").await.expect(404);
    for (org, bearer) in [(&theirs, &theirs.owner), (&ours, &theirs.owner)] {
        let answer = api.reveal(bearer, org, &id).await.expect(404);
        assert_eq!(answer.json()["detail"], nobodys.json()["detail"]);
    }
    let uses = ours.path(&format!("records/{id}/secret-uses"));
    for body in [
        json!({"field": "api_key", "reason": " "}),
        json!({"field": "api_key", "reason": "x".repeat(501)}),
        json!({"field": "api_key", "reason": "\u{0}"}),
        json!({"field": "api_key"}),
    ] {
        assert_eq!(api.post(&ours.owner, &uses, &body).await.expect(422).problem(), "validation_error");
    }
    for field in ["name", "", "no_such_field"] {
        let body = json!({"field": field, "reason": "to look"});
        assert_eq!(api.post(&ours.owner, &uses, &body).await.expect(404).problem(), "not_found");
    }
    let (_, admin) = api.key(&ours, "admin").await;
    for bearer in [&ours.owner, &admin, &ours.owner, &ours.owner] {
        let answer = api.reveal(bearer, &ours, &id).await.expect(200);
        assert_eq!((answer.header("cache-control"), &answer.json()["value"]), ("no-store", &json!("the value")));
        assert_eq!(answer.json()["version"], 1);
    }
    let over = api.reveal(&ours.owner, &ours, &id).await.expect(429);
    assert_eq!(over.problem(), "secret_limit_exceeded");
    over.header("retry-after");
    let path = ours.path("audit/events?action=access.secret_used");
    let events = eventually("four uses in the audit log", async || {
        let events = api.get(&ours.owner, &path).await.expect(200).json()["data"].clone();
        (events.as_array().unwrap().len() == 4).then_some(events)
    })
    .await;
    let data = &events[0]["data"];
    assert_eq!((&data["record"], &data["field"], &data["version"]), (&json!(id), &json!("api_key"), &json!(1)));
    assert_eq!(data["reason"], "a test calls the provider");
    assert_eq!(events[0]["targets"][0], json!({"type": "record", "id": id}));
    assert!(!events.to_string().contains("the value"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_command_is_known_by_its_secret_and_has_one_effect() {
    let api = Api::start().await;
    let org = api.org("repeats").await;
    let send = async |method: Method, path: &str, key: &str, body: Value| {
        let request = api.request(method, &org.path(path)).bearer_auth(&org.owner).header("Idempotency-Key", key);
        Answer::of(request.json(&body)).await
    };
    let create = |value: &str| with_key("m", value);
    let made = send(Method::POST, "records", "create", create("one")).await.expect(201).json();
    let id = made["id"].as_str().unwrap().to_owned();
    let again = send(Method::POST, "records", "create", create("one")).await.expect(201);
    assert_eq!((again.header("idempotency-replayed"), &again.json()["position"]), ("true", &made["position"]));
    assert_eq!(
        send(Method::POST, "records", "create", create("two")).await.expect(422).problem(),
        "idempotency_key_reused"
    );
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("one".to_owned(), (1, 0)));

    // Many at once, and by another process that knows nothing yet.
    let path = format!("records/{id}");
    let update = |value: &str| json!({"data": {"name": "m", "api_key": value}});
    let tries = join_all((0..12).map(|_| send(Method::PUT, &path, "update", update("two")))).await;
    assert!(tries.iter().all(|answer| answer.status == 200), "{tries:?}");
    let positions: std::collections::BTreeSet<String> =
        tries.iter().map(|answer| answer.json()["position"].to_string()).collect();
    assert_eq!(positions.len(), 1, "{tries:?}");
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("two".to_owned(), (1, 1)));
    let elsewhere = api.another().await;
    let request = reqwest::Client::new().put(format!("{elsewhere}{}", org.path(&path))).bearer_auth(&org.owner);
    let late = Answer::of(request.header("Idempotency-Key", "update").json(&update("two"))).await.expect(200);
    assert_eq!(late.header("idempotency-replayed"), "true");

    // Once it was replaced, the repetition brings nothing back.
    send(Method::PUT, &path, "replace", update("three")).await.expect(200);
    let late = send(Method::PUT, &path, "update", update("two")).await.expect(200);
    assert_eq!(late.header("idempotency-replayed"), "true");
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("three".to_owned(), (1, 2)));

    // Different ones at once: each counts, and one of them stays.
    let texts: Vec<String> = (0..8).map(|number| format!("concurrent-{number}")).collect();
    let tries = join_all(texts.iter().map(|text| send(Method::PUT, &path, text, update(text)))).await;
    let done = tries.iter().filter(|answer| answer.status == 200).count();
    assert!(tries.iter().all(|answer| matches!(answer.status, 200 | 409)) && done > 0, "{tries:?}");
    assert!(texts.contains(&api.revealed(&org, &id).await));
    // Those of refused commands may still be on their way, by another try under the same key.
    let kept = usize::try_from(api.in_vault(&org).await.0).unwrap();
    assert!(kept <= 1 + tries.len() - done, "{kept} values, {done} done");

    // A record that is made and changed in one request.
    let chosen = "res_01h455vb4pex5vsknk084sn02q";
    let commands = json!([
        {"type": "create_record", "kind": "model", "id": chosen, "data": {"name": "m", "api_key": "before"}},
        {"type": "update_record", "id": chosen, "data": {"name": "m", "api_key": "after"}},
    ]);
    for _ in 0..2 {
        let outcomes = send(Method::POST, "commands", "both", commands.clone()).await.expect(200);
        assert!(!outcomes.text.contains("refused"), "{outcomes:?}");
    }
    assert_eq!(api.revealed(&org, chosen).await, "after");
}

// --- key rings ----------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn the_wrapping_key_is_rotated_while_secrets_are_written_and_used() {
    let api = Api::start().await;
    let org = api.org("rotation").await;
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push((api.secret_record(&org, &format!("value {number}")).await, format!("value {number}")));
    }
    let ring: Arc<dyn KeyRing> = Arc::new(FileRing::open(api.key_ring.clone()).await.unwrap());
    let vault = Vault::new(api.log().clone(), Some(ring));
    let (stop, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        while !stop.load(Ordering::Relaxed) {
            for (id, value) in &ids {
                assert_eq!(&api.revealed(&org, id).await, value);
                let path = org.path(&format!("records/{id}"));
                api.put(&org.owner, &path, &json!({"name": "m", "api_key": value})).await.expect(200);
                calls.fetch_add(2, Ordering::Relaxed);
            }
        }
    };
    let rotate = async {
        let mut file = RingFile::new("first", &key(1)).unwrap();
        for (number, id) in (2..).zip(["second", "third", "fourth"]) {
            let before = calls.load(Ordering::Relaxed);
            eventually("calls between rotations", async || (calls.load(Ordering::Relaxed) > before + 12).then_some(()))
                .await;
            file.add(id, &key(number)).unwrap();
            write_ring(&api.key_ring, &file);
            let Rewrapped { failed, .. } = vault.rewrap(None, ABANDONED_AFTER).await.unwrap();
            assert_eq!(failed, 0);
        }
        stop.store(true, Ordering::Relaxed);
    };
    timeout(PATIENCE * 2, async { tokio::join!(load, rotate) }).await.unwrap();
    vault.rewrap(None, ABANDONED_AFTER).await.unwrap();
    let status = vault.status(None).await.unwrap();
    assert_eq!(status.by_key.keys().collect::<Vec<_>>(), ["fourth"], "{status:?}");

    // The old keys are not needed any more, by a process that is just starting either.
    write_ring(&api.key_ring, &RingFile::new("fourth", &key(4)).unwrap());
    for (id, value) in &ids {
        assert_eq!(&api.revealed(&org, id).await, value);
    }
    let ring: Arc<dyn KeyRing> = Arc::new(FileRing::open(api.key_ring.clone()).await.unwrap());
    node::check_key_ring(api.log(), Some(ring)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_ring_is_refused_and_without_one_no_secret_is_taken_or_shown() {
    let api = Api::start().await;
    let org = api.org("rings").await;
    let id = api.secret_record(&org, "the value").await;
    let dir = TempDir::new();
    for (ring, why) in [
        (RingFile::new("first", &key(9)).unwrap(), "is not the one that wrapped this"),
        (RingFile::new("other", &key(1)).unwrap(), "has no key \"first\""),
    ] {
        let path = dir.path().join("ring.json");
        write_ring(&path, &ring);
        let ring: Arc<dyn KeyRing> = Arc::new(FileRing::open(path).await.unwrap());
        let refused = node::check_key_ring(api.log(), Some(Arc::clone(&ring))).await.unwrap_err().to_string();
        assert!(refused.contains("cannot be started safely") && refused.contains(why), "{refused}");
        assert!(refused.contains("ORGSTREAM_KEY_RING"), "{refused}");
        // Nor does a process that was started nevertheless seal anything with it.
        let base = api.another_with_ring(Some(ring)).await;
        let request = reqwest::Client::new().post(format!("{base}{}", org.path("records"))).bearer_auth(&org.owner);
        let answer = Answer::of(request.json(&with_key("m", "another value"))).await.expect(503);
        assert_eq!(answer.problem(), "unavailable");
    }
    let base = api.another_with_ring(None).await;
    let post = async |path: &str, body: Value| {
        let request = reqwest::Client::new().post(format!("{base}{}", org.path(path))).bearer_auth(&org.owner);
        Answer::of(request.json(&body)).await
    };
    let refused = post("records", with_key("m", "another value")).await.expect(503);
    assert_eq!(refused.problem(), "secrets_unavailable");
    assert!(refused.text.contains("--key-ring") && !refused.text.contains("another value"), "{refused:?}");
    let asked = json!({"field": "api_key", "reason": "to look"});
    let refused = post(&format!("records/{id}/secret-uses"), asked).await.expect(503);
    assert_eq!(refused.problem(), "secrets_unavailable");
    post("records", json!({"kind": "model", "data": {"name": "without a secret"}})).await.expect(201);
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("the value".to_owned(), (1, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_makes_and_rotates_the_key_ring_by_commands() {
    let cluster = {
        let dir = TempDir::new();
        let ring = dir.path().join("key-ring.json");
        write_ring(&ring, &RingFile::new("first", &key(1)).unwrap());
        let serve = vec!["--key-ring".to_owned(), ring.to_str().unwrap().to_owned()];
        Cluster::start_in(dir, ClusterOptions { serve, ..ClusterOptions::default() }).await
    };
    let serve = cluster.nats.access.serve();
    let secrets = |args: &[&str]| {
        let args = [&["secrets"], args].concat();
        let ring = cluster.dir().join("key-ring.json");
        let command = cluster.command("", &args).env("ORGSTREAM_NATS_CREDS", serve.to_str().unwrap());
        command.env("ORGSTREAM_KEY_RING", ring.to_str().unwrap()).run()
    };
    assert!(secrets(&["init"]).await.failure().stderr.contains("secrets rotate"));
    let tenant = cluster.tenant("commands-of-rings").await;
    let made =
        cluster.client.post(&tenant.key, &tenant.path("records"), None, &with_key("m", "the value")).await.expect(201);
    assert!(secrets(&["status"]).await.success().stdout.starts_with("first "));
    secrets(&["rotate", "--key", "second"]).await.success();
    assert!(secrets(&["rotate", "--key", "second"]).await.failure().stderr.contains("there is a key second already"));
    assert!(secrets(&["rewrap"]).await.success().stderr.contains("1 secrets are wrapped by the current key now"));
    let status = secrets(&["status"]).await.success().stdout;
    assert!(status.starts_with("second ") && !status.contains("first"), "{status}");
    let asked = json!({"field": "api_key", "reason": "to look"});
    let path = tenant.path(&format!("records/{}/secret-uses", made.text("id")));
    assert_eq!(cluster.client.post(&tenant.owner, &path, None, &asked).await.expect(200).text("value"), "the value");
    // A new file is only its owner's, and is the ring of no installation that has secrets.
    let other = cluster.dir().join("other.json");
    let made = cluster.command("", &["secrets", "init", "--key-ring", other.to_str().unwrap()]).run().await;
    assert!(made.success().stdout.contains("other.json"));
    let command = cluster.command("", &["check-config"]).env("ORGSTREAM_KEY_RING", other.to_str().unwrap());
    let refused = command.env("ORGSTREAM_NATS_CREDS", serve.to_str().unwrap()).run().await.failure();
    assert!(refused.stdout.contains("key ring") && refused.stdout.contains("is not the one"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_no_record_has_are_destroyed_and_others_stay() {
    let api = Api::start().await;
    let org = api.org("sweep").await;
    let id = api.secret_record(&org, "the value").await;
    let ring: Arc<dyn KeyRing> = Arc::new(FileRing::open(api.key_ring.clone()).await.unwrap());
    let vault = Vault::new(api.log().clone(), Some(ring));
    // As a process leaves it that dies between the vault and the log.
    let command = CommandId::fresh(1, [7; 10]);
    let secret = SecretId::derive(command, "api_key", &Fingerprint([7; 32]));
    let subject = VaultSubject { org: org.id.parse::<OrgId>().unwrap(), secret };
    let of = SecretPlace { record: id.parse().unwrap(), field: "api_key".to_owned() };
    vault.keep(&subject, 9, "of nobody", of).await.unwrap();
    assert_eq!(api.in_vault(&org).await, (2, 0));
    assert_eq!(vault.rewrap(None, ABANDONED_AFTER).await.unwrap().abandoned, 0, "it may be on its way");
    assert_eq!(vault.rewrap(None, Duration::ZERO).await.unwrap().abandoned, 1);
    assert_eq!((api.revealed(&org, &id).await, api.in_vault(&org).await), ("the value".to_owned(), (1, 1)));
}

// --- the transit engine of a Vault --------------------------------------------------------------

/// A Vault, as far as its transit engine goes: it answers as the real one is documented to.
#[derive(Default)]
struct FakeVault {
    /// The version of the key.
    version: AtomicUsize,
    sealed: AtomicBool,
    seen: Mutex<Vec<(String, Value)>>,
}

async fn transit(
    State(vault): State<Arc<FakeVault>>,
    UrlPath((action, name)): UrlPath<(String, String)>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let errors = |status: StatusCode, text: &str| (status, Json(json!({"errors": [text]})));
    if headers.get("x-vault-token").is_none_or(|token| token != "the-token") {
        return errors(StatusCode::FORBIDDEN, "permission denied");
    }
    if vault.sealed.load(Ordering::Relaxed) {
        return errors(StatusCode::SERVICE_UNAVAILABLE, "Vault is sealed");
    }
    if name != "orgstream" {
        return errors(StatusCode::BAD_REQUEST, "encryption key not found");
    }
    vault.seen.lock().await.push((action.clone(), body.clone()));
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    let data = match action.as_str() {
        // What it encrypts it writes down, with what it is bound to.
        "encrypt" => {
            let version = vault.version.load(Ordering::Relaxed);
            let inside = json!([text("plaintext"), text("associated_data")]).to_string();
            json!({"ciphertext": format!("vault:v{version}:{}", STANDARD.encode(inside)), "key_version": version})
        }
        _ => {
            let ciphertext = text("ciphertext");
            let inside = ciphertext.rsplit(':').next().and_then(|inside| STANDARD.decode(inside).ok());
            let inside: Option<[String; 2]> = inside.and_then(|inside| serde_json::from_slice(&inside).ok());
            match inside {
                Some([plaintext, bound]) if bound == text("associated_data") => json!({"plaintext": plaintext}),
                _ => return errors(StatusCode::BAD_REQUEST, "cipher: message authentication failed"),
            }
        }
    };
    (StatusCode::OK, Json(json!({"request_id": "r", "lease_id": "", "renewable": false, "data": data})))
}

async fn fake_vault() -> (Arc<FakeVault>, String) {
    let vault = Arc::new(FakeVault { version: AtomicUsize::new(1), ..FakeVault::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/crypto/transit/{action}/{name}", post(transit)).with_state(Arc::clone(&vault));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (vault, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transit_engine_of_a_vault_wraps_and_unwraps() {
    let (vault, url) = fake_vault().await;
    let dir = TempDir::new();
    let token = dir.path().join("token");
    fs::write(&token, "the-token\n").unwrap();
    let ring = Transit::new(&format!("{url}/"), "crypto/transit", "orgstream", token.clone()).unwrap();
    let wrapped = ring.wrap(&key(7), b"here").await.unwrap();
    assert_eq!(wrapped.key, "orgstream:v1");
    assert_eq!(ring.unwrap(&wrapped, b"here").await.unwrap(), key(7));
    let seen = vault.seen.lock().await.clone();
    assert_eq!(seen[0].1, json!({"plaintext": STANDARD.encode([7; 32]), "associated_data": STANDARD.encode("here")}));
    let ciphertext = String::from_utf8(wrapped.bytes.clone()).unwrap();
    assert_eq!(
        seen[1],
        ("decrypt".to_owned(), json!({"ciphertext": ciphertext, "associated_data": STANDARD.encode("here")}))
    );

    // Another place, another key, another name.
    let another = async |wrapped: &WrappedKey, bound: &[u8]| ring.unwrap(wrapped, bound).await.unwrap_err();
    assert!(another(&wrapped, b"there").await.is_another_ring());
    let foreign = WrappedKey { key: "first".to_owned(), ..wrapped.clone() };
    assert!(another(&foreign, b"here").await.is_another_ring());
    let garbage = WrappedKey { bytes: b"vault:v1:x".to_vec(), ..wrapped.clone() };
    assert!(another(&garbage, b"here").await.is_another_ring());

    // What passes is told apart from what does not, and nothing repeats the token.
    let unavailable = async || {
        let error = ring.wrap(&key(7), b"here").await.unwrap_err();
        let said = orgstream_events::Chain(&error).to_string();
        assert!(matches!(error, KeyRingError::Unavailable(_)) && !said.contains("the-token"), "{said}");
        said
    };
    vault.sealed.store(true, Ordering::Relaxed);
    assert!(unavailable().await.contains("503"));
    vault.sealed.store(false, Ordering::Relaxed);
    fs::write(&token, "another").unwrap();
    assert!(unavailable().await.contains("403"));
    fs::remove_file(&token).unwrap();
    unavailable().await;
    // A token that is renewed in its file counts at once.
    fs::write(&token, "the-token").unwrap();
    assert_eq!(ring.unwrap(&wrapped, b"here").await.unwrap(), key(7));
    for (mount, name) in [("", "orgstream"), ("transit", "a/b"), ("transit", ""), ("a b", "x")] {
        assert!(Transit::new(&url, mount, name, token.clone()).is_err(), "{mount} {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_move_from_a_version_of_a_vaults_key_to_the_next() {
    let (vault, url) = fake_vault().await;
    let dir = TempDir::new();
    let token = dir.path().join("token");
    fs::write(&token, "the-token").unwrap();
    let ring: Arc<dyn KeyRing> = Arc::new(Transit::new(&url, "crypto/transit", "orgstream", token).unwrap());
    // An installation that has had no key ring yet.
    let api = Api::start().await;
    let org = api.org("transit").await;
    let base = api.another_with_ring(Some(Arc::clone(&ring))).await;
    let post = async |path: &str, body: Value| {
        let request = reqwest::Client::new().post(format!("{base}{}", org.path(path))).bearer_auth(&org.owner);
        Answer::of(request.json(&body)).await
    };
    let id = post("records", with_key("m", "the value")).await.expect(201).json()["id"].as_str().unwrap().to_owned();
    let keys = async |ring: &Arc<dyn KeyRing>| {
        let vault = Vault::new(api.log().clone(), Some(Arc::clone(ring)));
        vault.status(None).await.unwrap().by_key.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(keys(&ring).await, ["orgstream:v1"]);
    vault.version.store(2, Ordering::Relaxed);
    let rewrapped = Vault::new(api.log().clone(), Some(Arc::clone(&ring))).rewrap(None, ABANDONED_AFTER).await.unwrap();
    assert_eq!((rewrapped.rewrapped, rewrapped.failed), (1, 0));
    assert_eq!(keys(&ring).await, ["orgstream:v2"]);
    let asked = json!({"field": "api_key", "reason": "to look"});
    let uses = format!("records/{id}/secret-uses");
    assert_eq!(post(&uses, asked.clone()).await.expect(200).json()["value"], "the value");
    // While it does not answer, nothing is stored and nothing shown, and everything else goes on.
    vault.sealed.store(true, Ordering::Relaxed);
    assert_eq!(post("records", with_key("m", "another")).await.expect(503).problem(), "unavailable");
    assert_eq!(post(&uses, asked).await.expect(503).problem(), "unavailable");
    post("records", json!({"kind": "model", "data": {"name": "without a secret"}})).await.expect(201);
    assert_eq!(api.in_vault(&org).await, (1, 0));
    // The file's ring is not this installation's any more.
    let file: Arc<dyn KeyRing> = Arc::new(FileRing::open(api.key_ring.clone()).await.unwrap());
    assert!(node::check_key_ring(api.log(), Some(file)).await.is_err());
}
