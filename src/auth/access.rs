//! Authenticated principals, and their access to an org.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use orgstream_domain::{Permission, Scopes};
use orgstream_events::{
    Actor, ActorType, Auth, AuthMethod, BreakGlassId, ConnectionId, KeyId, KeyPublicId, LoginMethod, MemberId, OrgId,
    PLATFORM_ORG, Role, UserId,
};
use orgstream_projections::BoundOrg;
use serde::{Deserialize, Serialize};

use super::{AuthError, Operator, OrgPolicy, session::ActiveSession};

/// An authenticated principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// An operator of the platform.
    Operator(Operator),
    /// A person who signed in with an issuer; the orgs follow from their memberships.
    User {
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
        /// How the person was authenticated, now or when the session was created.
        method: LoginMethod,
        /// Whether that took a second factor.
        second_factor: bool,
        /// The session; none with a token of the issuer.
        session: Option<ActiveSession>,
    },
    /// A person whom an organization's own issuer signed in, which is valid in that org alone.
    Sso {
        /// The one org.
        org: OrgId,
        /// The connection.
        connection: ConnectionId,
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
        /// Whether that took a second factor.
        second_factor: bool,
    },
    /// An API key. It implies its org and can act in no other.
    Key {
        /// The key's id.
        id: KeyId,
        /// The part of the token that identifies it.
        public_id: KeyPublicId,
        /// The one org that it belongs to.
        org: OrgId,
        /// The role, which bounds its permissions there.
        role: Role,
        /// The scopes within that role.
        scopes: Scopes,
        /// The networks that its bearer may come from; none is all.
        allowed_ips: Arc<[IpNet]>,
    },
}

impl Principal {
    /// Returns the actor for this principal outside every org, where it has no membership to be named by.
    pub fn actor(&self) -> Actor {
        let (actor_type, id) = match self {
            Self::Operator(operator) => (ActorType::PlatformOperator, operator.name().to_owned()),
            Self::User { user, .. } | Self::Sso { user, .. } => (ActorType::Anonymous, user.to_string()),
            Self::Key { id, .. } => (ActorType::ApiKey, id.to_string()),
        };
        Actor { actor_type, id, auth: Some(self.auth()) }
    }

    /// Returns how the principal was authenticated, in the form of events.
    fn auth(&self) -> Auth {
        let auth = |method| Auth { method, key_id: None, session_id: None };
        match self {
            Self::Operator(Operator::Token) => auth(AuthMethod::PlatformToken),
            Self::Operator(Operator::Person { .. }) | Self::User { session: None, .. } | Self::Sso { .. } => {
                auth(AuthMethod::Oidc)
            }
            Self::User { session: Some(session), .. } => {
                Auth { session_id: Some(session.id.to_string()), ..auth(AuthMethod::Session) }
            }
            Self::Key { public_id, .. } => Auth { key_id: Some(public_id.to_string()), ..auth(AuthMethod::ApiKey) },
        }
    }

    /// Returns the session of the request, if it has one.
    pub fn session(&self) -> Option<&ActiveSession> {
        match self {
            Self::User { session, .. } => session.as_ref(),
            Self::Operator(_) | Self::Sso { .. } | Self::Key { .. } => None,
        }
    }

    /// Returns the operator, if the principal is one.
    pub fn operator(&self) -> Option<&Operator> {
        if let Self::Operator(operator) = self { Some(operator) } else { None }
    }

    /// Returns the person, or refuses a principal that is none.
    pub fn person(&self) -> Result<UserId, AuthError> {
        match self {
            Self::User { user, .. } => Ok(*user),
            Self::Operator(_) | Self::Sso { .. } | Self::Key { .. } => Err(AuthError::SessionOnly),
        }
    }
}

/// An authenticated principal as another process of the API is told of it, which looks its rights up itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrincipalReference {
    /// See [`Principal::Operator`].
    Operator(Operator),
    /// See [`Principal::User`].
    User {
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
        /// How the person was authenticated.
        method: LoginMethod,
        /// Whether that took a second factor.
        second_factor: bool,
        /// The session; none with a token of the issuer.
        session: Option<ActiveSession>,
    },
    /// See [`Principal::Sso`].
    Sso {
        /// The one org.
        org: OrgId,
        /// The connection.
        connection: ConnectionId,
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
        /// Whether that took a second factor.
        second_factor: bool,
    },
    /// An API key: the part of its token that identifies it.
    Key(KeyPublicId),
}

impl From<Principal> for PrincipalReference {
    fn from(principal: Principal) -> Self {
        match principal {
            Principal::Operator(operator) => Self::Operator(operator),
            Principal::User { user, email, method, second_factor, session } => {
                Self::User { user, email, method, second_factor, session }
            }
            Principal::Sso { org, connection, user, email, second_factor } => {
                Self::Sso { org, connection, user, email, second_factor }
            }
            Principal::Key { public_id, .. } => Self::Key(public_id),
        }
    }
}

/// A principal in one org: the proof that a handler needs before it reads or writes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    org: BoundOrg,
    role: Authority,
    scopes: Scopes,
    /// The permissions of a custom role. A built-in role's are in the table.
    own: Option<Arc<BTreeSet<Permission>>>,
    /// The rules for all principals in the org; none for an operator.
    rules: Option<Arc<OrgPolicy>>,
    /// How the principal was authenticated, and whether that took a second factor; none for an operator.
    proof: Option<(LoginMethod, bool)>,
    actor: Actor,
    principal: Principal,
    /// Start of the check that proved it.
    since: Since,
}

/// A time that does not tell two accesses apart.
#[derive(Debug, Clone, Copy)]
struct Since(Instant);

impl PartialEq for Since {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Since {}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authority {
    /// With the break-glass grant for the org of a tenant, if there is one.
    Operator(Option<BreakGlassId>),
    Role(Role),
}

impl Access {
    fn new(org: OrgId, role: Authority, scopes: Scopes, actor: Actor, principal: &Principal) -> Self {
        let (org, since) = (BoundOrg::proven_by_credential(org), Since(Instant::now()));
        Self { org, role, scopes, own: None, rules: None, proof: None, actor, principal: principal.clone(), since }
    }

    /// Creates an operator's access to `org`: for the platform's own org everything, for a tenant only operating the
    /// platform, and what `grant` lets the operator read.
    pub(super) fn operator(org: OrgId, grant: Option<BreakGlassId>, principal: &Principal) -> Self {
        Self::new(org, Authority::Operator(grant), Scopes::ALL, principal.actor(), principal)
    }

    /// Creates the access of a person to an org that they are a member of.
    pub(super) fn member(org: OrgId, member: MemberId, role: Role, principal: &Principal) -> Self {
        let actor = Actor { actor_type: ActorType::Member, id: member.to_string(), auth: Some(principal.auth()) };
        Self::new(org, Authority::Role(role), Scopes::ALL, actor, principal)
    }

    /// Creates the access of a key to the org that it belongs to.
    pub(super) fn key(org: OrgId, role: Role, scopes: Scopes, principal: &Principal) -> Self {
        Self::new(org, Authority::Role(role), scopes, principal.actor(), principal)
    }

    /// The same, proven by a check that began at `since`.
    pub(super) fn proven(self, since: Instant) -> Self {
        Self { since: Since(since), ..self }
    }

    /// The age of the check that proved it.
    pub fn age(&self) -> Duration {
        self.since.0.elapsed()
    }

    /// Adds the permissions of the custom role. Without them, a holder of such a role has none.
    pub(super) fn with_own(self, permissions: Arc<BTreeSet<Permission>>) -> Self {
        Self { own: Some(permissions), ..self }
    }

    /// Adds the rules of the org, which this authentication has met.
    pub(super) fn with_rules(self, rules: Arc<OrgPolicy>, proof: (LoginMethod, bool)) -> Self {
        Self { rules: Some(rules), proof: Some(proof), ..self }
    }

    /// Returns how the principal was authenticated, and whether that took a second factor; none for an operator.
    pub fn proof(&self) -> Option<&(LoginMethod, bool)> {
        self.proof.as_ref()
    }

    /// Returns the rules for all principals in the org; none for an operator.
    pub fn rules(&self) -> Option<&OrgPolicy> {
        self.rules.as_deref()
    }

    /// Returns the org, proven.
    pub fn bound(&self) -> BoundOrg {
        self.org
    }

    /// Returns the org.
    pub fn org(&self) -> OrgId {
        self.org.org()
    }

    /// Returns the principal that has this access, for another process of the API.
    pub fn principal(&self) -> PrincipalReference {
        self.principal.clone().into()
    }

    /// Returns the actor for the org's events.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Whether it is an operator's, who is a member of no tenant.
    pub fn is_operator(&self) -> bool {
        matches!(self.role, Authority::Operator(_))
    }

    /// Returns the break-glass grant by which an operator may read a tenant's org, if there is one.
    pub fn grant(&self) -> Option<BreakGlassId> {
        match self.role {
            Authority::Operator(grant) => grant,
            Authority::Role(_) => None,
        }
    }

    /// Returns the scopes within the role, which bound what may be granted.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Returns the role whose permissions bound what may be granted.
    pub fn role(&self) -> Role {
        match self.role {
            Authority::Operator(_) => Role::Owner,
            Authority::Role(role) => role,
        }
    }

    /// Iterates over all permissions.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> + '_ {
        Permission::ALL.iter().copied().filter(|permission| self.require(*permission).is_ok())
    }

    /// Fails unless the permission is granted.
    pub fn require(&self, permission: Permission) -> Result<(), AuthError> {
        let allowed = match self.role {
            Authority::Operator(grant) => {
                self.org() == PLATFORM_ORG || permission.is_operators() || (grant.is_some() && permission.is_reading())
            }
            // Whatever keys the platform's own org has: its kinds are for operators.
            Authority::Role(_) if self.org() == PLATFORM_ORG && permission == Permission::ManageKinds => false,
            Authority::Role(Role::Custom(_)) => {
                self.own.as_ref().is_some_and(|own| own.contains(&permission)) && self.scopes.allow(permission)
            }
            Authority::Role(role) => permission.is_granted_to(role) && self.scopes.allow(permission),
        };
        if allowed {
            Ok(())
        } else if self.is_operator() {
            // A tenant's data is hidden from the operator, including its existence.
            Err(AuthError::NotFound)
        } else {
            Err(AuthError::Forbidden { permission, role: self.role(), scoped: self.scopes != Scopes::ALL })
        }
    }
}
