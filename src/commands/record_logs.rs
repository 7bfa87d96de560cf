//! Records of append-only kinds: appended behind each other in a few record logs, and found there by their ids.
//!
//! Each append expects the last sequence of its record log, like any other, so a repeated command is known by its place
//! however old it is. A record's id has what the index of commands has, so the record is found without an index of records.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream_domain::{
    AppendRecords, CreateRecord, FieldError, Rejection,
    annotations::{NamedReference, ReferenceScope},
    record::{RecordError, References, UnusableReferences},
    record_log::{MAX_APPENDED, RecordLog, RecordLogCommand, RecordLogError},
    schema::ValidatedKind,
};
use orgstream_events::{
    AggregateId, AppendedPlace, Event, KindName, RecordAppended, RecordId, RecordLogEvent, RecordLogId, RecordReference,
};
use orgstream_stream::{Freshness, Placement};
use serde_json::Value;

use super::{
    handler::{CommandContext, CommandHandler, Target},
    references::AT_ONCE,
    request::{Accepted, CommandError, Request},
};

impl CommandHandler {
    /// Appends the records of a command.
    pub(super) async fn append_records(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: AppendRecords,
    ) -> Result<Accepted, CommandError> {
        let cleared = without_version(attempt)?;
        let attempt = &CommandContext { request: cleared.as_ref().unwrap_or(attempt.request), ..*attempt };
        let kind = self.kind(to.placement.org, &command.kind).await?;
        if let Some(accepted) = self.appended_before(attempt, to).await? {
            return Ok(accepted);
        }
        let is_refused = command.items.len() > MAX_APPENDED;
        let references = match &kind {
            Some(kind) if kind.definition.append_only && !is_refused => {
                self.references_of_all(to.placement, kind, &command.items).await?
            }
            _ => command.items.iter().map(|_| Ok(Vec::new())).collect(),
        };
        let count = command.items.len();
        let append = RecordLogCommand::Append { command, kind, references };
        let accepted = self.execute::<RecordLog>(attempt, to, append).await?;
        Ok(with_records(accepted, count))
    }

    /// Appends the record that `create_record` asks for. The answer is that of any other record.
    pub(super) async fn create_appended(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        command: CreateRecord,
        kind: Arc<ValidatedKind>,
    ) -> Result<Accepted, CommandError> {
        let to = Target { placement, aggregate: AggregateId::RecordLog(RecordLogId::of(attempt.command_id)) };
        let cleared = without_version(attempt)?;
        let attempt = &CommandContext { request: cleared.as_ref().unwrap_or(attempt.request), ..*attempt };
        let created = |accepted: Accepted| Accepted {
            aggregate: AggregateId::Record(RecordId::appended(accepted.command_id, 0)),
            version: 1,
            records: Vec::new(),
            ..accepted
        };
        if let Some(accepted) = self.appended_before(attempt, &to).await? {
            return Ok(created(accepted));
        }
        let references = self.references(placement, Some(&kind), &command.data).await?;
        let create = RecordLogCommand::Create { command, kind, references };
        self.execute::<RecordLog>(attempt, &to, create).await.map(created)
    }

    /// Returns the answer that the command was given before. Reads the record log into the cache, so that an append does not
    /// begin with an expectation that cannot hold.
    async fn appended_before(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
    ) -> Result<Option<Accepted>, CommandError> {
        let known = self.aggregates.look::<RecordLog>(to.placement, &to.aggregate).await?;
        let accepted = self.aggregates.earlier(attempt, to.placement, &to.aggregate, &known).await?;
        Ok(accepted.map(|accepted| {
            let count = accepted.events.len();
            with_records(accepted, count)
        }))
    }

    /// Returns the record of an append-only kind, if the log has it.
    pub(super) async fn appended_record(
        &self,
        placement: &Placement,
        id: RecordId,
    ) -> Result<Option<RecordAppended>, CommandError> {
        let Some(AppendedPlace { log, command, .. }) = id.appended_place() else { return Ok(None) };
        let aggregate = AggregateId::RecordLog(log);
        let loaded = self.aggregates.load::<RecordLog>(placement, &aggregate, Freshness::Leader).await?;
        for seq in loaded.commands.find_part(command) {
            let stored = self.log.commit_at(placement, &aggregate, seq).await?;
            for opened in stored.commit.events {
                if let Event::RecordLog(RecordLogEvent::Appended(appended)) = opened.event
                    && appended.record == id
                {
                    return Ok(Some(appended));
                }
            }
        }
        Ok(None)
    }

    /// Returns the refusal of a change of a record whose id is that of an append-only kind.
    pub(super) async fn written_once(&self, placement: &Placement, id: RecordId) -> Result<Rejection, CommandError> {
        let found = self.appended_record(placement, id).await?;
        Ok(match found {
            Some(RecordAppended { kind, .. }) => RecordLogError::AppendOnly(kind).into(),
            None => RecordError::NotFound.into(),
        })
    }

    /// Looks up what many records of one kind refer to, each of the records that they refer to once.
    async fn references_of_all(
        &self,
        placement: &Placement,
        kind: &ValidatedKind,
        items: &[Value],
    ) -> Result<Vec<References>, CommandError> {
        let mut named = Vec::with_capacity(items.len());
        for data in items {
            // Data that will be refused for what it is costs no lookups.
            let references = match kind.annotations.references_in(data) {
                Ok(references) if references.is_empty() || kind.check(data).is_err() => Ok(Vec::new()),
                Ok(references) => Ok(references),
                Err(faults) => Err(UnusableReferences::Malformed(faults)),
            };
            named.push(references);
        }
        let mut each: HashMap<(RecordId, KindName, ReferenceScope), NamedReference> = HashMap::new();
        for reference in named.iter().flatten().flatten() {
            each.entry(key_of(reference)).or_insert_with(|| reference.clone());
        }
        if each.len() > MAX_APPENDED {
            let detail = format!("refer to {} records; the limit is {MAX_APPENDED}: send fewer at once", each.len());
            return Err(Rejection::field("/items", "too_many_references", detail).into());
        }
        let found: HashMap<_, _> = stream::iter(each)
            .map(|(key, reference)| async move {
                let found = self.reference(placement, reference).await?;
                Ok::<_, CommandError>((key, found))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let resolve = |references: Vec<NamedReference>| {
            let (mut there, mut missing) = (Vec::with_capacity(references.len()), Vec::new());
            for reference in references {
                match found.get(&key_of(&reference)) {
                    Some(Ok(known)) => {
                        let pointer = reference.pointer;
                        there.push(RecordReference { pointer, ..known.clone() });
                    }
                    Some(Err(fault)) => {
                        let pointer = format!("/data{}", reference.pointer);
                        missing.push(FieldError { pointer, ..fault.clone() });
                    }
                    None => {}
                }
            }
            if missing.is_empty() { Ok(there) } else { Err(UnusableReferences::NotFound(missing)) }
        };
        Ok(named.into_iter().map(|references| references.and_then(&resolve)).collect())
    }
}

/// Returns the request without its version, which is one of the record and not of the record log: there is none yet.
fn without_version(attempt: &CommandContext<'_>) -> Result<Option<Request>, CommandError> {
    match attempt.request.expected_version {
        None => Ok(None),
        Some(0) => Ok(Some(Request { expected_version: None, ..attempt.request.clone() })),
        Some(expected) => Err(CommandError::VersionConflict { expected, actual: 0 }),
    }
}

/// What a lookup depends on.
fn key_of(reference: &NamedReference) -> (RecordId, KindName, ReferenceScope) {
    (reference.id, reference.kind.clone(), reference.scope)
}

/// Adds the ids of the records to an answer; all of its events have the same name.
fn with_records(accepted: Accepted, count: usize) -> Accepted {
    let records = (0..).take(count).map(|ordinal| RecordId::appended(accepted.command_id, ordinal)).collect();
    let events = accepted.events.first().cloned().into_iter().collect();
    Accepted { events, records, ..accepted }
}
