//! Rejections: one shape for every API, so that HTTP and NATS give the same answer.

use std::{borrow::Cow, fmt};

use orgstream_events::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A rejection that every caller understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// A stable code in snake case, for programs to match on.
    pub code: &'static str,
    /// The class of the rejection.
    pub kind: RejectionKind,
    /// One sentence for people, naming the remedy.
    pub detail: String,
    /// The invalid fields, if that is the reason.
    pub errors: Vec<FieldError>,
    /// What programs go on with: the name and the text of each figure that the sentence has.
    pub figures: Vec<(&'static str, String)>,
    /// The time before which no retry makes sense.
    pub retry_at: Option<Timestamp>,
}

/// The classes of rejections, by the action required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionKind {
    /// The command is malformed: 422.
    Invalid,
    /// The resource does not exist here: 404.
    NotFound,
    /// The command conflicts with the current state: 409.
    Conflict,
    /// The caller lacks the permission: 403.
    Forbidden,
    /// Something has to be paid for first: 402.
    PaymentRequired,
    /// A limit of the organization is reached for now: 429.
    LimitReached,
}

impl RejectionKind {
    /// Returns the HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Forbidden => 403,
            Self::PaymentRequired => 402,
            Self::LimitReached => 429,
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer to the wrong field of the command.
    #[schema(example = "/data/score")]
    pub pointer: String,
    /// Fault for programs: snake case, or the keyword of the JSON Schema.
    #[schema(example = "maximum", value_type = String)]
    pub code: Cow<'static, str>,
    /// Fault in words.
    #[schema(example = "value is greater than the maximum of 1")]
    pub detail: String,
}

impl Rejection {
    /// Creates a rejection without fields.
    pub fn new(kind: RejectionKind, code: &'static str, detail: impl fmt::Display) -> Self {
        Self { code, kind, detail: detail.to_string(), errors: Vec::new(), figures: Vec::new(), retry_at: None }
    }

    /// Creates a rejection for the value of one field.
    pub fn field(pointer: impl Into<String>, code: &'static str, detail: impl fmt::Display) -> Self {
        Self::invalid(vec![FieldError { pointer: pointer.into(), code: code.into(), detail: detail.to_string() }])
    }

    /// Creates a rejection for the values of fields.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] if only.pointer.is_empty() => only.detail.clone(),
            [only] => format!("{}: {}", only.pointer, only.detail),
            several => format!("{} fields are not as they must be; `errors` names each", several.len()),
        };
        Self { errors, ..Self::new(RejectionKind::Invalid, "validation_error", detail) }
    }

    /// Adds figures.
    pub(crate) fn with(self, figures: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self { figures: figures.into_iter().collect(), ..self }
    }

    /// Says from when on a retry makes sense.
    pub(crate) fn until(self, moment: Timestamp) -> Self {
        Self { retry_at: Some(moment), ..self }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Rejection {}
