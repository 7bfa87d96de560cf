//! Whom an auditor believes: the key of the log, the keys of witnesses, and how many of them it takes.

use crate::{BadSignature, Checkpoint, FormatError, KeyName, LogKey, SignedNote, WitnessKey};

/// The most witnesses that a policy may name.
pub const MAX_WITNESSES: usize = 32;

/// Keys that the auditor got from elsewhere than from the log, and the rule about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    log: LogKey,
    witnesses: Vec<WitnessKey>,
    threshold: usize,
}

/// Why a policy says less than it seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two names for one key are one witness.
    #[error("the witnesses {0} and {1} have the same key")]
    SameKey(KeyName, KeyName),
    /// What the log says of itself is no second opinion.
    #[error("the witness {0} has the key of the log")]
    OwnKey(KeyName),
    /// It could never be met, or there are more witnesses than are looked at.
    #[error("{threshold} of {witnesses} witnesses cannot be asked for; there may be {} at most", MAX_WITNESSES)]
    Threshold {
        /// How many must have signed.
        threshold: usize,
        /// How many there are.
        witnesses: usize,
    },
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The note's text is no checkpoint.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It is the checkpoint of another log.
    #[error("the checkpoint is of {found:?}, not of {expected}")]
    OtherLog {
        /// Its origin.
        found: String,
        /// The log of the policy.
        expected: KeyName,
    },
    /// The log has not signed it.
    #[error("the checkpoint is not signed by {0}")]
    Unsigned(KeyName),
    /// A key of the policy is abused.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// The log stands by it, but too few others have seen it.
    #[error("{have} of the known witnesses signed the checkpoint, and it takes {need}")]
    NotWitnessed {
        /// How many signed.
        have: usize,
        /// How many are asked for.
        need: usize,
    },
}

/// A checkpoint that a policy accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The known witnesses that signed it, and when: seconds since 1970-01-01T00:00:00Z, as they say.
    pub witnesses: Vec<(KeyName, u64)>,
}

impl Policy {
    /// `threshold` of the `witnesses` must have signed what `log` signed. 0 asks for none, which leaves a log that shows
    /// different histories to different people undetected.
    pub fn new(log: LogKey, witnesses: Vec<WitnessKey>, threshold: usize) -> Result<Self, PolicyError> {
        if threshold > witnesses.len() || witnesses.len() > MAX_WITNESSES {
            return Err(PolicyError::Threshold { threshold, witnesses: witnesses.len() });
        }
        for (nth, witness) in witnesses.iter().enumerate() {
            if witness.public() == log.public() {
                return Err(PolicyError::OwnKey(witness.name().clone()));
            }
            if let Some(other) = witnesses.iter().take(nth).find(|other| other.public() == witness.public()) {
                return Err(PolicyError::SameKey(other.name().clone(), witness.name().clone()));
            }
        }
        Ok(Self { log, witnesses, threshold })
    }

    /// The key of the log.
    pub fn log(&self) -> &LogKey {
        &self.log
    }

    /// Whether the note is a checkpoint of the log, signed by it and by enough witnesses. Signatures of unknown keys do
    /// not matter; one wrong signature under a known key is the end of it.
    pub fn check(&self, note: &SignedNote) -> Result<Witnessed, Distrust> {
        let checkpoint: Checkpoint = note.text().parse()?;
        let expected = self.log.name();
        if checkpoint.origin() != expected.as_str() {
            let found = checkpoint.origin().to_owned();
            return Err(Distrust::OtherLog { found, expected: expected.clone() });
        }
        self.log.verify(note)?.ok_or_else(|| Distrust::Unsigned(expected.clone()))?;
        let mut witnesses = Vec::new();
        for witness in &self.witnesses {
            if let Some(time) = witness.verify(note)? {
                witnesses.push((witness.name().clone(), time));
            }
        }
        let (have, need) = (witnesses.len(), self.threshold);
        if have < need { Err(Distrust::NotWitnessed { have, need }) } else { Ok(Witnessed { checkpoint, witnesses }) }
    }
}
