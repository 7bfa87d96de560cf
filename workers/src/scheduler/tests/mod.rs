//! The scheduler against a model: a log, a database with checkpoints, and every possible failure in between.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use orgstream_events::{AggregateId, CommitKeys, EventSubject, RecordId};
use orgstream_stream::Message;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::options::Policy;

mod burst;
mod fairness;
mod outage;

const SHARD: Shard = Shard(3);

fn org(number: u8) -> OrgId {
    OrgId::fresh(1_700_000_000_000, [number; 10])
}

fn delivery(org: OrgId, seq: u64, now: Instant) -> Arc<Delivery> {
    let aggregate = AggregateId::Record(RecordId::fresh(0, [seq as u8; 10]));
    let subject = EventSubject { shard: SHARD, org, aggregate }.to_string();
    let payload = Bytes::from_static(&[0; 200]);
    let keys = Arc::new(CommitKeys::single("tests", [7; 32]).unwrap());
    Delivery::new(Message { shard: SHARD, seq, subject, payload, expected: None, trace: None }, now, &keys)
}

fn key(number: u8) -> LaneKey {
    LaneKey { shard: SHARD, org: org(number), pipeline: Pipeline::ReadModels }
}

fn options() -> WorkerOptions {
    // Room for two or three messages a lane and a dozen in all, so that catching up is the rule.
    WorkerOptions { lane_bytes: 1_500, total_bytes: 6_000, attempts: 3, ..WorkerOptions::new(Uuid::nil()) }
}

/// What survives a crash: the log, the tables, and the low watermark.
#[derive(Default)]
struct World {
    log: Vec<(u64, OrgId)>,
    checkpoints: HashMap<(OrgId, Pipeline), u64>,
    applied: BTreeMap<(OrgId, Pipeline), Vec<u64>>,
    mark: Mark,
    on_disk: OnDisk,
}

/// The tables after a crash of the database: as of the last commit that waited for the disk.
#[derive(Clone, Default)]
struct OnDisk {
    checkpoints: HashMap<(OrgId, Pipeline), u64>,
    applied: BTreeMap<(OrgId, Pipeline), Vec<u64>>,
}

impl World {
    fn sync(&mut self) {
        self.on_disk = OnDisk { checkpoints: self.checkpoints.clone(), applied: self.applied.clone() };
    }

    /// Does what `ops.open_batch` and the apply behind it do: nothing unless the checkpoint is where the batch begins.
    fn open(&mut self, batch: &LaneBatch) -> bool {
        let lane = (batch.key.org, batch.key.pipeline);
        let fits = match self.checkpoints.get(&lane) {
            None => batch.from.unwrap_or_default() == 0,
            stored => batch.from.as_ref() == stored,
        };
        if fits {
            self.checkpoints.insert(lane, batch.deliveries.last().unwrap().seq());
            self.applied.entry(lane).or_default().extend(batch.deliveries.iter().map(|one| one.seq()));
        }
        fits
    }
}

struct Model {
    world: World,
    scheduler: Scheduler,
    cursor: u64,
    in_slots: Vec<Group>,
    catch_up_reads: Vec<(CatchUpRead, Vec<Arc<Delivery>>)>,
    now: Instant,
    peak: usize,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        let mut scheduler = Scheduler::new(options(), now);
        scheduler.open_shard(SHARD, 1, 0, &[]);
        let (world, in_slots) = (World::default(), Vec::new());
        Self { world, scheduler, cursor: 0, in_slots, catch_up_reads: Vec::new(), now, peak: 0 }
    }

    fn append(&mut self, org: OrgId) {
        let seq = self.world.log.len() as u64 + 1;
        self.world.log.push((seq, org));
    }

    fn read(&mut self) {
        if let Some((seq, org)) = self.world.log.get(self.cursor as usize).copied() {
            self.cursor = seq;
            self.scheduler.offer(org, &delivery(org, seq, self.now));
        }
        self.peak = self.peak.max(self.scheduler.bytes());
    }

    /// Moves the cursor to the end of the log at once, and leaves the messages before it to the lanes.
    fn fast_forward(&mut self) {
        let seen = self.cursor;
        let last_of = |org| self.world.log.iter().rev().find(|(_, one)| *one == org).map(|(seq, _)| *seq);
        let mut passed: BTreeMap<OrgId, Passed> = BTreeMap::new();
        for (seq, org) in self.world.log.iter().copied().filter(|(seq, _)| *seq > seen) {
            passed.entry(org).or_insert(Passed { org, next: seq, last: last_of(org).unwrap() });
        }
        self.cursor = self.world.log.len() as u64;
        self.scheduler.fast_forward(SHARD, self.cursor, &passed.into_values().collect::<Vec<_>>());
    }

    fn dispatch(&mut self) {
        self.in_slots.extend(self.scheduler.next_group(self.now));
    }

    /// Commits the oldest group as the database would: each batch by its own checkpoint.
    fn commit(&mut self) {
        if self.in_slots.is_empty() {
            return;
        }
        let group = self.in_slots.remove(0);
        let mut outcomes = Vec::new();
        for batch in &group.batches {
            let lane = (batch.key.org, batch.key.pipeline);
            outcomes.push(if self.world.open(batch) {
                spent(300)
            } else {
                BatchOutcome::Moved { stored: self.world.checkpoints.get(&lane).copied().unwrap_or_default() }
            });
        }
        self.scheduler.done(&group, outcomes, self.now, 0.5);
    }

    /// Fails the transaction of the oldest group; `unknown` commits it, but its result is lost.
    fn fail(&mut self, how: u8) {
        if self.in_slots.is_empty() {
            return;
        }
        let group = self.in_slots.remove(0);
        let mut outcomes = Vec::new();
        for (place, batch) in group.batches.iter().enumerate() {
            if how == 0 {
                self.world.open(batch);
            }
            outcomes.push(match (how, place) {
                (0 | 1, _) => away(),
                (2, _) => BatchOutcome::TimedOut,
                (_, 0) => BatchOutcome::Failed { reason: "no".to_owned() },
                _ => BatchOutcome::Undone,
            });
        }
        self.scheduler.done(&group, outcomes, self.now, 0.5);
    }

    /// Completes the running catch-up reads, and starts others.
    fn catch_up_read(&mut self) {
        for (wish, chunk) in std::mem::take(&mut self.catch_up_reads) {
            // Nothing was ever purged from this log.
            assert_eq!(self.scheduler.caught_up(wish, Some(&chunk)), None);
        }
        for wish in self.scheduler.catch_up_reads(4) {
            // Two at a time, and not beyond what the log has.
            let chunk = self.world.log.iter().filter(|(seq, org)| *seq >= wish.from && *org == wish.key.org);
            let chunk = chunk.take(2).map(|(seq, org)| delivery(*org, *seq, self.now)).collect();
            self.catch_up_reads.push((wish, chunk));
        }
        self.peak = self.peak.max(self.scheduler.bytes());
    }

    fn write_mark(&mut self) {
        self.world.mark = self.scheduler.marks().remove(&SHARD).unwrap();
        self.world.sync();
        self.check_mark();
    }

    /// Checks that everything up to the low watermark is applied, except in the lanes that it names.
    fn check_mark(&self) {
        let mark = &self.world.mark;
        for (seq, org) in self.world.log.iter().filter(|(seq, _)| *seq <= mark.seq) {
            for pipeline in Pipeline::ALL {
                let stored = self.world.checkpoints.get(&(*org, pipeline)).copied().unwrap_or_default();
                assert!(
                    stored >= *seq || mark.catching_up.contains(&(*org, pipeline)),
                    "the mark {} passes {seq} of {org}, which {pipeline} has only to {stored}",
                    mark.seq,
                );
            }
        }
    }

    /// Restarts the process; it begins at the low watermark.
    fn restart(&mut self) {
        self.in_slots.clear();
        self.catch_up_reads.clear();
        self.scheduler = Scheduler::new(options(), self.now);
        self.open(2);
    }

    /// Restarts the process, which begins at the start of the log: a pipeline has no low watermark there.
    fn forget_mark(&mut self) {
        self.world.mark.seq = 0;
        self.restart();
    }

    /// Releases the shard and takes it again, while batches and catch-up reads from before are still running.
    fn reopen(&mut self) {
        self.scheduler.close_shard(SHARD);
        self.open(2);
    }

    /// Crashes the database, which loses what was not synced, and what was in slots; the worker restarts at the low
    /// watermark.
    fn crash(&mut self) {
        let OnDisk { checkpoints, applied } = self.world.on_disk.clone();
        (self.world.checkpoints, self.world.applied) = (checkpoints, applied);
        let lost = std::mem::take(&mut self.in_slots);
        self.reopen();
        for group in &lost {
            let outcomes = group.batches.iter().map(|_| away()).collect();
            self.scheduler.done(group, outcomes, self.now, 0.5);
        }
    }

    fn open(&mut self, epoch: u64) {
        let mark = &self.world.mark;
        let behind: Vec<_> = mark
            .catching_up
            .iter()
            .map(|(org, pipeline)| {
                let stored = self.world.checkpoints.get(&(*org, *pipeline)).copied().unwrap_or_default();
                let last = self.world.log.iter().rev().find(|(_, one)| one == org).map_or(0, |(seq, _)| *seq);
                Behind { org: *org, pipeline: *pipeline, stored, last }
            })
            .collect();
        self.cursor = mark.seq;
        self.scheduler.open_shard(SHARD, epoch, mark.seq, &behind);
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.now += Duration::from_secs(10);
            self.read();
            self.catch_up_read();
            self.dispatch();
            self.commit();
            let done = self.cursor as usize == self.world.log.len()
                && self.in_slots.is_empty()
                && self.scheduler.lanes().all(|(_, lane)| lane.is_empty() && lane.skipped.is_none());
            if done {
                return;
            }
        }
        panic!("the lanes never came to rest");
    }
}

proptest! {
    /// Whatever happens, every lane applies all messages of its org, in order, each once.
    #[test]
    fn nothing_is_lost_and_nothing_applied_twice(steps in prop::collection::vec((0_u8..16, 0_u8..4), 0..300)) {
        let mut model = Model::new();
        for (step, who) in steps {
            match step {
                0..=3 => model.append(org(who)),
                4..=6 => model.read(),
                7 => model.dispatch(),
                8 => model.commit(),
                9 => model.fail(who),
                10 => model.catch_up_read(),
                11 => model.write_mark(),
                12 if who == 0 => model.restart(),
                12 if who == 1 => model.forget_mark(),
                13 if who == 0 => model.reopen(),
                14 if who == 0 => model.crash(),
                15 if who < 2 => model.fast_forward(),
                _ => model.now += Duration::from_millis(60),
            }
        }
        model.finish();
        model.write_mark();
        prop_assert_eq!(model.world.mark.seq, model.world.log.len() as u64);
        prop_assert!(model.world.mark.catching_up.is_empty());
        for number in 0..4 {
            let expected: Vec<u64> =
                model.world.log.iter().filter(|(_, one)| *one == org(number)).map(|(seq, _)| *seq).collect();
            for pipeline in Pipeline::ALL {
                let applied = model.world.applied.get(&(org(number), pipeline)).cloned().unwrap_or_default();
                prop_assert_eq!(&applied, &expected, "org {} in {}", number, pipeline);
            }
        }
    }

    /// Memory is bounded by the options, not by the backlog.
    #[test]
    fn a_backlog_does_not_grow_memory(burst in 50_usize..400) {
        let mut model = Model::new();
        for number in 0..burst {
            model.append(org((number % 3) as u8));
        }
        for _ in 0..burst {
            model.read();
        }
        let one = delivery(org(0), 1, model.now).bytes();
        let bound = options().total_bytes + 8 * one;
        prop_assert!(model.peak <= bound, "{} of {bound} bytes", model.peak);
        model.finish();
    }
}

/// The outcome without an answer.
fn away() -> BatchOutcome {
    BatchOutcome::Unavailable(Trouble {
        reason: "it is away".into(),
        everywhere: true,
        suspect: false,
        elsewhere: false,
    })
}

fn spent(micros: u64) -> BatchOutcome {
    BatchOutcome::Applied { cost: work(micros), plan: PlanName::default(), elsewhere: false }
}

/// Ends a transaction, each of whose messages took `micros`.
fn finish(scheduler: &mut Scheduler, group: &Group, micros: u64, now: Instant) {
    let outcomes = group.batches.iter().map(|batch| spent(micros * batch.deliveries.len() as u64)).collect();
    scheduler.done(group, outcomes, now, 0.5);
}

/// However slow a database is under others' load, a batch does not become smaller for it: the database would get more
/// and more transactions of fewer and fewer messages.
#[test]
fn batches_keep_their_size_when_the_database_is_busy() {
    let options = WorkerOptions { lane_bytes: 1 << 20, total_bytes: 1 << 22, ..options() };
    let mut now = Instant::now();
    let mut scheduler = Scheduler::new(options, now);
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let mut seq = 0;
    for (rounds, times) in [(60, 1), (20, 10), (60, 1), (200, 4)] {
        let mut sizes = Vec::new();
        for _ in 0..rounds {
            sizes.clear();
            while scheduler.lane(key(1)).is_none_or(|lane| lane.len() < 500) {
                seq += 1;
                scheduler.offer(org(1), &delivery(org(1), seq, now));
            }
            now += Duration::from_millis(1);
            while let Some(group) = scheduler.next_group(now) {
                let outcomes = group.batches.iter().map(|batch| {
                    let messages = batch.deliveries.len() as u64;
                    if batch.key == key(1) {
                        sizes.push(messages);
                    }
                    let opening = Duration::from_micros(300 * times);
                    let cost = Cost { opening, ..work(times * (100 + 40 * messages)) };
                    BatchOutcome::Applied { cost, plan: PlanName::default(), elsewhere: false }
                });
                let outcomes = outcomes.collect();
                scheduler.done(&group, outcomes, now, 0.5);
            }
        }
        // The last one of a round takes what is left.
        sizes.pop();
        let keep = !sizes.is_empty() && sizes.iter().all(|size| (25..=110).contains(size));
        assert!(keep, "{sizes:?} messages after {rounds} rounds of batches that took {times} times as long");
    }
}

fn work(micros: u64) -> Cost {
    Cost { work: Duration::from_micros(micros), ..Cost::default() }
}

/// However long a lane is catching up, it is queued for catch-up reads once, and no later lane overtakes it.
#[test]
fn a_detached_lane_waits_for_its_catch_up_read_in_turn() {
    let mut scheduler = Scheduler::new(options(), Instant::now());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let now = Instant::now();
    for seq in 1..=1_000 {
        let who = org(if seq <= 500 { 1 } else { 2 });
        scheduler.offer(who, &delivery(who, seq, now));
        while let Some(group) = scheduler.next_group(now) {
            finish(&mut scheduler, &group, 1_000, now);
        }
    }
    let flood = |scheduler: &mut Scheduler, from: u64| {
        for seq in from..from + 400 {
            for who in [org(1), org(2)] {
                scheduler.offer(who, &delivery(who, 2 * seq + u64::from(who == org(2)), now));
            }
        }
    };
    flood(&mut scheduler, 1_000);
    while let Some(group) = scheduler.next_group(now) {
        finish(&mut scheduler, &group, 1_000, now);
    }
    flood(&mut scheduler, 2_000);
    assert_eq!(scheduler.wants_catch_up.len(), 2 * Pipeline::ALL.len());
    let first = scheduler.wants_catch_up.front().copied();
    assert_eq!(scheduler.catch_up_reads(1).first().map(|wish| wish.key), first);
}

/// However many lanes are catching up, catch-up reads keep to the total; and what they bring for one pipeline, the
/// other takes too.
#[test]
fn catch_up_reads_stop_at_the_total_and_are_shared() {
    let now = Instant::now();
    let owner = |seq: u64| org((seq % 40) as u8);
    let log: Vec<Arc<Delivery>> = (1..=16_000).map(|seq| delivery(owner(seq), seq, now)).collect();
    let lane_bytes = 32 << 10;
    for total_bytes in [64 << 10, 16 << 20] {
        let mut scheduler = Scheduler::new(WorkerOptions { lane_bytes, total_bytes, ..options() }, now);
        scheduler.open_shard(SHARD, 1, 0, &[]);
        for message in &log {
            scheduler.offer(owner(message.seq()), message);
        }
        let (mut catch_up_reads, mut peak) = (0, 0);
        loop {
            for wish in scheduler.catch_up_reads(8) {
                let mut room = wish.bytes;
                let is_wanted =
                    |message: &&Arc<Delivery>| message.seq() >= wish.from && owner(message.seq()) == wish.key.org;
                let chunk = log.iter().filter(is_wanted).take_while(|message| {
                    let fits = room > 0;
                    room = room.saturating_sub(message.bytes());
                    fits
                });
                let chunk: Vec<_> = chunk.cloned().collect();
                scheduler.caught_up(wish, Some(&chunk));
                catch_up_reads += 1;
            }
            peak = peak.max(scheduler.bytes());
            let Some(group) = scheduler.next_group(now) else { break };
            finish(&mut scheduler, &group, 40, now);
        }
        assert!(scheduler.lanes().all(|(_, lane)| lane.skipped.is_none() && lane.is_empty()));
        // Eight catch-up reads run at a time, and each may fill two lanes.
        let bound = total_bytes + 8 * 2 * lane_bytes + 80 * LEAST_REFILL;
        assert!(peak <= bound, "{peak} of {bound} bytes");
        let read_once = log.len() * log[0].bytes() / lane_bytes;
        if total_bytes > lane_bytes * 80 {
            assert!(
                catch_up_reads < 2 * read_once,
                "{catch_up_reads} catch_up_reads for what {read_once} could bring to all pipelines"
            );
        }
    }
}

/// One org floods, another writes a single event: the quiet one is in the very next transaction.
#[test]
fn a_quiet_org_goes_first() {
    let mut options = options();
    (options.lane_bytes, options.total_bytes) = (1 << 20, 1 << 22);
    let mut scheduler = Scheduler::new(options, Instant::now());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let now = Instant::now();
    for seq in 1..=2_000 {
        scheduler.offer(org(1), &delivery(org(1), seq, now));
    }
    for _ in 0..4 {
        let group = scheduler.next_group(now).unwrap();
        finish(&mut scheduler, &group, 40, now);
    }
    scheduler.offer(org(2), &delivery(org(2), 2_001, now));
    let group = scheduler.next_group(now).unwrap();
    assert_eq!(group.batches[0].key.org, org(2));
    assert_eq!(group.batches.len(), Pipeline::ALL.len(), "all pipelines of it, and nobody else's backlog");
}

/// The benchmark's bound: the flood is not served, neither in memory nor beyond, and the others continue.
#[test]
fn a_large_backlog_can_be_left_alone() {
    let options = WorkerOptions { policy: Policy::Held, lane_bytes: 1 << 20, total_bytes: 1 << 22, ..options() };
    let mut scheduler = Scheduler::new(options, Instant::now());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let now = Instant::now();
    for seq in 1..=20_000 {
        scheduler.offer(org(1), &delivery(org(1), seq, now));
    }
    assert!(scheduler.lanes().all(|(_, lane)| lane.skipped.is_some()), "it does not fit in memory");
    for seq in 20_001..20_010 {
        assert!(scheduler.next_group(now).is_none());
        scheduler.offer(org(2), &delivery(org(2), seq, now));
        let group = scheduler.next_group(now).unwrap();
        assert!(group.batches.iter().all(|batch| batch.key.org == org(2)));
        finish(&mut scheduler, &group, 40, now);
    }
}

/// A message that always fails is found, tried a few times, and then parked; the lane continues behind it.
#[test]
fn a_poisoned_message_is_parked_after_its_attempts() {
    let mut scheduler = Scheduler::new(options(), Instant::now());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let mut now = Instant::now();
    for seq in 1..=2 {
        scheduler.offer(org(1), &delivery(org(1), seq, now));
    }
    let mut parked = Vec::new();
    let mut applied = Vec::new();
    for _ in 0..40 {
        now += Duration::from_secs(10);
        let Some(group) = scheduler.next_group(now) else { continue };
        let mut outcomes = Vec::new();
        for batch in &group.batches {
            let poisoned = batch.deliveries.iter().any(|one| one.seq() == 1);
            let outcome = if poisoned && batch.park_first.is_none() && batch.key.pipeline == Pipeline::ReadModels {
                BatchOutcome::Failed { reason: "poison".to_owned() }
            } else {
                parked.extend(batch.park_first.clone());
                if batch.key.pipeline == Pipeline::ReadModels {
                    applied.extend(batch.deliveries.iter().map(|one| one.seq()));
                }
                spent(1_000)
            };
            outcomes.push(outcome);
        }
        // Batches that share a transaction with a failing one are undone with it.
        let failed = outcomes.iter().any(|outcome| matches!(outcome, BatchOutcome::Failed { .. }));
        for outcome in outcomes.iter_mut().filter(|outcome| failed && matches!(outcome, BatchOutcome::Applied { .. })) {
            *outcome = BatchOutcome::Undone;
        }
        scheduler.done(&group, outcomes, now, 0.5);
    }
    assert_eq!(parked, ["poison"]);
    assert_eq!(applied, [1, 2]);
}

/// Rebuilds have the lowest priority: they leave the reserve alone, and their slots do not count as other work.
#[test]
fn slots_are_lent_to_rebuilds_but_for_the_reserve() {
    let begun = Instant::now();
    let mut scheduler = Scheduler::new(options(), begun);
    let now = begun + Duration::from_secs(1);
    let lent = (0..options().slots).filter(|_| scheduler.lend_slot()).count();
    assert_eq!(lent, options().slots - options().reserve);
    assert!(!scheduler.is_at_work(now));
    scheduler.open_shard(SHARD, 1, 0, &[]);
    scheduler.offer(org(1), &delivery(org(1), 1, now));
    assert!(scheduler.is_at_work(now));
    let group = scheduler.next_group(now).expect("the reserve is free");
    assert!(!scheduler.lend_slot() && scheduler.is_at_work(now));
    let outcomes = group.batches.iter().map(|_| spent(300)).collect();
    scheduler.done(&group, outcomes, now, 0.5);
    // For a moment; then there is no work.
    assert!(scheduler.is_at_work(now) && !scheduler.is_at_work(now + Duration::from_secs(1)));
    scheduler.return_slot();
    assert!(scheduler.lend_slot());
}
