//! Versions as entity tags: `If-Match` on what is changed, `If-None-Match` on what is read.

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::extract::{header_text, invalid_header};
use crate::problem::Problem;

/// The strong tag of a thing at a version.
pub fn version_tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// The weak tag of a listing: what it says, whatever its bytes are called tomorrow.
pub fn body_tag(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    let short: Vec<u8> = digest.iter().copied().take(12).collect();
    format!("W/\"{}\"", URL_SAFE_NO_PAD.encode(short))
}

/// The version that `If-Match` demands. `*` demands none: whatever is changed has to exist anyway.
pub fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(text) = header_text(headers, &header::IF_MATCH)? else { return Ok(None) };
    if text.trim() == "*" {
        return Ok(None);
    }
    let tag = text.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = tag.filter(|tag| tag.bytes().all(|byte| byte.is_ascii_digit()));
    let version = digits.and_then(|tag| tag.parse().ok());
    version.map(Some).ok_or_else(|| invalid_header("If-Match", "must be one ETag as it was given, like \"3\", or *"))
}

/// Whether the caller has what `tag` stands for already.
pub fn is_known(if_none_match: Option<&HeaderValue>, tag: &str) -> bool {
    let Some(text) = if_none_match.and_then(|value| value.to_str().ok()) else { return false };
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    text.trim() == "*" || text.split(',').any(|known| opaque(known) == opaque(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demanded(text: &'static str) -> Result<Option<u64>, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_static(text));
        if_match(&headers)
    }

    #[test]
    fn a_version_can_be_demanded() {
        assert_eq!(demanded("\"3\"").unwrap(), Some(3));
        assert_eq!(demanded("*").unwrap(), None);
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
        for bad in ["3", "W/\"3\"", "\"3\", \"4\"", "\"\"", "\"x\"", "\"-1\"", "\"99999999999999999999\"", "\""] {
            assert_eq!(demanded(bad).unwrap_err().code, "invalid_header", "{bad}");
        }
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let known = |text: &'static str, tag: &str| is_known(Some(&HeaderValue::from_static(text)), tag);
        assert!(known("\"3\"", "\"3\""));
        assert!(known("W/\"a\", W/\"b\"", "W/\"b\""));
        assert!(known("*", "\"3\""));
        assert!(!known("\"4\"", "\"3\""));
        assert!(!is_known(None, "\"3\""));
        assert_ne!(body_tag(b"a"), body_tag(b"b"));
    }
}
