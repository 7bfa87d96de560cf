//! Reading: one aggregate's history, one org's messages a chunk at a time, or all that an org has.
//!
//! None of this makes a consumer, as a [`Backlog`](crate::Backlog) does. One org is read by JetStream's batched direct get,
//! which keeps no state between requests; an aggregate is walked back from its last message, because every message holds the
//! sequence before it.

use std::time::Duration;

use async_nats::{HeaderMap, header, jetstream::message::StreamMessage};
use futures_util::{Stream, StreamExt, stream};
use orgstream_events::{AggregateId, EventSubject, OrgId, Shard};
use serde::Serialize;

use crate::{
    Log, Message, Placement, StoredCommit, StreamError,
    api::{backoff, get_on_any, get_on_leader, last_on_any, last_on_leader, next_on_leader, unavailable},
    log::Line,
    publish::TRACE,
    streams,
};

/// The longest silence within one read. The first answer comes after a scan, the others follow at once.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);
/// Well below the capacity of a subscription, so that nothing of a read can be dropped on the way.
pub(crate) const MAX_MESSAGES: usize = 4_096;
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Every request costs a count of what is left, up to milliseconds for an org of many aggregates: so not too small.
const REPLAY_CHUNK: ReadLimit = ReadLimit { messages: 2_000, bytes: 2 << 20 };
/// A replay outlives a server's restart; about 15 seconds of trying.
const REPLAY_TRIES: u32 = 36;

/// Which copy of the log may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The leader: sees every acknowledged write.
    Leader,
    /// Any replica: cheaper, and may be moments behind.
    Any,
}

/// How much one read may bring back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Messages at most.
    pub messages: usize,
    /// Bytes at most; the first message comes whatever its size.
    pub bytes: usize,
}

/// What one read brought back.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// In order of their sequences.
    pub messages: Vec<Message>,
    /// The org had nothing after these when the read ended.
    pub ended: bool,
}

#[derive(Serialize)]
struct BatchGet<'a> {
    seq: u64,
    next_by_subj: &'a str,
    batch: usize,
    max_bytes: usize,
}

impl Log {
    /// The aggregate's commits after `after` (exclusive; 0 gives all), oldest first.
    ///
    /// `after` must be 0 or the sequence of one of the aggregate's own commits.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %placement.org, shard = %placement.shard))]
    pub async fn load(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        after: u64,
        freshness: Freshness,
    ) -> Result<Vec<StoredCommit>, StreamError> {
        let shard = placement.shard;
        let stream = self.stream_of(shard)?;
        let subject = EventSubject { shard, org: placement.org, aggregate: aggregate.clone() }.to_string();
        let newest = match freshness {
            Freshness::Leader => last_on_leader(stream, &subject).await?,
            Freshness::Any => last_on_any(stream, &subject).await?,
        };
        let newest_seq = newest.as_ref().map_or(0, |message| message.sequence);
        if newest_seq < after && freshness == Freshness::Leader {
            return Err(StreamError::Behind { shard, last: newest_seq, expected: after });
        }

        let mut commits = Vec::new();
        let mut next = newest.filter(|message| message.sequence > after);
        while let Some(message) = next {
            let seq = message.sequence;
            let corrupt = |reason: String| StreamError::Corrupt { subject: subject.clone(), seq, reason };
            if message.subject.as_str() != subject {
                return Err(corrupt(format!("the history of {subject} leads to a message on {}", message.subject)));
            }
            let before = expectation(&message.headers).filter(|before| *before < seq);
            let before = before.ok_or_else(|| corrupt("it does not say which message came before it".to_owned()))?;
            if before < after {
                return Err(corrupt(format!("the history does not pass through {after}")));
            }
            commits.push(stored(shard, message).open()?);
            next = if before == after {
                None
            } else {
                // A replica may lack what its leader has; what the leader lacks is gone.
                let found = match get_on_any(stream, before).await? {
                    Some(found) => Some(found),
                    None => get_on_leader(stream, before).await?,
                };
                Some(found.ok_or_else(|| corrupt(format!("message {before}, which came before it, is missing")))?)
            };
        }
        commits.reverse();
        Ok(commits)
    }

    /// The org's messages from `from_seq` (inclusive), as many as `limit` allows.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %org, %shard))]
    pub async fn read(&self, shard: Shard, org: OrgId, from_seq: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let stream = self.stream_of(shard)?;
        let filter = EventSubject::all_of_org(shard, org);
        let from_seq = from_seq.max(1);
        let mut chunk = self.batch_get(shard, &filter, from_seq, limit).await?;
        if chunk.ended && self.inner.options.replicas > 1 {
            // A replica that is behind sees an end where there is none.
            let next_seq = chunk.messages.last().map_or(from_seq, |message| message.seq + 1);
            chunk.ended = next_on_leader(stream, &filter, next_seq).await?.is_none();
        }
        Ok(chunk)
    }

    async fn batch_get(&self, shard: Shard, filter: &str, seq: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let action = "read an org's messages";
        let broken = |reason: &str| StreamError::Unavailable { action, reason: reason.to_owned() };
        let request = BatchGet {
            seq,
            next_by_subj: filter,
            batch: limit.messages.clamp(1, MAX_MESSAGES),
            max_bytes: limit.bytes.clamp(1, MAX_BYTES),
        };
        let body = serde_json::to_vec(&request).map_err(|error| unavailable(action, &error))?;
        let Line { client, losses } = &self.inner.bulk;
        let mut losses = losses.clone();
        losses.mark_unchanged();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(action, &error))?;
        let sent =
            client.publish_with_reply(format!("$JS.API.DIRECT.GET.{}", streams::name(shard)), inbox, body.into());
        tokio::time::timeout(SILENCE, sent)
            .await
            .map_err(|_| broken("the connection takes no more"))?
            .map_err(|error| unavailable(action, &error))?;

        let mut messages: Vec<Message> = Vec::new();
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(SILENCE, answers.next()) => answer,
                _ = losses.changed() => return Err(broken("the connection was lost")),
            };
            let answer = answer.map_err(|_| broken("no answer in time"))?;
            let answer = answer.ok_or_else(|| broken("the connection is closed"))?;
            let headers = answer.headers.unwrap_or_default();
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // The end of the batch; what is left for the next one is counted in it.
                Some(204) => return Ok(Chunk { messages, ended: number(&headers, "Nats-Num-Pending") == Some(0) }),
                Some(404) => return Ok(Chunk { messages, ended: true }),
                Some(503) => return Err(broken("no server holds this stream now")),
                Some(code) => {
                    let description = answer.description.unwrap_or_default();
                    return Err(StreamError::Refused { action, code: code.into(), description });
                }
            }
            let (Some(seq), Some(subject)) =
                (number(&headers, header::NATS_SEQUENCE.as_ref()), headers.get_last(header::NATS_SUBJECT))
            else {
                return Err(broken("an answer without a sequence"));
            };
            // Each answer names the one before it, so one that got lost on the way shows.
            let before = number(&headers, header::NATS_LAST_SEQUENCE.as_ref()).unwrap_or(0);
            if messages.last().is_some_and(|message| message.seq != before) {
                return Err(broken("an answer was lost"));
            }
            messages.push(Message {
                shard,
                seq,
                subject: subject.as_str().to_owned(),
                payload: answer.payload,
                trace: trace(&headers),
            });
        }
    }

    /// The org's messages from `from_seq` (inclusive) to the end as of the first poll.
    ///
    /// Holds one chunk in memory. A server's restart is waited out; anything else ends the stream with an error.
    pub fn replay(
        &self,
        placement: &Placement,
        from_seq: u64,
    ) -> impl Stream<Item = Result<Message, StreamError>> + Send + use<> {
        let reader = Reader { log: self.clone(), shard: placement.shard, org: placement.org, next: from_seq.max(1) };
        let chunks = stream::try_unfold((reader, None), |(mut reader, end)| async move {
            let end = match end {
                Some(end) => end,
                None => reader.end().await?,
            };
            if reader.next > end {
                return Ok(None);
            }
            let mut chunk = reader.chunk(REPLAY_CHUNK).await?;
            if chunk.ended || reader.next > end {
                reader.next = u64::MAX;
            }
            chunk.messages.retain(|message| message.seq <= end);
            Ok::<_, StreamError>(Some((stream::iter(chunk.messages.into_iter().map(Ok)), (reader, Some(end)))))
        });
        futures_util::TryStreamExt::try_flatten(chunks)
    }
}

/// Reads one org forward, chunk by chunk, and waits out a server that is away for a moment.
pub(crate) struct Reader {
    pub(crate) log: Log,
    pub(crate) shard: Shard,
    pub(crate) org: OrgId,
    /// The first sequence that was not read yet.
    pub(crate) next: u64,
}

impl Reader {
    pub(crate) async fn chunk(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let mut tries = 0;
        loop {
            match self.log.read(self.shard, self.org, self.next, limit).await {
                Err(StreamError::Unavailable { reason, .. }) if tries < REPLAY_TRIES => {
                    tracing::debug!(org.id = %self.org, shard = %self.shard, reason, "a read is tried again");
                    tokio::time::sleep(backoff(tries)).await;
                    tries += 1;
                }
                Err(error) => return Err(error),
                Ok(chunk) => {
                    if let Some(last) = chunk.messages.last() {
                        self.next = last.seq + 1;
                    }
                    return Ok(chunk);
                }
            }
        }
    }

    /// The last sequence of the whole stream.
    pub(crate) async fn end(&self) -> Result<u64, StreamError> {
        let mut tries = 0;
        loop {
            match self.log.shard_state(self.shard).await {
                Err(StreamError::Unavailable { .. }) if tries < REPLAY_TRIES => {
                    tokio::time::sleep(backoff(tries)).await;
                    tries += 1;
                }
                state => return state.map(|state| state.last_seq),
            }
        }
    }
}

fn stored(shard: Shard, message: StreamMessage) -> Message {
    Message {
        shard,
        seq: message.sequence,
        subject: message.subject.into_string(),
        payload: message.payload,
        trace: trace(&message.headers),
    }
}

fn expectation(headers: &HeaderMap) -> Option<u64> {
    number(headers, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE.as_ref())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}

pub(crate) fn trace(headers: &HeaderMap) -> Option<String> {
    headers.get_last(TRACE).map(|trace| trace.as_str().to_owned())
}
