//! Orgstream: an event-sourced backend for multi-tenant products.
//!
//! Every organization has its own stream of events. A command becomes events ([`commands`]), the events are appended to the
//! organization's stream (`orgstream_stream`), workers apply them fairly (`orgstream_workers`) to read models and an audit
//! log (`orgstream_projections`), and queries read those ([`api`]). ARCHITECTURE.md is the map.

pub mod adapters;
pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod commands;
pub mod config;
pub mod dev;
pub mod jobs;
pub mod limits;
pub(crate) mod org_queues;
pub mod peers;
pub mod process;
pub mod secret;
pub mod telemetry;
pub mod tenant_cache;
pub mod terminal;
