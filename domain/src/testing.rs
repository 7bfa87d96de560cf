//! The given / when / then helpers of every aggregate's tests.

use orgstream_events::{CommandId, OrgId, Timestamp};

use crate::{Aggregate, DecisionContext, Rejection};

/// The context of every test: the first second of 2024.
pub(crate) fn context() -> DecisionContext {
    let now = Timestamp::from_unix_ms(1_704_067_200_000);
    let org = OrgId::fresh(1_700_000_000_000, [1; 10]);
    DecisionContext { now, command_id: CommandId::fresh(now.unix_ms(), [2; 10]), org }
}

/// Returns the decision on `command` after `events`.
pub(crate) fn given<A: Aggregate>(events: &[A::Event]) -> Given<A> {
    let mut state = A::default();
    for event in events {
        state.apply(event);
    }
    Given(state)
}

pub(crate) struct Given<A>(pub(crate) A);

impl<A: Aggregate> Given<A> {
    pub(crate) fn when(&self, command: A::Command) -> Result<Vec<A::Event>, A::Error> {
        self.0.decide(command, &context())
    }

    pub(crate) fn when_in(&self, org: OrgId, command: A::Command) -> Result<Vec<A::Event>, A::Error> {
        self.0.decide(command, &DecisionContext { org, ..context() })
    }
}

/// Returns the rejection of a refusal.
pub(crate) fn rejection<T: std::fmt::Debug, E: Into<Rejection>>(result: Result<T, E>) -> Rejection {
    match result {
        Ok(events) => panic!("accepted: {events:?}"),
        Err(error) => error.into(),
    }
}

/// Returns the pointers and codes of a refusal for its fields.
pub(crate) fn fields<T: std::fmt::Debug, E: Into<Rejection>>(result: Result<T, E>) -> Vec<(String, String)> {
    let rejection = rejection(result);
    assert_eq!(rejection.code, "validation_error", "{rejection}");
    rejection.errors.into_iter().map(|error| (error.pointer, error.code.into_owned())).collect()
}
