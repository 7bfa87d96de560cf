//! Versions as entity tags: `If-Match` on changes, `If-None-Match` on reads.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::{extract::invalid_header, reply};
use crate::app::problem::Problem;

/// Returns the strong tag of a resource at a version.
pub fn version_tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// Returns the weak tag of a listing: of its content, whatever its bytes are encoded like tomorrow.
pub fn body_tag(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    let short: Vec<u8> = digest.iter().copied().take(12).collect();
    format!("W/\"{}\"", URL_SAFE_NO_PAD.encode(short))
}

/// The maximum number of tags in one `If-Match`.
const MOST_TAGS: usize = 8;
/// A version that nothing has: the value of tags that we never issued.
const NEVER: u64 = u64::MAX;

/// Returns the versions that `If-Match` allows; none when it allows all. `*` does: the target of a change has to exist
/// anyway.
///
/// A tag may be weak. We issue strong ones, but proxies that compress responses weaken them, and a version stays the same
/// whatever its bytes are.
pub fn if_match(headers: &HeaderMap) -> Result<Vec<u64>, Problem> {
    let values: Vec<&HeaderValue> = headers.get_all(header::IF_MATCH).iter().collect();
    let rule = "must be ETags as they were given, like \"3\" or \"3\", \"4\" (at most 8), or *";
    let invalid = || invalid_header("If-Match", rule);
    let mut versions = Vec::new();
    for value in &values {
        let text = value.to_str().map_err(|_| invalid())?;
        if text.trim() == "*" && values.len() == 1 {
            return Ok(Vec::new());
        }
        for tag in tags(text).ok_or_else(invalid)? {
            let digits = Some(tag).filter(|tag| !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_digit()));
            let version = digits.and_then(|digits| digits.parse().ok()).unwrap_or(NEVER);
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
    }
    if versions.len() > MOST_TAGS { Err(invalid()) } else { Ok(versions) }
}

/// Returns the opaque parts of a list of entity tags; none when it is malformed.
fn tags(text: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    loop {
        let strong = rest.strip_prefix("W/").unwrap_or(rest);
        let (tag, behind) = strong.strip_prefix('"')?.split_once('"')?;
        found.push(tag);
        match behind.trim_start() {
            "" => return Some(found),
            more => rest = more.strip_prefix(',')?.trim_start(),
        }
    }
}

/// Whether the caller has the content of `tag` already.
pub fn is_known(if_none_match: Option<&HeaderValue>, tag: &str) -> bool {
    let Some(text) = if_none_match.and_then(|value| value.to_str().ok()) else { return false };
    let ours = tags(tag).unwrap_or_default();
    text.trim() == "*" || tags(text).is_some_and(|known| known.iter().any(|known| ours.contains(known)))
}

/// Returns the answer of this body under its tag, or that the caller has it already.
pub fn answer(if_none_match: Option<&HeaderValue>, tag: &str, body: Vec<u8>) -> Response {
    let mut response = if is_known(if_none_match, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        reply::json(StatusCode::OK, Body::from(body))
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demanded(text: &'static str) -> Result<Vec<u64>, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_static(text));
        if_match(&headers)
    }

    #[test]
    fn a_version_can_be_demanded() {
        for same in ["\"3\"", "W/\"3\"", " \"3\" ", "\"3\",W/\"3\""] {
            assert_eq!(demanded(same).unwrap(), [3], "{same}");
        }
        assert_eq!(demanded("\"3\", W/\"4\" ,\"5\"").unwrap(), [3, 4, 5]);
        assert!(demanded("*").unwrap().is_empty() && if_match(&HeaderMap::new()).unwrap().is_empty());
        // Tags that were never issued are tags all the same, and nothing is at their version.
        for never in ["\"\"", "\"x\"", "\"-1\"", "\"99999999999999999999\"", "\"a,b\""] {
            assert_eq!(demanded(never).unwrap(), [NEVER], "{never}");
        }
        let many = "\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"";
        for bad in ["3", "\"", "\"3\" \"4\"", "\"3\",", "\"3\", *", "w/\"3\"", "", many] {
            assert_eq!(demanded(bad).unwrap_err().code, "invalid_header", "{bad}");
        }
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let known = |text: &'static str, tag: &str| is_known(Some(&HeaderValue::from_static(text)), tag);
        assert!(known("\"3\"", "\"3\""));
        assert!(known("W/\"a\", W/\"b\"", "W/\"b\""));
        assert!(known("*", "\"3\"") && known("W/\"3\"", "\"3\"") && known("\"x\", \"3\"", "W/\"3\""));
        assert!(!known("\"4\"", "\"3\""));
        assert!(!is_known(None, "\"3\""));
        assert_ne!(body_tag(b"a"), body_tag(b"b"));
    }
}
