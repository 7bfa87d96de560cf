//! What a credential proves: first somebody, then somebody in an org.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use orgstream_domain::{Permission, Scopes};
use orgstream_events::{
    Actor, ActorType, Auth, AuthMethod, BreakGlassId, ConnectionId, KeyId, KeyPublicId, LoginMethod, MemberId, OrgId,
    PLATFORM_ORG, Role, UserId,
};
use orgstream_projections::BoundOrg;

use super::{AuthError, Operator, OrgPolicy, session::ActiveSession};

/// Somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// An operator of the platform.
    Operator(Operator),
    /// A person, signed in with an issuer; in which orgs, their memberships say.
    User {
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
        /// How they proved who they are, now or when their session began.
        method: LoginMethod,
        /// Whether that took a second factor.
        second_factor: bool,
        /// Their session; none when they came with a token of their issuer.
        session: Option<ActiveSession>,
    },
    /// A person whom an organization's own issuer signed in, which counts there and nowhere else.
    Sso {
        /// The one org.
        org: OrgId,
        /// By which of its connections.
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
        /// Which key.
        id: KeyId,
        /// The part of the token that names it.
        public_id: KeyPublicId,
        /// The one org that it belongs to.
        org: OrgId,
        /// What it may do there at most.
        role: Role,
        /// What it may do within that role.
        scopes: Scopes,
        /// The networks that its bearer may come from; none is all.
        allowed_ips: Arc<[IpNet]>,
    },
}

impl Principal {
    /// The actor that this principal is outside every org, where it has no membership to be named by.
    pub fn actor(&self) -> Actor {
        let (actor_type, id) = match self {
            Self::Operator(operator) => (ActorType::PlatformOperator, operator.name().to_owned()),
            Self::User { user, .. } | Self::Sso { user, .. } => (ActorType::Anonymous, user.to_string()),
            Self::Key { id, .. } => (ActorType::ApiKey, id.to_string()),
        };
        Actor { actor_type, id, auth: Some(self.auth()) }
    }

    /// How they proved who they are, as events say it.
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

    /// The session that they came with, if they did.
    pub fn session(&self) -> Option<&ActiveSession> {
        match self {
            Self::User { session, .. } => session.as_ref(),
            Self::Operator(_) | Self::Sso { .. } | Self::Key { .. } => None,
        }
    }

    /// The operator that it is, if it is one.
    pub fn operator(&self) -> Option<&Operator> {
        if let Self::Operator(operator) = self { Some(operator) } else { None }
    }

    /// The person, or a refusal of everybody who is none.
    pub fn person(&self) -> Result<UserId, AuthError> {
        match self {
            Self::User { user, .. } => Ok(*user),
            Self::Operator(_) | Self::Sso { .. } | Self::Key { .. } => Err(AuthError::SessionOnly),
        }
    }
}

/// Somebody in one org: the proof that a handler needs before it reads or writes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    org: BoundOrg,
    role: Authority,
    scopes: Scopes,
    /// What a role of the organization's own may. A built-in role is looked up in the table.
    own: Option<Arc<BTreeSet<Permission>>>,
    /// What counts for everybody in the org; none for an operator.
    rules: Option<Arc<OrgPolicy>>,
    /// How they proved who they are, and whether that took a second factor; none for an operator.
    proof: Option<(LoginMethod, bool)>,
    actor: Actor,
    principal: Principal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Authority {
    /// With the opening by which they may look into the org of a tenant, if there is one.
    Operator(Option<BreakGlassId>),
    Role(Role),
}

impl Access {
    /// An operator in `org`: for the platform's own org everything, for a tenant only what runs the platform, and what
    /// `grant` lets them look at.
    pub(super) fn operator(org: OrgId, grant: Option<BreakGlassId>, principal: &Principal) -> Self {
        let (role, actor) = (Authority::Operator(grant), principal.actor());
        let (org, scopes) = (BoundOrg::proven_by_credential(org), Scopes::ALL);
        Self { org, role, scopes, own: None, rules: None, proof: None, actor, principal: principal.clone() }
    }

    /// A person in an org that they are a member of.
    pub(super) fn member(org: OrgId, member: MemberId, role: Role, principal: &Principal) -> Self {
        let actor = Actor { actor_type: ActorType::Member, id: member.to_string(), auth: Some(principal.auth()) };
        let (org, role) = (BoundOrg::proven_by_credential(org), Authority::Role(role));
        let scopes = Scopes::ALL;
        Self { org, role, scopes, own: None, rules: None, proof: None, actor, principal: principal.clone() }
    }

    /// A key in the org that it belongs to.
    pub(super) fn key(org: OrgId, role: Role, scopes: Scopes, principal: &Principal) -> Self {
        let (role, actor) = (Authority::Role(role), principal.actor());
        let org = BoundOrg::proven_by_credential(org);
        Self { org, role, scopes, own: None, rules: None, proof: None, actor, principal: principal.clone() }
    }

    /// The same with what the role of the organization's own may. Without it, whoever has such a role may do nothing.
    pub(super) fn with_own(self, permissions: Arc<BTreeSet<Permission>>) -> Self {
        Self { own: Some(permissions), ..self }
    }

    /// The same under the rules of the org, which this proof of who it is has met.
    pub(super) fn with_rules(self, rules: Arc<OrgPolicy>, proof: (LoginMethod, bool)) -> Self {
        Self { rules: Some(rules), proof: Some(proof), ..self }
    }

    /// How they proved who they are, and whether that took a second factor; none for an operator.
    pub fn proof(&self) -> Option<&(LoginMethod, bool)> {
        self.proof.as_ref()
    }

    /// What counts for everybody in the org; none for an operator.
    pub fn rules(&self) -> Option<&OrgPolicy> {
        self.rules.as_deref()
    }

    /// The org, proven.
    pub fn bound(&self) -> BoundOrg {
        self.org
    }

    /// The org.
    pub fn org(&self) -> OrgId {
        self.org.org()
    }

    /// Who it was given to.
    pub(super) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// As the org's events name whoever asks.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Whether it is an operator's, who is in no organization of a tenant.
    pub fn is_operator(&self) -> bool {
        matches!(self.role, Authority::Operator(_))
    }

    /// By which opening an operator may look into a tenant's org, if they do.
    pub fn grant(&self) -> Option<BreakGlassId> {
        match self.role {
            Authority::Operator(grant) => grant,
            Authority::Role(_) => None,
        }
    }

    /// What may be done within the role, which bounds what may be handed out.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The role whose rights bound what may be handed out.
    pub fn role(&self) -> Role {
        match self.role {
            Authority::Operator(_) => Role::Owner,
            Authority::Role(role) => role,
        }
    }

    /// Everything that is allowed.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> + '_ {
        Permission::ALL.iter().copied().filter(|permission| self.require(*permission).is_ok())
    }

    /// Goes on only if this is allowed.
    pub fn require(&self, permission: Permission) -> Result<(), AuthError> {
        let allowed = match self.role {
            Authority::Operator(grant) => {
                self.org() == PLATFORM_ORG || permission.is_operators() || (grant.is_some() && permission.is_reading())
            }
            Authority::Role(Role::Custom(_)) => {
                self.own.as_ref().is_some_and(|own| own.contains(&permission)) && self.scopes.allow(permission)
            }
            Authority::Role(role) => permission.is_granted_to(role) && self.scopes.allow(permission),
        };
        if allowed {
            Ok(())
        } else if self.is_operator() {
            // What a tenant has is not the operator's to see, and not even to know of.
            Err(AuthError::NotFound)
        } else {
            Err(AuthError::Forbidden { permission, role: self.role(), scoped: self.scopes != Scopes::ALL })
        }
    }
}
