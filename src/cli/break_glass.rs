//! `orgstream break-glass`: an operator's temporary read access to an organization, visible in its audit log.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Api,
    config::ClientArgs,
    terminal::out::{note, say},
};

/// Look into an organization for a while, or end that.
///
/// Without it an operator reads nothing of a tenant. The organization reads in its own audit log who looks, why, with whose
/// consent and at what. This needs an operator's token in `ORGSTREAM_API_KEY`, and the approval of another operator, who prints
/// it with --approve, unless the platform asks for none.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The organization, by id or slug.
    #[arg(long, value_name = "ORG")]
    org: String,
    /// Why; the organization reads it.
    #[arg(long, value_name = "TEXT", required_unless_present = "close")]
    reason: Option<String>,
    /// What another operator's --approve printed.
    #[arg(long, value_name = "TEXT")]
    approval: Option<String>,
    /// The other operator, who agreed, as you say: where the platform asks for no approval.
    #[arg(long, value_name = "NAME", conflicts_with = "approval")]
    approver: Option<String>,
    /// Approve the look of this operator, for the same reason and as many minutes, in place of opening anything.
    #[arg(long, value_name = "OPERATOR", conflicts_with_all = ["approval", "approver", "close"])]
    approve: Option<String>,
    /// After how many minutes it ends by itself: 60 at most.
    #[arg(long, value_name = "N", default_value_t = 15)]
    minutes: u32,
    /// End it now.
    #[arg(long, conflicts_with_all = ["reason", "approver", "approval"])]
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
    if let Some(operator) = &args.approve {
        let body = json!({"operator": operator, "reason": args.reason, "expires_in_seconds": seconds});
        let approved = api.post(&format!("{path}/approvals"), &body).await?;
        let text = approved.get("approval").and_then(Value::as_str).unwrap_or_default();
        say!("{text}")?;
        note!("for {operator} alone, within an hour: orgstream break-glass --approval …");
        return Ok(());
    }
    let mut body = json!({"reason": args.reason, "expires_in_seconds": seconds});
    for (name, value) in [("approval", args.approval), ("approver", args.approver)] {
        if let (Some(fields), Some(value)) = (body.as_object_mut(), value) {
            fields.insert(name.to_owned(), Value::String(value));
        }
    }
    let opened = api.post(&path, &body).await?;
    let until = opened.get("expires_at").and_then(Value::as_str).unwrap_or_default();
    note!("{} can be read until {until}; its audit log says so", args.org);
    Ok(())
}
