//! Records: one row each, kept after they are archived.

use std::collections::BTreeMap;

use orgstream_events::{Actor, KindName, RecordEvent, RecordId, Timestamp};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    CreatedBy, DbError, Listing, Page, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{Document, Written, column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
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
    /// The stream sequence of its creation, by which records are listed.
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
    seq: i64,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    content: Option<(u64, &'a Value)>,
    status: Option<&'static str>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: RecordId, event: &'a RecordEvent, by: &'a Actor, row_version: RowVersion) {
        let (content, status) = match event {
            RecordEvent::Created(event) => {
                self.inserts.insert(id, Birth { kind: &event.kind, by, at: row_version.at, seq: row_version.seq });
                (Some((event.kind_version, &event.data)), Some("active"))
            }
            RecordEvent::Updated(event) => (Some((event.kind_version, &event.data)), None),
            RecordEvent::Archived(_) => (None, Some("archived")),
        };
        let change = self.changes.entry(id).or_insert(Change { content: None, status: None, row_version });
        change.content = content.or(change.content);
        change.status = status.or(change.status);
        change.row_version = row_version;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id,
                    version, created_at, created_seq, updated_at, seq)
                SELECT $1, old.id, old.kind, coalesce(change.kind_version, old.kind_version),
                    coalesce(change.data, old.data), coalesce(change.status, old.status), old.created_by_type,
                    old.created_by_id, change.version, old.created_at, old.created_seq, change.updated_at,
                    change.seq
                FROM unnest($2::uuid[], $3::bigint[], $4::jsonb[], $5::text[], $6::bigint[], $7::timestamptz[],
                    $8::bigint[])
                    AS change (id, kind_version, data, status, version, updated_at, seq)
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
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.content.map(|(version, _)| to_bigint(version))) as _,
                column(&changed, |(_, change)| change.content.map(|(_, data)| Json(Written(data)))) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.records", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id,
                    version, created_at, created_seq, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::jsonb[], $6::text[], $7::text[],
                    $8::text[], $9::bigint[], $10::timestamptz[], $11::bigint[], $12::timestamptz[], $13::bigint[]) AS born
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
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&inserts, |birth| birth.kind.as_str()) as _,
                column(&born, |(_, change)| change.content.map(|(version, _)| to_bigint(version))) as _,
                column(&born, |(_, change)| change.content.map(|(_, data)| Json(Written(data)))) as _,
                column(&born, |(_, change)| change.status) as _,
                column(&inserts, |birth| birth.by.actor_type.name()) as _,
                column(&inserts, |birth| birth.by.id.as_str()) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |birth| birth.at),
                &column(&inserts, |birth| birth.seq),
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

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
