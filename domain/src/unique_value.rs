//! One value of a field whose values are unique: which record of the kind has it. It changes with the record, in the same
//! append.

use orgstream_events::{
    AggregateType, Event, KindName, RecordId, UniqueField, UniqueValueEvent, UniqueValueId, UniqueValueReleased,
    UniqueValueTaken,
};
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::{Aggregate, DecisionContext, Rejection, RejectionKind};

/// The state of a value. By default no record has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UniqueValue {
    holder: Option<RecordId>,
}

/// The commands of a value: parts of a record's command, not commands of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UniqueValueCommand {
    /// Gives the value to the record.
    Take {
        /// The kind.
        kind: KindName,
        /// The field.
        field: String,
        /// The record.
        record: RecordId,
    },
    /// Frees the value, if the record has it.
    Release {
        /// The kind.
        kind: KindName,
        /// The field.
        field: String,
        /// The record.
        record: RecordId,
    },
}

/// What a record's events change about one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueValueChange {
    /// The value.
    pub id: UniqueValueId,
    /// The change.
    pub command: UniqueValueCommand,
}

/// Returns the changes between what a record had and what it has: first what it takes, then what it frees.
pub(crate) fn changes(
    kind: &KindName,
    record: RecordId,
    before: &[UniqueField],
    after: &[UniqueField],
) -> Vec<UniqueValueChange> {
    let missing_in = |others: &[UniqueField], one: &UniqueField| others.iter().all(|other| other.id != one.id);
    let taken = after.iter().filter(|one| missing_in(before, one)).map(|UniqueField { field, id }| {
        let command = UniqueValueCommand::Take { kind: kind.clone(), field: field.clone(), record };
        UniqueValueChange { id: *id, command }
    });
    let freed = before.iter().filter(|one| missing_in(after, one)).map(|UniqueField { field, id }| {
        let command = UniqueValueCommand::Release { kind: kind.clone(), field: field.clone(), record };
        UniqueValueChange { id: *id, command }
    });
    taken.chain(freed).collect()
}

/// Returns the form in which unique values are compared: without white space around them, in NFC, and without case. It is
/// part of ids in the log, so it never changes.
pub fn compared(value: &str) -> String {
    // By way of capitals, so that ß and ss, or the two small sigmas, are the same.
    value.trim().chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).nfc().collect()
}

impl Aggregate for UniqueValue {
    type Command = UniqueValueCommand;
    type Event = UniqueValueEvent;
    type Error = UniqueValueError;
    const TYPE: AggregateType = AggregateType::UniqueValue;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &UniqueValueEvent) {
        self.holder = match event {
            UniqueValueEvent::Taken(UniqueValueTaken { record, .. }) => Some(*record),
            UniqueValueEvent::Released(_) => None,
        };
    }

    fn decide(
        &self,
        command: UniqueValueCommand,
        _: &DecisionContext,
    ) -> Result<Vec<UniqueValueEvent>, UniqueValueError> {
        match (command, self.holder) {
            (UniqueValueCommand::Take { kind, field, record }, None) => {
                Ok(vec![UniqueValueEvent::Taken(UniqueValueTaken { kind, field, record })])
            }
            (UniqueValueCommand::Take { record, .. }, Some(holder)) if record == holder => Ok(vec![]),
            (UniqueValueCommand::Take { field, .. }, Some(holder)) => Err(UniqueValueError { field, holder }),
            (UniqueValueCommand::Release { kind, field, record }, Some(holder)) if record == holder => {
                Ok(vec![UniqueValueEvent::Released(UniqueValueReleased { kind, field, record })])
            }
            (UniqueValueCommand::Release { .. }, _) => Ok(vec![]),
        }
    }

    fn wrap(event: UniqueValueEvent) -> Event {
        Event::UniqueValue(event)
    }

    fn event_of(event: &Event) -> Option<&UniqueValueEvent> {
        if let Event::UniqueValue(event) = event { Some(event) } else { None }
    }
}

/// The refusal of a value that another record has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another record of this kind has the same {field}: choose another one")]
pub struct UniqueValueError {
    /// The field.
    pub field: String,
    /// The record that has it.
    pub holder: RecordId,
}

impl From<UniqueValueError> for Rejection {
    fn from(error: UniqueValueError) -> Self {
        Self::new(RejectionKind::Conflict, "value_taken", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{given, rejection};

    fn record(number: u8) -> RecordId {
        RecordId::fresh(1, [number; 10])
    }

    fn take(number: u8) -> UniqueValueCommand {
        let (kind, field) = ("space".parse().unwrap(), "name".to_owned());
        UniqueValueCommand::Take { kind, field, record: record(number) }
    }

    fn release(number: u8) -> UniqueValueCommand {
        let (kind, field) = ("space".parse().unwrap(), "name".to_owned());
        UniqueValueCommand::Release { kind, field, record: record(number) }
    }

    #[test]
    fn one_record_has_a_value_until_it_frees_it() {
        let taken = given::<UniqueValue>(&[]).when(take(1)).unwrap();
        let held = given::<UniqueValue>(&taken);
        let refused = held.when(take(2)).unwrap_err();
        assert_eq!(refused.holder, record(1));
        assert_eq!(rejection::<(), _>(Err(refused)).code, "value_taken");
        assert_eq!((held.when(take(1)), held.when(release(2))), (Ok(vec![]), Ok(vec![])));
        let freed = held.when(release(1)).unwrap();
        let free = given::<UniqueValue>(&[taken, freed].concat());
        assert_eq!(free.when(take(2)).unwrap().len(), 1);
        assert_eq!(free.when(release(1)), Ok(vec![]));
    }

    #[test]
    fn values_are_compared_as_people_do() {
        for (one, other) in [
            ("Night", " night\t"),
            ("Straße", "STRASSE"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            // Precomposed, and as two characters.
            ("caf\u{e9}", "CAFE\u{301}"),
        ] {
            assert_eq!(compared(one), compared(other), "{one}");
        }
        for (one, other) in [("night", "nights"), ("a b", "ab"), ("cafe", "caf\u{e9}")] {
            assert_ne!(compared(one), compared(other), "{one}");
        }
    }

    #[test]
    fn a_record_takes_what_it_had_not_and_frees_what_it_has_not() {
        let org = crate::testing::context().org;
        let value = |field: &str, text: &str| {
            let id = UniqueValueId::of(org, &"space".parse().unwrap(), field, text);
            UniqueField { field: field.to_owned(), id }
        };
        let kind: KindName = "space".parse().unwrap();
        let (before, after) = ([value("name", "a"), value("code", "b")], [value("name", "c"), value("code", "b")]);
        let changed = changes(&kind, record(1), &before, &after);
        let ids: Vec<_> = changed.iter().map(|change| change.id).collect();
        assert_eq!(ids, [after[0].id, before[0].id]);
        assert_eq!((&changed[0].command, &changed[1].command), (&take(1), &release(1)));
        assert_eq!(changes(&kind, record(1), &before, &before), []);
    }
}
