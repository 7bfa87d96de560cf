//! Unique values of records: taken and freed in the same append as the record's own events, or not at all.
//!
//! Each value is an aggregate, so that two records that take it at the same time expect the same last sequence of it, and the
//! log stores one of them.

use orgstream_domain::{
    Aggregate, FieldError, Permission, Rejection,
    unique_value::{UniqueValue, UniqueValueChange, UniqueValueError},
};
use orgstream_events::{AggregateId, CommitDraft, cause};
use orgstream_stream::{Appended, Freshness, Placement};

use super::{
    handler::{CommandContext, CommandHandler},
    request::CommandError,
};

impl CommandHandler {
    /// Appends a record's commit together with what it changes about unique values. Returns the place of the record's commit,
    /// which is the last.
    pub(super) async fn append_with_values(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        changes: Vec<UniqueValueChange>,
        record: (CommitDraft, u64),
    ) -> Result<Appended, CommandError> {
        let org = placement.org;
        let decision_context = attempt.decision_context(org);
        let mut drafts = Vec::with_capacity(changes.len() + 1);
        for UniqueValueChange { id, command } in changes {
            let aggregate = AggregateId::UniqueValue(id);
            let value = self.aggregates.load::<UniqueValue>(placement, &aggregate, Freshness::Leader).await?;
            let events = match value.state.decide(command, &decision_context) {
                Ok(events) if events.is_empty() => continue,
                Ok(events) => events.into_iter().map(UniqueValue::wrap).collect(),
                Err(taken) => return Err(self.taken(attempt, placement, taken).await?.into()),
            };
            drafts.push((attempt.draft(org, aggregate, value.version, events), value.seq));
        }
        drafts.push(record);
        attempt.confirm().await?;
        let appended = self.append_together(attempt, placement, drafts).await?;
        appended.last().copied().ok_or_else(|| CommandError::Internal(cause("a batch without a commit was stored")))
    }

    /// Returns the refusal of a value that another record has. It names the record to those who may read it.
    async fn taken(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        taken: UniqueValueError,
    ) -> Result<Rejection, CommandError> {
        let caller = attempt.caller;
        let may_read = caller.scopes.allow(Permission::ReadRecords)
            && self.permissions_of(placement, caller.role).await?.contains(&Permission::ReadRecords);
        let (field, holder) = (taken.field.clone(), taken.holder);
        let holder = if may_read { format!("the record {holder}") } else { "another record".to_owned() };
        let detail = format!("{holder} of this kind has it; case and spaces around it make no difference");
        let error = FieldError { pointer: format!("/data/{field}"), code: "value_taken".into(), detail };
        Ok(Rejection { errors: vec![error], ..Rejection::from(taken) })
    }
}
