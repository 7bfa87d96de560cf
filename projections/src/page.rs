//! Pages of a listing, newest first, by the position of the last row seen and not by offset.

use orgstream_events::Timestamp;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{DbError, convert::to_bigint};

/// The position of a row in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When the resource was created.
    pub created_at: Timestamp,
    /// Distinguishes resources created in the same millisecond.
    pub id: Uuid,
}

/// A part of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page<P> {
    /// The newest rows.
    First,
    /// The rows after this position: older.
    After(P),
    /// The rows before this position: newer.
    Before(P),
}

impl Page<Place> {
    /// The position to start from, and whether the direction is to older rows.
    pub(crate) fn start(&self) -> (OffsetDateTime, Uuid, bool) {
        match self {
            Self::First => (Timestamp::from_unix_ms(i64::MAX).to_datetime(), Uuid::max(), true),
            Self::After(place) => (place.created_at.to_datetime(), place.id, true),
            Self::Before(place) => (place.created_at.to_datetime(), place.id, false),
        }
    }
}

impl Page<u64> {
    /// The number to start from, and whether the direction is to older rows.
    pub(crate) fn start(&self) -> (i64, bool) {
        match *self {
            Self::First => (i64::MAX, true),
            Self::After(number) => (to_bigint(number), true),
            Self::Before(number) => (to_bigint(number), false),
        }
    }
}

/// Runs a listing in the direction of its page. The query ends in a condition; $1 is the org, $2 to $4 are reserved,
/// and arguments begin at $5.
macro_rules! newest_first {
    ($row:ident, $query:tt, $tx:expr, $page:expr, $limit:expr $(, $argument:expr)*) => {{
        let org = $tx.org().uuid();
        let (at, id, to_older) = $page.start();
        let rows = i64::from($limit) + 1;
        if to_older {
            sqlx::query_as!(
                $row,
                $query + " AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4",
                org, at, id, rows $(, $argument)*
            )
            .fetch_all($tx.connection())
            .await
        } else {
            sqlx::query_as!(
                $row,
                $query + " AND (created_at, id) > ($2, $3) ORDER BY created_at, id LIMIT $4",
                org, at, id, rows $(, $argument)*
            )
            .fetch_all($tx.connection())
            .await
        }
    }};
}
pub(crate) use newest_first;

/// A row with a position.
pub trait Placed {
    /// The type of positions in this listing.
    type Place;

    /// The row's position.
    fn place(&self) -> Self::Place;
}

/// One page.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T> {
    /// The rows, newest first in either direction.
    pub rows: Vec<T>,
    /// Whether there are more in the direction of the page.
    pub more: bool,
}

impl<T> Listing<T> {
    /// Makes a page from at most `limit + 1` stored rows, read in the direction of the page.
    pub(crate) fn new<P, R>(stored: Vec<R>, page: &Page<P>, limit: u16) -> Result<Self, DbError>
    where
        T: TryFrom<R, Error = DbError>,
    {
        let limit = usize::from(limit);
        let mut rows = stored.into_iter().map(T::try_from).collect::<Result<Vec<T>, DbError>>()?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        if matches!(page, Page::Before(_)) {
            rows.reverse();
        }
        Ok(Self { rows, more })
    }
}
