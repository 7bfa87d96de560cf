//! A process's cache of aggregates, so that most commands need not read the stream before they append to it.
//!
//! A cached aggregate may be stale; see `CommandHandler::execute` for why that is safe.

use std::{collections::HashMap, sync::Arc};

use orgstream_domain::{
    Aggregate, Place, api_key::ApiKey, domain::Domain, invitation::Invitation, kind::Kind, member::Members,
    organization::Organization, parking::Parking, record::Record, role::CustomRoles, sso_connection::Connections,
};
use orgstream_events::{ActorType, AggregateId, CommandId, Event, Fingerprint};
use quick_cache::sync::{EntryAction, EntryResult};
use tokio::time::Instant;

use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// An aggregate as it was read from the stream.
#[derive(Debug, Clone)]
pub(super) struct Loaded<A> {
    pub(super) state: A,
    /// The number of events so far.
    pub(super) version: u64,
    /// The stream sequence of the last commit; 0 when there is none.
    pub(super) seq: u64,
    /// The commands with an idempotency key, and their answers.
    pub(super) commands: HashMap<CommandId, PriorResult>,
    pub(super) read_at: Instant,
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

impl<A: Default> Default for Loaded<A> {
    fn default() -> Self {
        Self { state: A::default(), version: 0, seq: 0, commands: HashMap::new(), read_at: Instant::now() }
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
        if fingerprint.is_some() {
            self.commands.insert(command, earlier.clone());
        }
        earlier
    }
}

type AggregateCache<A> = OrgCache<AggregateId, Arc<Loaded<A>>>;

/// Applies an appended commit to the cached aggregate `loaded`: in place, so that an aggregate with a long history is copied
/// only while it is in use.
pub(super) fn advance<A: Aggregate, T>(
    cache: &AggregateCache<A>,
    key: &Scoped<AggregateId>,
    loaded: Arc<Loaded<A>>,
    fold: impl FnOnce(&mut Loaded<A>) -> T,
) -> Option<T> {
    let mut mine = Some((loaded, fold));
    let found = cache.entry(key, None, |_, held| {
        let Some((mut loaded, fold)) = mine.take() else { return EntryAction::Retain(None) };
        if Arc::ptr_eq(&loaded, held) {
            drop(loaded);
            return EntryAction::Retain(Some(fold(Arc::make_mut(held))));
        }
        let earlier = fold(Arc::make_mut(&mut loaded));
        // Another task may have read it again since, and found more events.
        if held.seq < loaded.seq {
            *held = loaded;
        }
        EntryAction::Retain(Some(earlier))
    });
    if let EntryResult::Retained(taken_in) = found {
        return taken_in;
    }
    let (mut loaded, fold) = mine?;
    let earlier = fold(Arc::make_mut(&mut loaded));
    if let EntryResult::Vacant(place) = found {
        // At capacity, another aggregate is evicted.
        let _ = place.insert(loaded);
    }
    Some(earlier)
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
    kinds: Kind, 1_000;
    records: Record, 100_000;
    parking: Parking, 1_000;
}

#[cfg(test)]
mod tests {
    use orgstream_events::{OrgId, RecordId};

    use super::*;

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
