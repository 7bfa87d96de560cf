//! One newtype per kind of id, all in TypeID form: `prefix_` and a UUID in 26 base32 characters.
//!
//! People and JSON see the text; MessagePack and PostgreSQL see the 16 bytes. An id with another prefix does not parse,
//! so a member id can never be mistaken for an org id.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use type_safe_id::{DynamicType, TypeSafeId};
use uuid::Uuid;

use crate::{DomainName, Fingerprint, KindName, RecordLogId};

/// The reason why a text is not an id of the requested kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {expected}_ id: it must be \"{expected}_\" and 26 base32 characters")]
pub struct IdError {
    expected: &'static str,
    text: String,
}

/// Bytes for a fresh id: 48 bits of Unix milliseconds, then randomness (a version 7 UUID).
fn v7(unix_ms: i64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(unix_ms).unwrap_or_default(), &random).into_uuid()
}

/// An id that follows from `seed` and `parts` alone, so that a retried command makes the same one.
///
/// When the seed carries a time (version 7), so does the result, and ids keep sorting by age; otherwise it is a
/// version 8 UUID, all hash.
fn derived(prefix: &str, seed: Option<Uuid>, parts: &[&[u8]]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(prefix.as_bytes());
    if let Some(seed) = seed {
        hash.update(seed.as_bytes());
    }
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (head, rest) = digest.split_at(16);
    if let Some(seed) = seed.filter(|seed| seed.get_version_num() == 7) {
        let (seconds, nanos) = seed.get_timestamp().map_or((0, 0), |time| time.to_unix());
        let ms = seconds.saturating_mul(1000) + u64::from(nanos / 1_000_000);
        let mut random = [0; 10];
        random.copy_from_slice(rest.split_at(10).0);
        return uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid();
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(head);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The text before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// Wraps the stored form of an id.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The stored form: what PostgreSQL and MessagePack hold.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// A fresh id (UUID version 7) from the clock and the randomness of the caller.
            pub fn fresh(unix_ms: i64, random: [u8; 10]) -> Self {
                Self(v7(unix_ms, random))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // The prefix is a constant of this file; an empty one would only lose the prefix.
                match DynamicType::new($prefix) {
                    Ok(prefix) => TypeSafeId::from_type_and_uuid(prefix, self.0).fmt(f),
                    Err(_) => Err(fmt::Error),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                // Exactly one spelling per id: the parser below also accepts the base32 letters that people confuse.
                let id = (text.len() == $prefix.len() + 27 && text.starts_with($prefix))
                    .then(|| text.parse::<TypeSafeId<DynamicType>>().ok())
                    .flatten()
                    .filter(|id| id.type_prefix() == $prefix)
                    .map(|id| Self(id.uuid()));
                id.filter(|id| id.to_string() == text).ok_or_else(|| IdError {
                    expected: $prefix,
                    text: text.chars().take(80).collect(),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    Uuid::deserialize(deserializer).map(Self)
                }
            }
        }
    )*};
}

typed_ids! {
    /// An organization: the tenant, and the first part of every key, subject and cache entry.
    OrgId = "org";
    /// A login identity, across organizations. Never shown inside one: see [`MemberId`].
    UserId = "usr";
    /// A user's membership in one organization: the id in that organization's events and audit log.
    MemberId = "mem";
    /// An API key. Not the secret, and not the public part of the token.
    KeyId = "key";
    /// An invitation to one organization.
    InvitationId = "inv";
    /// A custom role of an organization.
    RoleId = "role";
    /// A domain that an organization claims.
    DomainId = "dom";
    /// An issuer by which one organization's people sign in.
    ConnectionId = "conn";
    /// A session of a signed-in person. Not the secret.
    SessionId = "ses";
    /// A record of some kind, owned by one organization.
    RecordId = "res";
    /// A value that at most one record of a kind has in a field.
    UniqueValueId = "uniq";
    /// A secret of a record: one value of one field. Not the value.
    SecretId = "sec";
    /// A hold of an account: an amount that is set aside until it is settled, released or late.
    HoldId = "hold";
    /// One event, the same however often its command is retried.
    EventId = "evt";
    /// One command, the same for every retry under one idempotency key.
    CommandId = "cmd";
    /// The id that a chain of commands and events shares.
    CorrelationId = "cor";
    /// A break-glass grant: an operator's temporary access to an organization.
    BreakGlassId = "glass";
}

/// The organization of the platform itself: record kinds and everything else that all organizations share.
///
/// It is an ordinary organization to the stream, the workers and the database, so global data needs no second path.
pub const PLATFORM_ORG: OrgId = OrgId::from_uuid(Uuid::from_u128(0x0000_0000_0000_8000_8000_0000_0000_0001));

impl CommandId {
    /// Returns the id of every command sent to `org` under the idempotency key `key`.
    pub fn from_idempotency_key(org: OrgId, key: &str) -> Self {
        Self(derived(Self::PREFIX, None, &[org.0.as_bytes(), key.as_bytes()]))
    }
}

impl SecretId {
    /// The id under which an installation keeps what shows that a key ring is its own.
    pub const OF_THE_KEY_RING: Self = Self(Uuid::from_u128(0x0000_0000_0000_8000_8000_0000_0000_0001));

    /// Returns the id of the value that `command` gives `field`, by a keyed hash of it: a retry names the same one, and another
    /// value under the same command another.
    pub fn derive(command: CommandId, field: &str, value: &Fingerprint) -> Self {
        Self(derived(Self::PREFIX, Some(command.0), &[field.as_bytes(), &value.0]))
    }
}

impl EventId {
    /// Returns the id of a command's event: by command, aggregate subject and index in the commit.
    pub fn derive(command: CommandId, subject: &str, ordinal: usize) -> Self {
        Self(derived(Self::PREFIX, Some(command.0), &[subject.as_bytes(), &(ordinal as u64).to_be_bytes()]))
    }
}

impl CorrelationId {
    /// Returns the correlation of a command that continues no other.
    pub fn derive(command: CommandId) -> Self {
        Self(derived(Self::PREFIX, Some(command.0), &[]))
    }
}

impl DomainId {
    /// Returns the id of the domain inside one organization: the same each time it is claimed.
    pub fn of(org: OrgId, domain: &DomainName) -> Self {
        Self(derived(Self::PREFIX, None, &[org.0.as_bytes(), domain.as_str().as_bytes()]))
    }
}

/// The place of a record of an append-only kind, as its id tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendedPlace {
    /// The record log.
    pub log: RecordLogId,
    /// The last eight bytes of the command's id.
    pub command: u64,
    /// The number of the record among those of the command, from 0.
    pub ordinal: u16,
}

/// The variant of the ids of records of append-only kinds: the three bits that no version of UUIDs has.
const APPENDED: u64 = 0b111 << 61;

impl RecordId {
    /// Returns the id of record number `ordinal` (below 32,768) among those that `command` appends.
    ///
    /// It has the first six and the last eight bytes of the command's id, so that whoever has it finds the record in the log:
    /// six bytes, a bit that the variant takes from the command, the ordinal in 15 bits, eight bytes.
    pub fn appended(command: CommandId, ordinal: u16) -> Self {
        let (high, low) = command.0.as_u64_pair();
        let covered = (low >> 61) & 1;
        let middle = (covered << 15) | u64::from(ordinal & 0x7fff);
        Self(Uuid::from_u64_pair((high & !0xffff) | middle, low | APPENDED))
    }

    /// Returns the place of the record if the id is one of an append-only kind's.
    pub fn appended_place(self) -> Option<AppendedPlace> {
        let (high, low) = self.0.as_u64_pair();
        if low & APPENDED != APPENDED {
            return None;
        }
        let covered = (high >> 15) & 1;
        // A command's id has the variant of all UUIDs, 10.
        let command = (low & !APPENDED) | (0b100 << 61) | (covered << 61);
        Some(AppendedPlace { log: RecordLogId::of_bits(command), command, ordinal: (high & 0x7fff) as u16 })
    }
}

impl UniqueValueId {
    /// Returns the id of a value in one organization, kind and field. `compared` is the form in which values are compared.
    pub fn of(org: OrgId, kind: &KindName, field: &str, compared: &str) -> Self {
        let parts = [org.0.as_bytes().as_slice(), kind.as_str().as_bytes(), field.as_bytes(), compared.as_bytes()];
        Self(derived(Self::PREFIX, None, &parts))
    }
}

impl UserId {
    /// Returns the id of a person as one issuer knows them: the same in every organization, without a lookup table.
    pub fn from_login(issuer: &str, subject: &str) -> Self {
        Self(derived(Self::PREFIX, None, &[issuer.as_bytes(), subject.as_bytes()]))
    }
}

macro_rules! derived_from_command {
    ($($name:ident),*) => {$(
        impl $name {
            /// Returns the id of what `command` creates; a retry names the same thing.
            pub fn derive(command: CommandId) -> Self {
                Self(derived(Self::PREFIX, Some(command.0), &[]))
            }
        }
    )*};
}

derived_from_command!(OrgId, MemberId, KeyId, InvitationId, RoleId, ConnectionId, RecordId, HoldId, BreakGlassId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_kind_does_not_parse() {
        let org = OrgId::fresh(1_700_000_000_000, [7; 10]).to_string();
        assert_eq!(org.parse::<OrgId>().unwrap().to_string(), org);
        let error = org.parse::<MemberId>().unwrap_err().to_string();
        assert!(error.contains("is not a mem_ id"), "{error}");
    }

    #[test]
    fn an_id_has_one_spelling() {
        let org = OrgId::fresh(1_700_000_000_000, [7; 10]).to_string();
        assert!(org.to_uppercase().parse::<OrgId>().is_err());
        assert!(format!("{org} ").parse::<OrgId>().is_err());
        assert!("org_".parse::<OrgId>().is_err());
    }

    #[test]
    fn derived_ids_keep_the_age_of_their_command_and_repeat() {
        let command = CommandId::fresh(1_700_000_000_000, [1; 10]);
        let record = RecordId::derive(command);
        assert_eq!(record, RecordId::derive(command));
        assert_eq!(record.uuid().get_version_num(), 7);
        assert_eq!(record.uuid().as_bytes()[..6], command.uuid().as_bytes()[..6]);
        let keyed = CommandId::from_idempotency_key(PLATFORM_ORG, "k");
        assert_eq!(keyed.uuid().get_version_num(), 8);
        assert_eq!(RecordId::derive(keyed).uuid().get_version_num(), 8);
    }

    #[test]
    fn the_id_of_an_appended_record_leads_to_its_command_and_no_other_id_does() {
        let mut seen = std::collections::HashSet::new();
        for number in 0..200_u8 {
            let keyed = CommandId::from_idempotency_key(PLATFORM_ORG, &number.to_string());
            let fresh = CommandId::fresh(1_700_000_000_000, [number.wrapping_mul(37); 10]);
            for command in [keyed, fresh] {
                for ordinal in [0, 1, 999] {
                    let record = RecordId::appended(command, ordinal);
                    assert_eq!(record.to_string().parse::<RecordId>().unwrap(), record);
                    let place = record.appended_place().unwrap();
                    assert_eq!((place.command, place.ordinal), (command.uuid().as_u64_pair().1, ordinal));
                    assert_eq!(place.log, RecordLogId::of(command));
                    seen.insert(record);
                }
                assert_eq!(RecordId::derive(command).appended_place(), None);
            }
            assert_eq!(RecordId::fresh(1, [number; 10]).appended_place(), None);
        }
        assert!(seen.len() > 1_000);
    }

    #[test]
    fn s4_12_a_hundred_thousand_members_of_a_thousand_orgs_are_all_different() {
        let mut seen = std::collections::HashSet::new();
        for org in 0..1_000_u32 {
            let org = OrgId::fresh(1_700_000_000_000, [(org >> 8) as u8, org as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
            for member in 0..100 {
                // Every org numbers its own, so the keys are the same in all orgs and the members must differ.
                let command = CommandId::from_idempotency_key(org, &format!("member-{member}"));
                assert!(seen.insert(MemberId::derive(command)));
            }
        }
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn people_see_text_and_machines_see_bytes() {
        let org = OrgId::fresh(1_700_000_000_000, [7; 10]);
        assert_eq!(serde_json::to_string(&org).unwrap(), format!("\"{org}\""));
        let bytes = rmp_serde::to_vec_named(&org).unwrap();
        assert_eq!(bytes.len(), 18);
        assert_eq!(rmp_serde::from_slice::<OrgId>(&bytes).unwrap(), org);
    }
}
