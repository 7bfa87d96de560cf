//! Events of a record.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{KindName, codec::event_enum, json};

event_enum! {
    /// What happens to a record.
    RecordEvent {
        Created(RecordCreated) = "record.created", 1;
        Updated(RecordUpdated) = "record.updated", 1;
        Archived(RecordArchived) = "record.archived", 1;
    }
}

/// A new record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordCreated {
    /// Of this kind.
    pub kind: KindName,
    /// Checked against this version of the kind's schema.
    pub kind_version: u64,
    /// The whole content.
    #[serde(deserialize_with = "json::deserialize")]
    pub data: Value,
}

/// New content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordUpdated {
    /// The kind that the record has had from the beginning.
    pub kind: KindName,
    /// Checked against this version of the kind's schema.
    pub kind_version: u64,
    /// The whole content from now on, not a difference.
    #[serde(deserialize_with = "json::deserialize")]
    pub data: Value,
}

/// Out of sight; the content and the history stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordArchived {
    /// Why, if somebody said.
    pub reason: Option<String>,
}
