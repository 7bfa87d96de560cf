//! External systems: mail servers, DNS, identity providers, key rings, search targets, addresses that customers choose.

pub mod dns;
pub(crate) mod egress;
pub mod identity_provider;
pub mod key_ring;
pub mod mail;
pub mod payments;
pub mod search_target;
