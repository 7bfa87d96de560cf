//! The keys of logs and witnesses: Ed25519 with a name, as in C2SP signed-note and tlog-cosignature.
//!
//! The type byte is part of a key and of its id. A log's key (0x01) signs the text of a note; a witness's (0x04) signs
//! the text with the time. A key's role is in its Rust type, so neither can be taken for the other; another algorithm
//! would be another role.

use std::{fmt, marker::PhantomData, str::FromStr};

use ed25519_dalek::{SECRET_KEY_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::{
    Checkpoint, FormatError, KeyName, SignatureLine, SignedNote, TreeHead,
    text::{from_base64, to_base64},
};

/// The prefix of a signing key's text.
const PRIVATE: &str = "PRIVATE+KEY+";

/// The role of a key.
pub trait Role: private::Role {}

mod private {
    /// The differences between the two roles.
    pub trait Role {
        /// The type byte of the key.
        const TYPE: u8;

        /// The statement of a valid signature beside the text.
        type Statement: Ord;

        /// Parses what follows the key id: the statement, the signed message, the Ed25519 signature.
        fn open(text: &str, signature: &[u8]) -> Option<(Self::Statement, Vec<u8>, [u8; 64])>;
    }
}

/// The role of a log: it states that a tree head is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {}

/// The role of a witness: it states when it saw a tree head that contains everything it had seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {}

impl Role for Log {}
impl Role for Witness {}

impl private::Role for Log {
    const TYPE: u8 = 0x01;

    type Statement = ();

    fn open(text: &str, signature: &[u8]) -> Option<((), Vec<u8>, [u8; 64])> {
        Some(((), text.as_bytes().to_vec(), signature.try_into().ok()?))
    }
}

impl private::Role for Witness {
    const TYPE: u8 = 0x04;

    /// Seconds since 1970-01-01T00:00:00Z.
    type Statement = u64;

    fn open(text: &str, signature: &[u8]) -> Option<(u64, Vec<u8>, [u8; 64])> {
        let (time, signature) = signature.split_first_chunk()?;
        let time = u64::from_be_bytes(*time);
        let signature = signature.try_into().ok()?;
        i64::try_from(time).is_ok().then(|| (time, cosigned_message(text, time), signature))
    }
}

fn cosigned_message(text: &str, time: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time}\n{text}").into_bytes()
}

/// A signature under a known key that the key did not make. A verifier that finds one rejects the whole note.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the signature of {0} is not valid")]
pub struct BadSignature(pub KeyName);

/// The public half. As text it is `<name>+<id>+<base64 of type and key>`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey<R> {
    name: KeyName,
    key: VerifyingKey,
    role: PhantomData<R>,
}

/// The key of a log.
pub type LogKey = VerifierKey<Log>;

/// The key of a witness.
pub type WitnessKey = VerifierKey<Witness>;

impl<R: Role> VerifierKey<R> {
    /// Makes a key of its 32 bytes. Refuses bytes that are no point of the curve, and points of small order, under
    /// which a signature of one text can be valid for others.
    pub fn new(name: KeyName, public: &[u8; 32]) -> Result<Self, FormatError> {
        let key = VerifyingKey::from_bytes(public).ok().filter(|key| !key.is_weak());
        let key = key.ok_or(FormatError::Malformed { what: "the key", expected: "an Ed25519 public key" })?;
        Ok(Self { name, key, role: PhantomData })
    }

    /// The name that its signatures carry.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// The public key itself.
    pub fn public(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// The id that its signatures carry.
    pub fn id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(self.name.as_str())
            .chain_update([b'\n', R::TYPE])
            .chain_update(self.public())
            .finalize();
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash);
        [a, b, c, d]
    }

    /// Verifies every signature under this name and id. None without one; the least statement when there are several,
    /// which is the earliest time for a witness.
    pub fn verify(&self, note: &SignedNote) -> Result<Option<R::Statement>, BadSignature> {
        let id = self.id();
        let own = note.signatures().iter().filter(|line| line.name == self.name && line.key_id == id);
        let statements = own.map(|line| {
            let (statement, message, signature) = R::open(note.text(), &line.signature)?;
            self.key.verify_strict(&message, &Signature::from_bytes(&signature)).ok()?;
            Some(statement)
        });
        let statements: Option<Vec<_>> = statements.collect();
        Ok(statements.ok_or_else(|| BadSignature(self.name.clone()))?.into_iter().min())
    }
}

impl VerifierKey<Log> {
    /// Returns the same key under another name: an operator has one key, and the log of each org has a name of its own.
    /// (A witness has one name: its signatures do not tell which.)
    pub fn named(&self, name: KeyName) -> Self {
        Self { name, ..self.clone() }
    }

    /// Returns the key that signs `origin`, given a pinned key: this one, by its own name or by its host's, when it
    /// signs the logs of a host and `origin` is that host's log of the name `log`.
    pub fn of_log(&self, origin: &str, log: &str) -> Option<Self> {
        if self.name.as_str() == origin {
            return Some(self.clone());
        }
        let is_hosts = origin.strip_prefix(self.name.as_str()).and_then(|rest| rest.strip_prefix('/')) == Some(log);
        is_hosts.then(|| origin.parse().ok().map(|name| self.named(name))).flatten()
    }
}

impl<R: Role> FromStr for VerifierKey<R> {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (name, id, key) = split(text)?;
        let key = Self::new(name, &key_bytes::<R>(key)?)?;
        if hex(key.id()) == id { Ok(key) } else { Err(WRONG_ID) }
    }
}

impl<R: Role> fmt::Display for VerifierKey<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}+{}", self.name, hex(self.id()), typed_base64::<R>(self.public()))
    }
}

impl<R: Role> fmt::Debug for VerifierKey<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The secret half, with the public one. Only [`to_secret_text`](Self::to_secret_text) reveals it.
pub struct SignerKey<R> {
    verifier: VerifierKey<R>,
    key: SigningKey,
}

/// The signing key of a log.
pub type LogSigner = SignerKey<Log>;

/// The signing key of a witness.
pub type WitnessSigner = SignerKey<Witness>;

impl<R: Role> SignerKey<R> {
    /// Makes a key of its 32 secret bytes, which are best drawn from the operating system's randomness.
    pub fn from_seed(name: KeyName, seed: &[u8; SECRET_KEY_LENGTH]) -> Self {
        let key = SigningKey::from_bytes(seed);
        Self { verifier: VerifierKey { name, key: key.verifying_key(), role: PhantomData }, key }
    }

    /// The public half.
    pub fn verifier(&self) -> &VerifierKey<R> {
        &self.verifier
    }

    /// Returns the key as one line for a file that only its owner can read:
    /// `PRIVATE+KEY+<name>+<id>+<base64 of type and seed>`.
    pub fn to_secret_text(&self) -> String {
        let Self { verifier, key } = self;
        format!("{PRIVATE}{}+{}+{}", verifier.name, hex(verifier.id()), typed_base64::<R>(key.as_bytes()))
    }

    fn line(&self, signature: Vec<u8>) -> SignatureLine {
        SignatureLine { name: self.verifier.name.clone(), key_id: self.verifier.id(), signature }
    }
}

impl SignerKey<Log> {
    /// Returns the same key under another name: see [`VerifierKey::named`].
    pub fn named(&self, name: KeyName) -> Self {
        Self { verifier: self.verifier.named(name), key: self.key.clone() }
    }

    /// Signs a text of lines that is not a checkpoint.
    pub(crate) fn sign_text(&self, text: &str) -> SignatureLine {
        self.line(self.key.sign(text.as_bytes()).to_vec())
    }

    /// Signs a head of the log that has this key's name. The caller must ensure that every other head ever signed is
    /// consistent with it.
    pub fn sign(&self, head: TreeHead) -> SignedNote {
        let text = Checkpoint::new(&self.verifier.name, head).to_string();
        let signature = self.sign_text(&text);
        SignedNote::new(text, signature)
    }
}

impl SignerKey<Witness> {
    /// Signs the text of a checkpoint at a time in seconds since 1970-01-01T00:00:00Z, clamped to 1 to 2^63 - 1.
    pub(crate) fn cosign(&self, text: &str, time: u64) -> SignatureLine {
        let time = time.clamp(1, i64::MAX as u64);
        let signature = self.key.sign(&cosigned_message(text, time)).to_bytes();
        self.line([time.to_be_bytes().as_slice(), &signature].concat())
    }
}

impl<R: Role> FromStr for SignerKey<R> {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let text = text.strip_prefix(PRIVATE).ok_or(FormatError::Missing(PRIVATE))?;
        let (name, id, key) = split(text)?;
        let key = Self::from_seed(name, &key_bytes::<R>(key)?);
        if hex(key.verifier.id()) == id { Ok(key) } else { Err(WRONG_ID) }
    }
}

impl<R: Role> fmt::Debug for SignerKey<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignerKey").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

const WRONG_ID: FormatError = FormatError::Malformed { what: "the key's id", expected: "that of its name and key" };

/// Splits the text of a key into name, id and base64. The base64 may contain more `+`.
fn split(text: &str) -> Result<(KeyName, &str, &str), FormatError> {
    let parts = text.split_once('+').and_then(|(name, rest)| Some((name, rest.split_once('+')?)));
    let expected = "a name, an id and base64 between +";
    let (name, (id, key)) = parts.ok_or(FormatError::Malformed { what: "the key", expected })?;
    Ok((name.parse()?, id, key))
}

fn key_bytes<R: Role>(base64: &str) -> Result<[u8; 32], FormatError> {
    let bytes = from_base64("the key", base64)?;
    let (&found, key) = bytes.split_first().ok_or(FormatError::Missing("the key's type"))?;
    if found != R::TYPE {
        return Err(FormatError::KeyType { found, expected: R::TYPE });
    }
    key.try_into().map_err(|_| FormatError::Malformed { what: "the key", expected: "32 bytes after its type" })
}

fn typed_base64<R: Role>(key: &[u8; 32]) -> String {
    to_base64(&[&[R::TYPE], key.as_slice()].concat())
}

fn hex(id: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}
