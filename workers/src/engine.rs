//! The one task that owns the scheduler: messages, catch-up reads and finished batches come in, transactions go out.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use metrics::{counter, gauge, histogram};
use orgstream_events::{Chain, CommitKeys, EventSubject, OrgId, PerPipeline, Pipeline, Shard};
use orgstream_projections::{Database, LaneLag, Rebuild};
use orgstream_stream::{CatchUpReader, Log, ReadLimit};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    delivery::Delivery,
    lane::{LaneKey, LaneState},
    options::WorkerOptions,
    rebuild::Rebuilds,
    scheduler::{BatchOutcome, Behind, CatchUpRead, Group, LaneBatch, Mark, Passed, Scheduler},
    slots::Slots,
};

/// Concurrent catch-up reads, over all shards.
const REFILLS: usize = 8;
/// Messages per catch-up read. The log's server sends these before what other orgs of the shard wait for.
const REFILL_MESSAGES: usize = 500;
/// Orgs whose position in the log is kept between two catch-up reads, over all shards: a consumer on the server each.
const BACKLOGS: usize = 32;
/// How long it is kept when the org requests nothing.
const KEPT: Duration = Duration::from_secs(10);
/// Pause after a catch-up read that failed or found nothing.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// How often the metrics are updated.
const TICK: Duration = Duration::from_secs(1);
/// The number of orgs reported as lagging the most.
const WORST: usize = 10;

/// An input of the engine.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message from a shard's cursor.
    Message(Arc<Delivery>),
    /// The shard's reader passed a message that belongs to no org.
    Pass { shard: Shard, seq: u64 },
    /// The shard is this worker's.
    Open { shard: Shard, epoch: u64, mark: u64, behind: Vec<Behind> },
    /// The cursor of the shard skips everything up to `to`, where the orgs of `passed` have messages.
    PassOver { shard: Shard, to: u64, passed: Vec<Passed> },
    /// The shard is no longer this worker's; the reply is the low watermark that may be stored for it.
    Close { shard: Shard, mark: oneshot::Sender<Option<Mark>> },
    /// Requests the low watermarks of all owned shards, and the lanes with the most lag.
    Marks(oneshot::Sender<HashMap<Shard, Mark>>),
    /// The jobs on versions of read models in the owned shards, with the epochs of those.
    Rebuilds(Vec<(Rebuild, u64)>),
}

pub(crate) struct Engine {
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) options: WorkerOptions,
    pub(crate) worst: tokio::sync::watch::Sender<Vec<LaneLag>>,
    /// The error that keeps the database from doing anything, while there is one.
    pub(crate) trouble: tokio::sync::watch::Sender<Option<Arc<str>>>,
}

type CatchUpReport = (CatchUpRead, CatchUpReader, Option<Vec<Arc<Delivery>>>);

impl Engine {
    /// Runs until `stop`, then until the batches in their slots have ended.
    pub(crate) async fn run(self, mut input: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut scheduler = Scheduler::new(self.options.clone(), Instant::now());
        let mut slots = Slots::new(self.db.clone(), Arc::clone(self.log.keys()), self.options.clone());
        let mut rebuilds = Rebuilds::new(self.db.clone(), &self.options, slots.backlog());
        let mut catch_up_reads: JoinSet<CatchUpReport> = JoinSet::new();
        let mut backlogs = CatchUpReaders::default();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        while !stop.is_cancelled() || !slots.are_empty() {
            let wake = [scheduler.next_wake(), rebuilds.next_wake(Instant::now())].into_iter().flatten().min();
            let wake = wake.map(tokio::time::Instant::from_std);
            tokio::select! {
                received = input.recv_many(&mut batch, 1024), if !stop.is_cancelled() => {
                    if received == 0 {
                        break;
                    }
                    for one in batch.drain(..) {
                        receive(&mut scheduler, &mut rebuilds, one);
                    }
                }
                Some((group, outcomes)) = slots.next() => {
                    finish(&mut scheduler, &group, outcomes);
                    self.tell(&scheduler);
                }
                Some(ended) = rebuilds.next() => rebuilds.finish(ended, &mut scheduler),
                Some(Ok((wish, backlog, chunk))) = catch_up_reads.join_next() => {
                    backlogs.keep(wish.key, backlog);
                    if let Some(seq) = scheduler.caught_up(wish, chunk.as_deref()) {
                        let key = wish.key;
                        counter!("orgstream_stream_gaps_total").increment(1);
                        tracing::error!(
                            org.id = %key.org, pipeline = %key.pipeline, event.seq = seq,
                            "messages of this org are gone from the stream: look for a purge or lost storage"
                        );
                    }
                }
                () = async { match wake { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                _ = tick.tick() => {
                    self.observe(&scheduler);
                    self.tell(&scheduler);
                    backlogs.forget();
                    rebuilds.observe(Instant::now());
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
            if stop.is_cancelled() {
                continue;
            }
            let now = Instant::now();
            while let Some(group) = scheduler.next_group(now) {
                slots.start(group);
            }
            rebuilds.start(&mut scheduler, now);
            for wish in scheduler.catch_up_reads(REFILLS.saturating_sub(catch_up_reads.len())) {
                catch_up_reads.spawn(catch_up_read(backlogs.take(&self.log, wish), wish, Arc::clone(self.log.keys())));
            }
        }
    }

    /// Logs once when nothing can be applied any more, and once when it continues.
    fn tell(&self, scheduler: &Scheduler) {
        let trouble = scheduler.trouble(Instant::now());
        let before = self.trouble.borrow().is_some();
        match trouble {
            Some(reason) if !before => tracing::warn!(
                error = %reason,
                "the database does not do what it is asked, so nothing is applied; nothing is parked for it, and it is \
                 asked again and again"
            ),
            None if before => tracing::info!("the database does what it is asked again"),
            _ => {}
        }
        self.trouble.send_if_modified(|known| {
            let is_new = known.as_ref() != trouble;
            if is_new {
                *known = trouble.cloned();
            }
            is_new
        });
    }

    fn observe(&self, scheduler: &Scheduler) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let (mut attached, mut catching_up, mut backing_off) = (0_u32, 0_u32, 0_u32);
        let mut ages: PerPipeline<Ages> = PerPipeline::default();
        let mut lags = Vec::new();
        for (key, lane) in scheduler.lanes() {
            let is_catching_up = lane.skipped.is_some();
            if is_catching_up {
                catching_up += 1;
            } else {
                attached += 1;
            }
            if lane.state == LaneState::BackingOff {
                backing_off += 1;
            }
            let age_ms = lane.oldest().map_or(0, |oldest| oldest.lag(now, wall).as_millis() as u64);
            ages[key.pipeline].add(age_ms);
            if age_ms > 0 || is_catching_up {
                let waiting = lane.len() + lane.in_slot.len();
                let oldest = lane.oldest().map(|oldest| oldest.seq()).or(lane.skipped.map(|skipped| skipped.next));
                lags.push(LaneLag {
                    org: key.org,
                    pipeline: key.pipeline,
                    oldest: oldest.unwrap_or_default(),
                    waiting,
                    age_ms,
                    catching_up: is_catching_up,
                    standing_ms: None,
                });
            }
        }
        gauge!("orgstream_lanes", "state" => "attached").set(attached);
        gauge!("orgstream_lanes", "state" => "catching_up").set(catching_up);
        gauge!("orgstream_lanes", "state" => "backing_off").set(backing_off);
        // Keyed by their bits: those of positive numbers are in the order of the numbers.
        let mut weights: BTreeMap<u64, u32> = self.options.weights.all().map(|weight| (weight.to_bits(), 0)).collect();
        for (weight, orgs) in scheduler.weights() {
            *weights.entry(weight.to_bits()).or_default() += orgs;
        }
        for (weight, orgs) in weights {
            gauge!("orgstream_orgs", "weight" => f64::from_bits(weight).to_string()).set(orgs);
        }
        gauge!("orgstream_lane_bytes").set(scheduler.bytes() as f64);
        for pipeline in Pipeline::ALL {
            let ages = &mut ages[pipeline];
            for (label, share) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("1", 1.0)] {
                let seconds = ages.quantile(share) as f64 / 1000.0;
                gauge!("orgstream_org_lag_seconds", "pipeline" => pipeline.name(), "quantile" => label).set(seconds);
            }
        }
        lags.sort_by_key(|lag| std::cmp::Reverse((lag.age_ms, lag.waiting)));
        lags.truncate(WORST);
        for rank in 0..WORST {
            let seconds = lags.get(rank).map_or(0.0, |lag| lag.age_ms as f64 / 1000.0);
            gauge!("orgstream_worst_org_lag_seconds", "rank" => (rank + 1).to_string()).set(seconds);
        }
        self.worst.send_replace(lags);
    }
}

/// The waiting times of lanes. Most lanes are empty, and cost nothing but being counted.
#[derive(Default)]
struct Ages {
    empty: usize,
    /// In milliseconds.
    others: Vec<u64>,
}

impl Ages {
    fn add(&mut self, ms: u64) {
        if ms == 0 { self.empty += 1 } else { self.others.push(ms) }
    }

    /// The value that this share of the lanes does not exceed.
    fn quantile(&mut self, share: f64) -> u64 {
        self.others.sort_unstable();
        let place = ((self.empty + self.others.len()).saturating_sub(1) as f64 * share) as usize;
        place.checked_sub(self.empty).and_then(|place| self.others.get(place)).copied().unwrap_or_default()
    }
}

fn receive(scheduler: &mut Scheduler, rebuilds: &mut Rebuilds, input: Input) {
    match input {
        Input::Message(delivery) => {
            // The reader passes on only messages that have an org.
            match EventSubject::route(&delivery.message.subject) {
                Ok((_, org)) => scheduler.offer(org, &delivery),
                Err(_) => scheduler.pass(delivery.message.shard, delivery.seq()),
            }
        }
        Input::Pass { shard, seq } => scheduler.pass(shard, seq),
        Input::Open { shard, epoch, mark, behind } => scheduler.open_shard(shard, epoch, mark, &behind),
        Input::PassOver { shard, to, passed } => scheduler.fast_forward(shard, to, &passed),
        Input::Close { shard, mark } => {
            // The requester may be gone; then the reply is not needed.
            let _ = mark.send(scheduler.marks().remove(&shard));
            scheduler.close_shard(shard);
            rebuilds.close_shard(shard);
        }
        Input::Marks(answer) => {
            let _ = answer.send(scheduler.marks());
        }
        Input::Rebuilds(under_way) => rebuilds.know(under_way),
    }
}

fn finish(scheduler: &mut Scheduler, group: &Group, outcomes: Vec<BatchOutcome>) {
    let (now, wall) = (Instant::now(), SystemTime::now());
    for (batch, outcome) in group.batches.iter().zip(&outcomes) {
        let pipeline = batch.key.pipeline.name();
        match outcome {
            BatchOutcome::Applied { cost, .. } => {
                histogram!("orgstream_batch_seconds", "pipeline" => pipeline).record(cost.total());
                histogram!("orgstream_batch_messages", "pipeline" => pipeline).record(batch.deliveries.len() as f64);
                stages(batch, group.begun, now, wall);
                for delivery in &batch.deliveries {
                    let lag = delivery.lag(now, wall);
                    histogram!("orgstream_projection_lag_seconds", "pipeline" => pipeline).record(lag);
                }
            }
            BatchOutcome::Moved { .. } => counter!("orgstream_batch_retries_total", "cause" => "moved").increment(1),
            BatchOutcome::Fenced => counter!("orgstream_batch_retries_total", "cause" => "fenced").increment(1),
            BatchOutcome::Undone => counter!("orgstream_batch_retries_total", "cause" => "undone").increment(1),
            BatchOutcome::Unavailable(_) => {
                counter!("orgstream_batch_retries_total", "cause" => "unavailable").increment(1);
            }
            BatchOutcome::TimedOut => counter!("orgstream_batch_retries_total", "cause" => "timed_out").increment(1),
            BatchOutcome::Failed { reason } => {
                counter!("orgstream_batch_retries_total", "cause" => "failed").increment(1);
                tracing::warn!(
                    org.id = %batch.key.org, pipeline, event.seq = batch.deliveries.first().map(|first| first.seq()),
                    messages = batch.deliveries.len(), reason, "a batch failed and will be tried again"
                );
            }
        }
    }
    scheduler.done(group, outcomes, now, rand::random());
}

/// Records the stages of a batch's first message: it stands for the others, which came after it.
fn stages(batch: &LaneBatch, begun: Instant, now: Instant, wall: SystemTime) {
    let Some(first) = batch.deliveries.first() else { return };
    let (wait, run) = (begun.saturating_duration_since(first.arrived), now.saturating_duration_since(begun));
    let deliver = first.lag(now, wall).saturating_sub(wait + run);
    for (stage, took) in [("deliver", deliver), ("wait", wait), ("run", run)] {
        let pipeline = batch.key.pipeline.name();
        histogram!("orgstream_stage_seconds", "pipeline" => pipeline, "stage" => stage).record(took);
    }
}

/// Positions in the log where catch-up reads continue, so that the server need not find them again.
#[derive(Default)]
struct CatchUpReaders(HashMap<(Shard, OrgId, u64), (CatchUpReader, Instant)>);

impl CatchUpReaders {
    /// Takes the reader that stands where `wish` begins, whichever of the org's lanes brought it there.
    fn take(&mut self, log: &Log, CatchUpRead { key, from, .. }: CatchUpRead) -> CatchUpReader {
        let kept = self.0.remove(&(key.shard, key.org, from));
        kept.map_or_else(|| log.catch_up_reader(key.shard, key.org, from), |(backlog, _)| backlog)
    }

    fn keep(&mut self, key: LaneKey, backlog: CatchUpReader) {
        if let Some(next) = backlog.goes_on_at().filter(|_| self.0.len() < BACKLOGS) {
            self.0.insert((key.shard, key.org, next), (backlog, Instant::now()));
        }
    }

    /// Drops those that were not used again.
    fn forget(&mut self) {
        self.0.retain(|_, (_, kept_at)| kept_at.elapsed() < KEPT);
    }
}

async fn catch_up_read(mut backlog: CatchUpReader, wish: CatchUpRead, keys: Arc<CommitKeys>) -> CatchUpReport {
    let limit = ReadLimit { messages: REFILL_MESSAGES, bytes: wish.bytes };
    let chunk = match backlog.read(limit).await {
        Ok(chunk) => {
            let now = Instant::now();
            Some(chunk.messages.into_iter().map(|message| Delivery::new(message, now, &keys)).collect::<Vec<_>>())
        }
        Err(error) => {
            tracing::warn!(org.id = %wish.key.org, event.seq = wish.from, error = %Chain(&error), "a catch_up_read failed and will be tried again");
            None
        }
    };
    if chunk.as_ref().is_none_or(Vec::is_empty) {
        tokio::time::sleep(REFILL_PAUSE).await;
    }
    (wish, backlog, chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lanes_count_as_waiting_for_no_time() {
        let mut ages = Ages::default();
        assert_eq!(ages.quantile(1.0), 0);
        for ms in [0, 30, 0, 10, 0, 20, 0, 0, 0, 0] {
            ages.add(ms);
        }
        assert_eq!([0.5, 0.7, 0.9, 1.0].map(|share| ages.quantile(share)), [0, 0, 20, 30]);
    }
}
