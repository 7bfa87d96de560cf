//! Quotas: what a command adds is admitted before its events are appended, so that there is never more than there may be.
//!
//! Far from a limit what the read models have is enough, and costs a look into a cache. Near it the commit is appended together with
//! one of the organization's quotas, which expects the one before it: see `orgstream_domain::quota` for what is counted and why
//! that is exact.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use metrics::counter;
use orgstream_domain::{
    Aggregate, Place, Rejection,
    member::Members,
    organization::Organization,
    plan::Entitlements,
    quota::{Count, Figure, QUOTA_CODES, Quota, QuotaError, QuotaLimit, slack, uncounted_share},
};
use orgstream_events::{
    Actor, ActorType, AggregateId, Cause, CommandId, CommitDraft, Event, OrgId, PLATFORM_ORG, Position, QuotaName,
    Timestamp, cause,
};
use orgstream_stream::{AppendError, Freshness, Placement};
use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard},
    time::{Instant, sleep, timeout},
};

use super::{
    cache::Loaded,
    handler::{CommandContext, CommandHandler},
    request::CommandError,
};
use crate::{
    clock::now,
    tenant_cache::{CacheView, OrgCache, Scoped},
};

/// The TTL of what is known of an organization's limits and of what it uses.
const LOOK: Duration = Duration::from_millis(500);
/// The longest wait for the figures of the read models.
const FIGURES: Duration = Duration::from_secs(2);
/// The longest wait until what others added uncounted is known, and the pause between two looks.
const SETTLING: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);
/// Organizations whose quotas are known, at most.
const KNOWN: usize = 20_000;
/// Uncounted additions of one organization that are remembered one by one, at most.
const REMEMBERED: usize = 4_096;
/// The quotas that the aggregate counts. The others are decided by an aggregate that has all of what they count.
const COUNTED: [QuotaName; 2] = [QuotaName::ApiKeys, QuotaName::StorageBytes];

/// What is used of the quotas that are counted, as the read models have it.
pub trait StoredFigures: fmt::Debug + Send + Sync + 'static {
    /// Returns the figure of each, as of one position.
    fn of(&self, org: OrgId) -> BoxFuture<'_, Result<Figures, Cause>>;
}

/// The figures of an organization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// API keys that are neither revoked nor expired.
    pub api_keys: Figure,
    /// The content of records that are not archived.
    pub storage_bytes: Figure,
}

impl Figures {
    fn get(&self, quota: QuotaName) -> Figure {
        match quota {
            QuotaName::ApiKeys => self.api_keys,
            QuotaName::StorageBytes => self.storage_bytes,
            QuotaName::Members | QuotaName::Webhooks => Figure::default(),
        }
    }
}

/// The quotas of a process: what is known of them, and what this process added uncounted.
pub(super) struct QuotaBook {
    figures: Option<Arc<dyn StoredFigures>>,
    known: OrgCache<(), Arc<Known>>,
}

/// What is known of one organization.
#[derive(Default)]
struct Known {
    looked: Mutex<Option<Looked>>,
    figures: Mutex<Option<(Figures, Instant)>>,
    /// What this process added uncounted, by quota as in `COUNTED`.
    uncounted: [Mutex<Uncounted>; COUNTED.len()],
    /// Held by one who asks for the figures.
    asking: Turn<()>,
    /// Held by one who counts.
    turn: Arc<Turn<()>>,
}

/// Limits and counts, as of a moment.
#[derive(Clone)]
struct Looked {
    at: Instant,
    limits: [Option<QuotaLimit>; COUNTED.len()],
    quota: Arc<Loaded<Quota>>,
}

impl Looked {
    /// Returns the changes of quotas that have a limit.
    fn limited(&self, changes: &[(QuotaName, i64)]) -> Vec<Change> {
        let each = COUNTED.into_iter().enumerate().filter_map(|(slot, quota)| {
            let (_, change) = changes.iter().find(|(name, change)| *name == quota && *change != 0)?;
            let limit = self.limits.get(slot).cloned().flatten()?;
            Some(Change { slot, quota, added: *change, limit })
        });
        each.collect()
    }
}

/// What was added uncounted: under way, and stored at positions which the read models may not have yet.
#[derive(Default)]
struct Uncounted {
    under_way: u64,
    stored: VecDeque<(u64, u64)>,
}

impl Uncounted {
    /// Notes where an amount is stored. Where many are remembered, it joins the last one, and both are behind until the later
    /// of them is known.
    fn store(&mut self, at: u64, amount: u64) {
        let is_full = self.stored.len() >= REMEMBERED;
        match self.stored.back_mut() {
            Some((last, sum)) if is_full => {
                *last = at.max(*last);
                *sum = sum.saturating_add(amount);
            }
            _ => self.stored.push_back((at, amount)),
        }
    }

    /// Returns what the read models at this position do not have.
    fn behind(&mut self, at: u64) -> u64 {
        while self.stored.pop_front_if(|(seq, _)| *seq <= at).is_some() {}
        self.stored.iter().fold(self.under_way, |sum, (_, amount)| sum.saturating_add(*amount))
    }
}

/// What a command adds to a quota, or takes from it, and the limit of that.
#[derive(Debug, Clone)]
struct Change {
    slot: usize,
    quota: QuotaName,
    added: i64,
    limit: QuotaLimit,
}

/// The admission of what a command adds.
pub(super) enum Admitted {
    /// Nothing is counted, or it is far from the limit.
    Uncounted(Option<Taken>),
    /// It is counted by these events, which are appended together with the command's own.
    Counted(Counted),
}

/// What is added uncounted, until it is known where it is stored.
pub(super) struct Taken {
    known: Arc<Known>,
    amounts: Vec<(usize, u64)>,
}

/// The commit of the quotas that goes with a command's own.
pub(super) struct Counted {
    pub(super) loaded: Arc<Loaded<Quota>>,
    pub(super) events: Vec<Event>,
    /// Nobody else of this process counts meanwhile.
    turn: OwnedMutexGuard<()>,
}

impl Taken {
    /// Notes where it is stored.
    pub(super) fn stored(mut self, at: u64) {
        for (slot, amount) in self.amounts.drain(..) {
            if let Some(uncounted) = self.known.uncounted.get(slot) {
                let mut uncounted = uncounted.lock().unwrap_or_else(PoisonError::into_inner);
                uncounted.under_way = uncounted.under_way.saturating_sub(amount);
                uncounted.store(at, amount);
            }
        }
    }
}

impl Drop for Taken {
    /// What was not stored is not added. An append whose effect is unknown is found by the read models.
    fn drop(&mut self) {
        for (slot, amount) in &self.amounts {
            if let Some(uncounted) = self.known.uncounted.get(*slot) {
                let mut uncounted = uncounted.lock().unwrap_or_else(PoisonError::into_inner);
                uncounted.under_way = uncounted.under_way.saturating_sub(*amount);
            }
        }
    }
}

impl QuotaBook {
    pub(super) fn new(figures: Option<Arc<dyn StoredFigures>>) -> Self {
        Self { figures, known: OrgCache::new(KNOWN) }
    }

    pub(super) fn view(&self) -> CacheView {
        CacheView::of("commands/quotas", "org", &self.known)
    }

    fn known(&self, org: OrgId) -> Arc<Known> {
        let key = Scoped::new(org, ());
        self.known.get(&key).unwrap_or_else(|| {
            let known = Arc::new(Known::default());
            self.known.insert(key, Arc::clone(&known));
            known
        })
    }

    /// Returns the figures, not older than `age`. Those that are known are returned where the read models do not answer.
    async fn figures(&self, org: OrgId, known: &Known, age: Duration) -> Result<Figures, CommandError> {
        let came = Instant::now();
        let held = || *known.figures.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |at: Instant| at >= came || came.saturating_duration_since(at) < age;
        if let Some((figures, at)) = held()
            && is_fresh(at)
        {
            return Ok(figures);
        }
        let _asking = known.asking.lock().await;
        if let Some((figures, at)) = held()
            && is_fresh(at)
        {
            return Ok(figures);
        }
        let asked_at = Instant::now();
        let Some(stored) = &self.figures else {
            return Err(CommandError::Internal(cause("this handler knows no figures of quotas")));
        };
        let failed = match timeout(FIGURES, stored.of(org)).await {
            Ok(Ok(figures)) => {
                *known.figures.lock().unwrap_or_else(PoisonError::into_inner) = Some((figures, asked_at));
                return Ok(figures);
            }
            Ok(Err(error)) => error,
            Err(_) => cause("the read models do not answer in time"),
        };
        held().map(|(figures, _)| figures).ok_or(CommandError::Unavailable(failed))
    }
}

/// What is used of a quota, and may be.
#[derive(Debug, Clone)]
pub struct QuotaUse {
    /// The quota.
    pub quota: QuotaName,
    /// The limit; none without one.
    pub limit: Option<QuotaLimit>,
    /// What is used; none where it cannot be found out now.
    pub used: Option<u64>,
    /// The position for which that is exact.
    pub at: Option<Position>,
}

impl CommandHandler {
    /// Returns what an organization uses of each of its quotas; none when it was never created.
    pub async fn quotas_of(&self, org: OrgId) -> Result<Option<Vec<QuotaUse>>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let entitlements = self.aggregates.entitlements(&placement).await?;
        let members = self.aggregates.load::<Members>(&placement, &AggregateId::Member(org), Freshness::Leader).await?;
        let organization = AggregateId::Organization(org);
        let organization = self.aggregates.load::<Organization>(&placement, &organization, Freshness::Leader).await?;
        let known = self.quotas.known(org);
        let figures = Box::pin(self.quotas.figures(org, &known, Duration::ZERO)).await.ok();
        let quota = self.aggregates.load::<Quota>(&placement, &AggregateId::Quota(org), Freshness::Leader).await?;
        let webhooks = organization.state.profile().map(|profile| u64::from(profile.settings.audit_webhook.is_some()));
        let uses = QuotaName::ALL.map(|name| {
            let (used, seq) = match name {
                QuotaName::Members => (Some(members.state.count() as u64), Some(members.seq)),
                QuotaName::Webhooks => (webhooks, Some(organization.seq)),
                QuotaName::ApiKeys | QuotaName::StorageBytes => {
                    let figure = figures.map(|figures| figures.get(name));
                    // What was counted is known up to its last commit, and everything else up to the figures'.
                    (figure.map(|figure| quota.state.used(name, figure)), figure.map(|figure| figure.at))
                }
            };
            let at = seq.map(|seq| Position { org, seq });
            QuotaUse { quota: name, limit: entitlements.quota(name), used, at }
        });
        Ok(Some(uses.into()))
    }

    /// Returns the limit of a quota that an aggregate decides by itself, at most a second old.
    pub(super) async fn quota_limit(
        &self,
        placement: &Placement,
        quota: QuotaName,
    ) -> Result<Option<QuotaLimit>, CommandError> {
        if placement.org == PLATFORM_ORG {
            return Ok(None);
        }
        Ok(self.aggregates.entitlements(placement).await?.quota(quota))
    }

    /// Admits what a command adds to the quotas that are counted, or takes from them.
    pub(super) async fn admit(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        changes: &[(QuotaName, i64)],
    ) -> Result<Admitted, CommandError> {
        let org = placement.org;
        if org == PLATFORM_ORG || self.quotas.figures.is_none() || changes.iter().all(|(_, change)| *change == 0) {
            return Ok(Admitted::Uncounted(None));
        }
        let known = self.quotas.known(org);
        let looked = self.look_at_quotas(placement, &known).await?;
        let limited = looked.limited(changes);
        if limited.is_empty() {
            return Ok(Admitted::Uncounted(None));
        }
        let taken = match Box::pin(self.quotas.figures(org, &known, LOOK)).await {
            Ok(figures) => take_uncounted(&known, &looked, &figures, &limited),
            // What takes something away is never refused.
            Err(_) if limited.iter().all(|change| change.added < 0) => {
                Some(Taken { known: Arc::clone(&known), amounts: Vec::new() })
            }
            Err(error) => return Err(error),
        };
        if let Some(taken) = taken {
            return Ok(Admitted::Uncounted(Some(taken)));
        }
        let turn = Arc::clone(&known.turn).lock_owned().await;
        Box::pin(self.count(attempt, placement, &known, &limited, turn)).await.map(Admitted::Counted)
    }

    /// Decides again what is counted, where another process has counted since; none where none has.
    pub(super) async fn count_again(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        before: Counted,
        changes: &[(QuotaName, i64)],
    ) -> Result<Option<Counted>, CommandError> {
        let org = placement.org;
        let now = self.aggregates.load::<Quota>(placement, &AggregateId::Quota(org), Freshness::Leader).await?;
        if now.seq == before.loaded.seq {
            return Ok(None);
        }
        let known = self.quotas.known(org);
        let limited = self.look_at_quotas(placement, &known).await?.limited(changes);
        Box::pin(self.count(attempt, placement, &known, &limited, before.turn)).await.map(Some)
    }

    /// Returns limits and counts that are at most `LOOK` old.
    async fn look_at_quotas(&self, placement: &Placement, known: &Known) -> Result<Looked, CommandError> {
        let held = known.looked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(looked) = held.filter(|looked| looked.at.elapsed() < LOOK) {
            return Ok(looked);
        }
        let at = Instant::now();
        let entitlements: Entitlements = Box::pin(self.aggregates.entitlements(placement)).await?;
        let limits = COUNTED.map(|quota| entitlements.quota(quota));
        let quota = if limits.iter().all(Option::is_none) {
            Arc::default()
        } else {
            self.aggregates.load::<Quota>(placement, &AggregateId::Quota(placement.org), Freshness::Leader).await?
        };
        let looked = Looked { at, limits, quota };
        *known.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(looked.clone());
        Ok(looked)
    }

    /// Decides what is counted, with nobody else of this process doing so meanwhile.
    async fn count(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        known: &Known,
        changes: &[Change],
        turn: OwnedMutexGuard<()>,
    ) -> Result<Counted, CommandError> {
        let org = placement.org;
        let aggregate = AggregateId::Quota(org);
        let cached = self.cached_quota(org);
        let (mut is_certain, mut age) = (cached.is_none(), LOOK);
        let mut loaded = match cached {
            Some(loaded) => loaded,
            None => self.aggregates.load::<Quota>(placement, &aggregate, Freshness::Leader).await?,
        };
        let until = Instant::now() + SETTLING;
        loop {
            let figures = self.quotas.figures(org, known, age).await?;
            let counts = changes.iter().map(|Change { quota, added, limit, .. }| Count {
                quota: *quota,
                change: *added,
                limit: limit.clone(),
                figure: figures.get(*quota),
            });
            let error = match loaded.state.decide(counts.collect(), &attempt.decision_context(org)) {
                Ok(events) => {
                    counter!("orgstream_quota_counts_total").increment(1);
                    let events = events.into_iter().map(Quota::wrap).collect();
                    return Ok(Counted { loaded, events, turn });
                }
                Err(error) => error,
            };
            // A refusal is only true of the newest counts and figures.
            if is_certain {
                let QuotaError::NotSettled { from } = error else { return Err(Rejection::from(error).into()) };
                if Instant::now() >= until {
                    return Err(CommandError::Unavailable(cause(error)));
                }
                self.settle_counts(placement, known, changes, (&loaded, from)).await?;
            }
            (is_certain, age) = (true, Duration::ZERO);
            loaded = self.aggregates.load::<Quota>(placement, &aggregate, Freshness::Leader).await?;
        }
    }

    fn cached_quota(&self, org: OrgId) -> Option<Arc<Loaded<Quota>>> {
        <Quota as super::cache::Cached>::cache(self.caches_of()).get(&Scoped::new(org, AggregateId::Quota(org)))
    }

    /// Comes a step nearer to exact figures near a limit: others learn that everything is counted, then a place in the log is behind
    /// all that was not, and then the read models are there.
    async fn settle_counts(
        &self,
        placement: &Placement,
        known: &Known,
        changes: &[Change],
        (loaded, from): (&Loaded<Quota>, Option<Timestamp>),
    ) -> Result<(), CommandError> {
        let is_marked = changes.iter().all(|change| loaded.state.settled(change.quota, change.limit.most).is_some());
        let is_due = from.is_none_or(|from| now() >= from);
        if is_marked || !is_due {
            sleep(PAUSE).await;
            return Ok(());
        }
        let figures = self.quotas.figures(placement.org, known, LOOK).await?;
        let marks = changes.iter().map(|Change { quota, limit, .. }| Count {
            quota: *quota,
            change: 0,
            limit: limit.clone(),
            figure: figures.get(*quota),
        });
        let (org, at) = (placement.org, now());
        let command_id = CommandId::fresh(at.unix_ms(), rand::random());
        let context = orgstream_domain::DecisionContext { now: at, command_id, org };
        let events = loaded.state.decide(marks.collect(), &context).map_err(Rejection::from)?;
        let draft = CommitDraft {
            org,
            aggregate: AggregateId::Quota(org),
            version_before: loaded.version,
            command_id,
            fingerprint: None,
            actor: Actor { actor_type: ActorType::System, id: "quotas".to_owned(), auth: None },
            occurred_at: at,
            recorded_at: at,
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: orgstream_events::Context::default(),
            events: events.into_iter().map(Quota::wrap).collect(),
        };
        let commit = draft.seal(|| orgstream_events::Salt(rand::random())).map_err(AppendError::from)?;
        match self.log.append(placement, &commit, loaded.seq, None).await {
            // Another process was quicker, which is as good.
            Ok(_) | Err(AppendError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in the commit of the quotas that was stored at `seq`.
    pub(super) fn counted(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        counted: Counted,
        seq: u64,
    ) -> Result<(), CommandError> {
        let Counted { loaded, events, turn: _turn } = counted;
        let place = Place { seq, actor: &attempt.caller.actor, recorded_at: attempt.now };
        self.aggregates.advance(placement, &AggregateId::Quota(placement.org), loaded, |loaded| {
            loaded.fold(attempt.command_id, attempt.fingerprint, place, events.iter());
        })?;
        Ok(())
    }

    /// Forgets the counts, of which another process knows better.
    pub(super) fn forget_counts(&self, org: OrgId) {
        <Quota as super::cache::Cached>::cache(self.caches_of()).remove(&Scoped::new(org, AggregateId::Quota(org)));
    }
}

/// Counts a refusal by a quota.
pub(super) fn note_refusal(error: &CommandError) {
    if let CommandError::Rejected(rejection) = error
        && let Some(code) = QUOTA_CODES.into_iter().find(|code| *code == rejection.code)
    {
        let quota = match code {
            "members_quota_exceeded" => "members",
            "api_keys_quota_exceeded" => "api_keys",
            "webhooks_quota_exceeded" => "webhooks",
            "storage_quota_exceeded" => "storage_bytes",
            _ => "own_kinds",
        };
        counter!("orgstream_quota_refused_total", "quota" => quota).increment(1);
    }
}

/// Takes what is added from what this process may add uncounted; none where it has to be counted.
fn take_uncounted(known: &Arc<Known>, looked: &Looked, figures: &Figures, changes: &[Change]) -> Option<Taken> {
    let mut taken = Taken { known: Arc::clone(known), amounts: Vec::new() };
    for Change { slot, quota, added, limit } in changes {
        if looked.quota.state.is_near(*quota, limit.most) {
            return None;
        }
        let figure = figures.get(*quota);
        // The figures may have what the counts, which are older, have not.
        let used = looked.quota.state.used(*quota, figure).max(figure.used);
        if *added < 0 {
            // Near a limit nobody has counted yet, what is taken has to be room at once.
            if used.saturating_add(slack(*quota)) > limit.most {
                return None;
            }
            continue;
        }
        let amount = added.unsigned_abs();
        let mut uncounted = known.uncounted.get(*slot)?.lock().unwrap_or_else(PoisonError::into_inner);
        let more = uncounted.behind(figure.at).saturating_add(amount);
        let after = used.saturating_add(more);
        let left = limit.most.saturating_sub(used);
        let is_far = after.saturating_add(slack(*quota)) <= limit.most;
        if !is_far || more > uncounted_share(*quota, left) {
            return None;
        }
        uncounted.under_way = uncounted.under_way.saturating_add(amount);
        drop(uncounted);
        taken.amounts.push((*slot, amount));
    }
    Some(taken)
}
