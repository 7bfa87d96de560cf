//! `orgstream bench`: the benchmarks, which are a program of their own beside this one.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context, bail};

const PROGRAM: &str = "orgstream-bench";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A benchmark and its flags.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCHMARK")]
    args: Vec<OsString>,
}

/// Replaces this process with that program.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let here = env::current_exe().context("this program's own path is not known")?;
    let program = here.with_file_name(PROGRAM);
    if !program.exists() {
        bail!(
            "{} is not there: the benchmarks are built apart, in a checkout by `cargo build --release --package {PROGRAM}`",
            program.display()
        );
    }
    let failed = std::process::Command::new(&program).args(&args.args).exec();
    Err(failed).with_context(|| format!("{} does not start", program.display()))
}
