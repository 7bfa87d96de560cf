//! Append: one commit, or several of one org that are stored atomically.
//!
//! Every message states the last sequence it expects on its subject. That makes a blind retry safe, and distinguishes a
//! retry from a conflict: when the subject has moved on, its last message is either this writer's (an earlier try had
//! arrived) or another writer's. Access events expect nothing: they share a subject, and none of them follows from
//! another.

use std::time::Duration;

use orgstream_events::{Cause, Chain, CodecError, Commit, CommitKeys, EventSubject, Shard, cause};
use tokio::time::Instant;

use crate::{
    AppendError, Log, Message, Placement, StreamError,
    api::backoff,
    generation::Which,
    publish::{Answer, Write},
};

/// How long an append is retried before its outcome is reported as unknown.
///
/// A cluster elects a new leader within 9 seconds, after which the append has to be tried once more.
const DEADLINE: Duration = Duration::from_secs(15);
/// The most commits in one atomic append. The server accepts 1,000; a command that spans aggregates needs two or three.
const MAX_TOGETHER: usize = 100;

/// The writer's expectation about the aggregate's subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The last sequence on it; 0 means that it has no message.
    Last(u64),
    /// No expectation: an access event stands for itself, whatever was there before.
    Any,
}

impl Expected {
    fn seq(self) -> Option<u64> {
        match self {
            Self::Last(seq) => Some(seq),
            Self::Any => None,
        }
    }
}

impl From<u64> for Expected {
    fn from(seq: u64) -> Self {
        Self::Last(seq)
    }
}

/// The place where a commit is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its sequence in the shard's stream.
    pub seq: u64,
    /// Whether it was stored already, by an earlier try.
    pub replayed: bool,
}

impl Log {
    /// Appends one commit if `expected` is still the last sequence on its subject.
    ///
    /// Safe to repeat: a commit that is stored already is found and returned with `replayed`. An access event's
    /// ([`Expected::Any`]) is found only as long as the broker remembers its message id; after that it is stored twice,
    /// and the audit log skips the second by its event id.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %placement.org, shard = %placement.shard))]
    pub async fn append(
        &self,
        placement: &Placement,
        commit: &Commit,
        expected: impl Into<Expected>,
        trace: Option<&str>,
    ) -> Result<Appended, AppendError> {
        let write = prepare(self.keys(), placement, commit, expected.into(), trace, None)?;
        let _share = self.inner.shares.enter(placement.org).await;
        let started = Instant::now();
        let result = self.append_one(placement, commit, write).await;
        record(started, &result.as_ref().map(|appended| appended.replayed));
        self.inner.troubles.note(placement.shard, result.as_ref().err());
        result
    }

    /// Appends commits to several aggregates of one org atomically, each with the last sequence that it expects on its
    /// own subject.
    #[tracing::instrument(level = "debug", skip_all, fields(org.id = %placement.org, shard = %placement.shard))]
    pub async fn append_together(
        &self,
        placement: &Placement,
        commits: &[(Commit, u64)],
        trace: Option<&str>,
    ) -> Result<Vec<Appended>, AppendError> {
        let _share = self.inner.shares.enter(placement.org).await;
        let started = Instant::now();
        let result = self.append_all(placement, commits, trace).await;
        record(started, &result.as_ref().map(|all| all.iter().any(|appended| appended.replayed)));
        self.inner.troubles.note(placement.shard, result.as_ref().err());
        result
    }

    /// Checks that the shard has lost no history, as far as this process knows. The inner error is the reason why a
    /// check that was needed could not be made.
    async fn certain(&self, shard: Shard, deadline: Instant) -> Result<Result<(), Cause>, AppendError> {
        self.inner.tips.refuse(shard)?;
        match within(deadline, self.make_sure(shard)).await? {
            Ok(()) => Ok(Ok(())),
            Err(StreamError::Lost { stream, what }) => Err(AppendError::Lost { stream, what }),
            Err(error) => retry_or_refuse(error),
        }
    }

    async fn append_one(&self, placement: &Placement, commit: &Commit, write: Write) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + DEADLINE;
        let tips = &self.inner.tips;
        let queue = self.inner.queues.get(usize::from(placement.shard.0));
        let mut before = tips.end(placement.shard);
        let mut answer = match (self.certain(placement.shard, deadline).await?, queue) {
            (Err(reason), _) => Answer::Unknown { reason },
            (Ok(()), Some(queue)) => within(deadline, queue.publish(write.clone())).await?,
            (Ok(()), None) => within(deadline, self.inner.publisher.publish_in_turn(&write)).await?,
        };
        for tries in 0.. {
            let reason = match self.decided(placement.shard, answer, commit, &write.subject).await? {
                Ok(appended) if appended.replayed => return Ok(appended),
                Ok(appended) => {
                    tips.acknowledged(placement.shard, before, (appended.seq, appended.seq), &write.payload)?;
                    return Ok(appended);
                }
                Err(reason) => reason,
            };
            pause(tries, deadline, reason).await?;
            before = tips.end(placement.shard);
            answer = match self.certain(placement.shard, deadline).await? {
                Ok(()) => within(deadline, self.inner.publisher.publish_in_turn(&write)).await?,
                Err(reason) => Answer::Unknown { reason },
            };
        }
        Err(AppendError::Unavailable { reason: cause("out of tries") })
    }

    async fn append_all(
        &self,
        placement: &Placement,
        commits: &[(Commit, u64)],
        trace: Option<&str>,
    ) -> Result<Vec<Appended>, AppendError> {
        if commits.is_empty() || commits.len() > MAX_TOGETHER {
            return Err(AppendError::Invalid(format!(
                "1 to {MAX_TOGETHER} commits go together, not {}",
                commits.len()
            )));
        }
        let mut writes = Vec::with_capacity(commits.len());
        for (ordinal, (commit, expected)) in commits.iter().enumerate() {
            let ordinal = (commits.len() > 1).then_some(ordinal);
            let write = prepare(self.keys(), placement, commit, Expected::Last(*expected), trace, ordinal)?;
            if writes.iter().any(|other: &Write| other.subject == write.subject) {
                return Err(AppendError::Invalid(format!("{} appears twice", write.subject)));
            }
            writes.push(write);
        }
        let deadline = Instant::now() + DEADLINE;
        let batch: Vec<&Write> = writes.iter().collect();
        for tries in 0.. {
            let before = self.inner.tips.end(placement.shard);
            let answer = match self.certain(placement.shard, deadline).await? {
                Ok(()) => within(deadline, self.inner.publisher.publish_batch(&batch)).await?,
                Err(reason) => Answer::Unknown { reason },
            };
            let reason = match answer {
                Answer::Stored { seq } => {
                    let last = writes.last().map(|write| write.payload.clone()).unwrap_or_default();
                    let first = (seq + 1).saturating_sub(writes.len() as u64);
                    self.inner.tips.acknowledged(placement.shard, before, (first, seq), &last)?;
                    return Ok((first..=seq).map(|seq| Appended { seq, replayed: false }).collect());
                }
                Answer::Stale | Answer::Duplicate { .. } => {
                    match self.found_together(placement.shard, commits, &writes).await? {
                        Ok(appended) => return Ok(appended),
                        Err(reason) => reason,
                    }
                }
                Answer::Unknown { reason } => reason,
                Answer::Refused { code, description } => return Err(AppendError::Refused { code, description }),
                Answer::TooLarge { size, limit } => return Err(CodecError::TooLarge { size, limit }.into()),
            };
            pause(tries, deadline, reason).await?;
        }
        Err(AppendError::Unavailable { reason: cause("out of tries") })
    }

    /// Maps an answer to the outcome of the commit. The inner error is the reason for a retry.
    async fn decided(
        &self,
        shard: Shard,
        answer: Answer,
        commit: &Commit,
        subject: &str,
    ) -> Result<Result<Appended, Cause>, AppendError> {
        let stored = match answer {
            Answer::Stored { seq } => return Ok(Ok(Appended { seq, replayed: false })),
            Answer::Unknown { reason } => return Ok(Err(reason)),
            Answer::Refused { code, description } => return Err(AppendError::Refused { code, description }),
            Answer::TooLarge { size, limit } => return Err(CodecError::TooLarge { size, limit }.into()),
            Answer::Stale => self.on_leader(shard, Which::Last(subject)).await,
            Answer::Duplicate { seq } => self.on_leader(shard, Which::At(seq)).await,
        };
        match stored {
            Ok(stored) => ours(self.keys(), stored.as_ref(), commit, subject).map(Ok),
            Err(error) => retry_or_refuse(error),
        }
    }

    /// Checks, after a rejected batch, whether all of its commits were stored by an earlier try.
    async fn found_together(
        &self,
        shard: Shard,
        commits: &[(Commit, u64)],
        writes: &[Write],
    ) -> Result<Result<Vec<Appended>, Cause>, AppendError> {
        let mut found = Vec::with_capacity(commits.len());
        let mut moved_on = None;
        for ((commit, expected), write) in commits.iter().zip(writes) {
            let stored = match self.on_leader(shard, Which::Last(&write.subject)).await {
                Ok(stored) => stored,
                Err(error) => return retry_or_refuse(error),
            };
            match ours(self.keys(), stored.as_ref(), commit, &write.subject) {
                Ok(appended) => found.push(appended),
                Err(error @ AppendError::KeyReused { .. }) => return Err(error),
                Err(error) if stored.as_ref().map_or(0, |stored| stored.seq) != *expected => return Err(error),
                Err(error) => moved_on = Some(error),
            }
        }
        match moved_on {
            None => Ok(Ok(found)),
            // Every expectation still holds, so the server has seen one of the message ids before.
            Some(_) if found.is_empty() => Err(AppendError::KeyReused { subject: "another aggregate".to_owned() }),
            Some(error) => Err(error),
        }
    }
}

fn prepare(
    keys: &CommitKeys,
    placement: &Placement,
    commit: &Commit,
    expected: Expected,
    trace: Option<&str>,
    ordinal: Option<usize>,
) -> Result<Write, AppendError> {
    if commit.org_id != placement.org {
        let (commit, placement) = (commit.org_id, placement.org);
        return Err(AppendError::Invalid(format!("a commit of {commit} for the placement of {placement}")));
    }
    let subject = EventSubject { shard: placement.shard, org: commit.org_id, aggregate: commit.aggregate.clone() };
    let message_id = match ordinal {
        Some(ordinal) => format!("{}/{ordinal}", commit.message_id()),
        None => commit.message_id(),
    };
    Ok(Write {
        subject: subject.to_string(),
        payload: commit.sign(keys, &subject, expected.seq())?,
        message_id: Some(message_id),
        expected: expected.seq(),
        trace: trace.map(str::to_owned),
    })
}

/// Whether `stored` is the message that an earlier try stored.
fn ours(keys: &CommitKeys, stored: Option<&Message>, commit: &Commit, subject: &str) -> Result<Appended, AppendError> {
    let conflict = || AppendError::Conflict { subject: subject.to_owned() };
    let stored = stored.ok_or_else(conflict)?;
    let content = stored.content(keys).map_err(|_| conflict())?;
    let found = Commit::decode(content).map_err(|_| conflict())?;
    // One of several commands that was stored alone, or with others, is found by whoever reads the history.
    if found.command_id != commit.command_id || found.following != commit.following {
        return Err(conflict());
    }
    // The idempotency key was used for another aggregate, or with another body.
    if stored.subject != subject || found.fingerprint != commit.fingerprint {
        return Err(AppendError::KeyReused { subject: stored.subject.clone() });
    }
    Ok(Appended { seq: stored.seq, replayed: true })
}

fn retry_or_refuse<T>(error: StreamError) -> Result<Result<T, Cause>, AppendError> {
    match error {
        StreamError::Unavailable { reason, .. } => Ok(Err(reason)),
        StreamError::Refused { code, description, .. } => Err(AppendError::Refused { code, description }),
        error => Err(error.into()),
    }
}

async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, AppendError> {
    let late = |_| AppendError::Unavailable { reason: cause("no answer in time") };
    tokio::time::timeout_at(deadline, work).await.map_err(late)
}

async fn pause(tries: u32, deadline: Instant, reason: Cause) -> Result<(), AppendError> {
    let wait = backoff(tries);
    if Instant::now() + wait >= deadline {
        return Err(AppendError::Unavailable { reason });
    }
    metrics::counter!("orgstream_append_retries_total").increment(1);
    tracing::debug!(reason = %Chain(&reason), tries, "an append is tried again");
    tokio::time::sleep(wait).await;
    Ok(())
}

fn record(started: Instant, result: &Result<bool, &AppendError>) {
    let outcome = match result {
        Ok(false) => "stored",
        Ok(true) => "replayed",
        Err(AppendError::Conflict { .. }) => "conflict",
        Err(AppendError::KeyReused { .. }) => "key_reused",
        Err(AppendError::Unavailable { .. } | AppendError::Lost { .. }) => "unavailable",
        Err(AppendError::Codec(_) | AppendError::Refused { .. } | AppendError::Stream(_) | AppendError::Invalid(_)) => {
            "refused"
        }
    };
    metrics::histogram!("orgstream_append_seconds", "outcome" => outcome).record(started.elapsed().as_secs_f64());
}
