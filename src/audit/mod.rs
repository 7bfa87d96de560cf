//! The verifiable audit log: the process that signs it, the witness that third parties run, and the export that is verified
//! without either; and the delivery of the log to its organization.

pub(crate) mod compare;
pub mod export;
pub mod keys;
mod lacked;
pub mod signer;
mod submit;
pub mod witness;
