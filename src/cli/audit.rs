//! `orgstream audit`: take an audit log away, and verify it without anybody's help.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use orgstream_events::OrgId;
use orgstream_projections::Database;
use orgstream_verifier::VerifyArgs;

use super::client::Api;
use crate::{
    audit::{
        compare::{self, Compared},
        export::Export,
    },
    config::{ClientArgs, DatabaseArgs, NatsArgs},
    node,
};

/// Export an organization's audit log, and verify an export.
#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Write an organization's audit log into a folder: events, tree, signed heads, tables. Running it again goes on.
    Export(ExportArgs),
    /// Compare an organization's stream, its audit log and its read models with each other. For operators.
    Compare(CompareArgs),
    /// Verify an exported audit log: no network, no database, no account, and nothing is written.
    Verify(VerifyArgs),
}

/// Which log, and where to.
#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The folder of the bundle. What an earlier export left there is used.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<ExitCode> {
    match job {
        Job::Export(args) => export(args).await,
        Job::Compare(args) => compare(args).await,
        Job::Verify(args) => Ok(args.run()?.code().into()),
    }
}

/// Whose accounts, and where they are.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The organization, by id.
    #[arg(long, value_name = "ORG")]
    org: OrgId,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

async fn compare(args: CompareArgs) -> anyhow::Result<ExitCode> {
    // Without the checks before a start: a database that fails them is the one to look at.
    let db = Database::connect(&args.database.options(1)).await.context("PostgreSQL does not answer")?;
    let log = node::connect_log(&args.nats).await?;
    let compared = compare::compare(&log, &db, args.org).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&compared)?);
    } else {
        let Compared { stream, audit, signed, rows, differences } = &compared;
        println!("stream       {} events, root {}", stream.0, stream.1);
        println!("audit log    {} events, root {}", audit.0, audit.1);
        match signed {
            Some(size) => println!("signed       the head of {size} events is proven to begin with these"),
            None => println!("signed       no head yet"),
        }
        println!("read models  {rows} rows");
        for difference in differences {
            println!("! {difference}");
        }
        if differences.is_empty() {
            println!("all three say the same");
        }
    }
    Ok(if compared.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org).await?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}%  {pos}/{len} events  {per_sec}  {eta} left")
    {
        bar.set_style(style);
    }
    let exported = Export::new(api, &org, args.out.clone()).run(&bar).await?;
    bar.finish_and_clear();
    eprintln!("{} events of {} are in {}", exported.events, exported.origin, args.out.display());
    Ok(ExitCode::SUCCESS)
}
