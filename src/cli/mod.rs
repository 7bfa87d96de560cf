//! The command line: one binary, one subcommand per job.
//!
//! Data goes to standard output and everything else to standard error, so that every command can be part of a pipe.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod account;
mod audit;
mod bench;
mod break_glass;
mod catalog;
mod check_config;
mod completions;
pub(crate) mod deletions;
mod demo;
mod dev;
mod examples;
mod history;
mod invoices;
mod key;
mod lag;
mod login;
mod migrate;
mod nats;
mod outbox;
mod park;
mod plan;
mod plans;
mod publish;
mod rebuild;
pub mod reference;
mod replay;
mod search;
mod secrets;
mod serve;
mod session;
mod shard;
mod sign;
mod test_servers;
mod usage;
mod witness;
mod work;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use crate::terminal::out::ended;

use crate::{config::LogArgs, telemetry};

/// An event-sourced backend for multi-tenant products: one stream of events per organization, fair workers,
/// PostgreSQL read models under row-level security, an append-only audit log.
///
/// Start with `orgstream dev`: it needs nothing but the two server binaries and stops everything on Ctrl-C.
#[derive(Parser)]
#[command(name = "orgstream", version, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Job,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Job {
    /// Run everything on this machine: private NATS and PostgreSQL, API, workers and a demo.
    Dev(dev::Args),
    /// Print the shell settings of a demo organization, or of the operator.
    Demo(demo::Args),
    /// Print the mails that `orgstream dev` wrote in place of sending them.
    Outbox(outbox::Args),
    /// Run the API: HTTP, and commands by NATS request.
    Serve(Box<serve::Args>),
    /// Run a worker: read the streams, build the read models and the audit log.
    Work(work::Args),
    /// Bring a database up to date, and give the program's logins their password.
    Migrate(migrate::Args),
    /// Make the accounts and credentials that NATS is run with, and the streams.
    #[command(subcommand)]
    Nats(nats::Job),
    /// Look at NATS and PostgreSQL as `serve` and `work` do before they start, and say what is wrong.
    CheckConfig(check_config::Args),
    /// Make and rotate the key ring of records' secrets.
    #[command(subcommand)]
    Secrets(secrets::Job),
    /// See which streams of the log are not what they were, and decide how to go on.
    #[command(subcommand)]
    History(history::Job),
    /// See the streams of the shards, and rewrite one without the messages that are to be erased.
    #[command(subcommand)]
    Shard(shard::Job),
    /// Send commands from an NDJSON file. Sending the same file again changes nothing.
    Publish(publish::Args),
    /// Print an organization's events, in order, or what it was at some time; or verify what is kept of it.
    Replay(Box<replay::Args>),
    /// Export an organization's audit log, and verify an export.
    #[command(subcommand)]
    Audit(audit::Job),
    /// Sign the heads of the organizations' audit logs, and have witnesses sign them too.
    Sign(sign::Args),
    /// Run a witness: it signs a log's head when that continues the last one that it signed.
    Witness(witness::Args),
    /// Sign in as a person, and keep the session for the other commands.
    Login(login::Args),
    /// See, end or switch sessions of a person.
    #[command(subcommand)]
    Session(session::Job),
    /// Show how far the projections are.
    Lag(lag::Args),
    /// See, retry or skip events that could not be applied.
    #[command(subcommand)]
    Park(park::Job),
    /// See, publish or withdraw items of the catalog, which everybody can read.
    #[command(subcommand)]
    Catalog(catalog::Job),
    /// Look into an organization for a while as its operator, in front of its audit log.
    BreakGlass(break_glass::Args),
    /// Look at an API key without asking a server, or make credentials for NATS of it.
    #[command(subcommand)]
    Key(key::Job),
    /// See what an organization may use, credit its account, and list every change of its balances.
    #[command(subcommand)]
    Account(account::Job),
    /// See the plans of the platform, and publish the next version of one.
    #[command(subcommand)]
    Plans(plans::Job),
    /// Put an organization on a plan, which says what it may use, and how much of the workers' time it may have.
    Plan(plan::Args),
    /// Give an organization limits of its own, or those of its plan again.
    Limits(usage::LimitsArgs),
    /// Show what an organization uses, and what it may use.
    Usage(usage::UsageArgs),
    /// See what an organization owes; close a month, note a payment, void an invoice, or end billing.
    #[command(subcommand)]
    Invoices(invoices::Job),
    /// Delete an organization, for good.
    DeleteOrganization(deletions::DeleteArgs),
    /// See how far deletions of organizations are, cancel one, or fetch its receipt.
    #[command(subcommand)]
    Deletions(deletions::Job),
    /// Build the read models of an organization, or of all, again from the audit log, beside those that are shown.
    Rebuild(rebuild::Args),
    /// See the search targets, and place the index of words of an organization in one.
    #[command(subcommand)]
    Search(search::Job),
    /// Measure this machine against its raw limits. What `orgstream-bench` takes; see `orgstream bench --help`.
    #[command(disable_help_flag = true)]
    Bench(bench::Args),
    /// Print what a shell needs to complete commands and flags.
    Completions(completions::CompletionsArgs),
    /// Write a page for `man` of each command.
    Man(completions::ManArgs),
    #[command(hide = true)]
    TestServers(test_servers::Args),
}

/// Returns all commands, with their examples.
fn program() -> clap::Command {
    examples::with_examples(Cli::command())
}

impl Cli {
    /// Parses the command line; prints the help or the error, and ends the process then.
    pub fn from_command_line() -> Self {
        Self::from_arg_matches(&program().get_matches()).unwrap_or_else(|error| error.exit())
    }

    /// Runs the job, and returns the process's exit code.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let is_service =
            matches!(self.command, Job::Dev(_) | Job::Serve(_) | Job::Work(_) | Job::Sign(_) | Job::Witness(_));
        let _telemetry = telemetry::init(&self.log, is_service)?;
        match self.command {
            Job::Dev(args) => Box::pin(dev::run(args)).await,
            Job::Demo(args) => demo::run(&args),
            Job::Outbox(args) => outbox::run(&args),
            Job::Serve(args) => Box::pin(serve::run(*args)).await,
            Job::Work(args) => work::run(args).await,
            Job::Migrate(args) => migrate::run(args).await,
            Job::Nats(job) => nats::run(job).await,
            Job::Secrets(job) => secrets::run(job).await,
            Job::CheckConfig(args) => check_config::run(args).await,
            Job::History(job) => return Box::pin(history::run(job)).await,
            Job::Shard(job) => Box::pin(shard::run(job)).await,
            Job::Publish(args) => publish::run(args).await,
            Job::Replay(args) => return replay::run(*args).await,
            Job::Audit(job) => return audit::run(job).await,
            Job::Sign(args) => sign::run(args).await,
            Job::Witness(args) => witness::run(args).await,
            Job::Login(args) => login::run(args).await,
            Job::Session(job) => session::run(job).await,
            Job::Lag(args) => lag::run(args).await,
            Job::Park(job) => return park::run(job).await,
            Job::Catalog(job) => catalog::run(job).await,
            Job::BreakGlass(args) => break_glass::run(args).await,
            Job::Key(job) => key::run(job).await,
            Job::Account(job) => account::run(job).await,
            Job::Plans(job) => plans::run(job).await,
            Job::Plan(args) => plan::run(args).await,
            Job::Limits(args) => usage::change(args).await,
            Job::Usage(args) => Box::pin(usage::show(args)).await,
            Job::Invoices(job) => invoices::run(job).await,
            Job::DeleteOrganization(args) => deletions::delete(args).await,
            Job::Deletions(job) => deletions::run(job).await,
            Job::Rebuild(args) => rebuild::run(args).await,
            Job::Search(job) => Box::pin(search::run(job)).await,
            Job::Bench(args) => return bench::run(&args),
            Job::Completions(args) => completions::completions(&args),
            Job::Man(args) => completions::man(&args),
            Job::TestServers(args) => test_servers::run(args).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
