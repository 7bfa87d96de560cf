//! Sessions: signing in and out, and the one organization that a session acts in.

use std::{str::FromStr, sync::Arc};

use axum::{
    body::Body as AnswerBody,
    extract::State,
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use orgstream_events::{
    AccessEvent, CURRENT_ORG, Direction, IdError, LoginMethod, OrgId, OrgSwitched, SessionId, Slug, Timestamp,
};
use orgstream_projections::identity::{Session, SignIn};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            cookie,
            extract::{Body, Item, SignedIn, header_text, info},
            reply,
        },
    },
    app::{access_log::DeniedRequest, problem::Problem, submit::Origin},
    auth::{
        AuthError, Principal,
        authenticator::{Membership, OrgName},
        session::{ActiveSession, Start},
    },
    secret::Secret,
};

/// A session.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SessionView {
    /// Session id (`ses_` and 26 characters), not its token.
    #[schema(value_type = String, example = "ses_01h455vb4pex5vsknk084sn02q")]
    pub id: SessionId,
    /// True for the session of this request.
    pub current: bool,
    /// Organization that the session acts in; null once its person is no member there.
    pub active_org: Option<ActiveOrg>,
    /// Number of switches; `X-Org-Epoch` takes it.
    #[schema(example = 1)]
    pub epoch: u64,
    /// Way of the sign-in: `oidc`, or `sso:` and the id of a connection.
    #[schema(value_type = String, example = "oidc")]
    pub method: LoginMethod,
    /// True if the sign-in took a second factor.
    pub second_factor: bool,
    /// Address of the sign-in.
    pub ip: Option<String>,
    /// User agent of the sign-in.
    pub user_agent: Option<String>,
    /// Time of the sign-in, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last use, to the minute.
    #[schema(value_type = String, format = DateTime)]
    pub last_seen_at: Timestamp,
    /// Time of expiry unless it is used before, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Time of the end in any case, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub ends_at: Timestamp,
}

/// The organization that a session acts in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ActiveOrg {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Name in URLs; null for the moment in which a new organization is not in the read models.
    #[schema(value_type = Option<String>, example = "acme")]
    pub slug: Option<Slug>,
}

/// A session that was just begun.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NewSessionView {
    /// Token for `Authorization: Bearer` (`os_ses_…`). It is shown in this answer and nowhere else.
    #[schema(example = "os_ses_…")]
    #[schema(value_type = String)]
    pub token: Secret,
    /// The session.
    #[serde(flatten)]
    pub session: SessionView,
}

/// The sessions of a person.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SessionList {
    /// Sessions that have not ended, newest first; at most 100.
    pub data: Vec<SessionView>,
}

/// Where to act from now on.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Switch {
    /// Organization to act in, by id or slug.
    #[schema(example = "acme")]
    pub org: String,
}

/// A session in a path: by its id, or `current`.
pub enum SessionName {
    /// The session of this id.
    Id(SessionId),
    /// The session of the request.
    Current,
}

impl FromStr for SessionName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text == CURRENT_ORG { Ok(Self::Current) } else { text.parse().map(Self::Id) }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(start), Policy::SignedIn, Shape::Plain, AuditTrail::AccessEvent("access.signed_in"))
        .route(routes!(revoke), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(show), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(switch), Policy::SignedIn, Shape::Plain, AuditTrail::AccessEvent("access.org_switched"))
}

/// Sign in
///
/// Takes a token (JWT) of your OpenID Connect issuer and begins a session. Its token is in the answer, once, and in a cookie
/// for browsers (`__Host-orgstream_session`). The first sign-in of a person makes their personal organization. The
/// session acts in one organization at a time: to begin with, the one where your newest session acts, or your own. API keys
/// make no sessions: `session_only`.
#[utoipa::path(
    post, path = "/v1/sessions", operation_id = "sign_in", tag = "sessions",
    responses((status = 201, description = "Signed in", body = NewSessionView)),
)]
pub async fn start(State(app): State<Arc<App>>, parts: Parts) -> Result<Response, Problem> {
    let login = app.auth.login(header_text(&parts.headers, &header::AUTHORIZATION)?).await?;
    let noted = SignIn {
        user: login.user,
        issuer: &login.issuer,
        subject: &login.subject,
        email: login.email.as_deref(),
        email_verified: login.verified_email.is_some(),
    };
    let method = LoginMethod::oidc();
    let principal = Principal::User {
        user: login.user,
        email: login.verified_email.clone(),
        method: method.clone(),
        second_factor: login.second_factor,
        session: None,
    };
    let origin = info(&parts).origin();
    let known = app.db.note_sign_in(&noted).await?;
    let personal = app.gateway.personal_organization(&principal, &origin, known.personal_org).await?;
    app.gateway.signed_in(&principal, &origin).await?;
    let active_org = match app.db.last_active_org(login.user).await? {
        Some(last) if last == personal || app.auth.member(&principal, last).await?.is_some() => last,
        _ => personal,
    };
    let begin = Start {
        user: login.user,
        method,
        second_factor: login.second_factor,
        active_org,
        ip: origin.context.ip.clone(),
        user_agent: origin.context.user_agent.clone(),
    };
    let (token, session) = app.auth.sessions().start(&begin).await?;
    let method = begin.method.to_string();
    let somebody = acting(&principal, ActiveSession::from(&*session));
    note(&app, &somebody, active_org, &origin, AccessEvent::SignedIn(orgstream_events::SignedIn { method })).await;
    let slug = app.auth.look(&principal, active_org).await?.map(|found| found.organization.slug);
    let active = Some(ActiveOrg { org_id: active_org, slug });
    let body = NewSessionView { token: token.reveal().to_owned().into(), session: view(&session, true, active) };
    let mut response = reply::json(StatusCode::CREATED, AnswerBody::from(reply::json_bytes(&body)?));
    response.headers_mut().insert(header::CACHE_CONTROL, reply::NEVER_KEPT);
    if let Some(cookie) = cookie::give(&token, app.auth.sessions().lifetime().longest) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// List my sessions
///
/// Those of the same person, wherever they signed in; newest first, at most 100.
#[utoipa::path(
    get, path = "/v1/sessions", operation_id = "list_sessions", tag = "sessions",
    responses((status = 200, description = "Sessions", body = SessionList)),
)]
pub async fn list(State(app): State<Arc<App>>, SignedIn(principal): SignedIn) -> Result<Response, Problem> {
    let user = principal.person()?;
    let current = principal.session().map(|session| session.id);
    let sessions = app.auth.sessions().list(user).await?;
    let mut data = Vec::with_capacity(sessions.len());
    // One query for each organization, however many sessions act there.
    let mut places: Vec<(OrgId, Option<ActiveOrg>)> = Vec::new();
    for session in &sessions {
        let active = match session.active_org {
            None => None,
            Some(org) => match places.iter().find(|(place, _)| *place == org) {
                Some((_, active)) => active.clone(),
                None => {
                    let active = active_org(app.auth.look(&principal, org).await?);
                    places.push((org, active.clone()));
                    active
                }
            },
        };
        data.push(view(session, current == Some(session.id), active));
    }
    Ok(reply::json(StatusCode::OK, AnswerBody::from(reply::json_bytes(&SessionList { data })?)))
}

/// Sign out
///
/// Ends a session of yours, by its id or as `current`; within a second nothing accepts it any more.
#[utoipa::path(
    delete, path = "/v1/sessions/{session}", operation_id = "revoke_session", tag = "sessions",
    responses((status = 204, description = "It has ended")),
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    Item(name): Item<SessionName>,
) -> Result<Response, Problem> {
    let user = principal.person()?;
    let current = principal.session().map(|session| session.id);
    let id = match name {
        SessionName::Id(id) => id,
        SessionName::Current => current.ok_or(AuthError::SessionRequired)?,
    };
    if !app.auth.sessions().revoke(user, id).await? {
        return Err(Problem::not_found());
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    if let Some(cookie) = cookie::take().filter(|_| current == Some(id)) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// Show this session
#[utoipa::path(
    get, path = "/v1/session", operation_id = "show_session", tag = "sessions",
    responses((status = 200, description = "The session of this request", body = SessionView)),
)]
pub async fn show(State(app): State<Arc<App>>, SignedIn(principal): SignedIn) -> Result<Response, Problem> {
    principal.person()?;
    let session = principal.session().ok_or(AuthError::SessionRequired)?;
    answer(&app, &principal, session).await
}

/// Act in another organization
///
/// From now on this session acts there and nowhere else; the epoch grows. Reads that are under way and live tails of the
/// other organization end with `active_org_changed`. An organization that you are no member of does not exist for you. API
/// keys belong to one organization for ever: `session_only`.
#[utoipa::path(
    put, path = "/v1/session/active-org", operation_id = "switch_organization", tag = "sessions",
    request_body = Switch, responses((status = 200, description = "The session after it", body = SessionView)),
)]
pub async fn switch(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
    Body(Switch { org }): Body<Switch>,
) -> Result<Response, Problem> {
    principal.person()?;
    let name = OrgName::parse(&org).map_err(|rule| Problem::invalid("/org", "organization", rule))?;
    let (before, origin) = (principal.session().and_then(|session| session.org), info(&parts).origin());
    let session = app.auth.switch(&principal, &name).await.map_err(|error| {
        let problem = Problem::from(error);
        app.gateway.access_log().denied(
            &principal,
            &origin,
            DeniedRequest { target: "session", asked: Some(&org) },
            &problem,
        );
        problem
    })?;
    if before != session.org {
        // Each organization learns of its own side only, and of the person as its own member.
        for (org, direction) in [(before, Direction::Left), (session.org, Direction::Entered)] {
            let Some(org) = org else { continue };
            let somebody = acting(&principal, session.acting_in(org));
            let fact = AccessEvent::OrgSwitched(OrgSwitched { direction, epoch: session.epoch });
            note(&app, &somebody, org, &origin, fact).await;
        }
    }
    answer(&app, &principal, &session).await
}

/// Returns the same person in this session.
fn acting(principal: &Principal, session: ActiveSession) -> Principal {
    let mut somebody = principal.clone();
    if let Principal::User { session: of, .. } = &mut somebody {
        *of = Some(session);
    }
    somebody
}

/// Records a person's action in the log of an organization, as their member there. Without membership or access, there is no
/// actor to name.
async fn note(app: &App, somebody: &Principal, org: OrgId, origin: &Origin, fact: AccessEvent) {
    if let Ok(access) = app.auth.access(somebody, &OrgName::Id(org)).await {
        app.gateway.access_log().record(access.bound(), access.actor(), origin, fact);
    }
}

async fn answer(app: &App, principal: &Principal, session: &ActiveSession) -> Result<Response, Problem> {
    let session = app.auth.sessions().show(session).await?;
    let active = match session.active_org {
        Some(org) => active_org(app.auth.look(principal, org).await?),
        None => None,
    };
    Ok(reply::json(StatusCode::OK, AnswerBody::from(reply::json_bytes(&view(&session, true, active))?)))
}

fn active_org(found: Option<Membership>) -> Option<ActiveOrg> {
    let organization = found?.organization;
    Some(ActiveOrg { org_id: organization.id, slug: Some(organization.slug) })
}

fn view(session: &Session, current: bool, active_org: Option<ActiveOrg>) -> SessionView {
    SessionView {
        id: session.id,
        current,
        active_org,
        epoch: session.epoch,
        method: session.method.clone(),
        second_factor: session.second_factor,
        ip: session.ip.clone(),
        user_agent: session.user_agent.clone(),
        created_at: session.created_at,
        last_seen_at: session.last_seen_at,
        expires_at: session.expires_at,
        ends_at: session.ends_at,
    }
}
