//! The text of an API key: `os_live_<12 base62 key id>_<32 base62 secret><6 base62 checksum>`.
//!
//! The key id finds the key, the secret proves it, and the checksum lets a typing error be refused before any lookup. The
//! checksum is no protection. Only a keyed hash of the secret is stored; a slow hash would gain nothing, since 190 random
//! bits cannot be guessed.

use std::{fmt, str::FromStr};

use hmac::{Hmac, KeyInit as _, Mac as _};
use orgstream_events::{Fingerprint, KeyEnvironment, KeyPublicId};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::api_key::TokenParts;

/// The pattern of every token, for scanners that search text for leaked ones.
pub const TOKEN_REGEX: &str = "os_(live|test)_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}";

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SECRET_LENGTH: usize = 32;
const CHECKSUM_LENGTH: usize = 6;

/// The server's own secret. Without it, a stolen table verifies no key.
#[derive(Clone)]
pub struct Pepper(Vec<u8>);

impl Pepper {
    /// Wraps the bytes, if there are enough for a secret (16).
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Self> {
        Some(Self(bytes.into())).filter(|pepper| pepper.0.len() >= 16)
    }

    /// Returns the stored hash of a secret: `HMAC-SHA256(pepper, secret)`.
    pub fn mac(&self, token: &KeyToken) -> Fingerprint {
        Fingerprint(self.tag(token.secret.as_bytes()))
    }

    /// Returns the stored hash of a secret of another kind than an API key's.
    pub fn mac_of(&self, what: &str, secret: &str) -> Fingerprint {
        // Longer than a key's secret in any case, so that neither hash is ever valid for the other.
        Fingerprint(self.tag(&[b"orgstream secret ", what.as_bytes(), b" ", secret.as_bytes()].concat()))
    }

    /// Returns the stored hash of a session's token. The prefix keeps it apart from every key's secret.
    pub(super) fn session_hash(&self, token: &[u8]) -> Fingerprint {
        Fingerprint(self.tag(&[b"orgstream session token ", token].concat()))
    }

    /// Derives 48 bytes from this secret and `seed`, as [`KeyToken::generate`] takes them: a retried command makes the same
    /// token again, which is impossible without this secret.
    pub fn derive(&self, seed: &[u8]) -> [u8; 48] {
        let mut random = [0; 48];
        for (part, chunk) in random.chunks_mut(32).enumerate() {
            // The parts differ in length from everything that `mac` hashes, so no result of one is a result of the other.
            let tag =
                self.tag(&[b"orgstream api key token ", seed, &[u8::try_from(part).unwrap_or_default()]].concat());
            for (to, from) in chunk.iter_mut().zip(tag) {
                *to = from;
            }
        }
        random
    }

    fn tag(&self, message: &[u8]) -> [u8; 32] {
        // HMAC accepts keys of every length, so the error is impossible.
        Hmac::<Sha256>::new_from_slice(&self.0)
            .map_or([0; 32], |hmac| hmac.chain_update(message).finalize().into_bytes().into())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

/// A parsed token. Formatting it never shows the secret; [`KeyToken::reveal`] does, and is for the one reply that may.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyToken {
    environment: KeyEnvironment,
    public_id: KeyPublicId,
    secret: String,
}

impl KeyToken {
    /// Creates a token out of randomness that the caller draws.
    pub fn generate(environment: KeyEnvironment, random: [u8; 48]) -> Self {
        // Each third makes 12 or 16 base62 digits: the modulo bias of 128 bits makes no digit likelier than another by more
        // than one in 2^32.
        let digits = |from: usize, length: usize| {
            let third = random.iter().skip(from).take(16);
            base62(third.fold(0_u128, |number, byte| number << 8 | u128::from(*byte)), length)
        };
        let secret = digits(16, SECRET_LENGTH / 2) + &digits(32, SECRET_LENGTH / 2);
        let public_id = digits(0, 12).parse();
        // Twelve letters and digits are always a key id.
        #[expect(
            clippy::unreachable,
            reason = "base62 of length 12 is what a key id is; a property test generates them"
        )]
        let public_id = public_id.unwrap_or_else(|_| unreachable!());
        Self { environment, public_id, secret }
    }

    /// Appends the checksum to a token's text; `body` is everything before it.
    pub fn completed(body: &str) -> String {
        format!("{body}{}", checksum(body))
    }

    /// Whether a credential is meant to be an API key, by its prefix.
    pub fn looks_like_one(text: &str) -> bool {
        text.starts_with("os_")
    }

    /// Returns the part that identifies the key. Not secret.
    pub fn public_id(&self) -> &KeyPublicId {
        &self.public_id
    }

    /// Returns the environment of the key.
    pub fn environment(&self) -> KeyEnvironment {
        self.environment
    }

    /// Returns the whole token.
    pub fn reveal(&self) -> String {
        let body = format!("os_{}_{}_{}", environment_name(self.environment), self.public_id, self.secret);
        Self::completed(&body)
    }

    /// Returns the last four characters of the whole token. They belong to the checksum, so they disclose nothing usable of
    /// the secret.
    pub fn last4(&self) -> String {
        let token = self.reveal();
        token.get(token.len().saturating_sub(4)..).unwrap_or_default().to_owned()
    }

    /// Whether this is the stored secret, in constant time, which does not disclose how much of it is right.
    pub fn matches(&self, pepper: &Pepper, stored: &Fingerprint) -> bool {
        pepper.mac(self).0.ct_eq(&stored.0).into()
    }

    /// Returns the stored parts.
    pub fn stored(&self, pepper: &Pepper) -> TokenParts {
        TokenParts { public_id: self.public_id.clone(), secret_mac: pepper.mac(self), last4: self.last4() }
    }
}

impl fmt::Debug for KeyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "os_{}_{}_…", environment_name(self.environment), self.public_id)
    }
}

/// The reason why a text is not an API key. It never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyTokenError {
    /// Not of the form of a key.
    #[error("not an API key of this product: they look like os_live_…; was it cut off?")]
    Form,
    /// The form is right, the checksum is not.
    #[error("the API key has a typing error: its checksum does not fit; copy it again")]
    Checksum,
}

impl FromStr for KeyToken {
    type Err = KeyTokenError;

    fn from_str(text: &str) -> Result<Self, KeyTokenError> {
        let parts = || {
            let (environment, rest) = match text.strip_prefix("os_")?.split_once('_')? {
                ("live", rest) => (KeyEnvironment::Live, rest),
                ("test", rest) => (KeyEnvironment::Test, rest),
                _ => return None,
            };
            let (public_id, tail) = rest.split_once('_')?;
            let public_id = public_id.parse().ok()?;
            let whole =
                tail.len() == SECRET_LENGTH + CHECKSUM_LENGTH && tail.bytes().all(|b| b.is_ascii_alphanumeric());
            let (secret, _) = tail.split_at_checked(SECRET_LENGTH).filter(|_| whole)?;
            Some(Self { environment, public_id, secret: secret.to_owned() })
        };
        let token = parts().ok_or(KeyTokenError::Form)?;
        if token.reveal() == text { Ok(token) } else { Err(KeyTokenError::Checksum) }
    }
}

fn environment_name(environment: KeyEnvironment) -> &'static str {
    match environment {
        KeyEnvironment::Live => "live",
        KeyEnvironment::Test => "test",
    }
}

/// Returns the CRC32 of everything before it, in base62, padded with zeros.
pub(super) fn checksum(body: &str) -> String {
    base62(u128::from(crc32fast::hash(body.as_bytes())), CHECKSUM_LENGTH)
}

/// Returns the last `length` digits of `number`, most significant first.
pub(super) fn base62(mut number: u128, length: usize) -> String {
    let mut digits: Vec<char> = Vec::with_capacity(length);
    for _ in 0..length {
        let digit = usize::try_from(number % 62).unwrap_or_default();
        digits.push(ALPHABET.get(digit).copied().map_or('0', char::from));
        number /= 62;
    }
    digits.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(byte: u8) -> KeyToken {
        KeyToken::generate(KeyEnvironment::Live, [byte; 48])
    }

    fn pepper() -> Pepper {
        Pepper::new([1; 32]).unwrap()
    }

    #[test]
    fn the_form_never_changes() {
        let text = KeyToken::generate(KeyEnvironment::Test, std::array::from_fn(|n| u8::try_from(n).unwrap())).reveal();
        assert_eq!(text, "os_test_xkEgOGusQGwp_BGO3cQWJhXqJNbv5F53nH6nx0olkKwtL4MVpFO");
        let zeros = token(0).reveal();
        assert!(zeros.starts_with("os_live_000000000000_00000000000000000000000000000000"), "{zeros}");
        assert_eq!(zeros.len(), 8 + 12 + 1 + 38);
    }

    #[test]
    fn printing_does_not_show_the_secret() {
        let token = token(7);
        let shown = format!("{token:?} {:?}", pepper());
        assert!(!shown.contains(&token.secret), "{shown}");
        assert!(shown.contains(token.public_id().as_str()), "{shown}");
    }

    #[test]
    fn only_its_own_secret_is_recognized() {
        let stored = token(7).stored(&pepper());
        assert!(token(7).matches(&pepper(), &stored.secret_mac));
        assert!(!token(8).matches(&pepper(), &stored.secret_mac));
        assert!(!token(7).matches(&Pepper::new([2; 32]).unwrap(), &stored.secret_mac));
        assert!(token(7).reveal().ends_with(&stored.last4));
    }

    #[test]
    fn a_pepper_has_to_be_a_secret() {
        assert!(Pepper::new(*b"short").is_none());
    }

    #[test]
    fn derived_randomness_repeats_and_does_not_cross() {
        assert_eq!(pepper().derive(b"cmd 1"), pepper().derive(b"cmd 1"));
        assert_ne!(pepper().derive(b"cmd 1"), pepper().derive(b"cmd 2"));
        assert_ne!(pepper().derive(b"cmd 1")[..16], pepper().derive(b"cmd 1")[32..]);
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        for bad in
            ["", "os_", "os_live_", "sk_live_x", "os_prod_000000000000_x", "os_live_ä_ö", &token(1).reveal()[..58]]
        {
            assert_eq!(bad.parse::<KeyToken>(), Err(KeyTokenError::Form), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_generated_token_parses(random in prop::array::uniform32(any::<u8>()), more in prop::array::uniform16(any::<u8>()), live: bool) {
            let mut bytes = [0; 48];
            bytes[..32].copy_from_slice(&random);
            bytes[32..].copy_from_slice(&more);
            let environment = if live { KeyEnvironment::Live } else { KeyEnvironment::Test };
            let token = KeyToken::generate(environment, bytes);
            let text = token.reveal();
            prop_assert_eq!(text.parse::<KeyToken>(), Ok(token));
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        }

        #[test]
        fn a_single_changed_character_is_refused(seed: u8, place in 0usize..59, to in any::<char>()) {
            let text = token(seed).reveal();
            let mut changed: Vec<char> = text.chars().collect();
            prop_assume!(changed[place] != to);
            changed[place] = to;
            let changed: String = changed.into_iter().collect();
            prop_assert!(changed.parse::<KeyToken>().is_err(), "{}", changed);
        }

        #[test]
        fn a_single_changed_digit_is_refused(seed: u8, place in 0usize..59, to in 0usize..62) {
            let mut text = token(seed).reveal().into_bytes();
            prop_assume!(text[place] != ALPHABET[to]);
            text[place] = ALPHABET[to];
            prop_assert!(String::from_utf8(text).unwrap().parse::<KeyToken>().is_err());
        }

        #[test]
        fn hostile_text_never_panics(text in ".*") {
            let _ = text.parse::<KeyToken>();
            let _ = format!("os_live_{text}").parse::<KeyToken>();
        }
    }
}
