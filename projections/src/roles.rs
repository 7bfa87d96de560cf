//! Custom roles of an organization: one row each, kept after removal.

use std::collections::BTreeMap;

use orgstream_events::{RoleEvent, RoleId, Timestamp};
use serde_json::Value;
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, from_bigint, from_json},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomRole {
    /// Its id.
    pub id: RoleId,
    /// Its human-readable name.
    pub name: String,
    /// The permissions of its holders, by name.
    pub permissions: Vec<String>,
    /// False once it was removed.
    pub active: bool,
    /// The version of all roles at this one's last change.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

impl Placed for CustomRole {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "roles",
    "rm.roles",
    "id",
    &["id", "name", "permissions", "status", "version", "created_at", "updated_at", "seq"],
    &[("id", |id| RoleId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<RoleId, OffsetDateTime>,
    changes: BTreeMap<RoleId, Change<'a>>,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    content: Option<(&'a str, &'a [String])>,
    status: Option<&'static str>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a RoleEvent, row_version: RowVersion) {
        let (id, content, status) = match event {
            RoleEvent::Defined(event) => {
                self.inserts.insert(event.role_id, row_version.at);
                (event.role_id, Some((event.name.as_str(), event.permissions.as_slice())), Some("active"))
            }
            RoleEvent::Changed(event) => {
                (event.role_id, Some((event.name.as_str(), event.permissions.as_slice())), None)
            }
            RoleEvent::Removed(event) => (event.role_id, None, Some("removed")),
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
                "INSERT INTO rm.roles (org_id, id, name, permissions, status, version, created_at, updated_at, seq)
                SELECT $1, old.id, coalesce(change.name, old.name), coalesce(change.permissions, old.permissions),
                    coalesce(change.status, old.status), change.version, old.created_at, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::text[], $4::jsonb[], $5::text[], $6::bigint[], $7::timestamptz[], $8::bigint[])
                    AS change (id, name, permissions, status, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.roles WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    name = excluded.name,
                    permissions = excluded.permissions,
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.content.map(|(name, _)| name)) as _,
                column(&changed, |(_, change)| change.content.map(|(_, permissions)| Json(permissions))) as _,
                column(&changed, |(_, change)| change.status) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.roles", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.roles (org_id, id, name, permissions, status, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::jsonb[], $5::text[], $6::bigint[],
                    $7::timestamptz[], $8::timestamptz[], $9::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    name = excluded.name,
                    permissions = excluded.permissions,
                    status = excluded.status,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&born, |(_, change)| change.content.map(|(name, _)| name)) as _,
                column(&born, |(_, change)| change.content.map(|(_, permissions)| Json(permissions))) as _,
                column(&born, |(_, change)| change.status) as _,
                &column(&born, |(_, change)| change.row_version.version),
                &inserts,
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
    name: String,
    permissions: Value,
    active: bool,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for CustomRole {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: RoleId::from_uuid(row.id),
            name: row.name,
            permissions: from_json("a role's permissions", &row.permissions)?,
            active: row.active,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns the current roles.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<CustomRole>, DbError> {
    let rows = newest_first!(
        Row,
        r#"SELECT id, name, permissions, status = 'active' AS "active!", version, created_at, updated_at, seq
        FROM rm.roles WHERE org_id = $1 AND status = 'active'"#,
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}

/// Returns one role, removed or not.
pub async fn get(tx: &mut TenantTx, id: RoleId) -> Result<Option<CustomRole>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, name, permissions, status = 'active' AS "active!", version, created_at, updated_at, seq
        FROM rm.roles WHERE org_id = $1 AND id = $2"#,
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(CustomRole::try_from).transpose()
}

/// Returns the version of all roles together: of the last change to any.
pub async fn version(tx: &mut TenantTx) -> Result<u64, DbError> {
    let org = tx.org().uuid();
    let version =
        sqlx::query_scalar!(r#"SELECT coalesce(max(version), 0) AS "version!" FROM rm.roles WHERE org_id = $1"#, org);
    Ok(from_bigint(version.fetch_one(tx.connection()).await?))
}
