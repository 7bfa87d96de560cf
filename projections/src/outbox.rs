//! The outbox: mails to send, found by the sender, leased one by one, and never lost.
//!
//! A leased mail is due again a while later, so it is sent even if the process that leased it died; and it is sent
//! twice only if that process died between sending it and recording that.

use std::time::Duration;

use orgstream_events::{CommandId, InvitationId, OrgId};

use crate::{BoundOrg, Database, DbError, convert::column, pool::within};

/// How long after it was leased a mail is due again; doubled every time, up to an hour.
const AGAIN: Duration = Duration::from_secs(15);
/// The most mails of one org that are leased at once.
const MAX_CONCURRENCY: i64 = 10;
/// The most mails that are read to find the orgs that have any.
const LOOKED_AT: i32 = 200;

/// A mail that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mail {
    /// Its org.
    pub org: BoundOrg,
    /// Its id: the command that caused it.
    pub id: CommandId,
    /// The invitation that it is about.
    pub invitation: InvitationId,
    /// The number of attempts, this one included.
    pub attempts: u32,
}

/// The final state of a mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailOutcome {
    /// It was sent.
    Sent,
    /// Its content is no longer true.
    Void,
    /// It was tried often enough.
    GivenUp,
}

impl MailOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Void => "void",
            Self::GivenUp => "given_up",
        }
    }
}

impl Database {
    /// Leases mails that are due, some of every org that has any.
    pub async fn take_mails(&self) -> Result<Vec<Mail>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_with_mail($1) AS "org!""#, LOOKED_AT);
        let mut taken = Vec::new();
        for org in orgs.fetch_all(self.resolver_pool()).await? {
            taken.extend(self.take_mails_of(BoundOrg::proven_by_resolver(OrgId::from_uuid(org))).await?);
        }
        Ok(taken)
    }

    async fn take_mails_of(&self, org: BoundOrg) -> Result<Vec<Mail>, DbError> {
        let mut tx = self.begin_maintenance(org).await?;
        let taken = sqlx::query!(
            "UPDATE ops.mails SET attempts = attempts + 1,
                next_at = now() + make_interval(secs => least(3600, $3::float8 * 2 ^ least(attempts, 10)))
            WHERE org_id = $1 AND id IN (
                SELECT id FROM ops.mails WHERE org_id = $1 AND outcome IS NULL AND next_at <= now()
                ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            RETURNING id, invitation_id, attempts",
            org.org().uuid(),
            MAX_CONCURRENCY,
            AGAIN.as_secs_f64(),
        );
        let rows = within(taken.fetch_all(&mut *tx)).await?;
        within(tx.commit()).await?;
        Ok(column(&rows, |row| Mail {
            org,
            id: CommandId::from_uuid(row.id),
            invitation: InvitationId::from_uuid(row.invitation_id),
            attempts: u32::try_from(row.attempts).unwrap_or_default(),
        }))
    }

    /// Records the final state of a mail; it is not due any more.
    pub async fn finish_mail(&self, mail: &Mail, outcome: MailOutcome) -> Result<(), DbError> {
        let mut tx = self.begin_maintenance(mail.org).await?;
        let finished = sqlx::query!(
            "UPDATE ops.mails SET outcome = $3 WHERE org_id = $1 AND id = $2",
            mail.org.org().uuid(),
            mail.id.uuid(),
            outcome.name(),
        );
        within(finished.execute(&mut *tx)).await?;
        Ok(within(tx.commit()).await?)
    }
}
