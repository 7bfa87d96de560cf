//! The JSON form of an event for people and APIs: one object, the same wherever it is shown.

use serde::Serialize;
use serde_json::Value;

use crate::{Context, Header, Position, commit::OpenedEvent};

/// Internal fields of events: one links the memberships of a person, the others verify a secret. The payloads of these
/// events, and of no others, are withheld from exports of an audit log: the type in an event's header, which the log signs,
/// is the evidence that there was something to withhold.
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
    /// The position in the stream: the value for `Min-Position` and a resumed tail.
    pub position: Position,
    /// Its index in the org's audit log, counted from 0; absent where the log was not queried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idx: Option<u64>,
    /// The header: actor, action and time.
    #[serde(flatten)]
    pub header: Header,
    /// The event's fields.
    pub data: Value,
    /// The personal data about the request.
    pub context: Context,
}

impl EventView {
    /// Creates the view of `event`, found in the stream at `seq` and, if the audit log was queried, there at `idx`.
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
