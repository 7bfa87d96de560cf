//! The delivery state of audit logs to their organizations' webhooks: leased by the sender for a while, and advanced
//! only from its stored position.

use std::time::Duration;

use orgstream_events::{OrgId, Timestamp};

use crate::{
    BoundOrg, Database, DbError, TenantTx,
    convert::{from_bigint, to_bigint},
    pool::within,
};

/// The most orgs returned by one query.
const LOOKED_AT: i32 = 1_000;
/// The longest pause after failures, in seconds: pauses double from a second.
const LONGEST_PAUSE: f64 = 3_600.0;

/// The delivery state of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookState {
    /// The address.
    pub url: String,
    /// The first event that it has not confirmed.
    pub next_idx: u64,
    /// Consecutive failed attempts.
    pub failures: u32,
    /// The error of the last of them.
    pub error: Option<String>,
    /// When it last confirmed events.
    pub delivered_at: Option<Timestamp>,
    /// When it is tried next.
    pub try_at: Timestamp,
}

/// Returns the delivery state of an org's log; None before the first attempt.
pub async fn webhook(tx: &mut TenantTx) -> Result<Option<WebhookState>, DbError> {
    let row = sqlx::query!(
        "SELECT url, next_idx, failures, error, delivered_at, try_at FROM ops.audit_webhooks WHERE org_id = $1",
        tx.org().uuid(),
    );
    let row = row.fetch_optional(tx.connection()).await?;
    Ok(row.map(|row| WebhookState {
        url: row.url,
        next_idx: from_bigint(row.next_idx),
        failures: u32::try_from(row.failures).unwrap_or_default(),
        error: row.error,
        delivered_at: row.delivered_at.map(Timestamp::from),
        try_at: row.try_at.into(),
    }))
}

impl Database {
    /// Returns the orgs whose logs have events to send, or another address than before.
    pub async fn audit_to_send(&self) -> Result<Vec<BoundOrg>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_with_audit_to_send($1) AS "org!""#, LOOKED_AT);
        let orgs = orgs.fetch_all(self.resolver_pool()).await?;
        Ok(orgs.into_iter().map(|org| BoundOrg::proven_by_resolver(OrgId::from_uuid(org))).collect())
    }

    /// Leases the sending of one log to `url` for this time, unless another process holds it. Returns the index to
    /// continue from; at another address than before, that is the beginning.
    pub async fn take_webhook(&self, org: BoundOrg, url: &str, lease: Duration) -> Result<Option<u64>, DbError> {
        let mut tx = self.begin_maintenance(org).await?;
        let next = sqlx::query_scalar!(
            "INSERT INTO ops.audit_webhooks AS known (org_id, url, try_at) VALUES ($1, $2, now() + make_interval(secs => $3))
            ON CONFLICT (org_id) DO UPDATE SET
                next_idx = CASE WHEN known.url = excluded.url THEN known.next_idx ELSE 0 END,
                failures = CASE WHEN known.url = excluded.url THEN known.failures ELSE 0 END,
                error = CASE WHEN known.url = excluded.url THEN known.error END,
                url = excluded.url,
                try_at = excluded.try_at
            WHERE known.try_at <= now() OR known.url <> excluded.url
            RETURNING next_idx",
            org.org().uuid(),
            url,
            lease.as_secs_f64(),
        );
        let next = within(next.fetch_optional(&mut *tx)).await?;
        within(tx.commit()).await?;
        Ok(next.map(from_bigint))
    }

    /// Records that `url` has confirmed the events from `from` up to `next`. False when another process has advanced it
    /// meanwhile. The lease continues for this time.
    pub async fn webhook_confirmed(
        &self,
        org: BoundOrg,
        url: &str,
        (from, next): (u64, u64),
        lease: Duration,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin_maintenance(org).await?;
        let moved = sqlx::query!(
            "UPDATE ops.audit_webhooks
            SET next_idx = $4, failures = 0, error = NULL, delivered_at = now(), try_at = now() + make_interval(secs => $5)
            WHERE org_id = $1 AND url = $2 AND next_idx = $3",
            org.org().uuid(),
            url,
            to_bigint(from),
            to_bigint(next),
            lease.as_secs_f64(),
        );
        let moved = within(moved.execute(&mut *tx)).await?.rows_affected();
        within(tx.commit()).await?;
        Ok(moved == 1)
    }

    /// Records that `url` did not confirm the events at `from`. They are retried after a pause.
    pub async fn webhook_failed(&self, org: BoundOrg, url: &str, from: u64, error: &str) -> Result<(), DbError> {
        let mut tx = self.begin_maintenance(org).await?;
        let noted = sqlx::query!(
            "UPDATE ops.audit_webhooks
            SET failures = failures + 1, error = $4,
                try_at = now() + make_interval(secs => least($5, 2 ^ least(failures, 20)))
            WHERE org_id = $1 AND url = $2 AND next_idx = $3",
            org.org().uuid(),
            url,
            to_bigint(from),
            error,
            LONGEST_PAUSE,
        );
        within(noted.execute(&mut *tx)).await?;
        Ok(within(tx.commit()).await?)
    }
}
