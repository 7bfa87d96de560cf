//! The loop that has views built which were declared, changed or taken away after there were records.
//!
//! It asks for a build of the read models of each organization whose rows follow other views than its kinds declare: the job that
//! `orgstream rebuild` asks for as well, which workers carry out beside everything else. Any number of processes may ask.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use orgstream_events::{Chain, KindName, ViewDefinition};
use orgstream_projections::{BoundOrg, Database, DbError, kinds};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The polling interval.
const EVERY: Duration = Duration::from_secs(2);
/// How long nothing is asked about a kind whose views were built everywhere.
const AGAIN: Duration = Duration::from_mins(10);
/// How long nothing is asked about kinds of organizations' own, when all of their views are built.
const OWN_AGAIN: Duration = Duration::from_secs(6);
/// The maximum number of builds that are under way at the same time.
const MAX_BUILDS: usize = 32;

/// The kinds whose views are built everywhere, with when that was found.
type Settled = BTreeMap<KindName, (Vec<ViewDefinition>, Instant)>;

/// Asks for builds. One per process.
pub struct ViewBuilds {
    db: Database,
}

impl ViewBuilds {
    /// Creates the loop.
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    /// Asks until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let (mut settled, mut own_settled) = (Settled::new(), None);
        while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
            for round in [self.round(&mut settled).await, self.own_round(&mut own_settled).await] {
                if let Err(error) = round {
                    tracing::warn!(error = %Chain(&error), "views to build cannot be looked for at the moment");
                }
            }
        }
    }

    /// Asks for the kinds of organizations' own, of all organizations at once.
    async fn own_round(&self, settled: &mut Option<Instant>) -> Result<(), DbError> {
        if settled.is_some_and(|at| at.elapsed() < OWN_AGAIN) {
            return Ok(());
        }
        let builds = self.db.ask_for_own_views(MAX_BUILDS).await?;
        if builds.asked > 0 {
            tracing::info!(organizations = builds.asked, "views of organizations' own kinds are built");
        }
        *settled = (builds.missing == 0).then(Instant::now);
        Ok(())
    }

    async fn round(&self, settled: &mut Settled) -> Result<(), DbError> {
        let mut tx = self.db.read(BoundOrg::platform()).await?;
        let declared = kinds::with_views(&mut tx).await?;
        drop(tx);
        for (kind, views) in declared {
            if settled.get(&kind).is_some_and(|(known, at)| *known == views && at.elapsed() < AGAIN) {
                continue;
            }
            let builds = self.db.ask_for_views(&kind, &views, MAX_BUILDS).await?;
            if builds.asked > 0 {
                tracing::info!(kind = %kind, organizations = builds.asked, "views of a kind are built");
            }
            if builds.missing == 0 {
                settled.insert(kind, (views, Instant::now()));
            } else {
                settled.remove(&kind);
            }
        }
        Ok(())
    }
}
