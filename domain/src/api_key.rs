//! One API key: issued once, rotated at will, revoked once.

use ipnet::IpNet;
use orgstream_events::{
    ActorType, AggregateId, AggregateType, ApiKeyEvent, ApiKeyIssued, ApiKeyRevoked, ApiKeyRotated, Event, Fingerprint,
    KeyEnvironment, KeyId, KeyPublicId, MemberId, OrgId, Role, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Place, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, openapi, settings::MAX_KEY_DAYS, text::Faults,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The maximum time that the previous token stays valid after a rotation.
const MAX_OVERLAP_SECONDS: u32 = 7 * 24 * 60 * 60;
/// The maximum number of networks of one key.
const MAX_NETWORKS: usize = 32;

/// The state of a key. By default it does not exist yet.
#[derive(Debug, Clone, Default)]
pub struct ApiKey {
    issued: Option<ApiKeyIssued>,
    expires_at: Option<Timestamp>,
    revoked: bool,
    issued_by: Option<(ActorType, String)>,
    /// The token that is valid as long as the key.
    current: Option<KeyPublicId>,
    /// The previous token, and when it expires.
    previous: Option<(KeyPublicId, Timestamp)>,
}

impl ApiKey {
    /// Returns the issuing event, if the key was issued.
    pub fn issued(&self) -> Option<&ApiKeyIssued> {
        self.issued.as_ref()
    }

    /// Returns the principal that issued it.
    pub fn issued_by(&self) -> Option<&(ActorType, String)> {
        self.issued_by.as_ref()
    }

    /// Returns the member that vouches for the key: the one that issued it, or that issued the key that did, and so on.
    pub fn creator(&self) -> Option<MemberId> {
        match &self.issued_by {
            Some((ActorType::Member, id)) => id.parse().ok(),
            _ => self.issued.as_ref().and_then(|issued| issued.creator),
        }
    }

    /// Returns when the key expires.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns how long a token of the key is valid: until a time, or as long as the key. A token that is neither the
    /// current nor the previous one is no longer valid.
    pub fn token_ends_at(&self, public_id: &KeyPublicId) -> Option<Timestamp> {
        if self.current.as_ref() == Some(public_id) {
            return None;
        }
        let previous = self.previous.as_ref().filter(|(previous, _)| previous == public_id);
        Some(previous.map_or(Timestamp::from_unix_ms(0), |(_, ends_at)| *ends_at))
    }

    /// Whether the key was revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }
}

/// The commands of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum ApiKeyCommand {
    /// Issues the key.
    Issue {
        /// The command as received.
        command: IssueApiKey,
        /// The stored parts of the token that the caller receives.
        token: TokenParts,
        /// The default scopes: the caller's own, if those are limited.
        inherited: Option<Vec<String>>,
        /// The member that vouches for a key that is issued with another key.
        creator: Option<MemberId>,
        /// The longest lifetime that the organization allows, in days.
        max_days: Option<u32>,
    },
    /// Replaces the secret.
    Rotate {
        /// The command as received.
        command: RotateApiKey,
        /// The stored parts of the token that the caller receives.
        token: TokenParts,
        /// The longest lifetime that the organization allows, in days.
        max_days: Option<u32>,
    },
    /// Revokes the key.
    Revoke(RevokeApiKey),
}

/// The stored parts of a token. None of them is the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenParts {
    /// The part that identifies the key.
    pub public_id: KeyPublicId,
    /// The keyed hash that verifies the secret.
    pub secret_mac: Fingerprint,
    /// The last characters, by which a person tells keys apart.
    pub last4: String,
}

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
        events: &["api_key.issued"],
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
        events: &["api_key.revoked"],
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

impl Aggregate for ApiKey {
    type Command = ApiKeyCommand;
    type Event = ApiKeyEvent;
    type Error = ApiKeyError;
    const TYPE: AggregateType = AggregateType::ApiKey;

    fn apply(&mut self, event: &ApiKeyEvent) {
        match event {
            ApiKeyEvent::Issued(event) => {
                self.expires_at = event.expires_at;
                self.current = Some(event.public_id.clone());
                self.issued = Some(event.clone());
            }
            ApiKeyEvent::Rotated(event) => {
                self.expires_at = event.expires_at;
                let before = self.current.replace(event.public_id.clone());
                self.previous = before.map(|before| (before, event.previous_ends_at));
            }
            ApiKeyEvent::Revoked(_) => self.revoked = true,
        }
    }

    fn apply_at(&mut self, event: &ApiKeyEvent, place: Place<'_>) {
        if let ApiKeyEvent::Issued(_) = event {
            self.issued_by = Some((place.actor.actor_type, place.actor.id.clone()));
        }
        self.apply(event);
    }

    fn decide(&self, command: ApiKeyCommand, context: &DecisionContext) -> Result<Vec<ApiKeyEvent>, ApiKeyError> {
        match command {
            ApiKeyCommand::Issue { command, token, inherited, creator, max_days } => {
                if self.issued.is_some() {
                    return Err(ApiKeyError::AlreadyExists);
                }
                let mut faults = Faults::default();
                faults.name("/name", &command.name);
                let lifetime = (command.expires_at, command.expires_in_days);
                let expires_at = end(lifetime, context.now, max_days, &mut faults);
                let allowed_ips = networks(&command.allowed_ips, &mut faults);
                let IssueApiKey { name, role, environment, scopes, .. } = command;
                // A caller with limited scopes passes those on, unless the command names fewer.
                let scopes = scopes.or(inherited);
                check_scopes(scopes.as_deref().unwrap_or_default(), role, &mut faults);
                faults.none_or(ApiKeyError::Invalid)?;
                let TokenParts { public_id, secret_mac, last4 } = token;
                Ok(vec![ApiKeyEvent::Issued(ApiKeyIssued {
                    name,
                    public_id,
                    secret_mac,
                    last4,
                    role,
                    environment,
                    expires_at,
                    scopes,
                    allowed_ips,
                    creator,
                })])
            }
            ApiKeyCommand::Rotate { command, token, max_days } => {
                if self.issued.is_none() {
                    return Err(ApiKeyError::NotFound);
                }
                if self.revoked || self.expires_at.is_some_and(|end| end <= context.now) {
                    return Err(ApiKeyError::Ended);
                }
                let mut faults = Faults::default();
                if command.overlap_seconds > MAX_OVERLAP_SECONDS {
                    faults.add(
                        "/overlap_seconds",
                        "out_of_range",
                        format!("must be at most {MAX_OVERLAP_SECONDS} (7 days)"),
                    );
                }
                let expires_at = match (command.expires_at, command.expires_in_days) {
                    (None, None) => self.expires_at,
                    lifetime => end(lifetime, context.now, max_days, &mut faults),
                };
                faults.none_or(ApiKeyError::Invalid)?;
                let overlap_ms = i64::from(command.overlap_seconds) * 1000;
                let previous_ends_at = Timestamp::from_unix_ms(context.now.unix_ms() + overlap_ms);
                let TokenParts { public_id, secret_mac, last4 } = token;
                let rotated = ApiKeyRotated { public_id, secret_mac, last4, previous_ends_at, expires_at };
                Ok(vec![ApiKeyEvent::Rotated(rotated)])
            }
            ApiKeyCommand::Revoke(RevokeApiKey { reason, .. }) => {
                if self.issued.is_none() {
                    return Err(ApiKeyError::NotFound);
                }
                if self.revoked {
                    return Ok(vec![]);
                }
                let mut faults = Faults::default();
                if let Some(reason) = &reason {
                    faults.reason("/reason", reason);
                }
                faults.none_or(ApiKeyError::Invalid)?;
                Ok(vec![ApiKeyEvent::Revoked(ApiKeyRevoked { reason })])
            }
        }
    }

    fn wrap(event: ApiKeyEvent) -> Event {
        Event::ApiKey(event)
    }

    fn event_of(event: &Event) -> Option<&ApiKeyEvent> {
        if let Event::ApiKey(event) = event { Some(event) } else { None }
    }
}

/// Returns when a key expires, within the organization's limit.
fn end(
    lifetime: (Option<Timestamp>, Option<u32>),
    now: Timestamp,
    max_days: Option<u32>,
    faults: &mut Faults,
) -> Option<Timestamp> {
    let after = |days: u32| Timestamp::from_unix_ms(now.unix_ms() + i64::from(days) * DAY_MS);
    let latest = max_days.map(after);
    let (pointer, end) = match lifetime {
        (None, None) => return latest,
        (Some(_), Some(_)) => {
            faults.add("/expires_in_days", "ambiguous", "give expires_at or expires_in_days, not both");
            return None;
        }
        (Some(end), None) => ("/expires_at", end),
        (None, Some(days)) if (1..=MAX_KEY_DAYS).contains(&days) => ("/expires_in_days", after(days)),
        (None, Some(_)) => {
            faults.add("/expires_in_days", "out_of_range", format!("must be 1 to {MAX_KEY_DAYS}"));
            return None;
        }
    };
    if end <= now {
        faults.add(pointer, "in_the_past", format!("must be later than now, {now}"));
    }
    if let (Some(latest), Some(days)) = (latest, max_days)
        && end > latest
    {
        let detail = format!("this organization lets keys live {days} days, so at the latest until {latest}");
        faults.add(pointer, "too_late", detail);
    }
    Some(end)
}

/// Normalizes addresses and networks, with the bits behind the prefix cleared.
fn networks(texts: &[String], faults: &mut Faults) -> Vec<String> {
    if texts.len() > MAX_NETWORKS {
        faults.add("/allowed_ips", "too_many", format!("must be at most {MAX_NETWORKS}"));
    }
    let mut nets = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        match net {
            Ok(net) => nets.push(net.trunc().to_string()),
            Err(_) => faults.add(
                format!("/allowed_ips/{index}"),
                "network",
                "must be an address or a network, like 192.0.2.7 or 2001:db8::/32",
            ),
        }
    }
    nets
}

fn check_scopes(scopes: &[String], role: Role, faults: &mut Faults) {
    for (index, name) in scopes.iter().enumerate() {
        let pointer = format!("/scopes/{index}");
        match Permission::named(name) {
            None => {
                let known: Vec<&str> = Permission::ALL.iter().map(|permission| permission.name()).collect();
                faults.add(pointer, "unknown_value", format!("is no permission; there are: {}", known.join(", ")));
            }
            Some(permission) if !permission.is_granted_to(role) => {
                faults.add(pointer, "not_in_role", format!("the role {role} does not have it: choose another role"));
            }
            Some(_) => {}
        }
    }
}

/// The reasons why a key command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The key was issued before.
    #[error("this key was issued already; send a new command id to issue another")]
    AlreadyExists,
    /// No such key.
    #[error("there is no such API key in this organization")]
    NotFound,
    /// The key is revoked or expired.
    #[error("this key has ended and cannot be rotated: issue another")]
    Ended,
}

impl From<ApiKeyError> for Rejection {
    fn from(error: ApiKeyError) -> Self {
        let (kind, code) = match error {
            ApiKeyError::Invalid(errors) => return Self::invalid(errors),
            ApiKeyError::AlreadyExists => (RejectionKind::Conflict, "api_key_exists"),
            ApiKeyError::NotFound => (RejectionKind::NotFound, "not_found"),
            ApiKeyError::Ended => (RejectionKind::Conflict, "api_key_ended"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Actor;
    use serde_json::json;

    use super::*;
    use crate::testing::{context, fields, given, rejection};

    fn token() -> TokenParts {
        let public_id = "AbCdEf012345".parse().unwrap();
        TokenParts { public_id, secret_mac: Fingerprint([7; 32]), last4: "wxyz".to_owned() }
    }

    fn issue(fields: &serde_json::Value, max_days: Option<u32>) -> ApiKeyCommand {
        let mut json = json!({"name": "ci", "role": "member"});
        for (name, value) in fields.as_object().unwrap() {
            json[name] = value.clone();
        }
        let command = serde_json::from_value(json).unwrap();
        ApiKeyCommand::Issue { command, token: token(), inherited: None, creator: None, max_days }
    }

    fn issued(expires_at: Option<Timestamp>) -> ApiKeyEvent {
        let TokenParts { public_id, secret_mac, last4 } = token();
        let (name, role) = ("ci".to_owned(), Role::Member);
        ApiKeyEvent::Issued(ApiKeyIssued {
            name,
            public_id,
            secret_mac,
            last4,
            role,
            environment: live(),
            expires_at,
            scopes: None,
            allowed_ips: Vec::new(),
            creator: None,
        })
    }

    fn rotate(overlap_seconds: u32, expires_in_days: Option<u32>) -> ApiKeyCommand {
        let id = KeyId::fresh(1, [1; 10]);
        let command = RotateApiKey { id, overlap_seconds, expires_at: None, expires_in_days };
        ApiKeyCommand::Rotate { command, token: token(), max_days: Some(90) }
    }

    fn rotated(overlap_seconds: i64, expires_at: Option<Timestamp>) -> ApiKeyEvent {
        let TokenParts { public_id, secret_mac, last4 } = token();
        let previous_ends_at = Timestamp::from_unix_ms(context().now.unix_ms() + overlap_seconds * 1000);
        ApiKeyEvent::Rotated(ApiKeyRotated { public_id, secret_mac, last4, previous_ends_at, expires_at })
    }

    fn revoke() -> ApiKeyCommand {
        ApiKeyCommand::Revoke(RevokeApiKey { id: KeyId::fresh(1, [1; 10]), reason: Some("leaked".to_owned()) })
    }

    fn in_days(days: i64) -> Timestamp {
        Timestamp::from_unix_ms(context().now.unix_ms() + days * DAY_MS)
    }

    #[test]
    fn a_key_keeps_what_recognizes_its_secret() {
        assert_eq!(given::<ApiKey>(&[]).when(issue(&json!({}), None)), Ok(vec![issued(None)]));
    }

    #[test]
    fn a_key_lives_as_long_as_the_organization_allows_unless_said_otherwise() {
        let key = given::<ApiKey>(&[]);
        assert_eq!(key.when(issue(&json!({}), Some(90))), Ok(vec![issued(Some(in_days(90)))]));
        let shorter = issue(&json!({"expires_in_days": 7}), Some(90));
        assert_eq!(key.when(shorter), Ok(vec![issued(Some(in_days(7)))]));
        let exact = issue(&json!({"expires_at": in_days(90)}), Some(90));
        assert_eq!(key.when(exact), Ok(vec![issued(Some(in_days(90)))]));
    }

    #[test]
    fn a_key_cannot_outlive_what_the_organization_allows() {
        let later = issue(&json!({"expires_in_days": 91}), Some(90));
        let found = fields(given::<ApiKey>(&[]).when(later));
        assert_eq!(found, [("/expires_in_days".to_owned(), "too_late".to_owned())]);
    }

    #[test]
    fn a_life_that_makes_no_sense_is_refused() {
        for (json, code) in [
            (json!({"expires_in_days": 0}), "out_of_range"),
            (json!({"expires_in_days": 3651}), "out_of_range"),
            (json!({"expires_at": in_days(0)}), "in_the_past"),
            (json!({"expires_at": in_days(1), "expires_in_days": 1}), "ambiguous"),
        ] {
            assert_eq!(fields(given::<ApiKey>(&[]).when(issue(&json, None)))[0].1, code);
        }
    }

    #[test]
    fn a_key_is_issued_once() {
        let again = given::<ApiKey>(&[issued(None)]).when(issue(&json!({}), None));
        assert_eq!(rejection(again).code, "api_key_exists");
    }

    #[test]
    fn a_revoked_key_stays_revoked() {
        let revoked = ApiKeyEvent::Revoked(ApiKeyRevoked { reason: Some("leaked".to_owned()) });
        assert_eq!(given::<ApiKey>(&[issued(None)]).when(revoke()), Ok(vec![revoked.clone()]));
        assert_eq!(given::<ApiKey>(&[issued(None), revoked]).when(revoke()), Ok(vec![]));
    }

    #[test]
    fn a_key_that_does_not_exist_cannot_be_revoked() {
        assert_eq!(rejection(given::<ApiKey>(&[]).when(revoke())).kind, RejectionKind::NotFound);
    }

    #[test]
    fn a_rotated_key_keeps_its_end_unless_said_otherwise() {
        let key = given::<ApiKey>(&[issued(Some(in_days(7)))]);
        assert_eq!(key.when(rotate(60, None)), Ok(vec![rotated(60, Some(in_days(7)))]));
        assert_eq!(key.when(rotate(0, Some(30))), Ok(vec![rotated(0, Some(in_days(30)))]));
        let found = fields(key.when(rotate(604_801, Some(91))));
        assert_eq!(found[0], ("/overlap_seconds".to_owned(), "out_of_range".to_owned()));
        assert_eq!(found[1], ("/expires_in_days".to_owned(), "too_late".to_owned()));
    }

    #[test]
    fn a_key_that_has_ended_is_not_rotated() {
        let revoked = ApiKeyEvent::Revoked(ApiKeyRevoked { reason: None });
        for history in [
            vec![issued(None), revoked],
            vec![issued(Some(in_days(0)))],
            vec![issued(None), rotated(0, Some(in_days(-1)))],
        ] {
            assert_eq!(rejection(given::<ApiKey>(&history).when(rotate(0, None))).code, "api_key_ended");
        }
        assert_eq!(rejection(given::<ApiKey>(&[]).when(rotate(0, None))).code, "not_found");
    }

    #[test]
    fn without_scopes_a_key_gets_those_of_whoever_issues_it() {
        let inherited = Some(vec!["api_keys:manage".to_owned(), "records:read".to_owned()]);
        let ApiKeyCommand::Issue { command, token, max_days, .. } = issue(&json!({"role": "admin"}), None) else {
            unreachable!()
        };
        let issue = ApiKeyCommand::Issue { command, token, inherited: inherited.clone(), creator: None, max_days };
        match given::<ApiKey>(&[]).when(issue).unwrap().remove(0) {
            ApiKeyEvent::Issued(issued) => assert_eq!(issued.scopes, inherited),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_knows_on_whose_word_it_is_and_which_of_its_tokens_count() {
        let ann = MemberId::fresh(1, [3; 10]);
        let by = |actor_type, id: String| Actor { actor_type, id, auth: None };
        let of_a_key = match issue(&json!({}), None) {
            ApiKeyCommand::Issue { command, token, inherited, max_days, .. } => {
                ApiKeyCommand::Issue { command, token, inherited, creator: Some(ann), max_days }
            }
            other => panic!("{other:?}"),
        };
        let of_a_key = given::<ApiKey>(&[]).when(of_a_key).unwrap().remove(0);
        for (event, actor) in [
            (issued(None), by(ActorType::Member, ann.to_string())),
            (of_a_key, by(ActorType::ApiKey, KeyId::fresh(1, [4; 10]).to_string())),
        ] {
            let mut key = ApiKey::default();
            key.apply_at(&event, Place { seq: 1, actor: &actor });
            assert_eq!(key.creator(), Some(ann), "{actor:?}");
        }
        let public_ids = ["AbCdEf012345", "GhIjKl012345", "MnOpQr012345"].map(|text| text.parse().unwrap());
        let [first, second, third]: &[KeyPublicId; 3] = &public_ids;
        let rotated = |public_id: &KeyPublicId, ends| {
            let (secret_mac, last4) = (Fingerprint([7; 32]), "wxyz".to_owned());
            let previous_ends_at = Timestamp::from_unix_ms(ends);
            ApiKeyEvent::Rotated(ApiKeyRotated {
                public_id: public_id.clone(),
                secret_mac,
                last4,
                previous_ends_at,
                expires_at: None,
            })
        };
        let key = given::<ApiKey>(&[issued(None), rotated(second, 10), rotated(third, 20)]).0;
        let ends = |public_id| key.token_ends_at(public_id).map(Timestamp::unix_ms);
        assert_eq!((ends(first), ends(second), ends(third)), (Some(0), Some(20), None));
    }

    #[test]
    fn scopes_and_networks_are_what_they_say() {
        let wrong =
            issue(&json!({"scopes": ["records:eat", "members:manage"], "allowed_ips": ["here", "10.1.2.3/8"]}), None);
        let found = fields(given::<ApiKey>(&[]).when(wrong));
        let expected = [("/allowed_ips/0", "network"), ("/scopes/0", "unknown_value"), ("/scopes/1", "not_in_role")];
        assert_eq!(found, expected.map(|(pointer, code)| (pointer.to_owned(), code.to_owned())));
        let right = issue(&json!({"allowed_ips": ["10.1.2.3/8", "2001:db8::1"]}), None);
        match given::<ApiKey>(&[]).when(right).unwrap().remove(0) {
            ApiKeyEvent::Issued(issued) => assert_eq!(issued.allowed_ips, ["10.0.0.0/8", "2001:db8::1/128"]),
            other => panic!("{other:?}"),
        }
    }
}
