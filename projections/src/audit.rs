//! The audit log: every event of an org with its stored bytes, numbered without gaps, never changed.
//!
//! Each append also moves the frontier of the org's Merkle tree, in the same transaction and the same statement. Tiles,
//! checkpoints and signatures are made from this data later, by a process that holds the key (`signing.rs`).

mod check;
mod checkpoints;
mod columns;
mod pages;
mod signing;
mod tree;
mod trust;
mod webhooks;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use orgstream_events::{
    ActorType, CodecError, Event, EventId, EventView, Fingerprint, OpenedCommit, OpenedEvent, OrgId, OutcomeStatus,
    ParkingEvent, SealedEvent, Timestamp, cause,
};
use orgstream_transparency::{Hash, leaf_hash};
use sqlx::PgConnection;
use uuid::Uuid;

use columns::Columns;

use crate::{
    Applied, ApplyTx, BoundOrg, DbError, Placed, TenantTx,
    convert::{column, fingerprint, from_bigint, to_bigint},
};

pub use check::{LogCheck, LogChecking, StoredEvent, check, stored_from};
pub use checkpoints::{
    AuditCheckpoint, LogPolicy, ask_for_checkpoint, checkpoint_at, checkpoint_with, checkpoints, handovers, keys,
    newest_checkpoint, policy,
};
pub(crate) use pages::end_of_page;
pub use pages::{PAGE_BYTES, Part, first_from, forward, from_idx, list};
pub use signing::{SigningDatabase, SigningTx, Wishes};
pub(crate) use tree::LogEnd;
pub use tree::{prove, tile};
pub(crate) use trust::Pin;
pub use trust::{KeysOf, TrustedKeys};
pub use webhooks::{WebhookState, webhook};

/// One event of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    /// Its index in the org's log, from 0.
    pub idx: u64,
    /// Its id.
    pub event_id: EventId,
    /// The stream sequence of its commit.
    pub seq: u64,
    /// The stored bytes, which contain everything else.
    pub sealed: SealedEvent,
    /// Its leaf in the org's Merkle tree, computed when the event was appended.
    pub leaf: Hash,
}

impl AuditEntry {
    /// Returns the event in the form shown to people and APIs.
    pub fn view(&self) -> Result<EventView, CodecError> {
        Ok(EventView::new(self.sealed.clone().open()?, self.seq, Some(self.idx)))
    }
}

/// Returns the entries, if the stored bytes of each name the org being read, and match the filter: the columns beside
/// them might be wrong.
fn own(tx: &TenantTx, entries: Vec<AuditEntry>, filter: &AuditFilter) -> Result<Vec<AuditEntry>, DbError> {
    for entry in &entries {
        // An entry that cannot be opened is reported when its content is read.
        if let Ok(opened) = entry.sealed.clone().open() {
            tx.check_own(opened.header.org_id, "audit.events")?;
            if !filter.matches(entry.idx, &opened.header) {
                let what = format!("the columns of event {} are not what the event says", entry.idx);
                return Err(DbError::Altered { org: tx.org(), what, cause: None });
            }
        }
    }
    Ok(entries)
}

impl Placed for AuditEntry {
    type Place = u64;

    fn place(&self) -> u64 {
        self.idx
    }
}

/// A filter of events. Fields that are None match every event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// With this name: `record.created`.
    pub action: Option<String>,
    /// By this kind of actor.
    pub actor_type: Option<ActorType>,
    /// By this actor.
    pub actor_id: Option<String>,
    /// With this primary target.
    pub target_id: Option<String>,
    /// With this outcome.
    pub outcome: Option<OutcomeStatus>,
    /// At this index of the log or after it.
    pub from_idx: Option<u64>,
    /// Before this index of the log.
    pub to_idx: Option<u64>,
    /// Recorded at this time or later.
    pub since: Option<Timestamp>,
    /// Recorded before this time.
    pub until: Option<Timestamp>,
}

/// An event with the sequence of its commit, its ordinal there, and the fingerprint of its command, if it is the first of that.
type Numbered<'a> = (i64, i32, Option<Fingerprint>, &'a OpenedEvent);

/// Returns the ordinal of a mark, an event that is not in the stream; ordinals of the stream's events start at 0.
fn ordinal_of_mark(event: &Event) -> Option<i32> {
    let Event::Parking(event) = event else { return None };
    match event {
        ParkingEvent::Parked(_) => Some(PARKED),
        ParkingEvent::Settled(_) => Some(-2),
        ParkingEvent::Retried(_) | ParkingEvent::Skipped(_) => None,
    }
}

/// The ordinal of the mark of a parked message. Queries have it as a literal.
const PARKED: i32 = -1;

/// Appends the events of `commits`, in stream order.
pub async fn apply(batch: &mut ApplyTx, org: BoundOrg, commits: &[Applied]) -> Result<(), DbError> {
    let (connection, end) = batch.log_of(org)?;
    append(connection, org.org().uuid(), end, commits).await
}

/// Numbers the events on from the org's last and appends them: one statement, whatever their number. An access event
/// that is in the log already is skipped, and takes no number.
///
/// `end` is the end of the log before and afterwards. The statement appends nothing when the log ends elsewhere.
pub(crate) async fn append(
    connection: &mut PgConnection,
    org: Uuid,
    end: &mut LogEnd,
    commits: &[Applied],
) -> Result<(), DbError> {
    let events: Vec<Numbered<'_>> = commits
        .iter()
        .flat_map(|Applied { seq, commit }| {
            (0..).zip(commit.events_and_fingerprints()).map(move |(nth, (event, fingerprint))| {
                (to_bigint(*seq), ordinal_of_mark(&event.event).unwrap_or(nth), fingerprint, event)
            })
        })
        .collect();
    let events = without_repeated_facts(connection, org, events).await?;
    if events.is_empty() {
        return Ok(());
    }
    end.catch_up(connection, org).await?;
    let leaves = column(&events, |(.., event)| leaf_hash(&event.sealed.header));
    let columns = column(&events, |(.., event)| Columns::of(&event.header));
    let after = end.after(&leaves);
    let inserted = sqlx::query!(
        "WITH head AS (
            INSERT INTO audit.heads AS head (org_id, next_idx, frontier) VALUES ($1, $3, $4)
            ON CONFLICT (org_id) DO UPDATE SET next_idx = $3, frontier = $4 WHERE head.next_idx = $2
            RETURNING head.org_id
        )
        INSERT INTO audit.events (org_id, idx, event_id, command_id, seq, ordinal, recorded_at, occurred_at, action,
            actor_type, actor_id, target_type, target_id, header, payload, leaf, fingerprint, outcome)
        SELECT $1, $2 + event.place - 1, event.event_id, event.command_id, event.seq, event.ordinal,
            event.recorded_at, event.occurred_at, event.action, event.actor_type, event.actor_id, event.target_type,
            event.target_id, event.header, event.payload, event.leaf, event.fingerprint, event.outcome
        FROM head, unnest($5::uuid[], $6::uuid[], $7::bigint[], $8::integer[], $9::timestamptz[], $10::timestamptz[],
            $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::bytea[], $17::bytea[], $18::bytea[],
            $19::bytea[], $20::text[])
            WITH ORDINALITY AS event (event_id, command_id, seq, ordinal, recorded_at, occurred_at, action, actor_type,
                actor_id, target_type, target_id, header, payload, leaf, fingerprint, outcome, place)",
        org,
        to_bigint(end.size()),
        to_bigint(after.size()),
        after.to_bytes(),
        &column(&columns, |columns| columns.event_id),
        &column(&columns, |columns| columns.command_id),
        &column(&events, |(seq, ..)| *seq),
        &column(&events, |(_, nth, ..)| *nth),
        &column(&columns, |columns| columns.recorded_at),
        &column(&columns, |columns| columns.occurred_at),
        column(&columns, |columns| columns.action) as _,
        column(&columns, |columns| columns.actor_type) as _,
        column(&columns, |columns| columns.actor_id) as _,
        column(&columns, |columns| columns.target_type) as _,
        column(&columns, |columns| columns.target_id) as _,
        column(&events, |(.., event)| &*event.sealed.header) as _,
        column(&events, |(.., event)| &*event.sealed.payload) as _,
        column(&leaves, |leaf| leaf.0.as_slice()) as _,
        column(&events, |(_, _, fingerprint, _)| fingerprint.as_ref().map(|fingerprint| fingerprint.0.as_slice())) as _,
        column(&columns, |columns| columns.outcome) as _,
    )
    .execute(connection)
    .await?;
    // No event can cause that: the log's actual end differs from the recorded one.
    if inserted.rows_affected() != events.len() as u64 {
        let what = format!("it does not end at {}, where its frontier does", end.size());
        return Err(DbError::Altered { org: OrgId::from_uuid(org), what, cause: None });
    }
    *end = after;
    Ok(())
}

/// Returns the events without those access events that are in the log, or came before in the same batch. Only access
/// events can occur twice: every other append expects its predecessor.
async fn without_repeated_facts<'a>(
    connection: &mut PgConnection,
    org: Uuid,
    mut events: Vec<Numbered<'a>>,
) -> Result<Vec<Numbered<'a>>, DbError> {
    let is_fact = |event: &OpenedEvent| event.header.aggregate.aggregate.is_access();
    let facts: Vec<Uuid> =
        events.iter().filter(|(.., event)| is_fact(event)).map(|(.., event)| event.header.event_id.uuid()).collect();
    if facts.is_empty() {
        return Ok(events);
    }
    let known = sqlx::query_scalar!(
        "SELECT event_id FROM audit.events WHERE org_id = $1 AND event_id = ANY ($2)",
        org,
        &facts,
    );
    let mut seen: HashSet<Uuid> = known.fetch_all(connection).await?.into_iter().collect();
    events.retain(|(.., event)| !is_fact(event) || seen.insert(event.header.event_id.uuid()));
    Ok(events)
}

struct Row {
    idx: i64,
    event_id: Uuid,
    seq: i64,
    header: Vec<u8>,
    payload: Vec<u8>,
    leaf: Vec<u8>,
}

impl TryFrom<Row> for AuditEntry {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            idx: from_bigint(row.idx),
            event_id: EventId::from_uuid(row.event_id),
            seq: from_bigint(row.seq),
            sealed: SealedEvent { header: row.header.into(), payload: row.payload.into() },
            leaf: Hash(fingerprint("a leaf", row.leaf)?.0),
        })
    }
}

/// Returns the org's commits in stream order, after `after` and up to `upto`: as many whole ones as have about `events`
/// events and `bytes` bytes, and at least one, without the log's own marks. The result is complete if the audit
/// pipeline has reached `upto` and parked nothing.
pub async fn commits(
    batch: &mut ApplyTx,
    org: BoundOrg,
    after: u64,
    upto: u64,
    (events, bytes): (u32, u32),
) -> Result<Vec<Applied>, DbError> {
    let (connection, _) = batch.connection(org)?;
    let rows = sqlx::query!(
        "WITH near AS (
            SELECT seq, ordinal, length(header) + length(payload) AS size FROM audit.events
            WHERE org_id = $1 AND seq > $2 AND seq <= $3 AND ordinal >= 0 ORDER BY seq, ordinal LIMIT $4
        ), sized AS (
            SELECT seq, sum(size) OVER (ORDER BY seq, ordinal) - size AS before FROM near
        )
        SELECT event.seq, event.header, event.payload, event.fingerprint FROM audit.events AS event
        WHERE org_id = $1 AND event.ordinal >= 0 AND event.seq > $2 AND event.seq <= (SELECT max(sized.seq) FROM sized WHERE before < $5)
        ORDER BY event.seq, event.ordinal",
        org.org().uuid(),
        to_bigint(after),
        to_bigint(upto),
        i64::from(events),
        i64::from(bytes) as _,
    )
    .fetch_all(connection)
    .await?;
    let mut commits: Vec<(u64, OpenedCommit)> = Vec::new();
    for row in rows {
        let seq = from_bigint(row.seq);
        let sealed = SealedEvent { header: row.header.into(), payload: row.payload.into() };
        let event = sealed.open().map_err(|error| DbError::Undecodable {
            what: format!("an event of message {seq} in the audit log of {}", org.org()),
            cause: cause(error),
        })?;
        let fingerprint = row.fingerprint.map(|bytes| fingerprint("a fingerprint", bytes)).transpose()?;
        match commits.last_mut() {
            Some((last, commit)) if *last == seq => commit.push(event, fingerprint),
            _ => commits.push((seq, OpenedCommit::begin(event, fingerprint))),
        }
    }
    Ok(commits.into_iter().map(|(seq, commit)| Applied { seq, commit: Arc::new(commit) }).collect())
}

/// Returns one event.
pub async fn get(tx: &mut TenantTx, event: EventId) -> Result<Option<AuditEntry>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT idx, event_id, seq, header, payload, leaf FROM audit.events WHERE org_id = $1 AND event_id = $2",
        org,
        event.uuid(),
    );
    let row = row.fetch_optional(tx.connection()).await?.map(AuditEntry::try_from).transpose()?;
    Ok(own(tx, row.into_iter().collect(), &AuditFilter::default())?.pop())
}

/// Returns the index of the last event at stream sequence `seq` or before.
pub async fn last_idx(tx: &mut TenantTx, seq: u64) -> Result<Option<u64>, DbError> {
    let org = tx.org().uuid();
    let last = sqlx::query_scalar("SELECT max(idx) FROM audit.events WHERE org_id = $1 AND seq <= $2");
    let last: Option<i64> = last.bind(org).bind(to_bigint(seq)).fetch_one(tx.connection()).await?;
    Ok(last.map(from_bigint))
}

/// Returns those of `seqs` whose messages are marked as parked.
pub async fn marked(batch: &mut ApplyTx, org: BoundOrg, seqs: &[u64]) -> Result<BTreeSet<u64>, DbError> {
    let (connection, _) = batch.connection(org)?;
    let marked = sqlx::query_scalar!(
        "SELECT seq FROM audit.events WHERE org_id = $1 AND seq = ANY ($2) AND ordinal = -1",
        org.org().uuid(),
        &column(seqs, |seq| to_bigint(*seq)),
    );
    Ok(marked.fetch_all(connection).await?.into_iter().map(from_bigint).collect())
}

/// Returns when the last event of the log was recorded.
pub async fn latest(batch: &mut ApplyTx, org: BoundOrg) -> Result<Option<Timestamp>, DbError> {
    let (connection, _) = batch.connection(org)?;
    let latest = sqlx::query_scalar!(
        "SELECT recorded_at FROM audit.events WHERE org_id = $1 ORDER BY idx DESC LIMIT 1",
        org.org().uuid(),
    );
    Ok(latest.fetch_optional(connection).await?.map(Timestamp::from))
}

/// Returns the number of events in the log.
pub async fn size(tx: &mut TenantTx) -> Result<u64, DbError> {
    let org = tx.org().uuid();
    let size = sqlx::query_scalar!("SELECT next_idx FROM audit.heads WHERE org_id = $1", org);
    Ok(size.fetch_optional(tx.connection()).await?.map_or(0, from_bigint))
}
