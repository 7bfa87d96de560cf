//! The transaction that events are applied in: slices of several orgs, each opened by its checkpoint.

use orgstream_events::{OrgId, Pipeline, Shard};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::{
    BoundOrg, DbError,
    convert::{from_bigint, to_bigint},
};

/// The version of a pipeline's tables. A checkpoint belongs to one.
pub const fn pipeline_version(pipeline: Pipeline) -> i32 {
    match pipeline {
        Pipeline::ReadModels | Pipeline::Audit => 1,
    }
}

/// What became of an attempt to open a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceStart {
    /// The checkpoint has been moved; now apply what lies between.
    Open {
        /// Whether the org has parked messages in this pipeline, which later ones of the same aggregate must follow.
        parked: bool,
    },
    /// The checkpoint was elsewhere: somebody else was here, or this is a second delivery. Nothing has changed.
    Moved {
        /// Where it is; 0 when there is none.
        stored_seq: u64,
    },
    /// The shard has another owner by now. Nothing has changed.
    Fenced,
}

/// One transaction for the slices of any number of orgs. Dropping it undoes all of them.
#[derive(Debug)]
pub struct SliceTx {
    transaction: Transaction<'static, Postgres>,
    open: Option<(OrgId, Pipeline)>,
}

impl SliceTx {
    pub(crate) fn new(transaction: Transaction<'static, Postgres>) -> Self {
        Self { transaction, open: None }
    }

    /// Binds the transaction to `org` and moves the org's checkpoint from `from` to `to`, in one round trip.
    ///
    /// Without `from` the org must have no checkpoint yet; otherwise the answer says where it is.
    /// The slice before this one is complete: there is no way back to it.
    pub async fn open(
        &mut self,
        org: BoundOrg,
        pipeline: Pipeline,
        shard: Shard,
        epoch: u64,
        from: Option<u64>,
        to: u64,
    ) -> Result<SliceStart, DbError> {
        self.open = None;
        let opened = sqlx::query!(
            r#"SELECT state AS "state!", stored_seq AS "stored_seq!", parked AS "parked!"
            FROM ops.open_slice($1, $2, $3, $4, $5, $6, $7)"#,
            org.org().uuid(),
            pipeline.name(),
            pipeline_version(pipeline),
            i32::from(shard.0),
            to_bigint(epoch),
            from.map(to_bigint),
            to_bigint(to),
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        match opened.state.as_str() {
            "open" => {
                self.open = Some((org.org(), pipeline));
                Ok(SliceStart::Open { parked: opened.parked })
            }
            "moved" => Ok(SliceStart::Moved { stored_seq: from_bigint(opened.stored_seq) }),
            "fenced" => Ok(SliceStart::Fenced),
            _ => Err(DbError::Unreadable { what: "the state of a slice", value: opened.state }),
        }
    }

    /// A place to come back to inside the open slice. One at a time.
    pub async fn savepoint(&mut self) -> Result<(), DbError> {
        self.say("SAVEPOINT attempt").await
    }

    /// What happened since the savepoint stays.
    pub async fn release_savepoint(&mut self) -> Result<(), DbError> {
        self.say("RELEASE SAVEPOINT attempt").await
    }

    /// What happened since the savepoint is undone, and the slice goes on.
    pub async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.say("ROLLBACK TO SAVEPOINT attempt").await?;
        self.release_savepoint().await
    }

    async fn say(&mut self, statement: &'static str) -> Result<(), DbError> {
        sqlx::query(statement).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Makes all slices last, together.
    pub async fn commit(self) -> Result<(), DbError> {
        Ok(self.transaction.commit().await?)
    }

    /// Undoes all slices, and waits for it.
    pub async fn rollback(self) -> Result<(), DbError> {
        Ok(self.transaction.rollback().await?)
    }

    /// The connection, if the open slice is one of `org`.
    pub(crate) fn connection(&mut self, org: BoundOrg) -> Result<(&mut PgConnection, Pipeline), DbError> {
        match self.open {
            Some((open, pipeline)) if open == org.org() => Ok((&mut self.transaction, pipeline)),
            _ => Err(DbError::NotOpen(org.org())),
        }
    }

    /// The same, if the slice is also one of this pipeline.
    pub(crate) fn connection_of(&mut self, org: BoundOrg, pipeline: Pipeline) -> Result<&mut PgConnection, DbError> {
        match self.connection(org)? {
            (connection, open) if open == pipeline => Ok(connection),
            _ => Err(DbError::NotOpen(org.org())),
        }
    }
}
