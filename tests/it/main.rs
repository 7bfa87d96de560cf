//! The one integration binary: real servers, no sleeping, everything through public doors.
#![cfg(test)]

mod access;
mod api;
mod arrows;
mod break_glass;
mod chaos;
mod cli;
mod cluster;
mod compose;
mod history;
mod http;
mod isolation;
mod keys;
mod lost_ack;
mod matrix;
mod openapi;
mod parking;
mod plans;
mod producers;
mod projections;
mod queries;
mod readme;
mod rebuild;
mod rls;
mod servers;
mod stream;
mod support;
mod telemetry;
mod tenancy;
mod watchdog;
mod workers;
