//! Placement: the stream an org lives in. Stored by Orgstream itself, written once, so that an org can move one day.

use std::time::{Duration, Instant};

use dashmap::DashMap;
use orgstream_events::{Fingerprint, OrgId, Shard, cause};
use serde::{Deserialize, Serialize};

use crate::{
    Log, StreamError,
    api::backoff,
    publish::{Answer, Write},
    system::Fact,
};

/// How long "not placed" is cached: it protects the server from floods of made-up org ids.
const ABSENT_FOR: Duration = Duration::from_secs(1);
const MAX_ABSENT: usize = 10_000;
const MAX_PLACED: usize = 200_000;
const TRIES: u32 = 8;

/// The location of an org.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The org.
    pub org: OrgId,
    /// The stream its events are in.
    pub shard: Shard,
    /// The region of that stream.
    pub region: String,
    /// Counts the org's moves, from 1.
    pub epoch: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    shard: Shard,
    region: String,
    epoch: u64,
}

/// Caches have a bound instead of an eviction order: a full one is cleared, and the log is queried again.
#[derive(Debug, Default)]
pub(crate) struct PlacementCache {
    placed: DashMap<OrgId, Placement>,
    absent: DashMap<OrgId, Instant>,
}

impl PlacementCache {
    fn remember(&self, placement: &Placement) {
        if self.placed.len() >= MAX_PLACED {
            self.placed.clear();
        }
        self.absent.remove(&placement.org);
        self.placed.insert(placement.org, placement.clone());
    }

    fn remember_absent(&self, org: OrgId) {
        if self.absent.len() >= MAX_ABSENT {
            self.absent.clear();
        }
        self.absent.insert(org, Instant::now());
    }

    fn is_absent(&self, org: OrgId) -> bool {
        self.absent.get(&org).is_some_and(|since| since.elapsed() < ABSENT_FOR)
    }
}

impl Log {
    /// Returns the placement of `org`, if it has been placed.
    pub async fn placement(&self, org: OrgId) -> Result<Option<Placement>, StreamError> {
        if let Some(placement) = self.inner.placements.placed.get(&org) {
            return Ok(Some(placement.clone()));
        }
        if self.inner.placements.is_absent(org) {
            return Ok(None);
        }
        let placement = self.stored_placement(org).await?;
        match &placement {
            Some(placement) => self.inner.placements.remember(placement),
            None => self.inner.placements.remember_absent(org),
        }
        Ok(placement)
    }

    /// Places `org`, or returns its earlier placement.
    pub async fn place(&self, org: OrgId) -> Result<Placement, StreamError> {
        if let Some(placement) = self.inner.placements.placed.get(&org) {
            return Ok(placement.clone());
        }
        let chosen = Stored { shard: self.choose(org), region: self.inner.options.region.clone(), epoch: 1 };
        let payload = serde_json::to_vec(&chosen).map_err(StreamError::Unencodable)?;
        let write = Write { payload: payload.into(), ..system_write(subject(org)) };
        let placement = if self.write_system(&write).await?.is_some() {
            Placement { org, shard: chosen.shard, region: chosen.region, epoch: chosen.epoch }
        } else {
            self.stored_placement(org).await?.ok_or_else(|| StreamError::Unavailable {
                action: "place an org",
                reason: cause(format!("{} is taken, but holds nothing", write.subject)),
            })?
        };
        self.inner.placements.remember(&placement);
        Ok(placement)
    }

    /// Publishes on the system stream, and returns the sequence; none if the expectation did not hold. A retry whose
    /// first try arrived returns none too, so the caller must read the stored message.
    pub(crate) async fn write_system(&self, write: &Write) -> Result<Option<u64>, StreamError> {
        let action = "write to the system stream";
        let signed = self.keys().sign(&write.subject, write.expected, &write.payload);
        let payload = signed.map_err(StreamError::Unsigned)?.into();
        let write = Write { payload, ..write.clone() };
        let mut last = cause("it was not tried");
        for tries in 0..TRIES {
            match self.inner.publisher.publish_in_turn(&write).await {
                Answer::Stored { seq } => return Ok(Some(seq)),
                Answer::Stale | Answer::Duplicate { .. } => return Ok(None),
                Answer::Unknown { reason } => last = reason,
                Answer::Refused { code, description } => {
                    return Err(StreamError::Refused { action, code, description });
                }
                Answer::TooLarge { size, limit } => {
                    return Err(StreamError::Invalid(format!("{size} bytes are over the server's limit of {limit}")));
                }
            }
            tokio::time::sleep(backoff(tries)).await;
        }
        Err(StreamError::Unavailable { action, reason: last })
    }

    async fn stored_placement(&self, org: OrgId) -> Result<Option<Placement>, StreamError> {
        let subject = subject(org);
        let Some(Fact { seq, content: Some(content), .. }) = self.system_fact(&subject).await? else {
            return Ok(None);
        };
        let stored: Stored = serde_json::from_slice(&content).map_err(|error| StreamError::Corrupt {
            subject: subject.clone(),
            seq,
            reason: cause(error),
        })?;
        if stored.shard.0 >= self.inner.options.shards {
            return Err(StreamError::UnknownShard { shard: stored.shard, shards: self.inner.options.shards });
        }
        Ok(Some(Placement { org, shard: stored.shard, region: stored.region, epoch: stored.epoch }))
    }

    /// Spreads new orgs evenly. Only the stored placement counts afterwards, so the number of shards may grow.
    fn choose(&self, org: OrgId) -> Shard {
        let Fingerprint(hash) = Fingerprint::of(&[org.uuid().as_bytes()]);
        let number = hash.iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        Shard(u16::try_from(number % u64::from(self.inner.options.shards)).unwrap_or_default())
    }
}

fn subject(org: OrgId) -> String {
    format!("sys.placement.{org}")
}

/// A message that must be the first on its subject.
pub(crate) fn system_write(subject: String) -> Write {
    Write { subject, payload: bytes::Bytes::new(), message_id: None, expected: Some(0), trace: None }
}
