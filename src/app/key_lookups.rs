//! Lookups of idempotency keys in the read models: those of an organization that come while one is under way share the next, so
//! that a busy organization costs the database one query at a time, however many callers it has.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orgstream_events::{CommandId, Fingerprint, OrgId};
use orgstream_projections::{BoundOrg, Database, DbError, idempotency};
use tokio::sync::oneshot;

use super::problem::Problem;

/// Keys in one query, at most, unless one request has more.
const TOGETHER: usize = 2_000;

/// The commands that were carried out, with the hash of each.
type Done = Arc<HashMap<CommandId, Fingerprint>>;

/// The keys of a request, and where the answer goes. There are no more of them than requests under way.
struct Lookup {
    commands: Vec<CommandId>,
    answer: oneshot::Sender<Result<Done, Problem>>,
}

/// Looks up keys. One per process.
#[derive(Clone)]
pub(super) struct KeyLookups {
    db: Database,
    /// Each is served by one task, which removes it when it is empty.
    waiting: Arc<Mutex<HashMap<OrgId, VecDeque<Lookup>>>>,
}

/// Removes the lookups of a task that ends in a panic, so that those who wait are told.
struct Guard<'a> {
    lookups: &'a KeyLookups,
    org: OrgId,
    has_ended: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.lookups.waiting().remove(&self.org);
        }
    }
}

impl KeyLookups {
    pub(super) fn new(db: Database) -> Self {
        Self { db, waiting: Arc::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<OrgId, VecDeque<Lookup>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns those of `commands` that were carried out, and perhaps others.
    pub(super) async fn find(&self, org: BoundOrg, commands: Vec<CommandId>) -> Result<Done, Problem> {
        let (answer, answered) = oneshot::channel();
        if self.enter(org.org(), Lookup { commands, answer }) {
            tokio::spawn(self.clone().serve(org));
        }
        answered.await.map_err(|_| Problem::internal("lookups of idempotency keys have stopped"))?
    }

    /// Adds a lookup. Returns whether nobody serves those of its organization yet.
    fn enter(&self, org: OrgId, lookup: Lookup) -> bool {
        match self.waiting().entry(org) {
            Entry::Vacant(place) => {
                place.insert(VecDeque::from([lookup]));
                true
            }
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push_back(lookup);
                false
            }
        }
    }

    /// Takes the next lookups; none when there are no more.
    fn next(&self, org: OrgId) -> Option<Vec<Lookup>> {
        let mut waiting = self.waiting();
        let lookups = waiting.get_mut(&org)?;
        // Nothing is looked up for callers who went away.
        lookups.retain(|lookup| !lookup.answer.is_closed());
        let mut keys = 0;
        let fits = |lookup: &&Lookup| {
            keys += lookup.commands.len();
            keys <= TOGETHER
        };
        let count = lookups.iter().take_while(fits).count().max(1).min(lookups.len());
        if count == 0 {
            waiting.remove(&org);
            return None;
        }
        Some(lookups.drain(..count).collect())
    }

    async fn serve(self, org: BoundOrg) {
        let mut guard = Guard { lookups: &self, org: org.org(), has_ended: false };
        while let Some(lookups) = self.next(org.org()) {
            let commands: Vec<CommandId> = lookups.iter().flat_map(|lookup| lookup.commands.iter().copied()).collect();
            let found = self.look_up(org, &commands).await.map(Arc::new).map_err(Problem::from);
            for lookup in lookups {
                // The caller may have gone away.
                let _ = lookup.answer.send(found.clone());
            }
        }
        guard.has_ended = true;
    }

    async fn look_up(&self, org: BoundOrg, commands: &[CommandId]) -> Result<HashMap<CommandId, Fingerprint>, DbError> {
        let done = idempotency::find(&mut self.db.read(org).await?, commands).await?;
        Ok(done.into_iter().map(|done| (done.command_id, done.fingerprint)).collect())
    }
}
