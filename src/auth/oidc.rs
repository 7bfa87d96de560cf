//! Tokens of an OpenID Connect issuer: discovered once, checked against its published keys.

use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use orgstream_events::UserId;
use serde::Deserialize;
use tokio::sync::RwLock;

/// How long published keys are used without asking again.
const KEEP: Duration = Duration::from_secs(600);
/// How soon an unknown key id may make us ask again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Symmetric algorithms are not here: their key would be a secret that we share with the issuer.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// Why a token does not count.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// It is not valid, and will not be.
    #[error("{0}")]
    Invalid(String),
    /// The issuer could not be asked for its keys.
    #[error("{0}")]
    Unavailable(String),
}

/// Somebody whom the issuer knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The login identity.
    pub user: UserId,
    /// The e-mail address, if the issuer verified it.
    pub verified_email: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

struct Keys {
    set: JwkSet,
    asked: Instant,
}

/// One issuer that is trusted.
pub struct Oidc {
    issuer: String,
    audience: String,
    http: reqwest::Client,
    keys: RwLock<Option<Keys>>,
}

impl Oidc {
    /// Trusts `issuer` for tokens that name `audience`. It is asked for its keys when the first token comes.
    pub fn new(issuer: String, audience: String) -> Result<Self, OidcError> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build();
        let http = http.map_err(|error| OidcError::Unavailable(error.to_string()))?;
        Ok(Self { issuer, audience, http, keys: RwLock::new(None) })
    }

    /// What its tokens name as `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Who the token is about.
    pub async fn verify(&self, token: &str) -> Result<Login, OidcError> {
        let invalid = |reason: String| OidcError::Invalid(format!("this token is not valid: {reason}"));
        let header = decode_header(token).map_err(|error| invalid(error.to_string()))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(invalid(format!("it is signed with {:?}; RS256, ES256 and EdDSA are accepted", header.alg)));
        }
        let kid = header.kid.ok_or_else(|| invalid("its header names no key (kid)".to_owned()))?;
        let key = self.key(&kid).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 30;
        let claims = decode::<Claims>(token, &key, &validation).map_err(|error| invalid(error.to_string()))?.claims;
        Ok(Login {
            user: UserId::from_login(&self.issuer, &claims.sub),
            verified_email: claims.email.filter(|_| claims.email_verified),
        })
    }

    async fn key(&self, kid: &str) -> Result<DecodingKey, OidcError> {
        let unknown = || OidcError::Invalid(format!("the issuer has no key {kid:?}"));
        let usable = |keys: &Keys| keys.set.find(kid).map(DecodingKey::from_jwk);
        if let Some(keys) = &*self.keys.read().await
            && keys.asked.elapsed() < KEEP
            && let Some(key) = usable(keys)
        {
            return key.map_err(|error| OidcError::Invalid(error.to_string()));
        }
        let mut held = self.keys.write().await;
        if held.as_ref().is_none_or(|keys| keys.asked.elapsed() > ASK_AGAIN) {
            *held = Some(Keys { set: self.fetch().await?, asked: Instant::now() });
        }
        let key = held.as_ref().and_then(usable).ok_or_else(unknown)?;
        key.map_err(|error| OidcError::Invalid(error.to_string()))
    }

    async fn fetch(&self) -> Result<JwkSet, OidcError> {
        let unavailable =
            |error: reqwest::Error| OidcError::Unavailable(format!("the issuer does not answer: {error}"));
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let found: Discovery =
            self.http.get(&url).send().await.map_err(unavailable)?.json().await.map_err(unavailable)?;
        if found.issuer != self.issuer {
            return Err(OidcError::Unavailable(format!("{url} is the configuration of {}", found.issuer)));
        }
        self.http.get(&found.jwks_uri).send().await.map_err(unavailable)?.json().await.map_err(unavailable)
    }
}
