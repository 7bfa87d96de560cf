//! Admission at the API boundary: from a credential to a principal, and from a principal to an organization, with what each
//! refusal leaves in the access log. HTTP and NATS share it.

use super::{
    access_log::{AccessLog, DeniedRequest},
    problem::Problem,
    submit::Origin,
};
use crate::auth::{Access, AuthError, Authenticator, Principal, authenticator::OrgName};

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

impl Admit<'_> {
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
