//! Events of an API key.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, KeyPublicId, Role, Timestamp, codec::event_enum};

event_enum! {
    /// What happens to an API key.
    ApiKeyEvent {
        Issued(ApiKeyIssued) = "api_key.issued", 1;
        Revoked(ApiKeyRevoked) = "api_key.revoked", 1;
    }
}

/// What a key is meant for; part of the token's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyEnvironment {
    /// Real data.
    Live,
    /// Trying things out.
    Test,
}

/// A new key. The secret itself is shown to its creator once and stored nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyIssued {
    /// What people call it.
    pub name: String,
    /// The part of the token that names the key.
    pub public_id: KeyPublicId,
    /// `HMAC-SHA256(pepper, secret)`: enough to recognize the secret, useless without the server's pepper.
    pub secret_mac: Fingerprint,
    /// The last four characters of the token, so that a person can tell keys apart.
    pub last4: String,
    /// What the bearer may do.
    pub role: Role,
    /// Live or test.
    pub environment: KeyEnvironment,
    /// When it ends by itself, if it does.
    pub expires_at: Option<Timestamp>,
}

/// The key is refused from now on; its row stays for the auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRevoked {
    /// Why, if somebody said.
    pub reason: Option<String>,
}
