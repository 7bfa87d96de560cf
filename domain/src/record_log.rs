//! A record log: records of append-only kinds, many of them behind each other, each written once.
//!
//! A record that changes is an aggregate with a subject of its own, which costs the log some 200 bytes for ever. Logs and
//! traces share a few subjects instead. Nothing about one of them depends on another, so the state is empty: what is known
//! of them is where each command is, and a record's id leads to its command.

use std::sync::Arc;

use orgstream_events::{
    AggregateId, AggregateType, Event, KindName, MAX_EVENTS_PER_COMMIT, OrgId, QuotaName, RecordAppended, RecordId,
    RecordLogEvent, RecordLogId, Timestamp, json,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope,
    grants::Grant,
    record::{CreateRecord, RecordError, References, UnusableReferences, not_of_ones_own},
    schema::{MAX_REPORTED, ValidatedKind},
    text::Faults,
};

/// The maximum number of records of one command.
pub const MAX_APPENDED: usize = MAX_EVENTS_PER_COMMIT;

/// The state of a record log: none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecordLog {}

/// The commands of a record log. `kind` is the platform's definition of the kind, if there is one.
#[derive(Debug, Clone)]
pub enum RecordLogCommand {
    /// Appends records.
    Append {
        /// The command as received.
        command: AppendRecords,
        /// The kind.
        kind: Option<Arc<ValidatedKind>>,
        /// The references in each of them.
        references: Vec<References>,
    },
    /// Appends the record that `create_record` asked for.
    Create {
        /// The command as received.
        command: CreateRecord,
        /// The kind.
        kind: Arc<ValidatedKind>,
        /// The references in the data.
        references: References,
    },
}

/// Records of one append-only kind, all or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AppendRecords {
    /// Kind of the records, by name: one that is append-only.
    #[schema(value_type = String, example = "analysis_log")]
    pub kind: KindName,
    /// Contents of the records, as the kind's schema has them: 1 to 1,000, together at most about 950 KB with 600 bytes for
    /// each.
    #[schema(min_items = 1, max_items = 1000, example = json!([{"verdict": "clean", "analysed_at": "2026-03-01T12:00:01Z"}]))]
    pub items: Vec<Value>,
}

impl Declared for AppendRecords {
    const SPEC: CommandSpec = CommandSpec {
        name: "append_records",
        requires: Requires::Permission(Permission::WriteRecords),
        events: &["record_log.appended", "quota.counted"],
        creates: true,
        scope: Scope::Organization,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::New(|command| AggregateId::RecordLog(RecordLogId::of(command)))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for RecordLog {
    type Command = RecordLogCommand;
    type Event = RecordLogEvent;
    type Error = RecordLogError;
    const TYPE: AggregateType = AggregateType::RecordLog;
    const SHAPE: u16 = 1;
    // A record is found by its command.
    const KEEPS_EVERY_COMMAND: bool = true;

    fn apply(&mut self, event: &RecordLogEvent) {
        match event {
            RecordLogEvent::Appended(_) => {}
        }
    }

    fn decide(
        &self,
        command: RecordLogCommand,
        context: &DecisionContext,
    ) -> Result<Vec<RecordLogEvent>, RecordLogError> {
        let (name, kind, items, references, at) = match command {
            RecordLogCommand::Append { command: AppendRecords { kind: name, items }, kind, references } => {
                let kind = kind.ok_or_else(|| RecordError::UnknownKind(name.clone()))?;
                (name, kind, items, references, Place::Items)
            }
            RecordLogCommand::Create { command: CreateRecord { kind: name, data, id }, kind, references } => {
                if id.is_some() {
                    return Err(RecordError::Invalid(vec![not_of_ones_own()]).into());
                }
                (name, kind, vec![data], vec![references], Place::Data)
            }
        };
        if !kind.definition.append_only {
            return Err(RecordLogError::NotAppendOnly(name));
        }
        if kind.retired {
            return Err(RecordError::KindRetired(name).into());
        }
        if !(1..=MAX_APPENDED).contains(&items.len()) {
            let mut faults = Faults::default();
            faults.add("/items", "out_of_range", format!("must have 1 to {MAX_APPENDED} records"));
            return Err(RecordError::Invalid(faults.into_vec()).into());
        }
        let (mut faults, mut missing) = (Vec::new(), Vec::new());
        let searched = kind.annotations.searched_fields();
        let mut events = Vec::with_capacity(items.len());
        for (number, (data, references)) in items.into_iter().zip(references).enumerate() {
            if faults.len() >= MAX_REPORTED {
                break;
            }
            if let Err(found) = kind.check(&data) {
                faults.extend(at.of(number, found));
                continue;
            }
            match references {
                Ok(references) => events.push(RecordLogEvent::Appended(RecordAppended {
                    record: RecordId::appended(context.command_id, u16::try_from(number).unwrap_or(u16::MAX)),
                    kind: name.clone(),
                    kind_version: kind.version,
                    data,
                    references,
                    searched: searched.clone(),
                })),
                Err(UnusableReferences::Malformed(found)) => faults.extend(at.of(number, found)),
                Err(UnusableReferences::NotFound(found)) => missing.extend(at.of(number, found)),
            }
        }
        faults.truncate(MAX_REPORTED);
        missing.truncate(MAX_REPORTED);
        if !faults.is_empty() {
            return Err(RecordError::Invalid(faults).into());
        }
        if !missing.is_empty() {
            return Err(RecordError::ReferenceNotFound(missing).into());
        }
        Ok(events)
    }

    fn quota_changes(&self, events: &[Event], _: Timestamp) -> Vec<(QuotaName, i64)> {
        let bytes =
            events.iter().filter_map(Self::event_of).map(|RecordLogEvent::Appended(event)| json::length(&event.data));
        vec![(QuotaName::StorageBytes, i64::try_from(bytes.sum::<u64>()).unwrap_or(i64::MAX))]
    }

    fn wrap(event: RecordLogEvent) -> Event {
        Event::RecordLog(event)
    }

    fn event_of(event: &Event) -> Option<&RecordLogEvent> {
        if let Event::RecordLog(event) = event { Some(event) } else { None }
    }
}

/// The place of the records' contents in the command.
#[derive(Clone, Copy)]
enum Place {
    Data,
    Items,
}

impl Place {
    /// Returns the faults of a record with pointers into the command.
    fn of(self, number: usize, faults: Vec<FieldError>) -> Vec<FieldError> {
        let moved = |FieldError { pointer, code, detail }: FieldError| {
            let pointer = match (self, pointer.strip_prefix("/data")) {
                (Self::Items, Some(rest)) => format!("/items/{number}{rest}"),
                (Self::Items, None) | (Self::Data, _) => pointer,
            };
            FieldError { pointer, code, detail }
        };
        faults.into_iter().map(moved).collect()
    }
}

/// The reasons why records are not appended, or not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordLogError {
    /// As for any record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The kind is not append-only.
    #[error("records of the kind {0} can change, so each is created by a command of its own: send create_record")]
    NotAppendOnly(KindName),
    /// The record is of an append-only kind.
    #[error("the record is of the kind {0}, whose records are written once: they are not changed and not archived")]
    AppendOnly(KindName),
}

impl From<RecordLogError> for Rejection {
    fn from(error: RecordLogError) -> Self {
        match error {
            RecordLogError::Record(error) => error.into(),
            RecordLogError::NotAppendOnly(_) => Self::new(RejectionKind::Invalid, "kind_not_append_only", error),
            RecordLogError::AppendOnly(_) => Self::new(RejectionKind::Conflict, "record_append_only", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{KindDefinition, SearchRole, SearchedField, Visibility};
    use serde_json::json;

    use super::*;
    use crate::testing::{context, fields, given, rejection};

    fn kind(append_only: bool, retired: bool) -> Arc<ValidatedKind> {
        let properties = json!({"score": {"maximum": 1}, "text": {"type": "string", "x-search": "title"}});
        let schema = json!({"properties": properties, "required": ["score"]});
        let (title, visibility, views) = ("Log".to_owned(), Visibility::Private, Vec::new());
        let definition = KindDefinition { title, schema, visibility, cost: 1, views, append_only };
        Arc::new(ValidatedKind::new(definition, 3, retired))
    }

    fn append(items: Vec<Value>, kind: impl Into<Option<Arc<ValidatedKind>>>) -> RecordLogCommand {
        let references = items.iter().map(|_| Ok(Vec::new())).collect();
        let command = AppendRecords { kind: "log".parse().unwrap(), items };
        RecordLogCommand::Append { command, kind: kind.into(), references }
    }

    #[test]
    fn records_are_appended_in_order_with_ids_of_the_command() {
        let items = vec![json!({"score": 0}), json!({"score": 1})];
        let decided = given::<RecordLog>(&[]).when(append(items, kind(true, false))).unwrap();
        for (number, event) in (0..).zip(&decided) {
            let RecordLogEvent::Appended(event) = event;
            assert_eq!(event.record, RecordId::appended(context().command_id, number));
            assert_eq!((event.data["score"].as_u64(), event.kind_version), (Some(u64::from(number)), 3));
            assert_eq!(event.searched, [SearchedField { field: "text".to_owned(), role: SearchRole::Title }]);
        }
        assert_eq!(decided.len(), 2);
    }

    #[test]
    fn all_are_refused_for_one_and_each_fault_is_pointed_at() {
        let items = vec![json!({"score": 0}), json!({"score": 2}), json!({})];
        let found = fields(given::<RecordLog>(&[]).when(append(items, kind(true, false))));
        let found: Vec<_> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
        assert_eq!(found, ["/items/1/score", "/items/2"]);
    }

    #[test]
    fn a_command_has_one_to_a_thousand_records() {
        let log = given::<RecordLog>(&[]);
        let many = |count| append(vec![json!({"score": 0}); count], kind(true, false));
        assert_eq!(log.when(many(MAX_APPENDED)).map(|events| events.len()), Ok(1_000));
        for count in [0, MAX_APPENDED + 1] {
            assert_eq!(fields(log.when(many(count)))[0].0, "/items");
        }
    }

    #[test]
    fn only_kinds_that_are_append_only_and_not_retired_take_them() {
        let log = given::<RecordLog>(&[]);
        let of = |kind: Option<Arc<ValidatedKind>>| rejection(log.when(append(vec![json!({"score": 0})], kind))).code;
        assert_eq!(of(None), "unknown_kind");
        assert_eq!(of(Some(kind(false, false))), "kind_not_append_only");
        assert_eq!(of(Some(kind(true, true))), "kind_retired");
    }

    #[test]
    fn a_record_that_is_written_once_has_no_id_of_its_senders_choice() {
        let log = given::<RecordLog>(&[]);
        let create = |id| {
            let command = CreateRecord { kind: "log".parse().unwrap(), data: json!({"score": 2}), id };
            RecordLogCommand::Create { command, kind: kind(true, false), references: Ok(Vec::new()) }
        };
        assert_eq!(fields(log.when(create(Some(RecordId::fresh(1, [1; 10])))))[0].0, "/id");
        assert_eq!(fields(log.when(create(None)))[0].0, "/data/score");
    }

    #[test]
    fn references_that_lead_nowhere_are_pointed_at() {
        let error = FieldError {
            pointer: "/data/trace".to_owned(),
            code: "reference_not_found".into(),
            detail: "x".to_owned(),
        };
        let mut command = append(vec![json!({"score": 0}); 2], kind(true, false));
        if let RecordLogCommand::Append { references, .. } = &mut command {
            references[1] = Err(UnusableReferences::NotFound(vec![error]));
        }
        let refused = rejection(given::<RecordLog>(&[]).when(command));
        assert_eq!((refused.code, refused.errors[0].pointer.as_str()), ("reference_not_found", "/items/1/trace"));
    }
}
