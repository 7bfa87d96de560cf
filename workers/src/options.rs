//! What an operator can choose about a worker.

use std::time::Duration;

use uuid::Uuid;

use crate::weights::PlanWeights;

/// Bounds and timings of a worker. The defaults suit a small machine.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// This worker among the others. A worker that comes back under its old id gets its shards back at once.
    pub id: Uuid,
    /// Who goes first.
    pub policy: Policy,
    /// How much of the database's time an org may have against others, by its plan.
    pub weights: PlanWeights,
    /// Transactions at the same time; the database pool must have as many connections.
    pub slots: usize,
    /// Slots that backlogs leave free, so that whoever comes next need not wait. Where an org that has a slot takes another
    /// while its first one goes on, three quarters must be free in any case.
    pub reserve: usize,
    /// How much database time a batch aims for. What is in a batch cannot be interrupted, so this is what a quiet org
    /// may have to wait for.
    pub batch: Duration,
    /// How long a single message may take before its transaction is given up.
    pub message_timeout: Duration,
    /// Messages that every lane may have in memory, in bytes; while there is room, it may have more before it is `catching_up`.
    pub lane_bytes: usize,
    /// Messages of all lanes in memory, in bytes, before every growing lane is `catching_up`.
    pub total_bytes: usize,
    /// The most messages in one batch.
    pub batch_messages: usize,
    /// The most lanes that share one transaction.
    pub group_lanes: usize,
    /// Tries of a message that the database refuses, before its aggregate is parked.
    pub attempts: u32,
    /// How long a shard may stand still when its worker dies.
    pub lease: Duration,
    /// Messages behind the end of its shard from which on a reader asks who has any, and lets each read their own part.
    pub far_behind: u64,
    /// How often the watchdog compares checkpoints with the log; what has not moved in between stands still.
    pub watch: Duration,
}

/// Who goes first when several orgs wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The org that has had the least of the database's time.
    #[default]
    Fair,
    /// Whoever came first. A baseline for `orgstream bench fairness`.
    Fifo,
    /// One after the other, up to so many messages each. A baseline too: what job queues on a table do.
    RoundRobin(usize),
    /// As [`Policy::Fair`], but nobody serves large backlogs: no scheduler can do better for the others. A baseline, too.
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

    /// The reserve of so many slots, unless somebody wants another: a third of them, and never all.
    pub fn usual_reserve(slots: usize) -> usize {
        slots.div_ceil(3).min(slots.saturating_sub(1))
    }

    /// The same with so many slots, and the reserve that goes with them.
    #[must_use]
    pub fn with_slots(self, slots: usize) -> Self {
        Self { slots, reserve: Self::usual_reserve(slots), ..self }
    }

    /// Slots that must stay free when an org whose transactions have not moved for so long takes another one. Two
    /// transactions of a busy org only compete with the quiet ones for processors; when one of them is stuck, its other
    /// pipeline must not be.
    pub(crate) fn reserve_against(&self, is_stalled: Duration) -> usize {
        if is_stalled > self.group_timeout() { self.reserve } else { self.reserve.max(self.slots * 3 / 4) }
    }

    /// Slots that all backlogs may have together, while messages that are expensive have so many.
    pub(crate) fn backlog_slots(&self, expensive: usize) -> usize {
        self.slots.saturating_sub(self.reserve + expensive).max(1)
    }

    /// Slots that one org may have while its single messages take longer than a batch should.
    pub(crate) fn expensive_slots_of_one(&self) -> usize {
        (self.slots / 4).max(1)
    }

    /// Slots that all such orgs may have together.
    pub(crate) fn expensive_slots(&self) -> usize {
        (self.slots / 2).max(1)
    }

    /// How long a lease is good for without a renewal. Less than a shard may stand still for: others only look now and
    /// then whether it is over.
    pub(crate) fn lease_time(&self) -> Duration {
        self.lease * 2 / 3
    }

    /// How long a transaction of several lanes may take before each of them gets one of its own.
    pub(crate) fn group_timeout(&self) -> Duration {
        (25 * self.batch).max(Duration::from_millis(100)).min(self.message_timeout)
    }
}
