//! The views that kinds declare of their records, folded: exact sums of groups, and their least, greatest and last values.
//!
//! Each version of an organization's read models folds a view over all of its records or not at all: it takes up what a kind
//! declares with the first record of the kind, and keeps to that. Views that are declared later come with the next version, which
//! is built beside the one that is shown.
//!
//! A record is in one row of a view at most. What it contributed is known from its row before the batch, so a change takes that
//! back exactly; the values of which a view has the least, greatest or last are rows of their own, and the next one is found by
//! their index. Numbers are decimals from the events' digits on, and nothing is rounded but a mean, when it is read.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use orgstream_events::{
    Bucket, Fingerprint, Fold, KindName, OrgId, PLATFORM_ORG, Pipeline, RecordId, Scalar, Timestamp, ViewCondition,
    ViewDefinition,
};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, types::Json};
use time::{Date, OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    Asked, BoundOrg, Database, DbError, Listing, Page, Placed, RebuildJob, RebuildState, SortKey, TenantTx,
    convert::{Document, column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
};

pub(crate) const KIND_VIEWS: ReadModel =
    ReadModel::by_text("kind_views", "rm.kind_views", "kind COLLATE \"C\"", &["kind", "kind_version", "views"]);

pub(crate) const ROWS: ReadModel = ReadModel::by_bytes(
    "view_rows",
    "rm.view_rows",
    "key",
    &["key", "group_key", "kind", "view", "bucket", "groups", "records", "sums", "numbers", "edges"],
    &[],
)
.without(&["key", "group_key"]);

pub(crate) const VALUES: ReadModel =
    ReadModel::by_bytes("view_values", "rm.view_values", "key", &["key", "cell", "rank", "value"], &[])
        .without(&["key", "cell"]);

/// The most characters of a text that records are grouped by; a longer one counts as none.
const MAX_TEXT: usize = 256;
/// The most bytes of a group in a key; a longer one is in it by its hash.
const MAX_GROUP: usize = 512;
/// The most kinds that are remembered to have no views.
const MAX_PLAIN: usize = 10_000;

/// Where a version gets the views from that it takes up with the first record of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum TakesUp {
    /// What the kind declares now.
    #[default]
    Declared,
    /// What the version that is shown has taken up, with which this one is compared.
    Shown,
}

/// Kinds that have never declared a view, each with the version up to which that is known. So their records cost no query.
#[derive(Debug, Default)]
pub(crate) struct PlainKinds(Mutex<HashMap<KindName, u64>>);

impl PlainKinds {
    fn has(&self, kind: &KindName, version: u64) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(kind).is_some_and(|known| *known >= version)
    }

    fn note(&self, kind: &KindName, version: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_PLAIN {
            known.clear();
        }
        known.insert(kind.clone(), version);
    }
}

/// What a batch knows of its version's views before it asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Folding {
    pub(crate) takes_up: TakesUp,
    /// Whether the version folds any view; none when that is not known.
    pub(crate) folds: Option<bool>,
    pub(crate) plain: Arc<PlainKinds>,
}

/// The views of a kind as a version folds them.
#[derive(Debug, Clone, PartialEq)]
pub struct KindViews {
    /// The version of the kind that declared them.
    pub kind_version: u64,
    /// Their definitions.
    pub views: Vec<ViewDefinition>,
}

/// A record that is in the views of its kind.
pub(crate) struct InView<'a> {
    pub(crate) kind: &'a str,
    pub(crate) data: &'a Value,
    pub(crate) created_at: OffsetDateTime,
    /// The sequence of the message that wrote the content.
    pub(crate) seq: i64,
}

/// A record before the batch.
#[derive(Debug)]
pub(crate) struct Before {
    id: Uuid,
    pub(crate) kind: String,
    data: Json<Document>,
    pub(crate) active: bool,
    pub(crate) created_at: OffsetDateTime,
    seq: i64,
}

impl Before {
    pub(crate) fn id(&self) -> RecordId {
        RecordId::from_uuid(self.id)
    }

    /// What it contributed.
    pub(crate) fn in_view(&self) -> Option<InView<'_>> {
        let Self { kind, data, created_at, seq, .. } = self;
        self.active.then(|| InView { kind, data: &data.0.0, created_at: *created_at, seq: *seq })
    }
}

/// The views that a batch folds.
pub(crate) struct Views(BTreeMap<String, Vec<View>>);

impl Views {
    /// Finds the views of the version, and takes up those of kinds whose first records are `born` in this batch, each with the
    /// version of the kind. Before the batch writes any record.
    pub(crate) async fn begin(
        connection: &mut PgConnection,
        org: Uuid,
        folding: &Folding,
        born: &BTreeMap<&KindName, u64>,
    ) -> Result<Self, DbError> {
        let mut views = BTreeMap::new();
        if folding.folds != Some(false) {
            let rows = sqlx::query!(
                r#"SELECT kind, views AS "views: Json<Vec<ViewDefinition>>" FROM rm.kind_views WHERE org_id = $1"#,
                org,
            );
            for row in rows.fetch_all(&mut *connection).await? {
                views.insert(row.kind, row.views.0);
            }
        }
        let new = born.iter().filter(|(kind, version)| {
            let is_plain = folding.takes_up == TakesUp::Declared && folding.plain.has(kind, **version);
            !is_plain && !views.contains_key(kind.as_str())
        });
        let new: Vec<&KindName> = new.map(|(kind, _)| *kind).collect();
        if !new.is_empty() {
            for (kind, taken) in take_up(connection, org, folding, new).await? {
                views.insert(kind.into(), taken.views);
            }
        }
        let compiled = |(kind, views): (String, Vec<ViewDefinition>)| {
            let views = views.into_iter().map(|view| View::new(&kind, view)).collect();
            (kind, views)
        };
        Ok(Self(views.into_iter().map(compiled).collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, kind: &str) -> bool {
        self.0.contains_key(kind)
    }

    /// Reads the records of these ids whose kinds have views.
    pub(crate) async fn before(
        &self,
        connection: &mut PgConnection,
        org: Uuid,
        ids: &[Uuid],
    ) -> Result<Vec<Before>, DbError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let kinds: Vec<String> = self.0.keys().cloned().collect();
        let rows = sqlx::query_as!(
            Before,
            r#"SELECT old.id, old.kind, old.data AS "data: Json<Document>", old.status = 'active' AS "active!", old.created_at,
                old.seq
            FROM unnest($2::uuid[]) AS wanted (id)
            CROSS JOIN LATERAL (
                SELECT * FROM rm.records WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id ORDER BY id LIMIT 1
            ) AS old
            WHERE old.kind = ANY ($3)"#,
            org,
            ids,
            &kinds,
        );
        Ok(rows.fetch_all(connection).await?)
    }
}

/// Returns the views of those kinds that have no record in this version yet, and writes down that it folds them.
async fn take_up(
    connection: &mut PgConnection,
    org: Uuid,
    folding: &Folding,
    kinds: Vec<&KindName>,
) -> Result<Vec<(KindName, KindViews)>, DbError> {
    let mut names: Vec<KindName> = kinds.into_iter().cloned().collect();
    let mut found = Vec::new();
    if folding.takes_up == TakesUp::Declared {
        found = bound_to(connection, org, PLATFORM_ORG, &names, TakesUp::Declared).await?;
        for (kind, declared) in &found {
            if declared.views.is_empty() {
                folding.plain.note(kind, declared.kind_version);
            }
        }
        found.retain(|(_, declared)| !declared.views.is_empty());
        names = found.iter().map(|(kind, _)| kind.clone()).collect();
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let first = sqlx::query_scalar!(
        r#"SELECT wanted.kind AS "kind!" FROM unnest($2::text[]) AS wanted (kind)
        LEFT JOIN LATERAL (
            SELECT kind FROM rm.records WHERE org_id = $1 AND kind = wanted.kind LIMIT 1
        ) AS known ON true
        WHERE known.kind IS NULL"#,
        org,
        column(&names, |kind| kind.as_str()) as _,
    );
    let first: Vec<String> = first.fetch_all(&mut *connection).await?;
    if folding.takes_up == TakesUp::Shown {
        names.retain(|kind| first.iter().any(|name| name == kind.as_str()));
        if names.is_empty() {
            return Ok(Vec::new());
        }
        found = bound_to(connection, org, OrgId::from_uuid(org), &names, TakesUp::Shown).await?;
    }
    found.retain(|(kind, _)| first.iter().any(|name| name == kind.as_str()));
    if found.is_empty() {
        return Ok(found);
    }
    sqlx::query!(
        "INSERT INTO rm.kind_views (org_id, kind, kind_version, views)
        SELECT $1, taken.* FROM unnest($2::text[], $3::bigint[], $4::jsonb[]) AS taken",
        org,
        column(&found, |(kind, _)| kind.as_str()) as _,
        &column(&found, |(_, taken)| to_bigint(taken.kind_version)),
        column(&found, |(_, taken)| Json(&taken.views)) as _,
    )
    .execute(connection)
    .await?;
    Ok(found)
}

/// Reads the views of kinds, bound for this to the platform, which declares them, or to the version of the organization that is
/// shown.
async fn bound_to(
    connection: &mut PgConnection,
    org: Uuid,
    whose: OrgId,
    kinds: &[KindName],
    takes_up: TakesUp,
) -> Result<Vec<(KindName, KindViews)>, DbError> {
    let version = sqlx::query_scalar!("SELECT current_setting('app.rm_version')").fetch_one(&mut *connection).await?;
    sqlx::query_scalar!("SELECT app.bind($1)", whose.uuid()).fetch_one(&mut *connection).await?;
    let names: Vec<&str> = column(kinds, |kind| kind.as_str());
    let found: Vec<(String, i64, Json<Vec<ViewDefinition>>)> = match takes_up {
        TakesUp::Declared => {
            sqlx::query_as(
                "SELECT name, version, coalesce(views, '[]') FROM rm.kinds WHERE org_id = $1 AND name = ANY ($2)",
            )
            .bind(whose.uuid())
            .bind(&names)
            .fetch_all(&mut *connection)
            .await?
        }
        TakesUp::Shown => {
            sqlx::query_as("SELECT kind, kind_version, views FROM rm.kind_views WHERE org_id = $1 AND kind = ANY ($2)")
                .bind(whose.uuid())
                .bind(&names)
                .fetch_all(&mut *connection)
                .await?
        }
    };
    sqlx::query!(
        "SELECT set_config('app.org_id', $1, true) AS org, set_config('app.rm_version', $2, true) AS version",
        org.to_string(),
        version.unwrap_or_default(),
    )
    .fetch_one(connection)
    .await?;
    let views = |(kind, version, views): (String, i64, Json<Vec<ViewDefinition>>)| {
        Ok((parsed("a kind name", kind)?, KindViews { kind_version: from_bigint(version), views: views.0 }))
    };
    found.into_iter().map(views).collect()
}

/// A view, prepared for the records of a batch.
struct View {
    definition: ViewDefinition,
    kind: String,
    conditions: Vec<Condition>,
}

struct Condition {
    of: String,
    test: Test,
}

enum Test {
    Any(Vec<SortKey>),
    Range(Bound<SortKey>, Bound<SortKey>),
}

impl Condition {
    fn new(condition: &ViewCondition) -> Self {
        let key = |scalar: &Scalar| match scalar {
            Scalar::Boolean(value) => Some(SortKey::boolean(*value)),
            Scalar::Number(number) => SortKey::number(&number.to_string()),
            Scalar::Text(text) => SortKey::text(text),
        };
        let ViewCondition { of, eq, any, gt, gte, lt, lte } = condition;
        let bound = |open: &Option<Scalar>, closed: &Option<Scalar>| match (open, closed) {
            (Some(scalar), _) => key(scalar).map(Bound::Excluded),
            (None, Some(scalar)) => key(scalar).map(Bound::Included),
            (None, None) => Some(Bound::Unbounded),
        };
        // What has no key is equal to nothing.
        let nothing = Test::Any(Vec::new());
        let test = if eq.is_some() || !any.is_empty() {
            Test::Any(eq.iter().chain(any).filter_map(key).collect())
        } else {
            bound(gt, gte).zip(bound(lt, lte)).map_or(nothing, |(low, high)| Test::Range(low, high))
        };
        Self { of: of.clone(), test }
    }

    fn holds(&self, data: &Value) -> bool {
        let Some(found) = data.pointer(&self.of).and_then(SortKey::of) else { return false };
        let is_same_type = |key: &SortKey| key.type_bounds() == found.type_bounds();
        match &self.test {
            Test::Any(keys) => keys.contains(&found),
            Test::Range(low, high) => {
                let above = match low {
                    Bound::Included(key) => is_same_type(key) && found >= *key,
                    Bound::Excluded(key) => is_same_type(key) && found > *key,
                    Bound::Unbounded => true,
                };
                let below = match high {
                    Bound::Included(key) => is_same_type(key) && found <= *key,
                    Bound::Excluded(key) => is_same_type(key) && found < *key,
                    Bound::Unbounded => true,
                };
                above && below
            }
        }
    }
}

/// What a record adds to one row of a view.
struct Contribution {
    key: Vec<u8>,
    group_key: Vec<u8>,
    bucket: Option<OffsetDateTime>,
    groups: String,
    /// One for each measure: the digits of its value.
    values: Vec<Option<String>>,
}

impl View {
    fn new(kind: &str, definition: ViewDefinition) -> Self {
        let conditions = definition.conditions.iter().map(Condition::new).collect();
        Self { definition, kind: kind.to_owned(), conditions }
    }

    fn contribution(&self, record: &InView<'_>) -> Option<Contribution> {
        let ViewDefinition { name, group_by, bucket, bucket_of, measures, .. } = &self.definition;
        if !self.conditions.iter().all(|condition| condition.holds(record.data)) {
            return None;
        }
        let start = match (bucket, bucket_of) {
            (Bucket::None, _) => None,
            (bucket, None) => Some(start_of(*bucket, record.created_at)?),
            (bucket, Some(of)) => Some(start_of(*bucket, moment(record.data.pointer(of)?)?)?),
        };
        let groups = group_text(group_by.iter().map(|of| record.data.pointer(of)));
        let prefix = prefix(&self.kind, name);
        let key = [&prefix[..], &start.map(bucket_bytes).unwrap_or_default(), &group_bytes(&groups)].concat();
        let group_key = [&prefix[..], &group_bytes(&groups)].concat();
        let values = measures.iter().map(|measure| match record.data.pointer(measure.of.as_deref()?)? {
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        Some(Contribution { key, group_key, bucket: start, groups, values: values.collect() })
    }
}

/// The first bytes of all keys of a view. No name has a zero byte.
fn prefix(kind: &str, view: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0], view.as_bytes(), &[0]].concat()
}

/// The start of a bucket in a key: flipping the sign puts those before 1970 first.
fn bucket_bytes(start: OffsetDateTime) -> Vec<u8> {
    second_bytes(start.unix_timestamp())
}

fn second_bytes(second: i64) -> Vec<u8> {
    (second.cast_unsigned() ^ (1 << 63)).to_be_bytes().to_vec()
}

fn group_bytes(groups: &str) -> Vec<u8> {
    if groups.len() <= MAX_GROUP {
        return groups.as_bytes().to_vec();
    }
    // No text in UTF-8 has this byte.
    [&[u8::MAX][..], &Fingerprint::of(&[groups.as_bytes()]).0].concat()
}

/// Returns the values of a group as a JSON array: the same text for the same values.
fn group_text<'a>(values: impl Iterator<Item = Option<&'a Value>>) -> String {
    let values: Vec<String> = values.map(|value| value.map_or_else(|| "null".to_owned(), group_value)).collect();
    format!("[{}]", values.join(","))
}

fn group_value(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => decimal(&number.to_string()),
        Value::String(text) if text.chars().count() <= MAX_TEXT => value.to_string(),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => "null".to_owned(),
    }
}

/// Returns the one way to write a decimal: without an exponent, and without zeros that say nothing.
fn decimal(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let power: i64 = power.strip_prefix('+').unwrap_or(power).parse().unwrap_or_default();
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, part].concat();
    let significant = digits.trim_start_matches('0');
    let leading = i64::try_from(digits.len() - significant.len()).unwrap_or_default();
    let point = i64::try_from(whole.len()).unwrap_or_default() + power - leading;
    let significant = significant.trim_end_matches('0');
    if significant.is_empty() {
        return "0".to_owned();
    }
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or_default());
    let size = i64::try_from(significant.len()).unwrap_or_default();
    if point <= 0 {
        return format!("{sign}0.{}{significant}", zeros(-point));
    }
    match usize::try_from(point).ok().and_then(|point| significant.split_at_checked(point)) {
        Some((whole, part)) if !part.is_empty() => format!("{sign}{whole}.{part}"),
        _ => format!("{sign}{significant}{}", zeros(point - size)),
    }
}

/// The moment that a value is; none if it is something else.
fn moment(value: &Value) -> Option<OffsetDateTime> {
    let text = value.as_str().filter(|text| text.len() <= 64)?;
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// The start of the bucket that a moment is in.
fn start_of(bucket: Bucket, at: OffsetDateTime) -> Option<OffsetDateTime> {
    let whole = |seconds: i64| {
        let second = at.unix_timestamp().div_euclid(seconds) * seconds;
        OffsetDateTime::from_unix_timestamp(second).ok()
    };
    match bucket {
        Bucket::None => None,
        Bucket::Hour => whole(3_600),
        Bucket::Day => whole(86_400),
        Bucket::Month => {
            let at = at.checked_to_offset(UtcOffset::UTC)?;
            Some(Date::from_calendar_date(at.year(), at.month(), 1).ok()?.midnight().assume_utc())
        }
    }
}

/// Whether a view keeps the values of a measure in their order.
fn has_edge(fold: Fold) -> bool {
    matches!(fold, Fold::Min | Fold::Max | Fold::Last)
}

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
                    self.add(view, id, record.seq, sign, contribution);
                }
            }
        }
    }

    fn add(&mut self, view: &'a View, id: RecordId, seq: i64, sign: i64, contribution: Contribution) {
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
                    let rank = if measure.fold == Fold::Last { seq.to_string() } else { value.clone() };
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
            INSERT INTO rm.view_rows AS stored (org_id, key, group_key, kind, view, bucket, groups, records, sums, numbers,
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

/// The key of the ranked values of one measure in one row.
fn cell(key: &[u8], slot: u8) -> Vec<u8> {
    [key, &[0, slot]].concat()
}

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
        "SELECT key, bucket, groups, records, sums::text[] AS sums, numbers, edges::text[] AS edges, ARRAY(
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

/// Returns the views that the rows follow, by kind.
pub async fn folded(tx: &mut TenantTx) -> Result<BTreeMap<KindName, KindViews>, DbError> {
    let rows = sqlx::query!(
        r#"SELECT kind, kind_version, views AS "views: Json<Vec<ViewDefinition>>" FROM rm.kind_views WHERE org_id = $1"#,
        tx.org().uuid(),
    );
    let rows = rows.fetch_all(tx.connection()).await?.into_iter().map(|row| {
        let views = KindViews { kind_version: from_bigint(row.kind_version), views: row.views.0 };
        Ok((parsed("a kind name", row.kind)?, views))
    });
    rows.collect()
}

/// Returns those of these kinds that have records, archived or not.
pub async fn with_records(tx: &mut TenantTx, kinds: &[KindName]) -> Result<Vec<KindName>, DbError> {
    let rows = sqlx::query_scalar!(
        r#"SELECT known.kind AS "kind!" FROM unnest($2::text[]) AS wanted (kind)
        CROSS JOIN LATERAL (
            SELECT kind FROM rm.records WHERE org_id = $1 AND kind = wanted.kind LIMIT 1
        ) AS known"#,
        tx.org().uuid(),
        column(kinds, |kind| kind.as_str()) as _,
    );
    let rows: Vec<String> = rows.fetch_all(tx.connection()).await?;
    rows.into_iter().map(|kind| parsed("a kind name", kind)).collect()
}

/// The builds of views of one kind that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewBuildsAsked {
    /// The organizations whose rows follow other views than the kind declares; up to 1,001.
    pub missing: usize,
    /// Those whose build was asked for now.
    pub asked: usize,
}

impl Database {
    /// Asks for a build of the read models of every organization whose rows follow other views than this kind declares, unless
    /// `most` of them are built already. One that was rolled back, or whose build failed, is left to the operator.
    pub async fn ask_for_views(
        &self,
        kind: &KindName,
        declared: &[ViewDefinition],
        most: usize,
    ) -> Result<ViewBuildsAsked, DbError> {
        let orgs =
            sqlx::query_scalar!(r#"SELECT app.orgs_to_fold($1, $2) AS "org!""#, kind.as_str(), Json(declared) as _);
        let orgs = orgs.fetch_all(self.resolver_pool()).await?;
        let orgs: Vec<OrgId> = orgs.into_iter().map(OrgId::from_uuid).collect();
        let (mut waiting, mut under_way, mut missing) = (Vec::new(), 0, 0);
        let known = self.rebuilds_of(&orgs, Pipeline::ReadModels).await?;
        for org in orgs {
            match known.iter().find(|job| job.org == org) {
                Some(job) if job.state.is_under_way() => under_way += 1,
                Some(job) if job.state == RebuildState::Failed || job.job == RebuildJob::RollBack => continue,
                Some(_) | None => waiting.push(org),
            }
            missing += 1;
        }
        let mut asked = 0;
        for org in waiting.into_iter().take(most.saturating_sub(under_way)) {
            let outcome =
                self.ask_rebuild(BoundOrg::proven_by_resolver(org), Pipeline::ReadModels, RebuildJob::Build).await?;
            asked += usize::from(matches!(outcome, Asked::Begun(_)));
        }
        Ok(ViewBuildsAsked { missing, asked })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_decimal_is_written_in_one_way() {
        for (text, written) in [
            ("0", "0"),
            ("-0.0", "0"),
            ("1.0", "1"),
            ("100", "100"),
            ("1e2", "100"),
            ("1.50", "1.5"),
            ("-12.5e-3", "-0.0125"),
            ("0.001", "0.001"),
            ("1.25e+1", "12.5"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(decimal(text), written, "{text}");
        }
        assert_eq!(decimal("5e-324").len(), 326);
    }

    #[test]
    fn groups_are_told_apart_by_value_and_type() {
        let text = |values: Value| {
            let values: Vec<Value> = serde_json::from_value(values).unwrap();
            group_text(values.iter().map(Some))
        };
        assert_eq!(text(json!(["a", 1, true, null])), r#"["a",1,true,null]"#);
        assert_eq!(text(json!([1.0])), text(json!([1])));
        assert_ne!(text(json!(["1"])), text(json!([1])));
        assert_ne!(text(json!(["a\",\"b"])), text(json!(["a", "b"])));
        assert_eq!(text(json!(["x".repeat(MAX_TEXT + 1)])), "[null]");
        assert_eq!(group_bytes(&"x".repeat(MAX_GROUP + 1)).len(), 33);
    }

    #[test]
    fn a_bucket_starts_in_utc() {
        let start = |bucket, at: &str| {
            let start = start_of(bucket, moment(&json!(at)).unwrap()).unwrap();
            start.format(&Rfc3339).unwrap()
        };
        assert_eq!(start(Bucket::Hour, "2026-03-01T00:30:00+05:45"), "2026-02-28T18:00:00Z");
        assert_eq!(start(Bucket::Day, "2026-03-01T00:30:00+01:00"), "2026-02-28T00:00:00Z");
        assert_eq!(start(Bucket::Month, "2026-03-01T00:30:00+01:00"), "2026-02-01T00:00:00Z");
        assert_eq!(start(Bucket::Day, "1969-12-31T23:59:59Z"), "1969-12-31T00:00:00Z");
        let early = bucket_bytes(moment(&json!("1969-12-31T00:00:00Z")).unwrap());
        assert!(early < bucket_bytes(moment(&json!("1970-01-01T00:00:00Z")).unwrap()));
    }

    #[test]
    fn conditions_compare_values_of_their_own_type() {
        let holds =
            |condition: Value, data: Value| Condition::new(&serde_json::from_value(condition).unwrap()).holds(&data);
        assert!(holds(json!({"of": "/a", "eq": 1}), json!({"a": 1.0})));
        assert!(!holds(json!({"of": "/a", "eq": 1}), json!({"a": "1"})));
        assert!(!holds(json!({"of": "/a", "lt": 1}), json!({"a": null})));
        assert!(!holds(json!({"of": "/a", "lt": 1}), json!({"a": false})), "another type is not less");
        assert!(holds(json!({"of": "/a/b", "gte": 0.5, "lt": 1}), json!({"a": {"b": 0.5}})));
        assert!(!holds(json!({"of": "/a", "gte": 0.5, "lt": 1}), json!({"a": 1})));
        let since = json!({"of": "/a", "gte": "2026-01-01T00:00:00Z"});
        assert!(holds(since.clone(), json!({"a": "2026-01-01T01:00:00+01:00"})));
        assert!(!holds(since, json!({"a": "2025-12-31T23:59:59Z"})));
        assert!(holds(json!({"of": "/a", "in": ["x", "y"]}), json!({"a": "y"})));
    }
}
