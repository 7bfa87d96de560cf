//! The one task that owns the scheduler: messages, refills and finished slices come in, transactions go out.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use metrics::{counter, gauge, histogram};
use orgstream_events::{EventSubject, OrgId, Pipeline, Shard};
use orgstream_projections::{Database, LaneLag};
use orgstream_stream::{Log, ReadLimit};
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
    scheduler::{LaneSlice, Mark, RefillWish, Scheduler, SliceOutcome},
    slice::run_group,
};

/// Refills at the same time, over all shards.
const REFILLS: usize = 8;
/// Messages that one refill asks for.
const REFILL_MESSAGES: usize = 1_000;
/// How long after a refill that failed or found nothing the next one may start.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// How often the figures are brought up to date.
const TICK: Duration = Duration::from_secs(1);
/// How many orgs the worst of the lagging ones are.
const WORST: usize = 10;

/// What the engine is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message from a shard's cursor.
    Message(Arc<Delivery>),
    /// The shard is ours.
    Open { shard: Shard, epoch: u64, mark: u64, behind: Vec<(OrgId, Pipeline, u64)> },
    /// The shard is ours no longer; the answer is what may be written down about it.
    Close { shard: Shard, mark: oneshot::Sender<Option<Mark>> },
    /// The marks of all owned shards, please, and who lags the most.
    Marks(oneshot::Sender<Vec<(Shard, Mark)>>),
    /// The tables of an org were reset.
    Rewind { key: LaneKey, stored: u64 },
}

pub(crate) struct Engine {
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) options: WorkerOptions,
    pub(crate) worst: tokio::sync::watch::Sender<Vec<LaneLag>>,
}

type GroupReport = (Vec<LaneSlice>, Vec<SliceOutcome>);
type RefillReport = (RefillWish, Option<Vec<Arc<Delivery>>>);

impl Engine {
    /// Runs until `stop`, then until the slices in their slots have ended.
    pub(crate) async fn run(self, mut input: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut scheduler = Scheduler::new(self.options.clone());
        let mut slots: JoinSet<GroupReport> = JoinSet::new();
        let mut refills: JoinSet<RefillReport> = JoinSet::new();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        while !stop.is_cancelled() || !slots.is_empty() {
            let wake = scheduler.next_wake().map(tokio::time::Instant::from_std);
            tokio::select! {
                received = input.recv_many(&mut batch, 1024), if !stop.is_cancelled() => {
                    if received == 0 {
                        break;
                    }
                    for one in batch.drain(..) {
                        receive(&mut scheduler, one);
                    }
                }
                Some(Ok((group, outcomes))) = slots.join_next() => finish(&mut scheduler, &group, outcomes),
                Some(Ok((wish, chunk))) = refills.join_next() => {
                    if let Some(seq) = scheduler.refilled(wish, chunk.as_deref()) {
                        let key = wish.key;
                        counter!("orgstream_stream_gaps_total").increment(1);
                        tracing::error!(
                            org.id = %key.org, pipeline = %key.pipeline, event.seq = seq,
                            "messages of this org are gone from the stream: look for a purge or lost storage"
                        );
                    }
                }
                () = async { match wake { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
                _ = tick.tick() => self.observe(&scheduler),
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
            if stop.is_cancelled() {
                continue;
            }
            let now = Instant::now();
            while slots.len() < self.options.slots {
                let group = scheduler.next_group(now);
                if group.is_empty() {
                    break;
                }
                let db = self.db.clone();
                slots.spawn(async move {
                    let outcomes = run_group(&db, &group).await;
                    (group, outcomes)
                });
            }
            for wish in scheduler.refills(REFILLS.saturating_sub(refills.len())) {
                refills.spawn(refill(self.log.clone(), wish));
            }
        }
    }

    fn observe(&self, scheduler: &Scheduler) {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let (mut attached, mut detached, mut backing_off) = (0_u32, 0_u32, 0_u32);
        let mut ages: HashMap<Pipeline, Vec<u64>> = HashMap::new();
        let mut lags = Vec::new();
        for (key, lane) in scheduler.lanes() {
            let is_detached = lane.skipped.is_some();
            if is_detached {
                detached += 1;
            } else {
                attached += 1;
            }
            if lane.state == LaneState::BackingOff {
                backing_off += 1;
            }
            let age_ms = lane.oldest().map_or(0, |oldest| oldest.lag(now, wall).as_millis() as u64);
            ages.entry(key.pipeline).or_default().push(age_ms);
            if age_ms > 0 || is_detached {
                let waiting = lane.len() + lane.in_slot.len();
                let oldest = lane.oldest().map(|oldest| oldest.seq()).or(lane.skipped.map(|skipped| skipped.next));
                lags.push(LaneLag {
                    org: key.org,
                    pipeline: key.pipeline,
                    oldest: oldest.unwrap_or_default(),
                    waiting,
                    age_ms,
                    detached: is_detached,
                });
            }
        }
        gauge!("orgstream_lanes", "state" => "attached").set(attached);
        gauge!("orgstream_lanes", "state" => "detached").set(detached);
        gauge!("orgstream_lanes", "state" => "backing_off").set(backing_off);
        gauge!("orgstream_lane_bytes").set(scheduler.bytes() as f64);
        for (pipeline, mut ages) in ages {
            ages.sort_unstable();
            for (label, share) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("1", 1.0)] {
                let place = ((ages.len().saturating_sub(1)) as f64 * share) as usize;
                let seconds = ages.get(place).map_or(0.0, |ms| *ms as f64 / 1000.0);
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

fn receive(scheduler: &mut Scheduler, input: Input) {
    match input {
        Input::Message(delivery) => match EventSubject::route(&delivery.message.subject) {
            Ok((shard, org)) if shard == delivery.message.shard => scheduler.offer(org, &delivery),
            Ok(_) | Err(_) => {
                // Nobody's: the stream takes only subjects of its shard, so this is not even an org's.
                counter!("orgstream_stray_messages_total").increment(1);
                tracing::error!(
                    subject = delivery.message.subject,
                    event.seq = delivery.seq(),
                    "a message on a subject that is no org's was passed over"
                );
                scheduler.pass(delivery.message.shard, delivery.seq());
            }
        },
        Input::Open { shard, epoch, mark, behind } => scheduler.open_shard(shard, epoch, mark, &behind),
        Input::Close { shard, mark } => {
            // Whoever asked may be gone; then nobody needs the answer.
            let _ = mark.send(scheduler.mark(shard));
            scheduler.close_shard(shard);
        }
        Input::Marks(answer) => {
            let _ = answer.send(scheduler.marks());
        }
        Input::Rewind { key, stored } => scheduler.rewind(key, stored),
    }
}

fn finish(scheduler: &mut Scheduler, group: &[LaneSlice], outcomes: Vec<SliceOutcome>) {
    let (now, wall) = (Instant::now(), SystemTime::now());
    for (slice, outcome) in group.iter().zip(outcomes) {
        let pipeline = slice.key.pipeline.name();
        match &outcome {
            SliceOutcome::Applied { cost } => {
                histogram!("orgstream_slice_seconds", "pipeline" => pipeline).record(cost.total());
                histogram!("orgstream_slice_messages", "pipeline" => pipeline).record(slice.deliveries.len() as f64);
                for delivery in &slice.deliveries {
                    let lag = delivery.lag(now, wall);
                    histogram!("orgstream_projection_lag_seconds", "pipeline" => pipeline).record(lag);
                }
            }
            SliceOutcome::Moved { .. } => counter!("orgstream_slice_retries_total", "cause" => "moved").increment(1),
            SliceOutcome::Fenced => counter!("orgstream_slice_retries_total", "cause" => "fenced").increment(1),
            SliceOutcome::Undone => counter!("orgstream_slice_retries_total", "cause" => "undone").increment(1),
            SliceOutcome::Unavailable => {
                counter!("orgstream_slice_retries_total", "cause" => "unavailable").increment(1);
            }
            SliceOutcome::Failed { reason } => {
                counter!("orgstream_slice_retries_total", "cause" => "failed").increment(1);
                tracing::warn!(
                    org.id = %slice.key.org, pipeline, event.seq = slice.deliveries.first().map(|first| first.seq()),
                    messages = slice.deliveries.len(), reason, "a slice failed and will be tried again"
                );
            }
        }
        scheduler.done(slice, outcome, now, rand::random());
    }
}

async fn refill(log: Log, wish: RefillWish) -> RefillReport {
    let limit = ReadLimit { messages: REFILL_MESSAGES, bytes: wish.bytes };
    let chunk = match log.read(wish.key.shard, wish.key.org, wish.from, limit).await {
        Ok(chunk) => {
            let now = Instant::now();
            Some(chunk.messages.into_iter().map(|message| Delivery::new(message, now)).collect::<Vec<_>>())
        }
        Err(error) => {
            tracing::warn!(org.id = %wish.key.org, event.seq = wish.from, %error, "a refill failed and will be tried again");
            None
        }
    };
    if chunk.as_ref().is_none_or(Vec::is_empty) {
        tokio::time::sleep(REFILL_PAUSE).await;
    }
    (wish, chunk)
}
