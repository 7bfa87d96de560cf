//! `orgstream replay`: an organization's events, in order, one JSON object per line.

use std::{pin::pin, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use futures_util::TryStreamExt;
use orgstream_events::Position;
use orgstream_projections::{Database, ReadModel, audit::KeysOf};
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufWriter, stdout};
use tokio_util::io::StreamReader;

use crate::{
    audit::compare::{Compared, compare},
    auth::authenticator::OrgName,
    client::Api,
    config::{ClientArgs, DatabaseArgs, NatsArgs},
    process as node,
    terminal::out::{OutputError, note, say, told},
};

/// How long the audit log may take to catch up before the command gives up.
const WAIT_SECONDS: u32 = 30;
/// How long the pipelines may take to reach the end of the stream before that is a difference.
const TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The read model to print with --at; `records` without it.
    #[arg(long, value_name = "NAME", requires = "at", value_parser = PossibleValuesParser::new(ReadModel::names()))]
    projection: Option<String>,
    /// Print nothing but whether three accounts of the organization say the same, up to where its stream ends: the stream and
    /// the audit log, event by event and by the root over them, with every column, tile and signed head of the log; and the
    /// read models that are shown, all tables and all columns against a replay of the stream. Says how many events no head
    /// was signed over, and what was not compared. Asks NATS and PostgreSQL themselves, reads whole tables, and is for
    /// operators; ends with 1 when they differ.
    #[arg(long, requires = "org", conflicts_with_all = ["from", "at"])]
    verify: bool,
    /// Print what --verify found as JSON.
    #[arg(long, requires = "verify")]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.verify {
        return verify(args).await;
    }
    print(args).await.map(|()| ExitCode::SUCCESS)
}

async fn verify(args: Args) -> anyhow::Result<ExitCode> {
    // Without the checks at start: a database that fails them is the one to examine.
    let db = Database::connect(&args.database.options(1)).await.with_context(|| args.database.silent())?;
    let db = db.pinning(args.database.log_key.clone());
    let log = node::connect_log(&args.nats).await?;
    let name = args.org.unwrap_or_default();
    let org = match OrgName::parse(&name) {
        Ok(OrgName::Id(org)) => Some(org),
        Ok(OrgName::Slug(slug)) => db.org_of_slug(&slug).await?,
        Ok(OrgName::Current) | Err(_) => None,
    };
    let org = org.with_context(|| format!("there is no organization {name}: give its id or its slug"))?;
    let compared = compare(&log, &db, org, TIMEOUT).await?;
    let code = if compared.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = if args.json { serde_json::to_string_pretty(&compared)? } else { in_words(&compared) };
    Ok(told(code, say!("{text}")))
}

fn in_words(compared: &Compared) -> String {
    let Compared { ends, stream, audit, heads, signed, keys_of, unsigned, rows, given_up, .. } = compared;
    let by = match keys_of {
        KeysOf::Pinned => "by the key that you gave",
        KeysOf::Database => "by a key that the database names",
    };
    let mut lines = vec![
        format!("stream       {} events, root {}, up to {ends}", stream.0, stream.1),
        format!("audit log    {} events, root {}", audit.0, audit.1),
        match signed {
            Some(size) => format!(
                "signed       {heads} heads fit {by}, the newest over {size} events; {unsigned} events are behind it"
            ),
            None => format!("signed       no head: {unsigned} events are not signed"),
        },
        format!("read models  {rows} rows"),
    ];
    lines.extend(given_up.iter().map(|given_up| format!("- {given_up}")));
    lines.extend(compared.differences.iter().map(|difference| format!("! {difference}")));
    if compared.more > 0 {
        lines.push(format!("! and {} more", compared.more));
    }
    lines.extend(compared.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(compared.left_out.iter().map(|what| format!("not compared: {what}")));
    if compared.differences.is_empty() {
        lines.push(match (unsigned, stream.0) {
            _ if !given_up.is_empty() => {
                format!("all three say the same but for what was given up; {unsigned} events are not signed yet")
            }
            (0, 1..) => "all three say the same, and every event is signed".to_owned(),
            _ => format!("all three say the same; {unsigned} of {} events are not signed yet", audit.0),
        });
    }
    lines.join("\n")
}

async fn print(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org).await?;
    if let Some(at) = args.at {
        // Of the characters of a position or a time, only this has another meaning in a query.
        let at = at.replace('+', "%2B");
        let projection = args.projection.map(|name| format!("&projection={name}")).unwrap_or_default();
        let request = api.request(Method::GET, &format!("/v1/organizations/{org}/audit/state?at={at}{projection}"));
        let rows = api.send(request).await?.bytes().await?;
        let mut out = stdout();
        out.write_all(&rows).await.map_err(OutputError::from)?;
        return Ok(out.flush().await.map_err(OutputError::from)?);
    }
    // A position is an id, a colon and a number: nothing to be escaped in a query.
    let from = args.from.map(|from| format!("?from={from}")).unwrap_or_default();
    let request = api.request(Method::GET, &format!("/v1/organizations/{org}/events{from}"));
    // The output must have what the stream has by now, so the audit log is waited for.
    let progress = api.get(&format!("/v1/organizations/{org}/projections")).await?;
    let answer = match progress.pointer("/data/0/head").and_then(Value::as_str) {
        Some(head) => api.send_at(request, head, WAIT_SECONDS).await?,
        None => api.send(request).await?,
    };
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
        out.write_all(&line).await.map_err(OutputError::from)?;
        events += 1;
    }
    out.flush().await.map_err(OutputError::from)?;
    note!("{events} events of {org}");
    Ok(())
}
