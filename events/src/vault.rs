//! What the vault has of one secret: its value under a data key of its own, and that key under one of a key ring. It is stored
//! beside the log, so that it can be taken away.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{CodecError, CommitKeys, OrgId, RecordId, SecretId, SubjectError, codec::from_bytes};

const VERSION: u8 = 1;

/// The place of a secret in the vault: `vault.<org>.<secret>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultSubject {
    /// The organization.
    pub org: OrgId,
    /// The secret.
    pub secret: SecretId,
}

impl fmt::Display for VaultSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vault.{}.{}", self.org, self.secret)
    }
}

impl FromStr for VaultSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let unknown = || SubjectError::new(subject, "not a subject of the vault");
        let (org, secret) = subject.strip_prefix("vault.").and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let (org, secret) = (org.parse().map_err(|_| unknown())?, secret.parse().map_err(|_| unknown())?);
        Ok(Self { org, secret })
    }
}

/// What is stored of a secret. There is always one message of it: a destroyed one is a tombstone and never missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultEntry {
    v: u8,
    /// The record and the field of its content; none for what shows that a key ring is the installation's own.
    pub of: Option<SecretPlace>,
    /// The number of the value in its field.
    pub version: u64,
    /// The value; none once it is destroyed.
    pub sealed: Option<SealedSecret>,
}

/// The place of a secret in the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPlace {
    /// The record.
    pub record: RecordId,
    /// The field of its content.
    pub field: String,
}

/// A value that is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// The id of the wrapping key.
    pub key: String,
    /// The data key, as the wrapping key wrapped it.
    pub wrapped: Bytes,
    /// The nonce of the value.
    pub nonce: Bytes,
    /// The value, encrypted with the data key.
    pub ciphertext: Bytes,
}

impl VaultEntry {
    /// Returns the entry of a sealed value.
    pub fn sealed(of: Option<SecretPlace>, version: u64, sealed: SealedSecret) -> Self {
        Self { v: VERSION, of, version, sealed: Some(sealed) }
    }

    /// Returns the entry that is left when the value is destroyed.
    pub fn destroyed(&self) -> Self {
        Self { sealed: None, ..self.clone() }
    }

    /// Returns the signed bytes to store on `subject`, whose last sequence must be `previous`: an earlier entry that is stored
    /// again is none.
    pub fn sign(&self, keys: &CommitKeys, subject: &VaultSubject, previous: u64) -> Result<Bytes, CodecError> {
        Ok(keys.sign(&subject.to_string(), Some(previous), &rmp_serde::to_vec_named(self)?)?.into())
    }

    /// Returns the entry whose stored bytes were signed for `subject`, on which the log enforced the expectation `enforced`.
    pub fn open(
        keys: &CommitKeys,
        subject: &VaultSubject,
        enforced: Option<u64>,
        bytes: &[u8],
    ) -> Result<Self, CodecError> {
        let entry: Self = from_bytes("vault entry", keys.verify(&subject.to_string(), enforced, bytes)?)?;
        if entry.v != VERSION {
            return Err(CodecError::Unknown { what: "vault entry version", value: entry.v.to_string() });
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CommandId, Fingerprint};

    fn subject(org: u8) -> VaultSubject {
        let command = CommandId::fresh(1, [1; 10]);
        let secret = SecretId::derive(command, "api_key", &Fingerprint([org; 32]));
        VaultSubject { org: OrgId::fresh(1, [org; 10]), secret }
    }

    fn entry() -> VaultEntry {
        let of = SecretPlace { record: RecordId::fresh(1, [3; 10]), field: "api_key".to_owned() };
        let part = |byte| Bytes::from(vec![byte; 4]);
        let sealed = SealedSecret { key: "first".to_owned(), wrapped: part(1), nonce: part(2), ciphertext: part(3) };
        VaultEntry::sealed(Some(of), 2, sealed)
    }

    #[test]
    fn an_entry_reads_back_where_it_was_signed_for_and_nowhere_else() {
        let keys: CommitKeys = format!("a:{}", "01".repeat(32)).parse().unwrap();
        let bytes = entry().sign(&keys, &subject(1), 7).unwrap();
        assert_eq!(VaultEntry::open(&keys, &subject(1), Some(7), &bytes).unwrap(), entry());
        for (elsewhere, enforced) in [(2, Some(7)), (1, Some(8)), (1, Some(0)), (1, None)] {
            let error = VaultEntry::open(&keys, &subject(elsewhere), enforced, &bytes).unwrap_err();
            assert!(matches!(error, CodecError::NotAuthentic { .. }), "{error}");
        }
    }

    #[test]
    fn nothing_is_left_of_a_destroyed_value() {
        let left = entry().destroyed();
        assert_eq!((left.sealed, left.of, left.version), (None, entry().of, 2));
    }

    #[test]
    fn a_subject_reads_back() {
        assert_eq!(subject(1).to_string().parse::<VaultSubject>().unwrap(), subject(1));
        for bad in ["vault", "vault.x", "vault.x.y", "ev.0.x.y", &format!("{}.more", subject(1))] {
            assert!(bad.parse::<VaultSubject>().is_err(), "{bad}");
        }
    }
}
