//! The columns beside an event's bytes: a function of its header, used by filters. The header is authoritative.
//!
//! Anyone with write access to the table can change a column, and so hide an event from every filter on it. So an index
//! holds the rows where columns and header differ (see the migration 0085), and while it has any of an org, filters
//! read the headers of the org's events themselves.

use orgstream_events::{ActorType, Header, OutcomeStatus, SealedEvent, Timestamp};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AuditFilter, pages::Sized};
use crate::{
    DbError, TenantTx,
    convert::{from_bigint, to_bigint},
};

/// Headers per read.
const CHUNK: i64 = 1_000;

/// The columns that follow from a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns<'a> {
    pub(crate) event_id: Uuid,
    pub(crate) command_id: Uuid,
    pub(crate) recorded_at: OffsetDateTime,
    pub(crate) occurred_at: OffsetDateTime,
    pub(crate) action: &'a str,
    pub(crate) actor_type: &'a str,
    pub(crate) actor_id: &'a str,
    pub(crate) target_type: &'a str,
    pub(crate) target_id: &'a str,
    pub(crate) outcome: &'a str,
}

impl<'a> Columns<'a> {
    /// The columns' values for an event.
    pub(crate) fn of(header: &'a Header) -> Self {
        let target = header.targets.first();
        let (target_type, target_id) =
            target.map_or(("", ""), |target| (target.target_type.as_str(), target.id.as_str()));
        Self {
            event_id: header.event_id.uuid(),
            command_id: header.command_id.uuid(),
            recorded_at: header.recorded_at.to_datetime(),
            occurred_at: header.occurred_at.to_datetime(),
            action: &header.event_type,
            actor_type: header.actor.actor_type.name(),
            actor_id: &header.actor.id,
            target_type,
            target_id,
            outcome: header.outcome.status.name(),
        }
    }

    /// The names of the columns that differ in `stored`.
    pub(crate) fn differing(&self, stored: &Columns<'_>) -> Vec<&'static str> {
        let pairs = [
            ("event_id", self.event_id == stored.event_id),
            ("command_id", self.command_id == stored.command_id),
            ("recorded_at", self.recorded_at == stored.recorded_at),
            ("occurred_at", self.occurred_at == stored.occurred_at),
            ("action", self.action == stored.action),
            ("actor_type", self.actor_type == stored.actor_type),
            ("actor_id", self.actor_id == stored.actor_id),
            ("target_type", self.target_type == stored.target_type),
            ("target_id", self.target_id == stored.target_id),
            ("outcome", self.outcome == stored.outcome),
        ];
        pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
    }
}

impl AuditFilter {
    /// Whether it has conditions on anything but indexes of the log.
    fn is_by_columns(&self) -> bool {
        *self != Self { from_idx: self.from_idx, to_idx: self.to_idx, ..Self::default() }
    }

    /// Whether an event matches the filter by its header.
    pub(super) fn matches(&self, idx: u64, header: &Header) -> bool {
        let is = |wanted: Option<&str>, found: &str| wanted.is_none_or(|wanted| wanted == found);
        let columns = Columns::of(header);
        is(self.action.as_deref(), columns.action)
            && is(self.actor_type.map(ActorType::name), columns.actor_type)
            && is(self.actor_id.as_deref(), columns.actor_id)
            && is(self.target_id.as_deref(), columns.target_id)
            && is(self.outcome.map(OutcomeStatus::name), columns.outcome)
            && self.from_idx.is_none_or(|from| idx >= from)
            && self.to_idx.is_none_or(|to| idx < to)
            && self.since.is_none_or(|since| columns.recorded_at >= Timestamp::to_datetime(since))
            && self.until.is_none_or(|until| columns.recorded_at < Timestamp::to_datetime(until))
    }
}

/// Whether the filter has to use the headers, because some column of the org's log differs from them.
pub(super) async fn are_in_doubt(tx: &mut TenantTx, filter: &AuditFilter) -> Result<bool, DbError> {
    if !filter.is_by_columns() {
        return Ok(false);
    }
    let org = tx.org().uuid();
    let first = sqlx::query_scalar!(
        "SELECT idx FROM audit.events
        WHERE org_id = $1 AND NOT audit.fits(org_id, event_id, command_id, action, actor_type, actor_id, target_type,
            target_id, occurred_at, recorded_at, outcome, header)
        ORDER BY idx LIMIT 1",
        org,
    );
    let first = first.fetch_optional(tx.connection()).await?;
    if let Some(idx) = first {
        tracing::error!(org.id = %tx.org(), idx, "columns of the audit log do not say what its events say: read by the events");
    }
    Ok(first.is_some())
}

/// Returns the indexes of up to `limit` events that match the filter, before `place` and backwards, or after it and
/// forwards, found by their headers. An event with an unreadable header may be a match, so it is included.
///
/// The log is numbered without gaps, so a chunk of it is a range of indexes in either direction.
pub(super) async fn scan(
    tx: &mut TenantTx,
    filter: &AuditFilter,
    (place, to_older): (i64, bool),
    limit: i64,
) -> Result<Vec<Sized>, DbError> {
    let org = tx.org().uuid();
    let most = usize::try_from(limit).unwrap_or(0);
    let newest = sqlx::query_scalar!("SELECT max(idx) FROM audit.events WHERE org_id = $1", org);
    let end = newest.fetch_one(tx.connection()).await?.map_or(0, |newest| newest + 1);
    let mut from = filter.from_idx.map_or(0, to_bigint);
    let mut to = filter.to_idx.map_or(end, to_bigint).min(end);
    if to_older {
        to = to.min(place);
    } else {
        from = from.max(place.saturating_add(1));
    }
    let mut found = Vec::new();
    while found.len() < most && from < to {
        let (first, behind) = if to_older { ((to - CHUNK).max(from), to) } else { (from, (from + CHUNK).min(to)) };
        let mut headers = sqlx::query!(
            r#"SELECT idx, header, length(header) + length(payload) AS "size!" FROM audit.events
            WHERE org_id = $1 AND idx >= $2 AND idx < $3 ORDER BY idx"#,
            org,
            first,
            behind,
        )
        .fetch_all(tx.connection())
        .await?;
        if to_older {
            headers.reverse();
            to = first;
        } else {
            from = behind;
        }
        for row in headers {
            let sealed = SealedEvent { header: row.header.into(), payload: Vec::new().into() };
            if sealed.read_header().map_or(true, |header| filter.matches(from_bigint(row.idx), &header)) {
                found.push(Sized { idx: row.idx, size: row.size });
            }
        }
    }
    found.truncate(most);
    Ok(found)
}
