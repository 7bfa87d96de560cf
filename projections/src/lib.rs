//! Read models, the audit log and their queries, on PostgreSQL under forced row-level security.
//!
//! This is the only crate with SQL. One file is one table: its row, how events change it, and its queries. A table is
//! reached only through a transaction that is bound to one org ([`TenantTx`] to read, [`ApplyTx`] to apply), and the
//! only way to bind one is a [`BoundOrg`], which authentication and the stream issue.
//!
//! Sign-ins ([`identity`]) belong to no tenant and are in a schema of their own, behind a login that reaches nothing
//! else.
//!
//! A row is a pure function of the events: dropping every read model and replaying gives the same rows.

pub mod api_keys;
pub mod audit;
pub mod break_glass;
pub mod catalog_choices;
pub mod catalog_items;
pub mod checkpoints;
pub mod deletions;
pub mod domains;
pub mod idempotency;
pub mod identity;
pub mod invitations;
pub mod key_uses;
pub mod kinds;
pub mod members;
pub mod organizations;
pub mod outbox;
pub mod parked;
pub mod plans;
pub mod quota_uses;
pub mod raw_search;
pub mod record_references;
pub mod records;
pub mod roles;
pub mod search;
pub mod sso_connections;
pub mod usage;
pub mod usage_hours;
pub mod views;

mod apply;
mod apply_tx;
mod as_of;
mod catalogue;
mod convert;
mod database;
mod drift;
mod error;
mod histories;
mod isolation_violation;
mod migrate;
mod ops;
mod page;
mod passwords;
mod pool;
mod pooler;
mod raw;
mod read_model;
mod rebuilds;
mod record_fields;
mod resolve;
mod slugs;
mod sort_key;
mod strays;
mod tenant;
mod versions;

pub use apply::{Applied, apply, apply_read_models};
pub use apply_tx::{ApplyTx, BatchStart, Opening};
pub use as_of::{AsOf, Moment, Scratch, TooMany};
pub use convert::CreatedBy;
pub use database::{BatchClass, Database, DatabaseOptions, Finding};
pub use drift::{Comparison, Drift, TablesCompared, compare_tables, drift};
pub use error::DbError;
pub use histories::{HistoryStep, StreamHistory};
pub use isolation_violation::IsolationViolation;
pub use migrate::{MigrateError, migrate, migrate_with};
pub use ops::{LaneLag, Lease, LowWatermark, WatermarkWriter};
pub use page::{Listing, Page, Place, Placed};
pub use passwords::{LoginPassword, LoginPasswordError, Passwords};
pub use raw::{Hindrance, Seen, grouped, hinder, seen, unhinder};
pub use read_model::{OWNERSHIP, READ_MODELS, ReadModel};
pub use rebuilds::{Asked, Rebuild, RebuildJob, RebuildState};
pub use sort_key::SortKey;
pub use strays::{Stray, StrayFound};
pub use tenant::{BoundOrg, TenantTx};
pub use versions::Step;
