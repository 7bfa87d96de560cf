//! `orgstream search`: the search targets of the settings, and which organizations' indexes are there.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use orgstream_events::{Chain, OrgId, PLATFORM_ORG, Pipeline};
use orgstream_projections::{Asked, BoundOrg, search::target::DEFAULT_TARGET};
use serde_json::{Value, json};

use crate::{
    config::{DatabaseArgs, SearchArgs},
    process as node,
    terminal::{
        out::{note, say},
        table::rows_table,
    },
};

/// The columns of `search targets`, and which of them are numbers.
const TARGETS: (&[&str], &[usize]) = (&["target", "type", "address", "organizations", "state"], &[3]);
/// The columns of `search placements`.
const PLACEMENTS: (&[&str], &[usize]) = (&["org", "target", "shown", "job", "state", "version", "error"], &[5]);

#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// List the search targets, with the number of organizations whose index is there, and ask each whether it can be used.
    Targets(ListArgs),
    /// List the organizations whose index of words is in a search target, or is being built there.
    Placements(ListArgs),
    /// Build the index of words of an organization in a search target, and search there once it is complete.
    ///
    /// The workers build it beside the one that is searched, and show it, like `orgstream rebuild`, which shows how far they are
    /// and takes it back (`--roll-back`). The index before is kept until the next rebuild or `rebuild --drop-old`.
    Place(PlaceArgs),
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(clap::Args)]
pub(crate) struct PlaceArgs {
    /// The organization, by id.
    #[arg(value_name = "ORG")]
    org: OrgId,
    /// The name of the target; `default` is the database of the read models.
    #[arg(long, value_name = "NAME")]
    target: String,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Targets(args) => targets(args).await,
        Job::Placements(args) => placements(args).await,
        Job::Place(args) => place(args).await,
    }
}

async fn targets(args: ListArgs) -> anyhow::Result<()> {
    let targets = args.search.targets()?;
    let db = node::open_database(&args.database, 1).await?;
    let mut placed: BTreeMap<String, usize> = BTreeMap::new();
    for (_, target) in db.placed_indexes().await? {
        *placed.entry(target).or_default() += 1;
    }
    let mut rows = vec![json!({
        "target": DEFAULT_TARGET, "type": "postgres", "address": args.database.database_url.to_string(), "organizations": null,
        "state": "ready",
    })];
    for target in targets.all() {
        let state = match target.check().await {
            Ok(()) => "ready".to_owned(),
            Err(error) => Chain(&error).to_string(),
        };
        let organizations = placed.remove(target.name()).unwrap_or_default();
        rows.push(json!({
            "target": target.name(), "type": target.kind(), "address": target.address(), "organizations": organizations,
            "state": state,
        }));
    }
    for (target, organizations) in placed {
        let state = "unknown: it is not in --search-targets";
        rows.push(
            json!({"target": target, "type": null, "address": null, "organizations": organizations, "state": state}),
        );
    }
    list(&rows, args.json, TARGETS)
}

async fn placements(args: ListArgs) -> anyhow::Result<()> {
    let db = node::open_database(&args.database, 1).await?.searching(args.search.targets()?);
    let placed = db.placed_indexes().await?;
    let orgs: Vec<OrgId> = placed.iter().map(|(org, _)| *org).collect();
    let jobs = db.rebuilds_of(&orgs, Pipeline::Search).await?;
    let mut rows = Vec::with_capacity(placed.len());
    for (org, target) in placed {
        let shown = db.read(BoundOrg::named_by_operator(org)).await?.search_target().await?;
        let job = jobs.iter().find(|job| job.org == org);
        rows.push(json!({
            "org": org, "target": target, "shown": shown.as_deref() == Some(target.as_str()),
            "job": job.map(|job| job.job), "state": job.map(|job| job.state), "version": job.map(|job| job.version),
            "error": job.and_then(|job| job.error.clone()),
        }));
    }
    if rows.is_empty() && !args.json {
        say!("every index is in the database of the read models")?;
        return Ok(());
    }
    list(&rows, args.json, PLACEMENTS)
}

async fn place(args: PlaceArgs) -> anyhow::Result<()> {
    let PlaceArgs { org, target, search, database } = args;
    if org == PLATFORM_ORG {
        bail!("what all organizations share is searched in the database of the read models, and not placed elsewhere");
    }
    let targets = search.targets()?;
    let wanted = (target != DEFAULT_TARGET).then_some(target.as_str());
    if let Some(name) = wanted {
        let known = targets.named(name).with_context(|| {
            format!("there is no search target {name} in --search-targets (ORGSTREAM_SEARCH_TARGETS)")
        })?;
        known.check().await?;
    }
    let db = node::open_database(&database, 1).await?.searching(targets);
    let bound = BoundOrg::named_by_operator(org);
    match db.place_index(bound, wanted).await? {
        Asked::Begun(job) => note!(
            "{org}: the workers build version {} of its index in {target}, and show it then; `orgstream search placements` shows \
             how far they are. Each serve and work needs the target in its --search-targets",
            job.version
        ),
        Asked::GoesOn(job) => note!("{org}: this is under way already, at {} of {} events", job.events, job.total),
        Asked::Busy(job) => bail!(
            "{org}: another job on its index is under way (version {}); wait for it, or give it up with `orgstream rebuild --pipeline \
             search --drop-old --org {org}`",
            job.version
        ),
        Asked::There => note!("{org}: its index is in {target} already"),
        Asked::Elsewhere(_) | Asked::Nothing => bail!("{org} has no index: is there such an organization?"),
    }
    Ok(())
}

fn list(rows: &[Value], as_json: bool, (head, numbers): (&[&str], &[usize])) -> anyhow::Result<()> {
    if as_json {
        say!("{}", json!({"data": rows}))?;
    } else {
        say!("{}", rows_table(rows, head, numbers).trim_fmt())?;
    }
    Ok(())
}
