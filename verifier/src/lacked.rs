//! The log's statements about messages that it could not apply: a mark is in the place of each, and another one where
//! it was settled.

use std::collections::BTreeMap;

use orgstream_events::{CommandId, MessageParked, MessageSettled, ParkingEvent, Settlement};

use crate::{Entry, MANIFEST, Manifest, Outcome, Report};

/// Given-up and parked messages that are described. The rest is counted.
const NAMED: usize = 100;

/// A message with a mark that is not settled yet.
struct Open {
    /// The index of its mark.
    idx: u64,
    /// Its content; only of the first ones.
    what: Option<Box<MessageParked>>,
}

/// The marks, collected as the events are read.
#[derive(Default)]
pub(crate) struct Lacked {
    /// Every message with a mark, by its sequence; None once it is settled.
    marked: BTreeMap<u64, Option<Open>>,
    named: usize,
    /// The commands whose events are applied late, while they last.
    late: Vec<CommandId>,
}

impl Lacked {
    /// Takes the next entry. Returns whether it was applied late, so that it is older than the one before it.
    pub(crate) fn pass(&mut self, entry: &Entry, report: &mut Report) -> bool {
        if !self.late.contains(&entry.header.command_id) {
            self.late.clear();
        }
        let is_late = !self.late.is_empty();
        match &entry.mark {
            Some(ParkingEvent::Parked(parked)) => {
                let what = (self.named < NAMED).then(|| Box::new(parked.clone()));
                self.named += 1;
                let open = Open { idx: entry.idx, what };
                if self.marked.insert(parked.seq, Some(open)).is_some() {
                    let what =
                        format!("it says that message {} is parked, as an entry in front of it does", parked.seq);
                    report.find(Outcome::Invalid, None, Some(entry.idx), what);
                }
            }
            Some(ParkingEvent::Settled(settled)) => self.settle(settled, entry.idx, report),
            Some(ParkingEvent::Retried(_) | ParkingEvent::Skipped(_)) | None => {}
        }
        is_late
    }

    fn settle(&mut self, settled: &MessageSettled, idx: u64, report: &mut Report) {
        let MessageSettled { seq, aggregate, outcome, command_id, following } = settled;
        let Some(open) = self.marked.get_mut(seq).and_then(Option::take) else {
            let what = format!("it says what became of message {seq}, which no entry in front of it says is parked");
            report.find(Outcome::Invalid, None, Some(idx), what);
            return;
        };
        match outcome {
            Settlement::Applied => self.late = command_id.iter().chain(following).copied().collect(),
            Settlement::GivenUp => {
                report.given_up += 1;
                if report.given_up <= NAMED as u64 {
                    report.notes.push(format!(
                        "event {}: message {seq}, of {aggregate}, stood here; the operator gave it up (event {idx}, and the \
                         decision in front of it says who and why)",
                        open.idx
                    ));
                }
            }
        }
    }

    /// Unsettled messages make the range incomplete, and so do those that the manifest names and the log does not.
    pub(crate) fn finish(self, manifest: &Manifest, report: &mut Report) {
        for without in &manifest.without {
            if !self.marked.contains_key(&without.position.seq) {
                report.lacked += 1;
                let what = format!(
                    "the message at {}, of {}, was parked when the bundle was made, and no entry stands in its place: {}",
                    without.position, without.aggregate, without.reason
                );
                report.find(Outcome::Incomplete, Some(MANIFEST), None, what);
            }
        }
        for (seq, open) in self.marked {
            let Some(Open { idx, what }) = open else { continue };
            report.lacked += 1;
            let known = what.map(|parked| {
                let MessageParked { aggregate, waiting, reason, parked_at, sha256, .. } = *parked;
                let why = if waiting { "it waits behind an earlier one of the same thing".to_owned() } else { reason };
                let hash = sha256.map(|hash| format!(", SHA-256 {hash}")).unwrap_or_default();
                format!(", of {aggregate}, parked since {parked_at}{hash}: {why}")
            });
            let what = format!("message {seq} stands here and is not in the log{}", known.unwrap_or_default());
            report.find(Outcome::Incomplete, None, Some(idx), what);
        }
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::{
        Actor, ActorType, AggregateId, AggregateName, CommitDraft, Context, Event, OrgId, ParkedEventsRetried,
        Pipeline, Salt, Timestamp,
    };

    use super::*;
    use crate::Payload;

    fn entry(idx: u64, command: u8, event: ParkingEvent) -> Entry {
        let draft = CommitDraft {
            org: OrgId::fresh(1, [1; 10]),
            aggregate: AggregateId::Parking(Pipeline::Audit),
            version_before: 0,
            command_id: CommandId::fresh(1, [command; 10]),
            fingerprint: None,
            actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
            occurred_at: Timestamp::from_unix_ms(1_700_000_000_000),
            recorded_at: Timestamp::from_unix_ms(1_700_000_000_000),
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: Context::default(),
            events: vec![Event::Parking(event)],
        };
        let sealed = draft.seal(|| Salt([7; 32])).unwrap().events.remove(0);
        Entry::read(idx, &sealed.header, &Payload::Here(sealed.payload.to_vec())).unwrap()
    }

    fn aggregate() -> AggregateName {
        "record.res_1".into()
    }

    fn parked(seq: u64) -> ParkingEvent {
        let (reason, parked_at) = ("broken".to_owned(), Timestamp::from_unix_ms(1));
        ParkingEvent::Parked(MessageParked {
            seq,
            aggregate: aggregate(),
            waiting: false,
            reason,
            parked_at,
            sha256: None,
        })
    }

    fn settled(seq: u64, command: Option<u8>) -> ParkingEvent {
        let outcome = if command.is_some() { Settlement::Applied } else { Settlement::GivenUp };
        let command_id = command.map(|command| CommandId::fresh(1, [command; 10]));
        ParkingEvent::Settled(MessageSettled {
            seq,
            aggregate: aggregate(),
            outcome,
            command_id,
            following: Vec::new(),
        })
    }

    fn other() -> ParkingEvent {
        ParkingEvent::Retried(ParkedEventsRetried { aggregate: aggregate() })
    }

    /// Which of the entries are late, and the report about them.
    fn passed(entries: Vec<(u8, ParkingEvent)>) -> (Vec<bool>, Report) {
        let (mut lacked, mut report) = (Lacked::default(), Report::default());
        let entries = (0..).zip(entries).map(|(idx, (command, event))| entry(idx, command, event));
        let late = entries.map(|entry| lacked.pass(&entry, &mut report)).collect();
        let manifest = Manifest {
            format: String::new(),
            org: OrgId::fresh(1, [1; 10]),
            origin: String::new(),
            size: 0,
            created_at: Timestamp::from_unix_ms(1),
            tool: String::new(),
            without: Vec::new(),
            files: Vec::new(),
        };
        lacked.finish(&manifest, &mut report);
        (late, report)
    }

    #[test]
    fn only_the_events_of_the_command_that_a_mark_names_are_late_and_only_right_behind_it() {
        let (late, report) = passed(vec![
            (1, parked(7)),
            (2, other()),
            (3, settled(7, Some(4))),
            (4, other()),
            (4, other()),
            (5, other()),
            (4, other()),
        ]);
        assert_eq!(late, [false, false, false, true, true, false, false]);
        assert_eq!((report.outcome(), report.lacked, report.given_up), (Outcome::Valid, 0, 0));
    }

    #[test]
    fn what_is_not_settled_is_lacked_and_what_was_given_up_is_named() {
        let (_, report) = passed(vec![(1, parked(7)), (2, parked(8)), (3, settled(8, None))]);
        assert_eq!((report.outcome(), report.lacked, report.given_up), (Outcome::Incomplete, 1, 1));
        assert!(report.findings[0].to_string().starts_with("event 0: message 7 "), "{:?}", report.findings);
        assert!(report.notes[0].contains("message 8"), "{:?}", report.notes);
    }

    #[test]
    fn a_mark_without_the_one_that_it_belongs_to_is_invalid() {
        for entries in [
            vec![(1, settled(7, None))],
            vec![(1, parked(7)), (2, parked(7))],
            vec![(1, parked(7)), (2, settled(7, None)), (3, settled(7, None))],
        ] {
            assert_eq!(passed(entries).1.outcome(), Outcome::Invalid);
        }
    }
}
