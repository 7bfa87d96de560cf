//! Errors of the database, classified by the caller's reaction.

use orgstream_events::{Cause, OrgId};

/// The reason why a database request failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Not reachable, shutting down, read-only, full, in a deadlock, or anything else not named below: the request is
    /// not at fault, and a retry may work.
    #[error("the database cannot answer now")]
    Unavailable(#[source] sqlx::Error),
    /// A statement exceeded its timeout.
    #[error("the database needed too long")]
    TimedOut(#[source] sqlx::Error),
    /// Row-level security or a missing grant: the transaction was bound to another org, or to none.
    #[error("the database refused access")]
    Refused(#[source] sqlx::Error),
    /// A constraint is violated: such a row exists already, or one that it needs does not.
    #[error("the rows contradict what is stored")]
    Conflict(#[source] sqlx::Error),
    /// A value that no table accepts, in any state of the database.
    #[error("the database refuses a value")]
    BadValue(#[source] sqlx::Error),
    /// An event changes a row that does not exist, because an earlier event was never applied.
    #[error("{changed} of {expected} rows of {table} are there to be changed")]
    RowsMissing {
        /// The table.
        table: &'static str,
        /// The number of rows that the events change.
        expected: u64,
        /// The number of them that exist.
        changed: u64,
    },
    /// A stored value that this program cannot read; a newer one may have written it.
    #[error("{value:?} is stored as {what}, which this version cannot read")]
    Unreadable {
        /// The column or type.
        what: &'static str,
        /// The stored value.
        value: String,
    },
    /// Something stored that does not decode; a newer version of this program may have written it.
    #[error("{what} cannot be read")]
    Undecodable {
        /// The thing, and its place.
        what: String,
        /// The decoder's error.
        #[source]
        cause: Cause,
    },
    /// The stored audit log contradicts itself, or its signed heads.
    #[error("the audit log of {org} is not what was appended to it: {what}")]
    Altered {
        /// The org of the log.
        org: OrgId,
        /// The contradiction.
        what: String,
        /// The error that shows it, if one does.
        #[source]
        cause: Option<Cause>,
    },
    /// A row that was read for one org belongs to another. It was not returned, and the alarm was raised.
    #[error("a row of {table} that was read for {bound} belongs to {found}")]
    ForeignRow {
        /// The org that was read for.
        bound: OrgId,
        /// The org that the row belongs to.
        found: OrgId,
        /// The table.
        table: &'static str,
    },
    /// A search target does not do what it is asked, or is unknown to this process. It concerns the organizations whose index
    /// is there, and no event is at fault.
    #[error("the search target {target:?} cannot be used now")]
    Target {
        /// Its name.
        target: String,
        /// The reason.
        #[source]
        cause: Cause,
    },
    /// A programming error: the transaction is not open for this org.
    #[error("this transaction has no open batch of {0}")]
    NotOpen(OrgId),
    /// Anything else: an unexpected response, which is a fault of this program.
    #[error(transparent)]
    Other(sqlx::Error),
}

impl DbError {
    /// Whether a retry may work. Every other error would repeat itself.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TimedOut(_) | Self::Target { .. })
    }

    /// Whether an event can be the cause, if its own statements failed with this. The list contains what an event can
    /// cause, not what can happen to a database: an error that is not listed counts against no event.
    pub fn may_be_of_an_event(&self) -> bool {
        matches!(self, Self::BadValue(_) | Self::Conflict(_) | Self::RowsMissing { .. })
    }

    /// Whether it may concern only a few rows that another transaction has locked, or that are in a search target. Every
    /// other error may affect all rows.
    pub fn is_of_some_rows(&self) -> bool {
        match self {
            Self::Target { .. } => true,
            Self::Unavailable(sqlx::Error::Database(refusal)) => {
                refusal.code().is_some_and(|code| code.starts_with("40") || code == "55P03")
            }
            other => other.is_timeout(),
        }
    }

    /// The database cannot answer now, for a reason determined by the caller.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(sqlx::Error::Io(std::io::Error::other(reason.into())))
    }

    /// Whether it was caused by a timeout.
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
                Some(code) => match code.get(..2).unwrap_or_default() {
                    "23" => Self::Conflict(error),
                    // Invalid data; a row written twice by one statement; more than a row or an index can hold.
                    "21" | "22" | "54" => Self::BadValue(error),
                    _ => Self::Unavailable(error),
                },
                None => Self::Unavailable(error),
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

    #[test]
    fn only_what_is_listed_can_be_the_fault_of_an_event() {
        for trouble in [sqlx::Error::PoolTimedOut, sqlx::Error::RowNotFound, sqlx::Error::WorkerCrashed] {
            assert!(!DbError::from(trouble).may_be_of_an_event());
        }
        assert!(!DbError::unavailable("it is read-only").may_be_of_an_event());
        assert!(DbError::RowsMissing { table: "rm.records", expected: 1, changed: 0 }.may_be_of_an_event());
    }
}
