//! How much may be under way at the same time: connections, requests, streams and bodies, altogether and of each who asks.
//! What is over a bound is told so at once, with a code and the time to wait; a body waits a moment for its room first.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::counter;
use orgstream_events::OrgId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::app::problem::Problem;

/// How long a body waits for room before it is refused.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// What room for bodies is counted in.
const KIB: usize = 1 << 10;

/// The bounds of one process.
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
    /// Streams that follow something.
    pub streams: usize,
    /// Those of one organization.
    pub streams_of_org: usize,
    /// Those of one person, key or operator.
    pub streams_of_caller: usize,
    /// Bytes of request bodies that are being read or carried out. What they become takes up to twenty times as much.
    pub body_bytes: usize,
    /// Those of one organization; of everybody without one together.
    pub body_bytes_of_org: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8_192,
            connections_of_address: 4_096,
            requests_of_org: 2_048,
            requests_of_caller: 1_024,
            streams: 2_048,
            streams_of_org: 128,
            streams_of_caller: 32,
            body_bytes: 8 << 20,
            body_bytes_of_org: 2 << 20,
        }
    }
}

impl Limits {
    /// The same with so many connections, of which one address may have half.
    pub fn with_connections(self, connections: usize) -> Self {
        Self { connections, connections_of_address: connections.div_ceil(2), ..self }
    }

    /// The same with so many bytes of bodies, of which one organization may have a quarter, and one whole body in any case.
    pub fn with_body_bytes(self, body_bytes: usize) -> Self {
        let least = crate::api::command_body::MAX_BODY;
        let body_bytes = body_bytes.max(least);
        Self { body_bytes, body_bytes_of_org: (body_bytes / 4).max(least), ..self }
    }
}

/// What is under way.
#[derive(Debug)]
pub struct Bounds {
    limits: Limits,
    connections: Arc<Shares<()>>,
    addresses: Arc<Shares<IpAddr>>,
    orgs: Arc<Shares<OrgId>>,
    callers: Arc<Shares<String>>,
    streams: Arc<Shares<()>>,
    org_streams: Arc<Shares<OrgId>>,
    caller_streams: Arc<Shares<String>>,
    bodies: Arc<Bodies>,
}

impl Bounds {
    /// Nothing is under way yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            bodies: Arc::new(Bodies::new(limits.body_bytes)),
            limits,
            connections: Arc::default(),
            addresses: Arc::default(),
            orgs: Arc::default(),
            callers: Arc::default(),
            streams: Arc::default(),
            org_streams: Arc::default(),
            caller_streams: Arc::default(),
        }
    }

    /// Room for a connection of `address`, if there is any; proxies of ours speak for many.
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

    /// Room for one more request of `caller`.
    pub fn request_of_caller(&self, caller: &str) -> Result<Slot, Problem> {
        let most = self.limits.requests_of_caller;
        Shares::take(&self.callers, caller.to_owned(), most).ok_or_else(|| {
            refused("requests_of_caller");
            Problem::too_many_requests(most, "this credential")
        })
    }

    /// Room for one more request about `org`.
    pub fn request_of_org(&self, org: OrgId) -> Result<Slot, Problem> {
        let most = self.limits.requests_of_org;
        Shares::take(&self.orgs, org, most).ok_or_else(|| {
            refused("requests_of_org");
            Problem::too_many_requests(most, "this organization")
        })
    }

    /// Room for one more stream of `caller` out of `org`.
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

    /// Room for a body of `bytes`, once there is some. Nothing of the body is read before that.
    pub async fn body(&self, org: Option<OrgId>, bytes: usize) -> Result<Room, Problem> {
        let own = self.bodies.of(org, self.limits.body_bytes_of_org);
        let mut room = Room { own: None, all: None, org, bodies: Arc::clone(&self.bodies) };
        let waited = timeout(BODY_WAIT, own.acquire_many_owned(kib(bytes, self.limits.body_bytes_of_org))).await;
        let Ok(Ok(permit)) = waited else {
            refused("bodies_of_org");
            return Err(Problem::too_many_bodies());
        };
        room.own = Some(permit);
        let all = Arc::clone(&self.bodies.all).acquire_many_owned(kib(bytes, self.limits.body_bytes));
        let Ok(Ok(permit)) = timeout(BODY_WAIT, all).await else {
            refused("bodies");
            return Err(Problem::overloaded());
        };
        room.all = Some(permit);
        Ok(room)
    }
}

/// For what comes whole, and is in memory when it is heard of: it waits for nothing.
impl Bounds {
    /// Room for a message of `bytes`, if there is any now.
    pub fn message(&self, bytes: usize) -> Result<Room, Problem> {
        let all = Arc::clone(&self.bodies.all).try_acquire_many_owned(kib(bytes, self.limits.body_bytes));
        let all = all.map_err(|_| {
            refused("bodies");
            Problem::overloaded()
        })?;
        Ok(Room { own: None, all: Some(all), org: None, bodies: Arc::clone(&self.bodies) })
    }

    /// The part of `org` in it, once it is known whose it is.
    pub fn message_of(&self, org: OrgId, bytes: usize) -> Result<Room, Problem> {
        let most = self.limits.body_bytes_of_org;
        let mut room = Room { own: None, all: None, org: Some(org), bodies: Arc::clone(&self.bodies) };
        let own = self.bodies.of(Some(org), most).try_acquire_many_owned(kib(bytes, most));
        room.own = Some(own.map_err(|_| {
            refused("bodies_of_org");
            Problem::too_many_bodies()
        })?);
        Ok(room)
    }
}

/// How much room so many bytes take, of at most `most`.
fn kib(bytes: usize, most: usize) -> u32 {
    u32::try_from(bytes.div_ceil(KIB).clamp(1, most / KIB)).unwrap_or(u32::MAX)
}

fn refused(reason: &'static str) {
    counter!("orgstream_http_refused_total", "reason" => reason).increment(1);
}

/// Who has an address of IPv6 has a network of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How much each has under way. Who has nothing is not remembered.
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

/// One thing under way, until this is dropped.
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

#[derive(Debug)]
struct Bodies {
    all: Arc<Semaphore>,
    each: Mutex<HashMap<Option<OrgId>, Arc<Semaphore>>>,
}

impl Bodies {
    fn new(bytes: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(bytes / KIB)), each: Mutex::default() }
    }

    fn of(&self, org: Option<OrgId>, bytes: usize) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(each.entry(org).or_insert_with(|| Arc::new(Semaphore::new(bytes / KIB))))
    }
}

/// Room that a body takes, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Room {
    own: Option<OwnedSemaphorePermit>,
    all: Option<OwnedSemaphorePermit>,
    org: Option<OrgId>,
    bodies: Arc<Bodies>,
}

impl Drop for Room {
    fn drop(&mut self) {
        (self.own, self.all) = (None, None);
        let mut each = self.bodies.each.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits for a part of it, or has one, holds it too.
        if each.get(&self.org).is_some_and(|own| Arc::strong_count(own) == 1) {
            each.remove(&self.org);
        }
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
        // What was refused has left nothing behind.
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

    #[test]
    fn messages_share_the_room_of_bodies_and_wait_for_none() {
        let limits = Limits { body_bytes: 3 << 20, body_bytes_of_org: 1 << 20, ..Limits::default() };
        let bounds = Bounds::new(limits);
        let held = (bounds.message(2 << 20).unwrap(), bounds.message_of(org(1), 1 << 20).unwrap());
        let refused = bounds.message_of(org(1), 1).map(|_| ()).unwrap_err();
        assert_eq!((refused.status, refused.code), (429, "concurrency_limit_exceeded"));
        drop(bounds.message_of(org(2), 1).unwrap());
        let refused = bounds.message(2 << 20).map(|_| ()).unwrap_err();
        assert_eq!((refused.status, refused.code), (503, "overloaded"));
        drop(held);
        drop(bounds.message(3 << 20).unwrap());
        assert!(bounds.bodies.each.lock().unwrap().is_empty(), "who has nothing under way is not remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_of_one_organization_leave_room_for_those_of_others() {
        let limits = Limits { body_bytes: 3 << 20, body_bytes_of_org: 1 << 20, ..Limits::default() };
        let bounds = Bounds::new(limits);
        let held = bounds.body(Some(org(1)), 1 << 20).await.unwrap();
        let refused = bounds.body(Some(org(1)), 1).await.unwrap_err();
        assert_eq!((refused.status, refused.code), (429, "concurrency_limit_exceeded"));
        let others = (bounds.body(Some(org(2)), 1 << 20).await.unwrap(), bounds.body(None, 1 << 20).await.unwrap());
        let refused = bounds.body(Some(org(3)), 1).await.unwrap_err();
        assert_eq!((refused.status, refused.code), (503, "overloaded"));
        drop((held, others));
        // Larger than there may be is as large as there may be: the limit of a body is another one.
        let _again = bounds.body(Some(org(1)), 9 << 20).await.unwrap();
        assert!(!bounds.bodies.each.lock().unwrap().contains_key(&Some(org(3))));
    }
}
