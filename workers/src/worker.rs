//! A worker among workers: which shards it has, what it writes down about them, and how it stops.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use metrics::gauge;
use orgstream_events::{EventSubject, OrgId, Pipeline, Shard};
use orgstream_projections::{BoundOrg, Database, DbError, ShardMark, checkpoints};
use orgstream_stream::{Log, StreamError};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Engine, Input, LaneLag},
    lane::LaneKey,
    options::WorkerOptions,
    ownership::owner_of,
    shard::read_shard,
};

/// Messages on their way from the cursors to the engine.
const INPUT: usize = 8_192;
/// How often marks are written and resets are looked for.
const MARKS: Duration = Duration::from_secs(1);
/// How long slices may take to end when the worker stops.
const GRACE: Duration = Duration::from_secs(10);

/// Why a worker cannot take a shard.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The database does not do what it is asked.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The log does not do what it is asked.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream ends before what was already read from it.
    #[error(
        "shard {shard} ends at {last}, but its events were applied up to {mark}: the log lost data; \
         restore it from a replica or a backup before anything is appended"
    )]
    DataLoss {
        /// Which shard.
        shard: Shard,
        /// Where the stream ends.
        last: u64,
        /// What was applied.
        mark: u64,
    },
}

/// How a worker is doing, for whoever asks whether it is ready.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// The shards it has.
    pub shards: Vec<Shard>,
    /// The shards it should have and cannot take, and why.
    pub problems: BTreeMap<Shard, String>,
    /// Whether it has looked at least once.
    pub started: bool,
}

/// A worker. Make one per process.
pub struct Worker {
    log: Log,
    db: Database,
    options: WorkerOptions,
    status: watch::Sender<WorkerStatus>,
    worst: watch::Sender<Vec<LaneLag>>,
}

struct Owned {
    epoch: u64,
    stop: CancellationToken,
    reader: JoinHandle<()>,
}

impl Worker {
    /// A worker that reads `log` and writes to `db`.
    pub fn new(log: Log, db: Database, options: WorkerOptions) -> Self {
        Self { log, db, options, status: watch::Sender::default(), worst: watch::Sender::default() }
    }

    /// How it is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<WorkerStatus> {
        self.status.subscribe()
    }

    /// The lanes that are the furthest behind, as they change.
    pub fn worst(&self) -> watch::Receiver<Vec<LaneLag>> {
        self.worst.subscribe()
    }

    /// Works until `stop`, then ends what has begun, writes down how far it came and gives its shards back.
    pub async fn run(self, stop: CancellationToken) {
        let (engine, input) = mpsc::channel(INPUT);
        let engine_stop = CancellationToken::new();
        let running = Engine {
            log: self.log.clone(),
            db: self.db.clone(),
            options: self.options.clone(),
            worst: self.worst.clone(),
        };
        let running = tokio::spawn(running.run(input, engine_stop.clone()));
        let mut owned: HashMap<Shard, Owned> = HashMap::new();
        let mut leases = interval(self.options.lease / 3);
        let mut marks = interval(MARKS);
        for ticks in [&mut leases, &mut marks] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = leases.tick() => {
                    if let Err(error) = self.take_turns(&mut owned, &engine).await {
                        tracing::warn!(%error, "leases could not be looked after and will be tried again");
                    }
                }
                _ = marks.tick() => {
                    if let Err(error) = self.keep_books(&owned, &engine).await {
                        tracing::warn!(%error, "marks could not be written and will be tried again");
                    }
                }
            }
        }
        for shard in owned.keys().copied().collect::<Vec<_>>() {
            self.give_back(shard, &mut owned, &engine).await;
        }
        engine_stop.cancel();
        drop(engine);
        if timeout(GRACE, running).await.is_err() {
            tracing::warn!("some slices did not end in time; their transactions are rolled back");
        }
        if let Err(error) = self.db.retire_worker(self.options.id).await {
            tracing::debug!(%error, "the worker could not say goodbye");
        }
    }

    /// Renews what is ours, gives back what should be another's, takes what should be ours and is free.
    async fn take_turns(&self, owned: &mut HashMap<Shard, Owned>, engine: &mpsc::Sender<Input>) -> Result<(), DbError> {
        let (me, lease) = (self.options.id, self.options.lease);
        self.db.announce_worker(me).await?;
        let live = self.db.live_workers(lease).await?;
        let kept: HashMap<Shard, u64> =
            self.db.renew_leases(me, lease).await?.into_iter().map(|lease| (lease.shard, lease.epoch)).collect();
        let lost: Vec<Shard> = owned
            .iter()
            .filter(|(shard, held)| kept.get(*shard) != Some(&held.epoch))
            .map(|(shard, _)| *shard)
            .collect();
        for shard in lost {
            tracing::warn!(%shard, "another worker has taken this shard over");
            close(shard, owned, engine).await;
        }
        let mut problems = BTreeMap::new();
        for shard in self.log.shards() {
            let should = owner_of(shard, &live) == Some(me);
            if owned.contains_key(&shard) {
                if !should {
                    self.give_back(shard, owned, engine).await;
                }
            } else if should
                && let Some(lease) = self.db.acquire_lease(shard, me, lease).await?
                && let Err(error) = self.open(shard, lease.epoch, owned, engine).await
            {
                tracing::error!(%shard, %error, "this shard cannot be worked on");
                problems.insert(shard, error.to_string());
            }
        }
        gauge!("orgstream_shards_owned").set(u32::try_from(owned.len()).unwrap_or(u32::MAX));
        let mut shards: Vec<Shard> = owned.keys().copied().collect();
        shards.sort_unstable();
        if self.status.borrow().shards != shards {
            tracing::info!(shards = shards.len(), of = self.log.shards().count(), "the shards of this worker have changed");
        }
        self.status.send_replace(WorkerStatus { shards, problems, started: true });
        Ok(())
    }

    /// Starts reading a shard where the last owner left off.
    async fn open(
        &self,
        shard: Shard,
        epoch: u64,
        owned: &mut HashMap<Shard, Owned>,
        engine: &mpsc::Sender<Input>,
    ) -> Result<(), WorkerError> {
        let mark = self.db.shard_mark(shard).await?;
        let state = self.log.shard_state(shard).await?;
        if state.last_seq < mark.seq {
            return Err(WorkerError::DataLoss { shard, last: state.last_seq, mark: mark.seq });
        }
        let mut behind = Vec::with_capacity(mark.detached.len());
        for (org, pipeline) in mark.detached {
            behind.push((org, pipeline, self.checkpoint(shard, org, pipeline).await?));
        }
        // The engine lives as long as the worker; were it gone, there would be nobody to work.
        let _ = engine.send(Input::Open { shard, epoch, mark: mark.seq, behind }).await;
        let stop = CancellationToken::new();
        let reader = tokio::spawn(read_shard(self.log.clone(), shard, mark.seq, engine.clone(), stop.clone()));
        owned.insert(shard, Owned { epoch, stop, reader });
        tracing::debug!(%shard, epoch, event.seq = mark.seq, "working on this shard");
        Ok(())
    }

    async fn checkpoint(&self, shard: Shard, org: OrgId, pipeline: Pipeline) -> Result<u64, DbError> {
        let Ok(bound) = BoundOrg::proven_by_route(&EventSubject::all_of_org(shard, org)) else { return Ok(0) };
        checkpoints::position(&mut self.db.read(bound).await?, pipeline).await
    }

    /// Writes down how far the shards have come, and passes on which orgs were reset.
    async fn keep_books(&self, owned: &HashMap<Shard, Owned>, engine: &mpsc::Sender<Input>) -> Result<(), DbError> {
        if owned.is_empty() {
            return Ok(());
        }
        let (answer, marks) = oneshot::channel();
        let _ = engine.send(Input::Marks(answer)).await;
        for (shard, mark) in marks.await.unwrap_or_default() {
            if let Some(held) = owned.get(&shard) {
                let mark = ShardMark { seq: mark.seq, detached: mark.detached };
                self.db.set_shard_mark(shard, held.epoch, &mark).await?;
            }
        }
        let shards: Vec<Shard> = owned.keys().copied().collect();
        for rewind in self.db.rewinds(&shards).await? {
            let key = LaneKey { shard: rewind.shard, org: rewind.org, pipeline: rewind.pipeline };
            let stored = self.checkpoint(rewind.shard, rewind.org, rewind.pipeline).await?;
            let _ = engine.send(Input::Rewind { key, stored }).await;
            // Forgotten only once a mark says that the lane is behind, so that a crash in between loses nothing.
            let (answer, marks) = oneshot::channel();
            let _ = engine.send(Input::Marks(answer)).await;
            let mark = marks.await.unwrap_or_default().into_iter().find(|(shard, _)| *shard == rewind.shard);
            if let (Some((_, mark)), Some(held)) = (mark, owned.get(&rewind.shard)) {
                let mark = ShardMark { seq: mark.seq, detached: mark.detached };
                if self.db.set_shard_mark(rewind.shard, held.epoch, &mark).await? {
                    self.db.forget_rewind(&rewind).await?;
                }
            }
        }
        Ok(())
    }

    /// Ends the work on a shard and lets another worker have it at once.
    async fn give_back(&self, shard: Shard, owned: &mut HashMap<Shard, Owned>, engine: &mpsc::Sender<Input>) {
        let Some(epoch) = owned.get(&shard).map(|held| held.epoch) else { return };
        let mark = close(shard, owned, engine).await;
        let done = async {
            if let Some(mark) = mark {
                self.db.set_shard_mark(shard, epoch, &mark).await?;
            }
            self.db.release_lease(shard, self.options.id, epoch).await
        };
        match done.await {
            Ok(_) => tracing::debug!(%shard, "gave this shard back"),
            Err(error) => tracing::warn!(%shard, %error, "this shard could not be given back; its lease will expire"),
        }
    }
}

/// Stops reading a shard and empties its lanes; the answer is what may be written down about it.
async fn close(shard: Shard, owned: &mut HashMap<Shard, Owned>, engine: &mpsc::Sender<Input>) -> Option<ShardMark> {
    let held = owned.remove(&shard)?;
    held.stop.cancel();
    if held.reader.await.is_err() {
        tracing::error!(%shard, "the reader of this shard had panicked");
    }
    let (answer, mark) = oneshot::channel();
    let _ = engine.send(Input::Close { shard, mark: answer }).await;
    let mark = mark.await.ok().flatten()?;
    Some(ShardMark { seq: mark.seq, detached: mark.detached })
}
