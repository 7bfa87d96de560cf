//! Consumers: server-side readers of a worker. Ephemeral, in memory, without acknowledgements, and removed by
//! inactivity.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, Info};
use bytes::Bytes;
use orgstream_events::{EventSubject, OrgId, Shard};
use serde_json::json;
use uuid::Uuid;

use crate::{Log, Message, StreamError, api::is_gone, generation::Generation};

/// Inactivity after which the server removes a consumer.
const INACTIVE: Duration = Duration::from_secs(30);
/// Silence after which a request counts as ended once as many bytes have arrived as it allows: the server sends no
/// message at the end of a request whose bytes are used up exactly.
pub(crate) const SPENT: Duration = Duration::from_millis(50);

/// The messages of a shard to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reads {
    Everything,
    Only(OrgId),
}

/// A consumer on the server. It ends with its stream: who reads on makes another one, at the same sequence of the stream that
/// serves the shard then.
#[derive(Debug)]
pub(crate) struct Consumer {
    /// The subject for its requests.
    pub(crate) ask: String,
    /// The stream that it reads.
    pub(crate) generation: Arc<Generation>,
}

/// Creates a consumer of the messages after `after`.
pub(crate) async fn create(log: &Log, shard: Shard, reads: Reads, after: u64) -> Result<Consumer, StreamError> {
    let mut generation = log.generation(shard).await?;
    loop {
        match create_on(log, &generation, reads, after).await {
            Err(error) if is_gone(&error) => generation = log.successor(&generation).await?.ok_or(error)?,
            ask => return Ok(Consumer { ask: ask?, generation }),
        }
    }
}

async fn create_on(log: &Log, generation: &Generation, reads: Reads, after: u64) -> Result<String, StreamError> {
    let (stream, shard) = (&generation.name, generation.shard);
    let (action, kind, description, filter_subject) = match reads {
        Reads::Everything => ("begin a cursor", "cursor", "an orgstream worker reading its shard", String::new()),
        Reads::Only(org) => {
            let filter = EventSubject::all_of_org(shard, org);
            ("begin to catch up", "backlog", "an orgstream worker catching up with one organization", filter)
        }
    };
    let name = format!("{kind}_{}", Uuid::now_v7().simple());
    let config = Config {
        name: Some(name.clone()),
        description: Some(description.to_owned()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
        ack_policy: AckPolicy::None,
        filter_subject,
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: INACTIVE,
        ..Config::default()
    };
    // The server requires the filter in the subject, too.
    let subject = match config.filter_subject.as_str() {
        "" => format!("CONSUMER.CREATE.{stream}.{name}"),
        filter => format!("CONSUMER.CREATE.{stream}.{name}.{filter}"),
    };
    let body = json!({ "stream_name": stream, "config": config, "action": "create" });
    let _: Info = log.ask(action, subject, &body).await?;
    Ok(format!("{}.CONSUMER.MSG.NEXT.{stream}.{name}", log.inner.api))
}

/// The position of a delivered message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    /// The number of messages that the consumer has sent.
    pub(crate) number: u64,
    /// Messages that exist and were not sent yet.
    pub(crate) ahead: u64,
}

impl Place {
    /// Parses `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, or the longer
    /// form that has a domain and an account before the stream, and more fields after the last.
    pub(crate) fn of(message: &async_nats::Message) -> Option<Self> {
        Self::parse(message.reply.as_ref()?.as_str())
    }

    /// The message at this position.
    pub(crate) fn message(self, generation: &Generation, message: async_nats::Message) -> Message {
        // The payload is a slice of the connection's read buffer; one small message kept in a lane would keep the whole
        // buffer in memory.
        let payload = Bytes::copy_from_slice(&message.payload);
        generation.message(self.seq, message.subject.into_string(), message.headers.as_ref(), payload)
    }

    fn parse(reply: &str) -> Option<Self> {
        let tokens = reply.split('.').count();
        let first = if tokens <= 9 { 3 } else { 5 };
        let mut rest = reply.strip_prefix("$JS.ACK.")?.split('.').skip(first);
        let (seq, number) = (rest.next()?.parse().ok()?, rest.next()?.parse().ok()?);
        Some(Self { seq, number, ahead: rest.nth(1)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn both_forms_of_an_ack_subject_have_a_place() {
        let place = Some(Place { seq: 42, number: 7, ahead: 3 });
        assert_eq!(Place::parse("$JS.ACK.EV_0.cursor.1.42.7.1700000000000000000.3"), place);
        assert_eq!(Place::parse("$JS.ACK.hub.hash.EV_0.cursor.1.42.7.1700000000000000000.3.rand"), place);
        assert_eq!(Place::parse("_INBOX.x"), None);
    }
}
