//! The text of a session: `os_ses_<44 base62 secret><6 base62 checksum>`, 256 bits that cannot be guessed.
//!
//! As with API keys only a keyed hash is stored, and the checksum lets a typing error be refused before any lookup. Unlike a
//! key, the session is also found by the hash: there is no part that is not secret.

use std::{fmt, str::FromStr};

use orgstream_events::Fingerprint;

use super::key::{Pepper, base62, checksum};

/// The pattern of every session's text, for scanners that search text for leaked ones.
pub const SESSION_REGEX: &str = "os_ses_[0-9A-Za-z]{50}";

const PREFIX: &str = "os_ses_";
/// The number of base62 digits that 128 bits need.
const HALF: usize = 22;
const CHECKSUM_LENGTH: usize = 6;

/// A session's secret, parsed. Formatting it shows nothing of it; [`SessionToken::reveal`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken(String);

impl SessionToken {
    /// Creates a token out of randomness that the caller draws.
    pub fn generate(random: [u8; 32]) -> Self {
        let half = |from: usize| {
            let bytes = random.iter().skip(from).take(16);
            base62(bytes.fold(0_u128, |number, byte| number << 8 | u128::from(*byte)), HALF)
        };
        let body = format!("{PREFIX}{}{}", half(0), half(16));
        let checksum = checksum(&body);
        Self(body + &checksum)
    }

    /// Whether a credential is meant to be a session, by its prefix.
    pub fn looks_like_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Returns the whole text.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the hash that is stored, and by which the session is found.
    pub fn hash(&self, pepper: &Pepper) -> Fingerprint {
        pepper.session_hash(self.0.as_bytes())
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}…")
    }
}

/// The text is not a session. It is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no session of this product, or it has a typing error: sign in again")]
pub struct SessionTokenError;

impl FromStr for SessionToken {
    type Err = SessionTokenError;

    fn from_str(text: &str) -> Result<Self, SessionTokenError> {
        let whole = text.len() == PREFIX.len() + 2 * HALF + CHECKSUM_LENGTH
            && Self::looks_like_one(text)
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let (body, end) = text.split_at_checked(PREFIX.len() + 2 * HALF).filter(|_| whole).ok_or(SessionTokenError)?;
        if checksum(body) == end { Ok(Self(text.to_owned())) } else { Err(SessionTokenError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_token_parses_and_a_changed_one_does_not() {
        let token = SessionToken::generate(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        let text = token.reveal().to_owned();
        assert_eq!(text.len(), 57);
        assert_eq!(text.parse::<SessionToken>(), Ok(token.clone()));
        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] = if changed[place] == b'x' { b'y' } else { b'x' };
            assert!(String::from_utf8(changed).unwrap().parse::<SessionToken>().is_err(), "{place}");
        }
        for bad in ["", "os_ses_", "os_live_x", &text[..56], &format!("{text}0"), "os_ses_ä"] {
            assert!(bad.parse::<SessionToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn printing_shows_nothing_and_the_hash_takes_the_pepper() {
        let token = SessionToken::generate([7; 32]);
        assert_eq!(format!("{token:?}"), "os_ses_…");
        let (one, other) = (Pepper::new([1; 32]).unwrap(), Pepper::new([2; 32]).unwrap());
        assert_eq!(token.hash(&one), token.hash(&one));
        assert_ne!(token.hash(&one), token.hash(&other));
        assert_ne!(token.hash(&one), SessionToken::generate([8; 32]).hash(&one));
    }

    #[test]
    fn all_of_the_randomness_is_in_the_text() {
        let all = SessionToken::generate([255; 32]);
        let mut random = [255; 32];
        random[0] = 254;
        assert_ne!(SessionToken::generate(random), all);
        random = [255; 32];
        random[31] = 254;
        assert_ne!(SessionToken::generate(random), all);
    }
}
