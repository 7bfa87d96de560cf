//! What the log says of rights that the read models do not know yet. They can be far behind it, by a backlog that the holder of
//! a key makes on purpose, so what they say of a right counts only as far as the log has nothing newer about it.
//!
//! Of each aggregate that a right hangs on it is asked where its history ends: one question in a tenth of a second, whoever
//! shares it. If the read models have applied that, they are right, and that is all. If not, the history is read and kept, and
//! each change of it is read once. A log that does not answer vouches for nothing: nobody goes on by what was right before.

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
use crate::tenant_cache::{OrgCache, Scoped};

/// How long it is believed where a history ends.
const LOOK: Duration = Duration::from_millis(100);
/// How long the log may take to say so.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How much is looked through for a break-glass grant that was closed, in reads.
const PARTS: usize = 8;
/// Of how many aggregates of each kind something is kept.
const KEPT: usize = 20_000;

/// How far the read models are with the org of `tx`, asked before a row that is to be judged by it.
pub(super) async fn reach(tx: &mut TenantTx) -> Result<Reach, DbError> {
    checkpoints::reach(tx, Pipeline::ReadModels, 0).await
}

/// What is known of one aggregate.
struct Known<A> {
    /// Where its history ended when that was last asked, or why it could not be said.
    end: Option<(Instant, Result<u64, String>)>,
    /// As far as it was read.
    state: Arc<A>,
    seq: u64,
}

impl<A: Default> Default for Known<A> {
    fn default() -> Self {
        Self { end: None, state: Arc::default(), seq: 0 }
    }
}

type AggregateCache<A> = OrgCache<AggregateId, Arc<Mutex<Known<A>>>>;

/// What was decided about rights. One per process.
pub(super) struct Decided {
    log: Log,
    organizations: AggregateCache<Organization>,
    rosters: AggregateCache<Members>,
    roles: AggregateCache<CustomRoles>,
    keys: AggregateCache<ApiKey>,
    connections: AggregateCache<Connections>,
}

impl Decided {
    /// As `log` has it.
    pub(super) fn new(log: Log) -> Self {
        let (organizations, rosters, roles) = (OrgCache::new(KEPT), OrgCache::new(KEPT), OrgCache::new(KEPT));
        Self { log, organizations, rosters, roles, keys: OrgCache::new(KEPT), connections: OrgCache::new(KEPT) }
    }

    /// The organization, if the read models lack something of it.
    pub(super) async fn organization(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Organization>>, AuthError> {
        self.newer(&self.organizations, org, AggregateId::Organization(org), Some(reach)).await
    }

    /// Its members, likewise.
    pub(super) async fn roster(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Members>>, AuthError> {
        self.newer(&self.rosters, org, AggregateId::Member(org), Some(reach)).await
    }

    /// The roles of its own, likewise.
    pub(super) async fn roles(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<CustomRoles>>, AuthError> {
        self.newer(&self.roles, org, AggregateId::Role(org), Some(reach)).await
    }

    /// Its connections to issuers, likewise.
    pub(super) async fn connections(&self, org: OrgId, reach: Reach) -> Result<Option<Arc<Connections>>, AuthError> {
        self.newer(&self.connections, org, AggregateId::SsoConnection(org), Some(reach)).await
    }

    /// A key, likewise; in any case without `reach`.
    pub(super) async fn key(
        &self,
        org: OrgId,
        id: KeyId,
        reach: Option<Reach>,
    ) -> Result<Option<Arc<ApiKey>>, AuthError> {
        self.newer(&self.keys, org, AggregateId::ApiKey(id), reach).await
    }

    /// Whether the break-glass grant was closed in `org` since the read models came as far as they are. Asked each time: nothing of an
    /// operator's look is remembered. With more facts in between than are looked through, it is.
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

    /// The aggregate as the log has it, unless `reach` has all of it.
    async fn newer<A: Aggregate>(
        &self,
        shelf: &AggregateCache<A>,
        org: OrgId,
        aggregate: AggregateId,
        reach: Option<Reach>,
    ) -> Result<Option<Arc<A>>, AuthError> {
        // Of what is nowhere in the log nothing was decided.
        let Some(placement) = self.log.placement(org).await.map_err(|error| unanswered(&error))? else {
            return Ok(None);
        };
        let known = shelf.get_or_insert_with(&Scoped::new(org, aggregate.clone()), || {
            Ok::<_, std::convert::Infallible>(Arc::default())
        });
        let Ok(known) = known;
        // Those who ask at the same time wait for one question, and for one reading.
        let mut known = known.lock().await;
        let end = self.end(&mut known, &placement, &aggregate).await?;
        // What could not be applied is behind the checkpoint, and in no row.
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

    /// Where the history ends, as it was at most a moment ago. That the log does not answer is remembered, too: whoever has
    /// waited for it meanwhile is told the same.
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
        // An end is from before it was asked for; that there was no answer is from now.
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
