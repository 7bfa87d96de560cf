//! From an `Authorization` header to a principal, and from a principal to an org.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use orgstream_domain::{
    Permission,
    credentials::{
        key::{KeyToken, Pepper},
        session::SessionToken,
    },
    member::user_of_email,
};
use orgstream_events::{
    BreakGlassId, CURRENT_ORG, Cause, KeyId, KeyPublicId, LoginMethod, OrgId, PLATFORM_ORG, Role, RoleId, Slug, UserId,
    cause,
};
use orgstream_projections::{
    BoundOrg, Database, DbError, break_glass, checkpoints::Reach, members, organizations, roles,
};
use orgstream_stream::{Log, StreamError};

use super::{
    Operator, OrgPolicy,
    access::{Access, Principal, PrincipalReference},
    connections::{Claimed, Connections, SsoLogin},
    decided::{self, Decided},
    issuers::Issuers,
    keys::{CACHE_TTL, Keys},
    oidc::{Login, OidcError},
    operators::Operators,
    session::{ActiveSession, Lifetime, Sessions},
};
use crate::{
    clock::now,
    tenant_cache::{CacheView, Found, LookupCache, Scoped},
};

const CACHE_CAPACITY: usize = 100_000;
/// The age up to which a session counts as a sign-in of a moment ago.
const FRESH: Duration = Duration::from_mins(10);
/// The maximum number of concurrent membership lookups.
const MAX_CONCURRENCY: usize = 4;

/// The reason why a request is denied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// No credential, or one that is not (or no longer) valid.
    #[error(transparent)]
    Unauthenticated(Cause),
    /// A token that identifies a key, and is not accepted. The caller is given no reason; the key's organization is.
    #[error("this API key is not valid: it is unknown, revoked or expired")]
    KeyRefused {
        /// The organization of the key.
        org: OrgId,
        /// The key.
        id: KeyId,
        /// The part of the token that identifies it.
        public_id: KeyPublicId,
        /// `wrong_secret`, `revoked`, `expired`, `rotated`, `creator_left` or `ip_not_allowed`.
        code: &'static str,
    },
    /// There is no such resource for this principal; whether it exists for others is not disclosed.
    #[error("not found")]
    NotFound,
    /// The principal has access here, but not this permission.
    #[error("{} does not have the permission {permission}", holder(*.role, *.scoped))]
    Forbidden {
        /// The required permission.
        permission: Permission,
        /// The principal's role.
        role: Role,
        /// Whether the scopes are narrower than the role.
        scoped: bool,
    },
    /// The organization is suspended for all but the platform.
    #[error("this organization is suspended: ask the platform's operator")]
    Suspended,
    /// The deletion of the organization was requested.
    #[error(
        "this organization is being deleted: an owner can cancel that until it is sealed \
         (POST /v1/deletions/{{organization id}}/cancel)"
    )]
    BeingDeleted,
    /// The person signed in too long ago for this.
    #[error(
        "this takes a session that began in the last {} minutes: sign in again (POST /v1/sessions), and send it with that",
        FRESH.as_secs() / 60
    )]
    FreshSignInRequired,
    /// This requires a signed-in person, not a key.
    #[error("an API key cannot do this: sign in as a person")]
    SessionOnly,
    /// This requires an API key.
    #[error("only an API key can do this: send the header Authorization: Bearer <API key>")]
    KeyOnly,
    /// This requires a session.
    #[error("this takes a session, which POST /v1/sessions makes of your token; or name the organization in the path")]
    SessionRequired,
    /// The session acts in another organization than the request is meant for.
    #[error(
        "this session acts in another organization (epoch {epoch}): ask again under /v1/organizations/current, or switch \
         with PUT /v1/session/active-org"
    )]
    ActiveOrgChanged {
        /// The current epoch of the session.
        epoch: u64,
    },
    /// The organization does not allow this sign-in method.
    #[error("this organization does not accept {method}, only: {allowed}")]
    MethodNotAllowed {
        /// The caller's sign-in method.
        method: LoginMethod,
        /// The allowed methods.
        allowed: String,
    },
    /// The organization requires a second factor.
    #[error("this organization wants a second factor: sign in again with one, so that your issuer says so (amr)")]
    MfaRequired,
    /// The cookie came with a request from a page of another origin.
    #[error(
        "a request by cookie that changes something must come from a page of this server: send Sec-Fetch-Site or Origin, \
         or the token as Authorization: Bearer"
    )]
    CrossSite,
    /// A session cannot create a session.
    #[error("a session makes no other one: sign in at your issuer, and send its token")]
    SignInRequired,
    /// The person has the maximum number of sessions.
    #[error(
        "you have {most} sessions already, as many as one person may have: end one that you do not need \
         (GET /v1/sessions, DELETE /v1/sessions/{{session}}; your issuer's token is enough)"
    )]
    TooManySessions {
        /// The maximum.
        most: u32,
    },
    /// `X-Tenant-ID` or `X-Org-Id` names another org than the credential does.
    #[error("the header names another organization than the credential")]
    TenantMismatch,
    /// The check could not be made.
    #[error("the credential cannot be checked now")]
    Unavailable(#[source] Cause),
}

/// Names the principal that lacks a permission, for an error's text.
fn holder(role: Role, scoped: bool) -> String {
    if scoped { "this API key".to_owned() } else { format!("the role {role}") }
}

impl From<DbError> for AuthError {
    fn from(error: DbError) -> Self {
        Self::Unavailable(cause(error))
    }
}

impl From<StreamError> for AuthError {
    fn from(error: StreamError) -> Self {
        Self::Unavailable(cause(error))
    }
}

impl From<OidcError> for AuthError {
    fn from(error: OidcError) -> Self {
        match error {
            OidcError::Unavailable(reason) => Self::Unavailable(reason),
            error @ (OidcError::Invalid(_) | OidcError::Untrusted) => Self::Unauthenticated(cause(error)),
        }
    }
}

/// An organization as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrgName {
    /// By id.
    Id(OrgId),
    /// By slug.
    Slug(Slug),
    /// Not named: the one that the credential acts in.
    Current,
}

impl OrgName {
    /// Parses an id, a slug or `current`. An id of another kind is an error, with the remedy in its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == CURRENT_ORG {
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

/// The permissions of a custom role.
pub type Permissions = Arc<BTreeSet<Permission>>;

/// Checks credentials. One per process.
pub struct Authenticator {
    db: Database,
    decided: Arc<Decided>,
    operators: Operators,
    issuers: Issuers,
    connections: Connections,
    sessions: Sessions,
    keys: Keys,
    memberships: LookupCache<UserId, Option<members::Member>, AuthError>,
    custom_roles: LookupCache<RoleId, Permissions, AuthError>,
    rules: LookupCache<(), Arc<OrgPolicy>, AuthError>,
}

/// A person's membership in an organization, to be shown without acting there.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The person's member there.
    pub member: members::Member,
    /// The organization.
    pub organization: organizations::Organization,
}

impl Authenticator {
    /// Creates an authenticator for the platform's operators, and for the people whom `issuers` vouch for. The rights in
    /// `log` take precedence over those of the read models in `db`.
    pub fn new(
        db: Database,
        log: Log,
        pepper: Pepper,
        operators: Operators,
        issuers: Issuers,
        lifetime: Lifetime,
    ) -> Self {
        let decided = Arc::new(Decided::new(log));
        Self {
            connections: Connections::new(db.clone(), Arc::clone(&decided), false),
            sessions: Sessions::new(db.clone(), pepper.clone(), lifetime),
            keys: Keys::new(db.clone(), Arc::clone(&decided), pepper),
            db,
            decided,
            operators,
            issuers,
            memberships: LookupCache::new(CACHE_CAPACITY, CACHE_TTL),
            custom_roles: LookupCache::new(CACHE_CAPACITY, CACHE_TTL),
            rules: LookupCache::new(CACHE_CAPACITY, CACHE_TTL),
        }
    }

    /// Lets organizations have issuers of their own on this machine: for trials.
    pub fn with_local_issuers(self) -> Self {
        Self { connections: Connections::new(self.db.clone(), Arc::clone(&self.decided), true), ..self }
    }

    /// Returns the sessions of people.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Returns the principal of this `Authorization` header.
    pub async fn principal(&self, authorization: Option<&str>) -> Result<Principal, AuthError> {
        self.principal_at(authorization, None).await
    }

    /// Like `principal`, in a request that names an organization, whose own issuers take precedence over those of others.
    pub async fn principal_at(
        &self,
        authorization: Option<&str>,
        place: Option<&OrgName>,
    ) -> Result<Principal, AuthError> {
        let token = bearer(authorization)?;
        if self.operators.is_token(token) {
            return Ok(Principal::Operator(Operator::Token));
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
            return self.keys.principal(token).await;
        }
        if let Some(operator) = self.operator(token).await? {
            return Ok(Principal::Operator(operator));
        }
        if let Some(claimed) = Claimed::of(token)
            && !self.issuers.knows(&claimed.iss)
        {
            let place = match place {
                Some(OrgName::Id(org)) => Some(*org),
                Some(OrgName::Slug(slug)) => self.db.org_of_slug(slug).await?,
                Some(OrgName::Current) | None => None,
            };
            if let Some(SsoLogin { org, connection, login }) = self.connections.verify(&claimed, token, place).await? {
                let (user, email, second_factor) = (login.user, login.verified_email, login.second_factor);
                return Ok(Principal::Sso { org, connection, user, email, second_factor });
            }
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

    /// Whether the principal of this header can be found only by asking an issuer, which may be slow.
    pub fn asks_an_issuer(authorization: Option<&str>) -> bool {
        bearer(authorization).is_ok_and(|token| Claimed::of(token).is_some())
    }

    /// Authenticates a sign-in: with an issuer's token, and with nothing else.
    pub async fn login(&self, authorization: Option<&str>) -> Result<Login, AuthError> {
        let token = bearer(authorization)?;
        if SessionToken::looks_like_one(token) {
            // Sessions would otherwise go on for ever, each making the next.
            self.sessions.of_token(token).await?;
            return Err(AuthError::SignInRequired);
        }
        if KeyToken::looks_like_one(token) {
            self.keys.principal(token).await?;
            return Err(AuthError::SessionOnly);
        }
        if self.operators.is_token(token) || self.operator(token).await?.is_some() {
            return Err(AuthError::SessionOnly);
        }
        self.verified(token).await
    }

    /// Returns the platform operator, if this is a token of one.
    async fn operator(&self, token: &str) -> Result<Option<Operator>, AuthError> {
        match Claimed::of(token) {
            Some(claimed) => self.operators.person(&claimed, token).await,
            None => Ok(None),
        }
    }

    async fn verified(&self, token: &str) -> Result<Login, AuthError> {
        Ok(self.issuers.verify(token).await?)
    }

    /// Returns the API keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the current cache contents.
    pub fn caches(&self) -> Vec<CacheView> {
        let mut views = vec![
            self.keys.cache(),
            self.memberships.view("memberships", "org/user"),
            self.custom_roles.view("roles", "org/role"),
            self.rules.view("rules", "org"),
        ];
        views.extend(self.connections.caches());
        views.extend(self.decided.caches());
        views
    }

    /// Returns the principal's access to the org of `name`, or [`AuthError::NotFound`] as for an org that does not exist.
    /// Principals of a suspended org are denied.
    ///
    /// A session acts in one organization at a time. Another one of the same person is refused with
    /// [`AuthError::ActiveOrgChanged`], not answered with that one's data: a page that was opened before a switch must learn
    /// of it.
    pub async fn access(&self, principal: &Principal, name: &OrgName) -> Result<Access, AuthError> {
        let since = Instant::now();
        let (access, proof) = self.membership_of(principal, name).await?;
        let access = access.proven(since);
        let Some((method, second_factor)) = proof else { return Ok(access) };
        let rules = self.rules(access.org()).await?;
        rules.check(&method, second_factor)?;
        Ok(access.with_rules(rules, (method, second_factor)))
    }

    /// Returns the access of an owner of `org` to its deletion, which nothing else of the organization takes; none for any other
    /// caller. Whatever organization a session acts in, it is the person's.
    pub async fn owner_of(&self, principal: &Principal, org: OrgId) -> Result<Option<Access>, AuthError> {
        let Principal::User { method, second_factor, .. } = principal else { return Ok(None) };
        let Some(member) = self.member(principal, org).await?.filter(|member| member.role == Role::Owner) else {
            return Ok(None);
        };
        self.rules(org).await?.check_sign_in(method, *second_factor)?;
        Ok(Some(Access::member(org, member.id, member.role, principal)))
    }

    /// Returns an operator's access to `org`, for its deletion.
    pub fn operator_of(&self, principal: &Principal, org: OrgId) -> Access {
        Access::operator(org, None, principal)
    }

    /// Fails unless the principal is a person with a session that began a moment ago.
    pub async fn signed_in_now(&self, principal: &PrincipalReference) -> Result<(), AuthError> {
        let session = match principal {
            PrincipalReference::User { session, .. } => session.as_ref(),
            PrincipalReference::Sso { .. } => None,
            PrincipalReference::Operator(_) | PrincipalReference::Key(_) => return Err(AuthError::SessionOnly),
        };
        let session = self.sessions.show(session.ok_or(AuthError::FreshSignInRequired)?).await?;
        let age = now().unix_ms().saturating_sub(session.created_at.unix_ms());
        if u128::try_from(age).unwrap_or_default() <= FRESH.as_millis() {
            Ok(())
        } else {
            Err(AuthError::FreshSignInRequired)
        }
    }

    /// Returns the current state of the same access, for long operations. A session that has switched to another
    /// organization keeps the operations that it began in this one.
    pub async fn again(&self, access: &Access) -> Result<Access, AuthError> {
        self.access_of(access.principal(), access.org()).await
    }

    /// Returns the access to `org` that a principal has now, which was authenticated before, here or in another process.
    pub async fn access_of(&self, principal: PrincipalReference, org: OrgId) -> Result<Access, AuthError> {
        let principal = match principal {
            PrincipalReference::Operator(operator) => Principal::Operator(operator),
            PrincipalReference::User { user, email, method, second_factor, session } => {
                if let Some(session) = &session {
                    self.sessions.now(session).await?;
                }
                Principal::User { user, email, method, second_factor, session }
            }
            PrincipalReference::Sso { org, connection, user, email, second_factor } => {
                Principal::Sso { org, connection, user, email, second_factor }
            }
            PrincipalReference::Key(public_id) => self.keys.principal_of(&public_id).await?,
        };
        self.access(&principal, &OrgName::Id(org)).await
    }

    /// Returns the principal's access to that org whatever its rules are, and the input of these rules: how the principal
    /// was authenticated, and whether that took a second factor. An operator is subject to no rules.
    async fn membership_of(
        &self,
        principal: &Principal,
        name: &OrgName,
    ) -> Result<(Access, Option<(LoginMethod, bool)>), AuthError> {
        let org = match (name, principal) {
            (OrgName::Id(org), _) | (OrgName::Current, Principal::Key { org, .. } | Principal::Sso { org, .. }) => *org,
            (OrgName::Slug(slug), _) => self.db.org_of_slug(slug).await?.ok_or(AuthError::NotFound)?,
            (OrgName::Current, Principal::User { session: Some(session), .. }) => {
                session.org.ok_or(AuthError::NotFound)?
            }
            (OrgName::Current, Principal::User { session: None, .. } | Principal::Operator(_)) => {
                return Err(AuthError::SessionRequired);
            }
        };
        let (access, proof) = match principal {
            Principal::Operator(operator) => (Access::operator(org, self.grant(org, operator).await?, principal), None),
            Principal::Key { org: own, role, scopes, .. } if *own == org => {
                (Access::key(org, *role, scopes.clone(), principal), Some((LoginMethod::api_key(), false)))
            }
            Principal::Sso { org: own, connection, user, second_factor, .. } if *own == org => {
                let member = self.membership(org, *user).await?.ok_or(AuthError::NotFound)?;
                let proof = (LoginMethod::sso(*connection), *second_factor);
                (Access::member(org, member.id, member.role, principal), Some(proof))
            }
            Principal::Key { .. } | Principal::Sso { .. } => return Err(AuthError::NotFound),
            Principal::User { method, second_factor, session, .. } => {
                let member = self.member(principal, org).await?.ok_or(AuthError::NotFound)?;
                if let Some(session) = session
                    && session.org != Some(org)
                {
                    return Err(AuthError::ActiveOrgChanged { epoch: session.epoch });
                }
                let proof = (method.clone(), *second_factor);
                (Access::member(org, member.id, member.role, principal), Some(proof))
            }
        };
        match access.role() {
            Role::Custom(role) => Ok((access.with_own(self.custom_role(org, role).await?), proof)),
            _ => Ok((access, proof)),
        }
    }

    /// Switches a session to another organization of the same person, or answers as if there were none of that name.
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

    /// Returns the person's member in `org`. A member added by e-mail address is any person for whom an issuer verified it.
    pub async fn member(&self, principal: &Principal, org: OrgId) -> Result<Option<members::Member>, AuthError> {
        for user in identities(principal) {
            if let Some(member) = self.membership(org, user).await? {
                return Ok(Some(member));
            }
        }
        Ok(None)
    }

    /// Returns the person's memberships, in the order of the organizations' ids: at most `limit`, and those after `after`.
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
            stream::iter(orgs).map(|org| self.look_as(&users, org)).buffered(MAX_CONCURRENCY).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns the person's membership in `org` and the organization, as the read models have them now; for display, not for
    /// acting.
    pub async fn look(&self, principal: &Principal, org: OrgId) -> Result<Option<Membership>, AuthError> {
        self.look_as(&identities(principal), org).await
    }

    async fn look_as(&self, users: &[UserId], org: OrgId) -> Result<Option<Membership>, AuthError> {
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let reach = decided::reach(&mut tx).await?;
        let mut found = None;
        for user in users {
            if let Some(member) = members::get_by_user(&mut tx, *user).await? {
                found = organizations::get(&mut tx).await?.map(|organization| Membership { member, organization });
                break;
            }
        }
        drop(tx);
        // None when the membership ended since it was listed.
        let Some(Membership { member, organization }) = found else { return Ok(None) };
        let member = self.as_decided(org, member, reach).await?;
        Ok(member.map(|member| Membership { member, organization }))
    }

    /// Returns the member as the log has it; none when it was removed.
    async fn as_decided(
        &self,
        org: OrgId,
        member: members::Member,
        reach: Reach,
    ) -> Result<Option<members::Member>, AuthError> {
        Ok(match self.decided.roster(org, reach).await? {
            Some(roster) => roster.get(member.id).map(|now| members::Member { role: now.role, ..member }),
            None => Some(member),
        })
    }

    /// Returns the operator's access to the platform's own org.
    pub fn platform(&self, principal: &Principal) -> Result<Access, AuthError> {
        match principal {
            Principal::Operator(_) => Ok(Access::operator(PLATFORM_ORG, None, principal)),
            Principal::User { .. } | Principal::Sso { .. } | Principal::Key { .. } => Err(AuthError::NotFound),
        }
    }

    /// Returns the operator's break-glass grant for the org. Queried each time: a closed grant ends at once.
    async fn grant(&self, org: OrgId, operator: &Operator) -> Result<Option<BreakGlassId>, AuthError> {
        if org == PLATFORM_ORG {
            return Ok(None);
        }
        let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
        let reach = decided::reach(&mut tx).await?;
        let Some(grant) = break_glass::open(&mut tx, operator.name(), now()).await? else { return Ok(None) };
        drop(tx);
        let is_closed = self.decided.is_break_glass_closed(org, reach).await?;
        Ok(Some(grant.id).filter(|_| !is_closed))
    }

    /// Returns the permissions of this custom role; none, once it was removed.
    async fn custom_role(&self, org: OrgId, id: RoleId) -> Result<Permissions, AuthError> {
        let lookup = Box::pin(async {
            let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
            let at = Instant::now();
            let reach = decided::reach(&mut tx).await?;
            let role = roles::get(&mut tx, id).await?.filter(|role| role.active);
            drop(tx);
            let names = role.map(|role| role.permissions).unwrap_or_default();
            let mut permissions: BTreeSet<_> = names.iter().filter_map(|name| Permission::named(name)).collect();
            if let Some(book) = self.decided.roles(org, reach).await? {
                permissions = book.permissions(id).unwrap_or_default();
            }
            Ok(Found { value: Arc::new(permissions), at })
        });
        self.custom_roles.get(&Scoped::new(org, id), |_| true, lookup).await
    }

    /// Returns the permissions of this role in the organization.
    pub async fn permissions(&self, org: OrgId, role: Role) -> Result<Permissions, AuthError> {
        match role {
            Role::Custom(id) => self.custom_role(org, id).await,
            role => Ok(Arc::new(Permission::of_role(role))),
        }
    }

    /// Returns the rules for all principals in the org.
    pub async fn rules(&self, org: OrgId) -> Result<Arc<OrgPolicy>, AuthError> {
        let lookup = Box::pin(async {
            let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
            let at = Instant::now();
            let reach = decided::reach(&mut tx).await?;
            let mut rules = organizations::get(&mut tx).await?.map(OrgPolicy::from).unwrap_or_default();
            drop(tx);
            if let Some(organization) = self.decided.organization(org, reach).await? {
                rules = organization.profile().map(OrgPolicy::from).unwrap_or_default();
            }
            Ok(Found { value: Arc::new(rules), at })
        });
        // A resumed organization is accessible as soon as the change is known.
        self.rules.get(&Scoped::new(org, ()), |rules| !rules.suspended && !rules.is_being_deleted, lookup).await
    }

    async fn membership(&self, org: OrgId, user: UserId) -> Result<Option<members::Member>, AuthError> {
        let lookup = Box::pin(async {
            let mut tx = self.db.read(BoundOrg::proven_by_credential(org)).await?;
            let at = Instant::now();
            let reach = decided::reach(&mut tx).await?;
            let member = members::get_by_user(&mut tx, user).await?;
            drop(tx);
            let value = match member {
                Some(member) => self.as_decided(org, member, reach).await?,
                None => None,
            };
            Ok(Found { value, at })
        });
        // A new member has access as soon as the read models have it.
        self.memberships.get(&Scoped::new(org, user), Option::is_some, lookup).await
    }
}

/// Returns the token of an `Authorization` header.
fn bearer(authorization: Option<&str>) -> Result<&str, AuthError> {
    let unauthenticated = |reason: &str| AuthError::Unauthenticated(cause(reason));
    let header = authorization
        .ok_or_else(|| unauthenticated("no credential: send the header Authorization: Bearer <API key or token>"))?;
    match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("the header must be: Authorization: Bearer <API key or token>")),
    }
}

/// Returns the users as which a person may be a member: their own, and that of their verified e-mail address.
fn identities(principal: &Principal) -> Vec<UserId> {
    match principal {
        Principal::User { user, email, .. } => {
            let by_email = email.as_deref().map(user_of_email);
            std::iter::once(*user).chain(by_email).collect()
        }
        Principal::Operator(_) | Principal::Sso { .. } | Principal::Key { .. } => Vec::new(),
    }
}
