//! Events of an organization.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use serde::{Deserialize, Serialize};

use crate::{DomainName, LoginMethod, PlanName, Slug, codec::event_enum};

event_enum! {
    /// What happens to an organization as a whole.
    OrganizationEvent {
        Created(OrganizationCreated) = "organization.created", 1;
        Renamed(OrganizationRenamed) = "organization.renamed", 1;
        SettingsChanged(OrganizationSettingsChanged) = "organization.settings_changed", 1;
        Suspended(OrganizationSuspended) = "organization.suspended", 1;
        Resumed(OrganizationResumed) = "organization.resumed", 1;
        PlanChanged(OrganizationPlanChanged) = "organization.plan_changed", 1;
        LimitsChanged(OrganizationLimitsChanged) = "organization.limits_changed", 1;
        Upgraded(OrganizationUpgraded) = "organization.upgraded", 1;
        IdentityLinked(OrganizationIdentityLinked) = "organization.identity_linked", 1;
    }
}

/// What kind of tenant it is. All kinds are isolated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantType {
    /// One person's own.
    Personal,
    /// A company or another group of people.
    Organization,
    /// A team.
    Team,
    /// A workspace.
    Workspace,
}

/// A new organization. Its creator is added as the owner in the same atomic append.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationCreated {
    /// What people call it.
    pub name: String,
    /// Its name in URLs.
    pub slug: Slug,
    /// What kind of tenant.
    pub tenant_type: TenantType,
    /// Where its data lives.
    pub region: String,
}

/// New names; the id never changes, and an old slug goes on leading here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationRenamed {
    /// What people call it from now on.
    pub name: String,
    /// Its name in URLs from now on.
    pub slug: Slug,
}

/// All settings as they are from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationSettingsChanged {
    /// The settings.
    pub settings: OrganizationSettings,
    /// Why, where it was the platform's operator who changed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What an organization decides about itself. A field that is missing has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OrganizationSettings {
    /// The longest life of a new API key, in days; none means that keys need not expire.
    pub api_key_max_days: Option<u32>,
    /// Whether the keys that a member issued end when the member is removed.
    pub revoke_keys_on_creator_exit: bool,
    /// Whatever the customer wants to keep here.
    pub custom_metadata: BTreeMap<String, String>,
    // What is the default is not written, so that the bytes of older events stay what they are.
    /// Whether people become members by signing in.
    #[serde(skip_serializing_if = "is_default")]
    pub jit_provisioning: JitProvisioning,
    /// Who may be invited.
    #[serde(skip_serializing_if = "is_default")]
    pub invite_policy: InvitePolicy,
    /// Whose addresses may be invited, where that is restricted.
    #[serde(skip_serializing_if = "is_default")]
    pub allowed_domains: BTreeSet<DomainName>,
    /// How it looks.
    #[serde(skip_serializing_if = "is_default")]
    pub branding: Branding,
    /// How one may prove who one is; none means in every way that the platform knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_auth_methods: Option<BTreeSet<LoginMethod>>,
    /// Whether people need a second factor.
    #[serde(skip_serializing_if = "is_default")]
    pub mfa_policy: MfaPolicy,
    /// Where every event of the audit log is posted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_webhook: Option<String>,
}

impl Default for OrganizationSettings {
    fn default() -> Self {
        Self {
            api_key_max_days: None,
            // Whoever is removed must not stay by what they have left behind.
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
    /// No.
    #[default]
    Optional,
    /// Yes: their issuer must have asked for one when they signed in.
    Required,
}

/// Whether people become members by signing in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JitProvisioning {
    /// Nobody does.
    #[default]
    NotAllowed,
    /// Whoever has a verified address of a domain that the organization has proven to be its own.
    Restricted,
}

/// Who may be invited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitePolicy {
    /// Everybody.
    #[default]
    All,
    /// Addresses of the allowed domains.
    Restricted,
    /// Nobody.
    None,
}

/// How an organization looks to its members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Branding {
    /// Where its logo is: an `https` address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logo_url: Option<String>,
    /// Its colour, as `#rrggbb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_color: Option<String>,
    /// Where its members get help: an e-mail address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub support_email: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Nobody but the platform may act in the organization any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationSuspended {
    /// Why, in the operator's words.
    pub reason: String,
}

/// Everything works again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationResumed {
    /// Why, in the operator's words.
    pub reason: String,
}

/// It has booked something else. Without such an event it has the default plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationPlanChanged {
    /// The plan from now on.
    pub plan: PlanName,
}

/// All of its own limits as they are from now on. Without such an event it has those of its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationLimitsChanged {
    /// The limits.
    pub limits: OrganizationLimits,
}

/// How much an organization may do, where that is not what its plan says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationLimits {
    /// Commands a second, on average; none for what its plan says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands_per_second: Option<NonZeroU32>,
}

/// One person's own organization became one that others can join. Its id, its data and its keys stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganizationUpgraded {
    /// What kind of tenant it is from now on.
    pub tenant_type: TenantType,
}

/// An organization of an external identity provider stands for this one there. It is never deleted from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganizationIdentityLinked {
    /// Which provider.
    pub provider: String,
    /// The organization's id there.
    pub external_id: String,
}
