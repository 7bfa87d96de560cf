//! The cursor: all messages of one shard, in order, each message once.
//!
//! It reads through an ephemeral, unfiltered pull consumer without acknowledgements. The consumer is never trusted with
//! the position: the position is the last sequence returned, every message must be the next one, and on any
//! irregularity the consumer is replaced by one that starts at the cursor's position. Messages that were erased are no
//! irregularity.

use std::fmt;

use futures_util::future::BoxFuture;
use orgstream_events::{Chain, Shard};

use crate::{
    CursorError, Log, Message, StreamError,
    api::backoff,
    subscription::{Received, Subscription},
    tips::StreamName,
};

/// Reads one shard from a sequence on.
pub struct Cursor {
    log: Log,
    shard: Shard,
    /// The last sequence returned, or skipped with a [`CursorError::Gap`].
    last: u64,
    source: Source,
    /// Attempts to start a subscription since one last showed activity.
    attempts: u32,
    /// Whether a gap was seen; the subscription after it confirms or refutes it.
    doubted: bool,
    /// The message after a gap that was reported.
    held: Option<Message>,
    delivered: metrics::Counter,
}

/// The source of the messages. A subscription being created is kept here and not in a future of [`Cursor::next`], so
/// that a caller that drops those futures often still gets one.
enum Source {
    Subscription(Box<Subscription>),
    Beginning(BoxFuture<'static, Result<Subscription, StreamError>>),
}

impl Source {
    fn explains(&self, found: u64) -> bool {
        matches!(self, Self::Subscription(feed) if feed.explains(found))
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("shard", &self.shard).field("last", &self.last).finish_non_exhaustive()
    }
}

impl Log {
    /// Returns a cursor over everything in `shard` after `after_seq` (exclusive; 0 reads from the start).
    ///
    /// Fails when the shard ends before `after_seq`: a message that was read from it no longer exists.
    pub async fn cursor(&self, shard: Shard, after_seq: u64) -> Result<Cursor, StreamError> {
        let feed = Subscription::begin(self, shard, after_seq).await?;
        Ok(Cursor {
            log: self.clone(),
            shard,
            last: after_seq,
            source: Source::Subscription(Box::new(feed)),
            attempts: 0,
            doubted: false,
            held: None,
            delivered: metrics::counter!("orgstream_cursor_messages_total"),
        })
    }
}

impl Cursor {
    /// Returns the next message. Waits without a timeout, through restarts of the server too; dropping the future loses
    /// nothing, and after a [`CursorError::Gap`] the cursor continues behind the gap.
    pub async fn next(&mut self) -> Result<Message, CursorError> {
        if let Some(message) = self.held.take() {
            return Ok(self.hand_out(message));
        }
        loop {
            let fed = match &mut self.source {
                Source::Subscription(feed) => feed.next().await,
                Source::Beginning(beginning) => match beginning.await {
                    Ok(feed) => {
                        self.source = Source::Subscription(Box::new(feed));
                        continue;
                    }
                    Err(StreamError::Unavailable { reason, .. }) => {
                        tracing::debug!(shard = %self.shard, reason = %Chain(&reason), "the cursor waits for the log");
                        self.begin_again();
                        continue;
                    }
                    Err(error) => {
                        self.begin_again();
                        return Err(error.into());
                    }
                },
            };
            match fed {
                Received::Message(message) if message.seq == self.last + 1 => return Ok(self.hand_out(message)),
                // A redelivery by the server: it was returned before.
                Received::Message(message) if message.seq <= self.last => {}
                Received::Message(message) if self.source.explains(message.seq) => return Ok(self.hand_out(message)),
                Received::Message(_) if !self.doubted => {
                    self.doubted = true;
                    self.begin_again();
                }
                Received::Message(message) => {
                    let (shard, expected, found) = (self.shard, self.last + 1, message.seq);
                    metrics::counter!("orgstream_cursor_gaps_total").increment(1);
                    self.last = found - 1;
                    self.held = Some(message);
                    return Err(CursorError::Gap { shard, expected, found });
                }
                Received::Alive => self.attempts = 0,
                Received::Over { reason } => {
                    tracing::warn!(shard = %self.shard, after = self.last, reason = %Chain(&reason), "the cursor begins again");
                    self.begin_again();
                }
            }
        }
    }

    /// The sequence after which [`Cursor::next`] continues.
    pub fn position(&self) -> u64 {
        self.last
    }

    fn hand_out(&mut self, message: Message) -> Message {
        self.last = message.seq;
        self.log.inner.tips.note(StreamName::Shard(self.shard), message.seq, &message.payload);
        self.doubted = false;
        self.attempts = 0;
        self.delivered.increment(1);
        message
    }

    /// Replaces the subscription: at once the first time, then with growing backoff while that does not help.
    fn begin_again(&mut self) {
        let wait = (self.attempts > 0).then(|| backoff(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
        let (log, shard, last) = (self.log.clone(), self.shard, self.last);
        self.source = Source::Beginning(Box::pin(async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            Subscription::begin(&log, shard, last).await
        }));
    }
}
