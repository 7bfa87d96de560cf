//! `orgstream check-config`: the preflight alone.

use std::fmt::Display;

use anyhow::{anyhow, bail};
use orgstream_projections::Database;

use crate::{
    config::{DatabaseArgs, NatsArgs},
    node,
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
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    let log = node::connect_log(&args.nats).await;
    let nats = async { node::preflight_log(log.as_ref().map_err(|error| anyhow!("{error:#}"))?, &args.nats).await };
    report("NATS", nats.await, &mut findings);
    let db = Database::connect(&args.database.options(1)).await;
    let database = async { Ok(db.as_ref().map_err(|error| anyhow!("{error}"))?.preflight().await?) };
    report("PostgreSQL", database.await, &mut findings);
    // Whether the one has what the other was told of can only be asked when nothing else is wrong.
    if let (Ok(log), Ok(db), true) = (&log, &db, findings.is_empty()) {
        report("history", node::lost_data(log, db).await, &mut findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!(
        "{} found",
        if findings.len() == 1 { "one problem was".to_owned() } else { format!("{} problems were", findings.len()) }
    )
}

fn report<T: Display>(what: &str, found: anyhow::Result<Vec<T>>, findings: &mut Vec<String>) {
    let lines: Vec<String> = match found {
        Ok(found) => found.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("{error:#}")],
    };
    if lines.is_empty() {
        println!("{what:<10}  ok");
    }
    for line in lines {
        println!("{what:<10}  {line}");
        findings.push(line);
    }
}
