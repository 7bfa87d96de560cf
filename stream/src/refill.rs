//! Writing back lost messages of a stream, each at its sequence: by an operator's command, while nothing else appends.

use async_nats::header;
use bytes::Bytes;
use orgstream_events::{Commit, EventSubject, Shard};

use crate::{
    AppendError, Log, Message, StreamError,
    generation::Which,
    publish::{Answer, Write},
    tips::StreamName,
};

/// The token in the place of the org, for messages of which no copy is left.
const NOBODY: &str = "lost";

/// The token in the place of the org, for the message that a rewrite writes behind all that it has copied.
const REWRITE: &str = "rewrite";

/// Whether a message is of no organization, and there for its sequence alone: in the place of a lost one, or at the end of what
/// a rewrite has copied.
pub fn is_placeholder(subject: &str) -> bool {
    subject.split('.').nth(2).is_some_and(|token| [NOBODY, REWRITE].contains(&token))
}

/// The subject of the message behind all that a rewrite has copied.
pub(crate) fn tick_subject(shard: Shard, generation: u32) -> String {
    format!("ev.{shard}.{REWRITE}.{generation}")
}

impl Log {
    /// Returns the shard's message `seq`, if it exists.
    pub async fn message(&self, shard: Shard, seq: u64) -> Result<Option<Message>, StreamError> {
        self.on_leader(shard, Which::At(seq)).await
    }

    /// Writes the commit, or a placeholder if no copy of it is left, as the shard's message `seq`: nowhere else.
    pub async fn write_back(&self, shard: Shard, seq: u64, commit: Option<&Commit>) -> Result<(), AppendError> {
        let mut expected = None;
        let (subject, payload) = match commit {
            Some(commit) => {
                let subject = EventSubject { shard, org: commit.org_id, aggregate: commit.aggregate.clone() };
                if !commit.aggregate.is_access() {
                    let last = self.on_leader(shard, Which::Last(&subject.to_string())).await?;
                    expected = Some(last.map_or(0, |last| last.seq));
                }
                let payload = commit.sign(self.keys(), &subject, expected)?;
                (subject.to_string(), payload)
            }
            None => (format!("ev.{shard}.{NOBODY}.{seq}"), Bytes::from(format!("message {seq} was lost"))),
        };
        // Without a message id: the server's deduplication is of no use here.
        let write = Write { subject, payload: payload.clone(), message_id: None, expected, trace: None };
        let headers = [(header::NATS_EXPECTED_LAST_SEQUENCE, (seq.saturating_sub(1)).to_string())];
        match self.inner.publisher.publish_with(&write, &headers).await {
            Answer::Stored { seq: stored } if stored == seq => {
                self.inner.tips.note(StreamName::Shard(shard), seq, &payload);
                Ok(())
            }
            Answer::Unknown { reason } => Err(AppendError::Unavailable { reason }),
            Answer::Refused { code, description } => Err(AppendError::Refused { code, description }),
            other => Err(AppendError::Invalid(format!(
                "message {seq} of shard {shard} cannot be written back ({other:?}): another process appends to it; stop every \
                 process of the program first"
            ))),
        }
    }
}
