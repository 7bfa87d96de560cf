//! Events of a record.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{KindName, codec::event_enum, json};

event_enum! {
    /// The events of a record.
    RecordEvent about aggregate {
        Created(RecordCreated) = "record.created", 1;
        Updated(RecordUpdated) = "record.updated", 1;
        Archived(RecordArchived) = "record.archived", 1;
    }
}

/// A record was created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordCreated {
    /// The kind.
    pub kind: KindName,
    /// The version of the kind's schema that it was validated against.
    pub kind_version: u64,
    /// The whole content.
    #[serde(deserialize_with = "json::deserialize")]
    pub data: Value,
}

/// The content was replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordUpdated {
    /// The kind, which never changes.
    pub kind: KindName,
    /// The version of the kind's schema that it was validated against.
    pub kind_version: u64,
    /// The whole content from now on, not a difference.
    #[serde(deserialize_with = "json::deserialize")]
    pub data: Value,
}

/// The record was archived; the content and the history stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordArchived {
    /// The reason, if one was given.
    pub reason: Option<String>,
}
