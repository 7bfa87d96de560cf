//! How much of the door one org may take: appends under way at the same time.
//!
//! The server has no limit of its own on what comes in, and takes what comes in its order. So what an org has sent and
//! is not answered yet is what all others of its shard stand behind. An org with more to say than its share waits here, in
//! a line of its own.

use std::sync::Arc;

use dashmap::DashMap;
use orgstream_events::OrgId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SyncMode;

/// Appends of one org under way at once, in this process, where each is a publish of its own. With more of them one org
/// gets hardly more done, and what others append waits behind them.
const SINGLY: usize = 16;
/// The same where appends share batches: enough to fill one that shares a sync.
const IN_BATCHES: usize = 64;

/// The orgs that have appends under way or in line.
#[derive(Debug)]
pub(crate) struct Shares {
    each: usize,
    lines: DashMap<OrgId, Arc<Semaphore>>,
}

/// A place among the appends of an org that are under way.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    shares: &'a Shares,
    org: OrgId,
    /// None only while it is dropped, or where the semaphore is closed, which none ever is.
    place: Option<OwnedSemaphorePermit>,
}

impl Shares {
    pub(crate) fn new(sync: SyncMode) -> Self {
        let each = match sync {
            SyncMode::Durable => IN_BATCHES,
            SyncMode::Relaxed => SINGLY,
        };
        Self { each, lines: DashMap::new() }
    }

    /// Waits for a place, first come, first served.
    pub(crate) async fn enter(&self, org: OrgId) -> Share<'_> {
        let line = Arc::clone(&self.lines.entry(org).or_insert_with(|| Arc::new(Semaphore::new(self.each))));
        // Made first, so that an org that nobody waits for any more is forgotten however this ends.
        let mut share = Share { shares: self, org, place: None };
        share.place = line.acquire_owned().await.ok();
        share
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.place = None;
        // Whoever comes in holds the entry while taking a reference, so this sees everybody.
        self.shares.lines.remove_if(&self.org, |_, line| Arc::strong_count(line) == 1);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use futures_util::{future::join_all, poll};

    use super::*;

    fn org(number: u8) -> OrgId {
        OrgId::fresh(1_700_000_000_000, [number; 10])
    }

    #[tokio::test]
    async fn an_org_has_its_share_and_no_more_and_is_in_nobodys_way() {
        let shares = Shares::new(SyncMode::Relaxed);
        let mut held = join_all((0..SINGLY).map(|_| shares.enter(org(1)))).await;
        let mut next = Box::pin(shares.enter(org(1)));
        assert!(poll!(&mut next).is_pending());
        drop(shares.enter(org(2)).await);
        held.pop();
        let Poll::Ready(next) = poll!(&mut next) else { panic!("a place is free") };
        held.push(next);
        assert_eq!(shares.lines.len(), 1);
        held.clear();
        assert!(shares.lines.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_is_forgotten_however_they_come_and_go() {
        let (shares, inside) = (Arc::new(Shares::new(SyncMode::Relaxed)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..2_000_u32).map(|number| {
            let (shares, inside) = (Arc::clone(&shares), Arc::clone(&inside));
            tokio::spawn(async move {
                let waiting = shares.enter(org((number % 3) as u8));
                if number % 7 == 0 {
                    // Gives up.
                    drop(Box::pin(waiting));
                    return;
                }
                let _share = waiting.await;
                assert!(inside.fetch_add(1, Ordering::SeqCst) < 3 * SINGLY);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        assert!(shares.lines.is_empty());
    }
}
