//! The decision of a witness (C2SP tlog-witness): whether to sign a checkpoint, given the last one that it signed.
//!
//! HTTP and storage belong to the caller, which does three things in this order: [decide](AddCheckpoint::decide),
//! replace the stored head by the accepted one *if it is still the one that was decided on*, sign. If two requests were
//! decided on the same head and both stored, the later could take the log back to the earlier.

use std::fmt;

use crate::{
    BadSignature, Checkpoint, FormatError, Hash, LogKey, ProofError, SignatureLine, SignedNote, TreeHead,
    WitnessSigner,
    evidence::proof_hashes,
    note::MAX_NOTE_BYTES,
    text::{line, number, plain_text},
    verify_consistency,
};

/// The longest request that is read.
pub const MAX_ADD_CHECKPOINT_BYTES: usize = MAX_NOTE_BYTES + 4 * 1024;

/// The body of a request `POST /add-checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    old_size: u64,
    proof: Vec<Hash>,
    note: SignedNote,
    checkpoint: Checkpoint,
}

/// The reason why a witness does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be parsed.
    #[error(transparent)]
    Malformed(#[from] FormatError),
    /// The request starts from more leaves than it ends with.
    #[error("the old size {old} is larger than the checkpoint's, {new}")]
    Reversed {
        /// The old size of the request.
        old: u64,
        /// The size of the checkpoint.
        new: u64,
    },
    /// The witness does not follow this log.
    #[error("the log is not known here")]
    UnknownLog,
    /// No key of the log has signed.
    #[error("the checkpoint is not signed by a known key of the log")]
    Unsigned,
    /// A signature under a key of the log is wrong.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// The request does not start from the last signed checkpoint. The log has to retry from that one.
    #[error("{known}")]
    Stale {
        /// The size of the last signed checkpoint.
        known: u64,
    },
    /// The log has two roots for one size. This proves its operator's wrongdoing, and should be kept.
    #[error("another root was signed for size {size}")]
    Fork {
        /// The size.
        size: u64,
    },
    /// The proof does not show that the checkpoint continues the last signed one.
    #[error("{0}")]
    Inconsistent(#[from] ProofError),
}

/// A checkpoint that a witness may sign as soon as its head is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    head: TreeHead,
    text: String,
}

impl AddCheckpoint {
    /// Makes a log's request: `proof` leads from its first `old_size` leaves, the last that the witness signed, to the
    /// checkpoint.
    pub fn new(old_size: u64, proof: Vec<Hash>, note: SignedNote) -> Result<Self, FormatError> {
        let checkpoint = note.text().parse()?;
        Ok(Self { old_size, proof, note, checkpoint })
    }

    /// Parses the body of a request. [`Display`](fmt::Display) writes the same bytes again.
    pub fn parse(body: &[u8]) -> Result<Self, FormatError> {
        let text = plain_text("the request", body, MAX_ADD_CHECKPOINT_BYTES)?;
        let (old, rest) = line("the old size", text)?;
        let old = old.strip_prefix("old ").ok_or(FormatError::Missing("the old size"))?;
        let old_size = number("the old size", old)?;
        let (proof, note) = proof_hashes(rest)?;
        Self::new(old_size, proof, SignedNote::parse(note.as_bytes())?)
    }

    /// The name of the requesting log. The caller looks up its keys, and the head that was signed last.
    pub fn origin(&self) -> &str {
        self.checkpoint.origin()
    }

    /// Decides whether to sign. `keys` are those of the log, none for a log that is not followed; `known` is the head
    /// that was signed last, if there was one.
    pub fn decide(&self, keys: &[LogKey], known: Option<TreeHead>) -> Result<Accepted, Refusal> {
        if keys.is_empty() {
            return Err(Refusal::UnknownLog);
        }
        let mut signed = false;
        for key in keys {
            signed |= key.verify(&self.note)?.is_some();
        }
        if !signed {
            return Err(Refusal::Unsigned);
        }
        let (old, new) = (known.unwrap_or(TreeHead::EMPTY), self.checkpoint.head());
        if self.old_size > new.size {
            return Err(Refusal::Reversed { old: self.old_size, new: new.size });
        }
        if self.old_size != old.size {
            return Err(Refusal::Stale { known: old.size });
        }
        // An empty tree has only one root, whatever was signed before.
        if new.size == 0 && new.root != Hash::OF_NOTHING {
            return Err(Refusal::Inconsistent(ProofError::WrongRoot));
        }
        if old.size == new.size && old.root != new.root && self.proof.is_empty() {
            return Err(Refusal::Fork { size: new.size });
        }
        verify_consistency(old, new, &self.proof)?;
        Ok(Accepted { head: new, text: self.note.text().to_owned() })
    }
}

impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old_size)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.note)
    }
}

impl Accepted {
    /// The head that must be stored before anything is signed.
    pub fn head(&self) -> TreeHead {
        self.head
    }

    /// Makes the reply's line, which states that at `now` this was the largest head that the witness knows of the log.
    /// `now` is in seconds since 1970-01-01T00:00:00Z.
    pub fn cosign(&self, signer: &WitnessSigner, now: u64) -> SignatureLine {
        signer.cosign(&self.text, now)
    }
}

impl Refusal {
    /// The HTTP status of the reply.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Reversed { .. } => 400,
            Self::Unsigned | Self::BadSignature(_) => 403,
            Self::UnknownLog => 404,
            Self::Stale { .. } | Self::Fork { .. } => 409,
            Self::Inconsistent(_) => 422,
        }
    }

    /// The content type of the reply, whose body is this as text and a newline. It tells a log whether the body is a
    /// size to start from.
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Stale { .. } => SIZE_CONTENT_TYPE,
            _ => "text/plain; charset=utf-8",
        }
    }
}

/// The content type of a reply 409 that contains the size of the last signed checkpoint.
pub const SIZE_CONTENT_TYPE: &str = "text/x.tlog.size";

/// Parses such a reply.
pub fn parse_size(body: &[u8]) -> Result<u64, FormatError> {
    let text = plain_text("the known size", body, 32)?;
    number("the known size", text.strip_suffix('\n').ok_or(FormatError::Missing("the newline after the known size"))?)
}
