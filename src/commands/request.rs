//! Requests and their results: the caller, the command, and its outcome.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use orgstream_domain::{Command, Rejection, Requires, Scopes, credentials::key::KeyToken};
use orgstream_events::{
    Actor, ActorType, AggregateId, Cause, Chain, CodecError, CommandId, Context, CorrelationId, EventId, HoldId,
    LoginMethod, OrgId, Position, RecordId, Role, Timestamp, UserId, cause,
};
use orgstream_stream::{AppendError, StreamError};

use super::record_secrets::NewSecrets;
use crate::auth::{Access, AuthError, Authenticator};

/// How long a caller's access is taken for granted before it is checked again.
pub const RECHECK: Duration = Duration::from_millis(250);

/// The caller's access, to be checked again where a command has waited.
#[derive(Clone)]
pub struct Right {
    /// The check.
    pub auth: Arc<Authenticator>,
    /// The access, as last proven.
    pub access: Access,
}

impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Right").field(&self.access.actor()).finish()
    }
}

impl Right {
    /// Checks the access again if it was proven more than [`RECHECK`] ago.
    async fn again(&self) -> Result<Option<Access>, AuthError> {
        if self.access.age() < RECHECK { Ok(None) } else { self.auth.again(&self.access).await.map(Some) }
    }
}

/// The caller, and the data about its request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant, proven by the code that creates this.
    pub org: OrgId,
    /// The actor for the org's events.
    pub actor: Actor,
    /// The role there: no caller grants more than it has.
    pub role: Role,
    /// The scopes within it; nor more than those.
    pub scopes: Scopes,
    /// How the caller was authenticated, and whether that took a second factor; none outside of an organization.
    pub proof: Option<(LoginMethod, bool)>,
    /// The access that was proven; none for the program itself, and for a person who has none yet.
    pub right: Option<Right>,
    /// The person, where one is required: to create an organization or to join it.
    pub creator: Option<Creator>,
    /// The personal data about the request.
    pub context: Context,
    /// The request id, as in the access log.
    pub request_id: Option<String>,
    /// The W3C trace context to continue.
    pub trace: Option<String>,
}

impl Caller {
    /// Returns the program itself, with all rights, as the actor of this id.
    pub fn program(org: OrgId, id: &str) -> Self {
        Self {
            org,
            actor: Actor { actor_type: ActorType::System, id: id.to_owned(), auth: None },
            role: Role::Owner,
            scopes: Scopes::ALL,
            proof: None,
            right: None,
            creator: None,
            context: Context::default(),
            request_id: None,
            trace: None,
        }
    }

    /// Returns the caller with its current rights, if it is still authorized for a command with this requirement: neither a
    /// long array nor a body that comes late extends a lost authorization.
    pub async fn as_now(&self, requires: Requires) -> Result<Cow<'_, Self>, AuthError> {
        let Some(right) = &self.right else { return Ok(Cow::Borrowed(self)) };
        let Some(now) = right.again().await? else { return Ok(Cow::Borrowed(self)) };
        if let Some(permission) = requires.permission() {
            now.require(permission)?;
        }
        let (role, scopes) = (now.role(), now.scopes().clone());
        Ok(Cow::Owned(Self { role, scopes, right: Some(Right { access: now, ..right.clone() }), ..self.clone() }))
    }

    /// Fails where the caller has lost the right under which a command was decided, before its events are appended.
    pub(super) async fn confirm(&self, requires: Requires) -> Result<(), CommandError> {
        let now = self.as_now(requires).await?;
        // It was decided by another role: it is decided again.
        if now.role == self.role && now.scopes == self.scopes { Ok(()) } else { Err(CommandError::Contention) }
    }
}

/// The person who creates an organization and becomes its owner, or who joins it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Creator {
    /// The login identity.
    pub user: UserId,
    /// The e-mail address that their issuer verified.
    pub email: String,
}

/// A command with its metadata.
#[derive(Debug, Clone)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Repeated under the same key, the command has no second effect and the same answer.
    pub idempotency_key: Option<String>,
    /// The version that the caller saw; another one refuses the command.
    pub expected_version: Option<u64>,
    /// When it happened, if that is not now.
    pub occurred_at: Option<Timestamp>,
    /// The event that made the caller send this.
    pub causation_id: Option<EventId>,
    /// The correlation id.
    pub correlation_id: Option<CorrelationId>,
    /// The secrets that were taken out of the command.
    pub secrets: NewSecrets,
}

impl Request {
    /// Whether secrets were taken out of the command.
    pub(super) fn has_secrets(&self) -> bool {
        !self.secrets.is_empty()
    }
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self {
            command,
            idempotency_key: None,
            expected_version: None,
            occurred_at: None,
            causation_id: None,
            correlation_id: None,
            secrets: NewSecrets::default(),
        }
    }
}

/// The result of an accepted command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The command.
    pub command_id: CommandId,
    /// Its aggregate, with the id of a created one.
    pub aggregate: AggregateId,
    /// The aggregate's version after it.
    pub version: u64,
    /// Its position in the org's stream.
    pub position: Position,
    /// The names of its events.
    pub events: Vec<String>,
    /// The records that it appended, in the order of the command; empty for other commands.
    pub records: Vec<RecordId>,
    /// The hold that it opened.
    pub hold: Option<HoldId>,
    /// Whether it had been accepted before, and this is the same answer again.
    pub replayed: bool,
    /// The secret of a new API key; shown here and nowhere else.
    pub token: Option<KeyToken>,
}

/// The reason why a command was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The caller is no longer authorized.
    #[error(transparent)]
    Unauthorized(#[from] AuthError),
    /// The domain rules refuse it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// There is no such org.
    #[error("there is no organization {0}")]
    NoOrganization(OrgId),
    /// The caller saw another version.
    #[error("the version is {actual}, not {expected}: read it again and decide anew")]
    VersionConflict {
        /// The version that the caller saw.
        expected: u64,
        /// The current version.
        actual: u64,
    },
    /// Other writers held the same aggregate for the whole retry budget.
    #[error("others are writing to the same thing; try again")]
    Contention,
    /// The idempotency key belongs to another command.
    #[error("this idempotency key was used for another command")]
    KeyReused,
    /// The events do not fit into a message.
    #[error(transparent)]
    TooLarge(CodecError),
    /// The stream did not answer in time; the command may or may not be in it. Repeated under the same idempotency key, it
    /// will have one effect.
    #[error("the event log does not answer")]
    Unavailable(#[source] Cause),
    /// The log has lost history: nothing is appended until an operator has decided.
    #[error(transparent)]
    HistoryLost(Cause),
    /// The command has a secret, and this process has no key ring to seal it with.
    #[error("the command has a secret, and this process has no key ring")]
    NoKeyRing,
    /// The command has a secret, and the key ring does not seal it. Nothing was appended.
    #[error("the command has a secret, which cannot be sealed")]
    KeyRing(#[source] Cause),
    /// An internal error.
    #[error(transparent)]
    Internal(Cause),
}

impl CommandError {
    /// Whether the command certainly had no effect.
    pub(super) fn is_certain(&self) -> bool {
        match self {
            Self::Unauthorized(_)
            | Self::Rejected(_)
            | Self::NoOrganization(_)
            | Self::VersionConflict { .. }
            | Self::Contention
            | Self::KeyReused
            | Self::NoKeyRing
            | Self::KeyRing(_)
            | Self::TooLarge(_) => true,
            Self::Unavailable(_) | Self::HistoryLost(_) | Self::Internal(_) => false,
        }
    }
}

impl From<StreamError> for CommandError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Unavailable { .. } => Self::Unavailable(cause(error)),
            StreamError::Lost { .. } | StreamError::Behind { .. } => Self::HistoryLost(cause(error)),
            other => Self::Internal(cause(other)),
        }
    }
}

impl From<AppendError> for CommandError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict { .. } => Self::Contention,
            AppendError::KeyReused { .. } => Self::KeyReused,
            AppendError::Codec(error @ (CodecError::TooLarge { .. } | CodecError::EventCount { .. })) => {
                Self::TooLarge(error)
            }
            AppendError::Codec(error) => {
                tracing::error!(error = %Chain(&error), "a command's events do not read back as they were decided");
                let detail = "the command was not taken: its content would not read back as it was sent";
                Rejection::field("", "not_kept", detail).into()
            }
            AppendError::Unavailable { .. } => Self::Unavailable(cause(error)),
            AppendError::Stream(error) => error.into(),
            AppendError::Lost { .. } => Self::HistoryLost(cause(error)),
            other => Self::Internal(cause(other)),
        }
    }
}
