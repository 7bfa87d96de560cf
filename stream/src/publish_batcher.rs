//! The queue of a shard whose server syncs every write: messages that arrive during a write are sent as one batch.
//!
//! `nats-server` has no group commit: with `sync_interval: always` every single publish costs a sync. An atomic batch
//! costs one for all of its messages, but also 3 to 5 ms of the server's time, because it is staged in a store of its
//! own. So a few writers publish concurrently, and only many of them share a batch: with 64 writers spread over 16
//! shards, batches of whatever was queued reached 1,800 commits a second, single publishes 7,000; with 256 writers on
//! one shard it was 14,000 by batches and 3,000 by single publishes.
//!
//! The queue only ever tries once. A message that it could not store is returned to its writer, which publishes it
//! alone, and can find out whether an earlier try arrived.

use std::collections::{HashSet, VecDeque};

use futures_util::{StreamExt, stream::FuturesUnordered};
use orgstream_events::cause;
use tokio::sync::{mpsc, oneshot};

use crate::publish::{Answer, Publisher, Write};

const WAITING: usize = 4_096;
const BATCH_MESSAGES: usize = 200;
/// The server holds a batch in memory until it is complete.
const BATCH_BYTES: usize = 2 << 20;
/// Number of messages from which a batch costs less than single publishes.
const WORTH_A_BATCH: usize = 16;
/// Concurrent single publishes; further messages are queued.
const SINGLES_IN_FLIGHT: usize = 16;

#[derive(Debug)]
struct Waiting {
    write: Write,
    answer: oneshot::Sender<Answer>,
}

/// The sending side of one shard's queue.
#[derive(Debug)]
pub(crate) struct PublishBatcher {
    sender: mpsc::Sender<Waiting>,
}

impl PublishBatcher {
    pub(crate) fn start(publisher: Publisher) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(run(publisher, receiver));
        Self { sender }
    }

    /// Waits for a place in the queue, for a batch, and for its answer.
    pub(crate) async fn publish(&self, write: Write) -> Answer {
        let (answer, answered) = oneshot::channel();
        let gone = || Answer::Unknown { reason: cause("the shard's queue has stopped") };
        if self.sender.send(Waiting { write, answer }).await.is_err() {
            return gone();
        }
        answered.await.unwrap_or_else(|_| gone())
    }
}

/// A publish in flight.
enum Done {
    Single,
    Batch,
}

/// Runs the queue until the log's last handle is dropped and all queued messages are answered.
async fn run(publisher: Publisher, mut receiver: mpsc::Receiver<Waiting>) {
    let mut waiting = VecDeque::new();
    let mut arrived = Vec::new();
    let mut in_flight = FuturesUnordered::new();
    let (mut singles, mut batches) = (0, 0);
    let mut open = true;
    while open || !waiting.is_empty() || !in_flight.is_empty() {
        tokio::select! {
            count = receiver.recv_many(&mut arrived, BATCH_MESSAGES), if open && waiting.len() < BATCH_MESSAGES => {
                open = count > 0;
                waiting.extend(arrived.drain(..));
            }
            Some(done) = in_flight.next(), if !in_flight.is_empty() => match done {
                Done::Single => singles -= 1,
                Done::Batch => batches -= 1,
            },
        }
        // One batch at a time, and nothing beside it: two would only split the queued messages.
        while batches == 0 && !waiting.is_empty() {
            if waiting.len() >= WORTH_A_BATCH {
                batches += 1;
                in_flight.push(write(&publisher, take(&mut waiting, BATCH_MESSAGES), Done::Batch));
            } else if singles < SINGLES_IN_FLIGHT {
                singles += 1;
                in_flight.push(write(&publisher, take(&mut waiting, 1), Done::Single));
            } else {
                break;
            }
        }
    }
}

/// Takes as many as fit, in order, at most one for each subject: a second one's expectation follows from the first.
fn take(waiting: &mut VecDeque<Waiting>, limit: usize) -> Vec<Waiting> {
    let mut batch: Vec<Waiting> = Vec::with_capacity(waiting.len().min(limit));
    let mut subjects = HashSet::with_capacity(batch.capacity());
    let mut later = VecDeque::new();
    let mut bytes = 0;
    while let Some(next) = waiting.pop_front() {
        bytes += next.write.payload.len();
        if batch.len() == limit || (bytes > BATCH_BYTES && !batch.is_empty()) {
            waiting.push_front(next);
            break;
        }
        if subjects.insert(next.write.subject.clone()) { batch.push(next) } else { later.push_back(next) }
    }
    later.append(waiting);
    *waiting = later;
    batch
}

/// Publishes a batch and answers its writers. A batch with a stale expectation costs no sync, so it is halved until the
/// stale message is alone.
async fn write(publisher: &Publisher, batch: Vec<Waiting>, done: Done) -> Done {
    let mut parts = vec![batch];
    while let Some(mut part) = parts.pop() {
        let answer = match part.as_slice() {
            [] => continue,
            [alone] => publisher.publish(&alone.write).await,
            several => publisher.publish_batch(&several.iter().map(|one| &one.write).collect::<Vec<_>>()).await,
        };
        metrics::histogram!("orgstream_append_batch_size").record(u32::try_from(part.len()).unwrap_or(u32::MAX));
        let count = part.len() as u64;
        match answer {
            Answer::Stale if count > 1 => {
                let second = part.split_off(part.len() / 2);
                parts.push(second);
                parts.push(part);
            }
            Answer::Stored { seq } => {
                for (one, seq) in part.into_iter().zip((seq + 1).saturating_sub(count)..) {
                    // A writer that has given up no longer waits for its answer.
                    let _ = one.answer.send(Answer::Stored { seq });
                }
            }
            answer => {
                let answer = match answer {
                    Answer::Refused { .. } | Answer::TooLarge { .. } | Answer::Duplicate { .. } if count > 1 => {
                        Answer::Unknown { reason: cause("the batch was refused") }
                    }
                    answer => answer,
                };
                for one in part {
                    let _ = one.answer.send(answer.clone());
                }
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_a_subject_once_and_keeps_the_order() {
        let mut waiting: VecDeque<Waiting> = (0..)
            .zip(["a", "b", "a", "c"])
            .map(|(expected, subject)| Waiting {
                write: Write {
                    subject: subject.to_owned(),
                    payload: bytes::Bytes::from(vec![0; BATCH_BYTES / 3]),
                    message_id: None,
                    expected: Some(expected),
                    trace: None,
                },
                answer: oneshot::channel().0,
            })
            .collect();
        let order = |batch: &[Waiting]| batch.iter().map(|one| one.write.expected.unwrap()).collect::<Vec<_>>();
        assert_eq!(order(&take(&mut waiting, 10)), [0, 1]);
        assert_eq!(order(waiting.make_contiguous()), [2, 3]);
        assert_eq!(order(&take(&mut waiting, 1)), [2]);
        assert_eq!(order(&take(&mut waiting, 10)), [3]);
        assert!(waiting.is_empty());
    }
}
