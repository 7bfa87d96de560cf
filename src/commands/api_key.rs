//! One API key: issued once, revoked once.

use orgstream_events::{
    AggregateType, ApiKeyEvent, ApiKeyIssued, ApiKeyRevoked, Event, Fingerprint, KeyEnvironment, KeyId, KeyPublicId,
    Role, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Aggregate, Facts, FieldError, Rejection, RejectionKind, openapi, organization::MAX_KEY_DAYS, text::Faults,
};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A key, as decisions see it. By default it does not exist yet.
#[derive(Debug, Clone, Default)]
pub struct ApiKey {
    issued: Option<ApiKeyIssued>,
    revoked: bool,
}

impl ApiKey {
    /// What was issued, if anything was.
    pub fn issued(&self) -> Option<&ApiKeyIssued> {
        self.issued.as_ref()
    }
}

/// What can be asked of a key.
#[derive(Debug, Clone, PartialEq)]
pub enum ApiKeyCommand {
    /// Begin.
    Issue {
        /// As the caller has it.
        command: IssueApiKey,
        /// What is kept of the token that the caller is shown.
        token: TokenParts,
        /// The caller's role: a key is never more than who issues it.
        by: Role,
        /// The longest life that the organization allows, in days.
        max_days: Option<u32>,
    },
    /// End.
    Revoke(RevokeApiKey),
}

/// What is kept of a token. None of it is the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenParts {
    /// The part that names the key.
    pub public_id: KeyPublicId,
    /// What recognizes the secret.
    pub secret_mac: Fingerprint,
    /// What a person tells keys apart by.
    pub last4: String,
}

/// A new API key. The token is in the reply, and never anywhere again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IssueApiKey {
    /// What people call it: 1 to 120 characters.
    #[schema(example = "ci", max_length = 120)]
    pub name: String,
    /// What its bearer may do; not more than you may.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// What it is meant for; `live` unless said otherwise.
    #[serde(default = "live")]
    #[schema(schema_with = openapi::key_environment)]
    pub environment: KeyEnvironment,
    /// When it ends, in RFC 3339. Either this or `expires_in_days`; without both it lives as long as the organization
    /// allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// After how many days it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
}

fn live() -> KeyEnvironment {
    KeyEnvironment::Live
}

/// Ends a key at once. Its row stays for the auditor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevokeApiKey {
    /// Which.
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub id: KeyId,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl Aggregate for ApiKey {
    type Command = ApiKeyCommand;
    type Event = ApiKeyEvent;
    type Error = ApiKeyError;
    const TYPE: AggregateType = AggregateType::ApiKey;

    fn apply(&mut self, event: &ApiKeyEvent) {
        match event {
            ApiKeyEvent::Issued(event) => self.issued = Some(event.clone()),
            ApiKeyEvent::Revoked(_) => self.revoked = true,
        }
    }

    fn decide(&self, command: ApiKeyCommand, facts: &Facts) -> Result<Vec<ApiKeyEvent>, ApiKeyError> {
        match command {
            ApiKeyCommand::Issue { command, token, by, max_days } => {
                if self.issued.is_some() {
                    return Err(ApiKeyError::AlreadyExists);
                }
                let mut faults = Faults::default();
                faults.name("/name", &command.name);
                let expires_at = command.end(facts.now, max_days, &mut faults);
                faults.none_or(ApiKeyError::Invalid)?;
                let IssueApiKey { name, role, environment, .. } = command;
                if !by.includes(role) {
                    return Err(ApiKeyError::RoleAboveOwn { by, role });
                }
                let TokenParts { public_id, secret_mac, last4 } = token;
                let issued = ApiKeyIssued { name, public_id, secret_mac, last4, role, environment, expires_at };
                Ok(vec![ApiKeyEvent::Issued(issued)])
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

impl IssueApiKey {
    /// When the key ends, within what the organization allows.
    fn end(&self, now: Timestamp, max_days: Option<u32>, faults: &mut Faults) -> Option<Timestamp> {
        let after = |days: u32| Timestamp::from_unix_ms(now.unix_ms() + i64::from(days) * DAY_MS);
        let latest = max_days.map(after);
        let (pointer, end) = match (self.expires_at, self.expires_in_days) {
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
}

/// Why a key refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// Its fields are wrong.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// It was issued before.
    #[error("this key was issued already; send a new command id to issue another")]
    AlreadyExists,
    /// No such key.
    #[error("there is no such API key in this organization")]
    NotFound,
    /// More than the caller has.
    #[error("a caller with role {by} cannot issue a key with role {role}; choose a lower role")]
    RoleAboveOwn {
        /// The caller's role.
        by: Role,
        /// The role in question.
        role: Role,
    },
}

impl From<ApiKeyError> for Rejection {
    fn from(error: ApiKeyError) -> Self {
        let (kind, code) = match error {
            ApiKeyError::Invalid(errors) => return Self::invalid(errors),
            ApiKeyError::AlreadyExists => (RejectionKind::Conflict, "api_key_exists"),
            ApiKeyError::NotFound => (RejectionKind::NotFound, "not_found"),
            ApiKeyError::RoleAboveOwn { .. } => (RejectionKind::Forbidden, "role_above_own"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::testing::{facts, fields, given, rejection},
        *,
    };

    fn token() -> TokenParts {
        let public_id = "AbCdEf012345".parse().unwrap();
        TokenParts { public_id, secret_mac: Fingerprint([7; 32]), last4: "wxyz".to_owned() }
    }

    fn issue(fields: &serde_json::Value, by: Role, max_days: Option<u32>) -> ApiKeyCommand {
        let mut json = json!({"name": "ci", "role": "member"});
        for (name, value) in fields.as_object().unwrap() {
            json[name] = value.clone();
        }
        ApiKeyCommand::Issue { command: serde_json::from_value(json).unwrap(), token: token(), by, max_days }
    }

    fn issued(expires_at: Option<Timestamp>) -> ApiKeyEvent {
        let TokenParts { public_id, secret_mac, last4 } = token();
        let (name, role) = ("ci".to_owned(), Role::Member);
        ApiKeyEvent::Issued(ApiKeyIssued { name, public_id, secret_mac, last4, role, environment: live(), expires_at })
    }

    fn revoke() -> ApiKeyCommand {
        ApiKeyCommand::Revoke(RevokeApiKey { id: KeyId::fresh(1, [1; 10]), reason: Some("leaked".to_owned()) })
    }

    fn in_days(days: i64) -> Timestamp {
        Timestamp::from_unix_ms(facts().now.unix_ms() + days * DAY_MS)
    }

    #[test]
    fn a_key_keeps_what_recognizes_its_secret() {
        assert_eq!(given::<ApiKey>(&[]).when(issue(&json!({}), Role::Admin, None)), Ok(vec![issued(None)]));
    }

    #[test]
    fn a_key_lives_as_long_as_the_organization_allows_unless_said_otherwise() {
        let key = given::<ApiKey>(&[]);
        assert_eq!(key.when(issue(&json!({}), Role::Admin, Some(90))), Ok(vec![issued(Some(in_days(90)))]));
        let shorter = issue(&json!({"expires_in_days": 7}), Role::Admin, Some(90));
        assert_eq!(key.when(shorter), Ok(vec![issued(Some(in_days(7)))]));
        let exact = issue(&json!({"expires_at": in_days(90)}), Role::Admin, Some(90));
        assert_eq!(key.when(exact), Ok(vec![issued(Some(in_days(90)))]));
    }

    #[test]
    fn a_key_cannot_outlive_what_the_organization_allows() {
        let later = issue(&json!({"expires_in_days": 91}), Role::Admin, Some(90));
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
            assert_eq!(fields(given::<ApiKey>(&[]).when(issue(&json, Role::Admin, None)))[0].1, code);
        }
    }

    #[test]
    fn a_key_is_never_more_than_who_issues_it() {
        let refused = rejection(given::<ApiKey>(&[]).when(issue(&json!({"role": "owner"}), Role::Admin, None)));
        assert_eq!((refused.code, refused.kind.status()), ("role_above_own", 403));
    }

    #[test]
    fn a_key_is_issued_once() {
        let again = given::<ApiKey>(&[issued(None)]).when(issue(&json!({}), Role::Admin, None));
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
}
