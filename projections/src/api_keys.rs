//! API keys: one row per key, kept when it is revoked.

use std::collections::BTreeMap;

use orgstream_events::{
    Actor, ApiKeyEvent, ApiKeyIssued, ApiKeyRotated, Fingerprint, KeyEnvironment, KeyId, KeyPublicId, Role, Timestamp,
};
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    CreatedBy, DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, fingerprint, from_bigint, from_wire, parsed, wire_name},
    key_uses::KeyUse,
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Its human-readable name.
    pub name: String,
    /// The public part of the token, which identifies the key.
    pub public_id: KeyPublicId,
    /// The MAC that the secret is compared with.
    pub secret_mac: Fingerprint,
    /// The last four characters of the token.
    pub last4: String,
    /// The bearer's role.
    pub role: Role,
    /// Live or test.
    pub environment: KeyEnvironment,
    /// When it expires.
    pub expires_at: Option<Timestamp>,
    /// The bearer's permissions within the role; none means all of the role's.
    pub scopes: Option<Vec<String>>,
    /// The networks that the bearer may connect from; none means all.
    pub allowed_ips: Vec<String>,
    /// The token before the last rotation.
    pub previous: Option<PreviousToken>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The last known use.
    pub last_use: Option<KeyUse>,
    /// The actor that issued it.
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

/// The stored parts of a token that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviousToken {
    /// The public part, which identified the key.
    pub public_id: KeyPublicId,
    /// The MAC that its secret is compared with.
    pub secret_mac: Fingerprint,
    /// When it expired, or will.
    pub ends_at: Timestamp,
}

impl Placed for ApiKey {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "api_keys",
    "rm.api_keys",
    "id",
    &[
        "id",
        "name",
        "public_id",
        "secret_mac",
        "last4",
        "role",
        "environment",
        "expires_at",
        "revoked_at",
        "created_by_type",
        "created_by_id",
        "version",
        "created_at",
        "updated_at",
        "seq",
        "scopes",
        "allowed_ips",
        "previous_public_id",
        "previous_secret_mac",
        "previous_ends_at",
    ],
    &[("id", |id| KeyId::from_uuid(id).to_string())],
)
.without(&["secret_mac", "previous_secret_mac"]);

/// A batch's changes to the rows: inserts, and the last state of every changed row.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<KeyId, Birth<'a>>,
    changes: BTreeMap<KeyId, Change<'a>>,
}

struct Birth<'a> {
    issued: &'a ApiKeyIssued,
    by: &'a Actor,
    at: OffsetDateTime,
}

/// The changes to a row; fields that are None stay unchanged.
struct Change<'a> {
    revoked_at: Option<OffsetDateTime>,
    rotated: Option<&'a ApiKeyRotated>,
    /// The rotation before, if it was in the same batch.
    before: Option<&'a ApiKeyRotated>,
    row_version: RowVersion,
}

/// A row inserted by the batch, with its state at the batch's end.
struct Born<'a> {
    birth: Birth<'a>,
    change: Change<'a>,
}

impl Born<'_> {
    fn public_id(&self) -> &str {
        self.change.rotated.map_or(&self.birth.issued.public_id, |rotated| &rotated.public_id).as_str()
    }

    fn secret_mac(&self) -> &[u8] {
        &self.change.rotated.map_or(&self.birth.issued.secret_mac, |rotated| &rotated.secret_mac).0
    }

    fn last4(&self) -> &str {
        self.change.rotated.map_or(&self.birth.issued.last4, |rotated| &rotated.last4)
    }

    fn expires_at(&self) -> Option<OffsetDateTime> {
        let end = self.change.rotated.map_or(self.birth.issued.expires_at, |rotated| rotated.expires_at);
        end.map(Timestamp::to_datetime)
    }

    /// The token before the last one, if there was one.
    fn previous(&self) -> Option<(&KeyPublicId, &Fingerprint)> {
        self.change.rotated?;
        let issued = self.birth.issued;
        Some(match self.change.before {
            Some(before) => (&before.public_id, &before.secret_mac),
            None => (&issued.public_id, &issued.secret_mac),
        })
    }
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: KeyId, event: &'a ApiKeyEvent, by: &'a Actor, row_version: RowVersion) {
        let change =
            self.changes.entry(id).or_insert(Change { revoked_at: None, rotated: None, before: None, row_version });
        match event {
            ApiKeyEvent::Issued(issued) => {
                self.inserts.insert(id, Birth { issued, by, at: row_version.at });
            }
            ApiKeyEvent::Rotated(rotated) => change.before = change.rotated.replace(rotated),
            ApiKeyEvent::Revoked(_) => change.revoked_at = Some(row_version.at),
        }
        change.row_version = row_version;
    }

    pub(crate) async fn write(mut self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let mut born = Vec::with_capacity(self.inserts.len());
        let mut changed = Vec::with_capacity(self.changes.len());
        for (id, change) in self.changes {
            match self.inserts.remove(&id) {
                Some(birth) => born.push((id, Born { birth, change })),
                None => changed.push((id, change)),
            }
        }
        if !changed.is_empty() {
            let rotated = |change: &Change<'_>| change.rotated.is_some();
            let updated = sqlx::query!(
                "INSERT INTO rm.api_keys (org_id, id, name, public_id, secret_mac, last4, role, environment, expires_at,
                    scopes, allowed_ips, previous_public_id, previous_secret_mac, previous_ends_at, revoked_at,
                    created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.name, coalesce(change.public_id, old.public_id),
                    coalesce(change.secret_mac, old.secret_mac), coalesce(change.last4, old.last4), old.role,
                    old.environment, CASE WHEN change.rotated THEN change.expires_at ELSE old.expires_at END,
                    old.scopes, old.allowed_ips,
                    CASE WHEN change.rotated THEN coalesce(change.before_public_id, old.public_id)
                        ELSE old.previous_public_id END,
                    CASE WHEN change.rotated THEN coalesce(change.before_secret_mac, old.secret_mac)
                        ELSE old.previous_secret_mac END,
                    coalesce(change.previous_ends_at, old.previous_ends_at),
                    coalesce(change.revoked_at, old.revoked_at), old.created_by_type, old.created_by_id, change.version,
                    old.created_at, change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::bigint[], $7::boolean[],
                    $8::text[], $9::bytea[], $10::text[], $11::timestamptz[], $12::text[], $13::bytea[],
                    $14::timestamptz[])
                    AS change (id, revoked_at, version, updated_at, seq, rotated, public_id, secret_mac, last4, expires_at,
                        before_public_id, before_secret_mac, previous_ends_at)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.api_keys WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    public_id = excluded.public_id,
                    secret_mac = excluded.secret_mac,
                    last4 = excluded.last4,
                    expires_at = excluded.expires_at,
                    previous_public_id = excluded.previous_public_id,
                    previous_secret_mac = excluded.previous_secret_mac,
                    previous_ends_at = excluded.previous_ends_at,
                    revoked_at = excluded.revoked_at,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, change)| change.revoked_at) as _,
                &column(&changed, |(_, change)| change.row_version.version),
                &column(&changed, |(_, change)| change.row_version.at),
                &column(&changed, |(_, change)| change.row_version.seq),
                &column(&changed, |(_, change)| rotated(change)),
                column(&changed, |(_, change)| change.rotated.map(|rotated| rotated.public_id.as_str())) as _,
                column(&changed, |(_, change)| change.rotated.map(|rotated| rotated.secret_mac.0.as_slice())) as _,
                column(&changed, |(_, change)| change.rotated.map(|rotated| rotated.last4.as_str())) as _,
                column(&changed, |(_, change)| change.rotated?.expires_at.map(Timestamp::to_datetime)) as _,
                column(&changed, |(_, change)| change.before.map(|before| before.public_id.as_str())) as _,
                column(&changed, |(_, change)| change.before.map(|before| before.secret_mac.0.as_slice())) as _,
                column(&changed, |(_, change)| change.rotated.map(|rotated| rotated.previous_ends_at.to_datetime())) as _,
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.api_keys", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            sqlx::query!(
                "INSERT INTO rm.api_keys (org_id, id, name, public_id, secret_mac, last4, role, environment, expires_at,
                    scopes, allowed_ips, previous_public_id, previous_secret_mac, previous_ends_at, revoked_at,
                    created_by_type, created_by_id, version, created_at, updated_at, seq)
                SELECT $1, born.id, born.name, born.public_id, born.secret_mac, born.last4, born.role, born.environment,
                    born.expires_at,
                    CASE WHEN jsonb_typeof(born.scopes) = 'array'
                        THEN ARRAY(SELECT jsonb_array_elements_text(born.scopes)) END,
                    ARRAY(SELECT jsonb_array_elements_text(born.allowed_ips)),
                    born.previous_public_id, born.previous_secret_mac, born.previous_ends_at, born.revoked_at,
                    born.created_by_type, born.created_by_id, born.version, born.created_at, born.updated_at, born.seq
                FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[], $8::text[],
                    $9::timestamptz[], $10::jsonb[], $11::jsonb[], $12::text[], $13::bytea[], $14::timestamptz[],
                    $15::timestamptz[], $16::text[], $17::text[], $18::bigint[], $19::timestamptz[],
                    $20::timestamptz[], $21::bigint[])
                    AS born (id, name, public_id, secret_mac, last4, role, environment, expires_at, scopes, allowed_ips,
                        previous_public_id, previous_secret_mac, previous_ends_at, revoked_at, created_by_type,
                        created_by_id, version, created_at, updated_at, seq)
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    name = excluded.name,
                    public_id = excluded.public_id,
                    secret_mac = excluded.secret_mac,
                    last4 = excluded.last4,
                    role = excluded.role,
                    environment = excluded.environment,
                    expires_at = excluded.expires_at,
                    scopes = excluded.scopes,
                    allowed_ips = excluded.allowed_ips,
                    previous_public_id = excluded.previous_public_id,
                    previous_secret_mac = excluded.previous_secret_mac,
                    previous_ends_at = excluded.previous_ends_at,
                    revoked_at = excluded.revoked_at,
                    created_by_type = excluded.created_by_type,
                    created_by_id = excluded.created_by_id,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&born, |(_, born)| born.birth.issued.name.as_str()) as _,
                column(&born, |(_, born)| born.public_id()) as _,
                column(&born, |(_, born)| born.secret_mac()) as _,
                column(&born, |(_, born)| born.last4()) as _,
                column(&born, |(_, born)| born.birth.issued.role.to_string()) as _,
                column(&born, |(_, born)| wire_name(&born.birth.issued.environment)) as _,
                column(&born, |(_, born)| born.expires_at()) as _,
                column(&born, |(_, born)| Json(born.birth.issued.scopes.as_ref())) as _,
                column(&born, |(_, born)| Json(&born.birth.issued.allowed_ips)) as _,
                column(&born, |(_, born)| born.previous().map(|(public_id, _)| public_id.as_str())) as _,
                column(&born, |(_, born)| born.previous().map(|(_, mac)| mac.0.as_slice())) as _,
                column(&born, |(_, born)| born.change.rotated.map(|rotated| rotated.previous_ends_at.to_datetime())) as _,
                column(&born, |(_, born)| born.change.revoked_at) as _,
                column(&born, |(_, born)| born.birth.by.actor_type.name()) as _,
                column(&born, |(_, born)| born.birth.by.id.as_str()) as _,
                &column(&born, |(_, born)| born.change.row_version.version),
                &column(&born, |(_, born)| born.birth.at),
                &column(&born, |(_, born)| born.change.row_version.at),
                &column(&born, |(_, born)| born.change.row_version.seq),
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
    scopes: Option<Vec<String>>,
    allowed_ips: Vec<String>,
    previous_public_id: Option<String>,
    previous_secret_mac: Option<Vec<u8>>,
    previous_ends_at: Option<OffsetDateTime>,
    revoked_at: Option<OffsetDateTime>,
    last_used_at: Option<OffsetDateTime>,
    ip: Option<String>,
    user_agent: Option<String>,
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
        let id = KeyId::from_uuid(row.id);
        let previous = match (row.previous_public_id, row.previous_secret_mac, row.previous_ends_at) {
            (Some(public_id), Some(mac), Some(ends_at)) => Some(PreviousToken {
                public_id: parsed("a key id", public_id)?,
                secret_mac: fingerprint("a key's mac", mac)?,
                ends_at: ends_at.into(),
            }),
            _ => None,
        };
        let (ip, user_agent) = (row.ip, row.user_agent);
        let last_use = row.last_used_at.map(|at| KeyUse { key: id, last_used_at: at.into(), ip, user_agent });
        Ok(Self {
            id,
            name: row.name,
            public_id: parsed("a key id", row.public_id)?,
            secret_mac: fingerprint("a key's mac", row.secret_mac)?,
            last4: row.last4,
            role: parsed("a role", row.role)?,
            environment: from_wire("a key's environment", row.environment)?,
            expires_at: row.expires_at.map(Into::into),
            scopes: row.scopes,
            allowed_ips: row.allowed_ips,
            previous,
            revoked_at: row.revoked_at.map(Into::into),
            last_use,
            created_by: CreatedBy::stored(row.created_by_type, row.created_by_id)?,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

// `coalesce`, because sqlx asks the query plan whether a column of an outer join can be null, and plans change.

/// Returns all keys, revoked ones included; if `unused_since` is given, only those not used at that time or later.
pub async fn list(
    tx: &mut TenantTx,
    unused_since: Option<Timestamp>,
    page: &Page<Place>,
    limit: u16,
) -> Result<Listing<ApiKey>, DbError> {
    let unused_since = unused_since.map(Timestamp::to_datetime);
    let rows = newest_first!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, scopes, allowed_ips,
            previous_public_id, previous_secret_mac, previous_ends_at, revoked_at, coalesce(last_used_at) AS \"last_used_at?\", ip,
            user_agent, created_by_type, created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys AS key LEFT JOIN ops.key_uses AS used ON used.org_id = key.org_id AND used.key_id = key.id
        WHERE key.org_id = $1
            AND ($5::timestamptz IS NULL OR coalesce(last_used_at, created_at) < $5)",
        tx,
        page,
        limit,
        unused_since
    )?;
    Listing::new(rows, page, limit)
}

/// Returns all keys without their last uses, which follow from no event.
pub async fn as_events_say(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<ApiKey>, DbError> {
    let mut listed = list(tx, None, page, limit).await?;
    listed.rows.iter_mut().for_each(|key| key.last_use = None);
    Ok(listed)
}

/// Returns one key.
pub async fn get(tx: &mut TenantTx, id: KeyId) -> Result<Option<ApiKey>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, scopes, allowed_ips,
            previous_public_id, previous_secret_mac, previous_ends_at, revoked_at, coalesce(last_used_at) AS \"last_used_at?\", ip,
            user_agent, created_by_type, created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys AS key LEFT JOIN ops.key_uses AS used ON used.org_id = key.org_id AND used.key_id = key.id
        WHERE key.org_id = $1 AND id = $2",
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(ApiKey::try_from).transpose()
}

/// Returns the key that a token identifies, or identified before its last rotation.
pub async fn get_by_public_id(tx: &mut TenantTx, public_id: &KeyPublicId) -> Result<Option<ApiKey>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, name, public_id, secret_mac, last4, role, environment, expires_at, scopes, allowed_ips,
            previous_public_id, previous_secret_mac, previous_ends_at, revoked_at, coalesce(last_used_at) AS \"last_used_at?\", ip,
            user_agent, created_by_type, created_by_id, version, created_at, updated_at, seq
        FROM rm.api_keys AS key LEFT JOIN ops.key_uses AS used ON used.org_id = key.org_id AND used.key_id = key.id
        WHERE key.org_id = $1 AND (public_id = $2 OR previous_public_id = $2)",
        org,
        public_id.as_str(),
    );
    row.fetch_optional(tx.connection()).await?.map(ApiKey::try_from).transpose()
}
