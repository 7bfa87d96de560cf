//! A consistency boundary, and what its decisions may know.

use orgstream_events::{Actor, AggregateType, CommandId, Event, OrgId, Timestamp};

use crate::Rejection;

/// What `decide` may know besides the state and the command. There is nothing else: no I/O, no clock, no randomness.
#[derive(Debug, Clone, Copy)]
pub struct DecisionContext {
    /// The time, read once for the whole command.
    pub now: Timestamp,
    /// The command; the ids of everything it creates follow from it.
    pub command_id: CommandId,
    /// The tenant.
    pub org: OrgId,
}

/// Where an event stands, and who did it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The sequence of its commit in the org's stream.
    pub seq: u64,
    /// Whose doing it is.
    pub actor: &'a Actor,
}

/// A consistency boundary: the state that a decision needs, rebuilt from its own events and nothing else.
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// What can be asked of it, with everything that the handler found out beforehand.
    type Command: Send;
    /// What can happen to it.
    type Event;
    /// Why it refuses.
    type Error: Into<Rejection>;
    /// Its kind, as subjects have it.
    const TYPE: AggregateType;

    /// Takes in what happened. It cannot fail: it already happened.
    fn apply(&mut self, event: &Self::Event);

    /// The same, with where it stands and who did it, for those who compare what happened to two aggregates.
    fn apply_at(&mut self, event: &Self::Event, _: Place<'_>) {
        self.apply(event);
    }

    /// Says what happens. No events mean that everything already is as asked, so that there is nothing to append.
    fn decide(&self, command: Self::Command, context: &DecisionContext) -> Result<Vec<Self::Event>, Self::Error>;

    /// The event among all events.
    fn wrap(event: Self::Event) -> Event;

    /// The event, if it is one of this aggregate's.
    fn event_of(event: &Event) -> Option<&Self::Event>;
}
