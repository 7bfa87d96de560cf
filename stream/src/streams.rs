//! The streams behind the shards: created so that they cannot lose history, and never changed without the operator. The
//! snapshots are in a stream that may lose everything, and secrets in one
//! from which they can be taken away.

use async_nats::jetstream::{
    self,
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream},
};
use orgstream_events::{EventSubject, PLATFORM_ORG, Shard};
use serde_json::Value;

use crate::{Finding, Log, StreamError, api::code, api::unavailable};

/// The stream of claims and placements.
pub(crate) const SYSTEM: &str = "SYS";
/// The stream of snapshots: no history, so that a newer one replaces an older one, and any may be removed.
pub(crate) const SNAPSHOTS: &str = "SNAP";
/// The stream of secrets: one message each, which is replaced when its value is destroyed or wrapped by another key. The
/// administrator may remove those of an organization.
pub(crate) const VAULT: &str = "VAULT";
/// A worker has one consumer per shard, and one for each of a few orgs that it catches up with; after a takeover the
/// old ones remain for half a minute. nats-server 2.15 would silently allow 1,000, far beyond what one stream can
/// serve.
const MAX_CONSUMERS: i32 = 256;

/// The extent of a shard's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardState {
    /// Its first sequence; one past the last when it is empty.
    pub first_seq: u64,
    /// Its last sequence; 0 when nothing was ever written.
    pub last_seq: u64,
    /// The number of its messages.
    pub messages: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Its consumers: the cursor of each worker, and those for catch-up reads of a few organizations; never one for
    /// each.
    pub consumers: usize,
}

pub(crate) fn name(shard: Shard) -> String {
    format!("EV_{shard}")
}

pub(crate) async fn handle(jetstream: &jetstream::Context, name: &str) -> Result<Stream<()>, StreamError> {
    jetstream.get_stream_no_info(name).await.map_err(|error| unavailable("name a stream", error))
}

impl Log {
    /// Creates the missing streams and compares the existing ones with the required configuration. Only the
    /// administrator's credentials may do that.
    ///
    /// An existing stream is never changed here; every differing field is a finding.
    pub async fn ensure_streams(&self) -> Result<Vec<Finding>, StreamError> {
        let mut findings = Vec::new();
        for config in self.configs() {
            let info = match self.stream_info(&config.name).await? {
                Some(info) => info,
                None => self.create(&config).await?,
            };
            findings.extend(differences(&config, &info.config));
        }
        self.place(PLATFORM_ORG).await?;
        Ok(findings)
    }

    /// Returns the names of the missing streams.
    pub async fn missing_streams(&self) -> Result<Vec<String>, StreamError> {
        let mut missing = Vec::new();
        for config in self.configs() {
            if self.stream_info(&config.name).await?.is_none() {
                missing.push(config.name);
            }
        }
        Ok(missing)
    }

    /// Whether nothing is lost without this stream: what is in it is made again. It is the last of
    /// [`Log::missing_streams`].
    pub fn is_dispensable(stream: &str) -> bool {
        stream == SNAPSHOTS
    }

    /// Compares the existing streams with the required configuration, and creates none.
    pub(crate) async fn compare_streams(&self) -> Result<Vec<Finding>, StreamError> {
        let mut findings = Vec::new();
        for config in self.configs() {
            if let Some(info) = self.stream_info(&config.name).await? {
                findings.extend(differences(&config, &info.config));
            }
        }
        Ok(findings)
    }

    /// Returns the extent of the shard's stream, as its leader knows it.
    pub async fn shard_state(&self, shard: Shard) -> Result<ShardState, StreamError> {
        self.stream_of(shard)?;
        let name = name(shard);
        let info = self.stream_info(&name).await?.ok_or_else(|| StreamError::Refused {
            action: "read the state of a shard",
            code: code::STREAM_NOT_FOUND,
            description: format!("there is no stream {name}"),
        })?;
        Ok(ShardState {
            first_seq: info.state.first_sequence,
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
            consumers: info.state.consumer_count,
        })
    }

    /// Returns the last sequence ever written to the shard; 0 when there is no such stream.
    pub async fn shard_end(&self, shard: Shard) -> Result<u64, StreamError> {
        self.stream_of(shard)?;
        let info = self.stream_info(&name(shard)).await?;
        Ok(info.map_or(0, |info| info.state.last_sequence))
    }

    pub(crate) async fn stream_info(&self, name: &str) -> Result<Option<Info>, StreamError> {
        match self.ask("read a stream's state", format!("STREAM.INFO.{name}"), &()).await {
            Ok(info) => Ok(Some(info)),
            Err(StreamError::Refused { code: code::STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, config: &Config) -> Result<Info, StreamError> {
        let name = &config.name;
        match self.ask("create a stream", format!("STREAM.CREATE.{name}"), config).await {
            // Another process created it first with a different configuration; the comparison reports that.
            Err(error @ StreamError::Refused { code: code::STREAM_NAME_IN_USE, .. }) => {
                self.stream_info(name).await?.ok_or(error)
            }
            created => {
                tracing::debug!(stream = %name, "created a stream");
                created
            }
        }
    }

    fn configs(&self) -> impl Iterator<Item = Config> {
        let of_shard = |shard| (name(shard), EventSubject::all_in_shard(shard));
        let system = (SYSTEM.to_owned(), "sys.>".to_owned());
        let histories = self.shards().map(of_shard).chain([system]).map(|(name, subject)| self.history(name, subject));
        let replaced = |name: &str, subject: &str, discard| Config {
            discard,
            deny_delete: false,
            deny_purge: false,
            max_messages_per_subject: 1,
            ..self.history(name.to_owned(), subject.to_owned())
        };
        histories
            .chain([replaced(VAULT, "vault.>", DiscardPolicy::New), replaced(SNAPSHOTS, "snap.>", DiscardPolicy::Old)])
    }

    /// Returns the configuration of a stream that keeps every message.
    fn history(&self, name: String, subject: String) -> Config {
        Config {
            name,
            subjects: vec![subject],
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            // No message can be removed, not even by the administrator.
            deny_delete: true,
            deny_purge: true,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_bytes: -1,
            max_message_size: -1,
            max_consumers: MAX_CONSUMERS,
            num_replicas: self.inner.options.replicas,
            duplicate_window: self.inner.options.duplicate_window,
            allow_direct: true,
            allow_atomic_publish: true,
            ..Config::default()
        }
    }
}

/// One finding for each field that differs from the requirement, under the name that the server's own tools use.
fn differences(expected: &Config, actual: &Config) -> Vec<Finding> {
    // Fields that the server fills in by itself, or that an operator may choose without any harm to history.
    const FREE: [&str; 5] = ["metadata", "description", "placement", "consumer_limits", "compression"];
    let fields = |config: &Config| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (expected_fields, actual_fields) = (fields(expected), fields(actual));
    let mut names: Vec<&String> = expected_fields.keys().chain(actual_fields.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let show = |value: Option<&Value>| value.map_or_else(|| "unset".to_owned(), Value::to_string);
    names
        .into_iter()
        .filter(|name| !FREE.contains(&name.as_str()))
        .map(|name| (name, actual_fields.get(name), expected_fields.get(name)))
        .filter(|(_, actual, expected)| actual != expected)
        .map(|(name, actual, expected)| Finding {
            what: format!(
                "stream {}: {name} is {}, must be {}",
                actual_name(actual_fields.get("name")),
                show(actual),
                show(expected)
            ),
            fix: format!("change {name} with `nats stream edit`; an existing stream is never changed by orgstream"),
        })
        .collect()
}

fn actual_name(name: Option<&Value>) -> &str {
    name.and_then(Value::as_str).unwrap_or_default()
}
