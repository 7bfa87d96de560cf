//! Checks, independently of the lanes, that the log's messages arrive in the tables.
//!
//! Lag is reported by the lanes themselves, and a lane that has lost its message reports that it has nothing to do. The
//! watchdog trusts no lane: it compares the log with the checkpoints in the database, at two checks (see
//! [`crate::stall`]). A check is bounded, whatever the number of orgs: some of those that had messages lately, some of
//! all others in turn, and those that were behind at the last check.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::gauge;
use orgstream_events::{Chain, EventSubject, OrgId, Shard};
use orgstream_projections::{BoundOrg, Database, DbError, LaneLag, checkpoints};
use orgstream_stream::Log;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    lane::LaneKey,
    stall::{Change, Sight, Stalls},
    traffic::Traffic,
    worker::WorkerError,
};

/// Orgs with recent messages per check.
const BUSY: usize = 256;
/// Orgs per check on the round through all of them.
const ROUND: usize = 64;
/// Timeout of a check: a healthy database answers long before.
const LOOK: Duration = Duration::from_mins(2);
/// The most lanes that are named in the report of lag.
const NAMED: usize = 100;

/// The shards that a worker has, and the messages that each of their readers was given.
pub(crate) type Watched = HashMap<Shard, Arc<Traffic>>;

/// The results of the last check.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// Lanes whose checkpoint is stalled, the first of them.
    lanes: Vec<LaneLag>,
    /// Shards whose reader is stalled, with a description.
    pub(crate) readers: BTreeMap<Shard, String>,
}

impl Findings {
    /// Returns the lanes with the most lag, by their own reports, with the results for them and others.
    pub(crate) fn added_to(&self, mut lagging: Vec<LaneLag>) -> Vec<LaneLag> {
        for found in &self.lanes {
            let same = |lane: &&mut LaneLag| (lane.org, lane.pipeline) == (found.org, found.pipeline);
            match lagging.iter_mut().find(same) {
                Some(lane) => lane.standing_ms = found.standing_ms,
                None => lagging.push(found.clone()),
            }
        }
        lagging
    }
}

pub(crate) struct Watchdog {
    log: Log,
    db: Database,
    watched: watch::Receiver<Watched>,
    findings: watch::Sender<Findings>,
    readers: Stalls<Shard>,
    lanes: Stalls<LaneKey>,
    /// The next orgs on the round through all of them, and the shard of the last of them.
    round: VecDeque<(Shard, OrgId)>,
    round_at: Option<Shard>,
}

impl Watchdog {
    pub(crate) fn new(
        log: Log,
        db: Database,
        watched: watch::Receiver<Watched>,
        findings: watch::Sender<Findings>,
    ) -> Self {
        let (readers, lanes) = (Stalls::default(), Stalls::default());
        Self { log, db, watched, findings, readers, lanes, round: VecDeque::new(), round_at: None }
    }

    /// Runs a check at each interval, until `stop`.
    pub(crate) async fn run(mut self, every: Duration, stop: CancellationToken) {
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {}
            }
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = timeout(LOOK, self.look()) => looked.unwrap_or_else(|_| {
                    Err(DbError::unavailable(format!("no answer within {} seconds", LOOK.as_secs())).into())
                }),
            };
            if let Err(error) = looked {
                tracing::warn!(error = %Chain(&error), "checkpoints could not be checked for stalls; the check is repeated");
                self.readers.looked_in_vain();
                self.lanes.looked_in_vain();
            }
            self.report();
        }
    }

    async fn look(&mut self) -> Result<(), WorkerError> {
        let watched = self.watched.borrow().clone();
        self.readers.keep(|shard| watched.contains_key(&shard));
        self.lanes.keep(|lane| watched.contains_key(&lane.shard));
        for (shard, traffic) in &watched {
            // The end first: a reader that has passed it meanwhile is fine.
            let end = self.log.shard_end(*shard).await?;
            let at = traffic.position();
            let sight = Sight { at, next: (end > at).then_some(at + 1) };
            match self.readers.see(*shard, sight, Instant::now()) {
                Some(Change::Stands) => tracing::error!(
                    %shard, event.seq = at, end,
                    "nothing comes out of this shard any more although it goes on: look at its consumer (nats consumer ls), \
                     and restart this worker"
                ),
                Some(Change::Moves) => tracing::info!(%shard, event.seq = at, "this shard is read again"),
                None => {}
            }
        }
        for ((shard, org), last) in self.candidates(&watched).await? {
            self.look_at(shard, org, last).await?;
        }
        Ok(())
    }

    /// Returns the orgs to check, with the last message of those that had messages.
    async fn candidates(&mut self, watched: &Watched) -> Result<BTreeMap<(Shard, OrgId), Option<u64>>, WorkerError> {
        let mut candidates = BTreeMap::new();
        let share = BUSY.div_ceil(watched.len().max(1));
        for (shard, traffic) in watched {
            candidates.extend(traffic.take(share).into_iter().map(|(org, last)| ((*shard, org), Some(last))));
        }
        let mut shards: BTreeSet<Shard> = watched.keys().copied().collect();
        for _ in 0..ROUND {
            while self.round.is_empty() {
                let behind = |shard: &&Shard| self.round_at.is_none_or(|at| **shard > at);
                let Some(next) = shards.iter().find(behind).or(shards.first()).copied() else { break };
                // Each shard once per check, however few orgs there are.
                shards.remove(&next);
                self.round_at = Some(next);
                self.round.extend(self.log.orgs_of_shard(next).await?.into_iter().map(|org| (next, org)));
            }
            let Some(next) = self.round.pop_front() else { break };
            if watched.contains_key(&next.0) {
                candidates.insert(next, None);
            }
        }
        // Suspects are compared with the log itself.
        candidates.extend(self.lanes.suspects().map(|lane| ((lane.shard, lane.org), None)));
        Ok(candidates)
    }

    /// Compares an org's checkpoints with the log. `last` saves the query whether the log has more.
    async fn look_at(&mut self, shard: Shard, org: OrgId, last: Option<u64>) -> Result<(), WorkerError> {
        let Ok(bound) = BoundOrg::proven_by_route(&EventSubject::all_of_org(shard, org)) else { return Ok(()) };
        // An org's messages outside of its shard belong to no org: see `strays`.
        if self.log.placement(org).await?.is_none_or(|placement| placement.shard != shard) {
            return Ok(());
        }
        let stored = checkpoints::each(&mut self.db.read(bound).await?).await?;
        // A deleted org has no checkpoints, and messages until its stream is rewritten.
        if stored.iter().all(|(_, place)| place.is_none()) && self.db.is_erased(org).await? {
            return Ok(());
        }
        let mut asked: Option<(u64, Option<u64>)> = None;
        for (pipeline, place) in stored.iter() {
            let at = place.filter(|(of, _)| *of == shard).map_or(0, |(_, seq)| seq);
            let next = match (last, asked) {
                (Some(last), _) if last <= at => None,
                (_, Some((after, next))) if after == at => next,
                _ => {
                    let next = self.log.next_after(shard, org, at).await?;
                    asked = Some((at, next));
                    next
                }
            };
            let lane = LaneKey { shard, org, pipeline };
            match self.lanes.see(lane, Sight { at, next }, Instant::now()) {
                Some(Change::Stands) => tracing::error!(
                    org.id = %org, %pipeline, checkpoint = at, event.seq = next,
                    "the checkpoint of this organization stands still although its stream goes on: look in pg_locks for \
                     who holds its row of ops.checkpoints, and in this log for batches of it that fail"
                ),
                Some(Change::Moves) => {
                    tracing::info!(org.id = %org, %pipeline, checkpoint = at, "the checkpoint of this organization moves again");
                }
                None => {}
            }
        }
        Ok(())
    }

    fn report(&self) {
        let now = Instant::now();
        let orgs: BTreeSet<OrgId> = self.lanes.standing().map(|(lane, _)| lane.org).collect();
        gauge!("orgstream_orgs_stalled").set(u32::try_from(orgs.len()).unwrap_or(u32::MAX));
        let mut lanes: Vec<LaneLag> = self
            .lanes
            .standing()
            .map(|(lane, suspect)| LaneLag {
                org: lane.org,
                pipeline: lane.pipeline,
                oldest: suspect.next,
                waiting: 0,
                age_ms: 0,
                catching_up: false,
                standing_ms: Some(suspect.for_so_long(now).as_millis() as u64),
            })
            .collect();
        lanes.sort_by_key(|lane| std::cmp::Reverse(lane.standing_ms));
        lanes.truncate(NAMED);
        let readers: BTreeMap<Shard, String> = self
            .readers
            .standing()
            .map(|(shard, reader)| (shard, format!("its reader stands at {} although the stream goes on", reader.at)))
            .collect();
        gauge!("orgstream_readers_stalled").set(u32::try_from(readers.len()).unwrap_or(u32::MAX));
        self.findings.send_replace(Findings { lanes, readers });
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Pipeline;

    use super::*;

    fn lane(number: u8, standing_ms: Option<u64>) -> LaneLag {
        let org = OrgId::fresh(1_700_000_000_000, [number; 10]);
        let (pipeline, oldest, waiting, age_ms, catching_up) = (Pipeline::Audit, 7, 2, 50, false);
        LaneLag { org, pipeline, oldest, waiting, age_ms, catching_up, standing_ms }
    }

    #[test]
    fn what_a_lane_says_of_itself_and_what_was_found_about_it_are_one_line() {
        let found = Findings { lanes: vec![lane(2, Some(900)), lane(3, Some(800))], readers: BTreeMap::new() };
        let named = found.added_to(vec![lane(1, None), lane(2, None)]);
        assert_eq!(named, [lane(1, None), lane(2, Some(900)), lane(3, Some(800))]);
    }
}
