//! All errors as a caller sees them: RFC 9457 problem details with a stable code. HTTP and NATS share this one table.

use std::{collections::BTreeMap, error::Error, fmt, time::Duration};

use orgstream_domain::{FieldError, Misfit, Rejection, quota::QUOTA_CODES};
use orgstream_events::{Chain, MAX_COMMIT_BYTES, OrgId};
use orgstream_projections::DbError;
use orgstream_stream::StreamError;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::seldom::Seldom;
use crate::{
    auth::AuthError,
    clock::now,
    commands::{request::CommandError, vault::VaultError},
    limits::{
        Limit, OverLimit,
        command_rate::{CommandRate, LimitedBy, Rated},
    },
};

/// One error, `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// Permanent URI of the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "https://orgstream.dev/problems/not_found")]
    pub problem_type: String,
    /// Kind of problem in words.
    pub title: &'static str,
    /// HTTP status of the answer.
    #[schema(example = 404)]
    pub status: u16,
    /// Kind of problem for programs: one of a fixed list, see `docs/reference/errors.md`.
    #[schema(example = "not_found")]
    pub code: &'static str,
    /// Fault of this request, and the way out.
    pub detail: String,
    /// Path of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Id of the request, for support.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Organization id, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub org_id: Option<OrgId>,
    /// Wrong fields of the command, at most 20 of a record's data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Figures of the refusal, where the code has some: `required`, `available`, `held`, `used`, `limit`, `resets_at`,
    /// `free_at`, `ends_at` or `trial_ended_at`, as texts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false, example = json!({"required": "7", "available": "6"}))]
    pub figures: BTreeMap<&'static str, String>,
    /// Milliseconds until a retry makes sense; `Retry-After` has it in seconds.
    #[serde(rename = "retry_after_ms", skip_serializing_if = "Option::is_none", serialize_with = "milliseconds")]
    #[schema(value_type = Option<u64>, example = 250)]
    pub retry_after: Option<Duration>,
}

#[expect(clippy::ref_option, reason = "serde calls it like this")]
fn milliseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).serialize(serializer)
}

impl Problem {
    /// Creates a problem of a known code.
    pub fn new(status: u16, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            problem_type: format!("https://orgstream.dev/problems/{code}"),
            title,
            status,
            code,
            detail: detail.into(),
            instance: None,
            request_id: None,
            org_id: None,
            errors: Vec::new(),
            figures: BTreeMap::new(),
            retry_after: None,
        }
    }

    /// The resource does not exist, or not for this caller: the same words either way.
    pub fn not_found() -> Self {
        Self::new(404, "not_found", "Not found", "There is no such thing here.")
    }

    /// The request cannot be parsed.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(400, "bad_request", "Bad request", detail)
    }

    /// A parameter of the path, the query or the subject is invalid.
    pub fn invalid_parameter(name: &str, rule: impl fmt::Display) -> Self {
        Self::new(400, "invalid_parameter", "Invalid parameter", format!("{name}: {rule}"))
    }

    /// The request can be parsed, but its values are invalid.
    pub fn invalid(pointer: &str, code: &'static str, detail: impl Into<String>) -> Self {
        let field = FieldError { pointer: pointer.to_owned(), code: code.into(), detail: detail.into() };
        Rejection::invalid(vec![field]).into()
    }

    /// More bytes, or more items, than the limit that `detail` names.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(413, "payload_too_large", "Too large", detail)
    }

    /// The media type is unsupported.
    pub fn unsupported(detail: &str) -> Self {
        Self::new(415, "unsupported_media_type", "Unsupported media type", detail)
    }

    /// An internal error. Its cause goes to the log, not to the caller.
    pub fn internal(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        tracing::error!(error = %Chain(error.into().as_ref()), "a request failed through a fault of ours");
        Self::new(
            500,
            "internal",
            "Internal error",
            "Something went wrong on our side; the request id finds it in the log.",
        )
    }

    /// A dependency of this program does not answer.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(503, "unavailable", "Temporarily unavailable", detail);
        Self { retry_after: Some(Duration::from_secs(1)), ..problem }
    }

    /// The log has lost history, and nothing is appended to it.
    pub fn history_lost() -> Self {
        let detail = "The event log has lost messages of the part that this organization is in, so it takes no commands until \
                      the platform's operator has decided how to go on. Nothing of this command counts.";
        Self::new(503, "history_lost", "History lost", detail)
    }

    /// No more connections are accepted.
    pub fn too_many_connections() -> Self {
        let problem = Self::new(
            503,
            "too_many_connections",
            "Too many connections",
            "As many connections are open as may be, here or from your address: close some that you do not need, or try again.",
        );
        Self { retry_after: Some(Duration::from_secs(1)), ..problem }
    }

    /// The in-flight limit of requests of one caller is reached.
    pub fn too_many_requests(most: usize, whose: &str) -> Self {
        Self::too_much_at_once(&format!(
            "{most} requests of {whose} are under way already, which is the most at one time"
        ))
    }

    /// The in-flight limit of body bytes of one organization, or of a caller outside of any, is reached.
    pub fn too_many_bodies() -> Self {
        Self::too_much_at_once("your large requests that came before take too long")
    }

    /// A body arrives slower than required.
    pub fn body_too_slow(patience: Duration, slowest: usize) -> Self {
        let detail = format!(
            "the body came too slowly: after {} seconds at least {} KiB of it must come in each second",
            patience.as_secs(),
            slowest >> 10
        );
        let problem = Self::new(408, "body_too_slow", "Too slow", detail);
        Self { retry_after: Some(Duration::from_secs(1)), ..problem }
    }

    fn too_much_at_once(why: &str) -> Self {
        let detail = format!("Not tried: {why}. Wait for answers before you send more.");
        let problem = Self::new(429, "concurrency_limit_exceeded", "Too much at once", detail);
        Self { retry_after: Some(Duration::from_secs(1)), ..problem }
    }

    /// The limit of open streams of one caller is reached.
    pub fn too_many_streams(most: usize, whose: &str) -> Self {
        let detail = format!("{most} streams of {whose} are open already, which is the most: close one, or share one.");
        let problem = Self::new(429, "too_many_streams", "Too many streams", detail);
        Self { retry_after: Some(Duration::from_secs(5)), ..problem }
    }

    /// This process is at capacity.
    pub fn overloaded() -> Self {
        let detail = "Not tried: this server holds as much as it can at the moment. Send it again, with the same \
                      idempotency key.";
        let problem = Self::new(503, "overloaded", "Too much to do", detail);
        Self { retry_after: Some(Duration::from_secs(1)), ..problem }
    }

    /// The command is behind another of the same request that has to be sent again.
    pub fn not_tried() -> Self {
        Self::unavailable(
            "Not tried: an earlier command of this request is about the same thing and has to be sent again. \
             Send both again with the same idempotency keys.",
        )
    }

    /// Adds the organization that it happened in: but the text of a 404 must not depend on whether the resource exists in
    /// another one.
    pub fn inside(self, org: Option<OrgId>) -> Self {
        Self { org_id: org.filter(|_| self.status != 404), ..self }
    }

    /// Whether the organization has as much of something as it may have.
    pub fn is_over_quota(&self) -> bool {
        QUOTA_CODES.contains(&self.code)
    }

    /// Whether the same request may succeed later, or already has.
    pub fn may_pass(&self) -> bool {
        self.retry_after.is_some() || self.status >= 500
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let title = match rejection.kind.status() {
            402 => "Payment required",
            404 => "Not found",
            403 => "Not allowed",
            409 => "Conflict",
            429 => "Limit reached",
            _ => "Not valid",
        };
        let problem = Self::new(rejection.kind.status(), rejection.code, title, rejection.detail);
        let retry_after = rejection.retry_at.map(|moment| {
            let wait = moment.unix_ms().saturating_sub(now().unix_ms());
            Duration::from_millis(u64::try_from(wait).unwrap_or_default())
        });
        Self { errors: rejection.errors, figures: rejection.figures.into_iter().collect(), retry_after, ..problem }
    }
}

impl From<OverLimit> for Problem {
    fn from(over: OverLimit) -> Self {
        let problem = match over.limit {
            Limit::Commands(CommandRate { of, per_second, burst, by }) => {
                let whose = match by {
                    LimitedBy::Organization => "this organization",
                    LimitedBy::Plan => "an organization of this plan",
                };
                let what = of.name();
                let what = if per_second.get() == 1 { what.trim_end_matches('s') } else { what };
                let allowed = format!(
                    "Not tried: {whose} may send {per_second} {what} a second, and {burst} at once after a pause."
                );
                let or_ask = "or ask the platform's operator for a higher limit.";
                match of {
                    Rated::Commands => {
                        let detail = format!("{allowed} Send it again later, with the same idempotency key, {or_ask}");
                        Self::new(429, "rate_limit_exceeded", "Too many commands", detail)
                    }
                    Rated::Reads => {
                        let detail =
                            format!("{allowed} Read again later, follow the events instead of asking, {or_ask}");
                        Self::new(429, "read_rate_exceeded", "Too many reads", detail)
                    }
                }
            }
            Limit::Invitations(hourly) => {
                let detail = format!(
                    "Not tried: an organization sends {hourly} invitations an hour. Send it again later, or ask the \
                     platform's operator for more (--invitations-per-hour)"
                );
                Self::new(429, "invitation_limit_exceeded", "Too many invitations", detail)
            }
            Limit::Organizations(hourly) => {
                let detail = format!(
                    "Not tried: one person makes {hourly} organizations an hour. Try again later, or ask the platform's \
                     operator for more (--organizations-per-hour)"
                );
                Self::new(429, "organization_limit_exceeded", "Too many organizations", detail)
            }
            Limit::SecretUses(hourly) => {
                let detail = format!(
                    "Not shown: an organization uses {hourly} secrets an hour. Keep a value for as long as you need it, or ask \
                     the platform's operator for more (--secret-uses-per-hour)"
                );
                Self::new(429, "secret_limit_exceeded", "Too many uses of secrets", detail)
            }
        };
        Self { retry_after: Some(over.retry_after), ..problem }
    }
}

impl From<Misfit> for Problem {
    fn from(misfit: Misfit) -> Self {
        Rejection::from(misfit).into()
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let detail = Chain(&error).to_string();
        match error {
            AuthError::Unauthenticated(_) | AuthError::KeyRefused { .. } => {
                Self::new(401, "unauthenticated", "Not signed in", detail)
            }
            AuthError::NotFound => Self::not_found(),
            AuthError::Forbidden { .. } => Self::new(403, "forbidden", "Not allowed", detail),
            AuthError::Suspended => Self::new(403, "organization_suspended", "Suspended", detail),
            AuthError::BeingDeleted => Self::new(403, "organization_being_deleted", "Being deleted", detail),
            AuthError::FreshSignInRequired => Self::new(403, "fresh_sign_in_required", "Not with this sign-in", detail),
            AuthError::SessionOnly => Self::new(403, "session_only", "Not with an API key", detail),
            AuthError::KeyOnly => Self::new(403, "key_only", "Not without an API key", detail),
            AuthError::SessionRequired => Self::new(403, "session_required", "Not without a session", detail),
            AuthError::SignInRequired => Self::new(403, "sign_in_required", "Not with a session", detail),
            AuthError::ActiveOrgChanged { .. } => {
                Self::new(409, "active_org_changed", "Another organization is active", detail)
            }
            AuthError::MethodNotAllowed { .. } => {
                Self::new(403, "auth_method_not_allowed", "Not signed in this way", detail)
            }
            AuthError::MfaRequired => Self::new(403, "mfa_required", "Not without a second factor", detail),
            AuthError::CrossSite => Self::new(403, "cross_site_request", "Not from another site", detail),
            AuthError::TooManySessions { .. } => Self::new(409, "too_many_sessions", "Too many sessions", detail),
            AuthError::TenantMismatch => Self::new(403, "tenant_mismatch", "Another organization", detail),
            AuthError::Unavailable(_) => {
                static LINE: Seldom = Seldom::new();
                if let Some(times) = LINE.may_say() {
                    tracing::warn!(error = detail, times, "credentials could not be checked");
                }
                Self::unavailable("The credential cannot be checked at the moment; try again.")
            }
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        let detail = Chain(&error).to_string();
        match error {
            CommandError::Unauthorized(error) => error.into(),
            CommandError::Rejected(rejection) => rejection.into(),
            CommandError::NoOrganization(_) => Self::not_found(),
            CommandError::VersionConflict { .. } => {
                Self::new(412, "version_conflict", "Changed in the meantime", detail)
            }
            CommandError::Contention => {
                let problem = Self::new(409, "contention", "Too many writers", detail);
                Self { retry_after: Some(Duration::from_secs(1)), ..problem }
            }
            CommandError::KeyReused => Self::new(422, "idempotency_key_reused", "Idempotency key used before", detail),
            CommandError::TooLarge(_) => {
                Self::too_large(format!("{detail}; a command's events may have {MAX_COMMIT_BYTES} bytes together"))
            }
            CommandError::Unavailable(_) => {
                tracing::warn!(error = detail, "a command could not be appended");
                Self::unavailable(
                    "The event log does not answer, so it is not known whether the command took effect. \
                     Send it again with the same Idempotency-Key: it will have one effect.",
                )
            }
            CommandError::HistoryLost(_) => {
                tracing::warn!(error = detail, "a command was not taken");
                Self::history_lost()
            }
            CommandError::NoKeyRing => VaultError::NoKeyRing.into(),
            CommandError::KeyRing(_) => {
                tracing::error!(error = detail, "a secret could not be sealed");
                Self::unavailable("The secret cannot be sealed at the moment, and nothing was stored; try again.")
            }
            error @ CommandError::Internal(_) => Self::internal(error),
        }
    }
}

impl From<VaultError> for Problem {
    fn from(error: VaultError) -> Self {
        let detail = Chain(&error).to_string();
        match error {
            VaultError::NoKeyRing => {
                let detail = "Secrets are neither taken nor shown here, because this server has no key ring: the platform's \
                              operator sets one (--key-ring).";
                Self::new(503, "secrets_unavailable", "No key ring", detail)
            }
            VaultError::Destroyed(_) => {
                let detail = "The value of this secret was destroyed: set it again.";
                Self::new(409, "secret_destroyed", "Destroyed", detail)
            }
            VaultError::Contention(_) => CommandError::Contention.into(),
            VaultError::Stream(error) => error.into(),
            VaultError::KeyRing(_) => {
                tracing::error!(error = detail, "a secret could not be opened");
                Self::unavailable("The key ring does not answer at the moment; try again.")
            }
            error @ (VaultError::AnotherRing(_) | VaultError::Lost(_)) => Self::internal(error),
        }
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        if matches!(error, DbError::Target { .. }) {
            static LINE: Seldom = Seldom::new();
            if let Some(times) = LINE.may_say() {
                tracing::warn!(error = %Chain(&error), times, "a search could not be answered");
            }
            let detail = "The index of this organization is in a search target that does not answer at the moment. Nothing is lost: \
                          try again; listings and reads of single records do not need it.";
            let problem = Self::new(503, "search_target_unavailable", "No search at the moment", detail);
            Self { retry_after: Some(Duration::from_secs(1)), ..problem }
        } else if error.is_retryable() {
            tracing::warn!(error = %Chain(&error), "a query could not be answered");
            Self::unavailable("The read models do not answer at the moment; try again.")
        } else {
            Self::internal(error)
        }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Unavailable { .. } => {
                tracing::warn!(error = %Chain(&error), "the event log could not be read");
                Self::unavailable("The event log does not answer at the moment; try again.")
            }
            StreamError::Lost { .. } | StreamError::Behind { .. } => {
                tracing::warn!(error = %Chain(&error), "the event log could not be read");
                Self::history_lost()
            }
            other => Self::internal(other),
        }
    }
}
