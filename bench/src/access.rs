//! `orgstream bench access`: the cost of identifying a caller and its permissions, from a process's caches.

use std::time::{Duration, Instant};

use anyhow::Context;
use orgstream::{
    auth::{Authenticator, authenticator::OrgName},
    client::Api,
    terminal::{out::say, table::table},
};
use orgstream_events::OrgId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{rig::Rig, warn_of_debug_build};

const SIGN_IN: Duration = Duration::from_secs(3600);

/// Resolving credentials: a key and a session, to the permissions in their organization, from what a process remembers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each is resolved.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    times: usize,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let rig = Rig::start(false).await?;
    let measured = measure(&rig, args.times.max(1)).await;
    rig.stop().await?;
    let mut figures = table(&["credential", "p50", "p99", "first, from the database"], &[1, 2, 3]);
    for (name, first, [p50, p99]) in measured? {
        let us = |time: Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6);
        figures.add_row([name.to_owned(), us(p50), us(p99), us(first)]);
    }
    say!("{}", figures.trim_fmt())?;
    Ok(())
}

async fn measure(rig: &Rig, times: usize) -> anyhow::Result<Vec<(&'static str, Duration, [Duration; 2])>> {
    let session = session(rig).await?;
    let mut rows = Vec::new();
    for (name, credential) in [("key", rig.api_key.as_str()), ("session", session.as_str())] {
        let header = format!("Bearer {credential}");
        let first = resolved(&rig.stack.auth, &header, rig.org).await?;
        let mut taken = Vec::with_capacity(times);
        for _ in 0..times {
            taken.push(resolved(&rig.stack.auth, &header, rig.org).await?);
        }
        taken.sort_unstable();
        let at = |share: f64| taken.get(((times - 1) as f64 * share) as usize).copied().unwrap_or_default();
        rows.push((name, first, [at(0.5), at(0.99)]));
    }
    Ok(rows)
}

/// Resolves a header to its sender's permissions in the organization.
async fn resolved(auth: &Authenticator, header: &str, org: OrgId) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let principal = auth.principal(Some(header)).await?;
    std::hint::black_box(auth.access(&principal, &OrgName::Id(org)).await?);
    Ok(begun.elapsed())
}

/// A session of the owner, acting in the rig's organization.
async fn session(rig: &Rig) -> anyhow::Result<String> {
    let api = |credential| Api::with(&rig.stack.base_url, credential);
    let started = api(rig.stack.issuer.mint("bench@example.org", SIGN_IN)?)?.post("/v1/sessions", &Value::Null).await?;
    let token = started.get("token").and_then(Value::as_str).context("the API gave no session")?.to_owned();
    let api = api(token.clone())?;
    api.send(api.request(Method::PUT, "/v1/session/active-org").json(&json!({"org": rig.org.to_string()}))).await?;
    Ok(token)
}
