//! The rewrite of a shard: what a mirror keeps of histories, that nobody who reads or writes notices, that erased bytes are in
//! no file, and that it may be killed at every step.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use futures_util::{StreamExt, future::join_all, pin_mut};
use orgstream_events::{AggregateId, Commit, EventSubject, PLATFORM_ORG, Shard};
use orgstream_stream::{
    AppendError, Appended, Erased, Expected, Freshness, Log, LogOptions, Message, Placement, ReadLimit, RewriteError,
    RewriteStep, Snapshot, StreamError, StreamName, is_placeholder,
};
use tokio::time::timeout;

use crate::{
    cluster::eventually,
    stream::{TRACE, access_commit, append, neighbours, open, options, org_number, record_commit, record_number},
    support::Nats,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ALL: ReadLimit = ReadLimit { messages: 4_000, bytes: 16 << 20 };
/// What an erased organization wrote.
const CANARY: &str = "a-payload-of-the-erased-organization";

/// Returns whether any file below the folder has these bytes.
pub(crate) fn has_bytes(folder: &Path, bytes: &[u8]) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_bytes(&entry.path(), bytes),
        // A file that is being deleted has nothing.
        _ => fs::read(entry.path()).is_ok_and(|file| file.windows(bytes.len()).any(|window| window == bytes)),
    })
}

pub(crate) async fn erase(log: &Log, of: &Placement) -> u64 {
    let fence = log.head(of).await.unwrap();
    log.mark_erased(of.shard, of.org, fence).await.unwrap();
    fence
}

/// The messages of an organization.
pub(crate) async fn messages_of(log: &Log, placement: &Placement) -> Vec<Message> {
    log.read(placement.shard, placement.org, 1, ALL).await.unwrap().messages
}

/// Everything that a new cursor delivers up to `end`.
pub(crate) async fn delivered(log: &Log, shard: Shard, after: u64, end: u64) -> Vec<Message> {
    let mut cursor = log.cursor(shard, after).await.unwrap();
    let mut all = Vec::new();
    while cursor.position() < end {
        all.push(timeout(PATIENCE, cursor.next()).await.expect("the next message").unwrap());
    }
    all
}

async fn publish(log: &Log, subject: &str, payload: &[u8]) -> u64 {
    let answer = log.client().request_with_headers(subject.to_owned(), HeaderMap::new(), payload.to_vec().into());
    let answer: serde_json::Value = serde_json::from_slice(&answer.await.unwrap().payload).unwrap();
    answer["seq"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn mirror_keeps_history_loadable() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let [placement, other] = &neighbours(&log, 2).await[..] else { panic!() };
    let shard = placement.shard;
    // Alone, with a history that is walked back and one that is read forward.
    let mut last = BTreeMap::new();
    for (record, commits) in [(1_u64, 5_u64), (2, 80)] {
        let mut expected = 0;
        for number in 0..commits {
            expected = append(&log, placement, record, record << 32 | number, expected).await.seq;
        }
        last.insert(record, expected);
    }
    // Many at once, which share batches.
    let many: Vec<Commit> = (100..160).map(|n| record_commit(placement.org, record_number(n), n, "x")).collect();
    for appended in join_all(many.iter().map(|commit| log.append(placement, commit, 0, Some(TRACE)))).await {
        appended.unwrap();
    }
    // Several aggregates together.
    let both = [3, 4].map(|record| (record_commit(placement.org, record_number(record), 9_000, "x"), 0));
    log.append_together(placement, &both, None).await.unwrap();
    // Without an expectation.
    log.append(placement, &access_commit(placement.org, 9_100), Expected::Any, None).await.unwrap();
    // A message that was published again, by one who may write and has no key.
    let aggregate = |record| AggregateId::Record(record_number(record));
    let copied = log.message(shard, 2).await.unwrap().unwrap();
    let forged = publish(&log, &copied.subject, &copied.payload).await;
    assert!(log.message(shard, forged).await.unwrap().unwrap().content(log.keys()).is_err());
    // A snapshot.
    let snapshot = Snapshot { shape: 7, seq: last[&2], content: b"state".to_vec().into() };
    assert!(log.keep_snapshot(placement, &aggregate(2), &snapshot).await.unwrap());
    // The last message is of an organization that is erased.
    append(&log, other, 50, 50, 0).await;
    let fence = erase(&log, other).await;
    assert_eq!(log.shard_state(shard).await.unwrap().last_seq, fence);

    let records: Vec<u64> = (1..5).chain(100..160).collect();
    let histories = async |log: &Log| {
        let mut all = Vec::new();
        for record in &records {
            let mut commits = Vec::new();
            let mut after = 0;
            loop {
                let part = log.load(placement, &aggregate(*record), after, Freshness::Any).await.unwrap();
                commits.extend(part.commits);
                after = part.last;
                if part.ended {
                    break;
                }
            }
            all.push((commits, after));
        }
        let facts = log.facts(placement, &AggregateId::Access(placement.org), 0).await.unwrap();
        let mut messages = messages_of(log, placement).await;
        messages.retain(|message| message.seq != forged);
        (all, facts.commits, messages)
    };
    // This one stays as it is through both rewrites, and has nothing open.
    let idle = Log::connect(&options(&nats)).await.unwrap();
    let before = histories(&idle).await;

    for generation in [2, 3] {
        let end = log.shard_state(shard).await.unwrap().last_seq;
        let rewritten = log.rewrite(shard, |_| {}).await.unwrap();
        assert_eq!(rewritten.generation, generation);
        assert!(rewritten.copied_to > end, "a sequence is given out twice");
        for log in [&log, &idle, &Log::connect(&options(&nats)).await.unwrap()] {
            let after = histories(log).await;
            assert!(after == before, "what is loaded is another history");
            assert!(messages_of(log, other).await.is_empty());
            // What was forged is still not believed.
            let still = log.message(shard, forged).await.unwrap().unwrap();
            assert!(still.content(log.keys()).is_err());
            let cold = log.load_new(placement, &aggregate(2), 7, Freshness::Leader).await.unwrap();
            assert_eq!(cold.last, last[&2]);
            assert_eq!(log.orgs_of_shard(shard).await.unwrap(), []);
        }
        // The server has forgotten its message ids, and the log is exact without.
        let again = log.append(placement, &many[0], 0, None).await.unwrap();
        assert!(again.replayed);
        let stale = record_commit(placement.org, record_number(100), 7_000, "y");
        let conflict = log.append(placement, &stale, 0, None).await.unwrap_err();
        assert!(matches!(conflict, AppendError::Conflict { .. }), "{conflict}");
    }
    // Another one starts on it without a finding, and each history goes on where it was.
    let later = open(&options(&nats)).await;
    for ((record, (_, end)), number) in records.iter().zip(&before.0).zip(20_000..) {
        let appended = append(&later, placement, *record, number, *end).await;
        let history = later.load(placement, &aggregate(*record), *end, Freshness::Leader).await.unwrap();
        assert_eq!((history.last, history.commits.len()), (appended.seq, 1));
    }
    // What a process remembers may have been erased.
    let tip = StreamName::Shard(shard);
    assert_eq!(idle.see(tip, fence).await.unwrap(), None);
    assert_eq!(later.lacks(tip, later.see(tip, 1).await.unwrap().unwrap()).await.unwrap(), None);
    let erased = later.erased(shard).await.unwrap();
    assert_eq!(erased, [Erased { org: other.org, to: fence, messages: Some(1) }]);
    // The hole is where that was, and nothing else is missing.
    let end = later.shard_state(shard).await.unwrap();
    assert_eq!((end.generation, end.erased_to, end.messages + 1), (3, fence, end.last_seq));
    let seqs: Vec<u64> = delivered(&later, shard, 0, end.last_seq).await.iter().map(|message| message.seq).collect();
    assert_eq!(seqs, (1..=end.last_seq).filter(|seq| *seq != fence).collect::<Vec<_>>());
}

/// The names of all streams.
async fn streams(log: &Log) -> Vec<String> {
    let answer = log.client().request("$JS.API.STREAM.NAMES", "".into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    answer["streams"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Appends to its own records until it is told to stop. Returns what was acknowledged.
pub(crate) async fn write(
    log: Log,
    placement: Placement,
    writer: u64,
    stop: Arc<AtomicBool>,
) -> (Vec<(u64, Commit)>, Duration) {
    let (mut acknowledged, mut slowest) = (Vec::new(), Duration::ZERO);
    let mut ends = [0_u64; 8];
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let slot = number as usize % ends.len();
        let record = record_number(writer << 16 | slot as u64);
        let commit = record_commit(placement.org, record, writer << 32 | number, &format!("{writer}/{number}"));
        let began = Instant::now();
        let Appended { seq, replayed } = log.append(&placement, &commit, ends[slot], None).await.unwrap();
        slowest = slowest.max(began.elapsed());
        assert!(!replayed || seq > ends[slot]);
        ends[slot] = seq;
        acknowledged.push((seq, commit));
        // Not as fast as the disk: a copy has to come along.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (acknowledged, slowest)
}

#[tokio::test]
async fn rewrite_under_writers() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let orgs = neighbours(&log, 4).await;
    let (gone, shard) = (orgs[0].clone(), orgs[0].shard);
    for number in 0..200 {
        let commit = record_commit(gone.org, record_number(number), number, &format!("{CANARY}-{number}"));
        log.append(&gone, &commit, 0, None).await.unwrap();
        append(&log, &orgs[1], 1_000 + number, 1_000 + number, 0).await;
    }
    let fence = erase(&log, &gone).await;
    let snapshot = Snapshot { shape: 7, seq: fence, content: CANARY.as_bytes().to_vec().into() };
    assert!(log.keep_snapshot(&gone, &AggregateId::Record(record_number(199)), &snapshot).await.unwrap());
    assert!(has_bytes(nats.store(), CANARY.as_bytes()));
    let before = messages_of(&log, &orgs[1]).await;

    let stop = Arc::new(AtomicBool::new(false));
    // Each writer is a process of its own, and so are the readers.
    let mut writers = Vec::new();
    for (writer, placement) in (1_u64..).zip(orgs[1..].iter().chain(&orgs[1..])) {
        let log = Log::connect(&options(&nats)).await.unwrap();
        writers.push(tokio::spawn(write(log, placement.clone(), writer, Arc::clone(&stop))));
    }
    let reader = Log::connect(&options(&nats)).await.unwrap();
    let (ends, mut end) = tokio::sync::watch::channel(u64::MAX);
    let mut cursor = reader.cursor(shard, 0).await.unwrap();
    let read = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            tokio::select! {
                message = cursor.next() => seen.push(message.unwrap()),
                changed = end.changed() => changed.unwrap(),
            }
            if cursor.position() >= *end.borrow() {
                return seen;
            }
        }
    });
    let tail = reader.tail(&orgs[2], 1);
    let (tails, mut tail_end) = tokio::sync::watch::channel(u64::MAX);
    let tailed = tokio::spawn(async move {
        pin_mut!(tail);
        let mut seen = Vec::new();
        loop {
            tokio::select! {
                message = tail.next() => seen.push(message.unwrap().unwrap()),
                changed = tail_end.changed() => changed.unwrap(),
            }
            if seen.last().is_some_and(|last: &Message| last.seq >= *tail_end.borrow()) {
                return seen;
            }
        }
    });

    let mut steps = Vec::new();
    let first = log.rewrite(shard, |step| steps.push(step)).await.unwrap();
    let second = log.rewrite(shard, |_| {}).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for writer in writers {
        let (all, slow) = timeout(PATIENCE, writer).await.unwrap().unwrap();
        slowest = slowest.max(slow);
        for (seq, commit) in all {
            assert!(acknowledged.insert(seq, commit).is_none(), "{seq} was given out twice");
        }
    }
    eprintln!(
        "{} appended, held {:?} and {:?}, slowest {slowest:?}",
        acknowledged.len(),
        first.held.unwrap(),
        second.held.unwrap()
    );
    assert!(slowest < Duration::from_secs(10), "an append took {slowest:?}");
    assert!(acknowledged.len() > 50 && *acknowledged.keys().next_back().unwrap() > second.copied_to);
    assert_eq!(first.erased, [Erased { org: gone.org, to: fence, messages: Some(200) }]);
    assert_eq!((second.generation, second.erased.len()), (3, 0));
    assert!(steps.contains(&RewriteStep::Erase) && steps.contains(&RewriteStep::Promote));

    // Nothing is lost, nothing is there twice.
    let state = log.shard_state(shard).await.unwrap();
    assert_eq!((state.generation, state.messages + 200), (3, state.last_seq));
    let stored = delivered(&log, shard, 0, state.last_seq).await;
    let mut found = BTreeMap::new();
    for message in &stored {
        if is_placeholder(&message.subject) {
            continue;
        }
        let commit = message.open(log.keys()).unwrap().commit;
        assert!(found.insert(commit.command_id, message.seq).is_none(), "{} is there twice", commit.command_id);
    }
    for (seq, commit) in &acknowledged {
        assert_eq!(found.get(&commit.command_id), Some(seq));
    }
    assert_eq!(found.len(), acknowledged.len() + 200, "what was not acknowledged is there");
    // Readers that were there before, and went on through it.
    ends.send(state.last_seq).unwrap();
    let seen = timeout(PATIENCE, read).await.unwrap().unwrap();
    let (seen, mut erased): (Vec<Message>, Vec<Message>) =
        seen.into_iter().partition(|message| !message.subject.contains(&gone.org.to_string()));
    let same = |one: &Message, other: &Message| (one.seq, &one.payload) == (other.seq, &other.payload);
    assert!(seen.len() == stored.len() && seen.iter().zip(&stored).all(|(one, other)| same(one, other)));
    erased.dedup_by_key(|message| message.seq);
    assert!(erased.len() <= 200);
    let of_tailed = messages_of(&log, &orgs[2]).await;
    tails.send(of_tailed.last().unwrap().seq).unwrap();
    let tailed = timeout(PATIENCE, tailed).await.unwrap().unwrap();
    assert!(tailed == of_tailed);
    // The other organization has what it had, byte for byte.
    assert!(messages_of(&log, &orgs[1]).await[..before.len()] == before);
    // Nothing of the erased one is left.
    let subject = EventSubject::all_of_org(shard, gone.org);
    assert!(stored.iter().all(|message| !message.subject.starts_with(subject.trim_end_matches('>'))));
    eventually("the bytes to be gone", async || (!has_bytes(nats.store(), CANARY.as_bytes())).then_some(())).await;
    let streams = streams(&log).await;
    assert!(streams.contains(&format!("EV_{shard}_g3")), "{streams:?}");
    assert_eq!(streams.iter().filter(|name| name.starts_with(&format!("EV_{shard}"))).count(), 1, "{streams:?}");
}

#[tokio::test]
async fn what_cannot_be_erased_is_refused() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let placement = log.place(org_number(1)).await.unwrap();
    append(&log, &placement, 1, 1, 0).await;
    for (org, fence) in [(placement.org, 0), (placement.org, 2), (PLATFORM_ORG, 1)] {
        assert!(log.mark_erased(placement.shard, org, fence).await.is_err(), "{org} {fence}");
    }
    log.mark_erased(placement.shard, placement.org, 1).await.unwrap();
    log.mark_erased(placement.shard, placement.org, 1).await.unwrap();
    let waiting = [Erased { org: placement.org, to: 1, messages: None }];
    assert_eq!(log.erased(placement.shard).await.unwrap(), waiting);
    assert_eq!(log.rewrite_plan(placement.shard).await.unwrap().waiting, waiting);
    let unknown = log.rewrite(Shard(9), |_| {}).await.unwrap_err();
    assert!(matches!(unknown, RewriteError::Stream(StreamError::UnknownShard { .. })), "{unknown}");
}

#[tokio::test]
async fn a_rewrite_that_cannot_check_a_message_changes_nothing() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let placement = log.place(org_number(1)).await.unwrap();
    append(&log, &placement, 1, 1, 0).await;
    let others: LogOptions =
        LogOptions { keys: Arc::new(format!("others:{}", "08".repeat(32)).parse().unwrap()), ..options(&nats) };
    let others = Log::connect(&others).await.unwrap();
    let commit = record_commit(placement.org, record_number(2), 2, "x");
    others.append(&placement, &commit, 0, None).await.unwrap();
    let error = log.rewrite(placement.shard, |_| {}).await.unwrap_err();
    assert!(orgstream_events::Chain(&error).to_string().contains("--commit-keys"), "{error}");
    // It is served as before, and a process with both keys finishes it.
    let end = append(&log, &placement, 1, 3, 1).await.seq;
    assert_eq!(log.shard_state(placement.shard).await.unwrap().generation, 1);
    let both = format!("tests:{},others:{}", "07".repeat(32), "08".repeat(32));
    let both = LogOptions { keys: Arc::new(both.parse().unwrap()), ..options(&nats) };
    let both = Log::connect(&both).await.unwrap();
    assert_eq!(both.rewrite(placement.shard, |_| {}).await.unwrap().generation, 2);
    append(&log, &placement, 1, 4, end).await;
}

#[tokio::test]
async fn two_rewrites_of_a_shard_do_not_meet() {
    let nats = Nats::start(false).await;
    let log = open(&options(&nats)).await;
    let placement = log.place(org_number(1)).await.unwrap();
    append(&log, &placement, 1, 1, 0).await;
    let run = async || {
        let log = Log::connect(&options(&nats)).await.unwrap();
        log.rewrite(placement.shard, |_| {}).await
    };
    let results = tokio::join!(run(), run());
    let done = [&results.0, &results.1].iter().filter(|result| result.is_ok()).count();
    assert!(done >= 1, "{results:?}");
    let state = log.shard_state(placement.shard).await.unwrap();
    assert_eq!(state.messages, state.last_seq);
    let end = append(&log, &placement, 1, 2, 1).await;
    assert!(end.seq > 1);
    assert_eq!(
        log.load(&placement, &AggregateId::Record(record_number(1)), 0, Freshness::Leader).await.unwrap().last,
        end.seq
    );
}
