//! The one integration binary: real servers, no sleeping, everything through public doors.
#![cfg(test)]

mod api;
mod arrows;
mod chaos;
mod cli;
mod cluster;
mod compose;
mod history;
mod http;
mod idp;
mod isolation;
mod joining;
mod lost_ack;
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
mod watchdog;
mod workers;
