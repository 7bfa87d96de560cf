//! An operator's decisions about events that a pipeline could not apply.
//!
//! The decision has no knowledge of what is parked, because that is the pipeline's own state: it is recorded, and the worker
//! that owns the org finds it in the stream and acts on it. A decision about something that is not parked has no effect.

use orgstream_events::{
    AggregateId, AggregateName, AggregateType, Event, OrgId, ParkedEventsRetried, ParkedEventsSkipped, ParkingEvent,
    Pipeline,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, Requires, Scope,
    grants::Grant, openapi, text::Faults,
};

/// The longest name of an aggregate, in characters: that of the longest subject that a NATS server accepts.
const MAX_NAME: usize = 4_096;

/// The decisions about one pipeline of one org. None depends on an earlier one, so there is no state.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Parking;

/// The decisions.
#[derive(Debug, Clone, PartialEq)]
pub enum ParkingCommand {
    /// Retries an aggregate.
    Retry(RetryParked),
    /// Skips an event.
    Skip(SkipParked),
}

impl From<RetryParked> for ParkingCommand {
    fn from(command: RetryParked) -> Self {
        Self::Retry(command)
    }
}

impl From<SkipParked> for ParkingCommand {
    fn from(command: SkipParked) -> Self {
        Self::Skip(command)
    }
}

/// Apply the parked events of one aggregate again, in order. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryParked {
    /// Pipeline that parked the events.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Aggregate with the parked events.
    #[schema(schema_with = openapi::aggregate)]
    pub aggregate: AggregateName,
}

impl Declared for RetryParked {
    const SPEC: CommandSpec = CommandSpec {
        name: "retry_parked",
        requires: Requires::Permission(Permission::ManageParking),
        events: &["parking.retried"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Parking(self.pipeline))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Give up the first parked message of one aggregate, then apply the others in order. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SkipParked {
    /// Pipeline that parked the events.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Aggregate with the parked events.
    #[schema(schema_with = openapi::aggregate)]
    pub aggregate: AggregateName,
    /// Stream sequence of the message to give up, from 1; any other first message is refused.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500)]
    pub reason: String,
}

impl Declared for SkipParked {
    const SPEC: CommandSpec = CommandSpec {
        name: "skip_parked",
        requires: Requires::Permission(Permission::ManageParking),
        events: &["parking.skipped"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: true,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Parking(self.pipeline))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Parking {
    type Command = ParkingCommand;
    type Event = ParkingEvent;
    type Error = ParkingError;
    const TYPE: AggregateType = AggregateType::Parking;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &ParkingEvent) {
        match event {
            // The last two are marks of the audit log, which no stream has.
            ParkingEvent::Retried(_)
            | ParkingEvent::Skipped(_)
            | ParkingEvent::Parked(_)
            | ParkingEvent::Settled(_) => {}
        }
    }

    fn decide(&self, command: ParkingCommand, _: &DecisionContext) -> Result<Vec<ParkingEvent>, ParkingError> {
        match command {
            ParkingCommand::Retry(RetryParked { aggregate, .. }) => {
                let mut faults = Faults::default();
                check_name(&mut faults, &aggregate);
                faults.none_or(ParkingError::Invalid)?;
                Ok(vec![ParkingEvent::Retried(ParkedEventsRetried { aggregate })])
            }
            ParkingCommand::Skip(SkipParked { aggregate, seq, reason, .. }) => {
                let mut faults = Faults::default();
                check_name(&mut faults, &aggregate);
                faults.reason("/reason", &reason);
                if seq == 0 {
                    faults.add("/seq", "out_of_range", "must be the sequence of a parked message, 1 or more");
                }
                faults.none_or(ParkingError::Invalid)?;
                Ok(vec![ParkingEvent::Skipped(ParkedEventsSkipped { aggregate, seq, reason })])
            }
        }
    }

    fn wrap(event: ParkingEvent) -> Event {
        Event::Parking(event)
    }

    fn event_of(event: &Event) -> Option<&ParkingEvent> {
        if let Event::Parking(event) = event { Some(event) } else { None }
    }
}

/// Checks a name, which is that of whatever lies on a subject, readable or not. It must only be one that a subject can have.
fn check_name(faults: &mut Faults, AggregateName { aggregate, id }: &AggregateName) {
    for (pointer, text) in [("/aggregate/type", aggregate), ("/aggregate/id", id)] {
        faults.length(pointer, text, 0, MAX_NAME);
        if text.chars().any(|char| char.is_whitespace() || char == '\0') {
            faults.add(pointer, "malformed", "must be as a list of parked messages shows it, without spaces");
        }
    }
}

/// The reasons why a decision is not recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParkingError {
    /// Fields are invalid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
}

impl From<ParkingError> for Rejection {
    fn from(error: ParkingError) -> Self {
        match error {
            ParkingError::Invalid(errors) => Self::invalid(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{AggregateId, RecordId};

    use super::*;
    use crate::testing::{fields, given};

    fn aggregate() -> AggregateName {
        AggregateId::Record(RecordId::fresh(1, [1; 10])).into()
    }

    fn skip(seq: u64, reason: &str) -> ParkingCommand {
        let (pipeline, reason) = (Pipeline::ReadModels, reason.to_owned());
        ParkingCommand::Skip(SkipParked { pipeline, aggregate: aggregate(), seq, reason })
    }

    #[test]
    fn a_retry_names_the_aggregate() {
        let retry = RetryParked { pipeline: Pipeline::Audit, aggregate: aggregate() };
        assert_eq!(
            given::<Parking>(&[]).when(retry.into()),
            Ok(vec![ParkingEvent::Retried(ParkedEventsRetried { aggregate: aggregate() })])
        );
    }

    #[test]
    fn a_skip_names_the_message_and_the_reason() {
        let (aggregate, reason) = (aggregate(), "bad data".to_owned());
        assert_eq!(
            given::<Parking>(&[]).when(skip(7, "bad data")),
            Ok(vec![ParkingEvent::Skipped(ParkedEventsSkipped { aggregate, seq: 7, reason })])
        );
    }

    #[test]
    fn what_nobody_can_read_can_be_decided_about() {
        for name in ["record.bad", "spaceship", "record.a.b", ""] {
            let aggregate = AggregateName::from(name);
            let retry = RetryParked { pipeline: Pipeline::Audit, aggregate: aggregate.clone() };
            assert_eq!(
                given::<Parking>(&[]).when(retry.into()),
                Ok(vec![ParkingEvent::Retried(ParkedEventsRetried { aggregate })])
            );
        }
        let impossible = RetryParked { pipeline: Pipeline::Audit, aggregate: AggregateName::from("record.a b") };
        assert_eq!(fields(given::<Parking>(&[]).when(impossible.into())).len(), 1);
    }

    #[test]
    fn a_skip_without_a_reason_or_a_message_is_refused() {
        assert_eq!(fields(given::<Parking>(&[]).when(skip(0, " "))).len(), 2);
    }
}
