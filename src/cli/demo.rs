//! `orgstream demo`: the shell settings of a demo organization, and those of whoever runs the demo.

use std::path::PathBuf;

use anyhow::Context;

use crate::{demo::DemoFile, stack::Secrets};

/// Print the shell settings of a demo organization: eval "$(orgstream demo acme)".
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The demo organization, by slug.
    #[arg(default_value = "acme")]
    org: String,
    /// Print the operator's settings instead: the platform token, and where the private servers are.
    #[arg(long, conflicts_with = "org")]
    operator: bool,
    /// The data folder of the running `orgstream dev`.
    #[arg(long, env = "ORGSTREAM_DATA_DIR", default_value = ".orgstream", value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = DemoFile::read(&args.data_dir)?;
    println!("export ORGSTREAM_URL={}", file.base_url);
    if args.operator {
        let secrets = Secrets::load_or_create(&args.data_dir.join("secrets.json"))?;
        // The program logs in as its own roles, so the owner stays out of the address.
        let (_, database) = file.postgres_url.rsplit_once('@').context("the database's address names its owner")?;
        println!("export ORGSTREAM_API_KEY={}", file.platform_admin_token);
        println!("export ORGSTREAM_NATS_URL={}", file.nats_url);
        println!("export ORGSTREAM_NATS_MONITOR_URL={}", file.nats_monitor_url);
        println!("export ORGSTREAM_DATABASE_URL=postgres://{database}");
        println!("export ORGSTREAM_DATABASE_PASSWORD={}", secrets.database_password);
        return Ok(());
    }
    let org = file.demo.orgs.iter().find(|org| org.slug == args.org).with_context(|| {
        let slugs: Vec<&str> = file.demo.orgs.iter().map(|org| org.slug.as_str()).collect();
        format!("there is no demo organization {:?}; there are: {}", args.org, slugs.join(", "))
    })?;
    println!("export ORGSTREAM_API_KEY={}", org.api_key);
    Ok(())
}
