//! The audit log's marks of what it lacks, compared with the stream: each mark of a parked message must match that message,
//! and each of them must have been settled.

use std::collections::BTreeMap;

use orgstream_events::{Chain, Event, Fingerprint, MessageParked, MessageSettled, OrgId, ParkingEvent, Settlement};
use orgstream_projections::audit::StoredEvent;
use orgstream_stream::Message;

/// The maximum number of named skipped messages.
const NAMED: usize = 100;

/// A message with a mark.
struct Marked {
    parked: MessageParked,
    /// Whether its events are in the log after all.
    found: bool,
    settled: Option<MessageSettled>,
}

/// The messages with a mark, in the order of the stream.
#[derive(Default)]
pub(super) struct Lacked(BTreeMap<u64, Marked>);

impl Lacked {
    /// Records a mark at the position of `message`; returns its error, if it does not match.
    pub(super) fn mark(&mut self, message: &Message, mark: StoredEvent) -> Option<String> {
        let at = message.seq;
        let opened = match mark.sealed.open() {
            Ok(opened) => opened.event,
            Err(error) => return Some(format!("a mark of the audit log at {at} cannot be read: {}", Chain(&error))),
        };
        match opened {
            Event::Parking(ParkingEvent::Parked(parked)) => {
                let is_other = parked.sha256.is_some_and(|hash| hash != Fingerprint::of(&[&message.payload]));
                let what = (parked.seq != at || is_other).then(|| {
                    format!("the audit log says that another message is parked at {at} than the stream has there")
                });
                self.0.insert(at, Marked { parked, found: false, settled: None });
                what
            }
            Event::Parking(ParkingEvent::Settled(settled)) => match self.0.get_mut(&settled.seq) {
                Some(marked) if marked.settled.is_none() => {
                    marked.settled = Some(settled);
                    None
                }
                _ => Some(format!("the audit log says at {at} what became of {}, which is not parked", settled.seq)),
            },
            _ => Some(format!("the audit log has an event among its marks at {at} that is none")),
        }
    }

    /// Whether the message has a mark.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.0.contains_key(&seq)
    }

    /// Records that the events of the message are in the log.
    pub(super) fn found(&mut self, seq: u64) {
        if let Some(marked) = self.0.get_mut(&seq) {
            marked.found = true;
        }
    }

    /// Returns the skipped messages, in words; passes mismatches to `find`.
    pub(super) fn finish(self, org: OrgId, mut find: impl FnMut(String)) -> Vec<String> {
        let mut given_up = Vec::new();
        for (seq, Marked { parked, found, settled }) in self.0 {
            let MessageParked { aggregate, reason, parked_at, waiting, .. } = parked;
            let why = if waiting { "it waits behind an earlier one of it".to_owned() } else { reason };
            let outcome = settled.map(|settled| settled.outcome);
            match (outcome, found) {
                (Some(Settlement::Applied), true) => {}
                (Some(Settlement::GivenUp), false) => {
                    if given_up.len() < NAMED {
                        given_up.push(format!("the message of {aggregate} at {org}:{seq} was given up: {why}"));
                    }
                }
                (None, false) => find(format!(
                    "the message of {aggregate} at {org}:{seq} is not in the audit log: it is parked since {parked_at}: {why}"
                )),
                (None | Some(Settlement::GivenUp), true) => {
                    find(format!("the audit log has the events of {org}:{seq}, and says that it lacks them"));
                }
                (Some(Settlement::Applied), false) => {
                    find(format!("the audit log says that {org}:{seq} was taken in, and its events are not there"));
                }
            }
        }
        given_up
    }
}
