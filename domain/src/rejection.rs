//! Refusals: one shape for every way in, so that HTTP and NATS say the same thing.

use std::{borrow::Cow, fmt};

use serde::Serialize;
use utoipa::ToSchema;

/// A refusal that every caller understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Stable, in snake case; what programs match on.
    pub code: &'static str,
    /// What class of refusal.
    pub kind: RejectionKind,
    /// One sentence for people, saying the way out.
    pub detail: String,
    /// The fields that are wrong, if that is the reason.
    pub errors: Vec<FieldError>,
}

/// The classes of refusals, by whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionKind {
    /// The command cannot be meant like this: 422.
    Invalid,
    /// The thing does not exist here: 404.
    NotFound,
    /// The command makes sense, but not now: 409.
    Conflict,
    /// Not for this caller: 403.
    Forbidden,
}

impl RejectionKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Forbidden => 403,
        }
    }
}

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
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
    /// A refusal without fields.
    pub fn new(kind: RejectionKind, code: &'static str, detail: impl fmt::Display) -> Self {
        Self { code, kind, detail: detail.to_string(), errors: Vec::new() }
    }

    /// A refusal for the value of one field.
    pub fn field(pointer: impl Into<String>, code: &'static str, detail: impl fmt::Display) -> Self {
        Self::invalid(vec![FieldError { pointer: pointer.into(), code: code.into(), detail: detail.to_string() }])
    }

    /// A refusal for the values of fields.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] if only.pointer.is_empty() => only.detail.clone(),
            [only] => format!("{}: {}", only.pointer, only.detail),
            several => format!("{} fields are not as they must be; `errors` names each", several.len()),
        };
        Self { code: "validation_error", kind: RejectionKind::Invalid, detail, errors }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Rejection {}
