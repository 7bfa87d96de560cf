//! `orgstream check-config`: the preflight alone.

use std::{collections::BTreeMap, fmt::Display};

use anyhow::{anyhow, bail};
use orgstream_events::Chain;
use orgstream_projections::{Database, DbError};

use crate::{
    config::{DatabaseArgs, KeyRingArgs, NatsArgs, SearchArgs},
    process as node,
    terminal::out::{OutputError, say, told},
};

/// Look at NATS, PostgreSQL, the key ring and the search targets as `serve` and `work` do before they start, and say what is wrong.
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
    #[command(flatten)]
    search: SearchArgs,
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
    let db = db.as_ref().ok().filter(|_| postgres.is_ok() && findings.is_empty());
    let search = check_search(&args.search, db, &mut findings).await;
    // The findings count, whether or not their output was read.
    let findings = told(findings, nats.and(postgres).and(history).and(secrets).and(search));
    if findings.is_empty() {
        return Ok(());
    }
    bail!(
        "{} found",
        if findings.len() == 1 { "one problem was".to_owned() } else { format!("{} problems were", findings.len()) }
    )
}

/// Asks each search target, and finds those that organizations are in and that are not named.
async fn check_search(args: &SearchArgs, db: Option<&Database>, findings: &mut Vec<String>) -> Result<(), OutputError> {
    let targets = match args.targets() {
        Ok(targets) => targets,
        Err(error) => return report::<String>("search", Err(error), findings),
    };
    let mut said = Ok(());
    for target in targets.all() {
        let state = target.check().await.map(|()| Vec::<String>::new());
        let state = state.map_err(|error| anyhow!("{}: {}", target.name(), Chain(&error)));
        said = said.and(report("search", state, findings));
    }
    let Some(db) = db else { return said };
    let unnamed = async {
        let mut placed: BTreeMap<String, usize> = BTreeMap::new();
        for (_, target) in db.placed_indexes().await? {
            *placed.entry(target).or_default() += 1;
        }
        placed.retain(|name, _| targets.all().all(|target| target.name() != name));
        let line = |(target, orgs): (String, usize)| {
            format!("organizations whose index is in the target {target}, which --search-targets does not name: {orgs}")
        };
        anyhow::Ok(placed.into_iter().map(line).collect::<Vec<_>>())
    };
    match unnamed.await {
        // Nothing to say of what nobody uses.
        Ok(unnamed) if unnamed.is_empty() => said,
        unnamed => said.and(report("search", unnamed, findings)),
    }
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
