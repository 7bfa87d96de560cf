//! An auditor's trust: the key of the log, the keys of witnesses, and the required number of them.

use crate::{BadSignature, Checkpoint, FormatError, KeyName, LogKey, SignedNote, WitnessKey};

/// The most witnesses that a policy may name.
pub const MAX_WITNESSES: usize = 32;

/// Keys that the auditor obtained from a source other than the log, and the rule about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    log: LogKey,
    witnesses: Vec<WitnessKey>,
    threshold: usize,
}

/// The reason why a policy requires less than it seems to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two names for one key are one witness.
    #[error("the witnesses {0} and {1} have the same key")]
    SameKey(KeyName, KeyName),
    /// The log cannot be its own witness.
    #[error("the witness {0} has the key of the log")]
    OwnKey(KeyName),
    /// It could never be met, or there are more witnesses than the limit.
    #[error("{threshold} of {witnesses} witnesses cannot be asked for; there may be {} at most", MAX_WITNESSES)]
    Threshold {
        /// The required number.
        threshold: usize,
        /// The number of witnesses.
        witnesses: usize,
    },
}

/// The reason why a checkpoint is not trusted.
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
    /// A signature under a key of the policy is invalid.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// The log has signed it, but too few witnesses have.
    #[error("{have} of the known witnesses signed the checkpoint, and it takes {need}")]
    NotWitnessed {
        /// The number of witnesses that signed.
        have: usize,
        /// The required number.
        need: usize,
    },
}

/// A checkpoint that a policy accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The known witnesses that signed it, with their stated times in seconds since 1970-01-01T00:00:00Z.
    pub witnesses: Vec<(KeyName, u64)>,
}

impl Policy {
    /// Makes a policy by which `threshold` of the `witnesses` must have signed what `log` signed. 0 requires none,
    /// which leaves a log that shows different histories to different readers undetected.
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

    /// Verifies that the note is a checkpoint of the log, signed by it and by enough witnesses. Signatures of unknown
    /// keys are ignored; a single invalid signature under a known key is an error.
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
