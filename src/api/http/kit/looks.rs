//! Repeated authorization checks during answers: all answers to one credential in one organization share one check, which is
//! repeated while any of them is in flight. A thousand waiting readers cost what one does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orgstream_events::OrgId;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval},
};

use crate::auth::{Access, AuthError, Authenticator, authenticator::OrgName};

/// The interval of the checks. Cached credentials and rights are up to half a second old, so with this it stays within a
/// second, however far behind the read models are.
pub const CHECK: Duration = Duration::from_millis(250);

/// The maximum number of concurrent checks, however many credentials there are: they take that much of the read capacity,
/// and no more.
const MAX_CONCURRENCY: usize = 4;

/// A principal in an organization, as found by a check.
#[derive(Debug, Clone)]
pub struct Authority {
    /// The access there.
    pub access: Access,
    /// The epoch of the session, if there is one.
    pub epoch: Option<u64>,
}

/// The result of one check.
#[derive(Debug, Clone)]
pub struct Look {
    /// When the check started; it is not valid for callers admitted later.
    pub began: Instant,
    /// When its result was known.
    pub ended: Instant,
    /// The result; [`AuthError::Unavailable`] decides nothing.
    pub found: Result<Authority, AuthError>,
}

impl Look {
    fn is_the_end(&self) -> bool {
        self.found.as_ref().is_err_and(|error| !matches!(error, AuthError::Unavailable(_)))
    }
}

/// A credential in an organization: not itself, but its hash.
type Whose = (OrgId, [u8; 32]);
type Last = Option<Look>;

/// The running checks: no more than there are answers in flight. One per process.
pub struct Looks {
    auth: Arc<Authenticator>,
    turns: Semaphore,
    followed: Mutex<HashMap<Whose, watch::Sender<Last>>>,
}

impl Looks {
    /// Starts without checks.
    pub fn new(auth: Arc<Authenticator>) -> Arc<Self> {
        Arc::new(Self { auth, turns: Semaphore::new(MAX_CONCURRENCY), followed: Mutex::default() })
    }

    /// Subscribes to the results for this credential in `org` from now on, for as long as the receiver or another one is
    /// kept. A lost access is the last result.
    pub fn follow(self: &Arc<Self>, org: OrgId, authorization: &str) -> watch::Receiver<Last> {
        let whose = (org, Sha256::digest(authorization.as_bytes()).into());
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = followed.get(&whose) {
            return known.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        followed.insert(whose, sender.clone());
        tokio::spawn(Arc::clone(self).repeat(whose, authorization.to_owned(), sender));
        receiver
    }

    async fn repeat(self: Arc<Self>, whose: Whose, authorization: String, sender: watch::Sender<Last>) {
        let mut checks = interval(CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            checks.tick().await;
            let turn = self.turns.acquire().await;
            let began = Instant::now();
            let found = self.look(whose.0, &authorization).await;
            drop(turn);
            let look = Look { began, ended: Instant::now(), found };
            // Later callers start new checks: they were admitted since.
            let ends = self.forget(&whose, look.is_the_end(), &sender);
            sender.send_replace(Some(look));
            if ends {
                return;
            }
        }
    }

    async fn look(&self, org: OrgId, authorization: &str) -> Result<Authority, AuthError> {
        let name = OrgName::Id(org);
        let principal = self.auth.principal_at(Some(authorization), Some(&name)).await?;
        let access = self.auth.access(&principal, &name).await?;
        Ok(Authority { access, epoch: principal.session().map(|session| session.epoch) })
    }

    /// Whether the checks end here: there are no more answers, or the access was lost.
    fn forget(&self, whose: &Whose, is_over: bool, sender: &watch::Sender<Last>) -> bool {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = is_over || sender.receiver_count() == 0;
        if ends {
            followed.remove(whose);
        }
        ends
    }
}
