//! A note to everybody in an organization: written once, perhaps withdrawn.

use orgstream_events::{AggregateId, AggregateType, Event, NoteEvent, NoteId, NoteWithdrawn, NoteWritten, OrgId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, text::Faults,
};

/// The maximum length of a note, in characters.
const MAX_TEXT: usize = 2_000;

/// The state of a note. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Note {
    written: bool,
    withdrawn: bool,
}

/// The commands of a note.
#[derive(Debug, Clone, PartialEq)]
pub enum NoteCommand {
    /// Writes the note.
    Write(WriteNote),
    /// Withdraws the note.
    Withdraw,
}

/// A new note.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteNote {
    /// Text, 1 to 2,000 characters.
    #[schema(example = "Maintenance on Sunday at 06:00 UTC.", min_length = 1, max_length = 2000)]
    pub text: String,
}

impl Declared for WriteNote {
    const SPEC: CommandSpec = CommandSpec {
        name: "write_note",
        requires: Requires::Permission(Permission::ManageNotes),
        events: &["note.written"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::New(|command| AggregateId::Note(NoteId::derive(command)))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Takes a note back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WithdrawNote {
    /// Note id (`note_` and 26 characters).
    #[schema(value_type = String, example = "note_01h455vb4pex5vsknk084sn02q")]
    pub id: NoteId,
}

impl Declared for WithdrawNote {
    const SPEC: CommandSpec = CommandSpec {
        name: "withdraw_note",
        requires: Requires::Permission(Permission::ManageNotes),
        events: &["note.withdrawn"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Note(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Note {
    type Command = NoteCommand;
    type Event = NoteEvent;
    type Error = NoteError;
    const TYPE: AggregateType = AggregateType::Note;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &NoteEvent) {
        match event {
            NoteEvent::Written(_) => self.written = true,
            NoteEvent::Withdrawn(_) => self.withdrawn = true,
        }
    }

    fn decide(&self, command: NoteCommand, _: &DecisionContext) -> Result<Vec<NoteEvent>, NoteError> {
        match command {
            NoteCommand::Write(WriteNote { text }) => {
                let mut faults = Faults::default();
                if text.trim().is_empty() || text.chars().count() > MAX_TEXT {
                    faults.add("/text", "length", "must have 1 to 2,000 characters");
                }
                faults.none_or(NoteError::Invalid)?;
                Ok(vec![NoteEvent::Written(NoteWritten { text })])
            }
            NoteCommand::Withdraw if !self.written => Err(NoteError::NotFound),
            NoteCommand::Withdraw if self.withdrawn => Ok(Vec::new()),
            NoteCommand::Withdraw => Ok(vec![NoteEvent::Withdrawn(NoteWithdrawn {})]),
        }
    }

    fn wrap(event: NoteEvent) -> Event {
        Event::Note(event)
    }

    fn event_of(event: &Event) -> Option<&NoteEvent> {
        if let Event::Note(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a note's command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Some fields are not valid.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// No such note.
    #[error("there is no such note in this organization")]
    NotFound,
}

impl From<NoteError> for Rejection {
    fn from(mut error: NoteError) -> Self {
        match &mut error {
            NoteError::Invalid(errors) => Self::invalid(std::mem::take(errors)),
            NoteError::NotFound => Self::new(RejectionKind::NotFound, "not_found", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fields, given, rejection};

    fn written() -> NoteEvent {
        NoteEvent::Written(NoteWritten { text: "on Sunday".to_owned() })
    }

    #[test]
    fn a_note_is_written_and_withdrawn_once() {
        let write = NoteCommand::Write(WriteNote { text: "on Sunday".to_owned() });
        assert_eq!(given::<Note>(&[]).when(write), Ok(vec![written()]));
        let withdrawn = NoteEvent::Withdrawn(NoteWithdrawn {});
        assert_eq!(given::<Note>(&[written()]).when(NoteCommand::Withdraw), Ok(vec![withdrawn.clone()]));
        assert_eq!(given::<Note>(&[written(), withdrawn]).when(NoteCommand::Withdraw), Ok(Vec::new()));
        assert_eq!(rejection(given::<Note>(&[]).when(NoteCommand::Withdraw)).code, "not_found");
    }

    #[test]
    fn an_empty_note_is_refused() {
        let empty = given::<Note>(&[]).when(NoteCommand::Write(WriteNote { text: " ".to_owned() }));
        assert_eq!(fields(empty), [("/text".to_owned(), "length".to_owned())]);
    }
}
