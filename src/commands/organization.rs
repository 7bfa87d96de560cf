//! The organization itself: its names, its settings, its plan, and whether anybody may act in it.
//!
//! That a slug is unique is a rule over all organizations, so it is no decision of this one: the handler claims the
//! slug first and then asks here.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    AggregateType, Event, LoginMethod, MfaPolicy, OrganizationCreated, OrganizationEvent, OrganizationPlanChanged,
    OrganizationRenamed, OrganizationResumed, OrganizationSettings, OrganizationSettingsChanged, OrganizationSuspended,
    PlanName, Slug, TenantType,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::value::StrDeserializer};
use utoipa::ToSchema;

use super::{Aggregate, Facts, FieldError, Rejection, RejectionKind, openapi, text::Faults};

/// The most entries of custom metadata, and the longest key and value in characters.
pub const METADATA_LIMITS: (usize, usize, usize) = (50, 40, 500);
/// The longest life that an organization can allow its keys, in days.
pub const MAX_KEY_DAYS: u32 = 3650;

/// An organization, as decisions see it. By default it does not exist yet.
#[derive(Debug, Clone, Default)]
pub struct Organization {
    profile: Option<Profile>,
}

/// What an organization that exists has.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// What people call it.
    pub name: String,
    /// Its name in URLs.
    pub slug: Slug,
    /// What kind of tenant.
    pub tenant_type: TenantType,
    /// Where its data lives.
    pub region: String,
    /// What it decided about itself.
    pub settings: OrganizationSettings,
    /// What it has booked.
    pub plan: PlanName,
    /// Why nobody but the platform may act in it, while that is so.
    pub suspended: Option<String>,
}

impl Organization {
    /// What it has, once it exists.
    pub fn profile(&self) -> Option<&Profile> {
        self.profile.as_ref()
    }

    /// Why nobody but the platform may act in it, while that is so.
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

/// What can be asked of an organization.
#[derive(Debug, Clone, PartialEq)]
pub enum OrganizationCommand {
    /// Begin.
    Create {
        /// As the caller has it.
        command: CreateOrganization,
        /// Where the placement put it.
        region: String,
    },
    /// Take other names.
    Rename(RenameOrganization),
    /// Take other settings.
    ChangeSettings(ChangeSettings),
    /// Stop everybody.
    Suspend(SuspendOrganization),
    /// Let everybody go on.
    Resume(ResumeOrganization),
    /// Be on another plan.
    ChangePlan(ChangePlan),
}

/// A new organization. Whoever asks becomes its owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrganization {
    /// What people call it: 1 to 120 characters.
    #[schema(example = "Acme Corp", max_length = 120)]
    pub name: String,
    /// Its name in URLs: 2 to 63 of a-z, 0-9 and single hyphens. Unique over all organizations.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// What kind of tenant; `organization` unless said otherwise, which may also be called `tenant`. In any case of letters.
    /// A personal one is made when its person first signs in, and not by this command.
    #[serde(default = "organization", deserialize_with = "tenant_type")]
    #[schema(schema_with = openapi::tenant_type)]
    pub tenant_type: TenantType,
}

/// Reads a kind of tenant as people write it.
pub fn tenant_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TenantType, D::Error> {
    let text = String::deserialize(deserializer)?.to_lowercase();
    let name = if text == "tenant" { "organization" } else { text.as_str() };
    TenantType::deserialize(StrDeserializer::<D::Error>::new(name))
}

/// The tenant type of who does not say any.
pub fn organization() -> TenantType {
    TenantType::Organization
}

/// Other names. What is missing stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameOrganization {
    /// What people call it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its name in URLs from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slug: Option<Slug>,
}

/// Other settings. What is missing stays; `null` takes a setting away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSettings {
    /// The longest life of a new API key, in days (1 to 3650); `null` for no limit.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 3650)]
    pub api_key_max_days: Patch<u32>,
    /// Whether the keys that a member issued end when the member is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke_keys_on_creator_exit: Option<bool>,
    /// How one may prove who one is here: `oidc`, `api_key` or `sso:` and the id of a connection, with at least one way for
    /// people; `null` for every way.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["oidc", "api_key"]))]
    pub allowed_auth_methods: Patch<BTreeSet<LoginMethod>>,
    /// Whether people need a second factor to act here: `optional` or `required`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::mfa_policy)]
    pub mfa_policy: Option<MfaPolicy>,
    /// Your own notes: at most 50, keys of at most 40 and values of at most 500 characters. A key that is missing
    /// stays, a key with `null` goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::HashMap<String, Option<String>>>)]
    pub custom_metadata: Option<BTreeMap<String, Option<String>>>,
}

/// What a patch says of a setting that can be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Not mentioned: it stays.
    #[default]
    Keep,
    /// `null`: it goes.
    Clear,
    /// A value: it changes.
    Set(T),
}

impl<T> Patch<T> {
    fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

impl<T: Serialize> Serialize for Patch<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep | Self::Clear => serializer.serialize_none(),
            Self::Set(value) => serializer.serialize_some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|value| value.map_or(Self::Clear, Self::Set))
    }
}

/// Stops everybody but the platform. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendOrganization {
    /// Why; its members see it.
    pub reason: String,
}

/// Ends a suspension. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeOrganization {
    /// Why.
    pub reason: String,
}

/// Puts it on another plan. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePlan {
    /// The plan: 1 to 63 of a-z, 0-9, - and _, beginning with a letter.
    #[schema(value_type = String, example = "enterprise")]
    pub plan: PlanName,
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
        }
    }

    fn decide(&self, command: OrganizationCommand, _: &Facts) -> Result<Vec<OrganizationEvent>, OrganizationError> {
        let mut faults = Faults::default();
        match &command {
            OrganizationCommand::Create { command, .. } => {
                faults.name("/name", &command.name);
                if command.tenant_type != TenantType::Personal {
                    not_reserved(&mut faults, &command.slug);
                }
            }
            OrganizationCommand::Rename(command) => {
                if let Some(slug) = &command.slug {
                    not_reserved(&mut faults, slug);
                }
                if let Some(name) = &command.name {
                    faults.name("/name", name);
                }
                if command.name.is_none() && command.slug.is_none() {
                    faults.add("/name", "required", "give a name or a slug");
                }
            }
            OrganizationCommand::ChangeSettings(command) => command.check(&mut faults),
            OrganizationCommand::Suspend(SuspendOrganization { reason })
            | OrganizationCommand::Resume(ResumeOrganization { reason }) => faults.reason("/reason", reason),
            // The name of a plan is right by its type.
            OrganizationCommand::ChangePlan(_) => {}
        }
        faults.none_or(OrganizationError::Invalid)?;
        match command {
            OrganizationCommand::Create { command, region } => {
                if self.profile.is_some() {
                    return Err(OrganizationError::AlreadyExists);
                }
                let CreateOrganization { name, slug, tenant_type } = command;
                Ok(vec![OrganizationEvent::Created(OrganizationCreated { name, slug, tenant_type, region })])
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
            OrganizationCommand::ChangeSettings(command) => {
                let before = &self.must_be_active()?.settings;
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
                let changed = settings != *before;
                let event = OrganizationEvent::SettingsChanged(OrganizationSettingsChanged { settings });
                Ok(if changed { vec![event] } else { vec![] })
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
        }
    }

    fn wrap(event: OrganizationEvent) -> Event {
        Event::Organization(event)
    }

    fn event_of(event: &Event) -> Option<&OrganizationEvent> {
        if let Event::Organization(event) = event { Some(event) } else { None }
    }
}

/// The name of whichever organization a credential acts in. None can have it as its slug.
pub const CURRENT: &str = "current";
/// What begins the slug of every personal organization; the rest follows from its id, so nobody can take it before.
pub const PERSONAL_SLUG: &str = "personal-";

/// Refuses the slugs that mean something else.
fn not_reserved(faults: &mut Faults, slug: &Slug) {
    if slug.as_str() == CURRENT || slug.as_str().starts_with(PERSONAL_SLUG) {
        faults.add("/slug", "reserved", format!("{slug} is reserved: choose another slug"));
    }
}

impl ChangeSettings {
    fn check(&self, faults: &mut Faults) {
        if let Patch::Set(methods) = &self.allowed_auth_methods
            && !methods.iter().any(LoginMethod::is_for_people)
        {
            let rule = "must have a way for people (oidc, or sso: and a connection), or nobody could change it again";
            faults.add("/allowed_auth_methods", "no_way_for_people", rule);
        }
        if let Patch::Set(days) = self.api_key_max_days
            && !(1..=MAX_KEY_DAYS).contains(&days)
        {
            faults.add("/api_key_max_days", "out_of_range", format!("must be 1 to {MAX_KEY_DAYS} days, or null"));
        }
        let (_, max_key, max_value) = METADATA_LIMITS;
        for (key, value) in self.custom_metadata.iter().flatten() {
            let pointer = format!("/custom_metadata/{}", key.replace('~', "~0").replace('/', "~1"));
            faults.length(&pointer, key, 1, max_key);
            faults.lines(&pointer, key);
            if let Some(value) = value {
                faults.length(&pointer, value, 0, max_value);
                faults.lines(&pointer, value);
            }
        }
    }

    fn applied_to(self, mut settings: OrganizationSettings) -> OrganizationSettings {
        match self.api_key_max_days {
            Patch::Keep => {}
            Patch::Clear => settings.api_key_max_days = None,
            Patch::Set(days) => settings.api_key_max_days = Some(days),
        }
        match self.allowed_auth_methods {
            Patch::Keep => {}
            Patch::Clear => settings.allowed_auth_methods = None,
            Patch::Set(methods) => settings.allowed_auth_methods = Some(methods),
        }
        if let Some(policy) = self.mfa_policy {
            settings.mfa_policy = policy;
        }
        if let Some(revoke) = self.revoke_keys_on_creator_exit {
            settings.revoke_keys_on_creator_exit = revoke;
        }
        for (key, value) in self.custom_metadata.into_iter().flatten() {
            match value {
                Some(value) => settings.custom_metadata.insert(key, value),
                None => settings.custom_metadata.remove(&key),
            };
        }
        settings
    }
}

/// Why an organization refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrganizationError {
    /// Its fields are wrong.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// It was created before.
    #[error("the organization exists already; send a new command id to create another")]
    AlreadyExists,
    /// Nothing was ever created under this id.
    #[error("there is no such organization")]
    NotFound,
    /// Nobody but the platform may act.
    #[error("the organization is suspended ({0}); only the platform operator can resume it")]
    Suspended(String),
    /// There is nothing to end.
    #[error("the organization is not suspended")]
    NotSuspended,
}

impl From<OrganizationError> for Rejection {
    fn from(error: OrganizationError) -> Self {
        let (kind, code) = match error {
            OrganizationError::Invalid(errors) => return Self::invalid(errors),
            OrganizationError::AlreadyExists => (RejectionKind::Conflict, "organization_exists"),
            OrganizationError::NotFound => (RejectionKind::NotFound, "not_found"),
            OrganizationError::Suspended(_) => (RejectionKind::Forbidden, "organization_suspended"),
            OrganizationError::NotSuspended => (RejectionKind::Conflict, "organization_not_suspended"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{fields, given, rejection},
        *,
    };

    fn create(name: &str) -> OrganizationCommand {
        let command =
            CreateOrganization { name: name.to_owned(), slug: "acme".parse().unwrap(), tenant_type: organization() };
        OrganizationCommand::Create { command, region: "local".to_owned() }
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

    fn settings(patch: serde_json::Value) -> OrganizationCommand {
        OrganizationCommand::ChangeSettings(serde_json::from_value(patch).unwrap())
    }

    fn settings_changed(api_key_max_days: Option<u32>, metadata: &[(&str, &str)]) -> OrganizationEvent {
        let custom_metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        OrganizationEvent::SettingsChanged(OrganizationSettingsChanged {
            settings: OrganizationSettings { api_key_max_days, custom_metadata, ..OrganizationSettings::default() },
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
    fn it_cannot_be_created_twice() {
        let refused = rejection(given::<Organization>(&[created()]).when(create("Acme")));
        assert_eq!((refused.code, refused.kind.status()), ("organization_exists", 409));
    }

    #[test]
    fn an_empty_name_is_refused_with_a_pointer() {
        let found = fields(given::<Organization>(&[]).when(create("  ")));
        assert_eq!(found, [("/name".to_owned(), "too_short".to_owned())]);
    }

    // S5.8
    #[test]
    fn a_kind_of_tenant_has_two_names_in_any_case() {
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
            let OrganizationCommand::Create { mut command, region } = create("Acme") else { unreachable!() };
            command.slug = slug;
            let begin = OrganizationCommand::Create { command: command.clone(), region: region.clone() };
            assert_eq!(fields(given::<Organization>(&[]).when(begin)), reserved);
            command.tenant_type = TenantType::Personal;
            assert!(given::<Organization>(&[]).when(OrganizationCommand::Create { command, region }).is_ok());
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
