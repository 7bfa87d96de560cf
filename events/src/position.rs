//! A position in one org's stream, in the form that clients use: `<org>:<sequence>`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::OrgId;

/// A sequence number together with the org it belongs to; neither means anything alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    /// The tenant.
    pub org: OrgId,
    /// The sequence in the stream that holds the org; 0 is before everything.
    pub seq: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.org, self.seq)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(':')
            .and_then(|(org, seq)| Some(Self { org: org.parse().ok()?, seq: seq.parse().ok()? }))
            .ok_or_else(|| {
                let text: String = text.chars().take(80).collect();
                format!("{text:?} is not a position: it must be <org id>:<sequence>, as Stream-Position has it")
            })
    }
}

impl From<Position> for String {
    fn from(position: Position) -> Self {
        position.to_string()
    }
}

impl TryFrom<String> for Position {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
