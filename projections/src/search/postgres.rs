//! A search target that is another PostgreSQL database: the same tables, under the same row-level security.
//!
//! A write is a transaction there, which is on disk before the checkpoint in the database of the read models moves. It removes what is
//! there of each record first, so that it may be repeated; and the epoch of the worker's lease keeps out what comes too late.

use std::time::Duration;

use futures_util::future::BoxFuture;
use orgstream_events::{Pipeline, RecordId, cause};

use super::{
    Asked, Matched,
    find::{matching_here, records_here},
    target::{Change, IndexVersion, IndexedRecord, SearchTarget, TargetError, Writer},
    write,
};
use crate::{ApplyTx, BatchClass, Database, DatabaseOptions, DbError, TenantTx, convert::to_bigint};

/// Timeout of a statement.
const STATEMENT: Duration = Duration::from_secs(5);

/// A PostgreSQL database that is a search target.
#[derive(Debug)]
pub struct PostgresTarget {
    db: Database,
}

impl PostgresTarget {
    /// Creates the target. It connects with its first use.
    pub fn new(options: &DatabaseOptions) -> Result<Self, DbError> {
        Ok(Self { db: Database::on_demand(options)? })
    }

    async fn begin(&self, at: IndexVersion) -> Result<ApplyTx, DbError> {
        let mut tx = self.db.begin_batches(BatchClass::Backlog, STATEMENT).await?;
        tx.bind_version(at.org, &[Pipeline::Search], at.version).await?;
        tx.opened(at.org, &[Pipeline::Search]);
        Ok(tx)
    }

    async fn read(&self, at: IndexVersion) -> Result<TenantTx, DbError> {
        let mut tx = self.db.read(at.org).await?;
        tx.look_at(Pipeline::Search, at.version).await?;
        Ok(tx)
    }

    async fn check_database(&self) -> Result<(), TargetError> {
        let findings = self.db.preflight().await?;
        match findings.first() {
            None => Ok(()),
            Some(finding) => Err(TargetError::Away(cause(finding.to_string()))),
        }
    }

    async fn write_changes(&self, at: IndexVersion, writer: Writer, changes: &[Change]) -> Result<(), TargetError> {
        let mut tx = self.begin(at).await?;
        let connection = tx.connection_of(at.org, Pipeline::Search)?;
        // The database of the read models may have the checkpoint on disk before this would be.
        let durable = sqlx::query("SELECT set_config('synchronous_commit', 'on', true)");
        durable.execute(connection).await.map_err(DbError::from)?;
        take_over(&mut tx, at, to_bigint(writer.epoch)).await?;
        let connection = tx.connection_of(at.org, Pipeline::Search)?;
        let known = changes.iter().map(|change| change.id).collect();
        write(connection, at.org.org().uuid(), &known, changes).await?;
        Ok(tx.commit().await?)
    }

    async fn drop_rows(&self, at: IndexVersion, rows: u32) -> Result<bool, TargetError> {
        let mut tx = self.begin(at).await?;
        take_over(&mut tx, at, i64::MAX).await?;
        let dropped = tx.drop_version(at.org, at.version, rows).await?;
        tx.commit().await?;
        Ok(dropped == 0)
    }
}

impl From<DbError> for TargetError {
    fn from(error: DbError) -> Self {
        // A statement that takes too long may be one of a large organization.
        let is_away = error.is_retryable() && !error.is_of_some_rows();
        if is_away { Self::Away(cause(error)) } else { Self::OfIndex(cause(error)) }
    }
}

/// Notes the epoch of a writer, and holds the version until the transaction ends. Fails if there was a later one.
async fn take_over(tx: &mut ApplyTx, at: IndexVersion, epoch: i64) -> Result<(), TargetError> {
    let connection = tx.connection_of(at.org, Pipeline::Search)?;
    let held: Option<i32> = sqlx::query_scalar(
        "INSERT INTO ops.search_writers AS writer (org_id, version, epoch) VALUES ($1, $2, $3)
        ON CONFLICT (org_id, version) DO UPDATE SET epoch = excluded.epoch WHERE writer.epoch <= excluded.epoch
        RETURNING version",
    )
    .bind(at.org.org().uuid())
    .bind(at.version)
    .bind(epoch)
    .fetch_optional(connection)
    .await
    .map_err(DbError::from)?;
    match held {
        Some(_) => Ok(()),
        None => Err(TargetError::OfIndex(cause("another worker writes to this version, or it was dropped"))),
    }
}

impl SearchTarget for PostgresTarget {
    fn check(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.check_database())
    }

    fn create(&self, _: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
        // The tables are there.
        Box::pin(async { Ok(()) })
    }

    fn write<'a>(
        &'a self,
        at: IndexVersion,
        writer: Writer,
        changes: &'a [Change],
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(self.write_changes(at, writer, changes))
    }

    fn show(&self, _: IndexVersion) -> BoxFuture<'_, Result<(), TargetError>> {
        // What is committed is found.
        Box::pin(async { Ok(()) })
    }

    fn drop_version(&self, at: IndexVersion, rows: u32) -> BoxFuture<'_, Result<bool, TargetError>> {
        Box::pin(self.drop_rows(at, rows))
    }

    fn matching<'a>(&'a self, at: IndexVersion, asked: Asked<'a>) -> BoxFuture<'a, Result<Matched, TargetError>> {
        Box::pin(async move {
            let mut tx = self.read(at).await?;
            Ok(matching_here(&mut tx, asked).await?)
        })
    }

    fn records<'a>(
        &'a self,
        at: IndexVersion,
        ids: &'a [RecordId],
    ) -> BoxFuture<'a, Result<Vec<IndexedRecord>, TargetError>> {
        Box::pin(async move {
            let mut tx = self.read(at).await?;
            Ok(records_here(&mut tx, ids).await?)
        })
    }
}
