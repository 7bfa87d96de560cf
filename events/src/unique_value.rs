//! Events of a value that at most one record of a kind has in a field.

use serde::{Deserialize, Serialize};

use crate::{KindName, RecordId, codec::event_enum};

event_enum! {
    /// The events of a value that at most one record of a kind has in a field. The value itself is in the record's own events.
    UniqueValueEvent about "record".record {
        Taken(UniqueValueTaken) = "unique_value.taken", 1;
        Released(UniqueValueReleased) = "unique_value.released", 1;
    }
}

/// A record has the value from now on, and no other record of the kind may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueValueTaken {
    /// The kind.
    pub kind: KindName,
    /// The field.
    pub field: String,
    /// The record.
    pub record: RecordId,
}

/// The record does not have the value any more, and another one may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueValueReleased {
    /// The kind.
    pub kind: KindName,
    /// The field.
    pub field: String,
    /// The record that had it.
    pub record: RecordId,
}
