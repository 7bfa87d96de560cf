//! The audit log's marks: an entry where the log skips a message that it cannot apply, and one where that message is
//! settled. Reading, exporting, verifying and replaying the log all pass both in their places, and heads are signed
//! over them (`docs/decisions/0041-the-log-marks-what-it-lacks.md`).

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use orgstream_events::{
    Actor, ActorType, AggregateId, AggregateName, CodecError, CommandId, CommitDraft, Context, Event, EventId,
    Fingerprint, MessageParked, MessageSettled, OpenedCommit, OrgId, ParkingEvent, Pipeline, Salt, SealedEvent,
    Settlement, Timestamp, cause,
};
use orgstream_projections::{
    Applied, DbError,
    parked::{ParkedMessage, ParkedState},
};

use crate::batch::{Decision, ToPark};

/// The longest reason that a mark repeats, in characters.
const MAX_REASON: usize = 2_000;

/// The current time, by this process's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The mark of a message that is parked now. `at` is its time in the log's order.
pub(crate) fn parked(org: OrgId, message: &ToPark, at: Timestamp) -> Result<Applied, DbError> {
    let (state, reason) = (message.state, message.reason.as_str());
    let mark = parked_mark(org, message.seq, &message.subject, (state, reason), (now(), message.sha256));
    mark_of(org, (message.seq, &message.subject, "parked"), message.seq, (at, None), mark)
}

/// The mark of a message that was parked by a program version without marks: late, but before the mark of its
/// settlement.
pub(crate) fn parked_before(org: OrgId, message: &ParkedMessage, at: Timestamp) -> Result<Applied, DbError> {
    let known = &message.parked;
    let mark = parked_mark(org, known.seq, &known.subject, (known.state, &known.reason), (known.parked_at, None));
    mark_of(org, (known.seq, &known.subject, "parked"), known.seq, (at, None), mark)
}

/// The mark of a parked message's settlement by a decision, whose place it takes.
pub(crate) fn settled(
    org: OrgId,
    message: &ParkedMessage,
    decision: &Decision,
    applied: Option<&Applied>,
) -> Result<Applied, DbError> {
    let (seq, subject) = (message.parked.seq, message.parked.subject.as_str());
    let outcome = if applied.is_some() { Settlement::Applied } else { Settlement::GivenUp };
    let mut commands =
        applied.into_iter().flat_map(|applied| applied.commit.commands().map(|command| command.command_id));
    let (command_id, following) = (commands.next(), commands.collect());
    let aggregate = AggregateName::of_subject(subject);
    let mark = ParkingEvent::Settled(MessageSettled { seq, aggregate, outcome, command_id, following });
    mark_of(org, (seq, subject, "settled"), decision.seq, (decision.at, Some(decision.event)), mark)
}

fn parked_mark(
    org: OrgId,
    seq: u64,
    subject: &str,
    (state, reason): (ParkedState, &str),
    (parked_at, sha256): (Timestamp, Option<Fingerprint>),
) -> ParkingEvent {
    let reason = for_readers_of(org, reason).chars().take(MAX_REASON).collect();
    let (aggregate, waiting) = (AggregateName::of_subject(subject), state == ParkedState::Waiting);
    ParkingEvent::Parked(MessageParked { seq, aggregate, waiting, reason, parked_at, sha256 })
}

/// A mark as a commit that is not in the stream, placed at `place`.
fn mark_of(
    org: OrgId,
    (seq, subject, name): (u64, &str, &str),
    place: u64,
    (at, causation_id): (Timestamp, Option<EventId>),
    mark: ParkingEvent,
) -> Result<Applied, DbError> {
    let draft = CommitDraft {
        org,
        aggregate: AggregateId::Parking(Pipeline::Audit),
        version_before: 0,
        command_id: CommandId::of_mark(org, subject, seq, name),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: at,
        recorded_at: at,
        causation_id,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events: vec![Event::Parking(mark)],
    };
    let unwritable =
        |error: CodecError| DbError::Undecodable { what: "a mark of the audit log".to_owned(), cause: cause(error) };
    let commit = draft.seal(|| Salt(rand::random())).map_err(unwritable)?;
    let events: Result<Vec<_>, CodecError> = commit.events.into_iter().map(SealedEvent::open).collect();
    let (command_id, following, events) = (commit.command_id, Vec::new(), events.map_err(unwritable)?);
    Ok(Applied { seq: place, commit: Arc::new(OpenedCommit { command_id, fingerprint: None, following, events }) })
}

/// A reason in the form that may be in the log of `org`: it names no other organization.
fn for_readers_of(org: OrgId, reason: &str) -> String {
    let word = |word: &str| {
        let name = word.trim_end_matches([',', '.', ':', ';', ')']);
        match name.parse::<OrgId>() {
            Ok(other) if other != org => word.replacen(name, "another organization", 1),
            _ => word.to_owned(),
        }
    };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reason_names_another_organization() {
        let [own, other] = [1, 2].map(|number| OrgId::fresh(1, [number; 10]));
        let reason = format!("the envelope belongs to {other}, but it came for {own}");
        let shown = format!("the envelope belongs to another organization, but it came for {own}");
        assert_eq!(for_readers_of(own, &reason), shown);
    }
}
