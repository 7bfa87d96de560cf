//! The envelope of one event: a header that is safe to keep for ever, and a payload that may one day be erased.
//!
//! The header names who did what to which thing and when, and commits to the payload with a salted hash. Everything
//! personal or bulky is in the payload. The audit log hashes the stored header bytes, so the header keeps its meaning,
//! its proofs and its place in the log even after the payload is gone.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

use crate::{AggregateId, CommandId, CorrelationId, EventId, OrgId, Timestamp};

/// A SHA-256 hash: bytes in MessagePack, hexadecimal in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The hash of the concatenated `parts`.
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
    /// The version that this event brought it to; 0 for a fact, which is in no order with others, and for a mark.
    pub version: u64,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// What kind of actor.
    #[serde(rename = "type")]
    pub actor_type: ActorType,
    /// A member, key or operator id; `system` and `anonymous` name themselves.
    pub id: String,
    /// How the actor proved it, where there was something to prove.
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
    /// Nobody who could be told.
    Anonymous,
}

impl ActorType {
    /// The name on the wire.
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

/// How an actor was recognized. Ids only, never a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// By which kind of credential.
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
    /// A session, which began with a token of an issuer.
    Session,
}

/// A thing that was acted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What kind of thing: `record`, `member`, …
    #[serde(rename = "type")]
    pub target_type: String,
    /// Its id.
    pub id: String,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Done, refused or failed.
    pub status: OutcomeStatus,
    /// The stable error code, when it was not done.
    pub code: Option<String>,
}

impl Outcome {
    /// It was done.
    pub const SUCCESS: Self = Self { status: OutcomeStatus::Success, code: None };
}

/// The three ways to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// Done.
    Success,
    /// Refused: the actor was not allowed to.
    Denied,
    /// Tried and failed.
    Failed,
}

impl OutcomeStatus {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// What is known of the request behind an event. Personal, so it is part of the payload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The caller's address as this server saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// What the caller calls itself.
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
    /// Unique, and the same however often the command is retried.
    pub event_id: EventId,
    /// `noun.verb_past`, the permanent name of what happened.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The version of the content's shape under that name.
    pub schema: u16,
    /// The aggregate, at the version that this event made.
    pub aggregate: AggregateVersion,
    /// When it happened, as the producer says.
    pub occurred_at: Timestamp,
    /// When this product accepted it.
    pub recorded_at: Timestamp,
    /// Who did it.
    pub actor: Actor,
    /// What it was done to; the first is the thing itself.
    pub targets: Vec<Target>,
    /// How it ended.
    pub outcome: Outcome,
    /// The command that this follows from.
    pub command_id: CommandId,
    /// The event that caused the command, if one did.
    pub causation_id: Option<EventId>,
    /// Shared by everything that follows from one beginning.
    pub correlation_id: CorrelationId,
    /// The request, as the access log has it.
    pub request_id: Option<String>,
    /// `SHA-256(salt || content)`: binds the header to its content without showing it.
    pub payload_commit: Fingerprint,
    /// The hash of the payload as stored, once payloads are encrypted; none while they are plain.
    pub payload_cipher_sha256: Option<Fingerprint>,
}
