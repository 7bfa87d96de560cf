//! A lost acknowledgement: a client that retries a command under its idempotency key gets one effect and the same
//! answer, whatever happened in between and whichever process answers.

use std::{sync::Arc, time::Duration};

use async_nats::client::Request as NatsRequest;
use futures_util::future::join_all;
use orgstream::{
    adapters::dns::SystemDns,
    app::{
        access_log::AccessLog,
        submit::{Gateway, Origin},
    },
    auth::{Authenticator, issuers::Issuers, operators::Operators, session::Lifetime},
    commands::{handler::CommandHandler, request::Request},
    limits::{
        command_rate::{Admission, PlanRates},
        hourly::{HourlyLimits, Quotas},
    },
    peers::alone,
};
use orgstream_domain::{Command, credentials::key::Pepper};
use orgstream_events::{CommandId, PLATFORM_ORG, Pipeline, PlanName};
use orgstream_projections::BoundOrg;
use orgstream_stream::{Log, LogOptions, SyncMode};
use orgstream_workers::{Worker, WorkerOptions};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cluster::{Answer, Client, Cluster, ClusterOptions, PATIENCE, Tenant, create, eventually},
    history::History,
    support::{Nats, commit_keys, database},
};

/// An answer without the marks of a repetition.
fn told(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    assert!(body.as_object_mut().unwrap().remove("replayed").unwrap().is_boolean());
    body
}

fn is_replayed(answer: &Answer) -> bool {
    answer.body["replayed"] == true
}

async fn by_nats(nats: &async_nats::Client, tenant: &Tenant, key: &str, command: &Value) -> Answer {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Authorization", format!("Bearer {}", tenant.key));
    headers.insert("Idempotency-Key", key);
    let payload = serde_json::to_vec(command).unwrap().into();
    let request = NatsRequest::new().headers(headers).payload(payload).timeout(Some(PATIENCE));
    let answer = nats.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
    let status = answer.headers.unwrap().get("Orgstream-Status").unwrap().as_str().parse().unwrap();
    let body = serde_json::from_slice(&answer.payload).unwrap();
    Answer { status, headers: reqwest::header::HeaderMap::new(), body }
}

/// Sends the same command twenty times at once, through two APIs and through NATS.
async fn twenty_times(
    cluster: &Cluster,
    second: &Client,
    nats: &async_nats::Client,
    tenant: &Tenant,
    key: &str,
    command: &Value,
) -> Vec<Answer> {
    let sent = (0..20).map(async |number| match number % 3 {
        0 => cluster.client.command(tenant, key, command).await,
        1 => second.command(tenant, key, command).await,
        _ => by_nats(nats, tenant, key, command).await,
    });
    let answers = join_all(sent).await;
    for answer in &answers {
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        assert_eq!(told(answer), told(&answers[0]));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_at_once_have_one_effect_and_one_answer() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let mut second = cluster.second_api();
    second.ready().await;
    let (client, nats) = (cluster.client.of(&second), cluster.producer().await);
    let tenant = cluster.tenant("twenty").await;

    let mut commands = vec![("create", create("one"))];
    let first = twenty_times(&cluster, &client, &nats, &tenant, "create", &commands[0].1).await;
    assert_eq!(first.iter().filter(|answer| !is_replayed(answer)).count(), 1, "{first:?}");
    let id = first[0].text("id");
    commands.push(("update", json!({"type": "update_record", "id": id, "data": {"name": "two"}})));
    commands.push(("rename", json!({"type": "rename_organization", "name": "Twenty"})));
    commands.push(("issue", json!({"type": "issue_api_key", "name": "more", "role": "member"})));
    commands.push(("archive", json!({"type": "archive_record", "id": id})));
    let space = json!({"type": "create_record", "kind": "space", "data": {"name": "one"}});
    let space_id = twenty_times(&cluster, &client, &nats, &tenant, "space", &space).await[0].text("id");
    commands.push(("call", json!({"type": "update_record", "id": space_id, "data": {"name": "two"}})));
    commands.push(("close", json!({"type": "archive_record", "id": space_id})));
    commands.push(("space", space));
    for (key, command) in &commands[1..] {
        let answers = twenty_times(&cluster, &client, &nats, &tenant, key, command).await;
        let first = usize::from(*key != "space");
        assert_eq!(answers.iter().filter(|answer| !is_replayed(answer)).count(), first, "{key}: {answers:?}");
        // The token of a new key too: a client that lost it gets the same one again.
        assert_eq!(answers[0].body["token"].is_string(), *key == "issue");
    }

    // A client that gets no answer to the creation of an organization retries, and has created one. When all retry at
    // once, no answer may be the first.
    let owner = cluster.person("impatient@example.com");
    let body = json!({"name": "Once", "slug": "once"});
    let found = async |number| {
        let api = if number % 2 == 0 { &cluster.client } else { &client };
        api.post(&owner, "/v1/organizations", Some("found"), &body).await.expect(201)
    };
    let made = join_all((0..20).map(found)).await;
    assert!(made.iter().all(|answer| told(answer) == told(&made[0])), "{made:?}");
    assert!(made.iter().filter(|answer| !is_replayed(answer)).count() <= 1, "{made:?}");
    let body_of_another = json!({"name": "Twice", "slug": "twice"});
    let twice =
        async || cluster.client.post(&owner, "/v1/organizations", Some("twice"), &body_of_another).await.expect(201);
    let (alone, repeated) = (twice().await, twice().await);
    assert_eq!((is_replayed(&alone), is_replayed(&repeated)), (false, true));
    assert_eq!(told(&alone), told(&repeated));

    // After caches are lost, and after all of them are, the answers are the same.
    second.kill9();
    second.start();
    cluster.api.kill9();
    cluster.api.start();
    second.ready().await;
    cluster.ready().await;
    for (key, command) in &commands {
        let again = cluster.client.command(&tenant, key, command).await;
        assert!(is_replayed(&again), "{key}: {again:?}");
        let elsewhere = client.command(&tenant, key, command).await;
        assert_eq!(elsewhere.body, again.body);
        if *key == "create" {
            assert_eq!(told(&again), told(&first[0]));
        }
    }
    let again = cluster.client.post(&owner, "/v1/organizations", Some("found"), &body).await.expect(201);
    assert_eq!((told(&again), is_replayed(&again)), (told(&made[0]), true));

    let log = cluster.log().await;
    let history = History::read(&log, tenant.id).await;
    history.assert_sound();
    for (key, _) in &commands {
        let command = CommandId::from_idempotency_key(tenant.id, key);
        // A name is taken and freed together with the record's own commit.
        let commits = match *key {
            "space" | "close" => 2,
            "call" => 3,
            _ => 1,
        };
        assert_eq!(history.commands().get(&command).map(Vec::len), Some(commits), "{key}");
    }
    cluster.until_projected(&tenant).await;
    history.assert_projected(&mut cluster.superuser().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_stays_the_same_however_much_happened_since() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("later").await;
    let client = cluster.client.clone();
    let created = client.command(&tenant, "create", &create("v1")).await.expect(201);
    let id = created.text("id");
    let update = |name: &str| json!({"type": "update_record", "id": id, "data": {"name": name}});
    let mut updated = Vec::new();
    for version in 2..=40 {
        let answer = client.command(&tenant, &format!("v{version}"), &update(&format!("v{version}"))).await.expect(200);
        assert_eq!(answer.body["version"], version);
        updated.push(answer);
    }
    let archive = json!({"type": "archive_record", "id": id});
    client.command(&tenant, "archive", &archive).await.expect(200);
    // The first process's cache, and the next one's result from the log, are the same.
    for restarted in [false, true] {
        if restarted {
            cluster.api.kill9();
            cluster.api.start();
            cluster.ready().await;
        }
        let again = client.command(&tenant, "create", &create("v1")).await.expect(201);
        assert_eq!((told(&again), is_replayed(&again)), (told(&created), true));
        for (place, first) in updated.iter().enumerate().step_by(13) {
            let name = format!("v{}", place + 2);
            let again = client.command(&tenant, &name, &update(&name)).await.expect(200);
            assert_eq!((told(&again), is_replayed(&again)), (told(first), true));
        }
        // Also a caller that repeats its original expectation, although it would be wrong today.
        let envelope = json!({"command": update("v2"), "idempotency_key": "v2", "expected_version": 1});
        let again = client.post(&tenant.key, &tenant.path("commands"), None, &envelope).await.expect(200);
        assert_eq!((told(&again), is_replayed(&again)), (told(&updated[0]), true));
        // And one that repeats a command that is rejected by now: the record is archived.
        client.command(&tenant, "too-late", &update("v41")).await.expect(409);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_dies_while_commands_are_sent_costs_and_doubles_none() {
    const WRITERS: usize = 40;
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = Arc::new(cluster.tenant("dying").await);
    let record = cluster.client.command(&tenant, "the-record", &create("0")).await.expect(201).text("id");
    let commands_of = |round: usize| -> Vec<(String, Value)> {
        (0..WRITERS)
            .map(|writer| {
                let key = format!("{round}/{writer}");
                // One in eight is about the one record that all of them change.
                let update = json!({"type": "update_record", "id": record, "data": {"name": key}});
                (key.clone(), if writer % 8 == 0 { update } else { create(key) })
            })
            .collect()
    };
    let (mut sent, mut replayed) = (Vec::new(), 0);
    for round in 0..6 {
        let commands = commands_of(round);
        let writers: Vec<_> = commands
            .iter()
            .cloned()
            .map(|(key, command)| {
                let (client, tenant) = (cluster.client.clone(), Arc::clone(&tenant));
                tokio::spawn(async move { client.command(&tenant, &key, &command).await })
            })
            .collect();
        // Somewhere in the middle of it: a commit is stored some milliseconds after it was sent.
        sleep(Duration::from_millis(rand::random_range(0..25))).await;
        cluster.nats.kill9().await;
        cluster.nats.restart().await.unwrap();
        for ((key, command), writer) in commands.into_iter().zip(writers) {
            let answer = writer.await.unwrap();
            assert!(matches!(answer.status, 200 | 201), "{key}: {answer:?}");
            replayed += usize::from(is_replayed(&answer));
            sent.push((key, command, answer));
        }
    }
    eprintln!("{} commands, of which {replayed} were found to be there already", sent.len());
    for (key, command, first) in &sent {
        let again = cluster.client.command(&tenant, key, command).await;
        assert_eq!((again.status, told(&again), is_replayed(&again)), (first.status, told(first), true), "{key}");
    }
    let history = History::read(&cluster.log().await, tenant.id).await;
    history.assert_sound();
    for (key, ..) in &sent {
        let command = CommandId::from_idempotency_key(tenant.id, key);
        assert_eq!(history.commands().get(&command).map(Vec::len), Some(1), "{key}");
    }
    assert_eq!(history.records().len(), 1 + 6 * WRITERS * 7 / 8);
    cluster.until_projected(&tenant).await;
    history.assert_projected(&mut cluster.superuser().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_belongs_to_one_command_of_one_organization() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let (tenant, other) = (cluster.tenant("key").await, cluster.tenant("other").await);
    let client = cluster.client.clone();
    let created = client.command(&tenant, "k", &create("one")).await.expect(201);
    let bystander = client.command(&tenant, "bystander", &create("bystander")).await.expect(201);
    let update = |id: &str, name: &str| json!({"type": "update_record", "id": id, "data": {"name": name}});
    let others = [
        ("another body", create("two")),
        ("another command on what it made", update(&created.text("id"), "two")),
        ("a command on another record", update(&bystander.text("id"), "two")),
        ("another aggregate", json!({"type": "rename_organization", "name": "two"})),
        ("one that makes a key", json!({"type": "issue_api_key", "name": "two", "role": "viewer"})),
    ];
    let is_refused = |what: &str, answer: &Value, code: &str| {
        assert_eq!(answer["code"], code, "{what}: {answer}");
    };
    // At once, while only the log knows of the first; when the ledger does; and when all caches are empty.
    for state in ["at once", "projected", "restarted"] {
        if state != "at once" {
            cluster.until_projected(&tenant).await;
        }
        if state == "restarted" {
            cluster.api.kill9();
            cluster.api.start();
            cluster.ready().await;
        }
        for (what, command) in &others {
            let answer = client.command(&tenant, "k", command).await;
            is_refused(what, &answer.body, "idempotency_key_reused");
            assert_eq!(answer.status, 422, "{what}, {state}: {answer:?}");
        }
        // Of one request, the first command with a key has it.
        let many = json!([
            {"command": create("a"), "idempotency_key": format!("many-{state}").replace(' ', "-")},
            {"command": create("b"), "idempotency_key": format!("many-{state}").replace(' ', "-")},
            {"command": create("two"), "idempotency_key": "k"},
            {"command": create("bystander"), "idempotency_key": "bystander"},
        ]);
        let outcomes = client.post(&tenant.key, &tenant.path("commands"), None, &many).await.expect(200).body;
        assert_eq!(outcomes[0]["status"], "accepted", "{outcomes}");
        is_refused(state, &outcomes[1]["error"], "idempotency_key_reused");
        is_refused(state, &outcomes[2]["error"], "idempotency_key_reused");
        assert_eq!(outcomes[3]["replayed"], true, "{outcomes}");
    }
    // Another organization's keys are its own.
    let elsewhere = client.command(&other, "k", &create("two")).await.expect(201);
    assert_eq!(elsewhere.body["replayed"], false);
    assert_ne!(elsewhere.text("command_id"), created.text("command_id"));
    let history = History::read(&cluster.log().await, tenant.id).await;
    history.assert_sound();
    assert_eq!(history.records().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_does_not_overtake_one_before_it_whose_effect_is_open() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("order").await;
    let made = cluster.client.command(&tenant, "made", &create("one")).await.expect(201);
    let update = |name: &str| json!({"type": "update_record", "id": made.text("id"), "data": {"name": name}});
    let plan = json!([
        {"command": update("two"), "idempotency_key": "two", "expected_version": 1},
        {"command": update("three"), "idempotency_key": "three"},
        {"command": {"type": "archive_record", "id": made.text("id")}, "idempotency_key": "four"},
    ]);
    let send = async || {
        let request = cluster.client.request(reqwest::Method::POST, &tenant.path("commands"), &tenant.key);
        Answer::of(request.json(&plan)).await.unwrap().body
    };
    cluster.nats.kill9().await;
    let outcomes = send().await;
    let is_tried = |place: usize| !outcomes[place]["error"]["detail"].as_str().unwrap().starts_with("Not tried");
    assert_eq!([0, 1, 2].map(is_tried), [true, false, false], "{outcomes}");
    cluster.nats.restart().await.unwrap();
    let outcomes = eventually("the commands to get through", async || {
        let outcomes = send().await;
        outcomes[2]["error"].is_null().then_some(outcomes)
    })
    .await;
    let versions: Vec<u64> = (0..3).map(|place| outcomes[place]["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 3, 4], "{outcomes}");
}

/// The server's memory of message ids is short, and only saves work. The ledger rejects a key that was used for another
/// aggregate for ever.
#[tokio::test]
async fn the_ledger_remembers_a_key_when_the_server_has_forgotten_it() {
    const WINDOW: Duration = Duration::from_millis(300);
    let (nats, database) = (Nats::start(false).await, database().await);
    let options = LogOptions {
        creds: Some(nats.access.admin()),
        shards: 1,
        sync: SyncMode::Relaxed,
        duplicate_window: WINDOW,
        ..LogOptions::new(&nats.url, commit_keys())
    };
    let log = Log::connect(&options).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    let stop = CancellationToken::new();
    let worker = Worker::new(log.clone(), database.db.clone(), WorkerOptions::new(Uuid::now_v7()));
    let worker = tokio::spawn(worker.run(stop.clone()));
    let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
    let operator = "an operator of a platform of one test";
    let lifetime = Lifetime { idle: Duration::from_secs(60), longest: Duration::from_secs(60), most: 100 };
    let auth = Authenticator::new(
        database.db.clone(),
        log.clone(),
        pepper.clone(),
        Operators::with_token(Some(operator)),
        Issuers::default(),
        lifetime,
    );
    let principal = auth.principal(Some(&format!("Bearer {operator}"))).await.unwrap();
    let access = auth.platform(&principal).unwrap();
    let notes = AccessLog::start(log.clone(), database.db.clone());
    let handler = CommandHandler::new(log, pepper, "local".to_owned(), Arc::new(SystemDns));
    let admission = Admission::new(PlanRates::default(), alone().1);
    let quotas = Quotas::new(HourlyLimits::new(0, 0), alone().1);
    let gateway =
        Gateway::new(handler, Arc::new(auth), database.db.clone(), notes, admission, quotas, PlanName::public());
    let register = async |kind: &str, key: &str| {
        let command = json!({"type": "register_kind", "kind": kind, "title": kind, "visibility": "private",
            "cost": 1, "schema": {"type": "object"}});
        let command = Command::read(command).unwrap();
        let request = Request { idempotency_key: Some(key.to_owned()), ..command.into() };
        gateway.submit(&access, &Origin::default(), request).await
    };
    let mut last = 0;
    for (kind, key) in [("alpha", "kept"), ("beta", "lost")] {
        last = register(kind, key).await.unwrap().position.seq;
    }
    let waited = gateway.wait_for(BoundOrg::platform(), Pipeline::ReadModels, last, PATIENCE).await.unwrap();
    assert!(waited);
    // The wait is for the clock itself.
    sleep(2 * WINDOW).await;
    // Without its row in the ledger a key is free again: so it is not the server that rejects the other one.
    let mut superuser = PgConnection::connect(&database.owner_url).await.unwrap();
    let forget = "DELETE FROM ops.idempotency WHERE command_id = $1";
    let lost = CommandId::from_idempotency_key(PLATFORM_ORG, "lost").uuid();
    assert_eq!(sqlx::query(forget).bind(lost).execute(&mut superuser).await.unwrap().rows_affected(), 1);
    assert!(!register("gamma", "lost").await.unwrap().replayed);

    let refused = register("delta", "kept").await.unwrap_err();
    assert_eq!((refused.status, refused.code), (422, "idempotency_key_reused"));
    // The same command is still recognized.
    assert!(register("alpha", "kept").await.unwrap().replayed);
    stop.cancel();
    worker.await.unwrap();
}
