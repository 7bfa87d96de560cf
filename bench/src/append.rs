//! `orgstream bench append`: the cost of a command on its way into the stream, against a bare publish.
//!
//! The raw limit publishes the same bytes, with the same expectation, through the same client to a stream of the same
//! configuration. "bulk" sends many at a time and waits for all of them; for the raw limit that is pipelined publishes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use async_nats::{
    HeaderMap,
    jetstream::{context::ContextBuilder, message::PublishMessage},
};
use bytes::Bytes;
use clap::Args as ClapArgs;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::{
    config::ClientArgs,
    terminal::{out::say, table::table},
};
use orgstream_domain::credentials::key::KeyToken;
use orgstream_events::OrgId;
use orgstream_stream::broker::Producers;
use orgstream_stream::{Log, Placement};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    load::{self, Measured},
    rig::Rig,
    warn_of_debug_build, write_json,
};

/// Commands in one bulk request, and publishes in one raw window.
const BULK: u64 = 200;

/// Appending: commands per second through the library, NATS and HTTP, against bare publishes of the same bytes.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How long each row is measured, in seconds.
    #[arg(long, default_value_t = 4, value_name = "S")]
    seconds: u64,
    /// Writers at the same time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64], value_name = "N,…")]
    writers: Vec<usize>,
    /// Which server: `default` acknowledges before it syncs, `always` syncs first.
    #[arg(long, value_delimiter = ',', default_values = ["default", "always"], value_name = "SYNC,…")]
    sync: Vec<String>,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    sync: String,
    mode: &'static str,
    path: &'static str,
    writers: usize,
    per_second: f64,
    of_raw: f64,
    p50_us: f64,
    p99_us: f64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let time = Duration::from_secs(args.seconds.max(1));
    let bar = ProgressBar::new((args.sync.len() * args.writers.len() * 8) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    let mut rows = Vec::new();
    for sync in &args.sync {
        let sync_always = match sync.as_str() {
            "always" => true,
            "default" => false,
            other => bail!("--sync {other:?}: default or always"),
        };
        bar.set_message("starting servers");
        let rig = Rig::start(sync_always).await?;
        for bulk in [false, true] {
            for writers in &args.writers {
                let mode = if bulk { "bulk" } else { "single" };
                let mut raw = 0.0;
                for path in ["raw", "library", "nats", "http"] {
                    bar.set_message(format!("sync {sync}, {mode}, {writers} writers: {path}"));
                    let measured = measure(&rig, path, bulk, *writers, time).await.with_context(|| path.to_owned())?;
                    if path == "raw" {
                        raw = measured.rate;
                    }
                    rows.push(row(sync, mode, path, *writers, raw, measured));
                    bar.inc(1);
                }
            }
        }
        rig.stop().await?;
    }
    bar.finish_and_clear();
    print(&rows)?;
    write_json(args.json.as_ref(), &rows)
}

fn row(sync: &str, mode: &'static str, path: &'static str, writers: usize, raw: f64, measured: Measured) -> Row {
    Row {
        sync: sync.to_owned(),
        mode,
        path,
        writers,
        per_second: measured.rate,
        of_raw: measured.rate / raw.max(1.0),
        p50_us: measured.p50.as_secs_f64() * 1e6,
        p99_us: measured.p99.as_secs_f64() * 1e6,
    }
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut table =
        table(&["sync", "mode", "writers", "path", "commands/s", "of raw", "p50 µs", "p99 µs"], &[2, 4, 5, 6, 7]);
    for row in rows {
        table.add_row([
            row.sync.clone(),
            row.mode.to_owned(),
            row.writers.to_string(),
            row.path.to_owned(),
            format!("{:.0}", row.per_second),
            format!("{:.2}", row.of_raw),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!("p50 and p99 are of one request: one command, or {BULK} in bulk.")?;
    Ok(())
}

async fn measure(rig: &Rig, path: &str, bulk: bool, writers: usize, time: Duration) -> anyhow::Result<Measured> {
    let each = if bulk { BULK } else { 1 };
    match path {
        "raw" => raw(rig, each, writers, time).await,
        "library" => library(rig.log().clone(), rig.placement().await?, each, writers, time).await,
        "nats" => nats(rig, each, writers, time).await,
        _ => http(rig, each, writers, time).await,
    }
}

/// Bare publishes to a stream of the same configuration.
async fn raw(rig: &Rig, each: u64, writers: usize, time: Duration) -> anyhow::Result<Measured> {
    // Room for every publish of every window: a writer that waits for room would wait for its own acknowledgements.
    let room = (writers as u64 * each) as usize + 1;
    // As the administrator: a stream is made beside the product's.
    let admin = async_nats::ConnectOptions::with_credentials_file(rig.stack.nats.access.admin()).await?;
    let client = admin.connect(&rig.stack.nats.url).await?;
    let context = ContextBuilder::new().max_ack_inflight(room).build(client);
    let mut config = context.get_stream("EV_0").await?.cached_info().config.clone();
    "RAW".clone_into(&mut config.name);
    config.subjects = vec!["raw.>".to_owned()];
    let _ = context.delete_stream("RAW").await;
    context.create_stream(config).await?;
    let org = OrgId::fresh(0, rand::random());
    let payload: Bytes = load::commit(org, 0)?.encode()?;
    let run: u32 = rand::random();
    let publisher = context.clone();
    let measured = load::drive(writers, time, move |number| {
        let (context, payload) = (publisher.clone(), payload.clone());
        async move {
            let mut acks = Vec::with_capacity(each as usize);
            for part in 0..each {
                let subject = format!("raw.{org}.record.{run:08x}{number:010}{part:04}");
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
                headers.insert("Nats-Msg-Id", format!("cmd_{run:08x}{number:010}{part:04}").as_str());
                let message = PublishMessage::build().headers(headers).payload(payload.clone());
                acks.push(context.send_publish(subject, message).await?);
            }
            for ack in acks {
                ack.await?;
            }
            Ok(each)
        }
    })
    .await;
    context.delete_stream("RAW").await?;
    measured
}

/// Appends through the library: sealed, hashed and encoded as commands are.
async fn library(
    log: Log,
    placement: Placement,
    each: u64,
    writers: usize,
    time: Duration,
) -> anyhow::Result<Measured> {
    let shared = Arc::new((log, placement));
    load::drive(writers, time, move |number| {
        let shared = Arc::clone(&shared);
        async move {
            let (log, placement) = &*shared;
            stream::iter(0..each)
                .map(|part| async move {
                    let commit = load::commit(placement.org, number * BULK + part)?;
                    log.append(placement, &commit, 0, None).await?;
                    anyhow::Ok(())
                })
                .buffer_unordered(each as usize)
                .try_collect::<Vec<()>>()
                .await?;
            Ok(each)
        }
    })
    .await
}

fn commands(run: u32, number: u64, each: u64) -> Value {
    let command = |part: u64| json!({"type": "create_record", "kind": "webhook", "data": {"event": "bench", "payload": load::data(number * BULK + part)}});
    if each == 1 {
        return command(0);
    }
    let keyed = |part| json!({"command": command(part), "idempotency_key": format!("bench-{run:08x}-{number}-{part}")});
    Value::Array((0..each).map(keyed).collect())
}

/// Requests to `cmd.<org>`.
async fn nats(rig: &Rig, each: u64, writers: usize, time: Duration) -> anyhow::Result<Measured> {
    let producers = Producers::load(&rig.stack.nats.access.producers())?;
    let token: KeyToken = rig.api_key.parse()?;
    let user = producers.issue(token.public_id(), rig.org, None, None)?;
    let user = async_nats::ConnectOptions::with_credentials(&user)?;
    let user = user.custom_inbox_prefix(format!("_INBOX_{}", token.public_id()));
    let client = user.connect(&rig.stack.nats.url).await?;
    let (org, key, run) = (rig.org, rig.api_key.clone(), rand::random());
    load::drive(writers, time, move |number| {
        let (client, key) = (client.clone(), key.clone());
        async move {
            let mut headers = HeaderMap::new();
            headers.insert("Authorization", format!("Bearer {key}").as_str());
            let body = serde_json::to_vec(&commands(run, number, each))?;
            let answer = client.request_with_headers(format!("cmd.{org}"), headers, body.into()).await?;
            check(&serde_json::from_slice(&answer.payload)?, each)
        }
    })
    .await
}

/// `POST /v1/organizations/{org}/commands`.
async fn http(rig: &Rig, each: u64, writers: usize, time: Duration) -> anyhow::Result<Measured> {
    let args = ClientArgs { url: rig.stack.base_url.clone(), api_key: Some(rig.api_key.clone().into()), session: None };
    let api = orgstream::client::Api::new(&args)?;
    let (path, run) = (format!("/v1/organizations/{}/commands", rig.org), rand::random());
    load::drive(writers, time, move |number| {
        let (api, path) = (api.clone(), path.clone());
        async move {
            let body = commands(run, number, each);
            let answer = api.send(api.request(Method::POST, &path).json(&body)).await?;
            check(&answer.json().await?, each)
        }
    })
    .await
}

/// Returns the number of accepted commands; anything else is an error of the benchmark.
fn check(answer: &Value, each: u64) -> anyhow::Result<u64> {
    let accepted = match answer {
        Value::Array(outcomes) => outcomes.iter().filter(|outcome| outcome["status"] == "accepted").count() as u64,
        one => u64::from(one.get("command_id").is_some()),
    };
    if accepted != each {
        bail!("{accepted} of {each} commands were accepted: {answer}");
    }
    Ok(each)
}
