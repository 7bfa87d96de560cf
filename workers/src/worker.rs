//! A worker among workers: its shards, their low watermarks, and its shutdown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use metrics::gauge;
use orgstream_events::{Chain, EventSubject, OrgId, Pipeline, Shard};
use orgstream_projections::{
    BoundOrg, Database, DbError, LaneLag, LowWatermark, Rebuild, WatermarkWriter, checkpoints,
};
use orgstream_stream::{Log, StreamError, StreamName};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Engine, Input},
    options::WorkerOptions,
    ownership::owners,
    scheduler::{Behind, Mark},
    shard::Reader,
    strays::Strays,
    traffic::Traffic,
    watchdog::{Findings, Watchdog, Watched},
};

/// Capacity of the channel of messages from the cursors to the engine.
const INPUT: usize = 512;
/// How often low watermarks are written and rebuilds are queried.
const MARKS: Duration = Duration::from_secs(1);
/// Grace period for batches to end when the worker stops.
const GRACE: Duration = Duration::from_secs(10);

/// The reason why a worker cannot take a shard.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A database request failed.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A log request failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream ends before a message that was already read from it.
    #[error(
        "shard {shard} ends at {last}, but its events were applied up to {mark}: the log lost data; \
         restore it from a replica or a backup before anything is appended"
    )]
    DataLoss {
        /// The shard.
        shard: Shard,
        /// The end of the stream.
        last: u64,
        /// The applied sequence.
        mark: u64,
    },
}

/// The status of a worker, for readiness checks.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// The shards it has.
    pub shards: Vec<Shard>,
    /// The shards it should have and cannot take, with the reasons.
    pub problems: BTreeMap<Shard, String>,
    /// The error that keeps the database from serving the worker, if there is one.
    pub database: Option<String>,
    /// Whether it has completed at least one round.
    pub started: bool,
}

/// A worker. Make one per process.
pub struct Worker {
    log: Log,
    db: Database,
    options: WorkerOptions,
    status: watch::Sender<WorkerStatus>,
    worst: watch::Sender<Vec<LaneLag>>,
    watched: watch::Sender<Watched>,
    findings: watch::Sender<Findings>,
    trouble: watch::Sender<Option<Arc<str>>>,
}

/// The shards of this worker, and the connection that their low watermarks are written on.
#[derive(Default)]
struct Holdings {
    shards: HashMap<Shard, Owned>,
    marks: Option<WatermarkWriter>,
}

impl Holdings {
    /// Writes a low watermark. False when the shard is now another worker's.
    async fn write_mark(&mut self, shard: Shard, epoch: u64, mark: &LowWatermark) -> Result<bool, DbError> {
        match &mut self.marks {
            Some(marks) => marks.write(shard, epoch, mark).await,
            None => Ok(false),
        }
    }
}

struct Owned {
    epoch: u64,
    stop: CancellationToken,
    reader: JoinHandle<()>,
    traffic: Arc<Traffic>,
    strays: Arc<Strays>,
    /// The low watermark that was written last.
    written: Option<LowWatermark>,
    /// The error that keeps the shard from being read, if there is one.
    trouble: watch::Receiver<Option<String>>,
}

impl Worker {
    /// A worker that reads `log` and writes to `db`.
    pub fn new(log: Log, db: Database, options: WorkerOptions) -> Self {
        Self {
            log,
            db,
            options,
            status: watch::Sender::default(),
            worst: watch::Sender::default(),
            watched: watch::Sender::default(),
            findings: watch::Sender::default(),
            trouble: watch::Sender::default(),
        }
    }

    /// Its status, as it changes.
    pub fn status(&self) -> watch::Receiver<WorkerStatus> {
        self.status.subscribe()
    }

    /// Works until `stop`, then ends what has begun, stores its low watermarks and releases its shards.
    pub async fn run(self, stop: CancellationToken) {
        let (engine, input) = mpsc::channel(INPUT);
        let engine_stop = CancellationToken::new();
        let running = Engine {
            log: self.log.clone(),
            db: self.db.clone(),
            options: self.options.clone(),
            worst: self.worst.clone(),
            trouble: self.trouble.clone(),
        };
        let running = tokio::spawn(running.run(input, engine_stop.clone()));
        let (log, db) = (self.log.clone(), self.db.clone());
        let watchdog = Watchdog::new(log, db, self.watched.subscribe(), self.findings.clone());
        let watching = tokio::spawn(watchdog.run(self.options.watch, stop.clone()));
        let mut held = Holdings::default();
        // A quarter of their lifetime: see `WorkerOptions::lease_time`.
        let mut leases = interval(self.options.lease_time() / 4);
        let mut marks = interval(MARKS);
        for ticks in [&mut leases, &mut marks] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = leases.tick() => {
                    if let Err(error) = self.take_turns(&mut held, &engine).await {
                        tracing::warn!(error = %Chain(&error), "leases could not be looked after and will be tried again");
                        self.status.send_modify(|status| status.database = Some(Chain(&error).to_string()));
                    }
                }
                _ = marks.tick() => {
                    if let Err(error) = self.keep_books(&mut held, &engine).await {
                        tracing::warn!(error = %Chain(&error), "marks could not be written and will be tried again");
                    }
                }
            }
        }
        for shard in held.shards.keys().copied().collect::<Vec<_>>() {
            self.give_back(shard, &mut held, &engine).await;
        }
        engine_stop.cancel();
        drop(engine);
        if timeout(GRACE, running).await.is_err() {
            tracing::warn!("some batches did not end in time; their transactions are rolled back");
        }
        if watching.await.is_err() {
            tracing::error!("the watchdog had panicked");
        }
        if let Err(error) = self.db.retire_worker(self.options.id).await {
            tracing::debug!(error = %Chain(&error), "the worker could not say goodbye");
        }
    }

    /// Renews this worker's leases, releases those that should be another's, takes those that should be its own and are
    /// free.
    async fn take_turns(&self, held: &mut Holdings, engine: &mpsc::Sender<Input>) -> Result<(), DbError> {
        let (me, lease) = (self.options.id, self.options.lease_time());
        self.look_for_a_crash(held, engine).await?;
        let (lagging, findings) = (self.worst.borrow().clone(), self.findings.borrow().clone());
        self.db.announce_worker(me, &findings.added_to(lagging)).await?;
        let live = self.db.live_workers(lease).await?;
        let kept: HashMap<Shard, u64> =
            self.db.renew_leases(me, lease).await?.into_iter().map(|lease| (lease.shard, lease.epoch)).collect();
        let lost: Vec<Shard> = held
            .shards
            .iter()
            .filter(|(shard, owned)| kept.get(*shard) != Some(&owned.epoch))
            .map(|(shard, _)| *shard)
            .collect();
        for shard in lost {
            tracing::warn!(%shard, "another worker has taken this shard over");
            close(shard, held, engine).await;
        }
        let mut problems = BTreeMap::new();
        let owners = owners(self.log.shards(), &live);
        for shard in self.log.shards() {
            let should = owners.get(&shard) == Some(&me);
            if held.shards.contains_key(&shard) {
                if let Some(what) = self.log.lost_of(StreamName::Shard(shard)) {
                    close(shard, held, engine).await;
                    problems.insert(shard, StreamError::Lost { stream: StreamName::Shard(shard), what }.to_string());
                } else if !should {
                    self.give_back(shard, held, engine).await;
                }
            } else if should
                && let Some(lease) = self.db.acquire_lease(shard, me, lease).await?
                && let Err(error) = self.open(shard, lease.epoch, held, engine).await
            {
                let problem = Chain(&error).to_string();
                if self.status.borrow().problems.get(&shard) != Some(&problem) {
                    tracing::error!(%shard, error = %Chain(&error), "this shard cannot be worked on");
                }
                problems.insert(shard, problem);
            }
        }
        let troubles = |(shard, owned): (&Shard, &Owned)| Some((*shard, owned.trouble.borrow().clone()?));
        problems.extend(findings.readers);
        problems.extend(held.shards.iter().filter_map(troubles));
        self.watched
            .send_replace(held.shards.iter().map(|(shard, owned)| (*shard, Arc::clone(&owned.traffic))).collect());
        gauge!("orgstream_shards_owned").set(u32::try_from(held.shards.len()).unwrap_or(u32::MAX));
        let mut shards: Vec<Shard> = held.shards.keys().copied().collect();
        shards.sort_unstable();
        if self.status.borrow().shards != shards {
            tracing::info!(
                shards = shards.len(),
                of = self.log.shards().count(),
                "the shards of this worker have changed"
            );
        }
        let database = self.trouble.borrow().as_deref().map(str::to_owned);
        self.status.send_replace(WorkerStatus { shards, problems, database, started: true });
        Ok(())
    }

    /// After a crash of the database, restarts at the low watermarks: what the lanes regard as done since then may have
    /// been lost, and an org without new messages would never notice.
    async fn look_for_a_crash(&self, held: &mut Holdings, engine: &mpsc::Sender<Input>) -> Result<(), DbError> {
        if let Some(marks) = &mut held.marks {
            let Err(error) = marks.check().await else { return Ok(()) };
            tracing::warn!(error = %Chain(&error), "the database was away, so the shards are read again from their marks");
            held.marks = None;
        }
        for shard in held.shards.keys().copied().collect::<Vec<_>>() {
            close(shard, held, engine).await;
        }
        held.marks = Some(self.db.watermark_writer().await?);
        Ok(())
    }

    /// Starts reading a shard where the last owner stopped.
    async fn open(
        &self,
        shard: Shard,
        epoch: u64,
        held: &mut Holdings,
        engine: &mpsc::Sender<Input>,
    ) -> Result<(), WorkerError> {
        let stream = StreamName::Shard(shard);
        if let Some(what) = self.log.lost_of(stream) {
            return Err(StreamError::Lost { stream, what }.into());
        }
        let mark = self.db.low_watermark(shard).await?;
        let last = self.log.shard_end(shard).await?;
        if last < mark.seq {
            return Err(WorkerError::DataLoss { shard, last, mark: mark.seq });
        }
        let mut behind = Vec::with_capacity(mark.catching_up.len());
        for (org, pipeline) in mark.catching_up {
            // An org's messages outside of its shard belong to no org: see `strays`.
            if self.log.placement(org).await?.is_none_or(|placement| placement.shard != shard) {
                continue;
            }
            let stored = self.checkpoint(shard, org, pipeline).await?;
            behind.push(Behind { org, pipeline, stored, last: self.log.last_of(shard, org).await? });
        }
        // The engine lives as long as the worker; without it, nothing could work.
        let _ = engine.send(Input::Open { shard, epoch, mark: mark.seq, behind }).await;
        let stop = CancellationToken::new();
        let (trouble, troubled) = watch::channel(None);
        let (traffic, strays) = (Arc::new(Traffic::after(mark.seq)), Arc::new(Strays::default()));
        let reader = Reader {
            log: self.log.clone(),
            shard,
            traffic: Arc::clone(&traffic),
            strays: Arc::clone(&strays),
            engine: engine.clone(),
            trouble,
            far_behind: self.options.far_behind,
        };
        let reader = tokio::spawn(reader.run(stop.clone()));
        held.shards.insert(shard, Owned { epoch, stop, reader, traffic, strays, written: None, trouble: troubled });
        tracing::debug!(%shard, epoch, event.seq = mark.seq, "working on this shard");
        Ok(())
    }

    /// Returns the pipeline's position for the org in this shard; 0 before the beginning.
    async fn checkpoint(&self, shard: Shard, org: OrgId, pipeline: Pipeline) -> Result<u64, DbError> {
        let Ok(bound) = BoundOrg::proven_by_route(&EventSubject::all_of_org(shard, org)) else { return Ok(0) };
        let stored = checkpoints::active(&mut self.db.read(bound).await?, pipeline).await?;
        Ok(stored.filter(|(of, _)| *of == shard).map_or(0, |(_, seq)| seq))
    }

    /// Stores the shards' low watermarks, and passes on the rebuild jobs.
    async fn keep_books(&self, held: &mut Holdings, engine: &mpsc::Sender<Input>) -> Result<(), DbError> {
        if held.shards.is_empty() {
            return Ok(());
        }
        let marks = marks(engine).await;
        for (shard, owned) in &held.shards {
            owned.strays.keep(&self.db, *shard).await?;
        }
        for (shard, mark) in marks {
            // A shard without changes costs nothing.
            let is_new = |owned: &&Owned| owned.written.as_ref() != Some(&mark);
            let Some(epoch) = held.shards.get(&shard).filter(is_new).map(|owned| owned.epoch) else { continue };
            if held.write_mark(shard, epoch, &mark).await?
                && let Some(owned) = held.shards.get_mut(&shard)
            {
                owned.written = Some(mark);
            }
        }
        let shards: Vec<Shard> = held.shards.keys().copied().collect();
        let under_way = self.db.rebuilds_under_way(&shards).await?.into_iter();
        let epoch = |rebuild: &Rebuild| held.shards.get(&rebuild.shard).map(|owned| owned.epoch);
        let rebuilds = under_way.filter_map(|rebuild| epoch(&rebuild).map(|epoch| (rebuild, epoch))).collect();
        let _ = engine.send(Input::Rebuilds(rebuilds)).await;
        Ok(())
    }

    /// Ends the work on a shard and lets another worker have it at once.
    async fn give_back(&self, shard: Shard, held: &mut Holdings, engine: &mpsc::Sender<Input>) {
        let owned = held.shards.get(&shard).map(|owned| (owned.epoch, Arc::clone(&owned.strays)));
        let Some((epoch, strays)) = owned else { return };
        let mark = close(shard, held, engine).await;
        let done = async {
            strays.keep(&self.db, shard).await?;
            if let Some(mark) = mark {
                held.write_mark(shard, epoch, &mark).await?;
            }
            self.db.release_lease(shard, self.options.id, epoch).await
        };
        match done.await {
            Ok(_) => tracing::debug!(%shard, "gave this shard back"),
            Err(error) => {
                tracing::warn!(%shard, error = %Chain(&error), "this shard could not be given back; its lease will expire");
            }
        }
    }
}

/// Returns the low watermark of every shard.
async fn marks(engine: &mpsc::Sender<Input>) -> HashMap<Shard, LowWatermark> {
    let (answer, marks) = oneshot::channel();
    let _ = engine.send(Input::Marks(answer)).await;
    let marks = marks.await.unwrap_or_default();
    marks.into_iter().map(|(shard, Mark { seq, catching_up })| (shard, LowWatermark { seq, catching_up })).collect()
}

/// Stops reading a shard and empties its lanes; returns the low watermark that may be stored for it.
async fn close(shard: Shard, held: &mut Holdings, engine: &mpsc::Sender<Input>) -> Option<LowWatermark> {
    let owned = held.shards.remove(&shard)?;
    owned.stop.cancel();
    if owned.reader.await.is_err() {
        tracing::error!(%shard, "the reader of this shard had panicked");
    }
    let (answer, mark) = oneshot::channel();
    let _ = engine.send(Input::Close { shard, mark: answer }).await;
    let Mark { seq, catching_up } = mark.await.ok().flatten()?;
    Some(LowWatermark { seq, catching_up })
}
