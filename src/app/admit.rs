//! Admission at the API boundary: from a credential to a principal, and from a principal to an organization, with what each
//! refusal leaves in the access log. HTTP, NATS and the webhooks of providers share it.

use orgstream_events::Chain;

use super::{
    access_log::{AccessLog, DeniedRequest},
    problem::Problem,
    submit::Origin,
};
use crate::auth::{Access, AuthError, Authenticator, Principal, authenticator::OrgName, leaks::LeakReporters};

/// The checks of one request.
#[derive(Clone, Copy)]
pub struct Admit<'a> {
    /// Credentials and rights.
    pub auth: &'a Authenticator,
    /// Refusals are recorded here.
    pub access_log: &'a AccessLog,
    /// The request's origin: route, address, request id.
    pub origin: &'a Origin,
}

/// The signature of a provider's webhook.
pub struct Signed<'a> {
    /// The name of the key that it was made with.
    pub key: &'a str,
    /// The signature of the body.
    pub signature: &'a str,
    /// The body, byte for byte.
    pub body: &'a [u8],
}

impl Admit<'_> {
    /// Fails unless a provider that the operator trusts signed the body. A provider is no principal of an organization, so a
    /// refusal is only logged.
    pub fn provider(self, trusted: &LeakReporters, signed: &Signed<'_>) -> Result<(), Problem> {
        trusted.verify(signed.key, signed.signature, signed.body).map_err(|error| {
            let from = self.origin.context.ip.as_deref().unwrap_or_default();
            tracing::warn!(from, error = %Chain(&error), "a webhook is not signed by a trusted provider");
            Problem::new(403, "bad_signature", "Not signed by a trusted party", Chain(&error).to_string())
        })
    }

    /// The principal that `authenticated` found, if it may come from the request's address. The refusal of a credential that
    /// names an API key is recorded for the key's organization.
    pub fn principal(self, authenticated: Result<Principal, AuthError>) -> Result<Principal, Problem> {
        let admitted = authenticated.and_then(|principal| {
            self.auth.keys().admit(&principal, &self.origin.context)?;
            Ok(principal)
        });
        admitted.map_err(|error| self.access_log.refused(error, self.origin))
    }

    /// The principal's access to the organization `name`. A refusal is recorded for the principal's own organization and the
    /// platform, as `attempt` names it.
    pub async fn organization(
        self,
        principal: &Principal,
        name: &OrgName,
        attempt: DeniedRequest<'_>,
    ) -> Result<Access, Problem> {
        self.auth.access(principal, name).await.map_err(|error| {
            let problem = Problem::from(error);
            self.access_log.denied(principal, self.origin, attempt, &problem);
            problem
        })
    }
}
