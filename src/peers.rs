//! The processes of the API, which announce themselves to each other: how many there are, and which of them serves what all of
//! them could.
//!
//! It is a hint. A process that hears no others serves everything and takes whole limits for its own; two that hear different
//! ones may serve the same thing at once.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    time::Duration,
};

use async_nats::{Client, Message, SubscribeError};
use futures_util::StreamExt;
use orgstream_events::{Fingerprint, OrgId};
use tokio::{
    sync::watch,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The subject where processes of the API announce themselves to each other.
const HERE: &str = "orgstream.api.here";
const TELL: Duration = Duration::from_secs(1);
/// The time without an announcement after which a process counts as gone.
const GONE: Duration = Duration::from_millis(3_500);
/// The maximum number of counted processes.
const MOST_PEERS: usize = 1_000;

/// The processes that this one knows of.
#[derive(Debug, Clone)]
pub struct Peers {
    me: Uuid,
    others: watch::Receiver<BTreeSet<Uuid>>,
}

/// Announces this process, and hears the others.
#[derive(Debug, Clone)]
pub struct Announcer {
    me: Uuid,
    others: watch::Sender<BTreeSet<Uuid>>,
}

/// Returns a process that knows no others, and what changes that.
pub fn alone() -> (Announcer, Peers) {
    let (me, (sender, receiver)) = (Uuid::now_v7(), watch::channel(BTreeSet::new()));
    (Announcer { me, others: sender }, Peers { me, others: receiver })
}

impl Peers {
    /// Returns the id of this process: another one after each start.
    pub fn me(&self) -> Uuid {
        self.me
    }

    /// Returns the number of processes, this one included.
    pub fn count(&self) -> NonZeroU32 {
        let others = u32::try_from(self.others.borrow().len()).unwrap_or(u32::MAX);
        NonZeroU32::MIN.saturating_add(others)
    }

    /// Returns the other process that serves what only one should serve of `org`; none when it is this one.
    ///
    /// It is the one with the highest hash of the organization and its id, so that only those organizations move that a process
    /// takes up or leaves.
    pub fn server_of(&self, org: OrgId) -> Option<Uuid> {
        let rank = |process: Uuid| Fingerprint::of(&[org.uuid().as_bytes(), process.as_bytes()]).0;
        let others = self.others.borrow();
        let highest = others.iter().copied().max_by_key(|process| rank(*process))?;
        (rank(highest) > rank(self.me)).then_some(highest)
    }

    /// Waits until a process counts as gone.
    pub async fn gone(&self, process: Uuid) {
        self.until(|others| !others.contains(&process)).await;
    }

    /// Waits until there are so many processes, this one included.
    pub async fn counted(&self, count: u32) {
        self.until(|others| others.len() + 1 == count as usize).await;
    }

    async fn until(&self, is_so: impl FnMut(&BTreeSet<Uuid>) -> bool) {
        // Without an announcer nothing changes any more.
        if self.others.clone().wait_for(is_so).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Announcer {
    /// Announces this process, and notes the others, until `stop`.
    pub async fn run(&self, client: Client, stop: CancellationToken) -> Result<(), SubscribeError> {
        let mut seen: HashMap<Uuid, Instant> = HashMap::new();
        let mut tick = interval(TELL);
        // Without it this process counts as the only one.
        let mut heard = client.subscribe(HERE).await?;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(message) = heard.next() => {
                    if let Some(peer) = peer(&message).filter(|peer| *peer != self.me)
                        && (seen.contains_key(&peer) || seen.len() < MOST_PEERS)
                    {
                        seen.insert(peer, Instant::now());
                    }
                }
                _ = tick.tick() => {
                    seen.retain(|_, at| at.elapsed() < GONE);
                    // An announcement that is lost with the connection is repeated in a second.
                    let _ = client.publish(HERE, self.me.as_bytes().to_vec().into()).await;
                }
            }
            self.know(seen.keys().copied().collect());
        }
    }

    fn know(&self, now: BTreeSet<Uuid>) {
        self.others.send_if_modified(|known| {
            let is_new = *known != now;
            *known = now;
            is_new
        });
    }

    /// Knows so many other processes.
    #[cfg(test)]
    pub(crate) fn hear(&self, others: u32) {
        self.know((1..=others).map(|number| Uuid::from_u128(number.into())).collect());
    }
}

fn peer(message: &Message) -> Option<Uuid> {
    Uuid::from_slice(&message.payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knowing(me: Uuid, others: &[Uuid]) -> Peers {
        let (_, others) = watch::channel(others.iter().copied().collect());
        Peers { me, others }
    }

    #[test]
    fn all_processes_find_the_same_one_for_an_organization() {
        let processes: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
        let views = |of: &[Uuid]| -> Vec<Peers> {
            let others = |me| of.iter().copied().filter(|process| *process != me).collect::<Vec<_>>();
            of.iter().map(|me| knowing(*me, &others(*me))).collect()
        };
        let serving = |views: &[Peers], org: OrgId| {
            let found: BTreeSet<Uuid> = views.iter().map(|peers| peers.server_of(org).unwrap_or(peers.me())).collect();
            assert_eq!(found.len(), 1, "{org}");
            found.first().copied().unwrap()
        };
        let (all, fewer) = (views(&processes), views(&processes[..3]));
        let mut served: HashMap<Uuid, usize> = HashMap::new();
        for number in 0..400_u16 {
            let mut bytes = [0; 10];
            bytes[..2].copy_from_slice(&number.to_be_bytes());
            let org = OrgId::fresh(1, bytes);
            let server = serving(&all, org);
            *served.entry(server).or_default() += 1;
            // Only what the one served that is gone moves.
            let then = serving(&fewer, org);
            assert!(then == server || server == processes[3], "{org}");
        }
        assert!(served.len() == 4 && served.values().all(|count| *count > 50), "{served:?}");
        assert_eq!(knowing(processes[0], &[]).server_of(OrgId::fresh(1, [1; 10])), None);
    }
}
