//! Sessions: each with its user, start, end, and the one organization that it acts in.

use std::time::Duration;

use orgstream_events::{Fingerprint, LoginMethod, OrgId, SessionId, Timestamp, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Database, DbError,
    convert::{fingerprint, from_bigint, parsed},
    pool::within,
};

/// How long an ended session is kept for its owner to see, in days.
const KEPT_DAYS: i32 = 30;

/// A session to be started.
#[derive(Debug, Clone, Copy)]
pub struct NewSession<'a> {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user: UserId,
    /// The hash of its token.
    pub token_hash: &'a Fingerprint,
    /// The login method.
    pub method: &'a LoginMethod,
    /// Whether that included a second factor.
    pub second_factor: bool,
    /// The organization where it acts at first.
    pub active_org: OrgId,
    /// Its idle timeout.
    pub idle: Duration,
    /// Its longest lifetime.
    pub longest: Duration,
    /// The most sessions that the user may have.
    pub most: u32,
    /// The client's address.
    pub ip: Option<&'a str>,
    /// The client's user agent.
    pub user_agent: Option<&'a str>,
}

/// A session that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user: UserId,
    /// The hash of its token.
    pub token_hash: Fingerprint,
    /// The user's e-mail address, if the issuer verified it at the last sign-in.
    pub verified_email: Option<String>,
    /// The login method.
    pub method: LoginMethod,
    /// Whether that included a second factor.
    pub second_factor: bool,
    /// The one organization that it acts in.
    pub active_org: Option<OrgId>,
    /// The number of times that was chosen.
    pub epoch: u64,
    /// The client's address at its start.
    pub ip: Option<String>,
    /// The client's user agent at its start.
    pub user_agent: Option<String>,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_seen_at: Timestamp,
    /// When it ends unless it is used before.
    pub expires_at: Timestamp,
    /// When it ends in any case.
    pub ends_at: Timestamp,
}

struct Row {
    id: Uuid,
    user_id: Uuid,
    token_hash: Vec<u8>,
    verified_email: Option<String>,
    method: String,
    second_factor: bool,
    active_org: Option<Uuid>,
    epoch: i64,
    ip: Option<String>,
    user_agent: Option<String>,
    created_at: OffsetDateTime,
    last_seen_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    ends_at: OffsetDateTime,
}

impl TryFrom<Row> for Session {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            id: SessionId::from_uuid(row.id),
            user: UserId::from_uuid(row.user_id),
            token_hash: fingerprint("the hash of a session", row.token_hash)?,
            verified_email: row.verified_email,
            method: parsed("a way to sign in", row.method)?,
            second_factor: row.second_factor,
            active_org: row.active_org.map(OrgId::from_uuid),
            epoch: from_bigint(row.epoch),
            ip: row.ip,
            user_agent: row.user_agent,
            created_at: row.created_at.into(),
            last_seen_at: row.last_seen_at.into(),
            expires_at: row.expires_at.into(),
            ends_at: row.ends_at.into(),
        })
    }
}

impl Database {
    /// Starts a session, and deletes those of the same user that ended long ago; false when the user has the most
    /// sessions allowed.
    ///
    /// The user's row is locked meanwhile, so that concurrent starts are all counted.
    pub async fn start_session(&self, new: &NewSession<'_>) -> Result<bool, DbError> {
        within(self.try_start_session(new)).await
    }

    async fn try_start_session(&self, new: &NewSession<'_>) -> Result<bool, DbError> {
        let mut tx = self.identity_pool().inner().begin().await?;
        let person = sqlx::query!("SELECT user_id FROM identity.users WHERE user_id = $1 FOR UPDATE", new.user.uuid());
        person.fetch_optional(&mut *tx).await?;
        let begun = sqlx::query!(
            "WITH forgotten AS (
                DELETE FROM identity.sessions
                WHERE user_id = $2 AND least(expires_at, ends_at, revoked_at) < now() - make_interval(days => $11)
            )
            INSERT INTO identity.sessions
                (id, user_id, token_hash, method, second_factor, active_org, ip, user_agent, expires_at, ends_at)
            SELECT $1::uuid, $2::uuid, $3::bytea, $4::text, $5::boolean, $6::uuid, $7::text, $8::text,
                now() + make_interval(secs => $9), now() + make_interval(secs => $10)
            WHERE (SELECT count(*) FROM identity.sessions
                WHERE user_id = $2 AND revoked_at IS NULL AND expires_at > now() AND ends_at > now()) < $12::bigint",
            new.id.uuid(),
            new.user.uuid(),
            &new.token_hash.0[..],
            new.method.as_str(),
            new.second_factor,
            new.active_org.uuid(),
            new.ip,
            new.user_agent,
            new.idle.min(new.longest).as_secs_f64(),
            new.longest.as_secs_f64(),
            KEPT_DAYS,
            i64::from(new.most),
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(begun.rows_affected() > 0)
    }

    /// Returns the session of a token, if it has not ended.
    pub async fn session(&self, token_hash: &Fingerprint) -> Result<Option<Session>, DbError> {
        let row = sqlx::query_as!(
            Row,
            r#"SELECT id, user_id, token_hash, CASE WHEN email_verified THEN email END AS verified_email, method,
                second_factor, active_org, epoch, ip, user_agent, created_at, last_seen_at, expires_at, ends_at
            FROM identity.sessions JOIN identity.users USING (user_id)
            WHERE token_hash = $1 AND revoked_at IS NULL AND expires_at > now() AND ends_at > now()"#,
            &token_hash.0[..],
        );
        row.fetch_optional(self.identity_pool()).await?.map(Session::try_from).transpose()
    }

    /// Records that a session is in use, which extends it. At most once in `every`, over all processes.
    pub async fn touch_session(&self, id: SessionId, idle: Duration, every: Duration) -> Result<(), DbError> {
        sqlx::query!(
            "UPDATE identity.sessions SET
                last_seen_at = now(),
                expires_at = least(ends_at, now() + make_interval(secs => $2))
            WHERE id = $1 AND revoked_at IS NULL AND last_seen_at < now() - make_interval(secs => $3)",
            id.uuid(),
            idle.as_secs_f64(),
            every.as_secs_f64(),
        )
        .execute(self.identity_pool())
        .await?;
        Ok(())
    }

    /// Returns a user's sessions that have not ended, newest first.
    pub async fn sessions_of(&self, user: UserId, limit: u16) -> Result<Vec<Session>, DbError> {
        let rows = sqlx::query_as!(
            Row,
            r#"SELECT id, user_id, token_hash, CASE WHEN email_verified THEN email END AS verified_email, method,
                second_factor, active_org, epoch, ip, user_agent, created_at, last_seen_at, expires_at, ends_at
            FROM identity.sessions JOIN identity.users USING (user_id)
            WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > now() AND ends_at > now()
            ORDER BY created_at DESC, id DESC LIMIT $2"#,
            user.uuid(),
            i64::from(limit),
        );
        rows.fetch_all(self.identity_pool()).await?.into_iter().map(Session::try_from).collect()
    }

    /// Returns the organization of the user's newest session, ended or not.
    pub async fn last_active_org(&self, user: UserId) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!(
            "SELECT active_org FROM identity.sessions WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1",
            user.uuid(),
        );
        Ok(org.fetch_optional(self.identity_pool()).await?.flatten().map(OrgId::from_uuid))
    }

    /// Ends a session of this user; returns the hash of its token, or none when the user has no such session.
    pub async fn revoke_session(&self, user: UserId, id: SessionId) -> Result<Option<Fingerprint>, DbError> {
        let hash = sqlx::query_scalar!(
            "UPDATE identity.sessions SET revoked_at = now()
            WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL AND expires_at > now() AND ends_at > now()
            RETURNING token_hash",
            id.uuid(),
            user.uuid(),
        );
        let hash = hash.fetch_optional(self.identity_pool()).await?;
        hash.map(|hash| fingerprint("the hash of a session", hash)).transpose()
    }

    /// Makes `org` the one that the session acts in; returns the new epoch, or none when the session has ended.
    ///
    /// One statement, so that of two concurrent calls the later one finds the epoch of the earlier. The user's
    /// membership of `org` has been checked before, and is checked again by every request.
    pub async fn switch_session(&self, id: SessionId, org: OrgId) -> Result<Option<u64>, DbError> {
        let epoch = sqlx::query_scalar!(
            "UPDATE identity.sessions SET active_org = $2, epoch = epoch + 1
            WHERE id = $1 AND revoked_at IS NULL AND expires_at > now() AND ends_at > now() RETURNING epoch",
            id.uuid(),
            org.uuid(),
        );
        Ok(epoch.fetch_optional(self.identity_pool()).await?.map(from_bigint))
    }
}
