//! An org's read models as they were: built again from the first events of its audit log, in a transaction that is never
//! committed, looked at, and undone.
//!
//! The rows belong to a version that nobody else sees or has, so what is shown is not touched, and there is nothing to
//! clean up. The same fold makes them that makes those which are shown. The events that go in are hashed on the way, and the
//! tree over them must be the beginning of the newest one that was signed, or begin with it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use orgstream_events::{
    Event, OpenedCommit, OrganizationEvent, ParkingEvent, PlanName, SealedEvent, Settlement, Timestamp,
};
use orgstream_transparency::{Frontier, Plan, TreeHead, leaf_hash, verify_consistency};

use crate::{
    Applied, BoundOrg, Database, DbError, SliceClass, TenantTx, apply_read_models,
    audit::{self, AuditCheckpoint},
    convert::{fingerprint, from_bigint, to_bigint},
};

/// Events that are applied at a time.
const CHUNK: i64 = 500;
/// How long one statement may take.
const STATEMENT: Duration = Duration::from_secs(10);

/// Which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After the event at this place of the audit log.
    Idx(u64),
    /// After the last event that was recorded by then. One that was parked, and taken in later, is not asked: it stands where
    /// it was taken in.
    Time(Timestamp),
}

/// How it was.
#[derive(Debug)]
pub struct AsOf {
    /// The rows, for the usual queries. They are gone when this is dropped.
    pub tx: TenantTx,
    /// The tree over the events that they are made of.
    pub head: TreeHead,
    /// When the last of them was recorded.
    pub recorded_at: Option<Timestamp>,
    /// The newest signed head: these events are proven to be its beginning, or to begin with what it was signed over. None
    /// while nothing of the log is signed.
    pub signed: Option<AuditCheckpoint>,
    /// What the organization had booked, and the stream sequence that says so; None while it was what everybody has. The
    /// table of plans knows no versions, so it is here.
    pub plan: Option<(PlanName, u64)>,
    /// The messages that the log had passed by then and had not taken in, by their sequences: they wait, or were given up.
    pub without: BTreeSet<u64>,
}

impl AsOf {
    /// How many of the events no signed head covers.
    pub fn unsigned(&self) -> u64 {
        self.head.size.saturating_sub(self.signed.as_ref().map_or(0, |signed| signed.head.size))
    }
}

/// More events than the caller would have applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany(pub u64);

impl Database {
    /// The read models of `org` as they were at `moment`, unless that takes more than `most` events. `number` tells apart
    /// those who look at the same time.
    pub async fn as_of(
        &self,
        org: BoundOrg,
        moment: Moment,
        most: u64,
        number: u16,
    ) -> Result<Result<AsOf, TooMany>, DbError> {
        let id = org.org().uuid();
        // Before the events are counted: there are at least as many as it has.
        let newest = audit::newest_checkpoint(&mut self.read(org).await?).await?;
        let mut slice = self.begin_slices(SliceClass::Backlog, STATEMENT).await?;
        // Versions that are built to stay count upwards from 1.
        slice.bind_version(org, -1 - i32::from(number)).await?;
        let (idx, time) = match moment {
            Moment::Idx(idx) => (Some(to_bigint(idx)), None),
            Moment::Time(time) => (None, Some(time.to_datetime())),
        };
        let last = sqlx::query_scalar!(
            "SELECT max(idx) FROM audit.events AS event
            WHERE org_id = $1 AND ($2::bigint IS NULL OR idx <= $2)
                AND ($3::timestamptz IS NULL OR recorded_at <= $3 AND (ordinal < 0 OR NOT EXISTS (
                    SELECT FROM audit.events AS mark
                    WHERE mark.org_id = $1 AND mark.seq = event.seq AND mark.ordinal = -1
                )))",
            id,
            idx,
            time,
        );
        let count = last.fetch_one(slice.unopened()).await?.map_or(0, |last| from_bigint(last) + 1);
        if count > most {
            return Ok(Err(TooMany(count)));
        }
        slice.opened(org);
        let (mut tree, mut recorded_at, mut plan) = (Frontier::default(), None, None::<(PlanName, u64)>);
        let mut without = BTreeSet::new();
        while tree.size() < count {
            let from = to_bigint(tree.size());
            let upto = from.saturating_add(CHUNK).min(to_bigint(count));
            let end = audit::end_of_page(slice.unopened(), id, (from, upto)).await?.unwrap_or(from);
            let rows = sqlx::query!(
                "SELECT seq, header, payload, fingerprint FROM audit.events
                WHERE org_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
                id,
                from,
                end,
            );
            let rows = rows.fetch_all(slice.unopened()).await?;
            if rows.is_empty() {
                return Err(altered(org, format!("event {} is missing", tree.size())));
            }
            let mut commits: Vec<(u64, OpenedCommit)> = Vec::new();
            for row in rows {
                let (seq, idx) = (from_bigint(row.seq), tree.size());
                tree.append(leaf_hash(&row.header));
                // A head that is smaller than what is looked at is passed on the way.
                let passed = newest.as_ref().map(|newest| newest.head).filter(|head| head.size == tree.size());
                if passed.is_some_and(|head| head != tree.head()) {
                    return Err(altered(
                        org,
                        format!("its first {} events are not those that were signed", tree.size()),
                    ));
                }
                let sealed = SealedEvent { header: row.header.into(), payload: row.payload.into() };
                let event = sealed.open().map_err(|error| altered(org, format!("event {idx}: {error}")))?;
                recorded_at = recorded_at.max(Some(event.header.recorded_at));
                match &event.event {
                    Event::Parking(ParkingEvent::Parked(parked)) => without.insert(parked.seq),
                    Event::Parking(ParkingEvent::Settled(settled)) if settled.outcome == Settlement::Applied => {
                        without.remove(&settled.seq)
                    }
                    _ => false,
                };
                if let Event::Organization(OrganizationEvent::PlanChanged(changed)) = &event.event
                    && plan.as_ref().is_none_or(|(_, known)| *known < seq)
                {
                    plan = Some((changed.plan.clone(), seq));
                }
                match commits.last_mut() {
                    Some((last, commit)) if *last == seq => commit.events.push(event),
                    _ => {
                        let fingerprint =
                            row.fingerprint.map(|bytes| fingerprint("a fingerprint", bytes)).transpose()?;
                        let command_id = event.header.command_id;
                        commits.push((seq, OpenedCommit { command_id, fingerprint, events: vec![event] }));
                    }
                }
            }
            let commits: Vec<Applied> =
                commits.into_iter().map(|(seq, commit)| Applied { seq, commit: Arc::new(commit) }).collect();
            slice.opened(org);
            apply_read_models(&mut slice, org, &commits).await?;
        }
        let mut tx = slice.into_view(org, self.alarm());
        if let Some(newest) = &newest {
            begins(&mut tx, org, tree.head(), newest.head).await?;
        }
        Ok(Ok(AsOf { tx, head: tree.head(), recorded_at, signed: newest, plan, without }))
    }
}

/// Proves that the events are the beginning of what was signed. A head that is smaller was passed on the way.
async fn begins(tx: &mut TenantTx, org: BoundOrg, head: TreeHead, signed: TreeHead) -> Result<(), DbError> {
    if signed.size < head.size {
        return Ok(());
    }
    let not_it =
        |error| altered(org, format!("its first {} events are not those that were signed: {error}", head.size));
    let proof = audit::prove(tx, &Plan::consistency(head.size, signed.size).map_err(not_it)?).await?;
    verify_consistency(head, signed, &proof).map_err(not_it)
}

fn altered(org: BoundOrg, what: String) -> DbError {
    DbError::Altered { org: org.org(), what }
}
