//! `orgstream outbox`: the mails that `orgstream dev` would have sent.

use std::{fs, path::PathBuf, time::SystemTime};

use anyhow::Context;

use crate::{
    dev::stack::OUTBOX,
    terminal::out::{note, say},
};

/// Print the mails that `orgstream dev` wrote in place of sending them, the oldest first.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the newest.
    #[arg(long)]
    last: bool,
    /// The data folder of `orgstream dev`.
    #[arg(long, env = "ORGSTREAM_DATA_DIR", default_value = ".orgstream", value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.data_dir.join(OUTBOX);
    let entries = fs::read_dir(&folder)
        .with_context(|| format!("{} is not there: has orgstream dev ever run?", folder.display()))?;
    let mut mails: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "eml") {
            mails.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    mails.sort();
    if args.last {
        mails.drain(..mails.len().saturating_sub(1));
    }
    if mails.is_empty() {
        note!("no mail was written yet");
    }
    for (_, path) in mails {
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        say!("{}\n", text.replace('\r', "").trim_end())?;
    }
    Ok(())
}
