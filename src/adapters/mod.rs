//! External systems: mail servers, DNS, identity providers, addresses that customers choose.

pub mod dns;
pub(crate) mod egress;
pub mod identity_provider;
pub mod mail;
