//! Private servers: a nats-server and a PostgreSQL, for `orgstream dev`, the tests and the benchmarks.
//!
//! Each is a child process on a loopback port, with everything it has in one folder. It keeps its data and its port
//! over restarts, and it never outlives this process: process.rs describes how.

mod account;
mod error;
mod folder;
mod nats;
mod postgres;
mod process;
mod shared;
mod tools;

pub use error::ServerError;
pub use folder::{stable_listener, write_private};
pub use nats::Nats;
pub use postgres::{Postgres, PostgresOptions};
pub use process::child_command;
pub use shared::{TEST_POSTGRES, run_with_postgres};
pub use tools::nats_server;
