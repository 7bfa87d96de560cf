//! What the read models have of an organization's quotas, for the decisions that go by it: a port of `commands::quotas`, which reads
//! no database itself.

use futures_util::future::BoxFuture;
use orgstream_domain::quota::Figure;
use orgstream_events::{Cause, OrgId, cause};
use orgstream_projections::{
    BoundOrg, Database, DbError,
    quota_uses::{self, QuotaUse},
};

use crate::commands::quotas::{Figures, StoredFigures};

/// The figures of the database.
#[derive(Debug, Clone)]
pub struct QuotaFigures(Database);

impl QuotaFigures {
    /// Reads them from this database.
    pub fn new(db: Database) -> Self {
        Self(db)
    }

    async fn read(&self, org: OrgId) -> Result<Figures, DbError> {
        // The handler asks for the organization of a caller whose credential was checked.
        let mut tx = self.0.read(BoundOrg::proven_by_credential(org)).await?;
        let uses = quota_uses::get(&mut tx).await?;
        let figure = |QuotaUse { used, counted }| Figure { used, counted, at: uses.seq };
        Ok(Figures { api_keys: figure(uses.api_keys), storage_bytes: figure(uses.storage_bytes) })
    }
}

impl StoredFigures for QuotaFigures {
    fn of(&self, org: OrgId) -> BoxFuture<'_, Result<Figures, Cause>> {
        Box::pin(async move { self.read(org).await.map_err(cause) })
    }
}
