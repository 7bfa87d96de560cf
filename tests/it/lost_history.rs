//! A log whose storage was restored from an older copy: every process detects it, for ever, and nothing is written over
//! lost sequences; and the operator's remedies.

use std::{fs, path::Path, process::Command};

use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, Commit, CommitDraft, Context, Event, OrgId, RecordCreated, RecordEvent,
    RecordId, Salt, Timestamp,
};
use orgstream_stream::{AppendError, Log, StreamName};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    cluster::{Answer, Cluster, ClusterOptions, Program, Said, Tenant, create, eventually, seq_of},
    history::{History, digests},
};

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Makes a copy of the streams, as a backup does.
async fn keep_copy(cluster: &mut Cluster, name: &str) {
    cluster.nats.kill9().await;
    copy(&cluster.dir().join("nats/jetstream"), &cluster.dir().join(name));
    cluster.nats.restart().await.unwrap();
}

/// Restores the copy in place of the streams.
async fn bring_back(cluster: &mut Cluster, name: &str) {
    cluster.nats.kill9().await;
    copy(&cluster.dir().join(name), &cluster.dir().join("nats/jetstream"));
    cluster.nats.restart().await.unwrap();
}

/// Sends so many commands; returns the sequences of their commits.
async fn commands(cluster: &Cluster, tenant: &Tenant, name: &str, count: usize) -> Vec<u64> {
    let mut places = Vec::with_capacity(count);
    for number in 0..count {
        let key = format!("{name}-{number}");
        let made = cluster.client.command(tenant, &key, &create(&key)).await.expect(201);
        places.push(seq_of(tenant, &made.text("position")));
    }
    places
}

async fn stream_of(cluster: &Cluster, tenant: &Tenant) -> StreamName {
    StreamName::Shard(cluster.log().await.placement(tenant.id).await.unwrap().unwrap().shard)
}

async fn until_remembered(database: &mut PgConnection, stream: StreamName, seq: u64) {
    eventually("the last message to be remembered", async || {
        let known = sqlx::query_scalar("SELECT max(seq) FROM ops.histories WHERE stream = $1").bind(stream.to_string());
        let known: Option<i64> = known.fetch_one(&mut *database).await.unwrap();
        (known >= i64::try_from(seq).ok()).then_some(())
    })
    .await;
}

/// Sends a command until the API reports that the log lost data. It must never report it as accepted.
async fn until_refused(cluster: &Cluster, tenant: &Tenant, what: &str) {
    eventually("the API to refuse commands", async || {
        let request = cluster.client.request(Method::POST, &tenant.path("commands"), &tenant.key);
        let answer = Answer::of(request.json(&create(what))).await?;
        assert_eq!(answer.status, 503, "{answer:?}");
        (answer.body["code"] == "history_lost").then_some(())
    })
    .await;
}

/// Waits for the record in the database, which informs all processes, once a second.
async fn until_written_down(database: &mut PgConnection, stream: StreamName) {
    eventually("the loss to be written down", async || {
        let lost =
            sqlx::query_scalar("SELECT lost IS NOT NULL FROM ops.histories WHERE stream = $1").bind(stream.to_string());
        lost.fetch_one(&mut *database).await.unwrap_or(false).then_some(())
    })
    .await;
}

async fn until_it_says_so(program: &Program) {
    eventually(&format!("{} to say that the log lost data", program.name), async || {
        let (status, body) = program.readiness().await?;
        (status == 503 && body.to_string().contains("the log lost data")).then_some(())
    })
    .await;
}

/// An operator's command, with the rights to append.
async fn history(cluster: &Cluster, args: &[&str]) -> Said {
    let creds = cluster.nats.access.serve();
    let command = cluster.command(cluster.operator(), &[&["history"], args].concat());
    command.env("ORGSTREAM_NATS_CREDS", creds.to_str().unwrap()).run().await
}

async fn stop(cluster: &mut Cluster) {
    cluster.api.stop().await;
    cluster.workers[0].stop().await;
}

async fn start(cluster: &mut Cluster) {
    cluster.api.start();
    cluster.workers[0].start();
    cluster.ready().await;
}

/// A commit of a process unaware of the history.
fn commit(org: OrgId, number: u64) -> Commit {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    let time = Timestamp::from_unix_ms(1_700_000_000_000);
    let draft = CommitDraft {
        org,
        aggregate: AggregateId::Record(RecordId::fresh(1_700_000_000_000, bytes)),
        version_before: 0,
        command_id: CommandId::fresh(1_700_000_000_000, bytes),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: time,
        recorded_at: time,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events: vec![Event::Record(RecordEvent::Created(RecordCreated {
            kind: "model".parse().unwrap(),
            kind_version: 1,
            data: json!({"name": number.to_string()}),
            references: Vec::new(),
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
        }))],
    };
    draft.seal(|| Salt([7; 32])).unwrap()
}

async fn append(log: &Log, tenant: &Tenant, number: u64) -> Result<u64, AppendError> {
    let placement = log.placement(tenant.id).await.unwrap().unwrap();
    Ok(log.append(&placement, &commit(tenant.id, number), 0, None).await?.seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_came_back_from_an_older_copy_is_known_as_that_however_far_it_grows() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("older").await;
    let stream = stream_of(&cluster, &tenant).await;
    let mut database = cluster.superuser().await;
    // A process that only appends, and whose log handle outlives all of it.
    let witness = cluster.log().await;
    commands(&cluster, &tenant, "kept", 5).await;
    keep_copy(&mut cluster, "copy").await;
    let lost = commands(&cluster, &tenant, "lost", 6).await;
    let last = eventually("the other process to append", async || append(&witness, &tenant, 1).await.ok()).await;
    cluster.until_projected(&tenant).await;
    until_remembered(&mut database, stream, last).await;
    let before = digests(&mut database).await;

    bring_back(&mut cluster, "copy").await;
    until_refused(&cluster, &tenant, "after").await;
    eventually("the other process to be refused", async || match append(&witness, &tenant, 2).await {
        Ok(seq) => panic!("{seq} was given out again"),
        Err(error) => matches!(error, AppendError::Lost { .. }).then_some(()),
    })
    .await;
    for program in [&cluster.api, &cluster.workers[0]] {
        until_it_says_so(program).await;
        assert!(program.log_text().lines().any(|line| line.contains("ERROR") && line.contains("the log lost data")));
        assert!(program.metric("orgstream_streams_lost_total").await >= Some(1.0), "{}", program.name);
    }
    let projections = cluster.client.get(&tenant.key, &tenant.path("projections")).await.expect(200);
    assert!(projections.body["lost"].is_string(), "{projections:?}");
    let lag = cluster.cli(cluster.operator(), &["lag", "--all"]).await.success();
    assert!(lag.stderr.contains("the log lost data") && !lag.stdout.contains("nothing is behind"), "{lag:?}");

    // A process unaware of the history continues, past everything that was ever acknowledged.
    let ignorant = cluster.log().await;
    let mut number = 100;
    // Each append takes one sequence.
    while append(&ignorant, &tenant, number).await.unwrap() <= last + 3 {
        number += 1;
        assert!(number < 100 + last + 4, "its sequences do not grow");
    }
    until_refused(&cluster, &tenant, "past").await;
    stop(&mut cluster).await;
    cluster.api.start();
    assert!(!cluster.api.ended().await.success());
    assert!(cluster.api.log_text().contains("the log lost data"));
    cluster.workers[0].start();
    until_it_says_so(&cluster.workers[0]).await;
    let config = cluster.cli(cluster.operator(), &["check-config"]).await.failure();
    assert!(config.stdout.contains("the log lost data"), "{config:?}");
    assert_eq!(digests(&mut database).await, before, "something of the other history was applied");

    // The loss is named, and no remedy is chosen by mistake.
    let listed = history(&cluster, &["list"]).await.failure();
    for seq in &lost {
        assert!(listed.stdout.contains(&format!("{}:{seq} ", tenant.id)), "{listed:?}");
    }
    let name = stream.to_string();
    let refused = history(&cluster, &["refill", &name]).await.failure();
    assert!(refused.stderr.contains("a worker is running"), "{refused:?}");
    cluster.workers[0].stop().await;
    let refused = history(&cluster, &["refill", &name]).await.failure();
    assert!(refused.stderr.contains("has gone on since it came back"), "{refused:?}");
    history(&cluster, &["accept", &name]).await.failure();

    // The copy once more, and this time nothing is appended before it is filled up.
    bring_back(&mut cluster, "copy").await;
    let filled = history(&cluster, &["refill", &name]).await.success();
    assert!(filled.stdout.contains("messages are back where they were; 0 are in no audit log"), "{filled:?}");
    history(&cluster, &["list"]).await.success();
    start(&mut cluster).await;
    assert_eq!(commands(&cluster, &tenant, "lost", 6).await, lost, "the same answers as the first time");
    let new = commands(&cluster, &tenant, "new", 1).await;
    assert!(new[0] > last);
    cluster.until_projected(&tenant).await;
    let read = History::read(&cluster.log().await, tenant.id).await;
    assert_eq!(read.records().len(), 5 + 6 + 1 + 1);
    read.assert_projected(&mut database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_copy_can_be_brought_back_and_what_nobody_has_can_be_given_up() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("better").await;
    let stream = stream_of(&cluster, &tenant).await;
    let name = stream.to_string();
    let mut database = cluster.superuser().await;
    commands(&cluster, &tenant, "kept", 2).await;
    keep_copy(&mut cluster, "older").await;
    let lost = commands(&cluster, &tenant, "lost", 3).await;
    cluster.until_projected(&tenant).await;
    keep_copy(&mut cluster, "better").await;
    until_remembered(&mut database, stream, lost[2]).await;

    bring_back(&mut cluster, "older").await;
    until_refused(&cluster, &tenant, "after").await;
    until_written_down(&mut database, stream).await;
    stop(&mut cluster).await;
    bring_back(&mut cluster, "better").await;
    let accepted = history(&cluster, &["accept", &name]).await.success();
    assert!(accepted.stdout.contains("again"), "{accepted:?}");
    let nothing = history(&cluster, &["accept", &name]).await.failure();
    assert!(nothing.stderr.contains("nothing is to be decided"), "{nothing:?}");
    start(&mut cluster).await;
    let more = commands(&cluster, &tenant, "more", 1).await;
    cluster.until_projected(&tenant).await;
    History::read(&cluster.log().await, tenant.id).await.assert_projected(&mut database).await;
    until_remembered(&mut database, stream, more[0]).await;

    bring_back(&mut cluster, "older").await;
    until_refused(&cluster, &tenant, "after").await;
    until_written_down(&mut database, stream).await;
    stop(&mut cluster).await;
    let given_up = history(&cluster, &["accept", &name, "--lossy"]).await.success();
    for seq in lost.iter().chain(&more) {
        assert!(given_up.stdout.contains(&format!("{}:{seq} ", tenant.id)), "{given_up:?}");
    }
    start(&mut cluster).await;
    // No sequence is assigned twice, and new events are applied.
    let new = commands(&cluster, &tenant, "new", 1).await;
    assert!(new[0] > more[0], "{new:?}");
    let made: Value = cluster.client.command(&tenant, "new-0", &create("new-0")).await.expect(201).body;
    let path = tenant.path(&format!("records/{}", made["id"].as_str().unwrap()));
    let read = cluster.client.get_at(&tenant.key, &path, made["position"].as_str().unwrap()).await.expect(200);
    assert_eq!(read.body["data"], json!({"name": "new-0"}));
    let lag = cluster.cli(cluster.operator(), &["lag", "--all"]).await.success();
    assert!(lag.stdout.contains("nothing is behind") && !lag.stderr.contains("organization's"), "{lag:?}");
}
