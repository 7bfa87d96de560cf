//! What a credential proves: first somebody, then somebody in an org.

use orgstream_events::{
    Actor, ActorType, Auth, AuthMethod, KeyId, KeyPublicId, LoginMethod, MemberId, OrgId, PLATFORM_ORG, Role, UserId,
};
use orgstream_projections::BoundOrg;

use super::{AuthError, Permission, session::ActiveSession};

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
        /// How they proved who they are, now or when their session began.
        method: LoginMethod,
        /// Whether that took a second factor.
        second_factor: bool,
        /// Their session; none when they came with a token of their issuer.
        session: Option<ActiveSession>,
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
        let (actor_type, id) = match self {
            Self::Operator => (ActorType::PlatformOperator, "operator".to_owned()),
            Self::User { user, .. } => (ActorType::Anonymous, user.to_string()),
            Self::Key { id, .. } => (ActorType::ApiKey, id.to_string()),
        };
        Actor { actor_type, id, auth: Some(self.auth()) }
    }

    /// How they proved who they are, as events say it.
    fn auth(&self) -> Auth {
        let auth = |method| Auth { method, key_id: None, session_id: None };
        match self {
            Self::Operator => auth(AuthMethod::PlatformToken),
            Self::User { session: None, .. } => auth(AuthMethod::Oidc),
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
            Self::Operator | Self::Key { .. } => None,
        }
    }

    /// The person, or a refusal of everybody who is none.
    pub fn person(&self) -> Result<UserId, AuthError> {
        match self {
            Self::User { user, .. } => Ok(*user),
            Self::Operator | Self::Key { .. } => Err(AuthError::SessionOnly),
        }
    }
}

/// Somebody in one org: the proof that a handler needs before it reads or writes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    org: BoundOrg,
    role: Standing,
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
        Self { org: BoundOrg::proven_by_credential(org), role: Standing::Operator, actor: Principal::Operator.actor() }
    }

    /// A person in an org that they are a member of.
    pub(super) fn member(org: OrgId, member: MemberId, role: Role, principal: &Principal) -> Self {
        let actor = Actor { actor_type: ActorType::Member, id: member.to_string(), auth: Some(principal.auth()) };
        Self { org: BoundOrg::proven_by_credential(org), role: Standing::Role(role), actor }
    }

    /// A key in the org that it belongs to.
    pub(super) fn key(org: OrgId, role: Role, principal: &Principal) -> Self {
        Self { org: BoundOrg::proven_by_credential(org), role: Standing::Role(role), actor: principal.actor() }
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

    /// Goes on only if this is allowed.
    pub fn require(&self, permission: Permission) -> Result<(), AuthError> {
        let allowed = match self.role {
            Standing::Operator => self.org() == PLATFORM_ORG || permission.is_operators(),
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
