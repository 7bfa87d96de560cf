//! One publish and its answer; and several as one atomic batch (ADR-50).

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap,
    client::{Request, RequestErrorKind},
    header::{self, HeaderName},
};
use bytes::Bytes;
use orgstream_events::{Cause, cause};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::api::{code, is_passing};

/// Timeout after which an answer counts as lost. A server that syncs every write on a busy disk can take this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Concurrent single publishes, over all shards.
const IN_FLIGHT: usize = 1_024;
/// A `traceparent` is 55 characters. Anything else in its place must not reach a header line.
const MAX_TRACE: usize = 128;

pub(crate) const TRACE: &str = "traceparent";

/// A message to publish. If it expects a last sequence on its subject, that is sent with it, and stays with it in the
/// log.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
    pub(crate) message_id: Option<String>,
    pub(crate) expected: Option<u64>,
    pub(crate) trace: Option<String>,
}

impl Write {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = &self.message_id {
            headers.insert(header::NATS_MESSAGE_ID, id.as_str());
        }
        if let Some(expected) = self.expected {
            headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        let is_clean = |text: &&String| text.len() <= MAX_TRACE && text.bytes().all(|byte| byte.is_ascii_graphic());
        if let Some(trace) = self.trace.as_ref().filter(is_clean) {
            headers.insert(TRACE, trace.as_str());
        }
        headers
    }
}

/// The server's answer to one message, or to a whole batch.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Stored; for a batch, this is the sequence of its last message.
    Stored { seq: u64 },
    /// The message id was seen before, on the message with this sequence.
    Duplicate { seq: u64 },
    /// The subject has moved on, or (in a batch only) a message id was seen before. Nothing was stored.
    Stale,
    /// No answer, or one that asks for a retry. It may be stored.
    Unknown { reason: Cause },
    /// A retry cannot succeed.
    Refused { code: u64, description: String },
    /// The message is larger than this server accepts; both in bytes.
    TooLarge { size: usize, limit: usize },
}

/// The server's answer is not JSON of the expected shape.
#[derive(Debug, thiserror::Error)]
#[error("an unreadable answer")]
struct UnreadableAnswer(#[source] serde_json::Error);

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    count: u64,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Sends messages and waits for the server's answers.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    client: Client,
    losses: watch::Receiver<u64>,
    turns: Arc<Semaphore>,
}

impl Publisher {
    pub(crate) fn new(client: Client, losses: watch::Receiver<u64>) -> Self {
        Self { client, losses, turns: Arc::new(Semaphore::new(IN_FLIGHT)) }
    }

    /// Publishes one message, once, when fewer than [`IN_FLIGHT`] others are in flight.
    pub(crate) async fn publish_in_turn(&self, write: &Write) -> Answer {
        match self.turns.acquire().await {
            Ok(_turn) => self.publish(write).await,
            Err(_) => Answer::Unknown { reason: cause("the log is closed") },
        }
    }

    /// Publishes one message, once.
    pub(crate) async fn publish(&self, write: &Write) -> Answer {
        self.publish_with(write, &[]).await
    }

    /// Publishes one message with additional headers, once.
    pub(crate) async fn publish_with(&self, write: &Write, more: &[(HeaderName, String)]) -> Answer {
        let mut headers = write.headers();
        for (name, value) in more {
            headers.insert(name.clone(), value.as_str());
        }
        match self.request(write, headers).await {
            Ok(ack) => answer(ack),
            Err(answer) => answer,
        }
    }

    /// Publishes all of `writes` or none of them, once. At most one per subject.
    pub(crate) async fn publish_batch(&self, writes: &[&Write]) -> Answer {
        let Some((last, rest)) = writes.split_last() else {
            return Answer::Refused { code: 0, description: "a batch of nothing".to_owned() };
        };
        let id = Uuid::now_v7().simple().to_string();
        let headers = |write: &Write, place: usize| {
            let mut headers = write.headers();
            headers.insert(header::NATS_BATCH_ID, id.as_str());
            headers.insert(header::NATS_BATCH_SEQUENCE, place.to_string());
            headers
        };
        for (index, write) in rest.iter().enumerate() {
            let headers = headers(write, index + 1);
            let sent = self.client.publish_with_headers(write.subject.clone(), headers, write.payload.clone());
            match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Answer::Unknown { reason: cause(error) },
                Err(_) => return Answer::Unknown { reason: cause("the connection takes no more") },
            }
        }
        let mut headers = headers(last, writes.len());
        headers.insert(header::NATS_BATCH_COMMIT, header::NATS_BATCH_COMMIT_FINAL);
        match self.request(last, headers).await {
            // An answer that does not cover the whole batch says nothing about its members.
            Ok(ack) if ack.error.is_none() && ack.count != writes.len() as u64 => {
                Answer::Unknown { reason: cause("the server did not take the messages for a batch") }
            }
            Ok(ack) => answer(ack),
            Err(answer) => answer,
        }
    }

    async fn request(&self, write: &Write, headers: HeaderMap) -> Result<Ack, Answer> {
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        let request = Request::new().headers(headers).payload(write.payload.clone()).timeout(None);
        let request = self.client.send_request(write.subject.clone(), request);
        let unknown = |reason: &str| Answer::Unknown { reason: cause(reason) };
        let message = tokio::select! {
            answer = tokio::time::timeout(ANSWER_TIMEOUT, request) => match answer {
                Ok(Ok(message)) => message,
                Ok(Err(error)) if error.kind() == RequestErrorKind::MaxPayloadExceeded => {
                    return Err(Answer::TooLarge { size: write.payload.len(), limit: self.client.max_payload() });
                }
                Ok(Err(error)) => return Err(Answer::Unknown { reason: cause(error) }),
                Err(_) => return Err(unknown("no answer in time")),
            },
            _ = losses.changed() => return Err(unknown("the connection was lost")),
        };
        serde_json::from_slice(&message.payload)
            .map_err(|error| Answer::Unknown { reason: cause(UnreadableAnswer(error)) })
    }
}

fn answer(ack: Ack) -> Answer {
    match ack.error {
        None if ack.duplicate => Answer::Duplicate { seq: ack.seq },
        None => Answer::Stored { seq: ack.seq },
        Some(error) => match error.err_code {
            code::WRONG_LAST_SEQUENCE | code::DUPLICATE_IN_BATCH => Answer::Stale,
            code if is_passing(error.code, code) => Answer::Unknown { reason: cause(error.description) },
            code => Answer::Refused { code, description: error.description },
        },
    }
}
