//! Snapshots of aggregates: what a process made of a long history, kept in a stream of their own, where each replaces the one
//! before.
//!
//! Nothing depends on one. It is used if a process of this installation signed it for the aggregate, if it is of the shape
//! that the reader makes, and if the last message that it covers is still in the log with the same bytes; any other costs
//! time and nothing else.

use bytes::Bytes;
use futures_util::{TryStreamExt, future::join_all};
use orgstream_events::{
    AggregateId, Chain, CodecError, Commit, CommitKeys, EventSubject, Fingerprint, SnapshotPart, SnapshotSubject, cause,
};

use crate::{
    Log, Message, Placement, StoredCommit, StreamError, StreamName,
    api::{last_on_any, unavailable},
    generation::Which,
    message::forged,
    publish::{Answer, Write},
};

/// The version of an aggregate from which on it may have a snapshot, and the events between two of them at least.
pub const SNAPSHOT_EVERY: u64 = 256;
/// The largest part: half of what the server takes for a message.
const PART_BYTES: usize = 512 << 10;
/// The most parts. An aggregate whose snapshot is larger, 32 MiB, has none.
const MAX_PARTS: u16 = 64;
const ACTION: &str = "keep a snapshot";
const LIST: &str = "list the snapshots of an organization";

/// What a process made of a history up to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The shape of the content: who makes another one of the same events has no use for it.
    pub shape: u32,
    /// The sequence of the last message that it covers.
    pub seq: u64,
    /// The content, which this crate does not read.
    pub content: Bytes,
}

/// A snapshot as it was read, and what it takes to tell whether it is of this history.
pub(crate) struct Found {
    pub(crate) snapshot: Snapshot,
    /// The hash of the message at its sequence.
    pub(crate) message: Fingerprint,
    /// The messages that it was read from.
    pub(crate) parts: u64,
}

impl Log {
    /// Replaces the aggregate's snapshot. False if there can be none: it is too large, or its last message is not one of
    /// ours.
    pub async fn keep_snapshot(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        snapshot: &Snapshot,
    ) -> Result<bool, StreamError> {
        let of = EventSubject { shard: placement.shard, org: placement.org, aggregate: aggregate.clone() };
        let Some(last) = self.message_at(placement, snapshot.seq).await? else { return Ok(false) };
        if last.subject != of.to_string() || last.content(self.keys()).is_err() {
            return Ok(false);
        }
        // The log may have lost what this process has read of it, and given its sequence to another message.
        self.look_back(StreamName::Shard(placement.shard)).await?;
        let Snapshot { shape, seq, content } = snapshot;
        let parts = SnapshotPart::divide(*shape, *seq, Fingerprint::of(&[&last.payload]), content, PART_BYTES);
        if parts.len() > usize::from(MAX_PARTS) {
            return Ok(false);
        }
        let mut writes = Vec::with_capacity(parts.len());
        for (number, part) in (0..).zip(&parts) {
            let subject = SnapshotSubject { of: &of, part: number };
            let payload = part.sign(self.keys(), &subject).map_err(|error| last.corrupt(error))?;
            let subject = subject.to_string();
            writes.push(Write { subject, payload, message_id: None, expected: None, trace: None });
        }
        let answer = match writes.as_slice() {
            [write] => self.inner.publisher.publish_in_turn(write).await,
            // All or none, so that no reader finds parts of two.
            writes => self.inner.publisher.publish_batch(&writes.iter().collect::<Vec<_>>()).await,
        };
        let not_now = |reason| StreamError::Unavailable { action: ACTION, reason };
        match answer {
            Answer::Stored { .. } => Ok(true),
            Answer::Unknown { reason } => Err(not_now(reason)),
            Answer::Refused { code, description } => Err(StreamError::Refused { action: ACTION, code, description }),
            other => Err(not_now(cause(format!("{other:?}")))),
        }
    }

    /// Leaves nothing in all snapshots of an org: each is replaced by one of no shape. Returns how many messages they had.
    pub async fn forget_snapshots(&self, placement: &Placement) -> Result<u64, StreamError> {
        let Placement { shard, org, .. } = *placement;
        let filter = format!("snap.{shard}.{org}.>");
        let listed = self.inner.snapshots.info_with_subjects(filter).await;
        let mut subjects = listed.map_err(|error| unavailable(LIST, error))?;
        let mut forgotten = 0;
        while let Some((subject, _)) = subjects.try_next().await.map_err(|error| unavailable(LIST, error))? {
            let payload = SnapshotPart::nothing(self.keys(), &subject).map_err(StreamError::Unsigned)?;
            let write = Write { subject, payload, message_id: None, expected: None, trace: None };
            match self.inner.publisher.publish_in_turn(&write).await {
                Answer::Stored { .. } | Answer::Duplicate { .. } => forgotten += 1,
                Answer::Refused { code, description } => {
                    return Err(StreamError::Refused { action: ACTION, code, description });
                }
                Answer::Unknown { reason } => return Err(StreamError::Unavailable { action: ACTION, reason }),
                other @ (Answer::Stale | Answer::TooLarge { .. }) => {
                    return Err(StreamError::Unavailable { action: ACTION, reason: cause(format!("{other:?}")) });
                }
            }
        }
        Ok(forgotten)
    }

    /// Returns the aggregate's snapshot of this shape, if there is one that a process of ours signed.
    pub(crate) async fn find_snapshot(&self, of: &EventSubject, shape: u32) -> Option<Found> {
        let first = self.snapshot_part(of, 0).await?;
        if first.shape != shape || first.parts > MAX_PARTS {
            return None;
        }
        let others = join_all((1..first.parts).map(|part| self.snapshot_part(of, part))).await;
        let others: Vec<SnapshotPart> = others.into_iter().collect::<Option<_>>()?;
        let mut content = Vec::new();
        for part in std::iter::once(&first).chain(&others) {
            if !part.is_of_one_with(&first) {
                return None;
            }
            content.extend_from_slice(&part.content);
        }
        if Fingerprint::of(&[&content]) != first.whole {
            return None;
        }
        let snapshot = Snapshot { shape, seq: first.seq, content: content.into() };
        Some(Found { snapshot, message: first.message, parts: u64::from(first.parts) })
    }

    async fn snapshot_part(&self, of: &EventSubject, part: u16) -> Option<SnapshotPart> {
        let subject = SnapshotSubject { of, part };
        let message = match last_on_any(&self.inner.snapshots, &subject.to_string()).await {
            Ok(message) => message?,
            Err(error) => {
                tracing::debug!(subject = %subject, error = %Chain(&error), "a snapshot cannot be read, and the history is read instead");
                return None;
            }
        };
        match SnapshotPart::open(self.keys(), &subject, &message.payload) {
            Ok(part) => Some(part),
            Err(reason @ CodecError::NotAuthentic { .. }) => {
                forged(&subject.to_string(), message.sequence, &reason);
                None
            }
            Err(reason) => {
                tracing::debug!(subject = %subject, %reason, "a snapshot is of no use here");
                None
            }
        }
    }

    /// Returns the aggregate's commit at this sequence, which its history is known to have.
    pub async fn commit_at(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        seq: u64,
    ) -> Result<StoredCommit, StreamError> {
        let Placement { org, shard, .. } = *placement;
        let subject = EventSubject { shard, org, aggregate: aggregate.clone() }.to_string();
        let message = self.message_at(placement, seq).await?.filter(|message| message.subject == subject);
        let lost = || {
            let what = format!("message {seq} of {subject}, which was read before, is gone");
            StreamError::Lost { stream: StreamName::Shard(shard), what }
        };
        message.ok_or_else(lost)?.open(self.keys())
    }

    /// Returns the message at a sequence. One that the leader lacks is gone.
    async fn message_at(&self, placement: &Placement, seq: u64) -> Result<Option<Message>, StreamError> {
        self.on_any(placement.shard, Which::At(seq)).await
    }
}

/// Whether the history that ends with this message is too short for a snapshot. One of which that is not known may be long.
pub(crate) fn is_short(newest: &Message, keys: &CommitKeys) -> bool {
    let commit = newest.content(keys).and_then(Commit::decode).ok();
    let header = commit.and_then(|commit| commit.events.last().and_then(|event| event.read_header().ok()));
    header.is_some_and(|header| header.aggregate.version < SNAPSHOT_EVERY)
}
