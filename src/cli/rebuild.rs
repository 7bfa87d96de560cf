//! `orgstream rebuild`: read models dropped and built again from the stream.

use std::{io::IsTerminal, time::Duration};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use orgstream_events::{OrgId, Pipeline};
use orgstream_projections::{BoundOrg, Database, checkpoints};
use orgstream_stream::Log;

use crate::{
    config::{DatabaseArgs, NatsArgs},
    node,
};

const POLL: Duration = Duration::from_millis(50);
/// Organizations that are being rebuilt at the same time.
const AT_ONCE: usize = 16;
/// How long an organization may stand still before the command says so.
const PATIENCE: Duration = Duration::from_secs(120);

/// Drop the read models of an organization, or of all, and build them again from the stream.
///
/// The audit log is not a read model and stays. The workers do the building, so at least one must be running; while an
/// organization is being built its queries show what there is so far. Interrupted, the workers finish by themselves.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The organization, by id.
    #[arg(long, value_name = "ORG", required_unless_present = "all", conflicts_with = "all")]
    org: Option<OrgId>,
    /// Every organization there is, a few at a time.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let log = node::connect_log(&args.nats).await?;
    let db = node::open_database(&args.database, 1).await?;
    let orgs = match args.org {
        Some(org) => vec![org],
        None => log.organizations().await.context("the organizations could not be listed")?,
    };
    let bar = ProgressBar::with_draw_target(Some(orgs.len() as u64), ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} organizations  {eta} left") {
        bar.set_style(style);
    }
    // Most of a small organization's rebuild is the wait for its worker to notice.
    let (log, db, bar) = (&log, &db, &bar);
    let rebuilt = stream::iter(orgs.iter().copied()).map(|org| async move {
        rebuild(log, db, org).await.with_context(|| format!("{org} was not rebuilt to the end"))?;
        bar.inc(1);
        anyhow::Ok(())
    });
    rebuilt.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    bar.finish_and_clear();
    eprintln!("rebuilt the read models of {} organizations", orgs.len());
    Ok(())
}

async fn rebuild(log: &Log, db: &Database, org: OrgId) -> anyhow::Result<()> {
    let placement = log.placement(org).await?.with_context(|| format!("there is no organization {org}"))?;
    let bound = BoundOrg::named_by_operator(org);
    let head = log.head(&placement).await?;
    db.reset_read_models(bound).await?;
    let (mut reached, mut since) = (0, tokio::time::Instant::now());
    loop {
        let seq = checkpoints::position(&mut db.read(bound).await?, Pipeline::ReadModels).await?;
        if seq >= head {
            return Ok(());
        }
        if seq > reached {
            (reached, since) = (seq, tokio::time::Instant::now());
        } else if since.elapsed() > PATIENCE {
            bail!(
                "nothing has moved for {PATIENCE:?} at position {seq} of {head}: is a worker running? what does `orgstream park list` say?"
            );
        }
        tokio::time::sleep(POLL).await;
    }
}
