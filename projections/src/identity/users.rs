//! Users: one row for each login that ever made a session.

use orgstream_events::{OrgId, Timestamp, UserId};

use crate::{Database, DbError};

/// A user at sign-in.
#[derive(Debug, Clone, Copy)]
pub struct SignIn<'a> {
    /// The login identity, which follows from the next two.
    pub user: UserId,
    /// The issuer.
    pub issuer: &'a str,
    /// The subject at the issuer.
    pub subject: &'a str,
    /// The e-mail address, verified or not.
    pub email: Option<&'a str>,
    /// Whether the issuer verified it.
    pub email_verified: bool,
}

/// The stored state of a user that signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user's personal organization, once it was created.
    pub personal_org: Option<OrgId>,
    /// When the user first signed in.
    pub first_sign_in_at: Timestamp,
}

impl Database {
    /// Records a sign-in, and returns what was stored of the user.
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

    /// Returns the user's personal organization, if it was created.
    pub async fn personal_org(&self, user: UserId) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!("SELECT personal_org FROM identity.users WHERE user_id = $1", user.uuid());
        Ok(org.fetch_optional(self.identity_pool()).await?.flatten().map(OrgId::from_uuid))
    }

    /// Records that the user's personal organization exists.
    pub async fn note_personal_org(&self, user: UserId, org: OrgId) -> Result<(), DbError> {
        sqlx::query!("UPDATE identity.users SET personal_org = $2 WHERE user_id = $1", user.uuid(), org.uuid())
            .execute(self.identity_pool())
            .await?;
        Ok(())
    }
}
