//! Bodies and parameters: parsed in one way for every route and every protocol.
//!
//! First the bytes become a value (`read`), and whatever would not be returned as it was sent is refused: a number that
//! would be rounded, a duplicate field, values that JSON or the database does not have. Then the value takes the shape of
//! the route (`shape`), in which an object is an object and never an array of its fields. Both point at the fault, in the
//! words of the API.

mod number;
mod parameters;
mod read;

use serde::de::DeserializeOwned;

pub use parameters::read_parameters;
pub use read::{Reading, malformed, read, refused};

use orgstream_domain::shaped;

use crate::app::problem::Problem;

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/msgpack`: maps with field names, ids and times as text, exactly the JSON objects in other bytes.
    MessagePack,
}

/// Parses a JSON body of a known shape. Malformed JSON is 400; a value that cannot be kept or has another shape is 422, with
/// a pointer.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    shaped(read(body, Format::Json)?.whole()?).map_err(Problem::from)
}

#[cfg(test)]
mod tests;
