//! The transaction that events are applied in: batches of several orgs, each opened by moving its checkpoint.

use std::sync::Arc;

use orgstream_events::{OrgId, Pipeline, PlanName, Shard};
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::{
    BoundOrg, DbError, TenantTx,
    apply::version_setting,
    audit::{LogEnd, Pin},
    convert::{column, from_bigint, to_bigint},
    isolation_violation::Alarm,
    search::target::{OpenIndex, Outgoing, SearchTargets, Writer},
    views::{Folding, PlainKinds, TakesUp},
};

/// The result of opening a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchStart {
    /// The checkpoint has been moved; the commits up to it have to be applied now.
    Open {
        /// Whether the org has parked messages in this pipeline; later ones of the same aggregate must be parked behind
        /// them.
        parked: bool,
    },
    /// The checkpoint was elsewhere: another process moved it, or this is a redelivery. Nothing has changed.
    Moved {
        /// The stored checkpoint; 0 when there is none.
        stored_seq: u64,
    },
    /// The shard has another owner. Nothing has changed.
    Fenced,
    /// The org was deleted. Nothing has changed, and nothing is to be applied.
    Deleted,
}

/// A batch to be opened: of one pipeline, from its current checkpoint to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The pipeline, which determines the tables.
    pub pipeline: Pipeline,
    /// The current checkpoint. If none is given the org must have none yet; otherwise the result reports the stored
    /// one.
    pub from: Option<u64>,
    /// The next checkpoint.
    pub to: u64,
}

/// One transaction for the batches of any number of orgs. Dropping it rolls all of them back.
#[derive(Debug)]
pub struct ApplyTx {
    transaction: Transaction<'static, Postgres>,
    /// The org that it is bound to, with the pipelines whose batches are open, and the one of them being written.
    open: Option<(OrgId, Vec<Pipeline>)>,
    current: Option<Pipeline>,
    plan: Option<PlanName>,
    /// The end of the org's audit log, while a batch of it is open, and its end at the savepoint.
    log_end: Option<LogEnd>,
    saved_end: Option<LogEnd>,
    /// What is known of the views of the bound version.
    folding: Folding,
    search_targets: SearchTargets,
    /// What the open batch of the search pipeline writes, if its index is not here.
    outgoing: Option<Outgoing>,
    /// Whether a batch was left before what it writes elsewhere was written.
    is_unsent: bool,
}

impl ApplyTx {
    pub(crate) fn new(
        transaction: Transaction<'static, Postgres>,
        plain: Arc<PlainKinds>,
        search_targets: SearchTargets,
    ) -> Self {
        Self {
            transaction,
            open: None,
            current: None,
            plan: None,
            log_end: None,
            saved_end: None,
            folding: Folding { plain, ..Folding::default() },
            search_targets,
            outgoing: None,
            is_unsent: false,
        }
    }

    /// Opens a single batch, and selects it.
    pub async fn open(
        &mut self,
        org: BoundOrg,
        pipeline: Pipeline,
        shard: Shard,
        epoch: u64,
        from: Option<u64>,
        to: u64,
    ) -> Result<BatchStart, DbError> {
        let starts = self.open_all(org, shard, epoch, &[Opening { pipeline, from, to }]).await?;
        self.turn_to(pipeline);
        starts.first().copied().ok_or(DbError::NotOpen(org.org()))
    }

    /// Binds the transaction to `org` and moves the checkpoints of its batches, in one round trip. The results are in
    /// the order of `openings`, and independent of each other.
    ///
    /// The batches opened before these are complete: they cannot be selected again.
    pub async fn open_all(
        &mut self,
        org: BoundOrg,
        shard: Shard,
        epoch: u64,
        openings: &[Opening],
    ) -> Result<Vec<BatchStart>, DbError> {
        self.close();
        let rows = sqlx::query!(
            r#"SELECT begun.state AS "state!", begun.stored_seq AS "stored_seq!", begun.parked AS "parked!",
                begun.plan, begun.log_size, begun.log_frontier,
                begun.state = 'open' AND batch.folds AND app.folds_views($1) AS "folds_views!",
                CASE WHEN begun.state = 'open' AND batch.searches THEN ops.search_target($1) END AS search_target
            FROM unnest($4::text[], $5::text[], $6::boolean[], $7::bigint[], $8::bigint[], $9::boolean[], $10::boolean[])
                WITH ORDINALITY AS batch (pipeline, version_setting, is_log, from_seq, to_seq, folds, searches, place)
            CROSS JOIN LATERAL ops.open_batch(
                $1, batch.pipeline, batch.version_setting, batch.is_log, $2, $3, batch.from_seq, batch.to_seq
            ) AS begun
            ORDER BY batch.place"#,
            org.org().uuid(),
            i32::from(shard.0),
            to_bigint(epoch),
            column(openings, |batch| batch.pipeline.name()) as _,
            column(openings, |batch| version_setting(batch.pipeline)) as _,
            &column(openings, |batch| batch.pipeline.is_log()),
            &column(openings, |batch| batch.from.map(to_bigint)) as &[Option<i64>],
            &column(openings, |batch| to_bigint(batch.to)),
            &column(openings, |batch| batch.pipeline == Pipeline::ReadModels),
            &column(openings, |batch| batch.pipeline == Pipeline::Search),
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let mut starts = Vec::with_capacity(openings.len());
        let mut open = Vec::with_capacity(openings.len());
        let mut search_target = None;
        for (batch, row) in openings.iter().zip(rows) {
            starts.push(match row.state.as_str() {
                "open" => {
                    open.push(batch.pipeline);
                    // A plan name that only a newer version can read must not keep the batch from being applied.
                    self.plan = row.plan.and_then(|plan| plan.parse().ok());
                    if batch.pipeline == Pipeline::ReadModels {
                        self.folding.folds = Some(row.folds_views);
                    }
                    search_target = row.search_target.or(search_target);
                    if batch.pipeline.is_log() {
                        self.log_end = Some(LogEnd::stored(row.log_size, row.log_frontier)?);
                    }
                    BatchStart::Open { parked: row.parked }
                }
                "moved" => BatchStart::Moved { stored_seq: from_bigint(row.stored_seq) },
                "fenced" => BatchStart::Fenced,
                "deleted" => BatchStart::Deleted,
                _ => return Err(DbError::Unreadable { what: "the state of a batch", value: row.state }),
            });
        }
        self.open = Some((org.org(), open));
        if let Some(name) = search_target {
            let version: i32 =
                sqlx::query_scalar("SELECT app.search_version()").fetch_one(&mut *self.transaction).await?;
            let index = OpenIndex::new(self.search_targets.clone(), name, org, version);
            self.outgoing = Some(Outgoing::new(index, Writer { epoch, is_shown: true }));
        }
        Ok(starts)
    }

    /// Whether the batch of the search pipeline writes to a search target.
    pub fn writes_elsewhere(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Writes what the batch of the search pipeline has for a search target, at the end of the batch: the checkpoint commits
    /// after it.
    pub async fn send(&mut self) -> Result<(), DbError> {
        match &mut self.outgoing {
            Some(outgoing) => outgoing.send().await,
            None => Ok(()),
        }
    }

    /// What goes to a search target, if the current batch is one of `org` whose index is there.
    pub(crate) fn outgoing(&mut self, org: BoundOrg) -> Result<Option<&mut Outgoing>, DbError> {
        let (_, pipeline) = self.connection(org)?;
        Ok(self.outgoing.as_mut().filter(|_| pipeline == Pipeline::Search))
    }

    /// Sends what the bound version of the index has from now on to where it is.
    pub(crate) fn write_to(&mut self, index: Option<OpenIndex>, writer: Writer) {
        self.outgoing = index.map(|index| Outgoing::new(index, writer));
    }

    /// The search target of the bound version of the index, if it is in one.
    pub(crate) fn index_elsewhere(&self) -> Option<&OpenIndex> {
        self.outgoing.as_ref().map(Outgoing::index)
    }

    /// The search targets that this process knows.
    pub(crate) fn search_targets(&self) -> &SearchTargets {
        &self.search_targets
    }

    /// Selects the batch of `pipeline` for the following writes, if that is open.
    pub fn turn_to(&mut self, pipeline: Pipeline) {
        self.current = self.open.as_ref().and_then(|(_, open)| open.contains(&pipeline).then_some(pipeline));
    }

    /// The plan of the open batches' org, as known when the batch was opened.
    pub fn plan(&self) -> PlanName {
        self.plan.clone().unwrap_or_default()
    }

    /// Sets a savepoint inside the open batch. One at a time.
    pub async fn savepoint(&mut self) -> Result<(), DbError> {
        self.saved_end = self.log_end.clone();
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.save();
        }
        self.say("SAVEPOINT attempt").await
    }

    /// Keeps the changes since the savepoint.
    pub async fn release_savepoint(&mut self) -> Result<(), DbError> {
        self.say("RELEASE SAVEPOINT attempt").await
    }

    /// Undoes the changes since the savepoint; the batch continues.
    pub async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.log_end = self.saved_end.take();
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.undo();
        }
        self.say("ROLLBACK TO SAVEPOINT attempt").await?;
        self.release_savepoint().await
    }

    async fn say(&mut self, statement: &'static str) -> Result<(), DbError> {
        sqlx::query(statement).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Commits all batches, together.
    pub async fn commit(mut self) -> Result<(), DbError> {
        self.close();
        if self.is_unsent {
            return Err(DbError::unavailable("a batch was not sent to the search target of its organization"));
        }
        Ok(self.transaction.commit().await?)
    }

    /// Rolls all batches back, and waits for it.
    pub async fn rollback(self) -> Result<(), DbError> {
        Ok(self.transaction.rollback().await?)
    }

    /// Rolls back after a failure that the connection's cached plans may have contributed to: it discards them.
    pub async fn undo(mut self) -> Result<(), DbError> {
        self.transaction.clear_cached_statements().await?;
        self.rollback().await
    }

    /// The connection, before any batch is open.
    pub(crate) fn unopened(&mut self) -> &mut PgConnection {
        self.close();
        &mut self.transaction
    }

    fn close(&mut self) {
        self.is_unsent |= self.outgoing.take().is_some_and(|outgoing| outgoing.is_pending());
        (self.open, self.current, self.plan) = (None, None, None);
        (self.log_end, self.saved_end) = (None, None);
        self.folding.folds = None;
    }

    /// Determines from where the version takes up views.
    pub(crate) fn take_up(&mut self, takes_up: TakesUp) {
        self.folding.takes_up = takes_up;
    }

    /// What is known of the views of the bound version.
    pub(crate) fn folding(&self) -> &Folding {
        &self.folding
    }

    /// Notes whether the bound version folds views.
    pub(crate) fn folds_views(&mut self, folds: Option<bool>) {
        self.folding.folds = folds;
    }

    /// Turns the transaction into one for queries, which see what was written in it. It is never committed.
    pub(crate) fn into_view(self, org: BoundOrg, alarm: Alarm, pin: Pin) -> TenantTx {
        TenantTx::new(self.transaction, org, alarm, pin).searching(self.search_targets)
    }

    /// Binds the transaction to `org` and to this version of the rows of these pipelines directly, without opening a
    /// batch. It sees no version of the others.
    pub(crate) async fn bind_version(
        &mut self,
        org: BoundOrg,
        pipelines: &[Pipeline],
        version: i32,
    ) -> Result<(), DbError> {
        let settings: Vec<(&str, i32)> = Pipeline::ALL
            .into_iter()
            .filter_map(|pipeline| {
                Some((version_setting(pipeline)?, if pipelines.contains(&pipeline) { version } else { 0 }))
            })
            .collect();
        sqlx::query!(
            r#"SELECT set_config('app.org_id', $1, true) AS org,
                (SELECT count(set_config(name, version::text, true)) FROM unnest($2::text[], $3::integer[]) AS one (name, version))
                    AS versions"#,
            org.org().uuid().to_string(),
            column(&settings, |(name, _)| *name) as _,
            &column(&settings, |(_, version)| *version),
        )
        .fetch_one(self.unopened())
        .await?;
        Ok(())
    }

    /// Records that the transaction was bound to `org` and a version of these pipelines' rows directly, and selects
    /// the first.
    pub(crate) fn opened(&mut self, org: BoundOrg, pipelines: &[Pipeline]) {
        self.open = Some((org.org(), pipelines.to_vec()));
        self.current = pipelines.first().copied();
    }

    /// Returns the connection, if the current batch is one of `org`.
    pub(crate) fn connection(&mut self, org: BoundOrg) -> Result<(&mut PgConnection, Pipeline), DbError> {
        match (&self.open, self.current) {
            (Some((open, _)), Some(pipeline)) if *open == org.org() => Ok((&mut self.transaction, pipeline)),
            _ => Err(DbError::NotOpen(org.org())),
        }
    }

    /// Returns the connection, if the current batch is one of `org` and of this pipeline.
    pub(crate) fn connection_of(&mut self, org: BoundOrg, pipeline: Pipeline) -> Result<&mut PgConnection, DbError> {
        match self.connection(org)? {
            (connection, open) if open == pipeline => Ok(connection),
            _ => Err(DbError::NotOpen(org.org())),
        }
    }

    /// Returns the connection for the audit log, with the log's end.
    pub(crate) fn log_of(&mut self, org: BoundOrg) -> Result<(&mut PgConnection, &mut LogEnd), DbError> {
        self.connection_of(org, Pipeline::Audit)?;
        let end = self.log_end.as_mut().ok_or(DbError::NotOpen(org.org()))?;
        Ok((&mut self.transaction, end))
    }
}
