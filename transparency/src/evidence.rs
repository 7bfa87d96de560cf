//! Evidence for one event (C2SP tlog-proof): a file that proves, offline and for ever, that the event is in a log that
//! its operator can no longer change undetected.

use std::fmt;

use crate::{
    Distrust, FormatError, Hash, Policy, ProofError, SignedNote, Witnessed, leaf_hash,
    note::MAX_NOTE_BYTES,
    text::{from_base64, line, number, plain_text, to_base64},
    verify_inclusion,
};

/// The first line of the file.
const MAGIC: &str = "c2sp.org/tlog-proof@v1";

/// The longest file that is read.
pub const MAX_EVIDENCE_BYTES: usize = 2 * MAX_NOTE_BYTES;

/// The most hashes that a proof may have: one for each level of the largest tree, less the root.
pub(crate) const MAX_PROOF_HASHES: usize = 63;

/// A `.tlog-proof` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Data added by the maker of the file. It is not authenticated.
    pub extra: Option<Vec<u8>>,
    /// The event's index in the log, from 0.
    pub index: u64,
    /// The proof of inclusion, from the leaf's sibling up.
    pub proof: Vec<Hash>,
    /// The head of the log, with the signatures of log and witnesses.
    pub checkpoint: SignedNote,
}

/// The reason why a file is no evidence for an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The file has the wrong format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The checkpoint is not trusted.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// The checkpoint is trusted, and the event is not at the file's index in that log.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// An event that is proven to be in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Its index in the log, from 0.
    pub index: u64,
    /// The head of the log that contains it, with the witnesses that saw that and their times.
    pub seen: Witnessed,
}

/// Verifies one event: `header` are its stored bytes, `file` is a `.tlog-proof` file, `policy` names the trusted keys.
pub fn verify_event(header: &[u8], file: &[u8], policy: &Policy) -> Result<Proven, EvidenceError> {
    let Evidence { index, proof, checkpoint, .. } = Evidence::parse(file)?;
    let seen = policy.check(&checkpoint)?;
    verify_inclusion(leaf_hash(header), index, seen.checkpoint.head(), &proof)?;
    Ok(Proven { index, seen })
}

impl Evidence {
    /// Parses a file. [`Display`](fmt::Display) writes the same bytes again.
    pub fn parse(file: &[u8]) -> Result<Self, FormatError> {
        let text = plain_text("the proof file", file, MAX_EVIDENCE_BYTES)?;
        let (magic, mut rest) = line("the first line", text)?;
        if magic != MAGIC {
            return Err(FormatError::Malformed { what: "the first line", expected: MAGIC });
        }
        let mut extra = None;
        if let Some(after) = rest.strip_prefix("extra ") {
            let (base64, after) = line("the index", after)?;
            extra = Some(from_base64("the extra data", base64)?);
            rest = after;
        }
        let (index, rest) = line("the index", rest)?;
        let index = index.strip_prefix("index ").ok_or(FormatError::Missing("the index"))?;
        let index = number("the index", index)?;
        let (proof, checkpoint) = proof_hashes(rest)?;
        Ok(Self { extra, index, proof, checkpoint: SignedNote::parse(checkpoint.as_bytes())? })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MAGIC}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", to_base64(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}

/// Parses the hashes up to the next blank line, and returns them with the rest.
pub(crate) fn proof_hashes(mut text: &str) -> Result<(Vec<Hash>, &str), FormatError> {
    let mut hashes = Vec::new();
    loop {
        let (hash, rest) = line("the blank line after the proof", text)?;
        text = rest;
        if hash.is_empty() {
            return Ok((hashes, text));
        }
        if hashes.len() == MAX_PROOF_HASHES {
            return Err(FormatError::TooMany { what: "hashes in the proof", limit: MAX_PROOF_HASHES });
        }
        hashes.push(hash.parse()?);
    }
}
