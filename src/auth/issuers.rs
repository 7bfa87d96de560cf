//! The trusted issuers, and the choice among them by a token's claim.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::oidc::{Login, Oidc, OidcError};

#[derive(Deserialize)]
struct Claim {
    iss: String,
}

/// All trusted issuers. A person is a person of one of them: the same name at another one is another person.
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

    /// Verifies the token with the issuer that it names, and returns its subject.
    pub async fn verify(&self, token: &str) -> Result<Login, OidcError> {
        // The claim is unverified so far: it only selects the issuer whose keys verify the token.
        let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claim = payload.and_then(|bytes| serde_json::from_slice::<Claim>(&bytes).ok());
        let named = claim.and_then(|claim| self.0.iter().find(|oidc| oidc.issuer() == claim.iss));
        match named {
            Some(oidc) => oidc.verify(token).await,
            None => Err(OidcError::Untrusted),
        }
    }
}
