//! The program. Everything it does is a subcommand; see `orgstream --help`.

use std::process::ExitCode;

use clap::Parser;
use orgstream::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(Cli::parse().run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
