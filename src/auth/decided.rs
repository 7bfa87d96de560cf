//! Rights in the log that the read models lack so far. The read models can be far behind, by a backlog that the holder of a
//! key makes on purpose, so their answer about a right is valid only as far as the log has nothing newer about it.
//!
//! For each aggregate that a right depends on, the end of its history is queried: once in a tenth of a second, shared by all
//! callers. If the read models have applied it, they are current, and no more is needed. If not, the history is read and
//! cached, and each change of it is read once. While the log does not answer, nothing is decided, so the read models and what
//! was seen of the log before count; where that had more than the read models and was not read, there is no answer.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use dashmap::{DashMap, Entry};
use orgstream_domain::{
    Aggregate, Place, api_key::ApiKey, member::Members, organization::Organization, role::CustomRoles,
    sso_connection::Connections,
};
use orgstream_events::{AccessEvent, AggregateId, Cause, Chain, Event, KeyId, OrgId, Pipeline, Shard, cause};
use orgstream_projections::{
    DbError, TenantTx,
    checkpoints::{self, Reach},
};
use orgstream_stream::{Freshness, Log, Placement, StreamError};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::AuthError;
use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// The TTL of the end of a history.
const LOOK: Duration = Duration::from_millis(100);
/// The timeout of that query.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of the queries whether a shard answers again.
const RETRY: Duration = Duration::from_millis(500);
/// The maximum number of reads in the search for a closed break-glass grant.
const PARTS: usize = 8;
/// The maximum number of cached aggregates of each kind.
const KEPT: usize = 20_000;

/// Returns how far the read models are with the org of `tx`, queried before a row that is to be judged by it.
pub(super) async fn reach(tx: &mut TenantTx) -> Result<Reach, DbError> {
    checkpoints::reach(tx, Pipeline::ReadModels, 0).await
}

/// The known state of one aggregate.
struct Known<A> {
    /// The time of the last query that was answered.
    asked: Option<Instant>,
    /// The end of its history then.
    end: u64,
    /// The state, as far as the history was read: to its message `seq`, which counts as all of it up to `read_to`.
    state: Arc<A>,
    seq: u64,
    read_to: u64,
}

impl<A: Default> Default for Known<A> {
    fn default() -> Self {
        Self { asked: None, end: 0, state: Arc::default(), seq: 0, read_to: 0 }
    }
}

impl<A> Known<A> {
    /// Whether the read models have all of the history. An event that could not be applied is behind the checkpoint, and in
    /// no row.
    fn is_in(&self, read_models: Option<Reach>) -> bool {
        read_models.is_some_and(|reach| self.end <= reach.seq && reach.parked.is_none())
    }

    /// Returns the state, or none when read models that are at `reach` have all of it. Fails with `error` if the history
    /// was not read to its known end.
    fn judged(&self, reach: Option<Reach>, error: impl FnOnce() -> AuthError) -> Result<Option<Arc<A>>, AuthError> {
        if self.is_in(reach) {
            return Ok(None);
        }
        if self.asked.is_some() && self.read_to >= self.end { Ok(Some(Arc::clone(&self.state))) } else { Err(error()) }
    }
}

/// The shards that do not answer, each with the reason. They are asked in the background until they do, so that callers do
/// not wait for it.
#[derive(Default)]
struct Unanswered(DashMap<Shard, Cause>);

impl Unanswered {
    fn note(this: &Arc<Self>, log: &Log, shard: Shard, reason: &Cause) {
        let Entry::Vacant(entry) = this.0.entry(shard) else { return };
        entry.insert(Cause::clone(reason));
        tracing::warn!(%shard, reason = %Chain(reason), "the log does not answer: rights are those that are known until it does");
        tokio::spawn(Self::retry(Arc::downgrade(this), log.clone(), shard));
    }

    async fn retry(this: Weak<Self>, log: Log, shard: Shard) {
        while this.strong_count() > 0 {
            sleep(RETRY).await;
            if let Ok(Ok(_)) = timeout(TIMEOUT, log.shard_state(shard)).await {
                tracing::info!(%shard, "the log answers again");
                break;
            }
        }
        if let Some(this) = this.upgrade() {
            this.0.remove(&shard);
        }
    }
}

type AggregateCache<A> = OrgCache<AggregateId, Arc<Mutex<Known<A>>>>;

/// The decisions about rights. One per process.
pub(super) struct Decided {
    log: Log,
    unanswered: Arc<Unanswered>,
    organizations: AggregateCache<Organization>,
    rosters: AggregateCache<Members>,
    roles: AggregateCache<CustomRoles>,
    keys: AggregateCache<ApiKey>,
    connections: AggregateCache<Connections>,
}

impl Decided {
    /// Reads from `log`.
    pub(super) fn new(log: Log) -> Self {
        let (organizations, rosters, roles) = (OrgCache::new(KEPT), OrgCache::new(KEPT), OrgCache::new(KEPT));
        let (keys, connections) = (OrgCache::new(KEPT), OrgCache::new(KEPT));
        Self { log, unanswered: Arc::default(), organizations, rosters, roles, keys, connections }
    }

    /// The entries at the moment, by organization.
    pub(super) fn caches(&self) -> [CacheView; 5] {
        const KEY: &str = "org/aggregate";
        [
            CacheView::of("decided/organizations", KEY, &self.organizations),
            CacheView::of("decided/members", KEY, &self.rosters),
            CacheView::of("decided/roles", KEY, &self.roles),
            CacheView::of("decided/api_keys", KEY, &self.keys),
            CacheView::of("decided/connections", KEY, &self.connections),
        ]
    }

    /// The organization, if the read models lack something of it.
    pub(super) async fn organization(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Organization>>, AuthError> {
        self.newer(&self.organizations, org, AggregateId::Organization(org), Some(reach)).await
    }

    /// Returns its members, likewise.
    pub(super) async fn roster(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Members>>, AuthError> {
        self.newer(&self.rosters, org, AggregateId::Member(org), Some(reach)).await
    }

    /// Returns its custom roles, likewise.
    pub(super) async fn roles(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<CustomRoles>>, AuthError> {
        self.newer(&self.roles, org, AggregateId::Role(org), Some(reach)).await
    }

    /// Returns its connections to issuers, likewise.
    pub(super) async fn connections(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Connections>>, AuthError> {
        self.newer(&self.connections, org, AggregateId::SsoConnection(org), Some(reach)).await
    }

    /// Returns a key, likewise; in any case without `reach`.
    pub(super) async fn key(
        &self,
        org: OrgId,
        id: KeyId,
        reach: Option<Reach>,
    ) -> Result<Option<Arc<ApiKey>>, AuthError> {
        self.newer(&self.keys, org, AggregateId::ApiKey(id), reach).await
    }

    /// Whether the break-glass grants of `org` were closed after the read models' position. Queried each time: an operator's
    /// access is never cached. If there are more access events since than the search reads, the grant counts as closed.
    pub(super) async fn is_break_glass_closed(&self, org: OrgId, reach: Reach) -> Result<bool, AuthError> {
        let Some(placement) = self.log.placement(org).await? else {
            return Ok(false);
        };
        let access = AggregateId::Access(org);
        let end = self.log.end_of_history(&placement, &access).await?;
        let mut after = reach.seq;
        for _ in 0..PARTS {
            if after >= end {
                return Ok(false);
            }
            let facts = self.log.facts(&placement, &access, after).await?;
            let mut events = facts.commits.iter().flat_map(|stored| &stored.commit.events);
            if events.any(|opened| matches!(opened.event, Event::Access(AccessEvent::BreakGlassClosed(_)))) {
                return Ok(true);
            }
            after = facts.last;
        }
        Ok(after < end)
    }

    /// Returns the aggregate as the log has it, unless `reach` has all of it.
    async fn newer<A: Aggregate>(
        &self,
        cache: &AggregateCache<A>,
        org: OrgId,
        aggregate: AggregateId,
        reach: Option<Reach>,
    ) -> Result<Option<Arc<A>>, AuthError> {
        let placement = match self.log.placement(org).await {
            Ok(Some(placement)) => placement,
            // About an organization that is not in the log, nothing was decided.
            Ok(None) => return Ok(None),
            Err(StreamError::Unavailable { .. }) if reach.is_some_and(|reach| reach.parked.is_none()) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let known = cache.get_or_insert_with(&Scoped::new(org, aggregate.clone()), || {
            Ok::<_, std::convert::Infallible>(Arc::default())
        });
        let Ok(known) = known;
        // Concurrent callers share one query, and one read.
        let mut known = known.lock().await;
        match self.read(&mut known, &placement, &aggregate, reach).await {
            Ok(()) => known.judged(reach, || AuthError::Unavailable(cause("the history ends before its end"))),
            Err(error @ StreamError::Unavailable { .. }) => known.judged(reach, || error.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the end of the history, as it was at most `LOOK` ago, and what the read models lack of it.
    async fn read<A: Aggregate>(
        &self,
        known: &mut Known<A>,
        placement: &Placement,
        aggregate: &AggregateId,
        reach: Option<Reach>,
    ) -> Result<(), StreamError> {
        const ACTION: &str = "ask what was decided";
        if known.asked.is_none_or(|asked| asked.elapsed() >= LOOK) {
            if let Some(reason) = self.unanswered.0.get(&placement.shard) {
                return Err(StreamError::Unavailable { action: ACTION, reason: Cause::clone(&reason) });
            }
            let asked = Instant::now();
            let end = if self.log.is_connected() {
                let late = |_| StreamError::Unavailable { action: ACTION, reason: cause("no answer in time") };
                timeout(TIMEOUT, self.log.end_of_history(placement, aggregate)).await.map_err(late).flatten()
            } else {
                Err(StreamError::Unavailable { action: ACTION, reason: cause("there is no connection") })
            };
            if let Err(StreamError::Unavailable { reason, .. }) = &end {
                Unanswered::note(&self.unanswered, &self.log, placement.shard, reason);
            }
            known.end = end?;
            known.asked = Some(asked);
        }
        if known.is_in(reach) {
            return Ok(());
        }
        while known.read_to < known.end {
            let history = self.log.load(placement, aggregate, known.seq, Freshness::Leader).await?;
            let state = Arc::make_mut(&mut known.state);
            for stored in &history.commits {
                for opened in &stored.commit.events {
                    let place =
                        Place { seq: stored.seq, actor: &opened.header.actor, recorded_at: opened.header.recorded_at };
                    if let Some(event) = A::event_of(&opened.event) {
                        state.apply_at(event, place);
                    }
                }
            }
            known.seq = history.last;
            // Messages at the end that are not authentic are no part of it.
            known.read_to = if history.ended { known.end.max(history.last) } else { history.last };
        }
        Ok(())
    }
}
