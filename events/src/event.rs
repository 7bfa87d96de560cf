//! All events, by aggregate.

use serde_json::Value;

use crate::{
    AccessEvent, AggregateId, AggregateType, ApiKeyEvent, CodecError, Context, DomainEvent, InvitationEvent, KindEvent,
    MemberEvent, OrganizationEvent, Outcome, ParkingEvent, RecordEvent, RoleEvent, SsoConnectionEvent, Target,
};

/// One event. A consumer matches on it without `_`, so that a new event is a decision everywhere.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Of the organization itself.
    Organization(OrganizationEvent),
    /// Of its members.
    Member(MemberEvent),
    /// Of an invitation.
    Invitation(InvitationEvent),
    /// Of its roles.
    Role(RoleEvent),
    /// Of a domain.
    Domain(DomainEvent),
    /// Of its connections to issuers.
    SsoConnection(SsoConnectionEvent),
    /// Of an API key.
    ApiKey(ApiKeyEvent),
    /// Of a record kind.
    Kind(KindEvent),
    /// Of a record.
    Record(RecordEvent),
    /// Of parked events.
    Parking(ParkingEvent),
    /// Of the access to it.
    Access(AccessEvent),
}

macro_rules! each {
    ($self:expr, $event:ident => $body:expr) => {
        match $self {
            Event::Organization($event) => $body,
            Event::Member($event) => $body,
            Event::Invitation($event) => $body,
            Event::Role($event) => $body,
            Event::Domain($event) => $body,
            Event::SsoConnection($event) => $body,
            Event::ApiKey($event) => $body,
            Event::Kind($event) => $body,
            Event::Record($event) => $body,
            Event::Parking($event) => $body,
            Event::Access($event) => $body,
        }
    };
}

/// All events that are written today: permanent names and schema versions, by aggregate.
pub const KNOWN_EVENTS: &[&[(&str, u16)]] = &[
    OrganizationEvent::KNOWN,
    MemberEvent::KNOWN,
    InvitationEvent::KNOWN,
    RoleEvent::KNOWN,
    DomainEvent::KNOWN,
    SsoConnectionEvent::KNOWN,
    ApiKeyEvent::KNOWN,
    KindEvent::KNOWN,
    RecordEvent::KNOWN,
    ParkingEvent::KNOWN,
    AccessEvent::KNOWN,
];

impl Event {
    /// Returns the permanent name and the schema version.
    pub fn wire(&self) -> (&'static str, u16) {
        each!(self, event => event.wire())
    }

    /// Returns the event's fields in their JSON form for people and APIs.
    pub fn to_json(&self) -> Value {
        each!(self, event => event.to_json())
    }

    pub(crate) fn encode(&self, context: &Context) -> Result<Vec<u8>, CodecError> {
        each!(self, event => event.encode(context))
    }

    pub(crate) fn decode(event_type: &str, schema: u16, content: &[u8]) -> Result<(Self, Context), CodecError> {
        macro_rules! try_each {
            ($($variant:ident: $enum:ident),+) => {$(
                if let Some((event, context)) = $enum::decode(event_type, schema, content)? {
                    return Ok((Self::$variant(event), context));
                }
            )+};
        }
        try_each!(
            Record: RecordEvent,
            Organization: OrganizationEvent,
            Member: MemberEvent,
            Invitation: InvitationEvent,
            Role: RoleEvent,
            Domain: DomainEvent,
            SsoConnection: SsoConnectionEvent,
            ApiKey: ApiKeyEvent,
            Kind: KindEvent,
            Parking: ParkingEvent,
            Access: AccessEvent
        );
        Err(CodecError::Unknown { what: "event type", value: event_type.chars().take(80).collect() })
    }

    /// Whether the audit log itself writes the event, so that no stream has it; see [`ParkingEvent::is_mark`].
    pub fn is_mark(&self) -> bool {
        if let Self::Parking(event) = self { event.is_mark() } else { false }
    }

    /// Returns the outcome, as in the header.
    pub(crate) fn outcome(&self) -> Outcome {
        if let Self::Access(event) = self { event.outcome() } else { Outcome::SUCCESS }
    }

    /// Returns the targets, as in the header.
    pub(crate) fn targets(&self, aggregate: &AggregateId) -> Vec<Target> {
        let (target_type, id) = match self {
            Self::Member(MemberEvent::Added(event)) => ("member", event.member_id.to_string()),
            Self::Member(MemberEvent::RoleChanged(event)) => ("member", event.member_id.to_string()),
            Self::Member(MemberEvent::Removed(event)) => ("member", event.member_id.to_string()),
            Self::Parking(ParkingEvent::Retried(event)) => {
                (event.aggregate.aggregate.as_str(), event.aggregate.id.clone())
            }
            Self::Parking(ParkingEvent::Skipped(event)) => {
                (event.aggregate.aggregate.as_str(), event.aggregate.id.clone())
            }
            Self::Parking(ParkingEvent::Parked(event)) => {
                (event.aggregate.aggregate.as_str(), event.aggregate.id.clone())
            }
            Self::Parking(ParkingEvent::Settled(event)) => {
                (event.aggregate.aggregate.as_str(), event.aggregate.id.clone())
            }
            Self::Access(event) => match event.target() {
                Some(target) => return vec![target],
                None => (AggregateType::Organization.name(), aggregate.id()),
            },
            Self::Role(RoleEvent::Defined(event)) => ("role", event.role_id.to_string()),
            Self::Role(RoleEvent::Changed(event)) => ("role", event.role_id.to_string()),
            Self::Role(RoleEvent::Removed(event)) => ("role", event.role_id.to_string()),
            Self::SsoConnection(SsoConnectionEvent::Added(event)) => {
                ("sso_connection", event.connection_id.to_string())
            }
            Self::SsoConnection(SsoConnectionEvent::DefaultChanged(event)) => {
                ("sso_connection", event.connection_id.to_string())
            }
            Self::SsoConnection(SsoConnectionEvent::Removed(event)) => {
                ("sso_connection", event.connection_id.to_string())
            }
            Self::Organization(_)
            | Self::Invitation(_)
            | Self::Domain(_)
            | Self::ApiKey(_)
            | Self::Kind(_)
            | Self::Record(_) => (aggregate.aggregate_type().name(), aggregate.id()),
        };
        vec![Target { target_type: target_type.to_owned(), id }]
    }
}
