//! Signatures of messages in the log: a MAC by a process that accepts commands, so that access to publish to the broker is
//! not enough to write history.
//!
//! The MAC covers the subject, the sequence that the writer expected there, and the content. A message that is copied to
//! another subject, or published again on its own, therefore does not verify: its expectation would have to hold once more.

use std::{fmt, str::FromStr};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{CodecError, codec::from_bytes};

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"orgstream signed message 1";
const MAX_KEY_ID: usize = 32;
/// More keys than a rotation ever needs.
const MAX_KEYS: usize = 16;
/// The length of a key, in bytes.
const KEY_BYTES: usize = 32;

/// The keys that vouch for appended messages: the first signs, and all of them verify.
///
/// As text: `ID:HEX`, several with commas. `HEX` are the 64 digits of 32 random bytes, `ID` 1 to 32 of `a-z 0-9 -`.
#[derive(Clone)]
pub struct CommitKeys {
    signing: Key,
    others: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: String,
    mac: Hmac<Sha256>,
}

/// The reason why a text is not a list of keys. It never quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitKeysError {
    /// There are no keys, or too many.
    #[error("there must be 1 to {MAX_KEYS} commit keys, separated by commas, not {0}")]
    Count(usize),
    /// An entry is malformed.
    #[error(
        "commit key number {0} is not ID:HEX, with 1 to 32 of a-z, 0-9 and - for ID, and 64 hexadecimal digits for HEX"
    )]
    Malformed(usize),
    /// Two entries have the same id.
    #[error("two commit keys have the id {0}")]
    Twice(String),
}

/// The message as it is stored.
#[derive(Serialize, Deserialize)]
struct Signed<'a> {
    v: u8,
    #[serde(borrow)]
    key: &'a str,
    previous: Option<u64>,
    #[serde(borrow, with = "serde_bytes")]
    mac: &'a [u8],
    #[serde(borrow, with = "serde_bytes")]
    content: &'a [u8],
}

impl CommitKeys {
    /// Creates a list of one key, from its 32 bytes.
    pub fn single(id: &str, key: [u8; KEY_BYTES]) -> Result<Self, CommitKeysError> {
        Ok(Self { signing: Key::new(id, &key).ok_or(CommitKeysError::Malformed(1))?, others: Vec::new() })
    }

    /// Returns the id of the key that signs.
    pub fn signing_id(&self) -> &str {
        &self.signing.id
    }

    /// Returns the ids of all keys, the one that signs first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.all().map(|key| key.id.as_str())
    }

    /// Returns the stored bytes of `content` on `subject`, whose last sequence must be `previous`; none means no
    /// expectation.
    pub fn sign(&self, subject: &str, previous: Option<u64>, content: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mac = self.signing.over(subject, previous, content).finalize().into_bytes();
        let signed = Signed { v: VERSION, key: &self.signing.id, previous, mac: &mac, content };
        Ok(rmp_serde::to_vec_named(&signed)?)
    }

    /// Returns the content of stored bytes that were signed for `subject`, if the log enforced their writer's expectation:
    /// `enforced` is the expectation that is stored beside the message.
    ///
    /// An unknown key is another error than a missing signature: a process without the newest key must not take what it
    /// signed for forged.
    pub fn verify<'a>(&self, subject: &str, enforced: Option<u64>, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
        let unsigned = |reason: String| CodecError::NotAuthentic { reason };
        let signed: Signed<'a> = from_bytes("signature", bytes).map_err(|_| unsigned("it is not signed".to_owned()))?;
        if signed.v != VERSION {
            return Err(CodecError::Unknown { what: "signature version", value: signed.v.to_string() });
        }
        let key = self.all().find(|key| key.id == signed.key);
        let key = key.ok_or_else(|| CodecError::UnknownKey { id: shortened(signed.key) })?;
        let mac = key.over(subject, signed.previous, signed.content);
        mac.verify_slice(signed.mac).map_err(|_| unsigned("its signature is wrong".to_owned()))?;
        if signed.previous != enforced {
            return Err(unsigned("it was published again, without the expectation that it was signed with".to_owned()));
        }
        Ok(signed.content)
    }

    /// Returns the expectation that stored bytes say they were signed with; none if they say that there was none, or are not
    /// signed. It is their writer's only if [`CommitKeys::verify`] accepts it.
    pub fn stated(bytes: &[u8]) -> Option<u64> {
        from_bytes::<Signed<'_>>("signature", bytes).ok()?.previous
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.signing).chain(&self.others)
    }
}

impl Key {
    fn new(id: &str, key: &[u8]) -> Option<Self> {
        let is_id = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_valid = (1..=MAX_KEY_ID).contains(&id.len()) && id.bytes().all(is_id) && key.len() == KEY_BYTES;
        let mac = Hmac::new_from_slice(key).ok().filter(|_| is_valid)?;
        Some(Self { id: id.to_owned(), mac })
    }

    fn over(&self, subject: &str, previous: Option<u64>, content: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(DOMAIN);
        mac.update(&(subject.len() as u64).to_be_bytes());
        mac.update(subject.as_bytes());
        mac.update(&[u8::from(previous.is_some())]);
        mac.update(&previous.unwrap_or_default().to_be_bytes());
        mac.update(content);
        mac
    }
}

impl FromStr for CommitKeys {
    type Err = CommitKeysError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        if !(1..=MAX_KEYS).contains(&entries.len()) {
            return Err(CommitKeysError::Count(entries.len()));
        }
        let mut keys: Vec<Key> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let key = entry.split_once(':').and_then(|(id, hex)| Key::new(id, &from_hex(hex)?));
            let key = key.ok_or(CommitKeysError::Malformed(index + 1))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(CommitKeysError::Twice(key.id));
            }
            keys.push(key);
        }
        let others = keys.split_off(1);
        let signing = keys.pop().ok_or(CommitKeysError::Count(0))?;
        Ok(Self { signing, others })
    }
}

impl fmt::Debug for CommitKeys {
    /// The ids alone: the keys are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    if text.len() != 2 * KEY_BYTES {
        return None;
    }
    let pair = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}

fn shortened(id: &str) -> String {
    id.chars().take(MAX_KEY_ID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "ev.3.org_x.record.res_y";

    fn keys(text: &str) -> CommitKeys {
        text.parse().unwrap()
    }

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    #[test]
    fn what_was_signed_is_believed_where_it_was_signed_for_and_nowhere_else() {
        let keys = keys(&format!("a:{}", hex(1)));
        let bytes = keys.sign(SUBJECT, Some(7), b"content").unwrap();
        assert_eq!(keys.verify(SUBJECT, Some(7), &bytes).unwrap(), b"content");
        let refused: [(&str, Option<u64>); 4] =
            [("ev.3.org_x.record.res_z", Some(7)), (SUBJECT, Some(8)), (SUBJECT, None), (SUBJECT, Some(0))];
        for (subject, enforced) in refused {
            let error = keys.verify(subject, enforced, &bytes).unwrap_err();
            assert!(matches!(error, CodecError::NotAuthentic { .. }), "{error}");
        }
        let fact = keys.sign(SUBJECT, None, b"content").unwrap();
        assert_eq!(keys.verify(SUBJECT, None, &fact).unwrap(), b"content");
        assert!(keys.verify(SUBJECT, Some(0), &fact).is_err(), "0 says that there is nothing, and none says nothing");
    }

    #[test]
    fn one_changed_byte_or_another_key_is_not_authentic() {
        let ours = keys(&format!("a:{}", hex(1)));
        let bytes = ours.sign(SUBJECT, Some(7), b"content").unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(ours.verify(SUBJECT, Some(7), &changed).is_err(), "byte {place}");
        }
        assert!(keys(&format!("a:{}", hex(2))).verify(SUBJECT, Some(7), &bytes).is_err());
        assert!(keys(&format!("b:{}", hex(1))).verify(SUBJECT, Some(7), &bytes).is_err());
        assert!(ours.verify(SUBJECT, Some(7), b"content").is_err(), "not signed at all");
        assert!(ours.verify(SUBJECT, None, b"").is_err());
    }

    #[test]
    fn a_new_key_signs_while_the_old_one_is_still_believed() {
        let old = keys(&format!("a:{}", hex(1)));
        let both = keys(&format!("b:{}, a:{}", hex(2), hex(1)));
        let before = old.sign(SUBJECT, Some(1), b"before").unwrap();
        let after = both.sign(SUBJECT, Some(2), b"after").unwrap();
        assert_eq!(both.verify(SUBJECT, Some(1), &before).unwrap(), b"before");
        assert_eq!(both.verify(SUBJECT, Some(2), &after).unwrap(), b"after");
        let error = old.verify(SUBJECT, Some(2), &after).unwrap_err().to_string();
        assert!(error.contains("commit key \"b\", which this process does not have"), "{error}");
        assert_eq!((both.signing_id(), format!("{both:?}")), ("b", r#"["b", "a"]"#.to_owned()));
    }

    #[test]
    fn a_list_of_keys_that_is_none_is_refused_without_being_quoted() {
        let secret = hex(7);
        for text in
            ["", ",", "a", "a:", &secret, &format!("A:{secret}"), &format!("a:{secret}0"), &format!(":{secret}")]
        {
            let error = text.parse::<CommitKeys>().unwrap_err();
            assert!(!error.to_string().contains("0707"), "{error}");
        }
        let twice = format!("a:{secret},a:{secret}");
        assert_eq!(twice.parse::<CommitKeys>().unwrap_err(), CommitKeysError::Twice("a".to_owned()));
        let many = (0..17).map(|n| format!("k{n}:{secret}")).collect::<Vec<_>>().join(",");
        assert_eq!(many.parse::<CommitKeys>().unwrap_err(), CommitKeysError::Count(17));
    }
}
