//! Events of parking: what an operator decided about events that a pipeline could not apply, and what the audit log says of
//! those that it lacks.
//!
//! The decision travels in the org's own stream, so that it is ordered with the events it is about, is audited like
//! everything else, and is carried out by whichever worker owns the org. The *marks*, `parking.parked` and
//! `parking.settled`, are in no stream: the audit pipeline writes them into the log where it passes over a message, and where
//! that one's fate is decided (`docs/decisions/0041-the-log-marks-what-it-lacks.md`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{AggregateName, CommandId, Fingerprint, OrgId, Timestamp, codec::event_enum};

event_enum! {
    /// What is decided about parked events, and the audit log's marks.
    ParkingEvent {
        Retried(ParkedEventsRetried) = "parking.retried", 1;
        Skipped(ParkedEventsSkipped) = "parking.skipped", 1;
        Parked(MessageParked) = "parking.parked", 1;
        Settled(MessageSettled) = "parking.settled", 1;
    }
}

impl ParkingEvent {
    /// Whether it is one that the audit log writes of itself, and that no stream has.
    pub fn is_mark(&self) -> bool {
        match self {
            Self::Parked(_) | Self::Settled(_) => true,
            Self::Retried(_) | Self::Skipped(_) => false,
        }
    }
}

/// The pipelines that consume every org's stream. The names are permanent: checkpoints carry them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pipeline {
    /// The tables behind the queries.
    ReadModels,
    /// The append-only audit log.
    Audit,
}

impl Pipeline {
    /// Every pipeline.
    pub const ALL: [Self; 2] = [Self::ReadModels, Self::Audit];

    /// The permanent name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadModels => "read_models",
            Self::Audit => "audit",
        }
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pipeline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|pipeline| pipeline.name() == text)
            .ok_or_else(|| format!("{text:?} is not a pipeline: read_models or audit"))
    }
}

/// Apply the parked events of one aggregate again, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedEventsRetried {
    /// Whose events.
    pub aggregate: AggregateName,
}

/// Give up the first parked message of one aggregate, then apply the others in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParkedEventsSkipped {
    /// Whose events.
    pub aggregate: AggregateName,
    /// The stream sequence of the message that is given up.
    pub seq: u64,
    /// Why, in the operator's words.
    pub reason: String,
}

/// A message stands here in the organization's stream, and the audit log lacks what it says. A mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageParked {
    /// Its sequence in the stream; first of all, where a reader without a decoder finds it.
    pub seq: u64,
    /// What its subject names.
    pub aggregate: AggregateName,
    /// Whether it waits behind an earlier one of its aggregate, and could not be applied itself otherwise.
    pub waiting: bool,
    /// What went wrong; empty when waiting.
    pub reason: String,
    /// When it was parked, by the worker's clock.
    pub parked_at: Timestamp,
    /// The SHA-256 of the message as it lies in the stream; none where it was parked by a program that knew no marks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Fingerprint>,
}

/// What became of a parked message. A mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MessageSettled {
    /// The sequence of the parked message; first of all, as above.
    pub seq: u64,
    /// What its subject names.
    pub aggregate: AggregateName,
    /// What became of it.
    pub outcome: Settlement,
    /// The command whose events follow; none when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_id: Option<CommandId>,
}

/// What can become of a parked message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// It is taken in now: its events follow.
    Applied,
    /// It never will be: an operator has given it up.
    GivenUp,
}

impl CommandId {
    /// The id that the mark of a message has in place of a command's, the same whoever writes it.
    pub fn of_mark(org: OrgId, subject: &str, seq: u64, name: &str) -> Self {
        Self::from_idempotency_key(org, &format!("mark {name} {seq} {subject}"))
    }
}
