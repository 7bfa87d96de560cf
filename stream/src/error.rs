//! What can go wrong, one enum for each thing a caller can ask for.

use orgstream_events::{CodecError, OrgId, Shard};

use crate::tips::StreamName;

/// Why the log could not be read, or is not there.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// No connection, no answer, no leader. Retryable.
    #[error("the event log cannot be reached ({action}): {reason}")]
    Unavailable {
        /// What was asked for.
        action: &'static str,
        /// What is known of the cause.
        reason: String,
    },
    /// The server answered, and the answer is no.
    #[error("the event log refused ({action}): {description} (error {code})")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// JetStream's own error code.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// A stored message that is not what its subject says it is.
    #[error("message {seq} on {subject} cannot be read: {reason}")]
    Corrupt {
        /// Where it is.
        subject: String,
        /// Its sequence in the shard's stream.
        seq: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The stream ends before a sequence that was read from it earlier: history is lost.
    #[error("shard {shard} ends at {last}, but {expected} was read from it before: the log has lost data")]
    Behind {
        /// The shard.
        shard: Shard,
        /// Its last sequence now.
        last: u64,
        /// The sequence that it had once.
        expected: u64,
    },
    /// The stream is not what it was: history is lost, and an operator has to decide.
    #[error("the log lost data: stream {stream}: {what}")]
    Lost {
        /// The stream.
        stream: StreamName,
        /// How that was found.
        what: String,
    },
    /// There is no such shard.
    #[error("shard {shard} does not exist: there are {shards}")]
    UnknownShard {
        /// What was asked for.
        shard: Shard,
        /// How many there are.
        shards: u16,
    },
    /// The options do not make sense, or a name is no subject token.
    #[error("{0}")]
    Invalid(String),
}

/// Why a commit was not appended, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody else appended to the aggregate first: load it again and decide again.
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
    /// The commit has no bytes that could be stored: too large, for one.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No answer until the deadline. Whether it was stored is unknown; the same commit may be appended again.
    #[error("the event log did not answer in time, so the effect is unknown: {reason}")]
    Unavailable {
        /// What the last try saw.
        reason: String,
    },
    /// The stream is not what it was, so nothing is appended to it until an operator has decided. Whether this commit was
    /// stored before that was found is of no use to anybody.
    #[error("the log lost data: stream {stream}: {what}")]
    Lost {
        /// The stream.
        stream: StreamName,
        /// How that was found.
        what: String,
    },
    /// The server refuses this message, whoever sends it and however often.
    #[error("the event log refused the message: {description} (error {code})")]
    Refused {
        /// JetStream's own error code.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// The commit is of another org than the placement, or the request is none at all.
    #[error("{0}")]
    Invalid(String),
}

/// Why a claim was not made.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another org has it.
    #[error("already taken")]
    Taken {
        /// Who has it.
        by: OrgId,
    },
    /// The system stream could not be asked.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What a cursor cannot pass over in silence.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// Messages are missing from the stream. The next call gives the message `found`.
    #[error("shard {shard} has no messages {expected} to {}", found.saturating_sub(1))]
    Gap {
        /// The shard.
        shard: Shard,
        /// The sequence that should have come.
        expected: u64,
        /// The sequence that came.
        found: u64,
    },
    /// The cursor cannot go on.
    #[error(transparent)]
    Stream(#[from] StreamError),
}
