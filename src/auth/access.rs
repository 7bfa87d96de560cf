//! What a credential proves: first somebody, then somebody in an org.

use std::{collections::BTreeSet, sync::Arc};

use orgstream_events::{
    Actor, ActorType, Auth, AuthMethod, ConnectionId, KeyId, KeyPublicId, MemberId, OrgId, PLATFORM_ORG, Role, UserId,
};
use orgstream_projections::BoundOrg;

use super::{AuthError, Permission};

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
    },
    /// An API key. It implies its org and can act in no other.
    Key {
        /// Which key.
        id: KeyId,
        /// The part of the token that names it.
        public_id: KeyPublicId,
        /// The one org that it belongs to.
        org: OrgId,
        /// What it may do there.
        role: Role,
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
            Self::User { user, .. } | Self::Sso { user, .. } => {
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
    /// What a role of the organization's own may. A built-in role is looked up in the table.
    own: Option<Arc<BTreeSet<Permission>>>,
    actor: Actor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Operator,
    Role(Role),
}

impl Access {
    /// An operator in `org`: for the platform's own org everything, for a tenant only what runs the platform.
    pub(super) fn operator(org: OrgId) -> Self {
        Self {
            org: BoundOrg::proven_by_credential(org),
            role: Standing::Operator,
            own: None,
            actor: Principal::Operator.actor(),
        }
    }

    /// A person in an org that they are a member of.
    pub(super) fn member(org: OrgId, member: MemberId, role: Role) -> Self {
        let auth = Auth { method: AuthMethod::Oidc, key_id: None, session_id: None };
        let actor = Actor { actor_type: ActorType::Member, id: member.to_string(), auth: Some(auth) };
        Self { org: BoundOrg::proven_by_credential(org), role: Standing::Role(role), own: None, actor }
    }

    /// A key in the org that it belongs to.
    pub(super) fn key(org: OrgId, role: Role, principal: &Principal) -> Self {
        Self {
            org: BoundOrg::proven_by_credential(org),
            role: Standing::Role(role),
            own: None,
            actor: principal.actor(),
        }
    }

    /// The same with what the role of the organization's own may. Without it, whoever has such a role may do nothing.
    pub(super) fn with_own(self, permissions: Arc<BTreeSet<Permission>>) -> Self {
        Self { own: Some(permissions), ..self }
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

    /// The role whose rights bound what may be handed out.
    pub fn role(&self) -> Role {
        match self.role {
            Standing::Operator => Role::Owner,
            Standing::Role(role) => role,
        }
    }

    /// Everything that is allowed.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> + '_ {
        Permission::ALL.iter().copied().filter(|permission| self.require(*permission).is_ok())
    }

    /// Goes on only if this is allowed.
    pub fn require(&self, permission: Permission) -> Result<(), AuthError> {
        let allowed = match self.role {
            Standing::Operator => self.org() == PLATFORM_ORG || permission.is_operators(),
            Standing::Role(Role::Custom(_)) => self.own.as_ref().is_some_and(|own| own.contains(&permission)),
            Standing::Role(role) => permission.is_granted_to(role),
        };
        if allowed {
            Ok(())
        } else if matches!(self.role, Standing::Operator) {
            // What a tenant has is not the operator's to see, and not even to know of.
            Err(AuthError::NotFound)
        } else {
            Err(AuthError::Forbidden { permission, role: self.role() })
        }
    }
}
