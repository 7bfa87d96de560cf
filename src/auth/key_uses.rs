//! The last use of keys, and its address: recorded in memory, written periodically, at a granularity of a minute.
//!
//! An event for every call would be a second log, larger than the first. A process that dies loses some seconds of data that
//! serves to find unused keys.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::counter;
use orgstream_events::{Chain, Context, KeyId, OrgId, Timestamp};
use orgstream_projections::{
    BoundOrg, Database,
    key_uses::{self, KeyUse},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::clock::now;

/// A second use within this is not written.
const GRAIN_MS: i64 = 60_000;
/// The interval between writes.
const EVERY: Duration = Duration::from_secs(2);
/// The maximum number of cached keys; when there are more, all are evicted, and some are written a second time within the
/// granularity.
const CACHE_CAPACITY: usize = 100_000;

#[derive(Default)]
struct Seen {
    written: HashMap<(OrgId, KeyId), i64>,
    waiting: HashMap<OrgId, HashMap<KeyId, KeyUse>>,
}

/// The uses of keys. One per process.
pub struct KeyUses {
    seen: Arc<Mutex<Seen>>,
}

impl KeyUses {
    /// Starts to write recorded uses.
    pub(super) fn start(db: Database) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let weak = Arc::downgrade(&seen);
        tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(seen) = weak.upgrade() else { break };
                write(&db, &seen).await;
            }
        });
        Self { seen }
    }

    /// Records a use of the key.
    pub(super) fn note(&self, org: OrgId, key: KeyId, context: &Context) {
        let at = now().unix_ms() / GRAIN_MS * GRAIN_MS;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.written.get(&(org, key)).is_some_and(|written| *written >= at) {
            return;
        }
        if seen.written.len() >= CACHE_CAPACITY {
            seen.written.clear();
        }
        seen.written.insert((org, key), at);
        let used = KeyUse {
            key,
            last_used_at: Timestamp::from_unix_ms(at),
            ip: context.ip.clone(),
            user_agent: context.user_agent.clone(),
        };
        seen.waiting.entry(org).or_default().insert(key, used);
    }
}

async fn write(db: &Database, seen: &Mutex<Seen>) {
    let waiting = std::mem::take(&mut seen.lock().unwrap_or_else(PoisonError::into_inner).waiting);
    for (org, uses) in waiting {
        let uses: Vec<KeyUse> = uses.into_values().collect();
        if let Err(error) = key_uses::write(db, BoundOrg::proven_by_credential(org), &uses).await {
            counter!("orgstream_key_uses_lost_total").increment(uses.len() as u64);
            tracing::warn!(org.id = %org, error = %Chain(&error), "when keys were used could not be written down");
        }
    }
}
