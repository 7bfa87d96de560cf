//! `orgstream invoices`: what an organization owes, and what an operator does about it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use orgstream_events::{InvoiceNumber, Month};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::rows_table,
    },
};

/// See what an organization owes; close a month, note a payment, void an invoice, or end billing.
///
/// What changes something needs the platform operator's token in `ORGSTREAM_API_KEY`. Each may be repeated: it has one effect.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show the last 100 invoices, the newest first.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Show an invoice with its lines.
    Show {
        /// The number of the invoice.
        #[arg(value_name = "NUMBER")]
        number: InvoiceNumber,
        /// Write it to this file as a PDF.
        #[arg(long, value_name = "FILE")]
        pdf: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Close a month, as the program does by itself: a draft when it is over, final a day later.
    Close {
        /// The month, like 2026-03.
        #[arg(value_name = "MONTH")]
        month: Month,
        #[command(flatten)]
        common: Common,
    },
    /// Note that an invoice was paid.
    Pay {
        /// The number of the invoice.
        #[arg(value_name = "NUMBER")]
        number: InvoiceNumber,
        /// The name that the payment has where it was made.
        #[arg(long, value_name = "TEXT")]
        payment: String,
        #[command(flatten)]
        common: Common,
    },
    /// Void an invoice: it is not owed, and what it bills is not billed again.
    Void {
        /// The number of the invoice.
        #[arg(value_name = "NUMBER")]
        number: InvoiceNumber,
        /// Why; it stays in the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
    /// Put everything that is owed on a final invoice now, and charge no fee for later months.
    EndBilling {
        /// Why; it stays in the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
pub(crate) struct Common {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// Print the API's answer as it is.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    let (common, command) = match job {
        Job::List { common } => return list(common).await,
        Job::Show { number, pdf: Some(file), common } => return print(number, &file, common).await,
        Job::Show { number, pdf: None, common } => return show(number, common).await,
        Job::Close { month, common } => (common, json!({"type": "close_month", "month": month})),
        Job::Pay { number, payment, common } => {
            (common, json!({"type": "mark_invoice_paid", "number": number, "payment": payment}))
        }
        Job::Void { number, reason, common } => {
            (common, json!({"type": "void_invoice", "number": number, "reason": reason}))
        }
        Job::EndBilling { reason, common } => (common, json!({"type": "end_billing", "reason": reason})),
    };
    let api = Api::new(&common.client)?;
    let org = api.org(common.org).await?;
    let answer = api.post(&format!("/v1/organizations/{org}/commands"), &command).await?;
    if common.json {
        say!("{answer}")?;
        return Ok(());
    }
    let events: Vec<&str> = texts(&answer, "/events").collect();
    if events.is_empty() {
        note!("nothing is to be done: it is as asked already, or nothing is owed");
    } else {
        note!("{}", events.join(", "));
    }
    Ok(())
}

async fn list(common: Common) -> anyhow::Result<()> {
    let api = Api::new(&common.client)?;
    let answer = api.get(&format!("/v1/organizations/{}/invoices?limit=100", api.org(common.org).await?)).await?;
    if common.json {
        say!("{answer}")?;
        return Ok(());
    }
    let rows: Vec<Value> = answer.pointer("/data").and_then(Value::as_array).cloned().unwrap_or_default();
    if rows.is_empty() {
        note!("there is no invoice");
        return Ok(());
    }
    let head = ["number", "month", "status", "total", "currency", "final_at", "payment"];
    say!("{}", rows_table(&rows, &head, &[0, 3]).trim_fmt())?;
    Ok(())
}

async fn show(number: InvoiceNumber, common: Common) -> anyhow::Result<()> {
    let api = Api::new(&common.client)?;
    let org = api.org(common.org).await?;
    let answer = api.get(&format!("/v1/organizations/{org}/invoices/{number}")).await?;
    if common.json {
        say!("{answer}")?;
        return Ok(());
    }
    let rows: Vec<Value> = answer.pointer("/lines").and_then(Value::as_array).cloned().unwrap_or_default();
    let head = ["type", "month", "meter", "source", "quantity", "price_per_million", "amount"];
    say!("{}", rows_table(&rows, &head, &[4, 5, 6]).trim_fmt())?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or("-");
    note!("invoice {number} of {}: {}, {} {}", text("month"), text("status"), text("total"), text("currency"));
    Ok(())
}

async fn print(number: InvoiceNumber, file: &Path, common: Common) -> anyhow::Result<()> {
    let api = Api::new(&common.client)?;
    let org = api.org(common.org).await?;
    let request = api.request(Method::GET, &format!("/v1/organizations/{org}/invoices/{number}/pdf"));
    let bytes = api.send(request).await?.bytes().await.map_err(|error| api.unreachable(error))?;
    std::fs::write(file, &bytes).with_context(|| format!("{} cannot be written", file.display()))?;
    note!("invoice {number} is in {}", file.display());
    Ok(())
}

fn texts<'a>(answer: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    answer.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}
