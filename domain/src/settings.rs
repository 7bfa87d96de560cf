//! The settings of an organization: each with its rule.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{
    AggregateId, Branding, DomainName, InvitePolicy, JitProvisioning, LoginMethod, MfaPolicy, OrgId,
    OrganizationSettings, Role,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::{
    About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant, openapi, public_url::is_public_url,
    text::Faults,
};

/// The maximum number of custom metadata entries, and the longest key and value in characters.
pub const METADATA_LIMITS: (usize, usize, usize) = (50, 40, 500);
/// The longest lifetime that an organization can allow its keys, in days.
pub const MAX_KEY_DAYS: u32 = 3650;

/// The maximum number of domains whose addresses may be invited.
const MAX_ALLOWED_DOMAINS: usize = 50;
/// The longest URL of a logo, in characters.
const MAX_LOGO_URL: usize = 500;

/// The known sign-in methods, besides the settings: which ones can be chosen, and how the caller signed in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignInMethods {
    /// The connections of the organization.
    pub connections: BTreeSet<LoginMethod>,
    /// How the caller was authenticated, and whether with a second factor.
    pub by: Option<(LoginMethod, bool)>,
}

impl SignInMethods {
    /// Whether the organization has this sign-in method.
    fn has(&self, method: &LoginMethod) -> bool {
        *method == LoginMethod::oidc() || *method == LoginMethod::api_key() || self.connections.contains(method)
    }

    /// Whether the caller that changes the settings from `before` to `after` keeps access: a sign-in method is removed only
    /// by a person who has signed in by a remaining one, or no one might be left able to sign in.
    pub(super) fn stays_open(&self, before: &OrganizationSettings, after: &OrganizationSettings) -> bool {
        let asks_more = after.mfa_policy == MfaPolicy::Required && before.mfa_policy != MfaPolicy::Required;
        let takes_a_way = match (&before.allowed_auth_methods, &after.allowed_auth_methods) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(before), Some(after)) => before.difference(after).any(LoginMethod::is_for_people),
        };
        if !asks_more && !takes_a_way {
            return true;
        }
        let Some((method, second_factor)) = &self.by else { return false };
        method.is_for_people()
            && after.allowed_auth_methods.as_ref().is_none_or(|allowed| allowed.contains(method))
            && (after.mfa_policy != MfaPolicy::Required || *second_factor)
    }
}

/// Whether people can sign in by these settings, with these connections.
pub fn leads_in(settings: &OrganizationSettings, connections: &BTreeSet<LoginMethod>) -> bool {
    let Some(allowed) = &settings.allowed_auth_methods else { return true };
    allowed.iter().any(|method| *method == LoginMethod::oidc() || connections.contains(method))
}

/// Whether sign-in is possible under these settings when a connection of the organization is gone.
pub fn leads_in_without(
    settings: &OrganizationSettings,
    gone: &LoginMethod,
    connections: &BTreeSet<LoginMethod>,
) -> bool {
    let Some(allowed) = &settings.allowed_auth_methods else { return true };
    let is_left =
        |method: &LoginMethod| method != gone && (*method == LoginMethod::oidc() || connections.contains(method));
    !allowed.contains(gone) || allowed.iter().any(is_left)
}

/// Other settings. What is missing stays; `null` takes a setting away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeSettings {
    /// Longest life of a new API key, in days, 1 to 3,650; null for no limit.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 3650)]
    pub api_key_max_days: Patch<u32>,
    /// True (the default) if the keys that a member issued end with the membership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke_keys_on_creator_exit: Option<bool>,
    /// Ways to authenticate: `oidc`, `api_key`, or `sso:` and the id of a connection, with at least one for people; null for
    /// every way.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["oidc", "api_key"]))]
    pub allowed_auth_methods: Patch<BTreeSet<LoginMethod>>,
    /// Second factor of people: `optional` or `required`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::mfa_policy)]
    pub mfa_policy: Option<MfaPolicy>,
    /// Notes of the organization, at most 50: keys of at most 40 and values of at most 500 characters. A key that is missing
    /// stays; a key with null is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::HashMap<String, Option<String>>>)]
    pub custom_metadata: Option<BTreeMap<String, Option<String>>>,
    /// Membership by signing in: `not_allowed`, or `restricted` to verified addresses of proven domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::jit_provisioning)]
    pub jit_provisioning: Option<JitProvisioning>,
    /// Addresses that may be invited: `all`, `restricted` to those of `allowed_domains`, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = openapi::invite_policy)]
    pub invite_policy: Option<InvitePolicy>,
    /// Domains whose addresses may be invited, all of them: at most 50, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["acme.example"]))]
    pub allowed_domains: Option<BTreeSet<DomainName>>,
    /// Look of the organization for its members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branding: Option<ChangeBranding>,
    /// `https` address with a public name that every event of the audit log is posted to, from the first on, at most 255
    /// characters; null for none. Progress and public key: `GET …/audit/webhook`.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>, example = "https://siem.acme.example/orgstream", max_length = 255)]
    pub audit_webhook: Patch<String>,
}

impl Declared for ChangeSettings {
    const SPEC: CommandSpec = CommandSpec {
        name: "change_settings",
        requires: Requires::Permission(Permission::ManageOrganization),
        events: &["organization.settings_changed"],
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
        let mut grants = Vec::new();
        if self.jit_provisioning == Some(JitProvisioning::Restricted) {
            grants.push(Grant::Role(Role::Member));
        }
        // An end of the posts is as far-reaching as another address: the collector sees neither.
        if let Patch::Set(_) | Patch::Clear = self.audit_webhook {
            grants.push(Grant::Permissions(BTreeSet::from([Permission::ReadAudit])));
        }
        // Keys of former members become valid again.
        if self.revoke_keys_on_creator_exit == Some(false) {
            grants.push(Grant::Permissions(BTreeSet::from([Permission::ManageKeys])));
        }
        grants
    }
}

/// How an organization looks to its members. What is missing stays; `null` takes it away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeBranding {
    /// `https` address of the logo, at most 500 characters; null for none.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>, example = "https://acme.example/logo.svg", max_length = 500)]
    pub logo_url: Patch<String>,
    /// Colour: `#` and six hexadecimal digits; null for none.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>, example = "#0a84ff")]
    pub primary_color: Patch<String>,
    /// E-mail address that members get help at; null for none.
    #[serde(default, skip_serializing_if = "Patch::is_keep")]
    #[schema(value_type = Option<String>, example = "help@acme.example")]
    pub support_email: Patch<String>,
}

/// A patch of an optional setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Patch<T> {
    /// Absent: it stays.
    #[default]
    Keep,
    /// `null`: it is removed.
    Clear,
    /// A value: it changes.
    Set(T),
}

impl<T> Patch<T> {
    fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    fn over(self, before: Option<T>) -> Option<T> {
        match self {
            Self::Keep => before,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
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

impl ChangeSettings {
    /// Whether it makes sense only with several members.
    pub(super) fn is_about_others(&self) -> bool {
        self.jit_provisioning.is_some()
            || self.invite_policy.is_some()
            || self.allowed_domains.is_some()
            || self.branding.is_some()
    }

    /// Checks each setting by itself. `local` permits addresses on this machine.
    pub(super) fn check(&self, local: bool, ways: &SignInMethods, faults: &mut Faults) {
        if let Patch::Set(methods) = &self.allowed_auth_methods
            && let Some(unknown) = methods.iter().find(|method| !ways.has(method))
        {
            let rule = format!("this organization has no connection {}: list its sso-connections", unknown.as_str());
            faults.add("/allowed_auth_methods", "unknown_connection", rule);
        }
        if let Patch::Set(methods) = &self.allowed_auth_methods
            && !methods.iter().any(LoginMethod::is_for_people)
        {
            let rule =
                "must have a way for people (oidc, or sso: and a connection), or no person could change it again";
            faults.add("/allowed_auth_methods", "no_way_for_people", rule);
        }
        if let Patch::Set(days) = self.api_key_max_days
            && !(1..=MAX_KEY_DAYS).contains(&days)
        {
            faults.add("/api_key_max_days", "out_of_range", format!("must be 1 to {MAX_KEY_DAYS} days, or null"));
        }
        let (_, max_key, max_value) = METADATA_LIMITS;
        if self.allowed_domains.as_ref().is_some_and(|domains| domains.len() > MAX_ALLOWED_DOMAINS) {
            faults.add("/allowed_domains", "too_many", format!("must be at most {MAX_ALLOWED_DOMAINS} domains"));
        }
        if let Some(branding) = &self.branding {
            branding.check(faults);
        }
        if let Patch::Set(url) = &self.audit_webhook
            && !is_public_url(url, local)
        {
            let rule = "must be an https address with a public host name, of at most 255 characters, or null";
            faults.add("/audit_webhook", "url", rule);
        }
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

    /// Returns the settings with these changes.
    pub(super) fn applied_to(self, mut settings: OrganizationSettings) -> OrganizationSettings {
        settings.api_key_max_days = self.api_key_max_days.over(settings.api_key_max_days);
        settings.allowed_auth_methods = self.allowed_auth_methods.over(settings.allowed_auth_methods);
        settings.audit_webhook = self.audit_webhook.over(settings.audit_webhook);
        if let Some(policy) = self.mfa_policy {
            settings.mfa_policy = policy;
        }
        if let Some(revoke) = self.revoke_keys_on_creator_exit {
            settings.revoke_keys_on_creator_exit = revoke;
        }
        if let Some(jit_provisioning) = self.jit_provisioning {
            settings.jit_provisioning = jit_provisioning;
        }
        if let Some(invite_policy) = self.invite_policy {
            settings.invite_policy = invite_policy;
        }
        if let Some(allowed_domains) = self.allowed_domains {
            settings.allowed_domains = allowed_domains;
        }
        if let Some(ChangeBranding { logo_url, primary_color, support_email }) = self.branding {
            let Branding { logo_url: logo, primary_color: color, support_email: email } = settings.branding;
            settings.branding = Branding {
                logo_url: logo_url.over(logo),
                primary_color: primary_color.over(color),
                support_email: support_email.over(email),
            };
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

impl ChangeBranding {
    fn check(&self, faults: &mut Faults) {
        if let Patch::Set(url) = &self.logo_url
            && !(url.len() <= MAX_LOGO_URL && url.starts_with("https://") && url.bytes().all(|b| b.is_ascii_graphic()))
        {
            let detail = format!("must be an https address of at most {MAX_LOGO_URL} characters, or null");
            faults.add("/branding/logo_url", "url", detail);
        }
        if let Patch::Set(color) = &self.primary_color
            && !(color.len() == 7 && color.starts_with('#') && color.bytes().skip(1).all(|b| b.is_ascii_hexdigit()))
        {
            faults.add(
                "/branding/primary_color",
                "color",
                "must be # and six hexadecimal digits, like #0a84ff, or null",
            );
        }
        if let Patch::Set(email) = &self.support_email {
            faults.email("/branding/support_email", email);
        }
    }
}
