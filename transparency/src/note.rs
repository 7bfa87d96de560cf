//! Signed notes (C2SP signed-note): a text, a blank line, and a line for each signature.

use std::{fmt, str::FromStr};

use crate::{
    FormatError, WitnessKey,
    text::{from_base64, plain_text, to_base64},
};

/// The longest note that is read: room for every signature, large ones of other algorithms too.
pub const MAX_NOTE_BYTES: usize = 128 * 1024;

/// The most signatures that a note may have.
pub const MAX_SIGNATURES: usize = 32;

/// The longest name of a key, and with it the longest origin.
pub const MAX_NAME_BYTES: usize = 255;

/// The prefix of a signature line: an em dash and a space.
const DASH: &str = "\u{2014} ";

/// The name of a key: `audit.example.com/org_...`. Neither empty nor long, and without spaces, control characters and `+`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl KeyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(FormatError::TooLong { what: "a key's name", bytes: MAX_NAME_BYTES });
        }
        if name.is_empty() || name.contains(|c: char| c == '+' || c.is_whitespace() || c.is_control()) {
            let expected = "a word without spaces, control characters and +";
            return Err(FormatError::Malformed { what: "a key's name", expected });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A signature, unverified: the key may be unknown, the signature invalid. As text it is its line, without the newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    /// The name of the key.
    pub name: KeyName,
    /// The id of the key, which distinguishes keys and algorithms under one name.
    pub key_id: [u8; 4],
    /// The output of the key's algorithm.
    pub signature: Vec<u8>,
}

impl SignatureLine {
    /// Parses a sequence of lines, each with its newline: the end of a note, or a witness's reply.
    pub fn parse_all(lines: &[u8]) -> Result<Vec<Self>, FormatError> {
        let text = plain_text("the signatures", lines, MAX_NOTE_BYTES)?;
        if text.is_empty() {
            return Err(FormatError::Missing("a signature"));
        }
        let text = text.strip_suffix('\n').ok_or(FormatError::Missing("the newline after the last signature"))?;
        let lines = text.split('\n');
        if lines.clone().count() > MAX_SIGNATURES {
            return Err(FormatError::TooMany { what: "signatures", limit: MAX_SIGNATURES });
        }
        lines.map(str::parse).collect()
    }
}

impl FromStr for SignatureLine {
    type Err = FormatError;

    fn from_str(line: &str) -> Result<Self, FormatError> {
        let parts = line.strip_prefix(DASH).and_then(|rest| rest.split_once(' '));
        let expected = "an em dash, a name and base64 between single spaces";
        let (name, signature) = parts.ok_or(FormatError::Malformed { what: "a signature line", expected })?;
        let bytes = from_base64("a signature", signature)?;
        let (key_id, signature) = bytes.split_first_chunk().ok_or(FormatError::Missing("the key id of a signature"))?;
        Ok(Self { name: name.parse()?, key_id: *key_id, signature: signature.to_vec() })
    }
}

impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id, self.signature.as_slice()].concat();
        write!(f, "{DASH}{} {}", self.name, to_base64(&bytes))
    }
}

/// A text with at least one signature. A parsed note is not verified: see
/// [`VerifierKey::verify`](crate::VerifierKey::verify) and [`Policy`](crate::Policy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<SignatureLine>,
}

impl SignedNote {
    /// Makes a note of a text that is known to be valid: lines that all end in a newline.
    pub(crate) fn new(text: String, signature: SignatureLine) -> Self {
        Self { text, signatures: vec![signature] }
    }

    /// Adds one signature.
    pub(crate) fn push(&mut self, signature: SignatureLine) {
        self.signatures.push(signature);
    }

    /// Parses a note. [`Display`](fmt::Display) writes the same bytes again.
    pub fn parse(note: &[u8]) -> Result<Self, FormatError> {
        let note = plain_text("the note", note, MAX_NOTE_BYTES)?;
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(FormatError::Missing("the blank line"))?;
        Ok(Self { text: format!("{text}\n"), signatures: SignatureLine::parse_all(signatures.as_bytes())? })
    }

    /// The signed text, with its last newline.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All signatures, in their order.
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// Adds those lines of a witness's reply that are valid signatures of this note by a known key and not yet here,
    /// and returns their number. The rest is dropped: an invalid signature under a known key makes a note invalid for
    /// its readers.
    pub fn add_cosignatures(&mut self, lines: &[SignatureLine], known: &[WitnessKey]) -> usize {
        let before = self.signatures.len();
        for line in lines {
            let alone = Self { text: self.text.clone(), signatures: vec![line.clone()] };
            let valid = known.iter().any(|key| matches!(key.verify(&alone), Ok(Some(_))));
            if valid && self.signatures.len() < MAX_SIGNATURES && !self.signatures.contains(line) {
                self.signatures.push(line.clone());
            }
        }
        self.signatures.len() - before
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
