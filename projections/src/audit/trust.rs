//! The keys by which a head of an audit log counts as signed.
//!
//! The database itself names keys: those that the signing process has published as the log's. Anyone with write access
//! to the tables can add a key there, so a process that was given the log's key trusts only that one, and those that it
//! handed over to or that handed over to it, each by a note signed by both.

use std::sync::Arc;

use orgstream_events::OrgId;
use orgstream_transparency::{Checkpoint, HandOver, LogKey, SignedNote};

use super::{AuditCheckpoint, checkpoints};
use crate::{DbError, TenantTx};

/// The authority for a key being the log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysOf {
    /// The key was given to this process, from a source other than the database.
    Pinned,
    /// The database names it, which is no protection against a writer of the database.
    Database,
}

/// The key of the audit logs that a process was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pin(Option<Arc<LogKey>>);

impl Pin {
    pub(crate) fn new(key: Option<LogKey>) -> Self {
        Self(key.map(Arc::new))
    }
}

/// The keys of one org's log.
#[derive(Debug, Clone)]
pub struct TrustedKeys {
    org: OrgId,
    keys: Vec<LogKey>,
    /// The authority for them.
    pub by: KeysOf,
}

impl TrustedKeys {
    /// Returns the keys trusted by the reader of `tx`.
    pub async fn of(tx: &mut TenantTx) -> Result<Self, DbError> {
        let (org, pin) = (tx.org(), tx.pin().0.clone());
        let (keys, by) = match pin {
            Some(pin) => {
                let notes = checkpoints::handovers(tx).await?;
                let notes: Vec<SignedNote> =
                    notes.iter().filter_map(|note| SignedNote::parse(note.as_bytes()).ok()).collect();
                (HandOver::follow(&pin, &notes), KeysOf::Pinned)
            }
            None => {
                let keys = checkpoints::keys(tx).await?;
                (keys.iter().filter_map(|key| key.parse().ok()).collect(), KeysOf::Database)
            }
        };
        Ok(Self { org, keys, by })
    }

    /// Whether one of them has signed this head of this org's log.
    pub fn have_signed(&self, head: &AuditCheckpoint) -> bool {
        let Ok(stated) = head.note.text().parse::<Checkpoint>() else { return false };
        let log = self.org.to_string();
        let mut named = self.keys.iter().filter_map(|key| key.of_log(stated.origin(), &log));
        stated.head() == head.head && named.any(|key| matches!(key.verify(&head.note), Ok(Some(()))))
    }

    /// Returns the head, or an error unless one of them has signed it.
    pub(super) fn only_signed(&self, head: AuditCheckpoint) -> Result<AuditCheckpoint, DbError> {
        if self.have_signed(&head) {
            return Ok(head);
        }
        let what = format!("the head of {} events is signed by no key of the log", head.head.size);
        Err(DbError::Altered { org: self.org, what, cause: None })
    }
}
