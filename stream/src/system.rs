//! The system stream: the value of a subject is its last message that a process of this installation signed.

use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use orgstream_events::{CodecError, cause};
use time::OffsetDateTime;

use crate::{
    Log, StreamError,
    api::{last_on_leader, next_on_leader, unavailable},
    message::{expected, forged},
};

/// Messages checked on one subject. There is usually one, and one more for each change of owner.
const MAX_LOOKED_THROUGH: usize = 1_000;

/// The value of a subject of the system stream.
pub(crate) struct Fact {
    /// The last sequence on the subject, by any writer: the next write has to expect it.
    pub(crate) seq: u64,
    /// The content of the last authentic message; none when there is no such message.
    pub(crate) content: Option<Bytes>,
    /// When the log stored that message, or else the last one.
    pub(crate) stored_at: OffsetDateTime,
}

impl Log {
    /// Returns the subject's value; none when it has no messages.
    pub(crate) async fn system_fact(&self, subject: &str) -> Result<Option<Fact>, StreamError> {
        let Some(newest) = last_on_leader(&self.inner.system, subject).await? else { return Ok(None) };
        let (seq, stored_at) = (newest.sequence, newest.time);
        if let Some(content) = self.system_content(&newest)? {
            return Ok(Some(Fact { seq, content: Some(content), stored_at }));
        }
        let mut fact = Fact { seq, content: None, stored_at };
        let mut next = 1;
        for _ in 0..MAX_LOOKED_THROUGH {
            let Some(message) = next_on_leader(&self.inner.system, subject, next).await? else { return Ok(Some(fact)) };
            if message.sequence >= seq {
                return Ok(Some(fact));
            }
            next = message.sequence + 1;
            if let Some(content) = self.system_content(&message)? {
                (fact.content, fact.stored_at) = (Some(content), message.time);
            }
        }
        let reason =
            format!("more than {MAX_LOOKED_THROUGH} messages are on it, the last of which no process of ours signed");
        Err(StreamError::Corrupt { subject: subject.to_owned(), seq, reason: cause(reason) })
    }

    /// Returns the content of an authentic message; none for one without a valid signature of this installation, which
    /// raises the alarm.
    pub(crate) fn system_content(&self, message: &StreamMessage) -> Result<Option<Bytes>, StreamError> {
        let (subject, seq) = (message.subject.as_str(), message.sequence);
        match self.keys().verify(subject, expected(&message.headers), &message.payload) {
            Ok(content) => Ok(Some(message.payload.slice_ref(content))),
            Err(reason @ CodecError::NotAuthentic { .. }) => {
                forged(subject, seq, &reason);
                Ok(None)
            }
            Err(error) => Err(unreadable(subject, seq, error)),
        }
    }
}

/// Other processes sign with a key that this one was not given.
#[derive(Debug, thiserror::Error)]
#[error("give every process all keys (--commit-keys) before one of them signs")]
struct KeyMissing(#[source] CodecError);

/// Signed content that this process cannot decode: another process can, or this one once it has the key.
pub(crate) fn unreadable(subject: &str, seq: u64, error: CodecError) -> StreamError {
    match error {
        CodecError::UnknownKey { .. } => unavailable("verify a message", KeyMissing(error)),
        error => StreamError::Corrupt { subject: subject.to_owned(), seq, reason: cause(error) },
    }
}
