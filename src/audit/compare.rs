//! Three accounts of one organization, compared: the stream, the audit log, and the read models. Whoever changed one of them
//! would have to change all three, and the heads that were signed.

use std::fmt::Debug;

use anyhow::{Context, bail};
use futures_util::{StreamExt, pin_mut};
use orgstream_events::{OrgId, Pipeline};
use orgstream_projections::{
    BoundOrg, Database, DbError, Listing, Moment, Page, Place, Placed, TenantTx, api_keys, audit, checkpoints, members,
    organizations, records,
};
use orgstream_stream::Log;
use orgstream_transparency::{Frontier, TreeHead, leaf_hash};
use serde::Serialize;

/// Rows and events that are read at a time.
const PAGE: u16 = 500;

/// What the accounts say.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// Events in the stream, and the root over them.
    pub(crate) stream: (u64, String),
    /// Events in the audit log, and the root over them, in the stream's order.
    pub(crate) audit: (u64, String),
    /// The signed head that the audit log is proven to begin with.
    pub(crate) signed: Option<u64>,
    /// Rows of the read models.
    pub(crate) rows: u64,
    /// What does not fit.
    pub(crate) differences: Vec<String>,
}

/// Compares them as far as both pipelines are.
pub(crate) async fn compare(log: &Log, db: &Database, org: OrgId) -> anyhow::Result<Compared> {
    let bound = BoundOrg::named_by_operator(org);
    let mut differences = Vec::new();
    let (stream, audited) = events(log, db, bound, &mut differences).await?;
    let (rows, signed) = read_models(db, bound, &mut differences).await?;
    let told = |head: TreeHead| (head.size, head.root.to_string());
    Ok(Compared { stream: told(stream), audit: told(audited), signed, rows, differences })
}

/// The stream and the audit log side by side, leaf by leaf.
async fn events(
    log: &Log,
    db: &Database,
    org: BoundOrg,
    differences: &mut Vec<String>,
) -> anyhow::Result<(TreeHead, TreeHead)> {
    let placement =
        log.placement(org.org()).await?.with_context(|| format!("there is no organization {}", org.org()))?;
    let upto = checkpoints::position(&mut db.read(org).await?, Pipeline::Audit).await?;
    let (mut stream, mut audited) = (Frontier::default(), Frontier::default());
    let mut rows = Rows { db, org, left: Vec::new().into_iter(), next: 1 };
    let replay = log.replay(&placement, 1);
    pin_mut!(replay);
    while let Some(message) = replay.next().await {
        let message = message?;
        if message.seq > upto {
            break;
        }
        for event in message.open(log.keys())?.commit.events {
            let leaf = leaf_hash(&event.sealed.header);
            stream.append(leaf);
            let place = format!("{}:{}", org.org(), message.seq);
            match rows.next(upto).await? {
                Some((_, header)) => {
                    let other = leaf_hash(&header);
                    audited.append(other);
                    if other != leaf && differences.is_empty() {
                        differences.push(format!("the audit log has another event than the stream at {place}"));
                    }
                }
                None if differences.is_empty() => {
                    differences.push(format!("the event at {place} is not in the audit log"));
                }
                None => {}
            }
        }
    }
    while let Some((seq, header)) = rows.next(upto).await? {
        audited.append(leaf_hash(&header));
        if differences.is_empty() {
            differences.push(format!("the audit log has an event at {}:{seq} that the stream has not", org.org()));
        }
    }
    Ok((stream.head(), audited.head()))
}

/// The audit log's rows in the order of the stream.
struct Rows<'a> {
    db: &'a Database,
    org: BoundOrg,
    left: std::vec::IntoIter<(u64, Vec<u8>)>,
    /// Rows are read by whole commits, from this sequence on; 0 at the end.
    next: u64,
}

impl Rows<'_> {
    async fn next(&mut self, upto: u64) -> Result<Option<(u64, Vec<u8>)>, DbError> {
        if let Some(row) = self.left.next() {
            return Ok(Some(row).filter(|(seq, _)| *seq <= upto));
        }
        if self.next == 0 {
            return Ok(None);
        }
        // A commit has 1,000 events at most, so this is always more than one.
        let read = audit::from_seq(&mut self.db.read(self.org).await?, self.next, 2_000).await?;
        let last = read.last().map_or(0, |entry| entry.seq);
        let is_end = read.len() < 2_000;
        let whole = read.into_iter().filter(|entry| is_end || entry.seq < last);
        self.left = whole.map(|entry| (entry.seq, entry.sealed.header.to_vec())).collect::<Vec<_>>().into_iter();
        self.next = if is_end { 0 } else { last };
        Ok(self.left.next().filter(|(seq, _)| *seq <= upto))
    }
}

/// The rows that are shown against those that the audit log makes.
async fn read_models(
    db: &Database,
    org: BoundOrg,
    differences: &mut Vec<String>,
) -> anyhow::Result<(u64, Option<u64>)> {
    let mut shown = db.read(org).await?;
    let seq = checkpoints::position(&mut shown, Pipeline::ReadModels).await?;
    if checkpoints::position(&mut shown, Pipeline::Audit).await? < seq {
        bail!("the audit log is behind the read models: try again when it has caught up (orgstream lag)");
    }
    let Some(idx) = audit::last_idx(&mut shown, seq).await? else { return Ok((0, None)) };
    let mut made = match db.as_of(org, Moment::Idx(idx), u64::MAX, rand::random()).await {
        Ok(Ok(made)) => made,
        Ok(Err(_)) => return Ok((0, None)),
        // What is not as it was signed is what is looked for here.
        Err(DbError::Altered { what, .. }) => {
            differences.push(format!("the audit log is not what was appended to it: {what}"));
            return Ok((0, None));
        }
        Err(error) => return Err(error.into()),
    };
    let mut rows = 0;
    let one = (organizations::get(&mut shown).await?, organizations::get(&mut made.tx).await?);
    rows += u64::from(one.0.is_some());
    if one.0 != one.1 {
        differences.push("the organization's row is not what its events make".to_owned());
    }
    let (shown, made_tx) = (&mut shown, &mut made.tx);
    let listed = async |tx: &mut TenantTx, page: &Page<Place>| members::list(tx, true, None, page, PAGE).await;
    rows += table("members", shown, made_tx, listed, differences).await?;
    let listed = async |tx: &mut TenantTx, page: &Page<Place>| api_keys::as_events_say(tx, page, PAGE).await;
    rows += table("api_keys", shown, made_tx, listed, differences).await?;
    let listed = async |tx: &mut TenantTx, page: &Page<u64>| records::list(tx, None, true, page, PAGE).await;
    rows += table("records", shown, made_tx, listed, differences).await?;
    Ok((rows, made.signed.map(|signed| signed.head.size)))
}

/// One table, page by page, up to the first difference.
async fn table<T: Placed<Place: Debug> + PartialEq>(
    name: &str,
    shown: &mut TenantTx,
    made: &mut TenantTx,
    list: impl AsyncFn(&mut TenantTx, &Page<T::Place>) -> Result<Listing<T>, DbError>,
    differences: &mut Vec<String>,
) -> Result<u64, DbError> {
    let (mut page, mut count) = (Page::First, 0);
    loop {
        let (one, other) = (list(shown, &page).await?, list(made, &page).await?);
        count += one.rows.len() as u64;
        if one != other {
            let pairs = one.rows.iter().zip(&other.rows);
            let place = pairs.filter(|(one, other)| one != other).map(|(one, _)| format!("{:?}", one.place())).next();
            let place = place.unwrap_or_else(|| "there are more on one side".to_owned());
            differences.push(format!("{name} are not what the events make of them: {place}"));
            return Ok(count);
        }
        match one.rows.last() {
            Some(last) if one.more => page = Page::After(last.place()),
            _ => return Ok(count),
        }
    }
}
