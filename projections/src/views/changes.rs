//! The changes of a batch to the rows of views, written by a few statements whatever their number.

use std::collections::{BTreeMap, HashMap};

use orgstream_events::{Fold, RecordId};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    contribution::{Contribution, InView, View, cell, has_edge, prefix},
    taken_up::Views,
};
use crate::{DbError, convert::column};

/// The row of a view that a batch changes.
struct Head<'a> {
    key: Vec<u8>,
    group_key: Vec<u8>,
    view: &'a View,
    bucket: Option<OffsetDateTime>,
    groups: String,
    records: i64,
}

/// A value that goes into a sum, or out of it.
struct Item {
    place: i32,
    slot: i32,
    sign: i64,
    value: Option<String>,
}

struct Ranked {
    key: Vec<u8>,
    cell: Vec<u8>,
    rank: String,
    value: String,
}

struct Edge {
    place: i32,
    slot: i32,
    cell: Vec<u8>,
    is_greatest: bool,
}

/// The changes of a batch to the rows of views.
pub(crate) struct Changes<'a> {
    views: &'a Views,
    heads: Vec<Head<'a>>,
    places: HashMap<Vec<u8>, i32>,
    items: Vec<Item>,
    ranked: BTreeMap<Vec<u8>, Option<Ranked>>,
    taken_back: Vec<Vec<u8>>,
}

impl<'a> Changes<'a> {
    pub(crate) fn new(views: &'a Views) -> Self {
        let (heads, places, items) = (Vec::new(), HashMap::new(), Vec::new());
        Self { views, heads, places, items, ranked: BTreeMap::new(), taken_back: Vec::new() }
    }

    /// Notes a record, as it was before the batch and as it is after it; none where it is in no view.
    pub(crate) fn record(&mut self, id: RecordId, before: Option<InView<'_>>, after: Option<InView<'_>>) {
        let before = before.into_iter().map(|record| (record, -1));
        for (record, sign) in before.chain(after.into_iter().map(|record| (record, 1))) {
            let all = self.views;
            for view in all.0.get(record.kind).into_iter().flatten() {
                if let Some(contribution) = view.contribution(&record) {
                    self.add(view, id, record.place, sign, contribution);
                }
            }
        }
    }

    fn add(&mut self, view: &'a View, id: RecordId, written: i64, sign: i64, contribution: Contribution) {
        let Contribution { key, group_key, bucket, groups, values } = contribution;
        let next = i32::try_from(self.heads.len()).unwrap_or(i32::MAX).saturating_add(1);
        let place = *self.places.entry(key.clone()).or_insert(next);
        if place == next {
            self.heads.push(Head { key: key.clone(), group_key, view, bucket, groups, records: 0 });
        }
        let nth = usize::try_from(place).unwrap_or_default().saturating_sub(1);
        if let Some(head) = self.heads.get_mut(nth) {
            head.records += sign;
        }
        if sign < 0 {
            self.taken_back.push(key.clone());
        }
        for (slot, (measure, value)) in (0_u8..).zip(view.definition.measures.iter().zip(values)) {
            let mut summed = None;
            match value {
                Some(value) if has_edge(measure.fold) => {
                    let prefix = prefix(&view.kind, &view.definition.name);
                    let own = [&prefix[..], &[slot], id.uuid().as_bytes()].concat();
                    let rank = if measure.fold == Fold::Last { written.to_string() } else { value.clone() };
                    let cell = cell(&key, slot);
                    let ranked = (sign > 0).then(|| Ranked { key: own.clone(), cell, rank, value });
                    // What it was comes before what it is.
                    self.ranked.insert(own, ranked);
                }
                value => summed = value,
            }
            self.items.push(Item { place, slot: slot.into(), sign, value: summed });
        }
    }

    fn edges(&self) -> Vec<Edge> {
        let of_head = |(place, head): (i32, &Head<'_>)| {
            let measures = (0_u8..).zip(&head.view.definition.measures);
            let edges = measures.filter(|(_, measure)| has_edge(measure.fold)).map(|(slot, measure)| Edge {
                place,
                slot: slot.into(),
                cell: cell(&head.key, slot),
                is_greatest: measure.fold != Fold::Min,
            });
            edges.collect::<Vec<_>>()
        };
        (1..).zip(&self.heads).flat_map(of_head).collect()
    }

    /// Writes them, with a few statements whatever their number.
    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.heads.is_empty() {
            return Ok(());
        }
        let edges = self.edges();
        let Self { views: _, heads, places: _, items, ranked, mut taken_back } = self;
        let gone: Vec<Vec<u8>> =
            ranked.iter().filter(|(_, ranked)| ranked.is_none()).map(|(key, _)| key.clone()).collect();
        let ranked: Vec<Ranked> = ranked.into_values().flatten().collect();
        if !ranked.is_empty() {
            sqlx::query!(
                "INSERT INTO rm.view_values (org_id, key, cell, rank, value)
                SELECT $1, item.key, item.cell, trim_scale(item.rank::numeric), trim_scale(item.value::numeric)
                FROM unnest($2::bytea[], $3::bytea[], $4::text[], $5::text[]) AS item (key, cell, rank, value)
                ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
                    cell = excluded.cell,
                    rank = excluded.rank,
                    value = excluded.value",
                org,
                column(&ranked, |item| item.key.as_slice()) as _,
                column(&ranked, |item| item.cell.as_slice()) as _,
                column(&ranked, |item| item.rank.as_str()) as _,
                column(&ranked, |item| item.value.as_str()) as _,
            )
            .execute(&mut *connection)
            .await?;
        }
        if !gone.is_empty() {
            sqlx::query!(
                r#"SELECT app.drop_view_values($1, $2) AS "done: ()""#,
                org,
                column(&gone, Vec::as_slice) as _,
            )
            .fetch_one(&mut *connection)
            .await?;
        }
        sqlx::query!(
            "WITH item AS (
                SELECT item.place, item.slot, trim_scale(coalesce(sum(item.sign * item.value::numeric), 0)) AS sum,
                    coalesce(sum(item.sign) FILTER (WHERE item.value IS NOT NULL), 0)::bigint AS number
                FROM unnest($9::integer[], $10::integer[], $11::bigint[], $12::text[]) AS item (place, slot, sign, value)
                GROUP BY item.place, item.slot
            ),
            added AS (
                SELECT place, array_agg(sum ORDER BY slot) AS sums, array_agg(number ORDER BY slot) AS numbers
                FROM item GROUP BY place
            ),
            edge AS (
                SELECT edge.place, array_agg(found.value ORDER BY edge.slot) AS edges
                FROM unnest($13::integer[], $14::integer[], $15::bytea[], $16::boolean[])
                    AS edge (place, slot, cell, is_greatest)
                CROSS JOIN LATERAL (
                    SELECT CASE WHEN edge.is_greatest THEN (
                        SELECT value FROM rm.view_values WHERE org_id = $1 AND cell = edge.cell ORDER BY rank DESC LIMIT 1
                    ) ELSE (
                        SELECT value FROM rm.view_values WHERE org_id = $1 AND cell = edge.cell ORDER BY rank LIMIT 1
                    ) END AS value
                ) AS found
                GROUP BY edge.place
            )
            INSERT INTO rm.view_rows AS stored (org_id, key, group_key, kind, view, bucket_at, groups, records, sums, numbers,
                edges)
            SELECT $1, head.key, head.group_key, head.kind, head.view, head.bucket, head.groups::jsonb, head.records,
                added.sums, added.numbers, coalesce(edge.edges, '{}')
            FROM unnest($2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::bigint[])
                WITH ORDINALITY AS head (key, group_key, kind, view, bucket, groups, records, place)
            JOIN added ON added.place = head.place
            LEFT JOIN edge ON edge.place = head.place
            ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
                records = stored.records + excluded.records,
                sums = ARRAY(
                    SELECT trim_scale(pair.one + pair.other)
                    FROM unnest(stored.sums, excluded.sums) WITH ORDINALITY AS pair (one, other, nth) ORDER BY nth
                ),
                numbers = ARRAY(
                    SELECT pair.one + pair.other
                    FROM unnest(stored.numbers, excluded.numbers) WITH ORDINALITY AS pair (one, other, nth) ORDER BY nth
                ),
                edges = excluded.edges",
            org,
            column(&heads, |head| head.key.as_slice()) as _,
            column(&heads, |head| head.group_key.as_slice()) as _,
            column(&heads, |head| head.view.kind.as_str()) as _,
            column(&heads, |head| head.view.definition.name.as_str()) as _,
            column(&heads, |head| head.bucket) as _,
            column(&heads, |head| head.groups.as_str()) as _,
            &column(&heads, |head| head.records),
            &column(&items, |item| item.place),
            &column(&items, |item| item.slot),
            &column(&items, |item| item.sign),
            column(&items, |item| item.value.as_deref()) as _,
            &column(&edges, |edge| edge.place),
            &column(&edges, |edge| edge.slot),
            column(&edges, |edge| edge.cell.as_slice()) as _,
            &column(&edges, |edge| edge.is_greatest),
        )
        .execute(&mut *connection)
        .await?;
        if !taken_back.is_empty() {
            taken_back.sort_unstable();
            taken_back.dedup();
            sqlx::query!(
                r#"SELECT app.drop_empty_view_rows($1, $2) AS "done: ()""#,
                org,
                column(&taken_back, Vec::as_slice) as _,
            )
            .fetch_one(connection)
            .await?;
        }
        Ok(())
    }
}
