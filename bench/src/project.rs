//! `orgstream bench project`: a worker's throughput on a backlog, against bare inserts of the same rows.
//!
//! An event counts once all pipelines have it: a read-model row, an audit row, and the checkpoints of both. The raw
//! limit inserts the same two rows per event with plain `INSERT … SELECT unnest` under the same row-level security, 100
//! events in a transaction, on one connection and on as many as the worker has.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args as ClapArgs;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::terminal::{out::say, table::table};
use orgstream_events::{EventSubject, OrgId, Pipeline, Shard};
use orgstream_projections::{Applied, BoundOrg, Database, audit, checkpoints};
use orgstream_stream::{Log, Placement};
use orgstream_workers::WorkerOptions;
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{load, rig::Rig, warn_of_debug_build, write_json};

/// Events in one raw transaction.
const RAW_BATCH: usize = 100;
/// In-flight appends while the backlog is made.
const MAX_CONCURRENCY: usize = 256;
const POLL: Duration = Duration::from_millis(250);

/// Projecting: events per second into read models and audit log, against bare inserts of the same rows.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Events in the backlog. It should last about a minute.
    #[arg(long, default_value_t = 600_000, value_name = "N")]
    events: u64,
    /// Organizations that the events are spread over, evenly.
    #[arg(long, value_delimiter = ',', default_values_t = [100], value_name = "N,…")]
    orgs: Vec<usize>,
    /// How long each raw row is measured, in seconds.
    #[arg(long, default_value_t = 15, value_name = "S")]
    seconds: u64,
    /// Transactions of the worker at the same time.
    #[arg(long, default_value_t = 4, value_name = "N")]
    slots: usize,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    what: String,
    connections: usize,
    orgs: usize,
    events: u64,
    seconds: f64,
    per_second: f64,
    of_raw_one: f64,
    of_raw_all: f64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let mut rig = Rig::start(false).await?;
    let mut rows: Vec<Row> = Vec::new();
    for connections in [1, args.slots] {
        let (events, elapsed) = raw(&rig.stack.db, connections, Duration::from_secs(args.seconds.max(1))).await?;
        rows.push(row("raw inserts", connections, connections, events, elapsed, &rows));
    }
    for orgs in &args.orgs {
        let placements = backlog(&rig, args.events, *orgs).await?;
        let (events, elapsed) = project(&mut rig, &placements, args.events, args.slots).await?;
        rows.push(row("worker", args.slots, *orgs, events, elapsed, &rows));
    }
    rig.stop().await?;
    print(&rows)?;
    write_json(args.json.as_ref(), &rows)
}

fn row(what: &str, connections: usize, orgs: usize, events: u64, elapsed: Duration, raw: &[Row]) -> Row {
    let per_second = events as f64 / elapsed.as_secs_f64();
    let of = |place: usize| per_second / raw.get(place).map_or(per_second, |raw| raw.per_second);
    Row {
        what: what.to_owned(),
        connections,
        orgs,
        events,
        seconds: elapsed.as_secs_f64(),
        per_second,
        of_raw_one: of(0),
        of_raw_all: of(1),
    }
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let head = ["what", "connections", "orgs", "events", "seconds", "events/s", "of raw, one", "of raw, all"];
    let mut table = table(&head, &[1, 2, 3, 4, 5, 6, 7]);
    for row in rows {
        table.add_row([
            row.what.clone(),
            row.connections.to_string(),
            row.orgs.to_string(),
            row.events.to_string(),
            format!("{:.1}", row.seconds),
            format!("{:.0}", row.per_second),
            format!("{:.2}", row.of_raw_one),
            format!("{:.2}", row.of_raw_all),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!("\"of raw\": against bare inserts on one connection, and on as many as the worker has.")?;
    Ok(())
}

/// Bare inserts, each connection for an org of its own.
async fn raw(db: &Database, connections: usize, time: Duration) -> anyhow::Result<(u64, Duration)> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let db = db.clone();
        tasks.spawn(async move {
            let org = OrgId::fresh(0, rand::random());
            let (mut next, mut batch) = (0, prepared(org, 0)?);
            while started.elapsed() < time {
                let inserting = db.insert_raw(BoundOrg::named_by_operator(org), next, &batch);
                // The next rows are made meanwhile, so that only inserting is measured.
                let (inserted, prepared) = tokio::join!(inserting, async { prepared(org, next + RAW_BATCH as u64) });
                next += inserted?;
                batch = prepared?;
            }
            anyhow::Ok(next)
        });
    }
    let mut events = 0;
    while let Some(done) = tasks.join_next().await {
        events += done??;
    }
    Ok((events, started.elapsed()))
}

fn prepared(org: OrgId, first: u64) -> anyhow::Result<Vec<Applied>> {
    let numbers = first..first + RAW_BATCH as u64;
    numbers
        .map(|number| {
            let commit = load::commit(org, number)?;
            let subject = EventSubject { shard: Shard(0), org, aggregate: commit.aggregate.clone() };
            Ok(Applied { seq: number + 1, commit: Arc::new(commit.open(&subject)?) })
        })
        .collect()
}

/// Appends `events` events, spread over `orgs` new organizations.
async fn backlog(rig: &Rig, events: u64, orgs: usize) -> anyhow::Result<Vec<(Placement, u64)>> {
    let log = rig.log();
    let mut placements = Vec::with_capacity(orgs);
    for _ in 0..orgs.max(1) {
        placements.push(log.place(OrgId::fresh(0, rand::random())).await?);
    }
    fill(log, &placements, events).await?;
    let mut heads = Vec::with_capacity(orgs);
    for placement in placements {
        let head = log.head(&placement).await?;
        heads.push((placement, head));
    }
    Ok(heads)
}

async fn fill(log: &Log, placements: &[Placement], events: u64) -> anyhow::Result<()> {
    let bar = bar(events, "making a backlog");
    stream::iter(0..events)
        .map(|number| append(log, placements, number))
        .buffer_unordered(MAX_CONCURRENCY)
        .try_for_each(|()| {
            bar.inc(1);
            std::future::ready(Ok(()))
        })
        .await?;
    bar.finish_and_clear();
    Ok(())
}

async fn append(log: &Log, placements: &[Placement], number: u64) -> anyhow::Result<()> {
    let place = usize::try_from(number)? % placements.len();
    let placement = placements.get(place).context("there is an organization")?;
    log.append(placement, &load::commit(placement.org, number)?, 0, None).await?;
    Ok(())
}

/// The duration of a worker's processing of `events` events of the rig's own organization.
pub(super) async fn one_org(rig: &mut Rig, events: u64) -> anyhow::Result<Duration> {
    let placement = rig.placement().await?;
    fill(rig.log(), std::slice::from_ref(&placement), events).await?;
    let head = rig.log().head(&placement).await?;
    Ok(project(rig, &[(placement, head)], events, 4).await?.1)
}

/// Runs a worker on the backlog until all pipelines have all of it.
pub(super) async fn project(
    rig: &mut Rig,
    orgs: &[(Placement, u64)],
    total: u64,
    slots: usize,
) -> anyhow::Result<(u64, Duration)> {
    let bar = bar(total, "projecting");
    rig.stack.start_worker(WorkerOptions::new(Uuid::now_v7()).with_slots(slots)).await?;
    let started = Instant::now();
    let mut behind: Vec<_> = orgs.to_vec();
    while !behind.is_empty() {
        tokio::time::sleep(POLL).await;
        let mut still = Vec::new();
        for (placement, head) in behind {
            let mut tx = rig.stack.db.read(BoundOrg::named_by_operator(placement.org)).await?;
            let mut reached = u64::MAX;
            for pipeline in Pipeline::ALL {
                reached = reached.min(checkpoints::position(&mut tx, pipeline).await?);
            }
            if reached < head {
                still.push((placement, head));
            }
        }
        behind = still;
        let mut applied = 0;
        for (placement, _) in orgs.iter().take(8) {
            let mut tx = rig.stack.db.read(BoundOrg::named_by_operator(placement.org)).await?;
            applied += audit::size(&mut tx).await?;
        }
        // A sample is enough for a bar.
        bar.set_position(applied * orgs.len() as u64 / orgs.len().min(8) as u64);
    }
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    rig.stack.stop_worker().await;
    let mut events = 0;
    for (placement, _) in orgs {
        let mut tx = rig.stack.db.read(BoundOrg::named_by_operator(placement.org)).await?;
        events += audit::size(&mut tx).await?;
    }
    Ok((events, elapsed))
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {msg}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
