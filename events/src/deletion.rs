//! The deletion of an organization, as the platform's own log has it: the receipt, which is there when nothing else is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{InvoiceNumber, OrgId, Timestamp, codec::event_enum};

event_enum! {
    /// The events of a deletion.
    DeletionEvent about aggregate {
        Completed(DeletionCompleted) = "deletion.completed", 1;
    }
}

/// An organization was deleted. Nothing of it is in any table any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionCompleted {
    /// The receipt: a signed note.
    pub receipt: String,
}

/// What a receipt says. Its JSON is canonical (RFC 8785): the members are in the order of their names, and there is no space between
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletionReceipt {
    /// When everything but the bytes of the stream was done.
    pub completed_at: Timestamp,
    /// The sequence of its last event in its stream.
    pub fence: u64,
    /// Its counterpart at the external identity provider, which is there as before.
    pub identity_kept: Option<IdentityKept>,
    /// Its last invoice.
    pub invoice: Option<InvoiceNumber>,
    /// The root of its audit log at the end, in base64.
    pub log_root: String,
    /// The number of events in its audit log at the end.
    pub log_size: u64,
    /// The organization, whose id is never given again.
    pub org_id: OrgId,
    /// When an owner requested it.
    pub requested_at: Timestamp,
    /// The rows of each table, by its name.
    pub rows: BTreeMap<String, RowsErased>,
    /// When it ended.
    pub sealed_at: Timestamp,
    /// The number of its secrets whose keys were destroyed.
    pub secrets_destroyed: u64,
    /// When the bytes of its events were removed from the stream; none for those that wait for the next rewrite.
    pub stream_bytes_removed_at: Option<Timestamp>,
}

/// A counterpart at an external identity provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityKept {
    /// The organization's id there.
    pub external_id: String,
    /// The provider's name.
    pub provider: String,
}

/// The rows of a table that were erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsErased {
    /// The rows that were counted before.
    pub before: u64,
    /// The rows that were erased.
    pub erased: u64,
    /// The rows that were counted afterwards: 0.
    pub left: u64,
}
