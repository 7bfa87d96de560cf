//! The scheduler against a model: a log, a database with checkpoints, and everything that can go wrong in between.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use orgstream_events::{AggregateId, EventSubject, RecordId};
use orgstream_stream::Message;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SHARD: Shard = Shard(3);

fn org(number: u8) -> OrgId {
    OrgId::fresh(1_700_000_000_000, [number; 10])
}

fn delivery(org: OrgId, seq: u64, now: Instant) -> Arc<Delivery> {
    let aggregate = AggregateId::Record(RecordId::fresh(0, [seq as u8; 10]));
    let subject = EventSubject { shard: SHARD, org, aggregate }.to_string();
    let payload = Bytes::from_static(&[0; 200]);
    Delivery::new(Message { shard: SHARD, seq, subject, payload, trace: None }, now)
}

fn key(number: u8) -> LaneKey {
    LaneKey { shard: SHARD, org: org(number), pipeline: Pipeline::ReadModels }
}

fn options() -> WorkerOptions {
    // Room for two or three messages a lane and a dozen in all, so that detaching is the rule.
    WorkerOptions { lane_bytes: 1_500, total_bytes: 6_000, attempts: 3, ..WorkerOptions::new(Uuid::nil()) }
}

/// What survives a crash: the log, the tables, and the mark.
#[derive(Default)]
struct World {
    log: Vec<(u64, OrgId)>,
    checkpoints: HashMap<(OrgId, Pipeline), u64>,
    applied: BTreeMap<(OrgId, Pipeline), Vec<u64>>,
    mark: Mark,
    on_disk: OnDisk,
}

/// The tables as a crash of the database leaves them: as they were at the last commit that waited for the disk.
#[derive(Clone, Default)]
struct OnDisk {
    checkpoints: HashMap<(OrgId, Pipeline), u64>,
    applied: BTreeMap<(OrgId, Pipeline), Vec<u64>>,
}

impl World {
    fn sync(&mut self) {
        self.on_disk = OnDisk { checkpoints: self.checkpoints.clone(), applied: self.applied.clone() };
    }

    /// What `ops.open_slice` and the apply behind it do: nothing unless the checkpoint is where the slice begins.
    fn open(&mut self, slice: &LaneSlice) -> bool {
        let lane = (slice.key.org, slice.key.pipeline);
        let fits = match self.checkpoints.get(&lane) {
            None => slice.from.unwrap_or_default() == 0,
            stored => slice.from.as_ref() == stored,
        };
        if fits {
            self.checkpoints.insert(lane, slice.deliveries.last().unwrap().seq());
            self.applied.entry(lane).or_default().extend(slice.deliveries.iter().map(|one| one.seq()));
        }
        fits
    }
}

struct Model {
    world: World,
    scheduler: Scheduler,
    cursor: u64,
    in_slots: Vec<Vec<LaneSlice>>,
    refills: Vec<(RefillWish, Vec<Arc<Delivery>>)>,
    now: Instant,
    peak: usize,
}

impl Model {
    fn new() -> Self {
        let mut scheduler = Scheduler::new(options());
        scheduler.open_shard(SHARD, 1, 0, &[]);
        let (world, in_slots) = (World::default(), Vec::new());
        Self { world, scheduler, cursor: 0, in_slots, refills: Vec::new(), now: Instant::now(), peak: 0 }
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

    fn dispatch(&mut self) {
        let group = self.scheduler.next_group(self.now);
        if !group.is_empty() {
            self.in_slots.push(group);
        }
    }

    /// Commits the oldest group as the database would: each slice by its own checkpoint.
    fn commit(&mut self) {
        if self.in_slots.is_empty() {
            return;
        }
        for slice in self.in_slots.remove(0) {
            let lane = (slice.key.org, slice.key.pipeline);
            let outcome = if self.world.open(&slice) {
                spent(300)
            } else {
                SliceOutcome::Moved { stored: self.world.checkpoints.get(&lane).copied().unwrap_or_default() }
            };
            self.scheduler.done(&slice, outcome, self.now, 0.5);
        }
    }

    /// The transaction of the oldest group fails; `unknown` commits it, but nobody hears of it.
    fn fail(&mut self, how: u8) {
        if self.in_slots.is_empty() {
            return;
        }
        let group = self.in_slots.remove(0);
        for (place, slice) in group.iter().enumerate() {
            if how == 0 {
                self.world.open(slice);
            }
            let outcome = match (how, place) {
                (0 | 1, _) => SliceOutcome::Unavailable,
                (_, 0) => SliceOutcome::Failed { reason: "no".to_owned() },
                _ => SliceOutcome::Undone,
            };
            self.scheduler.done(slice, outcome, self.now, 0.5);
        }
    }

    /// The refills that were under way arrive, and others begin.
    fn refill(&mut self) {
        for (wish, chunk) in std::mem::take(&mut self.refills) {
            self.scheduler.refilled(wish, Some(&chunk));
        }
        for wish in self.scheduler.refills(4) {
            // Two at a time, and not beyond what the log has.
            let chunk = self.world.log.iter().filter(|(seq, org)| *seq >= wish.from && *org == wish.key.org);
            let chunk = chunk.take(2).map(|(seq, org)| delivery(*org, *seq, self.now)).collect();
            self.refills.push((wish, chunk));
        }
        self.peak = self.peak.max(self.scheduler.bytes());
    }

    fn write_mark(&mut self) {
        self.world.mark = self.scheduler.mark(SHARD).unwrap();
        self.world.sync();
        self.check_mark();
    }

    /// Everything up to the mark is applied, but for the lanes that the mark names.
    fn check_mark(&self) {
        let mark = &self.world.mark;
        for (seq, org) in self.world.log.iter().filter(|(seq, _)| *seq <= mark.seq) {
            for pipeline in Pipeline::ALL {
                let stored = self.world.checkpoints.get(&(*org, pipeline)).copied().unwrap_or_default();
                assert!(
                    stored >= *seq || mark.detached.contains(&(*org, pipeline)),
                    "the mark {} passes {seq} of {org}, which {pipeline} has only to {stored}",
                    mark.seq,
                );
            }
        }
    }

    /// The process dies; the next one begins where the mark says.
    fn restart(&mut self) {
        self.in_slots.clear();
        self.refills.clear();
        self.scheduler = Scheduler::new(options());
        self.open(2);
    }

    /// The shard is given back and taken again, while slices and refills from before are still under way.
    fn reopen(&mut self) {
        self.scheduler.close_shard(SHARD);
        self.open(2);
    }

    /// The database forgets what was not synced, and what was in slots; the worker begins again at the mark.
    fn crash(&mut self) {
        let OnDisk { checkpoints, applied } = self.world.on_disk.clone();
        (self.world.checkpoints, self.world.applied) = (checkpoints, applied);
        let lost = std::mem::take(&mut self.in_slots);
        self.reopen();
        for slice in lost.iter().flatten() {
            self.scheduler.done(slice, SliceOutcome::Unavailable, self.now, 0.5);
        }
    }

    fn open(&mut self, epoch: u64) {
        let mark = &self.world.mark;
        let behind: Vec<_> = mark
            .detached
            .iter()
            .map(|(org, pipeline)| {
                (*org, *pipeline, self.world.checkpoints.get(&(*org, *pipeline)).copied().unwrap_or_default())
            })
            .collect();
        self.cursor = mark.seq;
        self.scheduler.open_shard(SHARD, epoch, mark.seq, &behind);
    }

    /// The tables of an org are emptied; the worker is told, and writes it down.
    fn reset(&mut self, org: OrgId) {
        let lane = (org, Pipeline::ReadModels);
        self.world.checkpoints.insert(lane, 0);
        self.world.applied.remove(&lane);
        self.world.sync();
        self.scheduler.rewind(LaneKey { shard: SHARD, org, pipeline: Pipeline::ReadModels }, 0);
        self.write_mark_unless_running(org);
    }

    /// A lane in a slot learns of its reset when the slice ends; until then the reset is not forgotten.
    fn write_mark_unless_running(&mut self, org: OrgId) {
        while self.in_slots.iter().flatten().any(|slice| slice.key.org == org) {
            self.commit();
        }
        self.write_mark();
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.now += Duration::from_secs(10);
            self.read();
            self.refill();
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
                9 => model.fail(who % 3),
                10 => model.refill(),
                11 => model.write_mark(),
                12 if who == 0 => model.restart(),
                13 if who == 0 => model.reset(org(1)),
                14 if who == 0 => model.reopen(),
                15 if who == 0 => model.crash(),
                _ => model.now += Duration::from_millis(60),
            }
        }
        model.finish();
        model.write_mark();
        prop_assert_eq!(model.world.mark.seq, model.world.log.len() as u64);
        prop_assert!(model.world.mark.detached.is_empty());
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

fn spent(micros: u64) -> SliceOutcome {
    SliceOutcome::Applied { cost: Cost { overhead: Duration::ZERO, work: Duration::from_micros(micros) } }
}

/// Whatever a transaction costs beside its messages, a slice does not become smaller for it: a database that is slow
/// would be asked for more and more transactions of fewer and fewer messages.
#[test]
fn slices_keep_their_size_when_the_database_is_slow() {
    let mut options = options();
    (options.lane_bytes, options.total_bytes) = (1 << 20, 1 << 22);
    let now = Instant::now();
    for (overhead, least) in [(100, 80), (3_000, 80), (20_000, 200)] {
        let mut scheduler = Scheduler::new(options.clone());
        scheduler.open_shard(SHARD, 1, 0, &[]);
        let (mut seq, mut last) = (0, 0);
        for _ in 0..60 {
            while scheduler.lanes.get(&key(1)).is_none_or(|lane| lane.len() < 500) {
                seq += 1;
                scheduler.offer(org(1), &delivery(org(1), seq, now));
            }
            for slice in scheduler.next_group(now) {
                let messages = slice.deliveries.len() as u64;
                if slice.key == key(1) {
                    last = messages;
                }
                let cost = Cost {
                    overhead: Duration::from_micros(overhead),
                    work: Duration::from_micros(overhead / 10 + 40 * messages),
                };
                scheduler.done(&slice, SliceOutcome::Applied { cost }, now, 0.5);
            }
        }
        assert!(last >= least, "{last} messages with {overhead} µs around them");
    }
}

/// However long a lane stays detached, it stands in the queue for refills once, and nobody who came later goes first.
#[test]
fn a_detached_lane_waits_for_its_refill_in_turn() {
    let mut scheduler = Scheduler::new(options());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let now = Instant::now();
    for seq in 1..=1_000 {
        let who = org(if seq <= 500 { 1 } else { 2 });
        scheduler.offer(who, &delivery(who, seq, now));
        for slice in scheduler.next_group(now) {
            scheduler.done(&slice, spent(1_000), now, 0.5);
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
    while let group @ [_, ..] = scheduler.next_group(now).as_slice() {
        for slice in group {
            scheduler.done(slice, spent(1_000), now, 0.5);
        }
    }
    flood(&mut scheduler, 2_000);
    assert_eq!(scheduler.wants_refill.len(), 4);
    let first = scheduler.wants_refill.front().copied();
    assert_eq!(scheduler.refills(1).first().map(|wish| wish.key), first);
}

/// However many lanes are detached, refills keep to the total; and what they bring for one pipeline, the other takes too.
#[test]
fn refills_stop_at_the_total_and_are_shared() {
    let now = Instant::now();
    let owner = |seq: u64| org((seq % 40) as u8);
    let log: Vec<Arc<Delivery>> = (1..=16_000).map(|seq| delivery(owner(seq), seq, now)).collect();
    let lane_bytes = 32 << 10;
    for total_bytes in [64 << 10, 16 << 20] {
        let mut scheduler = Scheduler::new(WorkerOptions { lane_bytes, total_bytes, ..options() });
        scheduler.open_shard(SHARD, 1, 0, &[]);
        for message in &log {
            scheduler.offer(owner(message.seq()), message);
        }
        let (mut refills, mut peak) = (0, 0);
        loop {
            for wish in scheduler.refills(8) {
                let mut room = wish.bytes;
                let is_wanted =
                    |message: &&Arc<Delivery>| message.seq() >= wish.from && owner(message.seq()) == wish.key.org;
                let chunk = log.iter().filter(is_wanted).take_while(|message| {
                    let fits = room > 0;
                    room = room.saturating_sub(message.bytes());
                    fits
                });
                let chunk: Vec<_> = chunk.cloned().collect();
                scheduler.refilled(wish, Some(&chunk));
                refills += 1;
            }
            peak = peak.max(scheduler.bytes());
            let group = scheduler.next_group(now);
            if group.is_empty() {
                break;
            }
            for slice in group {
                scheduler.done(&slice, spent(40 * slice.deliveries.len() as u64), now, 0.5);
            }
        }
        assert!(scheduler.lanes.values().all(|lane| lane.skipped.is_none() && lane.is_empty()));
        // Eight refills are asked for at a time, and each may fill two lanes.
        let bound = total_bytes + 8 * 2 * lane_bytes + 80 * LEAST_REFILL;
        assert!(peak <= bound, "{peak} of {bound} bytes");
        let read_once = log.len() * log[0].bytes() / lane_bytes;
        if total_bytes > lane_bytes * 80 {
            assert!(refills < 2 * read_once, "{refills} refills for what {read_once} could bring to both pipelines");
        }
    }
}

/// One org floods, another writes a single event: the quiet one is in the very next transaction.
#[test]
fn a_quiet_org_goes_first() {
    let mut options = options();
    (options.lane_bytes, options.total_bytes) = (1 << 20, 1 << 22);
    let mut scheduler = Scheduler::new(options);
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let now = Instant::now();
    for seq in 1..=400 {
        scheduler.offer(org(1), &delivery(org(1), seq, now));
    }
    for _ in 0..4 {
        for slice in scheduler.next_group(now) {
            scheduler.done(&slice, spent(4_000), now, 0.5);
        }
    }
    scheduler.offer(org(2), &delivery(org(2), 401, now));
    let group = scheduler.next_group(now);
    assert_eq!(group[0].key.org, org(2));
}

/// A message that always fails is found, tried a few times, and then parked; the lane goes on behind it.
#[test]
fn a_poisoned_message_is_parked_after_its_attempts() {
    let mut scheduler = Scheduler::new(options());
    scheduler.open_shard(SHARD, 1, 0, &[]);
    let mut now = Instant::now();
    for seq in 1..=2 {
        scheduler.offer(org(1), &delivery(org(1), seq, now));
    }
    let mut parked = Vec::new();
    let mut applied = Vec::new();
    for _ in 0..40 {
        now += Duration::from_secs(10);
        for slice in scheduler.next_group(now) {
            let poisoned = slice.deliveries.iter().any(|one| one.seq() == 1);
            let outcome = if poisoned && slice.park_first.is_none() && slice.key.pipeline == Pipeline::ReadModels {
                SliceOutcome::Failed { reason: "poison".to_owned() }
            } else {
                parked.extend(slice.park_first.clone());
                if slice.key.pipeline == Pipeline::ReadModels {
                    applied.extend(slice.deliveries.iter().map(|one| one.seq()));
                }
                spent(1_000)
            };
            scheduler.done(&slice, outcome, now, 0.5);
        }
    }
    assert_eq!(parked, ["poison"]);
    assert_eq!(applied, [1, 2]);
}
