//! From a command to a commit: what is loaded, decided and appended, and what has to be found out beforehand.
//!
//! What may happen is decided in the crate `orgstream_domain`, which is pure. The handler here reads the clock, draws the
//! randomness and talks to the log for it.

mod cache;
mod claiming;
mod founding;
mod grants;
pub mod handler;
mod identity;
mod joining;
mod patience;
pub mod personal;
pub mod request;
mod secrets;
