//! Conversions between the types of events and those of columns.

use orgstream_events::{Actor, ActorType, Fingerprint, MemberId};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned, ser::Error};
use serde_json::{Value, value::RawValue};

use crate::DbError;

/// The creator of a row's resource, as the event names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedBy {
    /// The type of actor.
    pub actor_type: ActorType,
    /// A member, key or operator id.
    pub id: String,
}

impl CreatedBy {
    pub(crate) fn stored(actor_type: String, id: String) -> Result<Self, DbError> {
        Ok(Self { actor_type: from_wire("an actor type", actor_type)?, id })
    }
}

impl CreatedBy {
    /// Returns the member, if it was one.
    pub fn member(&self) -> Option<MemberId> {
        (self.actor_type == ActorType::Member).then(|| self.id.parse().ok()).flatten()
    }
}

impl From<&Actor> for CreatedBy {
    fn from(actor: &Actor) -> Self {
        Self { actor_type: actor.actor_type, id: actor.id.clone() }
    }
}

/// A counter as a PostgreSQL `bigint`. Sequences never reach the difference in range.
pub(crate) fn to_bigint(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A counter that a constraint keeps from being negative.
pub(crate) fn from_bigint(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// The wire name of a unit variant, as stored in text columns.
pub(crate) fn wire_name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The variant with this wire name.
pub(crate) fn from_wire<T: DeserializeOwned>(what: &'static str, name: String) -> Result<T, DbError> {
    serde_json::from_value(Value::String(name.clone())).map_err(|_| DbError::Unreadable { what, value: name })
}

/// Parses a stored name or id.
pub(crate) fn parsed<T: std::str::FromStr>(what: &'static str, text: String) -> Result<T, DbError> {
    text.parse().map_err(|_| DbError::Unreadable { what, value: text })
}

/// Deserializes stored JSON.
pub(crate) fn from_json<T: DeserializeOwned>(what: &'static str, json: &Value) -> Result<T, DbError> {
    T::deserialize(json).map_err(|_| DbError::Unreadable { what, value: json.to_string() })
}

/// One column of `rows`, as `unnest` expects it.
pub(crate) fn column<'a, R, T>(rows: &'a [R], value: impl FnMut(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// 32 bytes, as a constraint ensures.
pub(crate) fn fingerprint(what: &'static str, bytes: Vec<u8>) -> Result<Fingerprint, DbError> {
    let bytes =
        bytes.try_into().map_err(|bytes: Vec<u8>| DbError::Unreadable { what, value: format!("{bytes:02x?}") })?;
    Ok(Fingerprint(bytes))
}

/// A client's JSON on its way to a column and back, unchanged.
///
/// PostgreSQL keeps a number by its decimal digits: a double that is written without a point would come back as an
/// integer. And every field name is taken literally, see [`orgstream_events::json`].
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Document(#[serde(deserialize_with = "orgstream_events::json::deserialize")] pub(crate) Value);

/// A borrowed document, for writing.
pub(crate) struct Written<'a>(pub(crate) &'a Value);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()).and_then(point) {
                Some(text) => RawValue::from_string(text).map_err(S::Error::custom)?.serialize(serializer),
                None => number.serialize(serializer),
            },
            Value::Array(items) => serializer.collect_seq(items.iter().map(Written)),
            Value::Object(fields) => serializer.collect_map(fields.iter().map(|(name, value)| (name, Written(value)))),
            value @ (Value::Null | Value::Bool(_) | Value::String(_)) => value.serialize(serializer),
        }
    }
}

/// A double as a decimal with a point, where it would look like a 64-bit integer without one.
fn point(double: f64) -> Option<String> {
    (1e15..1e20).contains(&double.abs()).then(|| format!("{double:.1}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_double_keeps_its_point() {
        for (double, text) in [
            (1e16, "10000000000000000.0"),
            (-1e16, "-10000000000000000.0"),
            (1.844_674_407_370_955e19, "18446744073709549568.0"),
            (1.0, "1.0"),
            (0.5, "0.5"),
            (1e20, "1e+20"),
        ] {
            let written = serde_json::to_string(&Written(&json!({"a": [double]}))).unwrap();
            assert_eq!(written, format!("{{\"a\":[{text}]}}"));
            assert_eq!(serde_json::from_str::<Document>(&written).unwrap().0, json!({"a": [double]}));
        }
        for plain in [json!(10_000_000_000_000_000_u64), json!(-7), json!(u64::MAX), json!(["x", null, true, 1.5e300])]
        {
            assert_eq!(serde_json::to_string(&Written(&plain)).unwrap(), plain.to_string());
        }
    }
}
