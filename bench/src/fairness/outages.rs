//! The effect of kills: F10 a worker with a backlog, F11 one of several workers, F17 the log's server.

use std::{collections::HashSet, time::Duration};

use anyhow::Context;
use orgstream_events::Shard;
use orgstream_projections::{BoundOrg, audit};
use orgstream_stream::Placement;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    load::{Loaded, Quiet, now_us, pour},
    measure::{Outcome, drained, outcome, quantile},
    rig::{Rig, WorkerProcess, WorkerSetup},
    scenarios::{Figures, Row, TIMEOUT, Trial, WARM_UP, trial},
};

/// Events of a backlog that are made at a time.
const PART: usize = 50_000;
/// How long a worker may work on its backlog before it is killed.
const BEFORE: Duration = Duration::from_secs(5);
/// How long measurements continue afterwards: longer than a lease.
const AFTERWARDS: Duration = Duration::from_secs(12);
/// Workers that share the shards, of which one is killed.
const WORKERS: u128 = 4;
/// How long a worker without work is left alone, and then watched: the watchdog's check interval.
const SETTLED: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(30);

/// F10: a worker is killed while it works off an organization's backlog, and restarted at once.
pub(super) async fn restart(rig: &mut Rig, case: &Trial, backlog: usize) -> anyhow::Result<Row> {
    let setup = case.workers.first().context("there is a worker")?;
    let orgs = rig.crowd(case.crowd.orgs).await?;
    let hot = rig.new_orgs(1).await?;
    let worker = rig.worker(setup).await?;
    let quiet = Quiet::start(&rig.log, &orgs, case.crowd.rate, case.seed);
    sleep(WARM_UP).await;
    let idle_from = now_us();
    sleep(case.idle).await;
    let idle_to = now_us();
    let mut sent = quiet.stop().await?;
    drained(&rig.log, &rig.db, &orgs, TIMEOUT).await?;
    worker.kill9().await?;

    for part in (0..backlog).step_by(PART) {
        Loaded::new(&hot, PART.min(backlog - part))?.fire(&rig.nats).await?;
    }
    let worker = rig.worker(setup).await?;
    let quiet = Quiet::start(&rig.log, &orgs, case.crowd.rate, case.seed + 1_000);
    sleep(BEFORE).await;
    worker.kill9().await?;
    let worker = rig.worker(setup).await?;
    let started = now_us();
    let before = projected(rig, &hot).await?;
    sleep(AFTERWARDS).await;
    let until = now_us();
    sent.extend(quiet.stop().await?);
    drained(&rig.log, &rig.db, &orgs, TIMEOUT).await?;
    let meanwhile = projected(rig, &hot).await?.saturating_sub(before);
    drained(&rig.log, &rig.db, &hot, TIMEOUT).await?;
    let rss = worker.peak_rss();
    worker.stop().await?;

    let outcome = outcome(&rig.db, &orgs, &sent).await?;
    let waited = outcome.lags.iter().filter(|lag| (idle_to..started).contains(&lag.intended_us));
    let current = waited.map(|lag| lag.done_us).max().unwrap_or(started).max(started);
    let lost = (backlog as u64).saturating_sub(projected(rig, &hot).await?);
    Ok(Row {
        lost: outcome.lost + usize::try_from(lost)?,
        rss_mb: rss as f64 / 1e6,
        max_starved_ms: outcome.longest_starved(started, until),
        figures: Figures::from([
            ("backlog_at_restart", backlog as f64 - before as f64),
            ("backlog_done_meanwhile", meanwhile as f64),
            ("quiet_current_again_s", (current - started) as f64 / 1e6),
        ]),
        ..Row::new(case, &outcome, (idle_from, idle_to), (started, until))
    })
}

/// Events of these organizations that are in the audit log, except their creation.
async fn projected(rig: &Rig, orgs: &[Placement]) -> anyhow::Result<u64> {
    let mut events = 0;
    for org in orgs {
        let size = audit::size(&mut rig.db.read(BoundOrg::named_by_operator(org.org)).await?).await?;
        events += size.saturating_sub(1);
    }
    Ok(events)
}

/// F11: one of several workers is killed. The row is about the organizations of the others; the waiting time of its own
/// is a figure.
pub(super) async fn lost_worker(rig: &mut Rig, case: &Trial) -> anyhow::Result<Row> {
    let setup = case.workers.first().context("there is a worker")?;
    let workers = (1..=WORKERS).map(|number| WorkerSetup { number, ..setup.clone() }).collect();
    let case = Trial { workers, ..case.clone() };
    let orgs = rig.crowd(case.crowd.orgs).await?;
    let (mut lost, mut killed) = (HashSet::new(), 0);
    let (row, outcome) = trial(rig, &case, async |rig: &Rig, workers: &mut Vec<WorkerProcess>| {
        let owner = Some(Uuid::from_u128(1));
        lost =
            rig.db.leases().await?.into_iter().filter(|lease| lease.owner == owner).map(|lease| lease.shard).collect();
        killed = now_us();
        workers.swap_remove(0).kill9().await?;
        sleep(AFTERWARDS).await;
        Ok(Figures::new())
    })
    .await?;
    let until = killed + i64::try_from(AFTERWARDS.as_micros())?;
    let is_lost = |org: usize| orgs.get(org).is_some_and(|org: &Placement| lost.contains(&org.shard));
    let (hit, spared): (Vec<_>, Vec<_>) = outcome.lags.iter().copied().partition(|lag| is_lost(lag.org));
    let longest = Outcome { lags: hit, ..Outcome::default() }.between(killed, until).last().copied();
    let spared = Outcome { lags: spared, ..Outcome::default() };
    let mut figures = Figures::from([("shards_lost", lost.len() as f64)]);
    figures.extend(longest.map(|ms| ("their_longest_lag_s", ms / 1e3)));
    let idle = row.quiet_p99_idle_ms;
    let lags = spared.between(killed, until);
    Ok(Row {
        quiet_p99_burst_ms: quantile(&lags, 0.99),
        ir99: quantile(&lags, 0.99) / idle,
        max_starved_ms: spared.longest_starved(killed, until),
        figures,
        ..row
    })
}

/// F17: the cost of many organizations at rest, and how soon the log's server is back.
pub(super) async fn at_rest(rig: &mut Rig, case: &Trial) -> anyhow::Result<Row> {
    let setup = case.workers.first().context("there is a worker")?;
    // New ones, so that the worker has seen none of them at the first memory measurement.
    let orgs = rig.new_places(case.crowd.orgs).await?;
    let worker = rig.worker(setup).await?;
    sleep(SETTLED).await;
    let empty = worker.rss();
    rig.create(&orgs).await?;
    pour(&rig.log, &orgs, orgs.len() as u64).await?;
    drained(&rig.log, &rig.db, &orgs, TIMEOUT).await?;
    sleep(SETTLED).await;
    let (full, before) = (worker.rss(), worker.processor_time());
    sleep(WATCHED).await;
    let busy = worker.processor_time().saturating_sub(before).as_secs_f64() / WATCHED.as_secs_f64();
    let shards: Vec<Shard> = rig.log.shards().collect();
    let mut consumers = 0;
    for shard in &shards {
        consumers += rig.log.shard_state(*shard).await?.consumers;
    }
    let private = rig.private.as_mut().context("this scenario restarts a server, so it needs servers of its own")?;
    private.nats.kill9().await;
    let began = Instant::now();
    private.nats.restart().await?;
    for shard in &shards {
        while rig.log.shard_end(*shard).await.is_err() && began.elapsed() < TIMEOUT {
            sleep(Duration::from_millis(10)).await;
        }
    }
    let back = began.elapsed();
    // No organization is forgotten: the next event of each arrives.
    pour(&rig.log, &orgs, orgs.len() as u64).await?;
    drained(&rig.log, &rig.db, &orgs, TIMEOUT).await?;
    let lost = (2 * orgs.len() as u64).saturating_sub(projected(rig, &orgs).await?);
    let rss = worker.peak_rss();
    worker.stop().await?;
    Ok(Row {
        lost: usize::try_from(lost)?,
        rss_mb: rss as f64 / 1e6,
        figures: Figures::from([
            ("nats_back_s", back.as_secs_f64()),
            ("consumers", consumers as f64),
            ("idle_worker_core_percent", 100.0 * busy),
            ("worker_bytes_per_org", full.saturating_sub(empty) as f64 / orgs.len() as f64),
        ]),
        ..Row::new(case, &Outcome::default(), (0, 0), (0, 0))
    })
}
