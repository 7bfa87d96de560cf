//! Execution of transactions. Those of a backlog have threads and connections of their own, with lower priority on the
//! processor: urgent transactions never wait behind the decoding of a few hundred messages, nor behind a server process
//! that the operating system knows as a busy one.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use orgstream_events::{Chain, CommitKeys};
use orgstream_projections::{BatchClass, Database};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
};

use crate::{
    batch::run_group,
    options::WorkerOptions,
    scheduler::{BatchOutcome, Group},
};

/// Threads for backlogs.
const THREADS: usize = 2;
/// Their lower priority, as a `nice` value.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

pub(crate) struct Slots {
    db: Database,
    keys: Arc<CommitKeys>,
    options: WorkerOptions,
    running: JoinSet<(Group, Vec<BatchOutcome>)>,
    backlog: Option<Runtime>,
}

impl Slots {
    pub(crate) fn new(db: Database, keys: Arc<CommitKeys>, options: WorkerOptions) -> Self {
        let backlog = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("backlog")
            .on_thread_start(step_back)
            .enable_all()
            .build()
            .inspect_err(
                |error| tracing::warn!(error = %Chain(&error), "backlogs share the threads of everything else"),
            );
        Self { db, keys, options, running: JoinSet::new(), backlog: backlog.ok() }
    }

    /// Starts a transaction; [`Slots::next`] returns its outcome.
    pub(crate) fn start(&mut self, group: Group) {
        let (db, keys, timeout) = (self.db.clone(), Arc::clone(&self.keys), group.timeout(&self.options));
        let class = group.class();
        let runtime = match class {
            BatchClass::Light => Handle::current(),
            BatchClass::Backlog => self.backlog(),
        };
        let running = async move {
            let outcomes = outcomes(&db, &keys, &group, class, timeout).await;
            (group, outcomes)
        };
        self.running.spawn_on(running, &runtime);
    }

    /// Returns the next transaction that ended; none when none is running.
    pub(crate) async fn next(&mut self) -> Option<(Group, Vec<BatchOutcome>)> {
        // Only an abort could keep a task from its result, and no task is aborted.
        self.running.join_next().await.and_then(Result::ok)
    }

    /// The runtime for long work that no client waits for.
    pub(crate) fn backlog(&self) -> Handle {
        self.backlog.as_ref().map_or_else(Handle::current, |backlog| backlog.handle().clone())
    }

    pub(crate) fn are_empty(&self) -> bool {
        self.running.is_empty()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if let Some(backlog) = self.backlog.take() {
            backlog.shutdown_background();
        }
    }
}

/// A panic is an outcome too: a message that makes a library panic is found and parked like any other.
async fn outcomes(
    db: &Database,
    keys: &CommitKeys,
    group: &Group,
    class: BatchClass,
    timeout: Duration,
) -> Vec<BatchOutcome> {
    let ran = AssertUnwindSafe(run_group(db, keys, &group.batches, class, timeout)).catch_unwind().await;
    ran.unwrap_or_else(|_| {
        let failed = || BatchOutcome::Failed { reason: "applying it ended in a panic; see the log".to_owned() };
        group.batches.iter().map(|_| failed()).collect()
    })
}

#[cfg(target_os = "linux")]
fn step_back() {
    // On Linux a thread has its own niceness. Without it, backlogs only compete a little harder.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(error = %Chain(&error), "a thread could not step back");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}
