//! One transaction: the batches of a few lanes, each opened by its checkpoint, all committed together or not at all.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use metrics::counter;
use orgstream_events::{
    AggregateId, AggregateName, Chain, Commit, CommitKeys, Event, EventId, EventSubject, Fingerprint, OpenedCommit,
    ParkingEvent, Pipeline, PlanName, SubjectError, Timestamp, cause,
};
use orgstream_projections::{
    Applied, ApplyTx, BatchClass, BatchStart, BoundOrg, Database, DbError, Opening, apply, audit,
    parked::{self, Park, ParkedMessage, ParkedState},
};
use orgstream_stream::trace;
use tracing::Span;

use crate::{
    delivery::Delivery,
    log_marks,
    scheduler::{BatchOutcome, Cost, LaneBatch, Trouble},
};

/// How long the database's answer may take beyond the timeout of its statements.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);
/// Parked messages per retry step.
const RETRY_BATCH: u16 = 500;

/// The stage in which a transaction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Begin, open or commit, which no event affects.
    Frame,
    /// Opening the batches of one org.
    Opening,
    /// The statements of one batch's own events.
    Own,
}

/// A failed transaction: the batch in which it failed, and the error.
struct Broken {
    place: usize,
    stage: Stage,
    error: DbError,
}

impl Broken {
    fn frame(error: DbError) -> Self {
        Self { place: 0, stage: Stage::Frame, error }
    }
}

/// Runs the batches of `group` in one transaction, none of whose statements takes longer than `timeout`, and returns
/// the outcome of each.
///
/// A failure is attributed to an event only if the event's own statements failed, only if an event can cause such an
/// error at all, and only if the database did everything else that was requested before and does so afterwards.
pub(crate) async fn run_group(
    db: &Database,
    keys: &CommitKeys,
    group: &[LaneBatch],
    class: BatchClass,
    timeout: Duration,
) -> Vec<BatchOutcome> {
    // The server ends each statement in time. No report of that within the limit means a dead connection.
    let limit = SILENCE + 3 * timeout;
    let tried = tokio::time::timeout(limit, try_group(db, keys, group, class, timeout)).await;
    let silent = || Broken::frame(DbError::unavailable(format!("no answer within {} seconds", limit.as_secs())));
    let Broken { place: failed, stage, error } = match tried.unwrap_or_else(|_| Err(silent())) {
        Ok(outcomes) => return outcomes,
        Err(broken) => broken,
    };
    tracing::debug!(error = %Chain(&error), ?stage, batches = group.len(), "a transaction was rolled back");
    // Each retries alone, which shows the one that took too long.
    if error.is_timeout() && (stage == Stage::Own || (stage == Stage::Opening && group.len() > 1)) {
        return group.iter().map(|_| BatchOutcome::TimedOut).collect();
    }
    let mut trouble = error;
    if stage == Stage::Own && trouble.may_be_of_an_event() {
        let opened = group.get(failed..=failed).unwrap_or_default();
        match tokio::time::timeout(limit, open_in_vain(db, opened, class, timeout)).await {
            Ok(Ok(())) => {
                let outcome = |place| {
                    if place == failed {
                        BatchOutcome::Failed { reason: Chain(&trouble).to_string() }
                    } else {
                        BatchOutcome::Undone
                    }
                };
                return (0..group.len()).map(outcome).collect();
            }
            Ok(Err(error)) => trouble = error,
            Err(_) => trouble = silent().error,
        }
    }
    let (reason, everywhere): (Arc<str>, bool) = (Chain(&trouble).to_string().into(), !trouble.is_of_some_rows());
    let elsewhere = matches!(trouble, DbError::Target { .. });
    let outcome = |place| {
        // If the error concerns one org's rows, the others need not fail with them again.
        let suspect = stage != Stage::Frame && place == failed;
        BatchOutcome::Unavailable(Trouble { reason: Arc::clone(&reason), everywhere, suspect, elsewhere })
    };
    (0..group.len()).map(outcome).collect()
}

/// Checks that the database does everything that a batch requires apart from its events. All of it is rolled back.
async fn open_in_vain(
    db: &Database,
    batches: &[LaneBatch],
    class: BatchClass,
    timeout: Duration,
) -> Result<(), DbError> {
    let mut tx = db.begin_batches(class, timeout).await?;
    open_all(&mut tx, batches).await?;
    tx.rollback().await
}

async fn try_group(
    db: &Database,
    keys: &CommitKeys,
    group: &[LaneBatch],
    class: BatchClass,
    timeout: Duration,
) -> Result<Vec<BatchOutcome>, Broken> {
    // Each ends with the transaction, as a part of the trace of the command that it applies.
    let _spans = spans(group);
    let begun = Instant::now();
    let mut tx = db.begin_batches(class, timeout).await.map_err(Broken::frame)?;
    let shared = begun.elapsed();
    let mut outcomes = match fill(&mut tx, keys, group).await {
        Ok(outcomes) => outcomes,
        // A connection that cannot even roll back says nothing about any event.
        Err(broken) => match tx.undo().await {
            Ok(()) => return Err(broken),
            Err(error) => return Err(Broken::frame(error)),
        },
    };
    let committing = Instant::now();
    tx.commit().await.map_err(Broken::frame)?;
    let applied = outcomes.iter().filter(|outcome| matches!(outcome, BatchOutcome::Applied { .. })).count();
    let share = (shared + committing.elapsed()) / u32::try_from(applied.max(1)).unwrap_or(u32::MAX);
    for outcome in &mut outcomes {
        if let BatchOutcome::Applied { cost, .. } = outcome {
            cost.shared = share;
        }
    }
    Ok(outcomes)
}

/// Everything between the beginning of the transaction and its commit.
async fn fill(tx: &mut ApplyTx, keys: &CommitKeys, group: &[LaneBatch]) -> Result<Vec<BatchOutcome>, Broken> {
    let mut outcomes = Vec::with_capacity(group.len());
    for of_one_org in group.chunk_by(|one, next| (one.key.shard, one.key.org) == (next.key.shard, next.key.org)) {
        let place = outcomes.len();
        let opening = |error| Broken { place, stage: Stage::Opening, error };
        let started = open_all(tx, of_one_org).await.map_err(opening)?;
        for (batch, started) in of_one_org.iter().zip(started) {
            let place = outcomes.len();
            let own = |error| Broken { place, stage: Stage::Own, error };
            if batch.key.pipeline == Pipeline::Search && tx.writes_elsewhere() && group.len() > 1 {
                // No other batch waits for a search target. The lane is alone from now on.
                let (target, cause) = ("of a shared transaction".to_owned(), cause("it is written to alone"));
                return Err(own(DbError::Target { target, cause }));
            }
            outcomes.push(run_batch(tx, keys, batch, started).await.map_err(own)?);
        }
    }
    Ok(outcomes)
}

/// Makes one span for every traced command, under the command's own.
fn spans(group: &[LaneBatch]) -> Vec<Span> {
    let mut spans = Vec::new();
    for batch in group {
        for delivery in &batch.deliveries {
            if let Some(traced) = delivery.message.trace.as_deref().filter(|trace| trace::is_sampled(trace)) {
                let span = tracing::info_span!(
                    "project", org.id = %batch.key.org, pipeline = %batch.key.pipeline, event.seq = delivery.seq(),
                    command.id = delivery.open().ok().map(|commit| commit.command_id.to_string()),
                );
                trace::join(&span, Some(traced));
                spans.push(span);
            }
        }
    }
    spans
}

/// The result of opening a batch, and its share of the time that it took.
struct Started {
    org: BoundOrg,
    start: BatchStart,
    opening: Duration,
}

/// Opens the batches of one org; none for the empty ones.
async fn open_all(tx: &mut ApplyTx, batches: &[LaneBatch]) -> Result<Vec<Option<Started>>, DbError> {
    let opening = |batch: &LaneBatch| {
        let to = batch.deliveries.last()?.seq();
        Some(Opening { pipeline: batch.key.pipeline, from: batch.from, to })
    };
    let openings: Vec<Opening> = batches.iter().filter_map(opening).collect();
    let subject = batches.iter().find_map(|batch| Some(&batch.deliveries.first()?.message.subject));
    let bound = subject.and_then(|subject| BoundOrg::proven_by_route(subject).ok());
    let (Some(org), Some(LaneBatch { key, epoch, .. })) = (bound, batches.first()) else {
        return Ok(batches.iter().map(|_| None).collect());
    };
    let began = Instant::now();
    let mut starts = tx.open_all(org, key.shard, *epoch, &openings).await?.into_iter();
    let share = began.elapsed() / u32::try_from(openings.len().max(1)).unwrap_or(u32::MAX);
    let started = |batch| {
        opening(batch)?;
        starts.next().map(|start| Started { org, start, opening: share })
    };
    Ok(batches.iter().map(started).collect())
}

/// Applies a batch; returns its outcome if the transaction commits. Unless it is applied, the transaction is unchanged.
async fn run_batch(
    tx: &mut ApplyTx,
    keys: &CommitKeys,
    batch: &LaneBatch,
    started: Option<Started>,
) -> Result<BatchOutcome, DbError> {
    let key = batch.key;
    let Some(Started { org, start, opening }) = started else {
        return Ok(BatchOutcome::Applied { cost: Cost::default(), plan: PlanName::default(), elsewhere: false });
    };
    let parked = match start {
        BatchStart::Open { parked } => parked,
        BatchStart::Moved { stored_seq } => return Ok(BatchOutcome::Moved { stored: stored_seq }),
        BatchStart::Fenced => return Ok(BatchOutcome::Fenced),
        BatchStart::Deleted => {
            return Ok(BatchOutcome::Applied { cost: Cost::default(), plan: PlanName::default(), elsewhere: false });
        }
    };
    let (plan, working) = (tx.plan(), Instant::now());
    tx.turn_to(key.pipeline);
    let blocked = if parked { parked::aggregates(tx, org).await? } else { BTreeSet::new() };
    let mut pass = Pass::new(tx, org, key.pipeline, blocked, Some(keys));
    for (place, delivery) in batch.deliveries.iter().enumerate() {
        let refused = batch.park_first.as_deref().filter(|_| place == 0);
        let aggregate = delivery.aggregate();
        match (refused, delivery.open()) {
            (None, _) if pass.blocked.contains(aggregate) => {
                pass.park(aggregate, ToPark::of(delivery, ParkedState::Waiting, "", 0)).await?;
            }
            (Some(reason), _) | (None, Err(reason)) => {
                // An unreadable message is not retried: it reads the same every time.
                let attempts = if refused.is_some() { batch.attempts } else { 1 };
                pass.park(aggregate, ToPark::of(delivery, ParkedState::Failed, reason, attempts)).await?;
                counter!("orgstream_parked_total", "pipeline" => key.pipeline.name()).increment(1);
                if delivery.verified().is_none() {
                    counter!("orgstream_forged_messages_total").increment(1);
                }
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
                pass.latest = commit.events.last().map(|event| event.header.recorded_at).or(pass.latest);
                pass.ready.push(Applied { seq: delivery.seq(), commit: Arc::clone(commit) });
                for decision in decisions(delivery.seq(), commit, key.pipeline) {
                    pass.flush().await?;
                    pass.carry_out(&decision).await?;
                }
            }
        }
    }
    pass.flush().await?;
    let (work, sending) = (working.elapsed(), Instant::now());
    let elsewhere = key.pipeline == Pipeline::Search && tx.writes_elsewhere();
    if elsewhere {
        tx.send().await?;
    }
    let cost = Cost { shared: Duration::ZERO, opening, work, elsewhere: sending.elapsed() };
    Ok(BatchOutcome::Applied { cost, plan, elsewhere })
}

/// An operator's decision about parked events of this pipeline.
pub(crate) struct Decision {
    aggregate: AggregateName,
    /// The message to give up.
    skip: Option<u64>,
    /// The decision's sequence, its event, and its time.
    pub(crate) seq: u64,
    pub(crate) event: EventId,
    pub(crate) at: Timestamp,
}

pub(crate) fn decisions(seq: u64, commit: &OpenedCommit, pipeline: Pipeline) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for event in &commit.events {
        if event.header.aggregate.aggregate != AggregateId::Parking(pipeline) {
            continue;
        }
        let Event::Parking(decision) = &event.event else { continue };
        let (aggregate, skip) = match decision {
            ParkingEvent::Retried(retried) => (retried.aggregate.clone(), None),
            ParkingEvent::Skipped(skipped) => (skipped.aggregate.clone(), Some(skipped.seq)),
            ParkingEvent::Parked(_) | ParkingEvent::Settled(_) => continue,
        };
        decisions.push(Decision { aggregate, skip, seq, event: event.header.event_id, at: event.header.recorded_at });
    }
    decisions
}

/// A message to park.
pub(crate) struct ToPark {
    pub(crate) seq: u64,
    pub(crate) subject: String,
    /// The commit's bytes; for an unverified message, the message as received.
    pub(crate) message: Bytes,
    pub(crate) verified: bool,
    pub(crate) expected: Option<u64>,
    pub(crate) state: ParkedState,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    /// When it was recorded, if it is readable, and the hash of the message as stored in the stream: for its mark.
    pub(crate) recorded_at: Option<Timestamp>,
    pub(crate) sha256: Option<Fingerprint>,
}

impl ToPark {
    fn of(delivery: &Delivery, state: ParkedState, reason: &str, attempts: u32) -> Self {
        let (subject, expected) = (delivery.message.subject.clone(), delivery.message.expected);
        let (message, verified) = match delivery.verified() {
            Some(commit) => (commit, true),
            None => (delivery.message.payload.clone(), false),
        };
        let opened = delivery.open().ok().and_then(|commit| commit.events.first());
        Self {
            seq: delivery.seq(),
            subject,
            message,
            verified,
            expected,
            state,
            reason: reason.to_owned(),
            attempts,
            recorded_at: opened.map(|event| event.header.recorded_at),
            sha256: Some(Fingerprint::of(&[&delivery.message.payload])),
        }
    }
}

/// One batch in progress.
pub(crate) struct Pass<'a> {
    pub(crate) tx: &'a mut ApplyTx,
    org: BoundOrg,
    pipeline: Pipeline,
    pub(crate) blocked: BTreeSet<String>,
    pub(crate) ready: Vec<Applied>,
    /// When the newest event of the batch was recorded.
    latest: Option<Timestamp>,
    to_park: Vec<ToPark>,
    /// The keys that verify parked messages when they are retried. A rebuild needs none: what it parks was verified
    /// before it came into the audit log.
    keys: Option<&'a CommitKeys>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        tx: &'a mut ApplyTx,
        org: BoundOrg,
        pipeline: Pipeline,
        blocked: BTreeSet<String>,
        keys: Option<&'a CommitKeys>,
    ) -> Self {
        Self { tx, org, pipeline, blocked, ready: Vec::new(), latest: None, to_park: Vec::new(), keys }
    }

    /// Parks a message. The audit log gets a mark in its place.
    pub(crate) async fn park(&mut self, aggregate: &str, message: ToPark) -> Result<(), DbError> {
        self.blocked.insert(aggregate.to_owned());
        if self.pipeline.is_log() {
            let at = match message.recorded_at.or(self.latest) {
                Some(at) => at,
                // An unreadable message has no time; times in the log do not decrease.
                None => audit::latest(self.tx, self.org).await?.unwrap_or_else(log_marks::now),
            };
            self.latest = Some(at);
            self.ready.push(log_marks::parked(self.org.org(), &message, at)?);
        }
        self.to_park.push(message);
        Ok(())
    }

    /// Writes the gathered commits and parked messages.
    pub(crate) async fn flush(&mut self) -> Result<(), DbError> {
        if !self.ready.is_empty() {
            apply(self.tx, self.org, &self.ready).await?;
            self.ready.clear();
        }
        if !self.to_park.is_empty() {
            let rows: Vec<Park<'_>> = self
                .to_park
                .iter()
                .map(|message| Park {
                    seq: message.seq,
                    subject: &message.subject,
                    message: &message.message,
                    verified: message.verified,
                    expected: message.expected,
                    state: message.state,
                    reason: &message.reason,
                    attempts: message.attempts,
                })
                .collect();
            parked::park(self.tx, self.org, &rows).await?;
            self.to_park.clear();
        }
        Ok(())
    }

    /// Retries the parked messages of one aggregate, in order, up to the first that fails.
    pub(crate) async fn carry_out(&mut self, decision: &Decision) -> Result<(), DbError> {
        let aggregate = decision.aggregate.to_string();
        let mut skip = decision.skip;
        loop {
            let rows = parked::of_aggregate(self.tx, self.org, &decision.aggregate, RETRY_BATCH).await?;
            let Some(first) = rows.first() else { break };
            if let Some(seq) = skip.take() {
                // A decision about a message that is no longer the first is obsolete. Waiting messages continue to
                // wait.
                if first.parked.seq != seq {
                    return Ok(());
                }
                if self.pipeline.is_log() {
                    let marked = audit::marked(self.tx, self.org, &[seq]).await?;
                    let marks = self.with_marks(first, None, decision, &marked)?;
                    apply(self.tx, self.org, &marks).await?;
                }
                parked::remove(self.tx, self.org, &[seq]).await?;
                continue;
            }
            if !self.apply_again(&rows, decision).await? {
                return Ok(());
            }
        }
        self.blocked.remove(&aggregate);
        Ok(())
    }

    /// Applies `rows` and returns whether all could be applied; the first that could not stays parked, and so do those
    /// behind it.
    async fn apply_again(&mut self, rows: &[ParkedMessage], decision: &Decision) -> Result<bool, DbError> {
        let seqs: Vec<u64> = rows.iter().map(|row| row.parked.seq).collect();
        let is_log = self.pipeline.is_log();
        let marked = if is_log { audit::marked(self.tx, self.org, &seqs).await? } else { BTreeSet::new() };
        let mut opened: Vec<Result<Vec<Applied>, String>> = Vec::with_capacity(rows.len());
        for row in rows {
            opened.push(match reopen(row, self.keys) {
                Ok(one) if is_log => Ok(self.with_marks(row, Some(one), decision, &marked)?),
                Ok(one) => Ok(vec![one]),
                Err(reason) => Err(reason),
            });
        }
        if let Ok(all) = opened.iter().cloned().collect::<Result<Vec<_>, String>>()
            && self.attempt(&all.concat()).await?.is_ok()
        {
            parked::remove(self.tx, self.org, &seqs).await?;
            return Ok(true);
        }
        for (row, opened) in rows.iter().zip(opened) {
            let refusal = match opened {
                Ok(one) => self.attempt(&one).await?.err(),
                Err(reason) => Some(reason),
            };
            if let Some(reason) = refusal {
                tracing::error!(
                    org.id = %self.org.org(), pipeline = %self.pipeline, event.seq = row.parked.seq, reason,
                    "a parked event still cannot be applied"
                );
                let (state, attempts) = (ParkedState::Failed, 1);
                let (subject, message) = (row.parked.subject.as_str(), row.message.as_slice());
                let (verified, expected) = (row.verified, row.expected);
                let again = Park {
                    seq: row.parked.seq,
                    subject,
                    message,
                    verified,
                    expected,
                    state,
                    reason: &reason,
                    attempts,
                };
                parked::park(self.tx, self.org, &[again]).await?;
                return Ok(false);
            }
            parked::remove(self.tx, self.org, &[row.parked.seq]).await?;
        }
        Ok(true)
    }

    /// Returns the audit log's marks for a settled parked message, and the message itself, if it is applied now.
    fn with_marks(
        &self,
        row: &ParkedMessage,
        taken_in: Option<Applied>,
        decision: &Decision,
        marked: &BTreeSet<u64>,
    ) -> Result<Vec<Applied>, DbError> {
        let org = self.org.org();
        let mut entries = Vec::with_capacity(3);
        if !marked.contains(&row.parked.seq) {
            entries.push(log_marks::parked_before(org, row, decision.at)?);
        }
        entries.push(log_marks::settled(org, row, decision, taken_in.as_ref())?);
        entries.extend(taken_in);
        Ok(entries)
    }

    /// Applies `commits`, or leaves everything unchanged and returns the reason.
    pub(crate) async fn attempt(&mut self, commits: &[Applied]) -> Result<Result<(), String>, DbError> {
        self.tx.savepoint().await?;
        match apply(self.tx, self.org, commits).await {
            Ok(()) => self.tx.release_savepoint().await.map(Ok),
            Err(error) if !error.may_be_of_an_event() => Err(error),
            Err(error) => {
                self.tx.rollback_to_savepoint().await?;
                Ok(Err(Chain(&error).to_string()))
            }
        }
    }
}

fn reopen(row: &ParkedMessage, keys: Option<&CommitKeys>) -> Result<Applied, String> {
    let content = match keys {
        _ if row.verified => row.message.as_slice(),
        Some(keys) => {
            let verified = keys.verify(&row.parked.subject, row.expected, &row.message);
            verified.map_err(|error| Chain(&error).to_string())?
        }
        None => return Err("it was never verified".to_owned()),
    };
    let subject: EventSubject = row.parked.subject.parse().map_err(|error: SubjectError| Chain(&error).to_string())?;
    let commit = Commit::decode(content).and_then(|commit| commit.open(&subject));
    commit
        .map(|commit| Applied { seq: row.parked.seq, commit: Arc::new(commit) })
        .map_err(|error| Chain(&error).to_string())
}
