//! What can go wrong with the database, sorted by what the caller should do about it.

use orgstream_events::OrgId;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Not reachable, shutting down, out of time or in a deadlock: the same again later may work.
    #[error("the database cannot answer now: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A statement took longer than it may.
    #[error("the database needed too long: {0}")]
    TimedOut(#[source] sqlx::Error),
    /// Row-level security or a missing grant: the transaction was bound to another org, or to none.
    #[error("the database refused access: {0}")]
    Refused(#[source] sqlx::Error),
    /// A constraint does not hold: something of the kind is there already, or something it needs is not.
    #[error("the rows contradict what is stored: {0}")]
    Conflict(#[source] sqlx::Error),
    /// An event changes a row that does not exist, because an earlier event was never applied.
    #[error("{changed} of {expected} rows of {table} are there to be changed")]
    RowsMissing {
        /// Which table.
        table: &'static str,
        /// How many rows the events change.
        expected: u64,
        /// How many of them exist.
        changed: u64,
    },
    /// A stored value that this program cannot read; a newer one may have written it.
    #[error("{value:?} is stored as {what}, which this version cannot read")]
    Unreadable {
        /// Of which column or type.
        what: &'static str,
        /// What is stored.
        value: String,
    },
    /// What is stored of an audit log contradicts itself, or what was signed of it.
    #[error("the audit log of {org} is not what was appended to it: {what}")]
    Altered {
        /// Whose log.
        org: OrgId,
        /// What does not fit.
        what: String,
    },
    /// A row that was read for one org is another's. It was not shown, and the alarm was given.
    #[error("a row of {table} that was read for {bound} belongs to {found}")]
    ForeignRow {
        /// The org that was read for.
        bound: OrgId,
        /// The org that the row belongs to.
        found: OrgId,
        /// Which table.
        table: &'static str,
    },
    /// A programming error: the transaction is not open for this org.
    #[error("this transaction has no open slice of {0}")]
    NotOpen(OrgId),
    /// Anything else; bad data in an event ends here.
    #[error(transparent)]
    Other(sqlx::Error),
}

impl DbError {
    /// Whether the same again later may work. Everything else repeats itself.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TimedOut(_))
    }

    /// Whether it was given up because it took too long.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut(_))
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Io(_)
            | E::Tls(_)
            | E::PoolTimedOut
            | E::PoolClosed
            | E::WorkerCrashed
            | E::BeginFailed
            | E::Protocol(_) => Self::Unavailable(error),
            E::Database(refusal) => match refusal.code().as_deref() {
                Some("42501") => Self::Refused(error),
                Some("57014") => Self::TimedOut(error),
                // Serialization and deadlocks, resources, operator intervention, connections, and lock timeouts.
                Some(code) if ["40", "53", "57", "58", "08"].contains(&code.get(..2).unwrap_or_default()) => {
                    Self::Unavailable(error)
                }
                Some("55P03" | "55006" | "25P03") => Self::Unavailable(error),
                Some(code) if code.starts_with("23") => Self::Conflict(error),
                _ => Self::Other(error),
            },
            _ => Self::Other(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_worth_another_try_and_a_missing_row_is_not() {
        assert!(DbError::from(sqlx::Error::PoolTimedOut).is_retryable());
        assert!(DbError::from(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())).is_retryable());
        assert!(!DbError::from(sqlx::Error::RowNotFound).is_retryable());
    }
}
