//! The alarm: a row that was read for one org belongs to another.
//!
//! Row-level security and every query's own condition prevent that. Where a row carries a second proof of its owner, it
//! is compared all the same: a row that was returned anyhow must not be passed on, and an alarm must be raised.

use orgstream_events::OrgId;
use tokio::sync::broadcast;

use crate::DbError;

/// Capacity for isolation violations not yet received. Without a receiver, they are in the program's log.
const WAITING: usize = 64;

/// An isolation violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsolationViolation {
    /// The org that was read for.
    pub bound: OrgId,
    /// The org that the row belongs to.
    pub found: OrgId,
    /// The table of the row.
    pub table: &'static str,
}

/// The channel for isolation violations.
#[derive(Debug, Clone)]
pub(crate) struct Alarm(broadcast::Sender<IsolationViolation>);

impl Default for Alarm {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Alarm {
    pub(crate) fn listen(&self) -> broadcast::Receiver<IsolationViolation> {
        self.0.subscribe()
    }

    /// Fails unless the row is the org's own.
    pub(crate) fn check(&self, bound: OrgId, found: OrgId, table: &'static str) -> Result<(), DbError> {
        if bound == found {
            return Ok(());
        }
        tracing::error!(org.id = %bound, found.org.id = %found, table, "a row of another organization was read; it is not shown");
        // A process that only works has no receiver.
        let _ = self.0.send(IsolationViolation { bound, found, table });
        Err(DbError::ForeignRow { bound, found, table })
    }
}
