//! The API boundary: the same commands and queries by HTTP and by NATS.

pub mod body;
pub mod command_body;
pub mod http;
pub mod nats;
pub mod turns;
