//! `orgstream publish`: commands from a file, in bulk, with one effect however often the file is sent.

use std::{
    collections::HashMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use orgstream_events::Fingerprint;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::{
    client::Api,
    out::{note, say},
};
use crate::config::ClientArgs;

/// The API takes 1 MiB at a time; what lies around the commands needs a little of it.
const BATCH_BYTES: usize = 900_000;
/// The most refusals that are printed.
const SHOWN: usize = 20;
/// Tries of a batch that the API could not take.
const TRIES: u32 = 8;
/// Before the second of them; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// How long is saved up at least when the organization may send only so much.
const PACE: Duration = Duration::from_secs(1);

/// Send commands from an NDJSON file. Sending the same file again changes nothing.
///
/// Each line is a command as `POST /v1/organizations/{org}/commands` takes it, for example
/// `{"type":"create_record","kind":"webhook","data":{…}}`. A line's idempotency key follows from its text (and from how
/// often the same text came before), so an interrupted run is resumed by running it again.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file; `-` reads standard input.
    file: PathBuf,
    /// The organization, by id or slug; by default the one that the key belongs to.
    #[arg(long, value_name = "ORG")]
    org: Option<String>,
    /// Commands in one request.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Print the outcome as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Default)]
struct Totals {
    accepted: u64,
    replayed: u64,
    refused: u64,
    position: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org.clone()).await?;
    let bar = progress(&args.file).await;
    let mut lines = BufReader::with_capacity(1 << 20, open(&args.file).await?).lines();
    let mut seen: HashMap<Fingerprint, u64> = HashMap::new();
    let mut batch: Vec<(u64, Value)> = Vec::new();
    let (mut number, mut bytes, mut totals) = (0_u64, 0, Totals::default());
    let mut publisher = Publisher { api, org, bar: &bar, totals: &mut totals, paced: false };
    while let Some(line) = lines.next_line().await.with_context(|| format!("line {} cannot be read", number + 1))? {
        number += 1;
        bar.inc(line.len() as u64 + 1);
        if line.trim().is_empty() {
            continue;
        }
        let command: Value = serde_json::from_str(&line).with_context(|| format!("line {number} is not JSON"))?;
        if bytes + line.len() > BATCH_BYTES || batch.len() >= usize::from(args.batch) {
            publisher.send(std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
        bytes += line.len();
        let hash = Fingerprint::of(&[line.trim().as_bytes()]);
        let times = seen.entry(hash).and_modify(|times| *times += 1).or_insert(0);
        batch.push((number, json!({"command": command, "idempotency_key": format!("line-{hash}-{times}")})));
    }
    publisher.send(batch).await?;
    bar.finish_and_clear();
    let Totals { accepted, replayed, refused, position } = totals;
    if args.json {
        say!("{}", json!({"accepted": accepted, "replayed": replayed, "refused": refused, "position": position}))?;
    } else {
        note!("{accepted} accepted, {replayed} were there already, {refused} refused");
    }
    if refused > 0 {
        bail!("{refused} of {number} lines were refused; the others are in. Mend those lines and send the file again");
    }
    Ok(())
}

struct Publisher<'a> {
    api: Api,
    org: String,
    bar: &'a ProgressBar,
    totals: &'a mut Totals,
    /// Whether it was said that commands are held back.
    paced: bool,
}

impl Publisher<'_> {
    /// Sends the commands until each has an outcome that will not change.
    async fn send(&mut self, batch: Vec<(u64, Value)>) -> anyhow::Result<()> {
        let path = format!("/v1/organizations/{}/commands", self.org);
        let (mut open, mut attempt, mut pause) = (batch, 1, PAUSE);
        while !open.is_empty() {
            let body: Value = open.iter().map(|(_, command)| command.clone()).collect();
            let answer = self.api.request(Method::POST, &path).json(&body).send().await;
            let problem = match answer {
                Ok(answer) if answer.status().is_success() => {
                    let outcomes: Vec<Value> = answer.json().await?;
                    let (before, mut over) = (open.len(), None);
                    // What could not be taken is sent again; what the log has taken comes back as the same answer.
                    let (again, done): (Vec<_>, Vec<_>) = open.into_iter().zip(outcomes).partition(|(_, outcome)| {
                        match outcome.pointer("/error/status").and_then(Value::as_u64) {
                            Some(429) => over = Some(outcome.pointer("/error/retry_after_ms").and_then(Value::as_u64)),
                            Some(503) => {}
                            _ => return false,
                        }
                        true
                    });
                    for ((number, _), outcome) in &done {
                        self.count(*number, outcome);
                    }
                    open = again.into_iter().map(|(line, _)| line).collect();
                    if open.len() < before {
                        (attempt, pause) = (1, PAUSE);
                    }
                    if let Some(wait) = over {
                        self.keep_pace(wait).await;
                        continue;
                    }
                    "the event log does not answer".to_owned()
                }
                Ok(answer) if answer.status().is_server_error() || answer.status().as_u16() == 429 => {
                    format!("the API answered {}", answer.status())
                }
                Ok(answer) => return Err(Api::problem(answer).await),
                // Nobody was ever there: more likely a wrong address than an outage.
                Err(error) if error.is_connect() && attempt == 1 && self.totals.position.is_none() => {
                    return Err(self.api.unreachable(error));
                }
                Err(error) => error.to_string(),
            };
            if open.is_empty() {
                break;
            }
            if attempt > TRIES {
                let done = open.first().map_or(0, |(number, _)| *number).saturating_sub(1);
                bail!(
                    "gave up; the lines up to {done} are dealt with, and running the command again goes on from there"
                );
            }
            self.say(&format!("{problem}; trying again in {pause:?} ({attempt} of {TRIES})"));
            tokio::time::sleep(pause).await;
            (attempt, pause) = (attempt + 1, (pause * 2).min(Duration::from_secs(8)));
        }
        Ok(())
    }

    /// Waits until the organization may send more.
    async fn keep_pace(&mut self, wait: Option<u64>) {
        if !self.paced {
            self.paced = true;
            self.say("the organization may send only so many commands a second: going on at that pace");
        }
        tokio::time::sleep(Duration::from_millis(wait.unwrap_or_default()).max(PACE)).await;
    }

    /// Prints a line without disturbing the bar.
    fn say(&self, line: &str) {
        self.bar.suspend(|| note!("{line}"));
    }

    fn count(&mut self, number: u64, outcome: &Value) {
        let text = |pointer: &str| outcome.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("/status") == "accepted" {
            let replayed = outcome.pointer("/replayed").and_then(Value::as_bool).unwrap_or_default();
            if replayed {
                self.totals.replayed += 1;
            } else {
                self.totals.accepted += 1;
            }
            self.totals.position = Some(text("/position"));
        } else {
            self.totals.refused += 1;
            if self.totals.refused <= SHOWN as u64 {
                self.say(&format!("line {number}: {} ({})", text("/error/detail"), text("/error/code")));
            }
        }
    }
}

async fn open(file: &Path) -> anyhow::Result<Box<dyn AsyncRead + Unpin + Send>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let opened = tokio::fs::File::open(file).await;
    Ok(Box::new(opened.with_context(|| format!("{} cannot be read", file.display()))?))
}

/// A bar over the bytes of the file, or a counter when its size is not known; nothing outside a terminal.
async fn progress(file: &Path) -> ProgressBar {
    let size = tokio::fs::metadata(file).await.map(|file| file.len()).ok();
    let style = match size {
        Some(_) => "{bar:40} {percent:>3}%  {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
        None => "{spinner} {bytes}  {bytes_per_sec}",
    };
    let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::stderr());
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
