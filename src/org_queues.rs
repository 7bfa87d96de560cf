//! Queues by organization: what waits for the same organization is taken together by the one task that serves its queue.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orgstream_events::OrgId;

type Queues<T> = HashMap<OrgId, VecDeque<T>>;

/// The queues of a process. An organization for which nothing waits has none.
pub(crate) struct OrgQueues<T> {
    queues: Arc<Mutex<Queues<T>>>,
    /// What waits in one queue, at most.
    most: usize,
}

/// As much waits as may.
#[derive(Debug)]
pub(crate) struct Full;

/// The right to serve the queue of an organization, which one task has. Where it is dropped before the queue is empty, by a panic, what
/// waits is dropped too, and what comes next has another task.
pub(crate) struct Turn<T> {
    queues: OrgQueues<T>,
    org: OrgId,
    has_ended: bool,
}

impl<T> Clone for OrgQueues<T> {
    fn clone(&self) -> Self {
        Self { queues: Arc::clone(&self.queues), most: self.most }
    }
}

impl<T> OrgQueues<T> {
    pub(crate) fn new(most: usize) -> Self {
        Self { queues: Arc::default(), most }
    }

    fn lock(&self) -> MutexGuard<'_, Queues<T>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item. Returns the right to serve its queue if no task has it.
    pub(crate) fn enter(&self, org: OrgId, item: T) -> Result<Option<Turn<T>>, Full> {
        match self.lock().entry(org) {
            Entry::Vacant(place) => {
                place.insert(VecDeque::from([item]));
                Ok(Some(Turn { queues: self.clone(), org, has_ended: false }))
            }
            Entry::Occupied(queue) if queue.get().len() >= self.most => Err(Full),
            Entry::Occupied(mut queue) => {
                queue.get_mut().push_back(item);
                Ok(None)
            }
        }
    }
}

impl<T> Turn<T> {
    /// Takes the first items that `is_wanted`, as many as `count` says of those that wait. None once nothing waits: the queue is removed.
    pub(crate) fn next(
        &mut self,
        is_wanted: impl FnMut(&T) -> bool,
        count: impl FnOnce(&VecDeque<T>) -> usize,
    ) -> Option<Vec<T>> {
        let mut queues = self.queues.lock();
        let queue = queues.get_mut(&self.org).filter(|_| !self.has_ended)?;
        queue.retain(is_wanted);
        let count = count(queue).max(1).min(queue.len());
        if count == 0 {
            queues.remove(&self.org);
            self.has_ended = true;
            return None;
        }
        Some(queue.drain(..count).collect())
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        // Another task may serve a new queue of the organization, once this one has ended.
        if !self.has_ended {
            self.queues.lock().remove(&self.org);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORG: OrgId = orgstream_events::PLATFORM_ORG;

    #[test]
    fn one_task_has_the_turn_until_nothing_waits() {
        let queues = OrgQueues::new(4);
        let mut turn = queues.enter(ORG, 1).unwrap().unwrap();
        for item in [2, 3, 4] {
            assert!(queues.enter(ORG, item).unwrap().is_none());
        }
        assert!(queues.enter(ORG, 5).is_err());
        assert_eq!(turn.next(|item| item % 2 == 0, |_| 1), Some(vec![2]));
        assert_eq!(turn.next(|_| true, |_| 9), Some(vec![4]));
        assert_eq!(turn.next(|_| true, |_| 9), None);
        assert!(queues.enter(ORG, 6).unwrap().is_some());
        // The turn that has ended takes nothing of the next one's.
        assert_eq!(turn.next(|_| true, |_| 9), None);
    }

    #[test]
    fn a_turn_that_is_lost_leaves_nothing_waiting() {
        let queues = OrgQueues::new(4);
        let turn = queues.enter(ORG, 1).unwrap();
        drop(turn);
        let mut next = queues.enter(ORG, 2).unwrap().unwrap();
        assert_eq!(next.next(|_| true, VecDeque::len), Some(vec![2]));
    }
}
