//! The last uses of API keys: recorded by API processes, no function of the events.

use orgstream_events::{KeyId, Timestamp};

use crate::{BoundOrg, Database, DbError, convert::column, pool::within};

/// The last known use of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key: KeyId,
    /// The time, to the minute.
    pub last_used_at: Timestamp,
    /// The client's address, as the server saw it.
    pub ip: Option<String>,
    /// The client's user agent.
    pub user_agent: Option<String>,
}

/// Stores the uses of some keys of an org, each key once. A later one that is stored already stays.
pub async fn write(db: &Database, org: BoundOrg, uses: &[KeyUse]) -> Result<(), DbError> {
    let mut tx = db.begin_maintenance(org).await?;
    let noted = sqlx::query!(
        "INSERT INTO ops.key_uses AS known (org_id, key_id, last_used_at, ip, user_agent)
        SELECT $1, used.* FROM unnest($2::uuid[], $3::timestamptz[], $4::text[], $5::text[]) AS used
        ON CONFLICT (org_id, key_id) DO UPDATE SET
            last_used_at = excluded.last_used_at,
            ip = excluded.ip,
            user_agent = excluded.user_agent
        WHERE known.last_used_at < excluded.last_used_at",
        org.org().uuid(),
        &column(uses, |used| used.key.uuid()),
        &column(uses, |used| used.last_used_at.to_datetime()),
        column(uses, |used| used.ip.as_deref()) as _,
        column(uses, |used| used.user_agent.as_deref()) as _,
    );
    within(noted.execute(&mut *tx)).await?;
    within(tx.commit()).await?;
    Ok(())
}
