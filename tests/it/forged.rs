//! Access to the broker is not access to history: a message not signed by a process of ours is trusted nowhere, and a
//! signed one only in its one place.

use std::sync::Arc;

use async_nats::HeaderMap;
use orgstream_events::{
    AggregateId, Chain, Commit, CommitKeys, Event, MemberAdded, MemberEvent, MemberId, OrgId, PLATFORM_ORG, Pipeline,
    RecordEvent, RecordId, RecordUpdated, Role, UserId,
};
use orgstream_stream::{AppendError, ClaimError, Freshness, Log, LogOptions, Placement, StreamError};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, ClusterOptions, eventually},
    parking::{Intruder, commit_of, until_parked},
    support::{Nats, commit_keys},
};

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";

fn options(nats: &Nats, keys: Arc<CommitKeys>) -> LogOptions {
    LogOptions { creds: Some(nats.access.admin()), shards: 2, ..LogOptions::new(&nats.url, keys) }
}

async fn opened(nats: &Nats) -> Log {
    let log = Log::connect(&options(nats, commit_keys())).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    log
}

fn update(org: OrgId, record: RecordId, version_before: u64) -> Commit {
    let data = json!({"number": version_before});
    let event = RecordEvent::Updated(RecordUpdated {
        kind: "model".parse().unwrap(),
        kind_version: 1,
        data,
        references: vec![],
        unique: Vec::new(),
        searched: vec![],
        secrets: Vec::new(),
    });
    commit_of(org, AggregateId::Record(record), version_before, vec![Event::Record(event)])
}

/// Publishes directly, as any client of the broker could; returns the sequence.
async fn publish(log: &Log, subject: &str, headers: HeaderMap, payload: Vec<u8>) -> u64 {
    let answer = log.client().request_with_headers(subject.to_owned(), headers, payload.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    answer["seq"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

fn expecting(seq: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED, seq.to_string());
    headers
}

struct History {
    placement: Placement,
    aggregate: AggregateId,
    record: RecordId,
    subject: String,
}

impl History {
    async fn begin(log: &Log) -> Self {
        let placement = log.place(OrgId::from_uuid(Uuid::now_v7())).await.unwrap();
        let record = RecordId::from_uuid(Uuid::now_v7());
        let aggregate = AggregateId::Record(record);
        let subject = format!("ev.{}.{}.{aggregate}", placement.shard, placement.org);
        Self { placement, aggregate, record, subject }
    }

    async fn append(&self, log: &Log, version: u64, expected: u64) -> Result<u64, AppendError> {
        let commit = update(self.placement.org, self.record, version);
        log.append(&self.placement, &commit, expected, None).await.map(|appended| appended.seq)
    }

    /// Loads the whole history, in all its parts: the sequences, and the expectation for an append.
    async fn load(&self, log: &Log) -> Result<(Vec<u64>, u64, usize), StreamError> {
        let (mut seqs, mut last, mut parts) = (Vec::new(), 0, 0);
        loop {
            let part = log.load(&self.placement, &self.aggregate, last, Freshness::Leader).await?;
            seqs.extend(part.commits.iter().map(|stored| stored.seq));
            (last, parts) = (part.last, parts + 1);
            if part.ended {
                return Ok((seqs, last, parts));
            }
        }
    }
}

#[tokio::test]
async fn what_nobody_signed_is_passed_over_and_the_history_goes_on_behind_it() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let history = History::begin(&log).await;
    let first = history.append(&log, 0, 0).await.unwrap();
    let signed = log.load(&history.placement, &history.aggregate, 0, Freshness::Leader).await.unwrap();
    let original = log.replay(&history.placement, 1);
    let original = futures_util::StreamExt::next(&mut Box::pin(original)).await.unwrap().unwrap().payload.to_vec();
    let org = history.placement.org;

    // In every way that the broker accepts: unsigned, with another key under our name, a signed message repeated with
    // and without its expectation, and one that is signed for another place.
    let theirs = CommitKeys::single("tests", [1; 32]).unwrap();
    let plain = update(org, history.record, 1).encode().unwrap().to_vec();
    let foreign = theirs.sign(&history.subject, Some(first), &plain).unwrap();
    let elsewhere = log.keys().sign("ev.0.another.record.place", Some(first), &plain).unwrap();
    let mut about_another = expecting(0);
    about_another.insert("Nats-Expected-Last-Subject-Sequence-Subject", "ev.nothing.there");
    let mut last = first;
    for (headers, payload) in [
        (expecting(last), plain.clone()),
        (HeaderMap::new(), plain.clone()),
        (HeaderMap::new(), foreign),
        (HeaderMap::new(), elsewhere),
        (HeaderMap::new(), original.clone()),
        (about_another, original),
    ] {
        last = publish(&log, &history.subject, headers, payload).await;
    }
    assert_eq!(history.load(&log).await.unwrap(), (vec![first], last, 1));
    // A writer that has not seen them gets a conflict, and then appends behind them.
    assert!(matches!(history.append(&log, 1, first).await, Err(AppendError::Conflict { .. })));
    let second = history.append(&log, 1, last).await.unwrap();
    let third = history.append(&log, 2, second).await.unwrap();
    assert_eq!(history.load(&log).await.unwrap(), (vec![first, second, third], third, 1));
    let rest = log.load(&history.placement, &history.aggregate, last, Freshness::Any).await.unwrap();
    assert_eq!(rest.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), [second, third]);
    assert_eq!(signed.last, first);
}

#[tokio::test]
async fn a_process_without_the_newest_key_stops_and_does_not_guess() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let history = History::begin(&log).await;
    let first = history.append(&log, 0, 0).await.unwrap();
    let rotated: CommitKeys = format!("new:{},{}", "5a".repeat(32), crate::support::COMMIT_KEYS).parse().unwrap();
    let rotated = Log::connect(&options(&nats, Arc::new(rotated))).await.unwrap();
    let second = history.append(&rotated, 1, first).await.unwrap();
    assert_eq!(history.load(&rotated).await.unwrap(), (vec![first, second], second, 1));
    let error = history.load(&log).await.unwrap_err();
    assert!(
        matches!(&error, StreamError::Unavailable { reason, .. } if Chain(reason).to_string().contains("\"new\"")),
        "{error}"
    );
    // It cannot learn the sequence that it would need.
    assert!(matches!(history.append(&log, 1, first).await, Err(AppendError::Conflict { .. })));
}

#[tokio::test]
async fn a_long_history_is_loaded_part_by_part_and_completely() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let (history, beside) = (History::begin(&log).await, History::begin(&log).await);
    let (mut seqs, mut other) = (Vec::new(), 0);
    for version in 0..2_300 {
        let last = seqs.last().copied().unwrap_or_default();
        seqs.push(history.append(&log, version, last).await.unwrap());
        if version % 50 == 0 {
            other = beside.append(&log, version / 50, other).await.unwrap();
        }
    }
    let last = *seqs.last().unwrap();
    let (loaded, end, parts) = history.load(&log).await.unwrap();
    assert!(loaded == seqs && end == last && parts > 1, "{} commits in {parts} parts up to {end}", loaded.len());
    // A short rest of it is walked back, to the same end.
    let rest = log.load(&history.placement, &history.aggregate, seqs[2_290], Freshness::Leader).await.unwrap();
    assert_eq!(rest.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), seqs[2_291..]);
}

#[tokio::test]
async fn claims_and_placements_that_nobody_signed_count_for_nothing() {
    let nats = Nats::start(false).await;
    let log = opened(&nats).await;
    let (acme, thief) = (OrgId::from_uuid(Uuid::now_v7()), OrgId::from_uuid(Uuid::now_v7()));
    let placement = log.place(acme).await.unwrap();
    log.claim("slug", "acme", acme).await.unwrap();

    let forged = json!({"org": thief, "at": "2026-01-01T00:00:00Z"}).to_string().into_bytes();
    publish(&log, "sys.claim.slug.acme", HeaderMap::new(), forged.clone()).await;
    publish(&log, "sys.claim.slug.free", HeaderMap::new(), forged).await;
    let elsewhere = json!({"shard": 1 - placement.shard.0, "region": "local", "epoch": 9}).to_string().into_bytes();
    publish(&log, &format!("sys.placement.{acme}"), HeaderMap::new(), elsewhere.clone()).await;
    publish(&log, &format!("sys.placement.{thief}"), HeaderMap::new(), elsewhere).await;

    // A process with empty caches.
    let other = Log::connect(&options(&nats, commit_keys())).await.unwrap();
    assert_eq!(other.placement(acme).await.unwrap(), Some(placement));
    assert_eq!(other.placement(thief).await.unwrap(), None);
    assert_eq!(other.organizations().await.unwrap(), [PLATFORM_ORG, acme]);
    assert_eq!(other.claimed_by("slug", "acme").await.unwrap(), Some(acme));
    assert_eq!(other.claimed_by("slug", "free").await.unwrap(), None);
    let taken = other.claim("slug", "acme", thief).await.unwrap_err();
    assert!(matches!(taken, ClaimError::Taken { by } if by == acme), "{taken}");
    other.claim("slug", "free", acme).await.unwrap();
    assert_eq!(log.claimed_by("slug", "free").await.unwrap(), Some(acme));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_broker_makes_nobody_an_owner() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("acme").await;
    let (intruder, log) = (Intruder::of(&cluster).await, cluster.log().await);
    let aggregate = AggregateId::Member(tenant.id);
    let placement = log.placement(tenant.id).await.unwrap().unwrap();
    let history = log.load(&placement, &aggregate, 0, Freshness::Leader).await.unwrap();
    let (member_id, user_id) = (MemberId::from_uuid(Uuid::now_v7()), UserId::from_uuid(Uuid::now_v7()));
    let email = "stranger@elsewhere.example".to_owned();
    let added = Event::Member(MemberEvent::Added(MemberAdded { member_id, user_id, email, role: Role::Owner }));
    let forged = commit_of(tenant.id, aggregate.clone(), history.commits.len() as u64, vec![added]);
    let subject = aggregate.to_string();
    let seq = intruder.publish(tenant.id, &subject, history.last, forged.encode().unwrap().to_vec()).await;

    // It is parked in all pipelines, with the reason.
    let rows = until_parked(&cluster, &tenant, Pipeline::ALL.len()).await;
    assert!(rows.iter().all(|row| row["seq"] == seq), "{rows:#?}");
    assert!(rows.iter().all(|row| row["reason"].as_str().unwrap().contains("not authentic")), "{rows:#?}");
    let alarms = cluster.workers[0].metric("orgstream_forged_messages_total").await;
    assert!(alarms.is_some_and(|alarms| alarms >= 1.0), "{alarms:?}");

    // The organization continues to decide from authentic messages.
    let invite = json!({"email": "colleague@acme.example", "role": "member"});
    cluster.client.post(&tenant.owner, &tenant.path("members"), Some("colleague"), &invite).await.expect(201);
    let rows = until_parked(&cluster, &tenant, 2 * Pipeline::ALL.len()).await;
    assert_eq!(rows.iter().filter(|row| row["state"] == "waiting").count(), Pipeline::ALL.len(), "{rows:#?}");

    // A retry by any operator does not apply it; giving it up releases the messages behind it.
    let attempts = |rows: &[Value]| rows.iter().map(|row| row["attempts"].as_u64().unwrap()).sum::<u64>();
    let before = attempts(&rows);
    for pipeline in Pipeline::ALL {
        let retry = ["park", "retry", "--org", &tenant.slug, "--pipeline", pipeline.name(), &subject];
        cluster.cli(cluster.operator(), &retry).await;
    }
    eventually("all retries to fail", async || {
        let rows = until_parked(&cluster, &tenant, 2 * Pipeline::ALL.len()).await;
        (attempts(&rows) >= before + Pipeline::ALL.len() as u64).then_some(())
    })
    .await;
    for pipeline in Pipeline::ALL {
        let (name, seq) = (pipeline.name(), seq.to_string());
        let skip = ["park", "skip", "--org", &tenant.slug, "--pipeline", name, "--seq", &seq, "--reason", "forged"];
        cluster.cli(cluster.operator(), &[&skip[..], &[&subject]].concat()).await.success();
    }
    until_parked(&cluster, &tenant, 0).await;
    let emails: Vec<String> = eventually("the colleague to be a member", async || {
        let members = cluster.client.get(&tenant.owner, &tenant.path("members")).await.expect(200);
        let emails = members.body["data"].as_array().unwrap().iter().map(|member| member["email"].to_string());
        let emails: Vec<String> = emails.collect();
        emails.iter().any(|email| email.contains("colleague")).then_some(emails)
    })
    .await;
    assert!(emails.iter().all(|email| !email.contains("stranger")), "{emails:?}");
    let mut database = cluster.superuser().await;
    let audited = "SELECT count(*) FROM audit.events WHERE org_id = $1 AND seq = $2 AND ordinal >= 0";
    let audited = sqlx::query_scalar(audited).bind(tenant.id.uuid()).bind(i64::try_from(seq).unwrap());
    let audited: i64 = audited.fetch_one(&mut database).await.unwrap();
    assert_eq!(audited, 0);
}
