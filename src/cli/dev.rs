//! `orgstream dev`: everything on this machine, with nothing to install but two server binaries.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use orgstream_servers::write_private;
use uuid::Uuid;

use super::sign;
use crate::{
    config::WorkArgs,
    dev::{
        demo::{self, Demo, DemoFile},
        stack::{Stack, StackOptions},
    },
    process as node,
    telemetry::{self, metrics::Process},
    terminal::{
        out::{note, told},
        progress,
    },
};

/// Run everything on this machine: private NATS and PostgreSQL, API, workers and a demo.
///
/// The servers listen on free loopback ports and keep their data in --data-dir, so the next start goes on where this one
/// ended, however it ended. Ctrl-C stops all of it. What a script needs to know is in <data-dir>/demo.json.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the data is; deleting the folder starts afresh.
    #[arg(long, env = "ORGSTREAM_DATA_DIR", default_value = ".orgstream", value_name = "DIR")]
    data_dir: PathBuf,
    /// Where the API listens.
    #[arg(long, env = "ORGSTREAM_HTTP", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    http: String,
    /// Do not make the demo organizations.
    #[arg(long)]
    no_demo: bool,
    /// The witnesses to ask for signatures of the audit logs' heads, as a C2SP tlog-policy with their addresses.
    #[arg(long, env = "ORGSTREAM_WITNESSES", value_name = "FILE")]
    witnesses: Option<PathBuf>,
    #[command(flatten)]
    work: WorkArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = node::stop_when_asked()?;
    let metrics = telemetry::metrics(&[Process::Api, Process::Worker, Process::Signer])?;
    let dir = prepare(&args.data_dir)?;
    let _lock = lock(&dir)?;
    let steps = progress::spinner();
    let mut worker = args.work.options()?;
    if args.work.worker_id.is_none() {
        worker.id = Uuid::nil();
    }
    let signing = Some(sign::witnesses(args.witnesses.as_ref())?);
    let options =
        StackOptions { http: args.http, worker: Some(worker), signing, payments: true, ..StackOptions::new(&dir) };
    let starting = Stack::start(options, metrics, |step| steps.set_message(step));
    // Half-started parts end with the future that started them: the servers' processes are stopped and waited for.
    let Some(mut stack) = node::unless_asked(&stop, starting).await? else {
        steps.finish_and_clear();
        note!("stopped before everything was started; the data is in {}", args.data_dir.display());
        return Ok(());
    };
    let demo = if args.no_demo {
        Demo::default()
    } else {
        steps.set_message("making the demo organizations");
        let seeding = Box::pin(stop.run_until_cancelled(demo::seed(&stack.gateway, &stack.auth, &stack.issuer)));
        seeding.await.unwrap_or_else(|| Ok(Demo::default())).context("the demo could not be made")?
    };
    let file = DemoFile {
        base_url: stack.base_url.clone(),
        nats_url: stack.nats.url.clone(),
        nats_access: stack.nats.access.dir().to_owned(),
        nats_monitor_url: stack.nats.monitor_url.clone(),
        postgres_url: stack.owner_url.clone(),
        issuer_url: stack.issuer.url().to_owned(),
        payments_url: stack.payments.as_ref().map(|provider| provider.url().to_owned()),
        platform_admin_token: stack.secrets.platform_token.clone(),
        demo,
    };
    write_private(&dir.join(demo::FILE), &serde_json::to_vec_pretty(&file)?)?;
    steps.finish_and_clear();
    if !stop.is_cancelled() {
        // Everything runs on whether or not the card's output is read.
        told((), file.print_card(&args.data_dir));
    }
    stack.watch_over(&stop).await;
    stack.stop().await?;
    note!("everything is stopped; the data is in {}", args.data_dir.display());
    Ok(())
}

/// Returns the data folder, created if it is missing, as an absolute path.
fn prepare(dir: &Path) -> anyhow::Result<PathBuf> {
    let refused = || format!("the data folder {} cannot be used: choose another with --data-dir", dir.display());
    std::fs::create_dir_all(dir).with_context(refused)?;
    dir.canonicalize().with_context(refused)
}

/// Locks the folder for this process. The lock ends with the process, however it ends.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let file = File::create(dir.join("lock"))?;
    if file.try_lock().is_err() {
        bail!("another orgstream dev is using {}: stop it, or choose another folder with --data-dir", dir.display());
    }
    Ok(file)
}
