//! Who may do what at NATS: the accounts that nats-server is told of, the users in them, and the credentials of producers.
//!
//! NATS' decentralized JWT authentication: an operator's key signs accounts, an account's key signs its users, and the
//! server believes the operator alone. So a producer's credentials are made without the server being told.
//! `docs/decisions/0002-broker-accounts.md` says why there is an account for each part.

mod accounts;
mod files;
mod producers;
mod token;

pub use accounts::make;
pub use files::{AccessFiles, write_private};
pub use producers::{NatsUser, Producers, REQUEST_INFO};

/// Why credentials cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A file of the accounts that is there already.
    #[error("{0} is there already: whoever has its credentials would be locked out; give another folder with --dir")]
    Exists(String),
    /// A file or folder.
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file that is something else.
    #[error("{0} is not what `orgstream nats init` writes: make the files again, or restore it")]
    Damaged(String),
    /// The nkey or the JSON library.
    #[error("a NATS token could not be signed: {0}")]
    Unsigned(String),
}
