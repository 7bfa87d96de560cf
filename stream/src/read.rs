//! Reading: one aggregate's history, one org's messages in chunks, or all messages of an org.
//!
//! None of this creates a consumer, as a [`CatchUpReader`](crate::CatchUpReader) does. One org is read by JetStream's
//! batched direct get, which keeps no state between requests; an aggregate is walked back from its last message,
//! because every message holds the sequence before it. A long history is read forward from its beginning, in parts.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use futures_util::{Stream, StreamExt, stream};
use orgstream_events::{AggregateId, Chain, CodecError, EventSubject, Fingerprint, OrgId, Shard, cause};
use serde::Serialize;

use crate::{
    Log, Message, Placement, StoredCommit, StreamError,
    api::{backoff, gone, is_gone, unavailable},
    generation::{Generation, Which, found_on_leader},
    log::Connection,
    message::forged,
    snapshot::{Found, Snapshot, is_short},
    system::unreadable,
};

/// The longest silence within one read. The first answer comes after a scan, the others follow at once.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);
/// Well below the capacity of a subscription, so that no message of a read can be dropped.
pub(crate) const MAX_MESSAGES: usize = 4_096;
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Every request costs a count of what is left, up to milliseconds for an org of many aggregates, so a chunk is not too
/// small.
const REPLAY_CHUNK: ReadLimit = ReadLimit { messages: 2_000, bytes: 2 << 20 };
/// Messages in place of a batch, one read each.
const ONE_BY_ONE: usize = 64;
/// Commits up to which a history is walked back, one read each; a longer one is read forward from its beginning.
const WALK: usize = 64;
/// Tries of a replay, about 15 seconds: it survives a server's restart.
const REPLAY_TRIES: u32 = 36;

/// The copies of the log that may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The leader: sees every acknowledged write.
    Leader,
    /// Any replica: cheaper, and may lag by moments.
    Any,
}

/// The size limit of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Messages at most.
    pub messages: usize,
    /// Bytes at most; the first message is returned whatever its size.
    pub bytes: usize,
}

/// A part of an aggregate's history.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What the commits follow on, in place of those before them.
    pub snapshot: Option<Snapshot>,
    /// Oldest first.
    pub commits: Vec<StoredCommit>,
    /// The last sequence that this part reaches on the aggregate's subject: the place to continue from, and at the end
    /// the sequence that an append has to expect.
    pub last: u64,
    /// Whether nothing came after it when it was read.
    pub ended: bool,
    /// The messages that were read for it, those of a snapshot included.
    pub read: u64,
}

/// The result of one read.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// In order of their sequences.
    pub messages: Vec<Message>,
    /// Whether the org had nothing after these when the read ended.
    pub ended: bool,
    /// The number of messages after these, as known to the replica that answered.
    pub left: u64,
}

impl Chunk {
    /// The number of messages from the first of these on, as known to the replica that answered.
    pub fn count(&self) -> u64 {
        self.messages.len() as u64 + self.left
    }
}

#[derive(Serialize)]
struct BatchGet<'a> {
    seq: u64,
    next_by_subj: &'a str,
    batch: usize,
    max_bytes: usize,
}

impl Log {
    /// Returns the aggregate's commits after `after` (exclusive; 0 gives all), oldest first; of a long history the
    /// first part.
    ///
    /// `after` must be 0, or the end of an earlier part of the history. A message on the subject without a valid
    /// signature of this installation is skipped, with an alarm.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %placement.org, shard = %placement.shard))]
    pub async fn load(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        after: u64,
        freshness: Freshness,
    ) -> Result<History, StreamError> {
        let shard = placement.shard;
        let subject = EventSubject { shard, org: placement.org, aggregate: aggregate.clone() }.to_string();
        let newest = self.last_on(shard, &subject, freshness).await?;
        let newest_seq = newest.as_ref().map_or(0, |message| message.seq);
        if newest_seq < after && freshness == Freshness::Leader {
            return Err(StreamError::Behind { shard, last: newest_seq, expected: after });
        }
        let Some(newest) = newest.filter(|message| message.seq > after) else {
            return Ok(History { last: after, ended: true, ..History::default() });
        };
        self.read_since(placement, newest, after).await
    }

    /// Returns the aggregate's history from its beginning, or from its snapshot of this shape: the first part.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %placement.org, shard = %placement.shard))]
    pub async fn load_new(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        shape: u32,
        freshness: Freshness,
    ) -> Result<History, StreamError> {
        let Placement { org, shard, .. } = *placement;
        let of = EventSubject { shard, org, aggregate: aggregate.clone() };
        let newest = self.last_on(shard, &of.to_string(), freshness).await?;
        let Some(newest) = newest else { return Ok(History { ended: true, ..History::default() }) };
        if !is_short(&newest, self.keys())
            && let Some(found) = self.find_snapshot(&of, shape).await
            && let Some(history) = self.read_on(found, &newest).await?
        {
            return Ok(history);
        }
        self.read_since(placement, newest, 0).await
    }

    async fn last_on(&self, shard: Shard, subject: &str, freshness: Freshness) -> Result<Option<Message>, StreamError> {
        match freshness {
            Freshness::Leader => self.on_leader(shard, Which::Last(subject)).await,
            Freshness::Any => self.on_any(shard, Which::Last(subject)).await,
        }
    }

    /// Returns the commits after `after`, of which `newest` is the last; of many the first part.
    async fn read_since(&self, placement: &Placement, newest: Message, after: u64) -> Result<History, StreamError> {
        let (shard, subject, last) = (placement.shard, newest.subject.clone(), newest.seq);
        match self.walk_back(newest, after).await? {
            Some(commits) => {
                let read = commits.len() as u64;
                Ok(History { snapshot: None, commits, last, ended: true, read })
            }
            None => self.read_forward(shard, &subject, after, last).await,
        }
    }

    /// Returns the history that follows on a snapshot; none if the snapshot is of another history.
    async fn read_on(&self, found: Found, newest: &Message) -> Result<Option<History>, StreamError> {
        let Found { snapshot, message, parts } = found;
        let at = snapshot.seq;
        let is_covered = |last: &Message| last.seq == at && Fingerprint::of(&[&last.payload]) == message;
        if at >= newest.seq {
            let history = History { last: at, ended: true, read: parts + 1, ..History::default() };
            return Ok(is_covered(newest).then_some(History { snapshot: Some(snapshot), ..history }));
        }
        let mut chunk = self.batch_get(newest.shard, &newest.subject, at, REPLAY_CHUNK).await?;
        if !chunk.messages.first().is_some_and(is_covered) {
            return Ok(None);
        }
        chunk.messages.remove(0);
        let history = self.in_order(&newest.subject, chunk, at, newest.seq)?;
        let read = history.read + parts + 2;
        Ok(Some(History { snapshot: Some(snapshot), read, ..history }))
    }

    /// Returns the end of the aggregate's history: the last sequence on its subject, by any writer; 0 when nothing is
    /// on it. Sees every write acknowledged before.
    pub async fn end_of_history(&self, placement: &Placement, aggregate: &AggregateId) -> Result<u64, StreamError> {
        let Placement { org, shard, .. } = *placement;
        let subject = EventSubject { shard, org, aggregate: aggregate.clone() }.to_string();
        // The leader's copy is the only one, and a direct get is the cheaper request.
        let last = match self.inner.options.replicas {
            1 => self.on_any(shard, Which::Last(&subject)).await?,
            _ => self.on_leader(shard, Which::Last(&subject)).await?,
        };
        Ok(last.map_or(0, |message| message.seq))
    }

    /// Returns the access events of an aggregate after `after` (exclusive), oldest first, as many as one read returns:
    /// they do not follow from each other, so there is no history to walk.
    pub async fn facts(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        after: u64,
    ) -> Result<History, StreamError> {
        let Placement { org, shard, .. } = *placement;
        let subject = EventSubject { shard, org, aggregate: aggregate.clone() }.to_string();
        let chunk = self.batch_get(shard, &subject, after + 1, REPLAY_CHUNK).await?;
        let read = chunk.messages.len() as u64;
        let mut history = History { last: after, ended: chunk.ended, read, ..History::default() };
        for message in chunk.messages {
            match message.content(self.keys()) {
                Ok(content) => {
                    let commit = message.decode(content)?;
                    history.commits.push(StoredCommit { seq: message.seq, commit, trace: message.trace.clone() });
                }
                Err(reason @ CodecError::NotAuthentic { .. }) => forged(&subject, message.seq, &reason),
                Err(error) => return Err(unreadable(&subject, message.seq, error)),
            }
            history.last = message.seq;
        }
        Ok(history)
    }

    /// Returns the commits from the newest back to `after`, by the expectations that the messages hold; none when there
    /// are too many, or one of the messages is not authentic.
    async fn walk_back(&self, newest: Message, after: u64) -> Result<Option<Vec<StoredCommit>>, StreamError> {
        let mut commits = Vec::new();
        let (shard, subject) = (newest.shard, newest.subject.clone());
        let mut message = newest;
        while commits.len() < WALK {
            if message.subject != subject {
                return Err(message.corrupt(format!("the history of {subject} leads to it")));
            }
            let Ok(content) = message.content(self.keys()) else { return Ok(None) };
            // An authentic message names the expectation that it was signed with.
            let before = message.expected.filter(|before| *before < message.seq);
            let before = before.ok_or_else(|| message.corrupt("it does not say which message came before it"))?;
            if before < after {
                return Err(message.corrupt(format!("the history does not pass through {after}")));
            }
            let commit = message.decode(content)?;
            commits.push(StoredCommit { seq: message.seq, commit, trace: message.trace.clone() });
            if before == after {
                commits.reverse();
                return Ok(Some(commits));
            }
            // A message that the leader lacks is gone.
            let found = self.on_any(shard, Which::At(before)).await?;
            let gone = || message.corrupt(format!("message {before}, which came before it, is missing"));
            message = found.ok_or_else(gone)?;
        }
        Ok(None)
    }

    /// Returns the commits after `after`, as many as one read returns; `newest` is the last sequence on the subject.
    async fn read_forward(&self, shard: Shard, subject: &str, after: u64, newest: u64) -> Result<History, StreamError> {
        let chunk = self.batch_get(shard, subject, after + 1, REPLAY_CHUNK).await?;
        self.in_order(subject, chunk, after, newest)
    }

    /// Returns the commits of a read after `after`, each of which follows on the one before.
    fn in_order(&self, subject: &str, chunk: Chunk, after: u64, newest: u64) -> Result<History, StreamError> {
        let read = chunk.messages.len() as u64;
        let mut history = History { last: after, read, ..History::default() };
        for message in chunk.messages {
            match message.content(self.keys()) {
                Ok(content) => {
                    if message.expected != Some(history.last) {
                        return Err(message.corrupt(format!("the history does not pass through {}", history.last)));
                    }
                    let commit = message.decode(content)?;
                    history.commits.push(StoredCommit { seq: message.seq, commit, trace: message.trace.clone() });
                }
                Err(reason @ CodecError::NotAuthentic { .. }) => forged(subject, message.seq, &reason),
                Err(error) => return Err(unreadable(subject, message.seq, error)),
            }
            history.last = message.seq;
        }
        history.ended = history.last >= newest;
        if history.last == after {
            let (action, reason) = ("load an aggregate", cause("the copy that answered is behind the leader"));
            return Err(StreamError::Unavailable { action, reason });
        }
        Ok(history)
    }

    /// Returns the org's messages from `from_seq` (inclusive), as many as `limit` allows.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %org, %shard))]
    pub async fn read(&self, shard: Shard, org: OrgId, from_seq: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let filter = EventSubject::all_of_org(shard, org);
        let from_seq = from_seq.max(1);
        let mut chunk = self.batch_get(shard, &filter, from_seq, limit).await?;
        if chunk.ended && (self.inner.options.replicas > 1 || self.generation(shard).await?.has_copies()) {
            // A lagging replica may report an end where there is none.
            let next_seq = chunk.messages.last().map_or(from_seq, |message| message.seq + 1);
            chunk.ended = self.on_leader(shard, Which::Next(&filter, next_seq)).await?.is_none();
        }
        Ok(chunk)
    }

    async fn batch_get(&self, shard: Shard, filter: &str, seq: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let generation = self.generation(shard).await?;
        match self.batch_of(&generation, filter, seq, limit).await {
            Err(error) if is_gone(&error) => match self.successor(&generation).await? {
                Some(newer) => Box::pin(self.batch_of(&newer, filter, seq, limit)).await,
                None => Box::pin(self.one_by_one(&generation, filter, seq, limit)).await,
            },
            chunk => chunk,
        }
    }

    /// Reads as a batch does, from the leader, with one request for each message: no replica answers while a rewrite prepares
    /// its copy.
    pub(crate) async fn one_by_one(
        &self,
        generation: &Generation,
        filter: &str,
        seq: u64,
        limit: ReadLimit,
    ) -> Result<Chunk, StreamError> {
        let (mut chunk, mut next, mut bytes) = (Chunk::default(), seq, 0);
        while chunk.messages.len() < limit.messages.clamp(1, ONE_BY_ONE) && bytes < limit.bytes.max(1) {
            let Some(message) = found_on_leader(generation, Which::Next(filter, next)).await? else {
                chunk.ended = true;
                break;
            };
            next = message.seq + 1;
            bytes += message.payload.len();
            chunk.messages.push(message);
        }
        Ok(chunk)
    }

    /// Reads the messages of one stream from `seq` (inclusive) that match.
    pub(crate) async fn batch_of(
        &self,
        generation: &Generation,
        filter: &str,
        seq: u64,
        limit: ReadLimit,
    ) -> Result<Chunk, StreamError> {
        let action = "read an org's messages";
        let broken = |reason: &str| StreamError::Unavailable { action, reason: cause(reason) };
        let request = BatchGet {
            seq,
            next_by_subj: filter,
            batch: limit.messages.clamp(1, MAX_MESSAGES),
            max_bytes: limit.bytes.clamp(1, MAX_BYTES),
        };
        let body = serde_json::to_vec(&request).map_err(|error| unavailable(action, error))?;
        let Connection { client, losses } = &self.inner.bulk;
        let mut losses = losses.clone();
        losses.mark_unchanged();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(action, error))?;
        let ask = format!("{}.DIRECT.GET.{}", self.inner.api, generation.name);
        let sent = client.publish_with_reply(ask, inbox, body.into());
        tokio::time::timeout(SILENCE, sent)
            .await
            .map_err(|_| broken("the connection takes no more"))?
            .map_err(|error| unavailable(action, error))?;

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
                // The end of the batch; it includes the count of the messages left.
                Some(204) => {
                    let left = number(&headers, "Nats-Num-Pending");
                    return Ok(Chunk { messages, ended: left == Some(0), left: left.unwrap_or_default() });
                }
                Some(404) => return Ok(Chunk { messages, ended: true, left: 0 }),
                Some(503) => return Err(gone(action, cause("no server holds this stream now"))),
                Some(code) => {
                    let description = answer.description.unwrap_or_default();
                    return Err(StreamError::Refused { action, code: code.into(), description });
                }
            }
            if !generation.sent(&headers) {
                return Err(gone(action, cause("a copy answered")));
            }
            let (Some(seq), Some(subject)) =
                (number(&headers, header::NATS_SEQUENCE.as_ref()), headers.get_last(header::NATS_SUBJECT))
            else {
                return Err(broken("an answer without a sequence"));
            };
            // Each answer names the one before it, which reveals one that was lost.
            let before = number(&headers, header::NATS_LAST_SEQUENCE.as_ref()).unwrap_or(0);
            if messages.last().is_some_and(|message| message.seq != before) {
                return Err(broken("an answer was lost"));
            }
            let subject = subject.as_str().to_owned();
            messages.push(generation.message(seq, subject, Some(&headers), answer.payload));
        }
    }

    /// Returns the org's messages from `from_seq` (inclusive) to the end as of the first poll.
    ///
    /// Holds one chunk in memory. Waits through a restart of the server; any other error ends the stream.
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

/// Reads one org forward, in chunks, and waits through short outages of the server.
pub(crate) struct Reader {
    pub(crate) log: Log,
    pub(crate) shard: Shard,
    pub(crate) org: OrgId,
    /// The first sequence not read yet.
    pub(crate) next: u64,
}

impl Reader {
    pub(crate) async fn chunk(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let mut tries = 0;
        loop {
            match self.log.read(self.shard, self.org, self.next, limit).await {
                Err(StreamError::Unavailable { reason, .. }) if tries < REPLAY_TRIES => {
                    tracing::debug!(org.id = %self.org, shard = %self.shard, reason = %Chain(&reason), "a read is tried again");
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

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}
