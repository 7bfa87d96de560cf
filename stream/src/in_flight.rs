//! The in-flight limit of one org: its concurrent appends.
//!
//! The server has no limit of its own on incoming messages, and processes them in order. So an org's unanswered appends
//! delay those of all other orgs. An org with more appends than its share waits here, in a queue of its own. The more
//! orgs append at the same time, the smaller is the share of each, so that fifty of them take no more of the server
//! than a few do. One append of each may always be in flight: an org that sends one append at a time never waits.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use dashmap::DashMap;
use orgstream_events::OrgId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SyncMode;

/// Concurrent appends of one org in this process, where each is a publish of its own. With more of them one org's
/// throughput hardly rises, and other orgs' appends wait behind them.
const SINGLY: u32 = 16;
/// The number of orgs that may each have the full limit in flight. With more of them, each has a smaller limit.
const SINGLY_SIDE_BY_SIDE: u32 = 8;
/// The same limit where appends share batches: enough of one org to fill a batch that shares a sync, and enough of all
/// of them to fill one for every shard.
const IN_BATCHES: u32 = 64;
const IN_BATCHES_SIDE_BY_SIDE: u32 = 32;

/// The orgs that have appends in flight or queued.
#[derive(Debug)]
pub(crate) struct InFlightLimiter {
    each: u32,
    side_by_side: u32,
    lines: DashMap<OrgId, Arc<Semaphore>>,
    /// The number of queues: every append reads it, and counting would visit each part of the map.
    orgs: AtomicU32,
}

/// A permit for one in-flight append of an org.
#[derive(Debug)]
pub(crate) struct InFlightPermit<'a> {
    shares: &'a InFlightLimiter,
    org: OrgId,
    /// None only while it is dropped, or if the semaphore is closed, which never happens.
    place: Option<OwnedSemaphorePermit>,
}

impl InFlightLimiter {
    pub(crate) fn new(sync: SyncMode) -> Self {
        let (each, side_by_side) = match sync {
            SyncMode::Durable => (IN_BATCHES, IN_BATCHES_SIDE_BY_SIDE),
            SyncMode::Relaxed => (SINGLY, SINGLY_SIDE_BY_SIDE),
        };
        Self { each, side_by_side, lines: DashMap::new(), orgs: AtomicU32::new(0) }
    }

    /// Waits for a permit, first come, first served.
    pub(crate) async fn enter(&self, org: OrgId) -> InFlightPermit<'_> {
        let line = Arc::clone(&self.lines.entry(org).or_insert_with(|| {
            self.orgs.fetch_add(1, Ordering::Relaxed);
            Arc::new(Semaphore::new(self.each as usize))
        }));
        // Made first, so that an org with no more waiting appends is removed in every case.
        let mut share = InFlightPermit { shares: self, org, place: None };
        share.place = line.acquire_many_owned(self.weight()).await.ok();
        share
    }

    /// The part of its org's limit that a new append takes: all of it where the orgs are many.
    fn weight(&self) -> u32 {
        let orgs = self.orgs.load(Ordering::Relaxed);
        orgs.div_ceil(self.side_by_side).clamp(1, self.each)
    }
}

impl Drop for InFlightPermit<'_> {
    fn drop(&mut self) {
        self.place = None;
        // A new append holds the map entry while it clones the reference, so the count includes all of them.
        if self.shares.lines.remove_if(&self.org, |_, line| Arc::strong_count(line) == 1).is_some() {
            self.shares.orgs.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use futures_util::{future::join_all, poll};
    use tokio::task::unconstrained;

    use super::*;

    fn org(number: u8) -> OrgId {
        OrgId::fresh(1_700_000_000_000, [number; 10])
    }

    /// Returns as many appends of the org as can be in flight at once.
    async fn fill(shares: &InFlightLimiter, org: OrgId) -> Vec<InFlightPermit<'_>> {
        let mut held = Vec::new();
        // The runtime's cooperative budget would otherwise interrupt the task.
        while let Poll::Ready(share) = poll!(Box::pin(unconstrained(shares.enter(org)))) {
            held.push(share);
        }
        held
    }

    #[tokio::test]
    async fn an_org_has_its_share_and_no_more_and_is_in_nobodys_way() {
        let shares = InFlightLimiter::new(SyncMode::Relaxed);
        let mut held = fill(&shares, org(1)).await;
        assert_eq!(held.len(), SINGLY as usize);
        let mut next = Box::pin(shares.enter(org(1)));
        assert!(poll!(&mut next).is_pending());
        drop(shares.enter(org(2)).await);
        held.pop();
        let Poll::Ready(next) = poll!(&mut next) else { panic!("a place is free") };
        held.push(next);
        assert_eq!(shares.lines.len(), 1);
        held.clear();
        assert!(shares.lines.is_empty());
        assert_eq!(shares.orgs.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_more_orgs_there_are_the_less_has_each_but_never_nothing() {
        let (relaxed, durable) = (SyncMode::Relaxed, SyncMode::Durable);
        let singly = [(1, 16), (8, 16), (9, 8), (50, 2), (200, 1)].map(|(orgs, each)| (relaxed, orgs, each));
        let in_batches = [(1, 64), (32, 64), (33, 32), (200, 9)].map(|(orgs, each)| (durable, orgs, each));
        for (sync, orgs, each) in singly.into_iter().chain(in_batches) {
            let shares = InFlightLimiter::new(sync);
            let mut held: VecDeque<InFlightPermit<'_>> =
                join_all((0..orgs).map(|number| shares.enter(org(number)))).await.into();
            // These came when there were fewer orgs: each makes room for one new append.
            for number in 0..orgs {
                held.pop_front();
                held.push_back(shares.enter(org(number)).await);
            }
            for number in 0..orgs {
                held.extend(fill(&shares, org(number)).await);
            }
            assert_eq!(held.len(), usize::from(orgs) * each, "{orgs} organizations, {sync:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_is_forgotten_however_they_come_and_go() {
        let (shares, inside) = (Arc::new(InFlightLimiter::new(SyncMode::Relaxed)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..2_000_u32).map(|number| {
            let (shares, inside) = (Arc::clone(&shares), Arc::clone(&inside));
            tokio::spawn(async move {
                let waiting = shares.enter(org((number % 3) as u8));
                if number % 7 == 0 {
                    // The waiting append is cancelled.
                    drop(Box::pin(waiting));
                    return;
                }
                let _share = waiting.await;
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 3 * SINGLY as usize);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        assert!(shares.lines.is_empty());
        assert_eq!(shares.orgs.load(Ordering::Relaxed), 0);
    }
}
