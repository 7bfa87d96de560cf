//! The scheduler's state of an org, and its lanes, one for each pipeline: a short queue in order, or, over budget, only
//! the position to continue from.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_events::{OrgId, PerPipeline, Pipeline, Shard};

use crate::{
    delivery::Delivery,
    work_class::{ByClass, WorkClass},
};

/// The key of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneKey {
    pub(crate) shard: Shard,
    pub(crate) org: OrgId,
    pub(crate) pipeline: Pipeline,
}

/// One org: fair shares are computed per org, over all of its lanes.
#[derive(Debug)]
pub(crate) struct Org {
    /// Database time used by the org for each work class, in microseconds divided by its weight, on the scale of that
    /// class's virtual time.
    pub(crate) virtual_time: ByClass<f64>,
    /// Its share of the database's time, relative to an org of weight 1.
    pub(crate) weight: f64,
    /// Running transactions that include it.
    pub(crate) slots: usize,
    /// When one of them last began or ended.
    pub(crate) moved_at: Option<Instant>,
    lanes: PerPipeline<Lane>,
}

impl Org {
    pub(crate) fn new(weight: f64) -> Self {
        Self {
            virtual_time: ByClass::default(),
            weight,
            slots: 0,
            moved_at: None,
            lanes: PerPipeline::of(|_| Lane::new()),
        }
    }

    pub(crate) fn lane(&self, pipeline: Pipeline) -> &Lane {
        &self.lanes[pipeline]
    }

    pub(crate) fn lane_mut(&mut self, pipeline: Pipeline) -> &mut Lane {
        &mut self.lanes[pipeline]
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = (Pipeline, &Lane)> {
        self.lanes.iter()
    }

    /// The time since one of its transactions began or ended.
    pub(crate) fn stalled_for(&self, now: Instant) -> Duration {
        self.moved_at.map_or(Duration::ZERO, |moved_at| now.saturating_duration_since(moved_at))
    }

    /// Whether none of its lanes waits for a slot with such work, or is in one.
    pub(crate) fn is_without(&self, class: WorkClass) -> bool {
        let is_there = |lane: &Lane| matches!(lane.state, LaneState::Ready | LaneState::Running) && lane.class == class;
        !self.lanes().any(|(_, lane)| is_there(lane))
    }

    /// Charges database time that it used, or refunds time charged in excess.
    pub(crate) fn charge(&mut self, class: WorkClass, micros: f64) {
        let virtual_time = &mut self.virtual_time[class];
        *virtual_time = (*virtual_time + micros / self.weight).max(0.0);
    }
}

/// The scheduling state of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneState {
    /// Nothing to do, or waiting for a catch-up read.
    Idle,
    /// Waiting for a slot.
    Ready,
    /// In a slot.
    Running,
    /// Waiting after a failure.
    BackingOff,
}

/// The part of the stream that a catching up lane has skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// The sequence at which the next catch-up read begins.
    pub(crate) next: u64,
    /// The last message that the cursor skipped.
    pub(crate) last: u64,
}

/// Messages in the first batch of a lane, whose costs are unknown yet.
const FIRST_STEP: usize = 8;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) state: LaneState,
    /// When it last queued for a slot, as a count of those that did.
    pub(crate) turn: u64,
    /// The work class with which it waits, or is in its slot.
    pub(crate) class: WorkClass,
    /// The database's checkpoint, as far as is known; none until the first batch.
    pub(crate) checkpoint: Option<u64>,
    /// Messages being applied right now.
    pub(crate) in_slot: Vec<Arc<Delivery>>,
    /// Set while the lane is `catching_up`.
    pub(crate) skipped: Option<Skipped>,
    /// Whether it is queued for a catch-up read.
    pub(crate) wants_catch_up: bool,
    /// The sequence at which the running catch-up read begins.
    pub(crate) catching_up_now: Option<u64>,
    /// Consecutive catch-up reads that brought nothing although messages were skipped.
    pub(crate) empty_catch_up_reads: u32,
    /// Microseconds of database time per unit of work (see [`Delivery::units`]), smoothed; none until the first batch.
    pub(crate) cost: Option<f64>,
    /// The most messages in the next batch, doubled by each that is applied; 1 after a failure, to find the message that
    /// fails.
    pub(crate) step: usize,
    /// Whether a transaction that it shared took too long, so that it gets its own until it has shown what it costs.
    pub(crate) suspect: bool,
    /// Whether its index is in a search target: others would wait for that with it.
    pub(crate) is_elsewhere: bool,
    /// Consecutive failures of the first message.
    pub(crate) attempts: u32,
    /// Consecutive failures to reach the database: no event is at fault, and nothing is parked because of them.
    pub(crate) outages: u32,
    /// The reason for parking the first message in the next batch.
    pub(crate) park_first: Option<String>,
    queue: VecDeque<Arc<Delivery>>,
    bytes: usize,
    /// The last message that was queued; one at or below it is a repeat.
    last_queued: u64,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self {
            state: LaneState::Idle,
            turn: 0,
            class: WorkClass::Light,
            checkpoint: None,
            in_slot: Vec::new(),
            skipped: None,
            wants_catch_up: false,
            catching_up_now: None,
            empty_catch_up_reads: 0,
            cost: None,
            step: FIRST_STEP,
            suspect: false,
            is_elsewhere: false,
            attempts: 0,
            outages: 0,
            park_first: None,
            queue: VecDeque::new(),
            bytes: 0,
            last_queued: 0,
        }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages waiting, not counting those in a slot or skipped.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether a message was seen before: queued, applied or stored.
    pub(crate) fn knows(&self, seq: u64) -> bool {
        seq <= self.last_queued || self.checkpoint.is_some_and(|stored| seq <= stored)
    }

    /// Returns the oldest message that is not applied yet, in a slot or waiting.
    pub(crate) fn oldest(&self) -> Option<&Arc<Delivery>> {
        self.in_slot.first().or_else(|| self.queue.front())
    }

    /// Takes a message from the cursor, unless the lane is catching up or must be, which leaves it to a catch-up read.
    /// Returns the bytes that it added.
    pub(crate) fn offer(&mut self, delivery: &Arc<Delivery>, room: usize) -> usize {
        let seq = delivery.seq();
        if let Some(skipped) = &mut self.skipped {
            skipped.last = skipped.last.max(seq);
            return 0;
        }
        if self.knows(seq) {
            return 0;
        }
        if self.bytes + delivery.bytes() > room && !self.queue.is_empty() {
            self.skipped = Some(Skipped { next: seq, last: seq });
            return 0;
        }
        self.push(Arc::clone(delivery))
    }

    /// Takes a message that a catch-up read brought. Returns the bytes that it added.
    pub(crate) fn catch_up_read(&mut self, delivery: Arc<Delivery>) -> usize {
        let seq = delivery.seq();
        if let Some(skipped) = &mut self.skipped {
            skipped.next = skipped.next.max(seq + 1);
            if skipped.next > skipped.last {
                self.skipped = None;
            }
        }
        if self.knows(seq) { 0 } else { self.push(delivery) }
    }

    fn push(&mut self, delivery: Arc<Delivery>) -> usize {
        let bytes = delivery.bytes();
        self.last_queued = delivery.seq();
        self.bytes += bytes;
        self.queue.push_back(delivery);
        bytes
    }

    /// Units of work in the first message.
    pub(crate) fn first_units(&self) -> f64 {
        self.queue.front().map_or(0.0, |first| first.units())
    }

    /// When the first waiting message arrived.
    pub(crate) fn first_arrived(&self) -> Option<Instant> {
        self.queue.front().map(|first| first.arrived)
    }

    /// Moves messages from the queue into the slot: one, and then as many as `fits` accepts, which receives the
    /// resulting units of work and the message in question.
    pub(crate) fn take(&mut self, most: usize, fits: impl Fn(f64, &Delivery) -> bool) -> &[Arc<Delivery>] {
        let mut units = 0.0;
        while self.in_slot.len() < most.min(self.step).max(1) {
            let Some(next) = self.queue.front() else { break };
            units += next.units();
            if !self.in_slot.is_empty() && !fits(units, next) {
                break;
            }
            self.in_slot.extend(self.queue.pop_front());
        }
        &self.in_slot
    }

    /// Whether all waiting messages fit into one batch of `units` units of work and `messages` messages.
    pub(crate) fn fits_whole(&self, units: f64, messages: usize) -> bool {
        let mut left = units;
        self.queue.len() <= messages
            && self.queue.iter().all(|next| {
                left -= next.units();
                left >= 0.0
            })
    }

    /// Whether it must have a transaction of its own: something of it failed, or took too long.
    pub(crate) fn must_be_alone(&self) -> bool {
        self.step == 1 || self.suspect || self.is_elsewhere
    }

    /// Records that the batch was applied. Returns the bytes that it freed.
    pub(crate) fn applied(&mut self, seq: u64) -> usize {
        self.checkpoint = Some(seq);
        self.attempts = 0;
        self.outages = 0;
        self.park_first = None;
        self.suspect = false;
        self.step = self.step.saturating_mul(2);
        let freed = self.in_slot.drain(..).map(|delivery| delivery.bytes()).sum();
        self.bytes -= freed;
        freed
    }

    /// Records that the batch had no effect: its messages go back to the front.
    pub(crate) fn give_back(&mut self) {
        for delivery in self.in_slot.drain(..).rev() {
            self.queue.push_front(delivery);
        }
    }

    /// Records that the database has another checkpoint than expected. Returns the bytes that became free.
    ///
    /// Ahead: another worker applied our messages, and they are dropped. Behind: the database has lost what was not on
    /// its disk when it crashed, and everything is read again from there.
    pub(crate) fn moved(&mut self, stored: u64) -> usize {
        self.give_back();
        let before = self.bytes;
        let behind = self.checkpoint.is_some_and(|thought| stored < thought);
        if behind {
            self.rewind(stored);
        } else {
            self.checkpoint = Some(stored);
            while self.queue.front().is_some_and(|delivery| delivery.seq() <= stored) {
                if let Some(done) = self.queue.pop_front() {
                    self.bytes -= done.bytes();
                }
            }
            if let Some(skipped) = &mut self.skipped {
                skipped.next = skipped.next.max(stored + 1);
                if skipped.next > skipped.last {
                    self.skipped = None;
                }
            }
        }
        before - self.bytes
    }

    /// Clears the queue and reads everything after `stored` again from the log.
    fn rewind(&mut self, stored: u64) {
        let skipped = self.skipped.map_or(0, |skipped| skipped.last);
        // The stored checkpoint may be beyond what this lane has queued: another owner was ahead.
        let last = skipped.max(self.last_queued).max(self.checkpoint.unwrap_or(0));
        self.queue.clear();
        self.checkpoint = Some(stored);
        self.last_queued = stored;
        if stored < last {
            self.skipped = Some(Skipped { next: stored + 1, last });
        }
        self.bytes = 0;
    }

    /// Records that the cursor skipped what its org has from `next` to `last`: a catch-up read will bring it.
    pub(crate) fn fast_forward(&mut self, next: u64, last: u64) {
        if let Some(skipped) = &mut self.skipped {
            skipped.last = skipped.last.max(last);
        } else if !self.knows(last) {
            self.skipped = Some(Skipped { next, last });
        }
    }

    /// Starts a lane as catching up: everything after `stored`, up to `last`, is to be read from the log.
    pub(crate) fn resume(&mut self, stored: u64, last: u64) {
        self.checkpoint = Some(stored);
        self.last_queued = stored;
        if stored < last {
            self.skipped = Some(Skipped { next: stored + 1, last });
        }
    }
}
