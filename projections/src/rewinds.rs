//! Orgs whose checkpoint was put back: what the owner of their shard must be told.

use orgstream_events::{OrgId, Pipeline, Shard};
use time::OffsetDateTime;

use crate::{Database, DbError};

/// One org whose checkpoint in one pipeline was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewind {
    /// The shard that holds the org.
    pub shard: Shard,
    /// The tenant.
    pub org: OrgId,
    /// The pipeline.
    pub pipeline: Pipeline,
    requested_at: OffsetDateTime,
}

impl Database {
    /// What was put back in these shards, oldest first.
    pub async fn rewinds(&self, shards: &[Shard]) -> Result<Vec<Rewind>, DbError> {
        let shards: Vec<i32> = shards.iter().map(|shard| i32::from(shard.0)).collect();
        let rows = sqlx::query!(
            "SELECT shard, org, pipeline, requested_at FROM ops.rewinds
            WHERE shard = ANY($1) ORDER BY requested_at LIMIT 1000",
            &shards,
        )
        .fetch_all(self.ops_pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                let pipeline = row.pipeline.parse();
                Ok(Rewind {
                    shard: Shard(u16::try_from(row.shard).unwrap_or_default()),
                    org: OrgId::from_uuid(row.org),
                    pipeline: pipeline.map_err(|_| DbError::Unreadable { what: "a pipeline", value: row.pipeline })?,
                    requested_at: row.requested_at,
                })
            })
            .collect()
    }

    /// The owner of the shard knows, and has written down that the lane is behind.
    pub async fn forget_rewind(&self, rewind: &Rewind) -> Result<(), DbError> {
        sqlx::query!(
            "DELETE FROM ops.rewinds WHERE shard = $1 AND org = $2 AND pipeline = $3 AND requested_at = $4",
            i32::from(rewind.shard.0),
            rewind.org.uuid(),
            rewind.pipeline.name(),
            rewind.requested_at,
        )
        .execute(self.ops_pool())
        .await?;
        Ok(())
    }
}
