//! Break-glass grants: each allows an operator of the platform to read an org for a time.

use orgstream_events::{AccessEvent, Actor, BreakGlassId, BreakGlassOpened, Timestamp};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{DbError, TenantTx, apply::RowVersion, convert::column, read_model::ReadModel};

/// A grant that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakGlass {
    /// Its id.
    pub id: BreakGlassId,
    /// When it expires.
    pub expires_at: Timestamp,
}

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "break_glasses",
    "rm.break_glasses",
    "id",
    &["id", "operator", "reason", "approver", "opened_at", "expires_at", "closed_at", "seq"],
    &[("id", |id| BreakGlassId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    opened: Vec<Opened<'a>>,
    /// When the grants open before the batch were closed.
    closed_at: Option<OffsetDateTime>,
}

struct Opened<'a> {
    event: &'a BreakGlassOpened,
    operator: &'a str,
    closed_at: Option<OffsetDateTime>,
    row_version: RowVersion,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, event: &'a AccessEvent, by: &'a Actor, row_version: RowVersion) {
        match event {
            AccessEvent::BreakGlassOpened(event) => {
                // An access event may come twice; the first counts.
                if self.opened.iter().all(|opened| opened.event.id != event.id) {
                    self.opened.push(Opened { event, operator: &by.id, closed_at: None, row_version });
                }
            }
            AccessEvent::BreakGlassClosed(_) => {
                self.closed_at.get_or_insert(row_version.at);
                for opened in &mut self.opened {
                    opened.closed_at.get_or_insert(row_version.at);
                }
            }
            // Access events for the audit log alone.
            AccessEvent::Denied(_)
            | AccessEvent::SignedIn(_)
            | AccessEvent::OrgSwitched(_)
            | AccessEvent::KeyRefused(_)
            | AccessEvent::AuditRead(_)
            | AccessEvent::AuditExported(_)
            | AccessEvent::NatsCredentialsIssued(_)
            | AccessEvent::SecretUsed(_)
            | AccessEvent::BreakGlassApproved(_)
            | AccessEvent::BreakGlassUsed(_)
            | AccessEvent::IsolationFailed(_) => {}
        }
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if let Some(closed_at) = self.closed_at {
            sqlx::query!(
                "UPDATE rm.break_glasses SET closed_at = $2 WHERE org_id = $1 AND closed_at IS NULL",
                org,
                closed_at,
            )
            .execute(&mut *connection)
            .await?;
        }
        let opened = self.opened;
        if !opened.is_empty() {
            sqlx::query!(
                "INSERT INTO rm.break_glasses (org_id, id, operator, reason, approver, opened_at, expires_at, closed_at, seq)
                SELECT $1, opened.* FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                    $7::timestamptz[], $8::timestamptz[], $9::bigint[]) AS opened
                ON CONFLICT (org_id, rm_version, id) DO NOTHING",
                org,
                &column(&opened, |opened| opened.event.id.uuid()),
                column(&opened, |opened| opened.operator) as _,
                column(&opened, |opened| opened.event.reason.as_str()) as _,
                column(&opened, |opened| opened.event.approver.as_str()) as _,
                &column(&opened, |opened| opened.row_version.at),
                &column(&opened, |opened| opened.event.expires_at.to_datetime()),
                column(&opened, |opened| opened.closed_at) as _,
                &column(&opened, |opened| opened.row_version.seq),
            )
            .execute(connection)
            .await?;
        }
        Ok(())
    }
}

/// Returns this operator's grant with the latest expiry, if there is one at `now`.
pub async fn open(tx: &mut TenantTx, operator: &str, now: Timestamp) -> Result<Option<BreakGlass>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query!(
        "SELECT id, expires_at FROM rm.break_glasses
        WHERE org_id = $1 AND operator = $3 AND closed_at IS NULL AND expires_at > $2 ORDER BY expires_at DESC LIMIT 1",
        org,
        now.to_datetime(),
        operator,
    );
    let row = row.fetch_optional(tx.connection()).await?;
    Ok(row.map(|row| BreakGlass { id: BreakGlassId::from_uuid(row.id), expires_at: row.expires_at.into() }))
}

/// Whether a grant of this id ever existed, ended or not.
pub async fn was_open(tx: &mut TenantTx, id: BreakGlassId) -> Result<bool, DbError> {
    let org = tx.org().uuid();
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM rm.break_glasses WHERE org_id = $1 AND id = $2) AS "exists!""#,
        org,
        id.uuid(),
    );
    Ok(found.fetch_one(tx.connection()).await?)
}
