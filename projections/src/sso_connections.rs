//! Connections of an organization to issuers of its own: one row each, kept after removal.

use std::collections::BTreeMap;

use orgstream_events::{ConnectionId, SsoConnectionAdded, SsoConnectionEvent, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, from_bigint},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsoConnection {
    /// Its id.
    pub id: ConnectionId,
    /// Its human-readable name.
    pub name: String,
    /// The `iss` claim of the issuer's tokens.
    pub issuer: String,
    /// The required `aud` claim.
    pub audience: String,
    /// Whether a user that signs in by it becomes a member, if the organization allows that.
    pub jit: bool,
    /// Whether users that choose no connection are sent to this one.
    pub is_default: bool,
    /// False once it was removed.
    pub active: bool,
    /// The version of all connections at this one's last change.
    pub version: u64,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

impl Placed for SsoConnection {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "sso_connections",
    "rm.sso_connections",
    "id",
    &[
        "id",
        "name",
        "issuer",
        "audience",
        "jit",
        "status",
        "default_since",
        "version",
        "created_at",
        "updated_at",
        "seq",
    ],
    &[("id", |id| ConnectionId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<ConnectionId, (&'a SsoConnectionAdded, OffsetDateTime)>,
    changes: BTreeMap<ConnectionId, Change>,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change {
    status: Option<&'static str>,
    default_since: Option<i64>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a SsoConnectionEvent, row_version: RowVersion) {
        let (id, status, default_since) = match event {
            SsoConnectionEvent::Added(added) => {
                self.inserts.insert(added.connection_id, (added, row_version.at));
                (added.connection_id, Some("active"), None)
            }
            SsoConnectionEvent::DefaultChanged(event) => (event.connection_id, None, Some(row_version.version)),
            SsoConnectionEvent::Removed(event) => (event.connection_id, Some("removed"), None),
        };
        let change = self.changes.entry(id).or_insert(Change { status: None, default_since: None, row_version });
        change.status = status.or(change.status);
        change.default_since = default_since.or(change.default_since);
        change.row_version = row_version;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.sso_connections
                    (org_id, id, name, issuer, audience, jit, status, default_since, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.name, old.issuer, old.audience, old.jit, coalesce(change.status, old.status),
                    coalesce(change.default_since, old.default_since), change.version, old.created_at,
                    change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[], $7::bigint[])
                    AS change (id, status, default_since, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.sso_connections WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    status = excluded.status,
                    default_since = excluded.default_since,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.status) as _,
                column(&changed, |(_, change)| change.default_since) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.sso_connections", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.sso_connections
                    (org_id, id, name, issuer, audience, jit, status, default_since, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[],
                    $8::bigint[], $9::bigint[], $10::timestamptz[], $11::timestamptz[], $12::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    name = excluded.name,
                    issuer = excluded.issuer,
                    audience = excluded.audience,
                    jit = excluded.jit,
                    status = excluded.status,
                    default_since = excluded.default_since,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&inserts, |(added, _)| added.name.as_str()) as _,
                column(&inserts, |(added, _)| added.issuer.as_str()) as _,
                column(&inserts, |(added, _)| added.audience.as_str()) as _,
                &column(&inserts, |(added, _)| added.jit),
                column(&born, |(_, change)| change.status) as _,
                &column(&born, |(_, change)| change.default_since.unwrap_or_default()),
                &column(&born, |(_, change)| change.row_version.version),
                &column(&inserts, |(_, at)| *at),
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
    issuer: String,
    audience: String,
    jit: bool,
    is_default: bool,
    active: bool,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for SsoConnection {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: ConnectionId::from_uuid(row.id),
            name: row.name,
            issuer: row.issuer,
            audience: row.audience,
            jit: row.jit,
            is_default: row.is_default,
            active: row.active,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns the current connections.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<SsoConnection>, DbError> {
    let rows = newest_first!(
        Row,
        r#"SELECT id, name, issuer, audience, jit, status = 'active' AS "active!", version, created_at, updated_at, seq,
            default_since > 0 AND default_since = (
                SELECT max(other.default_since) FROM rm.sso_connections AS other
                WHERE other.org_id = $1
            ) AS "is_default!"
        FROM rm.sso_connections WHERE org_id = $1 AND status = 'active'"#,
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}

/// Returns one connection, removed or not.
pub async fn get(tx: &mut TenantTx, id: ConnectionId) -> Result<Option<SsoConnection>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, name, issuer, audience, jit, status = 'active' AS "active!", version, created_at, updated_at, seq,
            status = 'active' AND default_since > 0 AND default_since = (
                SELECT max(other.default_since) FROM rm.sso_connections AS other
                WHERE other.org_id = $1
            ) AS "is_default!"
        FROM rm.sso_connections WHERE org_id = $1 AND id = $2"#,
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(SsoConnection::try_from).transpose()
}

/// Returns the connections to one issuer: as many as the organization has audiences there.
pub async fn of_issuer(tx: &mut TenantTx, issuer: &str) -> Result<Vec<SsoConnection>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, name, issuer, audience, jit, true AS "active!", version, created_at, updated_at, seq,
            false AS "is_default!"
        FROM rm.sso_connections WHERE org_id = $1 AND issuer = $2 AND status = 'active' ORDER BY id"#,
        org,
        issuer,
    );
    rows.fetch_all(tx.connection()).await?.into_iter().map(SsoConnection::try_from).collect()
}

/// Returns the version of all connections together: of the last change to any.
pub async fn version(tx: &mut TenantTx) -> Result<u64, DbError> {
    let org = tx.org().uuid();
    let version = sqlx::query_scalar!(
        r#"SELECT coalesce(max(version), 0) AS "version!" FROM rm.sso_connections WHERE org_id = $1"#,
        org
    );
    Ok(from_bigint(version.fetch_one(tx.connection()).await?))
}
