//! By which keys a head of an audit log counts as signed.
//!
//! The database itself names keys: those that the signing process has said are the log's. Whoever can change tables can put
//! a key of their own there, so a process that was given the log's key believes that one, and those that it handed over to
//! or that handed over to it, each by a note that both have signed.

use std::sync::Arc;

use orgstream_events::OrgId;
use orgstream_transparency::{Checkpoint, HandOver, LogKey, SignedNote};

use super::{AuditCheckpoint, checkpoints};
use crate::{DbError, TenantTx};

/// Whose word it is that a key is the log's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeysOf {
    /// The key was given to this process, from elsewhere than from the database.
    Pinned,
    /// The database names it, which says nothing against whoever can change the database.
    Database,
}

/// What a process was told of the key of the audit logs.
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
    /// Whose word it is that they are.
    pub by: KeysOf,
}

impl TrustedKeys {
    /// Those that count for whoever reads by `tx`.
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

    /// The head, unless nobody of them has signed it.
    pub(super) fn only_signed(&self, head: AuditCheckpoint) -> Result<AuditCheckpoint, DbError> {
        if self.have_signed(&head) {
            return Ok(head);
        }
        let what = format!("the head of {} events is signed by no key of the log", head.head.size);
        Err(DbError::Altered { org: self.org, what })
    }
}
