//! Items of the catalog: one row each, with the version that was published last, kept when it is withdrawn. Every version has
//! a row of its own in `rm.catalog_versions`.
//!
//! A [`Published`] view reads them with a login for which nothing else is there: `Database::read_published` opens it.

use std::collections::BTreeMap;

use orgstream_events::{CatalogItemEvent, CatalogItemPublished, KindName, RecordId, Timestamp};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{Document, Written, column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
};

/// A consistent view of what is published, and of nothing else.
#[derive(Debug)]
pub struct Published(TenantTx);

impl Published {
    pub(crate) fn new(tx: TenantTx) -> Self {
        Self(tx)
    }
}

/// The current state of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogItem {
    /// Its id: of the platform's record that is its draft.
    pub id: RecordId,
    /// Its kind.
    pub kind: KindName,
    /// The version of the kind that its content was checked against.
    pub kind_version: u64,
    /// The content of the version that was published last.
    pub data: Value,
    /// That version.
    pub item_version: u64,
    /// Whether it is withdrawn.
    pub withdrawn: bool,
    /// The aggregate's version.
    pub version: u64,
    /// When it was first published.
    pub created_at: Timestamp,
    /// The stream sequence of its first publication, by which items are listed.
    pub created_seq: u64,
    /// When it was last published or withdrawn.
    pub updated_at: Timestamp,
}

impl Placed for CatalogItem {
    type Place = u64;

    fn place(&self) -> u64 {
        self.created_seq
    }
}

/// One version of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogVersion {
    /// The item.
    pub id: RecordId,
    /// The version, counted from 1.
    pub item_version: u64,
    /// The kind.
    pub kind: KindName,
    /// The version of the kind that the content was checked against.
    pub kind_version: u64,
    /// The content.
    pub data: Value,
    /// When it was published.
    pub published_at: Timestamp,
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "catalog_items",
    "rm.catalog_items",
    "id",
    &[
        "id",
        "kind",
        "kind_version",
        "data",
        "item_version",
        "shown_since",
        "status",
        "version",
        "created_at",
        "created_seq",
        "updated_at",
        "seq",
    ],
    &[("id", |id| RecordId::from_uuid(id).to_string())],
);

pub(crate) const VERSIONS: ReadModel = ReadModel::by_bytes(
    "catalog_versions",
    "rm.catalog_versions",
    "key",
    &["key", "id", "item_version", "kind", "kind_version", "data", "published_at", "seq"],
    &[("id", |id| RecordId::from_uuid(id).to_string())],
)
.without(&["key"]);

/// A batch's changes to the rows: new versions, first publications, and the last state of every changed item.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    versions: Vec<(RecordId, &'a CatalogItemPublished, RowVersion)>,
    inserts: BTreeMap<RecordId, RowVersion>,
    changes: BTreeMap<RecordId, Change<'a>>,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    content: Option<&'a CatalogItemPublished>,
    status: &'static str,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: RecordId, event: &'a CatalogItemEvent, row_version: RowVersion) {
        let (content, status) = match event {
            CatalogItemEvent::Published(event) => {
                self.versions.push((id, event, row_version));
                if event.item_version == 1 {
                    self.inserts.insert(id, row_version);
                }
                (Some(event), "published")
            }
            CatalogItemEvent::Withdrawn(_) => (None, "withdrawn"),
        };
        let change = self.changes.entry(id).or_insert(Change { content: None, status, row_version });
        change.content = content.or(change.content);
        (change.status, change.row_version) = (status, row_version);
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if !self.versions.is_empty() {
            let rows = &self.versions;
            let keys: Vec<Vec<u8>> = column(rows, |(id, event, _)| key_of(*id, event.item_version));
            sqlx::query!(
                "INSERT INTO rm.catalog_versions (org_id, key, id, item_version, kind, kind_version, data, published_at, seq)
                SELECT $1, item.* FROM unnest($2::bytea[], $3::uuid[], $4::bigint[], $5::text[], $6::bigint[], $7::jsonb[],
                    $8::timestamptz[], $9::bigint[]) AS item
                ON CONFLICT (org_id, rm_version, key) DO UPDATE SET
                    kind = excluded.kind,
                    kind_version = excluded.kind_version,
                    data = excluded.data,
                    published_at = excluded.published_at,
                    seq = excluded.seq",
                org,
                column(&keys, Vec::as_slice) as _,
                &column(rows, |(id, ..)| id.uuid()),
                &column(rows, |(_, event, _)| to_bigint(event.item_version)),
                column(rows, |(_, event, _)| event.kind.as_str()) as _,
                &column(rows, |(_, event, _)| to_bigint(event.kind_version)),
                column(rows, |(_, event, _)| Json(Written(&event.data))) as _,
                &column(rows, |(.., row_version)| row_version.at),
                &column(rows, |(.., row_version)| row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
        }
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.catalog_items (org_id, id, kind, kind_version, data, item_version, shown_since, status,
                    version, created_at, created_seq, updated_at, seq)
                SELECT $1, old.id, old.kind, coalesce(change.kind_version, old.kind_version),
                    coalesce(change.data, old.data), coalesce(change.item_version, old.item_version),
                    coalesce(change.shown_since, old.shown_since), change.status, change.version, old.created_at,
                    old.created_seq, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::bigint[], $4::jsonb[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[],
                    $9::timestamptz[], $10::bigint[])
                    AS change (id, kind_version, data, item_version, shown_since, status, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.catalog_items WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    kind_version = excluded.kind_version,
                    data = excluded.data,
                    item_version = excluded.item_version,
                    shown_since = excluded.shown_since,
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.content.map(|content| to_bigint(content.kind_version))) as _,
                column(&changed, |(_, change)| change.content.map(|content| Json(Written(&content.data)))) as _,
                column(&changed, |(_, change)| change.content.map(|content| to_bigint(content.item_version))) as _,
                column(&changed, |(_, change)| change.content.map(|content| to_bigint(content.shown_since))) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.catalog_items", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.catalog_items (org_id, id, kind, kind_version, data, item_version, shown_since, status,
                    version, created_at, created_seq, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::jsonb[], $6::bigint[], $7::bigint[],
                    $8::text[], $9::bigint[], $10::timestamptz[], $11::bigint[], $12::timestamptz[], $13::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    kind = excluded.kind,
                    kind_version = excluded.kind_version,
                    data = excluded.data,
                    item_version = excluded.item_version,
                    shown_since = excluded.shown_since,
                    status = excluded.status,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    created_seq = excluded.created_seq,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&born, |(_, change)| change.content.map(|content| content.kind.as_str())) as _,
                column(&born, |(_, change)| change.content.map(|content| to_bigint(content.kind_version))) as _,
                column(&born, |(_, change)| change.content.map(|content| Json(Written(&content.data)))) as _,
                column(&born, |(_, change)| change.content.map(|content| to_bigint(content.item_version))) as _,
                column(&born, |(_, change)| change.content.map(|content| to_bigint(content.shown_since))) as _,
                column(&born, |(_, change)| change.status) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |first| first.at),
                &column(&inserts, |first| first.seq),
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

/// The key of a version: the item's id, then the version.
fn key_of(id: RecordId, item_version: u64) -> Vec<u8> {
    [&id.uuid().as_bytes()[..], &item_version.to_be_bytes()].concat()
}

#[derive(FromRow)]
struct Row {
    id: Uuid,
    kind: String,
    kind_version: i64,
    data: Json<Document>,
    item_version: i64,
    withdrawn: bool,
    version: i64,
    created_at: OffsetDateTime,
    created_seq: i64,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for CatalogItem {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: RecordId::from_uuid(row.id),
            kind: parsed("a kind name", row.kind)?,
            kind_version: from_bigint(row.kind_version),
            data: row.data.0.0,
            item_version: from_bigint(row.item_version),
            withdrawn: row.withdrawn,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            created_seq: from_bigint(row.created_seq),
            updated_at: row.updated_at.into(),
        })
    }
}

/// Returns how many items of each kind are published.
pub async fn counts(Published(tx): &mut Published) -> Result<BTreeMap<KindName, u64>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        r#"SELECT kind, count(*) AS "count!" FROM rm.catalog_items WHERE org_id = $1 AND status = 'published' GROUP BY kind"#,
        org,
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    rows.into_iter().map(|row| Ok((parsed("a kind name", row.kind)?, from_bigint(row.count)))).collect()
}

/// Which of the published items a listing has.
#[derive(Debug, Clone, Default)]
pub struct CatalogFilter {
    /// Of these kinds.
    pub kinds: Vec<KindName>,
    /// Only these, if not all.
    pub only: Option<Vec<RecordId>>,
    /// Not these.
    pub without: Vec<RecordId>,
}

/// Returns published items, those that were published first last.
pub async fn list(
    Published(tx): &mut Published,
    filter: &CatalogFilter,
    page: &Page<u64>,
    limit: u16,
) -> Result<Listing<CatalogItem>, DbError> {
    let org = tx.org().uuid();
    let (start, to_older) = page.start();
    let rows = i64::from(limit) + 1;
    let kinds: Vec<String> = column(&filter.kinds, ToString::to_string);
    let only = filter.only.as_ref().map(|only| column(only, |id| id.uuid()));
    let without = column(&filter.without, |id| id.uuid());
    // Each kind by its index: the newest of one are not searched among those of all others.
    let found = if to_older {
        sqlx::query_as!(
            Row,
            r#"SELECT item.id, item.kind, item.kind_version, item.data AS "data: Json<Document>", item.item_version,
                item.status = 'withdrawn' AS "withdrawn!", item.version, item.created_at, item.created_seq, item.updated_at
            FROM (
                SELECT page.id, page.created_seq FROM unnest($4::text[]) AS wanted (kind)
                CROSS JOIN LATERAL (
                    SELECT id, created_seq FROM rm.catalog_items
                    WHERE org_id = $1 AND kind = wanted.kind AND status = 'published' AND created_seq < $2
                        AND ($5::uuid[] IS NULL OR id = ANY ($5)) AND NOT id = ANY ($6::uuid[])
                    ORDER BY created_seq DESC LIMIT $3
                ) AS page
                ORDER BY page.created_seq DESC LIMIT $3
            ) AS found
            JOIN rm.catalog_items AS item ON item.org_id = $1 AND item.id = found.id
            ORDER BY found.created_seq DESC"#,
            org,
            start,
            rows,
            &kinds,
            only.as_deref(),
            &without,
        )
        .fetch_all(tx.connection())
        .await?
    } else {
        sqlx::query_as!(
            Row,
            r#"SELECT item.id, item.kind, item.kind_version, item.data AS "data: Json<Document>", item.item_version,
                item.status = 'withdrawn' AS "withdrawn!", item.version, item.created_at, item.created_seq, item.updated_at
            FROM (
                SELECT page.id, page.created_seq FROM unnest($4::text[]) AS wanted (kind)
                CROSS JOIN LATERAL (
                    SELECT id, created_seq FROM rm.catalog_items
                    WHERE org_id = $1 AND kind = wanted.kind AND status = 'published' AND created_seq > $2
                        AND ($5::uuid[] IS NULL OR id = ANY ($5)) AND NOT id = ANY ($6::uuid[])
                    ORDER BY created_seq LIMIT $3
                ) AS page
                ORDER BY page.created_seq LIMIT $3
            ) AS found
            JOIN rm.catalog_items AS item ON item.org_id = $1 AND item.id = found.id
            ORDER BY found.created_seq"#,
            org,
            start,
            rows,
            &kinds,
            only.as_deref(),
            &without,
        )
        .fetch_all(tx.connection())
        .await?
    };
    Listing::new(found, page, limit)
}

/// Returns one published item.
pub async fn get(Published(tx): &mut Published, id: RecordId) -> Result<Option<CatalogItem>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", item_version, status = 'withdrawn' AS "withdrawn!",
            version, created_at, created_seq, updated_at
        FROM rm.catalog_items WHERE org_id = $1 AND id = $2 AND status = 'published'"#,
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(CatalogItem::try_from).transpose()
}

struct VersionRow {
    id: Uuid,
    item_version: i64,
    kind: String,
    kind_version: i64,
    data: Json<Document>,
    published_at: OffsetDateTime,
}

impl TryFrom<VersionRow> for CatalogVersion {
    type Error = DbError;

    fn try_from(row: VersionRow) -> Result<Self, DbError> {
        Ok(Self {
            id: RecordId::from_uuid(row.id),
            item_version: from_bigint(row.item_version),
            kind: parsed("a kind name", row.kind)?,
            kind_version: from_bigint(row.kind_version),
            data: row.data.0.0,
            published_at: row.published_at.into(),
        })
    }
}

/// Returns one version of a published item, unless the item was withdrawn since.
pub async fn version(
    Published(tx): &mut Published,
    id: RecordId,
    item_version: u64,
) -> Result<Option<CatalogVersion>, DbError> {
    let (org, key) = (tx.org().uuid(), key_of(id, item_version));
    let row = sqlx::query_as!(
        VersionRow,
        r#"SELECT id, item_version, kind, kind_version, data AS "data: Json<Document>", published_at
        FROM rm.catalog_versions WHERE org_id = $1 AND key = $2"#,
        org,
        &key,
    );
    row.fetch_optional(tx.connection()).await?.map(CatalogVersion::try_from).transpose()
}

/// Returns all items, withdrawn ones as well, for the platform's operators.
pub async fn list_all(tx: &mut TenantTx, page: &Page<u64>, limit: u16) -> Result<Listing<CatalogItem>, DbError> {
    let org = tx.org().uuid();
    let (start, to_older) = page.start();
    let rows = i64::from(limit) + 1;
    let found = if to_older {
        sqlx::query_as!(
            Row,
            r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", item_version,
                status = 'withdrawn' AS "withdrawn!", version, created_at, created_seq, updated_at
            FROM rm.catalog_items WHERE org_id = $1 AND created_seq < $2 ORDER BY created_seq DESC LIMIT $3"#,
            org,
            start,
            rows,
        )
        .fetch_all(tx.connection())
        .await?
    } else {
        sqlx::query_as!(
            Row,
            r#"SELECT id, kind, kind_version, data AS "data: Json<Document>", item_version,
                status = 'withdrawn' AS "withdrawn!", version, created_at, created_seq, updated_at
            FROM rm.catalog_items WHERE org_id = $1 AND created_seq > $2 ORDER BY created_seq LIMIT $3"#,
            org,
            start,
            rows,
        )
        .fetch_all(tx.connection())
        .await?
    };
    Listing::new(found, page, limit)
}

/// Returns which of these items there are, and whether each is withdrawn.
pub async fn withdrawn_among(tx: &mut TenantTx, ids: &[RecordId]) -> Result<BTreeMap<RecordId, bool>, DbError> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        r#"SELECT found.id, found.status = 'withdrawn' AS "withdrawn!" FROM unnest($2::uuid[]) AS wanted (id)
        CROSS JOIN LATERAL (
            SELECT id, status FROM rm.catalog_items WHERE org_id = $1 AND id BETWEEN wanted.id AND wanted.id
            ORDER BY id LIMIT 1
        ) AS found"#,
        org,
        &column(ids, |id| id.uuid()),
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    Ok(rows.into_iter().map(|row| (RecordId::from_uuid(row.id), row.withdrawn)).collect())
}
