//! The one integration binary: real servers, no sleeping, everything through public doors.
#![cfg(test)]

mod servers;
mod support;
