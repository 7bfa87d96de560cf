//! The vault: what is stored of secrets, one message each, in a stream of its own from which it can be taken away.
//!
//! Every write expects the message before it and is signed with that expectation, so that neither two processes nor a stranger
//! who stores an old message again can bring back what was destroyed.

use async_nats::jetstream::message::StreamMessage;
use orgstream_events::{OrgId, SubjectError, VaultEntry, VaultSubject, cause};
use time::OffsetDateTime;

use crate::{
    Log, StreamError,
    api::{backoff, last_on_leader, next_on_leader},
    message::expected,
    publish::{Answer, Write},
    system::unreadable,
};

const ACTION: &str = "write to the vault";
/// Tries of a write whose answer was lost, about a second.
const TRIES: u32 = 6;

/// What the vault has of a secret.
#[derive(Debug, Clone)]
pub struct StoredSecret {
    /// Its place.
    pub subject: VaultSubject,
    /// The sequence of its message: the next write has to expect it.
    pub seq: u64,
    /// When the vault stored it.
    pub stored_at: OffsetDateTime,
    /// The entry.
    pub entry: VaultEntry,
}

impl Log {
    /// Returns what the vault has of the secret, every acknowledged write included; none if there never was such a secret.
    pub async fn secret(&self, subject: &VaultSubject) -> Result<Option<StoredSecret>, StreamError> {
        let found = last_on_leader(&self.inner.vault, &subject.to_string()).await?;
        found.map(|message| self.open_secret(*subject, &message)).transpose()
    }

    /// Returns the first secret whose message has this sequence or a later one; with an error about one, its sequence.
    pub async fn next_secret(&self, seq: u64) -> Result<Option<(u64, Result<StoredSecret, StreamError>)>, StreamError> {
        self.next_secret_on("vault.>", seq).await
    }

    /// Returns the same as [`Log::next_secret`], of the secrets of one org.
    pub async fn next_secret_of(
        &self,
        org: OrgId,
        seq: u64,
    ) -> Result<Option<(u64, Result<StoredSecret, StreamError>)>, StreamError> {
        self.next_secret_on(&format!("vault.{org}.*"), seq).await
    }

    async fn next_secret_on(
        &self,
        filter: &str,
        seq: u64,
    ) -> Result<Option<(u64, Result<StoredSecret, StreamError>)>, StreamError> {
        let Some(message) = next_on_leader(&self.inner.vault, filter, seq).await? else { return Ok(None) };
        let corrupt = |error: SubjectError| StreamError::Corrupt {
            subject: message.subject.to_string(),
            seq: message.sequence,
            reason: cause(error),
        };
        let opened = message.subject.as_str().parse().map_err(corrupt);
        let opened = opened.and_then(|subject| self.open_secret(subject, &message));
        Ok(Some((message.sequence, opened)))
    }

    /// Stores the entry, if the last sequence of the secret's subject is `previous`. Returns its sequence, or none if it was
    /// another one. A write that was stored although its answer was lost is none, too.
    pub async fn keep_secret(
        &self,
        subject: &VaultSubject,
        previous: u64,
        entry: &VaultEntry,
    ) -> Result<Option<u64>, StreamError> {
        let payload = entry.sign(self.keys(), subject, previous).map_err(StreamError::Unsigned)?;
        let (subject, expected) = (subject.to_string(), Some(previous));
        let write = Write { subject, payload, message_id: None, expected, trace: None };
        let mut tries = 0;
        loop {
            let reason = match self.inner.publisher.publish_in_turn(&write).await {
                Answer::Stored { seq } | Answer::Duplicate { seq } => return Ok(Some(seq)),
                Answer::Stale => return Ok(None),
                Answer::Refused { code, description } => {
                    return Err(StreamError::Refused { action: ACTION, code, description });
                }
                Answer::TooLarge { size, limit } => {
                    return Err(StreamError::Invalid(format!("a secret of {size} bytes; the server takes {limit}")));
                }
                Answer::Unknown { reason } => reason,
            };
            tries += 1;
            if tries >= TRIES {
                return Err(StreamError::Unavailable { action: ACTION, reason });
            }
            tokio::time::sleep(backoff(tries)).await;
        }
    }

    fn open_secret(&self, subject: VaultSubject, message: &StreamMessage) -> Result<StoredSecret, StreamError> {
        let (seq, stored_at) = (message.sequence, message.time);
        let entry = VaultEntry::open(self.keys(), &subject, expected(&message.headers), &message.payload)
            .map_err(|error| unreadable(&subject.to_string(), seq, error))?;
        Ok(StoredSecret { subject, seq, stored_at, entry })
    }
}
