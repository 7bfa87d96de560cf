//! Who is next. All lanes of all owned shards, in one place, owned by one task; no lock and no await in here.
//!
//! Start-time fair queueing on measured cost: a lane is charged the database time of its slices after they ran, and the
//! lane that has had the least goes first. A lane that was idle starts at the current virtual time, so that sleeping
//! earns no credit. The unit that cannot be interrupted decides how long a quiet org waits, so slices are short.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_events::{OrgId, Pipeline, Shard};

use crate::{
    delivery::Delivery,
    lane::{Lane, LaneKey, LaneState},
    options::WorkerOptions,
};

/// Microseconds that a message is thought to cost before anything was measured, and a slice beside its messages.
const FIRST_COST: f64 = 200.0;
const FIRST_OVERHEAD: f64 = 500.0;
/// How much a new measurement counts.
const SMOOTHING: f64 = 0.2;
/// How many times the time that a slice aims for it may get when the database is slow.
const SLOWEST: f64 = 8.0;
/// Refills in a row that may bring nothing before the skipped messages count as gone.
const EMPTY_REFILLS: u32 = 20;
/// What a lane without any message may fetch when all lanes together have as much as they may, in bytes. One message comes
/// in any case.
const LEAST_REFILL: usize = 2 * 1024;

/// A piece of one lane for one transaction.
#[derive(Debug)]
pub(crate) struct LaneSlice {
    pub(crate) key: LaneKey,
    pub(crate) epoch: u64,
    /// Which opening of the shard it is from.
    opening: u64,
    /// The checkpoint that the slice starts from, as far as it is known.
    pub(crate) from: Option<u64>,
    /// In order, at least one.
    pub(crate) deliveries: Vec<Arc<Delivery>>,
    /// Park the first instead of applying it, for this reason.
    pub(crate) park_first: Option<String>,
    /// How often the first was tried before.
    pub(crate) attempts: u32,
}

/// Database time of a slice.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// What it takes whatever is in it: opening it, and its part of beginning and committing the transaction.
    pub(crate) overhead: Duration,
    /// What its messages took.
    pub(crate) work: Duration,
}

impl Cost {
    pub(crate) fn total(self) -> Duration {
        self.overhead + self.work
    }
}

/// How a slice ended.
#[derive(Debug)]
pub(crate) enum SliceOutcome {
    /// Rows and checkpoint are committed.
    Applied { cost: Cost },
    /// Nothing happened: the stored checkpoint is another.
    Moved { stored: u64 },
    /// Nothing happened: the shard belongs to another worker.
    Fenced,
    /// Nothing happened, through no fault of this slice: another one of the transaction failed.
    Undone,
    /// Nothing happened: the database cannot be reached or is too slow.
    Unavailable,
    /// Nothing happened: the database refuses what the slice says.
    Failed { reason: String },
}

/// A stretch of the log that a detached lane wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RefillWish {
    pub(crate) key: LaneKey,
    pub(crate) from: u64,
    /// As much as there is room for.
    pub(crate) bytes: usize,
}

/// What the mark of a shard may say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Everything up to here is applied, but for the detached lanes.
    pub(crate) seq: u64,
    /// The lanes that are behind and take care of themselves.
    pub(crate) detached: Vec<(OrgId, Pipeline)>,
}

#[derive(Debug)]
struct OwnedShard {
    epoch: u64,
    /// Counts the openings of all shards: a slice that outlives its own says nothing about the lanes of the next.
    opening: u64,
    cursor: u64,
}

pub(crate) struct Scheduler {
    options: WorkerOptions,
    lanes: HashMap<LaneKey, Lane>,
    shards: HashMap<Shard, OwnedShard>,
    ready: BinaryHeap<Reverse<(u64, LaneKey)>>,
    backing_off: BinaryHeap<Reverse<(Instant, LaneKey)>>,
    /// Lanes that want a refill, the one that has waited longest first, each once.
    wants_refill: VecDeque<LaneKey>,
    openings: u64,
    virtual_now: u64,
    bytes: usize,
    /// Microseconds per message and, beside them, per slice; smoothed over all lanes.
    cost: f64,
    overhead: f64,
}

impl Scheduler {
    pub(crate) fn new(options: WorkerOptions) -> Self {
        Self {
            options,
            lanes: HashMap::new(),
            shards: HashMap::new(),
            ready: BinaryHeap::new(),
            backing_off: BinaryHeap::new(),
            wants_refill: VecDeque::new(),
            openings: 0,
            virtual_now: 0,
            bytes: 0,
            cost: FIRST_COST,
            overhead: FIRST_OVERHEAD,
        }
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = (&LaneKey, &Lane)> {
        self.lanes.iter()
    }

    /// Bytes of messages in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shard is ours, read from `mark` on; `behind` names the lanes that resume from their own checkpoints.
    pub(crate) fn open_shard(&mut self, shard: Shard, epoch: u64, mark: u64, behind: &[(OrgId, Pipeline, u64)]) {
        self.openings += 1;
        self.shards.insert(shard, OwnedShard { epoch, opening: self.openings, cursor: mark });
        for (org, pipeline, stored) in behind {
            let key = LaneKey { shard, org: *org, pipeline: *pipeline };
            let virtual_now = self.virtual_now;
            let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(virtual_now));
            lane.resume(*stored, mark);
            self.settle(key);
        }
    }

    /// The shard is no longer ours. Slices in slots end by themselves; the epoch in them decides.
    pub(crate) fn close_shard(&mut self, shard: Shard) {
        self.shards.remove(&shard);
        let bytes = &mut self.bytes;
        self.lanes.retain(|key, lane| {
            let keep = key.shard != shard;
            if !keep {
                *bytes -= lane.bytes();
            }
            keep
        });
    }

    /// A message from a shard's cursor.
    pub(crate) fn offer(&mut self, org: OrgId, delivery: &Arc<Delivery>) {
        let shard = delivery.message.shard;
        let Some(owned) = self.shards.get_mut(&shard) else { return };
        owned.cursor = owned.cursor.max(delivery.seq());
        for pipeline in Pipeline::ALL {
            let key = LaneKey { shard, org, pipeline };
            let virtual_now = self.virtual_now;
            // Over the total, a lane may only have one message at a time; the others wait in the log.
            let room = if self.bytes < self.options.total_bytes { self.options.lane_bytes } else { 0 };
            let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(virtual_now));
            self.bytes += lane.offer(delivery, room);
            self.settle(key);
        }
    }

    /// The cursor passed something that is no lane's: its place in the shard still counts.
    pub(crate) fn pass(&mut self, shard: Shard, seq: u64) {
        if let Some(owned) = self.shards.get_mut(&shard) {
            owned.cursor = owned.cursor.max(seq);
        }
    }

    /// What a refill brought; `None` when the log could not be read. Returns where messages seem to be gone.
    ///
    /// The org's other lanes take from it what they want next, so that the pipelines of a detached org, which advance side
    /// by side, read and decode its messages once.
    pub(crate) fn refilled(&mut self, wish: RefillWish, chunk: Option<&[Arc<Delivery>]>) -> Option<u64> {
        let key = wish.key;
        let lane = self.lanes.get_mut(&key)?;
        lane.refilling = None;
        let mut lost = None;
        // A lane that was rewound or moved on meanwhile wants something else by now.
        let still_wanted = lane.skipped.is_some_and(|skipped| skipped.next == wish.from);
        match chunk {
            _ if !still_wanted => {}
            Some([]) => {
                lane.empty_refills += 1;
                if lane.empty_refills >= EMPTY_REFILLS {
                    lost = lane.skipped.take().map(|skipped| skipped.next);
                    lane.empty_refills = 0;
                }
            }
            Some(chunk) => {
                lane.empty_refills = 0;
                for delivery in chunk {
                    self.bytes += lane.refill(Arc::clone(delivery));
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

    /// Gives a lane what it wants of a chunk that has all messages of its org from `from` on.
    fn share(&mut self, key: LaneKey, from: u64, chunk: &[Arc<Delivery>]) {
        let (Some(lane), Some(last)) = (self.lanes.get_mut(&key), chunk.last()) else { return };
        let Some(next) = lane.skipped.map(|skipped| skipped.next) else { return };
        if (from..=last.seq()).contains(&next) && has_room(lane, self.bytes, &self.options) {
            for delivery in chunk.iter().filter(|delivery| delivery.seq() >= next) {
                self.bytes += lane.refill(Arc::clone(delivery));
            }
        }
    }

    /// Whether a refill that is under way for another lane of the org may bring what comes at `next`.
    fn is_on_its_way(&self, key: LaneKey, next: u64) -> bool {
        let begins = |other: LaneKey| self.lanes.get(&other).and_then(|lane| lane.refilling);
        others(key).any(|other| begins(other).is_some_and(|from| from <= next))
    }

    /// The tables of an org were reset to `stored`: read again from there.
    pub(crate) fn rewind(&mut self, key: LaneKey, stored: u64) {
        let Some(cursor) = self.shards.get(&key.shard).map(|owned| owned.cursor) else { return };
        let virtual_now = self.virtual_now;
        let lane = self.lanes.entry(key).or_insert_with(|| Lane::new(virtual_now));
        if lane.state == LaneState::Running {
            lane.rewind_to = Some(stored);
            return;
        }
        self.bytes -= lane.rewind(stored);
        if lane.skipped.is_none() {
            lane.resume(stored, cursor);
        }
        self.settle(key);
    }

    /// The lanes that want to be refilled now, each asked for once until [`Scheduler::refilled`].
    pub(crate) fn refills(&mut self, at_most: usize) -> Vec<RefillWish> {
        let mut wishes = Vec::new();
        while wishes.len() < at_most {
            let Some(key) = self.wants_refill.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.wants_refill = false;
            let Some(from) = lane.skipped.map(|skipped| skipped.next).filter(|_| lane.refilling.is_none()) else {
                continue;
            };
            if self.is_on_its_way(key, from) {
                continue;
            }
            let lane_bytes = self.options.lane_bytes;
            let bytes = if self.bytes < self.options.total_bytes { lane_bytes } else { lane_bytes.min(LEAST_REFILL) };
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.refilling = Some(from);
                wishes.push(RefillWish { key, from, bytes });
            }
        }
        wishes
    }

    /// The next transaction's worth of slices, beginning with the lane that has had the least.
    ///
    /// The time that a slice aims for is for its messages. When the database is so slow that the round trips around them
    /// take as long, it gets more: smaller slices would make the database slower still.
    pub(crate) fn next_group(&mut self, now: Instant) -> Vec<LaneSlice> {
        self.wake(now);
        let slice = self.options.slice.as_micros() as f64;
        let budget = (2.0 * self.overhead).clamp(slice, SLOWEST * slice);
        let mut group: Vec<LaneSlice> = Vec::new();
        let mut planned = 0.0;
        while group.len() < self.options.group_lanes && planned < budget {
            let Some(Reverse((virtual_time, key))) = self.ready.pop() else { break };
            let owned = self.shards.get(&key.shard).map(|owned| (owned.epoch, owned.opening));
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            if lane.state != LaneState::Ready || lane.virtual_time != virtual_time {
                continue;
            }
            let Some((epoch, opening)) = owned else { continue };
            if lane.is_empty() {
                lane.state = LaneState::Idle;
                self.settle(key);
                continue;
            }
            let cost = lane.cost.unwrap_or(self.cost).max(1.0);
            // A lane whose single messages are dear, or that failed, must not make others wait in its transaction. And a
            // lane that would not get all of its messages in gets more out of a transaction of its own.
            let alone = cost > budget || lane.step == 1;
            let fits = planned + self.overhead + lane.len() as f64 * cost <= budget;
            if (alone || !fits) && !group.is_empty() {
                self.ready.push(Reverse((virtual_time, key)));
                break;
            }
            self.virtual_now = self.virtual_now.max(virtual_time);
            lane.state = LaneState::Running;
            let messages = (((budget - planned) / cost) as usize).clamp(1, self.options.slice_messages);
            let deliveries = lane.take(messages).to_vec();
            planned += self.overhead + deliveries.len() as f64 * cost;
            let (from, park_first, attempts) = (lane.checkpoint, lane.park_first.clone(), lane.attempts);
            group.push(LaneSlice { key, epoch, opening, from, deliveries, park_first, attempts });
            if alone {
                break;
            }
        }
        group
    }

    /// A slice ended. Returns how long its lane now waits, if it failed.
    pub(crate) fn done(
        &mut self,
        slice: &LaneSlice,
        outcome: SliceOutcome,
        now: Instant,
        jitter: f64,
    ) -> Option<Duration> {
        let key = slice.key;
        self.shards.get(&key.shard).filter(|owned| owned.opening == slice.opening)?;
        let lane = self.lanes.get_mut(&key)?;
        lane.state = LaneState::Idle;
        let mut wait = None;
        match outcome {
            SliceOutcome::Applied { cost } => {
                let each = cost.work.as_micros() as f64 / slice.deliveries.len().max(1) as f64;
                lane.cost = Some(lane.cost.map_or(each, |old| smooth(old, each)));
                self.cost = smooth(self.cost, each);
                self.overhead = smooth(self.overhead, cost.overhead.as_micros() as f64);
                lane.virtual_time += cost.total().as_micros() as u64 + 1;
                let last = slice.deliveries.last().map_or(0, |delivery| delivery.seq());
                self.bytes -= lane.applied(last);
            }
            SliceOutcome::Moved { stored } => self.bytes -= lane.moved(stored),
            SliceOutcome::Undone => lane.give_back(),
            SliceOutcome::Fenced => {
                lane.give_back();
                wait = Some(self.options.lease);
            }
            SliceOutcome::Unavailable => {
                lane.give_back();
                lane.outages = lane.outages.saturating_add(1);
                wait = Some(backoff(lane.outages, jitter));
            }
            SliceOutcome::Failed { reason } => {
                lane.give_back();
                if slice.deliveries.len() == 1 {
                    lane.attempts += 1;
                    if lane.attempts >= self.options.attempts {
                        lane.park_first = Some(reason);
                    } else {
                        wait = Some(backoff(lane.attempts, jitter));
                    }
                }
                lane.step = 1;
            }
        }
        if let Some(stored) = lane.rewind_to.take() {
            self.bytes -= lane.rewind(stored);
        }
        if let Some(wait) = wait {
            lane.state = LaneState::BackingOff;
            self.backing_off.push(Reverse((now + wait, key)));
        }
        self.settle(key);
        wait
    }

    /// When a lane wakes next, if one is backing off.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.backing_off.peek().map(|Reverse((at, _))| *at)
    }

    /// What may be written down about a shard, so that a restart begins there.
    pub(crate) fn mark(&self, shard: Shard) -> Option<Mark> {
        let mut mark = Mark { seq: self.shards.get(&shard)?.cursor, detached: Vec::new() };
        for (key, lane) in self.lanes.iter().filter(|(key, _)| key.shard == shard) {
            if lane.skipped.is_some() {
                mark.detached.push((key.org, key.pipeline));
            } else if let Some(oldest) = lane.oldest() {
                mark.seq = mark.seq.min(oldest.seq() - 1);
            }
        }
        mark.detached.sort_unstable();
        Some(mark)
    }

    /// The marks of all owned shards.
    pub(crate) fn marks(&self) -> Vec<(Shard, Mark)> {
        self.shards.keys().filter_map(|shard| Some((*shard, self.mark(*shard)?))).collect()
    }

    fn wake(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.backing_off.peek().copied() {
            if at > now {
                break;
            }
            self.backing_off.pop();
            if let Some(lane) = self.lanes.get_mut(&key)
                && lane.state == LaneState::BackingOff
            {
                lane.state = LaneState::Idle;
                self.settle(key);
            }
        }
    }

    /// Puts a lane where it belongs after anything about it changed.
    fn settle(&mut self, key: LaneKey) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let wants_refill =
            lane.skipped.is_some() && lane.refilling.is_none() && has_room(lane, self.bytes, &self.options);
        if wants_refill && !lane.wants_refill {
            lane.wants_refill = true;
            self.wants_refill.push_back(key);
        }
        if lane.state == LaneState::Idle && !lane.is_empty() {
            lane.state = LaneState::Ready;
            lane.virtual_time = lane.virtual_time.max(self.virtual_now);
            self.ready.push(Reverse((lane.virtual_time, key)));
        }
    }
}

/// Whether a detached lane may be refilled. Half empty is early enough: the refill runs while the rest is applied. Over
/// the total, it must be empty; it comes here again after its slice.
fn has_room(lane: &Lane, total: usize, options: &WorkerOptions) -> bool {
    lane.bytes() == 0 || (lane.bytes() <= options.lane_bytes / 2 && total < options.total_bytes)
}

/// The lanes of the same org in the other pipelines.
fn others(key: LaneKey) -> impl Iterator<Item = LaneKey> {
    Pipeline::ALL
        .into_iter()
        .filter(move |pipeline| *pipeline != key.pipeline)
        .map(move |pipeline| LaneKey { pipeline, ..key })
}

fn smooth(old: f64, new: f64) -> f64 {
    old + SMOOTHING * (new - old)
}

/// 50 ms, doubled each time up to 6.4 s, and spread over half of itself so that lanes do not come back together.
fn backoff(attempt: u32, jitter: f64) -> Duration {
    let base = Duration::from_millis(50) * (1 << attempt.saturating_sub(1).min(7));
    base.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
