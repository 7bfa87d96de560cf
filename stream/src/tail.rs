//! Following one org: what it has, and then what it gets, without a consumer on the server.
//!
//! A JetStream publish is a core NATS message too, so a plain subscription on the org's subjects says that something
//! is about to be there. It is only ever a hint: the messages come from the log, and a slow poll covers lost hints.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use orgstream_events::EventSubject;
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
/// A hint comes with the publish, the message is readable after its sync: so an empty read is repeated after these.
const AFTER_HINT: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
];

impl Log {
    /// The org's messages from `from_seq` (inclusive), and then those to come, until it is dropped.
    ///
    /// Holds one chunk in memory, however far behind its reader is. A server that is away is waited for; the stream
    /// ends only with an error that waiting cannot cure.
    pub fn tail(
        &self,
        placement: &Placement,
        from_seq: u64,
    ) -> impl Stream<Item = Result<Message, StreamError>> + Send + use<> {
        let reader = Reader { log: self.clone(), shard: placement.shard, org: placement.org, next: from_seq.max(1) };
        let mut losses = self.inner.losses.clone();
        // So the first look is at where the log ends: a position beyond that is an error at once.
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
    /// How many empty looks have followed the last hint.
    looks: usize,
    /// Where the whole stream ended at the last poll.
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
                // Nothing up to the polled end is ours: the next look need not scan it again.
                Ok(_) => {
                    let end = self.polled.take().unwrap_or_default();
                    self.reader.next = self.reader.next.max(end + 1);
                }
                Err(StreamError::Unavailable { reason, .. }) => {
                    tracing::warn!(org.id = %self.reader.org, shard = %self.reader.shard, reason, "a tail waits for the log");
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

    /// Looks where the whole stream ends. Before what was already read from it: then a crash has cost it its end.
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

    /// Without a subscription there are no hints, and the poll still finds everything.
    async fn listen(&self) -> Hints {
        let news = Arc::new(Notify::new());
        let subject = EventSubject::all_of_org(self.reader.shard, self.reader.org);
        let task = match self.reader.log.client().subscribe(subject).await {
            Ok(mut subscription) => {
                let news = Arc::clone(&news);
                let mut losses = self.reader.log.inner.losses.clone();
                losses.mark_unchanged();
                // Emptied at once and always, so that a slow reader of the tail piles up nothing.
                Some(tokio::spawn(async move {
                    loop {
                        let goes_on = tokio::select! {
                            hint = subscription.next() => hint.is_some(),
                            // What was published while the connection was away left no hint.
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
                tracing::warn!(org.id = %self.reader.org, %error, "a tail goes on without hints");
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
