//! `orgstream lag`: how far behind the projections are, by organization.

use std::{io::IsTerminal, time::Duration};

use clap::Args as ClapArgs;
use serde_json::Value;

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::rows_table,
    },
};

/// Show how far the projections are.
///
/// With a key of an organization (or --org): that organization's pipelines. With the platform operator's token and
/// --all: the lanes that are the furthest behind, over all organizations.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The worst of all organizations. For operators.
    #[arg(long, conflicts_with = "org")]
    all: bool,
    /// Show it again every second until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print the API's answer as it is.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let path = if args.all {
        "/v1/platform/lag".to_owned()
    } else {
        format!("/v1/organizations/{}/projections", api.org(args.org.clone()).await?)
    };
    loop {
        let answer = api.get(&path).await?;
        if args.json {
            say!("{answer}")?;
        } else {
            if std::io::stdout().is_terminal() && args.watch {
                say!("{CLEAR}")?;
            }
            print_rows(&answer, if args.all { LANES } else { PIPELINES })?;
            if list(&answer, "/data").iter().any(|lane| lane.get("standing_ms").is_some_and(Value::is_u64)) {
                note!("what has standing_ms does not move although there is more for it: the worker's log says more");
            }
            for stray in list(&answer, "/strays") {
                note!("a message belongs to no organization; its publisher must be found: {stray}");
            }
            for lost in lost(&answer) {
                note!(
                    "the log lost data, so nothing is taken and nothing applied there: {lost}; see `orgstream history list`"
                );
            }
            if is_without_workers(&answer) {
                note!("no worker is running, so nothing catches up: start one (orgstream work)");
            }
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Clears the screen and moves to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";
/// The columns of an organization's pipelines, and which of them are numbers.
const PIPELINES: (&[&str], &[usize]) =
    (&["pipeline", "behind", "parked", "behind_since", "position", "head", "updated_at"], &[1, 2]);
/// The columns of the lanes that are behind.
const LANES: (&[&str], &[usize]) =
    (&["org_id", "pipeline", "age_ms", "waiting", "catching_up", "standing_ms"], &[2, 3, 5]);

fn print_rows(answer: &Value, (head, numbers): (&[&str], &[usize])) -> anyhow::Result<()> {
    let rows = list(answer, "/data");
    if rows.is_empty() {
        // There may be no process that knows the lag, or nothing to compare with.
        let is_known = !is_without_workers(answer) && lost(answer).is_empty();
        say!("{}", if is_known { "nothing is behind" } else { "no worker reports its lag" })?;
        return Ok(());
    }
    Ok(say!("{}", rows_table(rows, head, numbers).trim_fmt())?)
}

fn list<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.pointer(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
}

fn is_without_workers(answer: &Value) -> bool {
    answer.get("workers") == Some(&Value::from(0))
}

/// Returns the text about lost streams, of one organization or of all.
fn lost(answer: &Value) -> Vec<String> {
    let shard = |shard: &Value| Some(format!("shard {}: {}", shard.get("shard")?, shard.get("lost")?.as_str()?));
    let own = answer.get("lost").and_then(Value::as_str).map(str::to_owned);
    own.into_iter().chain(list(answer, "/shards").iter().filter_map(shard)).collect()
}
