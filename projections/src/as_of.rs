//! An org's past read models: rebuilt from the first events of its audit log, in a transaction that is queried and
//! rolled back, never committed.
//!
//! The rows belong to a version that no other transaction sees or has, so the active version is not touched, and no
//! cleanup is needed. The rows are made by the same fold as the active ones. The events that go in are hashed, and the
//! tree over them must be a prefix of the newest signed tree, or have it as a prefix; its signature is verified. An
//! event's position in the stream and its command's fingerprint are in no header: nothing here proves them, and
//! `replay --verify` compares them with the stream.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use orgstream_events::{
    CommandId, Event, OpenedCommit, OrganizationEvent, ParkingEvent, PerPipeline, Pipeline, PlanName, SealedEvent,
    Settlement, Timestamp, cause,
};
use orgstream_transparency::{Frontier, Plan, TreeHead, leaf_hash, verify_consistency};

use crate::{
    Applied, ApplyTx, BatchClass, BoundOrg, Database, DbError, TenantTx, apply,
    audit::{self, AuditCheckpoint, KeysOf, Pin, TrustedKeys},
    convert::{fingerprint, from_bigint, to_bigint},
    isolation_violation::Alarm,
    views::TakesUp,
};

/// Events per application step.
const CHUNK: i64 = 500;
/// The mark that the events of a parked message follow.
const SETTLED: &str = "parking.settled";
/// Headers per read, where only the headers of the events are read.
const HEADERS: i64 = 4_096;
/// Timeout of one statement.
const STATEMENT: Duration = Duration::from_secs(10);
/// How long the transaction may be idle between statements.
const IDLE: &str = "10min";

/// The moment to reconstruct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After the event at this index of the audit log.
    Idx(u64),
    /// After the last event recorded by then. An event that was parked and applied later does not count: it has its
    /// index from when it was applied.
    Time(Timestamp),
}

/// The past state of an org.
#[derive(Debug)]
pub struct AsOf {
    /// The rows, for the usual queries. They are gone when this is dropped.
    pub tx: TenantTx,
    /// The tree over the events that the rows are made of.
    pub head: TreeHead,
    /// When the last of them was recorded.
    pub recorded_at: Option<Timestamp>,
    /// The newest signed head: these events are proven to be a prefix of what it covers, or to have that as their
    /// prefix. None while no head of the log is signed.
    pub signed: Option<AuditCheckpoint>,
    /// The authority for that head's key being the log's.
    pub keys_of: KeysOf,
    /// The organization's plan, and the stream sequence of the event that set it; None for the default plan. The table
    /// of plans has no versions, so the plan is here.
    pub plan: Option<(PlanName, u64)>,
    /// The sequences of the messages that the log had skipped by then: still parked, or given up.
    pub without: BTreeSet<u64>,
}

impl AsOf {
    /// The number of events that no signed head covers.
    pub fn unsigned(&self) -> u64 {
        self.head.size.saturating_sub(self.signed.as_ref().map_or(0, |signed| signed.head.size))
    }
}

/// More events than the caller allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany(pub u64);

/// Read models rebuilt from given commits, in a transaction that is rolled back: the rows belong to a version that no
/// other transaction sees or has.
#[derive(Debug)]
pub struct Scratch {
    batch: ApplyTx,
    org: BoundOrg,
    alarm: Alarm,
    pin: Pin,
    plan: Option<(PlanName, u64)>,
    upto: PerPipeline<u64>,
}

impl Scratch {
    /// Leaves out of each pipeline's rows what comes after its position here.
    #[must_use]
    pub fn up_to(self, upto: PerPipeline<u64>) -> Self {
        Self { upto, ..self }
    }

    /// Applies more commits, in the order of the stream. If they cannot be applied, everything stays as it was before.
    pub async fn apply(&mut self, commits: &[Applied]) -> Result<(), DbError> {
        let pipelines = versioned();
        self.batch.opened(self.org, &pipelines);
        self.batch.savepoint().await?;
        for pipeline in pipelines {
            self.batch.turn_to(pipeline);
            // They are in the order of the stream.
            let count = commits.partition_point(|applied| applied.seq <= self.upto[pipeline]);
            let commits = commits.get(..count).unwrap_or_default();
            if let Err(error) = apply(&mut self.batch, self.org, commits).await {
                if error.may_be_of_an_event() {
                    self.batch.rollback_to_savepoint().await?;
                }
                return Err(error);
            }
        }
        self.batch.release_savepoint().await?;
        for Applied { seq, commit } in commits {
            for event in &commit.events {
                if let Event::Organization(OrganizationEvent::PlanChanged(changed)) = &event.event
                    && self.plan.as_ref().is_none_or(|(_, known)| known < seq)
                {
                    self.plan = Some((changed.plan.clone(), *seq));
                }
            }
        }
        Ok(())
    }

    /// Returns the rows, for the usual queries, and the organization's plan; see [`AsOf`].
    pub fn into_view(self) -> (TenantTx, Option<(PlanName, u64)>) {
        (self.batch.into_view(self.org, self.alarm, self.pin), self.plan)
    }
}

/// The pipelines whose rows are made again.
fn versioned() -> Vec<Pipeline> {
    Pipeline::ALL.into_iter().filter(|pipeline| pipeline.has_versions()).collect()
}

impl Database {
    /// Returns empty read models of `org`. `number` distinguishes concurrent callers.
    pub async fn scratch(&self, org: BoundOrg, number: u16) -> Result<Scratch, DbError> {
        let mut batch = self.begin_batches(BatchClass::Backlog, STATEMENT).await?;
        // Versions that are built to be kept count upwards from 1.
        batch.bind_version(org, &versioned(), -1 - i32::from(number)).await?;
        batch.take_up(TakesUp::Shown);
        // The caller may have to wait for its input.
        sqlx::query("SELECT set_config('idle_in_transaction_session_timeout', $1, true)")
            .bind(IDLE)
            .execute(batch.unopened())
            .await?;
        let upto = PerPipeline::of(|_| u64::MAX);
        Ok(Scratch { batch, org, alarm: self.alarm(), pin: self.pin(), plan: None, upto })
    }

    /// Rebuilds the read models of `org` as of `moment`, unless that takes more than `most` events. `number`
    /// distinguishes concurrent callers.
    pub async fn as_of(
        &self,
        org: BoundOrg,
        moment: Moment,
        most: u64,
        number: u16,
    ) -> Result<Result<AsOf, TooMany>, DbError> {
        let id = org.org().uuid();
        // Before the events are counted: there are at least as many as it covers.
        let mut tx = self.read(org).await?;
        let newest = audit::newest_checkpoint(&mut tx).await?;
        let keys_of = TrustedKeys::of(&mut tx).await?.by;
        tx.finish().await?;
        let mut scratch = self.scratch(org, number).await?;
        let count = match moment {
            Moment::Idx(idx) => {
                let last = sqlx::query_scalar::<_, Option<i64>>(
                    "SELECT max(idx) FROM audit.events WHERE org_id = $1 AND idx <= $2",
                );
                let last = last.bind(id).bind(to_bigint(idx)).fetch_one(scratch.batch.unopened()).await?;
                last.map_or(0, |last| from_bigint(last) + 1)
            }
            Moment::Time(time) => recorded_by(&mut scratch.batch, org, time, newest.as_ref()).await?,
        };
        if count > most {
            return Ok(Err(TooMany(count)));
        }
        let (mut tree, mut recorded_at, mut without) = (Frontier::default(), None, BTreeSet::new());
        while tree.size() < count {
            let from = to_bigint(tree.size());
            let upto = from.saturating_add(CHUNK).min(to_bigint(count));
            let end = audit::end_of_page(scratch.batch.unopened(), id, (from, upto)).await?.unwrap_or(from);
            let rows = sqlx::query!(
                "SELECT seq, header, payload, fingerprint FROM audit.events
                WHERE org_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
                id,
                from,
                end,
            );
            let rows = rows.fetch_all(scratch.batch.unopened()).await?;
            if rows.is_empty() {
                return Err(altered(org, format!("event {} is missing", tree.size())));
            }
            let mut commits: Vec<(u64, OpenedCommit)> = Vec::new();
            for row in rows {
                let (seq, idx) = (from_bigint(row.seq), tree.size());
                tree.append(leaf_hash(&row.header));
                passes(org, &tree, newest.as_ref())?;
                let sealed = SealedEvent { header: row.header.into(), payload: row.payload.into() };
                let event =
                    sealed.open().map_err(|error| altered_by(org, format!("event {idx} cannot be read"), error))?;
                if event.header.org_id != org.org() {
                    return Err(altered(org, format!("event {idx} is an event of {}", event.header.org_id)));
                }
                recorded_at = recorded_at.max(Some(event.header.recorded_at));
                match &event.event {
                    Event::Parking(ParkingEvent::Parked(parked)) => without.insert(parked.seq),
                    Event::Parking(ParkingEvent::Settled(settled)) if settled.outcome == Settlement::Applied => {
                        without.remove(&settled.seq)
                    }
                    _ => false,
                };
                let fingerprint = row.fingerprint.map(|bytes| fingerprint("a fingerprint", bytes)).transpose()?;
                match commits.last_mut() {
                    Some((last, commit)) if *last == seq => commit.push(event, fingerprint),
                    _ => commits.push((seq, OpenedCommit::begin(event, fingerprint))),
                }
            }
            let commits: Vec<Applied> =
                commits.into_iter().map(|(seq, commit)| Applied { seq, commit: Arc::new(commit) }).collect();
            scratch.apply(&commits).await?;
        }
        let (mut tx, plan) = scratch.into_view();
        if let Some(newest) = &newest {
            begins(&mut tx, org, tree.head(), newest.head).await?;
        }
        Ok(Ok(AsOf { tx, head: tree.head(), recorded_at, signed: newest, keys_of, plan, without }))
    }
}

/// Counts the events up to the last one recorded by `time`, according to the headers. The tree over all of them is
/// checked on the way: a changed header would change the tree.
async fn recorded_by(
    batch: &mut ApplyTx,
    org: BoundOrg,
    time: Timestamp,
    newest: Option<&AuditCheckpoint>,
) -> Result<u64, DbError> {
    let (mut tree, mut count, mut late) = (Frontier::default(), 0, Vec::<CommandId>::new());
    loop {
        // The command of late events is in a payload, and marks are few.
        let rows = sqlx::query_as::<_, (Vec<u8>, Vec<u8>)>(
            "SELECT header, CASE WHEN ordinal < 0 THEN payload ELSE '' END FROM audit.events
            WHERE org_id = $1 AND idx >= $2 AND idx < $2 + $3 ORDER BY idx",
        );
        let rows = rows.bind(org.org().uuid()).bind(to_bigint(tree.size())).bind(HEADERS);
        let rows = rows.fetch_all(batch.unopened()).await?;
        if rows.is_empty() {
            break;
        }
        for (header, payload) in rows {
            let idx = tree.size();
            tree.append(leaf_hash(&header));
            passes(org, &tree, newest)?;
            let unreadable = |error| altered_by(org, format!("event {idx} cannot be read"), error);
            let sealed = SealedEvent { header: header.into(), payload: payload.into() };
            let header = sealed.read_header().map_err(unreadable)?;
            if !late.contains(&header.command_id) {
                late.clear();
            }
            if late.is_empty() && header.recorded_at <= time {
                count = tree.size();
            }
            // The column that identifies marks proves nothing: a mark without its payload cannot be opened.
            if header.event_type == SETTLED
                && let Event::Parking(ParkingEvent::Settled(settled)) = sealed.open().map_err(unreadable)?.event
            {
                let applied = settled.command_id.filter(|_| settled.outcome == Settlement::Applied);
                late = applied.into_iter().chain(settled.following).collect();
            }
        }
    }
    match newest {
        Some(newest) if newest.head.size > tree.size() => {
            Err(altered(org, format!("{} events were signed, and event {} is missing", newest.head.size, tree.size())))
        }
        _ => Ok(count),
    }
}

/// Checks a signed head that is smaller than the requested prefix, when its size is reached.
fn passes(org: BoundOrg, tree: &Frontier, newest: Option<&AuditCheckpoint>) -> Result<(), DbError> {
    let passed = newest.map(|newest| newest.head).filter(|head| head.size == tree.size());
    match passed {
        Some(head) if head != tree.head() => {
            Err(altered(org, format!("its first {} events are not those that were signed", tree.size())))
        }
        _ => Ok(()),
    }
}

/// Proves that the events are a prefix of the signed tree. A smaller head was checked by [`passes`].
async fn begins(tx: &mut TenantTx, org: BoundOrg, head: TreeHead, signed: TreeHead) -> Result<(), DbError> {
    if signed.size < head.size {
        return Ok(());
    }
    let what = || format!("its first {} events are not those that were signed", head.size);
    let not_it = |error| altered_by(org, what(), error);
    let proof = audit::prove(tx, &Plan::consistency(head.size, signed.size).map_err(not_it)?).await?;
    verify_consistency(head, signed, &proof).map_err(not_it)
}

fn altered(org: BoundOrg, what: String) -> DbError {
    DbError::Altered { org: org.org(), what, cause: None }
}

fn altered_by(org: BoundOrg, what: String, error: impl std::error::Error + Send + Sync + 'static) -> DbError {
    DbError::Altered { org: org.org(), what, cause: Some(cause(error)) }
}
