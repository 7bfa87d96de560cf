//! Many writers to one thing: none is rejected for it, nothing overtakes, and a rejected command leaves nothing claimed.

use std::{
    collections::VecDeque,
    process::Stdio,
    sync::{Arc, Mutex},
};

use async_nats::{HeaderMap, client::Request};
use axum::{Json, Router, extract::State, routing::post};
use futures_util::future::join_all;
use orgstream::commands::{
    handler::CommandHandler,
    request::{Accepted, Caller, Creator},
};
use orgstream_domain::{
    ChangeSettings, ClaimDomain, Command, CreateOrganization, JoinByDomain, ProveDomain, Scopes,
    credentials::key::Pepper,
    domain::{RECORD_KEY, record_name},
};
use orgstream_events::{
    Actor, ActorType, Context, DomainId, DomainName, Event, JitProvisioning, MemberEvent, OrgId, PLATFORM_ORG, Role,
    TenantType, UserId,
};
use orgstream_stream::{Log, LogOptions, SyncMode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    api::FakeDns,
    cluster::{Answer, Cluster, ClusterOptions, PATIENCE, create},
    history::History,
    support::{Nats, commit_keys},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_writers_of_one_record_all_get_their_turn() {
    const WRITERS: usize = 200;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("crowd").await;
    let mut second = cluster.second_api();
    second.ready().await;
    let made = cluster.client.command(&tenant, "made", &create("first")).await.expect(201);
    let path = tenant.path(&format!("records/{}", made.text("id")));
    let clients = [cluster.client.clone(), cluster.client.of(&second)];
    let puts = (0..WRITERS).map(|writer| {
        let put = clients[writer % 2].request(Method::PUT, &path, &tenant.key);
        Answer::of(put.json(&json!({"data": {"name": format!("writer {writer}")}})))
    });
    let mut versions: Vec<u64> = join_all(puts)
        .await
        .into_iter()
        .map(|answer| answer.unwrap().expect(200).body["version"].as_u64().unwrap())
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..=WRITERS as u64 + 1).collect::<Vec<_>>());
    // A writer that states a version gets the conflict at once.
    let put = cluster.client.request(Method::PUT, &path, &tenant.key).header("If-Match", "\"2\"");
    let answer = Answer::of(put.json(&json!({"data": {"name": "late"}}))).await.unwrap();
    assert_eq!(answer.expect(412).body["code"], "version_conflict");
}

/// A user outside of any organization.
fn person(number: usize) -> Creator {
    let email = format!("person-{number}@acme.example");
    Creator { user: UserId::from_login("https://issuer.example", &email), email }
}

fn caller(org: OrgId, creator: Creator) -> Caller {
    Caller {
        org,
        actor: Actor { actor_type: ActorType::Member, id: creator.user.to_string(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        proof: None,
        right: None,
        creator: Some(creator),
        context: Context::default(),
        request_id: None,
        trace: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_of_a_proven_domain_who_signs_in_at_once_is_a_member() {
    const PEOPLE: usize = 60;
    let nats = Nats::start(false).await;
    let options = LogOptions::new(&nats.url, commit_keys());
    let options = LogOptions { creds: Some(nats.access.admin()), shards: 2, sync: SyncMode::Relaxed, ..options };
    let dns = Arc::new(FakeDns::default());
    let mut processes = Vec::new();
    for _ in 0..3 {
        let log = Log::connect(&options).await.unwrap();
        assert_eq!(log.ensure_streams().await.unwrap(), []);
        let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
        processes.push(CommandHandler::new(log, pepper, "local".to_owned(), dns.clone()));
    }
    let domain: DomainName = "acme.example".parse().unwrap();
    let founder = caller(PLATFORM_ORG, person(0));
    let found = CreateOrganization {
        name: "Acme".to_owned(),
        slug: "acme".parse().unwrap(),
        tenant_type: TenantType::Organization,
        auth0_organization_id: None,
    };
    let org = processes[0].handle(&founder, Command::from(found).into()).await.unwrap().position.org;
    let owner = caller(org, person(0));
    let own = async |command: Command| processes[0].handle(&owner, command.into()).await.unwrap();
    let open = ChangeSettings { jit_provisioning: Some(JitProvisioning::Restricted), ..ChangeSettings::default() };
    own(open.into()).await;
    own(ClaimDomain { domain: domain.clone() }.into()).await;
    let log = Log::connect(&options).await.unwrap();
    let history = History::read(&log, org).await;
    let challenge = history.events().find_map(|(_, _, event)| match &event.event {
        Event::Domain(orgstream_events::DomainEvent::Claimed(claimed)) => Some(claimed.challenge.clone()),
        _ => None,
    });
    dns.say(&record_name(&domain), &format!("{RECORD_KEY}{}", challenge.unwrap()));
    own(ProveDomain { id: DomainId::of(org, &domain) }.into()).await;

    let joins = (1..=PEOPLE).map(async |number| {
        let join = Command::from(JoinByDomain { domain: domain.clone() });
        processes[number % 3].handle(&caller(org, person(number)), join.into()).await
    });
    let joined: Vec<Accepted> = join_all(joins).await.into_iter().map(Result::unwrap).collect();
    assert!(joined.iter().all(|accepted| accepted.events == ["member.added"]));
    let history = History::read(&log, org).await;
    let members = history.events().filter(|(_, _, event)| matches!(event.event, Event::Member(MemberEvent::Added(_))));
    assert_eq!(members.count(), PEOPLE + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_leaves_its_slug_to_others() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("first").await, cluster.tenant("second").await);
    let rename = async |whose: &crate::cluster::Tenant, version: Option<&str>, body: Value| {
        let own = format!("/v1/organizations/{}", whose.id);
        let request = cluster.client.request(Method::PATCH, &own, &whose.owner);
        let request = version.into_iter().fold(request, |request, version| request.header("If-Match", version));
        Answer::of(request.json(&body)).await.unwrap()
    };
    rename(&tenant, Some("\"99\""), json!({"slug": "stale"})).await.expect(412);
    rename(&tenant, None, json!({"slug": "misnamed", "name": ""})).await.expect(422);
    rename(&tenant, None, json!({"slug": "taken-1", "name": "x"})).await.expect(200);
    for free in ["stale", "misnamed"] {
        rename(&other, None, json!({"slug": free})).await.expect(200);
    }
    // Its old slug still leads to it, and no other organization gets it.
    assert_eq!(rename(&other, None, json!({"slug": "first"})).await.expect(409).body["code"], "slug_taken");
    assert_eq!(rename(&other, None, json!({"slug": "taken-1"})).await.expect(409).body["code"], "slug_taken");
    rename(&tenant, None, json!({"slug": "first"})).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nats_would_not_let_through_says_how_to_ask_for_it() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("talkative").await;
    let nats = cluster.producer().await;
    let send = async |key: &str, body: Value| {
        let mut headers = HeaderMap::new();
        headers.insert("Authorization", format!("Bearer {}", tenant.key));
        headers.insert("Idempotency-Key", key);
        let body = serde_json::to_vec(&body).unwrap();
        let request = Request::new().headers(headers).payload(body.into()).timeout(Some(PATIENCE));
        let answer = nats.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
        let status: u16 = answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap().as_str().parse().unwrap();
        (status, serde_json::from_slice::<Value>(&answer.payload).unwrap())
    };
    // Every error lists all commands there are, twice.
    let many: Value = (0..1_000)
        .map(|number| if number == 7 { create("done") } else { json!({"type": "no_such_command"}) })
        .collect();
    let (status, answer) = send("many", many).await;
    assert_eq!((status, &answer["code"]), (413, &json!("answer_too_large")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("Idempotency-Key"), "{answer}");
    let (status, again) = send("many/7", create("done")).await;
    assert_eq!((status, &again["replayed"]), (201, &json!(true)), "{again}");
}

/// An API with scripted answers, which records its requests.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<VecDeque<Value>>>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

async fn scripted(State(api): State<Scripted>, Json(body): Json<Value>) -> Json<Value> {
    let count = body.as_array().unwrap().len();
    api.bodies.lock().unwrap().push(body);
    let told = api.answers.lock().unwrap().pop_front();
    let accepted = json!({"status": "accepted", "replayed": false, "position": "org_x:1"});
    Json(told.unwrap_or_else(|| vec![accepted; count].into()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_sends_again_what_lost_a_race_and_what_waits_behind_it() {
    let api = Scripted::default();
    let accepted = json!({"status": "accepted", "replayed": false, "position": "org_x:1"});
    let refused = |status: u16, code: &str| json!({"status": "refused", "error": {"status": status, "code": code, "detail": code, "retry_after_ms": 1}});
    let lost = json!([refused(409, "contention"), accepted, refused(503, "unavailable"), accepted]);
    api.answers.lock().unwrap().push_back(lost);
    let router = Router::new().route("/v1/organizations/{org}/commands", post(scripted)).with_state(api.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let org = OrgId::fresh(1, [1; 10]);
    let line = |number: &str| format!("{{\"type\": \"create_record\", \"data\": {{\"a\": {number}}}}}");
    let too_long = format!("{{\"a\": \"{}\"}}", "x".repeat(2_000_000));
    let file = [
        format!("\u{feff}{}", line("1.10")),
        "{oops}".to_owned(),
        line("2"),
        too_long,
        line("18446744073709551616"),
        line("3"),
        line("4"),
    ];
    let dir = crate::support::TempDir::new();
    let path = dir.path().join("commands.ndjson");
    std::fs::write(&path, file.join("\n")).unwrap();
    let publish = async |more: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_orgstream"));
        command.args(["publish", path.to_str().unwrap(), "--json", "--org", &org.to_string()]).args(more);
        command.env("ORGSTREAM_URL", &url).env("ORGSTREAM_API_KEY", "key").stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
    };
    let said = publish(&[]).await;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    let totals: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((&totals["accepted"], &totals["refused"]), (&json!(4), &json!(3)), "{totals} {text}");
    for (number, why) in [(2, "malformed_body"), (4, "payload_too_large"), (5, "/data/a")] {
        let line = text.lines().find(|line| line.starts_with(&format!("line {number}: ")));
        assert!(line.is_some_and(|line| line.contains(why)), "{text}");
    }
    let values = |body: &Value| -> Vec<String> {
        body.as_array().unwrap().iter().map(|line| line["command"]["data"]["a"].to_string()).collect()
    };
    let bodies = api.bodies.lock().unwrap().clone();
    assert_eq!(bodies.iter().map(values).collect::<Vec<_>>(), [vec!["1.1", "2", "3", "4"], vec!["1.1", "3"]]);
    let key = |line: &Value| line["idempotency_key"].clone();
    assert_eq!((key(&bodies[0][0]), key(&bodies[0][2])), (key(&bodies[1][0]), key(&bodies[1][1])));
    // From a line on, under the same keys.
    publish(&["--from", "6"]).await;
    let last = api.bodies.lock().unwrap().last().cloned().unwrap();
    assert_eq!((values(&last), key(&last[0])), (vec!["3".to_owned(), "4".to_owned()], key(&bodies[0][2])));
    serving.abort();
}
