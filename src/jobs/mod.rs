//! Work in the background of the API's processes: every job is listed here once, and supervised. A job that ends or panics is
//! started again after a pause; `/readyz` names it meanwhile, and a metric counts it.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use metrics::counter;
use orgstream_events::Chain;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

pub mod audit_webhook;
pub mod deletions;
pub mod history;
pub mod invoices;
pub mod mail;
pub mod payments;
pub mod view_builds;

/// Pause before the first restart; it doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

macro_rules! jobs {
    ($($(#[$doc:meta])+ $job:ident = $name:literal;)*) => {
        /// A background job. All of them stop when the HTTP server does, and are waited for after its last request, in the
        /// order of this list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum JobName {
            $($(#[$doc])+ $job,)*
        }

        impl JobName {
            /// Names in metrics, `/readyz` and logs.
            pub const NAMES: &[&str] = &[$($name),*];

            /// Name in metrics, `/readyz` and logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$job => $name,)*
                }
            }
        }
    };
}

jobs! {
    /// Answers commands by NATS. The processes share the requests as one queue group.
    NatsCommands = "nats_commands";
    /// Counts the processes of the API, which share rates, limits and accounts. Each process counts for itself.
    ApiPeers = "api_peers";
    /// Carries out the commands of accounts that other processes of the API send. Each account has one process, by a hash.
    AccountCommands = "account_commands";
    /// Sends the mails of the outbox. Each mail is leased by one process at a time, in the database.
    Outbox = "outbox";
    /// Posts audit logs to the addresses of organizations. Each log is leased by one process at a time, in the database.
    AuditWebhooks = "audit_webhooks";
    /// Compares the streams with what was seen of them. Each process compares for itself, and reports in the database.
    LogHistory = "log_history";
    /// Asks for builds of views that were declared after there were records. Each is one job of its organization, in the database.
    ViewBuilds = "view_builds";
    /// Closes months. Each process does so for itself; the log decides that there is one invoice.
    Invoices = "invoices";
    /// Tells the payment provider what is owed. Each process does so for itself; the provider makes each thing once.
    Payments = "payments";
    /// Deletes organizations. Each deletion is leased by one process at a time, in the database.
    Deletions = "deletions";
}

type Run = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// A job with what it does.
pub struct Job {
    name: JobName,
    run: Run,
}

impl Job {
    /// `run` is called for each start, and returns after its token is cancelled.
    pub fn new<F>(name: JobName, run: impl Fn(CancellationToken) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self { name, run: Box::new(move |stop| run(stop).boxed()) }
    }

    /// Runs until `stop`, again after each failure.
    async fn supervise(self, failing: Failing, stop: CancellationToken) {
        let name = self.name.name();
        let mut pause = PAUSE;
        loop {
            let ended = AssertUnwindSafe((self.run)(stop.clone())).catch_unwind().await;
            if stop.is_cancelled() {
                return;
            }
            let reason = match ended {
                Ok(Ok(())) => "it ended before the process was asked to stop".to_owned(),
                Ok(Err(error)) => Chain(error.as_ref()).to_string(),
                Err(_) => "it panicked; the log has the place".to_owned(),
            };
            counter!("orgstream_job_restarts_total", "job" => name).increment(1);
            tracing::error!(
                job = name,
                reason,
                pause_ms = pause.as_millis(),
                "a background job failed and is started again"
            );
            failing.set(self.name, Some(reason));
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            failing.set(self.name, None);
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

/// The jobs that failed and are not started again yet, with the reason of each.
#[derive(Debug, Clone, Default)]
pub struct Failing(Arc<Mutex<BTreeMap<JobName, String>>>);

impl Failing {
    fn set(&self, job: JobName, reason: Option<String>) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => failing.insert(job, reason),
            None => failing.remove(&job),
        };
    }

    /// The first of them.
    pub fn first(&self) -> Option<(JobName, String)> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failing.first_key_value().map(|(job, reason)| (*job, reason.clone()))
    }
}

/// Running jobs.
pub struct Jobs(Vec<(JobName, JoinHandle<()>)>);

impl Jobs {
    /// Starts `jobs`, which run until `stop`. Failures are shown in `failing`.
    pub fn start(mut jobs: Vec<Job>, failing: &Failing, stop: &CancellationToken) -> Self {
        jobs.sort_by_key(|job| job.name);
        let start = |job: Job| (job.name, tokio::spawn(job.supervise(failing.clone(), stop.clone())));
        Self(jobs.into_iter().map(start).collect())
    }

    /// Waits for the end of all of them, in the order of the list.
    pub async fn ended(self) {
        for (job, task) in self.0 {
            if let Err(error) = task.await {
                tracing::error!(job = job.name(), error = %Chain(&error), "a background job ended badly");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use anyhow::bail;
    use tokio::{task::yield_now, time::advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_job_that_fails_is_named_and_started_again() {
        let (stop, failing, starts) = (CancellationToken::new(), Failing::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&starts);
        let job = Job::new(JobName::Outbox, move |stop| {
            let start = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                match start {
                    0 => bail!("no room"),
                    1 => panic!("a mistake"),
                    _ => stop.cancelled().await,
                }
                Ok(())
            }
        });
        let jobs = Jobs::start(vec![job], &failing, &stop);
        for (start, reason) in [(1, "no room"), (2, "it panicked")] {
            while starts.load(Ordering::Relaxed) < start || failing.first().is_none() {
                yield_now().await;
            }
            let (job, found) = failing.first().unwrap();
            assert!(job == JobName::Outbox && found.starts_with(reason), "{found}");
            advance(MAX_PAUSE).await;
        }
        while starts.load(Ordering::Relaxed) < 3 {
            yield_now().await;
        }
        assert_eq!(failing.first().map(|(job, _)| job), None);
        stop.cancel();
        jobs.ended().await;
    }
}
