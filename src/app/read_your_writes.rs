//! Reading what was just written: until a position is in the read models, until a head is signed.

use std::time::Duration;

use orgstream_events::{Pipeline, Position};
use orgstream_projections::BoundOrg;

use super::{problem::Problem, waiting::Mark};

use super::submit::Gateway;

/// How long a command that gives access to something may wait until the access is there.
const ACCESS_WAIT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Waits until `position` can be seen in the read models; false when it takes longer than `patience`.
    pub async fn wait_for(
        &self,
        org: BoundOrg,
        pipeline: Pipeline,
        seq: u64,
        patience: Duration,
    ) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Applied(pipeline), seq, patience).await
    }

    /// Waits until the audit log has a signed head of at least `size`; false when it takes longer than `patience`.
    pub async fn wait_for_signature(&self, org: BoundOrg, size: u64, patience: Duration) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Signed, size, patience).await
    }

    /// A new key, member or organization should work as soon as its maker knows of it. If the read models take too
    /// long, it works a little later; that is no reason to fail.
    pub(super) async fn wait_for_access(&self, position: Position) {
        let org = BoundOrg::proven_by_credential(position.org);
        let waited = self.wait_for(org, Pipeline::ReadModels, position.seq, ACCESS_WAIT).await;
        if !matches!(waited, Ok(true)) {
            tracing::debug!(org.id = %position.org, event.seq = position.seq, "answered before the read models had it");
        }
    }
}
