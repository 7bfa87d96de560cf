//! `orgstream publish`: commands from a file, in bulk, with one effect however often the file is sent.

use std::{
    collections::HashMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use orgstream_events::{Chain, Fingerprint};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};

use crate::{
    api::{
        body::{self, Format},
        command_body::MAX_BODY,
    },
    client::Api,
    config::ClientArgs,
    terminal::out::{note, say},
};

/// The API accepts 1 MiB at a time; the text around the commands needs a little of it.
const BATCH_BYTES: usize = 900_000;
/// The longest line, in bytes: the body limit of a request, without the text around the command.
const MAX_LINE: usize = MAX_BODY - 256;
/// The maximum number of refusals that are printed.
const SHOWN: u64 = 20;
/// The maximum number of attempts for a batch that the API could not accept.
const TRIES: u32 = 8;
/// The pause before the second of them; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// The minimum time to save up when the organization's rate is limited.
const PACE: Duration = Duration::from_secs(1);
/// The interval of progress reports, where there is no terminal to draw a bar on.
const TELL: Duration = Duration::from_secs(10);

/// Send commands from an NDJSON file. Sending the same file again changes nothing.
///
/// Each line is a command as `POST /v1/organizations/{org}/commands` takes it, for example
/// `{"type":"create_record","kind":"webhook","data":{…}}`. A line's idempotency key follows from its text (and from how
/// often the same text came before), so an interrupted run is resumed by running it again. Lines about the same thing take
/// effect in their order. A line that is refused does not stop the others.
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
    /// Go on from this line of the same file, as a run that ended early says; those before it are read but not sent.
    #[arg(long, default_value_t = 1, value_name = "LINE", value_parser = clap::value_parser!(u64).range(1..))]
    from: u64,
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

/// A line in flight: its text as in the file.
#[derive(Serialize)]
struct Line {
    #[serde(skip)]
    number: u64,
    command: Box<RawValue>,
    idempotency_key: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let api = Api::new(&args.client)?;
    let org = api.org(args.org.clone()).await?;
    let source = open(&args.file).await?;
    let mut publisher = Publisher {
        api,
        org,
        bar: progress(&args.file).await,
        totals: Totals::default(),
        lines: 0,
        next: args.from,
        paced: false,
        told: Instant::now(),
    };
    // However it ends, the outcome of the lines is reported.
    let outcome = tokio::select! {
        outcome = publisher.publish(source, &args) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    publisher.bar.finish_and_clear();
    let Totals { accepted, replayed, refused, position } = publisher.totals;
    if args.json {
        say!("{}", json!({"accepted": accepted, "replayed": replayed, "refused": refused, "position": position}))?;
    } else {
        note!("{accepted} accepted, {replayed} were there already, {refused} refused");
    }
    let next = publisher.next;
    if next > args.from {
        outcome.with_context(|| format!("the lines before {next} are dealt with; --from {next} goes on from there"))?;
    } else {
        outcome?;
    }
    anyhow::ensure!(
        refused == 0,
        "{refused} of {} lines were refused; the others are in. Mend those lines and send the file again",
        publisher.lines
    );
    Ok(())
}

struct Publisher {
    api: Api,
    org: String,
    bar: ProgressBar,
    totals: Totals,
    /// The number of lines that were read.
    lines: u64,
    /// The first line whose outcome is open.
    next: u64,
    /// Whether it was reported that commands are held back.
    paced: bool,
    /// When the progress was last reported.
    told: Instant,
}

impl Publisher {
    async fn publish(&mut self, source: impl AsyncRead + Unpin, args: &Args) -> anyhow::Result<()> {
        let mut source = BufReader::with_capacity(1 << 20, source);
        let mut seen: HashMap<Fingerprint, u64> = HashMap::new();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        loop {
            let number = self.lines + 1;
            let Some(read) = next_line(&mut source).await.with_context(|| format!("line {number} cannot be read"))?
            else {
                break;
            };
            self.lines = number;
            self.bar.inc(read.length);
            let text = match &read.text {
                Some(text) if number == 1 => text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text).trim_ascii(),
                Some(text) => text.trim_ascii(),
                None => &[],
            };
            if text.is_empty() && read.text.is_some() {
                continue;
            }
            let hash = Fingerprint::of(&[text]);
            let times = seen.entry(hash).and_modify(|times| *times += 1).or_insert(0);
            let idempotency_key = format!("line-{hash}-{times}");
            if number < args.from {
                continue;
            }
            let command = match &read.text {
                Some(_) => command(text),
                None => Err(format!("is over the limit of {MAX_LINE} bytes (payload_too_large)")),
            };
            let command = match command {
                Ok(command) => command,
                Err(fault) => {
                    self.refuse(number, &fault);
                    continue;
                }
            };
            if bytes + text.len() > BATCH_BYTES || batch.len() >= usize::from(args.batch) {
                self.send(std::mem::take(&mut batch)).await?;
                bytes = 0;
                self.next = number;
            }
            bytes += text.len();
            batch.push(Line { number, command, idempotency_key });
        }
        self.send(batch).await?;
        self.next = self.lines + 1;
        Ok(())
    }

    /// Sends the commands until each has a final outcome.
    async fn send(&mut self, batch: Vec<Line>) -> anyhow::Result<()> {
        let path = format!("/v1/organizations/{}/commands", self.org);
        let (mut open, mut attempt, mut pause) = (batch, 1, PAUSE);
        while let Some(first) = open.first() {
            self.next = first.number;
            let answer = self.api.request(Method::POST, &path).json(&open).send().await;
            let problem = match answer {
                Ok(answer) if answer.status().is_success() => {
                    let outcomes: Vec<Value> = answer.json().await?;
                    let (before, mut over, mut why) = (open.len(), None, None);
                    // Commands that were not accepted are sent again, with those that wait behind them; those in the log get
                    // the same answer again.
                    let (again, done): (Vec<_>, Vec<_>) = open.into_iter().zip(outcomes).partition(|(_, outcome)| {
                        let status = outcome.pointer("/error/status").and_then(Value::as_u64);
                        let wait = outcome.pointer("/error/retry_after_ms").and_then(Value::as_u64);
                        if status == Some(429) {
                            over = Some(wait);
                        }
                        let is_open = wait.is_some() || matches!(status, Some(429 | 500..));
                        if is_open && why.is_none() {
                            why = outcome.pointer("/error/detail").and_then(Value::as_str).map(str::to_owned);
                        }
                        is_open
                    });
                    for (line, outcome) in &done {
                        self.count(line.number, outcome);
                    }
                    open = again.into_iter().map(|(line, _)| line).collect();
                    if open.len() < before {
                        (attempt, pause) = (1, PAUSE);
                    }
                    if let Some(wait) = over {
                        self.keep_pace(wait).await;
                        continue;
                    }
                    why.unwrap_or_default()
                }
                Ok(answer) if answer.status().is_server_error() || answer.status().as_u16() == 429 => {
                    format!("the API answered {}", answer.status())
                }
                Ok(answer) => return Err(Api::problem(answer).await),
                // The API never answered: more likely a wrong address than an outage.
                Err(error) if error.is_connect() && attempt == 1 && self.totals.position.is_none() => {
                    return Err(self.api.unreachable(error));
                }
                Err(error) => Chain(&error).to_string(),
            };
            if open.is_empty() {
                break;
            }
            anyhow::ensure!(attempt <= TRIES, "gave up: {problem}");
            self.say(&format!("{problem}; trying again in {pause:?} ({attempt} of {TRIES})"));
            tokio::time::sleep(pause).await;
            (attempt, pause) = (attempt + 1, (pause * 2).min(Duration::from_secs(8)));
        }
        self.tell();
        Ok(())
    }

    /// Waits until the organization may send more.
    async fn keep_pace(&mut self, wait: Option<u64>) {
        if !self.paced {
            self.paced = true;
            self.say("the organization may send only so many commands a second: going on at that pace");
        }
        tokio::time::sleep(Duration::from_millis(wait.unwrap_or_default()).max(PACE)).await;
        self.tell();
    }

    /// Reports the progress, where no bar does.
    fn tell(&mut self) {
        if self.bar.is_hidden() && self.told.elapsed() >= TELL {
            self.told = Instant::now();
            let Totals { accepted, replayed, refused, .. } = self.totals;
            let lines = HumanCount(self.lines);
            note!("{lines} lines read: {accepted} accepted, {replayed} were there already, {refused} refused");
        }
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
            self.refuse(number, &format!("{} ({})", text("/error/detail"), text("/error/code")));
        }
    }

    fn refuse(&mut self, number: u64, fault: &str) {
        self.totals.refused += 1;
        if self.totals.refused <= SHOWN {
            self.say(&format!("line {number}: {fault}"));
        }
    }
}

/// Parses the command of a line, verbatim; or returns its error, which needs no request to the API.
fn command(text: &[u8]) -> Result<Box<RawValue>, String> {
    let is_kept = body::read(text, Format::Json).and_then(body::Reading::whole);
    is_kept.map_err(|problem| format!("{} ({})", problem.detail, problem.code))?;
    serde_json::from_slice(text).map_err(|error| format!("{error} (malformed_body)"))
}

/// A line of the file.
struct Read {
    /// Without its line end; none when it is longer than the maximum.
    text: Option<Vec<u8>>,
    /// With its line end, in bytes.
    length: u64,
}

/// Reads the next line. Of a line that is too long no more than the maximum is held.
async fn next_line(source: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Read>> {
    let (mut text, mut length) = (Vec::new(), 0_usize);
    loop {
        let there = source.fill_buf().await?;
        if there.is_empty() && length == 0 {
            return Ok(None);
        }
        let (part, ends) = match there.iter().position(|byte| *byte == b'\n') {
            Some(end) => (there.get(..end).unwrap_or_default(), true),
            None => (there, there.is_empty()),
        };
        if text.len() <= MAX_LINE {
            text.extend_from_slice(part);
        }
        let taken = part.len() + usize::from(ends && !there.is_empty());
        source.consume(taken);
        length += taken;
        if ends {
            let text = Some(text).filter(|text| text.len() <= MAX_LINE);
            return Ok(Some(Read { text, length: length as u64 }));
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

/// Returns a bar over the bytes of the file, or a counter when its size is not known; nothing outside a terminal.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_is_too_long_is_one_line() {
        let long = "x".repeat(MAX_LINE + 1);
        let text = format!("first\r\n\n{long}\n\u{c3}last");
        let mut source = BufReader::with_capacity(7, text.as_bytes());
        let mut found = Vec::new();
        while let Some(read) = next_line(&mut source).await.unwrap() {
            found.push((read.text.map(|text| String::from_utf8(text).unwrap()), read.length));
        }
        let length = long.len() as u64 + 1;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found, [(text("first\r"), 7), (text(""), 1), (None, length), (text("\u{c3}last"), 6)]);
    }

    #[test]
    fn what_is_no_command_is_said_without_asking_anybody() {
        assert!(command(br#"{"type": "x", "data": {"a": 1.50}}"#).unwrap().get().contains("1.50"));
        for (bad, says) in [
            (&b"{\"a\":"[..], "malformed_body"),
            (b"{\"a\": 18446744073709551616}", "/a"),
            (b"{\"a\": \"\xff\"}", "UTF-8"),
        ] {
            let fault = command(bad).unwrap_err();
            assert!(fault.contains(says), "{fault}");
        }
    }
}
