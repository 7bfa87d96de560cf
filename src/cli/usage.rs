//! `orgstream usage` and `orgstream limits`: an organization's usage and limits.

use std::{io::IsTerminal as _, num::NonZeroU32, time::Duration};

use orgstream_events::{Quotas, Timestamp};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        chart::{self, Bar},
        out::{note, say},
        table::table,
    },
};

/// Show what an organization uses, and what it may use; and a chart of what it used of each meter, by day or hour in UTC.
///
/// The chart needs the permission account:read. A bar of a chart is as long as the largest one allows; the figure beside it is
/// exact. Usage belongs to the moment at which it was reserved.
#[derive(clap::Args)]
pub(crate) struct UsageArgs {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The length of a step of the chart; `day` without it.
    #[arg(long, value_name = "STEP", value_parser = ["hour", "day"])]
    step: Option<String>,
    /// The first moment of the chart (RFC 3339, UTC), at which a step begins; the beginning of the month without it.
    #[arg(long, value_name = "TIME")]
    from: Option<Timestamp>,
    /// The first moment after the chart, at which a step begins; the end of the current step without it.
    #[arg(long, value_name = "TIME")]
    to: Option<Timestamp>,
    /// By what bars are divided: names out of `kind`, `model` and `principal`, separated by commas.
    #[arg(long, value_name = "NAMES")]
    group_by: Option<String>,
    /// Show it again every two seconds until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print the API's answers as they are: one object, in which `series` has what the chart is of.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn show(args: UsageArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org.clone()).await?;
    let usage = format!("/v1/organizations/{org}/usage");
    let series = format!("{usage}/series?{}", query(&args));
    loop {
        let mut answer = api.get(&usage).await?;
        // A credential may read the counts and not the account.
        let over_time = match api.request(Method::GET, &series).send().await.map_err(|error| api.unreachable(error))? {
            refused if refused.status() == StatusCode::FORBIDDEN => None,
            shown if shown.status().is_success() => Some(shown.json::<Value>().await?),
            failed => return Err(Api::problem(failed).await),
        };
        if args.json {
            if let (Some(series), Some(fields)) = (over_time, answer.as_object_mut()) {
                fields.insert("series".to_owned(), series);
            }
            say!("{answer}")?;
        } else {
            if args.watch && std::io::stdout().is_terminal() {
                say!("{CLEAR}")?;
            }
            counts(&answer)?;
            match &over_time {
                Some(series) => charts(series)?,
                None => note!("this credential has no account:read, so there is no chart"),
            }
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Clears the screen and moves to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";
const AGAIN: Duration = Duration::from_secs(2);

fn query(args: &UsageArgs) -> String {
    let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let parameters = [
        ("step", args.step.clone()),
        ("from", time(args.from)),
        ("to", time(args.to)),
        ("group_by", args.group_by.clone()),
    ];
    let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
    // Of what these can be, only this is read as something else.
    given.map(|(name, value)| format!("{name}={}", value.replace('&', "%26"))).collect::<Vec<_>>().join("&")
}

fn counts(answer: &Value) -> anyhow::Result<()> {
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

/// Prints a chart for each meter.
fn charts(series: &Value) -> anyhow::Result<()> {
    let list = |name: &str| series.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let step = text(series, "step");
    for total in list("totals") {
        let (meter, amount) = (text(total, "meter"), text(total, "amount"));
        say!("\n{meter} by {step} (UTC), {amount} in all")?;
        let of_meter = list("data").iter().filter(|row| text(row, "meter") == meter);
        let bars: Vec<Bar> = of_meter.map(|row| bar(row, &step)).collect();
        for line in chart::bars(&bars, chart::has_colours()) {
            say!("{line}")?;
        }
    }
    if list("totals").is_empty() {
        say!("\nnothing was used from {} to {}", text(series, "from"), text(series, "to"))?;
    }
    Ok(())
}

fn bar(row: &Value, step: &str) -> Bar {
    let text = |pointer: &str| row.pointer(pointer).and_then(Value::as_str);
    let begins = text("/begins_at").unwrap_or_default();
    // 2026-03-01, or 2026-03-01 17:00.
    let (day, time) = begins.split_once('T').unwrap_or((begins, ""));
    let hour = time.get(..5).filter(|_| step == "hour");
    let names = [text("/kind"), text("/model"), text("/principal/id")];
    let label: Vec<&str> = [Some(day), hour].into_iter().chain(names).flatten().collect();
    let amount = text("/amount").unwrap_or_default();
    Bar { label: label.join(" "), value: amount.parse().unwrap_or_default(), text: amount.to_owned() }
}

/// Give an organization limits and quotas of its own, or those of its plan again.
///
/// Those that are not named are what its plan says. Less than there is takes nothing away. Every process of the API goes by them within a second or so. This needs the platform operator's token in
/// `ORGSTREAM_API_KEY`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)))]
pub(crate) struct LimitsArgs {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Commands a second that are taken on average; ten seconds of that at once after a pause.
    #[arg(long, value_name = "N", group = "limits")]
    commands_per_second: Option<NonZeroU32>,
    /// Reads a second that are taken on average; ten seconds of that at once after a pause.
    #[arg(long, value_name = "N", group = "limits")]
    reads_per_second: Option<NonZeroU32>,
    /// Open holds of the account at the same time.
    #[arg(long, value_name = "N", group = "limits")]
    concurrency: Option<NonZeroU32>,
    /// Members.
    #[arg(long, value_name = "N", group = "limits")]
    members: Option<u32>,
    /// API keys that are neither revoked nor expired.
    #[arg(long, value_name = "N", group = "limits")]
    api_keys: Option<u32>,
    /// Addresses that the audit log is posted to: 0 or 1.
    #[arg(long, value_name = "N", group = "limits")]
    webhooks: Option<u32>,
    /// Bytes of the content of records that are not archived.
    #[arg(long, value_name = "N", group = "limits")]
    storage_bytes: Option<u64>,
    /// What its plan says (`orgstream plans show`, and `orgstream serve --plan-commands-per-second`).
    #[arg(long, group = "limits", conflicts_with_all = [
        "commands_per_second", "reads_per_second", "concurrency", "members", "api_keys", "webhooks", "storage_bytes",
    ])]
    as_plan: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn change(args: LimitsArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let request = api.request(Method::PUT, &format!("/v1/organizations/{}/limits", args.org));
    let LimitsArgs { commands_per_second, reads_per_second, concurrency, .. } = args;
    let LimitsArgs { members, api_keys, webhooks, storage_bytes, .. } = args;
    let quotas = Quotas { members, api_keys, webhooks, storage_bytes };
    let body = json!({
        "commands_per_second": commands_per_second,
        "reads_per_second": reads_per_second,
        "concurrency": concurrency,
        "quotas": quotas,
    });
    let answer: Value = api.send(request.json(&body)).await?.json().await?;
    let own = [
        commands_per_second.map(|rate| format!("{rate} commands a second")),
        reads_per_second.map(|rate| format!("{rate} reads a second")),
        concurrency.map(|holds| format!("{holds} open holds")),
        members.map(|count| format!("{count} members")),
        api_keys.map(|count| format!("{count} API keys")),
        webhooks.map(|count| format!("{count} webhooks")),
        storage_bytes.map(|bytes| format!("{bytes} bytes of records")),
    ];
    let own: Vec<String> = own.into_iter().flatten().collect();
    let what = if own.is_empty() { "what its plan says".to_owned() } else { own.join(", ") };
    if answer.pointer("/events").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        note!("{} had that already: {what}", args.org);
    } else {
        let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
        note!("the limits of {} are {what} from {position} on", args.org);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_its_step_and_by_what_it_is_divided() {
        let row = json!({"begins_at": "2026-03-01T17:00:00.000Z", "meter": "tokens", "kind": null, "model": "small",
            "principal": {"type": "api_key", "id": "key_1"}, "amount": "12.5", "uses": 2});
        let hour = bar(&row, "hour");
        assert_eq!(
            (hour.label.as_str(), hour.value, hour.text.as_str()),
            ("2026-03-01 17:00 small key_1", 12.5, "12.5")
        );
        assert_eq!(bar(&row, "day").label, "2026-03-01 small key_1");
    }
}
