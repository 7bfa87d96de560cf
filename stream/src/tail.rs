//! Following one org: its existing messages, and then the new ones, without a consumer on the server.
//!
//! A JetStream publish is a core NATS message too, so a plain subscription on the org's subjects announces a message
//! that is about to be stored. It is only ever a hint: the messages come from the log, and a slow poll covers lost
//! hints.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use orgstream_events::{Chain, EventSubject};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    Log, Message, Placement, StreamError,
    read::{ReadLimit, Reader},
};

const CHUNK: ReadLimit = ReadLimit { messages: 256, bytes: 1 << 20 };
const POLL: Duration = Duration::from_secs(5);
/// Delays for repeating an empty read after a hint: the hint comes with the publish, the message is readable after its
/// sync.
const AFTER_HINT: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

impl Log {
    /// Returns the org's messages from `from_seq` (inclusive), and then new ones, until it is dropped.
    ///
    /// Holds one chunk in memory, however far its reader lags. Waits while the server is away; the stream ends only
    /// with an error that a retry cannot cure.
    pub fn tail(
        &self,
        placement: &Placement,
        from_seq: u64,
    ) -> impl Stream<Item = Result<Message, StreamError>> + Send + use<> {
        let reader = Reader { log: self.clone(), shard: placement.shard, org: placement.org, next: from_seq.max(1) };
        let mut losses = self.inner.losses.clone();
        // So the first poll checks the log's end: a position beyond it is an error at once.
        losses.mark_changed();
        let follower = Follower { reader, hints: None, looks: 0, polled: None, losses };
        let chunks = stream::try_unfold(follower, |mut follower| async move {
            let messages = follower.more().await?;
            Ok::<_, StreamError>(Some((stream::iter(messages.into_iter().map(Ok)), follower)))
        });
        chunks.try_flatten()
    }
}

struct Follower {
    reader: Reader,
    hints: Option<Hints>,
    /// The number of empty reads since the last hint.
    looks: usize,
    /// The end of the whole stream at the last poll.
    polled: Option<u64>,
    losses: watch::Receiver<u64>,
}

impl Follower {
    async fn more(&mut self) -> Result<Vec<Message>, StreamError> {
        let mut hints = match self.hints.take() {
            Some(hints) => hints,
            None => self.listen().await,
        };
        loop {
            if self.losses.has_changed().unwrap_or(false) {
                self.losses.mark_unchanged();
                self.poll().await?;
            }
            match self.reader.chunk(CHUNK).await {
                Ok(chunk) if !chunk.messages.is_empty() => {
                    self.hints = Some(hints);
                    return Ok(chunk.messages);
                }
                // Nothing up to the polled end is of this org: the next read need not scan it again.
                Ok(_) => {
                    let end = self.polled.take().unwrap_or_default();
                    self.reader.next = self.reader.next.max(end + 1);
                }
                Err(StreamError::Unavailable { reason, .. }) => {
                    tracing::warn!(org.id = %self.reader.org, shard = %self.reader.shard, reason = %Chain(&reason), "a tail waits for the log");
                }
                Err(error) => return Err(error),
            }
            if hints.is_over() {
                hints = self.listen().await;
            }
            self.wait(&hints).await?;
        }
    }

    async fn wait(&mut self, hints: &Hints) -> Result<(), StreamError> {
        let pause = AFTER_HINT.get(self.looks).copied();
        if timeout(pause.unwrap_or(POLL), hints.news.notified()).await.is_ok() {
            self.looks = 0;
        } else if pause.is_some() {
            self.looks += 1;
        } else {
            self.poll().await?;
        }
        Ok(())
    }

    /// Checks the end of the whole stream. An end before the last message read means that a crash has cost the stream
    /// its end.
    async fn poll(&mut self) -> Result<(), StreamError> {
        match self.reader.end().await {
            Ok(last) if last + 1 < self.reader.next => {
                Err(StreamError::Behind { shard: self.reader.shard, last, expected: self.reader.next - 1 })
            }
            Ok(last) => {
                self.polled = Some(last);
                Ok(())
            }
            Err(StreamError::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Subscribes to hints. Without a subscription there are none, and the poll still finds every message.
    async fn listen(&self) -> Hints {
        let news = Arc::new(Notify::new());
        let subject = EventSubject::all_of_org(self.reader.shard, self.reader.org);
        let task = match self.reader.log.client().subscribe(subject).await {
            Ok(mut subscription) => {
                let news = Arc::clone(&news);
                let mut losses = self.reader.log.inner.losses.clone();
                losses.mark_unchanged();
                // Drained at once and always, so that a slow reader of the tail accumulates no messages.
                Some(tokio::spawn(async move {
                    loop {
                        let goes_on = tokio::select! {
                            hint = subscription.next() => hint.is_some(),
                            // Messages published while the connection was lost left no hint.
                            lost = losses.changed() => lost.is_ok(),
                        };
                        news.notify_one();
                        if !goes_on {
                            return;
                        }
                    }
                }))
            }
            Err(error) => {
                tracing::warn!(org.id = %self.reader.org, error = %Chain(&error), "a tail goes on without hints");
                None
            }
        };
        Hints { news, task }
    }
}

struct Hints {
    news: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Hints {
    fn is_over(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
