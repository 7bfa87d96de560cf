//! Jobs on the versions of orgs' read models: requested by an operator, carried out step by step by the worker that
//! owns the org's shard. See `versions` for a step.

use orgstream_events::{OrgId, Pipeline, Shard, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    BoundOrg, Database, DbError,
    convert::{column, from_bigint, from_wire, parsed, to_bigint, wire_name},
};

/// The most jobs that a worker receives at a time.
const MAX_CONCURRENCY: i64 = 1_000;

/// The type of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebuildJob {
    /// Build a new version from the audit log, and activate it.
    Build,
    /// Build one, compare it with the active one, and drop it.
    Verify,
    /// Activate the previous version again.
    RollBack,
    /// Drop every version that is not active.
    Drop,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebuildState {
    /// The remains of earlier jobs are dropped.
    Clearing,
    /// Events are applied to the version.
    Building,
    /// Its rows are compared with the active ones.
    Comparing,
    /// Versions no longer needed are dropped.
    Dropping,
    /// No job is running.
    Done,
    /// It cannot continue; a new request makes it retry.
    Failed,
}

impl RebuildState {
    /// Whether a worker has work to do.
    pub fn is_under_way(self) -> bool {
        !matches!(self, Self::Done | Self::Failed)
    }
}

/// The last job of an org, and its progress.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rebuild {
    /// The tenant.
    pub org: OrgId,
    /// The pipeline whose rows it is about.
    pub pipeline: Pipeline,
    /// The shard that holds the org.
    pub shard: Shard,
    /// The type of the job.
    pub job: RebuildJob,
    /// Its state.
    pub state: RebuildState,
    /// The version that it works on.
    pub version: i32,
    /// The previously active version, while it is kept.
    pub previous: Option<i32>,
    /// The active version's position when the job began.
    pub target: u64,
    /// The sequence that the job has reached.
    pub reached: u64,
    /// Events that it has applied.
    pub events: u64,
    /// Events to apply, counted when it began.
    pub total: u64,
    /// Rows that a comparison found to differ.
    pub differences: u64,
    /// The error, if it failed.
    pub error: Option<String>,
    /// When it was requested.
    pub started_at: Timestamp,
    /// When it last made progress.
    pub updated_at: Timestamp,
}

impl Rebuild {
    /// The org, which an operator named in the request.
    pub fn bound(&self) -> BoundOrg {
        BoundOrg::named_by_operator(self.org)
    }
}

/// The result of requesting a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It was started.
    Begun(Rebuild),
    /// It was requested before and is running, or continues from its failure.
    GoesOn(Rebuild),
    /// Another job is running.
    Busy(Rebuild),
    /// The rows are in the search target of this name, where they cannot be compared.
    Elsewhere(String),
    /// The index is where it is to be.
    There,
    /// There is nothing to work on: no read models, or no version to go back to.
    Nothing,
}

/// Where the version of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    /// Where the active one is.
    Same,
    /// In the search target of this name, or in this database.
    In(Option<&'a str>),
}

impl Database {
    /// Requests a job on the rows of a pipeline from the owner of the org's shard. Only a drop ends another job. An index of
    /// words is built again where it is.
    pub async fn ask_rebuild(&self, org: BoundOrg, pipeline: Pipeline, job: RebuildJob) -> Result<Asked, DbError> {
        self.ask_rebuild_in(org, pipeline, job, Place::Same).await
    }

    /// Requests that the org's index of words is built in a search target, and shown from there once it is complete: in the one
    /// of this name, or in this database.
    pub async fn place_index(&self, org: BoundOrg, target: Option<&str>) -> Result<Asked, DbError> {
        self.ask_rebuild_in(org, Pipeline::Search, RebuildJob::Build, Place::In(target)).await
    }

    /// Returns the org of each index that is in a search target, with the name of that, by target and org.
    pub async fn placed_indexes(&self) -> Result<Vec<(OrgId, String)>, DbError> {
        let rows: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT DISTINCT org, target FROM ops.search_indexes ORDER BY target, org")
                .fetch_all(self.ops_pool())
                .await?;
        Ok(rows.into_iter().map(|(org, target)| (OrgId::from_uuid(org), target)).collect())
    }

    async fn ask_rebuild_in(
        &self,
        org: BoundOrg,
        pipeline: Pipeline,
        job: RebuildJob,
        place: Place<'_>,
    ) -> Result<Asked, DbError> {
        let mut tx = self.begin_maintenance(org).await?;
        let id = org.org().uuid();
        let shown = sqlx::query!(
            r#"SELECT version, shard, seq, (
                SELECT max(version) FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2
            ) AS "newest!"
            FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active"#,
            id,
            pipeline.name(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(shown) = shown else { return Ok(Asked::Nothing) };
        // The first caller inserts the row, and the holder of its lock decides.
        sqlx::query!(
            "INSERT INTO ops.rebuilds (org, pipeline, shard, job, state, version, target, total)
            VALUES ($1, $5, $2, 'drop', 'done', $3, $4, 0) ON CONFLICT DO NOTHING",
            id,
            shown.shard,
            shown.version,
            shown.seq,
            pipeline.name(),
        )
        .execute(&mut *tx)
        .await?;
        let Some(known) = find(&mut tx, id, pipeline).await? else { return Ok(Asked::Nothing) };
        let is_index = pipeline == Pipeline::Search;
        let target = if is_index { target_of(&mut tx, id, shown.version).await? } else { None };
        if let Some(target) = &target
            && job == RebuildJob::Verify
        {
            return Ok(Asked::Elsewhere(target.clone()));
        }
        let (wanted, is_there) = match place {
            Place::Same => (target, false),
            Place::In(wanted) => (wanted.map(str::to_owned), wanted == target.as_deref()),
        };
        let is_same_place = place == Place::Same || target_of(&mut tx, id, known.version).await? == wanted;
        if known.state.is_under_way() {
            if known.job == job && is_same_place {
                return Ok(Asked::GoesOn(known));
            }
            if job != RebuildJob::Drop {
                return Ok(Asked::Busy(known));
            }
        }
        if is_there {
            return Ok(Asked::There);
        }
        let has_failed = known.state == RebuildState::Failed && known.job == job;
        let goes_on = has_failed && is_same_place && job != RebuildJob::Drop;
        let fresh = known.version.max(shown.newest) + 1;
        let (state, version, previous) = match job {
            RebuildJob::Build if goes_on => (RebuildState::Clearing, known.version, None),
            RebuildJob::Verify if goes_on => (RebuildState::Clearing, known.version, known.previous),
            RebuildJob::Build => (RebuildState::Clearing, fresh, None),
            RebuildJob::Verify => (RebuildState::Clearing, fresh, known.previous),
            RebuildJob::RollBack => match known.previous {
                Some(previous) => (RebuildState::Building, previous, known.previous),
                None => return Ok(Asked::Nothing),
            },
            RebuildJob::Drop => (RebuildState::Dropping, known.version, None),
        };
        let asked = sqlx::query_as!(
            Row,
            r#"UPDATE ops.rebuilds SET
                shard = $2, job = $3, state = $4, version = $5, previous = $6, target = $7,
                reached = CASE WHEN $8 THEN reached ELSE 0 END,
                events = CASE WHEN $8 THEN events ELSE 0 END,
                total = (
                    SELECT count(*) FROM audit.events WHERE org_id = $1 AND ordinal >= 0 AND seq > coalesce((
                        SELECT seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $9 AND version = $5
                    ), 0) AND $3 <> 'drop'
                ) + CASE WHEN $8 THEN events ELSE 0 END,
                differences = 0, error = NULL, started_at = clock_timestamp(), updated_at = clock_timestamp()
            WHERE org = $1 AND pipeline = $9
            RETURNING org, pipeline, shard, job, state, version, previous, target, reached, events, total, differences, error,
                started_at, updated_at"#,
            id,
            shown.shard,
            wire_name(&job),
            wire_name(&state),
            version,
            previous,
            shown.seq,
            goes_on,
            pipeline.name(),
        )
        .fetch_one(&mut *tx)
        .await?;
        if let (true, RebuildJob::Build, Some(wanted)) = (is_index && !goes_on, job, &wanted) {
            sqlx::query("INSERT INTO ops.search_indexes (org, version, target) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(version)
                .bind(wanted)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        let rebuild = asked.try_into()?;
        Ok(if goes_on { Asked::GoesOn(rebuild) } else { Asked::Begun(rebuild) })
    }

    /// Returns the running jobs of these shards, the oldest first.
    pub async fn rebuilds_under_way(&self, shards: &[Shard]) -> Result<Vec<Rebuild>, DbError> {
        let shards: Vec<i32> = shards.iter().map(|shard| i32::from(shard.0)).collect();
        let rows = sqlx::query_as!(
            Row,
            "SELECT org, pipeline, shard, job, state, version, previous, target, reached, events, total, differences, error,
                started_at, updated_at
            FROM ops.rebuilds WHERE shard = ANY($1) AND state NOT IN ('done', 'failed') ORDER BY started_at LIMIT $2",
            &shards,
            MAX_CONCURRENCY,
        );
        rows.fetch_all(self.ops_pool()).await?.into_iter().map(Rebuild::try_from).collect()
    }

    /// Returns the last job on each pipeline of every org that had one, the latest first.
    pub async fn rebuilds(&self) -> Result<Vec<Rebuild>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT org, pipeline, shard, job, state, version, previous, target, reached, events, total, differences, error,
                started_at, updated_at
            FROM ops.rebuilds ORDER BY started_at DESC",
        );
        rows.fetch_all(self.ops_pool()).await?.into_iter().map(Rebuild::try_from).collect()
    }

    /// Returns the last job of each of these orgs on the rows of a pipeline.
    pub async fn rebuilds_of(&self, orgs: &[OrgId], pipeline: Pipeline) -> Result<Vec<Rebuild>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT org, pipeline, shard, job, state, version, previous, target, reached, events, total, differences, error,
                started_at, updated_at
            FROM ops.rebuilds WHERE org = ANY($1) AND pipeline = $2",
            &column(orgs, |org| org.uuid()),
            pipeline.name(),
        );
        rows.fetch_all(self.ops_pool()).await?.into_iter().map(Rebuild::try_from).collect()
    }

    /// Marks a job as failed with this error, if its state is still the known one.
    pub async fn fail_rebuild(&self, known: &Rebuild, error: &str) -> Result<(), DbError> {
        sqlx::query!(
            "UPDATE ops.rebuilds SET state = 'failed', error = $4, updated_at = clock_timestamp()
            WHERE org = $1 AND state = $2 AND version = $3 AND pipeline = $5",
            known.org.uuid(),
            wire_name(&known.state),
            known.version,
            error.replace('\0', " "),
            known.pipeline.name(),
        )
        .execute(self.ops_pool())
        .await?;
        Ok(())
    }
}

/// Returns the search target that a version of the org's index is in, if it is in one.
async fn target_of(connection: &mut PgConnection, org: Uuid, version: i32) -> Result<Option<String>, DbError> {
    let target = sqlx::query_scalar("SELECT target FROM ops.search_indexes WHERE org = $1 AND version = $2");
    Ok(target.bind(org).bind(version).fetch_optional(connection).await?)
}

/// Returns the row, locked until the transaction ends: no other step or request runs meanwhile.
async fn find(connection: &mut PgConnection, org: Uuid, pipeline: Pipeline) -> Result<Option<Rebuild>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT org, pipeline, shard, job, state, version, previous, target, reached, events, total, differences, error,
            started_at, updated_at
        FROM ops.rebuilds WHERE org = $1 AND pipeline = $2 FOR UPDATE",
        org,
        pipeline.name(),
    );
    row.fetch_optional(connection).await?.map(Rebuild::try_from).transpose()
}

/// Returns the locked row if `epoch` is that of the shard's owner.
pub(crate) async fn hold(
    connection: &mut PgConnection,
    org: Uuid,
    pipeline: Pipeline,
    epoch: u64,
) -> Result<Option<Rebuild>, DbError> {
    let row = sqlx::query_as!(
        Row,
        "SELECT org, pipeline, rebuild.shard, job, state, version, previous, target, reached, events, total, differences, error,
            started_at, updated_at
        FROM ops.rebuilds AS rebuild JOIN ops.shard_leases AS lease USING (shard)
        WHERE org = $1 AND pipeline = $3 AND lease.epoch = $2 FOR UPDATE OF rebuild",
        org,
        to_bigint(epoch),
        pipeline.name(),
    );
    row.fetch_optional(connection).await?.map(Rebuild::try_from).transpose()
}

/// Stores its progress.
pub(crate) async fn keep(connection: &mut PgConnection, rebuild: &Rebuild) -> Result<(), DbError> {
    sqlx::query!(
        "UPDATE ops.rebuilds SET
            state = $2, previous = $3, reached = $4, events = $5, total = greatest(total, $5), differences = $6,
            updated_at = clock_timestamp()
        WHERE org = $1 AND pipeline = $7",
        rebuild.org.uuid(),
        wire_name(&rebuild.state),
        rebuild.previous,
        to_bigint(rebuild.reached),
        to_bigint(rebuild.events),
        to_bigint(rebuild.differences),
        rebuild.pipeline.name(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

struct Row {
    org: Uuid,
    pipeline: String,
    shard: i32,
    job: String,
    state: String,
    version: i32,
    previous: Option<i32>,
    target: i64,
    reached: i64,
    events: i64,
    total: i64,
    differences: i64,
    error: Option<String>,
    started_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Rebuild {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            org: OrgId::from_uuid(row.org),
            pipeline: parsed("a pipeline", row.pipeline)?,
            shard: Shard(u16::try_from(row.shard).unwrap_or(u16::MAX)),
            job: from_wire("a job", row.job)?,
            state: from_wire("the state of a job", row.state)?,
            version: row.version,
            previous: row.previous,
            target: from_bigint(row.target),
            reached: from_bigint(row.reached),
            events: from_bigint(row.events),
            total: from_bigint(row.total),
            differences: from_bigint(row.differences),
            error: row.error,
            started_at: row.started_at.into(),
            updated_at: row.updated_at.into(),
        })
    }
}
