//! Subscriptions to the newest entries of the audit logs: all subscribers of one log share one query of its table and its
//! result. A reader that is further behind than the buffer reads on its own until it has caught up.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use orgstream_events::OrgId;
use orgstream_projections::{BoundOrg, Database, audit as log};
use tokio::{
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval},
};

use super::log as audit;
use crate::app::problem::Problem;

/// The polling interval of a log.
const LOOK: Duration = Duration::from_millis(250);
/// The maximum number of concurrent queries, however many organizations are followed.
const MAX_CONCURRENCY: usize = 4;
/// The number of entries that are read at a time, and buffered.
const CHUNK: u16 = 200;
/// The maximum bytes of entries that are buffered of an organization.
const KEPT: usize = 1 << 20;

/// Entries in their wire form, one after the other.
#[derive(Debug, Default)]
pub struct Window {
    /// The index of the first.
    first: u64,
    entries: VecDeque<Arc<str>>,
    bytes: usize,
    /// The error that ended the subscription.
    ended: Option<Problem>,
}

/// The content of a window from some index on.
#[derive(Debug)]
pub enum Newest {
    /// The entries; perhaps none yet.
    Entries(Vec<Arc<str>>),
    /// The entries existed and are no longer buffered.
    Gone,
    /// The subscription ended.
    Ended(Problem),
}

impl Window {
    fn end(&self) -> u64 {
        self.first.saturating_add(self.entries.len() as u64)
    }

    fn extend(&mut self, new: Vec<Arc<str>>) {
        for entry in new {
            self.bytes += entry.len();
            self.entries.push_back(entry);
        }
        while (self.bytes > KEPT || self.entries.len() > usize::from(CHUNK))
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.len();
            self.first += 1;
        }
    }

    /// Returns the entries from `next` on.
    pub fn from(&self, next: u64) -> Newest {
        if next < self.first {
            return Newest::Gone;
        }
        let skipped = usize::try_from(next - self.first).unwrap_or(usize::MAX);
        let entries: Vec<_> = self.entries.iter().skip(skipped).cloned().collect();
        match &self.ended {
            Some(problem) if entries.is_empty() => Newest::Ended(problem.clone()),
            _ => Newest::Entries(entries),
        }
    }
}

/// The subscriptions, by log. One per process.
pub struct AuditFeed {
    db: Database,
    looks: Semaphore,
    followed: Mutex<HashMap<OrgId, watch::Sender<Window>>>,
}

impl AuditFeed {
    /// Starts without subscriptions.
    pub fn new(db: Database) -> Arc<Self> {
        Arc::new(Self { db, looks: Semaphore::new(MAX_CONCURRENCY), followed: Mutex::default() })
    }

    /// Subscribes to the newest entries of the log of `org`, which has `size`, for as long as the receiver or another one is
    /// kept.
    pub fn follow(self: &Arc<Self>, org: BoundOrg, size: u64) -> watch::Receiver<Window> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = followed.get(&org.org()) {
            return known.subscribe();
        }
        let (sender, receiver) = watch::channel(Window { first: size, ..Window::default() });
        followed.insert(org.org(), sender.clone());
        tokio::spawn(Arc::clone(self).repeat(org, sender));
        receiver
    }

    async fn repeat(self: Arc<Self>, org: BoundOrg, sender: watch::Sender<Window>) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let next = sender.borrow().end();
            let found = self.read(org, next).await;
            // The tables may be unavailable for a while; an entry that cannot be shown at all is the end.
            let ended = found.as_ref().err().filter(|problem| problem.status != 503).cloned();
            let is_over = self.forget(org.org(), ended.is_some(), &sender);
            let new = found.unwrap_or_default();
            if new.len() == usize::from(CHUNK) {
                looks.reset_immediately();
            }
            sender.send_if_modified(|window| {
                let modifies = !new.is_empty() || ended.is_some();
                window.extend(new);
                window.ended = ended;
                modifies
            });
            if is_over {
                return;
            }
        }
    }

    /// Returns the entries from `next` on, in their wire form.
    pub async fn read(&self, org: BoundOrg, next: u64) -> Result<Vec<Arc<str>>, Problem> {
        let _turn = self.looks.acquire().await;
        let rows = log::from_idx(&mut self.db.read(org).await?, next, CHUNK).await?.entries;
        let text = |row| serde_json::to_string(&audit::entry(row)?).map_err(Problem::internal);
        rows.iter().map(|row| text(row).map(Arc::from)).collect()
    }

    /// Whether the queries end here, because there are no more subscribers or because they fail.
    fn forget(&self, org: OrgId, is_over: bool, sender: &watch::Sender<Window>) -> bool {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = is_over || sender.receiver_count() == 0;
        if ends {
            followed.remove(&org);
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(window: &Window, next: u64) -> Option<usize> {
        match window.from(next) {
            Newest::Entries(entries) => Some(entries.len()),
            Newest::Gone => None,
            Newest::Ended(problem) => panic!("{problem:?}"),
        }
    }

    #[test]
    fn a_window_keeps_the_newest_entries_within_its_bounds() {
        let mut window = Window { first: 7, ..Window::default() };
        assert_eq!((entries(&window, 6), entries(&window, 7), entries(&window, 9)), (None, Some(0), Some(0)));
        window.extend(vec![Arc::from("x"); usize::from(CHUNK)]);
        assert_eq!((entries(&window, 7), entries(&window, 9), window.end()), (Some(200), Some(198), 207));
        window.extend(vec![Arc::from("y"); 3]);
        assert_eq!((entries(&window, 9), entries(&window, 10), window.end()), (None, Some(200), 210));
        window.extend(vec![Arc::from("z".repeat(KEPT)), Arc::from("last")]);
        assert_eq!((entries(&window, 210), entries(&window, 211), window.end()), (None, Some(1), 212));
    }

    #[test]
    fn what_was_read_before_the_end_is_still_shown() {
        let mut window = Window { ended: Some(Problem::internal("unreadable")), ..Window::default() };
        window.extend(vec![Arc::from("x")]);
        assert_eq!(entries(&window, 0), Some(1));
        assert!(matches!(window.from(1), Newest::Ended(_)));
    }
}
