//! Baselines for comparison: one queue for all, and turns counted in messages. Neither considers cost, keeps a slot
//! free, or shares a transaction fairly. And the bound that no scheduler can beat: to leave backlogs alone. For
//! `orgstream bench fairness` alone.

use std::{cmp::Reverse, time::Instant};

use super::{Group, Scheduler, dispatch::Service};
use crate::{
    delivery::Delivery,
    lane::{Lane, LaneKey},
    options::Policy,
    work_class::WorkClass,
};

/// Messages in a transaction of the one queue.
const FIFO_BATCH: usize = 100;
/// Messages from which on a backlog is left alone.
const HELD: usize = 100;

fn order(since: Instant, arrived: Instant) -> u64 {
    arrived.saturating_duration_since(since).as_nanos() as u64
}

impl Service {
    /// The arrival time, as a rank.
    pub(super) fn order(&self, arrived: Option<Instant>) -> u64 {
        arrived.map_or(0, |arrived| order(self.since, arrived))
    }
}

impl Scheduler {
    /// Returns the messages that have waited longest, of any org. Since messages of an org stay in order, those behind
    /// one whose org is being served wait too.
    pub(super) fn fifo_group(&mut self, now: Instant) -> Group {
        let mut group = Group::new(now);
        let mut room = FIFO_BATCH;
        while room > 0 {
            let Some(Reverse(place)) = self.ready[WorkClass::Light].peek().copied() else { break };
            if !self.is_waiting(place) {
                self.ready[WorkClass::Light].pop();
                continue;
            }
            let being_served = self.service.running.iter().filter_map(|key| self.lane(*key));
            let mut arrivals = being_served.filter_map(Lane::first_arrived);
            if arrivals.any(|arrived| self.service.order(Some(arrived)) < place.rank) {
                break;
            }
            let line = &mut self.ready[WorkClass::Light];
            line.pop();
            let next = line.peek().map_or(u64::MAX, |Reverse(next)| next.rank);
            let since = self.service.since;
            let is_older = |_, delivery: &Delivery| order(since, delivery.arrived) <= next;
            let Some(batch) = self.take(place.key, WorkClass::Light, room, is_older) else { continue };
            room -= batch.deliveries.len().min(room);
            group.batches.push(batch);
        }
        group
    }

    /// Whether a lane is left alone for as long as this worker lives.
    pub(super) fn is_held(&self, key: LaneKey) -> bool {
        let is_large = |lane: &Lane| lane.skipped.is_some() || lane.len() > HELD;
        self.options.policy == Policy::Held && self.lane(key).is_some_and(is_large)
    }

    /// Returns the next lane's turn: a transaction of its own, with up to `most` of its messages.
    pub(super) fn round_robin_group(&mut self, now: Instant, most: usize) -> Group {
        let mut group = Group::new(now);
        while let Some(Reverse(place)) = self.ready[WorkClass::Light].pop() {
            if self.is_waiting(place)
                && let Some(batch) = self.take(place.key, WorkClass::Light, most, |_, _| true)
            {
                group.batches.push(batch);
                break;
            }
        }
        group
    }
}
