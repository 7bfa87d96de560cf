//! One record of some kind. Its data is complete in every event, and satisfies the schema that its kind had then.
//!
//! The unique values that a record has are in its events, so that it frees exactly what it took, whatever became of the kind.

use std::{collections::BTreeMap, sync::Arc};

use orgstream_events::{
    AggregateId, AggregateType, Event, KindName, OrgId, QuotaName, RecordArchived, RecordCreated, RecordEvent,
    RecordId, RecordReference, RecordSecret, RecordUpdated, Timestamp, UniqueField, json as json_text,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Rejection, RejectionKind,
    Requires, Scope,
    grants::Grant,
    schema::ValidatedKind,
    text::Faults,
    unique_value::{self, UniqueValueChange},
};

/// The state of a record. By default it does not exist yet.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    kind: Option<KindName>,
    archived: bool,
    /// The length of its content, in bytes of JSON.
    bytes: u64,
    #[serde(default)]
    unique: Vec<UniqueField>,
    /// By the fields that have or had one.
    secrets: BTreeMap<String, HeldSecret>,
}

/// The secret of a field.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HeldSecret {
    /// The number of values that there were.
    version: u64,
    current: Option<RecordSecret>,
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

    /// Returns what it takes of the storage of its organization, in bytes.
    fn stored_bytes(&self) -> i64 {
        if self.archived { 0 } else { i64::try_from(self.bytes).unwrap_or(i64::MAX) }
    }

    /// Returns the secrets that it has.
    pub fn secrets(&self) -> impl Iterator<Item = &RecordSecret> {
        self.secrets.values().filter_map(|held| held.current.as_ref())
    }

    /// Returns the secret of a field, if it has one.
    pub fn secret(&self, field: &str) -> Option<&RecordSecret> {
        self.secrets.get(field)?.current.as_ref()
    }

    /// Returns the number of the next value of a secret.
    pub fn next_version(&self, field: &str) -> u64 {
        self.secrets.get(field).map_or(0, |held| held.version) + 1
    }

    /// Takes over the secrets of new content, which are all that there are.
    fn hold(&mut self, secrets: &[RecordSecret]) {
        for held in self.secrets.values_mut() {
            held.current = None;
        }
        for secret in secrets {
            let held = HeldSecret { version: secret.version, current: Some(secret.clone()) };
            self.secrets.insert(secret.field.clone(), held);
        }
    }

    /// Puts masks into `data` in place of the secrets: of those that were `sealed` for the command, and of those that stay.
    /// Returns all of them.
    fn mask(
        &self,
        kind: &ValidatedKind,
        data: &mut Value,
        sealed: Vec<RecordSecret>,
    ) -> Result<Vec<RecordSecret>, RecordError> {
        let mut sealed: BTreeMap<String, RecordSecret> =
            sealed.into_iter().map(|secret| (secret.field.clone(), secret)).collect();
        let (mut secrets, mut faults) = (Vec::new(), Faults::default());
        for field in &kind.annotations.secrets {
            let Some(value) = data.get_mut(field).filter(|value| !value.is_null()) else { continue };
            let secret = match sealed.remove(field) {
                Some(new) if new.version != self.next_version(field) => return Err(RecordError::SecretsChanged),
                Some(new) => new,
                None => match self.secret(field).filter(|current| is_mask_of(value, current)) {
                    Some(current) => current.clone(),
                    None => {
                        let detail = "must be a text, which becomes the secret, or what is read in its place, with the fingerprint                                       of the current secret, which then stays";
                        faults.add(format!("/data/{field}"), "not_the_secret", detail);
                        continue;
                    }
                },
            };
            *value = mask_of(&secret);
            secrets.push(secret);
        }
        faults.none_or(RecordError::Invalid)?;
        // The kind had them as secrets when they were sealed.
        if sealed.is_empty() { Ok(secrets) } else { Err(RecordError::SecretsChanged) }
    }
}

/// What every read shows of a secret's value.
pub const MASK: &str = "********";

/// Returns what stands in a record's content in place of a secret.
fn mask_of(secret: &RecordSecret) -> Value {
    json!({"masked": MASK, "fingerprint": secret.fingerprint, "version": secret.version})
}

/// Whether a caller sends what it has read in place of this secret: the fingerprint at least, and nothing that differs.
fn is_mask_of(value: &Value, secret: &RecordSecret) -> bool {
    let (Some(sent), Value::Object(mask)) = (value.as_object(), mask_of(secret)) else { return false };
    sent.contains_key("fingerprint") && sent.iter().all(|(name, value)| mask.get(name) == Some(value))
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
        /// The secrets in the data whose values were sealed for this command.
        secrets: Vec<RecordSecret>,
    },
    /// Replaces the data.
    Update {
        /// The command as received.
        command: UpdateRecord,
        /// The kind.
        kind: Option<Arc<ValidatedKind>>,
        /// The references in the data.
        references: References,
        /// The secrets in the data whose values were sealed for this command.
        secrets: Vec<RecordSecret>,
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
        events: &["record.created", "record_log.appended", "unique_value.taken", "quota.counted"],
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
        events: &["record.updated", "unique_value.taken", "unique_value.released", "quota.counted"],
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
        events: &["record.archived", "unique_value.released", "quota.counted"],
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
    const SHAPE: u16 = 3;

    fn apply(&mut self, event: &RecordEvent) {
        match event {
            RecordEvent::Created(RecordCreated { kind, data, unique, secrets, .. }) => {
                (self.kind, self.unique) = (Some(kind.clone()), unique.clone());
                self.bytes = json_text::length(data);
                self.hold(secrets);
            }
            RecordEvent::Updated(RecordUpdated { data, unique, secrets, .. }) => {
                self.unique.clone_from(unique);
                self.bytes = json_text::length(data);
                self.hold(secrets);
            }
            RecordEvent::Archived(_) => (self.archived, self.unique) = (true, Vec::new()),
        }
    }

    fn unique_changes(&self, aggregate: &AggregateId, events: &[Event]) -> Vec<UniqueValueChange> {
        let AggregateId::Record(id) = aggregate else { return Vec::new() };
        let mut after = self.clone();
        for event in events.iter().filter_map(Self::event_of) {
            after.apply(event);
        }
        let Some(kind) = &after.kind else { return Vec::new() };
        unique_value::changes(kind, *id, &self.unique, &after.unique)
    }

    fn quota_changes(&self, events: &[Event], _: Timestamp) -> Vec<(QuotaName, i64)> {
        let mut after = self.clone();
        for event in events.iter().filter_map(Self::event_of) {
            after.apply(event);
        }
        vec![(QuotaName::StorageBytes, after.stored_bytes().saturating_sub(self.stored_bytes()))]
    }

    fn decide(&self, command: RecordCommand, context: &DecisionContext) -> Result<Vec<RecordEvent>, RecordError> {
        match command {
            RecordCommand::Create { command: CreateRecord { kind: name, mut data, id }, kind, references, secrets } => {
                if id.is_some_and(|id| id.appended_place().is_some()) {
                    return Err(RecordError::Invalid(vec![not_of_ones_own()]));
                }
                if self.kind.is_some() {
                    return Err(RecordError::AlreadyExists);
                }
                let Some(kind) = kind else { return Err(RecordError::UnknownKind(name)) };
                if kind.retired {
                    return Err(RecordError::KindRetired(name));
                }
                let secrets = self.mask(&kind, &mut data, secrets)?;
                kind.check(&data).map_err(RecordError::Invalid)?;
                let references = references?;
                let unique = kind.annotations.unique_in(context.org, &name, &data);
                Ok(vec![RecordEvent::Created(RecordCreated {
                    kind: name,
                    kind_version: kind.version,
                    data,
                    references,
                    unique,
                    searched: kind.annotations.searched_fields(),
                    secrets,
                })])
            }
            RecordCommand::Update { command: UpdateRecord { mut data, .. }, kind, references, secrets } => {
                let name = self.kind.as_ref().ok_or(RecordError::NotFound)?;
                if self.archived {
                    return Err(RecordError::Archived);
                }
                let kind = kind.ok_or_else(|| RecordError::UnknownKind(name.clone()))?;
                let secrets = self.mask(&kind, &mut data, secrets)?;
                kind.check(&data).map_err(RecordError::Invalid)?;
                let references = references?;
                let unique = kind.annotations.unique_in(context.org, name, &data);
                let searched = kind.annotations.searched_fields();
                let (kind_version, kind) = (kind.version, name.clone());
                Ok(vec![RecordEvent::Updated(RecordUpdated {
                    kind,
                    kind_version,
                    data,
                    references,
                    unique,
                    searched,
                    secrets,
                })])
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

/// The fault of an id that the records of append-only kinds have.
pub(crate) fn not_of_ones_own() -> FieldError {
    let detail = "must be missing, or an id of another form: records that are written once are given theirs".to_owned();
    FieldError { pointer: "/id".to_owned(), code: "reserved".into(), detail }
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
    /// Secrets were sealed for another state of the record than it has.
    #[error("others are changing the secrets of the record; try again")]
    SecretsChanged,
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
            RecordError::SecretsChanged => (RejectionKind::Conflict, "contention"),
            RecordError::UnknownKind(_) => (RejectionKind::Invalid, "unknown_kind"),
            RecordError::KindRetired(_) => (RejectionKind::Invalid, "kind_retired"),
        };
        Self::new(kind, code, error)
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{KindDefinition, SecretId, Visibility};
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given, rejection};

    fn name() -> KindName {
        "evaluation".parse().unwrap()
    }

    fn kind(retired: bool) -> Arc<ValidatedKind> {
        let schema = json!({"properties": {"score": {"maximum": 1}}, "required": ["score"]});
        let definition = KindDefinition {
            title: "Evaluation".to_owned(),
            schema,
            visibility: Visibility::Private,
            cost: 1,
            views: vec![],
            append_only: false,
        };
        Arc::new(ValidatedKind::new(definition, 3, retired))
    }

    fn id() -> RecordId {
        RecordId::fresh(1, [1; 10])
    }

    fn create(data: Value, kind: impl Into<Option<Arc<ValidatedKind>>>) -> RecordCommand {
        let kind = kind.into();
        let references = Ok(Vec::new());
        RecordCommand::Create {
            command: CreateRecord { kind: name(), data, id: None },
            kind,
            references,
            secrets: vec![],
        }
    }

    fn update(data: Value) -> RecordCommand {
        let references = Ok(Vec::new());
        RecordCommand::Update {
            command: UpdateRecord { id: id(), data },
            kind: Some(kind(true)),
            references,
            secrets: vec![],
        }
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
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
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
        let updated = RecordUpdated {
            kind: name(),
            kind_version: 3,
            data: json!({"score": 0}),
            references: Vec::new(),
            unique: Vec::new(),
            searched: Vec::new(),
            secrets: Vec::new(),
        };
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

    fn with_key() -> Arc<ValidatedKind> {
        let schema = json!({"properties": {"key": {"type": ["string", "null"], "x-secret": true}}});
        let (title, visibility, views) = ("Model".to_owned(), Visibility::Private, Vec::new());
        let definition = KindDefinition { title, schema, visibility, cost: 1, views, append_only: false };
        Arc::new(ValidatedKind::new(definition, 3, false))
    }

    fn secret(version: u64) -> RecordSecret {
        let id = SecretId::fresh(i64::try_from(version).unwrap(), [1; 10]);
        RecordSecret { field: "key".to_owned(), id, version, fingerprint: format!("0000000{version}") }
    }

    fn set(data: Value, secrets: Vec<RecordSecret>) -> RecordCommand {
        let command = UpdateRecord { id: id(), data };
        RecordCommand::Update { command, kind: Some(with_key()), references: Ok(Vec::new()), secrets }
    }

    fn has_set(data: Value, secrets: Vec<RecordSecret>) -> RecordEvent {
        RecordEvent::Updated(RecordUpdated { secrets, ..RecordUpdated::plain(name(), 3, data) })
    }

    #[test]
    fn a_secret_is_a_mask_in_the_content() {
        let record = given::<Record>(&[created()]);
        let mask = json!({"key": {"masked": "********", "fingerprint": "00000001", "version": 1}});
        let first = has_set(mask.clone(), vec![secret(1)]);
        assert_eq!(record.when(set(json!({"key": {"$sealed": 1}}), vec![secret(1)])), Ok(vec![first.clone()]));
        // What is read in its place keeps it, as does its fingerprint alone.
        let record = given::<Record>(&[created(), first.clone()]);
        for same in [mask, json!({"key": {"fingerprint": "00000001"}})] {
            assert_eq!(record.when(set(same, vec![])), Ok(vec![first.clone()]));
        }
        for other in [
            json!({"fingerprint": "00000002"}),
            json!({"masked": "********"}),
            json!({"fingerprint": "00000001", "version": 2}),
            json!({"fingerprint": "00000001", "more": 1}),
            json!("not sealed"),
            json!(7),
        ] {
            let found = fields(record.when(set(json!({"key": other}), vec![])));
            assert_eq!(found, [("/data/key".to_owned(), "not_the_secret".to_owned())]);
        }
        for gone in [json!({}), json!({"key": null})] {
            assert_eq!(record.when(set(gone.clone(), vec![])), Ok(vec![has_set(gone, vec![])]));
        }
    }

    #[test]
    fn the_values_of_a_secret_are_counted_whatever_became_of_them() {
        let (first, cleared) = (has_set(json!({}), vec![secret(1)]), has_set(json!({}), vec![]));
        let record = given::<Record>(&[created(), first.clone(), cleared]);
        let refused = rejection(record.when(set(json!({"key": {}}), vec![secret(1)])));
        assert_eq!((refused.code, refused.kind.status()), ("contention", 409));
        assert!(record.when(set(json!({"key": {}}), vec![secret(2)])).is_ok());
        // Of another one than the current.
        assert_eq!(
            rejection(given::<Record>(&[created(), first]).when(set(json!({"key": {}}), vec![secret(1)]))).code,
            "contention"
        );
        // The kind has no such secret any more.
        let RecordCommand::Update { command, references, secrets, .. } = set(json!({"key": {}}), vec![secret(2)])
        else {
            unreachable!()
        };
        let update = RecordCommand::Update { command, references, secrets, kind: Some(kind(false)) };
        assert_eq!(rejection(record.when(update)).code, "contention");
    }

    #[test]
    fn a_record_that_does_not_exist_is_not_found() {
        for command in [update(json!({"score": 0})), archive()] {
            assert_eq!(rejection(given::<Record>(&[]).when(command)).kind, RejectionKind::NotFound);
        }
    }

    fn referring(references: References) -> RecordCommand {
        let command = CreateRecord { kind: name(), data: json!({"score": 1}), id: None };
        RecordCommand::Create { command, kind: Some(kind(false)), references, secrets: Vec::new() }
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
    fn a_record_has_its_unique_values_until_it_changes_or_is_archived() {
        let schema = json!({"properties": {"name": {"type": "string", "x-unique": true}}});
        let definition = KindDefinition {
            title: "Space".to_owned(),
            schema,
            visibility: Visibility::Private,
            cost: 1,
            views: vec![],
            append_only: false,
        };
        let kind = Arc::new(ValidatedKind::new(definition, 1, false));
        let (id, aggregate) = (id(), AggregateId::Record(id()));
        let step = |events: &[RecordEvent], command: RecordCommand| {
            let record = given::<Record>(events);
            let decided = record.when(command).unwrap();
            let wrapped: Vec<Event> = decided.iter().cloned().map(Record::wrap).collect();
            let changes = record.0.unique_changes(&aggregate, &wrapped);
            let changes: Vec<String> = changes.iter().map(|change| format!("{:?}", change.command)).collect();
            let kinds: Vec<String> = changes.iter().map(|change| change.chars().take(4).collect()).collect();
            ([events.to_vec(), decided].concat(), kinds)
        };
        let (events, changes) = step(&[], create(json!({"name": "Night"}), kind.clone()));
        assert_eq!(changes, ["Take"]);
        let update = |name: &str| {
            let command = UpdateRecord { id, data: json!({"name": name}) };
            let (kind, references, secrets) = (Some(kind.clone()), Ok(Vec::new()), Vec::new());
            RecordCommand::Update { command, kind, references, secrets }
        };
        let (events, changes) = step(&events, update(" NIGHT"));
        assert!(changes.is_empty(), "{changes:?}");
        let (events, changes) = step(&events, update("Day"));
        assert_eq!(changes, ["Take", "Rele"]);
        let (events, changes) = step(&events, archive());
        assert_eq!(changes, ["Rele"]);
        assert!(step(&events, archive()).1.is_empty());
    }

    #[test]
    fn data_that_no_database_takes_is_refused() {
        let found = fields(given::<Record>(&[]).when(create(json!({"score": 1, "note": "a\0b"}), kind(false))));
        assert_eq!(found, [("/data/note".to_owned(), "nul_character".to_owned())]);
    }
}
