//! The source of a cursor: one consumer on the server, from its creation until its first error.

use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use orgstream_events::{Cause, Shard, cause};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    Log, Message, StreamError,
    api::unavailable,
    consumer::{self, Consumer, Place, Reads, SPENT},
    tips::StreamName,
};

/// Messages per request; when half of them have come, the next are requested. All cursors share a connection, so this
/// is also how many messages of a busy shard can precede the next message of a quiet one.
const BATCH: usize = 200;
/// Messages per request of a cursor with a large backlog.
const CATCHING_UP: usize = 2_000;
/// Pending messages from which a cursor is catching up.
const FAR_BEHIND: u64 = 5_000;
/// Bytes per request, and at least the largest message. With two requests open, a cursor uses up to twice this memory.
const BATCH_BYTES: usize = 2 << 20;
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);

/// An event of a subscription.
pub(crate) enum Received {
    Message(Message),
    /// No new message, but the server is alive.
    Alive,
    /// No more messages will come.
    Over {
        reason: Cause,
    },
}

#[derive(Debug)]
pub(crate) struct Subscription {
    client: async_nats::Client,
    messages: Subscriber,
    inbox: String,
    consumer: Consumer,
    /// Up to which sequence messages are missing because they were erased.
    erased_to: u64,
    /// The number of messages that the consumer has sent, and whether none of them was lost on the way.
    sent: u64,
    is_whole: bool,
    /// Messages that exist and were not sent yet, as last reported by the server.
    ahead: u64,
    /// Messages requested and not yet received.
    open: usize,
    /// Bytes received since the number of open requests was last certain, counted as the server counts them.
    came: usize,
    losses: watch::Receiver<u64>,
}

impl Subscription {
    /// Creates a consumer that starts after `after`.
    pub(crate) async fn begin(log: &Log, shard: Shard, after: u64) -> Result<Self, StreamError> {
        let action = "begin a cursor";
        let mut losses = log.inner.losses.clone();
        losses.mark_unchanged();
        let state = log.shard_state(shard).await?;
        if state.last_seq < after {
            return Err(StreamError::Behind { shard, last: state.last_seq, expected: after });
        }
        log.look_back(StreamName::Shard(shard)).await?;
        let consumer = consumer::create(log, shard, Reads::Everything, after).await?;
        let client = log.client().clone();
        let inbox = client.new_inbox();
        Ok(Self {
            messages: client.subscribe(inbox.clone()).await.map_err(|error| unavailable(action, error))?,
            client,
            inbox,
            consumer,
            erased_to: state.erased_to,
            sent: 0,
            is_whole: true,
            ahead: 0,
            open: 0,
            came: 0,
            losses,
        })
    }

    /// Whether what is missing before the message `found`, which came last, was erased: the server has skipped it by itself, in
    /// the part of the stream where messages are missing that were erased, and no others.
    pub(crate) fn explains(&self, found: u64) -> bool {
        self.is_whole && found <= self.erased_to + 1
    }

    /// Returns the next event; dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Received {
        loop {
            if let Err(fed) = self.ask_ahead().await {
                return fed;
            }
            // Most messages are buffered already: no timer is set for those.
            let message = if let Some(message) = self.messages.next().now_or_never() {
                message
            } else {
                let spent = self.came >= BATCH_BYTES;
                tokio::select! {
                    message = self.messages.next() => message,
                    _ = self.losses.changed() => return over("the connection was lost"),
                    () = tokio::time::sleep(SPENT), if spent => {
                        (self.open, self.came) = (0, 0);
                        continue;
                    }
                    () = tokio::time::sleep(2 * HEARTBEAT) => return over("the server has gone silent"),
                }
            };
            return match message {
                Some(message) if message.status.is_none() => self.take(message),
                Some(message) => self.heed(&message),
                None => over("the connection is closed"),
            };
        }
    }

    /// Requests more when half of the requested messages have come.
    async fn ask_ahead(&mut self) -> Result<(), Received> {
        let batch = if self.ahead > FAR_BEHIND { CATCHING_UP } else { BATCH };
        if self.open > batch / 2 {
            return Ok(());
        }
        let asked = self.client.publish_with_reply(self.consumer.ask.clone(), self.inbox.clone(), request(batch));
        match tokio::time::timeout(HEARTBEAT, asked).await {
            Ok(Ok(())) => self.open += batch,
            Ok(Err(error)) => return Err(Received::Over { reason: cause(error) }),
            Err(_) => return Err(over("the connection takes no more")),
        }
        Ok(())
    }

    fn take(&mut self, message: async_nats::Message) -> Received {
        self.open = self.open.saturating_sub(1);
        self.came += message.length;
        let Some(place) = Place::of(&message) else { return over("a message without a sequence") };
        self.ahead = place.ahead;
        self.is_whole &= place.number == self.sent + 1;
        self.sent = place.number;
        Received::Message(place.message(&self.consumer.generation, message))
    }

    /// Handles the server's status message about a request.
    fn heed(&mut self, message: &async_nats::Message) -> Received {
        let left = || message.headers.as_ref()?.get_last("Nats-Pending-Messages")?.as_str().parse::<usize>().ok();
        match message.status.map(|status| status.as_u16()) {
            Some(100) => Received::Alive,
            // A request that ran out of time or of bytes, with the number of its messages that will not come.
            Some(408 | 409) if left().is_some() => {
                self.open = self.open.saturating_sub(left().unwrap_or_default());
                Received::Alive
            }
            status => {
                let text = message.description.as_deref().unwrap_or_default();
                over(&format!("the consumer ended: {} {text}", status.unwrap_or_default()))
            }
        }
    }
}

fn over(reason: &str) -> Received {
    Received::Over { reason: cause(reason) }
}

fn request(batch: usize) -> Bytes {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let request = json!({
        "batch": batch,
        "max_bytes": BATCH_BYTES,
        "expires": nanos(EXPIRES),
        "idle_heartbeat": nanos(HEARTBEAT),
    });
    request.to_string().into()
}
