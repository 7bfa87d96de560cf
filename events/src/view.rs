//! An event as people and APIs read it: one JSON object, the same wherever it is shown.

use serde::Serialize;
use serde_json::Value;

use crate::{Context, Header, Position, commit::OpenedEvent};

/// Fields of events that are for the product itself: one links the memberships of a person, the others recognize a secret.
/// The payloads of these events, and of no others, are kept back from whoever takes an audit log away: the type in an
/// event's header, which the log signs, is the evidence that there was something to keep back.
pub const INWARD_FIELDS: [(&str, &str); 5] = [
    ("member.added", "user_id"),
    ("invitation.issued", "token_mac"),
    ("invitation.resent", "token_mac"),
    ("api_key.issued", "secret_mac"),
    ("api_key.rotated", "secret_mac"),
];

/// Whether events of this type have such fields.
pub fn is_inward(event_type: &str) -> bool {
    INWARD_FIELDS.iter().any(|(inward, _)| *inward == event_type)
}

/// The JSON form of an event.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    /// Where it stands in the stream: what `Min-Position` and a resumed tail take.
    pub position: Position,
    /// Its place in the org's audit log, counted from 0; absent where the log was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idx: Option<u64>,
    /// Who, what, when.
    #[serde(flatten)]
    pub header: Header,
    /// What happened.
    pub data: Value,
    /// The personal part of what is known of the request.
    pub context: Context,
}

impl EventView {
    /// Shows `event`, found in the stream at `seq` and, if the audit log was asked, there at `idx`.
    pub fn new(event: OpenedEvent, seq: u64, idx: Option<u64>) -> Self {
        Self {
            position: Position { org: event.header.org_id, seq },
            idx,
            data: event.event.to_json(),
            header: event.header,
            context: event.context,
        }
    }
}
