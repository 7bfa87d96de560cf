//! Rights in the log that the read models lack so far. The read models can be far behind, by a backlog that the holder of a
//! key makes on purpose, so their answer about a right is valid only as far as the log has nothing newer about it.
//!
//! For each aggregate that a right depends on, the end of its history is queried: once in a tenth of a second, shared by all
//! callers. If the read models have applied it, they are current, and no more is needed. If not, the history is read and
//! cached, and each change of it is read once. A log that does not answer vouches for nothing: no request proceeds on
//! earlier rights.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_domain::{
    Aggregate, Place, api_key::ApiKey, member::Members, organization::Organization, role::CustomRoles,
    sso_connection::Connections,
};
use orgstream_events::{AccessEvent, AggregateId, Event, KeyId, OrgId, Pipeline};
use orgstream_projections::{
    DbError, TenantTx,
    checkpoints::{self, Reach},
};
use orgstream_stream::{Freshness, Log, Placement, StreamError};
use tokio::{sync::Mutex, time::timeout};

use super::AuthError;
use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// The TTL of the end of a history.
const LOOK: Duration = Duration::from_millis(100);
/// The timeout of that query.
const TIMEOUT: Duration = Duration::from_secs(5);
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
    /// The end of its history at the last query, or the reason why that failed.
    end: Option<(Instant, Result<u64, String>)>,
    /// The state, as far as the history was read.
    state: Arc<A>,
    seq: u64,
}

impl<A: Default> Default for Known<A> {
    fn default() -> Self {
        Self { end: None, state: Arc::default(), seq: 0 }
    }
}

type AggregateCache<A> = OrgCache<AggregateId, Arc<Mutex<Known<A>>>>;

/// The decisions about rights. One per process.
pub(super) struct Decided {
    log: Log,
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
        Self { log, organizations, rosters, roles, keys: OrgCache::new(KEPT), connections: OrgCache::new(KEPT) }
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
        let Some(placement) = self.log.placement(org).await.map_err(|error| unanswered(&error))? else {
            return Ok(false);
        };
        let access = AggregateId::Access(org);
        let end = self.log.end_of_history(&placement, &access).await.map_err(|error| unanswered(&error))?;
        let mut after = reach.seq;
        for _ in 0..PARTS {
            if after >= end {
                return Ok(false);
            }
            let facts = self.log.facts(&placement, &access, after).await.map_err(|error| unanswered(&error))?;
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
        // About an organization that is not in the log, nothing was decided.
        let Some(placement) = self.log.placement(org).await.map_err(|error| unanswered(&error))? else {
            return Ok(None);
        };
        let known = cache.get_or_insert_with(&Scoped::new(org, aggregate.clone()), || {
            Ok::<_, std::convert::Infallible>(Arc::default())
        });
        let Ok(known) = known;
        // Concurrent callers share one query, and one read.
        let mut known = known.lock().await;
        let end = self.end(&mut known, &placement, &aggregate).await?;
        // An event that could not be applied is behind the checkpoint, and in no row.
        if reach.is_some_and(|reach| end <= reach.seq && reach.parked.is_none()) {
            return Ok(None);
        }
        while known.seq < end {
            let history = self.log.load(&placement, &aggregate, known.seq, Freshness::Leader);
            let history = history.await.map_err(|error| unanswered(&error))?;
            let state = Arc::make_mut(&mut known.state);
            for stored in &history.commits {
                for opened in &stored.commit.events {
                    let place = Place { seq: stored.seq, actor: &opened.header.actor };
                    if let Some(event) = A::event_of(&opened.event) {
                        state.apply_at(event, place);
                    }
                }
            }
            known.seq = history.last;
            if history.ended {
                break;
            }
        }
        Ok(Some(Arc::clone(&known.state)))
    }

    /// Returns the end of the history, as it was at most `LOOK` ago. A log that does not answer is cached, too: callers
    /// that have waited meanwhile get the same error.
    async fn end<A>(
        &self,
        known: &mut Known<A>,
        placement: &Placement,
        aggregate: &AggregateId,
    ) -> Result<u64, AuthError> {
        if let Some((at, end)) = &known.end
            && at.elapsed() < LOOK
        {
            return end.clone().map_err(AuthError::Unavailable);
        }
        let asked = Instant::now();
        let end = match timeout(TIMEOUT, self.log.end_of_history(placement, aggregate)).await {
            Ok(Ok(end)) => Ok(end),
            Ok(Err(error)) => Err(unanswered_text(&error)),
            Err(_) => Err("the event log does not answer in time".to_owned()),
        };
        // An end dates from before the query; a missing answer, from now.
        let at = if end.is_ok() { asked } else { Instant::now() };
        known.end = Some((at, end.clone()));
        end.map_err(AuthError::Unavailable)
    }
}

fn unanswered(error: &StreamError) -> AuthError {
    AuthError::Unavailable(unanswered_text(error))
}

fn unanswered_text(error: &StreamError) -> String {
    format!("the event log does not say what was decided: {error}")
}
