//! The streams behind the shards: created so that they cannot lose history, and never changed without the operator. The
//! snapshots are in a stream that may lose everything, and secrets in one
//! from which they can be taken away.

use async_nats::jetstream::{
    self,
    stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream},
};
use orgstream_events::{EventSubject, PLATFORM_ORG, Shard};
use serde_json::Value;

use crate::{Finding, Log, StreamError, StreamName, api::code, api::unavailable};

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
    /// Which stream serves the shard: 1 is the first, and each rewrite makes a later one.
    pub generation: u32,
    /// The sequence up to which messages are missing because they were erased; 0 if none are, or if others are missing too.
    pub erased_to: u64,
    /// Its consumers: the cursor of each worker, and those for catch-up reads of a few organizations; never one for
    /// each.
    pub consumers: usize,
}

/// The name of the shard's stream of this generation. No name is used a second time.
pub(crate) fn name(shard: Shard, generation: u32) -> String {
    match generation {
        1 => format!("EV_{shard}"),
        later => format!("EV_{shard}_g{later}"),
    }
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
        for Required { config, is_rewritten, may_be_made } in Box::pin(self.required()).await? {
            let info = match self.stream_info(&config.name).await? {
                Some(info) => info,
                None if may_be_made => self.create(&config).await?,
                None => {
                    findings.push(missing(&config.name));
                    continue;
                }
            };
            findings.extend(differences(&config, &info.config, is_rewritten));
        }
        self.place(PLATFORM_ORG).await?;
        Ok(findings)
    }

    /// Returns the names of the missing streams.
    pub async fn missing_streams(&self) -> Result<Vec<String>, StreamError> {
        let mut missing = Vec::new();
        for Required { config, .. } in Box::pin(self.required()).await? {
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
        for Required { config, is_rewritten, .. } in Box::pin(self.required()).await? {
            if let Some(info) = self.stream_info(&config.name).await? {
                findings.extend(differences(&config, &info.config, is_rewritten));
            }
        }
        Ok(findings)
    }

    /// Returns the extent of the shard's stream, as its leader knows it.
    pub async fn shard_state(&self, shard: Shard) -> Result<ShardState, StreamError> {
        let (generation, info) = self.shard_info(shard).await?;
        let record = &generation.record;
        Ok(ShardState {
            generation: record.generation,
            erased_to: record.explains(info.state.messages, info.state.last_sequence),
            first_seq: info.state.first_sequence,
            last_seq: info.state.last_sequence,
            messages: info.state.messages,
            bytes: info.state.bytes,
            consumers: info.state.consumer_count,
        })
    }

    /// Returns the last sequence ever written to the shard; 0 when there is no such stream.
    pub async fn shard_end(&self, shard: Shard) -> Result<u64, StreamError> {
        Ok(self.end_of(StreamName::Shard(shard)).await?.seq)
    }

    pub(crate) async fn stream_info(&self, name: &str) -> Result<Option<Info>, StreamError> {
        match self.ask("read a stream's state", format!("STREAM.INFO.{name}"), &()).await {
            Ok(info) => Ok(Some(info)),
            Err(StreamError::Refused { code: code::STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create(&self, config: &Config) -> Result<Info, StreamError> {
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

    async fn required(&self) -> Result<Vec<Required>, StreamError> {
        let mut all = Vec::new();
        for shard in self.shards() {
            let generation = Box::pin(self.look_up(shard)).await?;
            all.push(Required {
                config: self.serving(shard, generation.record.generation),
                is_rewritten: generation.record.rewriting.is_some(),
                // What was written to another generation is not in a stream that is made now.
                may_be_made: generation.record_seq == 0,
            });
        }
        let made = |config| Required { config, is_rewritten: false, may_be_made: true };
        all.push(made(self.history(SYSTEM.to_owned(), "sys.>".to_owned())));
        let replaced = |name: &str, subject: &str, discard| Config {
            discard,
            deny_delete: false,
            deny_purge: false,
            max_messages_per_subject: 1,
            ..self.history(name.to_owned(), subject.to_owned())
        };
        all.push(made(replaced(VAULT, "vault.>", DiscardPolicy::New)));
        all.push(made(replaced(SNAPSHOTS, "snap.>", DiscardPolicy::Old)));
        Ok(all)
    }

    /// Returns the configuration of the stream that serves a shard.
    pub(crate) fn serving(&self, shard: Shard, generation: u32) -> Config {
        self.history(name(shard, generation), EventSubject::all_in_shard(shard))
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

/// A stream that there must be.
struct Required {
    config: Config,
    /// Whether a rewrite of the shard is under way, which changes its stream for moments.
    is_rewritten: bool,
    /// Whether it is made when it is missing.
    may_be_made: bool,
}

fn missing(name: &str) -> Finding {
    Finding {
        what: format!("stream {name} is missing, and has served a shard"),
        fix: "bring back its storage; a shard that was rewritten is never begun again".to_owned(),
    }
}

/// One finding for each field that differs from the requirement, under the name that the server's own tools use.
pub(crate) fn differences(expected: &Config, actual: &Config, is_rewritten: bool) -> Vec<Finding> {
    // Fields that the server fills in by itself, or that an operator may choose without any harm to history.
    const FREE: [&str; 5] = ["metadata", "description", "placement", "consumer_limits", "compression"];
    let fix = |name: &str| {
        if is_rewritten {
            return "finish the rewrite of its shard: `orgstream shard rewrite` goes on where it was interrupted"
                .to_owned();
        }
        format!("change {name} with `nats stream edit`; an existing stream is never changed by orgstream")
    };
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
        // Off for moments, so that the server lets no copy answer in place of the stream.
        .filter(|name| !(is_rewritten && name.as_str() == "allow_direct"))
        .map(|name| (name, actual_fields.get(name), expected_fields.get(name)))
        .filter(|(_, actual, expected)| actual != expected)
        .map(|(name, actual, expected)| Finding {
            what: format!(
                "stream {}: {name} is {}, must be {}",
                actual_name(actual_fields.get("name")),
                show(actual),
                show(expected)
            ),
            fix: fix(name),
        })
        .collect()
}

fn actual_name(name: Option<&Value>) -> &str {
    name.and_then(Value::as_str).unwrap_or_default()
}
