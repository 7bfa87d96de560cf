//! `orgstream bench views`: what folding views costs a worker, and what reading one costs beside a query over the records.
//!
//! The same records are written as a kind without views and as one with two, and a worker projects each backlog. Then a page of a
//! view is read, and the same figures are asked of the records with `GROUP BY`, by the same login under the same row-level
//! security.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Args as ClapArgs;
use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream::terminal::{out::say, table::table};
use orgstream_events::{KindName, OrgId, RecordId};
use orgstream_projections::{
    BoundOrg, Page, grouped,
    views::{self, ViewFilter},
};
use orgstream_stream::Placement;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{load, project::project, rig::Rig, warn_of_debug_build, write_json};

const MAX_CONCURRENCY: usize = 256;
const VIEW: &str = "by_model_and_day";
/// Groups and days that the records are spread over.
const MODELS: u64 = 20;
const DAYS: u64 = 28;

/// Views: what folding them costs a worker, and what reading one costs, against GROUP BY over the records.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Records of each kind.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    records: u64,
    /// How often each figure is read.
    #[arg(long, default_value_t = 50, value_name = "N")]
    reads: usize,
    /// Transactions of the worker at the same time.
    #[arg(long, default_value_t = 4, value_name = "N")]
    slots: usize,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    what: &'static str,
    seconds: f64,
    per_second: f64,
    of_baseline: f64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let mut rig = Rig::start(false).await?;
    let measured = measure(&mut rig, &args).await;
    rig.stop().await?;
    let rows = measured?;
    let mut figures = table(&["what", "seconds", "per second", "of baseline"], &[1, 2, 3]);
    for Row { what, seconds, per_second, of_baseline } in &rows {
        figures.add_row([
            (*what).to_owned(),
            format!("{seconds:.4}"),
            format!("{per_second:.0}"),
            format!("{of_baseline:.2}"),
        ]);
    }
    say!("{}", figures.trim_fmt())?;
    say!(
        "\"of baseline\": folding against the same records without views, reading against GROUP BY over the records."
    )?;
    write_json(args.json.as_ref(), &rows)
}

async fn measure(rig: &mut Rig, args: &Args) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut org = None;
    for (what, kind) in [("project, no views", "webhook"), ("project, two views", "evaluation")] {
        let placement = rig.log().place(OrgId::fresh(0, rand::random())).await?;
        fill(rig, &placement, kind.parse()?, args.records).await?;
        let head = rig.log().head(&placement).await?;
        let (events, took) = project(rig, &[(placement.clone(), head)], args.records, args.slots).await?;
        let per_second = events as f64 / took.as_secs_f64();
        let of_baseline = rows.first().map_or(1.0, |plain| per_second / plain.per_second);
        rows.push(Row { what, seconds: took.as_secs_f64(), per_second, of_baseline });
        org = Some(BoundOrg::named_by_operator(placement.org));
    }
    let org = org.context("there is an organization")?;
    let kind: KindName = "evaluation".parse()?;
    let (mut by_query, mut by_view) = (Vec::new(), Vec::new());
    for _ in 0..args.reads.max(1) {
        let mut tx = rig.stack.db.read(org).await?;
        tx.take_time().await?;
        let begun = Instant::now();
        let found = grouped(&mut tx).await?;
        by_query.push(begun.elapsed());
        drop(tx);
        let mut tx = rig.stack.db.read(org).await?;
        let begun = Instant::now();
        let page = views::rows(&mut tx, &kind, VIEW, &ViewFilter::default(), &Page::First, 1_000).await?;
        by_view.push(begun.elapsed());
        ensure!(!page.more && page.rows.len() as u64 == found, "{} rows, and {found} groups", page.rows.len());
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64()
    };
    let (query, view) = (median(by_query), median(by_view));
    rows.push(Row { what: "read, GROUP BY", seconds: query, per_second: 1.0 / query, of_baseline: 1.0 });
    rows.push(Row { what: "read, the view", seconds: view, per_second: 1.0 / view, of_baseline: query / view });
    Ok(rows)
}

async fn fill(rig: &Rig, placement: &Placement, kind: KindName, records: u64) -> anyhow::Result<()> {
    let models: Vec<RecordId> = (0..MODELS).map(|_| RecordId::fresh(0, rand::random())).collect();
    let log = rig.log();
    stream::iter(0..records)
        .map(|number| {
            let model = models.get((number % MODELS) as usize).map(ToString::to_string).unwrap_or_default();
            let commit = load::searched_commit(placement.org, kind.clone(), data(number, &model), Vec::new());
            async move { anyhow::Ok(log.append(placement, &commit?, 0, None).await?) }
        })
        .buffer_unordered(MAX_CONCURRENCY)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
}

fn data(number: u64, model: &str) -> Value {
    let day = 1 + number / MODELS % DAYS;
    json!({
        "name": format!("run {number}"), "model": model, "status": "completed", "score": (number % 1_000) as f64 / 1_000.0,
        "cost_usd": (number % 977) as f64 / 100.0, "finished_at": format!("2026-02-{day:02}T12:00:00Z"),
    })
}
