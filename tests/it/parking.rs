//! A message that cannot be applied is parked, with the later ones of its aggregate and nothing else, until an operator
//! decides.

use async_nats::{HeaderMap, header, jetstream};
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, Commit, CommitDraft, Context, Event, OrgId, Pipeline, RecordCreated,
    RecordEvent, RecordId, RecordUpdated, Salt, Timestamp,
};
use orgstream_stream::{Log, Placement};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, ClusterOptions, Tenant, create, eventually, seq_of},
    history::History,
};

/// A writer to the stream that bypasses every rule.
pub(crate) struct Intruder {
    jetstream: jetstream::Context,
    log: Log,
}

impl Intruder {
    pub(crate) async fn of(cluster: &Cluster) -> Self {
        Self { jetstream: jetstream::new(cluster.administrator().await), log: cluster.log().await }
    }

    async fn placement(&self, org: OrgId) -> Placement {
        self.log.placement(org).await.unwrap().unwrap()
    }

    /// Publishes bytes on the subject of an aggregate of `org`, after the message `before` there.
    pub(crate) async fn publish(&self, org: OrgId, aggregate: &str, before: u64, payload: Vec<u8>) -> u64 {
        let subject = format!("ev.{}.{org}.{aggregate}", self.placement(org).await.shard);
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, before.to_string());
        let ack = self.jetstream.publish_with_headers(subject, headers, payload.into()).await.unwrap();
        ack.await.unwrap().sequence
    }

    /// Publishes a commit as if a process of ours had accepted it: with a valid signature.
    pub(crate) async fn publish_signed(&self, org: OrgId, aggregate: &str, before: u64, commit: &Commit) -> u64 {
        let subject = format!("ev.{}.{org}.{aggregate}", self.placement(org).await.shard);
        let signed = self.log.keys().sign(&subject, Some(before), &commit.encode().unwrap()).unwrap();
        self.publish(org, aggregate, before, signed).await
    }

    /// Three updates of a record that was never created: the read models cannot apply them, the audit log can.
    pub(crate) async fn orphans(&self, org: OrgId, record: RecordId) -> Vec<u64> {
        let mut seqs = Vec::new();
        for version in 1..4 {
            let next = commit(org, record, version, vec![updated(&format!("v{}", version + 1))]);
            let before = seqs.last().copied().unwrap_or_default();
            seqs.push(self.publish_signed(org, &format!("record.{record}"), before, &next).await);
        }
        seqs
    }
}

pub(crate) fn fresh_record() -> RecordId {
    RecordId::from_uuid(Uuid::now_v7())
}

/// The commit's bytes as the program would write them.
pub(crate) fn commit(org: OrgId, record: RecordId, version_before: u64, events: Vec<RecordEvent>) -> Commit {
    let events = events.into_iter().map(Event::Record).collect();
    commit_of(org, AggregateId::Record(record), version_before, events)
}

/// A commit of any aggregate.
pub(crate) fn commit_of(org: OrgId, aggregate: AggregateId, version_before: u64, events: Vec<Event>) -> Commit {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap());
    let draft = CommitDraft {
        org,
        aggregate,
        version_before,
        command_id: CommandId::from_uuid(Uuid::now_v7()),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: now,
        recorded_at: now,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events,
    };
    draft.seal(|| Salt([7; 32])).unwrap()
}

pub(crate) fn created(name: &str) -> RecordEvent {
    let data = json!({"name": name});
    RecordEvent::Created(RecordCreated {
        kind: "model".parse().unwrap(),
        kind_version: 1,
        data,
        references: vec![],
        unique: Vec::new(),
        searched: vec![],
        secrets: vec![],
    })
}

pub(crate) fn updated(name: &str) -> RecordEvent {
    let data = json!({"name": name});
    RecordEvent::Updated(RecordUpdated {
        kind: "model".parse().unwrap(),
        kind_version: 1,
        data,
        references: vec![],
        unique: Vec::new(),
        searched: vec![],
        secrets: vec![],
    })
}

/// The operator's list, as the command line prints it for scripts.
pub(crate) async fn parked(cluster: &Cluster, tenant: &Tenant) -> Vec<Value> {
    let said = cluster.cli(cluster.operator(), &["park", "list", "--org", &tenant.slug, "--json"]).await.success();
    said.json()["data"].as_array().unwrap().clone()
}

pub(crate) async fn until_parked(cluster: &Cluster, tenant: &Tenant, count: usize) -> Vec<Value> {
    let what = format!("{count} parked messages of {}", tenant.slug);
    eventually(&what, async || {
        let rows = parked(cluster, tenant).await;
        (rows.len() == count).then_some(rows)
    })
    .await
}

pub(crate) fn states(rows: &[Value], pipeline: Pipeline) -> Vec<(u64, &str)> {
    let of_pipeline = rows.iter().filter(|row| row["pipeline"] == pipeline.name());
    of_pipeline.map(|row| (row["seq"].as_u64().unwrap(), row["state"].as_str().unwrap())).collect()
}

/// The organization continues, except for what is parked.
pub(crate) async fn goes_on(cluster: &Cluster, tenant: &Tenant, key: &str) {
    let made = cluster.client.command(tenant, key, &create(key)).await.expect(201);
    let (id, position) = (made.text("id"), made.text("position"));
    let record = tenant.path(&format!("records/{id}"));
    cluster.client.get_at(&tenant.key, &record, &position).await.expect(200);
    let audited = cluster.client.get_at(&tenant.key, &tenant.path("audit/events?limit=1"), &position).await.expect(200);
    assert_eq!(audited.body["data"][0]["aggregate"]["id"], id);
}

// S1.26
// S3.20
// The stream of A holds only what is A's; messages that claim otherwise are rejected by the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_another_organizations_is_parked_and_applied_nowhere() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (a, b) = (cluster.tenant("org-a").await, cluster.tenant("org-b").await);
    let intruder = Intruder::of(&cluster).await;
    let records: Vec<RecordId> = (0..4).map(|_| fresh_record()).collect();
    let theirs = commit(b.id, records[0], 0, vec![created("of b")]);
    // The envelope names A, and the content B.
    let mut disguised = commit(a.id, records[1], 0, vec![created("of a")]);
    disguised.events = commit(b.id, records[1], 0, vec![created("of b")]).events;
    // Everything is A's, but the aggregate is another.
    let elsewhere = commit(a.id, records[2], 0, vec![created("elsewhere")]);
    let mut seqs = Vec::new();
    for (record, commit) in [(records[0], theirs), (records[1], disguised), (records[3], elsewhere)] {
        seqs.push(intruder.publish_signed(a.id, &format!("record.{record}"), 0, &commit).await);
    }
    let garbage = b"no message of ours".to_vec();
    seqs.push(intruder.publish(a.id, &format!("record.{}", records[3]), seqs[2], garbage).await);
    // And a type of aggregate that this version does not know.
    seqs.push(intruder.publish(a.id, "spaceship.enterprise", 0, b"from the future".to_vec()).await);

    let rows = until_parked(&cluster, &a, Pipeline::ALL.len() * seqs.len()).await;
    for pipeline in Pipeline::ALL {
        let expected: Vec<(u64, &str)> =
            seqs.iter().copied().zip(["failed", "failed", "failed", "waiting", "failed"]).collect();
        assert_eq!(states(&rows, pipeline), expected, "{rows:#?}");
    }
    let reason = |seq: u64| rows.iter().find(|row| row["seq"] == seq).unwrap()["reason"].as_str().unwrap();
    for seq in &seqs[..2] {
        assert!(reason(*seq).contains(&b.id.to_string()) && reason(*seq).contains(&a.id.to_string()), "{rows:#?}");
    }
    assert!(reason(seqs[2]).contains(&records[2].to_string()), "{rows:#?}");

    // None of it is visible anywhere: not in A, not in B.
    let mut database = cluster.superuser().await;
    for record in records {
        let rows = "SELECT count(*) FROM rm.records WHERE id = $1";
        let rows: i64 = sqlx::query_scalar(rows).bind(record.uuid()).fetch_one(&mut database).await.unwrap();
        let audited = "SELECT count(*) FROM audit.events WHERE target_id = $1 AND ordinal >= 0";
        let audited: i64 = sqlx::query_scalar(audited).bind(record.to_string()).fetch_one(&mut database).await.unwrap();
        assert_eq!((rows, audited), (0, 0), "{record}");
    }
    let audited = "SELECT count(*) FROM audit.events WHERE org_id = $1 AND seq = ANY($2) AND ordinal >= 0";
    let seqs: Vec<i64> = seqs.iter().map(|seq| i64::try_from(*seq).unwrap()).collect();
    let audited: i64 =
        sqlx::query_scalar(audited).bind(a.id.uuid()).bind(&seqs).fetch_one(&mut database).await.unwrap();
    assert_eq!(audited, 0);
    // Both continue, and B is never affected.
    goes_on(&cluster, &a, "after").await;
    goes_on(&cluster, &b, "after").await;
    assert_eq!(parked(&cluster, &b).await, Vec::<Value>::new());
    History::read(&cluster.log().await, b.id).await.assert_projected(&mut database).await;
    // Except for a mark in the place of each, which records that it is missing and nothing of its content.
    let marks = cluster.client.get(&a.key, &a.path("audit/events?action=parking.parked")).await.expect(200).body;
    assert!(!marks.to_string().contains(&b.id.to_string()), "{marks:#}");
    let marks = marks["data"].as_array().unwrap().iter().rev();
    let marks: Vec<i64> = marks.map(|mark| mark["data"]["seq"].as_i64().unwrap()).collect();
    assert_eq!(marks, seqs);

    // A tenant has no access to parked messages; decisions are the operator's.
    let list = cluster.client.get(&a.key, &a.path("parked")).await;
    assert_eq!(list.status, 403, "{list:?}");
    let said = cluster.cli(&a.key, &["park", "list", "--org", &a.slug]).await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("forbidden"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_aggregate_stands_still_until_its_cause_is_mended() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("poisoned").await;
    let intruder = Intruder::of(&cluster).await;
    let (record, operator) = (fresh_record(), cluster.operator());
    let subject = format!("record.{record}");
    let seqs = intruder.orphans(tenant.id, record).await;
    let rows = until_parked(&cluster, &tenant, 3).await;
    let expected: Vec<(u64, &str)> = seqs.iter().copied().zip(["failed", "waiting", "waiting"]).collect();
    assert_eq!(states(&rows, Pipeline::ReadModels), expected);
    let reason = rows[0]["reason"].as_str().unwrap();
    assert!(reason.contains("rm.records"), "{reason}");
    assert_eq!(rows[0]["attempts"], 5, "{rows:#?}");
    assert_eq!(rows[0]["aggregate"], subject);
    let figure = cluster.workers[0].metric("orgstream_parked_total{pipeline=\"read_models\"}").await;
    assert_eq!(figure, Some(1.0));
    goes_on(&cluster, &tenant, "beside").await;

    // A retry while the cause persists changes nothing but the count.
    let table = cluster.cli(operator, &["park", "list", "--org", &tenant.slug]).await.success();
    assert!(table.stdout.contains(&subject) && table.stdout.contains("waiting"), "{table:?}");
    let retry = ["park", "retry", "--org", &tenant.slug, &subject];
    let said = cluster.cli(operator, &retry).await.failure();
    assert!(
        said.stdout.is_empty() && said.stderr.contains("rm.records") && said.stderr.contains("6 attempts"),
        "{said:?}"
    );
    let rows = parked(&cluster, &tenant).await;
    assert_eq!(states(&rows, Pipeline::ReadModels), expected);
    assert_eq!(rows[0]["attempts"], 6);
    // Messages that arrive meanwhile wait behind it.
    let last = commit(tenant.id, record, 4, vec![updated("v5")]);
    intruder.publish_signed(tenant.id, &subject, seqs[2], &last).await;
    until_parked(&cluster, &tenant, 4).await;

    // The cause is repaired: the missing row comes from a backup.
    let mut database = cluster.superuser().await;
    sqlx::query(
        "INSERT INTO rm.records (org_id, rm_version, id, kind, kind_version, data, status, created_by_type, created_by_id, version,
            created_at, created_seq, updated_at, seq)
        VALUES ($1, 1, $2, 'model', 1, '{\"name\": \"v1\"}', 'active', 'system', 'system', 1, now(), 1, now(), 1)",
    )
    .bind(tenant.id.uuid())
    .bind(record.uuid())
    .execute(&mut database)
    .await
    .unwrap();
    let said = cluster.cli(operator, &retry).await.success();
    assert!(said.stderr.contains("carried out"), "{said:?}");
    assert_eq!(parked(&cluster, &tenant).await, Vec::<Value>::new());
    // A second retry has nothing to decide, and changes nothing.
    let said = cluster.cli(operator, &retry).await.failure();
    assert!(said.stderr.contains("nothing to retry"), "{said:?}");
    let found = cluster.client.get(&tenant.key, &tenant.path(&format!("records/{record}"))).await.expect(200);
    assert_eq!((&found.body["version"], &found.body["data"]), (&json!(5), &json!({"name": "v5"})));
    goes_on(&cluster, &tenant, "afterwards").await;

    // All of it is in the audit log, the decisions too, with their actors.
    let path = tenant.path("audit/events?action=parking.retried");
    let decisions = cluster.client.get(&tenant.key, &path).await.expect(200).body;
    let decisions = decisions["data"].as_array().unwrap();
    assert_eq!(decisions.len(), 2);
    for decision in decisions {
        assert_eq!(decision["actor"]["type"], "platform_operator");
        assert_eq!(decision["data"]["aggregate"], json!({"type": "record", "id": record.to_string()}));
    }
    cluster.until_projected(&tenant).await;
    History::read(&cluster.log().await, tenant.id).await.assert_audited(&mut database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_lets_what_waits_behind_it_pass() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("skipped").await;
    let intruder = Intruder::of(&cluster).await;
    let (record, operator) = (fresh_record(), cluster.operator());
    let subject = format!("record.{record}");
    let mut seqs = vec![intruder.publish(tenant.id, &subject, 0, b"garbage".to_vec()).await];
    for (version, event) in [created("v1"), updated("v2"), updated("v3")].into_iter().enumerate() {
        let next = commit(tenant.id, record, version as u64, vec![event]);
        let before = seqs.last().copied().unwrap();
        seqs.push(intruder.publish_signed(tenant.id, &subject, before, &next).await);
    }
    let rows = until_parked(&cluster, &tenant, Pipeline::ALL.len() * seqs.len()).await;
    let expected: Vec<(u64, &str)> = seqs.iter().copied().zip(["failed", "waiting", "waiting", "waiting"]).collect();
    for pipeline in Pipeline::ALL {
        assert_eq!(states(&rows, pipeline), expected);
    }
    // It survives a crash.
    cluster.workers[0].kill9();
    cluster.workers[0].start();
    cluster.workers[0].ready().await;

    let skip = async |pipeline: &str, seq: u64, reason: &str| {
        let seq = seq.to_string();
        let args = ["park", "skip", "--org", &tenant.slug, "--pipeline", pipeline, "--seq", &seq, "--reason", reason];
        cluster.cli(operator, &[&args[..], &[&subject]].concat()).await
    };
    // A message that is not the first cannot be given up, and a decision needs its reason.
    let said = skip("read_models", seqs[1], "a slip of the finger").await.failure();
    assert!(said.stderr.contains("not the first"), "{said:?}");
    let said = skip("read_models", seqs[0], " ").await.failure();
    assert!(said.stderr.contains("/reason"), "{said:?}");
    goes_on(&cluster, &tenant, "a-slip").await;
    assert_eq!(parked(&cluster, &tenant).await.len(), Pipeline::ALL.len() * seqs.len());

    skip("read_models", seqs[0], "garbage, see incident 7").await.success();
    let said = skip("read_models", seqs[0], "garbage, see incident 7").await.failure();
    assert!(said.stderr.contains("nothing to skip"), "a second time: {said:?}");
    let rows = parked(&cluster, &tenant).await;
    assert_eq!(states(&rows, Pipeline::Audit), expected, "each pipeline has its own decisions");
    let found = cluster.client.get(&tenant.key, &tenant.path(&format!("records/{record}"))).await.expect(200);
    assert_eq!((&found.body["version"], &found.body["data"]), (&json!(3), &json!({"name": "v3"})));
    for pipeline in Pipeline::ALL.into_iter().filter(|pipeline| *pipeline != Pipeline::ReadModels) {
        skip(pipeline.name(), seqs[0], "garbage, see incident 7").await.success();
    }
    until_parked(&cluster, &tenant, 0).await;

    let events = cluster.client.get(&tenant.key, &tenant.path("audit/events?limit=100")).await.expect(200).body;
    let events: Vec<&Value> = events["data"].as_array().unwrap().iter().rev().collect();
    let of_record: Vec<u64> = events
        .iter()
        .filter(|event| event["aggregate"]["id"] == record.to_string())
        .map(|event| seq_of(&tenant, event["position"].as_str().unwrap()))
        .collect();
    assert_eq!(of_record, seqs[1..]);
    let skips: Vec<(&Value, &Value)> = events
        .iter()
        .filter(|event| event["type"] == "parking.skipped")
        .map(|event| (&event["data"]["seq"], &event["data"]["reason"]))
        .collect();
    assert_eq!(skips[..], [(&json!(seqs[0]), &json!("garbage, see incident 7")); Pipeline::ALL.len()]);
    // Numbered without a gap: in the place of the message that was given up there is a mark.
    let numbers: Vec<u64> = events.iter().map(|event| event["idx"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
}
