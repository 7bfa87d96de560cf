//! Secrets that a caller presents: how they are made, parsed and hashed. Each is stored as a keyed hash.

pub mod invitation;
pub mod key;
pub mod session;
