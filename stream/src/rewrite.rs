//! The rewrite of a shard: a copy of its stream without what was erased takes its place, under the same subjects and sequences.
//!
//! JetStream gives no bytes back for messages that are purged, and a purge holds up everything else of its stream. So the
//! messages are purged from a mirror that nobody reads, and a mirror of that mirror has their bytes nowhere. It takes over in a
//! moment in which the shard takes no appends, which wait and are tried again.
//!
//! Each step can be done again, and what was done is seen at the server and in the shard's record, so a run goes on where
//! another one was killed. Until the record names the new stream, everything can be thrown away; from then on the old stream is
//! not written to any more, and what is left is to delete it and to let the new one take its subjects. In this order, so that no
//! reader of the old one can miss what was appended to the new one.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_nats::jetstream::stream::{Config, Info, Source};
use bytes::Bytes;
use orgstream_events::{Chain, CodecError, EventSubject, Fingerprint, OrgId, PLATFORM_ORG, Shard};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    Log, ReadLimit, RewriteError, StreamError,
    api::{backoff, is_gone, next_on_leader},
    generation::{Erasing, Generation, Rewriting, ShardRecord, record_subject},
    placement::system_write,
    publish::{Answer, Write},
    read::Chunk,
    refill::tick_subject,
    streams::{self, differences},
    system::unreadable,
};

/// Organizations that one rewrite erases; further ones wait for the next.
const MAX_ERASING: usize = 1_000;
/// Messages that are not of this installation, over which a shard is not rewritten: they have to be looked at first.
const MAX_FORGED: usize = 1_000;
/// The time without any progress after which a copy counts as stuck.
const STALLED: Duration = Duration::from_secs(30);
/// The time in which the rest has to be copied while the shard takes no appends: less than they are tried for.
const HELD: Duration = Duration::from_secs(5);
/// The messages that are left to copy when the shard takes no appends, and how often the copy may catch up before.
const CLOSE: u64 = 100;
const ROUNDS: u32 = 200;
const LOOK: Duration = Duration::from_millis(20);
/// The time between two reports of a copy's progress.
const REPORT: Duration = Duration::from_secs(1);
const SCAN: ReadLimit = ReadLimit { messages: 2_000, bytes: 4 << 20 };
/// Tries of a request that must not be left undone, about 15 seconds.
const TRIES: u32 = 36;
const ERASED_TRIES: u32 = 5;
const TICKS: u32 = 5;

/// Messages of an organization that are erased, or wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// The organization.
    pub org: OrgId,
    /// The last sequence that is erased.
    pub to: u64,
    /// How many messages were erased; none until a rewrite has left them out.
    pub messages: Option<u64>,
}

/// What a rewrite of a shard would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewritePlan {
    /// The stream that serves the shard.
    pub stream: String,
    /// The generation of that stream.
    pub generation: u32,
    /// Its first sequence.
    pub first_seq: u64,
    /// Its last sequence.
    pub last_seq: u64,
    /// Its messages.
    pub messages: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// The messages that were erased from the shard so far.
    pub erased: u64,
    /// What waits to be erased.
    pub waiting: Vec<Erased>,
    /// Whether a rewrite was begun and has not ended.
    pub is_begun: bool,
}

/// A step of a rewrite, reported when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewriteStep {
    /// The first copy is made.
    Copy,
    /// It has come so far.
    Copied {
        /// The last sequence that was copied.
        at: u64,
        /// The last sequence to copy.
        end: u64,
    },
    /// What is erased is purged from the copy.
    Erase,
    /// The copy is copied.
    CopyAgain,
    /// Each message of the second copy is compared with the stream, whose signatures are checked.
    Compare,
    /// The stream takes no appends any more.
    Fence,
    /// The record names the new stream.
    Switch,
    /// The old stream is deleted.
    Delete,
    /// The new stream takes appends.
    Promote,
    /// The rest is cleared away.
    Settle,
}

impl fmt::Display for RewriteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copied { at, end } => return write!(f, "copied {at} of {end}"),
            Self::Copy => "copies the stream",
            Self::Erase => "erases from the copy",
            Self::CopyAgain => "copies the copy",
            Self::Compare => "compares each message",
            Self::Fence => "holds appends",
            Self::Switch => "writes down the new stream",
            Self::Delete => "deletes the old stream",
            Self::Promote => "lets the new stream take appends",
            Self::Settle => "clears away the rest",
        })
    }
}

/// A rewrite that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The generation that serves the shard.
    pub generation: u32,
    /// The last sequence that was copied.
    pub copied_to: u64,
    /// What this rewrite has left out.
    pub erased: Vec<Erased>,
    /// How long the shard took no appends; none if an earlier run had held them.
    pub held: Option<Duration>,
}

/// What the system stream says of the erased messages of an organization in a shard.
#[derive(Serialize, Deserialize)]
struct Mark {
    to: u64,
    #[serde(default)]
    messages: Option<u64>,
}

impl Log {
    /// Marks the messages of `org` in the shard up to the sequence `fence` (inclusive) as to be erased by the next rewrite. Safe
    /// to repeat. The organization must not be written to any more: what comes after the fence stays.
    pub async fn mark_erased(&self, shard: Shard, org: OrgId, fence: u64) -> Result<(), StreamError> {
        let end = self.shard_end(shard).await?;
        if org == PLATFORM_ORG || fence == 0 || fence > end {
            let what =
                format!("messages of {org} up to {fence} cannot be erased from shard {shard}, which ends at {end}");
            return Err(StreamError::Invalid(what));
        }
        self.write_mark(shard, org, &Mark { to: fence, messages: None }).await
    }

    /// Returns what was erased from the shard, and what waits for its next rewrite.
    pub async fn erased(&self, shard: Shard) -> Result<Vec<Erased>, StreamError> {
        let (filter, mut next) = (mark_subject(shard, "*"), 1);
        let mut marks = BTreeMap::new();
        while let Some(message) = next_on_leader(&self.inner.system, &filter, next).await? {
            next = message.sequence + 1;
            let Some(content) = self.system_content(&message)? else { continue };
            let corrupt = |reason: Box<dyn std::error::Error + Send + Sync>| StreamError::Corrupt {
                subject: message.subject.to_string(),
                seq: message.sequence,
                reason: orgstream_events::cause(reason),
            };
            let org = message.subject.as_str().rsplit('.').next().unwrap_or_default();
            let org: OrgId = org.parse().map_err(|_| corrupt("it names no organization".into()))?;
            let mark: Mark = serde_json::from_slice(&content).map_err(|error| corrupt(error.into()))?;
            marks.insert(org, mark);
        }
        Ok(marks.into_iter().map(|(org, Mark { to, messages })| Erased { org, to, messages }).collect())
    }

    async fn write_mark(&self, shard: Shard, org: OrgId, mark: &Mark) -> Result<(), StreamError> {
        let subject = mark_subject(shard, &org.to_string());
        let payload: Bytes = serde_json::to_vec(mark).map_err(StreamError::Unencodable)?.into();
        for _ in 0..ERASED_TRIES {
            let fact = self.system_fact(&subject).await?;
            let (seq, content) = fact.map_or((0, None), |fact| (fact.seq, fact.content));
            let known: Option<Mark> = content.and_then(|content| serde_json::from_slice(&content).ok());
            if known.is_some_and(|known| known.to >= mark.to && (known.messages.is_some() || mark.messages.is_none())) {
                return Ok(());
            }
            let write = Write { payload: payload.clone(), expected: Some(seq), ..system_write(subject.clone()) };
            if self.write_system(&write).await?.is_some() {
                return Ok(());
            }
        }
        let reason = orgstream_events::cause("others keep writing it");
        Err(StreamError::Unavailable { action: "mark erased messages", reason })
    }

    /// Returns what a rewrite of the shard would do, and changes nothing.
    pub async fn rewrite_plan(&self, shard: Shard) -> Result<RewritePlan, StreamError> {
        self.look_up(shard).await?;
        let (generation, info) = self.shard_info(shard).await?;
        let waiting = self.erased(shard).await?.into_iter().filter(|erased| erased.messages.is_none()).collect();
        Ok(RewritePlan {
            stream: generation.name.clone(),
            generation: generation.record.generation,
            first_seq: info.state.first_sequence,
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
            erased: generation.record.erased,
            waiting,
            is_begun: generation.record.rewriting.is_some(),
        })
    }

    /// Rewrites the shard without what waits to be erased, or goes on with a rewrite that was interrupted. Only the
    /// administrator's credentials may do that. Writers and readers go on meanwhile.
    pub async fn rewrite(&self, shard: Shard, told: impl FnMut(RewriteStep) + Send) -> Result<Rewritten, RewriteError> {
        let mut run = Run::begin(self, shard, told).await?;
        if run.rewriting.to != run.record.generation
            && let Err(error) = run.copy().await
        {
            run.give_up(&error).await;
            return Err(error);
        }
        run.settle().await
    }
}

/// One run of a rewrite.
struct Run<'a, F> {
    log: &'a Log,
    shard: Shard,
    told: F,
    record: ShardRecord,
    record_seq: u64,
    rewriting: Rewriting,
    /// Since when the shard takes no appends.
    fenced: Option<Instant>,
}

/// The messages of a stream that were compared.
#[derive(Default)]
struct Scan {
    /// The last sequence.
    at: u64,
    /// A hash over all messages that are kept.
    digest: Option<Fingerprint>,
    forged: Vec<u64>,
    erased: BTreeMap<OrgId, u64>,
}

#[derive(Deserialize)]
struct Done {
    success: bool,
}

impl<'a, F: FnMut(RewriteStep) + Send> Run<'a, F> {
    async fn begin(log: &'a Log, shard: Shard, told: F) -> Result<Self, RewriteError> {
        // Nothing is written down of a shard that there is not.
        log.shard_info(shard).await?;
        let (record, record_seq) = log.shard_record(shard).await?;
        let rewriting = match &record.rewriting {
            Some(rewriting) => Rewriting { run: Uuid::now_v7(), ..rewriting.clone() },
            None => {
                let waiting = log.erased(shard).await?.into_iter().filter(|erased| erased.messages.is_none());
                let erasing = |Erased { org, to, .. }| Erasing { org, to, messages: 0 };
                Rewriting {
                    from: record.generation,
                    to: record.begun + 1,
                    run: Uuid::now_v7(),
                    erasing: waiting.take(MAX_ERASING).map(erasing).collect(),
                }
            }
        };
        let mut run = Self { log, shard, told, record: record.clone(), record_seq, rewriting, fenced: None };
        let record = ShardRecord { begun: run.rewriting.to, rewriting: Some(run.rewriting.clone()), ..record };
        let given_up = (record.generation + 1)..run.rewriting.to;
        run.write_record(record).await?;
        for generation in given_up {
            run.delete_copies(generation).await?;
        }
        Ok(run)
    }

    fn live(&self) -> String {
        streams::name(self.shard, self.rewriting.from)
    }

    /// The mirror from which is purged.
    fn copy_name(&self) -> String {
        copy_of(&self.new_name())
    }

    fn new_name(&self) -> String {
        streams::name(self.shard, self.rewriting.to)
    }

    fn tell(&mut self, step: RewriteStep) {
        tracing::debug!(shard = %self.shard, %step, "a shard is rewritten");
        (self.told)(step);
    }

    /// Makes the new stream up to the moment in which it serves the shard.
    async fn copy(&mut self) -> Result<(), RewriteError> {
        let (live, copy, new) = (self.live(), self.copy_name(), self.new_name());
        let subjects = self.log.serving(self.shard, self.rewriting.from).subjects;
        // An earlier run was killed while it held appends: comparing again takes time.
        self.change(&live, |config| config.subjects.clone_from(&subjects)).await?;
        if self.log.stream_info(&new).await?.is_none() {
            self.tell(RewriteStep::Copy);
            if self.log.stream_info(&copy).await?.is_none() {
                // The server lets a mirror answer direct gets in the name of a stream that allows them when it is made.
                self.change(&live, |config| config.allow_direct = false).await?;
                let copied = Config { allow_direct: false, deny_purge: false, ..self.mirror(&copy, &live) };
                self.log.create(&copied).await?;
            }
            self.change(&live, |config| config.allow_direct = true).await?;
            let end = self.info(&live).await?.state.last_sequence;
            self.wait(&copy, end, STALLED).await?;
            self.tell(RewriteStep::Erase);
            for Erasing { org, to, .. } in self.rewriting.erasing.clone() {
                let purge = json!({ "filter": EventSubject::all_of_org(self.shard, org), "seq": to + 1 });
                self.done("erase messages", format!("STREAM.PURGE.{copy}"), &purge).await?;
            }
            // A mirror does not learn of the end of a stream whose last messages were purged.
            let tick = self.tick().await?;
            self.wait(&copy, tick, STALLED).await?;
            self.tell(RewriteStep::CopyAgain);
            self.log.create(&self.mirror(&new, &copy)).await?;
        } else {
            self.change(&live, |config| config.allow_direct = true).await?;
        }

        self.tell(RewriteStep::Compare);
        let from = self.stream(self.record.clone()).await?;
        let to = self.stream(ShardRecord { generation: self.rewriting.to, ..ShardRecord::default() }).await?;
        let (mut source, mut target) = (Scan::default(), Scan::default());
        for round in 1.. {
            let end = self.info(&live).await?.state.last_sequence;
            self.wait(&new, end, STALLED).await?;
            self.scan(&from, &mut source, end).await?;
            self.scan(&to, &mut target, end).await?;
            self.compare(&source, &target)?;
            let behind = self.info(&live).await?.state.last_sequence - end;
            if behind <= CLOSE {
                break;
            }
            if round == ROUNDS {
                return Err(RewriteError::Busy { shard: self.shard, behind });
            }
        }

        self.is_mine().await?;
        self.tell(RewriteStep::Fence);
        self.fenced.get_or_insert_with(Instant::now);
        let only = vec![tick_subject(self.shard, self.rewriting.to)];
        self.change(&live, |config| config.subjects.clone_from(&only)).await?;
        // The server still stores what it had received before; this comes behind all of that.
        let end = self.tick().await?;
        let state = self.info(&live).await?.state;
        if state.last_sequence != end {
            return Err(self.differs(format!("{live} goes on after {end}")));
        }
        let copied = self.wait(&new, end, HELD).await?.state;
        self.scan(&from, &mut source, state.last_sequence).await?;
        self.scan(&to, &mut target, state.last_sequence).await?;
        self.compare(&source, &target)?;
        let erased: u64 = source.erased.values().sum();
        if copied.last_sequence != state.last_sequence || copied.messages + erased != state.messages {
            return Err(self.differs(format!(
                "it has {} messages up to {}, and {erased} of {} up to {} are erased",
                copied.messages, copied.last_sequence, state.messages, state.last_sequence
            )));
        }

        self.tell(RewriteStep::Switch);
        for erasing in &mut self.rewriting.erasing {
            erasing.messages = source.erased.get(&erasing.org).copied().unwrap_or_default();
        }
        let erased_to = self.rewriting.erasing.iter().map(|erasing| erasing.to).fold(self.record.erased_to, u64::max);
        let record = ShardRecord {
            generation: self.rewriting.to,
            rewriting: Some(self.rewriting.clone()),
            copied_to: state.last_sequence,
            forged: source.forged,
            erased_to,
            erased: self.record.erased + erased,
            ..self.record.clone()
        };
        self.write_record(record).await
    }

    /// Takes the old stream away, and lets the new one take appends.
    async fn settle(mut self) -> Result<Rewritten, RewriteError> {
        let (live, copy, new) = (self.live(), self.copy_name(), self.new_name());
        self.tell(RewriteStep::Delete);
        if self.log.stream_info(&live).await?.is_some() {
            self.copy_late(&live, &new).await?;
            self.done("delete a stream", format!("STREAM.DELETE.{live}"), &json!({})).await?;
        }
        self.tell(RewriteStep::Promote);
        let serving = self.log.serving(self.shard, self.rewriting.to);
        if !differences(&serving, &self.info(&new).await?.config, false).is_empty() {
            let info: Info = self.log.ask("change a stream", format!("STREAM.UPDATE.{new}"), &serving).await?;
            if let Some(finding) = differences(&serving, &info.config, false).first() {
                return Err(StreamError::Invalid(finding.to_string()).into());
            }
        }
        let held = self.fenced.map(|since| since.elapsed());
        self.tell(RewriteStep::Settle);
        if self.log.stream_info(&copy).await?.is_some() {
            self.done("delete a stream", format!("STREAM.DELETE.{copy}"), &json!({})).await?;
        }
        let erasing = self.rewriting.erasing.clone();
        if !erasing.is_empty() {
            // Snapshots may have what was erased. Any may be removed, and only a purge of all of them gives their bytes back.
            self.done("erase snapshots", format!("STREAM.PURGE.{}", streams::SNAPSHOTS), &json!({})).await?;
        }
        let mut erased = Vec::with_capacity(erasing.len());
        for Erasing { org, to, messages } in erasing {
            self.log.write_mark(self.shard, org, &Mark { to, messages: Some(messages) }).await?;
            erased.push(Erased { org, to, messages: Some(messages) });
        }
        self.write_record(ShardRecord { rewriting: None, ..self.record.clone() }).await?;
        self.log.look_up(self.shard).await?;
        Ok(Rewritten { generation: self.record.generation, copied_to: self.record.copied_to, erased, held })
    }

    /// Copies what the old stream has stored after all: a message that the server was just handing over when its subjects were
    /// taken away.
    async fn copy_late(&mut self, live: &str, new: &str) -> Result<(), RewriteError> {
        loop {
            let end = self.info(live).await?.state.last_sequence;
            if end == self.record.copied_to {
                return Ok(());
            }
            self.wait(new, end, STALLED).await?;
            let old = ShardRecord { generation: self.rewriting.from, ..ShardRecord::default() };
            let mut late = Scan { at: self.record.copied_to, ..Scan::default() };
            self.scan(&self.stream(old).await?, &mut late, end).await?;
            let mut record = ShardRecord { copied_to: end, ..self.record.clone() };
            record.forged.extend(late.forged);
            self.write_record(record).await?;
        }
    }

    /// Serves the shard as before, and throws the copies away if they are of no use.
    async fn give_up(&mut self, error: &RewriteError) {
        let is_useless = matches!(error, RewriteError::Stalled { .. } | RewriteError::Differs { .. });
        if matches!(error, RewriteError::TakenOver { .. }) || (self.fenced.is_none() && !is_useless) {
            return;
        }
        for tries in 0..TRIES {
            match self.undo().await {
                Ok(()) | Err(RewriteError::TakenOver { .. }) => return,
                Err(error) => {
                    tracing::warn!(shard = %self.shard, error = %Chain(&error), "a rewrite is not undone yet");
                    sleep(backoff(tries)).await;
                }
            }
        }
        tracing::error!(
            shard = %self.shard,
            "a rewrite could not be undone, and the shard may take no appends: run `orgstream shard rewrite` again"
        );
    }

    async fn undo(&mut self) -> Result<(), RewriteError> {
        self.is_mine().await?;
        let (live, subjects) = (self.live(), self.log.serving(self.shard, self.rewriting.from).subjects);
        self.change(&live, |config| {
            config.subjects.clone_from(&subjects);
            config.allow_direct = true;
        })
        .await?;
        // First of all the copies are nobody's: a run that goes on with them would have them deleted under it.
        self.write_record(ShardRecord { rewriting: None, ..self.record.clone() }).await?;
        self.delete_copies(self.rewriting.to).await
    }

    /// Deletes what an earlier run has left of a generation that serves nothing.
    async fn delete_copies(&self, generation: u32) -> Result<(), RewriteError> {
        let name = streams::name(self.shard, generation);
        for name in [copy_of(&name), name] {
            if self.log.stream_info(&name).await?.is_some() {
                self.done("delete a stream", format!("STREAM.DELETE.{name}"), &json!({})).await?;
            }
        }
        Ok(())
    }

    async fn write_record(&mut self, record: ShardRecord) -> Result<(), RewriteError> {
        let payload = serde_json::to_vec(&record).map_err(StreamError::Unencodable)?.into();
        let write = Write { payload, expected: Some(self.record_seq), ..system_write(record_subject(self.shard)) };
        self.record_seq = match self.log.write_system(&write).await? {
            Some(seq) => seq,
            // Its answer may have been lost.
            None => match self.log.shard_record(self.shard).await? {
                (found, seq) if found == record && seq > self.record_seq => seq,
                _ => return Err(RewriteError::TakenOver { shard: self.shard }),
            },
        };
        self.record = record;
        Ok(())
    }

    async fn is_mine(&self) -> Result<(), RewriteError> {
        let (_, seq) = self.log.shard_record(self.shard).await?;
        if seq == self.record_seq { Ok(()) } else { Err(RewriteError::TakenOver { shard: self.shard }) }
    }

    fn mirror(&self, name: &str, of: &str) -> Config {
        Config {
            name: name.to_owned(),
            subjects: Vec::new(),
            mirror: Some(Source { name: of.to_owned(), ..Source::default() }),
            // The ids of copied messages are not kept.
            duplicate_window: Duration::ZERO,
            allow_atomic_publish: false,
            ..self.log.serving(self.shard, self.rewriting.to)
        }
    }

    async fn info(&self, name: &str) -> Result<Info, RewriteError> {
        let found = self.log.stream_info(name).await?;
        found.ok_or_else(|| self.differs(format!("stream {name} is gone")))
    }

    async fn change(&self, name: &str, change: impl Fn(&mut Config) + Send) -> Result<(), RewriteError> {
        let before = self.info(name).await?.config;
        let mut config = before.clone();
        change(&mut config);
        if config != before {
            let _: Info = self.log.ask("change a stream", format!("STREAM.UPDATE.{name}"), &config).await?;
        }
        Ok(())
    }

    async fn done(&self, action: &'static str, subject: String, body: &serde_json::Value) -> Result<(), RewriteError> {
        let Done { success } = self.log.ask(action, subject, body).await?;
        if success { Ok(()) } else { Err(StreamError::Invalid(format!("the server did not {action}")).into()) }
    }

    /// Stores a message of no organization behind all others, and returns its sequence.
    async fn tick(&self) -> Result<u64, RewriteError> {
        let payload = Bytes::from_static(b"rewrite");
        let subject = tick_subject(self.shard, self.rewriting.to);
        let write = Write { subject, payload, message_id: None, expected: None, trace: None };
        let mut tries = 0;
        loop {
            match self.log.inner.publisher.publish_in_turn(&write).await {
                Answer::Stored { seq } => return Ok(seq),
                // One that was stored although its answer was lost does no harm.
                Answer::Unknown { .. } if tries < TICKS => sleep(backoff(tries)).await,
                Answer::Unknown { reason } => {
                    return Err(StreamError::Unavailable { action: "end a copy", reason }.into());
                }
                other => {
                    let what = format!("the server did not store the end of a copy: {other:?}");
                    return Err(StreamError::Invalid(what).into());
                }
            }
            tries += 1;
        }
    }

    /// Waits until every copy of the stream has the sequence.
    async fn wait(&mut self, name: &str, end: u64, stalled: Duration) -> Result<Info, RewriteError> {
        let (mut last, mut since, mut reported) = (0, Instant::now(), Instant::now());
        loop {
            let info = self.info(name).await?;
            let at = info.state.last_sequence;
            let replicas = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
            if at >= end && replicas.clone().all(|replica| replica.current && !replica.offline) {
                return Ok(info);
            }
            if at != last {
                (last, since) = (at, Instant::now());
            }
            // While the shard takes no appends, progress is not enough.
            let is_late = stalled == HELD && self.fenced.is_some_and(|fenced| fenced.elapsed() > 2 * HELD);
            if since.elapsed() > stalled || is_late {
                return Err(RewriteError::Stalled { name: name.to_owned(), at, end });
            }
            if reported.elapsed() > REPORT {
                reported = Instant::now();
                self.tell(RewriteStep::Copied { at, end });
            }
            sleep(LOOK).await;
        }
    }

    async fn stream(&self, record: ShardRecord) -> Result<Generation, RewriteError> {
        Ok(self.log.make_generation(self.shard, record, 0, 0).await?)
    }

    /// Reads the stream's messages up to `end`, the last of which exists.
    async fn scan(&self, of: &Generation, scan: &mut Scan, end: u64) -> Result<(), RewriteError> {
        let erasing: BTreeMap<OrgId, u64> =
            self.rewriting.erasing.iter().map(|erasing| (erasing.org, erasing.to)).collect();
        let is_source = of.record.generation == self.rewriting.from;
        let mut tries = 0;
        while scan.at < end {
            let chunk = match self.chunk(of, scan.at + 1).await {
                Ok(chunk) if !chunk.messages.is_empty() => chunk,
                // A replica that is behind, or a lost connection.
                Ok(_) | Err(StreamError::Unavailable { .. }) if tries < TRIES => {
                    sleep(backoff(tries)).await;
                    tries += 1;
                    continue;
                }
                Ok(_) => {
                    return Err(RewriteError::Stalled { name: of.name.clone(), at: scan.at, end });
                }
                Err(error) => return Err(error.into()),
            };
            tries = 0;
            for message in chunk.messages {
                if message.seq > end {
                    break;
                }
                scan.at = message.seq;
                let org = EventSubject::route(&message.subject).ok().map(|(_, org)| org);
                if let Some(org) = org.filter(|org| erasing.get(org).is_some_and(|to| message.seq <= *to)) {
                    *scan.erased.entry(org).or_default() += 1;
                    continue;
                }
                let before = scan.digest.map(|Fingerprint(hash)| hash).unwrap_or_default();
                let (seq, trace) = (message.seq.to_be_bytes(), message.trace.as_deref().unwrap_or_default());
                scan.digest = Some(Fingerprint::of(&[
                    &before,
                    &seq,
                    message.subject.as_bytes(),
                    trace.as_bytes(),
                    &message.payload,
                ]));
                // A message of no organization is not signed.
                if !is_source || org.is_none() {
                    continue;
                }
                match message.content(self.log.keys()) {
                    Ok(_) => {}
                    Err(CodecError::NotAuthentic { .. }) => scan.forged.push(message.seq),
                    Err(error) => return Err(unreadable(&message.subject, message.seq, error).into()),
                }
                if scan.forged.len() > MAX_FORGED {
                    let what = format!("the stream has more than {MAX_FORGED} messages that no process of ours signed");
                    return Err(self.differs(what));
                }
            }
        }
        Ok(())
    }

    async fn chunk(&self, of: &Generation, from: u64) -> Result<Chunk, StreamError> {
        let filter = EventSubject::all_in_shard(self.shard);
        match self.log.batch_of(of, &filter, from, SCAN).await {
            Err(error) if is_gone(&error) => self.log.one_by_one(of, &filter, from, SCAN).await,
            chunk => chunk,
        }
    }

    fn compare(&self, source: &Scan, target: &Scan) -> Result<(), RewriteError> {
        match target.erased.keys().next() {
            Some(org) => Err(self.differs(format!("it has messages of {org}, which is erased"))),
            None if source.digest != target.digest => {
                Err(self.differs(format!("it has other messages up to {}", source.at)))
            }
            None => Ok(()),
        }
    }

    fn differs(&self, what: String) -> RewriteError {
        RewriteError::Differs { shard: self.shard, what }
    }
}

fn copy_of(name: &str) -> String {
    format!("{name}_copy")
}

fn mark_subject(shard: Shard, org: &str) -> String {
    format!("sys.erased.{shard}.{org}")
}
