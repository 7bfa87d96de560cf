//! A consistency boundary, and the inputs of its decisions.

use orgstream_events::{Actor, AggregateId, AggregateType, CommandId, Event, OrgId, QuotaName, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Rejection, unique_value::UniqueValueChange};

/// The inputs of `decide` besides the state and the command. There are no others: no I/O, no clock, no randomness.
#[derive(Debug, Clone, Copy)]
pub struct DecisionContext {
    /// The time, read once for the whole command.
    pub now: Timestamp,
    /// The command; the ids of everything it creates follow from it.
    pub command_id: CommandId,
    /// The tenant.
    pub org: OrgId,
}

/// The position and the actor of an event.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The sequence of its commit in the org's stream.
    pub seq: u64,
    /// The principal that caused it.
    pub actor: &'a Actor,
    /// When its command was accepted.
    pub recorded_at: Timestamp,
}

/// A consistency boundary: the state that a decision needs, rebuilt from its own events and nothing else. A snapshot has the
/// state in its serialized form.
pub trait Aggregate: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its commands, with everything that the handler looked up beforehand.
    type Command: Send;
    /// Its events.
    type Event;
    /// The reasons for a refusal.
    type Error: Into<Rejection>;
    /// Its type, as it appears in subjects.
    const TYPE: AggregateType;
    /// The number of what `apply` makes of the events, raised with every change of it: a snapshot of another number is not
    /// used. `tests/states.rs` knows the states and their numbers.
    const SHAPE: u16;
    /// Whether commands without an idempotency key are remembered by their places too.
    const KEEPS_EVERY_COMMAND: bool = false;

    /// Applies an event. It cannot fail: the event has already happened.
    fn apply(&mut self, event: &Self::Event);

    /// Like `apply`, with the event's position and actor, for callers that compare events of two aggregates.
    fn apply_at(&mut self, event: &Self::Event, _: Place<'_>) {
        self.apply(event);
    }

    /// Returns the events that follow from the command. No events mean that the state is already as requested, so that there
    /// is nothing to append.
    fn decide(&self, command: Self::Command, context: &DecisionContext) -> Result<Vec<Self::Event>, Self::Error>;

    /// Returns what these events change about unique values, which are appended together with them; `aggregate` is this one.
    fn unique_changes(&self, _aggregate: &AggregateId, _events: &[Event]) -> Vec<UniqueValueChange> {
        Vec::new()
    }

    /// Returns what these events add to what quotas count at this time, or take from it: nothing where the aggregate has all that is
    /// counted, and decides of it itself.
    fn quota_changes(&self, _events: &[Event], _now: Timestamp) -> Vec<(QuotaName, i64)> {
        Vec::new()
    }

    /// Wraps the event in the enum of all events.
    fn wrap(event: Self::Event) -> Event;

    /// Returns the event if it belongs to this aggregate.
    fn event_of(event: &Event) -> Option<&Self::Event>;
}
