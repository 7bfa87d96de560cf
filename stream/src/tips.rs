//! The last messages of the streams as known to this process, and the check that they still exist.
//!
//! A server whose storage was restored from an older copy answers normally, and assigns sequences a second time. So the
//! last message that this process has seen of each stream is remembered, and checked: after each reconnect before any
//! further append, before a cursor restarts, and on request. An acknowledgement of a sequence that was passed before
//! proves the same loss. Once it is found, this process appends nothing more to the stream.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use orgstream_events::{Fingerprint, Shard};

use crate::{
    AppendError, Log, StreamError,
    api::{get_on_leader, is_gone},
    generation::Which,
    streams,
};

/// Tries to read a message from a leader of several copies, and the pause between them, before it counts as gone.
const COPIES_LOOKS: u32 = 5;
const COPIES_PAUSE: Duration = Duration::from_millis(500);

/// One of the log's streams, by its first name: `EV_<shard>`, whichever generation serves the shard, or `SYS` for claims and
/// placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamName {
    /// The stream of a shard.
    Shard(Shard),
    /// The stream of claims and placements.
    System,
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => f.write_str(&streams::name(*shard, 1)),
            Self::System => f.write_str(streams::SYSTEM),
        }
    }
}

impl FromStr for StreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shard = |text: &str| text.strip_prefix("EV_")?.parse().ok().map(|shard| Self::Shard(Shard(shard)));
        let is_system = (text == streams::SYSTEM).then_some(Self::System);
        is_system.or_else(|| shard(text)).ok_or_else(|| format!("{text} is no stream: EV_<shard>, or SYS"))
    }
}

/// A message that identifies a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its sequence in its stream.
    pub seq: u64,
    /// The hash of its bytes, which include its signature.
    pub digest: Fingerprint,
}

impl Tip {
    fn of(seq: u64, payload: &[u8]) -> Self {
        Self { seq, digest: Fingerprint::of(&[payload]) }
    }
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEnd {
    /// Its last sequence; 0 when nothing was ever written, or there is no such stream.
    pub seq: u64,
    /// When the server stored that message, in nanoseconds.
    pub at: i128,
}

/// The state of one stream.
#[derive(Debug, Default)]
struct Known {
    /// The last message that this process has seen there. Hashed on request.
    tip: Option<(u64, Bytes)>,
    /// How a loss of history was detected.
    lost: Option<String>,
    /// The number of connection losses up to which the stream was confirmed intact.
    sure: u64,
}

/// The state of all streams: the shards in their order, and the system stream after them.
#[derive(Debug)]
pub(crate) struct Tips {
    known: Vec<Mutex<Known>>,
    /// One check after a reconnect serves all callers that wait for it.
    looking: Vec<tokio::sync::Mutex<()>>,
}

impl Tips {
    pub(crate) fn new(shards: u16) -> Self {
        let streams = usize::from(shards) + 1;
        Self {
            known: (0..streams).map(|_| Mutex::default()).collect(),
            looking: (0..streams).map(|_| tokio::sync::Mutex::default()).collect(),
        }
    }

    fn place(&self, stream: StreamName) -> usize {
        match stream {
            StreamName::Shard(shard) => usize::from(shard.0),
            StreamName::System => self.known.len().saturating_sub(1),
        }
    }

    fn of(&self, stream: StreamName) -> Option<MutexGuard<'_, Known>> {
        Some(self.known.get(self.place(stream))?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the last sequence that this process has seen in the shard.
    pub(crate) fn end(&self, shard: Shard) -> u64 {
        self.of(StreamName::Shard(shard)).and_then(|known| known.tip.as_ref().map(|(seq, _)| *seq)).unwrap_or_default()
    }

    /// Records a message that was seen.
    pub(crate) fn note(&self, stream: StreamName, seq: u64, payload: &Bytes) {
        if let Some(mut known) = self.of(stream)
            && known.tip.as_ref().is_none_or(|(last, _)| *last < seq)
        {
            known.tip = Some((seq, payload.clone()));
        }
    }

    /// Records that an append to the shard was acknowledged with the sequences `first` to `last`, where `payload` is
    /// stored; `before` is the last sequence seen when it was sent.
    pub(crate) fn acknowledged(
        &self,
        shard: Shard,
        before: u64,
        (first, last): (u64, u64),
        payload: &Bytes,
    ) -> Result<(), AppendError> {
        let stream = StreamName::Shard(shard);
        if first > before {
            self.note(stream, last, payload);
            return Ok(());
        }
        self.lose(stream, &format!("it has given out {first} again, after {before}"));
        self.refuse(shard)
    }

    /// Returns the loss that keeps this process from appending to the shard. Placements and claims are in the system
    /// stream: without it, ownership cannot be determined.
    pub(crate) fn refuse(&self, shard: Shard) -> Result<(), AppendError> {
        for stream in [StreamName::Shard(shard), StreamName::System] {
            if let Some(what) = self.of(stream).and_then(|known| known.lost.clone()) {
                return Err(AppendError::Lost { stream, what });
            }
        }
        Ok(())
    }

    fn lose(&self, stream: StreamName, what: &str) {
        let Some(mut known) = self.of(stream) else { return };
        if known.lost.is_none() {
            metrics::counter!("orgstream_streams_lost_total").increment(1);
            tracing::error!(
                %stream, what,
                "the log lost data: nothing more is appended to this stream, and nothing of it applied, until an operator has \
                 decided (orgstream history)"
            );
            known.lost = Some(what.to_owned());
        }
    }
}

impl Log {
    /// Returns every stream.
    pub fn streams(&self) -> impl Iterator<Item = StreamName> + use<> {
        self.shards().map(StreamName::Shard).chain([StreamName::System])
    }

    /// Returns the last message that this process has seen of the stream.
    pub fn tip(&self, stream: StreamName) -> Option<Tip> {
        // The hash is computed outside of the lock.
        let (seq, payload) = self.inner.tips.of(stream)?.tip.clone()?;
        Some(Tip::of(seq, &payload))
    }

    /// Stops this process's appends to the stream, because of `what`.
    pub fn lose(&self, stream: StreamName, what: &str) {
        self.inner.tips.lose(stream, what);
    }

    /// Returns the streams that are known to have lost history, and how that was detected.
    pub fn lost(&self) -> BTreeMap<StreamName, String> {
        self.streams().filter_map(|stream| Some((stream, self.inner.tips.of(stream)?.lost.clone()?))).collect()
    }

    /// Returns how one stream's loss was detected, if it is lost.
    pub fn lost_of(&self, stream: StreamName) -> Option<String> {
        self.inner.tips.of(stream)?.lost.clone()
    }

    /// Returns the end of the stream, as its leader knows it.
    pub async fn end_of(&self, stream: StreamName) -> Result<StreamEnd, StreamError> {
        let info = match stream {
            StreamName::System => self.stream_info(streams::SYSTEM).await?,
            StreamName::Shard(shard) => match self.shard_info(shard).await {
                Err(error) if is_gone(&error) => None,
                found => Some(found?.1),
            },
        };
        let state = info.map(|info| info.state);
        Ok(state.map_or(StreamEnd { seq: 0, at: 0 }, |state| StreamEnd {
            seq: state.last_sequence,
            at: state.last_timestamp.unix_timestamp_nanos(),
        }))
    }

    /// Records the stream's message at `seq` as seen, if it exists: from then on it must exist.
    pub async fn see(&self, stream: StreamName, seq: u64) -> Result<Option<Tip>, StreamError> {
        let Some(payload) = self.payload_at(stream, seq).await? else { return Ok(None) };
        self.inner.tips.note(stream, seq, &payload);
        Ok(Some(Tip::of(seq, &payload)))
    }

    /// Returns a description of the loss if the stream does not have the message `tip`.
    pub async fn lacks(&self, stream: StreamName, tip: Tip) -> Result<Option<String>, StreamError> {
        let Tip { seq, digest } = tip;
        let copies = if self.replicas() > 1 { COPIES_LOOKS } else { 1 };
        for look in 1..=copies {
            let found = match self.payload_at(stream, seq).await {
                // Every process ensures the streams at startup, so a missing one was lost since then.
                Err(error) if is_gone(&error) => None,
                found => found?,
            };
            match found {
                Some(found) if Tip::of(seq, &found).digest == digest => return Ok(None),
                Some(_) => return Ok(Some(format!("its message {seq} is another one than was acknowledged"))),
                // A leader that was just elected may still be applying its log.
                None if look < copies => tokio::time::sleep(COPIES_PAUSE).await,
                None => {}
            }
        }
        if let StreamName::Shard(shard) = stream
            && self.shard_state(shard).await.is_ok_and(|state| seq <= state.erased_to)
        {
            return Ok(None);
        }
        Ok(Some(match self.end_of(stream).await?.seq {
            end if end < seq => format!("it ends at {end}, but {seq} was acknowledged"),
            _ => format!("its message {seq} is gone"),
        }))
    }

    /// Checks that the last message that this process has seen still exists; once it does not, always returns an error.
    pub(crate) async fn look_back(&self, stream: StreamName) -> Result<(), StreamError> {
        let tips = &self.inner.tips;
        let connection = *self.inner.losses.borrow();
        if let Some(tip) = self.tip(stream)
            && let Some(what) = self.lacks(stream, tip).await?
        {
            tips.lose(stream, &what);
        }
        if let Some(what) = self.lost_of(stream) {
            return Err(StreamError::Lost { stream, what });
        }
        if let Some(mut known) = tips.of(stream) {
            known.sure = known.sure.max(connection);
        }
        Ok(())
    }

    /// Runs the same check before an append, if the connection was lost since the last check.
    pub(crate) async fn make_sure(&self, shard: Shard) -> Result<(), StreamError> {
        let (tips, stream) = (&self.inner.tips, StreamName::Shard(shard));
        let is_sure = || tips.of(stream).is_none_or(|known| known.sure >= *self.inner.losses.borrow());
        if is_sure() {
            return Ok(());
        }
        let _looking = match tips.looking.get(tips.place(stream)) {
            Some(looking) => Some(looking.lock().await),
            None => None,
        };
        if is_sure() { Ok(()) } else { self.look_back(stream).await }
    }

    /// Returns the bytes of the message, as the leader holds it.
    async fn payload_at(&self, stream: StreamName, seq: u64) -> Result<Option<Bytes>, StreamError> {
        Ok(match stream {
            StreamName::Shard(shard) => self.on_leader(shard, Which::At(seq)).await?.map(|message| message.payload),
            StreamName::System => get_on_leader(&self.inner.system, seq).await?.map(|message| message.payload),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_comes_a_second_time_is_no_success() {
        let (tips, shard) = (Tips::new(4), Shard(3));
        let payload = Bytes::from_static(b"message");
        // Two concurrent appends may be answered in any order.
        assert!(tips.acknowledged(shard, 0, (8, 8), &payload).is_ok());
        assert!(tips.acknowledged(shard, 0, (7, 7), &payload).is_ok());
        assert_eq!(tips.end(shard), 8);
        assert!(tips.acknowledged(shard, 8, (8, 9), &payload).is_err());
        assert!(tips.refuse(shard).is_err());
        assert!(tips.refuse(Shard(2)).is_ok());
        // Without the system stream, ownership cannot be determined.
        tips.lose(StreamName::System, "it ends at 3");
        assert!(tips.refuse(Shard(2)).is_err());
    }

    #[test]
    fn streams_have_names() {
        for stream in [StreamName::Shard(Shard(12)), StreamName::System] {
            assert_eq!(stream.to_string().parse(), Ok(stream));
        }
        assert!("EV_x".parse::<StreamName>().is_err());
    }
}
