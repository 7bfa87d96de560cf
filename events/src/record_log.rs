//! Events of a record log: one of the places where an organization's records of append-only kinds are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{CommandId, KindName, RecordId, RecordReference, SearchedField, codec::event_enum, json};

/// One of the record logs of an organization, which share its records of append-only kinds: by the command that appends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordLogId(u8);

impl RecordLogId {
    /// The number of record logs of an organization.
    pub const COUNT: u8 = 16;

    /// Returns the record log of what `command` appends.
    pub fn of(command: CommandId) -> Self {
        Self::of_bits(command.uuid().as_u64_pair().1)
    }

    pub(crate) fn of_bits(bits: u64) -> Self {
        Self((bits % u64::from(Self::COUNT)) as u8)
    }
}

impl fmt::Display for RecordLogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The text is not a record log's id: one hexadecimal digit in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record log has one hexadecimal digit, 0 to f")]
pub struct RecordLogIdError;

impl FromStr for RecordLogId {
    type Err = RecordLogIdError;

    fn from_str(text: &str) -> Result<Self, RecordLogIdError> {
        let id = u8::from_str_radix(text, 16).map(Self).ok().filter(|id| id.0 < Self::COUNT);
        // One spelling for each.
        id.filter(|id| id.to_string() == text).ok_or(RecordLogIdError)
    }
}

event_enum! {
    /// The events of a record log.
    RecordLogEvent about "record".record {
        Appended(RecordAppended) = "record_log.appended", 1;
    }
}

/// A record of an append-only kind was written, once and for all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordAppended {
    /// The record. Its id tells the record log and the command; see [`RecordId::appended`].
    pub record: RecordId,
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
    /// The fields that are searched, as the kind declared them then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searched: Vec<SearchedField>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_log_has_one_spelling() {
        for number in 0..RecordLogId::COUNT {
            let id = RecordLogId::of_bits(u64::from(number) + 0xfff0);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for other in ["", "g", "A", "0f", "10", "+1"] {
            assert!(other.parse::<RecordLogId>().is_err(), "{other}");
        }
    }
}
