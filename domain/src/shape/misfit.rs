//! Mismatches, in the words of the API: which field, and what it must be.

use std::{borrow::Cow, fmt};

use serde::de::{self, Expected, Unexpected};

use crate::{FieldError, Rejection};

/// The maximum number of listed names.
const MAX_LISTED: usize = 60;
/// The longest text of a caller that is quoted back, in characters.
const MAX_QUOTED: usize = 100;

/// A value of the wrong shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The path: the innermost step first.
    path: Vec<Cow<'static, str>>,
    code: &'static str,
    detail: String,
}

impl Misfit {
    /// A value that must be something else.
    pub fn must_be(what: impl fmt::Display) -> Self {
        Self { path: Vec::new(), code: "type", detail: format!("must be {what}") }
    }

    /// The same, seen from one step further out.
    pub fn under(mut self, step: impl Into<Cow<'static, str>>) -> Self {
        self.path.push(step.into());
        self
    }

    /// A name that is none of `known`.
    pub fn unknown_name(name: &str, known: &[&str]) -> Self {
        let detail = format!("{:?} is not known here; there are: {}", shortened(name), listed(known));
        Self { path: Vec::new(), code: "unknown_value", detail }
    }

    /// A missing field.
    pub fn missing(field: &'static str) -> Self {
        Self { path: vec![field.into()], code: "required", detail: "is missing".to_owned() }
    }

    /// Returns the name of the outermost step, and the fault: for parameters, which have no pointers.
    pub fn named(&self) -> (&str, &str) {
        (self.path.last().map_or("query", |name| name), &self.detail)
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Misfit {}

impl From<Misfit> for Rejection {
    fn from(misfit: Misfit) -> Self {
        let steps = misfit.path.iter().rev().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1")));
        let pointer: String = steps.collect();
        let detail = if pointer.is_empty() { format!("the body {}", misfit.detail) } else { misfit.detail };
        Rejection::invalid(vec![FieldError { pointer, code: misfit.code.into(), detail }])
    }
}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: Vec::new(), code: "type", detail: message.to_string() }
    }

    fn invalid_type(unexpected: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self::custom(format!("must not be {}", kind(unexpected)))
    }

    fn invalid_value(unexpected: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self::custom(format!("must have another value; it is {}", kind(unexpected)))
    }

    fn invalid_length(length: usize, _: &dyn Expected) -> Self {
        Self::custom(format!("must have another number of items than {length}"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::unknown_name(variant, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let detail = match expected {
            [] => "is not known here; there are no fields".to_owned(),
            _ => format!("is not known here; there are: {}", listed(expected)),
        };
        Self { path: vec![shortened(field).into()], code: "unknown_field", detail }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::missing(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self { path: vec![field.into()], code: "duplicate_field", detail: "must come once".to_owned() }
    }
}

fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MAX_LISTED);
    let names: Vec<&str> = names.iter().copied().take(MAX_LISTED).collect();
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= MAX_QUOTED {
        return text.to_owned();
    }
    text.chars().take(MAX_QUOTED).chain(['…']).collect()
}

/// Returns the JSON name of a value's type.
fn kind(value: Unexpected<'_>) -> &'static str {
    match value {
        Unexpected::Bool(true) => "true",
        Unexpected::Bool(false) => "false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Char(_) | Unexpected::Str(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "null",
        Unexpected::Seq => "an array",
        _ => "an object",
    }
}
