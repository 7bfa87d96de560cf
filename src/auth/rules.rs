//! What an organization demands of whoever acts in it, beside being a member: which ways to sign in, a second factor.

use std::collections::BTreeSet;

use orgstream_events::{LoginMethod, MfaPolicy, OrganizationSettings};

use super::AuthError;

/// The demands of one organization. Without any, everybody who belongs there may act.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    allowed: Option<BTreeSet<LoginMethod>>,
    mfa: MfaPolicy,
}

impl From<&OrganizationSettings> for Rules {
    fn from(settings: &OrganizationSettings) -> Self {
        Self { allowed: settings.allowed_auth_methods.clone(), mfa: settings.mfa_policy }
    }
}

impl Rules {
    /// Refuses a way to sign in that the organization does not have, and a person without the second factor that it
    /// wants. A key has no second factor: whoever issued it had to have one.
    pub(super) fn check(&self, method: &LoginMethod, second_factor: bool) -> Result<(), AuthError> {
        if let Some(allowed) = &self.allowed
            && !allowed.contains(method)
        {
            let allowed: Vec<&str> = allowed.iter().map(LoginMethod::as_str).collect();
            return Err(AuthError::MethodNotAllowed { method: method.clone(), allowed: allowed.join(", ") });
        }
        let needs_another = self.mfa == MfaPolicy::Required && method.is_for_people() && !second_factor;
        if needs_another { Err(AuthError::MfaRequired) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allowed: Option<&[LoginMethod]>, mfa: MfaPolicy) -> Rules {
        Rules { allowed: allowed.map(|methods| methods.iter().cloned().collect()), mfa }
    }

    #[test]
    fn without_demands_everybody_may_act() {
        for method in [LoginMethod::oidc(), LoginMethod::api_key()] {
            assert!(Rules::default().check(&method, false).is_ok());
        }
    }

    #[test]
    fn only_the_ways_that_are_allowed_lead_in() {
        let rules = rules(Some(&[LoginMethod::oidc()]), MfaPolicy::Optional);
        assert!(rules.check(&LoginMethod::oidc(), false).is_ok());
        assert!(matches!(rules.check(&LoginMethod::api_key(), false), Err(AuthError::MethodNotAllowed { .. })));
        let connection = "sso:one".parse().unwrap();
        assert!(matches!(rules.check(&connection, true), Err(AuthError::MethodNotAllowed { .. })));
    }

    #[test]
    fn a_second_factor_is_asked_of_people_only() {
        let rules = rules(None, MfaPolicy::Required);
        assert!(matches!(rules.check(&LoginMethod::oidc(), false), Err(AuthError::MfaRequired)));
        assert!(rules.check(&LoginMethod::oidc(), true).is_ok());
        assert!(rules.check(&LoginMethod::api_key(), false).is_ok());
    }
}
