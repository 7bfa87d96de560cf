//! Hourly quotas of one organization, or one person, for unrequested effects: mails to recipients who have not asked for
//! them, and new organizations.
//!
//! A bucket holds an hour's worth and refills over the hour. The quota of a command without effect is returned, so that a
//! refused caller consumes none. As for commands (`command_rate.rs`), each process of the API takes its equal share, and one
//! that hears no others takes all of it.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metrics::counter;
use orgstream_events::{OrgId, UserId};
use quick_cache::sync::Cache;

use super::{Limit, OverLimit};
use crate::{
    peers::Peers,
    tenant_cache::{CacheView, OrgCache, Scoped},
};

const HOUR: Duration = Duration::from_hours(1);
/// The maximum number of cached buckets of a kind. An evicted one starts again full.
const BUCKETS: usize = 100_000;

/// The quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HourlyLimits {
    /// Mails with invitations, of one organization; none for no limit.
    pub invitations: Option<NonZeroU32>,
    /// Organizations that one person creates; none for no limit.
    pub organizations: Option<NonZeroU32>,
    /// Uses of secrets, of one organization; none for no limit.
    pub secret_uses: Option<NonZeroU32>,
}

impl HourlyLimits {
    /// Creates the quotas, where 0 is no limit.
    pub fn new(invitations: u32, organizations: u32) -> Self {
        let (invitations, organizations) = (NonZeroU32::new(invitations), NonZeroU32::new(organizations));
        Self { invitations, organizations, secret_uses: None }
    }

    /// Adds a quota of uses of secrets, where 0 is no limit.
    pub fn with_secret_uses(self, secret_uses: u32) -> Self {
        Self { secret_uses: NonZeroU32::new(secret_uses), ..self }
    }
}

/// One process's share of one hourly quota.
struct Bucket {
    peers: NonZeroU32,
    /// Its capacity.
    part: u32,
    level: Mutex<Level>,
}

/// The level at a moment; it refills since.
struct Level {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(hourly: NonZeroU32, peers: NonZeroU32) -> Self {
        let part = (hourly.get() / peers.get()).max(1);
        Self { peers, part, level: Mutex::new(Level { left: f64::from(part), at: Instant::now() }) }
    }

    /// Takes one, or returns when there is one.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        self.change(now, |left, for_one| {
            if *left < 1.0 {
                return Err(for_one.mul_f64(1.0 - *left));
            }
            *left -= 1.0;
            Ok(())
        })
    }

    fn give_back(&self, now: Instant) {
        let most = f64::from(self.part);
        self.change(now, |left, _| *left = (*left + 1.0).min(most));
    }

    /// Changes the level at `now`; one unit refills in the given time.
    fn change<T>(&self, now: Instant, change: impl FnOnce(&mut f64, Duration) -> T) -> T {
        let for_one = HOUR / self.part;
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(level.at);
        level.left = (level.left + since.div_duration_f64(for_one)).min(f64::from(self.part));
        level.at = level.at.max(now);
        change(&mut level.left, for_one)
    }
}

/// One unit that was taken. It is to be returned if the command has no effect.
#[must_use]
pub struct Taken(Option<Arc<Bucket>>);

impl Taken {
    /// Returns the unit to its quota: the command certainly had no effect.
    pub fn give_back(self) {
        if let Some(bucket) = self.0 {
            bucket.give_back(Instant::now());
        }
    }
}

/// The quotas used in the last hour, as far as this process knows. One per process.
pub struct Quotas {
    limits: HourlyLimits,
    invitations: OrgCache<(), Arc<Bucket>>,
    secret_uses: OrgCache<(), Arc<Bucket>>,
    organizations: Cache<UserId, Arc<Bucket>>,
    peers: Peers,
}

impl Quotas {
    /// Applies these limits, which `peers` share.
    pub fn new(limits: HourlyLimits, peers: Peers) -> Self {
        let (invitations, secret_uses, organizations) =
            (OrgCache::new(BUCKETS), OrgCache::new(BUCKETS), Cache::new(BUCKETS));
        Self { limits, invitations, secret_uses, organizations, peers }
    }

    /// Returns the current cache contents.
    pub fn caches(&self) -> Vec<CacheView> {
        vec![
            CacheView::of("invitations_of_the_hour", "org", &self.invitations),
            CacheView::of("secret_uses_of_the_hour", "org", &self.secret_uses),
        ]
    }

    /// Takes one mail to an invited person.
    pub fn take_invitation(&self, org: OrgId) -> Result<Taken, OverLimit> {
        let Some(hourly) = self.limits.invitations else { return Ok(Taken(None)) };
        self.take(&self.invitations, Scoped::new(org, ()), hourly).map_err(|retry_after| {
            counter!("orgstream_quota_refused_total", "quota" => "invitations").increment(1);
            OverLimit { limit: Limit::Invitations(hourly), retry_after }
        })
    }

    /// Takes one use of a secret.
    pub fn take_secret_use(&self, org: OrgId) -> Result<Taken, OverLimit> {
        let Some(hourly) = self.limits.secret_uses else { return Ok(Taken(None)) };
        self.take(&self.secret_uses, Scoped::new(org, ()), hourly).map_err(|retry_after| {
            counter!("orgstream_quota_refused_total", "quota" => "secret_uses").increment(1);
            OverLimit { limit: Limit::SecretUses(hourly), retry_after }
        })
    }

    /// Takes one organization of this person's quota.
    pub fn take_organization(&self, user: UserId) -> Result<Taken, OverLimit> {
        let Some(hourly) = self.limits.organizations else { return Ok(Taken(None)) };
        self.take(&self.organizations, user, hourly).map_err(|retry_after| {
            counter!("orgstream_quota_refused_total", "quota" => "organizations").increment(1);
            OverLimit { limit: Limit::Organizations(hourly), retry_after }
        })
    }

    fn take<K: Hash + Eq + Clone>(
        &self,
        buckets: &Cache<K, Arc<Bucket>>,
        key: K,
        hourly: NonZeroU32,
    ) -> Result<Taken, Duration> {
        let peers = self.peers.count();
        let bucket = match buckets.get(&key).filter(|bucket| bucket.peers == peers) {
            Some(bucket) => bucket,
            None => {
                let bucket = Arc::new(Bucket::new(hourly, peers));
                buckets.insert(key, Arc::clone(&bucket));
                bucket
            }
        };
        bucket.take(Instant::now()).map(|()| Taken(Some(bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::alone;

    fn quotas(limits: HourlyLimits, peers: u32) -> Quotas {
        let (announcer, known) = alone();
        announcer.hear(peers - 1);
        Quotas::new(limits, known)
    }

    fn org(n: u8) -> OrgId {
        OrgId::fresh(1_700_000_000_000, [n; 10])
    }

    #[test]
    fn an_hours_worth_is_taken_and_no_more_and_each_has_their_own() {
        let quotas = quotas(HourlyLimits::new(3, 2), 1);
        let taken = (0..10).filter(|_| quotas.take_invitation(org(1)).is_ok()).count();
        assert_eq!(taken, 3);
        assert!(quotas.take_invitation(org(2)).is_ok());
        let ann = UserId::from_login("https://issuer.example", "ann");
        assert!(quotas.take_organization(ann).is_ok() && quotas.take_organization(ann).is_ok());
        let refused = quotas.take_organization(ann).err().unwrap();
        assert_eq!(refused.limit, Limit::Organizations(NonZeroU32::new(2).unwrap()));
        assert!(refused.retry_after <= HOUR / 2);
    }

    #[test]
    fn what_nothing_came_of_is_there_again_and_an_hour_fills_a_bucket() {
        let quotas = quotas(HourlyLimits::new(2, 0), 1);
        for _ in 0..20 {
            quotas.take_invitation(org(1)).unwrap().give_back();
        }
        let kept: Vec<_> = (0..2).map(|_| quotas.take_invitation(org(1)).unwrap()).collect();
        assert!(quotas.take_invitation(org(1)).is_err());
        for taken in kept {
            taken.give_back();
        }
        assert_eq!((0..9).filter(|_| quotas.take_invitation(org(1)).is_ok()).count(), 2, "no more than there were");
        let bucket = Bucket::new(NonZeroU32::new(4).unwrap(), NonZeroU32::MIN);
        let began = Instant::now();
        let taken = |minutes: u64| {
            let now = began + Duration::from_mins(minutes);
            (0..9).filter(|_| bucket.take(now).is_ok()).count()
        };
        assert_eq!((taken(0), taken(14), taken(16), taken(120)), (4, 0, 1, 4));
    }

    #[test]
    fn processes_share_and_nothing_is_no_limit() {
        let shared = quotas(HourlyLimits::new(9, 0), 3);
        assert_eq!((0..20).filter(|_| shared.take_invitation(org(1)).is_ok()).count(), 3);
        let ann = UserId::from_login("https://issuer.example", "ann");
        assert!((0..1_000).all(|_| shared.take_organization(ann).is_ok()));
    }
}
