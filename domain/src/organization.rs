//! The organization itself: its names, its plan and limits, and whether it is suspended.
//!
//! A unique slug is a rule over all organizations, so it is no decision of this one: the handler claims the slug first and
//! then decides here.

mod commands;
#[cfg(test)]
mod tests;

use orgstream_events::{
    AggregateType, CURRENT_ORG, Event, MfaPolicy, OrgId, OrganizationCreated, OrganizationDeletionCancelled,
    OrganizationDeletionRequested, OrganizationEvent, OrganizationIdentityLinked, OrganizationLimits,
    OrganizationLimitsChanged, OrganizationPlanChanged, OrganizationRenamed, OrganizationResumed, OrganizationSealed,
    OrganizationSettings, OrganizationSettingsChanged, OrganizationSuspended, OrganizationUpgraded, PLATFORM_ORG,
    PlanName, QuotaName, Role, Slug, TenantType, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    Aggregate, DecisionContext, FieldError, Place, Rejection, RejectionKind,
    quota::{OverQuota, QuotaLimit},
    settings::{ChangeSettings, METADATA_LIMITS, SignInMethods},
    text::Faults,
};

pub use commands::{
    CancelDeletion, ChangeLimits, ChangePlan, CreateOrganization, RenameOrganization, RequestDeletion, RestoreSignIn,
    ResumeOrganization, SuspendOrganization, UpgradeOrganization, organization, tenant_type,
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Organization {
    profile: Option<Profile>,
}

/// The state of an existing organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// When it was put on the plan.
    pub plan_since: Timestamp,
    /// The limits that override its plan's.
    pub limits: OrganizationLimits,
    /// The id of its counterpart at an external identity provider.
    pub external_id: Option<String>,
    /// The reason for a suspension, which only the platform's commands pass, while there is one.
    pub suspended: Option<String>,
    /// The deletion that was requested and not cancelled.
    pub deletion: Option<Deletion>,
    /// When all API keys of that time ended, for good: when a deletion was last requested.
    pub keys_ended_at: Option<Timestamp>,
}

/// A deletion that was requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was requested.
    pub requested_at: Timestamp,
    /// Who requested it: the id of a member.
    pub requested_by: String,
    /// When it is carried out.
    pub grace_until: Timestamp,
    /// When the organization ended, if it has.
    pub sealed_at: Option<Timestamp>,
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

    /// Whether a key that was issued then has ended because a deletion was requested later.
    pub fn has_ended_key_of(&self, issued_at: Option<Timestamp>) -> bool {
        let ended_at = self.profile.as_ref().and_then(|profile| profile.keys_ended_at);
        issued_at.is_some_and(|issued_at| ended_at.is_some_and(|ended_at| issued_at <= ended_at))
    }

    /// Whether it has ended: nobody acts in it any more, the platform neither.
    pub fn is_sealed(&self) -> bool {
        self.profile.as_ref().and_then(|profile| profile.deletion.as_ref()).is_some_and(|one| one.sealed_at.is_some())
    }

    /// Refuses everything but the platform's own commands while the organization is suspended, being deleted, or does not
    /// exist.
    pub fn must_be_active(&self) -> Result<&Profile, OrganizationError> {
        match &self.profile {
            None => Err(OrganizationError::NotFound),
            Some(Profile { deletion: Some(Deletion { sealed_at: Some(_), .. }), .. }) => {
                Err(OrganizationError::Deleted)
            }
            Some(Profile { deletion: Some(_), .. }) => Err(OrganizationError::BeingDeleted),
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
        /// The most webhooks.
        webhooks: Option<QuotaLimit>,
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
    /// Requests its deletion.
    RequestDeletion {
        /// The command as received.
        command: RequestDeletion,
        /// The caller's role.
        by: Role,
        /// The grace period, in milliseconds.
        grace_ms: i64,
    },
    /// Cancels its deletion.
    CancelDeletion,
    /// Ends it, once its grace period is over.
    Seal,
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

impl Aggregate for Organization {
    type Command = OrganizationCommand;
    type Event = OrganizationEvent;
    type Error = OrganizationError;
    const TYPE: AggregateType = AggregateType::Organization;
    const SHAPE: u16 = 3;

    fn apply(&mut self, event: &OrganizationEvent) {
        if let OrganizationEvent::Created(event) = event {
            self.profile = Some(Profile {
                name: event.name.clone(),
                slug: event.slug.clone(),
                tenant_type: event.tenant_type,
                region: event.region.clone(),
                settings: OrganizationSettings::default(),
                plan: PlanName::default(),
                plan_since: Timestamp::default(),
                limits: OrganizationLimits::default(),
                external_id: None,
                suspended: None,
                deletion: None,
                keys_ended_at: None,
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
            OrganizationEvent::DeletionRequested(event) => {
                profile.deletion = Some(Deletion {
                    requested_at: Timestamp::default(),
                    requested_by: String::new(),
                    grace_until: event.grace_until,
                    sealed_at: None,
                });
            }
            OrganizationEvent::DeletionCancelled(_) => profile.deletion = None,
            OrganizationEvent::Sealed(_) => {
                if let Some(deletion) = &mut profile.deletion {
                    deletion.sealed_at = Some(Timestamp::default());
                }
            }
        }
    }

    fn apply_at(&mut self, event: &OrganizationEvent, place: Place<'_>) {
        self.apply(event);
        let Some(profile) = &mut self.profile else { return };
        match (event, &mut profile.deletion) {
            (OrganizationEvent::Created(_) | OrganizationEvent::PlanChanged(_), _) => {
                profile.plan_since = place.recorded_at;
            }
            (OrganizationEvent::DeletionRequested(_), Some(deletion)) => {
                deletion.requested_at = place.recorded_at;
                deletion.requested_by.clone_from(&place.actor.id);
                profile.keys_ended_at = Some(place.recorded_at);
            }
            (OrganizationEvent::Sealed(_), Some(deletion)) => deletion.sealed_at = Some(place.recorded_at),
            _ => {}
        }
    }

    fn decide(
        &self,
        command: OrganizationCommand,
        context: &DecisionContext,
    ) -> Result<Vec<OrganizationEvent>, OrganizationError> {
        if self.is_sealed() && command != OrganizationCommand::Seal {
            return Err(OrganizationError::Deleted);
        }
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
            OrganizationCommand::ChangeSettings { command, local, methods, webhooks: _ } => {
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
            OrganizationCommand::ChangePlan(_)
            | OrganizationCommand::ChangeLimits(_)
            | OrganizationCommand::RequestDeletion { .. }
            | OrganizationCommand::CancelDeletion
            | OrganizationCommand::Seal => {}
        }
        faults.none_or(OrganizationError::Invalid)?;
        match command {
            OrganizationCommand::Create { command, region, identity } => {
                if self.profile.is_some() {
                    return Err(OrganizationError::AlreadyExists);
                }
                let CreateOrganization { name, slug, tenant_type, auth0_organization_id: _ } = command;
                let created = OrganizationEvent::Created(OrganizationCreated { name, slug, tenant_type, region });
                let trial = (tenant_type == TenantType::Personal)
                    .then(|| OrganizationEvent::PlanChanged(OrganizationPlanChanged { plan: PlanName::trial() }));
                Ok([created].into_iter().chain(trial).chain(identity.map(Into::into)).collect())
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
            OrganizationCommand::ChangeSettings { command, methods, webhooks, .. } => {
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
                if settings.audit_webhook.is_some() && before.audit_webhook.is_none() {
                    QuotaLimit::admits_one(webhooks.as_ref(), QuotaName::Webhooks, 0)?;
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
            OrganizationCommand::ChangeLimits(command) => {
                let ChangeLimits { commands_per_second, concurrency, reads_per_second, quotas } = command;
                let profile = self.profile.as_ref().ok_or(OrganizationError::NotFound)?;
                let quotas = quotas.unwrap_or_default();
                let limits = OrganizationLimits { commands_per_second, concurrency, reads_per_second, quotas };
                let changed = profile.limits != limits;
                let event = OrganizationEvent::LimitsChanged(OrganizationLimitsChanged { limits });
                Ok(if changed { vec![event] } else { vec![] })
            }
            OrganizationCommand::RequestDeletion { command: RequestDeletion { slug }, by, grace_ms } => {
                self.may_be_deleted(context.org, &slug, by)?;
                let grace_until = Timestamp::from_unix_ms(context.now.unix_ms().saturating_add(grace_ms));
                let requested = OrganizationDeletionRequested { grace_until };
                Ok(vec![OrganizationEvent::DeletionRequested(requested)])
            }
            OrganizationCommand::CancelDeletion => {
                self.deletion()?.ok_or(OrganizationError::DeletionNotRequested)?;
                Ok(vec![OrganizationEvent::DeletionCancelled(OrganizationDeletionCancelled {})])
            }
            OrganizationCommand::Seal => match self.deletion()? {
                Some(Deletion { sealed_at: Some(_), .. }) => Ok(vec![]),
                Some(deletion) if deletion.grace_until <= context.now => {
                    Ok(vec![OrganizationEvent::Sealed(OrganizationSealed {})])
                }
                _ => Err(OrganizationError::DeletionNotRequested),
            },
        }
    }

    fn wrap(event: OrganizationEvent) -> Event {
        Event::Organization(event)
    }

    fn event_of(event: &Event) -> Option<&OrganizationEvent> {
        if let Event::Organization(event) = event { Some(event) } else { None }
    }
}

impl Organization {
    /// Returns the deletion that was requested, if one was.
    fn deletion(&self) -> Result<Option<&Deletion>, OrganizationError> {
        Ok(self.profile.as_ref().ok_or(OrganizationError::NotFound)?.deletion.as_ref())
    }

    /// Refuses a deletion that is not an owner's, or of another organization than the caller typed.
    fn may_be_deleted(&self, org: OrgId, slug: &Slug, by: Role) -> Result<(), OrganizationError> {
        let profile = self.must_be_active()?;
        if org == PLATFORM_ORG {
            return Err(OrganizationError::OfThePlatform);
        }
        if by != Role::Owner {
            return Err(OrganizationError::OwnersOnly);
        }
        if *slug == profile.slug {
            return Ok(());
        }
        let mut faults = Faults::default();
        faults.add("/slug", "slug_differs", format!("must be the slug of the organization, which is {}", profile.slug));
        faults.none_or(OrganizationError::Invalid)
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
    /// There are as many webhooks as there may be.
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
    /// The organization is not personal.
    #[error("only a personal organization can be upgraded; this one is for several people already")]
    NotPersonal,
    /// Its deletion was requested.
    #[error(
        "this organization is being deleted: an owner can cancel that until it is sealed \
         (POST /v1/deletions/{{organization id}}/cancel)"
    )]
    BeingDeleted,
    /// It has ended.
    #[error("this organization was deleted, for good")]
    Deleted,
    /// There is no deletion to cancel or to carry out.
    #[error("no deletion of this organization was requested, or its grace period goes on")]
    DeletionNotRequested,
    /// Another role than the owner's, whatever its permissions are.
    #[error("only an owner can delete an organization")]
    OwnersOnly,
    /// The platform's own organization.
    #[error("the platform's own organization cannot be deleted")]
    OfThePlatform,
}

impl From<OrganizationError> for Rejection {
    fn from(error: OrganizationError) -> Self {
        let (kind, code) = match error {
            OrganizationError::Invalid(errors) => return Self::invalid(errors),
            OrganizationError::OverQuota(over) => return over.into(),
            OrganizationError::AlreadyExists => (RejectionKind::Conflict, "organization_exists"),
            OrganizationError::NotFound => (RejectionKind::NotFound, "not_found"),
            OrganizationError::Suspended(_) => (RejectionKind::Forbidden, "organization_suspended"),
            OrganizationError::NotSuspended => (RejectionKind::Conflict, "organization_not_suspended"),
            OrganizationError::LocksOut => (RejectionKind::Conflict, "would_lock_out"),
            OrganizationError::Personal => (RejectionKind::Conflict, "personal_organization"),
            OrganizationError::NotPersonal => (RejectionKind::Conflict, "not_a_personal_organization"),
            OrganizationError::BeingDeleted => (RejectionKind::Forbidden, "organization_being_deleted"),
            OrganizationError::Deleted => (RejectionKind::Conflict, "organization_deleted"),
            OrganizationError::DeletionNotRequested => (RejectionKind::Conflict, "deletion_not_requested"),
            OrganizationError::OwnersOnly | OrganizationError::OfThePlatform => (RejectionKind::Forbidden, "forbidden"),
        };
        Self::new(kind, code, error)
    }
}
