//! Events of an organization.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use serde::{Deserialize, Serialize};

use crate::{DomainName, LoginMethod, PlanName, Quotas, Slug, Timestamp, codec::event_enum};

event_enum! {
    /// The events of an organization as a whole.
    OrganizationEvent about aggregate {
        Created(OrganizationCreated) = "organization.created", 1;
        Renamed(OrganizationRenamed) = "organization.renamed", 1;
        SettingsChanged(OrganizationSettingsChanged) = "organization.settings_changed", 1;
        Suspended(OrganizationSuspended) = "organization.suspended", 1;
        Resumed(OrganizationResumed) = "organization.resumed", 1;
        PlanChanged(OrganizationPlanChanged) = "organization.plan_changed", 1;
        LimitsChanged(OrganizationLimitsChanged) = "organization.limits_changed", 1;
        Upgraded(OrganizationUpgraded) = "organization.upgraded", 1;
        IdentityLinked(OrganizationIdentityLinked) = "organization.identity_linked", 1;
        DeletionRequested(OrganizationDeletionRequested) = "organization.deletion_requested", 1;
        DeletionCancelled(OrganizationDeletionCancelled) = "organization.deletion_cancelled", 1;
        Sealed(OrganizationSealed) = "organization.sealed", 1;
    }
}

/// The kind of tenant. All kinds are isolated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantType {
    /// A single person.
    Personal,
    /// A company or another group of people.
    Organization,
    /// A team.
    Team,
    /// A workspace.
    Workspace,
}

/// An organization was created. Its creator is added as the owner in the same atomic append.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationCreated {
    /// The display name.
    pub name: String,
    /// Its name in URLs.
    pub slug: Slug,
    /// The kind of tenant.
    pub tenant_type: TenantType,
    /// The region of its data.
    pub region: String,
}

/// The names changed; the id never does, and an old slug still resolves to the organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationRenamed {
    /// The display name from now on.
    pub name: String,
    /// Its name in URLs from now on.
    pub slug: Slug,
}

/// The settings changed; the event has all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationSettingsChanged {
    /// The settings.
    pub settings: OrganizationSettings,
    /// The reason, where the platform's operator changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The settings of an organization. A missing field has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrganizationSettings {
    /// The longest lifetime of a new API key, in days; none means that keys need not expire.
    pub api_key_max_days: Option<u32>,
    /// Whether the keys that a member issued end when the member is removed.
    pub revoke_keys_on_creator_exit: bool,
    /// Arbitrary data of the customer.
    pub custom_metadata: BTreeMap<String, String>,
    // Defaults are not serialized, so that the bytes of older events stay the same.
    /// Whether sign-in creates members.
    #[serde(skip_serializing_if = "is_default")]
    pub jit_provisioning: JitProvisioning,
    /// The policy on who may be invited.
    #[serde(skip_serializing_if = "is_default")]
    pub invite_policy: InvitePolicy,
    /// The domains of permitted addresses, where invitations are restricted.
    #[serde(skip_serializing_if = "is_default")]
    pub allowed_domains: BTreeSet<DomainName>,
    /// The branding.
    #[serde(skip_serializing_if = "is_default")]
    pub branding: Branding,
    /// The allowed sign-in methods; none means all that the platform knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_auth_methods: Option<BTreeSet<LoginMethod>>,
    /// Whether people need a second factor.
    #[serde(skip_serializing_if = "is_default")]
    pub mfa_policy: MfaPolicy,
    /// The URL that every event of the audit log is posted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_webhook: Option<String>,
}

impl Default for OrganizationSettings {
    fn default() -> Self {
        Self {
            api_key_max_days: None,
            // A removed member must not keep access by the keys left behind.
            revoke_keys_on_creator_exit: true,
            custom_metadata: BTreeMap::new(),
            jit_provisioning: JitProvisioning::default(),
            invite_policy: InvitePolicy::default(),
            allowed_domains: BTreeSet::new(),
            branding: Branding::default(),
            allowed_auth_methods: None,
            mfa_policy: MfaPolicy::default(),
            audit_webhook: None,
        }
    }
}

/// Whether people need a second factor to act in the organization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MfaPolicy {
    /// Not required.
    #[default]
    Optional,
    /// Required: the person's issuer must have requested one at sign-in.
    Required,
}

/// Whether sign-in creates members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JitProvisioning {
    /// Sign-in creates no members.
    #[default]
    NotAllowed,
    /// Sign-in creates a member if the person has a verified address of a domain that the organization has proven.
    Restricted,
}

/// The policy on who may be invited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitePolicy {
    /// All addresses.
    #[default]
    All,
    /// Addresses of the allowed domains.
    Restricted,
    /// No address.
    None,
}

/// The branding that members see.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Branding {
    /// The URL of its logo: an `https` address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
    /// Its colour, as `#rrggbb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_color: Option<String>,
    /// The e-mail address of its support.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub support_email: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The organization was suspended: only the platform may act in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationSuspended {
    /// The reason, in the operator's words.
    pub reason: String,
}

/// The suspension ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationResumed {
    /// The reason, in the operator's words.
    pub reason: String,
}

/// The plan changed. Without such an event the organization has the default plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationPlanChanged {
    /// The plan from now on.
    pub plan: PlanName,
}

/// The organization's own limits changed; the event has all of them. Without such an event it has those of its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationLimitsChanged {
    /// The limits.
    pub limits: OrganizationLimits,
}

/// The limits that override the plan's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationLimits {
    /// Commands per second, on average; none means the plan's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands_per_second: Option<NonZeroU32>,
    /// Open holds of the account at the same time; none means the plan's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU32>,
    /// Reads per second, on average; none means the plan's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_per_second: Option<NonZeroU32>,
    /// What there may be of things that stay; what is absent is the plan's limit.
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
}

/// A personal organization became one that others can join. Its id, its data and its keys stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationUpgraded {
    /// The kind of tenant from now on.
    pub tenant_type: TenantType,
}

/// The organization was linked to its counterpart at an external identity provider, which is never deleted from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationIdentityLinked {
    /// The provider's name.
    pub provider: String,
    /// The organization's id there.
    pub external_id: String,
}

/// An owner requested the deletion. From now on nobody acts in the organization but the platform, and its API keys have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationDeletionRequested {
    /// When the grace period ends, and the deletion is carried out.
    pub grace_until: Timestamp,
}

/// The deletion was cancelled: people act in the organization again. API keys that have ended stay ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationDeletionCancelled {}

/// The organization ended: its last event. Nothing that comes after it in its log counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationSealed {}
