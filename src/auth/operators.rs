//! The operators of the platform: people with an issuer's token that has the operator claim; and a static token, which
//! identifies no person, for the time before there are any.

use std::str::FromStr;

use orgstream_events::UserId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    AuthError,
    connections::Claimed,
    oidc::{Oidc, OidcError},
};

/// A platform operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// The bearer of the static token.
    Token,
    /// A person.
    Person {
        /// The login identity.
        user: UserId,
        /// The name in all entries: the address that the issuer verified, or the person's name there.
        name: String,
    },
}

impl Operator {
    /// Returns the name in an organization's events.
    pub fn name(&self) -> &str {
        match self {
            Self::Token => "operator",
            Self::Person { name, .. } => name,
        }
    }
}

/// The claim of operators' tokens, and no others: `groups=orgstream-operators`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorClaim {
    /// The name of the claim.
    pub name: String,
    /// Its value, or one of its values.
    pub value: String,
}

impl FromStr for OperatorClaim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("{text:?} names no claim: write NAME=VALUE, like groups=orgstream-operators")),
        }
    }
}

/// Recognizes operators. One per process.
#[derive(Default)]
pub struct Operators {
    token: Option<[u8; 32]>,
    people: Option<(Oidc, OperatorClaim)>,
}

impl Operators {
    /// Accepts the static token, if there is one.
    pub fn with_token(token: Option<&str>) -> Self {
        Self { token: token.map(|token| Sha256::digest(token).into()), people: None }
    }

    /// Accepts also tokens of this issuer, for this audience, with the claim.
    pub fn and_people(self, issuer: String, audience: String, claim: OperatorClaim) -> Result<Self, OidcError> {
        Ok(Self { people: Some((Oidc::new(issuer, audience)?, claim)), ..self })
    }

    /// Whether this is the static token.
    pub fn is_token(&self, text: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(text).into();
        self.token.is_some_and(|token| token.ct_eq(&digest).into())
    }

    /// Returns the person of this token, if it is an operator's. A token that is not may still be valid for another use.
    pub async fn person(&self, claimed: &Claimed, text: &str) -> Result<Option<Operator>, AuthError> {
        let Some((oidc, claim)) = &self.people else { return Ok(None) };
        if claimed.iss != oidc.issuer() {
            return Ok(None);
        }
        let login = match oidc.verify_with(text, &claim.name, &claim.value).await {
            Ok(Some(login)) => login,
            Ok(None) | Err(OidcError::Invalid(_) | OidcError::Untrusted) => return Ok(None),
            Err(error @ OidcError::Unavailable(_)) => return Err(error.into()),
        };
        let name = login.verified_email.unwrap_or_else(|| format!("{} at {}", login.subject, login.issuer));
        Ok(Some(Operator::Person { user: login.user, name }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_a_name_and_a_value() {
        let claim: OperatorClaim = "groups=a=b".parse().unwrap();
        assert_eq!((claim.name.as_str(), claim.value.as_str()), ("groups", "a=b"));
        for bad in ["", "groups", "=x", "groups="] {
            assert!(bad.parse::<OperatorClaim>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_token_is_compared_whole() {
        let operators = Operators::with_token(Some("the token"));
        assert!(operators.is_token("the token") && !operators.is_token("the tokem") && !operators.is_token(""));
        assert!(!Operators::default().is_token(""));
    }
}
