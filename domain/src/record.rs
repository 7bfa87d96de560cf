//! One record of some kind. Its data is complete in every event, and satisfies the schema that its kind had then.

use std::sync::Arc;

use orgstream_events::{
    AggregateId, AggregateType, Event, KindName, OrgId, RecordArchived, RecordCreated, RecordEvent, RecordId,
    RecordReference, RecordUpdated,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope, grants::Grant, schema::ValidatedKind, text::Faults,
};

/// The state of a record. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    kind: Option<KindName>,
    archived: bool,
}

impl Record {
    /// Returns the kind, which never changes, once the record exists.
    pub fn kind(&self) -> Option<&KindName> {
        self.kind.as_ref()
    }

    /// Whether it is archived.
    pub fn is_archived(&self) -> bool {
        self.archived
    }

    /// Whether another record may refer to it, as one of this kind.
    pub fn may_be_referred_to(&self, kind: &KindName) -> bool {
        self.kind.as_ref() == Some(kind) && !self.archived
    }
}

/// The references in a record's data, as they were looked up, or the reason why they cannot be.
pub type References = Result<Vec<RecordReference>, UnusableReferences>;

/// References that a record cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnusableReferences {
    /// They are no ids, or too many.
    Malformed(Vec<FieldError>),
    /// There are no such records, or they are of another kind, of another organization, or archived.
    NotFound(Vec<FieldError>),
}

/// The commands of a record. `kind` is the platform's definition of the record's kind, if there is one.
#[derive(Debug, Clone)]
pub enum RecordCommand {
    /// Creates the record.
    Create {
        /// The command as received.
        command: CreateRecord,
        /// The kind.
        kind: Option<Arc<ValidatedKind>>,
        /// The references in the data.
        references: References,
    },
    /// Replaces the data.
    Update {
        /// The command as received.
        command: UpdateRecord,
        /// The kind.
        kind: Option<Arc<ValidatedKind>>,
        /// The references in the data.
        references: References,
    },
    /// Archives the record.
    Archive(ArchiveRecord),
}

/// A new record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRecord {
    /// Kind of record, by name: 1 to 63 characters of a-z, 0-9 and _.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Content of the record, as the kind's schema has it.
    pub data: Value,
    /// Record id of the caller's choice (`res_` and 26 characters); without it, the answer has a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: Option<RecordId>,
}

impl Declared for CreateRecord {
    const SPEC: CommandSpec = CommandSpec {
        name: "create_record",
        requires: Requires::Permission(Permission::WriteRecords),
        events: &["record.created"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        match self.id {
            Some(id) => About::One(AggregateId::Record(id)),
            None => About::New(|command| AggregateId::Record(RecordId::derive(command))),
        }
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// New content, whole: not a difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRecord {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// New content of the record, all of it, as the kind's schema has it today.
    pub data: Value,
}

impl Declared for UpdateRecord {
    const SPEC: CommandSpec = CommandSpec {
        name: "update_record",
        requires: Requires::Permission(Permission::WriteRecords),
        events: &["record.updated"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Record(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

/// Out of sight. The content and the history stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveRecord {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Reason for the audit log, at most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl Declared for ArchiveRecord {
    const SPEC: CommandSpec = CommandSpec {
        name: "archive_record",
        requires: Requires::Permission(Permission::WriteRecords),
        events: &["record.archived"],
        creates: false,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Record(self.id))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Record {
    type Command = RecordCommand;
    type Event = RecordEvent;
    type Error = RecordError;
    const TYPE: AggregateType = AggregateType::Record;
    const SHAPE: u16 = 1;

    fn apply(&mut self, event: &RecordEvent) {
        match event {
            RecordEvent::Created(event) => self.kind = Some(event.kind.clone()),
            RecordEvent::Updated(_) => {}
            RecordEvent::Archived(_) => self.archived = true,
        }
    }

    fn decide(&self, command: RecordCommand, _: &DecisionContext) -> Result<Vec<RecordEvent>, RecordError> {
        match command {
            RecordCommand::Create { command: CreateRecord { kind: name, data, .. }, kind, references } => {
                if self.kind.is_some() {
                    return Err(RecordError::AlreadyExists);
                }
                let Some(kind) = kind else { return Err(RecordError::UnknownKind(name)) };
                if kind.retired {
                    return Err(RecordError::KindRetired(name));
                }
                kind.check(&data).map_err(RecordError::Invalid)?;
                let references = references?;
                Ok(vec![RecordEvent::Created(RecordCreated {
                    kind: name,
                    kind_version: kind.version,
                    data,
                    references,
                })])
            }
            RecordCommand::Update { command: UpdateRecord { data, .. }, kind, references } => {
                let name = self.kind.as_ref().ok_or(RecordError::NotFound)?;
                if self.archived {
                    return Err(RecordError::Archived);
                }
                let kind = kind.ok_or_else(|| RecordError::UnknownKind(name.clone()))?;
                kind.check(&data).map_err(RecordError::Invalid)?;
                let references = references?;
                let (kind_version, kind) = (kind.version, name.clone());
                Ok(vec![RecordEvent::Updated(RecordUpdated { kind, kind_version, data, references })])
            }
            RecordCommand::Archive(ArchiveRecord { reason, .. }) => {
                if self.kind.is_none() {
                    return Err(RecordError::NotFound);
                }
                if self.archived {
                    return Ok(vec![]);
                }
                let mut faults = Faults::default();
                if let Some(reason) = &reason {
                    faults.reason("/reason", reason);
                }
                faults.none_or(RecordError::Invalid)?;
                Ok(vec![RecordEvent::Archived(RecordArchived { reason })])
            }
        }
    }

    fn wrap(event: RecordEvent) -> Event {
        Event::Record(event)
    }

    fn event_of(event: &Event) -> Option<&RecordEvent> {
        if let Event::Record(event) = event { Some(event) } else { None }
    }
}

/// The reasons why a record command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The data does not satisfy the schema.
    #[error("some fields are not as they must be")]
    Invalid(Vec<FieldError>),
    /// The data refers to records that it cannot refer to.
    #[error("some records that it refers to are not there, are archived, or are of another kind")]
    ReferenceNotFound(Vec<FieldError>),
    /// The id is taken.
    #[error("there is a record with this id already; update it or choose another id")]
    AlreadyExists,
    /// No such record.
    #[error("there is no such record in this organization")]
    NotFound,
    /// The record is archived.
    #[error("the record is archived and does not change any more; create another one")]
    Archived,
    /// The kind is not registered.
    #[error("there is no kind {0}; GET /v1/kinds lists those there are")]
    UnknownKind(KindName),
    /// The kind is retired and accepts no new records.
    #[error("the kind {0} is retired: its records stay, but there are no new ones")]
    KindRetired(KindName),
}

impl From<UnusableReferences> for RecordError {
    fn from(references: UnusableReferences) -> Self {
        match references {
            UnusableReferences::Malformed(errors) => Self::Invalid(errors),
            UnusableReferences::NotFound(errors) => Self::ReferenceNotFound(errors),
        }
    }
}

impl From<RecordError> for Rejection {
    fn from(mut error: RecordError) -> Self {
        let (kind, code) = match &mut error {
            RecordError::Invalid(errors) => return Self::invalid(std::mem::take(errors)),
            RecordError::ReferenceNotFound(errors) => {
                let errors = std::mem::take(errors);
                return Self { errors, ..Self::new(RejectionKind::Invalid, "reference_not_found", error) };
            }
            RecordError::AlreadyExists => (RejectionKind::Conflict, "record_exists"),
            RecordError::NotFound => (RejectionKind::NotFound, "not_found"),
            RecordError::Archived => (RejectionKind::Conflict, "record_archived"),
            RecordError::UnknownKind(_) => (RejectionKind::Invalid, "unknown_kind"),
            RecordError::KindRetired(_) => (RejectionKind::Invalid, "kind_retired"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{KindDefinition, Visibility};
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given, rejection};

    fn name() -> KindName {
        "evaluation".parse().unwrap()
    }

    fn kind(retired: bool) -> Arc<ValidatedKind> {
        let schema = json!({"properties": {"score": {"maximum": 1}}, "required": ["score"]});
        let definition =
            KindDefinition { title: "Evaluation".to_owned(), schema, visibility: Visibility::Private, cost: 1 };
        Arc::new(ValidatedKind::new(definition, 3, retired))
    }

    fn id() -> RecordId {
        RecordId::fresh(1, [1; 10])
    }

    fn create(data: Value, kind: impl Into<Option<Arc<ValidatedKind>>>) -> RecordCommand {
        let kind = kind.into();
        let references = Ok(Vec::new());
        RecordCommand::Create { command: CreateRecord { kind: name(), data, id: None }, kind, references }
    }

    fn update(data: Value) -> RecordCommand {
        let references = Ok(Vec::new());
        RecordCommand::Update { command: UpdateRecord { id: id(), data }, kind: Some(kind(true)), references }
    }

    fn archive() -> RecordCommand {
        RecordCommand::Archive(ArchiveRecord { id: id(), reason: None })
    }

    fn created() -> RecordEvent {
        RecordEvent::Created(RecordCreated {
            kind: name(),
            kind_version: 3,
            data: json!({"score": 1}),
            references: Vec::new(),
        })
    }

    fn archived() -> RecordEvent {
        RecordEvent::Archived(RecordArchived { reason: None })
    }

    #[test]
    fn a_record_remembers_what_it_was_checked_against() {
        assert_eq!(given::<Record>(&[]).when(create(json!({"score": 1}), kind(false))), Ok(vec![created()]));
    }

    #[test]
    fn data_that_breaks_the_schema_is_pointed_at() {
        let found = fields(given::<Record>(&[]).when(create(json!({"score": 2}), kind(false))));
        assert_eq!(found, [("/data/score".to_owned(), "maximum".to_owned())]);
        assert!(given::<Record>(&[created()]).when(update(json!({}))).is_err());
    }

    #[test]
    fn an_id_is_taken_once() {
        let again = given::<Record>(&[created()]).when(create(json!({"score": 1}), kind(false)));
        assert_eq!(rejection(again).code, "record_exists");
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let refused = rejection(given::<Record>(&[]).when(create(json!({"score": 1}), None)));
        assert_eq!((refused.code, refused.kind.status()), ("unknown_kind", 422));
        assert!(refused.detail.contains("evaluation"), "{refused}");
    }

    #[test]
    fn a_retired_kind_gets_no_new_records_but_keeps_its_old_ones() {
        let record = given::<Record>(&[]);
        assert_eq!(rejection(record.when(create(json!({"score": 1}), kind(true)))).code, "kind_retired");
        assert!(given::<Record>(&[created()]).when(update(json!({"score": 0}))).is_ok());
    }

    #[test]
    fn an_update_has_the_whole_data() {
        let updated =
            RecordUpdated { kind: name(), kind_version: 3, data: json!({"score": 0}), references: Vec::new() };
        assert_eq!(
            given::<Record>(&[created()]).when(update(json!({"score": 0}))),
            Ok(vec![RecordEvent::Updated(updated)])
        );
    }

    #[test]
    fn an_archived_record_does_not_change_any_more() {
        assert_eq!(given::<Record>(&[created()]).when(archive()), Ok(vec![archived()]));
        let record = given::<Record>(&[created(), archived()]);
        assert_eq!(rejection(record.when(update(json!({"score": 0})))).code, "record_archived");
        assert_eq!(record.when(archive()), Ok(vec![]));
    }

    #[test]
    fn a_record_that_does_not_exist_is_not_found() {
        for command in [update(json!({"score": 0})), archive()] {
            assert_eq!(rejection(given::<Record>(&[]).when(command)).kind, RejectionKind::NotFound);
        }
    }

    fn referring(references: References) -> RecordCommand {
        let command = CreateRecord { kind: name(), data: json!({"score": 1}), id: None };
        RecordCommand::Create { command, kind: Some(kind(false)), references }
    }

    #[test]
    fn what_a_record_refers_to_is_part_of_its_event() {
        let pointer = "/trace".to_owned();
        let reference = RecordReference { pointer, id: id(), kind: "trace".parse().unwrap(), global: false };
        let decided = given::<Record>(&[]).when(referring(Ok(vec![reference.clone()]))).unwrap();
        let [RecordEvent::Created(event)] = decided.as_slice() else { panic!("{decided:?}") };
        assert_eq!(event.references, [reference]);
    }

    #[test]
    fn a_reference_that_leads_nowhere_is_refused_once_the_rest_is_right() {
        let field = |code: &'static str| {
            vec![FieldError { pointer: "/data/trace".to_owned(), code: code.into(), detail: "x".to_owned() }]
        };
        let missing = UnusableReferences::NotFound(field("reference_not_found"));
        let refused = rejection(given::<Record>(&[]).when(referring(Err(missing.clone()))));
        assert_eq!((refused.code, refused.kind.status()), ("reference_not_found", 422));
        assert_eq!(refused.errors[0].pointer, "/data/trace");
        let malformed = UnusableReferences::Malformed(field("record_id"));
        assert_eq!(rejection(given::<Record>(&[]).when(referring(Err(malformed)))).code, "validation_error");
        let mut other = referring(Err(missing));
        if let RecordCommand::Create { command, .. } = &mut other {
            command.data = json!({"score": 2});
        }
        assert_eq!(fields(given::<Record>(&[]).when(other))[0].0, "/data/score");
    }

    #[test]
    fn a_record_may_be_referred_to_as_what_it_is_while_it_is_not_archived() {
        let (evaluation, trace) = (name(), "trace".parse().unwrap());
        let there = given::<Record>(&[created()]).0;
        assert!(there.may_be_referred_to(&evaluation) && !there.may_be_referred_to(&trace));
        assert!(!given::<Record>(&[created(), archived()]).0.may_be_referred_to(&evaluation));
        assert!(!Record::default().may_be_referred_to(&evaluation));
    }

    #[test]
    fn data_that_no_database_takes_is_refused() {
        let found = fields(given::<Record>(&[]).when(create(json!({"score": 1, "note": "a\0b"}), kind(false))));
        assert_eq!(found, [("/data/note".to_owned(), "nul_character".to_owned())]);
    }
}
