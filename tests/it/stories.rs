//! Every request has an event in the audit log, or a reason to have none; and exports and webhooks of the log are
//! complete.

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use orgstream::api::http::kit::policy::{AuditTrail, Policy, ROUTES, Shape};
use orgstream_domain::{Command, Permission};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};

use crate::{
    access::audited,
    api::{Answer, Api, Org, model},
};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn every_route_and_every_command_has_an_audit_story() {
    // No effect on an organization's data: a user ends a session of their own, wherever it acts.
    let silent = [("DELETE", "/v1/sessions/{session}")];
    // Heads, proofs and keys contain no events.
    let without_contents = [
        "audit/checkpoint",
        "audit/checkpoints",
        "audit/policy",
        "audit/handovers",
        "audit/consistency",
        "audit/events/{event}/proof",
        "audit/webhook",
    ];
    let mut told: BTreeSet<&str> = Command::SPECS.iter().flat_map(|spec| spec.events).copied().collect();
    for route in ROUTES.iter() {
        let (name, is_of_org) = (format!("{} {}", route.method, route.path), route.path.contains("{org}"));
        let changes = matches!(route.shape, Shape::Create | Shape::Change | Shape::Commands);
        match route.audit_trail {
            AuditTrail::Events => assert_ne!(route.method, "GET", "{name}"),
            AuditTrail::AccessEvent(fact) => assert!(told.insert(fact) || !changes, "{name}"),
            AuditTrail::ReadNotAudited => assert!(is_of_org && route.method == "GET", "{name} is not told of"),
            AuditTrail::NotTenantScoped => {
                assert!(!is_of_org && !changes, "{name} is not told of");
                assert!(
                    route.method == "GET" || silent.contains(&(route.method, route.path.as_str())),
                    "{name} is not told of"
                );
            }
        }
        if route.policy == Policy::Org(Permission::ReadAudit) {
            let shows = !without_contents.iter().any(|end| route.path.ends_with(end));
            assert_eq!(shows, matches!(route.audit_trail, AuditTrail::AccessEvent(_)), "{name}");
        }
    }
    assert!(Command::SPECS.iter().all(|spec| !spec.events.is_empty()));
    // The treatment of requests that no route allows: it is recorded wherever it happens.
    told.extend(["access.denied", "access.key_refused", "access.break_glass_used", "access.isolation_failed"]);
    // What the program does of itself: the end of an organization that was requested, and its receipt.
    told.extend(["organization.sealed", "deletion.completed"]);
    // The audit log's own entries.
    told.extend(["parking.parked", "parking.settled"]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("events/tests/golden");
    let files = fs::read_dir(golden).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    // The commit envelope is no event.
    let events = files.filter(|file| !file.starts_with("message."));
    let names: BTreeSet<String> = events.map(|file| file.rsplit_once(".v").unwrap().0.to_owned()).collect();
    assert_eq!(told.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), names, "every event, and no other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_the_audit_log_is_in_it() {
    let api = Api::start().await;
    let org = api.org("read").await;
    let event = audited(&api, &org.owner, &org.id, "organization.created", 1).await.remove(0);
    let (key_id, auditor) = api.key(&org, "auditor").await;
    let mut expected = BTreeSet::new();
    for route in ROUTES.iter().filter(|route| route.audit_trail == AuditTrail::AccessEvent("access.audit_read")) {
        let path = route.path.replace("{org}", &org.id).replace("{event}", event["event_id"].as_str().unwrap());
        let path = match path.replace("{*path}", "entries/000.p/1") {
            path if path.ends_with("/state") => format!("{path}?at=0"),
            path => path,
        };
        let answer = api.request(reqwest::Method::GET, &path).bearer_auth(&auditor).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        expected.insert(format!("GET {}", route.path));
    }
    // A repetition, and another read by the same route: it stays one access event.
    for path in ["audit/events?limit=1", "audit/events?action=member.added"] {
        api.get(&auditor, &org.path(path)).await.expect(200);
    }
    // A denied caller's request is not recorded as a read.
    let (_, viewer) = api.key(&org, "viewer").await;
    api.get(&viewer, &org.path("audit/events")).await.expect(403);

    // No read is recorded yet, although a later access event is in the log.
    let reads = "access.audit_read";
    audited(&api, &org.owner, &org.id, "access.denied", 1).await;
    assert!(audited(&api, &org.owner, &org.id, reads, 0).await.is_empty(), "a minute is one fact");
    api.gateway.access_log().flush().await;
    let facts = {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = org.path(&format!("audit/events?limit=100&action={reads}&actor={key_id}"));
            let found = api.get(&org.owner, &path).await.expect(200).json()["data"].as_array().unwrap().clone();
            if found.len() >= expected.len() {
                break found;
            }
            assert!(Instant::now() < deadline, "{found:#?}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    let routes = facts.iter().map(|fact| fact["data"]["route"].as_str().unwrap().to_owned()).collect();
    assert_eq!(expected, routes);
    let lists = facts.iter().find(|fact| fact["data"]["route"].as_str().unwrap().ends_with("/audit/events")).unwrap();
    assert_eq!((&lists["data"]["repeated"], &lists["data"]["query"]), (&json!(3), &Value::Null));
    assert_eq!((&lists["actor"]["type"], &lists["actor"]["id"]), (&json!("api_key"), &json!(key_id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_whole_and_in_the_log_before_its_first_line() {
    let api = Api::start().await;
    let org = api.org("exported").await;
    let (_, position) = api.record(&org, "=cmd()").await;
    let (_, auditor) = api.key(&org, "auditor").await;
    let listed = api.get_at(&auditor, &org.path("audit/events?limit=100"), &position).await.expect(200).json();
    let mut events: Vec<Value> = listed["data"].as_array().unwrap().clone();
    events.reverse();

    let jsonl = api.get(&auditor, &org.path("audit/export")).await.expect(200);
    let (_, upto) = jsonl.header("audit-range").split_once('-').unwrap();
    let upto: usize = upto.parse().unwrap();
    let lines: Vec<Value> = jsonl.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() == upto && upto >= events.len(), "{upto} of {}", events.len());
    for (idx, (line, event)) in lines.iter().zip(&events).enumerate() {
        assert_eq!((line["idx"].as_u64(), &line["event_id"]), (Some(idx as u64), &event["event_id"]));
    }
    let fact = audited(&api, &org.owner, &org.id, "access.audit_exported", 1).await.remove(0);
    assert_eq!(fact["data"], json!({"format": "jsonl", "from_idx": 0, "upto_idx": upto, "filter": null}));
    assert_eq!(fact["idx"].as_u64(), Some(upto as u64), "it is behind what it is about");

    // Resumed where it stopped, as a table, in which nothing is a formula.
    let path = org.path("audit/export?format=csv&from_idx=1&action=record.created");
    let csv = api.get(&auditor, &path).await.expect(200);
    assert!(csv.header("content-type").starts_with("text/csv"));
    assert!(csv.header("content-disposition").contains(".csv"));
    let rows: Vec<&str> = csv.text.lines().collect();
    assert_eq!((rows.len(), rows[0].starts_with("idx,event_id,type")), (2, true), "{rows:?}");
    assert!(rows[1].contains("record.created") && !rows[1].contains(",=cmd"), "{rows:?}");
    let fact = audited(&api, &org.owner, &org.id, "access.audit_exported", 2).await.remove(0);
    assert!(fact["data"]["filter"].as_str().unwrap().contains("action=record.created"), "{fact}");

    let ocsf = api.get(&auditor, &org.path("audit/export?format=ocsf&to_idx=2")).await.expect(200);
    let ocsf: Vec<Value> = ocsf.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((ocsf.len(), ocsf[0]["metadata"]["version"].is_string()), (2, true), "{ocsf:?}");

    // A caller that may not read cannot export, and a denied export is not recorded as one.
    let (_, member) = api.key(&org, "member").await;
    api.get(&member, &org.path("audit/export")).await.expect(403);
    assert!(api.get(&auditor, &org.path("audit/export?format=xlsx")).await.expect(400).text.contains("format"));
    audited(&api, &org.owner, &org.id, "access.audit_exported", 3).await;
}

/// A collector of audit logs with scripted answers.
#[derive(Clone, Default)]
struct Collector {
    posts: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    answers: Arc<Mutex<VecDeque<StatusCode>>>,
}

impl Collector {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/siem?token=abc", listener.local_addr().unwrap());
        let take = |State(collector): State<Self>, headers: HeaderMap, body: Bytes| async move {
            collector.posts.lock().unwrap().push((headers, String::from_utf8(body.to_vec()).unwrap()));
            collector.answers.lock().unwrap().pop_front().unwrap_or(StatusCode::NO_CONTENT)
        };
        let router = Router::new().route("/siem", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }

    fn posts(&self) -> Vec<(HeaderMap, String)> {
        self.posts.lock().unwrap().clone()
    }
}

async fn webhook(api: &Api, org: &Org) -> Value {
    api.get(&org.owner, &org.path("audit/webhook")).await.expect(200).json()
}

async fn caught_up(api: &Api, org: &Org, url: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = webhook(api, org).await;
        if state["url"] == url && state["behind"] == 0 && state["delivered_at"].is_string() {
            return state;
        }
        assert!(Instant::now() < deadline, "{state}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_collects_the_audit_log_can_prove_that_nothing_is_missing() {
    let api = Api::start().await;
    // A second process sends as well, or would.
    api.another().await;
    let (org, other) = (api.org("collected").await, api.org("uncollected").await);
    let collector = Collector::default();
    collector.answers.lock().unwrap().extend([StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_GATEWAY]);
    let url = collector.start().await;
    assert_eq!(webhook(&api, &org).await["url"], Value::Null);
    for refused in ["http://siem.acme.example", "https://10.0.0.1/x", "https://localhost", "nonsense"] {
        let answer = api.patch(&org.owner, &org.path("settings"), &json!({"audit_webhook": refused})).await.expect(422);
        assert!(answer.text.contains("/audit_webhook"), "{answer:?}");
    }
    api.patch(&org.owner, &org.path("settings"), &json!({"audit_webhook": url})).await.expect(200);
    let mut last = String::new();
    for number in 0..150 {
        let made = model(&format!("{number}"));
        let made = api.post(&org.owner, &org.path("records"), &made).await.expect(201);
        made.header("stream-position").clone_into(&mut last);
        if number == 0 {
            let deadline = Instant::now() + PATIENCE;
            while webhook(&api, &org).await["failures"] == 0 {
                assert!(Instant::now() < deadline, "no failure shows");
                sleep(Duration::from_millis(20)).await;
            }
            let error = webhook(&api, &org).await["error"].as_str().unwrap().to_owned();
            assert!(error.contains("503") || error.contains("502"), "{error}");
        }
    }
    let (_, position) = api.record(&other, "elsewhere").await;
    api.get_at(&other.owner, &other.path("audit/events"), &position).await.expect(200);
    api.get_at(&org.owner, &org.path("audit/events"), &last).await.expect(200);
    let state = caught_up(&api, &org, &url).await;
    assert_eq!((&state["failures"], &state["error"]), (&json!(0), &Value::Null));

    let key = STANDARD.decode(state["public_key"].as_str().unwrap().strip_prefix("whpk_").unwrap()).unwrap();
    let key = VerifyingKey::from_bytes(&key.try_into().unwrap()).unwrap();
    let (mut next, mut ids) = (0, BTreeSet::new());
    for (nth, (headers, body)) in collector.posts().iter().enumerate() {
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        let (id, signature) = (text("webhook-id"), text("webhook-signature"));
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        let signed = format!("{id}.{}.{body}", text("webhook-timestamp"));
        key.verify(signed.as_bytes(), &Signature::from_slice(&signature).unwrap()).unwrap();
        let post: Value = serde_json::from_str(body).unwrap();
        let (data, events) = (&post["data"], post["data"]["events"].as_array().unwrap());
        assert_eq!((&post["type"], &data["org_id"]), (&json!("audit.events"), &json!(org.id)));
        assert_eq!(data["from_idx"].as_u64(), Some(next), "post {nth} begins where the last confirmed one ended");
        assert!((1..=100).contains(&events.len()));
        for (place, event) in (next..).zip(events) {
            assert_eq!((event["idx"].as_u64(), &event["org_id"]), (Some(place), &json!(org.id)));
        }
        // The same part has the same id however often it is sent, and another part another one.
        let upto = data["next_idx"].as_u64().unwrap();
        assert_eq!((id.as_str(), upto), (&*format!("{}_{next}_{upto}", org.id), next + events.len() as u64));
        // The first two were rejected, so their events come again.
        if nth >= 2 {
            assert!(ids.insert(id), "what was confirmed does not come again");
            next = upto;
        }
    }
    assert_eq!(state["next_idx"].as_u64(), Some(next));
    assert!(ids.len() >= 2 && collector.posts().len() == ids.len() + 2, "{} posts of {ids:?}", collector.posts().len());
    assert!(next > 150 && !format!("{:?}", collector.posts()).contains("elsewhere"));

    // At another address it begins at the beginning; without an address, it ends.
    let second = Collector::default();
    let url = second.start().await;
    api.patch(&org.owner, &org.path("settings"), &json!({"audit_webhook": url})).await.expect(200);
    caught_up(&api, &org, &url).await;
    let first: Value = serde_json::from_str(&second.posts()[0].1).unwrap();
    assert_eq!(first["data"]["from_idx"], 0);
    let off: Answer = api.patch(&org.owner, &org.path("settings"), &json!({"audit_webhook": null})).await.expect(200);
    api.get_at(&org.owner, &org.path("audit/webhook"), off.header("stream-position")).await.expect(200);
    let deadline = Instant::now() + PATIENCE;
    while webhook(&api, &org).await["url"] != Value::Null {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(20)).await;
    }
    let (so_far, _) = (second.posts().len(), api.record(&org, "unsent").await);
    sleep(Duration::from_secs(3)).await;
    assert!(second.posts().len() <= so_far + 1 && !format!("{:?}", second.posts()).contains("unsent"));
}
