//! All lanes of all owned shards, in one place, owned by one task; no lock and no await in here.
//!
//! This file handles the inputs: messages, catch-up reads, shards. [`dispatch`] selects the next transaction.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_events::{OrgId, Pipeline, PlanName, Shard};
use orgstream_projections::BatchClass;

use crate::{
    delivery::Delivery,
    lane::{Lane, LaneKey, LaneState, Org},
    options::WorkerOptions,
    work_class::{ByClass, WorkClass},
};

mod baseline;
mod dispatch;
mod outage;

/// Consecutive catch-up reads that may bring nothing before the skipped messages count as gone.
const EMPTY_REFILLS: u32 = 20;
/// Bytes that a lane without any message may fetch when all lanes together are at their limit. One message is returned
/// in any case.
const LEAST_REFILL: usize = 2 * 1024;
/// Bytes of the largest catch-up read: the log's server sends it before what other orgs request.
const MOST_REFILL: usize = 512 * 1024;
/// Catch-up reads by which an org's other pipelines may be ahead of a lane: it has what they read, and need not read it
/// again.
const SHARED_REFILLS: usize = 4;
/// A catch-up read may take the free memory divided by this.
const REFILL_PART: usize = 16;

/// A part of one lane for one transaction.
#[derive(Debug)]
pub(crate) struct LaneBatch {
    pub(crate) key: LaneKey,
    pub(crate) epoch: u64,
    /// The opening of the shard that it is from.
    opening: u64,
    /// The checkpoint that the batch starts from, as far as it is known.
    pub(crate) from: Option<u64>,
    /// In order, at least one.
    pub(crate) deliveries: Vec<Arc<Delivery>>,
    /// Park the first instead of applying it, for this reason.
    pub(crate) park_first: Option<String>,
    /// Earlier tries of the first.
    pub(crate) attempts: u32,
    /// Microseconds that the org was charged when the batch was handed out.
    charged: f64,
}

impl LaneBatch {
    fn units(&self) -> f64 {
        self.deliveries.iter().map(|delivery| delivery.units()).sum()
    }
}

/// The content of one transaction.
#[derive(Debug)]
pub(crate) struct Group {
    /// At least one, each of another lane.
    pub(crate) batches: Vec<LaneBatch>,
    class: WorkClass,
    /// When it got its slot.
    pub(crate) begun: Instant,
}

impl Group {
    fn new(begun: Instant) -> Self {
        Self { batches: Vec::new(), class: WorkClass::Light, begun }
    }

    /// The first batch of every org in it.
    fn firsts(&self) -> impl Iterator<Item = &LaneBatch> {
        let before = |place: usize| self.batches.iter().take(place);
        let first = move |(place, batch): (usize, _)| {
            let batch: &LaneBatch = batch;
            before(place).all(|other| other.key.org != batch.key.org).then_some(batch)
        };
        self.batches.iter().enumerate().filter_map(first)
    }

    /// The class of its connections. Under the baseline policies all work is of one class, and the group's content
    /// decides.
    pub(crate) fn class(&self) -> BatchClass {
        let is_small = self.batches.iter().all(|batch| batch.units() <= dispatch::FEW_UNITS);
        if self.class == WorkClass::Light && is_small { BatchClass::Light } else { BatchClass::Backlog }
    }

    /// The timeout of each of its statements.
    pub(crate) fn timeout(&self, options: &WorkerOptions) -> Duration {
        if self.batches.len() > 1 { options.group_timeout() } else { options.message_timeout }
    }
}

/// Database time of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Its share of beginning and committing the transaction.
    pub(crate) shared: Duration,
    /// The time to open it.
    pub(crate) opening: Duration,
    /// The time for its messages.
    pub(crate) work: Duration,
    /// The time in which a search target took what it was sent. It says nothing about the cost of messages.
    pub(crate) elsewhere: Duration,
}

impl Cost {
    pub(crate) fn total(self) -> Duration {
        self.shared + self.opening + self.work + self.elsewhere
    }
}

/// The outcome of a batch.
#[derive(Debug)]
pub(crate) enum BatchOutcome {
    /// Rows and checkpoint are committed; the org had this plan before. `elsewhere` says whether the rows are in a search
    /// target.
    Applied { cost: Cost, plan: PlanName, elsewhere: bool },
    /// Nothing happened: the stored checkpoint is another.
    Moved { stored: u64 },
    /// Nothing happened: the shard belongs to another worker.
    Fenced,
    /// Nothing happened, through no fault of this batch: another one of the transaction failed.
    Undone,
    /// Nothing happened, through no fault of any batch: the database cannot be reached, or does not do what is
    /// requested.
    Unavailable(Trouble),
    /// Nothing happened: a statement of the transaction timed out.
    TimedOut,
    /// Nothing happened: the database rejects the batch's content.
    Failed { reason: String },
}

/// An error that keeps the database from doing what is requested.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) reason: Arc<str>,
    /// Whether it would be the same for all orgs.
    pub(crate) everywhere: bool,
    /// Whether the batch itself failed with it, so that others should not share a transaction with its lane.
    pub(crate) suspect: bool,
    /// Whether it is one of a search target.
    pub(crate) elsewhere: bool,
}

/// The next range of the log that a catching up lane needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CatchUpRead {
    pub(crate) key: LaneKey,
    pub(crate) from: u64,
    /// The limit in bytes, by the room there is.
    pub(crate) bytes: usize,
}

/// An org's messages in a part of the log that the cursor skips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) org: OrgId,
    /// Its first message there.
    pub(crate) next: u64,
    /// Its last one, there or later.
    pub(crate) last: u64,
}

/// A lane that was behind the low watermark of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) org: OrgId,
    pub(crate) pipeline: Pipeline,
    /// Its checkpoint in the database.
    pub(crate) stored: u64,
    /// The org's last message.
    pub(crate) last: u64,
}

/// The low watermark of a shard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Everything up to here is applied, except in the catching up lanes.
    pub(crate) seq: u64,
    /// The lanes that are behind and resume from their own checkpoints.
    pub(crate) catching_up: Vec<(OrgId, Pipeline)>,
}

/// A place in the queue: the lowest rank is first, and of equal ranks, the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: u64,
    /// Counts the queued lanes. A place with another turn than its lane's last is out of date.
    turn: u64,
    key: LaneKey,
}

#[derive(Debug)]
struct OwnedShard {
    epoch: u64,
    /// Counts the openings of all shards: a batch that outlives its own says nothing about the lanes of the next.
    opening: u64,
    cursor: u64,
}

pub(crate) struct Scheduler {
    options: WorkerOptions,
    /// The weight of an org until its first batch has returned its plan.
    usual_weight: f64,
    orgs: HashMap<(Shard, OrgId), Org>,
    shards: HashMap<Shard, OwnedShard>,
    /// Lanes that wait for a slot, by work class.
    ready: ByClass<BinaryHeap<Reverse<Place>>>,
    backing_off: BinaryHeap<Reverse<(Instant, LaneKey)>>,
    /// Lanes that want a catch-up read, the longest-waiting first, each once.
    wants_catch_up: VecDeque<LaneKey>,
    openings: u64,
    bytes: usize,
    /// Bytes of the running catch-up reads, for every lane that may take them.
    promised: usize,
    service: dispatch::Service,
    outage: outage::Outage,
}

impl Scheduler {
    pub(crate) fn new(options: WorkerOptions, now: Instant) -> Self {
        Self {
            usual_weight: options.weights.usual(),
            options,
            orgs: HashMap::new(),
            shards: HashMap::new(),
            ready: ByClass::default(),
            backing_off: BinaryHeap::new(),
            wants_catch_up: VecDeque::new(),
            openings: 0,
            bytes: 0,
            promised: 0,
            service: dispatch::Service::new(now),
            outage: outage::Outage::default(),
        }
    }

    /// Returns the error that keeps the database from serving any org, while there is one.
    pub(crate) fn trouble(&self, now: Instant) -> Option<&Arc<str>> {
        self.outage.reason(now)
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = (LaneKey, &Lane)> {
        self.orgs.iter().flat_map(|((shard, org), state)| {
            state.lanes().map(|(pipeline, lane)| (LaneKey { shard: *shard, org: *org, pipeline }, lane))
        })
    }

    fn lane(&self, key: LaneKey) -> Option<&Lane> {
        self.orgs.get(&(key.shard, key.org)).map(|org| org.lane(key.pipeline))
    }

    fn lane_mut(&mut self, key: LaneKey) -> Option<&mut Lane> {
        self.orgs.get_mut(&(key.shard, key.org)).map(|org| org.lane_mut(key.pipeline))
    }

    /// Returns the lane, created if it is new.
    fn lane_entry(&mut self, key: LaneKey) -> &mut Lane {
        let usual = self.usual_weight;
        self.orgs.entry((key.shard, key.org)).or_insert_with(|| Org::new(usual)).lane_mut(key.pipeline)
    }

    /// Returns the orgs' weights, and the number of orgs of each; the same weight may occur again.
    pub(crate) fn weights(&self) -> Vec<(f64, u32)> {
        let mut runs: Vec<(f64, u32)> = Vec::new();
        for org in self.orgs.values() {
            match runs.last_mut() {
                Some((weight, orgs)) if weight.to_bits() == org.weight.to_bits() => *orgs += 1,
                _ => runs.push((org.weight, 1)),
            }
        }
        runs
    }

    /// Bytes of messages in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a shard that is this worker's, read from `mark` on; `behind` names the lanes that resume from their own
    /// checkpoints.
    pub(crate) fn open_shard(&mut self, shard: Shard, epoch: u64, mark: u64, behind: &[Behind]) {
        self.openings += 1;
        self.shards.insert(shard, OwnedShard { epoch, opening: self.openings, cursor: mark });
        for Behind { org, pipeline, stored, last } in behind.iter().copied() {
            let key = LaneKey { shard, org, pipeline };
            self.lane_entry(key).resume(stored, last);
            self.settle(key);
        }
    }

    /// Records that the cursor of a shard continues behind `to`; `passed` names every org that has messages up to
    /// there.
    pub(crate) fn fast_forward(&mut self, shard: Shard, to: u64, passed: &[Passed]) {
        self.pass(shard, to);
        if !self.shards.contains_key(&shard) {
            return;
        }
        for Passed { org, next, last } in passed.iter().copied() {
            for pipeline in Pipeline::ALL {
                let key = LaneKey { shard, org, pipeline };
                self.lane_entry(key).fast_forward(next, last);
                self.settle(key);
            }
        }
    }

    /// Removes a shard that is no longer this worker's. Batches in slots end by themselves; the epoch in them decides.
    pub(crate) fn close_shard(&mut self, shard: Shard) {
        self.shards.remove(&shard);
        for class in WorkClass::ALL {
            self.ready[class].retain(|Reverse(place)| place.key.shard != shard);
        }
        let bytes = &mut self.bytes;
        self.orgs.retain(|(of, _), org| {
            let keep = *of != shard;
            if !keep {
                *bytes -= org.lanes().map(|(_, lane)| lane.bytes()).sum::<usize>();
            }
            keep
        });
    }

    /// Takes a message from a shard's cursor.
    pub(crate) fn offer(&mut self, org: OrgId, delivery: &Arc<Delivery>) {
        let shard = delivery.message.shard;
        let Some(owned) = self.shards.get_mut(&shard) else { return };
        owned.cursor = owned.cursor.max(delivery.seq());
        for pipeline in Pipeline::ALL {
            let key = LaneKey { shard, org, pipeline };
            let room = self.room();
            let added = self.lane_entry(key).offer(delivery, room);
            self.bytes += added;
            self.settle(key);
        }
    }

    /// Returns the limit in bytes of a growing lane: half of what is still free, so that a lane with a burst need not
    /// read the log again, and several leave room for each other. Over the total, a lane may only have one message at a
    /// time.
    fn room(&self) -> usize {
        match self.options.total_bytes.checked_sub(self.bytes) {
            None | Some(0) => 0,
            Some(free) => self.options.lane_bytes.max(free / 2),
        }
    }

    /// Records that the cursor passed a message that belongs to no lane: its place in the shard still counts.
    pub(crate) fn pass(&mut self, shard: Shard, seq: u64) {
        if let Some(owned) = self.shards.get_mut(&shard) {
            owned.cursor = owned.cursor.max(seq);
        }
    }

    /// Takes the result of a catch-up read; `None` when the log could not be read. Returns the sequence from which
    /// messages appear to be gone.
    ///
    /// The org's other lanes take from it what they need next, so that the pipelines of a catching up org, which
    /// advance side by side, read and decode its messages once.
    pub(crate) fn caught_up(&mut self, wish: CatchUpRead, chunk: Option<&[Arc<Delivery>]>) -> Option<u64> {
        let key = wish.key;
        self.promised = self.promised.saturating_sub(wish.bytes * Pipeline::ALL.len());
        let lane = self.orgs.get_mut(&(key.shard, key.org))?.lane_mut(key.pipeline);
        lane.catching_up_now = None;
        let mut lost = None;
        // A lane that was rewound or moved on meanwhile needs something else.
        let still_wanted = lane.skipped.is_some_and(|skipped| skipped.next == wish.from);
        match chunk {
            _ if !still_wanted => {}
            Some([]) => {
                lane.empty_catch_up_reads += 1;
                if lane.empty_catch_up_reads >= EMPTY_REFILLS {
                    lost = lane.skipped.take().map(|skipped| skipped.next);
                    lane.empty_catch_up_reads = 0;
                }
            }
            Some(chunk) => {
                lane.empty_catch_up_reads = 0;
                for delivery in chunk {
                    self.bytes += lane.catch_up_read(Arc::clone(delivery));
                }
            }
            None => {}
        }
        self.settle(key);
        for other in others(key) {
            self.share(other, wish.from, chunk.unwrap_or_default());
            self.settle(other);
        }
        lost
    }

    /// Gives a lane what it needs of a chunk that has all messages of its org from `from` on.
    fn share(&mut self, key: LaneKey, from: u64, chunk: &[Arc<Delivery>]) {
        let (Some(lane), Some(last)) = (self.lane(key), chunk.last()) else { return };
        let Some(next) = lane.skipped.map(|skipped| skipped.next) else { return };
        if !(from..=last.seq()).contains(&next) || !self.has_room(lane, SHARED_REFILLS * self.catch_up_bytes()) {
            return;
        }
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        let lane = org.lane_mut(key.pipeline);
        for delivery in chunk.iter().filter(|delivery| delivery.seq() >= next) {
            self.bytes += lane.catch_up_read(Arc::clone(delivery));
        }
    }

    /// Whether a catch-up read that is running for another lane of the org may bring the messages from `next` on.
    fn is_on_its_way(&self, key: LaneKey, next: u64) -> bool {
        let begins = |other: LaneKey| self.lane(other).and_then(|lane| lane.catching_up_now);
        others(key).any(|other| begins(other).is_some_and(|from| from <= next))
    }

    /// Returns the catch-up reads to start now, one per lane until [`Scheduler::caught_up`].
    pub(crate) fn catch_up_reads(&mut self, at_most: usize) -> Vec<CatchUpRead> {
        let mut wishes = Vec::new();
        while wishes.len() < at_most {
            let Some(key) = self.wants_catch_up.pop_front() else { break };
            let Some(lane) = self.lane_mut(key) else { continue };
            lane.wants_catch_up = false;
            let Some(from) = lane.skipped.map(|skipped| skipped.next).filter(|_| lane.catching_up_now.is_none()) else {
                continue;
            };
            if self.is_on_its_way(key, from) {
                continue;
            }
            let bytes = self.catch_up_bytes();
            if let Some(lane) = self.lane_mut(key) {
                lane.catching_up_now = Some(from);
                self.promised += bytes * Pipeline::ALL.len();
                wishes.push(CatchUpRead { key, from, bytes });
            }
        }
        wishes
    }

    /// The current size limit of a catch-up read.
    fn catch_up_bytes(&self) -> usize {
        let lane_bytes = self.options.lane_bytes;
        match self.options.total_bytes.checked_sub(self.bytes + self.promised) {
            None | Some(0) => lane_bytes.min(LEAST_REFILL),
            Some(free) => (free / REFILL_PART).min(MOST_REFILL).max(lane_bytes),
        }
    }

    /// Whether a catching up lane that has no more than `bytes` may get what it skipped. Over the total, it must be
    /// empty; it is considered again after its batch.
    fn has_room(&self, lane: &Lane, bytes: usize) -> bool {
        lane.bytes() == 0 || (lane.bytes() <= bytes && self.bytes < self.options.total_bytes)
    }

    /// Returns the low watermarks of the owned shards, from which a restart begins.
    pub(crate) fn marks(&self) -> HashMap<Shard, Mark> {
        let mut marks: HashMap<Shard, Mark> = self
            .shards
            .iter()
            .map(|(shard, owned)| (*shard, Mark { seq: owned.cursor, catching_up: Vec::new() }))
            .collect();
        for (key, lane) in self.lanes() {
            let oldest = lane.oldest();
            if lane.skipped.is_none() && oldest.is_none() {
                continue;
            }
            let Some(mark) = marks.get_mut(&key.shard) else { continue };
            if lane.skipped.is_some() {
                mark.catching_up.push((key.org, key.pipeline));
            } else if let Some(oldest) = oldest {
                mark.seq = mark.seq.min(oldest.seq() - 1);
            }
        }
        for mark in marks.values_mut() {
            mark.catching_up.sort_unstable();
        }
        marks
    }

    /// Updates a lane's queues after any change of it.
    fn settle(&mut self, key: LaneKey) {
        let wants = |lane: &Lane| lane.skipped.is_some() && lane.catching_up_now.is_none() && !lane.wants_catch_up;
        // Half empty is early enough: the catch-up read runs while the rest is applied.
        let has_room = |lane: &Lane| self.has_room(lane, self.catch_up_bytes() / 2);
        let wants_catch_up = self.lane(key).is_some_and(|lane| wants(lane) && has_room(lane));
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        let lane = org.lane_mut(key.pipeline);
        if wants_catch_up {
            lane.wants_catch_up = true;
            self.wants_catch_up.push_back(key);
        }
        if lane.state == LaneState::Idle && !lane.is_empty() {
            self.line_up(key);
        }
    }
}

/// The lanes of the same org in the other pipelines.
fn others(key: LaneKey) -> impl Iterator<Item = LaneKey> {
    Pipeline::ALL
        .into_iter()
        .filter(move |pipeline| *pipeline != key.pipeline)
        .map(move |pipeline| LaneKey { pipeline, ..key })
}

#[cfg(test)]
mod tests;
