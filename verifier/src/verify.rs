//! The verification itself, in one pass over the events: bytes to leaves, leaves to root, root to signatures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use orgstream_events::{Chain, OrgId, Timestamp};
use orgstream_transparency::{
    Checkpoint, Frontier, HandOver, Hash, LogKey, PolicyFile, SignedNote, TILE_WIDTH, Tile, TreeHead, Witnessed,
    leaf_hash, subtree_root,
};

use crate::{
    CHECKPOINTS, CSV, CSV_HEAD, Entry, FORMAT, HANDOVERS, JSONL, MANIFEST, Manifest, OCSF, Outcome, Payload, Report,
    account::Ledger,
    decode_entries, decode_payloads,
    files::{Files, Lines},
    lacked::Lacked,
    log_key, payloads_path,
};

/// Tolerated difference between the clocks of the processes that accept commands, and between them and witnesses.
const CLOCKS_MS: i64 = 60_000;
/// Error of a clock from which a time counts as forged. Between the two it is noted: an entry cannot be changed any
/// more, so a log would be invalid for ever because of a clock that was wrong for a minute.
const WRONG_CLOCK_MS: i64 = 24 * 3_600_000;
/// The most events whose times are noted one by one.
const NOTED: u64 = 20;

/// A request for verification.
#[derive(Debug, Clone)]
pub struct Request {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The log's key, from a source other than the bundle.
    pub pin: LogKey,
    /// The trusted witnesses. Without it none are required, and the best outcome is "not witnessed".
    pub policy: Option<PolicyFile>,
    /// Heads of the log that the auditor kept from before.
    pub known: Vec<KnownHead>,
}

/// A head that the auditor kept.
#[derive(Debug, Clone)]
pub struct KnownHead {
    /// Its name.
    pub name: String,
    /// The note.
    pub note: SignedNote,
}

/// The required root of the tree at a size.
struct Expected {
    root: Hash,
    name: String,
    held: bool,
}

/// Verifies a bundle. For any content, the result is a report.
pub fn verify(request: &Request) -> Report {
    verify_with(request, None).0
}

/// Verifies a bundle, and computes the account of its organization again from the events. An event that does not follow from
/// those before it is a finding.
pub fn verify_account(request: &Request) -> (Report, Ledger) {
    let (report, ledger) = verify_with(request, Some(Ledger::default()));
    (report, ledger.unwrap_or_default())
}

fn verify_with(request: &Request, ledger: Option<Ledger>) -> (Report, Option<Ledger>) {
    let mut report = Report::default();
    let Some(manifest) = read_manifest(&request.bundle, &mut report) else { return (report, ledger) };
    report.origin.clone_from(&manifest.origin);
    report.size = manifest.size;
    if log_key(&request.pin, &manifest.origin, manifest.org).is_none() {
        let what = format!("is of the log {}, and the pinned key is of {}", manifest.origin, request.pin.name());
        report.invalid(MANIFEST, what);
        return (report, ledger);
    }
    let mut files = Files::new(&request.bundle, &manifest);
    let keys = follow(&request.pin, &manifest, &mut files, &mut report);
    let (heads, seen_by) = (BTreeMap::new(), Vec::new());
    let mut run = Run { request, manifest: &manifest, keys, files, report, heads, seen_by, ledger };
    run.read_checkpoints();
    run.read_known();
    run.read_events();
    run.files.finish(&mut run.report);
    run.say();
    (run.report, run.ledger)
}

/// Returns the keys of the log that the pinned one leads to, by the log's own name.
fn follow(pin: &LogKey, manifest: &Manifest, files: &mut Files, report: &mut Report) -> Vec<LogKey> {
    let mut notes = Vec::new();
    for path in files.below(&format!("{HANDOVERS}/")) {
        let note = files.read(&path, report).and_then(|bytes| SignedNote::parse(&bytes).ok());
        match note.filter(|note| HandOver::read(note).is_ok()) {
            Some(note) => notes.push(note),
            None => report.invalid(&path, "is not a hand-over that both keys signed"),
        }
    }
    let keys = HandOver::follow(pin, &notes);
    keys.iter().filter_map(|key| log_key(key, &manifest.origin, manifest.org)).collect()
}

fn read_manifest(bundle: &Path, report: &mut Report) -> Option<Manifest> {
    let read = fs::read(bundle.join(MANIFEST)).map_err(|error| format!("cannot be read: {error}"));
    let manifest = read.and_then(|bytes| {
        serde_json::from_slice::<Manifest>(&bytes).map_err(|error| format!("is no manifest: {error}"))
    });
    match manifest {
        Ok(manifest) if manifest.format == FORMAT => Some(manifest),
        Ok(manifest) => {
            report.invalid(MANIFEST, format!("is of the format {}, and this program reads {FORMAT}", manifest.format));
            None
        }
        Err(error) => {
            report.invalid(MANIFEST, error);
            None
        }
    }
}

struct Run<'a> {
    request: &'a Request,
    manifest: &'a Manifest,
    /// The keys of the log: the pinned one, and those that it handed over to.
    keys: Vec<LogKey>,
    files: Files,
    report: Report,
    /// The required roots of the tree, by size.
    heads: BTreeMap<u64, Vec<Expected>>,
    /// Sizes, and the times when a pinned witness saw the tree of that size.
    seen_by: Vec<(u64, i64)>,
    /// The account, if it is computed again.
    ledger: Option<Ledger>,
}

impl Run<'_> {
    /// Checks a note by the pinned keys; the error is a description.
    fn check(&self, note: &SignedNote) -> Result<(Witnessed, bool), String> {
        let nobody = || PolicyFile::parse(b"quorum none\n").map_err(|error| Chain(&error).to_string());
        let policy = self.request.policy.clone().map_or_else(nobody, Ok)?;
        self.check_by(&policy, note)
    }

    /// Checks a note by any key of the log; the first error when it is none of them.
    fn check_by(&self, policy: &PolicyFile, note: &SignedNote) -> Result<(Witnessed, bool), String> {
        let mut refused = None;
        for key in &self.keys {
            match policy.check(key, note) {
                Ok(checked) => return Ok(checked),
                Err(error) => refused = refused.or(Some(Chain(&error).to_string())),
            }
        }
        Err(refused.unwrap_or_default())
    }

    fn read_checkpoints(&mut self) {
        let mut head = None;
        for path in self.files.below(&format!("{CHECKPOINTS}/")) {
            let Some(bytes) = self.files.read(&path, &mut self.report) else { continue };
            let checked = SignedNote::parse(&bytes).map_err(|error| Chain(&error).to_string());
            let (seen, enough) = match checked.and_then(|note| self.check(&note)) {
                Ok(checked) => checked,
                Err(error) => {
                    self.report.invalid(&path, error);
                    continue;
                }
            };
            let TreeHead { size, root } = seen.checkpoint.head();
            if size > self.manifest.size {
                self.report.invalid(&path, format!("is of {size} events, and the bundle has {}", self.manifest.size));
                continue;
            }
            if let Some((_, time)) = seen.witnesses.iter().min_by_key(|(_, time)| *time) {
                let time = i64::try_from(*time).unwrap_or(i64::MAX).saturating_mul(1_000);
                self.seen_by.push((size, time));
            }
            self.heads.entry(size).or_default().push(Expected { root, name: path, held: false });
            if size == self.manifest.size {
                head = Some((seen, enough));
            }
        }
        self.seen_by.sort_unstable();
        let Some((seen, enough)) = head else {
            let what = format!("no checkpoint of {} events is signed by {}", self.manifest.size, self.manifest.origin);
            self.report.find(Outcome::Invalid, Some(CHECKPOINTS), None, what);
            return;
        };
        self.report.root = seen.checkpoint.head().root.to_string();
        self.report.witnesses = seen.witnesses.iter().map(|(name, time)| (name.to_string(), *time)).collect();
        let asked = self.request.policy.as_ref().is_some_and(PolicyFile::asks_for_witnesses);
        if !asked {
            let what = "no witness was asked for: the policy that you give says whom you believe";
            self.report.find(Outcome::NotWitnessed, None, None, what);
        } else if !enough {
            let what =
                format!("{} of the pinned witnesses have seen the head, which is not enough", seen.witnesses.len());
            self.report.find(Outcome::NotWitnessed, None, None, what);
        }
    }

    fn read_known(&mut self) {
        for KnownHead { name, note } in &self.request.known {
            // Witnesses are not required: the log signed it, and the auditor has it.
            let nobody = PolicyFile::parse(b"quorum none\n").map_err(|error| Chain(&error).to_string());
            let checked = nobody.and_then(|policy| self.check_by(&policy, note)).map(|(seen, _)| seen.checkpoint);
            let head = match checked.as_ref().map(Checkpoint::head) {
                Ok(head) => head,
                Err(error) => {
                    let what = format!("the head that you hold cannot be used: {error}");
                    self.report.find(Outcome::Invalid, Some(name), None, what);
                    continue;
                }
            };
            if head.size > self.manifest.size {
                let what = format!(
                    "you hold a head of {} events, and the log that you were given ends at {}: its newest events were \
                     dropped, or this bundle is older than that head",
                    head.size, self.manifest.size
                );
                self.report.find(Outcome::Diverges, Some(name), None, what);
                continue;
            }
            let expected = Expected { root: head.root, name: name.clone(), held: true };
            self.heads.entry(head.size).or_default().push(expected);
        }
    }

    /// Compares the tree at its present size with the heads of that size.
    fn compare(&mut self, tree: &Frontier) {
        for Expected { root, name, held } in self.heads.remove(&tree.size()).unwrap_or_default() {
            let found = tree.root();
            if found == root {
                self.report.checkpoints += 1;
            } else if held {
                let what = format!(
                    "the first {} events are not those that you hold a head of: history was rewritten",
                    tree.size()
                );
                self.report.find(Outcome::Diverges, Some(&name), None, what);
            } else {
                let what = format!("the root over the first {} events is {found}, and {root} was signed", tree.size());
                self.report.find(Outcome::Invalid, Some(&name), None, what);
            }
        }
    }

    fn read_events(&mut self) {
        let mut tree = Frontier::default();
        let latest = Timestamp::from_unix_ms(i64::MIN);
        let mut order = Order { org: self.manifest.org, latest, seen_by: 0, lacked: Lacked::default(), noted: 0 };
        let mut renderings = Renderings::open(&mut self.files, &mut self.report);
        let (mut roots, mut missing) = (Vec::new(), 0_u64);
        self.compare(&tree);
        for tile in leaf_tiles(self.manifest.size) {
            let first = tile.index() * u64::from(TILE_WIDTH);
            let stored = self.read_tile(&tile);
            let leaves = match self.read_entries(&tile, first, stored.as_deref(), &mut order, &mut renderings) {
                Some(leaves) => leaves,
                None => {
                    missing += u64::from(tile.width());
                    let Some(stored) = stored else { break };
                    stored
                }
            };
            for leaf in &leaves {
                tree.append(*leaf);
                self.compare(&tree);
            }
            if tile.width() == TILE_WIDTH {
                roots.push(subtree_root(&leaves));
            }
        }
        renderings.finish(&mut self.report);
        order.lacked.finish(self.manifest, &mut self.report);
        if order.noted > NOTED {
            let more = order.noted - NOTED;
            self.report.notes.push(format!("{more} more events have times that do not fit the order of the log"));
        }
        if missing > 0 {
            let what = format!("{missing} of {} events are not in the bundle", self.manifest.size);
            self.report.find(Outcome::Incomplete, None, None, what);
        }
        if tree.size() < self.manifest.size {
            let what = format!("neither events nor tiles are there from {} on", tree.size());
            self.report.find(Outcome::Invalid, None, None, what);
        }
        self.read_upper_tiles(roots);
    }

    /// Reads the hashes of a tile from the bundle; None without the file.
    fn read_tile(&mut self, tile: &Tile) -> Option<Vec<Hash>> {
        let path = tile.to_string();
        if !self.files.has(&path) {
            return None;
        }
        let bytes = self.files.read(&path, &mut self.report)?;
        let hashes = tile.read(&bytes).map_err(|error| self.report.invalid(&path, Chain(&error).to_string()));
        hashes.ok()
    }

    /// Computes the leaves of a tile's events from their bytes; None when these are missing.
    fn read_entries(
        &mut self,
        tile: &Tile,
        first: u64,
        stored: Option<&[Hash]>,
        order: &mut Order,
        renderings: &mut Renderings,
    ) -> Option<Vec<Hash>> {
        let (path, count) = (tile.entries_path(), usize::from(tile.width()));
        if !self.files.has(&path) {
            return None;
        }
        let bytes = self.files.read(&path, &mut self.report)?;
        let Some(headers) = decode_entries(&bytes, count) else {
            self.report.invalid(&path, format!("is not a bundle of {count} entries"));
            return None;
        };
        let payloads_path = payloads_path(tile);
        let payloads = match self.files.read(&payloads_path, &mut self.report) {
            Some(bytes) => decode_payloads(&bytes, count),
            None => None,
        };
        let payloads = payloads.unwrap_or_else(|| {
            self.report.invalid(&payloads_path, format!("is not a bundle of {count} payloads"));
            vec![Payload::Withheld; count]
        });
        let leaves: Vec<Hash> = headers.iter().map(|header| leaf_hash(header)).collect();
        for (nth, ((header, payload), leaf)) in headers.iter().zip(&payloads).zip(&leaves).enumerate() {
            let idx = first + nth as u64;
            if stored.and_then(|stored| stored.get(nth)).is_some_and(|stored| stored != leaf) {
                let what = format!("its bytes are not those that {tile} was made of");
                self.report.find(Outcome::Invalid, Some(&path), Some(idx), what);
            }
            self.report.events += 1;
            match Entry::read(idx, header, payload) {
                Ok(entry) => {
                    self.count(payload);
                    if let Some(what) = payload.unexplained(&entry.header.event_type) {
                        self.report.find(Outcome::Incomplete, Some(&payloads_path), Some(idx), what);
                    }
                    let is_late = order.lacked.pass(&entry, &mut self.report);
                    self.keep_order(order, &entry, is_late, &path);
                    self.book(&entry, &path);
                    renderings.expect(&entry, &mut self.report);
                }
                Err(error) => {
                    // The file at fault is determined by whether the header is the one of the tree.
                    self.report.find(Outcome::Invalid, Some(&payloads_path), Some(idx), Chain(&error).to_string());
                    renderings.skip();
                }
            }
        }
        Some(leaves)
    }

    fn count(&mut self, payload: &Payload) {
        let [shown, withheld, erased] = &mut self.report.payloads;
        *match payload {
            Payload::Here(_) => shown,
            Payload::Withheld => withheld,
            Payload::Erased => erased,
        } += 1;
    }

    /// Takes an event of the account in.
    fn book(&mut self, entry: &Entry, path: &str) {
        let (Some(ledger), Some(event)) = (&mut self.ledger, &entry.account) else { return };
        if let Err(fault) = ledger.apply(event) {
            let what = format!("does not follow from the events of the account before it: {fault}");
            self.report.find(Outcome::Invalid, Some(path), Some(entry.idx), what);
        }
    }

    /// Checks the org and the time: times do not decrease, except for events that were parked and are applied late, and
    /// no event was recorded after a witness had seen it. Deviations that a wrong clock explains are noted.
    fn keep_order(&mut self, order: &mut Order, entry: &Entry, is_late: bool, path: &str) {
        let (report, idx) = (&mut self.report, entry.idx);
        if entry.header.org_id != order.org {
            let what = format!("it is an event of {}", entry.header.org_id);
            report.find(Outcome::Invalid, Some(path), Some(idx), what);
        }
        let at = entry.header.recorded_at;
        while self.seen_by.get(order.seen_by).is_some_and(|(size, _)| *size <= idx) {
            order.seen_by += 1;
        }
        let seen_without = order.seen_by.checked_sub(1).and_then(|before| self.seen_by.get(before)).copied();
        let back = order.latest.unix_ms().saturating_sub(at.unix_ms());
        if !is_late && back > CLOCKS_MS {
            let what = format!("it was recorded at {at}, before an event in front of it ({})", order.latest);
            if back > WRONG_CLOCK_MS {
                report.find(Outcome::Invalid, Some(path), Some(idx), what);
            } else {
                let seen = seen_without.filter(|(_, seen)| at.unix_ms() < seen.saturating_sub(CLOCKS_MS));
                let seen = seen
                    .map(|(_, seen)| Timestamp::from_unix_ms(seen))
                    .map_or_else(String::new, |seen| format!("; a witness saw the log without it at {seen}"));
                order.note(report, idx, &format!("{what}: a clock was wrong, or it was dated back{seen}"));
            }
        }
        let mut known = at;
        if let Some((size, seen)) = self.seen_by.get(order.seen_by).copied()
            && at.unix_ms() > seen.saturating_add(CLOCKS_MS)
        {
            let what =
                format!("it says that it was recorded at {at}, after a witness had seen the first {size} events");
            if at.unix_ms() > seen.saturating_add(WRONG_CLOCK_MS) {
                report.find(Outcome::Invalid, Some(path), Some(idx), what);
            } else {
                order.note(report, idx, &format!("{what}: a clock was ahead"));
            }
            // It existed by then, whatever its clock showed.
            known = Timestamp::from_unix_ms(seen);
        }
        order.latest = order.latest.max(known);
    }

    /// Checks that the tiles above the leaves are the roots of those below.
    fn read_upper_tiles(&mut self, mut below: Vec<Hash>) {
        for level in 1.. {
            if below.is_empty() {
                return;
            }
            let mut roots = Vec::new();
            for tile in Tile::grown(0, self.manifest.size).filter(|tile| tile.level() == level) {
                let first = usize::try_from(tile.index()).unwrap_or(usize::MAX).saturating_mul(TILE_WIDTH.into());
                let own = below.get(first..first.saturating_add(tile.width().into())).unwrap_or_default();
                if let Some(stored) = self.read_tile(&tile)
                    && stored != own
                {
                    self.report.invalid(&tile.to_string(), "its hashes are not the roots of the tiles below");
                }
                if tile.width() == TILE_WIDTH {
                    roots.push(subtree_root(own));
                }
            }
            below = roots;
        }
    }

    /// Describes what the bundle proves.
    fn say(&mut self) {
        let report = &mut self.report;
        let (outcome, size) = (report.outcome(), self.manifest.size);
        let mut say = |sentence: String| report.says.push(sentence);
        match outcome {
            Outcome::Invalid => say("This bundle proves nothing until what is named above is explained.".to_owned()),
            Outcome::Diverges => {
                say("The log signed two histories. Keep this bundle and the head that you hold: together they prove it."
                    .to_owned());
            }
            Outcome::Incomplete => {
                say("Each event that is here is genuine and in its place; of those that are not here only the hashes are \
                     known, and what is in a payload that is not here is not known."
                    .to_owned());
                if report.lacked > 0 {
                    say(format!(
                        "{} messages of the organization are parked: the log says so in their places, and lacks what \
                         they say until the operator has decided about them.",
                        report.lacked
                    ));
                }
            }
            Outcome::Valid | Outcome::NotWitnessed => {
                say(format!("None of the {size} events was altered, dropped or put in since this head was signed."));
            }
        }
        if outcome <= Outcome::Incomplete && report.given_up > 0 {
            say(format!(
                "{} messages of the organization are not in the log, because the operator gave them up: see the notes.",
                report.given_up
            ));
        }
        if outcome <= Outcome::Incomplete {
            say("What happened after this head, and what was never recorded, is not part of the proof.".to_owned());
        }
        if outcome == Outcome::NotWitnessed {
            say("Only the log's own key vouches for it: compare the head with one that you or others hold.".to_owned());
        }
    }
}

/// The values that the next event is compared with.
struct Order {
    org: OrgId,
    latest: Timestamp,
    seen_by: usize,
    lacked: Lacked,
    /// The number of events whose times were noted.
    noted: u64,
}

impl Order {
    fn note(&mut self, report: &mut Report, idx: u64, what: &str) {
        self.noted += 1;
        if self.noted <= NOTED {
            report.notes.push(format!("event {idx}: {what}"));
        }
    }
}

/// The tiles of leaves of a tree.
fn leaf_tiles(size: u64) -> impl Iterator<Item = Tile> {
    Tile::grown(0, size).take_while(|tile| tile.level() == 0)
}

/// The files that show the events to people and programs, as far as they exist.
struct Renderings {
    jsonl: Option<Lines>,
    csv: Option<Lines>,
    ocsf: Option<Lines>,
}

impl Renderings {
    fn open(files: &mut Files, report: &mut Report) -> Self {
        let mut open = |path| {
            if files.has(path) {
                return files.lines(path, report);
            }
            report.notes.push(format!("{path} is not in the bundle"));
            None
        };
        let (jsonl, mut csv, ocsf) = (open(JSONL), open(CSV), open(OCSF));
        if let Some(csv) = &mut csv {
            csv.expect(CSV_HEAD, None, report);
        }
        Self { jsonl, csv, ocsf }
    }

    fn expect(&mut self, entry: &Entry, report: &mut Report) {
        let idx = Some(entry.idx);
        if let Some(lines) = &mut self.jsonl {
            lines.expect(&entry.jsonl(), idx, report);
        }
        if let Some(lines) = &mut self.csv {
            lines.expect(&entry.csv(), idx, report);
        }
        if let Some(lines) = &mut self.ocsf {
            lines.expect(&entry.ocsf(), idx, report);
        }
    }

    /// Skips the lines of an entry that cannot be decoded: their content cannot be compared.
    fn skip(&mut self) {
        for lines in [&mut self.jsonl, &mut self.csv, &mut self.ocsf].into_iter().flatten() {
            lines.skip();
        }
    }

    fn finish(self, report: &mut Report) {
        for lines in [self.jsonl, self.csv, self.ocsf].into_iter().flatten() {
            lines.finish(report);
        }
    }
}
