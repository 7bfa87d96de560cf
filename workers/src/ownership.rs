//! Which worker should have which shard: rendezvous hashing over the live workers.
//!
//! It only says who should try. What decides is the lease row, and what protects the tables is the epoch in it.

use orgstream_events::{Fingerprint, Shard};
use uuid::Uuid;

/// The worker, among `workers`, that should have `shard`. Everybody who knows the same workers says the same, and a
/// worker that comes or goes moves only its own shards.
pub(crate) fn owner_of(shard: Shard, workers: &[Uuid]) -> Option<Uuid> {
    workers.iter().copied().max_by_key(|worker| Fingerprint::of(&[&shard.0.to_be_bytes(), worker.as_bytes()]).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(count: u128) -> Vec<Uuid> {
        (1..=count).map(Uuid::from_u128).collect()
    }

    #[test]
    fn a_worker_that_leaves_moves_only_its_own_shards() {
        let (all, without_last) = (workers(4), workers(3));
        let mut moved = 0;
        for shard in (0..256).map(Shard) {
            let before = owner_of(shard, &all).unwrap();
            let after = owner_of(shard, &without_last).unwrap();
            if before == Uuid::from_u128(4) {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((32..96).contains(&moved), "a fair part of 256 shards: {moved}");
    }

    #[test]
    fn nobody_owns_anything_when_nobody_is_there() {
        assert_eq!(owner_of(Shard(0), &[]), None);
    }
}
