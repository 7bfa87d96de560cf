//! Sessions: their lifetime, their cache, and the one organization that each acts in.
//!
//! A session is a row that any process may change: one switches it, another ends it. So the cache has a TTL of half a
//! second, and a change in this process updates this process's cache at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_domain::credentials::{
    key::Pepper,
    session::{SessionToken, SessionTokenError},
};
use orgstream_events::{Fingerprint, LoginMethod, OrgId, SessionId, UserId, cause};
use orgstream_projections::{
    Database,
    identity::{NewSession, Session},
};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use super::AuthError;
use crate::clock::now;

/// The TTL of a database answer. A revocation or a switch in another process is noticed within this.
const CACHE_TTL: Duration = Duration::from_millis(500);
const CACHE_CAPACITY: usize = 100_000;
/// The granularity of a session's last use.
const TOUCH: Duration = Duration::from_mins(1);
/// The maximum number of listed sessions.
const LISTED: u16 = 100;

/// The lifetime of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Without use.
    pub idle: Duration,
    /// In total.
    pub longest: Duration,
    /// The maximum number per person.
    pub most: u32,
}

/// The properties of a new session.
#[derive(Debug, Clone)]
pub struct Start {
    /// The person.
    pub user: UserId,
    /// How the person was authenticated.
    pub method: LoginMethod,
    /// Whether that took a second factor.
    pub second_factor: bool,
    /// The organization that it acts in initially.
    pub active_org: OrgId,
    /// The client's address.
    pub ip: Option<String>,
    /// The client's user agent.
    pub user_agent: Option<String>,
}

/// The session of a request, with the organization that it acts in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveSession {
    /// Its id.
    pub id: SessionId,
    /// The one organization that it acts in.
    pub org: Option<OrgId>,
    /// The number of switches so far.
    pub epoch: u64,
    pub(super) hash: Fingerprint,
}

impl ActiveSession {
    /// Returns the session as it was in this organization, to identify the actor there. It gives no access: a session's
    /// rights are looked up by its token.
    pub fn acting_in(&self, org: OrgId) -> Self {
        Self { org: Some(org), ..self.clone() }
    }
}

impl From<&Session> for ActiveSession {
    fn from(session: &Session) -> Self {
        Self { id: session.id, org: session.active_org, epoch: session.epoch, hash: session.token_hash }
    }
}

struct Remembered {
    session: Arc<Session>,
    at: Instant,
}

/// All sessions. One per process.
pub struct Sessions {
    db: Database,
    pepper: Pepper,
    lifetime: Lifetime,
    cache: Cache<[u8; 32], Arc<Remembered>>,
}

impl Sessions {
    pub(super) fn new(db: Database, pepper: Pepper, lifetime: Lifetime) -> Self {
        Self { db, pepper, lifetime, cache: Cache::new(CACHE_CAPACITY) }
    }

    /// Returns the lifetime.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Creates a session. The token is shown to its owner and nowhere else.
    pub async fn start(&self, start: &Start) -> Result<(SessionToken, Arc<Session>), AuthError> {
        let token = SessionToken::generate(rand::random());
        let hash = token.hash(&self.pepper);
        let new = NewSession {
            id: SessionId::fresh(now().unix_ms(), rand::random()),
            user: start.user,
            token_hash: &hash,
            method: &start.method,
            second_factor: start.second_factor,
            active_org: start.active_org,
            idle: self.lifetime.idle,
            longest: self.lifetime.longest,
            most: self.lifetime.most,
            ip: start.ip.as_deref(),
            user_agent: start.user_agent.as_deref(),
        };
        if !self.db.start_session(&new).await? {
            return Err(AuthError::TooManySessions { most: self.lifetime.most });
        }
        Ok((token, self.load(&hash).await?))
    }

    /// Returns the session of a token, as it was at most half a second ago.
    pub(super) async fn of_token(&self, text: &str) -> Result<Arc<Session>, AuthError> {
        let token: SessionToken =
            text.parse().map_err(|error: SessionTokenError| AuthError::Unauthenticated(cause(error)))?;
        self.of_hash(&token.hash(&self.pepper)).await
    }

    async fn of_hash(&self, hash: &Fingerprint) -> Result<Arc<Session>, AuthError> {
        if let Some(remembered) = self.cache.get(&hash.0)
            && remembered.at.elapsed() < CACHE_TTL
        {
            return Ok(Arc::clone(&remembered.session));
        }
        self.load(hash).await
    }

    /// Loads the session from the database.
    async fn load(&self, hash: &Fingerprint) -> Result<Arc<Session>, AuthError> {
        // Taken before the query: changes meanwhile may or may not be in the answer.
        let at = Instant::now();
        let Some(session) = self.db.session(hash).await? else {
            self.cache.remove(&hash.0);
            return Err(AuthError::Unauthenticated(cause("this session has ended: sign in again")));
        };
        if now().unix_ms() - session.last_seen_at.unix_ms() > TOUCH.as_millis() as i64 {
            self.db.touch_session(session.id, self.lifetime.idle, TOUCH).await?;
        }
        Ok(self.remember(session, at))
    }

    /// Caches it, unless a later switch is known already.
    fn remember(&self, session: Session, at: Instant) -> Arc<Session> {
        if let Some(known) = self.cache.get(&session.token_hash.0)
            && known.session.epoch > session.epoch
        {
            return Arc::clone(&known.session);
        }
        let session = Arc::new(session);
        self.cache.insert(session.token_hash.0, Arc::new(Remembered { session: Arc::clone(&session), at }));
        session
    }

    /// Returns the sessions of a person that have not ended, newest first; at most a hundred.
    pub async fn list(&self, user: UserId) -> Result<Vec<Session>, AuthError> {
        Ok(self.db.sessions_of(user, LISTED).await?)
    }

    /// Ends a session of this person's; returns false when there is none.
    pub async fn revoke(&self, user: UserId, id: SessionId) -> Result<bool, AuthError> {
        let hash = self.db.revoke_session(user, id).await?;
        if let Some(hash) = &hash {
            self.cache.remove(&hash.0);
        }
        Ok(hash.is_some())
    }

    /// Switches the session to `org`, where the person is a member; returns the session after that.
    pub(super) async fn switch(&self, session: &ActiveSession, org: OrgId) -> Result<Arc<Session>, AuthError> {
        let ended = || AuthError::Unauthenticated(cause("this session has ended: sign in again"));
        let epoch = self.db.switch_session(session.id, org).await?.ok_or_else(ended)?;
        let at = Instant::now();
        let before = self.of_hash(&session.hash).await?;
        if before.epoch >= epoch {
            return Ok(before);
        }
        Ok(self.remember(Session { active_org: Some(org), epoch, ..Session::clone(&before) }, at))
    }

    /// Returns the whole session, for its owner.
    pub async fn show(&self, session: &ActiveSession) -> Result<Arc<Session>, AuthError> {
        self.of_hash(&session.hash).await
    }

    /// Returns the current session, where `session` is its state when the request came.
    pub async fn now(&self, session: &ActiveSession) -> Result<ActiveSession, AuthError> {
        self.of_hash(&session.hash).await.map(|session| ActiveSession::from(&*session))
    }

    /// Refuses a session that has switched or ended since, as far as this process knows: by changes in this process.
    pub async fn unchanged(&self, session: &ActiveSession) -> Result<(), AuthError> {
        let epoch = match self.cache.get(&session.hash.0) {
            Some(known) => known.session.epoch,
            None => self.load(&session.hash).await?.epoch,
        };
        if epoch == session.epoch { Ok(()) } else { Err(AuthError::ActiveOrgChanged { epoch }) }
    }

    /// Whether the session has switched since. A failed query counts as no change.
    pub async fn has_switched(&self, session: &ActiveSession) -> bool {
        self.now(session).await.is_ok_and(|now| now.epoch != session.epoch)
    }

    /// Refuses a caller that expects another epoch than the session's. A caller ahead of the cache was answered by another
    /// process, so the database is queried.
    pub async fn expect_epoch(&self, session: &ActiveSession, epoch: u64) -> Result<ActiveSession, AuthError> {
        let mut current = session.clone();
        if epoch > current.epoch {
            current = ActiveSession::from(&*self.load(&session.hash).await?);
        }
        if epoch == current.epoch { Ok(current) } else { Err(AuthError::ActiveOrgChanged { epoch: current.epoch }) }
    }
}
