//! From an `Authorization` header to a principal, and from a principal to an org.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream_events::{KeyPublicId, LoginMethod, OrgId, PLATFORM_ORG, Role, Slug, UserId};
use orgstream_projections::{BoundOrg, Database, DbError, api_keys, members, organizations};
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Permission,
    access::{Access, Principal},
    issuers::Issuers,
    key::{KeyToken, KeyTokenError, Pepper},
    oidc::{Login, OidcError},
    rules::Rules,
    session::{ActiveSession, Lifetime, Sessions},
    session_token::SessionToken,
};
use crate::commands::{handler::now, member::user_of_email, organization::CURRENT};

/// How long an answer of the database may be used again. What is revoked stops working within this.
const REMEMBER: Duration = Duration::from_secs(1);
const REMEMBERED: usize = 100_000;
/// Memberships that are looked up at the same time.
const AT_ONCE: usize = 4;

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
    /// Only a session has what is asked for.
    #[error("this takes a session, which POST /v1/sessions makes of your token; or name the organization in the path")]
    SessionRequired,
    /// The session acts in another organization than the request is meant for.
    #[error(
        "this session acts in another organization (epoch {epoch}): ask again under /v1/organizations/current, or switch \
         with PUT /v1/session/active-org"
    )]
    ActiveOrgChanged {
        /// The epoch of the session now.
        epoch: u64,
    },
    /// The organization does not have this way to sign in.
    #[error("this organization does not accept {method}, only: {allowed}")]
    MethodNotAllowed {
        /// How the caller signed in.
        method: LoginMethod,
        /// What would be accepted.
        allowed: String,
    },
    /// The organization wants a second factor.
    #[error("this organization wants a second factor: sign in again with one, so that your issuer says so (amr)")]
    MfaRequired,
    /// A browser sends its cookie for a page of somebody else.
    #[error(
        "a request by cookie that changes something must come from a page of this server: send Sec-Fetch-Site or Origin, \
         or the token as Authorization: Bearer"
    )]
    CrossSite,
    /// A session makes no session.
    #[error("a session makes no other one: sign in at your issuer, and send its token")]
    SignInRequired,
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
    /// Not by name: the one that the credential acts in.
    Current,
}

impl OrgName {
    /// Reads an id, a slug or `current`. An id of another kind is an error, with the way out in its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == CURRENT {
            return Ok(Self::Current);
        }
        if let Ok(slug) = text.parse::<Slug>() {
            return Ok(Self::Slug(slug));
        }
        text.parse::<OrgId>()
            .map(Self::Id)
            .map_err(|_| format!("{text:?} names no organization: give its id (org_…), its slug, or current"))
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
    pepper: Pepper,
    operator: Option<[u8; 32]>,
    issuers: Issuers,
    sessions: Sessions,
    keys: Cache<KeyPublicId, std::sync::Arc<Remembered<(OrgId, api_keys::ApiKey)>>>,
    memberships: Cache<(OrgId, UserId), std::sync::Arc<Remembered<members::Member>>>,
    rules: Cache<OrgId, std::sync::Arc<Remembered<Rules>>>,
}

/// A place where a person may act, as they may look at it without acting there.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Who they are there.
    pub member: members::Member,
    /// What it is.
    pub organization: organizations::Organization,
}

impl Authenticator {
    /// `operator_token` is the platform operator's bearer token; without one there is no operator.
    pub fn new(
        db: Database,
        pepper: Pepper,
        operator_token: Option<&str>,
        issuers: Issuers,
        lifetime: Lifetime,
    ) -> Self {
        Self {
            sessions: Sessions::new(db.clone(), pepper.clone(), lifetime),
            db,
            pepper,
            operator: operator_token.map(|token| Sha256::digest(token).into()),
            issuers,
            keys: Cache::new(REMEMBERED),
            memberships: Cache::new(REMEMBERED),
            rules: Cache::new(REMEMBERED),
        }
    }

    /// The sessions of people.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Who sends this `Authorization` header.
    pub async fn principal(&self, authorization: Option<&str>) -> Result<Principal, AuthError> {
        let token = bearer(authorization)?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        if self.operator.is_some_and(|operator| operator.ct_eq(&digest).into()) {
            return Ok(Principal::Operator);
        }
        if SessionToken::looks_like_one(token) {
            let session = self.sessions.of_token(token).await?;
            return Ok(Principal::User {
                user: session.user,
                email: session.verified_email.clone(),
                method: session.method.clone(),
                second_factor: session.second_factor,
                session: Some(ActiveSession::from(&*session)),
            });
        }
        if KeyToken::looks_like_one(token) {
            return self.key(token).await;
        }
        let login = self.verified(token).await?;
        Ok(Principal::User {
            user: login.user,
            email: login.verified_email,
            method: LoginMethod::oidc(),
            second_factor: login.second_factor,
            session: None,
        })
    }

    /// Somebody who signs in: with a token of their issuer, and with nothing else.
    pub async fn login(&self, authorization: Option<&str>) -> Result<Login, AuthError> {
        let token = bearer(authorization)?;
        if SessionToken::looks_like_one(token) {
            // Sessions would otherwise go on for ever, each making the next.
            self.sessions.of_token(token).await?;
            return Err(AuthError::SignInRequired);
        }
        if KeyToken::looks_like_one(token) {
            self.key(token).await?;
            return Err(AuthError::SessionOnly);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if self.operator.is_some_and(|operator| operator.ct_eq(&digest).into()) {
            return Err(AuthError::SessionOnly);
        }
        self.verified(token).await
    }

    async fn verified(&self, token: &str) -> Result<Login, AuthError> {
        self.issuers.verify(token).await.map_err(|error| match error {
            OidcError::Invalid(reason) => AuthError::Unauthenticated(reason),
            OidcError::Unavailable(reason) => AuthError::Unavailable(reason),
        })
    }

    /// The principal in the org that `name` names, or [`AuthError::NotFound`] as for an org that does not exist.
    ///
    /// A session acts in one organization at a time. Another one of the same person is refused with
    /// [`AuthError::ActiveOrgChanged`] and not with what it has: a page that was opened before a switch must learn of it.
    pub async fn access(&self, principal: &Principal, name: &OrgName) -> Result<Access, AuthError> {
        let org = match (name, principal) {
            (OrgName::Id(org), _) | (OrgName::Current, Principal::Key { org, .. }) => *org,
            (OrgName::Slug(slug), _) => self.db.org_of_slug(slug).await?.ok_or(AuthError::NotFound)?,
            (OrgName::Current, Principal::User { session: Some(session), .. }) => {
                session.org.ok_or(AuthError::NotFound)?
            }
            (OrgName::Current, Principal::User { session: None, .. } | Principal::Operator) => {
                return Err(AuthError::SessionRequired);
            }
        };
        match principal {
            Principal::Operator => Ok(Access::operator(org)),
            Principal::Key { org: own, role, .. } if *own == org => {
                self.rules(org).await?.check(&LoginMethod::api_key(), false)?;
                Ok(Access::key(org, *role, principal))
            }
            Principal::Key { .. } => Err(AuthError::NotFound),
            Principal::User { method, second_factor, session, .. } => {
                let member = self.member(principal, org).await?.ok_or(AuthError::NotFound)?;
                if let Some(session) = session
                    && session.org != Some(org)
                {
                    return Err(AuthError::ActiveOrgChanged { epoch: session.epoch });
                }
                self.rules(org).await?.check(method, *second_factor)?;
                Ok(Access::member(org, member.id, member.role, principal))
            }
        }
    }

    /// Lets a session act in another organization of the same person, or answers as if there were none of that name.
    pub async fn switch(&self, principal: &Principal, name: &OrgName) -> Result<ActiveSession, AuthError> {
        principal.person()?;
        let session = principal.session().ok_or(AuthError::SessionRequired)?;
        let org = match name {
            OrgName::Id(org) => *org,
            OrgName::Slug(slug) => self.db.org_of_slug(slug).await?.ok_or(AuthError::NotFound)?,
            OrgName::Current => session.org.ok_or(AuthError::NotFound)?,
        };
        self.member(principal, org).await?.ok_or(AuthError::NotFound)?;
        self.sessions.switch(session, org).await.map(|session| ActiveSession::from(&*session))
    }

    /// Who the person is in `org`. Whoever was added by e-mail address is whoever an issuer verified to have it.
    pub async fn member(&self, principal: &Principal, org: OrgId) -> Result<Option<members::Member>, AuthError> {
        for user in identities(principal) {
            if let Some(member) = self.membership(org, user).await? {
                return Ok(Some(member));
            }
        }
        Ok(None)
    }

    /// Where the person may act, in the order of the organizations' ids: at most `limit`, and those after `after`.
    pub async fn memberships(
        &self,
        principal: &Principal,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<Vec<Membership>, AuthError> {
        let users = identities(principal);
        let mut orgs = Vec::new();
        for user in &users {
            orgs.extend(self.db.orgs_of_user(*user).await?);
        }
        orgs.sort_unstable();
        orgs.dedup();
        orgs.retain(|org| after.is_none_or(|after| *org > after));
        orgs.truncate(limit);
        let found: Vec<_> =
            stream::iter(orgs).map(|org| self.look_as(&users, org)).buffered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The person in `org` and what that is, as the read models have it now; for looking, not for acting.
    pub async fn look(&self, principal: &Principal, org: OrgId) -> Result<Option<Membership>, AuthError> {
        self.look_as(&identities(principal), org).await
    }

    async fn look_as(&self, users: &[UserId], org: OrgId) -> Result<Option<Membership>, AuthError> {
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        for user in users {
            if let Some(member) = members::get_by_user(&mut tx, *user).await? {
                let organization = organizations::get(&mut tx).await?;
                return Ok(organization.map(|organization| Membership { member, organization }));
            }
        }
        // Gone since it was listed.
        Ok(None)
    }

    /// The operator in the platform's own org.
    pub fn platform(&self, principal: &Principal) -> Result<Access, AuthError> {
        match principal {
            Principal::Operator => Ok(Access::operator(PLATFORM_ORG)),
            Principal::User { .. } | Principal::Key { .. } => Err(AuthError::NotFound),
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

    async fn rules(&self, org: OrgId) -> Result<Rules, AuthError> {
        if let Some(rules) = self.rules.get(&org).and_then(|rules| rules.fresh()) {
            return Ok(rules);
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let rules = organizations::get(&mut tx).await?.map(|found| Rules::from(&found.settings)).unwrap_or_default();
        self.rules.insert(org, Remembered { value: rules.clone(), at: Instant::now() }.into());
        Ok(rules)
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

/// The token of an `Authorization` header.
fn bearer(authorization: Option<&str>) -> Result<&str, AuthError> {
    let unauthenticated = |reason: &str| AuthError::Unauthenticated(reason.to_owned());
    let header = authorization
        .ok_or_else(|| unauthenticated("no credential: send the header Authorization: Bearer <API key or token>"))?;
    match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("the header must be: Authorization: Bearer <API key or token>")),
    }
}

/// Whom a person may be a member as: themselves, and whoever has their verified e-mail address.
fn identities(principal: &Principal) -> Vec<UserId> {
    match principal {
        Principal::User { user, email, .. } => {
            let by_email = email.as_deref().map(user_of_email);
            std::iter::once(*user).chain(by_email).collect()
        }
        Principal::Operator | Principal::Key { .. } => Vec::new(),
    }
}
