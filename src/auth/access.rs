//! What a credential proves: first somebody, then somebody in an org.

use std::sync::Arc;

use ipnet::IpNet;
use orgstream_events::{
    Actor, ActorType, Auth, AuthMethod, BreakGlassId, KeyId, KeyPublicId, MemberId, OrgId, PLATFORM_ORG, Role, UserId,
};
use orgstream_projections::BoundOrg;

use super::{AuthError, Permission, Scopes};

/// Somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A platform operator.
    Operator,
    /// A person, signed in with an issuer; in which orgs, their memberships say.
    User {
        /// The login identity.
        user: UserId,
        /// The e-mail address that the issuer verified, if it did.
        email: Option<String>,
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
        let auth = |method, key_id| Some(Auth { method, key_id, session_id: None });
        match self {
            Self::Operator => Actor {
                actor_type: ActorType::PlatformOperator,
                id: "operator".to_owned(),
                auth: auth(AuthMethod::PlatformToken, None),
            },
            Self::User { user, .. } => {
                Actor { actor_type: ActorType::Anonymous, id: user.to_string(), auth: auth(AuthMethod::Oidc, None) }
            }
            Self::Key { id, public_id, .. } => Actor {
                actor_type: ActorType::ApiKey,
                id: id.to_string(),
                auth: auth(AuthMethod::ApiKey, Some(public_id.to_string())),
            },
        }
    }
}

/// Somebody in one org: the proof that a handler needs before it reads or writes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    org: BoundOrg,
    role: Standing,
    scopes: Scopes,
    actor: Actor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// With the opening by which they may look into the org of a tenant, if there is one.
    Operator(Option<BreakGlassId>),
    Role(Role),
}

impl Access {
    /// An operator in `org`: for the platform's own org everything, for a tenant only what runs the platform, and what
    /// `glass` lets them look at.
    pub(super) fn operator(org: OrgId, glass: Option<BreakGlassId>) -> Self {
        let (role, actor) = (Standing::Operator(glass), Principal::Operator.actor());
        Self { org: BoundOrg::proven_by_credential(org), role, scopes: Scopes::ALL, actor }
    }

    /// A person in an org that they are a member of.
    pub(super) fn member(org: OrgId, member: MemberId, role: Role) -> Self {
        let auth = Auth { method: AuthMethod::Oidc, key_id: None, session_id: None };
        let actor = Actor { actor_type: ActorType::Member, id: member.to_string(), auth: Some(auth) };
        Self { org: BoundOrg::proven_by_credential(org), role: Standing::Role(role), scopes: Scopes::ALL, actor }
    }

    /// A key in the org that it belongs to.
    pub(super) fn key(org: OrgId, role: Role, scopes: Scopes, principal: &Principal) -> Self {
        let (role, actor) = (Standing::Role(role), principal.actor());
        Self { org: BoundOrg::proven_by_credential(org), role, scopes, actor }
    }

    /// The org, proven.
    pub fn bound(&self) -> BoundOrg {
        self.org
    }

    /// The org.
    pub fn org(&self) -> OrgId {
        self.org.org()
    }

    /// As the org's events name whoever asks.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Whether it is an operator's, who is in no organization of a tenant.
    pub fn is_operator(&self) -> bool {
        matches!(self.role, Standing::Operator(_))
    }

    /// By which opening an operator may look into a tenant's org, if they do.
    pub fn glass(&self) -> Option<BreakGlassId> {
        match self.role {
            Standing::Operator(glass) => glass,
            Standing::Role(_) => None,
        }
    }

    /// What may be done within the role, which bounds what may be handed out.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// The role whose rights bound what may be handed out.
    pub fn role(&self) -> Role {
        match self.role {
            Standing::Operator(_) => Role::Owner,
            Standing::Role(role) => role,
        }
    }

    /// Goes on only if this is allowed.
    pub fn require(&self, permission: Permission) -> Result<(), AuthError> {
        let allowed = match self.role {
            Standing::Operator(glass) => {
                self.org() == PLATFORM_ORG || permission.is_operators() || (glass.is_some() && permission.is_reading())
            }
            Standing::Role(role) => permission.is_granted_to(role) && self.scopes.allow(permission),
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
