//! `orgstream session`: a person's sessions, and the organizations that they act in.

use clap::Subcommand;
use orgstream_events::CURRENT_ORG;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Api,
    client::session::StoredSession,
    config::ClientArgs,
    terminal::{
        out::{note, say},
        table::rows_table,
    },
};

/// See, end or switch sessions of a person.
///
/// The session is the one of `orgstream login`, or the one in `ORGSTREAM_SESSION`.
#[derive(Subcommand)]
pub(crate) enum Job {
    /// Show the session that is in use, and the organization that it acts in.
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List every session of the same person.
    List {
        /// Print the API's answer as it is.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// End a session.
    Revoke {
        /// Which, as `session list` shows it; without it the one that is in use.
        #[arg(value_name = "SESSION", default_value = CURRENT_ORG)]
        which: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Act in another organization from now on.
    Switch {
        /// The organization, by id or slug.
        #[arg(value_name = "ORG")]
        org: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(crate) async fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Show { client } => say!("{}", Api::new(&client)?.get("/v1/session").await?)?,
        Job::List { json, client } => {
            let answer = Api::new(&client)?.get("/v1/sessions").await?;
            if json {
                say!("{answer}")?;
                return Ok(());
            }
            let rows = answer.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let head = ["id", "current", "created_at", "last_seen_at", "expires_at", "user_agent"];
            say!("{}", rows_table(rows, &head, &[]).trim_fmt())?;
        }
        Job::Revoke { which, client } => {
            let api = Api::new(&client)?;
            let is_own = which == CURRENT_ORG
                || api.get("/v1/session").await?.get("id").and_then(Value::as_str) == Some(which.as_str());
            api.send(api.request(Method::DELETE, &format!("/v1/sessions/{which}"))).await?;
            if is_own && api.is_stored() {
                StoredSession::forget()?;
            }
            note!("the session has ended");
        }
        Job::Switch { org, client } => {
            let api = Api::new(&client)?;
            let request = api.request(Method::PUT, "/v1/session/active-org").json(&json!({"org": org}));
            let session: Value = api.send(request).await?.json().await?;
            let slug = session.pointer("/active_org/slug").and_then(Value::as_str).unwrap_or(&org);
            let epoch = session.get("epoch").and_then(Value::as_u64).unwrap_or_default();
            note!("the session acts in {slug} now (epoch {epoch})");
        }
    }
    Ok(())
}
