//! Orgstream: an event-sourced backend for multi-tenant products.
//!
//! Every organization has its own stream of events. A command becomes events ([`commands`]), the events are appended to
//! the organization's stream (`orgstream_stream`), workers apply them fairly (`orgstream_workers`) to read models and an
//! audit log (`orgstream_projections`), and queries read those (`http`). ARCHITECTURE.md is the map.

pub mod auth;
pub mod commands;
pub mod config;
pub mod gateway;
pub mod kinds;
pub mod problem;
pub mod telemetry;
