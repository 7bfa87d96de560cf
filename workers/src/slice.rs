//! One transaction: the slices of a few lanes, each opened by its checkpoint, all committed together or not at all.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use metrics::counter;
use orgstream_events::{AggregateId, Commit, Event, EventSubject, OpenedCommit, ParkingEvent, Pipeline};
use orgstream_projections::{
    Applied, BoundOrg, Database, DbError, SliceStart, SliceTx, apply,
    parked::{self, Park, ParkedMessage, ParkedState},
};
use orgstream_stream::trace;
use tracing::Span;

use crate::{
    delivery::Delivery,
    scheduler::{Cost, LaneSlice, SliceOutcome},
};

/// Parked messages that are applied again at a time.
const RETRY_BATCH: u16 = 500;

/// Runs the slices of `group` in one transaction and says, for each, how it ended.
pub(crate) async fn run_group(db: &Database, group: &[LaneSlice]) -> Vec<SliceOutcome> {
    match try_group(db, group).await {
        Ok(outcomes) => outcomes,
        Err((failed, error)) => {
            tracing::debug!(%error, slices = group.len(), "a transaction was rolled back");
            let outcome = |place: usize| {
                if error.is_retryable() {
                    SliceOutcome::Unavailable
                } else if place == failed {
                    SliceOutcome::Failed { reason: error.to_string() }
                } else {
                    SliceOutcome::Undone
                }
            };
            (0..group.len()).map(outcome).collect()
        }
    }
}

/// The outcomes, or which slice failed and how.
async fn try_group(db: &Database, group: &[LaneSlice]) -> Result<Vec<SliceOutcome>, (usize, DbError)> {
    // Each ends with the transaction, as a part of the trace of the command that it applies.
    let _spans = spans(group);
    let begun = Instant::now();
    let mut tx = db.begin_slices().await.map_err(|error| (0, error))?;
    let shared = begun.elapsed();
    let mut outcomes = Vec::with_capacity(group.len());
    for (place, slice) in group.iter().enumerate() {
        outcomes.push(run_slice(&mut tx, slice).await.map_err(|error| (place, error))?);
    }
    let committing = Instant::now();
    tx.commit().await.map_err(|error| (0, error))?;
    let applied = outcomes.iter().filter(|outcome| matches!(outcome, SliceOutcome::Applied { .. })).count();
    let share = (shared + committing.elapsed()) / u32::try_from(applied.max(1)).unwrap_or(u32::MAX);
    for outcome in &mut outcomes {
        if let SliceOutcome::Applied { cost } = outcome {
            cost.overhead += share;
        }
    }
    Ok(outcomes)
}

/// One span for every command that somebody traces, under the command's own.
fn spans(group: &[LaneSlice]) -> Vec<Span> {
    let mut spans = Vec::new();
    for slice in group {
        for delivery in &slice.deliveries {
            if let Some(traced) = delivery.message.trace.as_deref().filter(|trace| trace::is_sampled(trace)) {
                let span = tracing::info_span!(
                    "project", org.id = %slice.key.org, pipeline = %slice.key.pipeline, event.seq = delivery.seq(),
                    command.id = delivery.open().ok().map(|commit| commit.command_id.to_string()),
                );
                trace::join(&span, Some(traced));
                spans.push(span);
            }
        }
    }
    spans
}

/// What becomes of the slice if the transaction commits. Unless it is applied, the transaction is unchanged.
async fn run_slice(tx: &mut SliceTx, slice: &LaneSlice) -> Result<SliceOutcome, DbError> {
    let nothing = Ok(SliceOutcome::Applied { cost: Cost::default() });
    let (Some(first), Some(last)) = (slice.deliveries.first(), slice.deliveries.last()) else { return nothing };
    let Ok(org) = BoundOrg::proven_by_route(&first.message.subject) else { return nothing };
    let key = slice.key;
    let opening = Instant::now();
    let parked = match tx.open(org, key.pipeline, key.shard, slice.epoch, slice.from, last.seq()).await? {
        SliceStart::Open { parked } => parked,
        SliceStart::Moved { stored_seq } => return Ok(SliceOutcome::Moved { stored: stored_seq }),
        SliceStart::Fenced => return Ok(SliceOutcome::Fenced),
    };
    let (overhead, working) = (opening.elapsed(), Instant::now());
    let blocked = if parked { parked::aggregates(tx, org).await? } else { BTreeSet::new() };
    let mut pass = Pass { tx, org, pipeline: key.pipeline, blocked, ready: Vec::new(), to_park: Vec::new() };
    for (place, delivery) in slice.deliveries.iter().enumerate() {
        let refused = slice.park_first.as_deref().filter(|_| place == 0);
        let aggregate = delivery.aggregate();
        match (refused, delivery.open()) {
            (None, _) if pass.blocked.contains(aggregate) => pass.park(delivery, ParkedState::Waiting, "", 0),
            (Some(reason), _) | (None, Err(reason)) => {
                // What cannot be read is not tried again: it reads the same every time.
                let attempts = if refused.is_some() { slice.attempts } else { 1 };
                pass.park(delivery, ParkedState::Failed, reason, attempts);
                counter!("orgstream_parked_total", "pipeline" => key.pipeline.name()).increment(1);
                tracing::error!(
                    org.id = %org.org(), pipeline = %key.pipeline, event.seq = delivery.seq(), aggregate, reason,
                    "an event cannot be applied: its aggregate is parked (see: orgstream park list)"
                );
            }
            (None, Ok(commit)) => {
                tracing::debug!(
                    org.id = %org.org(), pipeline = %key.pipeline, event.seq = delivery.seq(),
                    command.id = %commit.command_id, traceparent = delivery.message.trace, "applied"
                );
                pass.ready.push(Applied { seq: delivery.seq(), commit: Arc::clone(commit) });
                for decision in decisions(commit, key.pipeline) {
                    pass.flush().await?;
                    pass.carry_out(&decision).await?;
                }
            }
        }
    }
    pass.flush().await?;
    Ok(SliceOutcome::Applied { cost: Cost { overhead, work: working.elapsed() } })
}

/// What an operator decided about parked events of this pipeline.
struct Decision {
    aggregate: AggregateId,
    /// The message to give up.
    skip: Option<u64>,
}

fn decisions(commit: &OpenedCommit, pipeline: Pipeline) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for event in &commit.events {
        if event.header.aggregate.aggregate != AggregateId::Parking(pipeline) {
            continue;
        }
        if let Event::Parking(decision) = &event.event {
            decisions.push(match decision {
                ParkingEvent::Retried(retried) => Decision { aggregate: retried.aggregate.clone(), skip: None },
                ParkingEvent::Skipped(skipped) => {
                    Decision { aggregate: skipped.aggregate.clone(), skip: Some(skipped.seq) }
                }
            });
        }
    }
    decisions
}

/// One slice under way.
struct Pass<'a> {
    tx: &'a mut SliceTx,
    org: BoundOrg,
    pipeline: Pipeline,
    blocked: BTreeSet<String>,
    ready: Vec<Applied>,
    to_park: Vec<(Arc<Delivery>, ParkedState, String, u32)>,
}

impl Pass<'_> {
    fn park(&mut self, delivery: &Arc<Delivery>, state: ParkedState, reason: &str, attempts: u32) {
        self.blocked.insert(delivery.aggregate().to_owned());
        self.to_park.push((Arc::clone(delivery), state, reason.to_owned(), attempts));
    }

    /// Writes what has gathered.
    async fn flush(&mut self) -> Result<(), DbError> {
        if !self.ready.is_empty() {
            apply(self.tx, self.org, &self.ready).await?;
            self.ready.clear();
        }
        if !self.to_park.is_empty() {
            let rows: Vec<Park<'_>> = self
                .to_park
                .iter()
                .map(|(delivery, state, reason, attempts)| Park {
                    seq: delivery.seq(),
                    subject: &delivery.message.subject,
                    message: &delivery.message.payload,
                    state: *state,
                    reason,
                    attempts: *attempts,
                })
                .collect();
            parked::park(self.tx, self.org, &rows).await?;
            self.to_park.clear();
        }
        Ok(())
    }

    /// Applies the parked messages of one aggregate again, in order, as far as they go.
    async fn carry_out(&mut self, decision: &Decision) -> Result<(), DbError> {
        let aggregate = decision.aggregate.to_string();
        let mut skip = decision.skip;
        loop {
            let rows = parked::of_aggregate(self.tx, self.org, &aggregate, RETRY_BATCH).await?;
            let Some(first) = rows.first() else { break };
            if let Some(seq) = skip.take() {
                // A decision about something that is no longer first has been overtaken.
                if first.parked.seq != seq {
                    break;
                }
                parked::remove(self.tx, self.org, &[seq]).await?;
                continue;
            }
            if !self.apply_again(&rows).await? {
                return Ok(());
            }
        }
        self.blocked.remove(&aggregate);
        Ok(())
    }

    /// Whether all of `rows` could be applied; the first that could not stays parked, and so do those behind it.
    async fn apply_again(&mut self, rows: &[ParkedMessage]) -> Result<bool, DbError> {
        let opened: Vec<Result<Applied, String>> = rows.iter().map(reopen).collect();
        if let Ok(all) = opened.iter().cloned().collect::<Result<Vec<_>, String>>()
            && self.attempt(&all).await?.is_ok()
        {
            let seqs: Vec<u64> = rows.iter().map(|row| row.parked.seq).collect();
            parked::remove(self.tx, self.org, &seqs).await?;
            return Ok(true);
        }
        for (row, opened) in rows.iter().zip(opened) {
            let refusal = match opened {
                Ok(one) => self.attempt(&[one]).await?.err(),
                Err(reason) => Some(reason),
            };
            if let Some(reason) = refusal {
                tracing::error!(
                    org.id = %self.org.org(), pipeline = %self.pipeline, event.seq = row.parked.seq, reason,
                    "a parked event still cannot be applied"
                );
                let (state, attempts) = (ParkedState::Failed, 1);
                let (subject, message) = (row.parked.subject.as_str(), row.message.as_slice());
                let again = Park { seq: row.parked.seq, subject, message, state, reason: &reason, attempts };
                parked::park(self.tx, self.org, &[again]).await?;
                return Ok(false);
            }
            parked::remove(self.tx, self.org, &[row.parked.seq]).await?;
        }
        Ok(true)
    }

    /// Applies `commits`, or leaves everything as it was and says why.
    async fn attempt(&mut self, commits: &[Applied]) -> Result<Result<(), String>, DbError> {
        self.tx.savepoint().await?;
        match apply(self.tx, self.org, commits).await {
            Ok(()) => self.tx.release_savepoint().await.map(Ok),
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => {
                self.tx.rollback_to_savepoint().await?;
                Ok(Err(error.to_string()))
            }
        }
    }
}

fn reopen(row: &ParkedMessage) -> Result<Applied, String> {
    let subject: EventSubject = row.parked.subject.parse().map_err(|error| format!("{error}"))?;
    let commit = Commit::decode(&row.message).and_then(|commit| commit.open(&subject));
    commit.map(|commit| Applied { seq: row.parked.seq, commit: Arc::new(commit) }).map_err(|error| error.to_string())
}
