//! `orgstream-verify`: the verifier by itself, small enough to be reviewed before it is trusted.

use std::process::ExitCode;

use clap::Parser;
use orgstream_events::Chain;
use orgstream_verifier::{VerifyArgs, output};

/// Verify an exported audit log.
#[derive(Parser)]
#[command(name = "orgstream-verify", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    args: VerifyArgs,
}

fn main() -> ExitCode {
    match Cli::parse().args.run() {
        Ok(outcome) => outcome.code().into(),
        Err(error) => {
            output::note(format_args!("error: {}", Chain(error.as_ref())));
            2.into()
        }
    }
}
