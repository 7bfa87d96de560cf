//! `orgstream plans`: the plans of the platform, and their next versions.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use orgstream_events::{PLATFORM_ORG, PlanName};
use serde_json::{Value, json};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::table,
    },
};

/// See the plans of the platform, and publish the next version of one.
///
/// A plan says what its organizations are entitled to: amounts of a month by meter, limits, days of a trial. `orgstream plan` puts
/// an organization on one.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show the last version of every plan.
    List {
        /// One JSON object a line, for programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print a plan as it is published: `orgstream plans publish` takes what this prints.
    Show {
        /// The plan, for example `premium`.
        #[arg(value_name = "PLAN")]
        plan: PlanName,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Publish the next version of a plan; organizations on it have it within a second. For operators.
    ///
    /// The file is JSON: {"plan": "premium", "definition": {"title": "Premium", "meters": {"tokens": {"included": "10000000",
    /// "overage": "0", "cap": "20000000"}}, "limits": {"concurrency": 200}}}. What is left out has no limit, or is not included.
    Publish {
        /// The file with the plan.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::List { json, client } => list(&Api::new(&client)?, json).await,
        Job::Show { plan, client } => {
            let answer = Api::new(&client)?.get(&format!("/v1/plans/{plan}")).await?;
            let shown = json!({"plan": answer.get("plan"), "definition": answer.get("definition")});
            say!("{}", serde_json::to_string_pretty(&shown)?)?;
            let version = answer.get("version").and_then(Value::as_u64).unwrap_or_default();
            note!("version {version} of {plan}");
            Ok(())
        }
        Job::Publish { file, client } => publish(&Api::new(&client)?, &file).await,
    }
}

async fn publish(api: &Api, file: &PathBuf) -> anyhow::Result<()> {
    let text = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let mut command: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    let Some(fields) = command.as_object_mut() else {
        bail!("{} has no plan: {{\"plan\": …, \"definition\": …}}", file.display())
    };
    fields.insert("type".to_owned(), json!("publish_plan"));
    let name = fields.get("plan").and_then(Value::as_str).unwrap_or_default().to_owned();
    let answer = api.post(&format!("/v1/organizations/{PLATFORM_ORG}/commands"), &command).await?;
    if answer.pointer("/events").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        note!("{name} was published as it is already");
    } else {
        note!("version {} of {name} is published", answer.get("version").and_then(Value::as_u64).unwrap_or_default());
    }
    Ok(())
}

async fn list(api: &Api, json: bool) -> anyhow::Result<()> {
    let answer = api.get("/v1/plans").await?;
    let plans = answer.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if json {
        return plans.iter().try_for_each(|plan| Ok(say!("{plan}")?));
    }
    let mut rows = table(&["plan", "version", "title", "included", "concurrency", "trial_days"], &[1, 4, 5]);
    for plan in plans {
        let text = |pointer: &str| match plan.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "-".to_owned(),
            Some(other) => other.to_string(),
        };
        let included = included(plan);
        rows.add_row([
            text("/plan"),
            text("/version"),
            text("/definition/title"),
            included,
            text("/definition/limits/concurrency"),
            text("/definition/trial_days"),
        ]);
    }
    Ok(say!("{}", rows.trim_fmt())?)
}

/// Returns what a plan includes in a month, meter by meter.
fn included(plan: &Value) -> String {
    let meters = plan.pointer("/definition/meters").and_then(Value::as_object);
    let of_each = meters.into_iter().flatten().map(|(meter, terms)| {
        let included = terms.get("included").and_then(Value::as_str).unwrap_or("0");
        format!("{included} {meter}")
    });
    let all: Vec<String> = of_each.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}
