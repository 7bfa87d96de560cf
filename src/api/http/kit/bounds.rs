//! In-flight limits: connections, requests, streams and bodies, in total and per caller. An excess is refused at once, with
//! a code and the time to wait; a body waits a moment for its room first.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::counter;
use orgstream_events::OrgId;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::app::problem::Problem;

/// How long a body waits for room before it is refused.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// The unit of the limit of body bytes.
const KIB: usize = 1 << 10;

/// The in-flight limits of one process.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Open connections of one address (of one /64 network of IPv6), unless it is a trusted proxy's.
    pub connections_of_address: usize,
    /// Requests of one organization.
    pub requests_of_org: usize,
    /// Requests of one person, key or operator.
    pub requests_of_caller: usize,
    /// Requests of one network without a credential, where those read tables.
    pub requests_of_network: usize,
    /// Open streams.
    pub streams: usize,
    /// Open streams of one organization.
    pub streams_of_org: usize,
    /// Open streams of one person, key or operator.
    pub streams_of_caller: usize,
    /// Bytes of request bodies that have been received and are not carried out yet. Their parsed form takes up to twenty
    /// times as much.
    pub body_bytes: usize,
    /// Such bytes of one organization, or of one caller outside of any.
    pub body_bytes_of_org: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            connections_of_address: 4_096,
            requests_of_org: 2_048,
            requests_of_caller: 1_024,
            requests_of_network: 64,
            streams: 2_048,
            streams_of_org: 128,
            streams_of_caller: 32,
            body_bytes: 8 << 20,
            body_bytes_of_org: 2 << 20,
        }
    }
}

impl Limits {
    /// Sets the number of connections, of which one address may have half.
    pub fn with_connections(self, connections: usize) -> Self {
        Self { connections, connections_of_address: connections.div_ceil(2), ..self }
    }

    /// Sets the bytes of bodies, of which one organization may have a quarter, and one whole body in any case.
    pub fn with_body_bytes(self, body_bytes: usize) -> Self {
        let least = crate::api::command_body::MAX_BODY;
        let body_bytes = body_bytes.max(least);
        Self { body_bytes, body_bytes_of_org: (body_bytes / 4).max(least), ..self }
    }
}

/// The work in flight.
#[derive(Debug)]
pub struct Bounds {
    limits: Limits,
    connections: Arc<Shares<()>>,
    addresses: Arc<Shares<IpAddr>>,
    orgs: Arc<Shares<OrgId>>,
    callers: Arc<Shares<String>>,
    networks: Arc<Shares<Option<IpAddr>>>,
    streams: Arc<Shares<()>>,
    org_streams: Arc<Shares<OrgId>>,
    caller_streams: Arc<Shares<String>>,
    bodies: Arc<Bodies>,
}

impl Bounds {
    /// Starts with nothing in flight.
    pub fn new(limits: Limits) -> Self {
        Self {
            bodies: Arc::new(Bodies::new(&limits)),
            limits,
            connections: Arc::default(),
            addresses: Arc::default(),
            orgs: Arc::default(),
            callers: Arc::default(),
            networks: Arc::default(),
            streams: Arc::default(),
            org_streams: Arc::default(),
            caller_streams: Arc::default(),
        }
    }

    /// Takes a slot for a connection of `address`, if there is one; trusted proxies stand for many clients.
    pub fn connection(&self, address: IpAddr, is_proxy: bool) -> Option<[Slot; 2]> {
        let Some(all) = Shares::take(&self.connections, (), self.limits.connections) else {
            refused("connections");
            return None;
        };
        let most = if is_proxy { self.limits.connections } else { self.limits.connections_of_address };
        let Some(own) = Shares::take(&self.addresses, network(address), most) else {
            refused("connections_of_address");
            return None;
        };
        Some([all, own])
    }

    /// Takes a slot for one more request of `caller`.
    pub fn request_of_caller(&self, caller: &str) -> Result<Slot, Problem> {
        let most = self.limits.requests_of_caller;
        Shares::take(&self.callers, caller.to_owned(), most).ok_or_else(|| {
            refused("requests_of_caller");
            Problem::too_many_requests(most, "this credential")
        })
    }

    /// Takes a slot for one more request without a credential from the network of `address`.
    pub fn request_of_network(&self, address: Option<IpAddr>) -> Result<Slot, Problem> {
        let most = self.limits.requests_of_network;
        Shares::take(&self.networks, address.map(network), most).ok_or_else(|| {
            refused("requests_of_network");
            Problem::too_many_requests(most, "this network")
        })
    }

    /// Takes a slot for one more request about `org`.
    pub fn request_of_org(&self, org: OrgId) -> Result<Slot, Problem> {
        let most = self.limits.requests_of_org;
        Shares::take(&self.orgs, org, most).ok_or_else(|| {
            refused("requests_of_org");
            Problem::too_many_requests(most, "this organization")
        })
    }

    /// Returns how many requests about `org` are under way here, and how many may be.
    pub fn requests_under_way(&self, org: OrgId) -> (usize, usize) {
        (self.orgs.count(&org), self.limits.requests_of_org)
    }

    /// Takes slots for one more stream of `caller` out of `org`.
    pub fn stream(&self, caller: &str, org: OrgId) -> Result<[Slot; 3], Problem> {
        let over = |reason, most, whose| {
            refused(reason);
            Problem::too_many_streams(most, whose)
        };
        let most = self.limits.streams_of_caller;
        let caller = Shares::take(&self.caller_streams, caller.to_owned(), most)
            .ok_or_else(|| over("streams_of_caller", most, "this credential"))?;
        let most = self.limits.streams_of_org;
        let org = Shares::take(&self.org_streams, org, most)
            .ok_or_else(|| over("streams_of_org", most, "this organization"))?;
        let most = self.limits.streams;
        let all = Shares::take(&self.streams, (), most).ok_or_else(|| over("streams", most, "everybody here"))?;
        Ok([caller, org, all])
    }

    /// Opens room for a body of `whose`, of which nothing has been received yet.
    pub fn body(&self, whose: Whose) -> Room {
        Room::new(&self.bodies, whose)
    }

    /// Takes room for a message that is complete and in memory when it is received, if there is any now.
    pub fn message(&self, whose: Whose, bytes: usize) -> Result<Room, Problem> {
        let mut room = self.body(whose);
        match room.take(bytes) {
            Ok(()) => {
                room.is_whole();
                Ok(room)
            }
            Err(short) => Err(short.into()),
        }
    }
}

fn refused(reason: &'static str) {
    counter!("orgstream_http_refused_total", "reason" => reason).increment(1);
}

/// The party that a body's room is charged to: each has a share of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Whose {
    /// An organization's.
    Org(OrgId),
    /// An authenticated caller that acts in no organization.
    Caller(String),
    /// An unauthenticated caller, by its network.
    Network(Option<IpAddr>),
}

impl Whose {
    /// Charges the network of the address.
    pub fn from(address: Option<IpAddr>) -> Self {
        Self::Network(address.map(network))
    }
}

/// Returns the network of an address: an IPv6 client has a whole one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The amount in flight of each key. A key without any is not stored.
#[derive(Debug)]
struct Shares<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Shares<K> {
    fn take(shares: &Arc<Self>, key: K, most: usize) -> Option<Slot> {
        let mut held = shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(&key).copied().unwrap_or_default();
        if count >= most {
            return None;
        }
        held.insert(key.clone(), count + 1);
        let shares = Arc::clone(shares);
        Some(Slot(Some(Box::new(move || shares.give_back(&key)))))
    }

    fn count(&self, key: &K) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or_default()
    }

    fn give_back(&self, key: &K) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                held.remove(key);
            }
        }
    }
}

/// One slot, until this is dropped.
#[must_use]
pub struct Slot(Option<Box<dyn FnOnce() + Send>>);

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(give_back) = self.0.take() {
            give_back();
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// The room of bodies. No party takes more of it than it leaves free. Where none is left for a party all the same, the one
/// with the most gives some back: of bodies that are not complete.
#[derive(Debug)]
struct Bodies {
    all: usize,
    of_one: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    /// The total, without the guaranteed body.
    bytes: usize,
    /// How much of it is about to be given back.
    leaving: usize,
    of: HashMap<Whose, Held>,
    /// The one body for which there is room in any case, so that many half-received ones do not wait for each other.
    certain: Option<u64>,
    next: u64,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    /// The one body that may exceed its party's share, for the same reason.
    certain: Option<u64>,
    /// Incomplete bodies, with their room, and the token that revokes it.
    coming: HashMap<u64, (usize, CancellationToken)>,
}

impl Taken {
    /// Revokes room of the party that has the most, if that is more than `than`; returns true when a body was newly revoked.
    fn make_room(&mut self, needed: usize, than: usize) -> bool {
        if self.leaving >= needed {
            return false;
        }
        let most = self.of.values_mut().filter(|held| held.bytes > than && !held.coming.is_empty());
        let Some(held) = most.max_by_key(|held| held.bytes) else { return false };
        let largest = held.coming.iter().max_by_key(|(_, (bytes, _))| *bytes).map(|(id, _)| *id);
        let Some((bytes, told)) = largest.and_then(|id| held.coming.remove(&id)) else { return false };
        self.leaving += bytes;
        told.cancel();
        true
    }
}

/// The exhausted limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    Own,
    All,
}

impl From<Short> for Problem {
    fn from(short: Short) -> Self {
        match short {
            Short::Own => {
                refused("bodies_of_org");
                Self::too_many_bodies()
            }
            Short::All => {
                refused("bodies");
                Self::overloaded()
            }
        }
    }
}

impl Bodies {
    fn new(limits: &Limits) -> Self {
        let (all, of_one) = (limits.body_bytes, limits.body_bytes_of_org);
        Self { all, of_one, taken: Mutex::default(), freed: Notify::new() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `more` bytes for this room.
    fn take(&self, room: &Room, more: usize) -> Result<(), Short> {
        let mut taken = self.taken();
        let Taken { bytes, of, certain, .. } = &mut *taken;
        let own = of.entry(room.whose.clone()).or_default();
        if own.bytes + more > self.of_one && *own.certain.get_or_insert(room.id) != room.id {
            return Err(Short::Own);
        }
        if *certain != Some(room.id) {
            if own.bytes + more <= self.all.saturating_sub(*bytes + more) {
                *bytes += more;
            } else if certain.is_none() {
                *certain = Some(room.id);
                *bytes -= room.bytes;
                own.coming.remove(&room.id);
            } else {
                let would_have = own.bytes + more;
                if own.bytes == 0 && own.certain.is_none() {
                    of.remove(&room.whose);
                }
                let is_told = taken.make_room(more, would_have);
                drop(taken);
                if is_told {
                    // The body that is to give room back may be waiting for more.
                    self.freed.notify_waiters();
                }
                return Err(Short::All);
            }
        }
        own.bytes += more;
        if *certain != Some(room.id) {
            own.coming.insert(room.id, (room.bytes + more, room.told.clone()));
        }
        Ok(())
    }

    fn give_back(&self, room: &Room) {
        let mut taken = self.taken();
        if taken.certain == Some(room.id) {
            taken.certain = None;
        } else {
            taken.bytes -= room.bytes;
        }
        if room.told.is_cancelled() {
            taken.leaving -= room.bytes;
        }
        if let Some(own) = taken.of.get_mut(&room.whose) {
            own.bytes -= room.bytes;
            own.certain = own.certain.filter(|certain| *certain != room.id);
            own.coming.remove(&room.id);
            if own.bytes == 0 && own.certain.is_none() {
                taken.of.remove(&room.whose);
            }
        }
        drop(taken);
        self.freed.notify_waiters();
    }
}

/// Room that a body takes, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Room {
    id: u64,
    whose: Whose,
    bytes: usize,
    /// Cancelled when the room is revoked.
    told: CancellationToken,
    bodies: Arc<Bodies>,
}

impl Room {
    fn new(bodies: &Arc<Bodies>, whose: Whose) -> Self {
        let mut taken = bodies.taken();
        taken.next = taken.next.wrapping_add(1);
        Self { id: taken.next, whose, bytes: 0, told: CancellationToken::new(), bodies: Arc::clone(bodies) }
    }

    /// Waits a moment until there is room for a body of which `bytes` have been received now.
    pub async fn hold(&mut self, bytes: usize) -> Result<(), Problem> {
        let bodies = Arc::clone(&self.bodies);
        let mut short = Short::Own;
        let until_held = async {
            loop {
                let mut freed = pin!(bodies.freed.notified());
                freed.as_mut().enable();
                match self.take(bytes) {
                    Ok(()) => return Ok(()),
                    Err(why) if self.told.is_cancelled() => return Err(why),
                    Err(why) => short = why,
                }
                freed.await;
            }
        };
        let held = timeout(BODY_WAIT, until_held).await;
        held.unwrap_or(Err(short)).map_err(Problem::from)
    }

    /// Returns, with the reason, when the room of an incomplete body is revoked.
    pub async fn is_taken_back(&self) -> Problem {
        self.told.cancelled().await;
        Short::Own.into()
    }

    /// Marks the body as complete.
    pub fn is_whole(&self) {
        if let Some(own) = self.bodies.taken().of.get_mut(&self.whose) {
            own.coming.remove(&self.id);
        }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Short> {
        if self.told.is_cancelled() {
            return Err(Short::Own);
        }
        let whole = bytes.div_ceil(KIB).max(1) * KIB;
        let more = whole.saturating_sub(self.bytes);
        if more > 0 {
            self.bodies.take(self, more)?;
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.bodies.give_back(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(byte: u8) -> OrgId {
        OrgId::fresh(0, [byte; 10])
    }

    fn few() -> Bounds {
        let limits =
            Limits { streams: 3, streams_of_org: 2, streams_of_caller: 1, requests_of_org: 1, ..Limits::default() };
        Bounds::new(limits.with_connections(3))
    }

    #[test]
    fn what_is_over_a_bound_is_refused_until_something_ends() {
        let bounds = few();
        let first = bounds.request_of_org(org(1)).unwrap();
        let refused = bounds.request_of_org(org(1)).unwrap_err();
        assert_eq!((refused.status, refused.code), (429, "concurrency_limit_exceeded"));
        assert!(refused.retry_after.is_some());
        let _other = bounds.request_of_org(org(2)).unwrap();
        drop(first);
        let _again = bounds.request_of_org(org(1)).unwrap();
        assert_eq!(bounds.orgs.0.lock().unwrap().len(), 2, "who has nothing under way is not remembered");
    }

    #[test]
    fn s3_31_the_sixth_request_of_an_organization_that_may_have_five_is_refused_and_another_has_five() {
        let bounds = Bounds::new(Limits { requests_of_org: 5, ..Limits::default() });
        let five = |of| (0..5).map(|_| bounds.request_of_org(org(of)).unwrap()).collect::<Vec<_>>();
        let mut held = five(1);
        assert_eq!(bounds.request_of_org(org(1)).unwrap_err().code, "concurrency_limit_exceeded");
        let _theirs = five(2);
        held.pop();
        let _again = bounds.request_of_org(org(1)).unwrap();
        assert!(bounds.request_of_org(org(1)).is_err());
    }

    #[test]
    fn readers_without_a_credential_share_the_bound_of_their_network() {
        let bounds = Bounds::new(Limits { requests_of_network: 2, ..Limits::default() });
        let from = |address: &str| bounds.request_of_network(Some(address.parse().unwrap()));
        let held = [from("2001:db8::1").unwrap(), from("2001:db8::2").unwrap()];
        assert_eq!(from("2001:db8::3").unwrap_err().code, "concurrency_limit_exceeded");
        let _other = from("192.0.2.1").unwrap();
        drop(held);
        let _again = from("2001:db8::3").unwrap();
    }

    #[test]
    fn streams_are_bounded_of_callers_of_organizations_and_altogether() {
        let bounds = few();
        let open = |caller: &str, of| bounds.stream(caller, org(of)).map_err(|problem| problem.code);
        let first = open("a", 1).unwrap();
        assert_eq!(open("a", 1).unwrap_err(), "too_many_streams");
        let _second = open("b", 1).unwrap();
        assert_eq!(open("c", 1).unwrap_err(), "too_many_streams");
        let _third = open("c", 2).unwrap();
        assert_eq!(open("d", 3).unwrap_err(), "too_many_streams");
        drop(first);
        // A refusal has left nothing behind.
        let _fourth = open("d", 3).unwrap();
    }

    #[test]
    fn one_address_does_not_take_all_connections() {
        let bounds = few();
        let from = |address: &str| bounds.connection(address.parse().unwrap(), false);
        let _held = (from("192.0.2.1").unwrap(), from("192.0.2.1").unwrap());
        assert!(from("192.0.2.1").is_none());
        let other = from("2001:db8::1").unwrap();
        assert!(from("192.0.2.2").is_none(), "there are three altogether");
        drop(other);
        let _held = bounds.connection("192.0.2.1".parse().unwrap(), true).unwrap();
    }

    fn small() -> Bounds {
        Bounds::new(Limits { body_bytes: 4 << 20, body_bytes_of_org: 1 << 20, ..Limits::default() })
    }

    fn held(bounds: &Bounds) -> (usize, usize) {
        let taken = bounds.bodies.taken();
        (taken.bytes, taken.of.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_room_as_it_comes_and_one_of_each_comes_to_its_end() {
        let bounds = small();
        let mut rooms: Vec<Room> = (0..50).map(|_| bounds.body(Whose::Org(org(1)))).collect();
        for room in &mut rooms {
            room.hold(1).await.unwrap();
        }
        assert_eq!(held(&bounds), (50 * KIB, 1), "what did not come takes nothing");
        let mut first = rooms.pop().unwrap();
        first.hold(1 << 20).await.unwrap();
        let refused = rooms.first_mut().unwrap().hold(500 * KIB).await.unwrap_err();
        assert_eq!((refused.status, refused.code), (429, "concurrency_limit_exceeded"));
        let second = rooms.pop().unwrap();
        let waiting = tokio::spawn(async move {
            let mut second = second;
            second.hold(500 * KIB).await.map(|()| second)
        });
        tokio::task::yield_now().await;
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        drop((second, rooms));
        assert_eq!(held(&bounds), (0, 0), "who has nothing under way is not remembered");
    }

    #[test]
    fn however_many_take_what_they_may_there_is_room_for_the_next() {
        let bounds = small();
        let mut rooms: Vec<Room> = Vec::new();
        let callers = (0..100).flat_map(|number| {
            let from = Whose::from(Some([192, 0, 2, number].into()));
            [Whose::Org(org(number)), Whose::Caller(number.to_string()), from]
        });
        for whose in callers {
            let mut room = bounds.body(whose.clone());
            // A body whose room is revoked gives it back.
            while room.take(1).is_err() {
                let before = rooms.len();
                rooms.retain(|room| !room.told.is_cancelled());
                assert!(rooms.len() < before, "{whose:?} finds no room: {:?}", held(&bounds));
            }
            for size in 2..=1_024 {
                let _ = room.take(size * KIB);
            }
            rooms.push(room);
        }
        assert!(held(&bounds).0 <= 4 << 20, "{:?}", held(&bounds));
        assert!(rooms.len() > 100, "{}", rooms.len());
        drop(rooms);
        assert_eq!(held(&bounds), (0, 0));
    }

    #[test]
    fn many_bodies_that_are_half_here_do_not_wait_for_each_other() {
        let bounds = small();
        let mut rooms: Vec<Room> = (0..12).map(|number| bounds.body(Whose::Org(org(number)))).collect();
        let mut size = KIB;
        while rooms.iter_mut().filter_map(|room| room.take(size).ok()).count() > 1 {
            size += KIB;
        }
        rooms.retain(|room| !room.told.is_cancelled());
        while !rooms.is_empty() {
            let whole = rooms.iter_mut().position(|room| room.take(1 << 20).is_ok());
            drop(rooms.remove(whole.expect("one of them to come to its end")));
        }
        assert_eq!(held(&bounds), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_whole_is_not_taken_back() {
        let bounds = small();
        let (mut whole, mut coming) = (bounds.body(Whose::Org(org(1))), bounds.body(Whose::Org(org(2))));
        whole.hold(1 << 20).await.unwrap();
        whole.is_whole();
        coming.hold(1 << 20).await.unwrap();
        let (mut third, mut certain) = (bounds.body(Whose::Org(org(3))), bounds.body(Whose::Org(org(4))));
        third.hold(1 << 20).await.unwrap();
        third.is_whole();
        certain.hold(1 << 20).await.unwrap();
        let mut next = bounds.body(Whose::Org(org(5)));
        next.hold(512 << 10).await.unwrap();
        next.is_whole();
        let mut last = bounds.body(Whose::Org(org(6)));
        assert_eq!(last.take(300 << 10), Err(Short::All));
        assert_eq!(coming.is_taken_back().await.code, "concurrency_limit_exceeded");
        assert!(!whole.told.is_cancelled() && !certain.told.is_cancelled());
        drop(coming);
        last.hold(300 << 10).await.unwrap();
    }

    #[test]
    fn messages_wait_for_no_room() {
        let bounds = small();
        let held = bounds.message(Whose::Org(org(1)), 1 << 20).unwrap();
        let _certain = bounds.message(Whose::Org(org(1)), 1).unwrap();
        let refused = bounds.message(Whose::Org(org(1)), 1).unwrap_err();
        assert_eq!((refused.status, refused.code), (429, "concurrency_limit_exceeded"));
        let _other = bounds.message(Whose::Org(org(2)), 1 << 20).unwrap();
        let _certain = bounds.message(Whose::Org(org(3)), 1 << 20).unwrap();
        let refused = bounds.message(Whose::Org(org(4)), 1 << 20).unwrap_err();
        assert_eq!((refused.status, refused.code), (503, "overloaded"));
        drop(held);
        let _again = bounds.message(Whose::Org(org(1)), 1).unwrap();
    }
}
