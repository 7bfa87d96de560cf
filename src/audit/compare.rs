//! A comparison of three records of one organization: the stream, the audit log, and the read models. The stream is
//! authoritative: the others are compared up to its end, whatever they report of their own progress, and the read models
//! with what its messages produce. To hide a change, an attacker would have to change all three, and the signed heads.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures_util::{StreamExt, pin_mut};
use orgstream_events::{
    AggregateId, AggregateName, Chain, CodecError, Event, OpenedCommit, OpenedEvent, OrgId, ParkingEvent, PerPipeline,
    Pipeline, Shard,
};
use orgstream_projections::{
    Applied, BoundOrg, Database, DbError, Drift, Scratch, TenantTx,
    audit::{self, KeysOf, StoredEvent},
    checkpoints, compare_tables, organizations,
    parked::{self, Parked},
};
use orgstream_stream::{Freshness, Log, Message, Placement};
use orgstream_transparency::{Frontier, TreeHead, leaf_hash};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::lacked::Lacked;

/// The number of events that are read at a time: more than a commit has, which are 1,000 at most.
const EVENTS: u16 = 2_000;
/// The number of events that are applied at a time.
const APPLIED: usize = 500;
/// The number of parked messages that are read at a time.
const PAGE: u16 = 500;
/// The maximum number of named items of each kind; the rest is counted.
const NAMED: usize = 100;
/// The polling interval of the pipelines' progress.
const LOOK: Duration = Duration::from_millis(100);

/// State that is not compared, because it follows from no event.
const BESIDE_THE_EVENTS: &str = "what follows from no event: mails that are due, when keys were used, how far logs were sent \
    elsewhere, people and sessions, leases and jobs of workers, and why messages are parked";
/// Versions that are kept for a rollback, and not compared.
const OTHER_VERSIONS: &str = "versions of the read models that are not shown";
/// The note about a missing external key.
const NO_PIN: &str = "the log's key: heads were verified by the keys that the database names; give --log-key to have them \
    verified by the one that you know";

/// The result of the comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// The last sequence of the organization in the stream.
    pub(crate) ends: u64,
    /// The number of events in the stream that the audit log does not mark as lacking, and the root over them.
    pub(crate) stream: (u64, String),
    /// The number of events in the audit log without its own marks, and the root over them, in the stream's order.
    pub(crate) audit: (u64, String),
    /// The number of valid signed heads of the audit log.
    pub(crate) heads: u64,
    /// The size of the newest of them.
    pub(crate) signed: Option<u64>,
    /// The source of trust in the keys that signed them.
    pub(crate) keys_of: KeysOf,
    /// The number of events of the audit log that no signed head covers.
    pub(crate) unsigned: u64,
    /// The number of rows of the read models.
    pub(crate) rows: u64,
    /// Messages of the stream that are not in the audit log because an operator skipped them, according to the log; the
    /// first ones.
    pub(crate) given_up: Vec<String>,
    /// The differences.
    pub(crate) differences: Vec<String>,
    /// The number of differences beyond those that are named.
    pub(crate) more: u64,
    /// Notes that are no differences: messages that are in no record, and why.
    pub(crate) notes: Vec<String>,
    /// State that was not compared.
    pub(crate) left_out: Vec<String>,
}

/// The findings so far.
#[derive(Default)]
struct Found {
    differences: Vec<String>,
    more: u64,
    notes: Vec<String>,
}

impl Found {
    fn differs(&mut self, what: impl Into<String>) {
        if self.differences.len() < NAMED {
            self.differences.push(what.into());
        } else {
            self.more += 1;
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        match self.notes.len() {
            number if number < NAMED => self.notes.push(what.into()),
            NAMED => self.notes.push("and more of the kind".to_owned()),
            _ => {}
        }
    }
}

/// Compares the records up to the end of the stream, waiting for the pipelines for up to `patience`.
pub(crate) async fn compare(log: &Log, db: &Database, org: OrgId, patience: Duration) -> anyhow::Result<Compared> {
    let placement = log.placement(org).await?.with_context(|| format!("there is no organization {org}"))?;
    let bound = BoundOrg::named_by_operator(org);
    let end = log.head(&placement).await?;
    catch_up(db, bound, &placement, end, patience).await?;
    // All tables are read at one moment, and the stream has everything that they may have by then.
    let mut shown = db.read(bound).await?;
    shown.take_time().await?;
    let mut found = Found::default();
    let now = log.head(&placement).await?;
    let places = checkpoints::each(&mut shown).await?;
    let upto = PerPipeline::of(|pipeline| {
        let place = places[pipeline].map(|(shard, seq)| (shard == placement.shard, seq));
        reach(&placement, pipeline, place, (end, now), &mut found)
    });
    let (stream, audited, scratch, given_up) =
        Comparing::begin(log, db, &placement, &mut shown, upto, &mut found).await?.run(log, &placement).await?;
    if now == 0 {
        found.differs("the stream has no event of this organization, so there is nothing to compare with");
    }
    let checked = audit::check(&mut shown).await?;
    checked.differences.into_iter().for_each(|what| found.differs(what));
    let (mut made, plan) = scratch.into_view();
    made.take_time().await?;
    if organizations::booked(&mut shown).await? != plan {
        found.differs("ops.plans is not what the events make of it");
    }
    let tables = compare_tables(&mut shown, &mut made).await?;
    found.more += tables.differences.saturating_sub(tables.found.len() as u64);
    tables.found.iter().for_each(|drift| found.differs(in_words(drift)));
    let told = |head: TreeHead| (head.size, head.root.to_string());
    let signed = checked.newest.map(|newest| newest.head.size);
    let mut left_out = vec![BESIDE_THE_EVENTS.to_owned(), OTHER_VERSIONS.to_owned()];
    let others = Pipeline::ALL.into_iter().filter(|pipeline| !pipeline.is_log() && !pipeline.has_versions());
    left_out.extend(others.map(|pipeline| format!("what the pipeline {pipeline} writes, but for how far it is")));
    if checked.keys_of == KeysOf::Database {
        left_out.push(NO_PIN.to_owned());
    }
    Ok(Compared {
        ends: now,
        stream: told(stream),
        audit: told(audited),
        heads: checked.heads,
        signed,
        keys_of: checked.keys_of,
        unsigned: checked.head.size.saturating_sub(signed.unwrap_or(0)),
        rows: tables.rows,
        given_up,
        differences: found.differences,
        more: found.more,
        notes: found.notes,
        left_out,
    })
}

/// Waits until all pipelines report `end`, or until the patience is exhausted.
async fn catch_up(
    db: &Database,
    org: BoundOrg,
    placement: &Placement,
    end: u64,
    patience: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let mut tx = db.read(org).await?;
        let behind =
            |place: Option<(Shard, u64)>| place.is_none_or(|(shard, seq)| shard == placement.shard && seq < end);
        let is_behind = checkpoints::each(&mut tx).await?.iter().any(|(_, place)| behind(*place));
        if !is_behind || Instant::now() >= deadline {
            return Ok(());
        }
        drop(tx);
        sleep(LOOK).await;
    }
}

/// Returns the sequence up to which a pipeline's tables are compared: the stream's end when the command started, and the
/// checkpoint's sequence beyond that, if the stream has it. `place` is whether the checkpoint is of the right stream, and
/// its sequence.
fn reach(
    placement: &Placement,
    pipeline: Pipeline,
    place: Option<(bool, u64)>,
    (end, now): (u64, u64),
    found: &mut Found,
) -> u64 {
    match place {
        None if end > 0 => found.differs(format!("{pipeline} has no checkpoint, and the stream ends at {now}")),
        Some((false, _)) => {
            found.differs(format!("the checkpoint of {pipeline} is of another shard than {}", placement.shard));
        }
        Some((true, seq)) if seq < end => found.differs(format!(
            "the checkpoint of {pipeline} is at {seq}, and the stream had come to {end}: the pipeline is behind (see \
             `orgstream lag`), or the checkpoint was changed"
        )),
        Some((true, seq)) if seq > now => found.differs(format!(
            "the checkpoint of {pipeline} is at {seq}, and the stream ends at {now}: the log has lost data, or the \
             checkpoint was changed"
        )),
        _ => {}
    }
    place.map_or(end, |(_, seq)| seq.clamp(end, now.max(end)))
}

/// The stream's messages, one after the other, with the expected state of each.
struct Comparing<'a> {
    org: OrgId,
    rows: Rows<'a>,
    upto: PerPipeline<u64>,
    found: &'a mut Found,
    scratch: Scratch,
    /// Commits that were not applied yet, and the number of their events.
    waiting: (Vec<Applied>, usize),
    /// Aggregates with an event that could not be applied.
    blocked: BTreeSet<AggregateName>,
    parked: BTreeMap<(Pipeline, u64), Parked>,
    /// Messages that operators skipped for the read models.
    skipped: BTreeSet<u64>,
    /// The audit log's marks of what it lacks.
    lacked: Lacked,
    trees: [Frontier; 2],
    /// The index in the audit log of the last event that was not applied late.
    last_idx: Option<u64>,
}

impl<'a> Comparing<'a> {
    async fn begin(
        log: &Log,
        db: &Database,
        placement: &Placement,
        shown: &'a mut TenantTx,
        upto: PerPipeline<u64>,
        found: &'a mut Found,
    ) -> anyhow::Result<Self> {
        let (mut stored, mut after) = (BTreeMap::new(), None);
        loop {
            let page = parked::list(shown, after, PAGE).await?;
            let is_last = page.len() < usize::from(PAGE);
            after = page.last().map(|parked| (parked.pipeline, parked.seq));
            stored.extend(page.into_iter().map(|parked| ((parked.pipeline, parked.seq), parked)));
            if is_last {
                break;
            }
        }
        Ok(Self {
            org: placement.org,
            rows: Rows { tx: shown, left: VecDeque::new(), next: Some(1) },
            upto,
            found,
            scratch: db.scratch(BoundOrg::named_by_operator(placement.org), rand::random()).await?.up_to(upto),
            waiting: (Vec::new(), 0),
            blocked: BTreeSet::new(),
            parked: stored,
            skipped: skipped(log, placement).await?,
            lacked: Lacked::default(),
            trees: Default::default(),
            last_idx: None,
        })
    }

    async fn run(
        mut self,
        log: &Log,
        placement: &Placement,
    ) -> anyhow::Result<(TreeHead, TreeHead, Scratch, Vec<String>)> {
        let replay = log.replay(placement, 1);
        pin_mut!(replay);
        let last = self.upto.iter().map(|(_, seq)| *seq).max().unwrap_or(0);
        while let Some(message) = replay.next().await {
            let message = message?;
            if message.seq > last {
                break;
            }
            self.message(log, &message).await?;
        }
        while let Some(stray) = self.rows.next().await? {
            self.stray(&stray);
        }
        self.apply().await?;
        for ((pipeline, seq), parked) in std::mem::take(&mut self.parked) {
            self.found.differs(format!(
                "ops.parked has a message of {pipeline} at {}:{seq} ({}) that the stream has not",
                self.org, parked.subject
            ));
        }
        let (found, [stream, audited]) = (self.found, self.trees);
        let given_up = self.lacked.finish(self.org, |what| found.differs(what));
        Ok((stream.head(), audited.head(), self.scratch, given_up))
    }

    async fn message(&mut self, log: &Log, message: &Message) -> anyhow::Result<()> {
        let (place, seq) = (format!("{}:{}", self.org, message.seq), message.seq);
        // Rows at an earlier position belong to nothing in the stream.
        while let Some(stray) = self.rows.next_before(seq, i32::MIN).await? {
            self.stray(&stray);
        }
        while let Some(mark) = self.rows.next_mark(seq).await? {
            if let Some(what) = self.lacked.mark(message, mark) {
                self.found.differs(what);
            }
        }
        let content = message.content(log.keys());
        for pipeline in Pipeline::ALL {
            self.parked_as_it_came(pipeline, message, content.as_deref().ok()).await?;
        }
        match message.open(log.keys()) {
            Ok(stored) => {
                let commit = Arc::new(stored.commit);
                let is_told = seq <= self.upto[Pipeline::Audit] && self.audited(seq, &commit).await?;
                let versioned = self.upto.iter().filter(|(pipeline, _)| pipeline.has_versions());
                if versioned.map(|(_, upto)| *upto).max().is_some_and(|upto| seq <= upto) && !is_told {
                    self.applied(seq, AggregateName::of_subject(&message.subject), commit).await?;
                }
            }
            // It is not counted, and the audit log's mark of it is all that can be compared.
            Err(error) => match content {
                _ if self.lacked.has(seq) => {
                    self.found.note(format!("the message {place} is in no account: {}", Chain(&error)));
                }
                Err(CodecError::NotAuthentic { .. }) => {
                    let what = "and the audit log has no mark in its place";
                    self.found.differs(format!("the message {place} is in no account, {what}: {}", Chain(&error)));
                }
                _ => self.found.differs(format!(
                    "the message at {place} cannot be read, and the audit log does not say so: {}",
                    Chain(&error)
                )),
            },
        }
        for pipeline in Pipeline::ALL {
            self.parked.remove(&(pipeline, seq));
        }
        Ok(())
    }

    /// Compares one message with the audit log. Returns whether all of it are access events that are recorded already.
    async fn audited(&mut self, seq: u64, commit: &OpenedCommit) -> anyhow::Result<bool> {
        let place = format!("{}:{seq}", self.org);
        if self.lacked.has(seq) && self.rows.next_is_behind(seq).await? {
            return Ok(false);
        }
        self.lacked.found(seq);
        let mut told = 0;
        for (ordinal, (event, fingerprint)) in (0..).zip(commit.events_and_fingerprints()) {
            while let Some(stray) = self.rows.next_before(seq, ordinal).await? {
                self.stray(&stray);
            }
            let expected = StoredEvent { idx: None, seq, ordinal, fingerprint, sealed: event.sealed.clone() };
            let row = self.rows.next_at(seq, ordinal).await?;
            if row.is_none() && self.is_told_already(event, seq).await? {
                told += 1;
                continue;
            }
            let [stream, audited] = &mut self.trees;
            stream.append(leaf_hash(&event.sealed.header));
            let Some(row) = row else {
                self.found.differs(format!("the event at {place} is not in the audit log"));
                continue;
            };
            audited.append(leaf_hash(&row.sealed.header));
            for what in differing(&row, &expected) {
                self.found.differs(format!("the audit log has another {what} than the stream at {place}"));
            }
            // A parked message's events have the index at which they were applied.
            if let Some(idx) = row.idx.filter(|_| !self.lacked.has(seq)) {
                if self.last_idx.is_some_and(|last| last > idx) {
                    self.found.differs(format!("event {idx} of the audit log stands before one that came earlier"));
                }
                self.last_idx = self.last_idx.max(Some(idx));
            }
        }
        if self.parked.contains_key(&(Pipeline::Audit, seq)) && told < commit.events.len() {
            self.found.differs(format!("ops.parked has the message {place} of audit, and the audit log has it, too"));
        }
        Ok(told == commit.events.len())
    }

    /// Queues a message to be applied, unless it is one that the read models do not have.
    async fn applied(&mut self, seq: u64, aggregate: AggregateName, commit: Arc<OpenedCommit>) -> anyhow::Result<()> {
        let place = format!("{}:{seq}", self.org);
        if self.parked.contains_key(&(Pipeline::ReadModels, seq)) {
            let what = "is parked and was not applied (see `orgstream park list`)";
            self.found.differs(format!("read models: the message {place} {what}"));
            return Ok(());
        }
        if self.skipped.contains(&seq) {
            self.found.note(format!("read models: an operator gave up the message {place}"));
            return Ok(());
        }
        if self.blocked.contains(&aggregate) {
            return Ok(());
        }
        self.waiting.1 += commit.events.len();
        self.waiting.0.push(Applied { seq, commit });
        if self.waiting.1 >= APPLIED { self.apply().await } else { Ok(()) }
    }

    /// Applies the queued commits; where that fails, one by one.
    async fn apply(&mut self) -> anyhow::Result<()> {
        let (commits, _) = std::mem::take(&mut self.waiting);
        match self.scratch.apply(&commits).await {
            Err(error) if error.may_be_of_an_event() => {}
            other => return Ok(other?),
        }
        for applied in commits {
            let first = applied.commit.events.first().map(|event| event.header.aggregate.aggregate.clone());
            let Some(aggregate) = first.map(AggregateName::from) else { continue };
            if self.blocked.contains(&aggregate) {
                continue;
            }
            match self.scratch.apply(std::slice::from_ref(&applied)).await {
                Ok(()) => {}
                Err(error) if error.may_be_of_an_event() => {
                    let place = format!("{}:{}", self.org, applied.seq);
                    self.found.differs(format!(
                        "read models: the message {place} cannot be applied, so {aggregate} was compared without it and \
                         what came after it: {}",
                        Chain(&error)
                    ));
                    self.blocked.insert(aggregate);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Compares the parked copy of a message with it.
    async fn parked_as_it_came(
        &mut self,
        pipeline: Pipeline,
        message: &Message,
        content: Option<&[u8]>,
    ) -> Result<(), DbError> {
        let Some(parked) = self.parked.get(&(pipeline, message.seq)) else { return Ok(()) };
        let stored = parked::bytes(self.rows.tx, pipeline, message.seq).await?;
        let is_it = stored.is_some_and(|(bytes, verified)| {
            let came = if verified { content } else { Some(&*message.payload) };
            came == Some(&*bytes)
        });
        if !is_it || parked.subject != message.subject {
            let place = format!("{}:{}", self.org, message.seq);
            self.found.differs(format!("ops.parked has another message of {pipeline} than the stream at {place}"));
        }
        Ok(())
    }

    fn stray(&mut self, stray: &StoredEvent) {
        let [_, audited] = &mut self.trees;
        audited.append(leaf_hash(&stray.sealed.header));
        let (org, seq) = (self.org, stray.seq);
        self.found.differs(format!("the audit log has an event at {org}:{seq} that the stream has not"));
    }

    /// An access event may be in the stream twice; the audit log has it once, where it came first.
    async fn is_told_already(&mut self, event: &OpenedEvent, seq: u64) -> Result<bool, DbError> {
        if !event.header.aggregate.aggregate.is_access() {
            return Ok(false);
        }
        let told = audit::get(self.rows.tx, event.header.event_id).await?;
        Ok(told.is_some_and(|told| told.seq <= seq && told.event_id == event.header.event_id))
    }
}

fn differing(row: &StoredEvent, expected: &StoredEvent) -> Vec<&'static str> {
    let is_other: [(&str, bool); 3] = [
        ("event", row.sealed.header != expected.sealed.header),
        ("payload", row.sealed.payload != expected.sealed.payload),
        ("fingerprint", row.fingerprint != expected.fingerprint),
    ];
    is_other.into_iter().filter(|(_, is_other)| *is_other).map(|(what, _)| what).collect()
}

/// Returns the messages that operators skipped for the read models, according to the stream.
async fn skipped(log: &Log, placement: &Placement) -> anyhow::Result<BTreeSet<u64>> {
    let (mut skipped, mut after, mut ended) = (BTreeSet::new(), 0, false);
    while !ended {
        let decisions = AggregateId::Parking(Pipeline::ReadModels);
        let part = log.load(placement, &decisions, after, Freshness::Leader).await?;
        (after, ended) = (part.last, part.ended);
        for event in part.commits.iter().flat_map(|stored| &stored.commit.events) {
            if let Event::Parking(ParkingEvent::Skipped(skip)) = &event.event {
                skipped.insert(skip.seq);
            }
        }
    }
    Ok(skipped)
}

/// The audit log's rows in the order of the stream.
struct Rows<'a> {
    tx: &'a mut TenantTx,
    left: VecDeque<StoredEvent>,
    /// Rows are read by whole commits, from this sequence on; none at the end.
    next: Option<u64>,
}

impl Rows<'_> {
    async fn look(&mut self) -> Result<Option<&StoredEvent>, DbError> {
        if self.left.is_empty()
            && let Some(next) = self.next
        {
            let (read, is_end) = audit::stored_from(self.tx, next, EVENTS).await?;
            let last = read.last().map_or(0, |event| event.seq);
            // No commit has so many: where all of them claim to be of one, they are read as they are.
            let is_one = read.first().is_some_and(|event| event.seq == last);
            self.left.extend(read.into_iter().filter(|event| is_end || is_one || event.seq < last));
            self.next = (!is_end).then_some(if is_one { last.saturating_add(1) } else { last });
        }
        Ok(self.left.front())
    }

    async fn next(&mut self) -> Result<Option<StoredEvent>, DbError> {
        self.look().await?;
        Ok(self.left.pop_front())
    }

    /// Whether there are no more rows at this sequence.
    async fn next_is_behind(&mut self, seq: u64) -> Result<bool, DbError> {
        Ok(self.look().await?.is_none_or(|event| event.seq > seq))
    }

    /// Returns the next mark at this sequence.
    async fn next_mark(&mut self, seq: u64) -> Result<Option<StoredEvent>, DbError> {
        let is_mark = self.look().await?.is_some_and(|event| event.seq == seq && event.ordinal < 0);
        Ok(if is_mark { self.left.pop_front() } else { None })
    }

    /// Returns the next row, if it is before this position.
    async fn next_before(&mut self, seq: u64, ordinal: i32) -> Result<Option<StoredEvent>, DbError> {
        let is_before = self.look().await?.is_some_and(|event| (event.seq, event.ordinal) < (seq, ordinal));
        Ok(if is_before { self.left.pop_front() } else { None })
    }

    /// Returns the next row, if it is at this position.
    async fn next_at(&mut self, seq: u64, ordinal: i32) -> Result<Option<StoredEvent>, DbError> {
        let is_at = self.look().await?.is_some_and(|event| (event.seq, event.ordinal) == (seq, ordinal));
        Ok(if is_at { self.left.pop_front() } else { None })
    }
}

fn in_words(drift: &Drift) -> String {
    let Drift { table, key, columns, shown, built } = drift;
    let key = key.as_deref().unwrap_or_default();
    match (shown, built) {
        (Some(_), None) => format!("{table} {key}: follows from no event"),
        (None, _) => format!("{table} {key}: is missing"),
        _ => format!("{table} {key}: is not what the events make of it: {}", columns.join(", ")),
    }
}
