//! Requests to the JetStream API: one function to send them, one representation of their errors.

use std::{error::Error, time::Duration};

use async_nats::{
    StatusCode,
    jetstream::{
        message::StreamMessage,
        response::Response,
        stream::{DirectGetErrorKind, RawMessageErrorKind, Stream},
    },
};
use orgstream_events::{Cause, cause};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Log, StreamError};

/// JetStream's error codes that this crate distinguishes.
pub(crate) mod code {
    pub(crate) const NOT_AVAILABLE: u64 = 10008;
    pub(crate) const NOT_LEADER: u64 = 10009;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(crate) const DUPLICATE_IN_PROCESS: u64 = 10158;
    pub(crate) const SUBJECT_IN_PROCESS: u64 = 10164;
    pub(crate) const TOO_MANY_REQUESTS: u64 = 10167;
    pub(crate) const INCOMPLETE_BATCH: u64 = 10176;
    pub(crate) const STREAM_OFFLINE: u64 = 10194;
    pub(crate) const DUPLICATE_IN_BATCH: u64 = 10201;
    pub(crate) const TOO_MANY_BATCHES: u64 = 10210;
}

/// Whether a retry can help: the server is starting, electing a leader, or busy with the same subject.
pub(crate) fn is_passing(http_code: u64, err_code: u64) -> bool {
    http_code == 503
        || matches!(
            err_code,
            code::NOT_AVAILABLE
                | code::NOT_LEADER
                | code::DUPLICATE_IN_PROCESS
                | code::SUBJECT_IN_PROCESS
                | code::TOO_MANY_REQUESTS
                | code::INCOMPLETE_BATCH
                | code::STREAM_OFFLINE
                | code::TOO_MANY_BATCHES
        )
}

/// The backoff before try number `tries + 1`: from 10 ms, doubling, to half a second.
pub(crate) fn backoff(tries: u32) -> Duration {
    Duration::from_millis((10 << tries.min(6)).min(500))
}

pub(crate) fn unavailable(action: &'static str, error: impl Error + Send + Sync + 'static) -> StreamError {
    StreamError::Unavailable { action, reason: cause(error) }
}

/// No stream answered to the name that was asked: it is lost, or its shard is served by another one now.
#[derive(Debug, thiserror::Error)]
#[error("no stream of this name answers")]
struct NoStream(#[source] Cause);

pub(crate) fn gone(action: &'static str, reason: Cause) -> StreamError {
    StreamError::Unavailable { action, reason: cause(NoStream(reason)) }
}

/// Whether no stream answered to the name that was asked.
pub(crate) fn is_gone(error: &StreamError) -> bool {
    match error {
        StreamError::Unavailable { reason, .. } => reason.downcast_ref::<NoStream>().is_some(),
        StreamError::Refused { code, .. } => *code == code::STREAM_NOT_FOUND,
        _ => false,
    }
}

fn refused(action: &'static str, refusal: async_nats::jetstream::Error) -> StreamError {
    let code = refusal.error_code().0;
    if is_passing(refusal.code() as u64, code) {
        return unavailable(action, refusal);
    }
    StreamError::Refused { action, code, description: refusal.to_string() }
}

impl Log {
    /// Sends a request to `$JS.API.<subject>`.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        action: &'static str,
        subject: String,
        body: &(impl Serialize + ?Sized),
    ) -> Result<T, StreamError> {
        match self.inner.jetstream.request(subject, body).await {
            Ok(Response::Ok(answer)) => Ok(answer),
            Ok(Response::Err { error }) => Err(refused(action, error)),
            Err(error) => Err(unavailable(action, error)),
        }
    }
}

/// Returns the last message on `subject` as the leader holds it: sees every acknowledged write.
pub(crate) async fn last_on_leader(stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, StreamError> {
    let answer = stream.raw_message_builder().last_by_subject(subject).send().await;
    found("read the last message", answer)
}

/// Returns the message with this sequence, from the leader.
pub(crate) async fn get_on_leader(stream: &Stream<()>, seq: u64) -> Result<Option<StreamMessage>, StreamError> {
    found("read a message", stream.raw_message_builder().sequence(seq).send().await)
}

/// Returns the first message from `seq` on that matches `filter`, from the leader.
pub(crate) async fn next_on_leader(
    stream: &Stream<()>,
    filter: &str,
    seq: u64,
) -> Result<Option<StreamMessage>, StreamError> {
    let answer = stream.raw_message_builder().sequence(seq).next_by_subject(filter).send().await;
    found("look for the next message", answer)
}

fn found(
    action: &'static str,
    answer: Result<StreamMessage, async_nats::jetstream::stream::RawMessageError>,
) -> Result<Option<StreamMessage>, StreamError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            // Every process ensures the streams at startup, so a missing one was lost or replaced since then.
            RawMessageErrorKind::JetStream(answer) if answer.error_code().0 == code::STREAM_NOT_FOUND => {
                Err(gone(action, cause(answer)))
            }
            RawMessageErrorKind::JetStream(answer) => Err(refused(action, answer)),
            RawMessageErrorKind::InvalidSubject | RawMessageErrorKind::Other => Err(unavailable(action, error)),
        },
    }
}

/// Returns the last message on `subject`, from any replica.
pub(crate) async fn last_on_any(stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, StreamError> {
    direct("read the last message", stream.direct_get_last_for_subject(subject).await)
}

/// Returns the message with this sequence, from any replica.
pub(crate) async fn get_on_any(stream: &Stream<()>, seq: u64) -> Result<Option<StreamMessage>, StreamError> {
    direct("read a message", stream.direct_get(seq).await)
}

fn direct(
    action: &'static str,
    answer: Result<StreamMessage, async_nats::jetstream::stream::DirectGetError>,
) -> Result<Option<StreamMessage>, StreamError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            DirectGetErrorKind::NotFound => Ok(None),
            DirectGetErrorKind::ErrorResponse(StatusCode::NO_RESPONDERS, _) => Err(gone(action, cause(error))),
            _ => Err(unavailable(action, error)),
        },
    }
}
