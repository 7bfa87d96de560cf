//! Secrets that a caller shows: how they are made, read and hashed. What is stored of each is a keyed hash.

pub mod invitation;
pub mod key;
pub mod session;
