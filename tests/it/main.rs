//! The one integration binary: real servers, no sleeping, everything through public doors.
#![cfg(test)]

mod api;
mod http;
mod isolation;
mod projections;
mod rls;
mod servers;
mod stream;
mod support;
