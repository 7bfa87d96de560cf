//! Who is next.
//!
//! Start-time fair queueing on measured cost: an org is charged the database time of its slices, divided by its weight, and
//! the org that has had the least goes first. One that was idle starts at the current virtual time, so that sleeping earns
//! no credit. The unit that cannot be interrupted decides how long a quiet org waits, so slices are short, an org that has
//! a slot gets a second one only while others stay free, and orgs whose single messages take longer than a slice should
//! have a few slots between them and no more.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{Group, LaneSlice, Scheduler, SliceOutcome, others};
use crate::{
    delivery::Delivery,
    lane::{LaneKey, LaneState},
    options::Policy,
};

/// Microseconds that a slice and each unit of work in it are thought to take before anything was measured.
const FIRST_FIXED: f64 = 500.0;
const FIRST_COST: f64 = 50.0;
/// How much a measurement counts that is lower than what was thought, and one that is higher. What something takes on a
/// busy machine says more about the machine: smaller slices would only make it busier.
const FALL: f64 = 0.3;
const RISE: f64 = 0.03;
/// The same for the messages of one org: one that has become slow must be noticed soon.
const LANE_FALL: f64 = 0.5;
const LANE_RISE: f64 = 0.1;
/// Units of work from which on a slice says what a unit costs, and below which what a slice costs beside them.
const MANY_UNITS: f64 = 32.0;
/// How long nothing was applied when there is nothing to do.
const QUIET: Duration = Duration::from_millis(50);
/// Slices that may share a transaction however long the database takes to answer.
const LEAST_SHARED: f64 = 4.0;

/// What is known of the slots and of what a transaction takes.
#[derive(Debug)]
pub(super) struct Service {
    /// Where the org stood that was served last, in microseconds.
    pub(super) virtual_now: f64,
    /// Slots that are taken, how many of them by rebuilds, and how many by orgs whose messages are dear.
    busy: usize,
    lent: usize,
    dear: usize,
    /// The lanes in them.
    pub(super) running: Vec<LaneKey>,
    /// Microseconds per unit of work and, beside them, per slice, when little else is going on.
    cost: f64,
    fixed: f64,
    /// When a transaction was last committed.
    applied_at: Instant,
    /// Counts those that have lined up, for the order of who came first.
    pub(super) turns: u64,
    pub(super) since: Instant,
}

impl Service {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            virtual_now: 0.0,
            busy: 0,
            lent: 0,
            dear: 0,
            running: Vec::new(),
            cost: FIRST_COST,
            fixed: FIRST_FIXED,
            applied_at: now,
            turns: 0,
            since: now,
        }
    }
}

/// How a slice's transaction ended, as far as it matters to each of its slices.
#[derive(Debug, Clone, Copy)]
struct Ended {
    /// It had one slice.
    alone: bool,
    /// What each slice cost that came to nothing.
    lost: Duration,
    at: Instant,
    jitter: f64,
}

impl Scheduler {
    /// The next transaction, if there is a slot for it and somebody who may have it.
    pub(crate) fn next_group(&mut self, now: Instant) -> Option<Group> {
        self.wake(now);
        if self.service.busy >= self.options.slots {
            return None;
        }
        let group = match self.options.policy {
            Policy::Fair => self.fair_group(now),
            Policy::Fifo => self.fifo_group(now),
            Policy::RoundRobin(most) => self.round_robin_group(now, most),
        };
        if group.slices.is_empty() {
            return None;
        }
        self.service.busy += 1;
        self.service.dear += usize::from(group.dear);
        for LaneSlice { key, .. } in group.firsts() {
            if let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) {
                org.slots += 1;
                org.moved_at = Some(now);
            }
        }
        Some(group)
    }

    /// Takes a slot for a rebuild, if that leaves the reserve free.
    pub(crate) fn lend_slot(&mut self) -> bool {
        let free = self.service.busy + self.options.reserve < self.options.slots;
        if free {
            self.service.busy += 1;
            self.service.lent += 1;
        }
        free
    }

    /// The rebuild's step has ended.
    pub(crate) fn return_slot(&mut self) {
        self.service.busy = self.service.busy.saturating_sub(1);
        self.service.lent = self.service.lent.saturating_sub(1);
    }

    /// Whether anything but rebuilds is in a slot, waits for one, or was in one a moment ago: between two slices of somebody
    /// who writes all the time, nothing is, and that is no time to make use of.
    pub(crate) fn is_at_work(&self, now: Instant) -> bool {
        self.service.busy > self.service.lent
            || !self.ready.is_empty()
            || !self.ready_dear.is_empty()
            || now.saturating_duration_since(self.service.applied_at) < QUIET
    }

    fn fair_group(&mut self, now: Instant) -> Group {
        let slice = self.options.slice.as_micros() as f64;
        let mut group = Group::new(now);
        let mut left = slice.max(LEAST_SHARED * self.service.fixed);
        let mut held = Vec::new();
        while group.slices.len() < self.options.group_lanes && left > 0.0 {
            let Some((rank, key, dear)) = self.pop(group.slices.is_empty()) else { break };
            let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { continue };
            if org.virtual_time as u64 > rank {
                // It was served since it lined up.
                let rank = org.virtual_time as u64;
                org.lane_mut(key.pipeline).rank = rank;
                self.line(dear).push(Reverse((rank, key)));
                continue;
            }
            let most = if dear { self.options.dear_slots_of_one() } else { usize::MAX };
            let spare =
                self.options.slots - self.service.busy > self.options.reserve_against(org.stands_still_for(now));
            if org.slots > 0 && (!spare || org.slots >= most) {
                held.push((rank, key, dear));
                continue;
            }
            // What is dear, or failed, must not make others wait in its transaction. And a lane that would not get all of
            // its messages in gets more out of a transaction of its own.
            let alone = dear || org.lane(key.pipeline).must_be_alone();
            let fits = self.fits(key, left);
            if alone || !fits {
                if !group.slices.is_empty() {
                    self.line(dear).push(Reverse((rank, key)));
                    break;
                }
                self.service.virtual_now = self.service.virtual_now.max(rank as f64);
                let units = slice / self.cost_of(key);
                // Nothing, when what it had was taken back after it lined up: then it is the next one's turn.
                let Some(taken) = self.take(key, self.options.slice_messages, |all, _| all <= units) else { continue };
                group.slices.push(taken);
                group.dear = dear;
                group.backlog = dear || !fits;
                break;
            }
            self.service.virtual_now = self.service.virtual_now.max(rank as f64);
            left -= self.join_group(&mut group, key);
            // What one pipeline waits for, the other does too.
            for other in others(key) {
                let is_ready =
                    self.lane(other).is_some_and(|lane| lane.state == LaneState::Ready && !lane.must_be_alone());
                if is_ready && self.fits(other, left) {
                    left -= self.join_group(&mut group, other);
                }
            }
        }
        for (rank, key, dear) in held {
            self.line(dear).push(Reverse((rank, key)));
        }
        group
    }

    /// Gives a lane a share in the transaction, with all that it has. Returns what it will take, in microseconds.
    fn join_group(&mut self, group: &mut Group, key: LaneKey) -> f64 {
        let Some(slice) = self.take(key, self.options.slice_messages, |_, _| true) else { return 0.0 };
        let planned = slice.charged;
        group.slices.push(slice);
        planned
    }

    /// Whether all that a lane has takes no more than `left` microseconds.
    fn fits(&self, key: LaneKey, left: f64) -> bool {
        let units = (left - self.service.fixed) / self.cost_of(key);
        self.lane(key).is_some_and(|lane| lane.skipped.is_none() && lane.fits_whole(units, self.options.slice_messages))
    }

    /// Microseconds that a unit of a lane's work takes.
    fn cost_of(&self, key: LaneKey) -> f64 {
        self.lane(key).and_then(|lane| lane.cost).unwrap_or(self.service.cost).max(1.0)
    }

    /// Takes the lane that is first in line, of either line, while lanes with dear messages have not all they may.
    fn pop(&mut self, alone: bool) -> Option<(u64, LaneKey, bool)> {
        loop {
            let may_be_dear = alone && self.service.dear < self.options.dear_slots();
            let first = self.ready.peek().map(|Reverse((rank, _))| *rank);
            let first_dear = self.ready_dear.peek().map(|Reverse((rank, _))| *rank).filter(|_| may_be_dear);
            let dear = match (first, first_dear) {
                (None, None) => return None,
                (Some(first), Some(first_dear)) => first_dear < first,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            let Some(Reverse((rank, key))) = self.line(dear).pop() else { continue };
            if self.is_waiting(key, rank) {
                return Some((rank, key, dear));
            }
        }
    }

    pub(super) fn line(&mut self, dear: bool) -> &mut BinaryHeap<Reverse<(u64, LaneKey)>> {
        if dear { &mut self.ready_dear } else { &mut self.ready }
    }

    /// Whether this place in line is one that the lane still has.
    pub(super) fn is_waiting(&self, key: LaneKey, rank: u64) -> bool {
        self.lane(key).is_some_and(|lane| lane.state == LaneState::Ready && lane.rank == rank)
    }

    /// Moves messages of a lane into a slot, and charges the org for them.
    pub(super) fn take(
        &mut self,
        key: LaneKey,
        most: usize,
        fits: impl Fn(f64, &Delivery) -> bool,
    ) -> Option<LaneSlice> {
        let (epoch, opening) = self.shards.get(&key.shard).map(|owned| (owned.epoch, owned.opening))?;
        let (service, org) = (&self.service, self.orgs.get_mut(&(key.shard, key.org))?);
        let lane = org.lane_mut(key.pipeline);
        if lane.is_empty() {
            lane.state = LaneState::Idle;
            self.settle(key);
            return None;
        }
        lane.state = LaneState::Running;
        let deliveries = lane.take(most, fits).to_vec();
        let (from, park_first, attempts) = (lane.checkpoint, lane.park_first.clone(), lane.attempts);
        let mut slice = LaneSlice { key, epoch, opening, from, deliveries, park_first, attempts, charged: 0.0 };
        slice.charged = service.fixed + slice.units() * lane.cost.unwrap_or(service.cost);
        org.charge(slice.charged);
        self.service.running.push(key);
        Some(slice)
    }

    /// Puts a lane that has something to do in line.
    pub(super) fn line_up(&mut self, key: LaneKey) {
        self.service.turns += 1;
        let (service, slice) = (&self.service, self.options.slice.as_micros() as f64);
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        if org.is_idle() {
            org.virtual_time = org.virtual_time.max(service.virtual_now);
        }
        let virtual_time = org.virtual_time as u64;
        let lane = org.lane_mut(key.pipeline);
        let (rank, dear) = match self.options.policy {
            Policy::Fair => (virtual_time, lane.cost.unwrap_or(service.cost) * lane.first_units() > slice),
            Policy::RoundRobin(_) => (service.turns, false),
            Policy::Fifo => (service.order(lane.first_arrived()), false),
        };
        lane.state = LaneState::Ready;
        lane.rank = rank;
        self.line(dear).push(Reverse((rank, key)));
    }

    /// A transaction ended: how, for each of its slices.
    pub(crate) fn done(&mut self, group: &Group, outcomes: Vec<SliceOutcome>, now: Instant, jitter: f64) {
        self.service.busy = self.service.busy.saturating_sub(1);
        self.service.dear = self.service.dear.saturating_sub(usize::from(group.dear));
        let applied = outcomes.iter().any(|outcome| matches!(outcome, SliceOutcome::Applied { .. }));
        // Whether others were served meanwhile: then it is not the database that was too slow.
        let others_went_on = self.service.applied_at > group.begun;
        if applied {
            self.service.applied_at = now;
        }
        // What came to nothing has had its time as well.
        let lost = now.saturating_duration_since(group.begun) / u32::try_from(group.slices.len()).unwrap_or(u32::MAX);
        for slice in &group.slices {
            if let Some(place) = self.service.running.iter().position(|running| *running == slice.key) {
                self.service.running.swap_remove(place);
            }
        }
        for LaneSlice { key, opening, .. } in group.firsts() {
            let is_current = self.shards.get(&key.shard).is_some_and(|owned| owned.opening == *opening);
            if let Some(org) = self.orgs.get_mut(&(key.shard, key.org)).filter(|_| is_current) {
                org.slots = org.slots.saturating_sub(1);
                org.moved_at = Some(now);
            }
        }
        let alone = group.slices.len() == 1;
        for (slice, outcome) in group.slices.iter().zip(outcomes) {
            let outcome = match outcome {
                SliceOutcome::TimedOut if alone && slice.deliveries.len() == 1 && !others_went_on => {
                    SliceOutcome::Unavailable
                }
                outcome => outcome,
            };
            self.slice_done(slice, outcome, Ended { alone, lost, at: now, jitter });
        }
    }

    fn slice_done(&mut self, slice: &LaneSlice, outcome: SliceOutcome, Ended { alone, lost, at: now, jitter }: Ended) {
        let key = slice.key;
        if self.shards.get(&key.shard).is_none_or(|owned| owned.opening != slice.opening) {
            return;
        }
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        let spent = match &outcome {
            SliceOutcome::Applied { cost, .. } => cost.total(),
            SliceOutcome::TimedOut | SliceOutcome::Failed { .. } => lost,
            SliceOutcome::Moved { .. } | SliceOutcome::Fenced | SliceOutcome::Undone | SliceOutcome::Unavailable => {
                Duration::ZERO
            }
        };
        org.charge(spent.as_micros() as f64 - slice.charged);
        if let SliceOutcome::Applied { plan, .. } = &outcome {
            org.weight = self.options.weights.of(plan);
        }
        let lane = org.lane_mut(key.pipeline);
        lane.state = LaneState::Idle;
        let mut wait = None;
        match outcome {
            SliceOutcome::Applied { cost, .. } => {
                let units = slice.units();
                let took = (cost.opening + cost.work).as_micros() as f64;
                let each = ((took - self.service.fixed) / units.max(1.0)).max(1.0);
                if units >= MANY_UNITS {
                    lane.cost = Some(towards(lane.cost.unwrap_or(self.service.cost), each, LANE_FALL, LANE_RISE));
                    // One org that is slow says nothing about what the others' messages cost.
                    let usual = each.min(self.options.slice.as_micros() as f64);
                    self.service.cost = towards(self.service.cost, usual, FALL, RISE);
                } else {
                    let slow = each > self.options.slice.as_micros() as f64;
                    if slow || lane.cost.is_some_and(|known| known > each) {
                        lane.cost = Some(towards(lane.cost.unwrap_or(self.service.cost), each, LANE_FALL, LANE_RISE));
                    }
                    if !slow {
                        let fixed = (took - (units - 1.0).max(0.0) * self.service.cost).max(1.0);
                        self.service.fixed = towards(self.service.fixed, fixed, FALL, RISE);
                    }
                }
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
            SliceOutcome::TimedOut if !alone => {
                lane.give_back();
                lane.suspect = true;
            }
            SliceOutcome::TimedOut | SliceOutcome::Failed { .. } => {
                lane.give_back();
                let single = slice.deliveries.len() == 1;
                if matches!(outcome, SliceOutcome::TimedOut) {
                    // What a message costs that was not finished is known from below.
                    lane.cost = Some(lost.as_micros() as f64 / slice.units().max(1.0));
                }
                if single {
                    lane.attempts += 1;
                    if lane.attempts >= self.options.attempts {
                        lane.park_first = Some(match outcome {
                            SliceOutcome::Failed { reason } => reason,
                            _ => format!("applying it took longer than {:?}", self.options.message_timeout),
                        });
                    } else {
                        wait = Some(backoff(lane.attempts, jitter));
                    }
                }
                lane.step = 1;
            }
        }
        if let Some(wait) = wait {
            lane.state = LaneState::BackingOff;
            self.backing_off.push(Reverse((now + wait, key)));
        }
        self.settle(key);
    }

    /// When a lane wakes next, if one is backing off.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.backing_off.peek().map(|Reverse((at, _))| *at)
    }

    fn wake(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.backing_off.peek().copied() {
            if at > now {
                break;
            }
            self.backing_off.pop();
            if let Some(lane) = self.lane_mut(key)
                && lane.state == LaneState::BackingOff
            {
                lane.state = LaneState::Idle;
                self.settle(key);
            }
        }
    }
}

/// Moves what was thought towards what was measured.
fn towards(old: f64, new: f64, fall: f64, rise: f64) -> f64 {
    old + if new < old { fall } else { rise } * (new - old)
}

/// 50 ms, doubled each time up to 6.4 s, and spread over half of itself so that lanes do not come back together.
fn backoff(attempt: u32, jitter: f64) -> Duration {
    let base = Duration::from_millis(50) * (1 << attempt.saturating_sub(1).min(7));
    base.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}
