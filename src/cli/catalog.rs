//! `orgstream catalog`: what the platform publishes for everybody.

use anyhow::bail;
use clap::Subcommand;
use orgstream_events::RecordId;
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

/// The maximum number of items that are listed.
const MOST: usize = 10_000;

/// See, publish or withdraw items of the catalog.
///
/// An item is a record of the platform's own organization. What is published is a version that everybody can read, without a
/// credential, and that never changes. These commands need the platform operator's token in `ORGSTREAM_API_KEY`.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show every item that was ever published.
    List {
        /// One JSON object a line, for programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Publish the platform's record as it is now, as the next version of the item.
    Publish {
        /// The record of the platform's organization.
        #[arg(value_name = "RECORD")]
        id: RecordId,
        /// The version that the record must have, so that nothing is published but what was looked at.
        #[arg(long, value_name = "N")]
        record_version: Option<u64>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take an item out of the catalog, with all its versions. The record stays.
    Withdraw {
        /// The item, by the id of its record.
        #[arg(value_name = "RECORD")]
        id: RecordId,
        /// Why; it stays in the platform's audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::List { json, client } => list(&Api::new(&client)?, json).await,
        Job::Publish { id, record_version, client } => {
            let api = Api::new(&client)?;
            let query = record_version.map(|version| format!("?record_version={version}")).unwrap_or_default();
            let request = api.request(Method::POST, &format!("/v1/catalog-items/{id}/publish{query}"));
            let answer: Value = api.send(request).await?.json().await?;
            if is_unchanged(&answer) {
                note!("{id} was published as it is already");
            } else {
                note!("{id} is published");
            }
            Ok(())
        }
        Job::Withdraw { id, reason, client } => {
            let api = Api::new(&client)?;
            let answer = api.post(&format!("/v1/catalog-items/{id}/withdraw"), &json!({"reason": reason})).await?;
            if is_unchanged(&answer) {
                note!("{id} was withdrawn already");
            } else {
                note!("{id} is withdrawn; caches may have what was read of it for a day");
            }
            Ok(())
        }
    }
}

fn is_unchanged(answer: &Value) -> bool {
    answer.pointer("/events").and_then(Value::as_array).is_some_and(Vec::is_empty)
}

async fn list(api: &Api, json: bool) -> anyhow::Result<()> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/catalog-items?limit=100{cursor}")).await?;
        found.extend(page.pointer("/data").and_then(Value::as_array).into_iter().flatten().cloned());
        match page.get("next_cursor").and_then(Value::as_str) {
            Some(_) if found.len() >= MOST => {
                bail!("there are more than {MOST} items: ask GET /v1/catalog-items for pages")
            }
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    if json {
        for item in &found {
            say!("{item}")?;
        }
    } else if found.is_empty() {
        say!("nothing was published")?;
    } else {
        let head = ["id", "kind", "version", "status", "updated_at"];
        say!("{}", rows_table(&found, &head, &[2]).trim_fmt())?;
    }
    Ok(())
}
