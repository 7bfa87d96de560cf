//! The handle: the connections, and the state that every verb of the crate needs.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{
    Event,
    jetstream::{self, stream::Stream},
};
use orgstream_events::{Chain, CommitKeys, Shard};
use tokio::sync::watch;

use crate::{
    Credentials, StreamError,
    api::unavailable,
    credentials::{self, Reach},
    generation::Generations,
    in_flight::InFlightLimiter,
    placement::PlacementCache,
    publish::Publisher,
    publish_batcher::PublishBatcher,
    streams,
    tips::Tips,
    trouble::Troubles,
};

/// Timeout of requests that only read or administer; a healthy server answers well within it.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// The log's address and configuration.
#[derive(Clone)]
pub struct LogOptions {
    /// `nats://host:port`, or several with commas; with `tls://` nothing is sent unencrypted.
    pub url: String,
    /// The certificates of the accepted certificate authorities, in PEM. If given, nothing is sent unencrypted either.
    pub ca: Option<PathBuf>,
    /// A NATS credentials file.
    pub creds: Option<PathBuf>,
    /// The keys that sign appended messages, and verify those that are read.
    pub keys: Arc<CommitKeys>,
    /// The number of pooled streams. It cannot shrink.
    pub shards: u16,
    /// Copies of every message: 1, or 3 in a cluster.
    pub replicas: usize,
    /// The region label of placements made here.
    pub region: String,
    /// How appends are published.
    pub sync: SyncMode,
    /// How long the server remembers message ids. It only saves work: retries are safe because of the log itself.
    pub duplicate_window: Duration,
}

impl fmt::Debug for LogOptions {
    /// Without the address, which may contain a login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LogOptions");
        shown.field("shards", &self.shards).field("replicas", &self.replicas).field("region", &self.region);
        shown.field("sync", &self.sync).finish_non_exhaustive()
    }
}

impl LogOptions {
    /// The options of the log at `url`, whose messages `keys` sign; everything else has its default.
    pub fn new(url: impl Into<String>, keys: Arc<CommitKeys>) -> Self {
        Self {
            url: url.into(),
            ca: None,
            creds: None,
            keys,
            shards: 16,
            replicas: 1,
            region: "local".to_owned(),
            sync: SyncMode::Durable,
            duplicate_window: Duration::from_mins(2),
        }
    }

    /// The server's address and credentials.
    pub fn reach(&self) -> Reach {
        Reach { url: self.url.clone(), ca: self.ca.clone() }
    }
}

/// How appends are published to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// For a server that syncs every write: concurrent appends to a shard share atomic batches, and so share syncs.
    Durable,
    /// For a server that acknowledges before it syncs: every append is a publish of its own.
    Relaxed,
}

/// The event log. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Log {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) options: LogOptions,
    /// The subject prefix for JetStream requests.
    pub(crate) api: String,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) generations: Generations,
    pub(crate) system: Stream<()>,
    pub(crate) snapshots: Stream<()>,
    pub(crate) vault: Stream<()>,
    pub(crate) publisher: Publisher,
    /// One per shard when appends share batches; none otherwise.
    pub(crate) queues: Vec<PublishBatcher>,
    pub(crate) shares: InFlightLimiter,
    pub(crate) placements: PlacementCache,
    pub(crate) troubles: Troubles,
    pub(crate) tips: Tips,
    /// Counts lost connections: a request sent before a loss can stop waiting for its reply.
    pub(crate) losses: watch::Receiver<u64>,
    client: async_nats::Client,
    /// The connection for reads of many messages. Their replies would delay everything else on one connection: a
    /// cursor's next message would wait until some megabytes of history have been sent and parsed.
    pub(crate) bulk: Connection,
}

/// One connection, and the number of times it was lost.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: async_nats::Client,
    pub(crate) losses: watch::Receiver<u64>,
}

impl Connection {
    async fn open(reach: &Reach, user: Option<&Credentials>, name: &'static str) -> Result<Self, StreamError> {
        let (lost, losses) = watch::channel(0);
        let lost = Arc::new(lost);
        let connect = reach
            .options(user)?
            .name(name)
            .connection_timeout(API_TIMEOUT)
            .request_timeout(Some(API_TIMEOUT))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempts| Duration::from_millis((25 * attempts as u64).min(1_000)))
            .event_callback(move |event| {
                let lost = Arc::clone(&lost);
                async move {
                    match event {
                        Event::Disconnected => {
                            tracing::warn!(connection = name, "the connection to NATS is lost; reconnecting");
                            lost.send_modify(|count| *count += 1);
                        }
                        Event::Connected => tracing::info!(connection = name, "connected to NATS"),
                        Event::Draining | Event::Closed => {
                            tracing::debug!(connection = name, %event, "the connection to NATS is being closed");
                        }
                        other => tracing::warn!(connection = name, event = %other, "NATS connection"),
                    }
                }
            });
        let client = connect.connect(reach.servers()).await.map_err(|error| unavailable("connect", error))?;
        Ok(Self { client, losses })
    }
}

impl Log {
    /// Connects; streams are not touched before [`Log::ensure_streams`].
    pub async fn connect(options: &LogOptions) -> Result<Self, StreamError> {
        if options.shards == 0 || options.replicas == 0 {
            return Err(StreamError::Invalid("there must be at least one shard and one replica".to_owned()));
        }
        let user = match &options.creds {
            Some(path) => Some(Credentials::read(path).await?),
            None => None,
        };
        let (reach, user) = (options.reach(), user.as_ref());
        let Connection { client, losses } = Connection::open(&reach, user, "orgstream").await?;
        let bulk = Connection::open(&reach, user, "orgstream bulk").await?;
        let api = credentials::api(user).to_owned();
        let jetstream = jetstream::with_prefix(client.clone(), &api);

        let system = streams::handle(&jetstream, streams::SYSTEM).await?;
        let snapshots = streams::handle(&jetstream, streams::SNAPSHOTS).await?;
        let vault = streams::handle(&jetstream, streams::VAULT).await?;
        let publisher = Publisher::new(client.clone(), losses.clone());
        let queues = match options.sync {
            SyncMode::Durable => (0..options.shards).map(|_| PublishBatcher::start(publisher.clone())).collect(),
            SyncMode::Relaxed => Vec::new(),
        };
        let (shares, placements) = (InFlightLimiter::new(options.sync), PlacementCache::default());
        let (troubles, tips, generations) =
            (Troubles::default(), Tips::new(options.shards), Generations::new(options.shards));
        let options = options.clone();
        let inner = Inner {
            options,
            api,
            jetstream,
            generations,
            system,
            snapshots,
            vault,
            publisher,
            queues,
            shares,
            placements,
            troubles,
            tips,
            losses,
            client,
            bulk,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The connection, for core NATS only (request and reply, hints).
    pub fn client(&self) -> &async_nats::Client {
        &self.inner.client
    }

    /// Whether there is a connection to the server. Without one, a request waits for it.
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Counts lost connections: what was sent before a loss may never be answered.
    pub fn losses(&self) -> watch::Receiver<u64> {
        let mut losses = self.inner.losses.clone();
        losses.mark_unchanged();
        losses
    }

    /// Closes the connections, so that no client of them reports a server that is stopped afterwards as lost.
    pub async fn close(&self) {
        for client in [&self.inner.client, &self.inner.bulk.client] {
            if let Err(error) = client.drain().await {
                tracing::debug!(error = %Chain(&error), "a connection to NATS could not be ended in order");
            }
        }
    }

    /// The keys that sign and verify the log's messages.
    pub fn keys(&self) -> &Arc<CommitKeys> {
        &self.inner.options.keys
    }

    /// The region label of placements made here.
    pub fn region(&self) -> &str {
        &self.inner.options.region
    }

    /// Copies of every message.
    pub fn replicas(&self) -> usize {
        self.inner.options.replicas
    }

    /// Every shard there is.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = Shard> + use<> {
        (0..self.inner.options.shards).map(Shard)
    }
}
