//! The caller's identity and memberships.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State, http::request::Parts};
use orgstream_domain::{Permission, openapi};
use orgstream_events::{KeyId, OrgId, Role, SessionId, Slug, TenantType};
use orgstream_projections::organizations::{self, Organization};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::extract::{Query, SignedIn, info},
    },
    app::problem::Problem,
    auth::{
        AuthError, Operator, Principal,
        authenticator::{Membership, OrgName},
    },
};

/// The maximum number of memberships in one answer.
const SHOWN: usize = 100;

/// The caller.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MeView {
    /// Type of principal: `user`, `api_key` or `platform_operator`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub me: &'static str,
    /// Verified e-mail address of a person; of an operator, the name in every audit entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "ann@acme.example")]
    pub email: Option<String>,
    /// API key id (`key_` and 26 characters), for an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub key_id: Option<KeyId>,
    /// Session id (`ses_` and 26 characters), for a person with a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "ses_01h455vb4pex5vsknk084sn02q")]
    pub session_id: Option<SessionId>,
    /// Organization that the credential acts in: of an API key its own, of a session the active one, of a token the only
    /// membership of its person.
    #[schema(value_type = Option<String>, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: Option<OrgId>,
    /// Number of times that the session chose an active organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Personal organization of the person (`org_` and 26 characters), once signed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub personal_org: Option<OrgId>,
    /// Memberships, at most 100; `GET /v1/me/memberships` has all.
    pub memberships: Vec<MembershipView>,
    /// True if there is more than one organization to choose from.
    pub show_switcher: bool,
}

/// A place to act in.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MembershipView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Name in URLs: 2 to 128 characters of a-z, 0-9 and single `-`, `.`, `_` or `~`.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Acme Corp")]
    pub name: String,
    /// Type of tenant: `personal`, `organization`, `team` or `workspace`.
    #[schema(schema_with = openapi::tenant_type)]
    pub tenant_type: TenantType,
    /// Id of the caller in the organization: a member or key id.
    #[schema(example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub actor_id: String,
    /// Role of the caller in the organization: a built-in name or the id of a custom role.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// Role of the caller with every role that it includes.
    #[schema(value_type = Vec<String>, example = json!(["admin", "member", "viewer"]))]
    pub effective_roles: Vec<Role>,
    /// Names of the permissions that the role comes to.
    #[schema(example = json!(["records:read", "records:write"]))]
    pub permissions: Vec<&'static str>,
    /// True if a switcher shows it: a personal organization is hidden while it is the only one.
    pub visible: bool,
    /// True while the organization is suspended.
    pub suspended: bool,
}

/// One part of the memberships.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MembershipList {
    /// Memberships, in the order of the organizations' ids.
    pub data: Vec<MembershipView>,
    /// Cursor of the next page; null on the last.
    pub next_cursor: Option<String>,
    /// True if there is a next page.
    pub has_more: bool,
}

/// Which part.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MembershipQuery {
    /// How many, 1 to 100; 25 unless said otherwise.
    #[param(minimum = 1, maximum = 100, default = 25, example = 25)]
    pub limit: Option<u16>,
    /// Where to go on: `next_cursor` of an earlier part.
    pub cursor: Option<String>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(who_am_i), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped).route(
        routes!(list_memberships),
        Policy::SignedIn,
        Shape::Plain,
        AuditTrail::NotTenantScoped,
    )
}

/// Show the caller
///
/// A person with a verified address of a domain that an organization has proven to be its own, and lets people in by, joins
/// it here.
#[utoipa::path(
    get, path = "/v1/me", operation_id = "who_am_i", tag = "me",
    responses((status = 200, description = "The principal of this credential", body = MeView)),
)]
pub async fn who_am_i(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
) -> Result<Json<MeView>, Problem> {
    app.gateway.signed_in(&principal, &info(&parts).origin()).await?;
    let memberships = memberships(&app, &principal, None, SHOWN).await?;
    let only = match memberships.as_slice() {
        [only] => Some(only.org_id),
        _ => None,
    };
    let show_switcher = memberships.len() > 1;
    let nobody = MeView {
        me: "platform_operator",
        email: None,
        key_id: None,
        session_id: None,
        org_id: None,
        epoch: None,
        personal_org: None,
        memberships,
        show_switcher,
    };
    Ok(Json(match &principal {
        Principal::Operator(operator) => {
            MeView { email: matches!(operator, Operator::Person { .. }).then(|| operator.name().to_owned()), ..nobody }
        }
        Principal::Sso { org, email, .. } => MeView { me: "user", email: email.clone(), org_id: Some(*org), ..nobody },
        Principal::Key { id, org, .. } => MeView { me: "api_key", key_id: Some(*id), org_id: Some(*org), ..nobody },
        Principal::User { user, email, session, .. } => MeView {
            me: "user",
            email: email.clone(),
            session_id: session.as_ref().map(|session| session.id),
            org_id: session.as_ref().map_or(only, |session| session.org),
            epoch: session.as_ref().map(|session| session.epoch),
            personal_org: app.db.personal_org(*user).await?,
            ..nobody
        },
    }))
}

/// List my memberships
///
/// The organizations that you are a member of: those that you joined under this login, and those where an admin added you by
/// an e-mail address that your issuer has verified.
#[utoipa::path(
    get, path = "/v1/me/memberships", operation_id = "list_memberships", tag = "me",
    params(MembershipQuery), responses((status = 200, description = "Memberships", body = MembershipList)),
)]
pub async fn list_memberships(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    Query(query): Query<MembershipQuery>,
) -> Result<Json<MembershipList>, Problem> {
    let limit = match query.limit.map_or(25, usize::from) {
        limit @ 1..=SHOWN => limit,
        other => return Err(Problem::invalid_parameter("limit", format!("{other} is not between 1 and {SHOWN}"))),
    };
    // The set of organizations is the caller's own, so the cursor needs no signature.
    let after = query.cursor.as_deref().map(str::parse::<OrgId>).transpose();
    let after = after.map_err(|_| Problem::invalid_parameter("cursor", "must be a `next_cursor` of this route"))?;
    let mut data = memberships(&app, &principal, after, limit + 1).await?;
    let has_more = data.len() > limit;
    data.truncate(limit);
    let next_cursor = data.last().map(|last| last.org_id.to_string()).filter(|_| has_more);
    Ok(Json(MembershipList { data, next_cursor, has_more }))
}

async fn memberships(
    app: &App,
    principal: &Principal,
    after: Option<OrgId>,
    limit: usize,
) -> Result<Vec<MembershipView>, Problem> {
    let found = match principal {
        Principal::Operator(_) => Vec::new(),
        Principal::Key { .. } | Principal::Sso { .. } => return of_one(app, principal, after).await,
        Principal::User { .. } => app.auth.memberships(principal, after, limit).await?,
    };
    let alone = after.is_none() && found.len() == 1;
    let mut places = Vec::with_capacity(found.len());
    for Membership { member, organization } in found {
        let visible = !alone || organization.tenant_type != TenantType::Personal;
        let permissions = app.auth.permissions(organization.id, member.role).await?;
        places.push(shown(organization, member.id.to_string(), member.role, &permissions, visible));
    }
    Ok(places)
}

/// Returns the one organization of a key, or of a person whom an organization's own issuer signed in, unless the caller is
/// denied there.
async fn of_one(app: &App, principal: &Principal, after: Option<OrgId>) -> Result<Vec<MembershipView>, Problem> {
    let access = match app.auth.access(principal, &OrgName::Current).await {
        Ok(access) if after.is_none_or(|after| access.org() > after) => access,
        Ok(_) | Err(AuthError::NotFound | AuthError::MethodNotAllowed { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let found = organizations::get(&mut app.db.read(access.bound()).await?).await?;
    let permissions = access.permissions().collect();
    let actor = access.actor().id.clone();
    let place = found.map(|organization| shown(organization, actor, access.role(), &permissions, true));
    Ok(place.into_iter().collect())
}

fn shown(
    organization: Organization,
    actor_id: String,
    role: Role,
    permissions: &BTreeSet<Permission>,
    visible: bool,
) -> MembershipView {
    MembershipView {
        org_id: organization.id,
        slug: organization.slug,
        name: organization.name,
        tenant_type: organization.tenant_type,
        actor_id,
        role,
        effective_roles: role.effective(),
        permissions: permissions.iter().map(|permission| permission.name()).collect(),
        visible,
        suspended: organization.suspended_reason.is_some(),
    }
}
