//! All aggregates and their events, declared once: the kinds of aggregates, their ids, and the one type of an event.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AccessEvent, AccountEvent, AggregateName, ApiKeyEvent, CatalogChoiceEvent, CatalogItemEvent, CodecError, Context,
    DeletionEvent, DomainEvent, DomainId, InvitationEvent, InvitationId, InvoiceEvent, KeyId, KindEvent, KindName,
    MemberEvent, OrgId, OrganizationEvent, Outcome, ParkingEvent, Pipeline, PlanEvent, PlanName, QuotaEvent,
    RecordEvent, RecordId, RecordLogEvent, RecordLogId, RoleEvent, SsoConnectionEvent, SubjectError, Target,
    UniqueValueEvent, UniqueValueId, codec::Targeted,
};

macro_rules! aggregates {
    ($($(#[$doc:meta])* $variant:ident($id:ty) = $name:literal: $event:ident;)*) => {
        /// The kinds of aggregates, by their names in subjects and headers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum AggregateType {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl AggregateType {
            /// Every kind of aggregate.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name on the wire.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }

        /// One aggregate of one org: the unit of ordering, of conflicts and of parking.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "AggregateName", into = "AggregateName")]
        pub enum AggregateId {
            $($(#[$doc])* $variant($id),)*
        }

        impl AggregateId {
            /// Which kind of aggregate this is.
            pub fn aggregate_type(&self) -> AggregateType {
                match self {
                    $(Self::$variant(_) => AggregateType::$variant,)*
                }
            }

            /// The id without its type, as subjects and headers have it.
            pub fn id(&self) -> String {
                match self {
                    $(Self::$variant(id) => id.to_string(),)*
                }
            }

            /// Reads the two parts that [`AggregateId::aggregate_type`] and [`AggregateId::id`] give.
            pub fn parse(aggregate: &str, id: &str) -> Result<Self, SubjectError> {
                match aggregate {
                    $($name => id.parse().map(Self::$variant).map_err(|_| SubjectError::new(id, "a bad aggregate id")),)*
                    _ => Err(SubjectError::new(aggregate, "an unknown aggregate")),
                }
            }
        }

        /// One event. A consumer matches on it without `_`, so that a new event is a decision everywhere.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event {
            $(#[doc = concat!("An event of the aggregate `", $name, "`.")] $variant($event),)*
        }

        /// Every event that is written today: its permanent name and schema version, by aggregate.
        pub const KNOWN_EVENTS: &[&[(&str, u16)]] = &[$($event::KNOWN),*];

        impl Event {
            /// The permanent name and the schema version.
            pub fn wire(&self) -> (&'static str, u16) {
                match self {
                    $(Self::$variant(event) => event.wire(),)*
                }
            }

            /// The event's fields as people and APIs read them.
            pub fn to_json(&self) -> Value {
                match self {
                    $(Self::$variant(event) => event.to_json(),)*
                }
            }

            pub(crate) fn encode(&self, context: &Context) -> Result<Vec<u8>, CodecError> {
                match self {
                    $(Self::$variant(event) => event.encode(context),)*
                }
            }

            pub(crate) fn decode(event_type: &str, schema: u16, content: &[u8]) -> Result<(Self, Context), CodecError> {
                // Every name begins with its aggregate's.
                let aggregate = event_type.split_once('.').map(|(aggregate, _)| aggregate);
                let decoded = match aggregate {
                    $(
                        Some($name) => $event::decode(event_type, schema, content)?
                            .map(|(event, context)| (Self::$variant(event), context)),
                    )*
                    _ => None,
                };
                decoded.ok_or_else(|| CodecError::Unknown { what: "event type", value: event_type.chars().take(80).collect() })
            }

            /// What the event was done to, as the header names it.
            pub(crate) fn targets(&self, aggregate: &AggregateId) -> Vec<Target> {
                let target = match self {
                    $(Self::$variant(event) => event.target(),)*
                };
                vec![target.unwrap_or_else(|| aggregate.target())]
            }
        }
    };
}

aggregates! {
    /// The organization itself: name, settings, whether it is suspended.
    Organization(OrgId) = "organization": OrganizationEvent;
    /// All members of an organization. One aggregate, because "never the last owner" is a rule over all of them.
    Member(OrgId) = "member": MemberEvent;
    /// One invitation.
    Invitation(InvitationId) = "invitation": InvitationEvent;
    /// All roles that an organization made itself. One aggregate, because their names differ.
    Role(OrgId) = "role": RoleEvent;
    /// One domain of an organization.
    Domain(DomainId) = "domain": DomainEvent;
    /// All connections of an organization to issuers of its own. One aggregate, because one of them is the default.
    SsoConnection(OrgId) = "sso_connection": SsoConnectionEvent;
    /// One API key.
    ApiKey(KeyId) = "api_key": ApiKeyEvent;
    /// One record kind (of the platform's own organization).
    Kind(KindName) = "kind": KindEvent;
    /// One record.
    Record(RecordId) = "record": RecordEvent;
    /// One of the places where an organization's records of append-only kinds are.
    RecordLog(RecordLogId) = "record_log": RecordLogEvent;
    /// One value that at most one record of a kind has in a field.
    UniqueValue(UniqueValueId) = "unique_value": UniqueValueEvent;
    /// One item of the catalog, with the id of its draft (of the platform's own organization).
    CatalogItem(RecordId) = "catalog_item": CatalogItemEvent;
    /// All choices of an organization in the catalog. One aggregate, because their number is bounded.
    CatalogChoice(OrgId) = "catalog_choice": CatalogChoiceEvent;
    /// One plan (of the platform's own organization).
    Plan(PlanName) = "plan": PlanEvent;
    /// What an organization may use and has used. One aggregate, because an amount is used once.
    Account(OrgId) = "account": AccountEvent;
    /// What is used of an organization's quotas, near their limits. One aggregate, so that commits at once are counted one after
    /// the other.
    Quota(OrgId) = "quota": QuotaEvent;
    /// All invoices of an organization. One aggregate, because they are numbered without a gap and usage is billed once.
    Invoice(OrgId) = "invoice": InvoiceEvent;
    /// The deletion of one organization (in the log of the platform's own organization).
    Deletion(OrgId) = "deletion": DeletionEvent;
    /// What an operator decided about the parked events of one pipeline.
    Parking(Pipeline) = "parking": ParkingEvent;
    /// What happened at the API boundary: access events, which are in no order and have no versions.
    Access(OrgId) = "access": AccessEvent;
}

impl AggregateId {
    /// Whether its events are access events, each by itself: appended without an expectation, and at no version.
    pub fn is_access(&self) -> bool {
        matches!(self, Self::Access(_))
    }

    fn target(&self) -> Target {
        // What happened at the boundary of an organization was done to the organization.
        let kind = if self.is_access() { AggregateType::Organization } else { self.aggregate_type() };
        Target { target_type: kind.name().to_owned(), id: self.id() }
    }
}

impl Event {
    /// Whether the audit log writes it of itself, so that no stream has it; see [`ParkingEvent::is_mark`].
    pub fn is_mark(&self) -> bool {
        if let Self::Parking(event) = self { event.is_mark() } else { false }
    }

    /// How it ended, as the header says.
    pub(crate) fn outcome(&self) -> Outcome {
        if let Self::Access(event) = self { event.outcome() } else { Outcome::SUCCESS }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_begins_with_its_aggregates() {
        assert_eq!(AggregateType::ALL.len(), KNOWN_EVENTS.len());
        for (aggregate, events) in AggregateType::ALL.iter().zip(KNOWN_EVENTS) {
            for (name, _) in *events {
                assert_eq!(name.split_once('.').map(|(first, _)| first), Some(aggregate.name()), "{name}");
            }
        }
    }
}
