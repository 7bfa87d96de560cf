//! `orgstream account`: what an organization may use, its credits, and every change of its balances.

use std::pin::pin;

use anyhow::Context;
use clap::Subcommand;
use futures_util::TryStreamExt;
use orgstream_events::{AccountEvent, Amount, MeterName, Timestamp, TopUpRule};
use orgstream_verifier::account::{Ledger, Line};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::{rows_table, table},
    },
};

/// How long the audit log may take to have what the stream has, in seconds.
const WAIT_SECONDS: u32 = 30;
/// The columns of the ledger.
const COLUMNS: [&str; 10] = ["at", "meter", "what", "amount", "balance", "source", "kind", "model", "by", "position"];

/// See what an organization may use, credit its account, and list every change of its balances.
///
/// Amounts are in units of a meter (`tokens`, `ecu`), with at most six digits after the point. What is used comes as commands
/// (`reserve_usage`, `settle_hold`, `charge_usage`); see docs/how-to/use-an-account.md.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show the balance of each meter, exact at the moment, and each limit with what is left of it.
    Show {
        /// The organization, by id or slug; by default the one that the key belongs to.
        #[arg(long, value_name = "ORG")]
        org: Option<String>,
        /// Print the API's answer as it is.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Grant an organization an amount. For operators.
    Credit(CreditArgs),
    /// Buy more of a meter by itself when little is left, or stop that.
    ///
    /// One top-up is open at a time: the smallest multiple of --amount that fills the gap, at the plan's price for that. After one
    /// that was declined the next is requested an hour later at the earliest, and twice as late each time.
    TopUp(TopUpArgs),
    /// List every change of the balances, the oldest first: what was granted, used, lapsed or withdrawn, and the balance after it.
    ///
    /// The balance of a meter is what is left and held of it. It is computed from the events of the audit log, so this needs the
    /// permission audit:read; `orgstream-verify account` does the same with an exported log, without a server.
    Ledger(LedgerArgs),
}

/// When more is bought, and how much.
#[derive(clap::Args)]
pub(crate) struct TopUpArgs {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// The meter, for example `tokens`.
    #[arg(value_name = "METER")]
    meter: MeterName,
    /// More is bought when less than this is available, not counting what is paid for afterwards.
    #[arg(long, value_name = "AMOUNT", requires = "amount", required_unless_present = "off")]
    below: Option<Amount>,
    /// The amount that is bought.
    #[arg(long, value_name = "AMOUNT", requires = "below")]
    amount: Option<Amount>,
    /// The most that is bought in a calendar month (UTC); no limit without it.
    #[arg(long, value_name = "AMOUNT", requires = "below")]
    monthly_limit: Option<Amount>,
    /// Buy nothing by itself any more.
    #[arg(long, conflicts_with = "below")]
    off: bool,
    #[command(flatten)]
    client: ClientArgs,
}

/// What is granted, and why.
#[derive(clap::Args)]
pub(crate) struct CreditArgs {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// The meter, for example `ecu`.
    #[arg(value_name = "METER")]
    meter: MeterName,
    /// The amount in units of the meter, for example `100` or `12.5`.
    #[arg(value_name = "AMOUNT")]
    amount: Amount,
    /// Why; it stays in the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// When what is left of it lapses (RFC 3339); never without it.
    #[arg(long, value_name = "TIME")]
    expires_at: Option<Timestamp>,
    /// A key of this credit: with the same key it is granted once, however often this is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Which changes, and how they are printed.
#[derive(clap::Args)]
pub(crate) struct LedgerArgs {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// Changes of this meter only.
    #[arg(long, value_name = "METER")]
    meter: Option<MeterName>,
    /// Changes at this time or later (RFC 3339). Balances count everything before it.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Print comma-separated values with a head, for spreadsheets.
    #[arg(long, conflicts_with = "jsonl")]
    csv: bool,
    /// Print one JSON object a line, for programs.
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Show { org, json, client } => show(&Api::new(&client)?, org, json).await,
        Job::Credit(args) => credit(args).await,
        Job::TopUp(args) => top_up(args).await,
        Job::Ledger(args) => ledger(args).await,
    }
}

async fn show(api: &Api, org: Option<String>, json: bool) -> anyhow::Result<()> {
    let org = api.org(org).await?;
    let answer = api.get(&format!("/v1/organizations/{org}/account")).await?;
    if json {
        return Ok(say!("{answer}")?);
    }
    let meters = answer.get("meters").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if meters.is_empty() {
        say!("the plan has no meters, and nothing was granted")?;
    } else {
        let head =
            ["meter", "available", "held", "spent", "granted", "included", "used_this_month", "cap", "resets_at"];
        say!("{}", rows_table(meters, &head, &[1, 2, 3, 4, 5, 6, 7]).trim_fmt())?;
    }
    let limits = api.get(&format!("/v1/organizations/{org}/limits")).await?;
    let limits = limits.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let head = ["name", "meter", "limit", "used", "held", "available", "source", "resets_at"];
    say!("\n{}", rows_table(limits, &head, &[2, 3, 4, 5]).trim_fmt())?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("-");
    note!("{} is on the plan {}, at {}", text("org_id"), text("plan"), text("exact_at"));
    if answer.get("billing_required") == Some(&Value::Bool(true)) {
        note!("its trial ended at {}: nothing is used before a paid plan is chosen", text("trial_ends_at"));
    }
    for meter in meters {
        let text = |pointer: &str| meter.pointer(pointer).and_then(Value::as_str);
        let Some(name) = text("/meter") else { continue };
        if let (Some(below), Some(amount)) = (text("/top_up/rule/below"), text("/top_up/rule/amount")) {
            note!("{name}: {amount} are bought when fewer than {below} are available");
        }
        if let (Some(amount), Some(price)) = (text("/top_up/open/amount"), text("/top_up/open/price")) {
            note!("{name}: a top-up of {amount} for {price} is to be paid");
        }
        if let Some(at) = text("/top_up/retry_at") {
            note!("{name}: the last top-up was declined; the next one may be requested at {at}");
        }
    }
    Ok(())
}

async fn top_up(args: TopUpArgs) -> anyhow::Result<()> {
    let TopUpArgs { org, meter, below, amount, monthly_limit, off: _, client } = args;
    let api = Api::new(&client)?;
    let org = api.org(org).await?;
    let rule = below.zip(amount).map(|(below, amount)| TopUpRule { below, amount, monthly_limit });
    let command = json!({"type": "change_top_up", "meter": meter, "rule": rule});
    api.post(&format!("/v1/organizations/{org}/commands"), &command).await?;
    match rule {
        Some(TopUpRule { below, amount, .. }) => {
            note!("{amount} {meter} are bought when fewer than {below} are available");
        }
        None => note!("no {meter} are bought by themselves any more"),
    }
    Ok(())
}

async fn credit(args: CreditArgs) -> anyhow::Result<()> {
    let CreditArgs { org, meter, amount, reason, expires_at, idempotency_key, client } = args;
    let api = Api::new(&client)?;
    let mut command = json!({"type": "credit_account", "meter": meter, "amount": amount, "reason": reason});
    if let (Some(until), Some(fields)) = (expires_at, command.as_object_mut()) {
        fields.insert("expires_at".to_owned(), json!(until));
    }
    let request = api.request(Method::POST, &format!("/v1/organizations/{org}/commands")).json(&command);
    let request = idempotency_key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
    let answer: Value = api.send(request).await?.json().await?;
    if answer.get("replayed") == Some(&Value::Bool(true)) {
        note!("{org} was granted {amount} {meter} before, under this key");
    } else {
        let position = answer.get("position").and_then(Value::as_str).unwrap_or_default();
        note!("{org} was granted {amount} {meter} at {position}");
    }
    Ok(())
}

async fn ledger(args: LedgerArgs) -> anyhow::Result<()> {
    let LedgerArgs { org, meter, since, csv, jsonl, client } = args;
    let api = Api::new(&client)?;
    let org = api.org(org).await?;
    let request = api.request(Method::GET, &format!("/v1/organizations/{org}/events"));
    let account = api.get(&format!("/v1/organizations/{org}/account")).await?;
    // Nothing was ever granted or used where the account is at the beginning.
    let head = account.get("exact_at").and_then(Value::as_str).filter(|position| !position.ends_with(":0"));
    let answer = match head {
        Some(head) => api.send_at(request, head, WAIT_SECONDS).await?,
        None => api.send(request).await?,
    };
    let body = answer.bytes_stream().map_err(std::io::Error::other);
    let reader = pin!(StreamReader::new(body));
    let mut lines = reader.lines();
    let (mut ledger, mut rows) = (Ledger::default(), table(&COLUMNS, &[3, 4]));
    if csv {
        say!("{}", COLUMNS.join(","))?;
    }
    let mut count = 0_u64;
    while let Some(line) = lines.next_line().await.context("the answer broke off: run this again")? {
        let event: Value = serde_json::from_str(&line).context("the API sent a line that is no event")?;
        let Some(account) = event_of(&event)? else { continue };
        let change = match ledger.apply(&account) {
            Ok(change) => change,
            Err(fault) => {
                let position = event.get("position").and_then(Value::as_str).unwrap_or_default();
                note!("the event at {position} does not follow from those before it: {fault}");
                None
            }
        };
        let is_asked = |line: &Line| {
            meter.as_ref().is_none_or(|meter| line.meter == *meter) && since.is_none_or(|since| since <= line.at)
        };
        let Some(change) = change.filter(is_asked) else { continue };
        let row = row(&change, &event);
        count += 1;
        if jsonl {
            say!("{}", Value::Object(COLUMNS.iter().map(|name| (*name).to_owned()).zip(row).collect()))?;
        } else if csv {
            let cells: Vec<String> = row.iter().map(|cell| csv_cell(cell.as_str().unwrap_or_default())).collect();
            say!("{}", cells.join(","))?;
        } else {
            rows.add_row(row.iter().map(|cell| cell.as_str().unwrap_or("-").to_owned()));
        }
    }
    if !csv && !jsonl && count > 0 {
        say!("{}", rows.trim_fmt())?;
    }
    note!("{count} changes of {org}");
    Ok(())
}

/// Returns the event of the account that a line is, if it is one.
fn event_of(line: &Value) -> anyhow::Result<Option<AccountEvent>> {
    fn body<T: DeserializeOwned>(line: &Value) -> anyhow::Result<T> {
        let data = line.get("data").context("an event of the account has no data")?;
        T::deserialize(data).context("an event of the account was written by a newer version of orgstream")
    }
    let name = line.get("type").and_then(Value::as_str).unwrap_or_default();
    Ok(Some(match name {
        "account.granted" => AccountEvent::Granted(body(line)?),
        "account.allowance_changed" => AccountEvent::AllowanceChanged(body(line)?),
        "account.bucket_closed" => AccountEvent::BucketClosed(body(line)?),
        "account.reserved" => AccountEvent::Reserved(body(line)?),
        "account.extended" => AccountEvent::Extended(body(line)?),
        "account.settled" => AccountEvent::Settled(body(line)?),
        "account.released" => AccountEvent::Released(body(line)?),
        "account.holds_expired" => AccountEvent::HoldsExpired(body(line)?),
        "account.threshold_crossed" => AccountEvent::ThresholdCrossed(body(line)?),
        "account.top_up_changed" => AccountEvent::TopUpChanged(body(line)?),
        "account.top_up_requested" => AccountEvent::TopUpRequested(body(line)?),
        "account.top_up_paid" => AccountEvent::TopUpPaid(body(line)?),
        "account.top_up_declined" => AccountEvent::TopUpDeclined(body(line)?),
        _ => return Ok(None),
    }))
}

/// Returns the cells of a change, in the order of the columns.
fn row(change: &Line, event: &Value) -> [Value; COLUMNS.len()] {
    let sign = if change.added { "" } else { "-" };
    [
        json!(change.at),
        json!(change.meter),
        json!(change.what),
        json!(format!("{sign}{}", change.amount)),
        json!(change.balance),
        json!(change.source),
        json!(change.kind),
        json!(change.model),
        json!(change.by),
        event.get("position").cloned().unwrap_or_default(),
    ]
}

/// Quotes a cell where it must be, and keeps spreadsheets from taking a caller's text for a formula.
fn csv_cell(text: &str) -> String {
    let is_number = text.parse::<f64>().is_ok();
    let is_formula = !is_number && text.starts_with(['=', '+', '-', '@', '\t']);
    let text = if is_formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_never_formulas() {
        for (text, cell) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("-12.5", "-12.5"),
            ("=1+1", "'=1+1"),
            ("@x", "'@x"),
        ] {
            assert_eq!(csv_cell(text), cell);
        }
    }

    #[test]
    fn every_event_of_an_account_is_read_back_from_its_json() {
        let data = json!({"at": "2026-03-01T00:00:00.000Z", "bucket": 1, "meter": "ecu", "source": "grant", "amount": "10",
            "from": "2026-03-01T00:00:00.000Z"});
        let read = event_of(&json!({"type": "account.granted", "data": data})).unwrap();
        assert!(matches!(read, Some(AccountEvent::Granted(_))), "{read:?}");
        assert!(event_of(&json!({"type": "account.granted", "data": {}})).is_err());
        assert!(event_of(&json!({"type": "record.created", "data": {}})).unwrap().is_none());
    }
}
