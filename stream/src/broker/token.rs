//! NATS' own form of JWTs: signed by an nkey with Ed25519, claims under `nats`.
//!
//! The existing crates make users and accounts, but neither scoped signing keys nor shared imports, which the
//! producers' account consists of; the token format itself is a single function here.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BrokerError;

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// The claims of a token.
pub(super) struct Claims<'a> {
    /// The public nkey of its subject.
    pub(super) subject: &'a str,
    /// Its human-readable name.
    pub(super) name: &'a str,
    /// Expiry in seconds since 1970; none means that it does not expire.
    pub(super) expires: Option<u64>,
    /// The other claims, with their `type`.
    pub(super) nats: Value,
}

/// The current time, in seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Signs `claims` at `now`, in seconds since 1970.
pub(super) fn sign(issuer: &KeyPair, now: u64, claims: Claims<'_>) -> Result<String, BrokerError> {
    let Claims { subject, name, expires, mut nats } = claims;
    if let Some(fields) = nats.as_object_mut() {
        fields.insert("version".to_owned(), json!(2));
    }
    let mut body = json!({
        "jti": Uuid::now_v7().to_string(), "iat": now, "iss": issuer.public_key(), "sub": subject, "name": name, "nats": nats,
    });
    if let (Some(expires), Some(fields)) = (expires, body.as_object_mut()) {
        fields.insert("exp".to_owned(), json!(expires));
    }
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(body.to_string()));
    let signature = issuer.sign(signed.as_bytes()).map_err(BrokerError::Unsigned)?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The claims that are checked in a presented token.
#[derive(Debug, Deserialize)]
pub(super) struct Shown {
    pub(super) sub: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) exp: u64,
    #[serde(default)]
    pub(super) nats: ShownNats,
}

/// The claims that are checked in NATS' own part.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ShownNats {
    #[serde(default)]
    pub(super) tags: Vec<String>,
}

/// Returns the claims of a token signed by `issuer`; none for every other text.
pub(super) fn verify(token: &str, issuer: &KeyPair) -> Option<Shown> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, body) = signed.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    issuer.verify(signed.as_bytes(), &signature).ok()?;
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    let is_nkey = header.get("alg").and_then(Value::as_str) == Some("ed25519-nkey");
    is_nkey.then(|| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok())?
}

/// A credentials file: the user's token and the seed of its nkey, as every NATS client reads it.
pub(super) fn credentials(token: &str, user: &KeyPair) -> Result<String, BrokerError> {
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        seed(user)?
    ))
}

/// The secret half of a key, as text.
pub(super) fn seed(key: &KeyPair) -> Result<String, BrokerError> {
    key.seed().map_err(BrokerError::Unsigned)
}
