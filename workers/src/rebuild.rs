//! Rebuilds: the jobs on versions of read models in the owned shards, step by step, at the lowest priority.
//!
//! A step is a transaction like a batch, with a slot of its own, but no lane: no client's message waits behind it. It
//! never takes one of the slots in reserve, and while there is other work, all steps together get a tenth of the slots'
//! time. All state that must survive is in the database, so the shard's next owner continues where this worker stopped.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use metrics::{counter, gauge};
use orgstream_events::{Chain, OrgId, Pipeline, Shard};
use orgstream_projections::{Comparison, Database, DbError, Rebuild, audit::LogChecking};
use tokio::{runtime::Handle, task::JoinSet};

use crate::{batch::SILENCE, options::WorkerOptions, rebuild::budget::Budget, scheduler::Scheduler};

mod budget;
mod step;

/// Events or rows in a step: the first, with costs unknown yet, and the most. Below the first number the cost of a step is that
/// of its transactions, which fewer events or rows do not lower, so only one that takes [`LONG_STEP`] has fewer.
const FIRST_SIZE: u32 = 50;
const MOST: u32 = 4_000;
const LONG_STEP: Duration = Duration::from_secs(1);
/// The target duration of a step when there is nothing else to do.
const IDLE_STEP: Duration = Duration::from_millis(40);
/// The pause of a job that could do nothing, because the audit log is not far enough yet.
const PAUSE: Duration = Duration::from_millis(5);
/// The pause when the database cannot be reached, doubled each time up to 64 times.
const OUTAGE: Duration = Duration::from_millis(100);

/// State that a job keeps from step to step, and can restart without.
#[derive(Default)]
pub(crate) struct Memory {
    /// The comparison of the version with the active one.
    comparison: Option<Box<Comparison>>,
    /// The check of the audit log that the version is built from.
    checking: Option<Box<LogChecking>>,
    /// The position of the active version at the last look.
    shown: Option<u64>,
}

/// The outcome of a step.
pub(crate) enum StepOutcome {
    /// There is more to do.
    GoesOn { rebuild: Rebuild, memory: Memory, events: u64 },
    /// Nothing could be done yet.
    Waits(Memory),
    /// The job is done.
    Done { rebuild: Rebuild, events: u64 },
    /// It is not this worker's, or has been replaced by another job.
    Gone,
}

/// The reason why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Database(#[from] DbError),
    /// A condition that an operator has to correct first.
    #[error("{0}")]
    Hindered(String),
}

/// An organization and the pipeline whose rows are rebuilt: there is one job for each.
type JobKey = (OrgId, Pipeline);

fn key(rebuild: &Rebuild) -> JobKey {
    (rebuild.org, rebuild.pipeline)
}

/// A finished step.
pub(crate) struct Ended {
    key: JobKey,
    took: Duration,
    /// Whether there was other work when it began.
    charged: bool,
    outcome: Result<StepOutcome, StepError>,
}

/// One job, as far as this worker knows it.
struct Job {
    rebuild: Rebuild,
    epoch: u64,
    size: u32,
    memory: Memory,
    running: bool,
    not_before: Option<Instant>,
    /// Consecutive steps that failed through no fault of the job.
    outages: u32,
    /// Consecutive steps that timed out.
    timeouts: u32,
}

/// All jobs of the owned shards.
pub(crate) struct Rebuilds {
    db: Database,
    backlog: Handle,
    batch: Duration,
    timeout: Duration,
    attempts: u32,
    jobs: BTreeMap<JobKey, Job>,
    /// The order of turns, each job once.
    turns: VecDeque<JobKey>,
    running: JoinSet<Ended>,
    budget: Budget,
}

impl Rebuilds {
    /// An empty set; steps will run on `backlog`.
    pub(crate) fn new(db: Database, options: &WorkerOptions, backlog: Handle) -> Self {
        Self {
            db,
            backlog,
            batch: options.batch,
            timeout: options.message_timeout,
            attempts: options.attempts,
            jobs: BTreeMap::new(),
            turns: VecDeque::new(),
            running: JoinSet::new(),
            budget: Budget::new(options.slots, options.batch, Instant::now()),
        }
    }

    /// Takes over the jobs that the database reports as running; a job that is not listed is not running.
    pub(crate) fn know(&mut self, under_way: Vec<(Rebuild, u64)>) {
        self.jobs.retain(|known, job| job.running || under_way.iter().any(|(rebuild, _)| key(rebuild) == *known));
        for (rebuild, epoch) in under_way {
            let key = key(&rebuild);
            match self.jobs.get_mut(&key) {
                // The state known from its last step is newer.
                Some(job)
                    if job.running
                        || (job.rebuild.job, job.rebuild.version, job.epoch)
                            == (rebuild.job, rebuild.version, epoch) => {}
                _ => {
                    tracing::info!(
                        org.id = %rebuild.org, pipeline = %rebuild.pipeline, job = ?rebuild.job, version = rebuild.version,
                        events = rebuild.total, "working on a version of its rows"
                    );
                    let known = self.jobs.insert(key, Job::new(rebuild, epoch));
                    if known.is_none() {
                        self.turns.push_back(key);
                    }
                }
            }
        }
        let jobs = &self.jobs;
        self.turns.retain(|key| jobs.contains_key(key));
        gauge!("orgstream_rebuilds_active").set(u32::try_from(self.jobs.len()).unwrap_or(u32::MAX));
    }

    /// Removes a shard that is no longer this worker's.
    pub(crate) fn close_shard(&mut self, shard: Shard) {
        self.jobs.retain(|_, job| job.rebuild.shard != shard);
        let jobs = &self.jobs;
        self.turns.retain(|key| jobs.contains_key(key));
    }

    /// Starts as many steps as allowed now.
    pub(crate) fn start(&mut self, scheduler: &mut Scheduler, now: Instant) {
        self.budget.accrue(now);
        for _ in 0..self.turns.len() {
            let at_work = scheduler.is_at_work(now);
            if at_work && !self.budget.is_open() {
                return;
            }
            let Some(key) = self.turns.pop_front() else { return };
            self.turns.push_back(key);
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            if job.running || job.not_before.is_some_and(|at| at > now) {
                continue;
            }
            if !scheduler.lend_slot() {
                // It is still its turn.
                self.turns.rotate_right(1);
                return;
            }
            job.running = true;
            let (db, timeout, known, epoch) = (self.db.clone(), self.timeout, job.rebuild.clone(), job.epoch);
            let (size, memory) = (job.size, std::mem::take(&mut job.memory));
            let running = async move {
                let begun = Instant::now();
                // The server ends each statement in time, unless the connection is dead.
                let limit = SILENCE + 10 * timeout;
                let step = step::run(&db, &known, epoch, size, timeout, memory);
                let step = AssertUnwindSafe(tokio::time::timeout(limit, step)).catch_unwind();
                let silent = || DbError::unavailable(format!("no answer within {} seconds", limit.as_secs()));
                let outcome = match step.await {
                    Ok(outcome) => outcome.unwrap_or_else(|_| Err(silent().into())),
                    Err(_) => Err(StepError::Hindered("a step of it ended in a panic; see the log".to_owned())),
                };
                let fatal = match &outcome {
                    Err(StepError::Database(error)) if error.is_retryable() => None,
                    Err(error) => Some(Chain(error).to_string()),
                    Ok(_) => None,
                };
                if let Some(error) = fatal {
                    tracing::error!(org.id = %known.org, version = known.version, error, "a rebuild cannot go on");
                    if let Err(error) = db.fail_rebuild(&known, &error).await {
                        tracing::warn!(org.id = %known.org, error = %Chain(&error), "that could not be written down");
                    }
                }
                Ended { key, took: begun.elapsed(), charged: at_work, outcome }
            };
            self.running.spawn_on(running, &self.backlog);
        }
    }

    /// Returns the next step that ended; none when none is running.
    pub(crate) async fn next(&mut self) -> Option<Ended> {
        self.running.join_next().await.and_then(Result::ok)
    }

    /// Returns the slot of a step, and learns from its outcome.
    pub(crate) fn finish(&mut self, ended: Ended, scheduler: &mut Scheduler) {
        scheduler.return_slot();
        let now = Instant::now();
        let at_work = ended.charged || scheduler.is_at_work(now);
        self.budget.spend(ended.took, at_work);
        let Some(job) = self.jobs.get_mut(&ended.key) else { return };
        job.running = false;
        tracing::debug!(
            org.id = %ended.key.0, pipeline = %ended.key.1, state = ?job.rebuild.state, size = job.size, duration_ms = ended.took.as_millis() as u64,
            at_work, "a step of a rebuild"
        );
        match ended.outcome {
            Ok(StepOutcome::GoesOn { rebuild, memory, events }) => {
                counter!("orgstream_rebuild_events_total").increment(events);
                let aim = if at_work { self.batch } else { IDLE_STEP };
                job.went_on(rebuild, memory, ended.took, aim);
            }
            Ok(StepOutcome::Waits(memory)) => (job.memory, job.not_before) = (memory, Some(now + PAUSE)),
            Ok(StepOutcome::Done { rebuild, events }) => {
                counter!("orgstream_rebuild_events_total").increment(events);
                tracing::info!(
                    org.id = %rebuild.org, pipeline = %rebuild.pipeline, job = ?rebuild.job, version = rebuild.version,
                    events = rebuild.events, "done with a version of its rows"
                );
                self.forget(ended.key);
            }
            Err(StepError::Database(error)) if error.is_retryable() => {
                tracing::debug!(org.id = %ended.key.0, error = %Chain(&error), "a step of a rebuild will be tried again");
                job.memory = Memory::default();
                job.outages = job.outages.saturating_add(1);
                if error.is_timeout() {
                    job.size = 1;
                    job.timeouts += 1;
                }
                job.not_before = Some(now + OUTAGE * (1 << job.outages.min(6)));
                if job.timeouts > self.attempts {
                    let (db, known, timeout) = (self.db.clone(), job.rebuild.clone(), self.timeout);
                    self.backlog.spawn(async move {
                        let error = format!("one step of it takes longer than {timeout:?} (see --message-seconds)");
                        db.fail_rebuild(&known, &error).await
                    });
                    self.forget(ended.key);
                }
            }
            Ok(StepOutcome::Gone) | Err(_) => self.forget(ended.key),
        }
    }

    /// Returns when a waiting job may continue.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let waiting = self.jobs.values().filter(|job| !job.running);
        let opens_at = self.budget.opens_at();
        // A job without a wait for time or budget waits for a slot, and is resumed when another step or batch ends.
        waiting.filter_map(|job| job.not_before.filter(|at| *at > now).or(opens_at)).min()
    }

    /// Updates the metrics.
    pub(crate) fn observe(&mut self, now: Instant) {
        gauge!("orgstream_rebuilds_active").set(u32::try_from(self.jobs.len()).unwrap_or(u32::MAX));
        gauge!("orgstream_rebuild_share").set(self.budget.share(now));
    }

    fn forget(&mut self, key: JobKey) {
        self.jobs.remove(&key);
        self.turns.retain(|other| *other != key);
    }
}

impl Job {
    fn new(rebuild: Rebuild, epoch: u64) -> Self {
        Self {
            rebuild,
            epoch,
            size: FIRST_SIZE,
            memory: Memory::default(),
            running: false,
            not_before: None,
            outages: 0,
            timeouts: 0,
        }
    }

    /// Records a committed step; the next gets the size that reaches the target duration.
    fn went_on(&mut self, rebuild: Rebuild, memory: Memory, took: Duration, aim: Duration) {
        let fitting = f64::from(self.size) * aim.as_secs_f64() / took.as_secs_f64().max(1e-6);
        // Steps in other states do other work.
        let same = (self.rebuild.job, self.rebuild.state) == (rebuild.job, rebuild.state);
        let most = (2 * self.size).min(MOST);
        let least = if took < LONG_STEP { FIRST_SIZE.min(most) } else { (self.size / 2).clamp(1, FIRST_SIZE) };
        self.size = if same { (fitting as u32).clamp(least, most) } else { FIRST_SIZE };
        (self.rebuild, self.memory) = (rebuild, memory);
        (self.outages, self.timeouts, self.not_before) = (0, 0, None);
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Timestamp;
    use orgstream_projections::{RebuildJob, RebuildState};

    use super::*;

    /// The sizes of some steps, the first of `size`, each of which takes the given time for its transaction and for each row.
    fn sizes(size: u32, fixed: Duration, each: Duration) -> Vec<u32> {
        let rebuild = Rebuild {
            org: OrgId::from_uuid(uuid::Uuid::nil()),
            pipeline: Pipeline::Search,
            shard: Shard(0),
            job: RebuildJob::Build,
            state: RebuildState::Clearing,
            version: 2,
            previous: None,
            target: 0,
            reached: 0,
            events: 0,
            total: 0,
            differences: 0,
            error: None,
            started_at: Timestamp::from_unix_ms(0),
            updated_at: Timestamp::from_unix_ms(0),
        };
        let mut job = Job { size, ..Job::new(rebuild.clone(), 1) };
        let mut step = |_| {
            job.went_on(rebuild.clone(), Memory::default(), fixed + each * job.size, Duration::from_millis(4));
            job.size
        };
        (0..20).map(&mut step).collect()
    }

    #[test]
    fn a_slow_disk_makes_no_step_small() {
        let (slow, row) = (Duration::from_millis(300), Duration::from_micros(10));
        assert!(sizes(FIRST_SIZE, slow, row).iter().all(|size| *size == FIRST_SIZE));
        // Neither does one step that did not end in time.
        assert_eq!(*sizes(1, slow, row).last().unwrap(), FIRST_SIZE);
    }

    #[test]
    fn a_step_of_many_rows_takes_as_long_as_aimed_at_and_one_of_expensive_rows_not_long() {
        let last = *sizes(FIRST_SIZE, Duration::from_micros(500), Duration::from_micros(10)).last().unwrap();
        assert!((200..=400).contains(&last), "{last}");
        let expensive = sizes(FIRST_SIZE, Duration::from_millis(5), Duration::from_millis(100));
        assert!(expensive.iter().skip(5).all(|size| *size <= 2 * 10), "{expensive:?}");
    }
}
