//! People whom an organization's own issuer signs in. Such an issuer is trusted in that organization alone: the organization
//! chooses it, so no other one may be made to trust it.
//!
//! A request that names an organization is checked by that one's connections, even if others have the same issuer. Where
//! none is named, the pair of issuer and audience identifies it: one organization alone can have it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use orgstream_events::{ConnectionId, OrgId, cause};
use orgstream_projections::{BoundOrg, Database, sso_connections};
use quick_cache::sync::Cache;
use serde::Deserialize;

use super::{
    AuthError,
    decided::{self, Decided},
    oidc::{Login, Oidc, OidcError},
};
use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// The TTL of the list of connections. With the TTL of log reads (`decided.rs`), a removed connection stops working in under
/// a second, in every process.
const CACHE_TTL: Duration = Duration::from_millis(400);
const CACHE_CAPACITY: usize = 10_000;
/// The maximum number of audiences of one token that are checked.
const MAX_AUDIENCES: usize = 8;

/// A person whom a connection signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsoLogin {
    /// The one organization where that is valid.
    pub org: OrgId,
    /// The connection.
    pub connection: ConnectionId,
    /// The person.
    pub login: Login,
}

/// Connections of one organization to one issuer.
type OfOrg = Vec<(ConnectionId, Arc<Oidc>)>;
/// The holders of a pair, and when they were read.
type Holders = (Instant, Arc<Vec<OrgId>>);

/// The issuers of all organizations, each loaded when its first token comes.
pub struct Connections {
    db: Database,
    decided: Arc<Decided>,
    /// Whether issuers may be on this machine: for trials.
    local: bool,
    /// With the keys that they published.
    issuers: OrgCache<ConnectionId, Arc<Oidc>>,
    of_org: OrgCache<String, (Instant, Arc<OfOrg>)>,
    /// The organizations that have a pair of issuer and audience: ids, and nothing else of theirs.
    holders: Cache<(String, String), Holders>,
}

/// The unverified claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claimed {
    /// The claimed signer.
    pub iss: String,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Claimed {
    /// Parses the claims of a token.
    pub fn of(token: &str) -> Option<Self> {
        let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }

    fn audiences(&self) -> &[String] {
        match &self.aud {
            Audiences::One(one) => std::slice::from_ref(one),
            Audiences::Several(several) => several.get(..MAX_AUDIENCES).unwrap_or(several),
        }
    }
}

impl Connections {
    /// Uses the connections in `db`; `local` says whether their issuers may be on this machine.
    pub(super) fn new(db: Database, decided: Arc<Decided>, local: bool) -> Self {
        let (issuers, of_org) = (OrgCache::new(CACHE_CAPACITY), OrgCache::new(CACHE_CAPACITY));
        Self { db, decided, local, issuers, of_org, holders: Cache::new(CACHE_CAPACITY) }
    }

    /// Returns the current cache contents.
    pub fn caches(&self) -> [CacheView; 2] {
        [
            CacheView::of("sso_issuers", "org/connection", &self.issuers),
            CacheView::of("sso_connections", "org/issuer", &self.of_org),
        ]
    }

    /// Verifies the token, if an organization has the issuer that it names; none when no organization has it. `place` is the
    /// organization that the request names, whose connections take precedence there.
    pub async fn verify(
        &self,
        claimed: &Claimed,
        token: &str,
        place: Option<OrgId>,
    ) -> Result<Option<SsoLogin>, AuthError> {
        let mut refusal = None;
        if let Some(org) = place
            && let Some(login) = self.by_org(org, &claimed.iss, token, &mut refusal).await?
        {
            return Ok(Some(login));
        }
        let mut found = None;
        for audience in claimed.audiences() {
            for org in self.holders(&claimed.iss, audience).await?.iter().copied() {
                let Some(login) = self.by_org(org, &claimed.iss, token, &mut refusal).await? else { continue };
                match &found {
                    None => found = Some(login),
                    Some(SsoLogin { org: other, .. }) if *other == org => {}
                    Some(_) => {
                        return Err(AuthError::Unauthenticated(cause(
                            "several organizations sign people in by this issuer and audience: name yours in the path",
                        )));
                    }
                }
            }
        }
        match (found, refusal) {
            (Some(login), _) => Ok(Some(login)),
            (None, None) => Ok(None),
            (None, Some(refusal)) => Err(refusal.into()),
        }
    }

    /// Verifies by the connections of one organization. `refusal` has the reason for a refusal.
    async fn by_org(
        &self,
        org: OrgId,
        issuer: &str,
        token: &str,
        refusal: &mut Option<OidcError>,
    ) -> Result<Option<SsoLogin>, AuthError> {
        for (connection, oidc) in self.of_org(org, issuer).await?.iter() {
            match oidc.verify(token).await {
                Ok(login) => return Ok(Some(SsoLogin { org, connection: *connection, login })),
                Err(error) => *refusal = Some(error),
            }
        }
        Ok(None)
    }

    async fn of_org(&self, org: OrgId, issuer: &str) -> Result<Arc<OfOrg>, AuthError> {
        let key = Scoped::new(org, issuer.to_owned());
        if let Some((at, known)) = self.of_org.get(&key)
            && at.elapsed() < CACHE_TTL
        {
            return Ok(known);
        }
        // Taken before the query: changes meanwhile may or may not be in the answer.
        let at = Instant::now();
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let reach = decided::reach(&mut tx).await?;
        let rows = sso_connections::of_issuer(&mut tx, issuer).await?;
        drop(tx);
        let decided = if rows.is_empty() { None } else { self.decided.connections(org, reach).await? };
        let mut found = Vec::new();
        for connection in rows {
            // It may have been removed since.
            if decided.as_ref().is_some_and(|decided| !decided.has(connection.id)) {
                continue;
            }
            let key = Scoped::new(org, connection.id);
            let oidc = match self.issuers.get(&key) {
                Some(oidc) => oidc,
                None => {
                    let oidc = Arc::new(Oidc::of_customer(connection.issuer, connection.audience, self.local)?);
                    self.issuers.insert(key, Arc::clone(&oidc));
                    oidc
                }
            };
            found.push((connection.id, oidc));
        }
        let found = Arc::new(found);
        // An empty result is not cached: an administrator tries a connection right after adding it.
        if !found.is_empty() {
            self.of_org.insert(key, (at, Arc::clone(&found)));
        }
        Ok(found)
    }

    async fn holders(&self, issuer: &str, audience: &str) -> Result<Arc<Vec<OrgId>>, AuthError> {
        let key = (issuer.to_owned(), audience.to_owned());
        if let Some((at, known)) = self.holders.get(&key)
            && at.elapsed() < CACHE_TTL
        {
            return Ok(known);
        }
        let at = Instant::now();
        let found = Arc::new(self.db.orgs_of_login(issuer, audience).await?);
        if !found.is_empty() {
            self.holders.insert(key, (at, Arc::clone(&found)));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_one_audience_or_several() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let audiences = |claims: &str| Claimed::of(&token(claims)).map(|claimed| claimed.audiences().to_vec());
        assert_eq!(audiences(r#"{"iss": "i", "aud": "a"}"#), Some(vec!["a".to_owned()]));
        assert_eq!(audiences(r#"{"iss": "i", "aud": ["a", "b"]}"#), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(audiences(r#"{"iss": "i"}"#), Some(vec![]));
        assert_eq!(audiences(r#"{"aud": "a"}"#), None);
        let many = format!(r#"{{"iss": "i", "aud": {:?}}}"#, vec!["a"; 100]);
        assert_eq!(audiences(&many).map(|many| many.len()), Some(MAX_AUDIENCES));
    }
}
