//! `orgstream completions` and `orgstream man`: the declarations of the help, for shells and for `man`.

use std::path::PathBuf;

use anyhow::Context;
use clap_complete::{Shell, generate};

use super::program;
use crate::terminal::out::{note, say};

#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// The folder that the pages go to, one for each command; made if it is missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut program(), "orgstream", &mut script);
    say!("{}", String::from_utf8_lossy(&script).trim_end())?;
    Ok(())
}

pub(crate) fn man(args: &ManArgs) -> anyhow::Result<()> {
    let failed = || format!("the pages cannot be written to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).with_context(failed)?;
    clap_mangen::generate_to(program(), &args.dir).with_context(failed)?;
    note!("the pages are in {}; read them by man -l {}/orgstream.1", args.dir.display(), args.dir.display());
    Ok(())
}
