//! The rules for all principals in an organization: suspension, sign-in methods, a second factor, and limits.

use std::collections::BTreeSet;

use orgstream_domain::organization::Profile;
use orgstream_events::{LoginMethod, MfaPolicy, OrganizationLimits, PlanName};
use orgstream_projections::organizations::Organization;

use super::AuthError;

/// The rules of one organization. By default every principal that belongs there may act.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrgPolicy {
    /// The organization is suspended for all but the platform.
    pub(super) suspended: bool,
    /// Its deletion was requested.
    pub(super) is_being_deleted: bool,
    /// Its plan.
    pub plan: PlanName,
    /// The limits that override its plan's.
    pub limits: OrganizationLimits,
    allowed: Option<BTreeSet<LoginMethod>>,
    mfa: MfaPolicy,
}

impl From<Organization> for OrgPolicy {
    fn from(organization: Organization) -> Self {
        let Organization { suspended_reason, delete_at, plan, limits, settings, .. } = organization;
        let (suspended, is_being_deleted) = (suspended_reason.is_some(), delete_at.is_some());
        let (allowed, mfa) = (settings.allowed_auth_methods, settings.mfa_policy);
        Self { suspended, is_being_deleted, plan, limits, allowed, mfa }
    }
}

impl From<&Profile> for OrgPolicy {
    fn from(profile: &Profile) -> Self {
        let Profile { suspended, deletion, plan, limits, settings, .. } = profile;
        let (allowed, mfa) = (settings.allowed_auth_methods.clone(), settings.mfa_policy);
        let (suspended, is_being_deleted) = (suspended.is_some(), deletion.is_some());
        Self { suspended, is_being_deleted, plan: plan.clone(), limits: limits.clone(), allowed, mfa }
    }
}

impl OrgPolicy {
    /// Refuses a sign-in method that the organization does not allow, a person without the second factor that it requires,
    /// and every principal while it is suspended or being deleted.
    pub(super) fn check(&self, method: &LoginMethod, second_factor: bool) -> Result<(), AuthError> {
        self.check_sign_in(method, second_factor)?;
        match (self.is_being_deleted, self.suspended) {
            (true, _) => Err(AuthError::BeingDeleted),
            (false, true) => Err(AuthError::Suspended),
            (false, false) => Ok(()),
        }
    }

    /// Refuses a sign-in method that the organization does not allow, and a person without the second factor that it requires. A
    /// key has no second factor: its issuing principal had to have one.
    pub(super) fn check_sign_in(&self, method: &LoginMethod, second_factor: bool) -> Result<(), AuthError> {
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

    fn rules(allowed: Option<&[LoginMethod]>, mfa: MfaPolicy) -> OrgPolicy {
        OrgPolicy { allowed: allowed.map(|methods| methods.iter().cloned().collect()), mfa, ..OrgPolicy::default() }
    }

    #[test]
    fn without_demands_everybody_may_act() {
        for method in [LoginMethod::oidc(), LoginMethod::api_key()] {
            assert!(OrgPolicy::default().check(&method, false).is_ok());
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
    fn nobody_acts_where_it_is_suspended() {
        let rules = OrgPolicy { suspended: true, ..OrgPolicy::default() };
        assert!(matches!(rules.check(&LoginMethod::api_key(), false), Err(AuthError::Suspended)));
    }

    #[test]
    fn nobody_acts_where_it_is_being_deleted() {
        let rules = OrgPolicy { is_being_deleted: true, suspended: true, ..OrgPolicy::default() };
        for method in [LoginMethod::oidc(), LoginMethod::api_key()] {
            assert!(matches!(rules.check(&method, true), Err(AuthError::BeingDeleted)));
            assert!(rules.check_sign_in(&method, true).is_ok());
        }
    }

    #[test]
    fn a_second_factor_is_asked_of_people_only() {
        let rules = rules(None, MfaPolicy::Required);
        assert!(matches!(rules.check(&LoginMethod::oidc(), false), Err(AuthError::MfaRequired)));
        assert!(rules.check(&LoginMethod::oidc(), true).is_ok());
        assert!(rules.check(&LoginMethod::api_key(), false).is_ok());
    }
}
