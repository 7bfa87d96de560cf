//! The declarations of an organization's commands: their fields as they are received, and who may send them.

use std::num::NonZeroU32;

use orgstream_events::{AggregateId, OrgId, PlanName, Quotas, Slug, TenantType};
use serde::{Deserialize, Deserializer, Serialize, de::value::StrDeserializer};
use utoipa::ToSchema;

use crate::{About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant, openapi};

/// A new organization. The caller becomes its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrganization {
    /// Display name, 1 to 120 characters.
    #[serde(alias = "display_name")]
    #[schema(example = "Acme Corp", max_length = 120)]
    pub name: String,
    /// Name in URLs: 2 to 128 characters of a-z and 0-9, with single `-`, `.`, `_` or `~` between them. Unique over all
    /// organizations; some words are reserved.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// Type of tenant in any case of letters: `organization` by default, which may also be called `tenant`. A `personal` one is
    /// made at the first sign-in of its person.
    #[serde(default = "organization", deserialize_with = "tenant_type")]
    #[schema(schema_with = openapi::tenant_type_of_request)]
    pub tenant_type: TenantType,
    /// Id of the Auth0 organization to bind; without it one is made, where the platform has an Auth0 tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "org_9ybsU1dN2dKfDkBi")]
    pub auth0_organization_id: Option<String>,
}

impl Declared for CreateOrganization {
    const SPEC: CommandSpec = CommandSpec {
        name: "create_organization",
        requires: Requires::Person,
        events: &["organization.created", "organization.plan_changed", "organization.identity_linked", "member.added"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::New(|command| AggregateId::Organization(OrgId::derive(command)))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Parses a kind of tenant in its human-readable form.
pub fn tenant_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantType, D::Error> {
    let text = String::deserialize(deserializer)?.to_lowercase();
    let name = if text == "tenant" { "organization" } else { text.as_str() };
    TenantType::deserialize(StrDeserializer::<D::Error>::new(name))
}

/// The default tenant type.
pub fn organization() -> TenantType {
    TenantType::Organization
}

/// Other names. What is missing stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameOrganization {
    /// New display name, 1 to 120 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New name in URLs, as in creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slug: Option<Slug>,
}

impl Declared for RenameOrganization {
    const SPEC: CommandSpec = CommandSpec {
        name: "rename_organization",
        requires: Requires::Permission(Permission::ManageOrganization),
        events: &["organization.renamed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Makes of one person's own organization one that others can join. Its id, its data, its keys and its history stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeOrganization {
    /// New type of tenant; `organization` by default, which may also be called `tenant`.
    #[serde(default = "organization", deserialize_with = "tenant_type")]
    #[schema(schema_with = openapi::tenant_type_of_request)]
    pub tenant_type: TenantType,
}

impl Declared for UpgradeOrganization {
    const SPEC: CommandSpec = CommandSpec {
        name: "upgrade_organization",
        requires: Requires::Permission(Permission::ManageOrganization),
        events: &["organization.upgraded", "organization.identity_linked"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Suspends the organization: only the platform may act in it. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendOrganization {
    /// Reason for the members, 1 to 500 characters.
    pub reason: String,
}

impl Declared for SuspendOrganization {
    const SPEC: CommandSpec = CommandSpec {
        name: "suspend_organization",
        requires: Requires::Permission(Permission::Suspend),
        events: &["organization.suspended"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Ends a suspension. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeOrganization {
    /// Reason for the audit log, 1 to 500 characters.
    pub reason: String,
}

impl Declared for ResumeOrganization {
    const SPEC: CommandSpec = CommandSpec {
        name: "resume_organization",
        requires: Requires::Permission(Permission::Suspend),
        events: &["organization.resumed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Takes away what an organization asks of how people sign in, so that they can again: every way, and no second factor. For
/// platform operators, where an organization has locked itself out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSignIn {
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "ticket 4711: their issuer is gone")]
    pub reason: String,
}

impl Declared for RestoreSignIn {
    const SPEC: CommandSpec = CommandSpec {
        name: "restore_sign_in",
        requires: Requires::Permission(Permission::Suspend),
        events: &["organization.settings_changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: true,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    // No non-member gains access: the sign-in methods are those from before the organization restricted them.
    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Puts it on another plan. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePlan {
    /// Name of the plan: 1 to 63 characters of a-z, 0-9, - and _, beginning with a letter.
    #[schema(value_type = String, example = "enterprise")]
    pub plan: PlanName,
}

impl Declared for ChangePlan {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_plan",
        requires: Requires::Permission(Permission::ManagePlan),
        events: &["organization.plan_changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Gives it limits of its own. For platform operators.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLimits {
    /// Commands per second on average, from 1; ten seconds of that may come at once after a pause. Without it, or with null,
    /// the limit of the plan.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1, example = 50)]
    pub commands_per_second: Option<NonZeroU32>,
    /// Open holds of the account at the same time, from 1. Without it, or with null, the limit of the plan.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1, example = 20)]
    pub concurrency: Option<NonZeroU32>,
    /// Reads per second on average, from 1; ten seconds of that may come at once after a pause. Without it, or with null, the limit
    /// of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1, example = 200)]
    pub reads_per_second: Option<NonZeroU32>,
    /// Quotas; those that are absent are the limits of the plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::quotas)]
    pub quotas: Option<Quotas>,
}

impl Declared for ChangeLimits {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_limits",
        requires: Requires::Permission(Permission::ManagePlan),
        events: &["organization.limits_changed"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, org: OrgId) -> About {
        About::One(AggregateId::Organization(org))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Requests the deletion of the organization, for good. For owners who signed in a moment ago. At once nobody acts in it any more,
/// and its API keys end; until the grace period is over, an owner can cancel the deletion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestDeletion {
    /// Slug of the organization, typed as a confirmation.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
}

/// Cancels the deletion of the organization. API keys that it has ended stay ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelDeletion {}

macro_rules! deletions {
    ($($command:ident = $name:literal: $event:literal, $suspended:literal;)*) => {$(
        impl Declared for $command {
            const SPEC: CommandSpec = CommandSpec {
                name: $name,
                requires: Requires::Permission(Permission::DeleteOrganization),
                events: &[$event],
                creates: false,
                scope: Scope::Organization,
                while_suspended: $suspended,
                in_personal: true,
                gives_access: $suspended,
                hourly_limit: None,
            };

            fn about(&self, org: OrgId) -> About {
                About::One(AggregateId::Organization(org))
            }

            fn grants(&self) -> Vec<Grant> {
                Vec::new()
            }
        }
    )*};
}

deletions! {
    RequestDeletion = "request_deletion": "organization.deletion_requested", false;
    CancelDeletion = "cancel_deletion": "organization.deletion_cancelled", true;
}
