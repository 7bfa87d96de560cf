//! Aggregates as the log has them, in a bounded cache, which is what commands are decided by.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::counter;
use orgstream_domain::Place;
use orgstream_events::{AggregateId, CommandId, Header, OrgId, cause};
use orgstream_stream::{Freshness, Log, Placement};
use tokio::time::Instant;

use super::{
    cache::{Cached, Caches, Loaded, PriorResult, advance},
    handler::CommandContext,
    request::{Accepted, CommandError},
    snapshots::{self, Snapshots},
};
use crate::tenant_cache::Scoped;

/// The TTL of a state that a command only reads: whether the org is suspended, what the kind's schema is.
const LOOK: Duration = Duration::from_secs(1);

/// Loads aggregates from the log.
pub(super) struct Aggregates {
    log: Log,
    caches: Caches,
    snapshots: Snapshots,
    /// The messages that were read to load aggregates.
    messages_read: AtomicU64,
}

impl Aggregates {
    pub(super) fn new(log: Log) -> Self {
        Self { log, caches: Caches::default(), snapshots: Snapshots::default(), messages_read: AtomicU64::new(0) }
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn caches_of(&self) -> &Caches {
        &self.caches
    }

    pub(super) fn messages_read(&self) -> u64 {
        self.messages_read.load(Ordering::Relaxed)
    }

    pub(super) async fn placement(&self, org: OrgId) -> Result<Placement, CommandError> {
        self.log.placement(org).await?.ok_or(CommandError::NoOrganization(org))
    }

    /// Returns the answer of an earlier success of the same command, if the aggregate's history has one.
    pub(super) async fn earlier<A: Cached>(
        &self,
        attempt: &CommandContext<'_>,
        placement: &Placement,
        aggregate: &AggregateId,
        loaded: &Loaded<A>,
    ) -> Result<Option<Accepted>, CommandError> {
        match self.prior(placement, aggregate, loaded, attempt.command_id).await? {
            Some(earlier) if earlier.fingerprint != attempt.fingerprint => Err(CommandError::KeyReused),
            // The same command of another sender is another command where the answer has a secret.
            Some(earlier) if attempt.request.command.answers_a_secret() && earlier.by != attempt.by() => {
                Err(CommandError::KeyReused)
            }
            Some(earlier) => Ok(Some(attempt.accepted(placement.org, aggregate, earlier, true))),
            None => Ok(None),
        }
    }

    /// Returns what the command led to, if the aggregate's history has it: as its commit says.
    pub(super) async fn prior<A: Cached>(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        loaded: &Loaded<A>,
        command: CommandId,
    ) -> Result<Option<PriorResult>, CommandError> {
        for seq in loaded.commands.find(command) {
            let stored = self.log.commit_at(placement, aggregate, seq).await?;
            if let Some(found) = stored.commit.commands().find(|found| found.command_id == command) {
                return Ok(Some(PriorResult::of(stored.seq, &found)));
            }
        }
        Ok(None)
    }

    /// Returns the aggregate as it was at most `LOOK` ago, for a command that only reads it.
    pub(super) async fn look<A: Cached>(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
    ) -> Result<Arc<Loaded<A>>, CommandError> {
        match A::cache(&self.caches).get(&Scoped::new(placement.org, aggregate.clone())) {
            Some(loaded) if loaded.notes.read_at().elapsed() < LOOK && !loaded.notes.is_to_be_renewed(LOOK) => {
                Ok(loaded)
            }
            _ => self.load::<A>(placement, aggregate, Freshness::Leader).await,
        }
    }

    /// Returns the aggregate as the stream has it, read on from its cached position.
    pub(super) async fn load<A: Cached>(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        freshness: Freshness,
    ) -> Result<Arc<Loaded<A>>, CommandError> {
        let key = Scoped::new(placement.org, aggregate.clone());
        let cache = A::cache(&self.caches);
        loop {
            let known = cache.get(&key);
            let mut is_known = known.is_some();
            let mut loaded = known.unwrap_or_default();
            let read_at = Instant::now();
            let mut history = match loaded.seq {
                0 => self.log.load_new(placement, aggregate, snapshots::shape::<A>(), freshness).await?,
                after => self.log.load(placement, aggregate, after, freshness).await?,
            };
            if let Some(snapshot) = history.snapshot.take() {
                match snapshots::read(&snapshot) {
                    Some(read) => (loaded, is_known) = (Arc::new(read), false),
                    None => history = self.log.load(placement, aggregate, 0, freshness).await?,
                }
            }
            if history.ended && history.last == 0 && !is_known {
                // What is not there takes no place of what is.
                return Ok(Arc::default());
            }
            self.messages_read.fetch_add(history.read, Ordering::Relaxed);
            counter!("orgstream_load_messages_total").increment(history.read);
            if is_known && history.ended && history.last == loaded.seq {
                loaded.notes.read(read_at);
                return Ok(loaded);
            }
            // Each part is cached, so that a retry after a timeout continues from there.
            let advanced = advance(cache, &key, loaded, |loaded| {
                for stored in history.commits {
                    for command in stored.commit.commands() {
                        let Some(first) = command.events.first() else { continue };
                        let Header { actor, recorded_at, .. } = &first.header;
                        let place = Place { seq: stored.seq, actor, recorded_at: *recorded_at };
                        let events = command.events.iter().map(|opened| &opened.event);
                        loaded.fold(command.command_id, command.fingerprint, place, events);
                    }
                }
                loaded.seq = history.last;
                loaded.notes.read(read_at);
            });
            let (loaded, ()) = advanced.ok_or_else(not_taken_in)?;
            if history.ended {
                self.snapshots.keep(&self.log, placement, aggregate, &loaded);
                return Ok(loaded);
            }
        }
    }

    /// Applies commits of this process to the cached aggregate.
    pub(super) fn advance<A: Cached, T>(
        &self,
        placement: &Placement,
        aggregate: &AggregateId,
        loaded: Arc<Loaded<A>>,
        fold: impl FnOnce(&mut Loaded<A>) -> T,
    ) -> Result<(Arc<Loaded<A>>, T), CommandError> {
        let key = Scoped::new(placement.org, aggregate.clone());
        let advanced = advance(A::cache(&self.caches), &key, loaded, fold);
        let (loaded, outcome) = advanced.ok_or_else(not_taken_in)?;
        self.snapshots.keep(&self.log, placement, aggregate, &loaded);
        Ok((loaded, outcome))
    }
}

fn not_taken_in() -> CommandError {
    CommandError::Internal(cause("a commit was not taken in"))
}

/// The log reports the command as stored, and the history lacks it: the effect is unknown to this process.
pub(super) fn unreadable_success() -> CommandError {
    CommandError::Unavailable(cause("an earlier try of the command is stored, and cannot be read here"))
}
