//! Events of a record kind: kinds are data, registered by the platform operator for all organizations.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{codec::event_enum, json};

event_enum! {
    /// What happens to a record kind.
    KindEvent {
        Registered(KindRegistered) = "kind.registered", 1;
        Changed(KindChanged) = "kind.changed", 1;
        Retired(KindRetired) = "kind.retired", 1;
        Restored(KindRestored) = "kind.restored", 1;
    }
}

/// How far the platform's own records of a kind are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Every organization sees them.
    DefaultOn,
    /// An organization sees them when it asks to.
    OptIn,
    /// There are none: records of this kind are always somebody's own.
    Private,
}

/// What a kind is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindDefinition {
    /// What people call it.
    pub title: String,
    /// JSON Schema (2020-12) that every record's data must satisfy.
    #[serde(deserialize_with = "json::deserialize")]
    pub schema: Value,
    /// How far the platform's own records are seen.
    pub visibility: Visibility,
    /// What writing one record costs, in the units that limits count.
    pub cost: u32,
}

/// A new kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRegistered {
    /// What it is.
    pub definition: KindDefinition,
}

/// A new definition. Records written under older ones keep them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindChanged {
    /// What it is from now on.
    pub definition: KindDefinition,
}

/// No new records of this kind; the old ones stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRetired {}

/// New records of this kind again, by the definition that it had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRestored {}
