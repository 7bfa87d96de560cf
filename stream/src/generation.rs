//! Which stream serves a shard, and what is known of the messages in it. All that names the stream of a shard asks here.
//!
//! The first one is `EV_<shard>`. A rewrite ([`crate::rewrite`]) makes another one, under a name that was never used, which has
//! the same messages at the same sequences without those that were erased. One record for each shard, in the system stream,
//! says which one serves it. Whoever finds that the stream it knew does not answer any more reads the record again.
//!
//! A server that copies a stream drops the expectations beside its messages. So those of a copy are believed because the
//! rewrite has checked each of them in the stream that it copied, as the record says: up to which sequence, with which
//! exceptions. What came before a message on its subject is in its signed bytes, and is copied with them.

use std::sync::{Arc, PoisonError, RwLock};

use async_nats::{
    HeaderMap, header,
    jetstream::{
        message::StreamMessage,
        stream::{Info, Stream},
    },
};
use bytes::Bytes;
use orgstream_events::{CommitKeys, OrgId, Shard, cause};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Log, Message, StreamError,
    api::{code, get_on_any, get_on_leader, is_gone, last_on_any, last_on_leader, next_on_leader},
    message::expected,
    publish::TRACE,
    streams,
};

/// The expectation in place of that of a message whose own did not hold: nothing is signed with it.
const NEVER: u64 = i64::MAX as u64;

/// What the system stream says of a shard. A shard without a record is in its first generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    /// The generation that serves the shard.
    pub(crate) generation: u32,
    /// The last generation that was begun: its names are not used again.
    pub(crate) begun: u32,
    /// The rewrite that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rewriting: Option<Rewriting>,
    /// The last sequence that was copied from an earlier generation.
    #[serde(default)]
    pub(crate) copied_to: u64,
    /// The copied messages whose signature or expectation did not hold.
    #[serde(default)]
    pub(crate) forged: Vec<u64>,
    /// The sequence up to which messages were erased.
    #[serde(default)]
    pub(crate) erased_to: u64,
    /// The number of messages that were erased, by all rewrites.
    #[serde(default)]
    pub(crate) erased: u64,
}

/// A rewrite: once it serves the shard, what is left of it is to settle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rewriting {
    /// The generation that it copies.
    pub(crate) from: u32,
    /// The generation that it makes.
    pub(crate) to: u32,
    /// Which run of the rewrite works on it, so that two never do.
    pub(crate) run: Uuid,
    /// What it leaves out.
    pub(crate) erasing: Vec<Erasing>,
}

/// The messages of an organization that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Erasing {
    pub(crate) org: OrgId,
    /// The last sequence that is left out.
    pub(crate) to: u64,
    /// How many there were; 0 until they were counted.
    #[serde(default)]
    pub(crate) messages: u64,
}

impl Default for ShardRecord {
    fn default() -> Self {
        Self { generation: 1, begun: 1, rewriting: None, copied_to: 0, forged: Vec::new(), erased_to: 0, erased: 0 }
    }
}

impl ShardRecord {
    /// Up to which sequence messages are missing because they were erased, in a stream in this state; 0 if anything else is
    /// missing too, so that no hole is explained.
    pub(crate) fn explains(&self, messages: u64, last_seq: u64) -> u64 {
        if messages + self.erased == last_seq { self.erased_to } else { 0 }
    }
}

/// The stream that serves a shard.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) shard: Shard,
    pub(crate) name: String,
    pub(crate) stream: Stream<()>,
    pub(crate) record: ShardRecord,
    /// The sequence of the record; 0 when there is none.
    pub(crate) record_seq: u64,
    /// The number of lost connections before the record was read.
    losses: u64,
}

impl Generation {
    /// The message of this stream with these parts.
    pub(crate) fn message(&self, seq: u64, subject: String, headers: Option<&HeaderMap>, payload: Bytes) -> Message {
        let trace = headers.and_then(|headers| headers.get_last(TRACE)).map(|trace| trace.as_str().to_owned());
        let mut expected = headers.and_then(expected);
        if seq <= self.record.copied_to {
            let is_forged = self.record.forged.binary_search(&seq).is_ok();
            expected = if is_forged { Some(NEVER) } else { CommitKeys::stated(&payload) };
        }
        Message { shard: self.shard, seq, subject, payload, expected, trace }
    }

    pub(crate) fn stored(&self, message: StreamMessage) -> Message {
        self.message(message.sequence, message.subject.into_string(), Some(&message.headers), message.payload)
    }

    /// Whether an answer is of this stream. A server lets a mirror answer in the name of the stream that it copies, although
    /// it may lack messages.
    pub(crate) fn sent(&self, headers: &HeaderMap) -> bool {
        headers.get_last(header::NATS_STREAM).is_none_or(|stream| stream.as_str() == self.name)
    }

    /// Whether a mirror may answer in the name of this stream: it has one until the copy has taken its place.
    pub(crate) fn has_copies(&self) -> bool {
        self.record.rewriting.as_ref().is_some_and(|rewriting| rewriting.from == self.record.generation)
    }
}

/// What this process knows of each shard.
#[derive(Debug)]
pub(crate) struct Generations(Vec<RwLock<Option<Arc<Generation>>>>);

impl Generations {
    pub(crate) fn new(shards: u16) -> Self {
        Self((0..shards).map(|_| RwLock::default()).collect())
    }
}

/// One message of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    /// The last one on a subject.
    Last(&'a str),
    /// The one with this sequence.
    At(u64),
    /// The first one from this sequence on that matches.
    Next(&'a str, u64),
}

impl Log {
    /// Returns the stream that serves the shard, as far as this process knows.
    pub(crate) async fn generation(&self, shard: Shard) -> Result<Arc<Generation>, StreamError> {
        let known = self.cell(shard)?.read().unwrap_or_else(PoisonError::into_inner).clone();
        // A server that starts again lets mirrors answer, which this process has to know of; others have several copies anyway.
        let is_sure = |known: &Generation| known.losses == *self.inner.losses.borrow() || self.replicas() > 1;
        match known.filter(|known| is_sure(known)) {
            Some(known) => Ok(known),
            None => Box::pin(self.look_up(shard)).await,
        }
    }

    /// Returns the stream that serves the shard now, if it is another one than this.
    pub(crate) async fn successor(&self, of: &Generation) -> Result<Option<Arc<Generation>>, StreamError> {
        let now = Box::pin(self.look_up(of.shard)).await?;
        Ok((now.record.generation != of.record.generation).then_some(now))
    }

    /// Reads the shard's record.
    pub(crate) async fn look_up(&self, shard: Shard) -> Result<Arc<Generation>, StreamError> {
        let cell = self.cell(shard)?;
        let losses = *self.inner.losses.borrow();
        let (record, record_seq) = self.shard_record(shard).await?;
        let found = Arc::new(self.make_generation(shard, record, record_seq, losses).await?);
        let mut known = cell.write().unwrap_or_else(PoisonError::into_inner);
        // Two looks may end in another order than they began.
        if let Some(known) = known.as_ref().filter(|known| known.record_seq > found.record_seq) {
            return Ok(Arc::clone(known));
        }
        if known.as_ref().is_some_and(|known| known.record.generation < found.record.generation) {
            tracing::info!(%shard, stream = found.name, "the shard is served by another stream");
        }
        *known = Some(Arc::clone(&found));
        Ok(found)
    }

    pub(crate) async fn make_generation(
        &self,
        shard: Shard,
        record: ShardRecord,
        record_seq: u64,
        losses: u64,
    ) -> Result<Generation, StreamError> {
        let name = streams::name(shard, record.generation);
        let stream = streams::handle(&self.inner.jetstream, &name).await?;
        Ok(Generation { shard, name, stream, record, record_seq, losses })
    }

    /// Returns the shard's record and its sequence; those of the first generation if there is none.
    pub(crate) async fn shard_record(&self, shard: Shard) -> Result<(ShardRecord, u64), StreamError> {
        let subject = record_subject(shard);
        let fact = match self.system_fact(&subject).await {
            // The streams were not made yet, or are lost, which whoever reads the shard finds.
            Err(error) if is_gone(&error) => return Ok((ShardRecord::default(), 0)),
            fact => fact?,
        };
        let Some(fact) = fact else { return Ok((ShardRecord::default(), 0)) };
        let Some(content) = fact.content else { return Ok((ShardRecord::default(), fact.seq)) };
        let corrupt = |error| StreamError::Corrupt { subject, seq: fact.seq, reason: cause(error) };
        let record: ShardRecord = serde_json::from_slice(&content).map_err(corrupt)?;
        Ok((record, fact.seq))
    }

    fn cell(&self, shard: Shard) -> Result<&RwLock<Option<Arc<Generation>>>, StreamError> {
        let unknown = || StreamError::UnknownShard { shard, shards: self.inner.options.shards };
        self.inner.generations.0.get(usize::from(shard.0)).ok_or_else(unknown)
    }

    /// Returns the message as the leader holds it: sees every acknowledged write.
    pub(crate) async fn on_leader(&self, shard: Shard, which: Which<'_>) -> Result<Option<Message>, StreamError> {
        let mut generation = self.generation(shard).await?;
        loop {
            match found_on_leader(&generation, which).await {
                Err(error) if is_gone(&error) => {
                    generation = self.successor(&generation).await?.ok_or(error)?;
                }
                found => return found,
            }
        }
    }

    /// Returns the message as any replica holds it. One that a replica lacks at a sequence is looked for on the leader.
    pub(crate) async fn on_any(&self, shard: Shard, which: Which<'_>) -> Result<Option<Message>, StreamError> {
        let generation = self.generation(shard).await?;
        let answer = match which {
            Which::Last(subject) => last_on_any(&generation.stream, subject).await,
            Which::At(seq) => get_on_any(&generation.stream, seq).await,
            Which::Next(..) => return self.on_leader(shard, which).await,
        };
        match answer {
            Ok(Some(message)) if generation.sent(&message.headers) => Ok(Some(generation.stored(message))),
            Ok(None) if matches!(which, Which::Last(_)) && !generation.has_copies() => Ok(None),
            Err(error) if !is_gone(&error) => Err(error),
            _ => self.on_leader(shard, which).await,
        }
    }

    /// Returns the stream that serves the shard, and its state.
    pub(crate) async fn shard_info(&self, shard: Shard) -> Result<(Arc<Generation>, Info), StreamError> {
        let mut generation = self.generation(shard).await?;
        loop {
            if let Some(info) = self.stream_info(&generation.name).await? {
                return Ok((generation, info));
            }
            let missing = || StreamError::Refused {
                action: "read the state of a shard",
                code: code::STREAM_NOT_FOUND,
                description: format!("there is no stream {}", generation.name),
            };
            generation = self.successor(&generation).await?.ok_or_else(missing)?;
        }
    }
}

pub(crate) fn record_subject(shard: Shard) -> String {
    format!("sys.stream.{shard}")
}

pub(crate) async fn found_on_leader(generation: &Generation, which: Which<'_>) -> Result<Option<Message>, StreamError> {
    let stream = &generation.stream;
    let found = match which {
        Which::Last(subject) => last_on_leader(stream, subject).await?,
        Which::At(seq) => get_on_leader(stream, seq).await?,
        Which::Next(filter, seq) => next_on_leader(stream, filter, seq).await?,
    };
    Ok(found.map(|message| generation.stored(message)))
}
