//! Reports of publicly leaked keys, as code hosts send them: signed with a key that the operator trusts.
//!
//! The form is that of GitHub's secret scanning partners: a JSON array of findings, an ECDSA signature (P-256, SHA-256) over
//! its bytes, and the name of the key that it was made with. The keys are in a file of the operator's.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use p256::{
    ecdsa::{Signature, VerifyingKey, signature::Verifier},
    pkcs8::DecodePublicKey,
};
use serde::Deserialize;

/// The keys that reports may be signed with, by their names.
#[derive(Default)]
pub struct LeakReporters(HashMap<String, VerifyingKey>);

#[derive(Deserialize)]
struct KeyFile {
    public_keys: Vec<PublicKey>,
}

#[derive(Deserialize)]
struct PublicKey {
    key_identifier: String,
    key: String,
}

/// The reason why a report is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No trusted key has that name.
    #[error("no key of that name may sign reports here")]
    UnknownKey,
    /// The signature is malformed, or not of these bytes.
    #[error("the signature does not fit the body")]
    BadSignature,
}

impl LeakReporters {
    /// Loads the file that the code host publishes: `{"public_keys": [{"key_identifier", "key"}]}`, keys as PEM.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a list of public keys", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: KeyFile = serde_json::from_str(text)?;
        let mut keys = HashMap::new();
        for PublicKey { key_identifier, key } in file.public_keys {
            let read = VerifyingKey::from_public_key_pem(&key).map_err(|error| {
                anyhow::anyhow!("the key {key_identifier} is not a P-256 public key in PEM: {error}")
            })?;
            keys.insert(key_identifier, read);
        }
        ensure!(!keys.is_empty(), "it has no keys");
        Ok(Self(keys))
    }

    /// Whether there are no trusted keys, so that reports are not accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails unless `signature` (base64, DER) was made over `body` with the key of this name.
    pub fn verify(&self, name: &str, signature: &str, body: &[u8]) -> Result<(), ReportError> {
        let key = self.0.get(name).ok_or(ReportError::UnknownKey)?;
        let bytes = STANDARD.decode(signature).map_err(|_| ReportError::BadSignature)?;
        let signature = Signature::from_der(&bytes).map_err(|_| ReportError::BadSignature)?;
        key.verify(body, &signature).map_err(|_| ReportError::BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report as GitHub signs it for its partners' tests.
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEsz9ugWDj5jK5ELBK42ynytbo38gP\nHzZFI03Exwz8Lh/tCfL3YxwMdLjB+bMznsanlhK0RwcGP3IDb34kQDIo3Q==\n-----END PUBLIC KEY-----\n";
    const NAME: &str = "f9525bf080f75b3506ca1ead061add62b8633a346606dc5fe544e29231c6ee0d";
    const SIGNATURE: &str =
        "MEUCIFLZzeK++IhS+y276SRk2Pe5LfDrfvTXu6iwKKcFGCrvAiEAhHN2kDOhy2I6eGkOFmxNkOJ+L2y8oQ9A2T9GGJo6WJY=";
    const BODY: &str = r#"[{"token":"some_token","type":"some_type","url":"some_url","source":"some_source"}]"#;

    fn reporters() -> LeakReporters {
        let file = serde_json::json!({"public_keys": [{"key_identifier": NAME, "key": KEY, "is_current": true}]});
        LeakReporters::parse(&file.to_string()).unwrap()
    }

    #[test]
    fn a_report_is_recognized_by_its_signature() {
        let reporters = reporters();
        assert_eq!(reporters.verify(NAME, SIGNATURE, BODY.as_bytes()), Ok(()));
        assert_eq!(reporters.verify("another", SIGNATURE, BODY.as_bytes()), Err(ReportError::UnknownKey));
        let changed = BODY.replace("some_token", "same_token");
        assert_eq!(reporters.verify(NAME, SIGNATURE, changed.as_bytes()), Err(ReportError::BadSignature));
        for bad in ["", "!", "AAAA"] {
            assert_eq!(reporters.verify(NAME, bad, BODY.as_bytes()), Err(ReportError::BadSignature));
        }
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        assert!(LeakReporters::parse(r#"{"public_keys": []}"#).is_err());
        assert!(LeakReporters::parse(r#"{"public_keys": [{"key_identifier": "a", "key": "b"}]}"#).is_err());
    }
}
