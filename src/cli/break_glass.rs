//! `orgstream break-glass`: an operator looks into an organization, in front of everybody who reads its audit log.

use reqwest::Method;
use serde_json::{Value, json};

use super::client::Api;
use super::out::note;
use crate::config::ClientArgs;

/// Look into an organization for a while, or end that.
///
/// Without it the operator's token reads nothing of a tenant. The organization reads in its own audit log who looks, why,
/// with whose consent and at what. This needs the platform operator's token in `ORGSTREAM_API_KEY`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Why; the organization reads it.
    #[arg(long, value_name = "TEXT", required_unless_present = "close")]
    reason: Option<String>,
    /// The other operator, who agreed.
    #[arg(long, value_name = "NAME", required_unless_present = "close")]
    approver: Option<String>,
    /// After how many minutes it ends by itself: 60 at most.
    #[arg(long, value_name = "N", default_value_t = 15)]
    minutes: u32,
    /// End it now.
    #[arg(long, conflicts_with_all = ["reason", "approver"])]
    close: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let path = format!("/v1/organizations/{}/break-glass", args.org);
    if args.close {
        api.send(api.request(Method::DELETE, &path)).await?;
        note!("{} is closed to operators", args.org);
        return Ok(());
    }
    let seconds = args.minutes.saturating_mul(60);
    let body = json!({"reason": args.reason, "approver": args.approver, "expires_in_seconds": seconds});
    let opened = api.post(&path, &body).await?;
    let until = opened.get("expires_at").and_then(Value::as_str).unwrap_or_default();
    note!("{} can be read until {until}; its audit log says so", args.org);
    Ok(())
}
