//! Read-your-writes: waiting until a position is in the read models, or until a head is signed.

use std::time::Duration;

use orgstream_events::{Pipeline, Position};
use orgstream_projections::BoundOrg;

use super::{problem::Problem, waiting::Mark};

use super::submit::Gateway;

/// How long a command that grants access may wait until the access is effective.
const ACCESS_WAIT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Waits until `position` is visible in the read models; returns false when it takes longer than `patience`.
    pub async fn wait_for(
        &self,
        org: BoundOrg,
        pipeline: Pipeline,
        seq: u64,
        patience: Duration,
    ) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Applied(pipeline), seq, patience).await
    }

    /// Waits until the audit log has a signed head of at least `size`; returns false when it takes longer than `patience`.
    pub async fn wait_for_signature(&self, org: BoundOrg, size: u64, patience: Duration) -> Result<bool, Problem> {
        self.waiting.until(org, Mark::Signed, size, patience).await
    }

    /// Waits until granted access is effective: a new key, member or organization should work as soon as its creator has the
    /// answer. If the read models take too long, it works a little later; that is no reason to fail.
    pub(super) async fn wait_for_access(&self, position: Position) {
        let org = BoundOrg::proven_by_credential(position.org);
        let waited = self.wait_for(org, Pipeline::ReadModels, position.seq, ACCESS_WAIT).await;
        if !matches!(waited, Ok(true)) {
            tracing::debug!(org.id = %position.org, event.seq = position.seq, "answered before the read models had it");
        }
    }
}
