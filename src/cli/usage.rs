//! `orgstream usage` and `orgstream limits`: an organization's usage and limits.

use std::num::NonZeroU32;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::table,
    },
};

/// Show what an organization uses, and what it may use.
#[derive(clap::Args)]
pub(crate) struct UsageArgs {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// Print the API's answer as it is.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn show(args: UsageArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let answer = api.get(&format!("/v1/organizations/{}/usage", api.org(args.org).await?)).await?;
    if args.json {
        say!("{answer}")?;
        return Ok(());
    }
    let text = |pointer: &str| match answer.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".to_owned(),
    };
    let commands = answer.get("commands").is_some_and(Value::is_object).then(|| {
        let (rate, burst, whose) = ("/commands/per_second", "/commands/burst", "/commands/limited_by");
        format!("{} a second, {} at once (by its {})", text(rate), text(burst), text(whose))
    });
    let mut rows = table(&["what", "uses", "may use"], &[1]);
    rows.add_row(["events", &text("/events/total"), "-"]);
    rows.add_row(["events this month", &text("/events/this_month"), "-"]);
    rows.add_row(["commands", "-", commands.as_deref().unwrap_or("as many as it likes")]);
    rows.add_row(["members", &text("/members"), "-"]);
    rows.add_row(["API keys", &text("/api_keys"), "-"]);
    say!("{}", rows.trim_fmt())?;
    note!("{} is on the plan {}", text("/org_id"), text("/plan"));
    Ok(())
}

/// Give an organization limits of its own, or those of its plan again.
///
/// Every process of the API goes by them within a second or so. This needs the platform operator's token in
/// `ORGSTREAM_API_KEY`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("limits").required(true)))]
pub(crate) struct LimitsArgs {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Commands a second that are taken on average; ten seconds of that at once after a pause.
    #[arg(long, value_name = "N", group = "limits")]
    commands_per_second: Option<NonZeroU32>,
    /// What its plan says (`orgstream serve --plan-commands-per-second`).
    #[arg(long, group = "limits")]
    as_plan: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn change(args: LimitsArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let request = api.request(Method::PUT, &format!("/v1/organizations/{}/limits", args.org));
    let body = json!({"commands_per_second": args.commands_per_second});
    let answer: Value = api.send(request.json(&body)).await?.json().await?;
    let what =
        args.commands_per_second.map_or("what its plan says".to_owned(), |rate| format!("{rate} commands a second"));
    if answer.pointer("/events").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        note!("{} had that already: {what}", args.org);
    } else {
        let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
        note!("{} may send {what} from {position} on", args.org);
    }
    Ok(())
}
