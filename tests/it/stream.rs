//! The log against a real nats-server: the guarantees of appends, reads, tails and cursors, through crashes too.

use std::{collections::HashSet, time::Duration};

use futures_util::{StreamExt, future::join_all, pin_mut};
use orgstream_events::{
    AccessEvent, Actor, ActorType, AggregateId, BreakGlassClosed, CodecError, CommandId, Commit, CommitDraft, Context,
    Event, Fingerprint, OrgId, RecordArchived, RecordEvent, RecordId, Salt, Timestamp,
};
use orgstream_stream::{
    AppendError, Appended, ClaimError, CursorError, Expected, Freshness, Log, LogOptions, Placement, ReadLimit,
    StreamError, SyncMode, preflight,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    cluster::eventually,
    support::{Nats, commit_keys},
};

const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub(crate) fn options(nats: &Nats) -> LogOptions {
    let options = LogOptions::new(&nats.url, commit_keys());
    LogOptions { creds: Some(nats.access.admin()), shards: 4, sync: SyncMode::Durable, ..options }
}

fn ten_bytes(number: u64) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    bytes
}

pub(crate) fn org_number(number: u64) -> OrgId {
    OrgId::fresh(1_700_000_000_000, ten_bytes(number))
}

pub(crate) fn record_number(number: u64) -> RecordId {
    RecordId::fresh(1_700_000_000_000, ten_bytes(number))
}

/// Commit number `command` of an org: the same number gives the same commit.
pub(crate) fn record_commit(org: OrgId, record: RecordId, command: u64, reason: &str) -> Commit {
    let event = Event::Record(RecordEvent::Archived(RecordArchived { reason: Some(reason.to_owned()) }));
    let draft = draft(org, AggregateId::Record(record), command, vec![event]);
    CommitDraft { fingerprint: Some(Fingerprint::of(&[reason.as_bytes()])), ..draft }.seal(|| Salt([7; 32])).unwrap()
}

/// An access event of an org.
pub(crate) fn access_commit(org: OrgId, command: u64) -> Commit {
    let event = Event::Access(AccessEvent::BreakGlassClosed(BreakGlassClosed {}));
    draft(org, AggregateId::Access(org), command, vec![event]).seal(|| Salt([7; 32])).unwrap()
}

fn draft(org: OrgId, aggregate: AggregateId, command: u64, events: Vec<Event>) -> CommitDraft {
    CommitDraft {
        org,
        aggregate,
        version_before: 0,
        command_id: CommandId::fresh(1_700_000_000_000, ten_bytes(command)),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: Timestamp::from_unix_ms(1_700_000_000_000),
        recorded_at: Timestamp::from_unix_ms(1_700_000_000_000),
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events,
    }
}

pub(crate) async fn open(options: &LogOptions) -> Log {
    let log = Log::connect(options).await.unwrap();
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    log
}

async fn started(sync_always: bool) -> (Nats, Log) {
    let nats = Nats::start(sync_always).await;
    let log = open(&options(&nats)).await;
    (nats, log)
}

/// Orgs that live in the same shard as each other.
pub(crate) async fn neighbours(log: &Log, count: usize) -> Vec<Placement> {
    let first = log.place(org_number(0)).await.unwrap();
    let mut all = vec![first];
    for number in 1.. {
        if all.len() == count {
            break;
        }
        let placement = log.place(org_number(number)).await.unwrap();
        if placement.shard == all[0].shard {
            all.push(placement);
        }
    }
    all
}

pub(crate) async fn append(log: &Log, placement: &Placement, record: u64, command: u64, expected: u64) -> Appended {
    let commit = record_commit(placement.org, record_number(record), command, "x");
    log.append(placement, &commit, expected, Some(TRACE)).await.unwrap()
}

#[tokio::test]
async fn streams_are_made_once_and_a_differing_one_is_reported() {
    let (nats, log) = started(true).await;
    assert_eq!(log.ensure_streams().await.unwrap(), []);
    assert_eq!(preflight(&log, Some(&nats.monitor_url), false).await.unwrap(), []);

    let other = LogOptions { duplicate_window: Duration::from_mins(1), ..options(&nats) };
    let findings = Log::connect(&other).await.unwrap().ensure_streams().await.unwrap();
    let windows = findings.iter().filter(|finding| finding.what.contains(": duplicate_window is "));
    assert_eq!((windows.count(), findings.len()), (7, 7), "{findings:?}");
    assert_eq!(findings[0].what, "stream EV_0: duplicate_window is 120000000000, must be 60000000000");
    // It was only reported: the first configuration still holds.
    assert_eq!(log.ensure_streams().await.unwrap(), []);
}

#[tokio::test]
async fn preflight_names_unsafe_sync() {
    let (nats, log) = started(false).await;
    let findings = preflight(&log, Some(&nats.monitor_url), false).await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].to_string().contains("before they are on disk"), "{}", findings[0]);
    assert!(findings[0].fix.contains("sync_interval: always"), "{}", findings[0]);
    assert_eq!(preflight(&log, Some(&nats.monitor_url), true).await.unwrap(), []);
    assert_eq!(preflight(&log, None, false).await.unwrap().len(), 1);
    let wrong = preflight(&log, Some("http://127.0.0.1:1"), false).await.unwrap();
    assert!(wrong[0].what.contains("cannot be read"), "{}", wrong[0]);
}

#[tokio::test]
async fn an_org_is_placed_once() {
    let (nats, log) = started(false).await;
    let org = org_number(1);
    assert_eq!(log.placement(org).await.unwrap(), None);
    let placements = join_all((0..20).map(|_| log.place(org))).await;
    let first = placements[0].as_ref().unwrap();
    assert!(placements.iter().all(|placement| placement.as_ref().unwrap() == first));
    // The stored placement counts, not the number of shards in another process's options.
    let other = Log::connect(&LogOptions { shards: 64, region: "eu".to_owned(), ..options(&nats) }).await.unwrap();
    assert_eq!(other.place(org).await.unwrap(), *first);
    assert_eq!(other.placement(org).await.unwrap().as_ref(), Some(first));
    assert_eq!(log.placement(orgstream_events::PLATFORM_ORG).await.unwrap().unwrap().epoch, 1);
}

#[tokio::test]
async fn of_two_writers_with_one_expectation_one_conflicts() {
    for sync in [SyncMode::Durable, SyncMode::Relaxed] {
        let nats = Nats::start(false).await;
        let log = open(&LogOptions { sync, ..options(&nats) }).await;
        let placement = log.place(org_number(1)).await.unwrap();
        let first = append(&log, &placement, 1, 1, 0).await;
        assert_eq!(first, Appended { seq: 1, replayed: false });
        let (a, b) = (
            record_commit(placement.org, record_number(1), 2, "a"),
            record_commit(placement.org, record_number(1), 3, "b"),
        );
        let results =
            tokio::join!(log.append(&placement, &a, first.seq, None), log.append(&placement, &b, first.seq, None));
        let (won, lost) = match results {
            (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
            other => panic!("{other:?}"),
        };
        assert_eq!(won, Appended { seq: 2, replayed: false });
        assert!(matches!(lost, AppendError::Conflict { .. }), "{lost}");
        // Also when the aggregate does not exist at all.
        let early = record_commit(placement.org, record_number(9), 4, "a");
        assert!(matches!(log.append(&placement, &early, 5, None).await, Err(AppendError::Conflict { .. })));
    }
}

#[tokio::test]
async fn a_commit_sent_again_is_stored_once() {
    let mut nats = Nats::start(true).await;
    let log = open(&options(&nats)).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let commit = record_commit(placement.org, record_number(1), 1, "x");

    let together = join_all((0..20).map(|_| log.append(&placement, &commit, 0, None))).await;
    let fresh = together.iter().filter(|appended| !appended.as_ref().unwrap().replayed).count();
    assert_eq!(fresh, 1);
    assert!(together.iter().all(|appended| appended.as_ref().unwrap().seq == 1));

    nats.kill9().await;
    nats.restart().await;
    let again = log.append(&placement, &commit, 0, None).await.unwrap();
    assert_eq!(again, Appended { seq: 1, replayed: true });

    // Within the server's window for message ids, an old commit is recognized even where it is not the last.
    append(&log, &placement, 1, 2, 1).await;
    let stale = log.append(&placement, &commit, 2, None).await.unwrap();
    assert_eq!(stale, Appended { seq: 1, replayed: true });
    assert_eq!(log.shard_state(placement.shard).await.unwrap().messages, 2);
}

#[tokio::test]
async fn an_append_survives_a_server_that_dies_under_it() {
    let (mut nats, log) = started(true).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let writers = (0..8).map(|writer| {
        let (log, placement) = (log.clone(), placement.clone());
        tokio::spawn(async move {
            let mut expected = 0;
            for number in 0..60 {
                expected = append(&log, &placement, writer, writer << 32 | number, expected).await.seq;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        nats.kill9().await;
        nats.restart().await;
    }
    for writer in writers {
        timeout(PATIENCE, writer).await.unwrap().unwrap();
    }
    assert_eq!(log.shard_state(placement.shard).await.unwrap().messages, 8 * 60);
}

#[tokio::test]
async fn one_key_does_not_serve_two_aggregates() {
    for sync in [SyncMode::Durable, SyncMode::Relaxed] {
        let nats = Nats::start(false).await;
        let log = open(&LogOptions { sync, ..options(&nats) }).await;
        let placement = log.place(org_number(1)).await.unwrap();
        append(&log, &placement, 1, 1, 0).await;
        let other = record_commit(placement.org, record_number(2), 1, "x");
        let error = log.append(&placement, &other, 0, None).await.unwrap_err();
        let AppendError::KeyReused { subject } = error else { panic!("{error}") };
        assert!(subject.ends_with(&record_number(1).to_string()), "{subject}");
        // Nor two bodies of one command on the same aggregate.
        let changed = record_commit(placement.org, record_number(1), 1, "another body");
        let error = log.append(&placement, &changed, 0, None).await.unwrap_err();
        assert!(matches!(error, AppendError::KeyReused { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_stale_member_does_not_spoil_a_shared_batch() {
    let (_nats, log) = started(true).await;
    let placement = log.place(org_number(1)).await.unwrap();
    append(&log, &placement, 0, 0, 0).await;
    let commits: Vec<Commit> =
        (0..100).map(|number| record_commit(placement.org, record_number(number), 1_000 + number, "x")).collect();
    // Record 0 exists already, so its expectation is wrong; all of these queue behind the first two.
    let results = join_all(commits.iter().map(|commit| log.append(&placement, commit, 0, None))).await;
    assert!(matches!(results[0], Err(AppendError::Conflict { .. })), "{:?}", results[0]);
    let seqs: HashSet<u64> = results[1..].iter().map(|result| result.as_ref().unwrap().seq).collect();
    assert_eq!(seqs.len(), 99);
    for (commit, result) in commits.iter().zip(&results).skip(1) {
        let history = log.load(&placement, &commit.aggregate, 0, Freshness::Any).await.unwrap();
        assert_eq!(history.commits.len(), 1);
        assert_eq!(history.last, result.as_ref().unwrap().seq);
        assert_eq!(history.commits[0].commit.command_id, commit.command_id);
    }
}

#[tokio::test]
async fn commits_together_are_all_stored_or_none() {
    let (_nats, log) = started(true).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let commit = |record, command| record_commit(placement.org, record_number(record), command, "x");
    let both = [(commit(1, 1), 0), (commit(2, 1), 0)];
    let first = log.append_together(&placement, &both, Some(TRACE)).await.unwrap();
    assert_eq!(first.iter().map(|appended| appended.seq).collect::<Vec<_>>(), [1, 2]);
    let again = log.append_together(&placement, &both, Some(TRACE)).await.unwrap();
    assert!(again.iter().all(|appended| appended.replayed));
    assert_eq!(again.iter().map(|appended| appended.seq).collect::<Vec<_>>(), [1, 2]);

    let stale = [(commit(3, 2), 0), (commit(2, 2), 0)];
    let error = log.append_together(&placement, &stale, None).await.unwrap_err();
    assert!(matches!(error, AppendError::Conflict { .. }), "{error}");
    let reused = [(commit(4, 1), 0), (commit(5, 1), 0)];
    let error = log.append_together(&placement, &reused, None).await.unwrap_err();
    assert!(matches!(error, AppendError::KeyReused { .. }), "{error}");
    assert_eq!(log.shard_state(placement.shard).await.unwrap().messages, 2);
    assert!(log.append_together(&placement, &[], None).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_before_it_is_sent() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let large = record_commit(placement.org, record_number(1), 1, &"x".repeat(1_000_001));
    let error = log.append(&placement, &large, 0, None).await.unwrap_err();
    assert!(matches!(error, AppendError::Codec(CodecError::TooLarge { .. })), "{error}");
    let fits = record_commit(placement.org, record_number(1), 1, &"x".repeat(990_000));
    log.append(&placement, &fits, 0, None).await.unwrap();
    let foreign = record_commit(org_number(2), record_number(1), 1, "x");
    assert!(matches!(log.append(&placement, &foreign, 0, None).await, Err(AppendError::Invalid(_))));
}

#[tokio::test]
async fn a_history_is_walked_back_exactly() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let (mut seqs, mut expected, mut beside) = (Vec::new(), 0, 0);
    for number in 0..20 {
        beside = append(&log, &placement, 2, 100 + number, beside).await.seq;
        expected = append(&log, &placement, 1, number, expected).await.seq;
        seqs.push(expected);
    }
    let aggregate = AggregateId::Record(record_number(1));
    for freshness in [Freshness::Leader, Freshness::Any] {
        let all = log.load(&placement, &aggregate, 0, freshness).await.unwrap();
        assert_eq!(all.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), seqs);
        assert_eq!(all.commits[3].trace.as_deref(), Some(TRACE));
        let rest = log.load(&placement, &aggregate, seqs[16], freshness).await.unwrap();
        assert_eq!(rest.commits.iter().map(|stored| stored.seq).collect::<Vec<_>>(), seqs[17..]);
        assert!(log.load(&placement, &aggregate, seqs[19], freshness).await.unwrap().commits.is_empty());
    }
    let beside = log.load(&placement, &aggregate, seqs[10] - 1, Freshness::Leader).await.unwrap_err();
    assert!(matches!(beside, StreamError::Corrupt { .. }), "{beside}");
    let beyond = log.load(&placement, &aggregate, seqs[19] + 5, Freshness::Leader).await.unwrap_err();
    assert!(matches!(beyond, StreamError::Behind { .. }), "{beyond}");
    let nothing = AggregateId::Record(record_number(99));
    assert!(log.load(&placement, &nothing, 0, Freshness::Leader).await.unwrap().commits.is_empty());
}

#[tokio::test]
async fn a_message_that_is_not_what_its_subject_says_is_named() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let subject = format!("ev.{}.{}.record.{}", placement.shard, placement.org, record_number(1));
    let foreign = record_commit(org_number(2), record_number(1), 1, "x");
    let foreign = log.keys().sign(&subject, Some(0), &foreign.encode().unwrap()).unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
    log.client().request_with_headers(subject.clone(), headers, foreign.into()).await.unwrap();
    let aggregate = AggregateId::Record(record_number(1));
    let error = log.load(&placement, &aggregate, 0, Freshness::Leader).await.unwrap_err();
    let StreamError::Corrupt { subject: named, seq, .. } = &error else { panic!("{error}") };
    assert_eq!((named, *seq), (&subject, 1));
}

#[tokio::test]
async fn one_sparse_org_is_read_without_its_neighbours() {
    let (_nats, log) = started(false).await;
    let orgs = neighbours(&log, 3).await;
    let (sparse, mut mine) = (&orgs[2], Vec::new());
    for number in 0..200 {
        append(&log, if number % 2 == 0 { &orgs[0] } else { &orgs[1] }, number, number, 0).await;
        if number % 25 == 0 {
            mine.push(append(&log, sparse, number, number + 1_000, 0).await.seq);
        }
    }
    let limit = ReadLimit { messages: 5, bytes: 1 << 20 };
    let chunk = log.read(sparse.shard, sparse.org, 1, limit).await.unwrap();
    assert_eq!(chunk.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), mine[..5]);
    assert!(!chunk.ended);
    let chunk = log.read(sparse.shard, sparse.org, mine[4] + 1, limit).await.unwrap();
    assert_eq!(chunk.messages.iter().map(|message| message.seq).collect::<Vec<_>>(), mine[5..]);
    assert!(chunk.ended);
    let tight = log.read(sparse.shard, sparse.org, 1, ReadLimit { messages: 5, bytes: 1 }).await.unwrap();
    assert_eq!(tight.messages.len(), 1);
    assert!(!tight.ended);
    let none = log.read(sparse.shard, org_number(9_999_999), 1, limit).await.unwrap();
    assert!(none.messages.is_empty() && none.ended);

    let replayed: Vec<_> = log.replay(sparse, mine[2]).map(|message| message.unwrap()).collect().await;
    assert_eq!(replayed.iter().map(|message| message.seq).collect::<Vec<_>>(), mine[2..]);
    assert!(replayed.iter().all(|message| message.open(log.keys()).is_ok() && message.trace.as_deref() == Some(TRACE)));
    let both: Vec<_> = log.replay(&orgs[0], 0).collect().await;
    assert_eq!(both.len(), 100);
}

#[tokio::test]
async fn a_replay_reads_many_chunks() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let appends = futures_util::stream::iter(0..4_500).map(|number| append(&log, &placement, number, number, 0));
    appends.buffer_unordered(500).count().await;
    let all: Vec<_> = log.replay(&placement, 1).map(|message| message.unwrap().seq).collect().await;
    assert_eq!(all.len(), 4_500);
    assert!(all.is_sorted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_caught_up_with_by_one_consumer_and_without_it_too() {
    let (mut nats, log) = started(true).await;
    let orgs = neighbours(&log, 2).await;
    let (mine, shard) = (&orgs[0], orgs[0].shard);
    let appends = futures_util::stream::iter(0..1_000).map(|n| append(&log, &orgs[n as usize % 2], n, n, 0));
    appends.buffer_unordered(50).count().await;
    let all: Vec<_> = log.replay(mine, 1).map(|message| message.unwrap()).collect().await;
    assert_eq!(all.len(), 500);

    let mut backlog = log.catch_up_reader(shard, mine.org, all[10].seq);
    let mut read = Vec::new();
    let mut chunk_of = async |messages, bytes| {
        let chunk = backlog.read(ReadLimit { messages, bytes }).await.unwrap();
        let (count, ended) = (chunk.messages.len(), chunk.ended);
        let consumers = log.shard_state(shard).await.unwrap().consumers;
        read.extend(chunk.messages);
        assert_eq!(backlog.goes_on_at(), (!ended).then(|| read.last().unwrap().seq + 1));
        (count, ended, consumers)
    };
    // The first is an ordinary read; an org without more creates no consumer.
    assert_eq!(chunk_of(100, 1 << 20).await, (100, false, 0));
    assert_eq!(chunk_of(100, 1 << 20).await, (100, false, 1));
    // The next message is returned at any size, and no more than the limit allows.
    assert_eq!(chunk_of(100, 1).await, (1, false, 1));
    let (few, ended, consumers) = chunk_of(100, 4_000).await;
    assert!((2..20).contains(&few) && !ended && consumers == 1, "{few} {ended} {consumers}");
    assert_eq!(chunk_of(100, 1 << 20).await, (100, false, 1));
    // The consumer is gone with its server, so a read continues, and then another consumer.
    nats.kill9().await;
    nats.restart().await;
    let again = eventually("the server to answer again", async || log.shard_state(shard).await.ok()).await;
    assert_eq!(again.consumers, 0);
    assert_eq!(chunk_of(50, 1 << 20).await, (50, false, 0));
    let rest = 490 - 351 - few;
    assert_eq!(chunk_of(1_000, 1 << 20).await, (rest, true, 1));
    let expected: Vec<_> = all[10..].iter().map(|message| (message.seq, &message.payload, &message.trace)).collect();
    let found: Vec<_> = read.iter().map(|message| (message.seq, &message.payload, &message.trace)).collect();
    assert_eq!(found, expected);

    // Later messages are read from where it ended.
    assert!(backlog.read(ReadLimit { messages: 10, bytes: 1 << 20 }).await.unwrap().messages.is_empty());
    let later = append(&log, mine, 2_000, 2_000, 0).await.seq;
    let chunk = backlog.read(ReadLimit { messages: 10, bytes: 1 << 20 }).await.unwrap();
    assert_eq!((chunk.messages[0].seq, chunk.messages.len(), chunk.ended), (later, 1, true));
}

#[tokio::test]
async fn a_tail_goes_on_after_a_restart() {
    let (mut nats, log) = started(true).await;
    let orgs = neighbours(&log, 2).await;
    let first = append(&log, &orgs[0], 1, 1, 0).await.seq;
    let tail = log.tail(&orgs[0], 1);
    pin_mut!(tail);
    assert_eq!(tail.next().await.unwrap().unwrap().seq, first);

    append(&log, &orgs[1], 2, 2, 0).await;
    let live = async {
        // Well before the slow poll: the hint brought it.
        timeout(Duration::from_secs(3), tail.next()).await.unwrap().unwrap().unwrap().seq
    };
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        append(&log, &orgs[0], 3, 3, 0).await.seq
    };
    let (seen, stored) = tokio::join!(live, later);
    assert_eq!(seen, stored);

    nats.kill9().await;
    nats.restart().await;
    let stored = append(&log, &orgs[0], 4, 4, 0).await.seq;
    let next = timeout(PATIENCE, tail.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.seq, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_sees_everything_once_through_crashes() {
    let (mut nats, log) = started(true).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let total = 3_000;
    let reader = {
        let (log, shard) = (log.clone(), placement.shard);
        tokio::spawn(async move {
            let mut cursor = log.cursor(shard, 0).await.unwrap();
            for seq in 1..=total {
                // Dropping the future must not lose the message it was about to return.
                let message = loop {
                    if let Ok(next) = timeout(Duration::from_millis(3), cursor.next()).await {
                        break next.unwrap();
                    }
                };
                assert_eq!(message.seq, seq);
            }
            assert_eq!(cursor.position(), total);
        })
    };
    let writer = {
        let (log, placement) = (log.clone(), placement.clone());
        tokio::spawn(async move {
            let appends = futures_util::stream::iter(0..total).map(|n| append(&log, &placement, n, n, 0));
            appends.buffer_unordered(30).count().await;
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        nats.kill9().await;
        nats.restart().await;
    }
    timeout(PATIENCE, writer).await.unwrap().unwrap();
    timeout(PATIENCE, reader).await.unwrap().unwrap();
}

/// A pull request that ends because its bytes are used up exactly sends no status about the messages it still owes.
#[tokio::test]
async fn a_cursor_goes_on_after_a_request_that_ended_without_a_word() {
    const REQUEST: usize = 2 << 20;
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let subject = format!("ev.{}.{}.record.{}", placement.shard, placement.org, record_number(1));
    let total = 8;
    for seq in 1..=total {
        let (consumer, time) = ("x".repeat("cursor_".len() + 32), "1".repeat(19));
        let reply = format!("$JS.ACK.EV_{}.{consumer}.1.{seq}.{seq}.{time}.{}", placement.shard, total - seq);
        let payload = vec![0; REQUEST / 4 - subject.len() - reply.len()];
        log.client().request(subject.clone(), payload.into()).await.unwrap();
    }
    let mut cursor = log.cursor(placement.shard, 0).await.unwrap();
    for seq in 1..=total {
        // Half of a cursor's timeout for a silent server.
        let message = timeout(Duration::from_secs(5), cursor.next()).await;
        assert_eq!(message.expect("the next message").unwrap().seq, seq);
    }
}

/// Makes the stream again so that it can lose messages: the product's streams cannot, and a faulty disk is harder to
/// simulate.
async fn make_purgeable(log: &Log, stream: &str) {
    let ask = async |verb: &str, body: String| {
        let answer = log.client().request(format!("$JS.API.STREAM.{verb}.{stream}"), body.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer["error"].is_null(), "{verb}: {answer}");
        answer
    };
    let mut config = ask("INFO", String::new()).await["config"].take();
    config["deny_purge"] = json!(false);
    ask("DELETE", String::new()).await;
    ask("CREATE", config.to_string()).await;
}

#[tokio::test]
async fn a_cursor_reports_a_hole_and_goes_on_behind_it() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let stream = format!("EV_{}", placement.shard);
    make_purgeable(&log, &stream).await;
    for number in 0..10 {
        append(&log, &placement, number, number, 0).await;
    }
    let hole = format!("ev.{}.{}.record.{}", placement.shard, placement.org, record_number(4));
    let purge = format!("$JS.API.STREAM.PURGE.{stream}");
    log.client().request(purge.clone(), format!("{{\"filter\":\"{hole}\"}}").into()).await.unwrap();

    let mut cursor = log.cursor(placement.shard, 0).await.unwrap();
    for seq in 1..=4 {
        assert_eq!(cursor.next().await.unwrap().seq, seq);
    }
    let gap = cursor.next().await.unwrap_err();
    assert!(matches!(gap, CursorError::Gap { expected: 5, found: 6, .. }), "{gap}");
    for seq in 6..=10 {
        assert_eq!(cursor.next().await.unwrap().seq, seq);
    }
    // At the start of the stream, too.
    log.client().request(purge, "{\"seq\":8}".into()).await.unwrap();
    let mut cursor = log.cursor(placement.shard, 0).await.unwrap();
    let gap = cursor.next().await.unwrap_err();
    assert!(matches!(gap, CursorError::Gap { expected: 1, found: 8, .. }), "{gap}");
    assert_eq!(cursor.next().await.unwrap().seq, 8);

    let lost = log.cursor(placement.shard, 11).await.unwrap_err();
    assert!(matches!(lost, StreamError::Behind { last: 10, expected: 11, .. }), "{lost}");
}

#[tokio::test]
async fn of_fifty_claims_one_wins() {
    let (_nats, log) = started(true).await;
    let orgs: Vec<OrgId> = (0..50).map(org_number).collect();
    let claims = join_all(orgs.iter().map(|org| log.claim("slug", "acme", *org))).await;
    let winners: Vec<_> = orgs.iter().zip(&claims).filter(|(_, claim)| claim.is_ok()).map(|(org, _)| *org).collect();
    assert_eq!(winners.len(), 1);
    for claim in claims.iter().filter_map(|claim| claim.as_ref().err()) {
        assert!(matches!(claim, ClaimError::Taken { by } if *by == winners[0]), "{claim}");
    }
    log.claim("slug", "acme", winners[0]).await.unwrap();
    assert_eq!(log.claimed_by("slug", "acme").await.unwrap(), Some(winners[0]));
    assert_eq!(log.claimed_by("slug", "other").await.unwrap(), None);
    assert!(log.claim("slug", "a.b", winners[0]).await.is_err());
    assert!(log.claim("slug", "*", winners[0]).await.is_err());
}

#[tokio::test]
async fn a_claim_is_given_back_unless_somebody_relies_on_it() {
    let (_nats, log) = started(true).await;
    let (one, other) = (org_number(1), org_number(2));
    let new = log.claim("slug", "free", one).await.unwrap().unwrap();
    log.release("slug", "free", one, new).await.unwrap();
    assert_eq!(log.claimed_by("slug", "free").await.unwrap(), None);
    let new = log.claim("slug", "free", other).await.unwrap();
    assert!(new.is_some());
    assert!(matches!(log.claim("slug", "free", one).await, Err(ClaimError::Taken { by }) if by == other));

    // Two concurrent commands of one org: the one that fails leaves it to the other.
    let new = log.claim("slug", "shared", one).await.unwrap().unwrap();
    let again = join_all((0..20).map(|_| log.claim("slug", "shared", one))).await;
    assert!(again.into_iter().all(|claim| claim.unwrap().is_none()));
    log.release("slug", "shared", one, new).await.unwrap();
    assert_eq!(log.claimed_by("slug", "shared").await.unwrap(), Some(one));

    // A claim released when it is no longer needed: by a command that found its current state, and by no other.
    log.claim_anew("sso", "pair", one).await.unwrap().unwrap();
    assert_eq!(log.claim_of("sso", "pair", other).await.unwrap(), None);
    for _ in 0..3 {
        let before = log.claim_of("sso", "pair", one).await.unwrap().unwrap();
        assert_eq!(log.claim_anew("sso", "pair", one).await.unwrap(), None);
        log.release("sso", "pair", one, before).await.unwrap();
        assert_eq!(log.claimed_by("sso", "pair").await.unwrap(), Some(one));
    }
    let last = log.claim_of("sso", "pair", one).await.unwrap().unwrap();
    log.release("sso", "pair", one, last).await.unwrap();
    assert_eq!(log.claim_of("sso", "pair", one).await.unwrap(), None);
    assert!(log.claim_anew("sso", "pair", other).await.unwrap().is_some());
}

#[tokio::test]
async fn a_tail_beyond_the_end_of_the_log_ends_with_an_error() {
    let (_nats, log) = started(false).await;
    let placement = log.place(org_number(1)).await.unwrap();
    append(&log, &placement, 1, 1, 0).await;
    let tail = log.tail(&placement, 100);
    pin_mut!(tail);
    let error = timeout(PATIENCE, tail.next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, StreamError::Behind { last: 1, expected: 99, .. }), "{error}");
}

#[tokio::test]
async fn facts_share_a_subject_and_expect_nothing() {
    let (_nats, log) = started(true).await;
    let placement = log.place(org_number(1)).await.unwrap();
    let fact = |command: u64| access_commit(placement.org, command);
    // Enough at once for batches, which allow a subject only once.
    let facts: Vec<Commit> = (0..100).map(fact).collect();
    let appends = facts.iter().map(|fact| log.append(&placement, fact, Expected::Any, None));
    let seqs: HashSet<u64> = join_all(appends).await.into_iter().map(|appended| appended.unwrap().seq).collect();
    assert_eq!(seqs.len(), 100);
    let again = log.append(&placement, &facts[0], Expected::Any, None).await.unwrap();
    assert!(again.replayed && seqs.contains(&again.seq), "{again:?}");
}
