//! Benchmarks for any machine. Each measures the raw limit of the machine in the same run, so that the ratio to it is
//! meaningful anywhere.

mod access;
mod account;
mod append;
mod append_only;
mod audit;
mod fairness;
mod history;
mod load;
mod project;
mod rig;
mod search;
mod views;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use orgstream::{
    config::LogArgs,
    process::small_pages,
    telemetry,
    terminal::out::{ended, note},
};
use serde::Serialize;

/// The allocator of the product.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measure this machine against its raw limits.
///
/// A benchmark starts private servers in a temporary folder and removes them again.
#[derive(Parser)]
#[command(name = "orgstream bench", bin_name = "orgstream bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    benchmark: Benchmark,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Benchmark {
    /// Resolving credentials: what it takes to know who asks, from what a process remembers.
    Access(access::Args),
    /// Accounts: reservations and settlements per second of one organization, against a row of PostgreSQL and against callers who
    /// read, append and begin again.
    Account(account::Args),
    /// Appending: commands per second through the library, NATS and HTTP, against bare publishes of the same bytes.
    Append(append::Args),
    /// Append-only records: subjects, memory and restart of the broker with a subject each and in record logs.
    AppendOnly(append_only::Args),
    /// The audit log: what a leaf costs, a proof and a head in a long log, an export and its verification.
    Audit(audit::Args),
    /// Fairness: what quiet organizations notice of a neighbour's burst, against one queue and against turns by count.
    Fairness(Box<fairness::Args>),
    /// Long histories: the next command of an aggregate with many events, in a process that knows it and in one that does
    /// not, with and without snapshots.
    History(history::Args),
    /// Projecting: events per second into read models and audit log, against bare inserts of the same rows.
    Project(project::Args),
    /// Searching: the duration of queries in a small and in a large organization, against PostgreSQL's own full text under the
    /// same policies, and with a neighbour's documents beside them.
    Search(search::Args),
    /// Views: what folding them costs a worker, and what reading one costs, against GROUP BY over the records.
    Views(views::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    small_pages();
    ended(Box::pin(run(Cli::parse())).await.map(|()| ExitCode::SUCCESS))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&cli.log, false)?;
    match cli.benchmark {
        Benchmark::Access(args) => access::run(args).await,
        Benchmark::Account(args) => Box::pin(account::run(args)).await,
        Benchmark::Append(args) => Box::pin(append::run(args)).await,
        Benchmark::AppendOnly(args) => Box::pin(append_only::run(args)).await,
        Benchmark::Audit(args) => Box::pin(audit::run(args)).await,
        Benchmark::Fairness(args) => fairness::run(*args).await,
        Benchmark::History(args) => Box::pin(history::run(args)).await,
        Benchmark::Project(args) => Box::pin(project::run(args)).await,
        Benchmark::Search(args) => Box::pin(search::run(args)).await,
        Benchmark::Views(args) => Box::pin(views::run(args)).await,
    }
}

/// The machine that the figures are from.
#[derive(Debug, Serialize)]
struct Machine {
    cores: usize,
    profile: &'static str,
    version: &'static str,
    /// Whether Linux divides the processors by session.
    autogroup: bool,
}

impl Machine {
    fn here() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            version: env!("CARGO_PKG_VERSION"),
            autogroup: is_autogrouped(),
        }
    }
}

#[derive(Serialize)]
struct Report<'a, R> {
    machine: Machine,
    rows: &'a [R],
}

/// Writes the measurements, if a file was given.
fn write_json<R: Serialize>(file: Option<&PathBuf>, rows: &[R]) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let report = Report { machine: Machine::here(), rows };
    let text = serde_json::to_vec_pretty(&report)?;
    std::fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}

/// Whether Linux divides the processors by session. Each of PostgreSQL's processes is a session of its own, so that all
/// of the worker has as much of a processor as one connection, and lower priority applies only among its own threads.
fn is_autogrouped() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled").is_ok_and(|enabled| enabled.trim() != "0")
}

/// Warns that waits for a processor are then up to the kernel and not to the measured program.
fn warn_of_autogroup() {
    if is_autogrouped() {
        note!(
            "Linux shares this machine's processors out by session, each of PostgreSQL's processes being one: quiet \
             organizations wait several times longer beside a burst. Without it: sysctl kernel.sched_autogroup_enabled=0"
        );
    }
}

/// Warns that figures of a build without optimization mean little.
fn warn_of_debug_build() {
    if cfg!(debug_assertions) {
        note!("this is a debug build: for figures that count, run cargo run --release --package orgstream-bench -- …");
    }
}
