//! Catch-up reads of one org: used by a worker when an org has more in the log than its memory holds.
//!
//! Each read by batched direct get makes the server count what the org has left, which takes milliseconds for an org of
//! many aggregates. So only the first chunk is read that way, and the rest through a consumer, which counts once.

use futures_util::StreamExt;
use orgstream_events::{Chain, OrgId, Shard, cause};
use serde_json::json;

use crate::{
    Chunk, Log, ReadLimit, StreamError,
    api::unavailable,
    consumer::{self, Consumer, Place, Reads, SPENT},
    log::Connection,
    read::{MAX_BYTES, MAX_MESSAGES, SILENCE},
};

const ACTION: &str = "catch up with an org";

/// Reads one org's messages from a sequence on, in chunks. It can be dropped at any time, and holds no messages itself.
#[derive(Debug)]
pub struct CatchUpReader {
    log: Log,
    shard: Shard,
    org: OrgId,
    /// The sequence at which the next chunk begins.
    next: u64,
    /// Whether a chunk was read that had more messages after it.
    goes_on: bool,
    source: Option<Source>,
}

#[derive(Debug)]
struct Source {
    consumer: Consumer,
    /// The number of messages it has sent.
    sent: u64,
}

impl Log {
    /// Returns a reader of what `org` has from `from_seq` (inclusive) on. Sends no request yet.
    pub fn catch_up_reader(&self, shard: Shard, org: OrgId, from_seq: u64) -> CatchUpReader {
        CatchUpReader { log: self.clone(), shard, org, next: from_seq.max(1), goes_on: false, source: None }
    }
}

impl CatchUpReader {
    /// Reads the org's next messages, as [`Log::read`] would return them. May be called again after an error.
    pub async fn read(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let mut chunk = Chunk::default();
        if self.goes_on {
            // A consumer that is gone or has nothing is no error: a read decides whether there is more.
            match self.pull(limit).await {
                Ok(pulled) => chunk = pulled,
                Err(error) => {
                    tracing::debug!(org.id = %self.org, shard = %self.shard, error = %Chain(&error), "a backlog is read without a consumer");
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

    /// Returns the sequence at which the next chunk begins, when there were messages after the last one.
    pub fn goes_on_at(&self) -> Option<u64> {
        self.goes_on.then_some(self.next)
    }

    async fn pull(&mut self, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let after = self.next - 1;
        // Taken, so that a consumer is not used again after any error.
        let mut source = match self.source.take() {
            Some(source) => source,
            None => {
                let consumer = consumer::create(&self.log, self.shard, Reads::Only(self.org), after).await?;
                Source { consumer, sent: 0 }
            }
        };
        let mut chunk = source.pull(&self.log, after, limit).await?;
        if chunk.messages.is_empty() && !chunk.ended {
            // The next message is larger than the requested bytes.
            chunk = source.pull(&self.log, after, ReadLimit { messages: 1, bytes: MAX_BYTES }).await?;
        }
        self.source = Some(source);
        Ok(chunk)
    }
}

impl Source {
    async fn pull(&mut self, log: &Log, after: u64, limit: ReadLimit) -> Result<Chunk, StreamError> {
        let broken = |reason: &str| StreamError::Unavailable { action: ACTION, reason: cause(reason) };
        let (batch, bytes) = (limit.messages.clamp(1, MAX_MESSAGES), limit.bytes.clamp(1, MAX_BYTES));
        let request = json!({ "batch": batch, "max_bytes": bytes, "no_wait": true }).to_string();
        let Connection { client, losses } = &log.inner.bulk;
        let mut losses = losses.clone();
        losses.mark_unchanged();
        // A new inbox per request, so that a late reply to one request is not taken for a reply to the next.
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(ACTION, error))?;
        let sent = client.publish_with_reply(self.consumer.ask.clone(), inbox, request.into());
        tokio::time::timeout(SILENCE, sent)
            .await
            .map_err(|_| broken("the connection takes no more"))?
            .map_err(|error| unavailable(ACTION, error))?;

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
                // No more for now: nothing at all, nothing further, or nothing that fits.
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
            chunk.messages.push(place.message(&self.consumer.generation, answer));
        }
        Ok(chunk)
    }
}
