//! The disturbances of the quiet organizations, and their effects.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail};
use orgstream_events::Pipeline;
use orgstream_projections::{BoundOrg, Hindrance, RebuildJob, Seen, hinder, unhinder};
use orgstream_stream::Placement;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    HELD,
    load::{Loaded, Quiet, now_us, pour},
    measure::{Lag, Outcome, drained, jain, outcome, quantile, seen_of},
    rig::{Rig, WorkerProcess, WorkerSetup},
};
use crate::load;

/// Timeout for a backlog to be worked off, after which the benchmark gives up.
pub(super) const TIMEOUT: Duration = Duration::from_mins(15);
/// Quiet load before anything is measured.
pub(super) const WARM_UP: Duration = Duration::from_secs(3);
/// Quiet load after the disturbance, which is not measured.
const AFTER: Duration = Duration::from_millis(500);
/// Duration of the capacity measurement, and its events per second.
const PROBE: Duration = Duration::from_secs(10);
const PROBE_RATE: f64 = 150.0;
/// Organizations that a burst is spread over to find the fastest possible drain.
const SPREAD: usize = 8;
/// Polling interval for the end of a rebuild of all organizations.
const WATCHED: Duration = Duration::from_millis(500);
/// The multiple of its equal share of the capacity that the busy organization of F2 sends.
const TIMES_OVER: f64 = 10.0;

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) scenario: &'static str,
    pub(super) policy: &'static str,
    pub(super) orgs: usize,
    pub(super) seed: u64,
    pub(super) quiet_p99_idle_ms: f64,
    pub(super) quiet_p99_burst_ms: f64,
    /// The ratio of the second to the first.
    pub(super) ir99: f64,
    /// The same ratio for the longest.
    pub(super) ir_max: f64,
    /// The ratio of the time that the same events need without the limits of one organization to the time they needed.
    pub(super) drain_efficiency: Option<f64>,
    /// The evenness of service among those that had a backlog.
    pub(super) jain: Option<f64>,
    pub(super) max_starved_ms: f64,
    pub(super) lost: usize,
    pub(super) duplicated: usize,
    pub(super) reordered: usize,
    pub(super) rss_mb: f64,
    /// The figures that only this scenario has.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) figures: Figures,
    /// For the picture: the quiet lags around the disturbance.
    #[serde(skip)]
    pub(super) trace: Trace,
}

impl Row {
    /// Makes a row from the effect on the quiet organizations: two periods compared, each from and to in microseconds.
    pub(super) fn new(trial: &Trial, outcome: &Outcome, idle: (i64, i64), burst: (i64, i64)) -> Self {
        let (idle, burst) = (outcome.between(idle.0, idle.1), outcome.between(burst.0, burst.1));
        let (p99_idle, p99_burst) = (quantile(&idle, 0.99), quantile(&burst, 0.99));
        Self {
            scenario: trial.scenario,
            policy: trial.policy,
            orgs: trial.crowd.orgs,
            seed: trial.seed,
            quiet_p99_idle_ms: p99_idle,
            quiet_p99_burst_ms: p99_burst,
            ir99: p99_burst / p99_idle,
            ir_max: quantile(&burst, 1.0) / quantile(&idle, 1.0),
            drain_efficiency: None,
            jain: None,
            max_starved_ms: f64::NAN,
            lost: outcome.lost,
            duplicated: outcome.duplicated,
            reordered: outcome.reordered,
            rss_mb: f64::NAN,
            figures: Figures::new(),
            trace: Trace::default(),
        }
    }

    /// A short summary of the row.
    pub(super) fn gist(&self) -> String {
        if self.ir99.is_finite() {
            let (idle, burst) = (self.quiet_p99_idle_ms, self.quiet_p99_burst_ms);
            return format!("p99 {idle:.1} ms alone, {burst:.1} ms now, IR99 {:.2}", self.ir99);
        }
        let figures = self.figures.iter().map(|(name, value)| format!("{} {value:.2}", name.replace('_', " ")));
        figures.collect::<Vec<_>>().join(", ")
    }
}

/// The quiet lags around the disturbance.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    pub(super) points: Vec<Point>,
    pub(super) drained_s: f64,
}

/// One quiet event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// When it was due, in seconds from the beginning of the disturbance.
    pub(super) at: f64,
    /// Its lag in milliseconds: the total, until the log had the event, and from then on.
    pub(super) ms: f64,
    append_ms: f64,
    project_ms: f64,
}

impl Trace {
    fn new(outcome: &Outcome, from: i64, to: i64) -> Self {
        let near = outcome.lags.iter().filter(|lag| lag.intended_us > from - 2_000_000);
        let point = |lag: &Lag| {
            let (append_ms, project_ms) = lag.parts_ms();
            Point { at: (lag.intended_us - from) as f64 / 1e6, ms: lag.ms(), append_ms, project_ms }
        };
        Self { points: near.map(point).collect(), drained_s: (to - from) as f64 / 1e6 }
    }

    /// The p99 of events due in these seconds, in milliseconds.
    fn p99_between(&self, from: f64, to: f64, part: impl Fn(&Point) -> f64) -> f64 {
        let inside = self.points.iter().filter(|point| (from..to).contains(&point.at));
        let mut lags: Vec<f64> = inside.map(part).collect();
        lags.sort_unstable_by(f64::total_cmp);
        quantile(&lags, 0.99)
    }
}

/// The common parameters of the trials of one crowd.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    pub(super) orgs: usize,
    /// A worker's throughput of such events, per second.
    pub(super) capacity: f64,
    /// Quiet events per second.
    pub(super) rate: f64,
    /// Seconds that the burst takes when it is spread over many organizations.
    pub(super) best_drain: f64,
}

/// One measurement to make.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    pub(super) scenario: &'static str,
    pub(super) policy: &'static str,
    pub(super) seed: u64,
    pub(super) workers: Vec<WorkerSetup>,
    pub(super) idle: Duration,
    pub(super) crowd: Crowd,
}

/// Figures that only some scenarios have, by name.
pub(super) type Figures = BTreeMap<&'static str, f64>;

/// Runs the quiet load, first alone and then while `disturb` acts on the servers and the workers.
pub(super) async fn trial(
    rig: &mut Rig,
    trial: &Trial,
    disturb: impl AsyncFnOnce(&Rig, &mut Vec<WorkerProcess>) -> anyhow::Result<Figures>,
) -> anyhow::Result<(Row, Outcome)> {
    let orgs = rig.crowd(trial.crowd.orgs).await?;
    let mut workers = rig.workers(&trial.workers).await?;
    let quiet = Quiet::start(&rig.log, &orgs, trial.crowd.rate, trial.seed);
    sleep(WARM_UP).await;
    let idle_from = now_us();
    sleep(trial.idle).await;
    let from = now_us();
    let figures = disturb(rig, &mut workers).await?;
    let to = now_us();
    sleep(AFTER).await;
    let sent = quiet.stop().await?;
    let touched: std::collections::BTreeSet<usize> = sent.iter().map(|one| one.org).collect();
    let touched: Vec<Placement> = touched.into_iter().filter_map(|org| orgs.get(org).cloned()).collect();
    drained(&rig.log, &rig.db, &touched, TIMEOUT).await?;
    let rss = workers.iter().map(WorkerProcess::peak_rss).max().unwrap_or_default();
    for worker in workers {
        worker.stop().await?;
    }
    let outcome = outcome(&rig.db, &orgs, &sent).await?;
    let row = Row {
        max_starved_ms: outcome.longest_starved(from, to),
        rss_mb: rss as f64 / 1e6,
        figures,
        trace: Trace::new(&outcome, from, to),
        ..Row::new(trial, &outcome, (idle_from, from), (from, to))
    };
    Ok((row, outcome))
}

/// Determines how many quiet events a second would keep the machine's processors busy: from the cost of a few of them.
///
/// Quiet events come one by one, so each costs a transaction, or a part in one; the cost of a backlog does not apply to
/// them.
pub(super) async fn capacity(rig: &mut Rig, worker: &WorkerSetup, orgs: usize) -> anyhow::Result<f64> {
    let crowd = rig.crowd(orgs).await?;
    // Every organization has a history, so that no first event is part of what is measured.
    pour(&rig.log, &crowd, orgs as u64).await?;
    let working = rig.worker(worker).await?;
    drained(&rig.log, &rig.db, &crowd, TIMEOUT).await?;
    let before = Processors::now()?;
    sleep(PROBE).await;
    let resting = Processors::now()?.busy_since(before);
    let quiet = Quiet::start(&rig.log, &crowd, PROBE_RATE, 0);
    sleep(WARM_UP).await;
    let before = Processors::now()?;
    sleep(PROBE).await;
    let busy = Processors::now()?.busy_since(before);
    quiet.stop().await?;
    working.stop().await?;
    Ok(PROBE_RATE / (busy - resting).max(0.001))
}

/// The work of all processors of the machine so far.
#[derive(Debug, Clone, Copy)]
struct Processors {
    idle: u64,
    all: u64,
}

impl Processors {
    fn now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("this benchmark reads /proc, which Linux has")?;
        // user, nice, system, idle, waiting for the disk, …
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        Ok(Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() })
    }

    /// The share of their time that they were busy.
    fn busy_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        1.0 - self.idle.saturating_sub(before.idle) as f64 / all as f64
    }
}

/// The duration of `events` events, beside the quiet load, when they are spread so that all slots can work on them.
pub(super) async fn best_drain(
    rig: &mut Rig,
    worker: &WorkerSetup,
    orgs: usize,
    rate: f64,
    events: usize,
) -> anyhow::Result<f64> {
    let crowd = rig.crowd(orgs).await?;
    let many = rig.new_orgs(SPREAD).await?;
    let burst = Loaded::new(&many, events)?;
    let working = rig.worker(worker).await?;
    let quiet = Quiet::start(&rig.log, &crowd, rate, 0);
    sleep(WARM_UP).await;
    let fired = burst.fire(&rig.nats).await?;
    drained(&rig.log, &rig.db, &many, TIMEOUT).await?;
    quiet.stop().await?;
    working.stop().await?;
    let mut done = fired.from_us;
    for org in &many {
        done = done.max(last_seen(rig, org).await?);
    }
    Ok((done - fired.from_us) as f64 / 1e6)
}

/// When all pipelines had it.
fn done_us(row: &Seen) -> i64 {
    row.audit_us.max(row.read_model_us.unwrap_or_default())
}

async fn last_seen(rig: &Rig, org: &Placement) -> anyhow::Result<i64> {
    let seen = seen_of(&rig.db, org, 0).await?;
    Ok(seen.iter().map(done_us).max().unwrap_or_default())
}

/// F1, and F3 with more than one: all events of `hot` organizations, at once.
pub(super) async fn burst(rig: &mut Rig, case: &Trial, hot: usize, events: usize) -> anyhow::Result<Row> {
    let hot = rig.new_orgs(hot).await?;
    let loaded = Loaded::new(&hot, events)?;
    let (best, held) = (case.crowd.best_drain, case.policy == HELD);
    let crowd = rig.crowd(case.crowd.orgs).await?;
    let mut from_us = 0;
    let (mut row, outcome) = trial(rig, case, async |rig: &Rig, _: &mut Vec<WorkerProcess>| {
        let fired = loaded.fire(&rig.nats).await?;
        from_us = fired.from_us;
        if !held {
            drained(&rig.log, &rig.db, &hot, TIMEOUT).await?;
        }
        Ok(Figures::from([("acknowledged_s", (fired.acknowledged_us - fired.from_us) as f64 / 1e6)]))
    })
    .await?;
    if held {
        // It must not disturb the next measurement.
        let fair = case.workers.iter().map(|worker| WorkerSetup { policy: "fair", ..worker.clone() });
        let workers = rig.workers(&fair.collect::<Vec<_>>()).await?;
        drained(&rig.log, &rig.db, &hot, TIMEOUT).await?;
        for worker in workers {
            worker.stop().await?;
        }
    }
    // While the burst is appended, producers and log compete for the processors too.
    let acknowledged_s = row.figures.get("acknowledged_s").copied().unwrap_or_default();
    let (trace, drained_s) = (&row.trace, row.trace.drained_s);
    row.figures.extend([
        ("drained_s", drained_s),
        ("quiet_p99_appending_ms", trace.p99_between(0.0, acknowledged_s, |point| point.ms)),
        ("quiet_p99_draining_ms", trace.p99_between(acknowledged_s, drained_s, |point| point.ms)),
        // Until the log has the event, and from then on: the parts of the lag.
        ("quiet_p99_idle_append_ms", trace.p99_between(f64::MIN, 0.0, |point| point.append_ms)),
        ("quiet_p99_idle_project_ms", trace.p99_between(f64::MIN, 0.0, |point| point.project_ms)),
        ("quiet_p99_burst_append_ms", trace.p99_between(0.0, drained_s, |point| point.append_ms)),
        ("quiet_p99_burst_project_ms", trace.p99_between(0.0, drained_s, |point| point.project_ms)),
    ]);
    // Those that share a shard, and so a cursor, with the burst, and those that do not.
    let to_us = from_us + (drained_s * 1e6) as i64;
    let beside = |org: usize| crowd.get(org).is_some_and(|org| hot.iter().any(|hot| hot.shard == org.shard));
    for (name, is_beside) in [("quiet_p99_burst_same_shard_ms", true), ("quiet_p99_burst_other_shards_ms", false)] {
        let lags = outcome.lags.iter().filter(|lag| beside(lag.org) == is_beside);
        let inside = lags.filter(|lag| (from_us..to_us).contains(&lag.intended_us));
        let mut lags: Vec<f64> = inside.map(Lag::ms).collect();
        lags.sort_unstable_by(f64::total_cmp);
        row.figures.insert(name, quantile(&lags, 0.99));
    }
    let mut seen = Vec::new();
    for org in &hot {
        seen.push(seen_of(&rig.db, org, 0).await?);
    }
    let done: usize = seen.iter().map(Vec::len).sum();
    row.lost += events - done.min(events);
    if held {
        return Ok(row);
    }
    row.drain_efficiency = Some(best / row.trace.drained_s);
    if hot.len() > 1 {
        row.jain = Some(evenness(&seen));
    }
    Ok(row)
}

/// Jain's index over windows of a second, as long as all of them have a backlog; the median of the windows.
fn evenness(seen: &[Vec<Seen>]) -> f64 {
    let times: Vec<Vec<i64>> = seen
        .iter()
        .map(|rows| {
            let mut times: Vec<i64> = rows.iter().map(done_us).collect();
            times.sort_unstable();
            times
        })
        .collect();
    let from = times.iter().filter_map(|times| times.first()).min().copied().unwrap_or_default();
    let to = times.iter().filter_map(|times| times.last()).min().copied().unwrap_or_default();
    let window = 1_000_000.min((to - from).max(1));
    let mut windows = Vec::new();
    let mut start = from;
    while start + window <= to {
        let inside = |times: &Vec<i64>| {
            (times.partition_point(|at| *at < start + window) - times.partition_point(|at| *at < start)) as f64
        };
        windows.push(jain(&times.iter().map(inside).collect::<Vec<_>>()));
        start += window;
    }
    super::measure::median(windows)
}

/// F4 and F5: an organization whose records are slow, or of which one is rejected. F6: one whose events are huge.
pub(super) async fn neighbour(rig: &mut Rig, case: &Trial, trouble: Trouble) -> anyhow::Result<Row> {
    let neighbours = rig.new_orgs(1).await?;
    let neighbour = neighbours.first().context("an organization was made")?;
    let owner_url = rig.private.as_ref().map(|private| private.owner_url.clone());
    let org = BoundOrg::named_by_operator(neighbour.org);
    if let Some(hindrance) = trouble.hindrance() {
        let owner_url =
            owner_url.as_deref().context("this scenario changes a table, so it needs servers of its own")?;
        unhinder(owner_url).await?;
        hinder(owner_url, org, hindrance).await?;
    }
    let events = (case.idle.as_secs_f64() / trouble.every().as_secs_f64()) as usize;
    let loaded = Loaded::of(&neighbours, events, |org, number| match trouble {
        Trouble::Slow | Trouble::Poison => load::commit(org, number),
        Trouble::Huge => load::commit_of(org, huge(number)),
    })?;
    let row = trial(rig, case, async |rig: &Rig, _: &mut Vec<WorkerProcess>| {
        loaded.drip(&rig.nats, trouble.every()).await?;
        let mut figures = Figures::from([("neighbour_sent", events as f64)]);
        if !matches!(trouble, Trouble::Slow) {
            // Everything not in trouble itself continues: all of it, except the rejected one.
            sleep(AFTER).await;
            let seen = seen_of(&rig.db, neighbour, 0).await?;
            figures.insert("neighbour_done", seen.iter().filter(|row| row.read_model_us.is_some()).count() as f64);
        }
        Ok(figures)
    })
    .await;
    if let Some(owner_url) = owner_url.filter(|_| trouble.hindrance().is_some()) {
        unhinder(&owner_url).await?;
    }
    Ok(row?.0)
}

/// F2: one organization sends ten times its equal share, for the given time.
pub(super) async fn sustained(rig: &mut Rig, case: &Trial, time: Duration) -> anyhow::Result<Row> {
    let hot = rig.new_orgs(1).await?;
    let rate = TIMES_OVER * case.crowd.capacity / (case.crowd.orgs + 1) as f64;
    let (row, _) = trial(rig, case, async |rig: &Rig, workers: &mut Vec<WorkerProcess>| {
        let rss = |workers: &[WorkerProcess]| workers.iter().map(WorkerProcess::rss).sum::<u64>() as f64 / 1e6;
        let producer = Quiet::start(&rig.other_log().await?, &hot, rate, case.seed + 1_000);
        sleep(time / 2).await;
        let half_way = rss(workers);
        sleep(time / 2).await;
        let grown = rss(workers) - half_way;
        let sent = producer.stop().await?;
        let stopped = now_us();
        drained(&rig.log, &rig.db, &hot, TIMEOUT).await?;
        Ok(Figures::from([
            ("neighbour_sent", sent.len() as f64),
            ("neighbour_behind_s", (now_us() - stopped) as f64 / 1e6),
            ("rss_growth_mb", grown),
        ]))
    })
    .await?;
    Ok(row)
}

/// F12: the read models of all organizations are rebuilt, those of one organization with `events` events among them.
pub(super) async fn rebuild(rig: &mut Rig, case: &Trial, events: usize) -> anyhow::Result<Row> {
    let mut orgs = rig.new_orgs(1).await?;
    pour(&rig.log, &orgs, events as u64).await?;
    orgs.extend(rig.crowd(case.crowd.orgs).await?);
    let (row, _) = trial(rig, case, async |rig: &Rig, _: &mut Vec<WorkerProcess>| {
        let began = Instant::now();
        for org in &orgs {
            rig.db.ask_rebuild(BoundOrg::named_by_operator(org.org), Pipeline::ReadModels, RebuildJob::Build).await?;
        }
        let ids: Vec<_> = orgs.iter().map(|org| org.org).collect();
        let rebuilds = loop {
            let rebuilds = rig.db.rebuilds_of(&ids, Pipeline::ReadModels).await?;
            if rebuilds.iter().all(|rebuild| !rebuild.state.is_under_way()) {
                break rebuilds;
            }
            if began.elapsed() > TIMEOUT {
                bail!("the rebuild of all has not ended after {TIMEOUT:?}");
            }
            sleep(WATCHED).await;
        };
        if let Some(error) = rebuilds.iter().find_map(|rebuild| rebuild.error.as_ref()) {
            bail!("a rebuild has failed: {error}");
        }
        let rebuilt: u64 = rebuilds.iter().map(|rebuild| rebuild.events).sum();
        Ok(Figures::from([
            ("rebuilt_events", rebuilt as f64),
            ("rebuilt_events_per_s", rebuilt as f64 / began.elapsed().as_secs_f64()),
        ]))
    })
    .await?;
    Ok(row)
}

/// The trouble of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Every event of it takes five seconds.
    Slow,
    /// One event of it always fails.
    Poison,
    /// Its events have nearly a megabyte.
    Huge,
}

impl Trouble {
    fn hindrance(self) -> Option<Hindrance> {
        match self {
            Self::Slow => Some(Hindrance::Slow(5_000)),
            Self::Poison => Some(Hindrance::Refused(10)),
            Self::Huge => None,
        }
    }

    fn every(self) -> Duration {
        match self {
            Self::Slow | Self::Poison => Duration::from_millis(50),
            Self::Huge => Duration::from_millis(250),
        }
    }
}

/// Content of 900 kB that hardly compresses.
fn huge(number: u64) -> serde_json::Value {
    let mut rng: rand::rngs::StdRng = rand::SeedableRng::seed_from_u64(number);
    let words: Vec<String> =
        (0..55_000).map(|_| format!("{:014x}", rand::RngExt::random::<u64>(&mut rng) >> 8)).collect();
    serde_json::json!({"number": number, "text": words.join(" ")})
}
