//! The common parts of all text formats here: strict numbers, strict base64, bounded input, and errors that name the
//! part.
//!
//! Only the one canonical form is accepted, so what was read and is written again has the same bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The reason why a text has the wrong format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Longer than the limit.
    #[error("{what} is longer than {bytes} bytes")]
    TooLong {
        /// The part.
        what: &'static str,
        /// The limit.
        bytes: usize,
    },
    /// More parts than the limit.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// The kind of parts.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A part is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A part cannot be parsed.
    #[error("{what} is not {expected}")]
    Malformed {
        /// The part.
        what: &'static str,
        /// The expected form.
        expected: &'static str,
    },
    /// A key of another role: a witness's in place of a log's, or one of an unknown algorithm.
    #[error("the key is of type {found:#04x}, and {expected:#04x} is wanted")]
    KeyType {
        /// The type byte of the key.
        found: u8,
        /// The expected type byte.
        expected: u8,
    },
}

/// Parses an ASCII decimal number without leading zeros, up to the size of the largest tree.
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

/// Checks that bytes are text in which lines are the only structure: UTF-8 without control characters, and not too
/// long.
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

/// Returns the first line, without its newline, and the rest.
pub(crate) fn line<'a>(what: &'static str, text: &'a str) -> Result<(&'a str, &'a str), FormatError> {
    text.split_once('\n').ok_or(FormatError::Missing(what))
}
