//! The only queries that run before an org is known. Each returns ids and nothing else.

use orgstream_events::{DomainName, Fingerprint, KeyPublicId, KindName, OrgId, Shard, Slug, UserId};

use crate::{Database, DbError};

impl Database {
    /// Returns the org that has, or once had, this slug.
    pub async fn org_of_slug(&self, slug: &Slug) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!("SELECT app.org_of_slug($1)", slug.as_str());
        Ok(org.fetch_one(self.resolver_pool()).await?.map(OrgId::from_uuid))
    }

    /// Returns the org that issued the key with this public id.
    pub async fn org_of_key(&self, public_id: &KeyPublicId) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!("SELECT app.org_of_key($1)", public_id.as_str());
        Ok(org.fetch_one(self.resolver_pool()).await?.map(OrgId::from_uuid))
    }

    /// Returns the org of the invitation whose token has this hash.
    pub async fn org_of_invitation(&self, token_mac: &Fingerprint) -> Result<Option<OrgId>, DbError> {
        let org = sqlx::query_scalar!("SELECT app.org_of_invitation($1)", token_mac.0.as_slice());
        Ok(org.fetch_one(self.resolver_pool()).await?.map(OrgId::from_uuid))
    }

    /// Returns the orgs that have proven this domain to be their own, in the order of their ids; at most 100.
    pub async fn orgs_of_domain(&self, domain: &DomainName) -> Result<Vec<OrgId>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_of_domain($1) AS "org!""#, domain.as_str());
        Ok(orgs.fetch_all(self.resolver_pool()).await?.into_iter().map(OrgId::from_uuid).collect())
    }

    /// Returns the org with a connection to this issuer for this audience; two when that is ambiguous.
    pub async fn orgs_of_login(&self, issuer: &str, audience: &str) -> Result<Vec<OrgId>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_of_login($1, $2) AS "org!""#, issuer, audience);
        Ok(orgs.fetch_all(self.resolver_pool()).await?.into_iter().map(OrgId::from_uuid).collect())
    }

    /// Returns the orgs that have records of this kind, in the order of their ids; at most 1,001.
    pub(crate) async fn orgs_of_kind(&self, kind: &KindName) -> Result<Vec<OrgId>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_of_kind($1) AS "org!""#, kind.as_str());
        Ok(orgs.fetch_all(self.resolver_pool()).await?.into_iter().map(OrgId::from_uuid).collect())
    }

    /// Returns the orgs of this shard that have rows in the tables, in the order of their ids.
    pub async fn orgs_of_shard(&self, shard: Shard) -> Result<Vec<OrgId>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_of_shard($1) AS "org!""#, i32::from(shard.0));
        Ok(orgs.fetch_all(self.resolver_pool()).await?.into_iter().map(OrgId::from_uuid).collect())
    }

    /// Returns the orgs that this user is an active member of, in the order of their ids.
    pub async fn orgs_of_user(&self, user: UserId) -> Result<Vec<OrgId>, DbError> {
        let orgs = sqlx::query_scalar!(r#"SELECT app.orgs_of_user($1) AS "org!""#, user.uuid());
        Ok(orgs.fetch_all(self.resolver_pool()).await?.into_iter().map(OrgId::from_uuid).collect())
    }
}
