//! The export: an org's audit log as a folder of files that an auditor downloads and verifies alone.
//!
//! It reads the public files of a C2SP log from the API, files that never change first, so an interrupted export continues
//! where it was. The renderings are made here, from the same bytes, and last of all the manifest.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use orgstream_events::{Fingerprint, OrgId, Pipeline, Timestamp};
use orgstream_transparency::{Checkpoint, LogKey, SignedNote, TILE_WIDTH, Tile};
use orgstream_verifier::{
    CHECKPOINTS, CSV, CSV_HEAD, Entry, FORMAT, HANDOVERS, JSONL, ListedFile, MANIFEST, Manifest, OCSF, POLICY, Without,
    decode_entries, decode_payloads, payloads_path,
};
use reqwest::Method;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    fs,
    io::{AsyncWriteExt, BufWriter},
};

use crate::{client::Api, terminal::out::note};

/// The number of files that are requested concurrently.
const PARALLEL: usize = 6;
/// How long to wait for a signature over the log's end, in seconds.
const WAIT: u32 = 15;

/// A running export.
pub struct Export {
    api: Api,
    base: String,
    dir: PathBuf,
    files: Vec<ListedFile>,
}

/// Returns the messages that the audit pipeline has passed and not applied.
fn without(progress: &Value) -> Vec<Without> {
    let pipelines = progress.pointer("/data").and_then(Value::as_array).into_iter().flatten();
    let audit =
        pipelines.filter(|pipeline| pipeline.get("pipeline").is_some_and(|name| name == Pipeline::Audit.name()));
    let named = audit.filter_map(|audit| audit.get("without").and_then(Value::as_array)).flatten();
    named.filter_map(|message| serde_json::from_value(message.clone()).ok()).collect()
}

/// The result of an export.
pub struct Exported {
    /// The name of the log, as in its signed heads.
    pub origin: String,
    /// The number of events.
    pub events: u64,
    /// The key that the log's operator names.
    pub key: LogKey,
}

impl Export {
    /// Creates an export of the organization `org` (id or slug) into the folder `dir`.
    pub fn new(api: Api, org: &str, dir: PathBuf) -> Self {
        Self { api, base: format!("/v1/organizations/{org}"), dir, files: Vec::new() }
    }

    /// Writes the bundle; `bar` counts events.
    pub async fn run(mut self, bar: &ProgressBar) -> anyhow::Result<Exported> {
        fs::create_dir_all(&self.dir).await.with_context(|| format!("{} cannot be made", self.dir.display()))?;
        // A folder with a manifest counts as complete, which it is not from here on.
        remove(&self.dir.join(MANIFEST)).await?;
        let progress = self.api.get(&format!("{}/projections", self.base)).await?;
        let note = self.head(&progress).await?;
        let checkpoint: Checkpoint = note.text().parse()?;
        let (origin, size) = (checkpoint.origin().to_owned(), checkpoint.head().size);
        let org: OrgId = origin.rsplit('/').next().unwrap_or_default().parse().context("the log's name has no org")?;
        bar.set_length(size);
        self.fetch_tiles(size, bar).await?;
        self.fetch_checkpoints(size).await?;
        self.write_renderings(size).await?;
        let policy = self.text("/audit/policy").await?;
        let key = policy.lines().find_map(|line| line.strip_prefix("log ")).and_then(|key| key.trim().parse().ok());
        let key = key.context("the policy of the log names no key")?;
        self.write(POLICY, policy.as_bytes()).await?;
        let notes = self.api.get(&format!("{}/audit/handovers", self.base)).await?;
        for (nth, note) in notes.pointer("/data").and_then(Value::as_array).into_iter().flatten().enumerate() {
            self.write(&format!("{HANDOVERS}/{nth}"), note.as_str().unwrap_or_default().as_bytes()).await?;
        }
        self.remove_leftovers().await?;
        self.files.sort_by(|one, other| one.path.cmp(&other.path));
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            org,
            origin: origin.clone(),
            size,
            created_at: Timestamp::from_unix_ms(i64::try_from(now_ms()).unwrap_or(i64::MAX)),
            tool: format!("orgstream {}", env!("CARGO_PKG_VERSION")),
            without: without(&progress),
            files: std::mem::take(&mut self.files),
        };
        replace(&self.dir.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?).await?;
        Ok(Exported { origin, events: size, key })
    }

    async fn text(&self, path: &str) -> anyhow::Result<String> {
        let request = self.api.request(Method::GET, &format!("{}{path}", self.base));
        Ok(self.api.send(request).await?.text().await?)
    }

    /// Returns a signed head over everything that was there when the command started, or else the newest one.
    async fn head(&self, progress: &Value) -> anyhow::Result<SignedNote> {
        let wait = format!("wait={WAIT}");
        let request = self.api.request(Method::GET, &format!("{}/audit/events?limit=1", self.base));
        let newest = match progress.pointer("/data/0/head").and_then(Value::as_str) {
            Some(head) => self.api.send_at(request, head, WAIT).await?,
            None => self.api.send(request).await?,
        };
        let newest: Value = newest.json().await?;
        let Some(last) = newest.pointer("/data/0/idx").and_then(Value::as_u64) else {
            bail!("the audit log of this organization has no events yet");
        };
        let path = format!("{}/audit/checkpoint?at_least={}", self.base, last + 1);
        let request = self.api.request(Method::GET, &path).header("Prefer", &wait);
        let note = match self.api.send(request).await {
            Ok(note) => note,
            Err(error) => {
                // A log that is no longer signed can be exported all the same.
                let newest = self.api.request(Method::GET, &format!("{}/audit/checkpoint", self.base));
                let Ok(newest) = self.api.send(newest).await else {
                    return Err(error.context("no head of this log is signed: is `orgstream sign` running?"));
                };
                note!(
                    "the log has {} events, and its newest ones are not signed: the export ends where the last signed \
                     head does. Ask the operator what `orgstream sign` says of this log",
                    last + 1
                );
                newest
            }
        };
        Ok(SignedNote::parse(&note.bytes().await?)?)
    }

    /// Fetches hashes, headers and payloads. Existing files of the declared length are kept.
    async fn fetch_tiles(&mut self, size: u64, bar: &ProgressBar) -> anyhow::Result<()> {
        let wanted = Tile::grown(0, size).flat_map(|tile| {
            let leaves = tile.level() == 0;
            let with_entries = [(tile.entries_path(), tile, 1), (payloads_path(&tile), tile, 2)];
            std::iter::once((tile.to_string(), tile, 0)).chain(with_entries.into_iter().filter(move |_| leaves))
        });
        let (api, base, dir) = (&self.api, &self.base, &self.dir);
        let fetched = stream::iter(wanted).map(async |(path, tile, what)| {
            let bytes = match fs::read(dir.join(&path)).await.ok().filter(|bytes| is_whole(bytes, &tile, what)) {
                Some(bytes) => bytes,
                None => {
                    let answer = api.send(api.request(Method::GET, &format!("{base}/audit/{path}"))).await?;
                    let bytes = answer.bytes().await?.to_vec();
                    if !is_whole(&bytes, &tile, what) {
                        bail!("{path}: the answer of the API is not what it should be");
                    }
                    replace(&dir.join(&path), &bytes).await?;
                    bytes
                }
            };
            if what == 1 {
                bar.inc(tile.width().into());
            }
            Ok(listed(path, &bytes))
        });
        let fetched: Vec<ListedFile> = fetched.buffer_unordered(PARALLEL).try_collect().await?;
        self.files.extend(fetched);
        Ok(())
    }

    /// Fetches all signed heads up to the requested one, with the signatures that they have by now.
    async fn fetch_checkpoints(&mut self, size: u64) -> anyhow::Result<()> {
        let mut cursor = String::new();
        loop {
            let page = self.api.get(&format!("{}/audit/checkpoints?limit=100{cursor}", self.base)).await?;
            for row in page.pointer("/data").and_then(Value::as_array).into_iter().flatten() {
                let of = row.get("size").and_then(Value::as_u64).unwrap_or_default();
                let note = row.get("note").and_then(Value::as_str).unwrap_or_default();
                if of <= size {
                    self.write(&format!("{CHECKPOINTS}/{of}"), note.as_bytes()).await?;
                }
            }
            match page.get("next_cursor").and_then(Value::as_str) {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(()),
            }
        }
    }

    /// Writes the events for people and for other programs.
    async fn write_renderings(&mut self, size: u64) -> anyhow::Result<()> {
        let (mut jsonl, mut csv, mut ocsf) = (
            Rendering::new(&self.dir, JSONL).await?,
            Rendering::new(&self.dir, CSV).await?,
            Rendering::new(&self.dir, OCSF).await?,
        );
        csv.line(CSV_HEAD).await?;
        for tile in Tile::grown(0, size).take_while(|tile| tile.level() == 0) {
            let count = usize::from(tile.width());
            let headers = fs::read(self.dir.join(tile.entries_path())).await?;
            let payloads = fs::read(self.dir.join(payloads_path(&tile))).await?;
            let headers = decode_entries(&headers, count).context("a bundle of entries changed meanwhile")?;
            let payloads = decode_payloads(&payloads, count).context("a bundle of payloads changed meanwhile")?;
            for (nth, (header, payload)) in headers.into_iter().zip(&payloads).enumerate() {
                let idx = tile.index() * u64::from(TILE_WIDTH) + nth as u64;
                // An undecodable event has empty lines, and verification says why.
                let entry = Entry::read(idx, header, payload).ok();
                let line = |text: fn(&Entry) -> String| entry.as_ref().map(text).unwrap_or_default();
                jsonl.line(&line(Entry::jsonl)).await?;
                csv.line(&line(Entry::csv)).await?;
                ocsf.line(&line(Entry::ocsf)).await?;
            }
        }
        for rendering in [jsonl, csv, ocsf] {
            self.files.push(rendering.finish().await?);
        }
        Ok(())
    }

    async fn write(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        replace(&self.dir.join(path), bytes).await?;
        self.files.push(listed(path.to_owned(), bytes));
        Ok(())
    }

    /// Removes files of an earlier, shorter export: tiles that are no longer at the edge.
    async fn remove_leftovers(&self) -> anyhow::Result<()> {
        let listed: BTreeSet<PathBuf> = self.files.iter().map(|file| self.dir.join(&file.path)).collect();
        let mut folders = vec![self.dir.join("tile"), self.dir.join(CHECKPOINTS)];
        while let Some(folder) = folders.pop() {
            let mut entries = fs::read_dir(&folder).await?;
            while let Some(entry) = entries.next_entry().await? {
                let path = entry.path();
                if entry.file_type().await?.is_dir() {
                    folders.push(path);
                } else if !listed.contains(&path) {
                    remove(&path).await?;
                }
            }
        }
        Ok(())
    }
}

fn now_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// Whether a file has the length of its tile: hashes, entries, payloads.
fn is_whole(bytes: &[u8], tile: &Tile, what: u8) -> bool {
    let count = usize::from(tile.width());
    match what {
        0 => bytes.len() == count * 32,
        1 => decode_entries(bytes, count).is_some(),
        _ => decode_payloads(bytes, count).is_some(),
    }
}

fn listed(path: String, bytes: &[u8]) -> ListedFile {
    ListedFile { path, bytes: bytes.len() as u64, sha256: Fingerprint::of(&[bytes]) }
}

async fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file atomically.
async fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = async {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).await?;
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        fs::write(&part, bytes).await?;
        fs::rename(&part, path).await
    };
    written.await.with_context(|| format!("{} cannot be written", path.display()))
}

/// A file of lines that is hashed while it is written.
struct Rendering {
    name: &'static str,
    out: BufWriter<fs::File>,
    hash: Sha256,
    bytes: u64,
}

impl Rendering {
    async fn new(dir: &Path, name: &'static str) -> anyhow::Result<Self> {
        let file = fs::File::create(dir.join(name)).await.with_context(|| format!("{name} cannot be written"))?;
        Ok(Self { name, out: BufWriter::with_capacity(1 << 18, file), hash: Sha256::new(), bytes: 0 })
    }

    async fn line(&mut self, text: &str) -> anyhow::Result<()> {
        for part in [text.as_bytes(), b"\n"] {
            self.hash.update(part);
            self.bytes += part.len() as u64;
            self.out.write_all(part).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> anyhow::Result<ListedFile> {
        self.out.flush().await?;
        let sha256 = Fingerprint(self.hash.finalize().into());
        Ok(ListedFile { path: self.name.to_owned(), bytes: self.bytes, sha256 })
    }
}
