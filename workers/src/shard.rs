//! Reading one owned shard: all its messages, once, in order.
//!
//! A reader that begins far behind does not read its way to the end: almost all of that is usually one org's, whose
//! lane will read the log at its own pace in any case, and all others would wait. It determines the orgs with messages
//! there, lets each of their lanes read its own part, and continues from the end.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use metrics::counter;
use orgstream_events::{Chain, EventSubject, OrgId, PLATFORM_ORG, Shard};
use orgstream_projections::Stray;
use orgstream_stream::{CursorError, Log, Message, ReadLimit, StreamError, is_placeholder};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{delivery::Delivery, engine::Input, scheduler::Passed, strays::Strays, traffic::Traffic};

/// Pause before a failed cursor is opened again.
const PAUSE: Duration = Duration::from_millis(500);
/// Messages that can be read in the time of one query, and of a lane's first read of its own part.
const ASKING: u64 = 20;
const LOOKING: u64 = 200;
/// Concurrent queries.
const MAX_CONCURRENCY: usize = 16;

/// Tries to count the messages of an org that writes meanwhile.
const LOOKS: usize = 4;
/// The limit of a read that is only for counting.
const COUNT: ReadLimit = ReadLimit { messages: 1, bytes: 1 };

/// The reader of one owned shard.
pub(crate) struct Reader {
    pub(crate) log: Log,
    pub(crate) shard: Shard,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) strays: Arc<Strays>,
    pub(crate) engine: mpsc::Sender<Input>,
    /// The error that keeps the shard from being read.
    pub(crate) trouble: watch::Sender<Option<String>>,
    /// Lag in messages behind the end of its shard from which on a reader determines the orgs with messages there.
    pub(crate) far_behind: u64,
}

impl Reader {
    /// Passes every message after the position of `traffic` to the engine, until `stop`. Failed reads are retried from
    /// the same position.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut seen = self.traffic.position();
        let mut residents = HashSet::new();
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                read = self.read_on(&mut seen, &mut residents) => {
                    if let Err(error) = read {
                        let text = Some(Chain(&error).to_string());
                        let is_new =
                            self.trouble.send_if_modified(|known| *known != text && { *known = text; true });
                        if is_new {
                            tracing::warn!(
                                shard = %self.shard, event.seq = seen, error = %Chain(&error),
                                "a shard cannot be read and is tried again"
                            );
                        }
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Reads until the cursor cannot continue or the engine is gone.
    async fn read_on(&self, seen: &mut u64, residents: &mut HashSet<OrgId>) -> Result<(), StreamError> {
        let shard = self.shard;
        if let Some((to, passed)) = self.look_ahead(*seen).await? {
            tracing::info!(%shard, messages = to - *seen, orgs = passed.len(), "far behind, so each reads its own part");
            if self.engine.send(Input::PassOver { shard, to, passed }).await.is_err() {
                return Ok(());
            }
            *seen = to;
            self.traffic.fast_forward(to);
        }
        let mut cursor = self.log.cursor(shard, *seen).await?;
        self.trouble.send_if_modified(|known| known.take().is_some());
        loop {
            match cursor.next().await {
                Ok(message) => {
                    let seq = message.seq;
                    let input = match self.stray(&message, residents).await? {
                        Some(_) if is_placeholder(&message.subject) => {
                            self.traffic.fast_forward(seq);
                            Input::Pass { shard, seq }
                        }
                        Some(reason) => {
                            let subject = message.subject;
                            self.strays.note(Stray { shard, seq, subject, reason });
                            self.traffic.fast_forward(seq);
                            Input::Pass { shard, seq }
                        }
                        None => {
                            self.traffic.note(&message.subject, seq);
                            Input::Message(Delivery::new(message, Instant::now(), self.log.keys()))
                        }
                    };
                    *seen = seq;
                    if self.engine.send(input).await.is_err() {
                        return Ok(());
                    }
                }
                Err(CursorError::Gap { shard, expected, found }) => {
                    counter!("orgstream_stream_gaps_total").increment(1);
                    tracing::error!(%shard, expected, found, "messages are missing from the stream: look for a purge or lost storage");
                }
                Err(CursorError::Stream(error)) => return Err(error),
            }
        }
    }

    /// Returns the reason why the message belongs to no organization of this shard, if that is so. An org's placement
    /// is queried once.
    ///
    /// A stream stores every message published on its subjects. A message that names an org of another shard has a
    /// sequence that is meaningless there, and would count as that org's beginning if it came first.
    async fn stray(&self, message: &Message, residents: &mut HashSet<OrgId>) -> Result<Option<String>, StreamError> {
        let org = match EventSubject::route(&message.subject) {
            Ok((shard, org)) if shard == self.shard => org,
            Ok((shard, _)) => return Ok(Some(format!("it names shard {shard}"))),
            Err(error) => return Ok(Some(Chain(&error).to_string())),
        };
        if residents.contains(&org) {
            return Ok(None);
        }
        Ok(match self.log.placement(org).await? {
            Some(placement) if placement.shard == self.shard => {
                residents.insert(org);
                None
            }
            Some(placement) => Some(format!("{org} lives in shard {}", placement.shard)),
            None => Some(format!("there is no organization {org}")),
        })
    }

    /// Returns how far a reader after `seen` should skip, and the orgs with messages in between; none when it should
    /// rather read.
    ///
    /// The shard's orgs are known by their creation, which is the first message of each. That list is not assumed to be
    /// complete: the counts of their messages must add up to all messages in between, or these are read.
    async fn look_ahead(&self, seen: u64) -> Result<Option<(u64, Vec<Passed>)>, StreamError> {
        let (log, shard) = (&self.log, self.shard);
        // The end first: later messages are read.
        let state = log.shard_state(shard).await?;
        let end = state.last_seq;
        let messages = end.saturating_sub(seen);
        let has_gaps = match state.erased_to {
            0 => state.first_seq > seen + 1 || state.messages != end.saturating_sub(state.first_seq) + 1,
            erased_to => seen < erased_to,
        };
        if messages < self.far_behind || has_gaps {
            return Ok(None);
        }
        let mut orgs = log.orgs_of_shard(shard).await?;
        orgs.push(PLATFORM_ORG);
        if messages < ASKING * orgs.len() as u64 {
            return Ok(None);
        }
        let parts: Vec<Option<(Passed, u64)>> = stream::iter(orgs)
            .map(|org| self.part_of(org, seen, end))
            .buffer_unordered(MAX_CONCURRENCY)
            .try_collect()
            .await?;
        let (passed, counts): (Vec<Passed>, Vec<u64>) = parts.into_iter().flatten().unzip();
        let counted: u64 = counts.iter().sum();
        if counted < messages {
            tracing::info!(
                %shard, messages, counted,
                "far behind, and not all of it is known to belong to an organization, so it is read"
            );
            return Ok(None);
        }
        Ok((messages >= LOOKING * passed.len() as u64).then_some((end, passed)))
    }

    /// Returns what the org has after `seen`, and how much of that up to `end`: no more than exists.
    async fn part_of(&self, org: OrgId, seen: u64, end: u64) -> Result<Option<(Passed, u64)>, StreamError> {
        let (log, shard) = (&self.log, self.shard);
        if log.placement(org).await?.is_none_or(|placement| placement.shard != shard) {
            return Ok(None);
        }
        let all = log.read(shard, org, seen + 1, COUNT).await?;
        let Some(next) = all.messages.first().map(|first| first.seq).filter(|next| *next <= end) else {
            return Ok(None);
        };
        let last = log.last_of(shard, org).await?;
        let passed = |last| Passed { org, next, last };
        if last <= end {
            return Ok(Some((passed(last), all.count())));
        }
        // The org writes while it is counted. Copies may differ in their positions, so a difference between two is no
        // count.
        for _ in 0..LOOKS * usize::from(log.replicas() == 1) {
            let before = log.read(shard, org, end + 1, COUNT).await?.count();
            let all = log.read(shard, org, seen + 1, COUNT).await?.count();
            if log.read(shard, org, end + 1, COUNT).await?.count() == before {
                return Ok(Some((passed(last), all.saturating_sub(before))));
            }
        }
        Ok(Some((passed(last), 0)))
    }
}
