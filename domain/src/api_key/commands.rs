//! The declarations of a key's commands: their fields as they are received, and who may send them.

use orgstream_events::{AggregateId, KeyEnvironment, KeyId, OrgId, Role, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant, openapi};

/// A new API key. The token is in the reply, and never anywhere again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueApiKey {
    /// Display name, 1 to 120 characters.
    #[schema(example = "ci", max_length = 120)]
    pub name: String,
    /// Role of the key: a built-in name or the id of a custom role; it may do no more than the caller.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// Purpose of the key: `live` (the default) or `test`. Shown in its token; both work alike.
    #[serde(default = "live")]
    #[schema(schema_with = openapi::key_environment)]
    pub environment: KeyEnvironment,
    /// Time of expiry, RFC 3339; excludes `expires_in_days`. Without both, the key lasts as long as the organization allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Days until it expires, 1 to 3,650; excludes `expires_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
    /// Names of permissions that bound the role; without it, everything that the caller may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["records:read", "records:write"]))]
    pub scopes: Option<Vec<String>>,
    /// Addresses or networks (CIDR) that the key works from, at most 32; without it, any. A key with this list does not work by
    /// NATS, where the address of the sender is unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32, example = json!(["192.0.2.0/24", "2001:db8::/32"]))]
    pub allowed_ips: Vec<String>,
}

impl Declared for IssueApiKey {
    const SPEC: CommandSpec = CommandSpec {
        name: "issue_api_key",
        requires: Requires::Permission(Permission::ManageKeys),
        events: &["api_key.issued", "quota.counted"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::New(|command| AggregateId::ApiKey(KeyId::derive(command)))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::Key(self.role, self.scopes.clone())]
    }
}

/// The same key with another secret. The new token is in the reply, and never anywhere again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateApiKey {
    /// API key id, not its token (`key_` and 26 characters).
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub id: KeyId,
    /// Seconds for which the token before still works, 0 (the default) to 604,800. A token from an earlier rotation ends now.
    #[serde(default)]
    #[schema(maximum = 604_800)]
    pub overlap_seconds: u32,
    /// New time of expiry, RFC 3339; excludes `expires_in_days`. Without both, it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Days until it expires, 1 to 3,650; excludes `expires_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
}

impl Declared for RotateApiKey {
    const SPEC: CommandSpec = CommandSpec {
        name: "rotate_api_key",
        requires: Requires::Permission(Permission::ManageKeys),
        events: &["api_key.rotated"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::ApiKey(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::KeyAgain(self.id)]
    }
}

fn live() -> KeyEnvironment {
    KeyEnvironment::Live
}

/// Ends a key at once. Its row stays for the auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeApiKey {
    /// API key id, not its token (`key_` and 26 characters).
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub id: KeyId,
    /// Reason for the audit log, at most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl Declared for RevokeApiKey {
    const SPEC: CommandSpec = CommandSpec {
        name: "revoke_api_key",
        requires: Requires::Permission(Permission::ManageKeys),
        events: &["api_key.revoked", "quota.counted"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::ApiKey(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        vec![Grant::KeyEnded(self.id)]
    }
}
