//! `orgstream rebuild`: a new version of read models, built by the workers beside the active one.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, bail};
use clap::{
    Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use orgstream_events::{CommandId, KeyId, MemberId, OrgId, Pipeline, RecordId};
use orgstream_projections::{
    Asked, BoundOrg, Database, Drift, Rebuild, RebuildJob, RebuildState,
    audit::{self, KeysOf},
    drift,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    config::{DatabaseArgs, NatsArgs},
    process as node,
    terminal::{
        out::{OutputError, note, say, told},
        progress,
        table::{rows_table, table},
    },
};

const POLL: Duration = Duration::from_millis(100);
/// How long nothing may move before the command reports a stall.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The number of characters of a displayed checksum.
const SHOWN: usize = 16;
/// The columns of `rebuild status`, and which of them are numbers.
const STATUS: (&[&str], &[usize]) = (
    &[
        "org",
        "pipeline",
        "job",
        "state",
        "version",
        "previous",
        "events",
        "total",
        "differences",
        "updated_at",
        "error",
    ],
    &[4, 5, 6, 7, 8],
);

/// Build the read models of an organization, or of all, again from the audit log; or its index of words.
///
/// The workers build a new version beside the one that is shown, behind everything else that they do, and then show it,
/// each organization for itself: until then queries see the old rows, and from then on the new ones. The version before is
/// kept until the next rebuild, to go back to. Interrupted, the workers finish by themselves, and the same command shows
/// how far they are.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    status: Option<Job>,
    #[command(flatten)]
    what: What,
}

#[derive(Subcommand)]
enum Job {
    /// Show what is being rebuilt, and what was.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

#[derive(clap::Args)]
struct What {
    /// The organization, by id.
    #[arg(long, value_name = "ORG", conflicts_with = "all",
        required_unless_present_any = ["all", "roll_back", "drop_old"])]
    org: Option<OrgId>,
    /// Every organization there is.
    #[arg(long)]
    all: bool,
    /// The pipeline whose rows are built: one that has versions.
    #[arg(long, value_name = "NAME", default_value_t = Pipeline::ReadModels, value_parser = pipeline())]
    pipeline: Pipeline,
    /// Build a version only to compare it with what is shown, and name every difference; exits with 1 if there is one.
    #[arg(long, requires = "org", conflicts_with_all = ["roll_back", "drop_old", "detach"])]
    verify: bool,
    /// Show the version before again, brought up to date: of one organization, or of all that have one.
    #[arg(long, conflicts_with = "drop_old")]
    roll_back: bool,
    /// Drop every version that is not shown, and give up what is being built: of one organization, or of all.
    #[arg(long)]
    drop_old: bool,
    /// Do not wait for the workers.
    #[arg(long)]
    detach: bool,
    /// Print what --verify found as JSON.
    #[arg(long, requires = "verify")]
    json: bool,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

fn pipeline() -> impl TypedValueParser<Value = Pipeline> {
    let versioned = Pipeline::ALL.into_iter().filter(|pipeline| pipeline.has_versions()).map(Pipeline::name);
    PossibleValuesParser::new(versioned).try_map(|name| name.parse::<Pipeline>())
}

impl What {
    fn job(&self) -> RebuildJob {
        match (self.verify, self.roll_back, self.drop_old) {
            (true, ..) => RebuildJob::Verify,
            (_, true, _) => RebuildJob::RollBack,
            (.., true) => RebuildJob::Drop,
            _ => RebuildJob::Build,
        }
    }

    async fn orgs(&self, db: &Database) -> anyhow::Result<Vec<OrgId>> {
        if let Some(org) = self.org {
            return Ok(vec![org]);
        }
        match self.job() {
            RebuildJob::Build | RebuildJob::Verify => {
                let log = node::connect_log(&self.nats).await?;
                log.organizations().await.context("the organizations could not be listed")
            }
            job => {
                let has_more = |one: &Rebuild| one.state != RebuildState::Done && job == RebuildJob::Drop;
                let known = db.rebuilds().await?.into_iter().filter(|one| one.pipeline == self.pipeline);
                Ok(known.filter(|one| one.previous.is_some() || has_more(one)).map(|one| one.org).collect())
            }
        }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.status {
        Some(Job::Status { json, database }) => status(&node::open_database(&database, 1).await?, json).await,
        None => rebuild(&args.what).await,
    }
}

async fn rebuild(what: &What) -> anyhow::Result<()> {
    let db = node::open_database(&what.database, 1).await?;
    let job = what.job();
    let mut asked = HashMap::new();
    for org in what.orgs(&db).await? {
        match db.ask_rebuild(BoundOrg::named_by_operator(org), what.pipeline, job).await? {
            Asked::Begun(rebuild) => {
                asked.insert(org, rebuild);
            }
            Asked::GoesOn(rebuild) => {
                note!("{org}: this is under way already, at {} of {} events", rebuild.events, rebuild.total);
                asked.insert(org, rebuild);
            }
            Asked::Busy(rebuild) => bail!(
                "{org}: something else is under way ({}); wait for it, or give it up with --drop-old",
                text(&json!(rebuild.job))
            ),
            Asked::Elsewhere(target) => bail!(
                "{org}: its index is in the search target {target}, whose rows are not compared; `rebuild --pipeline search` builds it \
                 again there"
            ),
            Asked::There => {}
            Asked::Nothing if what.org.is_none() => {}
            Asked::Nothing if job == RebuildJob::RollBack => bail!("{org} has no version to go back to"),
            Asked::Nothing => bail!("{org} has nothing of {}: is there such an organization?", what.pipeline),
        }
    }
    if what.detach {
        note!("asked for {} organizations; `orgstream rebuild status` shows how far they are", asked.len());
        return Ok(());
    }
    let orgs = asked.len();
    wait(&db, what.pipeline, asked).await?;
    if let Some(org) = what.org.filter(|_| job != RebuildJob::Drop) {
        made_of(&db, org).await?;
    }
    match job {
        RebuildJob::Build => note!("rebuilt {} of {orgs} organizations", told_name(what.pipeline)),
        RebuildJob::RollBack => note!("rolled back {} of {orgs} organizations", told_name(what.pipeline)),
        RebuildJob::Drop => note!("dropped the old versions of {orgs} organizations"),
        RebuildJob::Verify => {
            if let Some(org) = what.org {
                verdict(&db, org, what.pipeline, what.json).await?;
            }
        }
    }
    Ok(())
}

/// Reports how far the built version is proven.
async fn made_of(db: &Database, org: OrgId) -> anyhow::Result<()> {
    let mut tx = db.read(BoundOrg::named_by_operator(org)).await?;
    let signed = audit::newest_checkpoint(&mut tx).await?.map_or(0, |newest| newest.head.size);
    let (size, by) = (audit::size(&mut tx).await?, audit::TrustedKeys::of(&mut tx).await?.by);
    let by = match by {
        KeysOf::Pinned => "the key that was given",
        KeysOf::Database => "a key that the database names",
    };
    note!(
        "{org}: made of the audit log, of whose {size} events {signed} are as {by} has signed them; the others, sequences and \
         fingerprints are as the table has them, and `orgstream replay --verify` compares all of it with the stream"
    );
    Ok(())
}

/// Waits until all requested rebuilds are done.
async fn wait(db: &Database, pipeline: Pipeline, mut asked: HashMap<OrgId, Rebuild>) -> anyhow::Result<()> {
    let (orgs, mut done_events) = (asked.len(), 0);
    let bar = progress::bar("{bar:40} {pos}/{len} events  {msg}  {per_sec}  {eta} left");
    let (mut seen, mut since) = ((0, 0), tokio::time::Instant::now());
    let mut failures = Vec::new();
    while !asked.is_empty() {
        let waiting: Vec<OrgId> = asked.keys().copied().collect();
        for now in db.rebuilds_of(&waiting, pipeline).await? {
            let Some(known) = asked.get_mut(&now.org) else { continue };
            if (now.job, now.version) != (known.job, known.version) {
                bail!("{}: another request has replaced it meanwhile", now.org);
            }
            match now.state {
                RebuildState::Done => done_events += now.total,
                RebuildState::Failed => failures.push(format!("{}: {}", now.org, now.error.unwrap_or_default())),
                _ => {
                    *known = now;
                    continue;
                }
            }
            asked.remove(&now.org);
        }
        let events = done_events + asked.values().map(|one| one.events).sum::<u64>();
        bar.set_length(done_events + asked.values().map(|one| one.total).sum::<u64>());
        bar.set_position(events);
        bar.set_message(format!("{} of {orgs} organizations", orgs - asked.len()));
        let moved = asked.values().map(|one| one.updated_at.unix_ms()).max().unwrap_or_default();
        if (events, moved) != seen {
            (seen, since) = ((events, moved), tokio::time::Instant::now());
        } else if since.elapsed() > TIMEOUT {
            bail!("nothing has moved for {TIMEOUT:?} at event {events}: is a worker running?");
        }
        if !asked.is_empty() {
            tokio::time::sleep(POLL).await;
        }
    }
    bar.finish_and_clear();
    if !failures.is_empty() {
        bail!("{} of {orgs} organizations could not be finished:\n  {}", failures.len(), failures.join("\n  "));
    }
    Ok(())
}

/// Reports the result of a comparison.
async fn verdict(db: &Database, org: OrgId, pipeline: Pipeline, as_json: bool) -> anyhow::Result<()> {
    let differences = db.rebuilds_of(&[org], pipeline).await?.first().map_or(0, |rebuild| rebuild.differences);
    let found = drift(&mut db.read(BoundOrg::named_by_operator(org)).await?).await?;
    let differences = told(differences, print_drift(org, differences, &found, as_json));
    if differences > 0 {
        let which = if pipeline == Pipeline::ReadModels { String::new() } else { format!(" --pipeline {pipeline}") };
        bail!(
            "{differences} rows of {org} are not what its events make of them; `rebuild --org {org}{which}` mends them"
        );
    }
    note!("{} of {org} are what its events make of them", told_name(pipeline));
    Ok(())
}

/// Returns the pipeline's rows in words.
fn told_name(pipeline: Pipeline) -> String {
    let name = pipeline.name().replace('_', " ");
    if name.ends_with('s') { format!("the {name}") } else { format!("the rows of {name}") }
}

fn print_drift(org: OrgId, differences: u64, found: &[Drift], as_json: bool) -> Result<(), OutputError> {
    if as_json {
        say!("{}", json!({"org": org, "differences": differences, "data": found}))?;
    } else {
        let mut sums = table(&["table", "shown", "built"], &[]);
        let (tables, rows): (Vec<&Drift>, Vec<&Drift>) = found.iter().partition(|drift| drift.key.is_none());
        for Drift { table, shown, built, .. } in tables {
            sums.add_row([table.clone(), short(shown.as_deref()), short(built.as_deref())]);
        }
        say!("{}", sums.trim_fmt())?;
        for drift in &rows {
            let how = match (&drift.shown, &drift.built) {
                (None, _) => "is missing".to_owned(),
                (_, None) => "should not be there".to_owned(),
                _ => format!("differs in {}", drift.columns.join(", ")),
            };
            say!("{} {} {how}", drift.table, name(drift))?;
        }
        if differences > rows.len() as u64 {
            say!("and {} rows more", differences - rows.len() as u64)?;
        }
    }
    Ok(())
}

/// Shortens a checksum for display.
fn short(sum: Option<&str>) -> String {
    match sum.filter(|sum| sum.contains(|digit| digit != '0')) {
        Some(sum) => sum.chars().take(SHOWN).collect(),
        None => "no rows".to_owned(),
    }
}

/// Returns the row's name in the API.
fn name(drift: &Drift) -> String {
    let key = drift.key.clone().unwrap_or_default();
    let Ok(id) = key.parse::<Uuid>() else { return key };
    match drift.table.as_str() {
        "rm.records" | "rm.search_documents" => RecordId::from_uuid(id).to_string(),
        "rm.members" => MemberId::from_uuid(id).to_string(),
        "rm.api_keys" => KeyId::from_uuid(id).to_string(),
        "rm.organizations" => OrgId::from_uuid(id).to_string(),
        "ops.idempotency" => CommandId::from_uuid(id).to_string(),
        _ => key,
    }
}

async fn status(db: &Database, as_json: bool) -> anyhow::Result<()> {
    let rebuilds = db.rebuilds().await?;
    let rows: Vec<Value> = rebuilds.iter().map(|rebuild| json!(rebuild)).collect();
    if as_json {
        say!("{}", json!({"data": rows}))?;
    } else if rows.is_empty() {
        say!("nothing was ever rebuilt")?;
    } else {
        say!("{}", rows_table(&rows, STATUS.0, STATUS.1).trim_fmt())?;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
