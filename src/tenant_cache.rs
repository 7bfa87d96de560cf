//! The key of all caches of tenants' data. There is none without an org, so that a cached item of one org cannot be returned
//! to another that happens to have the same id, slug or name in it.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hash, RandomState},
};

use orgstream_events::OrgId;
use quick_cache::sync::Cache;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use utoipa::ToSchema;

/// An item of one org.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scoped<K> {
    org: OrgId,
    item: K,
}

impl<K> Scoped<K> {
    /// Creates the key of `item` in `org`.
    pub fn new(org: OrgId, item: K) -> Self {
        Self { org, item }
    }
}

/// A cache of tenants' items.
pub type OrgCache<K, V> = Cache<Scoped<K>, V>;

/// Locks by key, so that the lookup of an entry that is missing or too old is made once, and not by every caller that needs
/// it. Keys that share a lock wait for each other.
pub struct SingleFlight {
    locks: Box<[Mutex<()>]>,
    last: Mutex<()>,
    hasher: RandomState,
}

/// Locks of one kind of lookup.
const LOCKS: usize = 1_024;

impl Default for SingleFlight {
    fn default() -> Self {
        Self {
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            last: Mutex::default(),
            hasher: RandomState::new(),
        }
    }
}

impl SingleFlight {
    /// Waits until no other lookup of `key` is made.
    pub async fn enter(&self, key: &impl Hash) -> MutexGuard<'_, ()> {
        let place = self.hasher.hash_one(key) as usize % LOCKS;
        self.locks.get(place).unwrap_or(&self.last).lock().await
    }
}

/// What is in a cache at the moment.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CacheView {
    /// Name of the cache.
    #[schema(example = "memberships")]
    pub name: &'static str,
    /// Parts of the key of an entry, the organization first.
    #[schema(example = "org/user")]
    pub key: &'static str,
    /// Largest number of entries.
    #[schema(example = 100_000)]
    pub capacity: u64,
    /// Number of entries of each organization.
    #[schema(value_type = std::collections::HashMap<String, u64>)]
    pub entries: BTreeMap<String, u64>,
}

impl CacheView {
    /// Counts the entries of a cache.
    pub fn of<K: Hash + Eq + Clone, V: Clone>(name: &'static str, key: &'static str, cache: &OrgCache<K, V>) -> Self {
        let mut entries = BTreeMap::new();
        for (scoped, _) in cache.iter() {
            *entries.entry(scoped.org.to_string()).or_default() += 1;
        }
        Self { name, key, capacity: cache.capacity(), entries }
    }
}
