//! Events of an API key.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, KeyPublicId, MemberId, Role, Timestamp, codec::event_enum};

event_enum! {
    /// What happens to an API key.
    ApiKeyEvent {
        Issued(ApiKeyIssued) = "api_key.issued", 1;
        Rotated(ApiKeyRotated) = "api_key.rotated", 1;
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
    /// What the bearer may do within the role, by names of permissions; none is everything that the role may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// The networks that the bearer may come from; none is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<String>,
    /// The member on whose word it is, where a key of theirs issued it: it ends with them as theirs do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<MemberId>,
}

/// The same key with another secret. The old one goes on for a while, so that nothing has to change at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRotated {
    /// The part of the new token that names the key.
    pub public_id: KeyPublicId,
    /// What recognizes the new secret.
    pub secret_mac: Fingerprint,
    /// The last four characters of the new token.
    pub last4: String,
    /// When the old token ends. One that is older still ends now.
    pub previous_ends_at: Timestamp,
    /// When the key ends by itself, if it does.
    pub expires_at: Option<Timestamp>,
}

/// The key is refused from now on; its row stays for the auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRevoked {
    /// Why, if somebody said.
    pub reason: Option<String>,
}
