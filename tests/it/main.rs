//! The one integration binary: real servers, no sleeping, everything through public doors.
#![cfg(test)]

mod api;
mod arrows;
mod chaos;
mod cluster;
mod compose;
mod history;
mod http;
mod isolation;
mod openapi;
mod projections;
mod queries;
mod readme;
mod rls;
mod servers;
mod stream;
mod support;
mod telemetry;
