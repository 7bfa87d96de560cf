//! The usage of an organization: its resources and its events.

use orgstream_events::Timestamp;

use crate::{DbError, TenantTx, convert::from_bigint};

/// The counts of an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Events in its audit log.
    pub events: u64,
    /// Those of them after the requested time.
    pub events_since: u64,
    /// Active members.
    pub members: u64,
    /// API keys that were not revoked and have not expired.
    pub api_keys: u64,
}

/// Counts for the bound org. Events are not counted but found by their index in the audit log, so a long history costs
/// no more than a short one.
pub async fn get(tx: &mut TenantTx, since: Timestamp) -> Result<Usage, DbError> {
    let row = sqlx::query!(
        r#"SELECT
            coalesce((SELECT next_idx FROM audit.heads WHERE org_id = $1), 0) AS "events!",
            (SELECT idx FROM audit.events WHERE org_id = $1 AND recorded_at >= $2 ORDER BY recorded_at, idx LIMIT 1) AS first,
            (SELECT count(*) FROM rm.members WHERE org_id = $1 AND status = 'active') AS "members!",
            (SELECT count(*) FROM rm.api_keys
                WHERE org_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) AS "api_keys!""#,
        tx.org().uuid(),
        since.to_datetime(),
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(Usage {
        events: from_bigint(row.events),
        events_since: row.first.map_or(0, |first| from_bigint(row.events - first)),
        members: from_bigint(row.members),
        api_keys: from_bigint(row.api_keys),
    })
}
