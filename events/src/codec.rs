//! Encoding and decoding of events. Old shapes are upcast to today's here, and nowhere else.
//!
//! A payload is `marker || salt || content`. Marker 0 says that the content is plain MessagePack; other markers are reserved
//! for encryption. The content is a map of `data` (the event's fields) and `context`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{AggregateId, Context, Fingerprint, OrgId, Salt, Target};

const PLAIN: u8 = 0;
/// JSON itself is parsed to a depth of 128, and every level of it can cost two here.
const MAX_DEPTH: usize = 300;

/// The reason why bytes are not a valid event. Every one of these is an answer, never a panic.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not MessagePack, or not of the expected shape.
    #[error("cannot decode the {what}")]
    Malformed {
        /// The part.
        what: &'static str,
        /// The decoder's error.
        source: rmp_serde::decode::Error,
    },
    /// A value that has no MessagePack form.
    #[error("cannot encode the event")]
    Unencodable(#[from] rmp_serde::encode::Error),
    /// Larger than the limit; both in bytes.
    #[error("a commit of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// The size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// No events, or more than the limit.
    #[error("a commit has 1 to {limit} events, not {count}")]
    EventCount {
        /// The number of events.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// Written by a newer program, or by a foreign one.
    #[error("unknown {what} {value}: written by a newer version of orgstream?")]
    Unknown {
        /// The part.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// No process that accepts commands vouches for the message as it lies in the log.
    #[error("the message is not authentic: {reason}")]
    NotAuthentic {
        /// What is missing or wrong.
        reason: String,
    },
    /// It is signed with a key that this process lacks.
    #[error("the message is signed with commit key {id:?}, which this process does not have")]
    UnknownKey {
        /// The key's id.
        id: String,
    },
    /// Decoding the encoded bytes gives another value.
    #[error("the event does not read back as it was written")]
    Unfaithful,
    /// The content does not match the header's commitment.
    #[error("the payload does not match the header's commitment")]
    CommitmentBroken,
    /// The envelope and the subject (or two headers) name different orgs.
    #[error("the envelope belongs to {envelope}, but it came for {expected}")]
    ForeignOrg {
        /// The org in the envelope.
        envelope: OrgId,
        /// The org in the subject.
        expected: OrgId,
    },
    /// The envelope and the subject (or two headers) name different aggregates.
    #[error("the envelope is about {envelope}, but it came for {expected}")]
    ForeignAggregate {
        /// The aggregate in the envelope.
        envelope: Box<AggregateId>,
        /// The aggregate in the subject.
        expected: Box<AggregateId>,
    },
}

#[derive(Serialize)]
struct ContentRef<'a, T> {
    data: &'a T,
    context: &'a Context,
}

#[derive(Deserialize)]
struct Content<T> {
    data: T,
    #[serde(default)]
    context: Context,
}

/// Decodes MessagePack to a bounded depth. Lengths that the bytes claim allocate no memory.
pub(crate) fn from_bytes<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, CodecError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(MAX_DEPTH);
    T::deserialize(&mut decoder).map_err(|source| CodecError::Malformed { what, source })
}

pub(crate) fn encode_content<T: Serialize>(data: &T, context: &Context) -> Result<Vec<u8>, CodecError> {
    Ok(rmp_serde::to_vec_named(&ContentRef { data, context })?)
}

pub(crate) fn decode_content<T: DeserializeOwned>(content: &[u8]) -> Result<(T, Context), CodecError> {
    from_bytes::<Content<T>>("payload", content).map(|content| (content.data, content.context))
}

/// Returns the payload bytes of `content`, and the commitment to it.
pub(crate) fn seal_content(content: &[u8], salt: Salt) -> (Vec<u8>, Fingerprint) {
    let mut payload = Vec::with_capacity(1 + salt.0.len() + content.len());
    payload.push(PLAIN);
    payload.extend_from_slice(&salt.0);
    payload.extend_from_slice(content);
    (payload, Fingerprint::of(&[&salt.0, content]))
}

/// Returns the content inside `payload`, once it has been checked against its commitment.
pub(crate) fn open_content(payload: &[u8], commitment: Fingerprint) -> Result<&[u8], CodecError> {
    match payload.split_first() {
        Some((&PLAIN, salted)) if Fingerprint::of(&[salted]) == commitment => {
            salted.split_at_checked(32).map(|(_, content)| content).ok_or(CodecError::CommitmentBroken)
        }
        Some((&PLAIN, _)) | None => Err(CodecError::CommitmentBroken),
        Some((marker, _)) => Err(CodecError::Unknown { what: "payload encoding", value: marker.to_string() }),
    }
}

/// Declares the events of one aggregate: an enum, their permanent names and their schema versions.
///
/// `"name", 2 { 1 => OldShape }` says that version 2 is written today and that version 1 is still read, through
/// `From<OldShape>`.
macro_rules! event_enum {
    (
        $(#[$doc:meta])*
        $name:ident about $target:tt $(. $field:ident)? {
            $($variant:ident($body:ident) = $wire:literal, $schema:literal $({ $($old:literal => $old_body:ty),+ })?;)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $(#[doc = concat!("`", $wire, "`")] $variant($body),)+
        }

        impl $name {
            /// All names that are written today, with their schema versions.
            pub(crate) const KNOWN: &'static [(&'static str, u16)] = &[$(($wire, $schema)),+];

            /// Returns the permanent name and the schema version of this event.
            pub fn wire(&self) -> (&'static str, u16) {
                match self {
                    $(Self::$variant(_) => ($wire, $schema),)+
                }
            }

            pub(crate) fn encode(&self, context: &$crate::Context) -> Result<Vec<u8>, $crate::CodecError> {
                match self {
                    $(Self::$variant(body) => $crate::codec::encode_content(body, context),)+
                }
            }

            /// None when the name is not one of this aggregate's.
            pub(crate) fn decode(
                event_type: &str,
                schema: u16,
                content: &[u8],
            ) -> Result<Option<(Self, $crate::Context)>, $crate::CodecError> {
                match (event_type, schema) {
                    $(
                        ($wire, $schema) => $crate::codec::decode_content::<$body>(content)
                            .map(|(body, context)| Some((Self::$variant(body), context))),
                        $($(
                            ($wire, $old) => $crate::codec::decode_content::<$old_body>(content)
                                .map(|(body, context)| Some((Self::$variant(body.into()), context))),
                        )+)?
                        ($wire, other) => {
                            Err($crate::CodecError::Unknown { what: concat!("schema of ", $wire), value: other.to_string() })
                        }
                    )+
                    _ => Ok(None),
                }
            }

            /// Returns the event's fields in their JSON form for people and APIs.
            pub(crate) fn to_json(&self) -> serde_json::Value {
                match self {
                    $(Self::$variant(body) => serde_json::to_value(body).unwrap_or_default(),)+
                }
            }
        }

        $crate::codec::event_target!($name { $($variant)+ } about $target $(. $field)?);
    };
}
pub(crate) use event_enum;

/// What the events are about, as headers name it: the aggregate itself; something in it, by its kind and the field with its
/// id; or what [`Targeted`] is written out for, beside the events.
macro_rules! event_target {
    ($name:ident { $($variant:ident)+ } about aggregate) => {
        impl $crate::codec::Targeted for $name {
            fn target(&self) -> Option<$crate::Target> {
                None
            }
        }
    };
    ($name:ident { $($variant:ident)+ } about own) => {};
    ($name:ident { $($variant:ident)+ } about $target:literal . $field:ident) => {
        impl $crate::codec::Targeted for $name {
            fn target(&self) -> Option<$crate::Target> {
                let id = match self {
                    $(Self::$variant(body) => body.$field.to_string(),)+
                };
                Some($crate::Target { target_type: $target.to_owned(), id })
            }
        }
    };
}
pub(crate) use event_target;

/// Events that say what they are about.
pub(crate) trait Targeted {
    /// The target in the event's header; none where it is the aggregate.
    fn target(&self) -> Option<Target>;
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro declares events for the whole workspace")]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct Moved {
        place: String,
        floor: i32,
    }

    /// Version 1 of `desk.moved`.
    #[derive(Serialize, Deserialize)]
    struct MovedV1 {
        place: String,
    }

    impl From<MovedV1> for Moved {
        fn from(old: MovedV1) -> Self {
            Self { place: old.place, floor: 0 }
        }
    }

    event_enum! {
        DeskEvent about aggregate {
            Moved(Moved) = "desk.moved", 2 { 1 => MovedV1 };
        }
    }

    #[test]
    fn an_old_shape_is_lifted_to_todays() {
        let old = encode_content(&MovedV1 { place: "Oslo".to_owned() }, &Context::default()).unwrap();
        let (event, _) = DeskEvent::decode("desk.moved", 1, &old).unwrap().unwrap();
        assert_eq!(event, DeskEvent::Moved(Moved { place: "Oslo".to_owned(), floor: 0 }));
        assert_eq!(event.wire(), ("desk.moved", 2));
        let new = event.encode(&Context::default()).unwrap();
        assert_eq!(DeskEvent::decode("desk.moved", 2, &new).unwrap().unwrap().0, event);
        assert_eq!(event.to_json(), serde_json::json!({"place": "Oslo", "floor": 0}));
        assert_eq!(DeskEvent::KNOWN, [("desk.moved", 2)]);
    }

    #[test]
    fn a_newer_shape_is_refused_by_name() {
        let error = DeskEvent::decode("desk.moved", 3, &[]).unwrap_err().to_string();
        assert!(error.contains("schema of desk.moved 3"), "{error}");
        assert!(DeskEvent::decode("desk.sold", 1, &[]).unwrap().is_none());
    }

    #[test]
    fn another_content_breaks_the_commitment() {
        let (mut payload, commitment) = seal_content(b"content", Salt([9; 32]));
        assert_eq!(open_content(&payload, commitment).unwrap(), b"content");
        *payload.last_mut().unwrap() ^= 1;
        assert!(matches!(open_content(&payload, commitment), Err(CodecError::CommitmentBroken)));
        payload[0] = 7;
        assert!(matches!(open_content(&payload, commitment), Err(CodecError::Unknown { .. })));
    }
}
