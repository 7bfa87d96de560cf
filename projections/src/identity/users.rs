//! People: one row for each login that ever made a session.

use orgstream_events::{OrgId, Timestamp, UserId};

use crate::{Database, DbError};

/// Somebody who signs in now.
#[derive(Debug, Clone, Copy)]
pub struct SignIn<'a> {
    /// The login identity, which follows from the next two.
    pub user: UserId,
    /// Who vouches for them.
    pub issuer: &'a str,
    /// Their name there.
    pub subject: &'a str,
    /// The e-mail address, verified or not.
    pub email: Option<&'a str>,
    /// Whether the issuer verified it.
    pub email_verified: bool,
}

/// What is known of somebody who signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Their own organization, once it was made.
    pub personal_org: Option<OrgId>,
    /// When they first came.
    pub first_sign_in_at: Timestamp,
}

impl Database {
    /// Writes down that somebody signed in, and says what was known of them.
    pub async fn note_sign_in(&self, sign_in: &SignIn<'_>) -> Result<User, DbError> {
        let row = sqlx::query!(
            "INSERT INTO identity.users AS known (user_id, issuer, subject, email, email_verified)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (user_id) DO UPDATE SET
                email = excluded.email,
                email_verified = excluded.email_verified,
                last_sign_in_at = now()
            RETURNING personal_org, first_sign_in_at",
            sign_in.user.uuid(),
            sign_in.issuer,
            sign_in.subject,
            sign_in.email,
            sign_in.email_verified,
        )
        .fetch_one(self.identity_pool())
        .await?;
        let personal_org = row.personal_org.map(OrgId::from_uuid);
        Ok(User { personal_org, first_sign_in_at: row.first_sign_in_at.into() })
    }

    /// Their own organization, if it was made.
    pub async fn personal_org(&self, user: UserId) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!("SELECT personal_org FROM identity.users WHERE user_id = $1", user.uuid());
        Ok(org.fetch_optional(self.identity_pool()).await?.flatten().map(OrgId::from_uuid))
    }

    /// Writes down that their own organization is there.
    pub async fn note_personal_org(&self, user: UserId, org: OrgId) -> Result<(), DbError> {
        sqlx::query!("UPDATE identity.users SET personal_org = $2 WHERE user_id = $1", user.uuid(), org.uuid())
            .execute(self.identity_pool())
            .await?;
        Ok(())
    }
}
