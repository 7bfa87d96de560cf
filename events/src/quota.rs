//! Events of an organization's quotas: what commits near a limit add to what is used, or take from it.

use serde::{Deserialize, Serialize};

use crate::codec::event_enum;

event_enum! {
    /// The events of an organization's quotas.
    QuotaEvent about aggregate {
        Counted(QuotaCounted) = "quota.counted", 1;
    }
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaName {
    /// Members.
    Members,
    /// API keys that are neither revoked nor expired.
    ApiKeys,
    /// Addresses that the audit log is posted to.
    Webhooks,
    /// The content of records that are not archived, in bytes of JSON.
    StorageBytes,
}

impl QuotaName {
    /// Every quota.
    pub const ALL: [Self; 4] = [Self::Members, Self::ApiKeys, Self::Webhooks, Self::StorageBytes];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Members => "members",
            Self::ApiKeys => "api_keys",
            Self::Webhooks => "webhooks",
            Self::StorageBytes => "storage_bytes",
        }
    }
}

/// The most of each thing that there may be. What is absent has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quotas {
    /// Members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
    /// API keys that are neither revoked nor expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_keys: Option<u32>,
    /// Addresses that the audit log is posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhooks: Option<u32>,
    /// The content of records that are not archived, in bytes of JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
}

impl Quotas {
    /// Returns one of them.
    pub fn get(&self, name: QuotaName) -> Option<u64> {
        match name {
            QuotaName::Members => self.members.map(u64::from),
            QuotaName::ApiKeys => self.api_keys.map(u64::from),
            QuotaName::Webhooks => self.webhooks.map(u64::from),
            QuotaName::StorageBytes => self.storage_bytes,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something was added to what a quota counts, or taken from it, by the commit that this one was appended with. Only commits near a
/// limit are counted like this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaCounted {
    /// The quota.
    pub quota: QuotaName,
    /// What was added; below zero for what was taken.
    pub change: i64,
    /// The limit, while every commit has to be counted because it is near; none when that ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}
