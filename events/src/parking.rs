//! Events of parking: an operator's decisions about events that a pipeline could not apply, and the audit log's records of
//! those that it lacks.
//!
//! The decision is in the org's own stream, so that it is ordered with the events it is about, is audited like everything
//! else, and is carried out by the worker that owns the org. The *marks*, `parking.parked` and `parking.settled`, are in no
//! stream: the audit pipeline writes them into the log where it passes over a message, and where that message's fate is
//! decided (`docs/decisions/0041-the-log-marks-what-it-lacks.md`).

use serde::{Deserialize, Serialize};

use crate::{
    AggregateName, CommandId, Fingerprint, OrgId, Target, Timestamp,
    codec::{Targeted, event_enum},
};

event_enum! {
    /// The decisions about parked events, and the audit log's marks.
    ParkingEvent about own {
        Retried(ParkedEventsRetried) = "parking.retried", 1;
        Skipped(ParkedEventsSkipped) = "parking.skipped", 1;
        Parked(MessageParked) = "parking.parked", 1;
        Settled(MessageSettled) = "parking.settled", 1;
    }
}

impl Targeted for ParkingEvent {
    fn target(&self) -> Option<Target> {
        let AggregateName { aggregate, id } = match self {
            Self::Retried(event) => &event.aggregate,
            Self::Skipped(event) => &event.aggregate,
            Self::Parked(event) => &event.aggregate,
            Self::Settled(event) => &event.aggregate,
        };
        Some(Target { target_type: aggregate.clone(), id: id.clone() })
    }
}

impl ParkingEvent {
    /// Whether the event is a mark, which the audit log itself writes and no stream has.
    pub fn is_mark(&self) -> bool {
        match self {
            Self::Parked(_) | Self::Settled(_) => true,
            Self::Retried(_) | Self::Skipped(_) => false,
        }
    }
}

/// The parked events of one aggregate are to be applied again, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedEventsRetried {
    /// The aggregate.
    pub aggregate: AggregateName,
}

/// The first parked message of one aggregate is given up, and the others are to be applied in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedEventsSkipped {
    /// The aggregate.
    pub aggregate: AggregateName,
    /// The stream sequence of the skipped message.
    pub seq: u64,
    /// The reason, in the operator's words.
    pub reason: String,
}

/// A mark: the organization's stream has a message here whose events the audit log lacks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageParked {
    /// Its sequence in the stream; the first field, where a reader without a decoder finds it.
    pub seq: u64,
    /// The aggregate that its subject names.
    pub aggregate: AggregateName,
    /// Whether it waits behind an earlier one of its aggregate, without a failure of its own.
    pub waiting: bool,
    /// The error; empty when waiting.
    pub reason: String,
    /// When it was parked, by the worker's clock.
    pub parked_at: Timestamp,
    /// The SHA-256 of the message as it lies in the stream; none where it was parked by a version without marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Fingerprint>,
}

/// A mark: the outcome of a parked message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageSettled {
    /// The sequence of the parked message; the first field, as above.
    pub seq: u64,
    /// The aggregate that its subject names.
    pub aggregate: AggregateName,
    /// The outcome.
    pub outcome: Settlement,
    /// The command whose events follow; none when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_id: Option<CommandId>,
    /// The commands whose events follow on those, where the message has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub following: Vec<CommandId>,
}

/// The outcomes of a parked message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// It is applied now: its events follow.
    Applied,
    /// It never will be: an operator has skipped it.
    GivenUp,
}

impl CommandId {
    /// Returns the id that a message's mark has in place of a command's, the same for every writer.
    pub fn of_mark(org: OrgId, subject: &str, seq: u64, name: &str) -> Self {
        Self::from_idempotency_key(org, &format!("mark {name} {seq} {subject}"))
    }
}
