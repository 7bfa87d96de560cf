//! API keys: one row per key, kept when it is revoked.

use std::collections::BTreeMap;

use orgstream_events::{
    Actor, ApiKeyEvent, ApiKeyIssued, Fingerprint, KeyEnvironment, KeyId, KeyPublicId, Role, Timestamp,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    CreatedBy, DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{Stamp, all_there},
    convert::{column, fingerprint, from_bigint, from_wire, parsed, wire_name},
    members, organizations,
    page::newest_first,
};

/// A key as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Which.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// The part of the token that names it.
    pub public_id: KeyPublicId,
    /// What the secret is compared with.
    pub secret_mac: Fingerprint,
    /// The last four characters of the token.
    pub last4: String,
    /// What the bearer may do.
    pub role: Role,
    /// Live or test.
    pub environment: KeyEnvironment,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Who issued it.
    pub created_by: CreatedBy,
    /// The aggregate's version.
    pub version: u64,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

impl Placed for ApiKey {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

/// What a slice does to the rows: births, and the last state of everything that changed.
#[derive(Default)]
pub(crate) struct Fold<'a> {
    births: BTreeMap<KeyId, Birth<'a>>,
    changes: BTreeMap<KeyId, Change>,
}

struct Birth<'a> {
    issued: &'a ApiKeyIssued,
    by: &'a Actor,
    at: OffsetDateTime,
}

/// What is None stays as it is.
struct Change {
    revoked_at: Option<OffsetDateTime>,
    stamp: Stamp,
}

impl<'a> Fold<'a> {
    pub(crate) fn apply(&mut self, id: KeyId, event: &'a ApiKeyEvent, by: &'a Actor, stamp: Stamp) {
        let revoked_at = match event {
            ApiKeyEvent::Issued(issued) => {
                self.births.insert(id, Birth { issued, by, at: stamp.at });
                None
            }
            ApiKeyEvent::Revoked(_) => Some(stamp.at),
        };
        let change = self.changes.entry(id).or_insert(Change { revoked_at: None, stamp });
        change.revoked_at = revoked_at.or(change.revoked_at);
        change.stamp = stamp;
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.births.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.api_keys (org_id, id, name, public_id, secret_mac, last4, role, environment, expires_at,
                    revoked_at, created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.name, old.public_id, old.secret_mac, old.last4, old.role, old.environment,
                    old.expires_at, coalesce(change.revoked_at, old.revoked_at), old.created_by_type, old.created_by_id,
                    change.version, old.created_at, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::bigint[])
                    AS change (id, revoked_at, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.api_keys WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    revoked_at = excluded.revoked_at,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.revoked_at) as _,
                &column(&changed, |(_, change)| change.stamp.version),
                &column(&changed, |(_, change)| change.stamp.at),
                &column(&changed, |(_, change)| change.stamp.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.api_keys", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let births: Vec<_> = self.births.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.api_keys (org_id, id, name, public_id, secret_mac, last4, role, environment, expires_at,
                    revoked_at, created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[],
                    $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[], $13::bigint[],
                    $14::timestamptz[], $15::timestamptz[], $16::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    name = excluded.name,
                    public_id = excluded.public_id,
                    secret_mac = excluded.secret_mac,
                    last4 = excluded.last4,
                    role = excluded.role,
                    environment = excluded.environment,
                    expires_at = excluded.expires_at,
                    revoked_at = excluded.revoked_at,
                    created_by_type = excluded.created_by_type,
                    created_by_id = excluded.created_by_id,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&births, |birth| birth.issued.name.as_str()) as _,
                column(&births, |birth| birth.issued.public_id.as_str()) as _,
                column(&births, |birth| birth.issued.secret_mac.0.as_slice()) as _,
                column(&births, |birth| birth.issued.last4.as_str()) as _,
                column(&births, |birth| birth.issued.role.to_string()) as _,
                column(&births, |birth| wire_name(&birth.issued.environment)) as _,
                column(&births, |birth| birth.issued.expires_at.map(Timestamp::to_datetime)) as _,
                column(&born, |(_, change)| change.revoked_at) as _,
                column(&births, |birth| birth.by.actor_type.name()) as _,
                column(&births, |birth| birth.by.id.as_str()) as _,
                &column(&born, |(_, change)| change.stamp.version),
                &column(&births, |birth| birth.at),
                &column(&born, |(_, change)| change.stamp.at),
                &column(&born, |(_, change)| change.stamp.seq),
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
    public_id: String,
    secret_mac: Vec<u8>,
    last4: String,
    role: String,
    environment: String,
    expires_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    created_by_type: String,
    created_by_id: String,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for ApiKey {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: KeyId::from_uuid(row.id),
            name: row.name,
            public_id: parsed("a key id", row.public_id)?,
            secret_mac: fingerprint("a key's mac", row.secret_mac)?,
            last4: row.last4,
            role: parsed("a role", row.role)?,
            environment: from_wire("a key's environment", row.environment)?,
            expires_at: row.expires_at.map(Into::into),
            revoked_at: row.revoked_at.map(Into::into),
            created_by: CreatedBy::stored(row.created_by_type, row.created_by_id)?,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// All keys, revoked ones included.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<ApiKey>, DbError> {
    let rows = newest_first!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, revoked_at, created_by_type,
            created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys WHERE org_id = $1",
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}

/// One key.
pub async fn get(tx: &mut TenantTx, id: KeyId) -> Result<Option<ApiKey>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, revoked_at, created_by_type,
            created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys WHERE org_id = $1 AND id = $2",
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(ApiKey::try_from).transpose()
}

/// Whether the key has ended with its issuer: the organization says that keys do, and the member who issued it has left.
pub async fn is_orphaned(tx: &mut TenantTx, key: &ApiKey) -> Result<bool, DbError> {
    let Some(issuer) = key.created_by.member() else { return Ok(false) };
    let settings = organizations::get(tx).await?.map(|organization| organization.settings).unwrap_or_default();
    Ok(settings.revoke_keys_on_creator_exit && members::get(tx, issuer).await?.is_none_or(|member| !member.active))
}

/// The key that a token names.
pub async fn get_by_public_id(tx: &mut TenantTx, public_id: &KeyPublicId) -> Result<Option<ApiKey>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, revoked_at, created_by_type,
            created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys WHERE org_id = $1 AND public_id = $2",
        org,
        public_id.as_str(),
    );
    row.fetch_optional(tx.connection()).await?.map(ApiKey::try_from).transpose()
}
