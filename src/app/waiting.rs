//! Waiting for an organization's progress: all waiters for the same progress share one query, which is repeated while any of
//! them waits. A thousand waiting readers cost the database what one does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orgstream_events::{OrgId, Pipeline};
use orgstream_projections::{BoundOrg, Database, DbError, audit, checkpoints};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::problem::Problem;

/// The maximum number of concurrent queries, however many organizations are waited for.
const MAX_CONCURRENCY: usize = 4;
/// The pause between two queries: it doubles each time, from the first to the second value.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// The progress to wait for: a number to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The sequence that a pipeline has applied.
    Applied(Pipeline),
    /// The size of the newest signed head of the audit log.
    Signed,
}

/// The result of the queries.
#[derive(Debug, Clone, Default)]
struct Found {
    at: u64,
    /// The error that ended the queries.
    trouble: Option<Problem>,
}

/// All waiters, by what they wait for. One per process.
pub struct Waiting {
    db: Database,
    looks: Semaphore,
    followed: Mutex<HashMap<(OrgId, Mark), watch::Sender<Found>>>,
}

impl Waiting {
    /// Starts without waiters.
    pub fn new(db: Database) -> Arc<Self> {
        Arc::new(Self { db, looks: Semaphore::new(MAX_CONCURRENCY), followed: Mutex::default() })
    }

    /// Waits until the progress of `org` has reached `wanted`; returns false when it takes longer than `patience`.
    pub async fn until(
        self: &Arc<Self>,
        org: BoundOrg,
        mark: Mark,
        wanted: u64,
        patience: Duration,
    ) -> Result<bool, Problem> {
        let mut found = self.follow(org, mark);
        let waited = timeout(patience, found.wait_for(|found| found.at >= wanted || found.trouble.is_some())).await;
        match waited {
            Ok(Ok(found)) => match &found.trouble {
                Some(problem) => Err(problem.clone()),
                None => Ok(true),
            },
            Ok(Err(_)) => Err(Problem::unavailable("The read models cannot be looked at at the moment; try again.")),
            Err(_) => Ok(false),
        }
    }

    /// Subscribes one more waiter to the shared result.
    fn follow(self: &Arc<Self>, org: BoundOrg, mark: Mark) -> watch::Receiver<Found> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = followed.get(&(org.org(), mark)) {
            return known.subscribe();
        }
        let (sender, receiver) = watch::channel(Found::default());
        followed.insert((org.org(), mark), sender.clone());
        tokio::spawn(Arc::clone(self).look(org, mark, sender));
        receiver
    }

    /// Repeats the query, for as long as there are waiters.
    async fn look(self: Arc<Self>, org: BoundOrg, mark: Mark, sender: watch::Sender<Found>) {
        let mut pause = PAUSES.0;
        loop {
            let found = self.look_once(org, mark).await.map_err(Problem::from);
            let is_over = found.is_err();
            // Later waiters start a query of their own.
            if self.forget(org, mark, is_over, &sender) {
                sender.send_modify(|told| match found {
                    Ok(at) => told.at = at,
                    Err(problem) => told.trouble = Some(problem),
                });
                return;
            }
            let moved = sender.send_if_modified(|told| {
                let at = found.as_ref().copied().unwrap_or_default();
                let moves = at > told.at;
                told.at = told.at.max(at);
                moves
            });
            pause = if moved { PAUSES.0 } else { (pause * 2).min(PAUSES.1) };
            sleep(pause).await;
        }
    }

    async fn look_once(&self, org: BoundOrg, mark: Mark) -> Result<u64, DbError> {
        let _turn = self.looks.acquire().await;
        let mut tx = self.db.read(org).await?;
        match mark {
            Mark::Applied(pipeline) => checkpoints::position(&mut tx, pipeline).await,
            Mark::Signed => Ok(audit::newest_checkpoint(&mut tx).await?.map_or(0, |newest| newest.head.size)),
        }
    }

    /// Whether the queries end here, because there are no more waiters or because they fail.
    fn forget(&self, org: BoundOrg, mark: Mark, is_over: bool, sender: &watch::Sender<Found>) -> bool {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = is_over || sender.receiver_count() == 0;
        if ends {
            followed.remove(&(org.org(), mark));
        }
        ends
    }
}
