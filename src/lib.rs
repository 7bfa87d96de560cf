//! Orgstream: an event-sourced backend for multi-tenant products.
//!
//! Every organization has its own stream of events. A command becomes events ([`commands`]), the events are appended to
//! the organization's stream (`orgstream_stream`), workers apply them fairly (`orgstream_workers`) to read models and an
//! audit log (`orgstream_projections`), and queries read those (`http`). ARCHITECTURE.md is the map.

pub mod admission;
pub mod audit;
pub mod auth;
pub mod bench;
pub mod body;
pub mod broker;
pub mod cli;
pub mod codes;
pub mod commands;
pub mod config;
pub mod demo;
pub mod dns;
pub mod figures;
pub mod gateway;
pub mod http;
pub mod idp;
pub mod issuer;
pub mod kinds;
pub mod mail;
pub mod node;
pub mod notes;
mod outward;
pub mod problem;
pub mod producers;
pub mod quotas;
pub mod scoped;
pub mod secret;
pub mod servers;
pub mod stack;
pub mod submission;
pub mod telemetry;
pub mod waiting;
