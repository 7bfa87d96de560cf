//! Records: one row each, kept after they are archived.

use std::{collections::BTreeMap, ops::Bound};

use orgstream_events::{
    Actor, KindName, RecordAppended, RecordCreated, RecordEvent, RecordId, RecordReference, RecordUpdated, Timestamp,
    json,
};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, Postgres, QueryBuilder, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    CreatedBy, DbError, Listing, Page, Placed, SortKey, TenantTx,
    apply::{RowVersion, all_there},
    convert::{Document, Written, column, from_bigint, parsed, to_bigint},
    quota_uses,
    read_model::ReadModel,
    record_fields, record_references,
    views::{Changes, Folding, InView, Views},
};

/// The current state of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its id.
    pub id: RecordId,
    /// Its kind.
    pub kind: KindName,
    /// The version of the kind that it was checked against.
    pub kind_version: u64,
    /// The content.
    pub data: Value,
    /// Whether it is archived.
    pub archived: bool,
    /// The actor that created it.
    pub created_by: CreatedBy,
    /// The aggregate's version.
    pub version: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// The place of its creation, by which records are listed: the stream sequence times 1,024, and the number of the event
    /// in its commit.
    pub created_seq: u64,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

impl Placed for Record {
    type Place = u64;

    fn place(&self) -> u64 {
        self.created_seq
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "records",
    "rm.records",
    "id",
    &[
        "id",
        "kind",
        "kind_version",
        "data",
        "status",
        "created_by_type",
        "created_by_id",
        "version",
        "created_at",
        "created_seq",
        "updated_at",
        "seq",
        "bytes",
    ],
    &[("id", |id| RecordId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<RecordId, Birth<'a>>,
    changes: BTreeMap<RecordId, Change<'a>>,
}

struct Birth<'a> {
    kind: &'a KindName,
    by: &'a Actor,
    at: OffsetDateTime,
    place: i64,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    content: Option<NewContent<'a>>,
    status: Option<&'static str>,
    row_version: RowVersion,
}

#[derive(Clone, Copy)]
struct NewContent<'a> {
    kind: &'a KindName,
    kind_version: u64,
    data: &'a Value,
    references: &'a [RecordReference],
    seq: i64,
    place: i64,
}

/// A record's new content, for the tables of its parts: its fields and its references.
pub(crate) struct Content<'a> {
    pub(crate) id: RecordId,
    pub(crate) kind: &'a KindName,
    pub(crate) data: &'a Value,
    pub(crate) references: &'a [RecordReference],
    /// The place of the event that created the record; none if that was in an earlier batch.
    pub(crate) created_seq: Option<i64>,
    /// The stream sequence of the content.
    pub(crate) seq: i64,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: RecordId, event: &'a RecordEvent, by: &'a Actor, row_version: RowVersion) {
        let RowVersion { seq, place, .. } = row_version;
        let (content, status) = match event {
            RecordEvent::Created(RecordCreated {
                kind,
                kind_version,
                data,
                references,
                unique: _,
                searched: _,
                secrets: _,
            }) => {
                self.inserts.insert(id, Birth { kind, by, at: row_version.at, place });
                (Some(NewContent { kind, kind_version: *kind_version, data, references, seq, place }), Some("active"))
            }
            RecordEvent::Updated(RecordUpdated {
                kind,
                kind_version,
                data,
                references,
                unique: _,
                searched: _,
                secrets: _,
            }) => (Some(NewContent { kind, kind_version: *kind_version, data, references, seq, place }), None),
            RecordEvent::Archived(_) => (None, Some("archived")),
        };
        let change = self.changes.entry(id).or_insert(Change { content: None, status: None, row_version });
        change.content = content.or(change.content);
        change.status = status.or(change.status);
        change.row_version = row_version;
    }

    /// Takes a record that is written once, whose version is 1 whatever that of its record log is.
    pub(crate) fn append(&mut self, event: &'a RecordAppended, by: &'a Actor, row_version: RowVersion) {
        let RecordAppended { record, kind, kind_version, data, references, searched: _ } = event;
        let RowVersion { at, seq, place, .. } = row_version;
        self.inserts.insert(*record, Birth { kind, by, at, place });
        let content = Some(NewContent { kind, kind_version: *kind_version, data, references, seq, place });
        let row_version = RowVersion { version: 1, ..row_version };
        self.changes.insert(*record, Change { content, status: Some("active"), row_version });
    }

    /// Writes them. Returns whether the version folds any views.
    pub(crate) async fn write(
        self,
        connection: &mut PgConnection,
        org: Uuid,
        folding: &Folding,
        quotas: &mut quota_uses::Changeset,
    ) -> Result<Option<bool>, DbError> {
        if self.changes.is_empty() {
            return Ok(folding.folds);
        }
        let views = Views::begin(connection, org, folding, &self.born_kinds()).await?;
        if views.is_empty() {
            self.write_rows(connection, org, quotas).await?;
            return Ok(Some(false));
        }
        let before = views.before(connection, org, &self.changed_in(&views)).await?;
        let mut changes = Changes::new(&views);
        for old in &before {
            if let Some(change) = self.changes.get(&old.id()) {
                let is_in = old.active && change.status != Some("archived");
                let after = change.content.filter(|_| is_in).map(|NewContent { data, place, .. }| InView {
                    kind: &old.kind,
                    data,
                    created_at: old.created_at,
                    place,
                });
                changes.record(old.id(), old.in_view(), after);
            }
        }
        for (id, Birth { kind, at, .. }) in &self.inserts {
            let change = self.changes.get(id).filter(|change| change.status == Some("active"));
            if let Some(NewContent { data, place, .. }) = change.and_then(|change| change.content) {
                let after = InView { kind: kind.as_str(), data, created_at: *at, place };
                changes.record(*id, None, Some(after));
            }
        }
        self.write_rows(connection, org, quotas).await?;
        changes.write(connection, org).await?;
        Ok(Some(true))
    }

    /// The kinds of new records, each with the newest version of it.
    fn born_kinds(&self) -> BTreeMap<&'a KindName, u64> {
        let mut kinds = BTreeMap::new();
        for (id, birth) in &self.inserts {
            let content = self.changes.get(id).and_then(|change| change.content);
            let known: &mut u64 = kinds.entry(birth.kind).or_default();
            *known = content.map_or(0, |content| content.kind_version).max(*known);
        }
        kinds
    }

    /// The records of earlier batches that may be in views: an event that archives one does not name its kind.
    fn changed_in(&self, views: &Views) -> Vec<Uuid> {
        let changed = self.changes.iter().filter(|(id, change)| {
            let may_be = change.content.is_none_or(|content| views.has(content.kind.as_str()));
            may_be && !self.inserts.contains_key(id)
        });
        changed.map(|(id, _)| id.uuid()).collect()
    }

    async fn write_rows(
        self,
        connection: &mut PgConnection,
        org: Uuid,
        quotas: &mut quota_uses::Changeset,
    ) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        let bytes = |change: &Change<'_>| change.content.map(|content| to_bigint(json::length(content.data)));
        let is_active = |change: &&Change<'_>| change.status != Some("archived");
        let new = born.iter().map(|(_, change)| change).filter(is_active).filter_map(bytes);
        let mut stored = new.fold(0_i64, i64::saturating_add);
        let last = born.iter().chain(&changed).map(|(_, change)| change.row_version.seq).max();
        let contents: Vec<Content<'_>> = born
            .iter()
            .chain(&changed)
            .filter_map(|(id, change)| {
                let NewContent { kind, data, references, seq, .. } = change.content?;
                let created_seq = self.inserts.get(id).map(|birth| birth.place);
                Some(Content { id: *id, kind, data, references, created_seq, seq })
            })
            .collect();
        if !changed.is_empty() {
            // What they take more than before; what is archived takes nothing.
            let more = sqlx::query_scalar!(
                r#"SELECT coalesce(sum(
                    CASE WHEN change.status = 'archived' THEN 0 ELSE coalesce(change.bytes, old.bytes) END - old.bytes
                ), 0)::bigint AS "more!"
                FROM unnest($2::uuid[], $3::bigint[], $4::text[]) AS change (id, bytes, status)
                CROSS JOIN LATERAL (
                    SELECT status, bytes FROM rm.records WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                WHERE old.status = 'active'"#,
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| bytes(change)) as _,
                column(&changed, |(_, change)| change.status) as _,
            )
            .fetch_one(&mut *connection)
            .await?;
            stored = stored.saturating_add(more);
            let updated = sqlx::query!(
                "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id,
                    version, created_at, created_seq, updated_at, seq, bytes)
                SELECT $1, old.id, old.kind, coalesce(change.kind_version, old.kind_version),
                    coalesce(change.data, old.data), coalesce(change.status, old.status), old.created_by_type,
                    old.created_by_id, change.version, old.created_at, old.created_seq, change.updated_at,
                    change.seq, coalesce(change.bytes, old.bytes)
                FROM unnest($2::uuid[], $3::bigint[], $4::jsonb[], $5::text[], $6::bigint[], $7::timestamptz[],
                    $8::bigint[], $9::bigint[])
                    AS change (id, kind_version, data, status, version, updated_at, seq, bytes)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.records WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    kind_version = excluded.kind_version,
                    data = excluded.data,
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq,
                    bytes = excluded.bytes",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.content.map(|content| to_bigint(content.kind_version))) as _,
                column(&changed, |(_, change)| change.content.map(|content| Json(Written(content.data)))) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
                column(&changed, |(_, change)| bytes(change)) as _,
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.records", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id,
                    version, created_at, created_seq, updated_at, seq, bytes)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::jsonb[], $6::text[], $7::text[],
                    $8::text[], $9::bigint[], $10::timestamptz[], $11::bigint[], $12::timestamptz[], $13::bigint[],
                    $14::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    kind = excluded.kind,
                    kind_version = excluded.kind_version,
                    data = excluded.data,
                    status = excluded.status,
                    created_by_type = excluded.created_by_type,
                    created_by_id = excluded.created_by_id,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    created_seq = excluded.created_seq,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq,
                    bytes = excluded.bytes",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&inserts, |birth| birth.kind.as_str()) as _,
                column(&born, |(_, change)| change.content.map(|content| to_bigint(content.kind_version))) as _,
                column(&born, |(_, change)| change.content.map(|content| Json(Written(content.data)))) as _,
                column(&born, |(_, change)| change.status) as _,
                column(&inserts, |birth| birth.by.actor_type.name()) as _,
                column(&inserts, |birth| birth.by.id.as_str()) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |birth| birth.at),
                &column(&inserts, |birth| birth.place),
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
                &column(&born, |(_, change)| bytes(change).unwrap_or_default()),
            )
            .execute(&mut *connection)
            .await?;
        }
        if let Some(seq) = last {
            quotas.store(stored, seq);
        }
        record_fields::write(connection, org, &contents).await?;
        record_references::write(connection, org, &contents).await?;
        let changed: Vec<_> = contents.iter().filter(|content| content.created_seq.is_none()).collect();
        if !changed.is_empty() {
            sqlx::query!(
                r#"SELECT app.drop_stale_parts($1, $2, $3) AS "done: ()""#,
                org,
                &column(&changed, |content| content.id.uuid()),
                &column(&changed, |content| content.seq),
            )
            .fetch_one(connection)
            .await?;
        }
        Ok(())
    }
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    kind: String,
    kind_version: i64,
    data: Json<Document>,
    archived: bool,
    created_by_type: String,
    created_by_id: String,
    version: i64,
    created_at: OffsetDateTime,
    created_seq: i64,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for Record {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: RecordId::from_uuid(row.id),
            kind: parsed("a kind name", row.kind)?,
            kind_version: from_bigint(row.kind_version),
            data: row.data.0.0,
            archived: row.archived,
            created_by: CreatedBy::stored(row.created_by_type, row.created_by_id)?,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            created_seq: from_bigint(row.created_seq),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Runs a listing in the direction of its page. The query ends in a condition; $1 to $4 are reserved.
macro_rules! newest_first {
    ($query:tt, $tx:expr, $page:expr, $limit:expr, $with_archived:expr $(, $argument:expr)*) => {{
        let org = $tx.org().uuid();
        let (start, to_older) = $page.start();
        let rows = i64::from($limit) + 1;
        if to_older {
            sqlx::query_as!(
                Row,
                $query + " AND ($4 OR status = 'active') AND created_seq < $2 ORDER BY created_seq DESC LIMIT $3",
                org, start, rows, $with_archived $(, $argument)*
            )
            .fetch_all($tx.connection())
            .await
        } else {
            sqlx::query_as!(
                Row,
                $query + " AND ($4 OR status = 'active') AND created_seq > $2 ORDER BY created_seq LIMIT $3",
                org, start, rows, $with_archived $(, $argument)*
            )
            .fetch_all($tx.connection())
            .await
        }
    }};
}

/// Returns records of one kind, or of all; archived ones only `with_archived`.
pub async fn list(
    tx: &mut TenantTx,
    kind: Option<&KindName>,
    with_archived: bool,
    page: &Page<u64>,
    limit: u16,
) -> Result<Listing<Record>, DbError> {
    // Two queries, because each has an index of its own.
    let rows = if let Some(kind) = kind {
        newest_first!(
            r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", status = 'archived' AS "archived!", created_by_type, created_by_id,
                version, created_at, created_seq, updated_at, seq
            FROM rm.records WHERE org_id = $1 AND kind = $5"#,
            tx,
            page,
            limit,
            with_archived,
            kind.as_str()
        )
    } else {
        newest_first!(
            r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", status = 'archived' AS "archived!", created_by_type, created_by_id,
                version, created_at, created_seq, updated_at, seq
            FROM rm.records WHERE org_id = $1"#,
            tx,
            page,
            limit,
            with_archived
        )
    }?;
    Listing::new(rows, page, limit)
}

/// Returns records of several kinds that are not archived.
pub async fn list_of_kinds(
    tx: &mut TenantTx,
    kinds: &[KindName],
    page: &Page<u64>,
    limit: u16,
) -> Result<Listing<Record>, DbError> {
    let org = tx.org().uuid();
    let (start, to_older) = page.start();
    let rows = i64::from(limit) + 1;
    let kinds: Vec<String> = column(kinds, ToString::to_string);
    // Each kind by its index: few records of some kinds are not searched among many of others.
    let found = if to_older {
        sqlx::query_as!(
            Row,
            r#"SELECT record.id, record.kind, record.kind_version, record.data AS "data: Json<Document>",
                record.status = 'archived' AS "archived!", record.created_by_type, record.created_by_id, record.version,
                record.created_at, record.created_seq, record.updated_at, record.seq
            FROM (
                SELECT page.id, page.created_seq FROM unnest($4::text[]) AS wanted (kind)
                CROSS JOIN LATERAL (
                    SELECT id, created_seq FROM rm.records
                    WHERE org_id = $1 AND kind = wanted.kind AND status = 'active' AND created_seq < $2
                    ORDER BY created_seq DESC LIMIT $3
                ) AS page
                ORDER BY page.created_seq DESC LIMIT $3
            ) AS found
            JOIN rm.records AS record ON record.org_id = $1 AND record.id = found.id
            ORDER BY found.created_seq DESC"#,
            org,
            start,
            rows,
            &kinds,
        )
        .fetch_all(tx.connection())
        .await?
    } else {
        sqlx::query_as!(
            Row,
            r#"SELECT record.id, record.kind, record.kind_version, record.data AS "data: Json<Document>",
                record.status = 'archived' AS "archived!", record.created_by_type, record.created_by_id, record.version,
                record.created_at, record.created_seq, record.updated_at, record.seq
            FROM (
                SELECT page.id, page.created_seq FROM unnest($4::text[]) AS wanted (kind)
                CROSS JOIN LATERAL (
                    SELECT id, created_seq FROM rm.records
                    WHERE org_id = $1 AND kind = wanted.kind AND status = 'active' AND created_seq > $2
                    ORDER BY created_seq LIMIT $3
                ) AS page
                ORDER BY page.created_seq LIMIT $3
            ) AS found
            JOIN rm.records AS record ON record.org_id = $1 AND record.id = found.id
            ORDER BY found.created_seq"#,
            org,
            start,
            rows,
            &kinds,
        )
        .fetch_all(tx.connection())
        .await?
    };
    Listing::new(found, page, limit)
}

/// Returns one record, archived or not.
pub async fn get(tx: &mut TenantTx, id: RecordId) -> Result<Option<Record>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", status = 'archived' AS "archived!", created_by_type, created_by_id,
            version, created_at, created_seq, updated_at, seq
        FROM rm.records WHERE org_id = $1 AND id = $2"#,
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(Record::try_from).transpose()
}

/// Returns which of these records there are, and whether each is archived.
pub async fn archived_among(tx: &mut TenantTx, ids: &[RecordId]) -> Result<BTreeMap<RecordId, bool>, DbError> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        r#"SELECT found.id, found.status = 'archived' AS "archived!" FROM unnest($2::uuid[]) AS wanted (id)
        CROSS JOIN LATERAL (
            SELECT id, status FROM rm.records WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id
            ORDER BY id LIMIT 1
        ) AS found"#,
        org,
        &column(ids, |id| id.uuid()),
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    Ok(rows.into_iter().map(|row| (RecordId::from_uuid(row.id), row.archived)).collect())
}

/// Which records a listing has.
#[derive(Debug, Clone, Default)]
pub struct RecordFilter {
    /// The kind; all kinds without one. Conditions on fields and on changes need one.
    pub kind: Option<KindName>,
    /// Whether archived ones are among them.
    pub archived: Archived,
    /// The time since which they changed.
    pub updated_since: Option<Timestamp>,
    /// The conditions on their fields, all of which hold.
    pub conditions: Vec<FieldCondition>,
}

/// Whether archived records are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Archived {
    /// No.
    #[default]
    Exclude,
    /// Yes.
    Include,
    /// Nothing else is.
    Only,
}

/// A condition on one field.
#[derive(Debug, Clone)]
pub struct FieldCondition {
    /// The field.
    pub field: String,
    /// The values that it may have.
    pub values: FieldValues,
}

/// The values that a field may have.
#[derive(Debug, Clone)]
pub enum FieldValues {
    /// One of these.
    Any(Vec<SortKey>),
    /// One of this range; those of another type are in no range.
    Range(Bound<SortKey>, Bound<SortKey>),
}

/// The order of a listing. Records that are the same in it are in the order of their creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordOrder {
    /// What decides.
    pub by: OrderBy,
    /// Whether the greatest or newest come first.
    pub descending: bool,
}

/// What decides the order of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderBy {
    /// The creation.
    Created,
    /// The last change. Needs a kind.
    Updated,
    /// The value of this field; records without one are not listed. Needs a kind.
    Field(String),
}

/// A record in a listing with an order of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedRecord {
    /// The record.
    pub record: Record,
    place: RecordPlace,
}

/// The position of a record in a listing with an order of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPlace {
    /// The value that decides: the key of a field, the milliseconds of the last change, or nothing.
    pub value: Vec<u8>,
    /// The place of the record's creation.
    pub created_seq: u64,
}

impl Placed for ListedRecord {
    type Place = RecordPlace;

    fn place(&self) -> RecordPlace {
        self.place.clone()
    }
}

#[derive(FromRow)]
struct ListedRow {
    #[sqlx(flatten)]
    row: Row,
    value: Option<Vec<u8>>,
}

/// A listed row with its order, which determines its place.
struct Ordered<'a>(ListedRow, &'a OrderBy);

impl TryFrom<Ordered<'_>> for ListedRecord {
    type Error = DbError;

    fn try_from(Ordered(ListedRow { row, value }, by): Ordered<'_>) -> Result<Self, DbError> {
        let record = Record::try_from(row)?;
        let value = match by {
            OrderBy::Created => Vec::new(),
            OrderBy::Updated => record.updated_at.unix_ms().to_be_bytes().to_vec(),
            OrderBy::Field(_) => value.unwrap_or_default(),
        };
        let place = RecordPlace { value, created_seq: record.created_seq };
        Ok(Self { record, place })
    }
}

/// A statement over the records of a filter. Every value of a caller is an argument of it.
struct Statement<'a> {
    query: QueryBuilder<Postgres>,
    filter: &'a RecordFilter,
    sorted: Option<&'a str>,
}

impl<'a> Statement<'a> {
    /// Begins it. The field of the order is joined first, and every other one by its own condition: the planner chooses
    /// which of them it begins with.
    fn new(select: &str, org: Uuid, filter: &'a RecordFilter, by: &'a OrderBy) -> Self {
        let sorted = if let OrderBy::Field(field) = by { Some(field.as_str()) } else { None };
        let mut query = QueryBuilder::new(select);
        query.push(" FROM rm.records AS record");
        let mut statement = Self { query, filter, sorted };
        let others = filter.conditions.iter().filter(|condition| Some(condition.field.as_str()) != sorted).count();
        for alias in
            sorted.map(|_| "sorted".to_owned()).into_iter().chain((0..others).map(|nth| format!("field_{nth}")))
        {
            statement.query.push(format!(
                " JOIN rm.record_fields AS {alias} ON {alias}.org_id = record.org_id AND {alias}.record_id = record.id
                AND {alias}.created_seq = record.created_seq"
            ));
        }
        statement.query.push(" WHERE record.org_id = ").push_bind(org);
        statement.conditions(org);
        statement
    }

    fn conditions(&mut self, org: Uuid) {
        let filter = self.filter;
        if let Some(kind) = &filter.kind {
            self.query.push(" AND record.kind = ").push_bind(kind.as_str().to_owned());
        }
        match filter.archived {
            Archived::Exclude => self.query.push(" AND record.status = 'active'"),
            Archived::Include => &mut self.query,
            Archived::Only => self.query.push(" AND record.status = 'archived'"),
        };
        if let Some(since) = filter.updated_since {
            self.query.push(" AND record.updated_at >= ").push_bind(since.to_datetime());
        }
        if let Some(field) = self.sorted {
            self.field("sorted", org, field);
        }
        let mut others = 0;
        for condition in &filter.conditions {
            let alias = if Some(condition.field.as_str()) == self.sorted {
                "sorted".to_owned()
            } else {
                let alias = format!("field_{others}");
                self.field(&alias, org, &condition.field);
                others += 1;
                alias
            };
            self.values(&alias, &condition.values);
        }
    }

    fn field(&mut self, alias: &str, org: Uuid, field: &str) {
        let kind = self.filter.kind.as_ref().map(|kind| kind.as_str().to_owned()).unwrap_or_default();
        self.query.push(format!(" AND {alias}.org_id = ")).push_bind(org);
        self.query.push(format!(" AND {alias}.kind = ")).push_bind(kind);
        self.query.push(format!(" AND {alias}.field = ")).push_bind(field.to_owned());
    }

    fn values(&mut self, alias: &str, values: &FieldValues) {
        match values {
            FieldValues::Any(keys) => match keys.as_slice() {
                [only] => {
                    self.query.push(format!(" AND {alias}.value = ")).push_bind(only.0.clone());
                }
                keys => {
                    let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.0.clone()).collect();
                    self.query.push(format!(" AND {alias}.value = ANY (")).push_bind(keys).push(")");
                }
            },
            FieldValues::Range(low, high) => {
                let (least, most) = match (low, high) {
                    (Bound::Included(key) | Bound::Excluded(key), _)
                    | (_, Bound::Included(key) | Bound::Excluded(key)) => key.type_bounds(),
                    (Bound::Unbounded, Bound::Unbounded) => return,
                };
                let (at_low, low) = match low {
                    Bound::Included(key) => (">=", key.0.clone()),
                    Bound::Excluded(key) => (">", key.0.clone()),
                    Bound::Unbounded => (">=", least),
                };
                let (at_high, high) = match high {
                    Bound::Included(key) => ("<=", key.0.clone()),
                    Bound::Excluded(key) => ("<", key.0.clone()),
                    Bound::Unbounded => ("<", most),
                };
                self.query.push(format!(" AND {alias}.value {at_low} ")).push_bind(low);
                self.query.push(format!(" AND {alias}.value {at_high} ")).push_bind(high);
            }
        }
    }

    /// Continues at a place, and ends in the order.
    fn ordered(&mut self, order: &RecordOrder, page: &Page<RecordPlace>, rows: i64) {
        let (place, is_forward) = match page {
            Page::First => (None, true),
            Page::After(place) => (Some(place), true),
            Page::Before(place) => (Some(place), false),
        };
        let is_descending = order.descending == is_forward;
        let (compared, direction) = if is_descending { ("<", "DESC") } else { (">", "ASC") };
        let column = match &order.by {
            OrderBy::Created => None,
            OrderBy::Updated => Some("record.updated_at"),
            OrderBy::Field(_) => Some("sorted.value"),
        };
        // By the sequence in the table that has the order, whose index ends in it.
        let sequence = if matches!(order.by, OrderBy::Field(_)) { "sorted.created_seq" } else { "record.created_seq" };
        if let Some(RecordPlace { value, created_seq }) = place {
            let seq = to_bigint(*created_seq);
            match &order.by {
                OrderBy::Created => {
                    self.query.push(format!(" AND {sequence} {compared} ")).push_bind(seq);
                }
                OrderBy::Updated => {
                    let ms = value.as_slice().try_into().map(i64::from_be_bytes).unwrap_or_default();
                    let at = Timestamp::from_unix_ms(ms).to_datetime();
                    self.query.push(format!(" AND (record.updated_at, {sequence}) {compared} ("));
                    self.query.push_bind(at).push(", ").push_bind(seq).push(")");
                }
                OrderBy::Field(_) => {
                    self.query.push(format!(" AND (sorted.value, {sequence}) {compared} ("));
                    self.query.push_bind(value.clone()).push(", ").push_bind(seq).push(")");
                }
            }
        }
        self.query.push(" ORDER BY ");
        if let Some(column) = column {
            self.query.push(format!("{column} {direction}, "));
        }
        self.query.push(format!("{sequence} {direction} LIMIT ")).push_bind(rows);
    }
}

const LISTED: &str = "record.id, record.kind, record.kind_version, record.data, record.status = 'archived' AS archived,
    record.created_by_type, record.created_by_id, record.version, record.created_at, record.created_seq,
    record.updated_at, record.seq";

fn listing<'a>(
    before: &str,
    org: Uuid,
    filter: &'a RecordFilter,
    order: &'a RecordOrder,
    page: &Page<RecordPlace>,
    limit: u16,
) -> Statement<'a> {
    let value = if matches!(order.by, OrderBy::Field(_)) { "sorted.value" } else { "NULL::bytea AS value" };
    let mut statement = Statement::new(&format!("{before}SELECT {LISTED}, {value}"), org, filter, &order.by);
    statement.ordered(order, page, i64::from(limit) + 1);
    statement
}

/// Returns the records of a filter, in an order.
pub async fn find(
    tx: &mut TenantTx,
    filter: &RecordFilter,
    order: &RecordOrder,
    page: &Page<RecordPlace>,
    limit: u16,
) -> Result<Listing<ListedRecord>, DbError> {
    let mut statement = listing("", tx.org().uuid(), filter, order, page, limit);
    // There are many forms of it, and each is planned for its arguments.
    let rows: Vec<ListedRow> = statement.query.build_query_as().persistent(false).fetch_all(tx.connection()).await?;
    Listing::new(rows.into_iter().map(|row| Ordered(row, &order.by)).collect(), page, limit)
}

/// Counts the records of a filter, up to `most`.
pub async fn count(tx: &mut TenantTx, filter: &RecordFilter, by: &OrderBy, most: u32) -> Result<u64, DbError> {
    let mut statement = Statement::new("SELECT count(*) FROM (SELECT 1", tx.org().uuid(), filter, by);
    statement.query.push(" LIMIT ").push_bind(i64::from(most)).push(") AS found");
    let found: i64 = statement.query.build_query_scalar().persistent(false).fetch_one(tx.connection()).await?;
    Ok(from_bigint(found))
}

/// Returns how the database would carry out a listing, for tests of its indexes.
pub async fn plan(tx: &mut TenantTx, filter: &RecordFilter, order: &RecordOrder) -> Result<Vec<String>, DbError> {
    let mut statement = listing("EXPLAIN ", tx.org().uuid(), filter, order, &Page::First, 25);
    Ok(statement.query.build_query_scalar().persistent(false).fetch_all(tx.connection()).await?)
}
