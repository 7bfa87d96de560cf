//! Access control at NATS: the accounts that nats-server knows, their users, and the credentials of producers.
//!
//! NATS' decentralized JWT authentication: an operator's key signs accounts, an account's key signs its users, and the
//! server trusts the operator alone. So producers' credentials are made without any change to the server.
//! `docs/decisions/0002-broker-accounts.md` gives the reason for one account per part.

mod accounts;
mod files;
mod producers;
mod token;

pub use accounts::make;
pub use files::{AccessFiles, write_private};
pub use producers::{NatsUser, Producers, REQUEST_INFO};

/// The reason why credentials cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A file of the accounts that exists already.
    #[error("{0} is there already: holders of its credentials would be locked out; give another folder with --dir")]
    Exists(String),
    /// An I/O error on a file or folder.
    #[error("{what}")]
    Io {
        /// The operation and its file.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file with other content than expected.
    #[error("{0} is not what `orgstream nats init` writes: make the files again, or restore it")]
    Damaged(String),
    /// An error of the nkey library.
    #[error("a NATS token could not be signed")]
    Unsigned(#[source] nkeys::error::Error),
}
