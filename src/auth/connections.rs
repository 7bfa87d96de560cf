//! People whom an organization's own issuer signs in. What such an issuer says counts in that organization alone: it is the
//! organization's to choose, so nobody else may be made to believe it.

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
    oidc::{Login, Oidc, OidcError},
};

/// How long it is believed which organizations an issuer is of. What is removed stops working within this.
const REMEMBER: Duration = Duration::from_secs(1);
const REMEMBERED: usize = 10_000;

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

type Found = Arc<Vec<(OrgId, ConnectionId, Arc<Oidc>)>>;

/// The issuers of all organizations, each known when its first token comes.
pub struct Connections {
    db: Database,
    /// Whether issuers may be on this machine: for trying things out.
    local: bool,
    /// With the keys that they published.
    issuers: Cache<(OrgId, ConnectionId), Arc<Oidc>>,
    found: Cache<String, (Instant, Found)>,
}

#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

/// What a token says of its issuer, which nobody has checked.
pub fn claimed_issuer(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Unverified>(&payload).ok().map(|claims| claims.iss)
}

impl Connections {
    /// Those that `db` knows; `local` says whether they may be on this machine.
    pub fn new(db: Database, local: bool) -> Self {
        Self { db, local, issuers: Cache::new(REMEMBERED), found: Cache::new(REMEMBERED) }
    }

    /// Whom the token is about, if `issuer`, which it names, is one that an organization has; none when nobody has it.
    pub async fn verify(&self, issuer: &str, token: &str) -> Result<Option<SsoLogin>, AuthError> {
        let found = self.of_issuer(issuer).await?;
        let mut refusal = None;
        for (org, connection, oidc) in &*found {
            match oidc.verify(token).await {
                Ok(login) => return Ok(Some(SsoLogin { org: *org, connection: *connection, login })),
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            None => Ok(None),
            Some(OidcError::Invalid(reason)) => Err(AuthError::Unauthenticated(reason)),
            Some(OidcError::Unavailable(reason)) => Err(AuthError::Unavailable(reason)),
        }
    }

    async fn of_issuer(&self, issuer: &str) -> Result<Found, AuthError> {
        if let Some((at, found)) = self.found.get(issuer)
            && at.elapsed() < REMEMBER
        {
            return Ok(found);
        }
        let mut found = Vec::new();
        for org in self.db.orgs_of_issuer(issuer).await? {
            let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
            for connection in sso_connections::of_issuer(&mut tx, issuer).await? {
                let key = (org, connection.id);
                let oidc = match self.issuers.get(&key) {
                    Some(oidc) => oidc,
                    None => {
                        let oidc = Oidc::of_customer(connection.issuer, connection.audience, self.local);
                        let oidc = Arc::new(oidc.map_err(|error| AuthError::Unavailable(error.to_string()))?);
                        self.issuers.insert(key, Arc::clone(&oidc));
                        oidc
                    }
                };
                found.push((org, connection.id, oidc));
            }
        }
        let found = Arc::new(found);
        // That nobody has it is not remembered: whoever has just added it tries it out.
        if !found.is_empty() {
            self.found.insert(issuer.to_owned(), (Instant::now(), Arc::clone(&found)));
        }
        Ok(found)
    }
}
