//! The envelope of one event: a header that is safe to keep permanently, and a payload that may one day be erased.
//!
//! The header names the actor, the action, the target and the time, and commits to the payload with a salted hash.
//! Everything personal or large is in the payload. The audit log hashes the stored header bytes, so the header keeps its
//! meaning, its proofs and its place in the log even after the payload is gone.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

use crate::{AggregateId, CommandId, CorrelationId, EventId, OrgId, Timestamp};

/// A SHA-256 hash: bytes in MessagePack, hexadecimal in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns the hash of the concatenated `parts`.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let digits = text
                .as_bytes()
                .chunks(2)
                .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
            digits.collect::<Option<Vec<u8>>>().ok_or_else(|| D::Error::custom("not hexadecimal"))?
        } else {
            serde_bytes::ByteBuf::deserialize(deserializer)?.into_vec()
        };
        let length = bytes.len();
        bytes.try_into().map(Self).map_err(|_| D::Error::custom(format!("a hash has 32 bytes, not {length}")))
    }
}

/// The randomness that hides a payload behind its commitment. One per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

/// An aggregate at one version, counted in events from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AggregateVersion {
    /// The aggregate.
    #[serde(flatten)]
    pub aggregate: AggregateId,
    /// The version after this event; 0 for an access event, which has no order, and for a mark.
    pub version: u64,
}

/// The actor of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The kind of actor.
    #[serde(rename = "type")]
    pub actor_type: ActorType,
    /// A member, key or operator id; `system` and `anonymous` name themselves.
    pub id: String,
    /// How the actor was authenticated, if it was.
    pub auth: Option<Auth>,
}

/// The kinds of actors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorType {
    /// A person, as a member of the org.
    Member,
    /// A program, by an API key of the org.
    ApiKey,
    /// An operator of the platform.
    PlatformOperator,
    /// The product itself.
    System,
    /// An unauthenticated caller.
    Anonymous,
}

impl ActorType {
    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::ApiKey => "api_key",
            Self::PlatformOperator => "platform_operator",
            Self::System => "system",
            Self::Anonymous => "anonymous",
        }
    }
}

/// How an actor was authenticated. Ids only, never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// The kind of credential.
    pub method: AuthMethod,
    /// The API key, when it was one.
    pub key_id: Option<String>,
    /// The session, when it was one.
    pub session_id: Option<String>,
}

/// The kinds of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// An API key of the org.
    ApiKey,
    /// A token of a configured OpenID Connect issuer.
    Oidc,
    /// The platform operator's token.
    PlatformToken,
    /// A session, which was created with a token of an issuer.
    Session,
}

/// The target of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The type of target: `record`, `member`, …
    #[serde(rename = "type")]
    pub target_type: String,
    /// Its id.
    pub id: String,
}

/// The outcome of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Success, denied or failed.
    pub status: OutcomeStatus,
    /// The stable error code, unless it succeeded.
    pub code: Option<String>,
}

impl Outcome {
    /// The successful outcome.
    pub const SUCCESS: Self = Self { status: OutcomeStatus::Success, code: None };
}

/// The three outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// It succeeded.
    Success,
    /// It was denied: the actor lacked the permission.
    Denied,
    /// It was tried and failed.
    Failed,
}

impl OutcomeStatus {
    /// Returns the name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// The data about the request behind an event. Personal, so it is part of the payload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The caller's address as this server saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The caller's user agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

/// Everything about an event but its content. The order of the fields is the order of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of this envelope; 1 today.
    pub v: u8,
    /// The tenant.
    pub org_id: OrgId,
    /// The event's id, unique and the same for every retry of the command.
    pub event_id: EventId,
    /// `noun.verb_past`, the permanent name of the event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The version of the content's shape under that name.
    pub schema: u16,
    /// The aggregate, at the version after this event.
    pub aggregate: AggregateVersion,
    /// When it happened, as reported by the producer.
    pub occurred_at: Timestamp,
    /// When this product accepted it.
    pub recorded_at: Timestamp,
    /// The actor.
    pub actor: Actor,
    /// The targets; the first is the aggregate itself.
    pub targets: Vec<Target>,
    /// The outcome.
    pub outcome: Outcome,
    /// The command that caused it.
    pub command_id: CommandId,
    /// The event that caused the command, if one did.
    pub causation_id: Option<EventId>,
    /// Shared by everything with the same origin.
    pub correlation_id: CorrelationId,
    /// The request id, as in the access log.
    pub request_id: Option<String>,
    /// `SHA-256(salt || content)`: binds the header to its content without showing it.
    pub payload_commit: Fingerprint,
    /// The hash of the payload as stored, once payloads are encrypted; none while they are plain.
    pub payload_cipher_sha256: Option<Fingerprint>,
}
