//! Record kinds: rows of the platform's own org, which are for all, and of organizations, which are for themselves.

use std::collections::BTreeMap;

use orgstream_events::{KindDefinition, KindEvent, KindName, Timestamp, ViewDefinition, Visibility};
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    BoundOrg, Database, DbError, TenantTx,
    apply::{RowVersion, all_there},
    convert::{Document, Written, column, from_bigint, from_wire, parsed, wire_name},
    read_model::ReadModel,
};

/// The current state of a kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Kind {
    /// Its name.
    pub name: KindName,
    /// Its definition.
    pub definition: KindDefinition,
    /// Whether new records of it are rejected.
    pub retired: bool,
    /// The aggregate's version: the kind version that records name.
    pub version: u64,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

pub(crate) const TABLE: ReadModel = ReadModel::by_text(
    "kinds",
    "rm.kinds",
    "name COLLATE \"C\"",
    &[
        "name",
        "title",
        "schema",
        "visibility",
        "cost",
        "views",
        "append_only",
        "status",
        "version",
        "created_at",
        "updated_at",
        "seq",
    ],
);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<&'a KindName, OffsetDateTime>,
    changes: BTreeMap<&'a KindName, Change<'a>>,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    definition: Option<&'a KindDefinition>,
    status: Option<&'static str>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, name: &'a KindName, event: &'a KindEvent, row_version: RowVersion) {
        let (definition, status) = match event {
            KindEvent::Registered(event) => {
                self.inserts.insert(name, row_version.at);
                (Some(&event.definition), Some("active"))
            }
            KindEvent::Changed(event) => (Some(&event.definition), None),
            KindEvent::Retired(_) => (None, Some("retired")),
            KindEvent::Restored(_) => (None, Some("active")),
        };
        let change = self.changes.entry(name).or_insert(Change { definition: None, status: None, row_version });
        change.definition = definition.or(change.definition);
        change.status = status.or(change.status);
        change.row_version = row_version;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(name, _)| self.inserts.contains_key(name));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.kinds (org_id, name, title, schema, visibility, cost, append_only, views, status, version,
                    created_at, updated_at, seq)
                SELECT $1, old.name, coalesce(change.title, old.title), coalesce(change.schema, old.schema),
                    coalesce(change.visibility, old.visibility), coalesce(change.cost, old.cost),
                    coalesce(change.append_only, old.append_only),
                    coalesce(CASE WHEN old.views IS NULL THEN nullif(change.views, '[]') ELSE change.views END, old.views),
                    coalesce(change.status, old.status), change.version, old.created_at, change.updated_at, change.seq
                FROM unnest($2::text[], $3::text[], $4::jsonb[], $5::text[], $6::bigint[], $7::boolean[], $8::text[],
                    $9::bigint[], $10::timestamptz[], $11::bigint[], $12::jsonb[])
                    AS change (name, title, schema, visibility, cost, append_only, status, version, updated_at, seq, views)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.kinds WHERE org_id = $1 AND name BETWEEN change.name AND change.name
                    ORDER BY name LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, name) DO UPDATE SET
                    title = excluded.title,
                    schema = excluded.schema,
                    visibility = excluded.visibility,
                    cost = excluded.cost,
                    views = excluded.views,
                    append_only = excluded.append_only,
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                column(&changed, |(name, _)| name.as_str()) as _,
                column(&changed, |(_, change)| change.definition.map(|kind| kind.title.as_str())) as _,
                column(&changed, |(_, change)| change.definition.map(|kind| Json(Written(&kind.schema)))) as _,
                column(&changed, |(_, change)| change.definition.map(|kind| wire_name(&kind.visibility))) as _,
                column(&changed, |(_, change)| change.definition.map(|kind| i64::from(kind.cost))) as _,
                column(&changed, |(_, change)| change.definition.map(|kind| kind.append_only)) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
                column(&changed, |(_, change)| change.definition.map(|kind| Json(&kind.views))) as _,
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.kinds", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.kinds (org_id, name, title, schema, visibility, cost, append_only, status, version,
                    created_at, updated_at, seq, views)
                SELECT $1, born.name, born.title, born.schema, born.visibility, born.cost, born.append_only, born.status,
                    born.version, born.created_at, born.updated_at, born.seq, nullif(born.views, '[]')
                FROM unnest($2::text[], $3::text[], $4::jsonb[], $5::text[], $6::bigint[], $7::boolean[], $8::text[],
                    $9::bigint[], $10::timestamptz[], $11::timestamptz[], $12::bigint[], $13::jsonb[])
                    AS born (name, title, schema, visibility, cost, append_only, status, version, created_at, updated_at,
                        seq, views)
                ON CONFLICT (org_id, rm_version, name) DO UPDATE SET
                    title = excluded.title,
                    schema = excluded.schema,
                    visibility = excluded.visibility,
                    cost = excluded.cost,
                    views = excluded.views,
                    append_only = excluded.append_only,
                    status = excluded.status,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                column(&born, |(name, _)| name.as_str()) as _,
                column(&born, |(_, change)| change.definition.map(|kind| kind.title.as_str())) as _,
                column(&born, |(_, change)| change.definition.map(|kind| Json(Written(&kind.schema)))) as _,
                column(&born, |(_, change)| change.definition.map(|kind| wire_name(&kind.visibility))) as _,
                column(&born, |(_, change)| change.definition.map(|kind| i64::from(kind.cost))) as _,
                column(&born, |(_, change)| change.definition.map(|kind| kind.append_only)) as _,
                column(&born, |(_, change)| change.status) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &inserts,
                &column(&born, |(_, change)| change.row_version.at),
                &column(&born, |(_, change)| change.row_version.seq),
                column(&born, |(_, change)| change.definition.map(|kind| Json(&kind.views))) as _,
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

struct Row {
    name: String,
    title: String,
    schema: Json<Document>,
    visibility: String,
    cost: i64,
    views: Option<Json<Vec<ViewDefinition>>>,
    append_only: bool,
    retired: bool,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for Kind {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            name: parsed("a kind name", row.name)?,
            definition: KindDefinition {
                title: row.title,
                schema: row.schema.0.0,
                visibility: from_wire("a kind's visibility", row.visibility)?,
                cost: u32::try_from(row.cost).unwrap_or(u32::MAX),
                views: row.views.map(|views| views.0).unwrap_or_default(),
                append_only: row.append_only,
            },
            retired: row.retired,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns all kinds, by name. There are few.
pub async fn list(tx: &mut TenantTx) -> Result<Vec<Kind>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT name, title, schema AS "schema: Json<Document>", visibility, cost, append_only,
            views AS "views: Json<Vec<ViewDefinition>>", status = 'retired' AS "retired!", version, created_at,
            updated_at, seq
        FROM rm.kinds WHERE org_id = $1 ORDER BY name"#,
        org,
    );
    rows.fetch_all(tx.connection()).await?.into_iter().map(Kind::try_from).collect()
}

/// Returns the kinds that declare views or once did, with those that they declare.
pub async fn with_views(tx: &mut TenantTx) -> Result<BTreeMap<KindName, Vec<ViewDefinition>>, DbError> {
    let rows = sqlx::query!(
        r#"SELECT name, views AS "views!: Json<Vec<ViewDefinition>>" FROM rm.kinds WHERE org_id = $1 AND views IS NOT NULL"#,
        tx.org().uuid(),
    );
    let rows = rows.fetch_all(tx.connection()).await?.into_iter();
    rows.map(|row| Ok((parsed("a kind name", row.name)?, row.views.0))).collect()
}

/// Returns one kind.
pub async fn get(tx: &mut TenantTx, name: &KindName) -> Result<Option<Kind>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT name, title, schema AS "schema: Json<Document>", visibility, cost, append_only,
            views AS "views: Json<Vec<ViewDefinition>>", status = 'retired' AS "retired!", version, created_at,
            updated_at, seq
        FROM rm.kinds WHERE org_id = $1 AND name = $2"#,
        org,
        name.as_str(),
    );
    row.fetch_optional(tx.connection()).await?.map(Kind::try_from).transpose()
}

/// A kind of the catalog, without its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogKind {
    /// Its name.
    pub name: KindName,
    /// The display name.
    pub title: String,
    /// The visibility of what is published of it.
    pub visibility: Visibility,
}

/// Returns the kinds of which something may be published, by name: all that are not private.
pub async fn of_catalog(tx: &mut TenantTx) -> Result<Vec<CatalogKind>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        "SELECT name, title, visibility FROM rm.kinds WHERE org_id = $1 AND visibility <> 'private' ORDER BY name",
        org,
    );
    let rows = rows.fetch_all(tx.connection()).await?;
    let kind = |name, title, visibility| {
        let (name, visibility) = (parsed("a kind name", name)?, from_wire("a kind's visibility", visibility)?);
        Ok(CatalogKind { name, title, visibility })
    };
    rows.into_iter().map(|row| kind(row.name, row.title, row.visibility)).collect()
}

/// The usage of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The number of organizations that have records of it.
    pub organizations: u64,
    /// The number of their records of it, archived ones as well.
    pub records: u64,
    /// Whether the counts are complete: counting stops at a thousand organizations, and at a hundred thousand records
    /// in one.
    pub is_all: bool,
}

impl Database {
    /// Counts the usage of a kind that `org` defines: of the platform's over all organizations, numbers and no rows of any of them.
    pub async fn reach_of_kind(&self, org: BoundOrg, name: &KindName) -> Result<Reach, DbError> {
        const ORGANIZATIONS: usize = 1_000;
        const RECORDS: i64 = 100_000;
        let orgs = if name.is_own() { vec![org.org()] } else { self.orgs_of_kind(name).await? };
        let mut reach = Reach { organizations: 0, records: 0, is_all: orgs.len() <= ORGANIZATIONS };
        for org in orgs.into_iter().take(ORGANIZATIONS) {
            let mut tx = self.read(BoundOrg::proven_by_resolver(org)).await?;
            let count = sqlx::query_scalar!(
                r#"SELECT count(*) AS "count!" FROM (
                    SELECT FROM rm.records WHERE org_id = $1 AND kind = $2 LIMIT $3
                ) AS record"#,
                org.uuid(),
                name.as_str(),
                RECORDS,
            );
            let count = count.fetch_one(tx.connection()).await?;
            reach.organizations += u64::from(count > 0);
            reach.records += from_bigint(count);
            reach.is_all &= count < RECORDS;
        }
        Ok(reach)
    }
}
