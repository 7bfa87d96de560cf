//! A small OpenID Connect issuer for `orgstream dev`: it signs in any caller, so it listens on loopback only.
//!
//! It provides people without an account anywhere. Everything else treats it like any other issuer.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use orgstream_events::Chain;
use orgstream_servers::write_private;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The audience of every token.
pub const AUDIENCE: &str = "orgstream";
const KEY_FILE: &str = "issuer.key";
/// The bytes before the 32 secret bytes of an Ed25519 key in PKCS #8.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const DEFAULT_TTL: Duration = Duration::from_hours(12);
const MAX_TTL: Duration = Duration::from_hours(366 * 24);

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    email: &'a str,
    email_verified: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    amr: &'a [String],
    iat: u64,
    exp: u64,
}

/// A person who signs in, with the claims that differ from the defaults.
#[derive(Debug, Clone)]
pub struct Person<'a> {
    /// The e-mail address, which is also the identity.
    pub email: &'a str,
    /// Whether it counts as verified.
    pub email_verified: bool,
    /// The authentication methods (RFC 8176), for example `mfa`.
    pub amr: &'a [String],
}

/// The issuer. Clones are the same one.
#[derive(Clone)]
pub struct DevIssuer(Arc<Signer>);

struct Signer {
    url: String,
    key: EncodingKey,
    kid: String,
    jwks: Value,
}

impl DevIssuer {
    /// Creates an issuer whose key is kept in `dir`, readable by its owner alone. People keep their identity only as long as
    /// `url` is the same.
    pub fn load_or_create(dir: &Path, url: String) -> anyhow::Result<Self> {
        let path = dir.join(KEY_FILE);
        let secret: [u8; 32] = match fs::read(&path) {
            Ok(bytes) => match bytes.try_into() {
                Ok(secret) => secret,
                Err(_) => bail!("{} is no key of the development issuer; remove it and start again", path.display()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let secret: [u8; 32] = rand::random();
                write_private(&path, &secret)?;
                secret
            }
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let key = EncodingKey::from_ed_der(&[&PKCS8_ED25519[..], &secret].concat());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::EdDSA).context("the issuer's key cannot be used")?;
        let public = serde_json::to_vec(&jwk.algorithm)?;
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(public).iter().copied().take(12).collect::<Vec<_>>());
        jwk.common.key_id = Some(kid.clone());
        let jwks = json!({"keys": [jwk]});
        Ok(Self(Arc::new(Signer { url, key, kid, jwks })))
    }

    /// Returns its URL, which is also the `iss` of its tokens.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Mints a token for this e-mail address, which counts as verified.
    pub fn mint(&self, email: &str, ttl: Duration) -> anyhow::Result<String> {
        self.mint_as(&Person { email, email_verified: true, amr: &[] }, ttl)
    }

    /// Mints a token with further claims.
    pub fn mint_as(&self, person: &Person<'_>, ttl: Duration) -> anyhow::Result<String> {
        self.mint_with(person, Value::Null, ttl)
    }

    /// Like `mint_as`, with other claims, or others in place of its own: an object, or nothing.
    pub fn mint_with(&self, person: &Person<'_>, more: Value, ttl: Duration) -> anyhow::Result<String> {
        let email = person.email.trim();
        if !email.contains('@') || email.chars().any(|c| c.is_whitespace() || c.is_control()) {
            bail!("{email:?} is not an e-mail address");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = Claims {
            iss: &self.0.url,
            // The same person tomorrow, without a table of people.
            sub: email.to_ascii_lowercase(),
            aud: AUDIENCE,
            email,
            email_verified: person.email_verified,
            amr: person.amr,
            iat: now,
            exp: now + ttl.min(MAX_TTL).as_secs(),
        };
        let mut claims = serde_json::to_value(claims)?;
        if let (Value::Object(claims), Value::Object(more)) = (&mut claims, more) {
            claims.extend(more);
        }
        let header = Header { kid: Some(self.0.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, &claims, &self.0.key).context("the token cannot be signed")
    }

    /// Serves on `listener`, which must be on loopback, until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            bail!("the development issuer signs in every caller, so it does not listen on {address}");
        }
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks.json", get(jwks))
            .route("/token", post(token))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.context("the issuer failed")
    }
}

async fn discovery(State(issuer): State<DevIssuer>) -> Json<Value> {
    let url = issuer.url();
    Json(json!({
        "issuer": url,
        "jwks_uri": format!("{url}/jwks.json"),
        "token_endpoint": format!("{url}/token"),
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "email", "email_verified", "amr"],
    }))
}

async fn jwks(State(issuer): State<DevIssuer>) -> Json<Value> {
    Json(issuer.0.jwks.clone())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    email: String,
    /// In seconds; 12 hours by default.
    expires_in: Option<u64>,
    /// True by default.
    email_verified: Option<bool>,
    /// The authentication methods, for example `["pwd", "mfa"]`.
    #[serde(default)]
    amr: Vec<String>,
}

async fn token(State(issuer): State<DevIssuer>, Json(request): Json<TokenRequest>) -> impl IntoResponse {
    let ttl = request.expires_in.map_or(DEFAULT_TTL, Duration::from_secs).min(MAX_TTL);
    let email_verified = request.email_verified.unwrap_or(true);
    match issuer.mint_as(&Person { email: &request.email, email_verified, amr: &request.amr }, ttl) {
        Ok(token) => {
            let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": ttl.as_secs()});
            (StatusCode::OK, Json(answer))
        }
        Err(error) => {
            let answer = json!({"error": "invalid_request", "error_description": Chain(error.as_ref()).to_string()});
            (StatusCode::BAD_REQUEST, Json(answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::auth::oidc::{Oidc, OidcError};

    async fn running(dir: &Path) -> (DevIssuer, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = DevIssuer::load_or_create(dir, url).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(issuer.clone().serve(listener, stop.clone()));
        (issuer, stop)
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("orgstream-issuer-{name}-{}", rand::random::<u64>()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[tokio::test]
    async fn its_tokens_are_accepted_like_anybodys() {
        let dir = folder("accepted");
        let (issuer, stop) = running(&dir).await;
        let oidc = Oidc::new(issuer.url().to_owned(), AUDIENCE.to_owned()).unwrap();
        let login = oidc.verify(&issuer.mint("Ann@acme.example", DEFAULT_TTL).unwrap()).await.unwrap();
        assert_eq!(login.verified_email.as_deref(), Some("Ann@acme.example"));
        let again = oidc.verify(&issuer.mint("ann@acme.example", DEFAULT_TTL).unwrap()).await.unwrap();
        assert_eq!(again.user, login.user);
        let answer: Value = reqwest::Client::new()
            .post(format!("{}/token", issuer.url()))
            .json(&json!({"email": "bob@acme.example"}))
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        assert_ne!(oidc.verify(answer["access_token"].as_str().unwrap()).await.unwrap().user, login.user);
        stop.cancel();
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn another_issuers_tokens_and_other_audiences_are_not() {
        let (dir, other_dir) = (folder("mine"), folder("other"));
        let (issuer, stop) = running(&dir).await;
        let stranger = DevIssuer::load_or_create(&other_dir, issuer.url().to_owned()).unwrap();
        let oidc = Oidc::new(issuer.url().to_owned(), AUDIENCE.to_owned()).unwrap();
        let forged = stranger.mint("ann@acme.example", DEFAULT_TTL).unwrap();
        assert!(matches!(oidc.verify(&forged).await, Err(OidcError::Invalid(_))));
        let elsewhere = Oidc::new(issuer.url().to_owned(), "elsewhere".to_owned()).unwrap();
        let token = issuer.mint("ann@acme.example", DEFAULT_TTL).unwrap();
        assert!(matches!(elsewhere.verify(&token).await, Err(OidcError::Invalid(_))));
        stop.cancel();
        fs::remove_dir_all(dir).unwrap();
        fs::remove_dir_all(other_dir).unwrap();
    }

    #[test]
    fn the_key_stays_and_is_its_owners_alone() {
        let dir = folder("key");
        let url = "http://127.0.0.1:1".to_owned();
        let first = DevIssuer::load_or_create(&dir, url.clone()).unwrap();
        let second = DevIssuer::load_or_create(&dir, url.clone()).unwrap();
        assert_eq!(first.0.kid, second.0.kid);
        let mode = fs::metadata(dir.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.mint("not an address", DEFAULT_TTL).is_err());
        fs::write(dir.join(KEY_FILE), b"short").unwrap();
        assert!(DevIssuer::load_or_create(&dir, url).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
