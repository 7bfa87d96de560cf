//! The rate limits of organizations, of commands and of reads: admission's part in keeping one organization's burst from the others.
//!
//! Each organization has a rate, by its own limits or by its plan, and a bucket that holds ten seconds of it (GCRA). Excess
//! commands and reads are refused with the time to wait: nothing was read for them but whether a command was done before. Each process of
//! the API takes its equal share of every rate; one that hears no others takes all of it, so trouble between them loosens the
//! limit and never tightens it.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
};
use metrics::counter;
use orgstream_events::{NameError, OrgId, PlanName};
use tokio::time::Instant;

use super::{Limit, OverLimit};
use crate::{
    auth::OrgPolicy,
    peers::Peers,
    tenant_cache::{OrgCache, Scoped},
};

/// The maximum burst: how long an idle organization accumulates its rate.
const SAVED_UP: Duration = Duration::from_secs(10);
/// The maximum number of cached buckets. An evicted one starts again full.
const BUCKETS: usize = 100_000;

/// The commands per second that the organizations of one plan may send, as an operator writes it: `trial=20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRate {
    plan: PlanName,
    rate: NonZeroU32,
}

/// The reason why a text is not the rate of a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRateError {
    /// It is malformed.
    #[error("{0:?} says no rate: write PLAN=N, like trial=20, with a whole number of commands a second from 1 on")]
    NoRate(String),
    /// The plan's name is invalid.
    #[error(transparent)]
    Plan(#[from] NameError),
    /// A plan has two rates.
    #[error("the plan {0} is given two rates: leave one of them out")]
    Twice(PlanName),
}

impl FromStr for PlanRate {
    type Err = PlanRateError;

    fn from_str(text: &str) -> Result<Self, PlanRateError> {
        let no_rate = || PlanRateError::NoRate(text.to_owned());
        let (plan, rate) = text.split_once('=').ok_or_else(no_rate)?;
        Ok(Self { plan: plan.parse()?, rate: rate.parse().map_err(|_| no_rate())? })
    }
}

/// The commands per second of plans. A plan that is absent has no limit.
#[derive(Debug, Clone, Default)]
pub struct PlanRates(BTreeMap<PlanName, NonZeroU32>);

impl PlanRates {
    /// Collects the rates, one for each plan.
    pub fn new(list: impl IntoIterator<Item = PlanRate>) -> Result<Self, PlanRateError> {
        let mut rates = BTreeMap::new();
        for PlanRate { plan, rate } in list {
            if rates.insert(plan.clone(), rate).is_some() {
                return Err(PlanRateError::Twice(plan));
            }
        }
        Ok(Self(rates))
    }
}

/// The source of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedBy {
    /// The organization's own.
    Organization,
    /// The organization's plan.
    Plan,
}

/// What a rate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rated {
    /// Commands.
    Commands,
    /// Requests that read.
    Reads,
}

impl Rated {
    /// Returns its name, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Reads => "reads",
        }
    }
}

/// The rate and burst, of all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandRate {
    /// What it counts.
    pub of: Rated,
    /// The number of those per second, on average.
    pub per_second: NonZeroU32,
    /// The number of those at once after an idle time.
    pub burst: NonZeroU32,
    /// The source of the limit.
    pub by: LimitedBy,
}

impl CommandRate {
    fn new(of: Rated, per_second: NonZeroU32, by: LimitedBy) -> Option<Self> {
        let seconds = NonZeroU32::new(u32::try_from(SAVED_UP.as_secs()).unwrap_or(1))?;
        Some(Self { of, per_second, burst: per_second.saturating_mul(seconds), by })
    }

    /// Returns the time in which the burst is whole again.
    pub fn window(&self) -> Duration {
        SAVED_UP
    }
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateState {
    /// The rate, of all processes together.
    pub rate: CommandRate,
    /// The number of commands that this process takes at once now, of its share.
    pub left: u32,
    /// The time until its share is whole again.
    pub full_in: Duration,
}

/// One process's share of an organization's rate.
struct Bucket {
    per_second: NonZeroU32,
    peers: NonZeroU32,
    limiter: DefaultDirectRateLimiter<StateInformationMiddleware>,
    /// The time in which one command is there again, and how many there are at most.
    one: Duration,
    burst: NonZeroU32,
    /// What was left at the last command, and when that was; the limiter says it of commands only.
    last: Mutex<(u32, Instant)>,
}

impl Bucket {
    /// Creates the share of one of `peers` processes.
    fn new(rate: CommandRate, peers: NonZeroU32) -> Self {
        let one = Duration::from_secs_f64(f64::from(peers.get()) / f64::from(rate.per_second.get()));
        let burst = NonZeroU32::new(rate.burst.get() / peers.get()).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(one).unwrap_or(Quota::per_second(rate.per_second)).allow_burst(burst);
        let limiter = RateLimiter::direct(quota).with_middleware::<StateInformationMiddleware>();
        let last = Mutex::new((burst.get(), Instant::now()));
        Self { per_second: rate.per_second, peers, limiter, one, burst, last }
    }

    fn is_of(&self, rate: CommandRate, peers: NonZeroU32) -> bool {
        self.per_second == rate.per_second && self.peers == peers
    }

    fn note(&self, left: u32) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (left, Instant::now());
    }

    /// Returns how many commands are left, and when the bucket is full.
    fn level(&self, now: Instant) -> (u32, Duration) {
        let (left, at) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(at);
        let back = since.as_nanos().checked_div(self.one.as_nanos()).unwrap_or_default();
        let left = left.saturating_add(u32::try_from(back).unwrap_or(u32::MAX)).min(self.burst.get());
        let missing = self.one.saturating_mul(self.burst.get() - left);
        let begun = since.as_nanos().checked_rem(self.one.as_nanos()).unwrap_or_default();
        let begun = Duration::from_nanos(u64::try_from(begun).unwrap_or(u64::MAX));
        (left, missing.saturating_sub(begun))
    }
}

/// The admission of the commands of one request.
#[derive(Debug)]
pub struct Admitted {
    /// The number of admitted commands, from the first on.
    pub taken: usize,
    /// The refusal of the others, when there are others.
    pub refusal: Option<OverLimit>,
}

/// The rate limits of all organizations. One per process.
pub struct Admission {
    plans: PlanRates,
    buckets: OrgCache<Rated, Arc<Bucket>>,
    peers: Peers,
    clock: DefaultClock,
}

impl Admission {
    /// Admits by these rates, which `peers` share.
    pub fn new(plans: PlanRates, peers: Peers) -> Self {
        Self { plans, buckets: OrgCache::new(BUCKETS), peers, clock: DefaultClock::default() }
    }

    /// Returns the rate of an organization; none when there is no limit.
    pub fn rate(&self, rules: &OrgPolicy) -> Option<CommandRate> {
        let own = rules.limits.commands_per_second.map(|rate| (rate, LimitedBy::Organization));
        let (per_second, by) = own.or_else(|| Some((*self.plans.0.get(&rules.plan)?, LimitedBy::Plan)))?;
        CommandRate::new(Rated::Commands, per_second, by)
    }

    /// Returns the rate of reads of an organization, where its plan says `of_plan`; none when there is no limit.
    pub fn read_rate(&self, rules: &OrgPolicy, of_plan: Option<NonZeroU32>) -> Option<CommandRate> {
        let own = rules.limits.reads_per_second.map(|rate| (rate, LimitedBy::Organization));
        let (per_second, by) = own.or_else(|| Some((of_plan?, LimitedBy::Plan)))?;
        CommandRate::new(Rated::Reads, per_second, by)
    }

    /// Admits one read of `org`.
    pub fn admit_read(&self, org: OrgId, rate: CommandRate) -> Result<(), OverLimit> {
        let bucket = self.bucket(org, rate);
        match bucket.limiter.check() {
            Ok(state) => {
                bucket.note(state.remaining_burst_capacity());
                Ok(())
            }
            Err(full) => {
                let retry_after = full.wait_time_from(self.clock.now());
                bucket.note(0);
                counter!("orgstream_reads_refused_total", "reason" => "rate").increment(1);
                Err(OverLimit { limit: Limit::Commands(rate), retry_after })
            }
        }
    }

    /// Admits as many of `count` commands of `org` as the rate permits now.
    pub fn admit(&self, org: OrgId, rules: &OrgPolicy, count: usize) -> Admitted {
        let Some(rate) = self.rate(rules) else { return Admitted { taken: count, refusal: None } };
        let bucket = self.bucket(org, rate);
        let mut left = None;
        for taken in 0..count {
            match bucket.limiter.check() {
                Ok(state) => left = Some(state.remaining_burst_capacity()),
                Err(full) => {
                    let wait = full.wait_time_from(self.clock.now());
                    bucket.note(0);
                    counter!("orgstream_commands_refused_total", "reason" => "rate")
                        .increment((count - taken).try_into().unwrap_or(u64::MAX));
                    return Admitted {
                        taken,
                        refusal: Some(OverLimit { limit: Limit::Commands(rate), retry_after: wait }),
                    };
                }
            }
        }
        if let Some(left) = left {
            bucket.note(left);
        }
        Admitted { taken: count, refusal: None }
    }

    /// Returns what is left of a rate of `org`.
    pub fn state(&self, org: OrgId, rate: CommandRate) -> RateState {
        let peers = self.peers.count();
        let known = self.buckets.get(&Scoped::new(org, rate.of)).filter(|bucket| bucket.is_of(rate, peers));
        // Nothing is changed by looking: without a bucket of this rate, nothing of it is used.
        let (left, full_in) = known.unwrap_or_else(|| Arc::new(Bucket::new(rate, peers))).level(Instant::now());
        RateState { rate, left, full_in }
    }

    /// Returns the bucket of `org`, or a new one where its rate or the number of processes has changed.
    fn bucket(&self, org: OrgId, rate: CommandRate) -> Arc<Bucket> {
        let (peers, key) = (self.peers.count(), Scoped::new(org, rate.of));
        if let Some(bucket) = self.buckets.get(&key).filter(|bucket| bucket.is_of(rate, peers)) {
            return bucket;
        }
        let bucket = Arc::new(Bucket::new(rate, peers));
        self.buckets.insert(key, Arc::clone(&bucket));
        bucket
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{OrganizationLimits, PLATFORM_ORG};

    use super::*;
    use crate::peers::{Announcer, alone};

    fn rules(plan: &str, own: u32) -> OrgPolicy {
        let limits = OrganizationLimits { commands_per_second: NonZeroU32::new(own), ..OrganizationLimits::default() };
        let mut rules = OrgPolicy::default();
        (rules.plan, rules.limits) = (plan.parse().unwrap(), limits);
        rules
    }

    fn admission(peers: u32) -> (Admission, Announcer) {
        let (announcer, known) = alone();
        announcer.hear(peers - 1);
        let plans = PlanRates::new(["trial=1".parse().unwrap(), "pro=5".parse().unwrap()]).unwrap();
        (Admission::new(plans, known), announcer)
    }

    #[test]
    fn a_limit_of_ones_own_goes_before_that_of_the_plan() {
        let (admission, _peers) = admission(1);
        let rate = |plan, own| admission.rate(&rules(plan, own)).map(|rate| (rate.per_second.get(), rate.by));
        assert_eq!(rate("standard", 0), None);
        assert_eq!(rate("trial", 0), Some((1, LimitedBy::Plan)));
        assert_eq!(rate("trial", 7), Some((7, LimitedBy::Organization)));
        assert_eq!(rate("standard", 7), Some((7, LimitedBy::Organization)));
    }

    #[test]
    fn what_is_over_the_rate_waits_and_others_do_not() {
        let (admission, _peers) = admission(1);
        let one = admission.admit(PLATFORM_ORG, &rules("trial", 0), 25);
        let refusal = one.refusal.unwrap();
        let Limit::Commands(rate) = refusal.limit else { panic!("{refusal:?}") };
        assert_eq!((one.taken, rate.per_second.get(), rate.burst.get()), (10, 1, 10));
        assert!(refusal.retry_after <= Duration::from_secs(1), "{:?}", refusal.retry_after);
        assert_eq!(admission.admit(PLATFORM_ORG, &rules("trial", 0), 1).taken, 0);
        // Another organization has a bucket of its own, and so has one whose limit was changed.
        let other = OrgId::fresh(1, [1; 10]);
        assert_eq!(admission.admit(other, &rules("trial", 0), 10).taken, 10);
        assert_eq!(admission.admit(PLATFORM_ORG, &rules("trial", 2), 30).taken, 20);
        assert_eq!(admission.admit(PLATFORM_ORG, &rules("standard", 0), 5_000).taken, 5_000);
    }

    #[test]
    fn reads_have_a_rate_of_their_own_and_use_none_of_the_commands() {
        let (admission, _peers) = admission(1);
        let mut rules = rules("trial", 0);
        let rate = |rules: &OrgPolicy, plan| admission.read_rate(rules, NonZeroU32::new(plan));
        assert_eq!(rate(&rules, 0), None);
        let of_plan = rate(&rules, 2).unwrap();
        assert_eq!((of_plan.per_second.get(), of_plan.burst.get(), of_plan.by), (2, 20, LimitedBy::Plan));
        let taken = (0..40).take_while(|_| admission.admit_read(PLATFORM_ORG, of_plan).is_ok()).count();
        assert_eq!(taken, 20);
        let refused = admission.admit_read(PLATFORM_ORG, of_plan).unwrap_err();
        assert!(refused.retry_after <= Duration::from_millis(500), "{refused:?}");
        assert_eq!(admission.state(PLATFORM_ORG, of_plan).left, 0);
        assert_eq!(admission.admit(PLATFORM_ORG, &rules, 25).taken, 10);
        rules.limits.reads_per_second = NonZeroU32::new(7);
        assert_eq!(rate(&rules, 2).map(|rate| (rate.per_second.get(), rate.by)), Some((7, LimitedBy::Organization)));
    }

    #[test]
    fn processes_share_a_rate_in_equal_parts() {
        let (admission, peers) = admission(2);
        assert_eq!(admission.admit(PLATFORM_ORG, &rules("pro", 0), 100).taken, 25);
        peers.hear(99);
        // Fewer than one each: each process still admits something.
        assert_eq!(admission.admit(PLATFORM_ORG, &rules("pro", 0), 100).taken, 1);
    }

    #[test]
    fn a_rate_is_a_whole_number_for_one_plan() {
        for bad in ["trial", "trial=0", "trial=-1", "trial=1.5", "no plan=1"] {
            assert!(bad.parse::<PlanRate>().is_err(), "{bad}");
        }
        let twice = PlanRates::new(["trial=1".parse().unwrap(), "trial=2".parse().unwrap()]);
        assert!(matches!(twice, Err(PlanRateError::Twice(_))));
    }
}
