//! Events of parking: what an operator decided about events that a pipeline could not apply.
//!
//! The decision travels in the org's own stream, so that it is ordered with the events it is about, is audited like
//! everything else, and is carried out by whichever worker owns the org.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{AggregateName, codec::event_enum};

event_enum! {
    /// What is decided about parked events.
    ParkingEvent {
        Retried(ParkedEventsRetried) = "parking.retried", 1;
        Skipped(ParkedEventsSkipped) = "parking.skipped", 1;
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
