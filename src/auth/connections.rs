//! People whom an organization's own issuer signs in. What such an issuer says counts in that organization alone: it is the
//! organization's to choose, so nobody else may be made to believe it.
//!
//! A request that names an organization is checked by that one's connections, whoever else has the same issuer. Where none
//! is named, the pair of issuer and audience says which it is: one organization alone can have it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use orgstream_events::{ConnectionId, OrgId};
use orgstream_projections::{BoundOrg, Database, sso_connections};
use quick_cache::sync::Cache;
use serde::Deserialize;

use super::{
    AuthError,
    decided::{self, Decided},
    oidc::{Login, Oidc, OidcError},
};
use crate::tenant_cache::{CacheView, OrgCache, Scoped};

/// How long it is believed which connections there are. With what the log is believed for (`decided.rs`) it stays under a second
/// until what is removed stops working, in every process.
const CACHE_TTL: Duration = Duration::from_millis(400);
const CACHE_CAPACITY: usize = 10_000;
/// Audiences of one token that are looked at.
const MAX_AUDIENCES: usize = 8;

/// Somebody whom a connection signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsoLogin {
    /// The one organization where that counts.
    pub org: OrgId,
    /// By which of its connections.
    pub connection: ConnectionId,
    /// Who.
    pub login: Login,
}

/// Connections of one organization to one issuer.
type OfOrg = Vec<(ConnectionId, Arc<Oidc>)>;
/// Whoever has a pair, and when that was so.
type Holders = (Instant, Arc<Vec<OrgId>>);

/// The issuers of all organizations, each known when its first token comes.
pub struct Connections {
    db: Database,
    decided: Arc<Decided>,
    /// Whether issuers may be on this machine: for trying things out.
    local: bool,
    /// With the keys that they published.
    issuers: OrgCache<ConnectionId, Arc<Oidc>>,
    of_org: OrgCache<String, (Instant, Arc<OfOrg>)>,
    /// Which organizations have a pair of issuer and audience: ids, and nothing of theirs.
    holders: Cache<(String, String), Holders>,
}

/// What a token says of itself, which nobody has checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Claimed {
    /// Who is to have signed it.
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
    /// Reads it out of a token.
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
    /// Those that `db` knows; `local` says whether they may be on this machine.
    pub(super) fn new(db: Database, decided: Arc<Decided>, local: bool) -> Self {
        let (issuers, of_org) = (OrgCache::new(CACHE_CAPACITY), OrgCache::new(CACHE_CAPACITY));
        Self { db, decided, local, issuers, of_org, holders: Cache::new(CACHE_CAPACITY) }
    }

    /// What is remembered at the moment.
    pub fn caches(&self) -> [CacheView; 2] {
        [
            CacheView::of("sso_issuers", "org/connection", &self.issuers),
            CacheView::of("sso_connections", "org/issuer", &self.of_org),
        ]
    }

    /// Whom the token is about, if the issuer that it names is one that an organization has; none when nobody has it.
    /// `place` is the organization that the request names, whose word comes first there.
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
                        return Err(AuthError::Unauthenticated(
                            "several organizations sign people in by this issuer and audience: name yours in the path"
                                .to_owned(),
                        ));
                    }
                }
            }
        }
        match (found, refusal) {
            (Some(login), _) => Ok(Some(login)),
            (None, None) => Ok(None),
            (None, Some(OidcError::Invalid(reason))) => Err(AuthError::Unauthenticated(reason)),
            (None, Some(OidcError::Unavailable(reason))) => Err(AuthError::Unavailable(reason)),
        }
    }

    /// The same by the connections of one organization. Why they refuse is told by `refusal`.
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
        // From before it is asked: what changes meanwhile may or may not be in the answer.
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
                    let oidc = Oidc::of_customer(connection.issuer, connection.audience, self.local);
                    let oidc = Arc::new(oidc.map_err(|error| AuthError::Unavailable(error.to_string()))?);
                    self.issuers.insert(key, Arc::clone(&oidc));
                    oidc
                }
            };
            found.push((connection.id, oidc));
        }
        let found = Arc::new(found);
        // That there is none is not remembered: whoever has just added it tries it out.
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
