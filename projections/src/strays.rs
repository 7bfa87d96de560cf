//! Messages that belong to no organization of their shard: applied nowhere, listed for an operator.

use orgstream_events::{Shard, Timestamp};

use crate::{
    Database, DbError,
    convert::{column, from_bigint, to_bigint},
};

/// How many of the newest of a shard are kept. The log has all of them.
const KEPT: i64 = 1_000;

/// A message that belongs to no organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The stream that it is in.
    pub shard: Shard,
    /// Its sequence there.
    pub seq: u64,
    /// The subject that it was published on.
    pub subject: String,
    /// The reason, in one line.
    pub reason: String,
}

/// A stray with the time when it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayFound {
    /// The message.
    pub stray: Stray,
    /// When it was first read.
    pub found_at: Timestamp,
}

impl Database {
    /// Stores the strays found in a shard. Those stored already stay unchanged.
    pub async fn keep_strays(&self, shard: Shard, strays: &[Stray]) -> Result<(), DbError> {
        let shard = i32::from(shard.0);
        // PostgreSQL text cannot contain a NUL character.
        let (subjects, reasons) = (
            column(strays, |stray| stray.subject.replace('\0', " ")),
            column(strays, |stray| stray.reason.replace('\0', " ")),
        );
        sqlx::query!(
            "INSERT INTO ops.strays (shard, seq, subject, reason)
            SELECT $1, stray.* FROM unnest($2::bigint[], $3::text[], $4::text[]) AS stray
            ON CONFLICT DO NOTHING",
            shard,
            &column(strays, |stray| to_bigint(stray.seq)),
            &subjects,
            &reasons,
        )
        .execute(self.ops_pool())
        .await?;
        sqlx::query!(
            "DELETE FROM ops.strays WHERE shard = $1 AND seq <= (
                SELECT seq FROM ops.strays WHERE shard = $1 ORDER BY seq DESC OFFSET $2 LIMIT 1
            )",
            shard,
            KEPT,
        )
        .execute(self.ops_pool())
        .await?;
        Ok(())
    }

    /// Returns the most recently found strays, the newest first.
    pub async fn strays(&self, limit: u16) -> Result<Vec<StrayFound>, DbError> {
        let rows = sqlx::query!(
            "SELECT shard, seq, subject, reason, found_at FROM ops.strays ORDER BY found_at DESC, shard, seq DESC LIMIT $1",
            i64::from(limit),
        )
        .fetch_all(self.ops_pool())
        .await?;
        let found = rows.into_iter().map(|row| StrayFound {
            stray: Stray {
                shard: Shard(u16::try_from(row.shard).unwrap_or(u16::MAX)),
                seq: from_bigint(row.seq),
                subject: row.subject,
                reason: row.reason,
            },
            found_at: row.found_at.into(),
        });
        Ok(found.collect())
    }
}
