//! From an `Authorization` header to a principal, and from a principal to an org.

use std::{sync::Arc, time::Instant};

use orgstream_events::{BreakGlassId, KeyId, KeyPublicId, OrgId, PLATFORM_ORG, Role, Slug, UserId};
use orgstream_projections::{BoundOrg, Database, DbError, break_glass, members, organizations};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Permission,
    access::{Access, Principal},
    key::{KeyToken, Pepper},
    keys::{Keys, REMEMBER},
    oidc::{Oidc, OidcError},
};
use crate::{
    commands::handler::now,
    scoped::{CacheView, OrgCache, Scoped},
};

const REMEMBERED: usize = 100_000;

/// Why a request goes no further.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No credential, or one that is not (or no longer) valid.
    #[error("{0}")]
    Unauthenticated(String),
    /// A token that names a key, and is not accepted. The caller is told no more than that; its organization is told why.
    #[error("this API key is not valid: it is unknown, revoked or expired")]
    KeyRefused {
        /// The organization of the key that it names.
        org: OrgId,
        /// That key.
        id: KeyId,
        /// The part of the token that names it.
        public_id: KeyPublicId,
        /// `wrong_secret`, `revoked`, `expired`, `rotated`, `creator_left` or `ip_not_allowed`.
        code: &'static str,
    },
    /// There is no such thing for this principal; whether it exists for others is not said.
    #[error("not found")]
    NotFound,
    /// The principal may be here, but not do this.
    #[error("{} does not have the permission {permission}", holder(*.role, *.scoped))]
    Forbidden {
        /// What was needed.
        permission: Permission,
        /// What is there.
        role: Role,
        /// Whether there is less than the role has.
        scoped: bool,
    },
    /// Nobody but the platform may act in the organization.
    #[error("this organization is suspended: ask the platform's operator")]
    Suspended,
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

/// Who lacks a permission, in the words of an error.
fn holder(role: Role, scoped: bool) -> String {
    if scoped { "this API key".to_owned() } else { format!("the role {role}") }
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

/// Checks credentials. One per process.
pub struct Authenticator {
    db: Database,
    operator: Option<[u8; 32]>,
    oidc: Option<Oidc>,
    keys: Keys,
    memberships: OrgCache<UserId, Arc<Remembered<members::Member>>>,
    suspensions: OrgCache<(), Arc<Remembered<bool>>>,
}

impl Authenticator {
    /// `operator_token` is the platform operator's bearer token; without one there is no operator.
    pub fn new(db: Database, pepper: Pepper, operator_token: Option<&str>, oidc: Option<Oidc>) -> Self {
        Self {
            keys: Keys::new(db.clone(), pepper),
            db,
            operator: operator_token.map(|token| Sha256::digest(token).into()),
            oidc,
            memberships: OrgCache::new(REMEMBERED),
            suspensions: OrgCache::new(REMEMBERED),
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
            return self.keys.principal(token).await;
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

    /// The API keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What is remembered at the moment.
    pub fn caches(&self) -> Vec<CacheView> {
        vec![
            self.keys.cache(),
            CacheView::of("memberships", "org/user", &self.memberships),
            CacheView::of("suspensions", "org", &self.suspensions),
        ]
    }

    /// The principal in the org that `name` names, or [`AuthError::NotFound`] as for an org that does not exist. Who is in
    /// one that is suspended gets no further.
    pub async fn access(&self, principal: &Principal, name: &OrgName) -> Result<Access, AuthError> {
        let access = self.membership_of(principal, name).await?;
        if !access.is_operator() && self.is_suspended(access.org()).await? {
            return Err(AuthError::Suspended);
        }
        Ok(access)
    }

    /// The same, suspended or not: for whoever wants to see where they belong.
    pub async fn membership_of(&self, principal: &Principal, name: &OrgName) -> Result<Access, AuthError> {
        let org = match name {
            OrgName::Id(org) => *org,
            OrgName::Slug(slug) => self.db.org_of_slug(slug).await?.ok_or(AuthError::NotFound)?,
        };
        match principal {
            Principal::Operator => Ok(Access::operator(org, self.glass(org).await?)),
            Principal::Key { org: own, role, scopes, .. } if *own == org => {
                Ok(Access::key(org, *role, scopes.clone(), principal))
            }
            Principal::Key { .. } => Err(AuthError::NotFound),
            Principal::User { user, .. } => {
                let member = self.membership(org, *user).await?.ok_or(AuthError::NotFound)?;
                Ok(Access::member(org, member.id, member.role))
            }
        }
    }

    /// The operator in the platform's own org.
    pub fn platform(&self, principal: &Principal) -> Result<Access, AuthError> {
        match principal {
            Principal::Operator => Ok(Access::operator(PLATFORM_ORG, None)),
            Principal::User { .. } | Principal::Key { .. } => Err(AuthError::NotFound),
        }
    }

    /// By which opening an operator may look into the org. Asked each time: what is closed is closed at once.
    async fn glass(&self, org: OrgId) -> Result<Option<BreakGlassId>, AuthError> {
        if org == PLATFORM_ORG {
            return Ok(None);
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        Ok(break_glass::open(&mut tx, now()).await?.map(|glass| glass.id))
    }

    async fn is_suspended(&self, org: OrgId) -> Result<bool, AuthError> {
        let scoped = Scoped::new(org, ());
        if let Some(suspended) = self.suspensions.get(&scoped).and_then(|known| known.fresh()) {
            return Ok(suspended);
        }
        let at = Instant::now();
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let found = organizations::get(&mut tx).await?;
        let value = found.is_some_and(|organization| organization.suspended_reason.is_some());
        // Who is let in again is let in as soon as that is known.
        if !value {
            self.suspensions.insert(scoped, Remembered { value, at }.into());
        }
        Ok(value)
    }

    async fn membership(&self, org: OrgId, user: UserId) -> Result<Option<members::Member>, AuthError> {
        if let Some(member) = self.memberships.get(&Scoped::new(org, user)).and_then(|member| member.fresh()) {
            return Ok(Some(member));
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let member = members::get_by_user(&mut tx, user).await?;
        if let Some(member) = &member {
            let remembered = Remembered { value: member.clone(), at: Instant::now() };
            self.memberships.insert(Scoped::new(org, user), remembered.into());
        }
        Ok(member)
    }
}
