//! From commit times to figures.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use futures_util::{StreamExt, stream};
use orgstream_events::Pipeline;
use orgstream_projections::{BoundOrg, Database, Seen, checkpoints, seen};
use orgstream_stream::{Log, Placement};
use tokio::time::{Instant, sleep};

use super::load::Sent;

const POLL: Duration = Duration::from_millis(50);
/// Concurrent queries, once the load is over.
const MAX_CONCURRENCY: usize = 4;

/// An event of the quiet load, from when it was due until all pipelines had it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lag {
    pub(super) org: usize,
    pub(super) intended_us: i64,
    /// When the log had it.
    pub(super) acknowledged_us: i64,
    pub(super) done_us: i64,
}

impl Lag {
    pub(super) fn ms(&self) -> f64 {
        (self.done_us - self.intended_us).max(0) as f64 / 1000.0
    }

    /// The part of it before the log had the event, and the part after.
    pub(super) fn parts_ms(&self) -> (f64, f64) {
        let ms = |from: i64, to: i64| (to - from).max(0) as f64 / 1000.0;
        (ms(self.intended_us, self.acknowledged_us), ms(self.acknowledged_us, self.done_us))
    }
}

/// The results of everything that was sent.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) lags: Vec<Lag>,
    /// Acknowledged, and not in all pipelines.
    pub(super) lost: usize,
    /// In the audit log more than once.
    pub(super) duplicated: usize,
    /// In the audit log before an event that precedes it in the stream.
    pub(super) reordered: usize,
}

/// Waits until all pipelines have all that was appended to `orgs`.
pub(super) async fn drained(log: &Log, db: &Database, orgs: &[Placement], within: Duration) -> anyhow::Result<()> {
    let since = Instant::now();
    for org in orgs {
        let head = log.head(org).await?;
        loop {
            let mut tx = db.read(BoundOrg::named_by_operator(org.org)).await?;
            let mut reached = u64::MAX;
            for pipeline in Pipeline::ALL {
                reached = reached.min(checkpoints::position(&mut tx, pipeline).await?);
            }
            drop(tx);
            if reached >= head {
                break;
            }
            if since.elapsed() > within {
                bail!("{} is at {reached} of {head} after {within:?}", org.org);
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// Returns everything visible of one org after the commit at `after`.
pub(super) async fn seen_of(db: &Database, org: &Placement, after: u64) -> anyhow::Result<Vec<Seen>> {
    Ok(seen(&mut db.read(BoundOrg::named_by_operator(org.org)).await?, after).await?)
}

/// Queries every event that was sent.
pub(super) async fn outcome(db: &Database, orgs: &[Placement], sent: &[Sent]) -> anyhow::Result<Outcome> {
    let mut by_org: BTreeMap<usize, Vec<Sent>> = BTreeMap::new();
    for one in sent {
        by_org.entry(one.org).or_default().push(*one);
    }
    let looked_up = stream::iter(by_org.into_iter().filter_map(|(org, sent)| Some((orgs.get(org)?, sent))))
        .map(|(placement, sent)| async move {
            let first = sent.iter().map(|one| one.seq).min().unwrap_or_default();
            anyhow::Ok((seen_of(db, placement, first.saturating_sub(1)).await?, sent))
        })
        .buffer_unordered(MAX_CONCURRENCY);
    let mut looked_up = std::pin::pin!(looked_up);
    let mut outcome = Outcome::default();
    while let Some(one) = looked_up.next().await {
        let (seen, sent) = one?;
        outcome.add(&seen, &sent);
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, seen: &[Seen], sent: &[Sent]) {
        let mut rows: BTreeMap<u64, (usize, Seen)> = BTreeMap::new();
        let mut last = 0;
        for row in seen {
            rows.entry(row.seq).or_insert((0, *row)).0 += 1;
            self.reordered += usize::from(row.seq < last);
            last = row.seq;
        }
        self.duplicated += rows.values().map(|(times, _)| times - 1).sum::<usize>();
        for one in sent {
            match rows.get(&one.seq).map(|(_, row)| (row.audit_us, row.read_model_us)) {
                Some((audit_us, Some(read_model_us))) => {
                    let done_us = audit_us.max(read_model_us);
                    let Sent { org, intended_us, acknowledged_us, .. } = *one;
                    self.lags.push(Lag { org, intended_us, acknowledged_us, done_us });
                }
                _ => self.lost += 1,
            }
        }
    }

    /// The lags of events due in this period, in milliseconds, the shortest first.
    pub(super) fn between(&self, from_us: i64, to_us: i64) -> Vec<f64> {
        let inside = self.lags.iter().filter(|lag| (from_us..to_us).contains(&lag.intended_us));
        let mut lags: Vec<f64> = inside.map(Lag::ms).collect();
        lags.sort_unstable_by(f64::total_cmp);
        lags
    }

    /// The longest time that an org had events waiting and none of them was done, in milliseconds.
    pub(super) fn longest_starved(&self, from_us: i64, to_us: i64) -> f64 {
        let mut by_org: BTreeMap<usize, Vec<Lag>> = BTreeMap::new();
        for lag in self.lags.iter().filter(|lag| (from_us..to_us).contains(&lag.intended_us)) {
            by_org.entry(lag.org).or_default().push(*lag);
        }
        let mut longest = 0;
        for lags in by_org.values_mut() {
            lags.sort_unstable_by_key(|lag| lag.done_us);
            let mut served = i64::MIN;
            for lag in lags {
                longest = longest.max(lag.done_us - lag.intended_us.max(served));
                served = lag.done_us;
            }
        }
        longest as f64 / 1000.0
    }
}

/// The value that this share of `sorted` is at or below.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| value.is_finite());
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// Jain's index of the evenness of `shares`: 1 when all are equal, 1/n when one has everything.
pub(super) fn jain(shares: &[f64]) -> f64 {
    let (sum, squares): (f64, f64) = shares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}
