//! Open-loop load: the time to send an event is determined beforehand, and its lag is counted from that time, so that
//! delays of the sender are included.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use futures_util::{StreamExt, stream, stream::FuturesUnordered};
use orgstream::{config::NatsArgs, process as node};
use orgstream_events::{Commit, OrgId};
use orgstream_stream::{Log, Placement};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::load;

/// Appends of a burst that its producer has in flight. The product decides how many of them reach the log at once.
const BURST_AT_ONCE: usize = 1_000;
/// The lower priority of a burst's producer on this machine's processors, as a `nice` value. In production it is
/// another machine.
const BURST_NICE: i32 = 10;
/// In-flight appends while an unmeasured backlog is made.
const POUR_AT_ONCE: usize = 256;
/// In-flight appends of the quiet load, at most. More than that would mean that the log has stopped.
const QUIET_AT_ONCE: usize = 20_000;

/// An event that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Its organization, as an index in the crowd.
    pub(super) org: usize,
    pub(super) seq: u64,
    /// When it was due, in microseconds since 1970.
    pub(super) intended_us: i64,
    /// When the log had it.
    pub(super) acknowledged_us: i64,
}

/// The clock that also times the database's commits.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The choice of the next organization: the k-th of the crowd a k-th as often as the first.
pub(super) struct Zipf(Vec<f64>);

impl Zipf {
    pub(super) fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Self(sums.collect())
    }

    pub(super) fn pick(&self, rng: &mut StdRng) -> usize {
        let total = self.0.last().copied().unwrap_or_default();
        let wanted = rng.random_range(0.0..total.max(f64::MIN_POSITIVE));
        self.0.partition_point(|sum| *sum <= wanted).min(self.0.len().saturating_sub(1))
    }
}

/// Events of many organizations, at random times, until it is stopped.
pub(super) struct Quiet {
    stop: CancellationToken,
    sending: JoinHandle<anyhow::Result<Vec<Sent>>>,
}

impl Quiet {
    /// Starts: `rate` events per second on average, spread over `orgs` by Zipf's law.
    pub(super) fn start(log: &Log, orgs: &[Placement], rate: f64, seed: u64) -> Self {
        let stop = CancellationToken::new();
        let (due, arrivals) = mpsc::channel(QUIET_AT_ONCE);
        let (count, stopped) = (orgs.len(), stop.clone());
        // A thread of its own, because it can sleep for fractions of a millisecond.
        thread::spawn(move || pace(count, rate, seed, &due, &stopped));
        let sending = tokio::spawn(send(log.clone(), orgs.to_vec(), arrivals));
        Self { stop, sending }
    }

    /// Stops, and returns what was sent, once all of it is acknowledged.
    pub(super) async fn stop(self) -> anyhow::Result<Vec<Sent>> {
        self.stop.cancel();
        self.sending.await?
    }
}

#[expect(clippy::disallowed_methods, reason = "it has a thread of its own, and the runtime's timer is too coarse")]
fn pace(orgs: usize, rate: f64, seed: u64, due: &mpsc::Sender<(usize, i64)>, stop: &CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    let zipf = Zipf::new(orgs);
    let (began, began_us) = (Instant::now(), now_us());
    let mut at = 0.0;
    while !stop.is_cancelled() {
        // Independent senders: the time between two of their events is exponentially distributed.
        at += -(1.0 - rng.random_range(0.0..1.0_f64)).ln() / rate;
        let next = began + Duration::from_secs_f64(at);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if due.blocking_send((zipf.pick(&mut rng), began_us + (at * 1e6) as i64)).is_err() {
            return;
        }
    }
}

async fn send(log: Log, orgs: Vec<Placement>, mut arrivals: mpsc::Receiver<(usize, i64)>) -> anyhow::Result<Vec<Sent>> {
    let mut sent = Vec::new();
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        tokio::select! {
            arrival = arrivals.recv(), if open && under_way.len() < QUIET_AT_ONCE => {
                let Some((org, intended_us)) = arrival else {
                    open = false;
                    continue;
                };
                let placement = orgs.get(org).context("the crowd has this organization")?;
                let commit = load::commit(placement.org, sent.len() as u64)?;
                let log = &log;
                under_way.push(async move {
                    let appended = log.append(placement, &commit, 0, None).await?;
                    anyhow::Ok(Sent { org, seq: appended.seq, intended_us, acknowledged_us: now_us() })
                });
            }
            Some(done) = under_way.next(), if !under_way.is_empty() => sent.push(done?),
        }
    }
    Ok(sent)
}

/// Events that were sent at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    /// When it began, and when all of it was acknowledged.
    pub(super) from_us: i64,
    pub(super) acknowledged_us: i64,
}

/// A neighbour's events, made beforehand: making them must not take the processor from what is measured.
pub(super) struct Loaded(Vec<(Placement, Commit)>);

impl Loaded {
    /// `events` events, distributed over `orgs`.
    pub(super) fn new(orgs: &[Placement], events: usize) -> anyhow::Result<Self> {
        Self::of(orgs, events, load::commit)
    }

    /// Events of the caller's own `commit(organization, number)`.
    pub(super) fn of(
        orgs: &[Placement],
        events: usize,
        commit: impl Fn(OrgId, u64) -> anyhow::Result<Commit>,
    ) -> anyhow::Result<Self> {
        let dealt = orgs.iter().cycle().zip(0..events as u64);
        let made = dealt.map(|(placement, number)| Ok((placement.clone(), commit(placement.org, number)?)));
        Ok(Self(made.collect::<anyhow::Result<_>>()?))
    }

    /// Sends all of it as fast as it is acknowledged.
    pub(super) async fn fire(self, nats: &NatsArgs) -> anyhow::Result<Burst> {
        self.send_apart(nats, None).await
    }

    /// Sends one event after the other, one each `every`, or whenever the one before is acknowledged.
    pub(super) async fn drip(self, nats: &NatsArgs, every: Duration) -> anyhow::Result<Burst> {
        self.send_apart(nats, Some(every)).await
    }

    /// Sends from a thread that is separated like a process, as far as possible.
    async fn send_apart(self, nats: &NatsArgs, every: Option<Duration>) -> anyhow::Result<Burst> {
        let (nats, (done, burst)) = (nats.clone(), oneshot::channel());
        thread::Builder::new().name("burst".to_owned()).spawn(move || {
            step_back();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let sent = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
                runtime.block_on(async { self.send(&node::connect_log(&nats).await?, every).await })
            });
            let _ = done.send(sent);
        })?;
        burst.await?
    }

    async fn send(self, log: &Log, every: Option<Duration>) -> anyhow::Result<Burst> {
        let from_us = now_us();
        let at_once = if every.is_some() { 1 } else { BURST_AT_ONCE };
        let mut ticks = every.map(tokio::time::interval);
        let mut appends = stream::iter(self.0)
            .map(|(placement, commit)| async move { log.append(&placement, &commit, 0, None).await })
            .buffer_unordered(at_once);
        loop {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            match appends.next().await {
                Some(appended) => appended?,
                None => return Ok(Burst { from_us, acknowledged_us: now_us() }),
            };
        }
    }
}

/// On Linux a thread has its own niceness. Elsewhere the producer competes with what is measured.
fn step_back() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(BURST_NICE);
}

/// Makes events on the way and appends them, distributed over `orgs`.
pub(super) async fn pour(log: &Log, orgs: &[Placement], events: u64) -> anyhow::Result<()> {
    let commits = (0..events).zip(orgs.iter().cycle());
    let mut appends = stream::iter(commits)
        .map(|(number, placement)| async move {
            let commit = load::commit(placement.org, number)?;
            anyhow::Ok(log.append(placement, &commit, 0, None).await?)
        })
        .buffer_unordered(POUR_AT_ONCE);
    while let Some(appended) = appends.next().await {
        appended?;
    }
    Ok(())
}
