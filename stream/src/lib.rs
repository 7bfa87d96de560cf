//! The per-org log on JetStream: storing an org's events, and appending, reading, replaying and following them.
//!
//! Nothing outside this crate talks to JetStream, and nothing in it knows SQL or HTTP. One commit is one message on
//! `ev.<shard>.<org>.<aggregate>.<id>`; every append states the subject's last sequence, which orders an aggregate.
//! Start with [`Log`]: a cheap handle, and every verb of the crate is a method on it, in the file of that name.

pub mod access;
mod access_check;
mod api;
mod append;
pub mod broker;
mod catch_up;
mod claims;
mod consumer;
mod credentials;
mod cursor;
mod directory;
mod error;
mod generation;
mod in_flight;
mod log;
mod message;
mod placement;
mod preflight;
mod publish;
mod publish_batcher;
mod read;
mod refill;
mod rewrite;
mod snapshot;
mod streams;
mod subscription;
mod system;
mod tail;
mod tips;
pub mod trace;
mod trouble;
mod vault;

pub use append::{Appended, Expected};
pub use catch_up::CatchUpReader;
pub use credentials::{Credentials, Reach};
pub use cursor::Cursor;
pub use error::{AppendError, ClaimError, CursorError, RewriteError, StreamError};
pub use log::{Log, LogOptions, SyncMode};
pub use message::{Message, StoredCommit};
pub use placement::Placement;
pub use preflight::{Finding, preflight};
pub use read::{Chunk, Freshness, History, ReadLimit};
pub use refill::is_placeholder;
pub use rewrite::{Erased, RewritePlan, RewriteStep, Rewritten};
pub use snapshot::{SNAPSHOT_EVERY, Snapshot};
pub use streams::ShardState;
pub use tips::{StreamEnd, StreamName, Tip};
pub use vault::StoredSecret;
