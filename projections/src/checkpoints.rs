//! How far each pipeline has come with an org. The writing half is the opening of a slice.

use orgstream_events::{Pipeline, Shard, Timestamp};

use crate::{
    DbError, TenantTx,
    convert::{from_bigint, parsed},
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
    let org = tx.org().uuid();
    let seq = sqlx::query_scalar!(
        "SELECT seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active",
        org,
        pipeline.name(),
    )
    .fetch_optional(tx.connection())
    .await?;
    Ok(seq.map_or(0, from_bigint))
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
