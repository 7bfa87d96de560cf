//! `orgstream bench append-only`: what many small records cost the broker, with a subject each and in the record logs of
//! append-only kinds.
//!
//! The same records are written three times, each time to a server of its own: as records that can change, one subject each,
//! which is the limit that the others are measured against; then to record logs, one in a message and many in one.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use clap::Args as ClapArgs;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use orgstream::{
    clock::now,
    terminal::{out::say, table::table},
};
use orgstream_events::{
    AggregateId, CommandId, Commit, CommitDraft, CommitKeys, Event, Fingerprint, OrgId, RecordAppended, RecordCreated,
    RecordEvent, RecordId, RecordLogEvent, RecordLogId, Salt,
};
use orgstream_servers::Nats;
use orgstream_stream::{Log, LogOptions, Placement, SyncMode};
use serde::Serialize;

use crate::{
    load::{data, draft},
    warn_of_debug_build, write_json,
};

const SHARDS: u16 = 16;
/// Appends at the same time.
const AT_ONCE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(600);

/// Append-only records: subjects, memory and restart of the broker with a subject each and in record logs.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Records in all.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    records: u64,
    /// Organizations that they are of.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    orgs: u64,
    /// Records in one message, for the last row.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=500))]
    bulk: u64,
    /// Write the figures to this file as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Row {
    layout: String,
    records: u64,
    messages: u64,
    subjects: u64,
    stored_mb: f64,
    records_per_second: f64,
    rss_before_mb: f64,
    rss_mb: f64,
    restart_s: f64,
    rss_restarted_mb: f64,
}

/// How the records are written.
#[derive(Clone, Copy)]
enum Layout {
    /// Each with a subject.
    Subjects,
    /// In record logs, so many in a message.
    Logs(u64),
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    warn_of_debug_build();
    let mut rows = Vec::new();
    for layout in [Layout::Subjects, Layout::Logs(1), Layout::Logs(args.bulk)] {
        rows.push(measure(&args, layout).await?);
    }
    print(&rows)?;
    write_json(args.json.as_ref(), &rows)
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let head = [
        "layout",
        "records",
        "messages",
        "subjects",
        "stored MB",
        "records/s",
        "RSS before MB",
        "RSS MB",
        "restart s",
        "RSS restarted MB",
    ];
    let mut table = table(&head, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for row in rows {
        table.add_row([
            row.layout.clone(),
            row.records.to_string(),
            row.messages.to_string(),
            row.subjects.to_string(),
            format!("{:.0}", row.stored_mb),
            format!("{:.0}", row.records_per_second),
            format!("{:.0}", row.rss_before_mb),
            format!("{:.0}", row.rss_mb),
            format!("{:.2}", row.restart_s),
            format!("{:.0}", row.rss_restarted_mb),
        ]);
    }
    say!("{}", table.trim_fmt())?;
    say!("RSS: of nats-server. restart: its stop and start, until every stream answers.")?;
    Ok(())
}

async fn measure(args: &Args, layout: Layout) -> anyhow::Result<Row> {
    let dir = std::env::temp_dir().join(format!("orgstream-bench-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let measured = Box::pin(measure_in(&dir, args, layout)).await;
    let _ = std::fs::remove_dir_all(&dir);
    measured
}

async fn measure_in(dir: &Path, args: &Args, layout: Layout) -> anyhow::Result<Row> {
    let mut nats = Nats::start(dir, false).await?;
    let keys: CommitKeys = format!("bench:{}", "0b".repeat(32)).parse()?;
    let options = LogOptions::new(&nats.url, Arc::new(keys));
    let options = LogOptions { creds: Some(nats.access.admin()), shards: SHARDS, sync: SyncMode::Relaxed, ..options };
    let log = Log::connect(&options).await?;
    log.ensure_streams().await?;
    let mut placements = Vec::new();
    for _ in 0..args.orgs {
        placements.push(log.place(OrgId::from_uuid(uuid::Uuid::now_v7())).await?);
    }
    let rss_before_mb = resident_mb(nats.pid())?;
    let each = args.records.div_ceil(args.orgs);
    let (what, per_message) = match layout {
        Layout::Subjects => ("a subject each".to_owned(), 1),
        Layout::Logs(1) => ("record logs".to_owned(), 1),
        Layout::Logs(many) => (format!("record logs, {many} in a message"), many),
    };
    let bar = ProgressBar::new(each * args.orgs);
    bar.set_style(ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}")?.progress_chars("=> "));
    bar.set_message(what.clone());
    let started = Instant::now();
    match layout {
        Layout::Subjects => {
            let all = placements.iter().flat_map(|placement| (0..each).map(move |number| (placement, number)));
            stream::iter(all)
                .map(|(placement, number)| {
                    let (log, bar) = (&log, &bar);
                    async move {
                        let commit = created(placement.org, number)?;
                        log.append(placement, &commit, 0, None).await?;
                        bar.inc(1);
                        anyhow::Ok(())
                    }
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        Layout::Logs(_) => {
            // Who writes to one record log takes turns with all others, so each is a chain of its own.
            let parts = u64::from(RecordLogId::COUNT);
            let all = placements.iter().flat_map(|placement| (0..parts).map(move |part| (placement, part)));
            stream::iter(all)
                .map(|(placement, part)| {
                    let count = each / parts + u64::from(part < each % parts);
                    chain(&log, placement, part, count, per_message, &bar)
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
    }
    let took = started.elapsed();
    bar.finish_and_clear();
    let rss_mb = resident_mb(nats.pid())?;
    let before = state(&log).await?;
    let restarting = Instant::now();
    nats.restart().await?;
    let log = Log::connect(&options).await?;
    let after = until(&log, before).await?;
    let row = Row {
        layout: what,
        records: each * args.orgs,
        messages: after.messages,
        subjects: after.subjects,
        stored_mb: after.bytes as f64 / 1e6,
        records_per_second: (each * args.orgs) as f64 / took.as_secs_f64(),
        rss_before_mb,
        rss_mb,
        restart_s: restarting.elapsed().as_secs_f64(),
        rss_restarted_mb: resident_mb(nats.pid())?,
    };
    nats.stop().await;
    Ok(row)
}

/// Appends records to one record log, each message after the one before.
async fn chain(
    log: &Log,
    placement: &Placement,
    part: u64,
    count: u64,
    per_message: u64,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let aggregate = AggregateId::RecordLog(format!("{part:x}").parse()?);
    let (mut written, mut seq) = (0, 0);
    while written < count {
        let some = per_message.min(count - written);
        let command_id = CommandId::fresh(now().unix_ms(), rand::random());
        let appended = |ordinal: u64| {
            Ok(Event::RecordLog(RecordLogEvent::Appended(RecordAppended {
                record: RecordId::appended(command_id, u16::try_from(ordinal)?),
                kind: "trace".parse()?,
                kind_version: 1,
                data: data(written + ordinal),
                references: Vec::new(),
                searched: Vec::new(),
            })))
        };
        let events = (0..some).map(appended).collect::<anyhow::Result<Vec<Event>>>()?;
        let commit = sealed(placement.org, aggregate.clone(), written, command_id, events)?;
        seq = log.append(placement, &commit, seq, None).await?.seq;
        written += some;
        bar.inc(some);
    }
    Ok(())
}

fn created(org: OrgId, number: u64) -> anyhow::Result<Commit> {
    let command_id = CommandId::fresh(now().unix_ms(), rand::random());
    let created = RecordCreated::plain("trace".parse()?, 1, data(number));
    let aggregate = AggregateId::Record(RecordId::derive(command_id));
    sealed(org, aggregate, 0, command_id, vec![Event::Record(RecordEvent::Created(created))])
}

fn sealed(
    org: OrgId,
    aggregate: AggregateId,
    version_before: u64,
    command_id: CommandId,
    events: Vec<Event>,
) -> anyhow::Result<Commit> {
    let fingerprint = Some(Fingerprint::of(&[b"bench"]));
    let draft = CommitDraft { version_before, fingerprint, ..draft(org, aggregate, command_id, events) };
    Ok(draft.seal(|| Salt(rand::random()))?)
}

/// What all shards have together.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    messages: u64,
    subjects: u64,
    bytes: u64,
}

async fn state(log: &Log) -> anyhow::Result<State> {
    let jetstream = jetstream::new(log.client().clone());
    let mut all = State { messages: 0, subjects: 0, bytes: 0 };
    for shard in log.shards() {
        let state = jetstream.get_stream(format!("EV_{shard}")).await?.get_info().await?.state;
        all.messages += state.messages;
        all.subjects += state.subjects_count;
        all.bytes += state.bytes;
    }
    Ok(all)
}

/// Waits until the streams have what they had before.
async fn until(log: &Log, before: State) -> anyhow::Result<State> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(after) = state(log).await
            && after == before
        {
            return Ok(after);
        }
        if Instant::now() > deadline {
            bail!("the streams do not have what they had before the restart");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The memory of a process.
fn resident_mb(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the memory of nats-server")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb / 1024.0)
}
