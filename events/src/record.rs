//! Events of a record.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{KindName, RecordId, SecretId, UniqueValueId, codec::event_enum, json};

/// The number of fields of a record, the first by name, by whose values records are listed.
pub const MAX_LISTED_FIELDS: usize = 128;

/// The maximum length of the name of a field by which records are listed, in bytes.
const MAX_LISTED_NAME: usize = 63;

/// Whether records can be listed by a field of this name: it must fit into a query.
pub fn is_listed_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    !name.is_empty() && name.len() <= MAX_LISTED_NAME && name.chars().all(is_plain)
}

event_enum! {
    /// The events of a record.
    RecordEvent about aggregate {
        Created(RecordCreated) = "record.created", 1;
        Updated(RecordUpdated) = "record.updated", 1;
        Archived(RecordArchived) = "record.archived", 1;
    }
}

/// A reference to another record, as it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReference {
    /// The JSON pointer to it, from the record's data.
    pub pointer: String,
    /// The record that is referred to.
    pub id: RecordId,
    /// Its kind.
    pub kind: KindName,
    /// Whether it is the platform's, which all organizations share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub global: bool,
}

/// A value that no other record of the kind has, as the record took it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueField {
    /// The field of the record's data.
    pub field: String,
    /// The value, by the id of its aggregate.
    pub id: UniqueValueId,
}

/// The part that a field has in searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchRole {
    /// The name of the record, which counts most.
    Title,
    /// Text.
    Body,
    /// A word or a code that is found as a whole.
    Keyword,
    /// One of a few values, by which hits are filtered and counted.
    Facet,
}

/// A field by which a record is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchedField {
    /// Its name.
    pub field: String,
    /// Its part.
    pub role: SearchRole,
}

/// A secret in a record's content. The content has a mask in its place, and the vault its value, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSecret {
    /// The field of the content.
    pub field: String,
    /// The id of the value.
    pub id: SecretId,
    /// The number of the value in this field, from 1 on.
    pub version: u64,
    /// The beginning of a keyed hash of the value: 8 hexadecimal digits.
    pub fingerprint: String,
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
    /// The references in the content that the kind declared then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<RecordReference>,
    /// The values that no other record of the kind has, in the fields that the kind declared as unique then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<UniqueField>,
    /// The fields that are searched, as the kind declared them then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searched: Vec<SearchedField>,
    /// The secrets in the content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<RecordSecret>,
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
    /// The references in the content that the kind declared then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<RecordReference>,
    /// The values that no other record of the kind has, in the fields that the kind declared as unique then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<UniqueField>,
    /// The fields that are searched, as the kind declared them then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searched: Vec<SearchedField>,
    /// The secrets in the content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<RecordSecret>,
}

impl RecordCreated {
    /// The creation of a record whose kind declares nothing beside its schema.
    pub fn plain(kind: KindName, kind_version: u64, data: Value) -> Self {
        let (references, unique, searched, secrets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { kind, kind_version, data, references, unique, searched, secrets }
    }
}

impl RecordUpdated {
    /// New content of a record whose kind declares nothing beside its schema.
    pub fn plain(kind: KindName, kind_version: u64, data: Value) -> Self {
        let (references, unique, searched, secrets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { kind, kind_version, data, references, unique, searched, secrets }
    }
}

/// The record was archived; the content and the history stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordArchived {
    /// The reason, if one was given.
    pub reason: Option<String>,
}
