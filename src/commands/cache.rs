//! A process's cache of aggregates, so that most commands need not read the stream before they append to it.
//!
//! A cached aggregate may be stale; see `CommandHandler::execute` for why that is safe.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use orgstream_domain::{
    Aggregate, Place, account::Account, api_key::ApiKey, catalog_choices::CatalogChoices, catalog_item::CatalogItem,
    deletion::CompletedDeletion, domain::Domain, invitation::Invitation, invoice::Invoices, kind::Kind,
    member::Members, organization::Organization, parking::Parking, plan::Plan, quota::Quota, record::Record,
    record_log::RecordLog, role::CustomRoles, sso_connection::Connections, unique_value::UniqueValue,
};
use orgstream_events::{ActorType, AggregateId, CommandId, Event, Fingerprint, OpenedCommand};
use orgstream_stream::SNAPSHOT_EVERY;
use quick_cache::sync::{EntryAction, EntryResult};
use tokio::time::Instant;

use super::command_index::CommandIndex;
use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// The part of its events by which the pauses between the snapshots of an aggregate grow.
const GROWTH: u64 = 64;

/// An aggregate as it was read from the stream.
#[derive(Debug, Clone)]
pub(super) struct Loaded<A> {
    pub(super) state: A,
    /// The number of events so far.
    pub(super) version: u64,
    /// The stream sequence of the last commit; 0 when there is none.
    pub(super) seq: u64,
    /// The places of the commands with an idempotency key; in some aggregates of all.
    pub(super) commands: CommandIndex,
    pub(super) notes: Notes,
}

/// What is noted of an aggregate without a change of it, so that a long one is not copied for that.
#[derive(Debug)]
pub(super) struct Notes {
    read_at: Mutex<Instant>,
    /// When somebody last took it upon them to read it again.
    renewed_at: Mutex<Instant>,
    /// The version up to which there is a snapshot, or one is being made.
    kept: AtomicU64,
}

/// A command that was carried out.
#[derive(Debug, Clone)]
pub(super) struct PriorResult {
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) seq: u64,
    pub(super) version: u64,
    pub(super) events: Vec<String>,
    /// The sender, who may be given its secret again, if it has one.
    pub(super) by: (ActorType, String),
}

impl PriorResult {
    /// Returns the answer of a command whose commit is at `seq`.
    pub(super) fn of(seq: u64, command: &OpenedCommand<'_>) -> Self {
        let OpenedCommand { fingerprint, events, .. } = command;
        let actor = events.first().map(|first| &first.header.actor);
        Self {
            fingerprint: *fingerprint,
            seq,
            version: events.last().map_or(0, |last| last.header.aggregate.version),
            events: events.iter().map(|opened| opened.event.wire().0.to_owned()).collect(),
            by: actor.map_or((ActorType::System, String::new()), |actor| (actor.actor_type, actor.id.clone())),
        }
    }
}

impl Default for Notes {
    fn default() -> Self {
        let now = Instant::now();
        Self { read_at: Mutex::new(now), renewed_at: Mutex::new(now), kept: AtomicU64::new(0) }
    }
}

impl Clone for Notes {
    fn clone(&self) -> Self {
        let read_at = self.read_at();
        let kept = AtomicU64::new(self.kept.load(Ordering::Relaxed));
        Self { read_at: Mutex::new(read_at), renewed_at: Mutex::new(read_at), kept }
    }
}

impl Notes {
    /// Returns the notes of an aggregate that was read from a snapshot of this version.
    pub(super) fn of_snapshot(version: u64) -> Self {
        Self { kept: AtomicU64::new(version), ..Self::default() }
    }

    /// Returns when the aggregate was read last.
    pub(super) fn read_at(&self) -> Instant {
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is to be read again before it is `ttl` old. True for one caller in half of that time, so that many callers do
    /// not all read it at once.
    pub(super) fn is_to_be_renewed(&self, ttl: Duration) -> bool {
        let since = self.read_at();
        let mut renewed_at = self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = since.max(*renewed_at).elapsed() >= ttl / 2;
        if is_due {
            *renewed_at = Instant::now();
        }
        is_due
    }

    /// Notes that it was read at this time.
    pub(super) fn read(&self, at: Instant) {
        let mut read_at = self.read_at.lock().unwrap_or_else(PoisonError::into_inner);
        *read_at = at.max(*read_at);
    }
}

impl<A: Default> Default for Loaded<A> {
    fn default() -> Self {
        let (commands, notes) = (CommandIndex::default(), Notes::default());
        Self { state: A::default(), version: 0, seq: 0, commands, notes }
    }
}

impl<A> Loaded<A> {
    /// Whether it is time for a snapshot. True for one caller, who makes it.
    ///
    /// The larger an aggregate may be, the more events are between two: what is written for an event stays the same.
    pub(super) fn takes_snapshot(&self) -> bool {
        let kept = self.notes.kept.load(Ordering::Relaxed);
        let between = SNAPSHOT_EVERY.max(self.version / GROWTH);
        self.version.saturating_sub(kept) >= between
            && self.notes.kept.compare_exchange(kept, self.version, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl<A: Aggregate> Loaded<A> {
    /// Applies one commit and returns the answer of its command.
    pub(super) fn fold<'a>(
        &mut self,
        command: CommandId,
        fingerprint: Option<Fingerprint>,
        place: Place<'_>,
        events: impl Iterator<Item = &'a Event>,
    ) -> PriorResult {
        let mut names = Vec::new();
        for event in events {
            self.version += 1;
            names.push(event.wire().0.to_owned());
            if let Some(event) = A::event_of(event) {
                self.state.apply_at(event, place);
            }
        }
        self.seq = place.seq;
        let by = (place.actor.actor_type, place.actor.id.clone());
        let earlier = PriorResult { fingerprint, seq: place.seq, version: self.version, events: names, by };
        if fingerprint.is_some() || A::KEEPS_EVERY_COMMAND {
            self.commands.insert(command, place.seq);
        }
        earlier
    }
}

type AggregateCache<A> = OrgCache<AggregateId, Arc<Loaded<A>>>;

/// Applies commits to the cached aggregate `loaded`: in place, so that an aggregate with a long history is copied only while
/// it is in use. Returns it.
pub(super) fn advance<A: Aggregate, T>(
    cache: &AggregateCache<A>,
    key: &Scoped<AggregateId>,
    loaded: Arc<Loaded<A>>,
    fold: impl FnOnce(&mut Loaded<A>) -> T,
) -> Option<(Arc<Loaded<A>>, T)> {
    let mut mine = Some((loaded, fold));
    let found = cache.entry(key, None, |_, held| {
        let Some((mut loaded, fold)) = mine.take() else { return EntryAction::Retain(None) };
        if Arc::ptr_eq(&loaded, held) {
            drop(loaded);
            let outcome = fold(Arc::make_mut(held));
            return EntryAction::Retain(Some((Arc::clone(held), outcome)));
        }
        let outcome = fold(Arc::make_mut(&mut loaded));
        // Another task may have read it again since, and found more events.
        if (held.seq, held.notes.read_at()) < (loaded.seq, loaded.notes.read_at()) {
            *held = Arc::clone(&loaded);
        }
        EntryAction::Retain(Some((loaded, outcome)))
    });
    if let EntryResult::Retained(taken_in) = found {
        return taken_in;
    }
    let (mut loaded, fold) = mine?;
    let outcome = fold(Arc::make_mut(&mut loaded));
    if let EntryResult::Vacant(place) = found {
        // At capacity, another aggregate is evicted.
        let _ = place.insert(Arc::clone(&loaded));
    }
    Some((loaded, outcome))
}

/// An aggregate that is cached, which is every one that commands are decided by.
pub(super) trait Cached: Aggregate<Command: Clone> {
    fn cache(caches: &Caches) -> &AggregateCache<Self>;
}

macro_rules! caches {
    ($($name:ident: $aggregate:ident, $capacity:literal;)*) => {
        /// A bounded cache for each kind of aggregate.
        pub(super) struct Caches {
            $($name: AggregateCache<$aggregate>,)*
        }

        impl Default for Caches {
            fn default() -> Self {
                Self { $($name: OrgCache::new($capacity),)* }
            }
        }

        impl Caches {
            /// The entries at the moment, by organization.
            pub(super) fn views(&self) -> Vec<CacheView> {
                vec![$(CacheView::of(concat!("commands/", stringify!($name)), "org/aggregate", &self.$name)),*]
            }
        }

        $(
            impl Cached for $aggregate {
                fn cache(caches: &Caches) -> &AggregateCache<Self> {
                    &caches.$name
                }
            }
        )*
    };
}

// Aggregates in memory, at most.
caches! {
    organizations: Organization, 20_000;
    members: Members, 2_000;
    invitations: Invitation, 10_000;
    roles: CustomRoles, 2_000;
    connections: Connections, 2_000;
    domains: Domain, 2_000;
    api_keys: ApiKey, 10_000;
    kinds: Kind, 4_000;
    records: Record, 100_000;
    record_logs: RecordLog, 2_000;
    unique_values: UniqueValue, 20_000;
    catalog_items: CatalogItem, 10_000;
    catalog_choices: CatalogChoices, 1_000;
    plans: Plan, 1_000;
    accounts: Account, 10_000;
    invoices: Invoices, 2_000;
    quotas: Quota, 10_000;
    deletions: CompletedDeletion, 1_000;
    parking: Parking, 1_000;
}

#[cfg(test)]
mod tests {
    use orgstream_events::{OrgId, RecordId};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_read_often_is_renewed_by_one_of_its_readers() {
        const TTL: Duration = Duration::from_secs(1);
        let notes = Notes::default();
        assert!(!notes.is_to_be_renewed(TTL));
        tokio::time::advance(TTL / 2).await;
        let renewing = (0..100).filter(|_| notes.is_to_be_renewed(TTL)).count();
        assert_eq!(renewing, 1);
        notes.read(Instant::now());
        assert!(!notes.is_to_be_renewed(TTL));
        // One who went away without reading it keeps nobody from doing so.
        tokio::time::advance(TTL / 2).await;
        assert!(notes.is_to_be_renewed(TTL) && !notes.is_to_be_renewed(TTL));
        tokio::time::advance(TTL / 2).await;
        assert!(notes.is_to_be_renewed(TTL));
    }

    #[test]
    fn what_nobody_else_holds_is_not_copied() {
        let cache: AggregateCache<Record> = OrgCache::new(10);
        let key = Scoped::new(OrgId::fresh(1, [1; 10]), AggregateId::Record(RecordId::fresh(1, [2; 10])));
        let held = || cache.get(&key).unwrap();
        let step = |loaded: Arc<Loaded<Record>>, seq: u64| {
            advance(&cache, &key, loaded, |loaded| {
                loaded.seq = seq;
            });
        };
        step(Arc::default(), 1);
        let place = Arc::as_ptr(&held());
        step(held(), 2);
        assert_eq!((held().seq, Arc::as_ptr(&held())), (2, place));
        // A reader's copy stays as it was.
        let looked_at = held();
        step(held(), 3);
        assert_eq!((looked_at.seq, held().seq), (2, 3));
        // A later and longer read stays.
        step(Arc::default(), 2);
        assert_eq!(held().seq, 3);
        step(Arc::default(), 4);
        assert_eq!(held().seq, 4);
    }
}
