//! `orgstream witness`: a witness for third parties' logs.

use std::{fs, path::PathBuf};

use anyhow::Context;
use orgstream_transparency::LogKey;

use crate::{
    audit::witness::Witness,
    process as node,
    terminal::out::{say, told},
};

/// Run a witness: it signs a log's head when that continues the last one that it signed.
///
/// It is for customers and auditors, on machines of their own: one that the operator of the logs runs proves nothing. It speaks
/// C2SP tlog-witness. Its folder has its key, made the first time, and what it signed last; `witness.vkey` is what others
/// put into their policies.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder with key and memory.
    #[arg(long, env = "ORGSTREAM_WITNESS_DIR", default_value = "witness", value_name = "DIR")]
    dir: PathBuf,
    /// The witness's name, for its key when it is made: `witness.example.org/first`.
    #[arg(long, env = "ORGSTREAM_WITNESS_NAME", default_value = "localhost/witness", value_name = "NAME")]
    name: String,
    /// The public key of logs to follow (`log.vkey`): of one log, or of a host for all its organizations. May be repeated.
    #[arg(long, required = true, value_name = "FILE")]
    log_key: Vec<PathBuf>,
    /// Where to listen.
    #[arg(long, env = "ORGSTREAM_WITNESS_HTTP", default_value = "127.0.0.1:8090", value_name = "ADDRESS")]
    http: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let logs = args.log_key.iter().map(|path| {
        let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        text.trim_end().parse::<LogKey>().with_context(|| format!("{} is not the key of a log", path.display()))
    });
    let witness = Witness::open(&args.dir, &args.name, logs.collect::<anyhow::Result<_>>()?)?;
    let listener = node::listen(&args.http).await?;
    // It serves whether or not this output is read.
    told((), say!("{}", witness.key().verifier()));
    tracing::info!(address = %listener.local_addr()?, "the witness answers");
    let stop = node::stop_when_asked()?;
    Ok(witness.serve(listener, stop).await?)
}
