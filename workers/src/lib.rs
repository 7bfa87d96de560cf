//! From the stream to the tables, fairly: one org's burst never slows another.
//!
//! ```text
//! shard cursor ──> scheduler (one task: lanes, virtual time) ──> slots (one short transaction each) ──> checkpoint
//!      ^                 │ over budget: catch up                        │ failure: back off, then park
//!      └── lease         └──> catch-up read from the log at the lane's pace    └──> acknowledged by the checkpoint alone
//! ```
//!
//! [`Worker::run`] owns shards by lease, reads each owned shard once, and hands every commit to its org's lanes, one
//! per pipeline. Lanes take turns by measured database time. A batch's rows and its checkpoint commit together, so a
//! commit that is delivered twice has one effect.

mod batch;
mod delivery;
mod engine;
mod lane;
mod log_marks;
mod options;
mod ownership;
mod rebuild;
mod scheduler;
mod shard;
mod slots;
mod stall;
mod strays;
mod traffic;
mod watchdog;
mod weights;
mod work_class;
mod worker;

pub use options::{Policy, WorkerOptions};
pub use weights::{PlanWeight, PlanWeights, WEIGHTS, WeightError};
pub use worker::{Worker, WorkerError, WorkerStatus};
