//! Events of a note.

use serde::{Deserialize, Serialize};

use crate::codec::event_enum;

event_enum! {
    /// The events of a note.
    NoteEvent about aggregate {
        Written(NoteWritten) = "note.written", 1;
        Withdrawn(NoteWithdrawn) = "note.withdrawn", 1;
    }
}

/// The note was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteWritten {
    /// Its text.
    pub text: String,
}

/// The note was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteWithdrawn {}
