//! The issuers that are trusted, and which of them a token says it is from.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::oidc::{Login, Oidc, OidcError};

#[derive(Deserialize)]
struct Claim {
    iss: String,
}

/// Everybody whose tokens count. A person is a person of one of them: the same name at another one is somebody else.
#[derive(Default)]
pub struct Issuers(Vec<Oidc>);

impl Issuers {
    /// Trusts each of these for its own audience.
    pub fn new(trusted: impl IntoIterator<Item = (String, String)>) -> Result<Self, OidcError> {
        trusted.into_iter().map(|(issuer, audience)| Oidc::new(issuer, audience)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this issuer is one of them.
    pub fn knows(&self, issuer: &str) -> bool {
        self.0.iter().any(|oidc| oidc.issuer() == issuer)
    }

    /// Who the token is about, as the issuer says that the token itself names.
    pub async fn verify(&self, token: &str) -> Result<Login, OidcError> {
        // What it says is believed by nobody yet: it only chooses whose keys it is checked with.
        let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claim = payload.and_then(|bytes| serde_json::from_slice::<Claim>(&bytes).ok());
        let named = claim.and_then(|claim| self.0.iter().find(|oidc| oidc.issuer() == claim.iss));
        match named {
            Some(oidc) => oidc.verify(token).await,
            None => Err(OidcError::Invalid(
                "this is neither an API key, nor a session, nor a token of an issuer that is trusted here".to_owned(),
            )),
        }
    }
}
