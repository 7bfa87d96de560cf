//! The organization itself: its names, its plan and limits, and whether it is suspended.
//!
//! A unique slug is a rule over all organizations, so it is no decision of this one: the handler claims the slug first and
//! then decides here.

use std::num::NonZeroU32;

use orgstream_events::{
    AggregateId, AggregateType, CURRENT_ORG, Event, MfaPolicy, OrgId, OrganizationCreated, OrganizationEvent,
    OrganizationIdentityLinked, OrganizationLimits, OrganizationLimitsChanged, OrganizationPlanChanged,
    OrganizationRenamed, OrganizationResumed, OrganizationSettings, OrganizationSettingsChanged, OrganizationSuspended,
    OrganizationUpgraded, PlanName, Slug, TenantType,
};
use serde::{Deserialize, Deserializer, Serialize, de::value::StrDeserializer};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope,
    grants::Grant,
    openapi,
    settings::{ChangeSettings, METADATA_LIMITS, SignInMethods},
    text::Faults,
};

/// Slugs that could be mistaken for something else: a part of this product's addresses, or a privileged party. An
/// organization that has one keeps it.
pub const RESERVED_SLUGS: [&str; 30] = [
    "account",
    "admin",
    "api",
    "app",
    "audit",
    "auth",
    "billing",
    "dashboard",
    "docs",
    "healthz",
    "help",
    "internal",
    "invitations",
    "login",
    "logout",
    "me",
    "metrics",
    "new",
    "null",
    "openapi.json",
    "orgstream",
    "platform",
    "root",
    "security",
    "session",
    "settings",
    "signup",
    "static",
    "support",
    "www",
];

/// The state of an organization. By default it does not exist yet.
#[derive(Debug, Clone, Default)]
pub struct Organization {
    profile: Option<Profile>,
}

/// The state of an existing organization.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The display name.
    pub name: String,
    /// Its name in URLs.
    pub slug: Slug,
    /// The kind of tenant.
    pub tenant_type: TenantType,
    /// The region of its data.
    pub region: String,
    /// Its own settings.
    pub settings: OrganizationSettings,
    /// Its plan.
    pub plan: PlanName,
    /// The limits that override its plan's.
    pub limits: OrganizationLimits,
    /// The id of its counterpart at an external identity provider.
    pub external_id: Option<String>,
    /// The reason for a suspension, which only the platform's commands pass, while there is one.
    pub suspended: Option<String>,
}

impl Organization {
    /// Returns the profile, once the organization exists.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Returns the reason for a suspension, which only the platform's commands pass, while there is one.
    pub fn suspended(&self) -> Option<&str> {
        self.profile.as_ref().and_then(|profile| profile.suspended.as_deref())
    }

    /// Refuses everything but the platform's own commands while the organization is suspended or does not exist.
    pub fn must_be_active(&self) -> Result<&Profile, OrganizationError> {
        match &self.profile {
            None => Err(OrganizationError::NotFound),
            Some(Profile { suspended: Some(reason), .. }) => Err(OrganizationError::Suspended(reason.clone())),
            Some(profile) => Ok(profile),
        }
    }
}

/// The commands of an organization.
#[derive(Debug, Clone, PartialEq)]
pub enum OrganizationCommand {
    /// Creates the organization.
    Create {
        /// The command as received.
        command: CreateOrganization,
        /// The region that the placement chose.
        region: String,
        /// Its counterpart at the external identity provider.
        identity: Option<ExternalIdentity>,
    },
    /// Changes the names.
    Rename(RenameOrganization),
    /// Changes the settings.
    ChangeSettings {
        /// The command as received.
        command: ChangeSettings,
        /// Whether addresses may be on this machine.
        local: bool,
        /// The known sign-in methods.
        methods: SignInMethods,
    },
    /// Restores sign-in for all members, by every method.
    RestoreSignIn(RestoreSignIn),
    /// Turns a personal organization into one that others can join.
    Upgrade {
        /// The command as received.
        command: UpgradeOrganization,
        /// Its counterpart at the external identity provider.
        identity: Option<ExternalIdentity>,
    },
    /// Suspends the organization.
    Suspend(SuspendOrganization),
    /// Ends the suspension.
    Resume(ResumeOrganization),
    /// Changes the plan.
    ChangePlan(ChangePlan),
    /// Changes the limits.
    ChangeLimits(ChangeLimits),
}

/// An organization of an external identity provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalIdentity {
    /// The provider's name.
    pub provider: String,
    /// The organization's id there.
    pub external_id: String,
}

impl From<ExternalIdentity> for OrganizationEvent {
    fn from(identity: ExternalIdentity) -> Self {
        let ExternalIdentity { provider, external_id } = identity;
        Self::IdentityLinked(OrganizationIdentityLinked { provider, external_id })
    }
}

/// A new organization. Whoever asks becomes its owner.
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
    #[schema(schema_with = openapi::tenant_type)]
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
        events: &["organization.created", "organization.identity_linked", "member.added"],
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
    /// New type of tenant; `organization` by default.
    #[serde(default = "organization")]
    #[schema(schema_with = openapi::tenant_type)]
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

/// Stops everybody but the platform. For platform operators.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeLimits {
    /// Commands per second on average, from 1; ten seconds of that may come at once after a pause. Without it, or with null,
    /// the limit of the plan.
    #[serde(default)]
    #[schema(value_type = Option<u32>, minimum = 1, example = 50)]
    pub commands_per_second: Option<NonZeroU32>,
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

impl Aggregate for Organization {
    type Command = OrganizationCommand;
    type Event = OrganizationEvent;
    type Error = OrganizationError;
    const TYPE: AggregateType = AggregateType::Organization;

    fn apply(&mut self, event: &OrganizationEvent) {
        if let OrganizationEvent::Created(event) = event {
            self.profile = Some(Profile {
                name: event.name.clone(),
                slug: event.slug.clone(),
                tenant_type: event.tenant_type,
                region: event.region.clone(),
                settings: OrganizationSettings::default(),
                plan: PlanName::default(),
                limits: OrganizationLimits::default(),
                external_id: None,
                suspended: None,
            });
        }
        let Some(profile) = &mut self.profile else { return };
        match event {
            OrganizationEvent::Created(_) => {}
            OrganizationEvent::Renamed(event) => {
                profile.name.clone_from(&event.name);
                profile.slug.clone_from(&event.slug);
            }
            OrganizationEvent::SettingsChanged(event) => profile.settings.clone_from(&event.settings),
            OrganizationEvent::Suspended(event) => profile.suspended = Some(event.reason.clone()),
            OrganizationEvent::Resumed(_) => profile.suspended = None,
            OrganizationEvent::PlanChanged(event) => profile.plan.clone_from(&event.plan),
            OrganizationEvent::LimitsChanged(event) => profile.limits.clone_from(&event.limits),
            OrganizationEvent::Upgraded(event) => profile.tenant_type = event.tenant_type,
            OrganizationEvent::IdentityLinked(event) => profile.external_id = Some(event.external_id.clone()),
        }
    }

    fn decide(
        &self,
        command: OrganizationCommand,
        _: &DecisionContext,
    ) -> Result<Vec<OrganizationEvent>, OrganizationError> {
        let mut faults = Faults::default();
        match &command {
            OrganizationCommand::Create { command, .. } => {
                faults.name("/name", &command.name);
                if command.tenant_type != TenantType::Personal {
                    not_reserved(&command.slug, &mut faults);
                }
                if let Some(id) = &command.auth0_organization_id {
                    let is_id =
                        |rest: &str| (1..=64).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric());
                    if !id.strip_prefix("org_").is_some_and(is_id) {
                        faults.add(
                            "/auth0_organization_id",
                            "id",
                            "must be org_ and letters and digits, as Auth0 has it",
                        );
                    } else if command.tenant_type == TenantType::Personal {
                        faults.add("/auth0_organization_id", "personal", "a personal organization has none there");
                    }
                }
            }
            OrganizationCommand::Rename(command) => {
                if let Some(name) = &command.name {
                    faults.name("/name", name);
                }
                // A slug that the organization has already stays valid, even if it was reserved since.
                if let Some(slug) = &command.slug
                    && self.profile.as_ref().is_none_or(|profile| profile.slug != *slug)
                {
                    not_reserved(slug, &mut faults);
                }
                if command.name.is_none() && command.slug.is_none() {
                    faults.add("/name", "required", "give a name or a slug");
                }
            }
            OrganizationCommand::ChangeSettings { command, local, methods } => {
                command.check(*local, methods, &mut faults);
            }
            OrganizationCommand::Suspend(SuspendOrganization { reason })
            | OrganizationCommand::Resume(ResumeOrganization { reason })
            | OrganizationCommand::RestoreSignIn(RestoreSignIn { reason }) => faults.reason("/reason", reason),
            OrganizationCommand::Upgrade { command, .. } => {
                if command.tenant_type == TenantType::Personal {
                    faults.add("/tenant_type", "personal", "must be organization, team or workspace");
                }
            }
            // The name of a plan and a limit are valid by their types.
            OrganizationCommand::ChangePlan(_) | OrganizationCommand::ChangeLimits(_) => {}
        }
        faults.none_or(OrganizationError::Invalid)?;
        match command {
            OrganizationCommand::Create { command, region, identity } => {
                if self.profile.is_some() {
                    return Err(OrganizationError::AlreadyExists);
                }
                let CreateOrganization { name, slug, tenant_type, auth0_organization_id: _ } = command;
                let created = OrganizationEvent::Created(OrganizationCreated { name, slug, tenant_type, region });
                Ok([created].into_iter().chain(identity.map(Into::into)).collect())
            }
            OrganizationCommand::Rename(command) => {
                let profile = self.must_be_active()?;
                let renamed = OrganizationRenamed {
                    name: command.name.unwrap_or_else(|| profile.name.clone()),
                    slug: command.slug.unwrap_or_else(|| profile.slug.clone()),
                };
                let unchanged = renamed.name == profile.name && renamed.slug == profile.slug;
                Ok(if unchanged { vec![] } else { vec![OrganizationEvent::Renamed(renamed)] })
            }
            OrganizationCommand::ChangeSettings { command, methods, .. } => {
                let profile = self.must_be_active()?;
                if profile.tenant_type == TenantType::Personal && command.is_about_others() {
                    return Err(OrganizationError::Personal);
                }
                let before = &profile.settings;
                let settings = command.applied_to(before.clone());
                if settings.custom_metadata.len() > METADATA_LIMITS.0 {
                    let mut faults = Faults::default();
                    faults.add(
                        "/custom_metadata",
                        "too_many",
                        format!("must leave at most {} keys", METADATA_LIMITS.0),
                    );
                    return Err(OrganizationError::Invalid(faults.into_vec()));
                }
                if !methods.stays_open(before, &settings) {
                    return Err(OrganizationError::LocksOut);
                }
                let changed = settings != *before;
                let event = OrganizationEvent::SettingsChanged(OrganizationSettingsChanged { settings, reason: None });
                Ok(if changed { vec![event] } else { vec![] })
            }
            OrganizationCommand::RestoreSignIn(RestoreSignIn { reason }) => {
                let before = &self.profile.as_ref().ok_or(OrganizationError::NotFound)?.settings;
                let settings = OrganizationSettings {
                    allowed_auth_methods: None,
                    mfa_policy: MfaPolicy::default(),
                    ..before.clone()
                };
                let changed = settings != *before;
                let settings = OrganizationSettingsChanged { settings, reason: Some(reason) };
                Ok(if changed { vec![OrganizationEvent::SettingsChanged(settings)] } else { vec![] })
            }
            OrganizationCommand::Upgrade { command: UpgradeOrganization { tenant_type }, identity } => {
                match self.must_be_active()?.tenant_type {
                    TenantType::Personal => {
                        let upgraded = OrganizationEvent::Upgraded(OrganizationUpgraded { tenant_type });
                        Ok([upgraded].into_iter().chain(identity.map(Into::into)).collect())
                    }
                    same if same == tenant_type => Ok(vec![]),
                    _ => Err(OrganizationError::NotPersonal),
                }
            }
            OrganizationCommand::Suspend(command) => {
                self.must_be_active()?;
                Ok(vec![OrganizationEvent::Suspended(OrganizationSuspended { reason: command.reason })])
            }
            OrganizationCommand::Resume(command) => match &self.profile {
                None => Err(OrganizationError::NotFound),
                Some(Profile { suspended: None, .. }) => Err(OrganizationError::NotSuspended),
                Some(_) => Ok(vec![OrganizationEvent::Resumed(OrganizationResumed { reason: command.reason })]),
            },
            OrganizationCommand::ChangePlan(ChangePlan { plan }) => match &self.profile {
                None => Err(OrganizationError::NotFound),
                Some(profile) if profile.plan == plan => Ok(vec![]),
                Some(_) => Ok(vec![OrganizationEvent::PlanChanged(OrganizationPlanChanged { plan })]),
            },
            OrganizationCommand::ChangeLimits(ChangeLimits { commands_per_second }) => {
                let profile = self.profile.as_ref().ok_or(OrganizationError::NotFound)?;
                let limits = OrganizationLimits { commands_per_second };
                let changed = profile.limits != limits;
                let event = OrganizationEvent::LimitsChanged(OrganizationLimitsChanged { limits });
                Ok(if changed { vec![event] } else { vec![] })
            }
        }
    }

    fn wrap(event: OrganizationEvent) -> Event {
        Event::Organization(event)
    }

    fn event_of(event: &Event) -> Option<&OrganizationEvent> {
        if let Event::Organization(event) = event { Some(event) } else { None }
    }
}

/// The prefix of the slug of every personal organization; the rest follows from its id, so it cannot be taken before.
pub const PERSONAL_SLUG: &str = "personal-";

/// Refuses reserved slugs.
fn not_reserved(slug: &Slug, faults: &mut Faults) {
    let name = slug.as_str();
    if name == CURRENT_ORG || name.starts_with(PERSONAL_SLUG) || RESERVED_SLUGS.contains(&name) {
        faults.add("/slug", "reserved", format!("{slug} is reserved: choose another one"));
    }
}

/// The reasons why an organization command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The organization was created before.
    #[error("the organization exists already; send a new command id to create another")]
    AlreadyExists,
    /// No organization was ever created under this id.
    #[error("there is no such organization")]
    NotFound,
    /// The organization is suspended for all but the platform.
    #[error("the organization is suspended ({0}); only the platform operator can resume it")]
    Suspended(String),
    /// There is no suspension to end.
    #[error("the organization is not suspended")]
    NotSuspended,
    /// The change could lock out everyone able to revert it.
    #[error(
        "this takes a way to sign in from people, or asks for a second factor: sign in as a person in a way that stays, and \
         with a second factor if it is to be required, and change it then"
    )]
    LocksOut,
    /// The organization is personal.
    #[error("this is a personal organization, which is one person's alone: upgrade it first (upgrade_organization)")]
    Personal,
    /// The organization is not personal.
    #[error("only a personal organization can be upgraded; this one is for several people already")]
    NotPersonal,
}

impl From<OrganizationError> for Rejection {
    fn from(error: OrganizationError) -> Self {
        let (kind, code) = match error {
            OrganizationError::Invalid(errors) => return Self::invalid(errors),
            OrganizationError::AlreadyExists => (RejectionKind::Conflict, "organization_exists"),
            OrganizationError::NotFound => (RejectionKind::NotFound, "not_found"),
            OrganizationError::Suspended(_) => (RejectionKind::Forbidden, "organization_suspended"),
            OrganizationError::NotSuspended => (RejectionKind::Conflict, "organization_not_suspended"),
            OrganizationError::LocksOut => (RejectionKind::Conflict, "would_lock_out"),
            OrganizationError::Personal => (RejectionKind::Conflict, "personal_organization"),
            OrganizationError::NotPersonal => (RejectionKind::Conflict, "not_a_personal_organization"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use orgstream_events::{Branding, ConnectionId, LoginMethod, MfaPolicy};
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given, rejection};

    fn create(name: &str) -> OrganizationCommand {
        let (name, slug) = (name.to_owned(), "acme".parse().unwrap());
        let command = CreateOrganization { name, slug, tenant_type: organization(), auth0_organization_id: None };
        OrganizationCommand::Create { command, region: "local".to_owned(), identity: None }
    }

    fn created() -> OrganizationEvent {
        OrganizationEvent::Created(OrganizationCreated {
            name: "Acme".to_owned(),
            slug: "acme".parse().unwrap(),
            tenant_type: TenantType::Organization,
            region: "local".to_owned(),
        })
    }

    fn suspended() -> OrganizationEvent {
        OrganizationEvent::Suspended(OrganizationSuspended { reason: "unpaid".to_owned() })
    }

    fn settings_by(patch: serde_json::Value, by: Option<(LoginMethod, bool)>) -> OrganizationCommand {
        let methods = SignInMethods { connections: [sso()].into(), by };
        OrganizationCommand::ChangeSettings { command: serde_json::from_value(patch).unwrap(), local: false, methods }
    }

    /// The one connection of the organization.
    fn sso() -> LoginMethod {
        LoginMethod::sso(ConnectionId::fresh(1, [5; 10]))
    }

    fn settings(patch: serde_json::Value) -> OrganizationCommand {
        settings_by(patch, Some((LoginMethod::oidc(), true)))
    }

    fn settings_changed(api_key_max_days: Option<u32>, metadata: &[(&str, &str)]) -> OrganizationEvent {
        let custom_metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        OrganizationEvent::SettingsChanged(OrganizationSettingsChanged {
            settings: OrganizationSettings { api_key_max_days, custom_metadata, ..OrganizationSettings::default() },
            reason: None,
        })
    }

    #[test]
    fn an_organization_begins_with_its_names() {
        assert_eq!(given::<Organization>(&[]).when(create("Acme")), Ok(vec![created()]));
    }

    #[test]
    fn the_type_is_organization_unless_said_otherwise() {
        let command: CreateOrganization = serde_json::from_value(json!({"name": "Acme", "slug": "acme"})).unwrap();
        assert_eq!(command.tenant_type, TenantType::Organization);
    }

    #[test]
    fn what_stands_for_it_elsewhere_is_linked_in_the_same_commit() {
        let OrganizationCommand::Create { command, region, .. } = create("Acme") else { unreachable!() };
        let identity = ExternalIdentity { provider: "auth0".to_owned(), external_id: "org_x1".to_owned() };
        let create = |command, identity| OrganizationCommand::Create { command, region: region.clone(), identity };
        let linked = OrganizationEvent::from(identity.clone());
        let decided = given::<Organization>(&[]).when(create(command.clone(), Some(identity.clone())));
        assert_eq!(decided, Ok(vec![created(), linked.clone()]));
        let upgrade = OrganizationCommand::Upgrade {
            command: UpgradeOrganization { tenant_type: TenantType::Team },
            identity: Some(identity),
        };
        let decided = given::<Organization>(&[personal()]).when(upgrade).unwrap();
        assert_eq!(decided[1], linked);
        for bad in ["", "org_", "x", "org_a b"] {
            let command = CreateOrganization { auth0_organization_id: Some(bad.to_owned()), ..command.clone() };
            let found = fields(given::<Organization>(&[]).when(create(command, None)));
            assert_eq!(found[0].0, "/auth0_organization_id", "{bad}");
        }
    }

    #[test]
    fn nobody_takes_a_way_in_that_they_could_not_give_back() {
        let active = given::<Organization>(&[created()]);
        let (oidc, key) = (LoginMethod::oidc(), LoginMethod::api_key());
        let only_sso = json!({"allowed_auth_methods": [sso()]});
        let required = json!({"mfa_policy": "required"});
        let refused = |patch: &serde_json::Value, by| rejection(active.when(settings_by(patch.clone(), by))).code;
        for by in [None, Some((key.clone(), false)), Some((oidc.clone(), true))] {
            assert_eq!(refused(&only_sso, by), "would_lock_out");
        }
        for by in [None, Some((key.clone(), false)), Some((oidc.clone(), false)), Some((sso(), false))] {
            assert_eq!(refused(&required, by), "would_lock_out");
        }
        assert!(active.when(settings_by(only_sso.clone(), Some((sso(), false)))).is_ok());
        assert!(active.when(settings_by(required, Some((oidc.clone(), true)))).is_ok());
        // A change that keeps all sign-in methods is open to every principal that may change settings.
        let open = json!({"allowed_auth_methods": [sso(), "oidc", "api_key"]});
        let [event] = active.when(settings_by(open, Some((oidc, false)))).unwrap().try_into().unwrap();
        let narrow = given::<Organization>(&[created(), event.clone()]);
        let without_keys = json!({"allowed_auth_methods": [sso(), "oidc"], "api_key_max_days": 9});
        assert!(narrow.when(settings_by(without_keys, Some((key, false)))).is_ok());
        let foreign = json!({"allowed_auth_methods": [LoginMethod::sso(ConnectionId::fresh(1, [6; 10])), "oidc"]});
        let found = fields(active.when(settings_by(foreign, Some((sso(), true)))));
        assert_eq!(found, [("/allowed_auth_methods".to_owned(), "unknown_connection".to_owned())]);
        // And the platform's operator restores sign-in, whatever was left.
        let restore = || OrganizationCommand::RestoreSignIn(RestoreSignIn { reason: "ticket 4711".to_owned() });
        let restored = narrow.when(restore()).unwrap();
        let [OrganizationEvent::SettingsChanged(after)] = restored.as_slice() else { panic!("{restored:?}") };
        assert_eq!(
            (after.settings.allowed_auth_methods.as_ref(), after.reason.as_deref()),
            (None, Some("ticket 4711"))
        );
        assert_eq!(active.when(restore()), Ok(vec![]));
    }

    #[test]
    fn it_cannot_be_created_twice() {
        let refused = rejection(given::<Organization>(&[created()]).when(create("Acme")));
        assert_eq!((refused.code, refused.kind.status()), ("organization_exists", 409));
    }

    #[test]
    fn an_empty_name_is_refused_with_a_pointer() {
        let found = fields(given::<Organization>(&[]).when(create("  ")));
        assert_eq!(found, [("/name".to_owned(), "too_short".to_owned())]);
    }

    #[test]
    fn s5_8_a_type_of_tenant_has_two_names_in_any_case() {
        for (text, wanted) in [
            ("tenant", TenantType::Organization),
            ("ORGANIZATION", TenantType::Organization),
            ("Team", TenantType::Team),
            ("workspace", TenantType::Workspace),
        ] {
            let command = serde_json::from_value(json!({"name": "Acme", "slug": "acme", "tenant_type": text}));
            let command: CreateOrganization = command.unwrap();
            assert_eq!(command.tenant_type, wanted, "{text}");
        }
        let unknown = json!({"name": "Acme", "slug": "acme", "tenant_type": "club"});
        assert!(serde_json::from_value::<CreateOrganization>(unknown).unwrap_err().to_string().contains("club"));
    }

    #[test]
    fn a_slug_that_means_something_else_is_refused() {
        for slug in ["current", "personal-x"] {
            let slug: Slug = slug.parse().unwrap();
            let rename = OrganizationCommand::Rename(RenameOrganization { slug: Some(slug.clone()), name: None });
            let reserved = [("/slug".to_owned(), "reserved".to_owned())];
            assert_eq!(fields(given::<Organization>(&[created()]).when(rename)), reserved);
            let OrganizationCommand::Create { mut command, region, .. } = create("Acme") else { unreachable!() };
            command.slug = slug;
            let begin =
                OrganizationCommand::Create { command: command.clone(), region: region.clone(), identity: None };
            assert_eq!(fields(given::<Organization>(&[]).when(begin)), reserved);
            command.tenant_type = TenantType::Personal;
            assert!(
                given::<Organization>(&[])
                    .when(OrganizationCommand::Create { command, region, identity: None })
                    .is_ok()
            );
        }
    }

    #[test]
    fn nobody_locks_all_people_out() {
        let none = settings(json!({"allowed_auth_methods": ["api_key"]}));
        let refused = [("/allowed_auth_methods".to_owned(), "no_way_for_people".to_owned())];
        assert_eq!(fields(given::<Organization>(&[created()]).when(none)), refused);
        let changed = given::<Organization>(&[created()])
            .when(settings(json!({"allowed_auth_methods": ["oidc"], "mfa_policy": "required"})))
            .unwrap();
        let OrganizationEvent::SettingsChanged(event) = &changed[0] else { panic!("{changed:?}") };
        assert_eq!(event.settings.allowed_auth_methods, Some([LoginMethod::oidc()].into()));
        assert_eq!(event.settings.mfa_policy, MfaPolicy::Required);
        let mut after = vec![created()];
        after.extend(changed);
        let back = settings(json!({"allowed_auth_methods": null, "mfa_policy": "optional"}));
        let OrganizationEvent::SettingsChanged(event) = &given::<Organization>(&after).when(back).unwrap()[0] else {
            panic!()
        };
        assert_eq!(event.settings, OrganizationSettings::default());
    }

    #[test]
    fn a_rename_keeps_what_it_does_not_mention() {
        let rename = RenameOrganization { slug: Some("acme-2".parse().unwrap()), name: None };
        let renamed = OrganizationRenamed { name: "Acme".to_owned(), slug: "acme-2".parse().unwrap() };
        assert_eq!(
            given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)),
            Ok(vec![OrganizationEvent::Renamed(renamed)])
        );
    }

    #[test]
    fn a_rename_to_the_same_names_changes_nothing() {
        let rename = RenameOrganization { name: Some("Acme".to_owned()), slug: None };
        assert_eq!(given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)), Ok(vec![]));
    }

    #[test]
    fn a_rename_to_nothing_is_refused() {
        let rename = OrganizationCommand::Rename(RenameOrganization::default());
        assert_eq!(fields(given::<Organization>(&[created()]).when(rename))[0].1, "required");
    }

    #[test]
    fn settings_that_are_not_mentioned_stay() {
        let before = settings_changed(Some(90), &[("crm", "42"), ("tier", "gold")]);
        let change = settings(json!({"custom_metadata": {"tier": null, "city": "Oslo"}}));
        assert_eq!(
            given::<Organization>(&[created(), before]).when(change),
            Ok(vec![settings_changed(Some(90), &[("city", "Oslo"), ("crm", "42")])])
        );
    }

    #[test]
    fn a_null_takes_a_setting_away() {
        let before = settings_changed(Some(90), &[]);
        let change = settings(json!({"api_key_max_days": null}));
        assert_eq!(
            given::<Organization>(&[created(), before.clone()]).when(change),
            Ok(vec![settings_changed(None, &[])])
        );
        assert_eq!(given::<Organization>(&[created(), before]).when(settings(json!({}))), Ok(vec![]));
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = serde_json::from_value::<ChangeSettings>(json!({"apikeymaxdays": 3})).unwrap_err();
        assert!(error.to_string().contains("unknown field"), "{error}");
    }

    fn personal() -> OrganizationEvent {
        let OrganizationEvent::Created(created) = created() else { unreachable!() };
        OrganizationEvent::Created(OrganizationCreated { tenant_type: TenantType::Personal, ..created })
    }

    fn upgrade(to: TenantType) -> OrganizationCommand {
        OrganizationCommand::Upgrade { command: UpgradeOrganization { tenant_type: to }, identity: None }
    }

    #[test]
    fn a_personal_organization_is_upgraded_once() {
        let upgraded = OrganizationEvent::Upgraded(OrganizationUpgraded { tenant_type: TenantType::Team });
        assert_eq!(given::<Organization>(&[personal()]).when(upgrade(TenantType::Team)), Ok(vec![upgraded.clone()]));
        let team = given::<Organization>(&[personal(), upgraded]);
        assert_eq!(team.when(upgrade(TenantType::Team)), Ok(vec![]));
        assert_eq!(rejection(team.when(upgrade(TenantType::Workspace))).code, "not_a_personal_organization");
        let found = fields(given::<Organization>(&[personal()]).when(upgrade(TenantType::Personal)));
        assert_eq!(found[0].0, "/tenant_type");
    }

    #[test]
    fn what_is_about_others_is_refused_to_a_personal_organization() {
        let organization = given::<Organization>(&[personal()]);
        for change in [
            json!({"branding": {"primary_color": "#0a84ff"}}),
            json!({"invite_policy": "none"}),
            json!({"jit_provisioning": "restricted"}),
            json!({"allowed_domains": ["acme.example"]}),
        ] {
            assert_eq!(rejection(organization.when(settings(change))).code, "personal_organization");
        }
        assert!(organization.when(settings(json!({"api_key_max_days": 3}))).is_ok());
    }

    #[test]
    fn branding_is_changed_field_by_field() {
        let organization = given::<Organization>(&[created()]);
        let first = settings(json!({"branding": {"primary_color": "#0a84ff", "support_email": "help@acme.example"}}));
        let Ok(events) = organization.when(first) else { panic!() };
        let cleared = settings(json!({"branding": {"support_email": null}}));
        let after = given::<Organization>(&[&[created()], events.as_slice()].concat()).when(cleared).unwrap();
        let [OrganizationEvent::SettingsChanged(after)] = after.as_slice() else { panic!("{after:?}") };
        let expected = Branding { primary_color: Some("#0a84ff".to_owned()), ..Branding::default() };
        assert_eq!(after.settings.branding, expected);
        let bad = json!({"branding": {"logo_url": "http://x", "primary_color": "blue", "support_email": "x"}});
        assert_eq!(fields(organization.when(settings(bad))).len(), 3);
    }

    #[test]
    fn s4_11_reserved_slugs_are_refused_and_existing_ones_kept() {
        let admin = || "admin".parse::<Slug>().unwrap();
        let OrganizationCommand::Create { command, region, identity } = create("Acme") else { unreachable!() };
        let command = CreateOrganization { slug: admin(), ..command };
        let create = OrganizationCommand::Create { command, region, identity };
        assert_eq!(fields(given::<Organization>(&[]).when(create)), [("/slug".to_owned(), "reserved".to_owned())]);
        let OrganizationEvent::Created(before) = created() else { unreachable!() };
        let old = OrganizationEvent::Created(OrganizationCreated { slug: admin(), ..before });
        let rename = RenameOrganization { name: Some("New".to_owned()), slug: Some(admin()) };
        assert!(given::<Organization>(&[old]).when(OrganizationCommand::Rename(rename.clone())).is_ok());
        assert!(given::<Organization>(&[created()]).when(OrganizationCommand::Rename(rename)).is_err());
    }

    #[test]
    fn metadata_is_bounded() {
        let organization = given::<Organization>(&[created()]);
        let many: BTreeMap<_, _> = (0..51).map(|n| (n.to_string(), "x")).collect();
        assert_eq!(fields(organization.when(settings(json!({"custom_metadata": many}))))[0].1, "too_many");
        let long = json!({"custom_metadata": {"k".repeat(41): "x", "a/b": "v".repeat(501)}});
        let found = fields(organization.when(settings(long)));
        assert_eq!(found[0], ("/custom_metadata/a~1b".to_owned(), "too_long".to_owned()));
        assert_eq!(found.len(), 2);
        assert_eq!(
            fields(organization.when(settings(json!({"custom_metadata": {"k": "\0"}}))))[0].1,
            "control_character"
        );
    }

    #[test]
    fn the_life_of_keys_has_bounds() {
        for days in [0, 3651] {
            let change = settings(json!({"api_key_max_days": days}));
            assert_eq!(fields(given::<Organization>(&[created()]).when(change))[0].0, "/api_key_max_days");
        }
    }

    #[test]
    fn a_suspended_organization_cannot_be_changed() {
        let refused = rejection(given::<Organization>(&[created(), suspended()]).when(settings(json!({}))));
        assert_eq!((refused.code, refused.kind.status()), ("organization_suspended", 403));
        assert!(refused.detail.contains("unpaid"), "{refused}");
    }

    #[test]
    fn a_resumed_organization_works_again() {
        let resumed = OrganizationEvent::Resumed(OrganizationResumed { reason: "paid".to_owned() });
        let resume = OrganizationCommand::Resume(ResumeOrganization { reason: "paid".to_owned() });
        assert_eq!(given::<Organization>(&[created(), suspended()]).when(resume.clone()), Ok(vec![resumed.clone()]));
        assert!(given::<Organization>(&[created(), suspended(), resumed]).0.must_be_active().is_ok());
        assert_eq!(rejection(given::<Organization>(&[created()]).when(resume)).code, "organization_not_suspended");
    }

    fn change_plan(plan: &str) -> OrganizationCommand {
        OrganizationCommand::ChangePlan(ChangePlan { plan: plan.parse().unwrap() })
    }

    #[test]
    fn a_plan_is_changed_once() {
        let changed = OrganizationEvent::PlanChanged(OrganizationPlanChanged { plan: "enterprise".parse().unwrap() });
        assert_eq!(given::<Organization>(&[created()]).when(change_plan("enterprise")), Ok(vec![changed.clone()]));
        assert_eq!(given::<Organization>(&[created(), changed.clone()]).when(change_plan("enterprise")), Ok(vec![]));
        assert!(
            given::<Organization>(&[created(), changed]).when(change_plan("standard")).is_ok_and(|all| all.len() == 1)
        );
        assert_eq!(given::<Organization>(&[created()]).when(change_plan("standard")), Ok(vec![]));
    }

    #[test]
    fn limits_are_its_own_or_those_of_its_plan() {
        let change =
            |rate| OrganizationCommand::ChangeLimits(ChangeLimits { commands_per_second: NonZeroU32::new(rate) });
        let changed = |rate| {
            let limits = OrganizationLimits { commands_per_second: NonZeroU32::new(rate) };
            OrganizationEvent::LimitsChanged(OrganizationLimitsChanged { limits })
        };
        assert_eq!(given::<Organization>(&[created()]).when(change(50)), Ok(vec![changed(50)]));
        assert_eq!(given::<Organization>(&[created(), suspended()]).when(change(50)), Ok(vec![changed(50)]));
        assert_eq!(given::<Organization>(&[created(), changed(50)]).when(change(50)), Ok(vec![]));
        assert_eq!(given::<Organization>(&[created(), changed(50)]).when(change(0)), Ok(vec![changed(0)]));
        assert_eq!(given::<Organization>(&[created()]).when(change(0)), Ok(vec![]));
        assert_eq!(rejection(given::<Organization>(&[]).when(change(50))).code, "not_found");
    }

    #[test]
    fn what_an_organization_has_booked_can_change_while_it_is_suspended() {
        let changed = given::<Organization>(&[created(), suspended()]).when(change_plan("enterprise"));
        assert!(changed.is_ok_and(|events| events.len() == 1));
        assert_eq!(rejection(given::<Organization>(&[]).when(change_plan("enterprise"))).code, "not_found");
    }

    #[test]
    fn nothing_can_be_asked_of_an_organization_that_does_not_exist() {
        let suspend = OrganizationCommand::Suspend(SuspendOrganization { reason: "x".to_owned() });
        assert_eq!(rejection(given::<Organization>(&[]).when(suspend)).code, "not_found");
    }
}
