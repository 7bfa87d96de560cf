//! The program. Everything it does is a subcommand; see `orgstream --help`.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use orgstream::cli::Cli;

/// Messages are many small allocations that are made by one thread and freed by another, which glibc is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(Cli::parse().run()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
