//! `orgstream-verify`: the verifier by itself, small enough to be reviewed before it is trusted.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use orgstream_events::Chain;
use orgstream_verifier::{AccountArgs, ReceiptArgs, VerifyArgs, output};

/// Verify an exported audit log, or compute the balances of an account again from it.
#[derive(Parser)]
#[command(name = "orgstream-verify", version, max_term_width = 110)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    job: Option<Job>,
    #[command(flatten)]
    args: Option<VerifyArgs>,
}

#[derive(Subcommand)]
enum Job {
    /// Compute an organization's balances again from its exported audit log.
    Account(AccountArgs),
    /// Verify the receipt of a deletion.
    Receipt(ReceiptArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse() {
        Cli { job: Some(Job::Account(args)), .. } => args.run(),
        Cli { job: Some(Job::Receipt(args)), .. } => args.run(),
        Cli { job: None, args: Some(args) } => args.run(),
        Cli { job: None, args: None } => {
            Cli::command().error(ErrorKind::MissingRequiredArgument, "give --bundle and --pin").exit()
        }
    };
    match outcome {
        Ok(outcome) => outcome.code().into(),
        Err(error) => {
            output::note(format_args!("error: {}", Chain(error.as_ref())));
            2.into()
        }
    }
}
