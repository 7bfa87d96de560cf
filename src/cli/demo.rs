//! `orgstream demo`: the shell settings of a demo organization.

use std::path::PathBuf;

use anyhow::Context;

use crate::demo::DemoFile;

/// Print the shell settings of a demo organization: eval "$(orgstream demo acme)".
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The demo organization, by slug.
    #[arg(default_value = "acme")]
    org: String,
    /// The data folder of the running `orgstream dev`.
    #[arg(long, env = "ORGSTREAM_DATA_DIR", default_value = ".orgstream", value_name = "DIR")]
    data_dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = DemoFile::read(&args.data_dir)?;
    let org = file.demo.orgs.iter().find(|org| org.slug == args.org).with_context(|| {
        let slugs: Vec<&str> = file.demo.orgs.iter().map(|org| org.slug.as_str()).collect();
        format!("there is no demo organization {:?}; there are: {}", args.org, slugs.join(", "))
    })?;
    println!("export ORGSTREAM_URL={}", file.base_url);
    println!("export ORGSTREAM_API_KEY={}", org.api_key);
    Ok(())
}
