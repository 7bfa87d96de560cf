//! What an operator can choose about a worker.

use std::time::Duration;

use uuid::Uuid;

/// Bounds and timings of a worker. The defaults suit a small machine.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// This worker among the others. A worker that comes back under its old id gets its shards back at once.
    pub id: Uuid,
    /// Transactions at the same time; the database pool must have as many connections.
    pub slots: usize,
    /// How much database time a slice aims for. What is in a slice cannot be interrupted, so this is what a quiet org
    /// may have to wait for.
    pub slice: Duration,
    /// Messages of one lane in memory, in bytes, before the lane is detached.
    pub lane_bytes: usize,
    /// Messages of all lanes in memory, in bytes, before every growing lane is detached.
    pub total_bytes: usize,
    /// The most messages in one slice.
    pub slice_messages: usize,
    /// The most lanes that share one transaction.
    pub group_lanes: usize,
    /// Tries of a message that the database refuses, before its aggregate is parked.
    pub attempts: u32,
    /// How long a shard stays ours without a renewal.
    pub lease: Duration,
}

impl WorkerOptions {
    /// The defaults, for the worker `id`.
    pub fn new(id: Uuid) -> Self {
        Self {
            id,
            slots: 4,
            slice: Duration::from_millis(4),
            lane_bytes: 256 * 1024,
            total_bytes: 64 * 1024 * 1024,
            slice_messages: 500,
            group_lanes: 64,
            attempts: 5,
            lease: Duration::from_secs(6),
        }
    }
}
