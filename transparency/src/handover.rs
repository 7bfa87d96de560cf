//! The handover of a log from one key to the next: a note signed by both, so that an auditor that pinned the old key
//! can follow.
//!
//! The note is public and goes with every export. It carries the name of the log's host, since one key signs the logs
//! of all its orgs.

use crate::{BadSignature, FormatError, LogKey, LogSigner, SignedNote, text::line};

/// The first line of the note.
const MAGIC: &str = "orgstream.dev/log-key-handover@v1";

/// A handover from one key to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// The key so far.
    pub old: LogKey,
    /// The key from now on.
    pub new: LogKey,
}

/// The reason why a note is no handover.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandOverError {
    /// It has the wrong format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A signature is wrong.
    #[error(transparent)]
    BadSignature(#[from] BadSignature),
    /// One of the two has not signed, or they are keys of two logs.
    #[error("the hand-over is not signed by both keys of one log")]
    Unsigned,
}

impl HandOver {
    /// The note by which `old` hands over to `new`.
    pub fn sign(old: &LogSigner, new: &LogSigner) -> SignedNote {
        let text = format!("{MAGIC}\n{}\n{}\n", old.verifier(), new.verifier());
        let mut note = SignedNote::new(text.clone(), old.sign_text(&text));
        note.push(new.sign_text(&text));
        note
    }

    /// Parses a note, and verifies that both keys have signed it.
    pub fn read(note: &SignedNote) -> Result<Self, HandOverError> {
        let (magic, rest) = line("the first line", note.text())?;
        let (old, rest) = line("the old key", rest)?;
        let (new, rest) = line("the new key", rest)?;
        if magic != MAGIC || !rest.is_empty() {
            return Err(FormatError::Malformed { what: "the hand-over", expected: "three lines" }.into());
        }
        let (old, new): (LogKey, LogKey) = (old.parse()?, new.parse()?);
        let is_signed = old.verify(note)?.is_some() && new.verify(note)?.is_some();
        if is_signed && old.name() == new.name() { Ok(Self { old, new }) } else { Err(HandOverError::Unsigned) }
    }

    /// Returns the keys that `pin` is connected with by these notes, itself the first: those that it handed over to,
    /// and those that handed over to it, which its own signature confirms. Notes about other keys are ignored.
    pub fn follow(pin: &LogKey, notes: &[SignedNote]) -> Vec<LogKey> {
        let mut keys = vec![pin.clone()];
        for _ in notes {
            for hand_over in notes.iter().filter_map(|note| Self::read(note).ok()) {
                match (keys.contains(&hand_over.old), keys.contains(&hand_over.new)) {
                    (true, false) => keys.push(hand_over.new),
                    (false, true) => keys.push(hand_over.old),
                    _ => {}
                }
            }
        }
        keys
    }
}
