//! One API key: issued once, rotated at will, revoked once.

mod commands;
#[cfg(test)]
mod tests;

use ipnet::IpNet;
use orgstream_events::{
    ActorType, AggregateType, ApiKeyEvent, ApiKeyIssued, ApiKeyRevoked, ApiKeyRotated, Event, Fingerprint, KeyPublicId,
    MemberId, QuotaName, Role, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    Aggregate, DecisionContext, FieldError, Permission, Place, Rejection, RejectionKind, settings::MAX_KEY_DAYS,
    text::Faults,
};

pub use commands::{IssueApiKey, RevokeApiKey, RotateApiKey};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// The maximum time that the previous token stays valid after a rotation.
const MAX_OVERLAP_SECONDS: u32 = 7 * 24 * 60 * 60;
/// The maximum number of networks of one key.
const MAX_NETWORKS: usize = 32;

/// The state of a key. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ApiKey {
    issued: Option<ApiKeyIssued>,
    expires_at: Option<Timestamp>,
    revoked: bool,
    issued_by: Option<(ActorType, String)>,
    issued_at: Option<Timestamp>,
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

    /// Returns when it was issued.
    pub fn issued_at(&self) -> Option<Timestamp> {
        self.issued_at
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

impl Aggregate for ApiKey {
    type Command = ApiKeyCommand;
    type Event = ApiKeyEvent;
    type Error = ApiKeyError;
    const TYPE: AggregateType = AggregateType::ApiKey;
    const SHAPE: u16 = 2;

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
            self.issued_at = Some(place.recorded_at);
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

    fn quota_changes(&self, events: &[Event], now: Timestamp) -> Vec<(QuotaName, i64)> {
        let works = |key: &Self| key.issued.is_some() && !key.revoked && key.expires_at.is_none_or(|end| end > now);
        let mut after = self.clone();
        for event in events.iter().filter_map(Self::event_of) {
            after.apply(event);
        }
        vec![(QuotaName::ApiKeys, i64::from(works(&after)) - i64::from(works(self)))]
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
