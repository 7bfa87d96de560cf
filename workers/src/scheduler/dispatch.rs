//! Selection of the next transaction.
//!
//! Start-time fair queueing on measured cost: an org is charged the database time of its batches, divided by its
//! weight, and the org that has used the least goes first. One that was idle starts at the current virtual time, so
//! that idling earns no credit. The unit that cannot be interrupted determines how long a quiet org waits, so batches
//! are short, and not all slots are available to all. There are three work classes ([`WorkClass`]), each with a queue,
//! a virtual time and a part of the slots: lanes with little to do share transactions and may use any slot, backlogs
//! leave a reserve free, and orgs whose single messages exceed the target duration of a batch share a few slots and no
//! more. An org that has a slot gets a second one only while most are free.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use super::{BatchOutcome, Group, LaneBatch, Place, Scheduler, Trouble, others};
use crate::{
    delivery::Delivery,
    lane::{Lane, LaneKey, LaneState},
    options::Policy,
    work_class::{ByClass, WorkClass},
};

/// Estimated microseconds for a batch and for each unit of work in it, before any measurement.
const FIRST_FIXED: f64 = 500.0;
const FIRST_COST: f64 = 50.0;
/// Smoothing factors of a measurement below the estimate, and of one above it. Durations on a busy machine say more
/// about the machine: smaller batches would only make it busier.
const FALL: f64 = 0.3;
const RISE: f64 = 0.03;
/// The same for the messages of one org: one that has become slow must be noticed soon.
const LANE_FALL: f64 = 0.5;
const LANE_RISE: f64 = 0.1;
/// The same for a few slow messages. High enough that one which took five times the target of a batch is sufficient:
/// the next ones of its lane must not delay others meanwhile.
const SLOW_RISE: f64 = 0.25;
/// Units of work from which on a batch's duration gives the cost of a unit.
const MANY_UNITS: f64 = 32.0;
/// How many times cheaper than usual the messages of an org can be: less than nothing is left when a batch's fixed cost
/// was overestimated.
const MUCH_CHEAPER: f64 = 2.0;
/// Units of work up to which a lane has little to do: lanes that share a transaction all wait for it. A batch of no
/// more gives the fixed cost of batches.
pub(super) const FEW_UNITS: f64 = 8.0;
/// Consecutive failures through no fault of an event, after which a lane that fails alone is reported.
const TOLD_AT: u32 = 6;
/// Time without a commit after which there is nothing to do.
const QUIET: Duration = Duration::from_millis(50);
/// Smoothing factor for the present duration of small batches, and the multiple of that duration from which one is
/// slow.
const PACE: f64 = 0.1;
const SLOW: f64 = 4.0;
/// Batches that may share a transaction however long the database takes to answer.
const LEAST_SHARED: f64 = 4.0;

/// The state of the slots, and the measured costs of transactions.
#[derive(Debug)]
pub(super) struct Service {
    /// For each work class: the virtual time of the org served last, in microseconds; the slots that it has; and when
    /// it last got one, counted in transactions.
    pub(super) virtual_now: ByClass<f64>,
    taken: ByClass<usize>,
    begun: ByClass<u64>,
    transactions: u64,
    /// Slots in use, and the number of them used by rebuilds.
    busy: usize,
    lent: usize,
    /// The lanes in them.
    pub(super) running: Vec<LaneKey>,
    /// Microseconds per unit of work and, besides, per batch, under little other load.
    cost: f64,
    fixed: f64,
    /// The present fixed cost of a batch, under any load.
    pace: f64,
    /// When a transaction was last committed.
    applied_at: Instant,
    /// Counts the queued lanes, for their order of arrival.
    pub(super) turns: u64,
    pub(super) since: Instant,
}

impl Service {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            virtual_now: ByClass::default(),
            taken: ByClass::default(),
            begun: ByClass::default(),
            transactions: 0,
            busy: 0,
            lent: 0,
            running: Vec::new(),
            cost: FIRST_COST,
            fixed: FIRST_FIXED,
            pace: FIRST_FIXED,
            applied_at: now,
            turns: 0,
            since: now,
        }
    }
}

impl Service {
    /// Learns from a batch of `units` that took `took` microseconds: the fixed cost of batches, and its lane's cost.
    fn learn(&mut self, own: &mut Option<f64>, units: f64, took: f64, batch: f64) {
        if units >= MANY_UNITS {
            let each = ((took - self.fixed) / units).max(1.0);
            let known = own.unwrap_or(self.cost);
            *own = Some(towards(known, each.max(self.cost / MUCH_CHEAPER), LANE_FALL, LANE_RISE));
            // One slow org says nothing about the cost of the others' messages.
            self.cost = towards(self.cost, each.min(batch), FALL, RISE);
            return;
        }
        // So few only show that messages are expensive, or no longer are.
        let longer = took - self.pace;
        let each = (longer / units.max(1.0)).max(self.cost);
        let slow = each > batch && longer > SLOW * self.pace;
        if slow || own.is_some_and(|known| known > each) {
            *own = Some(towards(own.unwrap_or(self.cost), each, LANE_FALL, SLOW_RISE));
        }
        if !slow && units <= FEW_UNITS {
            let beside = (took - (units - 1.0).max(0.0) * self.cost).max(1.0);
            self.fixed = towards(self.fixed, beside, FALL, RISE);
            self.pace = towards(self.pace, beside, PACE, PACE);
        }
    }
}

/// The end of a batch's transaction, as far as it matters to each of its batches.
#[derive(Debug, Clone, Copy)]
struct Ended {
    /// Whether it had one batch.
    alone: bool,
    class: WorkClass,
    /// The cost of each failed batch.
    lost: Duration,
    at: Instant,
    jitter: f64,
}

impl Scheduler {
    /// Returns the next transaction, if there is a slot and a lane for it.
    pub(crate) fn next_group(&mut self, now: Instant) -> Option<Group> {
        self.wake(now);
        if self.outage.is_pausing(now) || self.service.busy >= self.options.slots {
            return None;
        }
        let group = match self.options.policy {
            Policy::Fair | Policy::Held => self.fair_group(now),
            Policy::Fifo => self.fifo_group(now),
            Policy::RoundRobin(most) => self.round_robin_group(now, most),
        };
        if group.batches.is_empty() {
            return None;
        }
        self.service.busy += 1;
        self.service.taken[group.class] += 1;
        self.service.transactions += 1;
        self.service.begun[group.class] = self.service.transactions;
        for LaneBatch { key, .. } in group.firsts() {
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

    /// Returns the slot of a rebuild whose step has ended.
    pub(crate) fn return_slot(&mut self) {
        self.service.busy = self.service.busy.saturating_sub(1);
        self.service.lent = self.service.lent.saturating_sub(1);
    }

    /// Whether anything but rebuilds is in a slot, waits for one, or was in one a moment ago: the gaps between two
    /// batches of a client that writes all the time are not to be used.
    pub(crate) fn is_at_work(&self, now: Instant) -> bool {
        self.service.busy > self.service.lent
            || WorkClass::ALL.into_iter().any(|class| !self.ready[class].is_empty())
            || now.saturating_duration_since(self.service.applied_at) < QUIET
    }

    fn fair_group(&mut self, now: Instant) -> Group {
        let batch = self.options.batch.as_micros() as f64;
        let mut group = Group::new(now);
        let mut left = batch.max(LEAST_SHARED * self.service.fixed);
        let mut held = Vec::new();
        while group.batches.len() < self.options.group_lanes && left > 0.0 {
            let Some((place, class)) = self.pop(group.batches.is_empty()) else { break };
            let key = place.key;
            if self.load_of(key) != class {
                // More messages have arrived since it was queued.
                self.line_up(key);
                continue;
            }
            let Some(org) = self.orgs.get(&(key.shard, key.org)) else { continue };
            let rank = org.virtual_time[class] as u64;
            if rank > place.rank {
                // Its org was served since it was queued.
                self.ready[class].push(Reverse(Place { rank, ..place }));
                continue;
            }
            let most = if class == WorkClass::Expensive { self.options.expensive_slots_of_one() } else { usize::MAX };
            let spare = self.options.slots - self.service.busy > self.options.reserve_against(org.stalled_for(now));
            let waits = org.slots > 0 && (!spare || org.slots >= most);
            if waits || self.is_held(key) || self.targets_are_busy(key) {
                held.push((place, class));
                continue;
            }
            // A lane with much to do, or with a failure, must not make others wait in its transaction.
            let alone = class != WorkClass::Light || org.lane(key.pipeline).must_be_alone();
            if alone || !self.fits(key, left) {
                if !group.batches.is_empty() {
                    self.ready[class].push(Reverse(place));
                    break;
                }
                self.pass_to(place, class);
                let units = batch / self.cost_of(key);
                // Nothing, when its messages were removed after it was queued: then it is the next one's turn.
                let Some(taken) = self.take(key, class, self.options.batch_messages, |all, _| all <= units) else {
                    continue;
                };
                left = batch - taken.charged;
                group.batches.push(taken);
                group.class = class;
                if class == WorkClass::Backlogged && !self.is_elsewhere(key) {
                    self.bring_others(&mut group, key, left);
                }
                break;
            }
            self.pass_to(place, class);
            left -= self.join_group(&mut group, key);
            left -= self.bring_others(&mut group, key, left);
        }
        for (place, class) in held {
            self.ready[class].push(Reverse(place));
        }
        group
    }

    /// Adds the org's other pipelines, which usually wait for the same messages, to its transaction, if all they have
    /// fits. Returns their estimated duration, in microseconds.
    fn bring_others(&mut self, group: &mut Group, key: LaneKey, left: f64) -> f64 {
        let mut planned = 0.0;
        for other in others(key) {
            let may = |lane: &Lane| lane.state == LaneState::Ready && !lane.must_be_alone();
            let may = self.lane(other).is_some_and(may) && self.load_of(other) <= group.class;
            if may && self.fits(other, left - planned) {
                planned += self.join_group(group, other);
            }
        }
        planned
    }

    /// Whether a lane writes to a search target.
    fn is_elsewhere(&self, key: LaneKey) -> bool {
        self.lane(key).is_some_and(|lane| lane.is_elsewhere)
    }

    /// Whether a lane has to wait because it writes to a search target, and others that do have half of the slots: targets that
    /// answer late leave the other half to everything else.
    fn targets_are_busy(&self, key: LaneKey) -> bool {
        let most = (self.options.slots / 2).max(1);
        self.is_elsewhere(key) && self.service.running.iter().filter(|key| self.is_elsewhere(**key)).count() >= most
    }

    /// Adds a lane to the transaction, with all that it has. Returns its estimated duration, in microseconds.
    fn join_group(&mut self, group: &mut Group, key: LaneKey) -> f64 {
        let Some(batch) = self.take(key, group.class, self.options.batch_messages, |_, _| true) else { return 0.0 };
        let planned = batch.charged;
        group.batches.push(batch);
        planned
    }

    /// Whether all that a lane has takes no more than `left` microseconds.
    fn fits(&self, key: LaneKey, left: f64) -> bool {
        let units = (left - self.service.fixed) / self.cost_of(key);
        self.lane(key).is_some_and(|lane| lane.skipped.is_none() && lane.fits_whole(units, self.options.batch_messages))
    }

    /// Microseconds per unit of a lane's work.
    fn cost_of(&self, key: LaneKey) -> f64 {
        self.lane(key).and_then(|lane| lane.cost).unwrap_or(self.service.cost).max(1.0)
    }

    /// The work class of a lane.
    fn load_of(&self, key: LaneKey) -> WorkClass {
        let Some(lane) = self.lane(key) else { return WorkClass::Light };
        let in_a_batch = self.options.batch.as_micros() as f64 / self.cost_of(key);
        if lane.first_units() > in_a_batch {
            WorkClass::Expensive
        } else if lane.skipped.is_none() && lane.fits_whole(FEW_UNITS.min(in_a_batch), usize::MAX) {
            WorkClass::Light
        } else {
            WorkClass::Backlogged
        }
    }

    /// Takes the first in the queue. In a transaction that is not for it `alone`, that is a lane with little to do.
    /// Else, a work class without a slot goes before those with one, so that none is starved; and after that, the class
    /// with less to do.
    fn pop(&mut self, alone: bool) -> Option<(Place, WorkClass)> {
        loop {
            let (service, expensive) = (&self.service, self.service.taken[WorkClass::Expensive]);
            let may = |class: &WorkClass| match class {
                WorkClass::Light => true,
                WorkClass::Backlogged => {
                    alone && service.taken[WorkClass::Backlogged] < self.options.backlog_slots(expensive)
                }
                WorkClass::Expensive => alone && expensive < self.options.expensive_slots(),
            };
            let waiting = WorkClass::ALL.into_iter().filter(|class| !self.ready[*class].is_empty());
            let class = waiting.filter(may).min_by_key(|class| {
                let has_one = service.taken[*class] > 0;
                (has_one, if has_one { 0 } else { service.begun[*class] }, *class)
            })?;
            let Some(Reverse(place)) = self.ready[class].pop() else { continue };
            if self.is_waiting(place) {
                return Some((place, class));
            }
        }
    }

    /// Advances virtual time to the org served now.
    fn pass_to(&mut self, place: Place, class: WorkClass) {
        let virtual_now = &mut self.service.virtual_now[class];
        *virtual_now = virtual_now.max(place.rank as f64);
    }

    /// Whether this place in the queue is still current for its lane.
    pub(super) fn is_waiting(&self, place: Place) -> bool {
        self.lane(place.key).is_some_and(|lane| lane.state == LaneState::Ready && lane.turn == place.turn)
    }

    /// Moves messages of a lane into a slot, and charges the org for them.
    pub(super) fn take(
        &mut self,
        key: LaneKey,
        class: WorkClass,
        most: usize,
        fits: impl Fn(f64, &Delivery) -> bool,
    ) -> Option<LaneBatch> {
        let (epoch, opening) = self.shards.get(&key.shard).map(|owned| (owned.epoch, owned.opening))?;
        let (service, org) = (&self.service, self.orgs.get_mut(&(key.shard, key.org))?);
        let lane = org.lane_mut(key.pipeline);
        if lane.is_empty() {
            lane.state = LaneState::Idle;
            self.settle(key);
            return None;
        }
        lane.state = LaneState::Running;
        lane.class = class;
        let deliveries = lane.take(most, fits).to_vec();
        let (from, park_first, attempts) = (lane.checkpoint, lane.park_first.clone(), lane.attempts);
        let mut batch = LaneBatch { key, epoch, opening, from, deliveries, park_first, attempts, charged: 0.0 };
        batch.charged = service.fixed + batch.units() * lane.cost.unwrap_or(service.cost);
        org.charge(class, batch.charged);
        self.service.running.push(key);
        Some(batch)
    }

    /// Queues a lane that has something to do.
    pub(super) fn line_up(&mut self, key: LaneKey) {
        self.service.turns += 1;
        let by_load = matches!(self.options.policy, Policy::Fair | Policy::Held);
        let class = if by_load { self.load_of(key) } else { WorkClass::Light };
        let (service, turn) = (&self.service, self.service.turns);
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        if org.is_without(class) {
            org.virtual_time[class] = org.virtual_time[class].max(service.virtual_now[class]);
        }
        let virtual_time = org.virtual_time[class];
        let lane = org.lane_mut(key.pipeline);
        let rank = match self.options.policy {
            Policy::Fair | Policy::Held => virtual_time as u64,
            Policy::RoundRobin(_) => turn,
            Policy::Fifo => service.order(lane.first_arrived()),
        };
        (lane.state, lane.class, lane.turn) = (LaneState::Ready, class, turn);
        self.ready[class].push(Reverse(Place { rank, turn, key }));
    }

    /// Handles the end of a transaction, with the outcome of each of its batches.
    pub(crate) fn done(&mut self, group: &Group, outcomes: Vec<BatchOutcome>, now: Instant, jitter: f64) {
        self.service.busy = self.service.busy.saturating_sub(1);
        let taken = &mut self.service.taken[group.class];
        *taken = taken.saturating_sub(1);
        let applied = outcomes.iter().any(|outcome| matches!(outcome, BatchOutcome::Applied { .. }));
        // Whether others were served meanwhile: then the database was not too slow.
        let others_went_on = self.service.applied_at > group.begun;
        if applied {
            self.service.applied_at = now;
        }
        let answered = |outcome: &BatchOutcome| {
            !matches!(outcome, BatchOutcome::Unavailable(_) | BatchOutcome::TimedOut | BatchOutcome::Undone)
        };
        if outcomes.iter().any(answered) {
            self.outage.is_over();
        }
        let trouble = outcomes.iter().find_map(|outcome| match outcome {
            BatchOutcome::Unavailable(trouble) if trouble.everywhere && !others_went_on => Some(trouble),
            _ => None,
        });
        if let Some(trouble) = trouble {
            self.outage.goes_on(trouble, now);
        }
        // Failed batches have used their time as well.
        let lost = now.saturating_duration_since(group.begun) / u32::try_from(group.batches.len()).unwrap_or(u32::MAX);
        for batch in &group.batches {
            if let Some(place) = self.service.running.iter().position(|running| *running == batch.key) {
                self.service.running.swap_remove(place);
            }
        }
        for LaneBatch { key, opening, .. } in group.firsts() {
            let is_current = self.shards.get(&key.shard).is_some_and(|owned| owned.opening == *opening);
            if let Some(org) = self.orgs.get_mut(&(key.shard, key.org)).filter(|_| is_current) {
                org.slots = org.slots.saturating_sub(1);
                org.moved_at = Some(now);
            }
        }
        let alone = group.batches.len() == 1;
        for (batch, outcome) in group.batches.iter().zip(outcomes) {
            let outcome = match outcome {
                BatchOutcome::TimedOut if alone && batch.deliveries.len() == 1 && !others_went_on => {
                    let reason = "a message took too long, as all others did".into();
                    BatchOutcome::Unavailable(Trouble { reason, everywhere: false, suspect: false, elsewhere: false })
                }
                outcome => outcome,
            };
            self.batch_done(batch, outcome, Ended { alone, class: group.class, lost, at: now, jitter });
        }
    }

    fn batch_done(
        &mut self,
        batch: &LaneBatch,
        outcome: BatchOutcome,
        Ended { alone, class, lost, at: now, jitter }: Ended,
    ) {
        let key = batch.key;
        if self.shards.get(&key.shard).is_none_or(|owned| owned.opening != batch.opening) {
            return;
        }
        let Some(org) = self.orgs.get_mut(&(key.shard, key.org)) else { return };
        let spent = match &outcome {
            BatchOutcome::Applied { cost, .. } => cost.total(),
            BatchOutcome::TimedOut | BatchOutcome::Failed { .. } => lost,
            BatchOutcome::Moved { .. } | BatchOutcome::Fenced | BatchOutcome::Undone | BatchOutcome::Unavailable(_) => {
                Duration::ZERO
            }
        };
        org.charge(class, spent.as_micros() as f64 - batch.charged);
        if let BatchOutcome::Applied { plan, .. } = &outcome {
            org.weight = self.options.weights.of(plan);
        }
        let lane = org.lane_mut(key.pipeline);
        lane.state = LaneState::Idle;
        let mut wait = None;
        match outcome {
            BatchOutcome::Applied { cost, elsewhere, .. } => {
                lane.is_elsewhere = elsewhere;
                let took = (cost.opening + cost.work).as_micros() as f64;
                let aim = self.options.batch.as_micros() as f64;
                self.service.learn(&mut lane.cost, batch.units(), took, aim);
                let last = batch.deliveries.last().map_or(0, |delivery| delivery.seq());
                self.bytes -= lane.applied(last);
            }
            BatchOutcome::Moved { stored } => {
                if batch.from == Some(stored) {
                    // It is where it was expected, and cannot be moved from there: an immediate retry would return the
                    // same.
                    lane.outages = lane.outages.saturating_add(1);
                    wait = Some(backoff(lane.outages, jitter));
                }
                self.bytes -= lane.moved(stored);
            }
            BatchOutcome::Undone => lane.give_back(),
            BatchOutcome::Fenced => {
                lane.give_back();
                wait = Some(self.options.lease);
            }
            BatchOutcome::Unavailable(trouble) => {
                lane.give_back();
                lane.suspect |= trouble.suspect;
                lane.is_elsewhere |= trouble.suspect && trouble.elsewhere;
                lane.outages = lane.outages.saturating_add(1);
                if lane.outages == TOLD_AT && self.outage.reason(now).is_none() {
                    tracing::warn!(
                        org.id = %key.org, pipeline = %key.pipeline, error = %trouble.reason,
                        event.seq = batch.deliveries.first().map(|first| first.seq()),
                        "the database applies what others have, and not this; no event is blamed, and it is tried again and again"
                    );
                }
                wait = Some(backoff(lane.outages, jitter));
            }
            BatchOutcome::TimedOut if !alone => {
                lane.give_back();
                lane.suspect = true;
            }
            BatchOutcome::TimedOut | BatchOutcome::Failed { .. } => {
                lane.give_back();
                let single = batch.deliveries.len() == 1;
                if matches!(outcome, BatchOutcome::TimedOut) {
                    // The cost of a message that did not finish has a known lower bound.
                    lane.cost = Some(lost.as_micros() as f64 / batch.units().max(1.0));
                }
                if single {
                    lane.attempts += 1;
                    if lane.attempts >= self.options.attempts {
                        lane.park_first = Some(match outcome {
                            BatchOutcome::Failed { reason } => reason,
                            _ => format!("applying it took longer than {:?}", self.options.message_timeout),
                        });
                    }
                    // At once when it is to be parked, but not when even that fails.
                    if lane.attempts != self.options.attempts {
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

    /// Returns when the next delayed try may start.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let first = self.backing_off.peek().map(|Reverse((at, _))| *at);
        // A lane that wakes during an outage waits for the end of its next pause.
        self.outage.ends_at().or(first)
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

/// Moves an estimate towards a measurement.
fn towards(old: f64, new: f64, fall: f64, rise: f64) -> f64 {
    old + if new < old { fall } else { rise } * (new - old)
}

/// 50 ms, doubled each time up to 6.4 s, and spread over half of itself so that lanes do not retry at the same time.
fn backoff(attempt: u32, jitter: f64) -> Duration {
    let base = Duration::from_millis(50) * (1 << attempt.saturating_sub(1).min(7));
    base.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}
