//! Events of a record kind: kinds are data, registered by the platform operator for all organizations.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ViewDefinition, codec::event_enum, json};

event_enum! {
    /// The events of a record kind.
    KindEvent about aggregate {
        Registered(KindRegistered) = "kind.registered", 1;
        Changed(KindChanged) = "kind.changed", 1;
        Retired(KindRetired) = "kind.retired", 1;
        Restored(KindRestored) = "kind.restored", 1;
    }
}

/// The visibility of the platform's own records of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Every organization sees them.
    DefaultOn,
    /// An organization sees them when it requests them.
    OptIn,
    /// There are none: records of this kind always belong to one organization.
    Private,
}

/// The definition of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindDefinition {
    /// The display name.
    pub title: String,
    /// JSON Schema (2020-12) that every record's data must satisfy.
    #[serde(deserialize_with = "json::deserialize")]
    pub schema: Value,
    /// The visibility of the platform's own records.
    pub visibility: Visibility,
    /// The cost of writing one record, in the units that limits count.
    pub cost: u32,
    /// The views of its records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub views: Vec<ViewDefinition>,
    /// Whether its records are written once: never changed, never archived. A kind is so from its registration on, or never.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append_only: bool,
}

/// A kind was registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRegistered {
    /// The definition.
    pub definition: KindDefinition,
}

/// The definition changed. Records written under older ones keep them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindChanged {
    /// The definition from now on.
    pub definition: KindDefinition,
}

/// The kind was retired: no new records; the old ones stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRetired {}

/// The kind was restored: new records are accepted again, under the definition that it had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRestored {}
