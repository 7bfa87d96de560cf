//! `orgstream audit`: export an audit log, and verify it independently.

use std::{path::PathBuf, process::ExitCode};

use orgstream_verifier::{Outcome, Request, VerifyArgs, verify};

use crate::{
    audit::export::Export,
    client::Api,
    config::ClientArgs,
    terminal::{out::note, progress},
};

/// Export an organization's audit log, and verify an export.
#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Write an organization's audit log into a folder: events, tree, signed heads, tables. Running it again goes on. Ends with
    /// 40 when what was written is not what its own log signed.
    Export(ExportArgs),
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
        Job::Verify(args) => Ok(args.run()?.code().into()),
    }
}

async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org).await?;
    let bar = progress::bar("{bar:40} {percent:>3}%  {pos}/{len} events  {per_sec}  {eta} left");
    let exported = Export::new(api, &org, args.out.clone()).run(&bar).await?;
    bar.finish_and_clear();
    note!("{} events of {} are in {}", exported.events, exported.origin, args.out.display());
    // A log that its own operator's key does not verify is exported all the same, as evidence.
    let (bundle, pin) = (args.out, exported.key);
    let request = Request { bundle, pin, policy: None, known: Vec::new() };
    let report = tokio::task::spawn_blocking(move || verify(&request)).await?;
    if report.outcome() == Outcome::Invalid {
        let first = report.findings.iter().find(|finding| finding.outcome == Outcome::Invalid);
        note!(
            "this is not what was signed{}; `orgstream audit verify` says all of it",
            first.map_or_else(String::new, |finding| format!(": {finding}"))
        );
        return Ok(Outcome::Invalid.code().into());
    }
    Ok(ExitCode::SUCCESS)
}
