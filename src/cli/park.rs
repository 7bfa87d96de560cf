//! `orgstream park`: events that could not be applied, and what is decided about them.

use clap::Subcommand;
use orgstream_events::Pipeline;
use serde_json::{Value, json};

use super::{client::Api, table::rows_table};
use crate::config::ClientArgs;

/// See, retry or skip events that could not be applied.
///
/// An event that a pipeline cannot apply is parked together with the later events of the same aggregate; everything else
/// of the organization goes on. What is decided here travels in the organization's own stream, so it is audited.
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
    /// Which pipeline: `read_models` or `audit`.
    #[arg(long, value_name = "NAME", default_value = "read_models")]
    pipeline: Pipeline,
    /// The aggregate, as `park list` shows it: `record.res_…`.
    #[arg(value_name = "AGGREGATE")]
    aggregate: String,
}

impl What {
    fn command(&self) -> anyhow::Result<Value> {
        let (aggregate, id) = self
            .aggregate
            .split_once('.')
            .ok_or_else(|| anyhow::anyhow!("{:?} is no aggregate: it looks like record.res_…", self.aggregate))?;
        Ok(json!({"pipeline": self.pipeline, "aggregate": {"type": aggregate, "id": id}}))
    }
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::List { whose, json } => {
            let api = Api::new(&whose.client)?;
            let answer = api.get(&format!("/v1/organizations/{}/parked", whose.org)).await?;
            if json {
                println!("{answer}");
            } else {
                print_parked(&answer);
            }
        }
        Job::Retry { whose, what } => decide(&whose, "retry", what.command()?).await?,
        Job::Skip { whose, what, seq, reason } => {
            let mut command = what.command()?;
            if let Some(fields) = command.as_object_mut() {
                fields.insert("seq".to_owned(), json!(seq));
                fields.insert("reason".to_owned(), json!(reason));
            }
            decide(&whose, "skip", command).await?;
        }
    }
    Ok(())
}

async fn decide(whose: &Whose, verb: &str, command: Value) -> anyhow::Result<()> {
    let api = Api::new(&whose.client)?;
    let answer = api.post(&format!("/v1/organizations/{}/parked/{verb}", whose.org), &command).await?;
    let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
    eprintln!("decided at {position}; `orgstream park list` shows what is still parked");
    Ok(())
}

fn print_parked(answer: &Value) {
    let rows = answer.pointer("/data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        println!("nothing is parked");
        return;
    }
    let head = ["pipeline", "seq", "aggregate", "state", "attempts", "parked_at", "reason"];
    println!("{}", rows_table(rows, &head, &[1, 4]).trim_fmt());
}
