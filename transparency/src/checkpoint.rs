//! Checkpoints (C2SP tlog-checkpoint): a tree head and its log's name, as the text of a signed note.

use std::{fmt, str::FromStr};

use crate::{
    FormatError, KeyName, TreeHead,
    note::MAX_NAME_BYTES,
    text::{line, number},
};

/// The head of one log at one time. Its text is signed: three lines, and any lines that the log adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    head: TreeHead,
    /// Lines that other programs' logs may add; their content cannot be verified, so Orgstream's have none.
    extensions: String,
}

impl Checkpoint {
    /// Makes a checkpoint of the log that has its key's name: `<host>/<org id>`, since every org has a log of its own.
    pub(crate) fn new(origin: &KeyName, head: TreeHead) -> Self {
        Self { origin: origin.to_string(), head, extensions: String::new() }
    }

    /// The name of its log.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Size and root of the tree.
    pub fn head(&self) -> TreeHead {
        self.head
    }
}

impl FromStr for Checkpoint {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (origin, rest) = line("the checkpoint's origin", text)?;
        let (size, rest) = line("the checkpoint's size", rest)?;
        let (root, extensions) = line("the checkpoint's root", rest)?;
        if origin.is_empty() || origin.len() > MAX_NAME_BYTES {
            return Err(FormatError::Malformed { what: "the checkpoint's origin", expected: "1 to 255 bytes" });
        }
        let head = TreeHead { size: number("the checkpoint's size", size)?, root: root.parse()? };
        let complete = extensions.is_empty() || extensions.ends_with('\n');
        if !complete || extensions.starts_with('\n') || extensions.contains("\n\n") {
            return Err(FormatError::Malformed { what: "the checkpoint's end", expected: "lines that are not empty" });
        }
        Ok(Self { origin: origin.to_owned(), head, extensions: extensions.to_owned() })
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, head: TreeHead { size, root }, extensions } = self;
        write!(f, "{origin}\n{size}\n{root}\n{extensions}")
    }
}
