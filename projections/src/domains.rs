//! Domains of an organization: one row each, kept after removal.

use std::collections::BTreeMap;

use orgstream_events::{DomainClaimed, DomainEvent, DomainId, DomainName, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, Listing, Page, Place, Placed, TenantTx,
    apply::{RowVersion, all_there},
    convert::{column, from_bigint, from_wire, parsed},
    page::newest_first,
    read_model::ReadModel,
};

/// The current state of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// Its name.
    pub domain: DomainName,
    /// The required content of a TXT record.
    pub challenge: String,
    /// Its status.
    pub status: DomainStatus,
    /// The aggregate's version.
    pub version: u64,
    /// When it was claimed.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The stream sequence of its last change.
    pub seq: u64,
}

/// The status of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DomainStatus {
    /// The organization claims it.
    Claimed,
    /// Its DNS confirms the claim.
    Proven,
    /// It was removed.
    Removed,
}

impl Placed for Domain {
    type Place = Place;

    fn place(&self) -> Place {
        Place { created_at: self.created_at, id: self.id.uuid() }
    }
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "domains",
    "rm.domains",
    "id",
    &["id", "domain", "challenge", "status", "version", "created_at", "updated_at", "seq"],
    &[("id", |id| DomainId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows: inserts, and the last state of every changed row. A domain that is claimed again is
/// inserted again.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    inserts: BTreeMap<DomainId, (&'a DomainClaimed, OffsetDateTime)>,
    changes: BTreeMap<DomainId, (&'static str, RowVersion)>,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, id: DomainId, event: &'a DomainEvent, row_version: RowVersion) {
        let status = match event {
            DomainEvent::Claimed(claimed) => {
                self.inserts.insert(id, (claimed, row_version.at));
                "claimed"
            }
            DomainEvent::Proven(_) => "proven",
            DomainEvent::Removed(_) => "removed",
        };
        self.changes.insert(id, (status, row_version));
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        let (born, changed): (Vec<_>, Vec<_>) =
            self.changes.into_iter().partition(|(id, _)| self.inserts.contains_key(id));
        if !changed.is_empty() {
            let updated = sqlx::query!(
                "INSERT INTO rm.domains (org_id, id, domain, challenge, status, version, created_at, updated_at, seq)
                SELECT $1, old.id, old.domain, old.challenge, change.status, change.version, old.created_at,
                    change.updated_at, change.seq
                FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[], $6::bigint[])
                    AS change (id, status, version, updated_at, seq)
                CROSS JOIN LATERAL (
                    SELECT * FROM rm.domains WHERE org_id = $1 AND id BETWEEN change.id AND change.id
                    ORDER BY id LIMIT 1
                ) AS old
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    status = excluded.status,
                    version = excluded.version,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&changed, |(id, _)| id.uuid()),
                column(&changed, |(_, (status, _))| *status) as _,
                &column(&changed, |(_, (_, row_version))| row_version.version),
                &column(&changed, |(_, (_, row_version))| row_version.at),
                &column(&changed, |(_, (_, row_version))| row_version.seq),
            )
            .execute(&mut *connection)
            .await?;
            all_there("rm.domains", changed.len(), updated.rows_affected())?;
        }
        if !born.is_empty() {
            let inserts: Vec<_> = self.inserts.into_values().collect();
            sqlx::query!(
                "INSERT INTO rm.domains (org_id, id, domain, challenge, status, version, created_at, updated_at, seq)
                SELECT $1, born.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                    $7::timestamptz[], $8::timestamptz[], $9::bigint[]) AS born
                ON CONFLICT (org_id, rm_version, id) DO UPDATE SET
                    domain = excluded.domain,
                    challenge = excluded.challenge,
                    status = excluded.status,
                    version = excluded.version,
                    created_at = excluded.created_at,
                    updated_at = excluded.updated_at,
                    seq = excluded.seq",
                org,
                &column(&born, |(id, _)| id.uuid()),
                column(&inserts, |(claimed, _)| claimed.domain.as_str()) as _,
                column(&inserts, |(claimed, _)| claimed.challenge.as_str()) as _,
                column(&born, |(_, (status, _))| *status) as _,
                &column(&born, |(_, (_, row_version))| row_version.version),
                &column(&inserts, |(_, at)| *at),
                &column(&born, |(_, (_, row_version))| row_version.at),
                &column(&born, |(_, (_, row_version))| row_version.seq),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

struct Row {
    id: Uuid,
    domain: String,
    challenge: String,
    status: String,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    seq: i64,
}

impl TryFrom<Row> for Domain {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: DomainId::from_uuid(row.id),
            domain: parsed("a domain", row.domain)?,
            challenge: row.challenge,
            status: from_wire("a domain's status", row.status)?,
            version: from_bigint(row.version),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            seq: from_bigint(row.seq),
        })
    }
}

/// Returns the organization's current domains, proven or not.
pub async fn list(tx: &mut TenantTx, page: &Page<Place>, limit: u16) -> Result<Listing<Domain>, DbError> {
    let rows = newest_first!(
        Row,
        "SELECT id, domain, challenge, status, version, created_at, updated_at, seq
        FROM rm.domains WHERE org_id = $1 AND status <> 'removed'",
        tx,
        page,
        limit
    )?;
    Listing::new(rows, page, limit)
}

/// Returns one domain, removed or not.
pub async fn get(tx: &mut TenantTx, id: DomainId) -> Result<Option<Domain>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT id, domain, challenge, status, version, created_at, updated_at, seq
        FROM rm.domains WHERE org_id = $1 AND id = $2",
        org,
        id.uuid(),
    );
    row.fetch_optional(tx.connection()).await?.map(Domain::try_from).transpose()
}
