//! `orgstream plan`: an organization's plan.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{client::Api, config::ClientArgs, terminal::out::note};

/// Put an organization on a plan.
///
/// What a plan is worth is said to the workers (`orgstream work --plan-weight`), which go by it from the organization's
/// next transaction on. This needs the platform operator's token in `ORGSTREAM_API_KEY`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// The plan, for example `enterprise`; organizations begin with `standard`, and personal ones with `trial`.
    #[arg(value_name = "PLAN")]
    plan: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let request = api.request(Method::PUT, &format!("/v1/organizations/{}/plan", args.org));
    let answer: Value = api.send(request.json(&json!({"plan": args.plan}))).await?.json().await?;
    if answer.pointer("/events").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        note!("{} was on the plan {} already", args.org, args.plan);
    } else {
        let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
        note!("{} is on the plan {} from {position} on", args.org, args.plan);
    }
    let plans = api.get("/v1/plans").await?;
    let mut published = plans.get("data").and_then(Value::as_array).into_iter().flatten();
    if !published.any(|plan| plan.get("plan").and_then(Value::as_str) == Some(&args.plan)) {
        note!("the plan {} was never published, so it includes nothing: see `orgstream plans list`", args.plan);
    }
    Ok(())
}
