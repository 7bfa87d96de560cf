//! Messages that belong to no organization of their shard. They are not processed: no lane gets one, and no transaction
//! is begun for one. They are counted, reported, and stored for an operator before the low watermark passes them.

use std::sync::{Mutex, PoisonError};

use metrics::counter;
use orgstream_events::Shard;
use orgstream_projections::{Database, DbError, Stray};

/// The most that are stored at a time, which is once a second. More are counted.
const CACHE_CAPACITY: usize = 100;

/// The strays that one reader found since the last were stored.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<Found>);

#[derive(Debug, Default)]
struct Found {
    strays: Vec<Stray>,
    /// The number of those beyond the remembered ones.
    more: u64,
}

impl Strays {
    /// Records one more.
    pub(crate) fn note(&self, stray: Stray) {
        counter!("orgstream_stray_messages_total").increment(1);
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.strays.len() < CACHE_CAPACITY {
            found.strays.push(stray);
        } else {
            found.more += 1;
        }
    }

    /// Reports what was found, and stores it. What cannot be stored now is kept for the next time.
    pub(crate) async fn keep(&self, db: &Database, shard: Shard) -> Result<(), DbError> {
        let Found { strays, more } = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(first) = strays.first() else { return Ok(()) };
        if let Err(error) = db.keep_strays(shard, &strays).await {
            let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let since = std::mem::replace(&mut *found, Found { strays, more });
            let room = CACHE_CAPACITY.saturating_sub(found.strays.len());
            found.more += since.more + since.strays.len().saturating_sub(room) as u64;
            found.strays.extend(since.strays.into_iter().take(room));
            return Err(error);
        }
        tracing::error!(
            %shard, event.seq = first.seq, subject = first.subject, reason = first.reason,
            messages = strays.len() as u64 + more,
            "messages of this shard are no organization's here, and were applied nowhere: find out who publishes them (see: \
             orgstream lag --all)"
        );
        Ok(())
    }
}
