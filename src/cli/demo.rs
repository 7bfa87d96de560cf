//! `orgstream demo`: the shell settings of a demo organization, and those of the demo's operator.

use std::path::PathBuf;

use anyhow::Context;
use orgstream_stream::broker::AccessFiles;

use crate::{
    audit::keys::KeyFiles,
    dev::{
        demo::DemoFile,
        stack::{KEYS, Secrets},
    },
    terminal::out::{say, told},
};

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

/// The output without settings: earlier settings of the shell must not be taken for them.
const NOTHING: &str = "unset ORGSTREAM_URL ORGSTREAM_API_KEY; false";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match settings(args) {
        Ok(settings) => Ok(say!("{settings}")?),
        Err(error) => {
            told((), say!("{NOTHING}"));
            Err(error)
        }
    }
}

/// Returns all settings or none: half of them would be the address of one and the key of another.
fn settings(args: &Args) -> anyhow::Result<String> {
    let file = DemoFile::read(&args.data_dir)?;
    let mut settings = vec![("ORGSTREAM_URL", file.base_url)];
    if args.operator {
        let secrets = Secrets::load_or_create(&args.data_dir.join("secrets.json"))?;
        // The program logs in with its own roles, so the owner is left out of the address.
        let (_, database) = file.postgres_url.rsplit_once('@').context("the database's address names its owner")?;
        // A reader of the log needs no more access to it than a worker.
        let reader = AccessFiles::at(&file.nats_access).work();
        settings.extend([
            ("ORGSTREAM_API_KEY", file.platform_admin_token),
            ("ORGSTREAM_NATS_URL", file.nats_url),
            ("ORGSTREAM_NATS_CREDS", format!("'{}'", reader.display())),
            ("ORGSTREAM_NATS_MONITOR_URL", file.nats_monitor_url),
            ("ORGSTREAM_COMMIT_KEYS", secrets.commit_keys),
            ("ORGSTREAM_DATABASE_URL", format!("postgres://{database}")),
            ("ORGSTREAM_DATABASE_PASSWORD", secrets.database_password),
        ]);
        let log_key = KeyFiles::of_log(&args.data_dir.join(KEYS)).public();
        if let Ok(log_key) = log_key.canonicalize() {
            settings.push(("ORGSTREAM_LOG_KEY", format!("'{}'", log_key.display())));
        }
    } else {
        let org = file.demo.orgs.iter().find(|org| org.slug == args.org).with_context(|| {
            let slugs: Vec<&str> = file.demo.orgs.iter().map(|org| org.slug.as_str()).collect();
            format!("there is no demo organization {:?}; there are: {}", args.org, slugs.join(", "))
        })?;
        settings.push(("ORGSTREAM_API_KEY", org.api_key.clone()));
    }
    let lines: Vec<String> = settings.iter().map(|(name, value)| format!("export {name}={value}")).collect();
    Ok(lines.join("\n"))
}
