//! Lookups of idempotency keys in the read models: those of an organization that come while one is under way share the next, so
//! that a busy organization costs the database one query at a time, however many callers it has.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use orgstream_events::{CommandId, Fingerprint};
use orgstream_projections::{BoundOrg, Database, DbError, idempotency};
use tokio::sync::oneshot;

use super::problem::Problem;
use crate::org_queues::{OrgQueues, Turn};

/// Keys in one query, at most, unless one request has more.
const TOGETHER: usize = 2_000;
/// Lookups of one organization that wait, at most.
const WAITING: usize = 10_000;

/// The commands that were carried out, with the hash of each.
type Done = Arc<HashMap<CommandId, Fingerprint>>;

/// The keys of a request, and where the answer goes.
struct Lookup {
    commands: Vec<CommandId>,
    answer: oneshot::Sender<Result<Done, Problem>>,
}

/// Looks up keys. One per process.
#[derive(Clone)]
pub(super) struct KeyLookups {
    db: Database,
    waiting: OrgQueues<Lookup>,
}

impl KeyLookups {
    pub(super) fn new(db: Database) -> Self {
        Self { db, waiting: OrgQueues::new(WAITING) }
    }

    /// Returns those of `commands` that were carried out, and perhaps others.
    pub(super) async fn find(&self, org: BoundOrg, commands: Vec<CommandId>) -> Result<Done, Problem> {
        let (answer, answered) = oneshot::channel();
        let entered = self.waiting.enter(org.org(), Lookup { commands, answer }).map_err(|_| Problem::overloaded())?;
        if let Some(turn) = entered {
            tokio::spawn(serve(self.db.clone(), org, turn));
        }
        answered.await.map_err(|_| Problem::internal("lookups of idempotency keys have stopped"))?
    }
}

async fn serve(db: Database, org: BoundOrg, mut turn: Turn<Lookup>) {
    // Nothing is looked up for callers who went away.
    while let Some(lookups) = turn.next(|lookup| !lookup.answer.is_closed(), in_one_query) {
        let commands: Vec<CommandId> = lookups.iter().flat_map(|lookup| lookup.commands.iter().copied()).collect();
        let found = look_up(&db, org, &commands).await.map(Arc::new).map_err(Problem::from);
        for lookup in lookups {
            // The caller may have gone away.
            let _ = lookup.answer.send(found.clone());
        }
    }
}

fn in_one_query(lookups: &VecDeque<Lookup>) -> usize {
    let mut keys = 0;
    let fits = |lookup: &&Lookup| {
        keys += lookup.commands.len();
        keys <= TOGETHER
    };
    lookups.iter().take_while(fits).count()
}

async fn look_up(
    db: &Database,
    org: BoundOrg,
    commands: &[CommandId],
) -> Result<HashMap<CommandId, Fingerprint>, DbError> {
    let done = idempotency::find(&mut db.read(org).await?, commands).await?;
    Ok(done.into_iter().map(|done| (done.command_id, done.fingerprint)).collect())
}
