//! From a command to a commit: loading, deciding and appending, and resolving the inputs beforehand.
//!
//! The decisions are in the crate `orgstream_domain`, which is pure. The handler here reads the clock, draws the randomness
//! and talks to the log for it.

pub mod account_peers;
mod account_queues;
pub mod accounts;
mod aggregates;
mod cache;
mod catalog;
mod claiming;
mod command_index;
pub mod deletions;
mod founding;
mod grants;
pub mod handler;
mod identity;
pub mod invoices;
mod joining;
pub mod own_kinds;
mod patience;
pub mod personal;
pub mod quotas;
mod record_logs;
pub mod record_secrets;
mod references;
pub mod request;
mod secrets;
pub mod snapshots;
mod unique_values;
pub mod vault;
