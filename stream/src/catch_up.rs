//! Catching up with one org: what a worker reads when an org has more in the log than it has memory for.
//!
//! A read by batched direct get counts each time what its org has left, which takes the server milliseconds for an org of
//! many aggregates. So only the first chunk is read like that, and what follows by a consumer, which counts once.

use futures_util::StreamExt;
use orgstream_events::{OrgId, Shard};
use serde_json::json;

use crate::{
    Chunk, Log, ReadLimit, StreamError,
    api::unavailable,
    consumer::{self, Place, Reads, SPENT},
    log::Connection,
    read::{MAX_BYTES, MAX_MESSAGES, SILENCE},
};

const ACTION: &str = "catch up with an org";

/// One org's messages from a place on, a chunk at a time. It can be dropped at any time, and holds no messages itself.
#[derive(Debug)]
pub struct CatchUpReader {
    log: Log,
    shard: Shard,
    org: OrgId,
    /// Where the next chunk begins.
    next: u64,
    /// Whether a chunk was read, and there was more behind it.
    goes_on: bool,
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    /// What the consumer is asked by.
    ask: String,
    /// How many messages it has sent.
    sent: u64,
}

impl Log {
    /// For reading what `org` has from `from_seq` (inclusive) on. Nothing is asked of the server yet.
    pub fn catch_up_reader(&self, shard: Shard, org: OrgId, from_seq: u64) -> CatchUpReader {
        CatchUpReader { log: self.clone(), shard, org, next: from_seq.max(1), goes_on: false, source: None }
    }
}

impl CatchUpReader {
    /// The org's next messages, as [`Log::read`] would bring them. After an error it can be asked again.
    pub async fn read(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let mut chunk = Chunk::default();
        if self.goes_on {
            // A consumer that is gone, or has nothing, is no reason to give up: whether there is something, a read tells.
            match self.pull(limit).await {
                Ok(pulled) => chunk = pulled,
                Err(error) => {
                    tracing::debug!(org.id = %self.org, shard = %self.shard, %error, "a backlog is read without a consumer");
                }
            }
        }
        if chunk.messages.is_empty() {
            self.source = None;
            chunk = self.log.read(self.shard, self.org, self.next, limit).await?;
        }
        self.goes_on = !chunk.ended;
        if let Some(last) = chunk.messages.last() {
            self.next = last.seq + 1;
        }
        Ok(chunk)
    }

    /// Where the next chunk begins, when there was more behind the last one.
    pub fn goes_on_at(&self) -> Option<u64> {
        self.goes_on.then_some(self.next)
    }

    async fn pull(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let after = self.next - 1;
        // Taken, so that one that anything went wrong with is not asked again.
        let mut source = match self.source.take() {
            Some(source) => source,
            None => {
                let ask = consumer::create(&self.log, self.shard, Reads::Only(self.org), after).await?;
                Source { ask, sent: 0 }
            }
        };
        let mut chunk = source.pull(&self.log, self.shard, after, limit).await?;
        if chunk.messages.is_empty() && !chunk.ended {
            // The next message is larger than all that was asked for.
            chunk = source.pull(&self.log, self.shard, after, ReadLimit { messages: 1, bytes: MAX_BYTES }).await?;
        }
        self.source = Some(source);
        Ok(chunk)
    }
}

impl Source {
    async fn pull(&mut self, log: &Log, shard: Shard, after: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let broken = |reason: &str| StreamError::Unavailable { action: ACTION, reason: reason.to_owned() };
        let (batch, bytes) = (limit.messages.clamp(1, MAX_MESSAGES), limit.bytes.clamp(1, MAX_BYTES));
        let request = json!({ "batch": batch, "max_bytes": bytes, "no_wait": true }).to_string();
        let Connection { client, losses } = &log.inner.bulk;
        let mut losses = losses.clone();
        losses.mark_unchanged();
        // Of its own, so that no late word about one request is taken for one about the next.
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(ACTION, &error))?;
        let sent = client.publish_with_reply(self.ask.clone(), inbox, request.into());
        tokio::time::timeout(SILENCE, sent)
            .await
            .map_err(|_| broken("the connection takes no more"))?
            .map_err(|error| unavailable(ACTION, &error))?;

        let mut chunk = Chunk::default();
        let (mut last, mut came) = (after, 0);
        while chunk.messages.len() < batch && !chunk.ended {
            let spent = came >= bytes;
            let answer = tokio::select! {
                answer = tokio::time::timeout(if spent { SPENT } else { SILENCE }, answers.next()) => answer,
                _ = losses.changed() => return Err(broken("the connection was lost")),
            };
            let answer = match answer {
                Ok(answer) => answer.ok_or_else(|| broken("the connection is closed"))?,
                Err(_) if spent => break,
                Err(_) => return Err(broken("no answer in time")),
            };
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // There is no more now: nothing at all, nothing further, or nothing that fits.
                Some(404 | 408 | 409) => break,
                Some(code) => return Err(broken(&format!("the consumer ended: {code}"))),
            }
            let place = Place::of(&answer).ok_or_else(|| broken("a message without a sequence"))?;
            if place.number != self.sent + 1 || place.seq <= last {
                return Err(broken("a message was lost"));
            }
            (self.sent, last) = (place.number, place.seq);
            came += answer.length;
            chunk.ended = place.ahead == 0;
            chunk.messages.push(place.message(shard, answer));
        }
        Ok(chunk)
    }
}
