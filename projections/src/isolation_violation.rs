//! The alarm: a row that was read for one org turned out to be another's.
//!
//! Row-level security and every query's own condition keep that from happening. Where a row carries a second proof of whose
//! it is, it is compared all the same: what answers anyhow must not be answered, and somebody must learn of it.

use orgstream_events::OrgId;
use tokio::sync::broadcast;

use crate::DbError;

/// Isolation violations that wait to be told. When nobody listens, the program's log has them.
const WAITING: usize = 64;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsolationViolation {
    /// The org that was read for.
    pub bound: OrgId,
    /// The org that the row belongs to.
    pub found: OrgId,
    /// Where the row lies.
    pub table: &'static str,
}

/// Where isolation violations are told.
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

    /// Goes on only if the row is the org's own.
    pub(crate) fn check(&self, bound: OrgId, found: OrgId, table: &'static str) -> Result<(), DbError> {
        if bound == found {
            return Ok(());
        }
        tracing::error!(org.id = %bound, found.org.id = %found, table, "a row of another organization was read; it is not shown");
        // Nobody listens in a process that only works.
        let _ = self.0.send(IsolationViolation { bound, found, table });
        Err(DbError::ForeignRow { bound, found, table })
    }
}
