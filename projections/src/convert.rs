//! Between the types of events and those of columns.

use orgstream_events::{Actor, ActorType, Fingerprint, MemberId};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::DbError;

/// Who made a row's thing, as the event names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedBy {
    /// What kind of actor.
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
    /// The member, if it was one.
    pub fn member(&self) -> Option<MemberId> {
        (self.actor_type == ActorType::Member).then(|| self.id.parse().ok()).flatten()
    }
}

impl From<&Actor> for CreatedBy {
    fn from(actor: &Actor) -> Self {
        Self { actor_type: actor.actor_type, id: actor.id.clone() }
    }
}

/// A counter as PostgreSQL has it. Sequences do not come near the difference.
pub(crate) fn to_bigint(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A counter that a constraint keeps from being negative.
pub(crate) fn from_bigint(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// The name that a unit variant has on the wire: what the text columns hold.
pub(crate) fn wire_name<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The variant that has this name on the wire.
pub(crate) fn from_wire<T: DeserializeOwned>(what: &'static str, name: String) -> Result<T, DbError> {
    serde_json::from_value(Value::String(name.clone())).map_err(|_| DbError::Unreadable { what, value: name })
}

/// A name or id that is parsed again on its way out.
pub(crate) fn parsed<T: std::str::FromStr>(what: &'static str, text: String) -> Result<T, DbError> {
    text.parse().map_err(|_| DbError::Unreadable { what, value: text })
}

/// JSON that has a shape.
pub(crate) fn from_json<T: DeserializeOwned>(what: &'static str, json: &Value) -> Result<T, DbError> {
    T::deserialize(json).map_err(|_| DbError::Unreadable { what, value: json.to_string() })
}

/// One column of `rows`, as `unnest` takes it.
pub(crate) fn column<'a, R, T>(rows: &'a [R], value: impl FnMut(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// 32 bytes, as a constraint says.
pub(crate) fn fingerprint(what: &'static str, bytes: Vec<u8>) -> Result<Fingerprint, DbError> {
    let bytes =
        bytes.try_into().map_err(|bytes: Vec<u8>| DbError::Unreadable { what, value: format!("{bytes:02x?}") })?;
    Ok(Fingerprint(bytes))
}
