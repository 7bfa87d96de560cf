//! What all the text formats here share: strict numbers, strict base64, bounded input, and errors that name the part.
//!
//! Everything is read in its one canonical form, so what was read and is written again has the same bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Why a text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Longer than anybody needs.
    #[error("{what} is longer than {bytes} bytes")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// How long it may be.
        bytes: usize,
    },
    /// More than anybody needs.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A part is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part is there and cannot be read.
    #[error("{what} is not {expected}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// A key for something else: a witness's where a log's is wanted, or one of an algorithm that is not known here.
    #[error("the key is of type {found:#04x}, and {expected:#04x} is wanted")]
    KeyType {
        /// The type byte of the key.
        found: u8,
        /// The type byte that it should have.
        expected: u8,
    },
}

/// An ASCII decimal number without leading zeros, up to the largest tree there is.
pub(crate) fn number(what: &'static str, digits: &str) -> Result<u64, FormatError> {
    let canonical = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit()));
    let number = digits.parse().ok().filter(|number| canonical && i64::try_from(*number).is_ok());
    number.ok_or(FormatError::Malformed { what, expected: "a decimal number up to 2^63 - 1 without leading zeros" })
}

/// Standard base64 with padding, in its one canonical form.
pub(crate) fn from_base64(what: &'static str, text: &str) -> Result<Vec<u8>, FormatError> {
    STANDARD.decode(text).map_err(|_| FormatError::Malformed { what, expected: "canonical base64" })
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes as text in which lines are the only structure: UTF-8 without control characters, and not too long.
pub(crate) fn plain_text<'a>(what: &'static str, bytes: &'a [u8], limit: usize) -> Result<&'a str, FormatError> {
    if bytes.len() > limit {
        return Err(FormatError::TooLong { what, bytes: limit });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| FormatError::Malformed { what, expected: "UTF-8" })?;
    if text.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(FormatError::Malformed { what, expected: "free of control characters" });
    }
    Ok(text)
}

/// The first line, without its newline, and what follows.
pub(crate) fn line<'a>(what: &'static str, text: &'a str) -> Result<(&'a str, &'a str), FormatError> {
    text.split_once('\n').ok_or(FormatError::Missing(what))
}
