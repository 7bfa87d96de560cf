//! How far each pipeline has come with an org. The writing half is the opening of a batch.

use orgstream_events::{Pipeline, Shard, Timestamp};

use crate::{
    DbError, TenantTx,
    convert::{from_bigint, parsed, to_bigint},
};

/// How far one pipeline has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which pipeline.
    pub pipeline: Pipeline,
    /// Of which version of its tables.
    pub version: i32,
    /// Whether that is the version that is shown.
    pub active: bool,
    /// The stream that the sequence belongs to.
    pub shard: Shard,
    /// Everything up to it has been applied or parked.
    pub seq: u64,
    /// The lease under which that happened.
    pub epoch: u64,
    /// When.
    pub updated_at: Timestamp,
}

/// How far the pipeline has come with the bound org; 0 before the beginning.
pub async fn position(tx: &mut TenantTx, pipeline: Pipeline) -> Result<u64, DbError> {
    Ok(active(tx, pipeline).await?.map_or(0, |(_, seq)| seq))
}

/// The same with the stream that the sequence belongs to; none before the beginning.
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

/// How far a pipeline has come, and what it has left out on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Everything up to it has been applied or parked; 0 before the beginning.
    pub seq: u64,
    /// The first message that is parked.
    pub parked: Option<u64>,
    /// Whether the message that was asked for is.
    pub lacks_it: bool,
}

/// How far the pipeline has come with the bound org, and whether it has parked the message at `asked`.
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

/// How far every pipeline has come with the bound org.
pub async fn all(tx: &mut TenantTx) -> Result<Vec<Checkpoint>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query!(
        "SELECT pipeline, version, active, shard, seq, epoch, updated_at FROM ops.checkpoints WHERE org_id = $1
        ORDER BY pipeline, version, shard",
        org,
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
