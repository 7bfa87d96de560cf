//! A commit: the events of one command on one aggregate, or of several that were decided one after the other, as one message.
//!
//! One message is stored whole or not at all, so a command's events are atomic by construction.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    Actor, AggregateId, AggregateVersion, CodecError, CommandId, CommitKeys, Context, CorrelationId, Event, EventId,
    EventSubject, Fingerprint, Header, OrgId, Salt, Timestamp,
    codec::{from_bytes, open_content, seal_content},
};

/// The largest message, in bytes: a little under the server's own default of 1 MiB, headers included.
pub const MAX_COMMIT_BYTES: usize = 1_000_000;
/// The maximum number of events of one command.
pub const MAX_EVENTS_PER_COMMIT: usize = 1_000;
const VERSION: u8 = 1;
/// The version of a commit of several commands. A program that does not know them must not read one as that of its first.
const VERSION_OF_SEVERAL: u8 = 2;

/// The events of a decided command, before encoding.
#[derive(Debug, Clone)]
pub struct CommitDraft {
    /// The tenant.
    pub org: OrgId,
    /// The aggregate.
    pub aggregate: AggregateId,
    /// The aggregate's version before these events; 0 when they are its first.
    pub version_before: u64,
    /// The command.
    pub command_id: CommandId,
    /// The hash of the command's body, when it came under an idempotency key.
    pub fingerprint: Option<Fingerprint>,
    /// The actor.
    pub actor: Actor,
    /// When the events happened.
    pub occurred_at: Timestamp,
    /// When the command was accepted.
    pub recorded_at: Timestamp,
    /// The event that caused the command, if one did.
    pub causation_id: Option<EventId>,
    /// The correlation; none starts a new one.
    pub correlation_id: Option<CorrelationId>,
    /// The request id, as in the access log.
    pub request_id: Option<String>,
    /// The personal data about the request.
    pub context: Context,
    /// The events.
    pub events: Vec<Event>,
}

impl CommitDraft {
    /// Encodes the events, and decodes each again as a check; `salt` is called once for each.
    pub fn seal(self, mut salt: impl FnMut() -> Salt) -> Result<Commit, CodecError> {
        check_event_count(self.events.len())?;
        let place = format!("{}.{}", self.org, self.aggregate);
        let correlation_id = self.correlation_id.unwrap_or_else(|| CorrelationId::derive(self.command_id));
        let mut sealed = Vec::with_capacity(self.events.len());
        for (ordinal, event) in self.events.iter().enumerate() {
            let (payload, payload_commit) = seal_content(&event.encode(&self.context)?, salt());
            let (event_type, schema) = event.wire();
            let is_in_no_order = self.aggregate.is_access() || event.is_mark();
            let header = Header {
                v: VERSION,
                org_id: self.org,
                event_id: EventId::derive(self.command_id, &place, ordinal),
                event_type: event_type.to_owned(),
                schema,
                aggregate: AggregateVersion {
                    aggregate: self.aggregate.clone(),
                    version: if is_in_no_order { 0 } else { self.version_before + ordinal as u64 + 1 },
                },
                occurred_at: self.occurred_at,
                recorded_at: self.recorded_at,
                actor: self.actor.clone(),
                targets: event.targets(&self.aggregate),
                outcome: event.outcome(),
                command_id: self.command_id,
                causation_id: self.causation_id,
                correlation_id,
                request_id: self.request_id.clone(),
                payload_commit,
                payload_cipher_sha256: None,
            };
            let bytes = SealedEvent { header: rmp_serde::to_vec_named(&header)?.into(), payload: payload.into() };
            // Events that would decode differently from what was decided are not written.
            if bytes.clone().open()?.event != *event {
                return Err(CodecError::Unfaithful);
            }
            sealed.push(bytes);
        }
        Ok(Commit {
            v: VERSION,
            org_id: self.org,
            aggregate: self.aggregate,
            command_id: self.command_id,
            fingerprint: self.fingerprint,
            following: Vec::new(),
            events: sealed,
        })
    }
}

/// A command of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedCommand {
    /// The command.
    pub command_id: CommandId,
    /// The hash of its body, when it came under an idempotency key.
    pub fingerprint: Option<Fingerprint>,
}

/// One message of the stream, decoded as far as its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    v: u8,
    /// The tenant.
    pub org_id: OrgId,
    /// The aggregate.
    pub aggregate: AggregateId,
    /// The command.
    pub command_id: CommandId,
    /// The hash of the command's body, when it came under an idempotency key.
    pub fingerprint: Option<Fingerprint>,
    /// The commands that were decided after it, in order. The events of each follow on those of the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub following: Vec<CommittedCommand>,
    /// The events, in order.
    pub events: Vec<SealedEvent>,
}

impl Commit {
    /// Joins the commits of commands that were decided one after the other on the same aggregate. None without any, or of
    /// different aggregates.
    pub fn of_several(commits: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut commits = commits.into_iter();
        let mut joined = commits.next()?;
        for next in commits {
            if (next.org_id, &next.aggregate) != (joined.org_id, &joined.aggregate) {
                return None;
            }
            joined.following.push(CommittedCommand { command_id: next.command_id, fingerprint: next.fingerprint });
            joined.following.extend(next.following);
            joined.events.extend(next.events);
            joined.v = VERSION_OF_SEVERAL;
        }
        Some(joined)
    }

    /// Returns the id under which the stream stores the message once: that of the command, or a hash of all of them.
    pub fn message_id(&self) -> String {
        if self.following.is_empty() {
            return self.command_id.to_string();
        }
        let ids = self.following.iter().map(|command| command.command_id.uuid());
        let ids: Vec<[u8; 16]> = ids.map(|id| *id.as_bytes()).collect();
        format!("{}+{}", self.command_id, Fingerprint::of(&[ids.as_flattened()]))
    }

    /// Returns the size of its events, in bytes.
    pub fn size(&self) -> usize {
        self.events.iter().map(|event| event.header.len() + event.payload.len()).sum()
    }

    /// Returns the content of the message.
    pub fn encode(&self) -> Result<Bytes, CodecError> {
        let bytes = rmp_serde::to_vec_named(self)?;
        check_size(bytes.len())?;
        Ok(bytes.into())
    }

    /// Returns the signed bytes to store on `subject`, whose last sequence must be `previous`; none means no expectation.
    pub fn sign(&self, keys: &CommitKeys, subject: &EventSubject, previous: Option<u64>) -> Result<Bytes, CodecError> {
        Ok(keys.sign(&subject.to_string(), previous, &self.encode()?)?.into())
    }

    /// Decodes the content of a message; [`Commit::open`] decodes its events.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        check_size(bytes.len())?;
        let commit: Self = from_bytes("commit", bytes)?;
        let version = if commit.following.is_empty() { VERSION } else { VERSION_OF_SEVERAL };
        if commit.v != version {
            return Err(CodecError::Unknown { what: "commit version", value: commit.v.to_string() });
        }
        check_event_count(commit.events.len())?;
        Ok(commit)
    }

    /// Opens the events of a commit that came on `subject`.
    ///
    /// A commit, or a header in it, that names another org or aggregate than the subject does is refused as a whole.
    pub fn open(self, subject: &EventSubject) -> Result<OpenedCommit, CodecError> {
        let belongs = |org: OrgId, aggregate: &AggregateId| {
            if org != subject.org {
                return Err(CodecError::ForeignOrg { envelope: org, expected: subject.org });
            }
            if *aggregate != subject.aggregate {
                let (envelope, expected) = (Box::new(aggregate.clone()), Box::new(subject.aggregate.clone()));
                return Err(CodecError::ForeignAggregate { envelope, expected });
            }
            Ok(())
        };
        belongs(self.org_id, &self.aggregate)?;
        let mut events = Vec::with_capacity(self.events.len());
        for sealed in self.events {
            let opened = sealed.open()?;
            belongs(opened.header.org_id, &opened.header.aggregate.aggregate)?;
            events.push(opened);
        }
        let commit = OpenedCommit {
            command_id: self.command_id,
            fingerprint: self.fingerprint,
            following: self.following,
            events,
        };
        // Each command of several has events, which say whose they are.
        if !commit.following.is_empty() && !commit.has_its_commands() {
            return Err(CodecError::Unknown { what: "commands of a commit", value: commit.command_id.to_string() });
        }
        Ok(commit)
    }
}

/// One event as it is stored permanently: two byte strings, the first committing to the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEvent {
    /// The header's bytes; the audit leaf is computed over exactly these.
    pub header: Bytes,
    /// The payload's bytes, starting with the encoding marker.
    pub payload: Bytes,
}

impl SealedEvent {
    /// Decodes both parts and checks the payload against the header's commitment.
    pub fn open(self) -> Result<OpenedEvent, CodecError> {
        let header = self.read_header()?;
        let content = open_content(&self.payload, header.payload_commit)?;
        let (event, context) = Event::decode(&header.event_type, header.schema, content)?;
        Ok(OpenedEvent { header, event, context, sealed: self })
    }

    /// Decodes the header alone, which needs no payload.
    pub fn read_header(&self) -> Result<Header, CodecError> {
        let header: Header = from_bytes("header", &self.header)?;
        if header.v != VERSION {
            return Err(CodecError::Unknown { what: "header version", value: header.v.to_string() });
        }
        Ok(header)
    }
}

/// A commit with its events decoded, every one of them of the org and aggregate that the subject named.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenedCommit {
    /// The command; of several the first.
    pub command_id: CommandId,
    /// The hash of the command's body, when it came under an idempotency key.
    pub fingerprint: Option<Fingerprint>,
    /// The commands that were decided after it.
    pub following: Vec<CommittedCommand>,
    /// The events, in order.
    pub events: Vec<OpenedEvent>,
}

/// The events of one command of a commit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenedCommand<'a> {
    /// The command.
    pub command_id: CommandId,
    /// The hash of its body, when it came under an idempotency key.
    pub fingerprint: Option<Fingerprint>,
    /// Its events, in order.
    pub events: &'a [OpenedEvent],
}

impl OpenedCommit {
    /// Begins a commit with its first event, which comes with the fingerprint of its command.
    pub fn begin(event: OpenedEvent, fingerprint: Option<Fingerprint>) -> Self {
        Self { command_id: event.header.command_id, fingerprint, following: Vec::new(), events: vec![event] }
    }

    /// Adds the next event. The first one of each command comes with the fingerprint of that.
    pub fn push(&mut self, event: OpenedEvent, fingerprint: Option<Fingerprint>) {
        let command_id = event.header.command_id;
        if self.events.last().is_some_and(|last| last.header.command_id != command_id) {
            self.following.push(CommittedCommand { command_id, fingerprint });
        }
        self.events.push(event);
    }

    /// Returns its commands, each with its events.
    pub fn commands(&self) -> impl Iterator<Item = OpenedCommand<'_>> {
        let first = CommittedCommand { command_id: self.command_id, fingerprint: self.fingerprint };
        let commands = std::iter::once(first).chain(self.following.iter().copied());
        commands.zip(self.events.chunk_by(|one, next| one.header.command_id == next.header.command_id)).map(
            |(CommittedCommand { command_id, fingerprint }, events)| OpenedCommand { command_id, fingerprint, events },
        )
    }

    /// Returns the events, each with the fingerprint of its command where it is the first one of that.
    pub fn events_and_fingerprints(&self) -> impl Iterator<Item = (&OpenedEvent, Option<Fingerprint>)> {
        self.commands().flat_map(|command| {
            command.events.iter().enumerate().map(move |(nth, event)| (event, command.fingerprint.filter(|_| nth == 0)))
        })
    }

    fn has_its_commands(&self) -> bool {
        let of_its_events = |command: OpenedCommand<'_>| {
            command.events.first().is_some_and(|first| first.header.command_id == command.command_id)
        };
        let groups = self.events.chunk_by(|one, next| one.header.command_id == next.header.command_id).count();
        groups == 1 + self.following.len() && self.commands().all(of_its_events)
    }

    /// Returns the message that it was opened from; none without events.
    pub fn seal(&self) -> Option<Commit> {
        let header = &self.events.first()?.header;
        Some(Commit {
            v: if self.following.is_empty() { VERSION } else { VERSION_OF_SEVERAL },
            org_id: header.org_id,
            aggregate: header.aggregate.aggregate.clone(),
            command_id: self.command_id,
            fingerprint: self.fingerprint,
            following: self.following.clone(),
            events: self.events.iter().map(|event| event.sealed.clone()).collect(),
        })
    }
}

/// A decoded event, with the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenedEvent {
    /// The header: actor, action and time.
    pub header: Header,
    /// The event.
    pub event: Event,
    /// The personal data about the request.
    pub context: Context,
    /// The stored bytes.
    pub sealed: SealedEvent,
}

fn check_size(size: usize) -> Result<(), CodecError> {
    if size > MAX_COMMIT_BYTES { Err(CodecError::TooLarge { size, limit: MAX_COMMIT_BYTES }) } else { Ok(()) }
}

fn check_event_count(count: usize) -> Result<(), CodecError> {
    if (1..=MAX_EVENTS_PER_COMMIT).contains(&count) {
        Ok(())
    } else {
        Err(CodecError::EventCount { count, limit: MAX_EVENTS_PER_COMMIT })
    }
}
