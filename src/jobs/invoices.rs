//! The loop that closes months: it opens the invoices of a month when it is over, and makes them final a day later.
//!
//! What is owed is decided in the log, so any number of processes may run it, and an operator may do the same by hand. A process
//! looks at every organization twice a month, and after its start. No balance depends on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use orgstream_domain::{CloseMonth, Command, invoice::final_at};
use orgstream_events::{Chain, Month, OrgId, Timestamp};
use orgstream_stream::Log;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::now,
    commands::{
        handler::CommandHandler,
        request::{Caller, CommandError, Request},
    },
};

/// The polling interval.
const EVERY: Duration = Duration::from_secs(60);
/// The months before this one that are looked at: an installation that stood still for longer has them closed by hand.
const MONTHS: usize = 3;
/// The number of organizations that are looked at concurrently.
const MAX_CONCURRENCY: usize = 8;

/// What was done for all organizations: nothing, their invoices were opened, or made final.
type Done = BTreeMap<Month, bool>;

/// How far a process is.
#[derive(Debug, Default)]
pub struct Progress {
    done: Done,
    /// The months that could not be closed for some organizations, and which those are: the others are not looked at again.
    left: Option<(Vec<Month>, BTreeSet<OrgId>)>,
}

impl Progress {
    /// Returns the number of months that were seen to for all organizations.
    pub fn months(&self) -> usize {
        self.done.len()
    }
}

/// Closes months until `stop`.
pub async fn run(log: &Log, handler: &CommandHandler, stop: CancellationToken) {
    let mut progress = Progress::default();
    while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
        match stop.run_until_cancelled(round(log, handler, now(), &mut progress)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "months cannot be closed at the moment; it is tried again");
            }
        }
    }
}

/// Closes what is due at a moment, for every organization.
pub async fn round(
    log: &Log,
    handler: &CommandHandler,
    now: Timestamp,
    progress: &mut Progress,
) -> Result<(), CommandError> {
    let Progress { done, left } = progress;
    let due: Vec<Month> = months_before(now).into_iter().filter(|month| is_due(*month, now, done)).collect();
    if due.is_empty() {
        return Ok(());
    }
    let orgs = match left.take().filter(|(months, _)| *months == due) {
        Some((_, orgs)) => orgs,
        None => {
            let mut all = BTreeSet::new();
            for shard in log.shards() {
                all.extend(log.orgs_of_shard(shard).await?);
            }
            all
        }
    };
    let (mut failed, mut reason) = (BTreeSet::new(), None);
    {
        let months = &due;
        let closing = stream::iter(orgs).map(|org| async move { (org, close(handler, org, months).await) });
        let mut closing = closing.buffer_unordered(MAX_CONCURRENCY);
        while let Some((org, closed)) = closing.next().await {
            if let Err(error) = closed {
                failed.insert(org);
                reason = Some(error);
            }
        }
    }
    if let Some(error) = reason {
        *left = Some((due, failed));
        return Err(error);
    }
    done.retain(|month, _| due.contains(month) || month.end().unix_ms() > now.unix_ms() - 366 * 86_400_000);
    done.extend(due.into_iter().map(|month| (month, now >= final_at(month))));
    Ok(())
}

/// Returns the last months that are over, the oldest first.
fn months_before(now: Timestamp) -> Vec<Month> {
    let mut months = Vec::with_capacity(MONTHS);
    let mut first = Month::of(now);
    for _ in 0..MONTHS {
        first = first.previous();
        months.push(first);
    }
    months.reverse();
    months
}

/// Whether a month is to be opened, or to be made final, and was not.
fn is_due(month: Month, now: Timestamp, done: &Done) -> bool {
    match done.get(&month) {
        None => true,
        Some(is_final) => !is_final && now >= final_at(month),
    }
}

async fn close(handler: &CommandHandler, org: OrgId, months: &[Month]) -> Result<(), CommandError> {
    for month in months.iter().copied() {
        if !handler.owes(org, month).await? {
            continue;
        }
        let closed =
            handler.handle(&Caller::program(org, "invoices"), Request::from(Command::from(CloseMonth { month }))).await;
        match closed {
            Ok(accepted) if accepted.events.is_empty() => {}
            Ok(_) => tracing::info!(org.id = %org, month = %month, "a month was closed"),
            Err(CommandError::Rejected(rejection)) => {
                tracing::error!(
                    org.id = %org, month = %month, reason = %rejection,
                    "a month cannot be closed: see to the plan, then close it by hand"
                );
            }
            // Where another process was quicker, nothing is left for the next round.
            Err(error) => {
                tracing::warn!(org.id = %org, month = %month, error = %Chain(&error), "a month is not closed yet");
                return Err(error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_looked_at_when_it_is_over_and_when_it_is_final() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let month = |text: &str| text.parse::<Month>().unwrap();
        assert_eq!(months_before(time("2026-02-01T00:00:00Z")), ["2025-11", "2025-12", "2026-01"].map(month));
        let (first, last) = (time("2026-04-01T00:00:00Z"), time("2026-04-02T00:00:00Z"));
        let march = month("2026-03");
        assert!(is_due(march, first, &Done::new()));
        assert!(!is_due(march, first, &Done::from([(march, false)])));
        assert!(is_due(march, last, &Done::from([(march, false)])));
        assert!(!is_due(march, last, &Done::from([(march, true)])));
    }
}
