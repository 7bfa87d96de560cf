//! `orgstream replay`: an organization's events, in order, one JSON object per line.

use std::pin::pin;

use anyhow::Context;
use futures_util::TryStreamExt;
use orgstream_events::Position;
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufWriter, stdout};
use tokio_util::io::StreamReader;

use super::client::Api;
use crate::config::ClientArgs;

/// How long the audit log may take to catch up before the command gives up.
const WAIT_SECONDS: u32 = 30;

/// Print an organization's events, in order, as NDJSON.
///
/// The output ends where the organization's log ended when the command began; `position` in the last line is what
/// `--from` takes to go on from there.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// Begin after this position (`<org>:<sequence>`) instead of at the beginning.
    #[arg(long, value_name = "POSITION")]
    from: Option<Position>,
    /// Instead of events, print the organization as it was after the event at this place of the audit log, or at this time
    /// (RFC 3339). The first line says which signed head the events are proven to be the beginning of.
    #[arg(long, value_name = "IDX|TIME", conflicts_with = "from")]
    at: Option<String>,
    /// What to print with --at: `organization`, `members`, `api_keys` or `records`.
    #[arg(long, value_name = "NAME", requires = "at",
        value_parser = ["organization", "members", "api_keys", "records"])]
    projection: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org).await?;
    if let Some(at) = args.at {
        // Of what a place or a time consists of, only this is something else in a query.
        let at = at.replace('+', "%2B");
        let projection = args.projection.map(|name| format!("&projection={name}")).unwrap_or_default();
        let request = api.request(Method::GET, &format!("/v1/organizations/{org}/audit/state?at={at}{projection}"));
        let rows = api.send(request).await?.bytes().await?;
        let mut out = stdout();
        out.write_all(&rows).await?;
        return Ok(out.flush().await?);
    }
    // A position is an id, a colon and a number: nothing that a query would have to escape.
    let from = args.from.map(|from| format!("?from={from}")).unwrap_or_default();
    let mut request = api.request(Method::GET, &format!("/v1/organizations/{org}/events{from}"));
    // What the stream has by now must be in the output, so the audit log is waited for.
    let progress = api.get(&format!("/v1/organizations/{org}/projections")).await?;
    if let Some(head) = progress.pointer("/data/0/head").and_then(Value::as_str) {
        request = request.header("Min-Position", head).header("Prefer", format!("wait={WAIT_SECONDS}"));
    }
    let answer = api.send(request).await?;
    let body = answer.bytes_stream().map_err(std::io::Error::other);
    let mut lines = pin!(StreamReader::new(body));
    let mut out = BufWriter::new(stdout());
    let (mut events, mut line) = (0_u64, Vec::new());
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).await.with_context(|| {
            format!("the answer broke off after {events} events; go on with --from and the last position printed")
        })?;
        if read == 0 {
            break;
        }
        out.write_all(&line).await?;
        events += 1;
    }
    out.flush().await?;
    eprintln!("{events} events of {org}");
    Ok(())
}
