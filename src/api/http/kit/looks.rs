//! What somebody may, looked at again while they are being answered: all answers to one credential in one organization share
//! one look, which is repeated while any of them is under way. A thousand readers who wait cost what one does.

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

/// How often it is looked again. What is known of credentials and rights is up to half a second old, so with this it stays within
/// a second, however far behind the read models are.
pub const CHECK: Duration = Duration::from_millis(250);

/// Looks at the same time, however many credentials there are: they take that much of what reads have, and no more.
const MAX_CONCURRENCY: usize = 4;

/// Somebody in an organization, as they were found.
#[derive(Debug, Clone)]
pub struct Authority {
    /// What they may there.
    pub access: Access,
    /// Of their session, if that is what they came with.
    pub epoch: Option<u64>,
}

/// One look.
#[derive(Debug, Clone)]
pub struct Look {
    /// Who was let in later is told nothing by it.
    pub began: Instant,
    /// When it was known.
    pub ended: Instant,
    /// What was found; [`AuthError::Unavailable`] is nothing.
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

/// The looks that are repeated at the moment: no more than there are answers under way. One per process.
pub struct Looks {
    auth: Arc<Authenticator>,
    turns: Semaphore,
    followed: Mutex<HashMap<Whose, watch::Sender<Last>>>,
}

impl Looks {
    /// Nobody is being answered yet.
    pub fn new(auth: Arc<Authenticator>) -> Arc<Self> {
        Arc::new(Self { auth, turns: Semaphore::new(MAX_CONCURRENCY), followed: Mutex::default() })
    }

    /// What is found of this credential in `org` from now on, for as long as the receiver or another one is kept. The last is
    /// that it may not be there any more.
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
            // Who comes from here on begins anew: they were let in since.
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

    /// Whether the looks end here: nobody is being answered any more, or nobody may be.
    fn forget(&self, whose: &Whose, is_over: bool, sender: &watch::Sender<Last>) -> bool {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = is_over || sender.receiver_count() == 0;
        if ends {
            followed.remove(whose);
        }
        ends
    }
}
