//! Events of an API key.

use serde::{Deserialize, Serialize};

use crate::{Fingerprint, KeyPublicId, MemberId, Role, Timestamp, codec::event_enum};

event_enum! {
    /// The events of an API key.
    ApiKeyEvent about aggregate {
        Issued(ApiKeyIssued) = "api_key.issued", 1;
        Rotated(ApiKeyRotated) = "api_key.rotated", 1;
        Revoked(ApiKeyRevoked) = "api_key.revoked", 1;
    }
}

/// The environment of a key; part of the token's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyEnvironment {
    /// Real data.
    Live,
    /// Trials.
    Test,
}

/// A new key. The secret itself is shown to its creator once and stored nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyIssued {
    /// The display name.
    pub name: String,
    /// The part of the token that identifies the key.
    pub public_id: KeyPublicId,
    /// `HMAC-SHA256(pepper, secret)`: enough to verify the secret, useless without the server's pepper.
    pub secret_mac: Fingerprint,
    /// The last four characters of the token, so that a person can tell keys apart.
    pub last4: String,
    /// The bearer's role.
    pub role: Role,
    /// Live or test.
    pub environment: KeyEnvironment,
    /// When it expires, if it does.
    pub expires_at: Option<Timestamp>,
    /// The bearer's permissions within the role, by name; none means all permissions of the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// The networks from which the bearer is accepted; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_ips: Vec<String>,
    /// The member that vouches for it, where a key of that member issued it: it ends with the membership, as the member's
    /// own keys do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<MemberId>,
}

/// The secret was replaced. The old one stays valid for a while, so that clients need not change at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRotated {
    /// The part of the new token that identifies the key.
    pub public_id: KeyPublicId,
    /// The keyed hash that verifies the new secret.
    pub secret_mac: Fingerprint,
    /// The last four characters of the new token.
    pub last4: String,
    /// When the old token expires. Any older one expires now.
    pub previous_ends_at: Timestamp,
    /// When the key expires, if it does.
    pub expires_at: Option<Timestamp>,
}

/// The key is refused from now on; its row stays for the auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRevoked {
    /// The reason, if one was given.
    pub reason: Option<String>,
}
