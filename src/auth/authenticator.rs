//! From an `Authorization` header to a principal, and from a principal to an org.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream_events::{KeyPublicId, OrgId, PLATFORM_ORG, Role, RoleId, Slug, UserId};
use orgstream_projections::{BoundOrg, Database, DbError, api_keys, members, roles};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Permission,
    access::{Access, Principal},
    connections::{Connections, SsoLogin, claimed_issuer},
    key::{KeyToken, KeyTokenError, Pepper},
    oidc::{Oidc, OidcError},
};
use crate::commands::handler::now;

/// How long an answer of the database may be used again. What is revoked stops working within this.
const REMEMBER: Duration = Duration::from_secs(1);
const REMEMBERED: usize = 100_000;

/// Why a request goes no further.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No credential, or one that is not (or no longer) valid.
    #[error("{0}")]
    Unauthenticated(String),
    /// There is no such thing for this principal; whether it exists for others is not said.
    #[error("not found")]
    NotFound,
    /// The principal may be here, but not do this.
    #[error("the role {role} does not have the permission {permission}")]
    Forbidden {
        /// What was needed.
        permission: Permission,
        /// What is there.
        role: Role,
    },
    /// Only a person who signed in may do this, no key.
    #[error("an API key cannot do this: sign in as a person")]
    SessionOnly,
    /// `X-Tenant-ID` or `X-Org-Id` says another org than the credential does.
    #[error("the header names another organization than the credential")]
    TenantMismatch,
    /// The question could not be answered.
    #[error("the credential cannot be checked now: {0}")]
    Unavailable(String),
}

impl From<DbError> for AuthError {
    fn from(error: DbError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// An organization as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrgName {
    /// By id.
    Id(OrgId),
    /// By slug.
    Slug(Slug),
}

impl OrgName {
    /// Reads an id or a slug. An id of another kind is an error, with the way out in its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(slug) = text.parse::<Slug>() {
            return Ok(Self::Slug(slug));
        }
        text.parse::<OrgId>()
            .map(Self::Id)
            .map_err(|_| format!("{text:?} names no organization: give its id (org_…) or its slug"))
    }
}

struct Remembered<T> {
    value: T,
    at: Instant,
}

impl<T: Clone> Remembered<T> {
    fn fresh(&self) -> Option<T> {
        (self.at.elapsed() < REMEMBER).then(|| self.value.clone())
    }
}

/// What a role of an organization's own may.
type Permissions = Arc<BTreeSet<Permission>>;

/// Checks credentials. One per process.
pub struct Authenticator {
    db: Database,
    pepper: Pepper,
    operator: Option<[u8; 32]>,
    oidc: Option<Oidc>,
    connections: Connections,
    keys: Cache<KeyPublicId, std::sync::Arc<Remembered<(OrgId, api_keys::ApiKey)>>>,
    memberships: Cache<(OrgId, UserId), std::sync::Arc<Remembered<members::Member>>>,
    own_roles: Cache<(OrgId, RoleId), Arc<Remembered<Permissions>>>,
}

impl Authenticator {
    /// `operator_token` is the platform operator's bearer token; without one there is no operator.
    pub fn new(db: Database, pepper: Pepper, operator_token: Option<&str>, oidc: Option<Oidc>) -> Self {
        Self {
            connections: Connections::new(db.clone()),
            db,
            pepper,
            operator: operator_token.map(|token| Sha256::digest(token).into()),
            oidc,
            keys: Cache::new(REMEMBERED),
            memberships: Cache::new(REMEMBERED),
            own_roles: Cache::new(REMEMBERED),
        }
    }

    /// Who sends this `Authorization` header.
    pub async fn principal(&self, authorization: Option<&str>) -> Result<Principal, AuthError> {
        let unauthenticated = |reason: &str| AuthError::Unauthenticated(reason.to_owned());
        let header = authorization.ok_or_else(|| {
            unauthenticated("no credential: send the header Authorization: Bearer <API key or token>")
        })?;
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(unauthenticated("the header must be: Authorization: Bearer <API key or token>")),
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        if self.operator.is_some_and(|operator| operator.ct_eq(&digest).into()) {
            return Ok(Principal::Operator);
        }
        if KeyToken::looks_like_one(token) {
            return self.key(token).await;
        }
        if let Some(issuer) = claimed_issuer(token)
            && self.oidc.as_ref().is_none_or(|oidc| oidc.issuer() != issuer)
            && let Some(SsoLogin { org, connection, login }) = self.connections.verify(&issuer, token).await?
        {
            return Ok(Principal::Sso { org, connection, user: login.user, email: login.verified_email });
        }
        let Some(oidc) = &self.oidc else {
            return Err(unauthenticated("this is neither an API key nor a token of an issuer that is trusted here"));
        };
        match oidc.verify(token).await {
            Ok(login) => Ok(Principal::User { user: login.user, email: login.verified_email }),
            Err(OidcError::Invalid(reason)) => Err(AuthError::Unauthenticated(reason)),
            Err(OidcError::Unavailable(reason)) => Err(AuthError::Unavailable(reason)),
        }
    }

    /// The principal in the org that `name` names, or [`AuthError::NotFound`] as for an org that does not exist.
    pub async fn access(&self, principal: &Principal, name: &OrgName) -> Result<Access, AuthError> {
        let org = match name {
            OrgName::Id(org) => *org,
            OrgName::Slug(slug) => self.db.org_of_slug(slug).await?.ok_or(AuthError::NotFound)?,
        };
        let access = match principal {
            Principal::Operator => Access::operator(org),
            Principal::Key { org: own, role, .. } if *own == org => Access::key(org, *role, principal),
            Principal::Sso { org: own, user, .. } if *own == org => {
                let member = self.membership(org, *user).await?.ok_or(AuthError::NotFound)?;
                Access::member(org, member.id, member.role)
            }
            Principal::Key { .. } | Principal::Sso { .. } => return Err(AuthError::NotFound),
            Principal::User { user, .. } => {
                let member = self.membership(org, *user).await?.ok_or(AuthError::NotFound)?;
                Access::member(org, member.id, member.role)
            }
        };
        match access.role() {
            Role::Custom(role) => Ok(access.with_own(self.own_role(org, role).await?)),
            _ => Ok(access),
        }
    }

    /// The operator in the platform's own org.
    pub fn platform(&self, principal: &Principal) -> Result<Access, AuthError> {
        match principal {
            Principal::Operator => Ok(Access::operator(PLATFORM_ORG)),
            Principal::User { .. } | Principal::Sso { .. } | Principal::Key { .. } => Err(AuthError::NotFound),
        }
    }

    async fn key(&self, text: &str) -> Result<Principal, AuthError> {
        let refused =
            || AuthError::Unauthenticated("this API key is not valid: it is unknown, revoked or expired".to_owned());
        let token: KeyToken =
            text.parse().map_err(|error: KeyTokenError| AuthError::Unauthenticated(error.to_string()))?;
        let public_id = token.public_id().clone();
        let remembered = self.keys.get(&public_id).and_then(|key| key.fresh());
        let (org, key) = match remembered {
            Some(found) => found,
            None => {
                let org = self.db.org_of_key(&public_id).await?.ok_or_else(refused)?;
                let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
                let key = api_keys::get_by_public_id(&mut tx, &public_id).await?.ok_or_else(refused)?;
                if api_keys::is_orphaned(&mut tx, &key).await? {
                    return Err(refused());
                }
                let found = (org, key);
                self.keys.insert(public_id.clone(), Remembered { value: found.clone(), at: Instant::now() }.into());
                found
            }
        };
        let valid = token.matches(&self.pepper, &key.secret_mac)
            && key.revoked_at.is_none()
            && key.expires_at.is_none_or(|end| end > now());
        if valid { Ok(Principal::Key { id: key.id, public_id, org, role: key.role }) } else { Err(refused()) }
    }

    /// What whoever has this role of the organization's own may do; nothing, once it was removed.
    async fn own_role(&self, org: OrgId, id: RoleId) -> Result<Permissions, AuthError> {
        if let Some(permissions) = self.own_roles.get(&(org, id)).and_then(|role| role.fresh()) {
            return Ok(permissions);
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let role = roles::get(&mut tx, id).await?.filter(|role| role.active);
        let names = role.map(|role| role.permissions).unwrap_or_default();
        let permissions: BTreeSet<_> = names.iter().filter_map(|name| Permission::named(name)).collect();
        let permissions = Arc::new(permissions);
        let remembered = Remembered { value: Arc::clone(&permissions), at: Instant::now() };
        self.own_roles.insert((org, id), remembered.into());
        Ok(permissions)
    }

    async fn membership(&self, org: OrgId, user: UserId) -> Result<Option<members::Member>, AuthError> {
        if let Some(member) = self.memberships.get(&(org, user)).and_then(|member| member.fresh()) {
            return Ok(Some(member));
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let member = members::get_by_user(&mut tx, user).await?;
        if let Some(member) = &member {
            let remembered = Remembered { value: member.clone(), at: Instant::now() };
            self.memberships.insert((org, user), remembered.into());
        }
        Ok(member)
    }
}
