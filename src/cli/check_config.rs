//! `orgstream check-config`: the preflight alone.

use std::fmt::Display;

use anyhow::{anyhow, bail};
use orgstream_events::Chain;
use orgstream_projections::{Database, DbError};

use crate::{
    config::{DatabaseArgs, KeyRingArgs, NatsArgs},
    process as node,
    terminal::out::{OutputError, say, told},
};

/// Look at NATS and PostgreSQL as `serve` and `work` do before they start, and say what is wrong.
///
/// Changes nothing. Ends with an error if anything is found, one line each with the way out.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    key_ring: KeyRingArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let log = node::connect_log(&args.nats).await;
    let nats = async {
        node::preflight_log(log.as_ref().map_err(|error| anyhow!("{}", Chain(error.as_ref())))?, &args.nats).await
    };
    let nats = report("NATS", nats.await, &mut findings);
    let db = Database::connect(&args.database.options(1)).await;
    let silent = |error: &DbError| anyhow!("{}: {}", args.database.silent(), Chain(error));
    let database = async { Ok(db.as_ref().map_err(silent)?.preflight().await?) };
    let postgres = report("PostgreSQL", database.await, &mut findings);
    let mut history = Ok(());
    // Whether the log has everything that the database knows of can only be checked when nothing else is wrong.
    if let (Ok(log), Ok(db), true) = (&log, &db, findings.is_empty()) {
        history = report("history", node::lost_data(log, db).await, &mut findings);
    }
    let mut secrets = Ok(());
    // Without a key ring there is nothing to check: `work` has none.
    let has_ring = args.key_ring.key_ring.is_some() || args.key_ring.vault_url.is_some();
    if let (Ok(log), true) = (&log, has_ring && findings.is_empty()) {
        let ring = async {
            let ring = args.key_ring.ring().await?;
            if ring.is_some() {
                node::check_key_ring(log, ring).await?;
            }
            Ok(Vec::<String>::new())
        };
        secrets = report("key ring", ring.await, &mut findings);
    }
    // The findings count, whether or not their output was read.
    let findings = told(findings, nats.and(postgres).and(history).and(secrets));
    if findings.is_empty() {
        return Ok(());
    }
    bail!(
        "{} found",
        if findings.len() == 1 { "one problem was".to_owned() } else { format!("{} problems were", findings.len()) }
    )
}

fn report<T: Display>(
    what: &str,
    found: anyhow::Result<Vec<T>>,
    findings: &mut Vec<String>,
) -> Result<(), OutputError> {
    let lines: Vec<String> = match found {
        Ok(found) => found.iter().map(ToString::to_string).collect(),
        Err(error) => vec![Chain(error.as_ref()).to_string()],
    };
    let mut said = if lines.is_empty() { say!("{what:<10}  ok") } else { Ok(()) };
    for line in lines {
        said = said.and(say!("{what:<10}  {line}"));
        findings.push(line);
    }
    said
}
