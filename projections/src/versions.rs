//! The versions of an org's read models, and the transaction of one step of a job on them: bound to the job's version,
//! fenced like any batch, with the job's own row locked.

use orgstream_events::{AggregateId, Event, ParkingEvent, Pipeline, SealedEvent};
use sqlx::AssertSqlSafe;

use crate::{
    ApplyTx, BoundOrg, DbError, Rebuild, RebuildJob, RebuildState,
    apply::version_setting,
    convert::{column, from_bigint, to_bigint},
    read_model::ReadModel,
    rebuilds,
    search::target::{OpenIndex, Writer},
    views::TakesUp,
};

/// An opened step of a job.
#[derive(Debug, Clone)]
pub struct Step {
    /// The job's current state.
    pub rebuild: Rebuild,
    /// The position of its version.
    pub reached: u64,
    /// The position of the active version.
    pub shown: u64,
    /// The position of the audit log.
    pub audited: u64,
    /// Messages that the audit pipeline has parked: the audit log lacks them.
    pub unaudited: u64,
    /// Whether the version has parked messages.
    pub parked: bool,
}

impl ApplyTx {
    /// Opens the next step of a job. None when the shard has another owner, or the job has changed.
    pub async fn open_step(&mut self, known: &Rebuild, epoch: u64) -> Result<Option<Step>, DbError> {
        let (bound, org) = (known.bound(), known.org.uuid());
        self.bind_version(bound, &[known.pipeline], known.version).await?;
        let Some(rebuild) = rebuilds::hold(self.unopened(), org, known.pipeline, epoch).await? else { return Ok(None) };
        if (rebuild.job, rebuild.state, rebuild.version) != (known.job, known.state, known.version) {
            return Ok(None);
        }
        // What is compared with the active version folds the same views; what is to be shown folds those of today.
        let is_compared = rebuild.job == RebuildJob::Verify;
        self.take_up(if is_compared { TakesUp::Shown } else { TakesUp::Declared });
        self.opened(bound, &[known.pipeline]);
        if known.pipeline == Pipeline::Search {
            let targets = self.search_targets().clone();
            let (connection, _) = self.connection(bound)?;
            let index = OpenIndex::of_version(connection, &targets, bound, known.version).await?;
            self.write_to(index, Writer { epoch, is_shown: false });
        }
        Ok(Some(self.look_again(&rebuild).await?))
    }

    /// Makes the version that is to be built, where it is not in this database.
    pub async fn create_version(&mut self) -> Result<(), DbError> {
        match self.index_elsewhere() {
            Some(index) => index.create().await,
            None => Ok(()),
        }
    }

    /// Reads all positions again.
    pub async fn look_again(&mut self, rebuild: &Rebuild) -> Result<Step, DbError> {
        let (connection, _) = self.connection(rebuild.bound())?;
        let org = rebuild.org.uuid();
        let places = sqlx::query!(
            r#"SELECT
                coalesce(max(seq) FILTER (WHERE pipeline = $3 AND version = $2), 0) AS "reached!",
                coalesce(max(seq) FILTER (WHERE pipeline = $3 AND active), 0) AS "shown!",
                coalesce(max(seq) FILTER (WHERE pipeline = 'audit'), 0) AS "audited!"
            FROM ops.checkpoints WHERE org_id = $1"#,
            org,
            rebuild.version,
            rebuild.pipeline.name(),
        )
        .fetch_one(&mut *connection)
        .await?;
        // After the checkpoint: a message that was parked before it and no longer is, is in the log.
        let parked = sqlx::query!(
            r#"SELECT count(*) FILTER (WHERE pipeline = 'audit') AS "unaudited!",
                count(*) FILTER (WHERE pipeline = $2) AS "own!"
            FROM ops.parked WHERE org_id = $1"#,
            org,
            rebuild.pipeline.name(),
        )
        .fetch_one(connection)
        .await?;
        Ok(Step {
            rebuild: rebuild.clone(),
            reached: from_bigint(places.reached),
            shown: from_bigint(places.shown),
            audited: from_bigint(places.audited),
            unaudited: from_bigint(parked.unaudited),
            parked: parked.own > 0,
        })
    }

    /// Stores the result of the step.
    pub async fn keep_step(&mut self, rebuild: &Rebuild) -> Result<(), DbError> {
        rebuilds::keep(self.connection(rebuild.bound())?.0, rebuild).await
    }

    /// Moves the checkpoint of the job's version, which is not the active one.
    pub async fn move_version(&mut self, rebuild: &Rebuild, epoch: u64, to: u64) -> Result<(), DbError> {
        let (connection, pipeline) = self.connection(rebuild.bound())?;
        sqlx::query!(
            "INSERT INTO ops.checkpoints AS checkpoint (org_id, pipeline, version, active, shard, seq, epoch, updated_at)
            VALUES ($1, $2, $3, false, $4, $5, $6, clock_timestamp())
            ON CONFLICT (org_id, pipeline, version, shard) DO UPDATE SET
                seq = excluded.seq, epoch = excluded.epoch, updated_at = excluded.updated_at
            WHERE NOT checkpoint.active AND checkpoint.seq <= excluded.seq",
            rebuild.org.uuid(),
            pipeline.name(),
            rebuild.version,
            i32::from(rebuild.shard.0),
            to_bigint(to),
            to_bigint(epoch),
        )
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Locks the checkpoint of the active version, so that no batch of the org is running.
    pub async fn hold_shown(&mut self, org: BoundOrg) -> Result<(), DbError> {
        let (connection, pipeline) = self.connection(org)?;
        sqlx::query_scalar!(
            "SELECT seq FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND active FOR UPDATE",
            org.org().uuid(),
            pipeline.name(),
        )
        .fetch_one(connection)
        .await?;
        Ok(())
    }

    /// Activates the job's version in place of the active one, whose number is returned. Both must be at the same
    /// position.
    pub async fn show_version(&mut self, rebuild: &Rebuild) -> Result<i32, DbError> {
        if let Some(index) = self.index_elsewhere() {
            index.show().await?;
        }
        let (connection, pipeline) = self.connection(rebuild.bound())?;
        let before = sqlx::query_scalar!(
            "UPDATE ops.checkpoints SET active = false WHERE org_id = $1 AND pipeline = $2 AND active RETURNING version",
            rebuild.org.uuid(),
            pipeline.name(),
        )
        .fetch_one(&mut *connection)
        .await?;
        sqlx::query_scalar!(
            "UPDATE ops.checkpoints SET active = true WHERE org_id = $1 AND pipeline = $2 AND version = $3
            RETURNING version",
            rebuild.org.uuid(),
            pipeline.name(),
            rebuild.version,
        )
        .fetch_one(connection)
        .await?;
        Ok(before)
    }

    /// Counts the events of the audit log in `after..=upto`, without its marks, up to `most`.
    pub async fn count_events(&mut self, org: BoundOrg, after: u64, upto: u64, most: u32) -> Result<u32, DbError> {
        let (connection, _) = self.connection(org)?;
        let count = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM (
                SELECT FROM audit.events WHERE org_id = $1 AND seq > $2 AND seq <= $3 AND ordinal >= 0 LIMIT $4
            ) AS event"#,
            org.org().uuid(),
            to_bigint(after),
            to_bigint(upto),
            i64::from(most),
        )
        .fetch_one(connection)
        .await?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Returns a message that the audit pipeline had to give up and the open one had not: the audit log does not have
    /// it, so nothing that is built from it can become the active version.
    pub async fn given_up_by_audit(&mut self, org: BoundOrg) -> Result<Option<u64>, DbError> {
        let (connection, own) = self.connection(org)?;
        let skips = sqlx::query!(
            "SELECT header, payload FROM audit.events WHERE org_id = $1 AND action = 'parking.skipped'",
            org.org().uuid(),
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut skipped: Vec<(Pipeline, u64)> = Vec::new();
        for skip in skips {
            let sealed = SealedEvent { header: skip.header.into(), payload: skip.payload.into() };
            let Ok(opened) = sealed.open() else { continue };
            if let (AggregateId::Parking(pipeline), Event::Parking(ParkingEvent::Skipped(skip))) =
                (opened.header.aggregate.aggregate, opened.event)
            {
                skipped.push((pipeline, skip.seq));
            }
        }
        let by_own = |seq: u64| skipped.contains(&(own, seq));
        let by_audit = skipped.iter().filter(|(pipeline, _)| *pipeline == Pipeline::Audit).map(|(_, seq)| *seq);
        let by_audit_alone: Vec<u64> = by_audit.filter(|seq| !by_own(*seq)).collect();
        // A skip that came too late had no effect.
        let gone = sqlx::query_scalar!(
            r#"SELECT wanted AS "wanted!" FROM unnest($2::bigint[]) AS wanted
            WHERE NOT EXISTS (SELECT FROM audit.events WHERE org_id = $1 AND seq = wanted AND ordinal >= 0)
            ORDER BY wanted LIMIT 1"#,
            org.org().uuid(),
            &column(&by_audit_alone, |seq| to_bigint(*seq)),
        )
        .fetch_optional(connection)
        .await?;
        Ok(gone.map(from_bigint))
    }

    /// Returns the versions that the job does not need: neither active, nor kept to go back to, nor being built.
    pub async fn superfluous_versions(&mut self, rebuild: &Rebuild) -> Result<Vec<i32>, DbError> {
        let (connection, pipeline) = self.connection(rebuild.bound())?;
        let own = match (rebuild.job, rebuild.state) {
            (RebuildJob::Build | RebuildJob::Verify, RebuildState::Clearing) => Some(rebuild.version),
            _ => None,
        };
        // A version may be in a search target before it has a checkpoint.
        let versions = sqlx::query_scalar(
            "SELECT version FROM (
                SELECT version FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2
                UNION SELECT version FROM ops.search_indexes WHERE org = $1 AND $5
            ) AS known
            WHERE version IS DISTINCT FROM $3 AND version IS DISTINCT FROM $4 AND NOT EXISTS (
                SELECT FROM ops.checkpoints AS shown
                WHERE shown.org_id = $1 AND shown.pipeline = $2 AND shown.active AND shown.version = known.version
            )
            ORDER BY version",
        )
        .bind(rebuild.org.uuid())
        .bind(pipeline.name())
        .bind(rebuild.previous)
        .bind(own)
        .bind(pipeline == Pipeline::Search);
        Ok(versions.fetch_all(connection).await?)
    }

    /// Deletes up to `rows` rows of a version that is not active, and in the end its checkpoint. Returns the number of
    /// rows.
    pub async fn drop_version(&mut self, org: BoundOrg, version: i32, rows: u32) -> Result<u64, DbError> {
        let targets = self.search_targets().clone();
        let (connection, pipeline) = self.connection(org)?;
        let id = org.org().uuid();
        if pipeline == Pipeline::Search
            && let Some(index) = OpenIndex::of_version(connection, &targets, org, version).await?
            && !index.drop_version(rows).await?
        {
            return Ok(u64::from(rows));
        }
        if let Some(setting) = version_setting(pipeline) {
            sqlx::query!("SELECT set_config($2, $1, true)", version.to_string(), setting)
                .fetch_one(&mut *connection)
                .await?;
        }
        let mut deleted = 0;
        for ReadModel { table, key, key_type, condition, .. } in ReadModel::all_of(pipeline) {
            let left = i64::from(rows) - i64::try_from(deleted).unwrap_or(i64::MAX);
            if left <= 0 {
                return Ok(deleted);
            }
            // Row-level security adds the version. Up to a key, and not by a list of keys: the planner, which does not
            // know the org's size, would compare every row with the whole list.
            let last = format!(
                "SELECT ({key})::text AS as_text FROM {table} WHERE org_id = $1 {condition} ORDER BY {key} OFFSET $2 LIMIT 1"
            );
            let last: Option<String> = sqlx::query_scalar(AssertSqlSafe(last))
                .bind(id)
                .bind(left - 1)
                .fetch_optional(&mut *connection)
                .await?;
            let upto = if last.is_some() { format!("AND {key} <= $2::text::{key_type}") } else { String::new() };
            let delete = format!("DELETE FROM {table} WHERE org_id = $1 {condition} {upto}");
            let delete = sqlx::query(AssertSqlSafe(delete)).bind(id);
            let delete = if last.is_some() { delete.bind(last) } else { delete };
            deleted += delete.execute(&mut *connection).await?.rows_affected();
        }
        if deleted == 0 {
            sqlx::query!(
                "DELETE FROM ops.checkpoints WHERE org_id = $1 AND pipeline = $2 AND version = $3 AND NOT active",
                id,
                pipeline.name(),
                version,
            )
            .execute(&mut *connection)
            .await?;
            if pipeline == Pipeline::Search {
                sqlx::query("DELETE FROM ops.search_indexes WHERE org = $1 AND version = $2")
                    .bind(id)
                    .bind(version)
                    .execute(connection)
                    .await?;
            }
        }
        Ok(deleted)
    }
}
