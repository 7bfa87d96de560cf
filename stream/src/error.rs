//! Errors: one enum for each kind of request a caller can make.

use orgstream_events::{Cause, CodecError, OrgId, Shard};

use crate::tips::StreamName;

/// The reason why the log could not be read, or is missing.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection, no answer, no leader. Retryable.
    #[error("the event log cannot be reached ({action})")]
    Unavailable {
        /// The request.
        action: &'static str,
        /// The known cause.
        #[source]
        reason: Cause,
    },
    /// The server rejected the request.
    #[error("the event log refused ({action}): {description} (error {code})")]
    Refused {
        /// The request.
        action: &'static str,
        /// JetStream's own error code.
        code: u64,
        /// The server's description.
        description: String,
    },
    /// A stored message whose content does not match its subject.
    #[error("message {seq} on {subject} cannot be read")]
    Corrupt {
        /// Its subject.
        subject: String,
        /// Its sequence in the shard's stream.
        seq: u64,
        /// The problem with it.
        #[source]
        reason: Cause,
    },
    /// The stream ends before a sequence that was read from it earlier: history is lost.
    #[error("shard {shard} ends at {last}, but {expected} was read from it before: the log has lost data")]
    Behind {
        /// The shard.
        shard: Shard,
        /// Its last sequence now.
        last: u64,
        /// The sequence that was read from it before.
        expected: u64,
    },
    /// History of the stream is lost, and an operator has to decide.
    #[error("the log lost data: stream {stream}: {what}")]
    Lost {
        /// The stream.
        stream: StreamName,
        /// How the loss was detected.
        what: String,
    },
    /// The shard does not exist.
    #[error("shard {shard} does not exist: there are {shards}")]
    UnknownShard {
        /// The requested shard.
        shard: Shard,
        /// The number of shards.
        shards: u16,
    },
    /// A value of the system stream that cannot be written as JSON.
    #[error("a value of the system stream has no JSON form")]
    Unencodable(#[source] serde_json::Error),
    /// A message of the system stream that cannot be signed.
    #[error("a message of the system stream cannot be signed")]
    Unsigned(#[source] CodecError),
    /// The credentials of this process at the broker.
    #[error("the NATS credentials {problem}")]
    Credentials {
        /// The file, if there is one, and what failed.
        problem: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The options are inconsistent, or a name is not a valid subject token.
    #[error("{0}")]
    Invalid(String),
}

/// The reason why a commit was not appended, or its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another writer appended to the aggregate first: load it again and decide again.
    #[error("{subject} has moved on since it was loaded")]
    Conflict {
        /// The aggregate's subject.
        subject: String,
    },
    /// The command's id (its idempotency key) was used for another aggregate moments ago.
    #[error("the command already made events on {subject}")]
    KeyReused {
        /// The other aggregate's subject.
        subject: String,
    },
    /// The commit cannot be encoded for storage: it is too large, for example.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No answer until the deadline. Whether it was stored is unknown; the same commit may be appended again.
    #[error("the event log did not answer in time, so the effect is unknown")]
    Unavailable {
        /// The error of the last try.
        #[source]
        reason: Cause,
    },
    /// History of the stream is lost, so nothing is appended to it until an operator has decided. Whether this commit
    /// was stored before that was detected is of no use to the caller.
    #[error("the log lost data: stream {stream}: {what}")]
    Lost {
        /// The stream.
        stream: StreamName,
        /// How the loss was detected.
        what: String,
    },
    /// The server rejects this message, regardless of sender and retries.
    #[error("the event log refused the message: {description} (error {code})")]
    Refused {
        /// JetStream's own error code.
        code: u64,
        /// The server's description.
        description: String,
    },
    /// The log could not be read for it.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The commit is of another org than the placement, or the request is empty.
    #[error("{0}")]
    Invalid(String),
}

/// The reason why a claim was not made.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another org has it.
    #[error("already taken")]
    Taken {
        /// The org that has it.
        by: OrgId,
    },
    /// The request to the system stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The conditions that a cursor has to report.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// Messages are missing from the stream. The next call returns the message `found`.
    #[error("shard {shard} has no messages {expected} to {}", found.saturating_sub(1))]
    Gap {
        /// The shard.
        shard: Shard,
        /// The sequence that was expected.
        expected: u64,
        /// The sequence that was received.
        found: u64,
    },
    /// The cursor cannot continue.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// The reason why a shard was not rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The server does not copy any further.
    #[error(
        "the copy {name} stands still at {at} of {end}, so it was thrown away: see the server's log, and begin again"
    )]
    Stalled {
        /// The copy.
        name: String,
        /// The last sequence that was copied.
        at: u64,
        /// The last sequence to copy.
        end: u64,
    },
    /// The copy is not what the stream is. The shard is served as before.
    #[error("the copy of shard {shard} was thrown away: {what}")]
    Differs {
        /// The shard.
        shard: Shard,
        /// The difference.
        what: String,
    },
    /// More is written to the shard than can be copied meanwhile.
    #[error(
        "the copy of shard {shard} is still {behind} messages behind: run it again, and it goes on, when less is written"
    )]
    Busy {
        /// The shard.
        shard: Shard,
        /// The messages that it lacks.
        behind: u64,
    },
    /// Another process rewrites the shard.
    #[error("another process has taken over the rewrite of shard {shard}: let it finish")]
    TakenOver {
        /// The shard.
        shard: Shard,
    },
    /// A request failed. The rewrite goes on where it was when it is run again.
    #[error(transparent)]
    Stream(#[from] StreamError),
}
