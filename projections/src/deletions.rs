//! Deletions of orgs: how far each is, and the erasure of rows, by a login that may do so in an org that is being erased and nowhere
//! else.
//!
//! A row of `ops.deletions` is taken for a while by one process at a time. Each change of it names the number of its taking, so a
//! process that was too slow changes nothing. The tables are those that the database's catalogue has, not those of a list.

use std::{collections::BTreeMap, time::Duration};

use orgstream_events::{IdentityKept, InvoiceNumber, OrgId, RowsErased, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Postgres, Row as _, Transaction, postgres::PgRow};
use time::OffsetDateTime;

use crate::{
    BoundOrg, Database, DbError,
    convert::{from_bigint, from_json, from_wire, to_bigint, wire_name},
    database::begin_with,
    search::target::OpenIndex,
};

/// How long a process has a deletion before another takes it.
pub const LEASE: Duration = Duration::from_secs(10);
/// The most deletions that are listed.
const LISTED: i64 = 1_000;
/// The columns of a deletion, in the order of [`Deletion`].
const COLUMNS: &str =
    "org, step, epoch, requested_by, requested_at, grace_until, fence, facts, waits_for, receipt, note,
    bytes_removed_at, updated_at";

/// How far a deletion is. Each step can be taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeletionStep {
    /// The grace period goes on.
    Requested,
    /// The final invoice is made, and the payment provider is told that billing ended.
    Billing,
    /// The last event is appended, applied and signed.
    Sealing,
    /// The keys of its secrets are destroyed.
    Shredding,
    /// Its rows are erased.
    Erasing,
    /// What it has claimed becomes free.
    Releasing,
    /// The receipt is signed.
    Signing,
    /// It is deleted.
    Done,
    /// The deletion was cancelled.
    Cancelled,
}

impl DeletionStep {
    /// Returns the name.
    pub fn name(self) -> String {
        wire_name(&self)
    }

    /// Whether nothing of the organization's is written down any more.
    pub fn is_closed(self) -> bool {
        self >= Self::Sealing && self != Self::Cancelled
    }
}

/// What was found out about an organization on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeletionFacts {
    /// Its last invoice.
    pub invoice: Option<InvoiceNumber>,
    /// When it ended.
    pub sealed_at: Option<Timestamp>,
    /// The size of its audit log at the end.
    pub log_size: u64,
    /// The root of its audit log at the end, in base64.
    pub log_root: String,
    /// Its secrets whose keys were destroyed.
    pub secrets_destroyed: u64,
    /// Its counterpart at the external identity provider.
    pub identity_kept: Option<IdentityKept>,
    /// The newest version that any of its rows has.
    pub versions: Option<i32>,
    /// The rows of its tables.
    pub rows: BTreeMap<String, RowsErased>,
}

/// A deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The org.
    pub org: OrgId,
    /// How far it is.
    pub step: DeletionStep,
    /// The number of its taking.
    pub epoch: u64,
    /// The person who requested it, who may read of it when the org has no members any more.
    pub requested_by: Option<UserId>,
    /// When it was requested.
    pub requested_at: Timestamp,
    /// When it is carried out.
    pub grace_until: Timestamp,
    /// The sequence of the org's last event.
    pub fence: Option<u64>,
    /// What was found out.
    pub facts: DeletionFacts,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// What is to be signed.
    pub receipt: Option<String>,
    /// The signed receipt.
    pub note: Option<String>,
    /// When the bytes of its events were removed from the stream.
    pub bytes_removed_at: Option<Timestamp>,
    /// When it last moved.
    pub updated_at: Timestamp,
}

impl Deletion {
    /// The org, which an owner named in the request.
    pub fn bound(&self) -> BoundOrg {
        BoundOrg::proven_by_resolver(self.org)
    }
}

impl TryFrom<PgRow> for Deletion {
    type Error = DbError;

    fn try_from(row: PgRow) -> Result<Self, DbError> {
        let facts: Value = row.try_get("facts")?;
        let time = |column| Ok::<Timestamp, sqlx::Error>(row.try_get::<OffsetDateTime, _>(column)?.into());
        Ok(Self {
            org: OrgId::from_uuid(row.try_get("org")?),
            step: from_wire("the step of a deletion", row.try_get("step")?)?,
            epoch: from_bigint(row.try_get("epoch")?),
            requested_by: row.try_get::<Option<_>, _>("requested_by")?.map(UserId::from_uuid),
            requested_at: time("requested_at")?,
            grace_until: time("grace_until")?,
            fence: row.try_get::<Option<i64>, _>("fence")?.map(from_bigint),
            facts: from_json("what is known of a deletion", &facts)?,
            waits_for: row.try_get("waits_for")?,
            receipt: row.try_get("receipt")?,
            note: row.try_get("note")?,
            bytes_removed_at: row.try_get::<Option<OffsetDateTime>, _>("bytes_removed_at")?.map(Into::into),
            updated_at: time("updated_at")?,
        })
    }
}

/// A table with rows of orgs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantTable {
    /// Its name, with its schema.
    pub name: String,
    /// Whether its rows have versions, of which one at a time is seen.
    pub has_versions: bool,
}

impl Database {
    /// Returns the orgs whose deletion was requested and is not taken up yet, as the read models have them; at most 1,000.
    pub async fn orgs_to_delete(&self) -> Result<Vec<OrgId>, DbError> {
        let orgs: Vec<uuid::Uuid> =
            sqlx::query_scalar("SELECT app.orgs_to_delete()").fetch_all(self.resolver_pool()).await?;
        Ok(orgs.into_iter().map(OrgId::from_uuid).collect())
    }

    /// Notes that a deletion was requested. One that was cancelled before begins again; any other goes on as it is.
    pub async fn note_deletion(
        &self,
        org: OrgId,
        requested_by: Option<UserId>,
        requested_at: Timestamp,
        grace_until: Timestamp,
    ) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO ops.deletions AS known (org, step, requested_by, requested_at, grace_until)
            VALUES ($1, 'requested', $2, $3, $4)
            ON CONFLICT (org) DO UPDATE SET
                step = 'requested', requested_by = $2, requested_at = $3, grace_until = $4, facts = '{}', waits_for = NULL,
                due_at = now(), updated_at = now()
            WHERE known.step = 'cancelled' AND known.requested_at < $3",
        )
        .bind(org.uuid())
        .bind(requested_by.map(UserId::uuid))
        .bind(requested_at.to_datetime())
        .bind(grace_until.to_datetime())
        .execute(self.eraser_pool())
        .await?;
        Ok(())
    }

    /// Takes up the erasure of an org whose deletion was completed before: after its rows came back from a backup.
    pub async fn erase_again(&self, org: OrgId, fence: u64, requested_at: Timestamp) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO ops.deletions AS known (org, step, requested_at, grace_until, fence)
            VALUES ($1, 'erasing', $3, $3, $2)
            ON CONFLICT (org) DO UPDATE SET
                step = 'erasing', fence = $2, facts = '{}', waits_for = NULL, due_at = now(), updated_at = now(),
                epoch = known.epoch + 1
            WHERE known.step NOT IN ('erasing', 'releasing', 'signing')",
        )
        .bind(org.uuid())
        .bind(to_bigint(fence))
        .bind(requested_at.to_datetime())
        .execute(self.eraser_pool())
        .await?;
        Ok(())
    }

    /// Takes a deletion that is due, for a while.
    pub async fn take_deletion(&self) -> Result<Option<Deletion>, DbError> {
        // Most of the time there is none, which the login of queries can say.
        let is_due = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM ops.deletions WHERE step NOT IN ('done', 'cancelled') AND due_at <= now())",
        );
        if !is_due.fetch_one(self.resolver_pool()).await? {
            return Ok(None);
        }
        let take = format!(
            "UPDATE ops.deletions SET epoch = epoch + 1, due_at = now() + make_interval(secs => $1) WHERE org = (
                SELECT org FROM ops.deletions WHERE step NOT IN ('done', 'cancelled') AND due_at <= now()
                ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
            ) RETURNING {COLUMNS}"
        );
        let row = sqlx::query(AssertSqlSafe(take)).bind(LEASE.as_secs_f64()).fetch_optional(self.eraser_pool()).await?;
        row.map(Deletion::try_from).transpose()
    }

    /// Stores how far a deletion is, and looks at it again after a while. False if another process has taken it.
    pub async fn keep_deletion(&self, deletion: &Deletion, again: Duration) -> Result<bool, DbError> {
        let facts = serde_json::to_value(&deletion.facts).unwrap_or_default();
        let kept = sqlx::query(
            "UPDATE ops.deletions SET
                step = $3, fence = $4, facts = $5, waits_for = $6, receipt = $7,
                due_at = now() + make_interval(secs => $8), updated_at = now()
            WHERE org = $1 AND epoch = $2",
        )
        .bind(deletion.org.uuid())
        .bind(to_bigint(deletion.epoch))
        .bind(deletion.step.name())
        .bind(deletion.fence.map(to_bigint))
        .bind(facts)
        .bind(deletion.waits_for.as_deref())
        .bind(deletion.receipt.as_deref())
        .bind(again.as_secs_f64())
        .execute(self.eraser_pool())
        .await?;
        Ok(kept.rows_affected() == 1)
    }

    /// Goes on holding a deletion. False if another process has taken it.
    pub async fn hold_deletion(&self, org: OrgId, epoch: u64) -> Result<bool, DbError> {
        let held = sqlx::query(
            "UPDATE ops.deletions SET due_at = now() + make_interval(secs => $3) WHERE org = $1 AND epoch = $2",
        )
        .bind(org.uuid())
        .bind(to_bigint(epoch))
        .bind(LEASE.as_secs_f64())
        .execute(self.eraser_pool())
        .await?;
        Ok(held.rows_affected() == 1)
    }

    /// Stores it and keeps it.
    pub async fn go_on_with_deletion(&self, deletion: &Deletion) -> Result<bool, DbError> {
        self.keep_deletion(deletion, LEASE).await
    }

    /// Notes that the bytes of these orgs are in no stream any more.
    pub async fn note_bytes_removed(&self, orgs: &[OrgId]) -> Result<(), DbError> {
        let orgs: Vec<uuid::Uuid> = orgs.iter().map(|org| org.uuid()).collect();
        sqlx::query(
            "UPDATE ops.deletions SET bytes_removed_at = now() WHERE org = ANY ($1) AND bytes_removed_at IS NULL",
        )
        .bind(orgs)
        .execute(self.eraser_pool())
        .await?;
        Ok(())
    }

    /// Returns the deletion of an org, if there ever was one.
    pub async fn deletion(&self, org: OrgId) -> Result<Option<Deletion>, DbError> {
        let query = format!("SELECT {COLUMNS} FROM ops.deletions WHERE org = $1");
        let row = sqlx::query(AssertSqlSafe(query)).bind(org.uuid()).fetch_optional(self.resolver_pool()).await?;
        row.map(Deletion::try_from).transpose()
    }

    /// Returns the deletions, those that are under way first, then the latest; at most 1,000.
    pub async fn deletions(&self) -> Result<Vec<Deletion>, DbError> {
        let query = format!(
            "SELECT {COLUMNS} FROM ops.deletions ORDER BY step IN ('done', 'cancelled'), requested_at DESC, org LIMIT $1"
        );
        let rows = sqlx::query(AssertSqlSafe(query)).bind(LISTED).fetch_all(self.resolver_pool()).await?;
        rows.into_iter().map(Deletion::try_from).collect()
    }

    /// Returns how far the deletion of an org is, if there ever was one.
    pub async fn deletion_step(&self, org: OrgId) -> Result<Option<DeletionStep>, DbError> {
        let step = sqlx::query_scalar("SELECT step FROM ops.deletions WHERE org = $1");
        let step: Option<String> = step.bind(org.uuid()).fetch_optional(self.resolver_pool()).await?;
        step.map(|step| from_wire("the step of a deletion", step)).transpose()
    }

    /// Whether the rows of an org are erased, or are being erased: it has none on purpose.
    pub async fn is_erased(&self, org: OrgId) -> Result<bool, DbError> {
        let step = self.deletion_step(org).await?;
        Ok(step.is_some_and(|step| step >= DeletionStep::Erasing && step != DeletionStep::Cancelled))
    }

    /// Returns every table with rows of orgs, in an order in which they can be erased: first the checkpoints, behind which batches
    /// wait, and before every other table those that refer to it.
    pub async fn tenant_tables(&self) -> Result<Vec<TenantTable>, DbError> {
        let rows: Vec<(String, bool)> = sqlx::query_as(
            "SELECT format('%I.%I', n.nspname, c.relname) AS name, EXISTS (
                SELECT FROM pg_attribute AS version
                WHERE version.attrelid = c.oid AND version.attname = 'rm_version' AND NOT version.attisdropped
            )
            FROM pg_class AS c
            JOIN pg_namespace AS n ON n.oid = c.relnamespace
            JOIN pg_attribute AS org ON org.attrelid = c.oid AND org.attname = 'org_id' AND NOT org.attisdropped
            WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
            ORDER BY (n.nspname, c.relname) <> ('ops', 'checkpoints'), (
                SELECT count(*) FROM pg_constraint AS f WHERE f.contype = 'f' AND f.confrelid = c.oid AND f.conrelid <> c.oid
            ), name",
        )
        .fetch_all(self.eraser_pool())
        .await?;
        Ok(rows.into_iter().map(|(name, has_versions)| TenantTable { name, has_versions }).collect())
    }

    /// Begins a transaction that may erase rows of one version of the org, if this process has its deletion and it is at that step.
    async fn begin_erasing(
        &self,
        deletion: &Deletion,
        version: i32,
    ) -> Result<Transaction<'static, Postgres>, DbError> {
        // The only values are a UUID and a number that this program formats: no client's text gets here.
        let statement = format!(
            "BEGIN; SELECT set_config('app.org_id', '{}', true), set_config('app.rm_version', '{version}', true),
                set_config('app.search_version', '{version}', true)",
            deletion.org.uuid()
        );
        let mut tx = begin_with(self.eraser_pool(), statement).await?;
        let held = sqlx::query(
            "UPDATE ops.deletions SET due_at = now() + make_interval(secs => $3)
            WHERE org = $1 AND epoch = $2 AND step = 'erasing'",
        )
        .bind(deletion.org.uuid())
        .bind(to_bigint(deletion.epoch))
        .bind(LEASE.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if held.rows_affected() == 1 {
            return Ok(tx);
        }
        Err(DbError::unavailable(format!("another process has taken the deletion of {}", deletion.org)))
    }

    /// Returns the newest version that any of the org's rows has.
    pub async fn newest_version(&self, deletion: &Deletion) -> Result<i32, DbError> {
        let mut tx = self.begin_erasing(deletion, 0).await?;
        let newest = sqlx::query_scalar(
            "SELECT coalesce(greatest(
                (SELECT max(version) FROM ops.checkpoints WHERE org_id = $1),
                (SELECT max(greatest(version, previous)) FROM ops.rebuilds WHERE org = $1),
                (SELECT max(version) FROM ops.search_indexes WHERE org = $1)
            ), 1)",
        );
        let newest = newest.bind(deletion.org.uuid()).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(newest)
    }

    /// Counts the org's rows of one version of a table.
    pub async fn count_rows(&self, deletion: &Deletion, table: &TenantTable, version: i32) -> Result<u64, DbError> {
        let mut tx = self.begin_erasing(deletion, version).await?;
        sqlx::query("SET LOCAL statement_timeout = '10min'").execute(&mut *tx).await?;
        let query = format!("SELECT count(*) FROM {} WHERE org_id = $1", table.name);
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(query)).bind(deletion.org.uuid()).fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(from_bigint(count))
    }

    /// Erases up to `rows` of the org's rows of one version of a table, and counts them; returns how many there were.
    pub async fn erase_rows(
        &self,
        deletion: &mut Deletion,
        table: &TenantTable,
        version: i32,
        rows: u32,
    ) -> Result<u64, DbError> {
        let mut tx = self.begin_erasing(deletion, version).await?;
        let name = &table.name;
        let erase =
            format!("DELETE FROM {name} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {name} WHERE org_id = $1 LIMIT $2))");
        let erased = sqlx::query(AssertSqlSafe(erase)).bind(deletion.org.uuid()).bind(i64::from(rows));
        let erased = erased.execute(&mut *tx).await?.rows_affected();
        if erased > 0 {
            // In the same transaction: what was erased is counted once.
            deletion.facts.rows.entry(name.clone()).or_default().erased += erased;
            sqlx::query("UPDATE ops.deletions SET facts = $2 WHERE org = $1")
                .bind(deletion.org.uuid())
                .bind(serde_json::to_value(&deletion.facts).unwrap_or_default())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(erased)
    }

    /// Drops the org's indexes of words in search targets. False while something is left.
    pub async fn drop_indexes_elsewhere(&self, deletion: &Deletion, rows: u32) -> Result<bool, DbError> {
        let indexes: Vec<(i32, String)> =
            sqlx::query_as("SELECT version, target FROM ops.search_indexes WHERE org = $1 ORDER BY version")
                .bind(deletion.org.uuid())
                .fetch_all(self.eraser_pool())
                .await?;
        for (version, target) in indexes {
            let index = OpenIndex::new(self.search_targets().clone(), target, deletion.bound(), version);
            if !index.drop_version(rows).await? {
                return Ok(false);
            }
            sqlx::query("DELETE FROM ops.search_indexes WHERE org = $1 AND version = $2")
                .bind(deletion.org.uuid())
                .bind(version)
                .execute(self.eraser_pool())
                .await?;
        }
        Ok(true)
    }

    /// Ends the rebuilds of an org that is erased, after a step that is under way.
    pub async fn end_rebuilds(&self, deletion: &Deletion) -> Result<(), DbError> {
        let end = sqlx::query("DELETE FROM ops.rebuilds WHERE org = $1");
        end.bind(deletion.org.uuid()).execute(self.eraser_pool()).await?;
        Ok(())
    }
}
