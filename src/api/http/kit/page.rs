//! Pages of a listing, with opaque cursors that are valid only for their own listing of their own org.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use orgstream_events::{OrgId, Pipeline, Timestamp};
use orgstream_projections::{
    Listing, Page as Part, Place, Placed, record_references::ReferencePlace, records::RecordPlace, views::ViewPlace,
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::app::problem::Problem;

/// The maximum number of rows in one page.
pub const MAX_LIMIT: u16 = 100;
const DEFAULT_LIMIT: u16 = 25;
const TAG: usize = 16;

/// Which page of a listing.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many rows, 1 to 100; 25 unless said otherwise.
    #[param(minimum = 1, maximum = 100, default = 25, example = 25)]
    pub limit: Option<u16>,
    /// Where to go on: `next_cursor` or `prev_cursor` of an earlier page, with the same filters.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// Returns the requested number of rows.
    pub fn limit(&self) -> Result<u16, Problem> {
        match self.limit.unwrap_or(DEFAULT_LIMIT) {
            limit @ 1..=MAX_LIMIT => Ok(limit),
            other => Err(Problem::invalid_parameter("limit", format!("{other} is not between 1 and {MAX_LIMIT}"))),
        }
    }
}

/// One page of a listing.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    /// Rows of this page.
    pub data: Vec<T>,
    /// Cursor of the next page; null on the last.
    pub next_cursor: Option<String>,
    /// Cursor of the page before; null on the first.
    pub prev_cursor: Option<String>,
    /// True if there is a next page.
    pub has_more: bool,
}

/// A position in a listing, as a cursor holds it.
pub trait CursorPlace: Sized {
    /// Encodes the position.
    fn to_bytes(&self) -> Vec<u8>;
    /// Decodes the position.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl CursorPlace for Place {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.created_at.unix_ms().to_be_bytes()[..], self.id.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at, id) = bytes.split_at_checked(8)?;
        let created_at = Timestamp::from_unix_ms(i64::from_be_bytes(at.try_into().ok()?));
        Some(Self { created_at, id: Uuid::from_slice(id).ok()? })
    }
}

impl CursorPlace for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl CursorPlace for RecordPlace {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.created_seq.to_be_bytes()[..], &self.value].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seq, value) = bytes.split_at_checked(8)?;
        Some(Self { value: value.to_vec(), created_seq: u64::from_be_bytes(seq.try_into().ok()?) })
    }
}

impl CursorPlace for ReferencePlace {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.created_seq.to_be_bytes()[..], self.pointer.as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seq, pointer) = bytes.split_at_checked(8)?;
        let pointer = std::str::from_utf8(pointer).ok()?.to_owned();
        Some(Self { created_seq: u64::from_be_bytes(seq.try_into().ok()?), pointer })
    }
}

impl CursorPlace for ViewPlace {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.to_vec()))
    }
}

impl CursorPlace for (Pipeline, u64) {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.1.to_be_bytes()[..], self.0.name().as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seq, pipeline) = bytes.split_at_checked(8)?;
        Some((std::str::from_utf8(pipeline).ok()?.parse().ok()?, u64::from_be_bytes(seq.try_into().ok()?)))
    }
}

/// The secret that signs cursors.
#[derive(Clone)]
pub struct CursorKey([u8; 64]);

impl CursorKey {
    /// Creates the key. All servers behind one address must have the same one.
    pub fn new(secret: [u8; 32]) -> Self {
        // An HMAC key that is shorter than a block is followed by zeros.
        let mut block = [0; 64];
        block.iter_mut().zip(secret).for_each(|(to, from)| *to = from);
        Self(block)
    }

    /// Returns the cursors of one listing: of one org, one route and one set of filters.
    pub fn listing<'a>(&'a self, org: OrgId, route: &'static str, filter: &impl Serialize) -> Cursors<'a> {
        let filter = serde_json::to_vec(filter).unwrap_or_default();
        Cursors { key: self, scope: [org.uuid().as_bytes(), route.as_bytes(), &[0][..], &filter].concat() }
    }
}

/// Encodes and decodes the cursors of one listing.
pub struct Cursors<'a> {
    key: &'a CursorKey,
    scope: Vec<u8>,
}

impl Cursors<'_> {
    /// Returns the part of the listing that a cursor names; without one, the beginning.
    pub fn read<P: CursorPlace>(&self, cursor: Option<&str>) -> Result<Part<P>, Problem> {
        let Some(cursor) = cursor else { return Ok(Part::First) };
        let part = || {
            let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
            let (tag, body) = bytes.split_at_checked(TAG)?;
            self.hmac(body).verify_truncated_left(tag).ok()?;
            let (direction, place) = body.split_first()?;
            let place = P::from_bytes(place)?;
            match direction {
                b'a' => Some(Part::After(place)),
                b'b' => Some(Part::Before(place)),
                _ => None,
            }
        };
        part().ok_or_else(|| {
            Problem::invalid_parameter(
                "cursor",
                "this is no cursor of this listing: cursors go with their organization and filters",
            )
        })
    }

    /// Returns the page of `listing`, given which part of the whole it is.
    pub fn page<R, V>(&self, part: &Part<R::Place>, listing: Listing<R>, show: impl Fn(R) -> V) -> Page<V>
    where
        R: Placed,
        R::Place: CursorPlace,
    {
        let first = listing.rows.first().map(|row| self.write(b'b', &row.place()));
        let last = listing.rows.last().map(|row| self.write(b'a', &row.place()));
        // There are rows where the cursor came from, even if they were not queried.
        let (next_cursor, prev_cursor) = match part {
            Part::First => (last.filter(|_| listing.more), None),
            Part::After(_) => (last.filter(|_| listing.more), first),
            Part::Before(_) => (last, first.filter(|_| listing.more)),
        };
        Page {
            has_more: next_cursor.is_some(),
            next_cursor,
            prev_cursor,
            data: listing.rows.into_iter().map(show).collect(),
        }
    }

    /// Returns the cursor of what follows `place`.
    pub fn after<P: CursorPlace>(&self, place: &P) -> String {
        self.write(b'a', place)
    }

    fn write<P: CursorPlace>(&self, direction: u8, place: &P) -> String {
        let body = [&[direction][..], &place.to_bytes()].concat();
        let tag = self.hmac(&body).finalize().into_bytes();
        let short: Vec<u8> = tag.iter().copied().take(TAG).chain(body).collect();
        URL_SAFE_NO_PAD.encode(short)
    }

    fn hmac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut hmac = <Hmac<Sha256> as KeyInit>::new(&self.key.0.into());
        hmac.update(&(self.scope.len() as u64).to_be_bytes());
        hmac.update(&self.scope);
        hmac.update(body);
        hmac
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::CommandId;

    use super::*;

    fn key() -> CursorKey {
        CursorKey::new([7; 32])
    }

    fn org(byte: u8) -> OrgId {
        OrgId::derive(CommandId::fresh(1_700_000_000_000, [byte; 10]))
    }

    struct Row(u64);

    impl Placed for Row {
        type Place = u64;

        fn place(&self) -> u64 {
            self.0
        }
    }

    fn page(part: Part<u64>, rows: &[u64], more: bool) -> Page<u64> {
        let listing = Listing { rows: rows.iter().copied().map(Row).collect(), more };
        key().listing(org(1), "rows", &()).page(&part, listing, |row| row.0)
    }

    #[test]
    fn a_cursor_leads_back_to_its_place() {
        let key = key();
        let cursors = key.listing(org(1), "rows", &"kind");
        let place = Place { created_at: Timestamp::from_unix_ms(1_700_000_000_123), id: Uuid::from_u128(9) };
        assert_eq!(cursors.read(Some(&cursors.after(&place))).unwrap(), Part::After(place));
        assert_eq!(
            cursors.read(Some(&cursors.after(&(Pipeline::Audit, 3)))).unwrap(),
            Part::After((Pipeline::Audit, 3))
        );
        assert_eq!(cursors.read::<Place>(None).unwrap(), Part::First);
    }

    #[test]
    fn another_orgs_cursor_is_refused() {
        let key = key();
        let cursor = key.listing(org(1), "rows", &"kind").after(&5_u64);
        let others = [
            key.listing(org(2), "rows", &"kind"),
            key.listing(org(1), "others", &"kind"),
            key.listing(org(1), "rows", &"other"),
            CursorKey::new([8; 32]).listing(org(1), "rows", &"kind"),
        ]
        .map(|listing| listing.read::<u64>(Some(&cursor)).map_err(|problem| problem.status));
        assert_eq!(others, [Err(400), Err(400), Err(400), Err(400)]);
        for hostile in ["", "!", "AAAA", &cursor[..cursor.len() - 2], &format!("{cursor}AA")] {
            assert!(key.listing(org(1), "rows", &"kind").read::<u64>(Some(hostile)).is_err(), "{hostile}");
        }
    }

    #[test]
    fn a_listing_says_where_it_ends() {
        let first = page(Part::First, &[9, 8], true);
        assert!(first.has_more && first.next_cursor.is_some() && first.prev_cursor.is_none());
        let last = page(Part::After(8), &[7], false);
        assert!(!last.has_more && last.next_cursor.is_none() && last.prev_cursor.is_some());
        let back = page(Part::Before(7), &[9, 8], false);
        assert!(back.has_more && back.prev_cursor.is_none());
        let nothing = page(Part::First, &[], false);
        assert!(!nothing.has_more && nothing.data.is_empty());
    }
}
