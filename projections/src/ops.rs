//! Coordination of work: workers, the leases of shards and the low watermark of each shard. No tenant data.

use std::{cmp::Reverse, time::Duration};

use orgstream_events::{OrgId, PerPipeline, Pipeline, Shard, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Connection, PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Database, DbError,
    convert::{column, from_bigint, parsed, to_bigint},
    pool::{is_writable, within},
};

/// A worker's right to a shard, until it expires or another worker takes it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The shard.
    pub shard: Shard,
    /// The worker; none once it was released.
    pub owner: Option<Uuid>,
    /// Grows whenever the owner changes; every batch is checked against it.
    pub epoch: u64,
    /// When any worker may take it.
    pub expires_at: Timestamp,
}

/// The sequence where a cursor may start: everything up to it is done for every lane that is not `catching_up`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LowWatermark {
    /// The stream sequence.
    pub seq: u64,
    /// The lanes that are behind the low watermark and catch up from their own checkpoints.
    pub catching_up: Vec<(OrgId, Pipeline)>,
}

/// The lag of one lane, as its worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneLag {
    /// The tenant.
    pub org: OrgId,
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The stream sequence of the oldest waiting message.
    pub oldest: u64,
    /// Waiting messages in memory; a lane that is catching up has more of them in the log.
    pub waiting: usize,
    /// The age of the oldest of them since it was accepted, in milliseconds.
    pub age_ms: u64,
    /// Whether the lane is catching up: it reads the log at its own pace.
    pub catching_up: bool,
    /// How long its checkpoint is known not to have moved although the log has more for it, in milliseconds.
    pub standing_ms: Option<u64>,
}

impl Database {
    /// Records that the worker is alive, and its lanes with the most lag. The first call registers it.
    pub async fn announce_worker(&self, worker: Uuid, lagging: &[LaneLag]) -> Result<(), DbError> {
        sqlx::query!(
            "INSERT INTO ops.workers (id, lagging) VALUES ($1, $2)
            ON CONFLICT (id) DO UPDATE SET seen_at = now(), lagging = excluded.lagging",
            worker,
            Json(lagging) as _,
        )
        .execute(self.ops_pool())
        .await?;
        Ok(())
    }

    /// Deletes the worker.
    pub async fn retire_worker(&self, worker: Uuid) -> Result<(), DbError> {
        sqlx::query!("DELETE FROM ops.workers WHERE id = $1", worker).execute(self.ops_pool()).await?;
        Ok(())
    }

    /// Returns the workers seen `within` this time, in the order of their ids.
    pub async fn live_workers(&self, within: Duration) -> Result<Vec<Uuid>, DbError> {
        let live = sqlx::query_scalar!(
            "SELECT id FROM ops.workers WHERE seen_at > now() - make_interval(secs => $1) ORDER BY id",
            within.as_secs_f64(),
        );
        Ok(live.fetch_all(self.ops_pool()).await?)
    }

    /// Returns the lanes reported with the most lag by the workers seen `within` this time, stalled ones first.
    pub async fn lagging_lanes(&self, within: Duration) -> Result<Vec<LaneLag>, DbError> {
        let said = sqlx::query_scalar!(
            r#"SELECT lagging AS "lagging: Json<Vec<Value>>" FROM ops.workers
            WHERE seen_at > now() - make_interval(secs => $1)"#,
            within.as_secs_f64(),
        );
        let said = said.fetch_all(self.ops_pool()).await?;
        // A newer worker may name a pipeline that this version does not know.
        let read = |lane| serde_json::from_value::<LaneLag>(lane).ok();
        let mut lanes: Vec<LaneLag> = said.into_iter().flat_map(|Json(lanes)| lanes).filter_map(read).collect();
        lanes.sort_by_key(|lane| Reverse((lane.standing_ms, lane.age_ms, lane.waiting)));
        Ok(lanes)
    }

    /// Acquires the shard for `ttl` if it is free, expired or the worker's own already; None when another worker has
    /// it.
    pub async fn acquire_lease(&self, shard: Shard, worker: Uuid, ttl: Duration) -> Result<Option<Lease>, DbError> {
        let row = sqlx::query_as!(
            LeaseRow,
            "INSERT INTO ops.shard_leases AS lease (shard, owner, epoch, expires_at)
            VALUES ($1, $2, 1, now() + make_interval(secs => $3))
            ON CONFLICT (shard) DO UPDATE SET
                owner = excluded.owner,
                expires_at = excluded.expires_at,
                epoch = lease.epoch + CASE WHEN lease.owner = excluded.owner THEN 0 ELSE 1 END
            WHERE lease.owner IS NULL OR lease.owner = excluded.owner OR lease.expires_at <= now()
            RETURNING shard, owner, epoch, expires_at",
            i32::from(shard.0),
            worker,
            ttl.as_secs_f64(),
        )
        .fetch_optional(self.ops_pool())
        .await?;
        Ok(row.map(Into::into))
    }

    /// Renews every lease that the worker still has, and returns those.
    pub async fn renew_leases(&self, worker: Uuid, ttl: Duration) -> Result<Vec<Lease>, DbError> {
        let rows = sqlx::query_as!(
            LeaseRow,
            "UPDATE ops.shard_leases SET expires_at = now() + make_interval(secs => $2)
            WHERE owner = $1 RETURNING shard, owner, epoch, expires_at",
            worker,
            ttl.as_secs_f64(),
        )
        .fetch_all(self.ops_pool())
        .await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Releases the shard, so that no worker has to wait for the lease to expire. False when it was not this worker's.
    pub async fn release_lease(&self, shard: Shard, worker: Uuid, epoch: u64) -> Result<bool, DbError> {
        let released = sqlx::query!(
            "UPDATE ops.shard_leases SET owner = NULL, expires_at = now()
            WHERE shard = $1 AND owner = $2 AND epoch = $3",
            i32::from(shard.0),
            worker,
            to_bigint(epoch),
        )
        .execute(self.ops_pool())
        .await?;
        Ok(released.rows_affected() == 1)
    }

    /// Returns all leases, by shard.
    pub async fn leases(&self) -> Result<Vec<Lease>, DbError> {
        let rows =
            sqlx::query_as!(LeaseRow, "SELECT shard, owner, epoch, expires_at FROM ops.shard_leases ORDER BY shard")
                .fetch_all(self.ops_pool())
                .await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Returns the shard's low watermark: the lowest of all pipelines. One that has none has applied nothing yet.
    pub async fn low_watermark(&self, shard: Shard) -> Result<LowWatermark, DbError> {
        let rows = sqlx::query!(
            "SELECT pipeline, seq, catching_up FROM ops.low_watermarks WHERE shard = $1 AND pipeline = ANY ($2)",
            i32::from(shard.0),
            Pipeline::NAMES as _,
        )
        .fetch_all(self.ops_pool())
        .await?;
        let (mut seqs, mut catching_up) = (PerPipeline::<u64>::default(), Vec::new());
        for row in rows {
            let pipeline = parsed("a pipeline", row.pipeline)?;
            seqs[pipeline] = from_bigint(row.seq);
            catching_up.extend(row.catching_up.into_iter().map(|org| (OrgId::from_uuid(org), pipeline)));
        }
        catching_up.sort_unstable();
        Ok(LowWatermark { seq: seqs.iter().map(|(_, seq)| *seq).min().unwrap_or_default(), catching_up })
    }

    /// Opens a connection to write low watermarks on.
    pub async fn watermark_writer(&self) -> Result<WatermarkWriter, DbError> {
        Ok(WatermarkWriter(within(PgConnection::connect_with(&self.ops_pool().inner().connect_options())).await?))
    }
}

/// The one connection that a worker writes its low watermarks on.
///
/// Batches are committed without waiting for the disk, so a crash of the server loses the last of them, and a low
/// watermark written afterwards, by a process unaware of the crash, would mark them as done for ever. But no connection
/// outlives a crash: while this one lives, everything that was committed after it was opened still exists, and a low
/// watermark written on it flushes all of that to disk.
#[derive(Debug)]
pub struct WatermarkWriter(PgConnection);

impl WatermarkWriter {
    /// Fails when the server was restarted: then commits since the last low watermark may be lost. Also when the
    /// session may not write.
    pub async fn check(&mut self) -> Result<(), DbError> {
        if within(is_writable(&mut self.0)).await? {
            return Ok(());
        }
        Err(DbError::unavailable("the connection that marks are written on may not write, and is replaced"))
    }

    /// Stores the shard's low watermark. False when another epoch owns the shard: nothing has changed.
    pub async fn write(&mut self, shard: Shard, epoch: u64, mark: &LowWatermark) -> Result<bool, DbError> {
        let written = sqlx::query!(
            "INSERT INTO ops.low_watermarks (shard, pipeline, seq, epoch, catching_up)
            SELECT lease.shard, known.pipeline, $3, lease.epoch, ARRAY(
                SELECT behind.org FROM unnest($5::uuid[], $6::text[]) AS behind (org, pipeline)
                WHERE behind.pipeline = known.pipeline
            )
            FROM ops.shard_leases AS lease CROSS JOIN unnest($4::text[]) AS known (pipeline)
            WHERE lease.shard = $1 AND lease.epoch = $2
            ON CONFLICT (shard, pipeline) DO UPDATE SET
                seq = excluded.seq,
                epoch = excluded.epoch,
                catching_up = excluded.catching_up,
                updated_at = now()",
            i32::from(shard.0),
            to_bigint(epoch),
            to_bigint(mark.seq),
            Pipeline::NAMES as _,
            &column(&mark.catching_up, |(org, _)| org.uuid()),
            column(&mark.catching_up, |(_, pipeline)| pipeline.name()) as _,
        )
        .execute(&mut self.0);
        let stored = within(written).await?;
        Ok(stored.rows_affected() > 0)
    }
}

struct LeaseRow {
    shard: i32,
    owner: Option<Uuid>,
    epoch: i64,
    expires_at: OffsetDateTime,
}

impl From<LeaseRow> for Lease {
    fn from(row: LeaseRow) -> Self {
        Self {
            shard: Shard(u16::try_from(row.shard).unwrap_or(u16::MAX)),
            owner: row.owner,
            epoch: from_bigint(row.epoch),
            expires_at: row.expires_at.into(),
        }
    }
}
