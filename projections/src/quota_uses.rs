//! What is used of an organization's quotas, for decisions near a limit and for people: sums that follow the log, with the position
//! up to which they have it.

use std::collections::BTreeMap;

use orgstream_events::{Pipeline, QuotaCounted, QuotaEvent, QuotaName};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    apply::RowVersion,
    convert::{column, from_bigint},
    read_model::ReadModel,
};

pub(crate) const TABLE: ReadModel = ReadModel::by_text(
    "quota_uses",
    "rm.quota_uses",
    "quota",
    &["quota", "used", "counted", "last_counted", "last_counted_seq", "seq"],
);

/// A batch's additions to the rows.
#[derive(Default)]
pub(crate) struct Changeset {
    additions: BTreeMap<QuotaName, Addition>,
}

#[derive(Default)]
struct Addition {
    used: i64,
    counted: i64,
    last_counted: i64,
    last_counted_seq: i64,
    seq: i64,
}

impl Changeset {
    pub(crate) fn apply(&mut self, event: &QuotaEvent, row_version: RowVersion) {
        let QuotaEvent::Counted(QuotaCounted { quota, change, limit: _ }) = event;
        let addition = self.additions.entry(*quota).or_default();
        addition.counted = addition.counted.saturating_add(*change);
        (addition.last_counted, addition.last_counted_seq) = (*change, row_version.seq);
        addition.seq = addition.seq.max(row_version.seq);
    }

    /// Adds what records take of the storage, after the event at `seq`.
    pub(crate) fn store(&mut self, bytes: i64, seq: i64) {
        let addition = self.additions.entry(QuotaName::StorageBytes).or_default();
        addition.used = addition.used.saturating_add(bytes);
        addition.seq = addition.seq.max(seq);
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.additions.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = self.additions.into_iter().collect();
        sqlx::query!(
            "INSERT INTO rm.quota_uses AS known (org_id, quota, used, counted, last_counted, last_counted_seq, seq)
            SELECT $1, item.* FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
                AS item
            ON CONFLICT (org_id, rm_version, quota) DO UPDATE SET
                used = known.used + excluded.used,
                counted = known.counted + excluded.counted,
                last_counted = CASE WHEN excluded.last_counted_seq > 0 THEN excluded.last_counted ELSE known.last_counted END,
                last_counted_seq = greatest(known.last_counted_seq, excluded.last_counted_seq),
                seq = greatest(known.seq, excluded.seq)",
            org,
            column(&rows, |(quota, _)| quota.name()) as _,
            &column(&rows, |(_, addition)| addition.used),
            &column(&rows, |(_, addition)| addition.counted),
            &column(&rows, |(_, addition)| addition.last_counted),
            &column(&rows, |(_, addition)| addition.last_counted_seq),
            &column(&rows, |(_, addition)| addition.seq),
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// What is used of a quota, and what of it was counted by commits near a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaUse {
    /// What is used.
    pub used: u64,
    /// All that was counted, what was added less what was taken.
    pub counted: i64,
}

/// What is used of the quotas that are summed, at one position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaUses {
    /// The position.
    pub seq: u64,
    /// API keys that are neither revoked nor expired.
    pub api_keys: QuotaUse,
    /// The content of records that are not archived, in bytes.
    pub storage_bytes: QuotaUse,
}

/// Returns what is used in the bound org.
pub async fn get(tx: &mut TenantTx) -> Result<QuotaUses, DbError> {
    let row = sqlx::query!(
        r#"SELECT
            (SELECT seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active) AS seq,
            (SELECT count(*) FROM rm.api_keys
                WHERE org_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS "keys!""#,
        tx.org().uuid(),
        Pipeline::ReadModels.name(),
    )
    .fetch_one(&mut *tx.connection())
    .await?;
    let summed = sqlx::query!(
        "SELECT quota, used, counted, last_counted, last_counted_seq FROM rm.quota_uses WHERE org_id = $1",
        tx.org().uuid(),
    )
    .fetch_all(tx.connection())
    .await?;
    let at = row.seq.unwrap_or_default();
    let mut uses = QuotaUses { seq: from_bigint(at), ..QuotaUses::default() };
    uses.api_keys.used = from_bigint(row.keys);
    for sum in summed {
        // What the last one counts is in the next message, which is not there yet.
        let counted = if sum.last_counted_seq == at { sum.counted - sum.last_counted } else { sum.counted };
        if sum.quota == QuotaName::ApiKeys.name() {
            uses.api_keys.counted = counted;
        } else if sum.quota == QuotaName::StorageBytes.name() {
            uses.storage_bytes = QuotaUse { used: from_bigint(sum.used), counted };
        }
    }
    Ok(uses)
}
