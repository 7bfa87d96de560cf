//! A message as it lies in the log, and a commit read out of one.

use bytes::Bytes;
use orgstream_events::{Commit, EventSubject, OpenedCommit, Shard};

use crate::StreamError;

/// One message of a shard's stream, not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The stream it is in.
    pub shard: Shard,
    /// Its place in that stream; never of use without the shard.
    pub seq: u64,
    /// `ev.<shard>.<org>.<aggregate>.<id>`.
    pub subject: String,
    /// An encoded [`Commit`].
    pub payload: Bytes,
    /// The W3C `traceparent` of the request that appended it.
    pub trace: Option<String>,
}

impl Message {
    /// Decodes the commit and compares it with the subject it came on.
    pub fn open(&self) -> Result<StoredCommit, StreamError> {
        let subject: EventSubject = self.subject.parse().map_err(|error| self.corrupt(&error))?;
        let commit = Commit::decode(&self.payload).and_then(|commit| commit.open(&subject));
        let commit = commit.map_err(|error| self.corrupt(&error))?;
        Ok(StoredCommit { seq: self.seq, commit, trace: self.trace.clone() })
    }

    pub(crate) fn corrupt(&self, reason: &dyn std::fmt::Display) -> StreamError {
        StreamError::Corrupt { subject: self.subject.clone(), seq: self.seq, reason: reason.to_string() }
    }
}

/// A commit of one aggregate's history, opened against its subject.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCommit {
    /// Its sequence in the shard's stream.
    pub seq: u64,
    /// The events.
    pub commit: OpenedCommit,
    /// The W3C `traceparent` of the request that appended it.
    pub trace: Option<String>,
}
