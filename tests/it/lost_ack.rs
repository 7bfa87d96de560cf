//! A lost acknowledgement: whoever sends a command again under its idempotency key gets one effect and the same answer,
//! whatever happened in between and whichever process answers.

use std::{sync::Arc, time::Duration};

use orgstream::{
    auth::{Authenticator, key::Pepper},
    commands::{
        Command,
        handler::{CommandHandler, Request},
    },
    gateway::{Gateway, Origin},
};
use orgstream_events::{CommandId, PLATFORM_ORG, Pipeline};
use orgstream_projections::BoundOrg;
use orgstream_stream::{Log, LogOptions, SyncMode};
use orgstream_workers::{Worker, WorkerOptions};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cluster::{Answer, Cluster, ClusterOptions, PATIENCE, create},
    history::History,
    support::{Nats, database},
};

/// An answer without what says that it is a repetition.
fn told(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    assert!(body.as_object_mut().unwrap().remove("replayed").unwrap().is_boolean());
    body
}

fn is_replayed(answer: &Answer) -> bool {
    answer.body["replayed"] == true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_stays_the_same_however_much_happened_since() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
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
    // What the first process remembers, and what the next one finds in the log, are the same.
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
        // Also a caller that repeats what it expected then, although it would be wrong today.
        let envelope = json!({"command": update("v2"), "idempotency_key": "v2", "expected_version": 1});
        let again = client.post(&tenant.key, &tenant.path("commands"), None, &envelope).await.expect(200);
        assert_eq!((told(&again), is_replayed(&again)), (told(&updated[0]), true));
        // And one that repeats what is refused by now: the record is archived.
        client.command(&tenant, "too-late", &update("v41")).await.expect(409);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_dies_while_commands_are_sent_costs_and_doubles_none() {
    const WRITERS: usize = 40;
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
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

/// The server's memory of message ids is short, and only saves work. What refuses a key that was used for another thing
/// for ever is the ledger.
#[tokio::test]
async fn the_ledger_remembers_a_key_when_the_server_has_forgotten_it() {
    const WINDOW: Duration = Duration::from_millis(300);
    let (nats, database) = (Nats::start(false).await, database().await);
    let options = LogOptions {
        url: nats.url.clone(),
        shards: 1,
        sync: SyncMode::Relaxed,
        duplicate_window: WINDOW,
        ..LogOptions::default()
    };
    let log = Log::connect(&options).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    let stop = CancellationToken::new();
    let worker = Worker::new(log.clone(), database.db.clone(), WorkerOptions::new(Uuid::now_v7()));
    let worker = tokio::spawn(worker.run(stop.clone()));
    let pepper = Pepper::new(b"a pepper that is long enough for a test").unwrap();
    let operator = "an operator of a platform of one test";
    let auth = Authenticator::new(database.db.clone(), pepper.clone(), Some(operator), None);
    let principal = auth.principal(Some(&format!("Bearer {operator}"))).await.unwrap();
    let access = auth.platform(&principal).unwrap();
    let gateway = Gateway::new(CommandHandler::new(log, pepper, "local".to_owned()), database.db.clone());
    let register = async |kind: &str, key: &str| {
        let command = json!({"type": "register_kind", "kind": kind, "title": kind, "visibility": "private",
            "cost": 1, "schema": {"type": "object"}});
        let command: Command = serde_json::from_value(command).unwrap();
        let request = Request { idempotency_key: Some(key.to_owned()), ..command.into() };
        gateway.submit(&access, &Origin::default(), request).await
    };
    let mut last = 0;
    for (kind, key) in [("alpha", "kept"), ("beta", "lost")] {
        last = register(kind, key).await.unwrap().position.seq;
    }
    let waited = gateway.wait_for(BoundOrg::platform(), Pipeline::ReadModels, last, PATIENCE).await.unwrap();
    assert!(waited);
    // What is waited for is the clock itself.
    sleep(2 * WINDOW).await;
    // Without its line in the ledger a key is free again: so it is not the server that refuses the other one.
    let mut superuser = PgConnection::connect(&database.owner_url).await.unwrap();
    let forget = "DELETE FROM ops.idempotency WHERE command_id = $1";
    let lost = CommandId::from_idempotency_key(PLATFORM_ORG, "lost").uuid();
    assert_eq!(sqlx::query(forget).bind(lost).execute(&mut superuser).await.unwrap().rows_affected(), 1);
    assert!(!register("gamma", "lost").await.unwrap().replayed);

    let refused = register("delta", "kept").await.unwrap_err();
    assert_eq!((refused.status, refused.code), (422, "idempotency_key_reused"));
    // The same command is the same command as ever.
    assert!(register("alpha", "kept").await.unwrap().replayed);
    stop.cancel();
    worker.await.unwrap();
}
