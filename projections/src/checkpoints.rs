//! The checkpoints of an org's pipelines. They are written by opening a batch.

use orgstream_events::{PerPipeline, Pipeline, Shard, Timestamp};

use crate::{
    DbError, TenantTx,
    convert::{from_bigint, parsed, to_bigint},
};

/// The checkpoint of one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The version of its tables.
    pub version: i32,
    /// Whether that is the active version.
    pub active: bool,
    /// The stream that the sequence belongs to.
    pub shard: Shard,
    /// Everything up to it has been applied or parked.
    pub seq: u64,
    /// The epoch of the lease under which that happened.
    pub epoch: u64,
    /// When that happened.
    pub updated_at: Timestamp,
}

/// Returns the pipeline's position for the bound org; 0 before the beginning.
pub async fn position(tx: &mut TenantTx, pipeline: Pipeline) -> Result<u64, DbError> {
    Ok(active(tx, pipeline).await?.map_or(0, |(_, seq)| seq))
}

/// Returns the pipeline's position with its stream; none before the beginning.
pub async fn active(tx: &mut TenantTx, pipeline: Pipeline) -> Result<Option<(Shard, u64)>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query!(
        "SELECT shard, seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active",
        org,
        pipeline.name(),
    )
    .fetch_optional(tx.connection())
    .await?;
    Ok(row.map(|row| (Shard(u16::try_from(row.shard).unwrap_or(u16::MAX)), from_bigint(row.seq))))
}

/// Returns the positions of all pipelines with their streams, in one query.
pub async fn each(tx: &mut TenantTx) -> Result<PerPipeline<Option<(Shard, u64)>>, DbError> {
    let mut each = PerPipeline::default();
    for Checkpoint { pipeline, shard, seq, .. } in all(tx).await?.into_iter().filter(|checkpoint| checkpoint.active) {
        each[pipeline] = Some((shard, seq));
    }
    Ok(each)
}

/// A pipeline's position, and the messages it has skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Everything up to it has been applied or parked; 0 before the beginning.
    pub seq: u64,
    /// The first parked message.
    pub parked: Option<u64>,
    /// Whether the requested message is parked.
    pub lacks_it: bool,
}

/// Returns the pipeline's position for the bound org, and whether it has parked the message at `asked`.
pub async fn reach(tx: &mut TenantTx, pipeline: Pipeline, asked: u64) -> Result<Reach, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query!(
        r#"SELECT
            (SELECT seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active) AS seq,
            (SELECT min(seq) FROM ops.parked WHERE org_id = $1 AND pipeline = $2) AS parked,
            EXISTS (SELECT FROM ops.parked WHERE org_id = $1 AND pipeline = $2 AND seq = $3) AS "lacks_it!""#,
        org,
        pipeline.name(),
        to_bigint(asked),
    )
    .fetch_one(tx.connection())
    .await?;
    Ok(Reach { seq: row.seq.map_or(0, from_bigint), parked: row.parked.map(from_bigint), lacks_it: row.lacks_it })
}

/// Returns every pipeline's position for the bound org. Without those of pipelines that only a newer version knows.
pub async fn all(tx: &mut TenantTx) -> Result<Vec<Checkpoint>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        "SELECT pipeline, version, active, shard, seq, epoch, updated_at FROM ops.checkpoints
        WHERE org_id = $1 AND pipeline = ANY ($2) ORDER BY pipeline, version, shard",
        org,
        Pipeline::NAMES as _,
    )
    .fetch_all(tx.connection())
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Checkpoint {
                pipeline: parsed("a pipeline", row.pipeline)?,
                version: row.version,
                active: row.active,
                shard: Shard(u16::try_from(row.shard).unwrap_or(u16::MAX)),
                seq: from_bigint(row.seq),
                epoch: from_bigint(row.epoch),
                updated_at: row.updated_at.into(),
            })
        })
        .collect()
}
