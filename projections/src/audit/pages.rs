//! Reading an org's log by pages. A page ends after a number of events or of bytes, whichever comes first: a few
//! hundred small events, or a few large ones. The events that fit are determined by their lengths, before any of them
//! is read.

use orgstream_events::{ActorType, OutcomeStatus, Timestamp};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{AuditEntry, AuditFilter, Row, columns, own};
use crate::{
    DbError, Listing, Page, TenantTx,
    convert::{from_bigint, to_bigint},
};

/// Bytes of events after which a page ends. Its last event may exceed them, and has a million at most.
pub const PAGE_BYTES: i64 = 4 << 20;

/// A part of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The events.
    pub entries: Vec<AuditEntry>,
    /// Whether more may follow.
    pub more: bool,
}

/// An event that was not read yet: its index and size.
pub(super) struct Sized {
    pub(super) idx: i64,
    pub(super) size: i32,
}

/// Returns the leading events that fit in a page, and whether any are left over.
fn fitting(places: Vec<Sized>) -> (Vec<i64>, bool) {
    let (count, mut bytes, mut fitting) = (places.len(), 0, Vec::with_capacity(places.len()));
    for Sized { idx, size } in places {
        if bytes >= PAGE_BYTES {
            break;
        }
        bytes += i64::from(size);
        fitting.push(idx);
    }
    let cut = fitting.len() < count;
    (fitting, cut)
}

macro_rules! matching {
    ($from:tt, $order:tt, $org:expr, $idx:expr, $rows:expr, $filter:expr) => {
        sqlx::query_as!(
            Sized,
            r#"SELECT idx, length(header) + length(payload) AS "size!" FROM audit.events
            WHERE org_id = $1
                AND ($4::text IS NULL OR action = $4)
                AND ($5::text IS NULL OR actor_type = $5)
                AND ($6::text IS NULL OR actor_id = $6)
                AND ($7::text IS NULL OR target_id = $7)
                AND ($8::timestamptz IS NULL OR recorded_at >= $8)
                AND ($9::timestamptz IS NULL OR recorded_at < $9)
                AND ($10::text IS NULL OR outcome = $10)
                AND ($11::bigint IS NULL OR idx >= $11)
                AND ($12::bigint IS NULL OR idx < $12)
                AND "#
                + $from
                + " ORDER BY "
                + $order
                + " LIMIT $3",
            $org,
            $idx,
            $rows,
            $filter.action.as_deref(),
            $filter.actor_type.map(ActorType::name),
            $filter.actor_id.as_deref(),
            $filter.target_id.as_deref(),
            $filter.since.map(Timestamp::to_datetime),
            $filter.until.map(Timestamp::to_datetime),
            $filter.outcome.map(OutcomeStatus::name),
            $filter.from_idx.map(to_bigint),
            $filter.to_idx.map(to_bigint),
        )
    };
}

/// Returns the indexes of the next `rows` events that match the filter, before `idx` and backwards or after it and
/// forwards.
async fn places(
    tx: &mut TenantTx,
    filter: &AuditFilter,
    (idx, to_older): (i64, bool),
    rows: i64,
) -> Result<Vec<Sized>, DbError> {
    let org = tx.org().uuid();
    if columns::are_in_doubt(tx, filter).await? {
        return columns::scan(tx, filter, (idx, to_older), rows).await;
    }
    Ok(if to_older {
        matching!("idx < $2", "idx DESC", org, idx, rows, filter).fetch_all(tx.connection()).await
    } else {
        matching!("idx > $2", "idx", org, idx, rows, filter).fetch_all(tx.connection()).await
    }?)
}

/// Returns the events at these indexes, in their order in the log.
async fn at(tx: &mut TenantTx, places: &[i64]) -> Result<Vec<Row>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query_as!(
        Row,
        "SELECT idx, event_id, seq, header, payload, leaf FROM audit.events
        WHERE org_id = $1 AND idx = ANY ($2) ORDER BY idx",
        org,
        places,
    );
    Ok(rows.fetch_all(tx.connection()).await?)
}

/// Returns the matching events, newest first.
pub async fn list(
    tx: &mut TenantTx,
    filter: &AuditFilter,
    page: &Page<u64>,
    limit: u16,
) -> Result<Listing<AuditEntry>, DbError> {
    let start = page.start();
    let (places, cut) = fitting(places(tx, filter, start, i64::from(limit) + 1).await?);
    let mut rows = at(tx, &places).await?;
    if start.1 {
        rows.reverse();
    }
    let Listing { rows, more } = Listing::new(rows, page, limit)?;
    Ok(Listing { rows: own(tx, rows, filter)?, more: more || cut })
}

/// Returns up to `limit` matching events in the log's own order, after the index `after`.
pub async fn forward(tx: &mut TenantTx, filter: &AuditFilter, after: Option<u64>, limit: u16) -> Result<Part, DbError> {
    let places = places(tx, filter, (after.map_or(-1, to_bigint), false), limit.into()).await?;
    let is_full = places.len() == usize::from(limit);
    let (places, cut) = fitting(places);
    let entries = at(tx, &places).await?.into_iter().map(AuditEntry::try_from).collect::<Result<_, _>>()?;
    Ok(Part { entries: own(tx, entries, filter)?, more: is_full || cut })
}

/// Returns up to `limit` events in the log's own order, from `idx` on.
pub async fn from_idx(tx: &mut TenantTx, idx: u64, limit: u16) -> Result<Part, DbError> {
    let (org, idx) = (tx.org().uuid(), to_bigint(idx));
    let upto = idx.saturating_add(limit.into());
    let end = end_of_page(tx.connection(), org, (idx, upto)).await?.unwrap_or(idx);
    let rows = sqlx::query_as!(
        Row,
        "SELECT idx, event_id, seq, header, payload, leaf
        FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
        org,
        idx,
        end,
    );
    let rows = rows.fetch_all(tx.connection()).await?.into_iter().map(AuditEntry::try_from);
    let entries = own(tx, rows.collect::<Result<_, _>>()?, &AuditFilter::default())?;
    let more = entries.len() == usize::from(limit) || has_from(tx, end, upto).await?;
    Ok(Part { entries, more })
}

/// Whether the log has an event in `from..upto`.
async fn has_from(tx: &mut TenantTx, from: i64, upto: i64) -> Result<bool, DbError> {
    let org = tx.org().uuid();
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $3) AS "found!""#,
        org,
        from,
        upto,
    );
    Ok(found.fetch_one(tx.connection()).await?)
}

/// Returns the index after the last event of `from..upto` that fits in a page; None when there is no event.
pub(crate) async fn end_of_page(
    connection: &mut PgConnection,
    org: Uuid,
    (from, upto): (i64, i64),
) -> Result<Option<i64>, DbError> {
    let end = sqlx::query_scalar!(
        "SELECT max(idx) + 1 FROM (
            SELECT idx, sum(length(header) + length(payload)) OVER (ORDER BY idx) - length(header) - length(payload) AS before
            FROM audit.events WHERE org_id = $1 AND idx >= $2 AND idx < $3
        ) AS sized WHERE before < $4",
        org,
        from,
        upto,
        PAGE_BYTES as _,
    );
    Ok(end.fetch_one(connection).await?)
}

/// Returns the index in the log of the first commit at stream sequence `seq` or after it. An event that was parked and
/// applied later has its index after that of its mark.
pub async fn first_from(tx: &mut TenantTx, seq: u64) -> Result<Option<u64>, DbError> {
    let org = tx.org().uuid();
    let first = sqlx::query_scalar!(
        "SELECT idx FROM audit.events WHERE org_id = $1 AND seq >= $2 ORDER BY seq, idx LIMIT 1",
        org,
        to_bigint(seq),
    );
    Ok(first.fetch_optional(tx.connection()).await?.map(from_bigint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_bytes_and_never_before_its_first_event() {
        let sized = |sizes: &[i32]| {
            let places = (0..).zip(sizes).map(|(idx, size)| Sized { idx, size: *size });
            fitting(places.collect())
        };
        assert_eq!(sized(&[]), (vec![], false));
        assert_eq!(sized(&[100; 3]), (vec![0, 1, 2], false));
        assert_eq!(sized(&[5 << 20, 1]), (vec![0], true));
        assert_eq!(sized(&[1 << 20; 500]), (vec![0, 1, 2, 3], true));
        assert_eq!(sized(&[(4 << 20) - 1, 1 << 20, 1]), (vec![0, 1], true));
    }
}
