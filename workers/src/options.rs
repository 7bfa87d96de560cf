//! An operator's options for a worker.

use std::time::Duration;

use uuid::Uuid;

use crate::weights::PlanWeights;

/// Limits and timings of a worker. The defaults suit a small machine.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// This worker's id. A worker that restarts with its old id gets its shards back at once.
    pub id: Uuid,
    /// The scheduling policy.
    pub policy: Policy,
    /// The shares of the database's time, by plan.
    pub weights: PlanWeights,
    /// Concurrent transactions; the database pool must have as many connections.
    pub slots: usize,
    /// Slots that backlogs leave free, so that a new batch need not wait. For an org that has a slot to take another
    /// while its first one is running, three quarters must be free in any case.
    pub reserve: usize,
    /// The target duration of a batch in database time. A batch cannot be interrupted, so this is how long a quiet org
    /// may have to wait.
    pub batch: Duration,
    /// Timeout of a single message, after which its transaction is given up.
    pub message_timeout: Duration,
    /// Bytes of messages guaranteed to every lane in memory; while there is room, it may have more before it is
    /// `catching_up`.
    pub lane_bytes: usize,
    /// Bytes of messages of all lanes in memory, before every growing lane is `catching_up`.
    pub total_bytes: usize,
    /// The most messages in one batch.
    pub batch_messages: usize,
    /// The most lanes that share one transaction.
    pub group_lanes: usize,
    /// Tries of a message that the database rejects, before its aggregate is parked.
    pub attempts: u32,
    /// How long a shard may be without an owner when its worker dies.
    pub lease: Duration,
    /// Lag in messages behind the end of its shard from which on a reader determines the orgs with messages there, and
    /// lets each lane read its own part.
    pub far_behind: u64,
    /// The interval at which the watchdog compares checkpoints with the log; one that has not moved in between is
    /// stalled.
    pub watch: Duration,
}

/// The order in which waiting orgs are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The org that has used the least of the database's time first.
    #[default]
    Fair,
    /// First come, first served. A baseline for `orgstream bench fairness`.
    Fifo,
    /// One after the other, up to this many messages each. A baseline too: what job queues on a table do.
    RoundRobin(usize),
    /// As [`Policy::Fair`], but large backlogs are not served: no scheduler can do better for the others. A baseline,
    /// too.
    Held,
}

impl WorkerOptions {
    /// The defaults, for the worker `id`.
    pub fn new(id: Uuid) -> Self {
        Self {
            id,
            policy: Policy::Fair,
            weights: PlanWeights::default(),
            slots: 4,
            reserve: Self::usual_reserve(4),
            batch: Duration::from_millis(4),
            message_timeout: Duration::from_secs(10),
            lane_bytes: 256 * 1024,
            total_bytes: 128 * 1024 * 1024,
            batch_messages: 500,
            group_lanes: 64,
            attempts: 5,
            lease: Duration::from_secs(6),
            far_behind: 20_000,
            watch: Duration::from_secs(30),
        }
    }

    /// The default reserve for `slots` slots: a third of them, and never all.
    pub fn usual_reserve(slots: usize) -> usize {
        slots.div_ceil(3).min(slots.saturating_sub(1))
    }

    /// Returns the options with this many slots, and their default reserve.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        Self { slots, reserve: Self::usual_reserve(slots), ..self }
    }

    /// Slots that must stay free when an org, whose transactions have not progressed for `is_stalled`, takes another
    /// one. Two transactions of a busy org only compete with the quiet ones for processors; when one of them is stuck,
    /// its other pipelines must not be.
    pub(crate) fn reserve_against(&self, is_stalled: Duration) -> usize {
        if is_stalled > self.group_timeout() { self.reserve } else { self.reserve.max(self.slots * 3 / 4) }
    }

    /// Slots available to all backlogs together, while expensive messages have `expensive`.
    pub(crate) fn backlog_slots(&self, expensive: usize) -> usize {
        self.slots.saturating_sub(self.reserve + expensive).max(1)
    }

    /// Slots available to one org while its single messages exceed the target duration of a batch.
    pub(crate) fn expensive_slots_of_one(&self) -> usize {
        (self.slots / 4).max(1)
    }

    /// Slots available to all such orgs together.
    pub(crate) fn expensive_slots(&self) -> usize {
        (self.slots / 2).max(1)
    }

    /// The lifetime of a lease without a renewal. Less than a shard may be without an owner: other workers check for
    /// expired leases only at intervals.
    pub(crate) fn lease_time(&self) -> Duration {
        self.lease * 2 / 3
    }

    /// Timeout of a transaction of several lanes, after which each of them gets one of its own.
    pub(crate) fn group_timeout(&self) -> Duration {
        (25 * self.batch).max(Duration::from_millis(100)).min(self.message_timeout)
    }
}
