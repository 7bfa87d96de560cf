//! Checks every second that the log has lost no history, and reports to the other processes through the database.
//!
//! Each process keeps the last message that it has seen of each stream (`orgstream_stream`), and the database the last that
//! any of them has seen. A stream that lacks one of these was restored from an older copy, however far it has grown since:
//! it accepts no more commands and nothing of it is applied, in every process and after every start, until an operator has
//! decided. An idle stream costs one query; one that has moved, two or three.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use orgstream_events::{Chain, Fingerprint};
use orgstream_projections::{Database, DbError, HistoryStep, StreamHistory};
use orgstream_stream::{Log, StreamEnd, StreamError, StreamName, Tip};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(1);
/// The timeout of a check.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The number of streams that are checked concurrently.
const MAX_CONCURRENCY: usize = 8;
/// The era of a stream that had no stored history when this process started.
const FIRST_ERA: i32 = 1;

/// The reason why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The log does not answer.
    #[error(transparent)]
    Log(#[from] StreamError),
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DbError),
}

/// The result of the check of one stream.
enum Sight {
    /// The history is intact, and ends here; none when nothing was ever written to the stream.
    There(StreamEnd, Option<Tip>),
    /// The history was lost.
    Lost(String),
}

/// The watch over the log's streams, one for a process.
pub struct Histories {
    log: Log,
    db: Database,
    /// The history in the database at the last check.
    kept: HashMap<StreamName, StreamHistory>,
    /// The eras in which this process started.
    eras: Option<HashMap<StreamName, i32>>,
    /// The results of the last check.
    seen: HashMap<StreamName, (StreamEnd, Option<Tip>)>,
}

impl Histories {
    /// Creates a watch without results.
    pub fn new(log: Log, db: Database) -> Self {
        Self { log, db, kept: HashMap::new(), eras: None, seen: HashMap::new() }
    }

    /// Checks until `stop`.
    pub async fn run(&mut self, stop: CancellationToken) {
        let mut looks = interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut could = true;
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let looked = stop.run_until_cancelled(timeout(TIMEOUT, self.look())).await;
            let error = match looked {
                None => return,
                Some(Ok(Ok(()))) => None,
                Some(Ok(Err(error))) => Some(Chain(&error).to_string()),
                Some(Err(_)) => Some(format!("no answer within {} seconds", TIMEOUT.as_secs())),
            };
            if let (Some(error), true) = (&error, could) {
                tracing::warn!(error, "the log's history could not be checked; the check is repeated");
            }
            could = error.is_none();
        }
    }

    /// Checks every stream once, and passes on the results.
    pub async fn look(&mut self) -> Result<(), HistoryError> {
        // What this process has seen itself can be checked without the database.
        let mut failed = self.read().await.err().map(HistoryError::from);
        let streams: Vec<StreamName> = self.log.streams().collect();
        let looks = stream::iter(streams).map(|stream| self.look_at(stream)).buffer_unordered(MAX_CONCURRENCY);
        let sights: Vec<(StreamName, Result<Sight, StreamError>)> = looks.collect().await;
        let mut steps = Vec::new();
        for (stream, sight) in sights {
            match sight {
                Ok(Sight::There(end, tip)) => {
                    self.seen.insert(stream, (end, tip));
                    steps.extend(tip.and_then(|tip| self.step(stream, tip)));
                }
                Ok(Sight::Lost(what)) if failed.is_none() => self.write_down(stream, &what).await?,
                Ok(Sight::Lost(_)) => {}
                Err(error) => failed = Some(failed.unwrap_or(error.into())),
            }
        }
        self.db.go_on_with(&steps).await?;
        failed.map_or(Ok(()), Err)
    }

    /// Reads the history in the database.
    async fn read(&mut self) -> Result<(), DbError> {
        let kept = self.db.histories().await?.into_iter();
        self.kept = kept.filter_map(|history| Some((history.stream.parse().ok()?, history))).collect();
        let eras = || self.kept.iter().map(|(stream, history)| (*stream, history.era)).collect();
        self.eras.get_or_insert_with(eras);
        Ok(())
    }

    fn era(&self, stream: StreamName) -> i32 {
        self.eras.as_ref().and_then(|eras| eras.get(&stream).copied()).unwrap_or(FIRST_ERA)
    }

    async fn look_at(&self, stream: StreamName) -> (StreamName, Result<Sight, StreamError>) {
        (stream, self.sight(stream).await)
    }

    async fn sight(&self, stream: StreamName) -> Result<Sight, StreamError> {
        let kept = self.kept.get(&stream);
        if kept.is_some_and(|kept| kept.era != self.era(stream)) {
            self.log.lose(stream, "an operator has decided about it: start this process again");
        } else if let Some((what, _)) = kept.and_then(|kept| kept.lost.as_ref()) {
            self.log.lose(stream, what);
        }
        if let Some(what) = self.log.lost_of(stream) {
            return Ok(Sight::Lost(what));
        }
        let end = self.log.end_of(stream).await?;
        let kept = kept.map(|kept| Tip { seq: kept.seq, digest: kept.digest });
        let mut tips: Vec<Tip> = [kept, self.log.tip(stream)].into_iter().flatten().collect();
        tips.dedup();
        if let Some((before, tip)) = self.seen.get(&stream)
            && *before == end
            && tips.iter().all(|known| Some(*known) == *tip)
        {
            return Ok(Sight::There(end, *tip));
        }
        // The end is read first: it is valid only if the earlier messages are still there afterwards.
        let newest = tips.iter().max_by_key(|tip| tip.seq).copied();
        let seen = match newest {
            Some(tip) if tip.seq >= end.seq => None,
            _ if end.seq == 0 => None,
            _ => self.log.see(stream, end.seq).await?,
        };
        for tip in tips {
            if let Some(what) = self.log.lacks(stream, tip).await? {
                self.log.lose(stream, &what);
                return Ok(Sight::Lost(what));
            }
        }
        Ok(Sight::There(end, seen.or(newest)))
    }

    /// Returns the step from the history in the database to the observed end.
    fn step(&self, stream: StreamName, tip: Tip) -> Option<HistoryStep> {
        let kept = self.kept.get(&stream);
        let from = kept.map(|kept| kept.seq);
        let to = StreamHistory { era: self.era(stream), ..StreamHistory::new(stream.to_string(), tip.seq, tip.digest) };
        from.is_none_or(|from| from < tip.seq).then_some(HistoryStep { from, to })
    }

    /// Reports to all processes that the stream is lost, with the last message that this process knows of it.
    async fn write_down(&self, stream: StreamName, what: &str) -> Result<(), DbError> {
        if self.kept.get(&stream).is_some_and(|kept| kept.lost.is_some() || kept.era != self.era(stream)) {
            return Ok(());
        }
        let tip = self.log.tip(stream).unwrap_or(Tip { seq: 0, digest: Fingerprint::of(&[]) });
        let history = StreamHistory::new(stream.to_string(), tip.seq, tip.digest);
        self.db.lose_history(&StreamHistory { era: self.era(stream), ..history }, what).await
    }
}
