//! What is appended together with a command's own events, or not at all: unique values of records that are taken and freed, and
//! what is counted of quotas.
//!
//! Each value is an aggregate, so that two records that take it at the same time expect the same last sequence of it, and the
//! log stores one of them.

use std::time::Duration;

use orgstream_domain::{
    Aggregate, FieldError, Permission, Rejection,
    unique_value::{UniqueValue, UniqueValueChange, UniqueValueError},
};
use orgstream_events::{AggregateId, CommitDraft, QuotaName, cause};
use orgstream_stream::{AppendError, Appended, Freshness, Placement};
use tokio::time::Instant;

use super::{
    handler::{CommandContext, CommandHandler},
    patience::Patience,
    quotas::Counted,
    request::CommandError,
};

/// What takes longer was waited for.
const LONG: Duration = Duration::from_secs(1);

impl CommandHandler {
    /// Appends a commit together with what it changes about unique values, and what is counted of quotas. Returns the place of the
    /// commit itself, which is the last.
    pub(super) async fn append_with_others(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        (changes, mut counted, quotas): (Vec<UniqueValueChange>, Option<Counted>, &[(QuotaName, i64)]),
        own: (CommitDraft, u64),
    ) -> Result<Appended, CommandError> {
        let org = placement.org;
        // What is waited for near a limit, once, is no race.
        let (mut patience, mut has_waited) = (Patience::new(), false);
        loop {
            let mut drafts = self.changed_values(attempt, placement, changes.clone()).await?;
            let place = drafts.len();
            if let Some(Counted { loaded, events, .. }) = &counted {
                let draft = attempt.draft(org, AggregateId::Quota(org), loaded.version, events.clone());
                // Directly before the commit that it counts: the read models go by that.
                drafts.push((draft, loaded.seq));
            }
            drafts.push(own.clone());
            attempt.confirm().await?;
            let appended = self.append_together(attempt, placement, drafts).await;
            if let Some(count) = counted.take() {
                match (&appended, appended.as_ref().ok().and_then(|appended| appended.get(place))) {
                    (_, Some(stored)) if !stored.replayed => self.counted(attempt, placement, count, stored.seq)?,
                    // Another process has counted: that is no conflict about what the command is about.
                    (Err(AppendError::Conflict { .. }), _) if patience.again().await => {
                        let since = Instant::now();
                        if let Some(again) = self.count_again(attempt, placement, count, quotas).await? {
                            if !has_waited && since.elapsed() > LONG {
                                (patience, has_waited) = (Patience::new(), true);
                            }
                            counted = Some(again);
                            continue;
                        }
                    }
                    _ => self.forget_counts(org),
                }
            }
            let last = appended?.last().copied();
            return last.ok_or_else(|| CommandError::Internal(cause("a batch without a commit was stored")));
        }
    }

    /// Returns the commits of the unique values that change.
    async fn changed_values(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        changes: Vec<UniqueValueChange>,
    ) -> Result<Vec<(CommitDraft, u64)>, CommandError> {
        let org = placement.org;
        let decision_context = attempt.decision_context(org);
        let mut drafts = Vec::with_capacity(changes.len() + 2);
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
        Ok(drafts)
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
