//! Three accounts of one organization, compared: the stream, the audit log, and the read models. Whoever changed one of them
//! would have to change all three, and the heads that were signed.

use std::collections::VecDeque;

use anyhow::{Context, bail};
use futures_util::{StreamExt, pin_mut};
use orgstream_events::{OpenedEvent, OrgId, Pipeline};
use orgstream_projections::{
    BoundOrg, Database, DbError, Drift, Listing, Moment, Page, audit, audit::StoredEvent, checkpoints, compare_tables,
    organizations,
};
use orgstream_stream::Log;
use orgstream_transparency::{Frontier, LogKey, PolicyFile, TreeHead, leaf_hash};
use orgstream_verifier::log_key;
use serde::Serialize;

use super::lacked::Lacked;

/// Heads that are read at a time.
const PAGE: u16 = 500;
/// Events that are read at a time: more than a commit has, which are 1,000 at most.
const EVENTS: u16 = 2_000;
/// The most differences that are named of each account.
const NAMED: usize = 100;

/// What the accounts say.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// Events in the stream that the audit log does not say it lacks, and the root over them.
    pub(crate) stream: (u64, String),
    /// Events in the audit log without its own marks, and the root over them, in the stream's order.
    pub(crate) audit: (u64, String),
    /// Signed heads of the audit log that fit.
    pub(crate) heads: u64,
    /// The size of the newest of them.
    pub(crate) signed: Option<u64>,
    /// Events of the audit log that no signed head covers.
    pub(crate) unsigned: u64,
    /// Rows of the read models.
    pub(crate) rows: u64,
    /// Messages of the stream that are not in the audit log because an operator gave them up, as the log says; the first ones.
    pub(crate) given_up: Vec<String>,
    /// What does not fit.
    pub(crate) differences: Vec<String>,
}

/// Compares them as far as both pipelines are.
pub(crate) async fn compare(log: &Log, db: &Database, org: OrgId) -> anyhow::Result<Compared> {
    let bound = BoundOrg::named_by_operator(org);
    let mut differences = Vec::new();
    let (stream, audited, given_up) = events(log, db, bound, &mut differences).await?;
    let mut checked = audit::check(&mut db.read(bound).await?).await?;
    differences.append(&mut checked.differences);
    signatures(db, bound, &mut differences).await?;
    let rows = read_models(db, bound, &mut differences).await?;
    let told = |head: TreeHead| (head.size, head.root.to_string());
    let signed = checked.newest.map(|newest| newest.head.size);
    Ok(Compared {
        stream: told(stream),
        audit: told(audited),
        heads: checked.heads,
        signed,
        unsigned: checked.head.size.saturating_sub(signed.unwrap_or(0)),
        rows,
        given_up,
        differences,
    })
}

/// The stream and the audit log side by side, event by event.
async fn events(
    log: &Log,
    db: &Database,
    org: BoundOrg,
    differences: &mut Vec<String>,
) -> anyhow::Result<(TreeHead, TreeHead, Vec<String>)> {
    let placement =
        log.placement(org.org()).await?.with_context(|| format!("there is no organization {}", org.org()))?;
    let upto = checkpoints::position(&mut db.read(org).await?, Pipeline::Audit).await?;
    let (mut stream, mut audited) = (Frontier::default(), Frontier::default());
    let mut rows = Rows { db, org, upto, left: VecDeque::new(), next: Some(1) };
    let mut find = |what: String| {
        if differences.len() < NAMED {
            differences.push(what);
        }
    };
    let mut lacked = Lacked::default();
    let replay = log.replay(&placement, 1);
    pin_mut!(replay);
    while let Some(message) = replay.next().await {
        let message = message?;
        if message.seq > upto {
            break;
        }
        let place = format!("{}:{}", org.org(), message.seq);
        // What stands at an earlier place belongs to nothing that the stream has.
        while let Some(stray) = rows.next_before(message.seq, i32::MIN).await? {
            audited.append(leaf_hash(&stray.sealed.header));
            find(format!("the audit log has an event at {}:{} that the stream has not", org.org(), stray.seq));
        }
        while let Some(mark) = rows.next_mark(message.seq).await? {
            lacked.mark(&message, mark).into_iter().for_each(&mut find);
        }
        let commit = match message.open(log.keys()) {
            Ok(stored) => stored.commit,
            // It is in no log, and the mark in its place says so.
            Err(_) if lacked.has(message.seq) => continue,
            Err(error) => {
                find(format!("the message at {place} cannot be read, and the audit log does not say so: {error}"));
                continue;
            }
        };
        if lacked.has(message.seq) && rows.next_is_behind(message.seq).await? {
            continue;
        }
        lacked.found(message.seq);
        for (ordinal, event) in (0..).zip(&commit.events) {
            let fingerprint = commit.fingerprint.filter(|_| ordinal == 0);
            let sealed = event.sealed.clone();
            let expected = StoredEvent { seq: message.seq, ordinal, fingerprint, sealed };
            // What stands at an earlier place belongs to nothing that the stream has.
            while let Some(stray) = rows.next_before(message.seq, ordinal).await? {
                audited.append(leaf_hash(&stray.sealed.header));
                find(format!("the audit log has an event at {}:{} that the stream has not", org.org(), stray.seq));
            }
            let row = rows.next_at(message.seq, ordinal).await?;
            if row.is_none() && is_told_already(db, org, event, &expected).await? {
                continue;
            }
            let leaf = leaf_hash(&event.sealed.header);
            stream.append(leaf);
            let Some(row) = row else {
                find(format!("the event at {place} is not in the audit log"));
                continue;
            };
            audited.append(leaf_hash(&row.sealed.header));
            for what in differing(&row, &expected) {
                find(format!("the audit log has another {what} than the stream at {place}"));
            }
        }
    }
    while let Some(stray) = rows.next().await? {
        audited.append(leaf_hash(&stray.sealed.header));
        find(format!("the audit log has an event at {}:{} that the stream has not", org.org(), stray.seq));
    }
    let given_up = lacked.finish(org.org(), find);
    Ok((stream.head(), audited.head(), given_up))
}

fn differing(row: &StoredEvent, expected: &StoredEvent) -> Vec<&'static str> {
    let is_other: [(&str, bool); 3] = [
        ("event", row.sealed.header != expected.sealed.header),
        ("payload", row.sealed.payload != expected.sealed.payload),
        ("fingerprint", row.fingerprint != expected.fingerprint),
    ];
    is_other.into_iter().filter(|(_, is_other)| *is_other).map(|(what, _)| what).collect()
}

/// A fact may be in the stream twice; the audit log has it once, where it came first.
async fn is_told_already(
    db: &Database,
    org: BoundOrg,
    event: &OpenedEvent,
    expected: &StoredEvent,
) -> anyhow::Result<bool> {
    if !event.header.aggregate.aggregate.is_of_facts() {
        return Ok(false);
    }
    let told = audit::get(&mut db.read(org).await?, event.header.event_id).await?;
    Ok(told.is_some_and(|told| told.seq <= expected.seq && told.event_id == event.header.event_id))
}

/// The audit log's rows in the order of the stream.
struct Rows<'a> {
    db: &'a Database,
    org: BoundOrg,
    upto: u64,
    left: VecDeque<StoredEvent>,
    /// Rows are read by whole commits, from this sequence on; None at the end.
    next: Option<u64>,
}

impl Rows<'_> {
    async fn look(&mut self) -> Result<Option<&StoredEvent>, DbError> {
        if self.left.is_empty()
            && let Some(next) = self.next
        {
            let (read, is_end) = audit::stored_from(&mut self.db.read(self.org).await?, next, EVENTS).await?;
            let last = read.last().map_or(0, |event| event.seq);
            self.left.extend(read.into_iter().filter(|event| is_end || event.seq < last));
            self.next = (!is_end).then_some(last);
        }
        Ok(self.left.front().filter(|event| event.seq <= self.upto))
    }

    async fn next(&mut self) -> Result<Option<StoredEvent>, DbError> {
        Ok(if self.look().await?.is_some() { self.left.pop_front() } else { None })
    }

    /// Whether there is nothing at this sequence any more.
    async fn next_is_behind(&mut self, seq: u64) -> Result<bool, DbError> {
        Ok(self.look().await?.is_none_or(|event| event.seq > seq))
    }

    /// The next mark at this sequence.
    async fn next_mark(&mut self, seq: u64) -> Result<Option<StoredEvent>, DbError> {
        let is_mark = self.look().await?.is_some_and(|event| event.seq == seq && event.ordinal < 0);
        Ok(if is_mark { self.left.pop_front() } else { None })
    }

    /// The next one, if it stands before this place.
    async fn next_before(&mut self, seq: u64, ordinal: i32) -> Result<Option<StoredEvent>, DbError> {
        let is_before = self.look().await?.is_some_and(|event| (event.seq, event.ordinal) < (seq, ordinal));
        Ok(if is_before { self.left.pop_front() } else { None })
    }

    /// The next one, if it stands at this place.
    async fn next_at(&mut self, seq: u64, ordinal: i32) -> Result<Option<StoredEvent>, DbError> {
        let is_at = self.look().await?.is_some_and(|event| (event.seq, event.ordinal) == (seq, ordinal));
        Ok(if is_at { self.left.pop_front() } else { None })
    }
}

/// Whether every head carries the signature of a key that the signing process has said is the log's. Whoever pinned the key
/// knows better than this database which ones they are; see `audit verify`.
async fn signatures(db: &Database, org: BoundOrg, differences: &mut Vec<String>) -> anyhow::Result<()> {
    let mut tx = db.read(org).await?;
    let keys: Vec<LogKey> = audit::keys(&mut tx).await?.iter().filter_map(|key| key.parse().ok()).collect();
    let nobody = PolicyFile::parse(b"quorum none\n")?;
    let mut page = Page::First;
    loop {
        let Listing { rows, more } = audit::checkpoints(&mut tx, &page, PAGE).await?;
        for head in &rows {
            let origin = head.note.text().lines().next().unwrap_or_default().to_owned();
            let keys = keys.iter().filter_map(|key| log_key(key, &origin, org.org()));
            let is_signed = keys.into_iter().any(|key| nobody.check(&key, &head.note).is_ok());
            if !is_signed && differences.len() < NAMED {
                differences.push(format!("the head of {} events is signed by no key of the log", head.head.size));
            }
        }
        match rows.last() {
            Some(last) if more => page = Page::After(last.head.size),
            _ => return Ok(()),
        }
    }
}

/// The rows that are shown against those that the audit log makes: all tables, all columns.
async fn read_models(db: &Database, org: BoundOrg, differences: &mut Vec<String>) -> anyhow::Result<u64> {
    let mut shown = db.read(org).await?;
    let seq = checkpoints::position(&mut shown, Pipeline::ReadModels).await?;
    if checkpoints::position(&mut shown, Pipeline::Audit).await? < seq {
        bail!("the audit log is behind the read models: try again when it has caught up (orgstream lag)");
    }
    let Some(idx) = audit::last_idx(&mut shown, seq).await? else { return Ok(0) };
    let mut made = match db.as_of(org, Moment::Idx(idx), u64::MAX, rand::random()).await {
        Ok(Ok(made)) => made,
        Ok(Err(_)) => return Ok(0),
        // What is not as it was signed is what is looked for here.
        Err(DbError::Altered { what, .. }) => {
            differences.push(format!("the audit log is not what was appended to it: {what}"));
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    let booked = organizations::booked(&mut shown).await?;
    if booked != made.plan {
        differences.push("ops.plans is not what the events make of it".to_owned());
    }
    let compared = compare_tables(&mut shown, &mut made.tx).await?;
    let more = compared.differences - compared.found.len() as u64;
    differences.extend(compared.found.iter().map(in_words));
    if more > 0 {
        differences.push(format!("and {more} rows more"));
    }
    Ok(compared.rows)
}

fn in_words(drift: &Drift) -> String {
    let Drift { table, key, columns, shown, built } = drift;
    let key = key.as_deref().unwrap_or_default();
    match (shown, built) {
        (Some(_), None) => format!("{table} {key}: follows from no event"),
        (None, _) => format!("{table} {key}: is missing"),
        _ => format!("{table} {key}: is not what the events make of it: {}", columns.join(", ")),
    }
}
