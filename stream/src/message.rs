//! A message as stored in the log, and a commit decoded from one.

use std::error::Error;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use orgstream_events::{Chain, CodecError, Commit, CommitKeys, EventSubject, OpenedCommit, Shard, SubjectError, cause};

use crate::StreamError;

/// Applies an expectation to another subject, so that the message expects nothing on its own.
const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// One message of a shard's stream, not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The stream it is in.
    pub shard: Shard,
    /// Its sequence in that stream; meaningful only together with the shard.
    pub seq: u64,
    /// `ev.<shard>.<org>.<aggregate>.<id>`.
    pub subject: String,
    /// A signed [`Commit`].
    pub payload: Bytes,
    /// The last sequence of the subject that its publisher expected, as enforced by the server: when it was stored, or of a
    /// message that was copied into the stream, as checked when it was copied.
    pub expected: Option<u64>,
    /// The W3C `traceparent` of the request that appended it.
    pub trace: Option<String>,
}

impl Message {
    /// Returns the bytes of the [`Commit`] after verifying that a process of this installation signed them for this
    /// place.
    pub fn content(&self, keys: &CommitKeys) -> Result<&[u8], CodecError> {
        keys.verify(&self.subject, self.expected, &self.payload)
    }

    /// Verifies and decodes the commit and compares it with the subject of the message.
    pub fn open(&self, keys: &CommitKeys) -> Result<StoredCommit, StreamError> {
        let content = self.content(keys).map_err(|error| self.corrupt(error))?;
        Ok(StoredCommit { seq: self.seq, commit: self.decode(content)?, trace: self.trace.clone() })
    }

    pub(crate) fn decode(&self, content: &[u8]) -> Result<OpenedCommit, StreamError> {
        let subject: EventSubject = self.subject.parse().map_err(|error: SubjectError| self.corrupt(error))?;
        let commit = Commit::decode(content).and_then(|commit| commit.open(&subject));
        commit.map_err(|error| self.corrupt(error))
    }

    pub(crate) fn corrupt(&self, reason: impl Into<Box<dyn Error + Send + Sync>>) -> StreamError {
        StreamError::Corrupt { subject: self.subject.clone(), seq: self.seq, reason: cause(reason) }
    }
}

/// A commit of one aggregate's history, checked against its subject.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCommit {
    /// Its sequence in the shard's stream.
    pub seq: u64,
    /// The events.
    pub commit: OpenedCommit,
    /// The W3C `traceparent` of the request that appended it.
    pub trace: Option<String>,
}

/// The last sequence of a message's own subject that the server enforced for its publisher. Copies of a stream lack it.
pub(crate) fn expected(headers: &HeaderMap) -> Option<u64> {
    if headers.get_last(EXPECTED_SUBJECT).is_some() {
        return None;
    }
    headers.get_last(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE)?.as_str().parse().ok()
}

/// Raises the alarm for a message without a valid signature of this installation.
pub(crate) fn forged(subject: &str, seq: u64, reason: &CodecError) {
    metrics::counter!("orgstream_forged_messages_total").increment(1);
    tracing::error!(
        subject, event.seq = seq, reason = %Chain(reason),
        "a message in the log is not from a process of ours and is passed over: see who can publish to the broker"
    );
}
