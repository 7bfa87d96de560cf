//! The assignment of shards to workers: rendezvous hashing over the live workers, with equal parts.
//!
//! It only determines the worker that should try. The lease row decides, and its epoch protects the tables.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use orgstream_events::{Fingerprint, Shard};
use uuid::Uuid;

/// Returns the worker that should have each shard. Callers with the same list of workers get the same result.
///
/// A shard prefers workers by a hash of both, so that a worker that joins or leaves moves little more than its own
/// part; no worker gets two shards more than another, which hashing alone would not ensure with so few shards.
pub(crate) fn owners(shards: impl ExactSizeIterator<Item = Shard>, workers: &[Uuid]) -> BTreeMap<Shard, Uuid> {
    let Some(part) = shards.len().checked_div(workers.len()) else { return BTreeMap::new() };
    let mut with_one_more = shards.len() % workers.len();
    let mut taken: HashMap<Uuid, usize> = HashMap::new();
    let mut owners = BTreeMap::new();
    for shard in shards {
        let mut preferred = workers.to_vec();
        preferred.sort_by_key(|worker| Reverse(Fingerprint::of(&[&shard.0.to_be_bytes(), worker.as_bytes()]).0));
        let has_room = |worker: &Uuid| {
            let taken = taken.get(worker).copied().unwrap_or_default();
            taken < part || (taken == part && with_one_more > 0)
        };
        let Some(owner) = preferred.into_iter().find(has_room) else { break };
        let taken = taken.entry(owner).or_default();
        *taken += 1;
        if *taken > part {
            with_one_more -= 1;
        }
        owners.insert(shard, owner);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(shards: u16, workers: u128) -> BTreeMap<Shard, Uuid> {
        let workers: Vec<Uuid> = (1..=workers).map(Uuid::from_u128).collect();
        owners((0..shards).map(Shard), &workers)
    }

    #[test]
    fn everybody_gets_an_equal_part() {
        for shards in 0..40 {
            for workers in 1..10 {
                let owners = parts(shards, workers);
                assert_eq!(owners.len(), usize::from(shards));
                let mut taken: HashMap<Uuid, usize> = (1..=workers).map(|id| (Uuid::from_u128(id), 0)).collect();
                for owner in owners.values() {
                    *taken.get_mut(owner).unwrap() += 1;
                }
                let (least, most) = (taken.values().min().unwrap(), taken.values().max().unwrap());
                assert!(most - least <= 1, "{shards} shards, {workers} workers: {taken:?}");
            }
        }
    }

    #[test]
    fn the_order_in_which_workers_are_known_does_not_matter() {
        let mut workers: Vec<Uuid> = (1..=5).map(Uuid::from_u128).collect();
        let before = owners((0..16).map(Shard), &workers);
        workers.reverse();
        assert_eq!(owners((0..16).map(Shard), &workers), before);
    }

    #[test]
    fn a_worker_that_leaves_moves_little_more_than_its_own_shards() {
        let (before, after) = (parts(256, 4), parts(256, 3));
        let moved = before.iter().filter(|(shard, owner)| after[*shard] != **owner).count();
        assert!((64..128).contains(&moved), "a quarter had to move of 256, and {moved} did");
    }

    #[test]
    fn nobody_owns_anything_when_nobody_is_there() {
        assert_eq!(parts(16, 0), BTreeMap::new());
    }
}
