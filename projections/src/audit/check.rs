//! The consistency check of an org's whole audit log: every row with all its columns, the numbering, the tree, its
//! frontier and its tiles, and every signed head.

use std::collections::VecDeque;

use orgstream_events::{Chain, Fingerprint, SealedEvent};
use orgstream_transparency::{Frontier, Hash, TILE_WIDTH, TreeHead, leaf_hash, subtree_root};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AuditCheckpoint, KeysOf, TrustedKeys, checkpoints,
    columns::Columns,
    pages::{PAGE_BYTES, end_of_page},
};
use crate::{
    DbError, Page, TenantTx,
    convert::{fingerprint, from_bigint, to_bigint},
    read_model::count_in_table,
};

/// Rows per read.
const CHUNK: u32 = 500;
/// Heads per read.
const HEADS: u16 = 500;
/// The most differences that are named; beyond it, more of them would add no information.
const NAMED: usize = 100;

/// The result of a check.
#[derive(Debug)]
pub struct LogCheck {
    /// The number of events in the log, and the root over them.
    pub head: TreeHead,
    /// The newest head that matches and is signed.
    pub newest: Option<AuditCheckpoint>,
    /// The number of heads that match and are signed.
    pub heads: u64,
    /// The authority for the signing keys being the log's.
    pub keys_of: KeysOf,
    /// Descriptions of the differences.
    pub differences: Vec<String>,
}

impl LogCheck {
    fn find(&mut self, what: impl FnOnce() -> String) {
        if self.differences.len() < NAMED {
            self.differences.push(what());
        }
    }
}

struct Row {
    idx: i64,
    event_id: Uuid,
    command_id: Uuid,
    recorded_at: OffsetDateTime,
    occurred_at: OffsetDateTime,
    action: String,
    actor_type: String,
    actor_id: String,
    target_type: String,
    target_id: String,
    outcome: String,
    header: Vec<u8>,
    payload: Vec<u8>,
    leaf: Vec<u8>,
}

impl Row {
    fn columns(&self) -> Columns<'_> {
        Columns {
            event_id: self.event_id,
            command_id: self.command_id,
            recorded_at: self.recorded_at,
            occurred_at: self.occurred_at,
            action: &self.action,
            actor_type: &self.actor_type,
            actor_id: &self.actor_id,
            target_type: &self.target_type,
            target_id: &self.target_id,
            outcome: &self.outcome,
        }
    }
}

/// Checks the bound org's log as `tx` sees it. Holds only one tile of each level and a chunk of rows in memory.
pub async fn check(tx: &mut TenantTx) -> Result<LogCheck, DbError> {
    let mut checking = LogChecking::default();
    while !checking.go_on(tx, CHUNK).await? {}
    let mut found = checking.finish(tx).await?;
    let stored = count_in_table(tx, "audit.events", "").await?;
    if stored != found.head.size {
        let size = found.head.size;
        found.find(|| format!("the table has {stored} events, and {size} of them are found by their places"));
    }
    Ok(found)
}

/// A check in progress. Each part of it may see a later state of the log.
#[derive(Debug, Default)]
pub struct LogChecking {
    tree: Frontier,
    heads: Heads,
    tiles: TileCheck,
    keys: Option<TrustedKeys>,
    differences: Vec<String>,
    /// Whether an event is missing: every index after it is wrong as well.
    is_broken: bool,
}

impl LogChecking {
    fn find(&mut self, what: impl FnOnce() -> String) {
        if self.differences.len() < NAMED {
            self.differences.push(what());
        }
    }

    /// Checks up to `rows` further events. Returns whether the log ends there.
    pub async fn go_on(&mut self, tx: &mut TenantTx, rows: u32) -> Result<bool, DbError> {
        let org = tx.org().uuid();
        // There may be more keys and heads than at the last read.
        self.keys = Some(TrustedKeys::of(tx).await?);
        self.heads.is_end = false;
        let newest = sqlx::query_scalar!("SELECT max(idx) FROM audit.events WHERE org_id = $1", org);
        let end = newest.fetch_one(tx.connection()).await?.map_or(0, |newest| newest + 1);
        let from = to_bigint(self.tree.size());
        if from >= end {
            return Ok(true);
        }
        // After a gap as long as a page none fits, and the gap is found all the same.
        let upto = from.saturating_add(i64::from(rows));
        let upto = end_of_page(tx.connection(), org, (from, upto)).await?.unwrap_or(end);
        let chunk = sqlx::query_as!(
            Row,
            "SELECT idx, event_id, command_id, recorded_at, occurred_at, action, actor_type, actor_id, target_type,
                target_id, outcome, header, payload, leaf
            FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx LIMIT $4",
            org,
            from,
            upto,
            i64::from(rows),
        );
        let chunk = chunk.fetch_all(tx.connection()).await?;
        for row in chunk {
            let idx = self.tree.size();
            if self.is_broken || from_bigint(row.idx) != idx {
                if !self.is_broken {
                    self.find(|| format!("event {idx} of the audit log is missing"));
                }
                // Events after a gap have another index than stored, and the heads show the rest.
                self.is_broken = true;
                return Ok(true);
            }
            self.check_row(tx, idx, &row).await?;
        }
        Ok(to_bigint(self.tree.size()) >= end)
    }

    async fn check_row(&mut self, tx: &mut TenantTx, idx: u64, row: &Row) -> Result<(), DbError> {
        let leaf = leaf_hash(&row.header);
        if row.leaf != leaf.0 {
            self.find(|| format!("the stored leaf of event {idx} is not the hash of its header"));
        }
        match (SealedEvent { header: row.header.clone().into(), payload: row.payload.clone().into() }).open() {
            Ok(opened) => {
                let differing = Columns::of(&opened.header).differing(&row.columns());
                if !differing.is_empty() {
                    let names = differing.join(", ");
                    self.find(|| format!("the columns of event {idx} are not what its header says: {names}"));
                }
                if opened.header.org_id != tx.org() {
                    self.find(|| format!("event {idx} is an event of {}", opened.header.org_id));
                }
            }
            Err(error) => self.find(|| format!("event {idx} cannot be read: {}", Chain(&error))),
        }
        self.tree.append(leaf);
        if let Some(what) = self.tiles.add(tx, leaf).await? {
            self.find(|| what);
        }
        self.check_head(tx).await
    }

    /// Compares the signed head of as many events as were checked, if there is one.
    async fn check_head(&mut self, tx: &mut TenantTx) -> Result<(), DbError> {
        let size = self.tree.size();
        let Some(head) = self.heads.at(tx, size).await? else { return Ok(()) };
        if head.head.root == self.tree.root() {
            if self.signed(&head) {
                self.heads.fit(head);
            }
        } else {
            let before = self.heads.newest.as_ref().map_or(0, |head| head.head.size);
            self.find(|| {
                format!(
                    "the first {size} events are not those that were signed as a head of {size}: one of the events \
                     {before} to {} is another",
                    size - 1
                )
            });
            self.signed(&head);
        }
        Ok(())
    }

    /// Whether the log has signed the head; if not, records a difference.
    fn signed(&mut self, head: &AuditCheckpoint) -> bool {
        let is_signed = self.keys.as_ref().is_some_and(|keys| keys.have_signed(head));
        if !is_signed {
            let size = head.head.size;
            self.find(|| format!("the head of {size} events is signed by no key of the log"));
        }
        is_signed
    }

    /// Makes the comparisons that need all events, as `tx` sees them; the events must have been checked to their end
    /// there.
    pub async fn finish(mut self, tx: &mut TenantTx) -> Result<LogCheck, DbError> {
        let size = self.tree.size();
        let keys_of = self.keys.insert(TrustedKeys::of(tx).await?).by;
        if !self.is_broken {
            // The head of the last events may have been signed after they were checked, in an earlier view of the log.
            self.check_head(tx).await?;
        }
        let mut found = LogCheck {
            head: self.tree.head(),
            newest: None,
            heads: self.heads.count,
            keys_of,
            differences: self.differences,
        };
        if self.is_broken {
            return Ok(found);
        }
        if let Some(next) = self.heads.next(tx).await? {
            let signed = next.head.size;
            found.find(|| format!("a head of {signed} events was signed, and the log has {size}"));
        }
        found.newest = self.heads.newest;
        self.tiles.finish(tx, &mut found).await?;
        edge(tx, &self.tree, &mut found).await?;
        Ok(found)
    }
}

/// Checks the row that every append moves.
async fn edge(tx: &mut TenantTx, tree: &Frontier, found: &mut LogCheck) -> Result<(), DbError> {
    let org = tx.org().uuid();
    let edge = sqlx::query!("SELECT next_idx, frontier FROM audit.heads WHERE org_id = $1", org);
    let edge = edge.fetch_optional(tx.connection()).await?;
    let next = edge.as_ref().map_or(0, |edge| from_bigint(edge.next_idx));
    if next != tree.size() {
        found.find(|| format!("the log says that it has {next} events, and it has {}", tree.size()));
    }
    // A log from before frontiers has none until it grows.
    if let Some(frontier) = edge.and_then(|edge| edge.frontier)
        && frontier != tree.to_bytes()
    {
        found.find(|| "the stored edge of the tree is not that of the events".to_owned());
    }
    Ok(())
}

/// The signed heads, ordered by size, matched as the events are checked.
#[derive(Debug, Default)]
struct Heads {
    waiting: VecDeque<AuditCheckpoint>,
    after: u64,
    is_end: bool,
    count: u64,
    newest: Option<AuditCheckpoint>,
}

impl Heads {
    /// Returns the next one, whatever its size.
    async fn next(&mut self, tx: &mut TenantTx) -> Result<Option<&AuditCheckpoint>, DbError> {
        if self.waiting.is_empty() && !self.is_end {
            let page = checkpoints::checkpoints(tx, &Page::Before(self.after), HEADS).await?;
            self.is_end = !page.more;
            // A page is newest first in either direction.
            self.waiting.extend(page.rows.into_iter().rev());
            self.after = self.waiting.back().map_or(self.after, |last| last.head.size);
        }
        Ok(self.waiting.front())
    }

    /// Returns the one of this size, if there is one.
    async fn at(&mut self, tx: &mut TenantTx, size: u64) -> Result<Option<AuditCheckpoint>, DbError> {
        // A smaller one was stored after the events of its size had been checked.
        while self.next(tx).await?.is_some_and(|next| next.head.size < size) {
            self.waiting.pop_front();
        }
        let is_it = self.next(tx).await?.is_some_and(|next| next.head.size == size);
        Ok(if is_it { self.waiting.pop_front() } else { None })
    }

    fn fit(&mut self, head: AuditCheckpoint) {
        self.count += 1;
        self.newest = Some(head);
    }
}

/// The tiles, level by level, each compared when it is full.
#[derive(Debug, Default)]
struct TileCheck {
    levels: Vec<(u64, Vec<Hash>)>,
    stored: u64,
}

impl TileCheck {
    /// Adds the next leaf. Returns a description of what is wrong with the tiles that it completes.
    async fn add(&mut self, tx: &mut TenantTx, leaf: Hash) -> Result<Option<String>, DbError> {
        let (mut level, mut hash, mut wrong) = (0_usize, leaf, None);
        loop {
            if self.levels.len() == level {
                self.levels.push((0, Vec::with_capacity(TILE_WIDTH.into())));
            }
            let Some((index, hashes)) = self.levels.get_mut(level) else { return Ok(wrong) };
            hashes.push(hash);
            if hashes.len() < usize::from(TILE_WIDTH) {
                return Ok(wrong);
            }
            let root = subtree_root(hashes);
            let stored = sqlx::query!(
                "SELECT hashes, root FROM audit.tiles WHERE org_id = $1 AND level = $2 AND index = $3",
                tx.org().uuid(),
                i16::try_from(level).unwrap_or(i16::MAX),
                to_bigint(*index),
            );
            // A missing one was not made yet: the signing process makes them.
            if let Some(stored) = stored.fetch_optional(tx.connection()).await? {
                self.stored += 1;
                let expected: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
                if stored.hashes != expected || stored.root != root.0 {
                    let differs = hashes.iter().zip(stored.hashes.chunks(32)).position(|(own, hash)| own.0 != *hash);
                    let which = differs.filter(|_| level == 0).map_or_else(String::new, |nth| {
                        format!(": event {} is another", *index * u64::from(TILE_WIDTH) + nth as u64)
                    });
                    let what = format!("the tile {level}/{index} of the tree is not that of the events{which}");
                    wrong.get_or_insert(what);
                }
            }
            hashes.clear();
            *index += 1;
            (level, hash) = (level + 1, root);
        }
    }

    async fn finish(self, tx: &mut TenantTx, found: &mut LogCheck) -> Result<(), DbError> {
        let org = tx.org().uuid();
        let count = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM audit.tiles WHERE org_id = $1"#, org);
        let count = from_bigint(count.fetch_one(tx.connection()).await?);
        if count != self.stored {
            found.find(|| format!("{} stored tiles are of events that the log has not", count.abs_diff(self.stored)));
        }
        Ok(())
    }
}

/// An event of the log, with all that the stream has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its index in the log; None for an event that is only expected there.
    pub idx: Option<u64>,
    /// The stream sequence of its commit.
    pub seq: u64,
    /// Its ordinal in the commit, from 0; negative for a mark, which the log itself writes and no stream contains.
    pub ordinal: i32,
    /// The fingerprint of its command, with the first event of that.
    pub fingerprint: Option<Fingerprint>,
    /// The stored bytes.
    pub sealed: SealedEvent,
}

/// Returns the events in stream order from the commit at `seq` on, `limit` of them or as many as a page holds, and
/// whether that is all. A page holds more than one commit.
pub async fn stored_from(tx: &mut TenantTx, seq: u64, limit: u16) -> Result<(Vec<StoredEvent>, bool), DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        r#"WITH near AS (
            SELECT idx, seq, ordinal, length(header) + length(payload) AS size FROM audit.events
            WHERE org_id = $1 AND seq >= $2 ORDER BY seq, ordinal, idx LIMIT $3
        ), sized AS (
            SELECT idx, sum(size) OVER (ORDER BY seq, ordinal, idx) - size AS before FROM near
        )
        SELECT event.idx, event.seq, event.ordinal, event.fingerprint, event.header, event.payload,
            (SELECT count(*) FROM near) AS "near!"
        FROM sized JOIN audit.events AS event ON event.org_id = $1 AND event.idx = sized.idx
        WHERE sized.before < $4 ORDER BY event.seq, event.ordinal, event.idx"#,
        org,
        to_bigint(seq),
        i64::from(limit),
        PAGE_BYTES as _,
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    let near = rows.first().map_or(0, |row| from_bigint(row.near));
    let is_all = near < u64::from(limit) && rows.len() as u64 == near;
    let events = rows
        .into_iter()
        .map(|row| {
            Ok(StoredEvent {
                idx: Some(from_bigint(row.idx)),
                seq: from_bigint(row.seq),
                ordinal: row.ordinal,
                fingerprint: row.fingerprint.map(|bytes| fingerprint("a fingerprint", bytes)).transpose()?,
                sealed: SealedEvent { header: row.header.into(), payload: row.payload.into() },
            })
        })
        .collect::<Result<_, DbError>>()?;
    Ok((events, is_all))
}
