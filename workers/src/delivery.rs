//! A message on its way to the lanes of its org, decoded at most once.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use orgstream_events::{Chain, Commit, CommitKeys, EventSubject, OpenedCommit, SubjectError};
use orgstream_projections::parked::aggregate_of;
use orgstream_stream::Message;

/// Bytes that cost as much work as a small message.
const UNIT_BYTES: f64 = 4096.0;

/// One message, shared by the lanes of all pipelines.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) message: Message,
    pub(crate) arrived: Instant,
    keys: Arc<CommitKeys>,
    opened: OnceLock<Result<Arc<OpenedCommit>, String>>,
}

impl Delivery {
    /// A message that counts as an event if it was signed with one of `keys`.
    pub(crate) fn new(message: Message, arrived: Instant, keys: &Arc<CommitKeys>) -> Arc<Self> {
        Arc::new(Self { message, arrived, keys: Arc::clone(keys), opened: OnceLock::new() })
    }

    pub(crate) fn seq(&self) -> u64 {
        self.message.seq
    }

    /// Its estimated work, in small messages: a large one costs by its bytes.
    pub(crate) fn units(&self) -> f64 {
        1.0 + self.message.payload.len() as f64 / UNIT_BYTES
    }

    /// The memory that the message takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.message.payload.len() + self.message.subject.len() + size_of::<Self>()
    }

    /// Returns the commit, or the reason why there is none: an invalid signature, unreadable bytes, or an envelope that
    /// belongs to another org.
    pub(crate) fn open(&self) -> Result<&Arc<OpenedCommit>, &str> {
        let opened = self.opened.get_or_init(|| {
            let content = self.message.content(&self.keys).map_err(|error| Chain(&error).to_string())?;
            let subject: EventSubject =
                self.message.subject.parse().map_err(|error: SubjectError| Chain(&error).to_string())?;
            Commit::decode(content)
                .and_then(|commit| commit.open(&subject))
                .map(Arc::new)
                .map_err(|error| Chain(&error).to_string())
        });
        opened.as_ref().map_err(String::as_str)
    }

    /// Returns the commit's own bytes if its signature is valid; else none, and the message is kept as received.
    pub(crate) fn verified(&self) -> Option<Bytes> {
        self.message.content(&self.keys).ok().map(|content| self.message.payload.slice_ref(content))
    }

    /// Returns the time since the command was accepted; for an unreadable message, since it arrived here.
    pub(crate) fn lag(&self, now: Instant, wall: SystemTime) -> Duration {
        let recorded = self.open().ok().and_then(|commit| commit.events.first()).map(|event| event.header.recorded_at);
        match (recorded, wall.duration_since(UNIX_EPOCH)) {
            (Some(recorded), Ok(wall)) => {
                wall.saturating_sub(Duration::from_millis(recorded.unix_ms().max(0).unsigned_abs()))
            }
            _ => now.saturating_duration_since(self.arrived),
        }
    }

    /// Returns the aggregate as the subject names it, `type.id`, whether or not it is readable.
    pub(crate) fn aggregate(&self) -> &str {
        aggregate_of(&self.message.subject)
    }
}
