//! `orgstream nats`: an administrator's one-time work at the NATS server.

use std::path::PathBuf;

use orgstream_stream::broker;

use crate::{
    config::NatsArgs,
    process as node,
    terminal::out::{note, say},
};

#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Make the accounts and users that NATS is to be run with: a file for the server, credentials for each part.
    Init(InitArgs),
    /// Make the streams that are missing, as the administrator. Those that are there are compared and left as they are.
    Streams(StreamsArgs),
}

#[derive(clap::Args)]
pub(crate) struct InitArgs {
    /// Where the files go. What is there already is never written over.
    #[arg(long, default_value = "nats-access", value_name = "DIR")]
    dir: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct StreamsArgs {
    #[command(flatten)]
    nats: NatsArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Init(args) => init(&args),
        Job::Streams(args) => {
            let made = node::make_streams(&args.nats).await?;
            note!("{made} streams were made; all {} are as they must be", u32::from(args.nats.shards) + 3);
            Ok(())
        }
    }
}

fn init(args: &InitArgs) -> anyhow::Result<()> {
    let files = broker::make(&args.dir)?;
    for (file, what) in [
        (files.server(), "nats-server: include it in its configuration. Not secret"),
        (files.serve(), "orgstream serve: ORGSTREAM_NATS_CREDS"),
        (files.producers(), "orgstream serve: ORGSTREAM_NATS_PRODUCERS"),
        (files.work(), "orgstream work, and commands that read the log: ORGSTREAM_NATS_CREDS"),
        (
            files.admin(),
            "orgstream nats streams: ORGSTREAM_NATS_CREDS. It may delete streams: for an administrator's hands",
        ),
        (files.offline(), "no process: the keys that have signed all of it. Move it off this machine"),
    ] {
        say!("{}\n    {what}", file.display())?;
    }
    Ok(())
}
