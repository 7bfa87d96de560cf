//! `orgstream deletions` and `orgstream delete-organization`: how far deletions are, and what an owner or an operator does about one.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Subcommand;
use orgstream_events::OrgId;
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

/// See how far deletions of organizations are, cancel one, or fetch its receipt.
///
/// A list is for the platform operator, whose token is in `ORGSTREAM_API_KEY`; everything else is for owners too, with a session.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show the deletions: those under way first, then the latest.
    List {
        /// Print the API's answer as it is.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show how far one is, table by table.
    Show {
        #[command(flatten)]
        one: One,
        /// Print the API's answer as it is.
        #[arg(long)]
        json: bool,
    },
    /// Cancel one, until it is sealed. API keys that have ended stay ended.
    Cancel {
        #[command(flatten)]
        one: One,
    },
    /// Write the receipt of one to a file, once it is done; `orgstream-verify receipt` verifies it.
    Receipt {
        #[command(flatten)]
        one: One,
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// One deletion.
#[derive(clap::Args)]
pub(crate) struct One {
    /// The organization, by its id.
    #[arg(value_name = "ORG")]
    org: OrgId,
    #[command(flatten)]
    client: ClientArgs,
}

/// Delete an organization, for good.
///
/// For owners, with a session of the last ten minutes (`orgstream login`). At once nobody acts in it any more, and its API keys end;
/// until the grace period is over, `orgstream deletions cancel` takes it back.
#[derive(clap::Args)]
pub(crate) struct DeleteArgs {
    /// The organization, by id or slug.
    #[arg(value_name = "ORG")]
    org: String,
    /// The slug of the organization, typed once more as a confirmation.
    #[arg(long, value_name = "SLUG")]
    slug: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let request = api.request(Method::DELETE, &format!("/v1/organizations/{}", args.org));
    let answer: Value = api.send(request.json(&json!({"slug": args.slug}))).await?.json().await?;
    let Some(org) = answer.get("id").and_then(Value::as_str) else { bail!("the answer names no organization") };
    let shown = api.get(&format!("/v1/deletions/{org}")).await?;
    say!("{org}")?;
    note!(
        "nobody acts in {org} any more; it is deleted at {}, unless you cancel that: orgstream deletions cancel {org}",
        text(&shown, "grace_until")
    );
    Ok(())
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::List { json, client } => {
            let answer = Api::new(&client)?.get("/v1/deletions").await?;
            if json {
                say!("{answer}")?;
                return Ok(());
            }
            let rows = list(&answer, "data");
            if rows.is_empty() {
                note!("no organization was ever to be deleted");
                return Ok(());
            }
            let head = ["org_id", "step", "waits_for", "requested_at", "grace_until", "sealed_at"];
            say!("{}", rows_table(&rows, &head, &[]).trim_fmt())?;
        }
        Job::Show { one, json } => {
            let answer = Api::new(&one.client)?.get(&format!("/v1/deletions/{}", one.org)).await?;
            if json {
                say!("{answer}")?;
                return Ok(());
            }
            let rows = list(&answer, "tables");
            if !rows.is_empty() {
                say!("{}", rows_table(&rows, &["table", "before", "erased"], &[1, 2]).trim_fmt())?;
            }
            note!(
                "{}: {}, waits for {}; requested at {}, carried out at {}",
                one.org,
                text(&answer, "step"),
                text(&answer, "waits_for"),
                text(&answer, "requested_at"),
                text(&answer, "grace_until")
            );
        }
        Job::Cancel { one } => {
            let api = Api::new(&one.client)?;
            api.send(api.request(Method::POST, &format!("/v1/deletions/{}/cancel", one.org))).await?;
            note!("{} stays; its API keys have ended all the same: issue new ones", one.org);
        }
        Job::Receipt { one, out } => {
            let api = Api::new(&one.client)?;
            let answer = api.send(api.request(Method::GET, &format!("/v1/deletions/{}/receipt", one.org))).await?;
            let receipt = answer.text().await.map_err(|error| api.unreachable(error))?;
            std::fs::write(&out, receipt).with_context(|| format!("{} cannot be written", out.display()))?;
            note!("the receipt is in {}: orgstream-verify receipt {} --key log.vkey", out.display(), out.display());
        }
    }
    Ok(())
}

fn list(answer: &Value, name: &str) -> Vec<Value> {
    answer.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn text<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer.get(name).and_then(Value::as_str).unwrap_or("nothing")
}
