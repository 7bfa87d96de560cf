//! Fair turns: each key has a limited number in flight, and a caller at that limit waits for its own key's turns alone.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of each key. A key without turns or waiters is not stored.
#[derive(Debug)]
pub struct Turns<K: Eq + Hash> {
    of_each: usize,
    taken: Mutex<HashMap<K, Arc<Semaphore>>>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// Creates turns, with so many of each key.
    pub fn new(of_each: usize) -> Arc<Self> {
        Arc::new(Self { of_each, taken: Mutex::default() })
    }

    /// Waits for a turn of `whose`, in order of arrival.
    pub async fn take(self: &Arc<Self>, whose: K) -> Turn<K> {
        let own = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(taken.entry(whose.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.of_each))))
        };
        // Created before the wait, so that a cancelled waiter is removed as well.
        let mut turn = Turn { permit: None, whose, turns: Arc::clone(self) };
        turn.permit = own.acquire_owned().await.ok();
        turn
    }
}

/// A turn, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Turn<K: Eq + Hash> {
    permit: Option<OwnedSemaphorePermit>,
    whose: K,
    turns: Arc<Turns<K>>,
}

impl<K: Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        self.permit = None;
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // All waiters for a turn, and its holders, hold it too.
        if taken.get(&self.whose).is_some_and(|own| Arc::strong_count(own) == 1) {
            taken.remove(&self.whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_all_their_turns_waits_and_others_do_not() {
        let turns = Turns::new(2);
        let held = (turns.take("a").await, turns.take("a").await);
        assert!(timeout(Duration::from_secs(60), turns.take("a")).await.is_err());
        drop(turns.take("b").await);
        drop(held);
        drop(turns.take("a").await);
        assert!(turns.taken.lock().unwrap().is_empty());
    }
}
