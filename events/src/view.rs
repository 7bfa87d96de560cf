//! An event as people and APIs read it: one JSON object, the same wherever it is shown.

use serde::Serialize;
use serde_json::Value;

use crate::{Context, Header, Position, commit::OpenedEvent};

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
