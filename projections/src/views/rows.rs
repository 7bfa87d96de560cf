//! The rows of a view, as they are read.

use orgstream_events::{Fold, KindName, Timestamp, ViewDefinition};
use serde_json::Value;
use sqlx::{FromRow, Postgres, QueryBuilder, types::Json};
use time::OffsetDateTime;

use super::contribution::{group_bytes, group_text, prefix, second_bytes};
use crate::{
    DbError, Listing, Page, Placed, TenantTx,
    convert::{Document, from_bigint},
};

/// A row of a view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewRow {
    /// The start of its bucket; none in a view without buckets.
    pub bucket: Option<Timestamp>,
    /// The values of its group, in the order of the declaration; null where the records have none.
    pub group: Vec<Value>,
    /// The number of its records.
    pub records: u64,
    key: Vec<u8>,
    sums: Vec<String>,
    numbers: Vec<i64>,
    means: Vec<Option<String>>,
    edges: Vec<Option<String>>,
}

impl ViewRow {
    /// Returns the measures as decimals, in the order of the definition that the row follows; none where the records have no
    /// value.
    pub fn measures(&self, view: &ViewDefinition) -> Vec<(String, Option<String>)> {
        let mut edges = self.edges.iter();
        let measures = view.measures.iter().enumerate().map(|(nth, measure)| {
            let is_there = self.numbers.get(nth).is_some_and(|number| *number > 0);
            let value = match measure.fold {
                Fold::Count => Some(self.records.to_string()),
                Fold::Sum => self.sums.get(nth).filter(|_| is_there).cloned(),
                Fold::Avg => self.means.get(nth).cloned().flatten(),
                Fold::Min | Fold::Max | Fold::Last => edges.next().cloned().flatten(),
            };
            (measure.name.clone(), value)
        });
        measures.collect()
    }
}

/// The position of a row in a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewPlace(pub Vec<u8>);

impl Placed for ViewRow {
    type Place = ViewPlace;

    fn place(&self) -> ViewPlace {
        ViewPlace(self.key.clone())
    }
}

#[derive(FromRow)]
struct Row {
    key: Vec<u8>,
    bucket: Option<OffsetDateTime>,
    groups: Json<Document>,
    records: i64,
    sums: Vec<String>,
    numbers: Vec<i64>,
    means: Vec<Option<String>>,
    edges: Vec<Option<String>>,
}

impl TryFrom<Row> for ViewRow {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let Row { key, bucket, groups, records, sums, numbers, means, edges } = row;
        let group = match groups.0.0 {
            Value::Array(values) => values,
            other => return Err(DbError::Unreadable { what: "the values of a group", value: other.to_string() }),
        };
        let records = from_bigint(records);
        Ok(Self { bucket: bucket.map(Timestamp::from), group, records, key, sums, numbers, means, edges })
    }
}

/// Which rows of a view are read.
#[derive(Debug, Clone, Default)]
pub struct ViewFilter {
    /// The earliest start of a bucket.
    pub from: Option<Timestamp>,
    /// The time before which buckets start.
    pub to: Option<Timestamp>,
    /// The values of the one group.
    pub group: Option<Vec<Value>>,
}

/// Returns rows of a view: the earliest bucket first, the groups of a bucket by their values.
pub async fn rows(
    tx: &mut TenantTx,
    kind: &KindName,
    view: &str,
    filter: &ViewFilter,
    page: &Page<ViewPlace>,
    limit: u16,
) -> Result<Listing<ViewRow>, DbError> {
    let first = prefix(kind.as_str(), view);
    // No bucket starts within a second.
    let second = |at: Timestamp| second_bytes((at.unix_ms().saturating_add(999)).div_euclid(1_000));
    let low = filter.from.map_or_else(|| first.clone(), |from| [first.clone(), second(from)].concat());
    let high = match filter.to {
        Some(to) => [first.clone(), second(to)].concat(),
        None => [first.strip_suffix(&[0]).unwrap_or_default(), &[1]].concat(),
    };
    let mut query = QueryBuilder::<Postgres>::new(
        "SELECT key, bucket_at AS bucket, groups, records, sums::text[] AS sums, numbers, edges::text[] AS edges, ARRAY(
            SELECT CASE WHEN pair.number > 0 THEN trim_scale(pair.sum / pair.number)::text END
            FROM unnest(sums, numbers) WITH ORDINALITY AS pair (sum, number, nth) ORDER BY nth
        ) AS means
        FROM rm.view_rows WHERE org_id = ",
    );
    query.push_bind(tx.org().uuid()).push(" AND key >= ").push_bind(low).push(" AND key < ").push_bind(high);
    if let Some(group) = &filter.group {
        let group_key = [first, group_bytes(&group_text(group.iter().map(Some)))].concat();
        query.push(" AND group_key = ").push_bind(group_key);
    }
    let direction = match page {
        Page::First => "ASC",
        Page::After(ViewPlace(key)) => {
            query.push(" AND key > ").push_bind(key.clone());
            "ASC"
        }
        Page::Before(ViewPlace(key)) => {
            query.push(" AND key < ").push_bind(key.clone());
            "DESC"
        }
    };
    query.push(format!(" ORDER BY key {direction} LIMIT ")).push_bind(i64::from(limit) + 1);
    let found: Vec<Row> = query.build_query_as().persistent(false).fetch_all(tx.connection()).await?;
    Listing::new(found, page, limit)
}
