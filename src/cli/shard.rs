//! `orgstream shard`: the streams behind the shards, and their rewrite without what was erased.

use anyhow::Context;
use clap::Subcommand;
use orgstream_events::Shard;
use orgstream_stream::{Log, RewritePlan};

use crate::{
    config::NatsArgs,
    process as node,
    terminal::{
        out::{note, say},
        table::table,
    },
};

/// See the streams of the shards, and rewrite one without the messages that are to be erased.
///
/// Needs the administrator's credentials (`ORGSTREAM_NATS_CREDS`) and the commit keys of `serve`. Everything that runs goes on
/// meanwhile.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show which stream serves each shard, what is in it, and what waits to be erased.
    List {
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Copy the stream of a shard without what is to be erased, and let the copy take its place. Run it again after it was
    /// interrupted: it goes on where it was.
    Rewrite {
        /// The number of the shard, as `shard list` shows it.
        #[arg(long, value_name = "N")]
        shard: u16,
        /// Say what would be erased, and change nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        nats: NatsArgs,
    },
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::List { nats } => list(&node::connect_log(&nats).await?).await,
        Job::Rewrite { shard, dry_run, nats } => {
            let log = node::connect_log(&nats).await?;
            if dry_run { show(&log, Shard(shard)).await } else { rewrite(&log, Shard(shard)).await }
        }
    }
}

async fn list(log: &Log) -> anyhow::Result<()> {
    let head = ["shard", "stream", "generation", "first", "last", "messages", "bytes", "erased", "waiting", "rewrite"];
    let mut rows = table(&head, &[0, 2, 3, 4, 5, 6, 7, 8]);
    for shard in log.shards() {
        let plan = plan(log, shard).await?;
        let numbers =
            [plan.first_seq, plan.last_seq, plan.messages, plan.bytes, plan.erased, plan.waiting.len() as u64];
        let numbers = numbers.iter().map(ToString::to_string);
        let rewrite = if plan.is_begun { "begun" } else { "-" };
        let first = [shard.to_string(), plan.stream, plan.generation.to_string()];
        rows.add_row(first.into_iter().chain(numbers).chain([rewrite.to_owned()]));
    }
    Ok(say!("{rows}")?)
}

async fn show(log: &Log, shard: Shard) -> anyhow::Result<()> {
    let plan = plan(log, shard).await?;
    say!("{}: {} messages up to {}, {} bytes", plan.stream, plan.messages, plan.last_seq, plan.bytes)?;
    for waiting in &plan.waiting {
        say!("  {} would be erased up to {}", waiting.org, waiting.to)?;
    }
    if plan.waiting.is_empty() {
        say!("  nothing waits to be erased")?;
    }
    if plan.is_begun {
        say!("  a rewrite was begun, and would go on with what it began with")?;
    }
    Ok(())
}

async fn rewrite(log: &Log, shard: Shard) -> anyhow::Result<()> {
    let begun = log.rewrite(shard, |step| note!("shard {shard}: {step}"));
    let done = Box::pin(begun).await.with_context(|| format!("shard {shard} was not rewritten"))?;
    for erased in &done.erased {
        say!("{}: {} messages up to {} are erased", erased.org, erased.messages.unwrap_or_default(), erased.to)?;
    }
    let held = done.held.map(|held| format!("; appends waited for {} ms", held.as_millis())).unwrap_or_default();
    Ok(say!("shard {shard} is served by generation {}{held}", done.generation)?)
}

async fn plan(log: &Log, shard: Shard) -> anyhow::Result<RewritePlan> {
    log.rewrite_plan(shard).await.with_context(|| format!("shard {shard} could not be looked at"))
}
