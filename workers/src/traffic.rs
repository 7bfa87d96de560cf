//! The messages that the log gave to the reader of one shard: recorded beside the scheduler, for the watchdog alone,
//! which trusts no lane.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use orgstream_events::{EventSubject, OrgId};

/// The most orgs remembered until the next check. More are found on the watchdog's rounds.
const CACHE_CAPACITY: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Traffic {
    position: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// The last message of each org that had any.
    orgs: BTreeMap<OrgId, u64>,
    /// The org that was taken last: the next one is after it, so that each has a turn.
    taken: Option<OrgId>,
}

impl Traffic {
    /// The record of a reader that begins after `position`.
    pub(crate) fn after(position: u64) -> Self {
        Self { position: AtomicU64::new(position), recent: Mutex::default() }
    }

    /// The reader's position.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Records that the reader skips everything up to there.
    pub(crate) fn fast_forward(&self, to: u64) {
        self.position.store(to, Ordering::Relaxed);
    }

    /// Records a message from the log.
    pub(crate) fn note(&self, subject: &str, seq: u64) {
        self.position.store(seq, Ordering::Relaxed);
        let Ok((_, org)) = EventSubject::route(subject) else { return };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = recent.orgs.get_mut(&org) {
            *last = seq;
        } else if recent.orgs.len() < CACHE_CAPACITY {
            recent.orgs.insert(org, seq);
        }
    }

    /// Returns up to `most` orgs that had messages since they were last taken, and the last message of each.
    pub(crate) fn take(&self, most: usize) -> Vec<(OrgId, u64)> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let after = recent.taken.map_or(Bound::Unbounded, Bound::Excluded);
        let mut orgs: Vec<OrgId> =
            recent.orgs.range((after, Bound::Unbounded)).map(|(org, _)| *org).take(most).collect();
        if let Some(taken) = recent.taken {
            let left = most - orgs.len();
            orgs.extend(recent.orgs.range(..=taken).map(|(org, _)| *org).take(left));
        }
        recent.taken = orgs.last().copied().or(recent.taken);
        orgs.into_iter().filter_map(|org| Some((org, recent.orgs.remove(&org)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Shard;

    use super::*;

    fn note(traffic: &Traffic, number: u8, seq: u64) -> OrgId {
        let org = OrgId::fresh(1_700_000_000_000, [number; 10]);
        traffic.note(&format!("{}record.x", EventSubject::all_of_org(Shard(3), org).trim_end_matches('>')), seq);
        org
    }

    #[test]
    fn everybody_has_a_turn_however_busy_the_others_are() {
        let traffic = Traffic::after(5);
        let orgs: Vec<OrgId> = (0..10).map(|number| note(&traffic, number, u64::from(number) + 6)).collect();
        assert_eq!(traffic.position(), 15);
        let mut seen = Vec::new();
        for look in 0..5 {
            seen.extend(traffic.take(2).into_iter().map(|(org, _)| org));
            // The first two have more to do at once.
            for number in 0..2 {
                note(&traffic, number, 100 + look);
            }
        }
        assert_eq!(seen, orgs);
        assert_eq!(traffic.take(9), [(orgs[0], 104), (orgs[1], 104)]);
        assert_eq!(traffic.take(9), []);
    }
}
