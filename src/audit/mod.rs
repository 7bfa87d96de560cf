//! What makes the audit log one that nobody has to believe: the process that signs it, the witness that others run, and the
//! export that is verified without either; and the log on its way to where its organization collects it.

pub(crate) mod compare;
pub mod export;
pub mod keys;
mod lacked;
pub mod signer;
mod submit;
pub mod witness;
