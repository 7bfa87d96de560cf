//! The key of all caches of tenants' data. There is none without an org, so that a cached item of one org cannot be returned
//! to another that happens to have the same id, slug or name in it.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hash, RandomState},
    pin::Pin,
    time::{Duration, Instant},
};

use orgstream_events::OrgId;
use quick_cache::sync::Cache;
use serde::Serialize;
use tokio::sync::Mutex;
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

/// What a lookup found.
#[derive(Debug, Clone)]
pub struct Found<V> {
    /// The value.
    pub value: V,
    /// When it was true: the time of the snapshot that was read, not of the answer.
    pub at: Instant,
}

impl<V> Found<V> {
    /// Whether it was true less than `ttl` before this time. A caller that has waited for a lookup passes when it came.
    fn is_fresh(&self, came: Instant, ttl: Duration) -> bool {
        came.saturating_duration_since(self.at) < ttl
    }
}

/// Lookups of which only one is under way for a key, however many callers need it: those that come meanwhile get its result,
/// an error too. So callers do not wait one after the other for what does not answer. Keys that share a slot wait for each
/// other.
pub struct SingleFlight<V, E> {
    ttl: Duration,
    slots: Box<[Slot<V, E>]>,
    last: Slot<V, E>,
    hasher: RandomState,
}

/// The last lookup of a slot.
type Slot<V, E> = Mutex<Option<Ended<V, E>>>;

struct Ended<V, E> {
    key: u64,
    at: Instant,
    result: Result<Found<V>, E>,
}

/// Slots of one kind of lookup.
const SLOTS: usize = 1_024;

impl<V: Clone, E: Clone> SingleFlight<V, E> {
    /// Makes lookups whose results count for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        let slots = (0..SLOTS).map(|_| Mutex::default()).collect();
        Self { ttl, slots, last: Mutex::default(), hasher: RandomState::new() }
    }

    /// Makes the lookup of `key`, unless another one ends after `came`, the time at which the caller came.
    pub async fn once(
        &self,
        key: &impl Hash,
        came: Instant,
        lookup: Pin<Box<impl Future<Output = Result<Found<V>, E>>>>,
    ) -> Result<V, E> {
        let key = self.hasher.hash_one(key);
        let mut slot = self.slots.get(key as usize % SLOTS).unwrap_or(&self.last).lock().await;
        if let Some(ended) = slot.as_ref().filter(|ended| ended.key == key && ended.at >= came) {
            match &ended.result {
                Ok(found) if !found.is_fresh(came, self.ttl) => {}
                result => return result.clone().map(|found| found.value),
            }
        }
        let result = lookup.await;
        let value = result.clone().map(|found| found.value);
        *slot = Some(Ended { key, at: Instant::now(), result });
        value
    }
}

/// A cache of tenants' items whose entries count for a time, and are looked up once, however many callers need them.
pub struct LookupCache<K, V, E> {
    found: OrgCache<K, Found<V>>,
    flights: SingleFlight<V, E>,
}

impl<K: Hash + Eq + Clone, V: Clone, E: Clone> LookupCache<K, V, E> {
    /// Creates an empty cache of at most `capacity` entries that count for `ttl`.
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self { found: OrgCache::new(capacity), flights: SingleFlight::new(ttl) }
    }

    /// Returns the item, looked up unless a fresh one is here. Only values that `is_kept` are kept.
    ///
    /// A lookup is boxed, because futures that are handed on by value are copied into each that awaits them.
    pub async fn get(
        &self,
        key: &Scoped<K>,
        is_kept: impl FnOnce(&V) -> bool,
        lookup: Pin<Box<impl Future<Output = Result<Found<V>, E>>>>,
    ) -> Result<V, E> {
        let came = Instant::now();
        if let Some(found) = self.found.get(key).filter(|found| found.is_fresh(came, self.flights.ttl)) {
            return Ok(found.value);
        }
        let kept = Box::pin(async {
            let found = lookup.await?;
            if is_kept(&found.value) {
                self.found.insert(key.clone(), found.clone());
            }
            Ok(found)
        });
        self.flights.once(key, came, kept).await
    }

    /// Counts the entries, for the operator.
    pub fn view(&self, name: &'static str, key: &'static str) -> CacheView {
        CacheView::of(name, key, &self.found)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use orgstream_events::PLATFORM_ORG;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn callers_that_come_during_a_lookup_share_its_result_and_its_error() {
        let cache: LookupCache<u8, u8, &str> = LookupCache::new(10, TTL);
        let made = AtomicUsize::new(0);
        let lookup = |result: Result<u8, &'static str>| {
            let made = &made;
            Box::pin(async move {
                made.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                result.map(|value| Found { value, at: Instant::now() })
            })
        };
        let key = Scoped::new(PLATFORM_ORG, 1);
        let failed = join_all((0..100).map(|_| cache.get(&key, |_| true, lookup(Err("away"))))).await;
        assert_eq!((failed, made.swap(0, Ordering::Relaxed)), (vec![Err("away"); 100], 1));
        // An error is of those who waited for it, and is not kept.
        let found = join_all((0..100).map(|_| cache.get(&key, |_| true, lookup(Ok(7))))).await;
        assert_eq!((found, made.swap(0, Ordering::Relaxed)), (vec![Ok(7); 100], 1));
        assert_eq!((cache.get(&key, |_| true, lookup(Ok(8))).await, made.load(Ordering::Relaxed)), (Ok(7), 0));
        let other = Scoped::new(PLATFORM_ORG, 2);
        assert_eq!((cache.get(&other, |_| true, lookup(Ok(9))).await, made.load(Ordering::Relaxed)), (Ok(9), 1));
    }

    #[tokio::test]
    async fn what_is_not_kept_or_too_old_is_looked_up_by_the_next_caller() {
        let cache: LookupCache<u8, u8, &str> = LookupCache::new(10, TTL);
        let key = Scoped::new(PLATFORM_ORG, 1);
        let at = Instant::now();
        assert_eq!(cache.get(&key, |_| false, Box::pin(async { Ok(Found { value: 1, at }) })).await, Ok(1));
        let old = Instant::now().checked_sub(TTL).unwrap();
        assert_eq!(cache.get(&key, |_| true, Box::pin(async { Ok(Found { value: 2, at: old }) })).await, Ok(2));
        assert_eq!(cache.get(&key, |_| true, Box::pin(async { Ok(Found { value: 3, at }) })).await, Ok(3));
    }
}
