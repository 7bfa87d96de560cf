//! `orgstream park`: events that could not be applied, and the decisions about them.

use std::{process::ExitCode, time::Duration};

use anyhow::{anyhow, bail};
use clap::{
    Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use orgstream_events::{AggregateName, Pipeline, Position};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::rows_table,
    },
};

const POLL: Duration = Duration::from_millis(100);
/// The exit code of a decision that was recorded, and whose result is not known.
const UNDER_WAY: u8 = 3;
/// The maximum number of parked messages of one aggregate that are checked.
const MOST: usize = 10_000;

/// See, retry or skip events that could not be applied.
///
/// An event that a pipeline cannot apply is parked together with the later events of the same aggregate; everything else
/// of the organization goes on. What is decided here travels in the organization's own stream, so it is audited; the command
/// waits until it is carried out, and ends with 1 when that changed nothing and with 3 when no worker came to it in time.
/// These commands need the platform operator's token in `ORGSTREAM_API_KEY`.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show what is parked and why.
    List {
        #[command(flatten)]
        whose: Whose,
        /// Print the API's answer as it is.
        #[arg(long)]
        json: bool,
    },
    /// Apply the parked events of one aggregate again, in order.
    Retry {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        what: What,
    },
    /// Give up the first parked message of one aggregate, then apply the others.
    Skip {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        what: What,
        /// The message, as `park list` shows it under `seq`.
        #[arg(long, value_name = "SEQ")]
        seq: u64,
        /// Why; it stays in the organization's audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(clap::Args)]
pub(crate) struct Whose {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(clap::Args)]
pub(crate) struct What {
    /// The pipeline that parked the events.
    #[arg(long, value_name = "NAME", default_value_t = Pipeline::ReadModels, value_parser = pipeline())]
    pipeline: Pipeline,
    /// The aggregate, as `park list` shows it: `record.res_…`, or whatever stands there.
    #[arg(value_name = "AGGREGATE")]
    aggregate: String,
    /// How long a worker may take to carry the decision out, in seconds, before the command ends without it.
    #[arg(long, value_name = "S", default_value_t = 30)]
    wait: u32,
}

impl What {
    fn command(&self) -> Value {
        json!({"pipeline": self.pipeline, "aggregate": AggregateName::from(self.aggregate.as_str())})
    }
}

fn pipeline() -> impl TypedValueParser<Value = Pipeline> {
    PossibleValuesParser::new(Pipeline::NAMES).try_map(|name| name.parse::<Pipeline>())
}

pub(crate) async fn run(job: Job) -> anyhow::Result<ExitCode> {
    match job {
        Job::List { whose, json } => {
            let api = Api::new(&whose.client)?;
            let answer = api.get(&format!("/v1/organizations/{}/parked", whose.org)).await?;
            if json {
                say!("{answer}")?;
            } else {
                print_parked(&answer)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Job::Retry { whose, what } => decide(&whose, &what, "retry", what.command(), None).await,
        Job::Skip { whose, what, seq, reason } => {
            let mut command = what.command();
            if let Some(fields) = command.as_object_mut() {
                fields.insert("seq".to_owned(), json!(seq));
                fields.insert("reason".to_owned(), json!(reason));
            }
            decide(&whose, &what, "skip", command, Some(seq)).await
        }
    }
}

/// Decides, and waits until it is carried out: a decision without effect is distinguished from one that helped.
async fn decide(
    whose: &Whose,
    what: &What,
    verb: &str,
    command: Value,
    skipped: Option<u64>,
) -> anyhow::Result<ExitCode> {
    let api = Api::new(&whose.client)?;
    let What { pipeline, aggregate, wait } = what;
    let patience = Duration::from_secs(u64::from(*wait));
    match (parked(&api, whose, what).await?.first(), skipped) {
        (None, _) => bail!(
            "nothing of {aggregate} is parked in {pipeline}, so there is nothing to {verb}; \
             `orgstream park list --org {}` shows what is parked",
            whose.org
        ),
        (Some(first), Some(seq)) if seq_of(first) != Some(seq) => bail!(
            "{seq} is not the first parked message of {aggregate} in {pipeline}: that is {}, and only the first can be \
             given up",
            seq_of(first).unwrap_or_default()
        ),
        _ => {}
    }
    let answer = api.post(&format!("/v1/organizations/{}/parked/{verb}", whose.org), &command).await?;
    let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
    let decided: Position =
        position.parse().map_err(|error| anyhow!("the answer of the API has no position: {error}"))?;
    if !is_carried_out(&api, whose, *pipeline, decided, patience).await? {
        note!(
            "decided at {position} and under way: no worker has come to it within {patience:?} (is one running?). \
             `orgstream park list --org {}` shows what is still parked",
            whose.org
        );
        return Ok(UNDER_WAY.into());
    }
    let left = parked(&api, whose, what).await?;
    let Some(first) = left.first() else {
        note!("decided at {position} and carried out: nothing of {aggregate} is parked in {pipeline} any more");
        return Ok(ExitCode::SUCCESS);
    };
    let (seq, text) = (seq_of(first).unwrap_or_default(), |name: &str| first.get(name).map(Value::to_string));
    let (attempts, reason) = (text("attempts").unwrap_or_default(), text("reason").unwrap_or_default());
    let why = format!("message {seq} cannot be applied after {attempts} attempts: {reason}");
    if skipped.is_some_and(|skipped| skipped != seq) {
        // It is skipped, as requested; that the next one is stuck as well is another decision.
        note!("decided at {position} and carried out; {} messages are still parked: {why}", left.len());
        return Ok(ExitCode::SUCCESS);
    }
    bail!("decided at {position} and carried out, and {} messages are still parked: {why}", left.len());
}

/// Whether the pipeline carries out the decision in time.
async fn is_carried_out(
    api: &Api,
    whose: &Whose,
    pipeline: Pipeline,
    decided: Position,
    patience: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let answer = api.get(&format!("/v1/organizations/{}/projections", whose.org)).await?;
        let rows = answer.pointer("/data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let of_pipeline = rows.iter().find(|row| row.get("pipeline") == Some(&json!(pipeline)));
        let place = of_pipeline.and_then(|row| row.get("position")?.as_str()?.parse::<Position>().ok());
        if place.is_some_and(|place| place.seq >= decided.seq) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL).await;
    }
}

/// Returns the parked messages of the aggregate, in the order of the stream.
async fn parked(api: &Api, whose: &Whose, what: &What) -> anyhow::Result<Vec<Value>> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/organizations/{}/parked?limit=100{cursor}", whose.org)).await?;
        let rows = page.pointer("/data").and_then(Value::as_array).into_iter().flatten();
        let is_its = |row: &&Value| {
            row.get("pipeline") == Some(&json!(what.pipeline)) && row.get("aggregate") == Some(&json!(what.aggregate))
        };
        found.extend(rows.filter(is_its).cloned());
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(next) if found.len() < MOST => cursor = format!("&cursor={next}"),
            _ => return Ok(found),
        }
    }
}

fn seq_of(row: &Value) -> Option<u64> {
    row.get("seq").and_then(Value::as_u64)
}

fn print_parked(answer: &Value) -> anyhow::Result<()> {
    let rows = answer.pointer("/data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(say!("nothing is parked")?);
    }
    let head = ["pipeline", "seq", "aggregate", "state", "attempts", "parked_at", "reason"];
    Ok(say!("{}", rows_table(rows, &head, &[1, 4]).trim_fmt())?)
}
