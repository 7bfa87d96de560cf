//! Who the caller is, and where they may go.

use std::sync::Arc;

use axum::{Json, extract::State, http::request::Parts};
use orgstream_events::{KeyId, OrgId, Role, Slug};
use orgstream_projections::organizations;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App,
    extract::{SignedIn, info},
};
use crate::{
    auth::{Access, AuthError, Permission, Principal, authenticator::OrgName},
    commands::openapi,
    problem::Problem,
};

/// The most memberships that are listed.
const SHOWN: usize = 100;

/// Whoever asks.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MeView {
    /// `user`, `api_key` or `platform_operator`.
    #[serde(rename = "type")]
    #[schema(example = "api_key")]
    pub me: &'static str,
    /// The verified e-mail address, of a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "ann@acme.example")]
    pub email: Option<String>,
    /// Which key, of an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub key_id: Option<KeyId>,
    /// The one organization, of an API key or of a user with one membership.
    #[schema(value_type = Option<String>, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: Option<OrgId>,
    /// Where one may act: at most 100.
    pub memberships: Vec<MembershipView>,
    /// Whether there is anything to choose.
    pub show_switcher: bool,
}

/// A place to act in.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MembershipView {
    /// The organization.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Its name in URLs.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// What people call it.
    #[schema(example = "Acme Corp")]
    pub name: String,
    /// As whom: a member or key id.
    #[schema(example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub actor_id: String,
    /// What one may do there.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// The same with every role that it includes.
    #[schema(value_type = Vec<String>, example = json!(["admin", "member", "viewer"]))]
    pub effective_roles: Vec<Role>,
    /// What that comes to, by the names of permissions.
    #[schema(example = json!(["records:read", "records:write"]))]
    pub permissions: Vec<&'static str>,
    /// Whether the organization is suspended.
    pub suspended: bool,
}

/// Show who I am
///
/// Whoever has a verified address of a domain that an organization has proven to be its own, and lets people in by, joins
/// it here.
#[utoipa::path(
    get, path = "/v1/me", operation_id = "who_am_i", tag = "me",
    responses((status = 200, description = "Whoever this credential belongs to", body = MeView)),
)]
pub async fn who_am_i(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
) -> Result<Json<MeView>, Problem> {
    if let Principal::User { user, email: Some(email) } = &principal {
        app.gateway.join_by_domain(&principal, *user, email, &info(&parts).origin()).await;
    }
    app.gateway.join_by_sso(&principal, &info(&parts).origin()).await?;
    let (me, email, key_id, orgs) = match &principal {
        Principal::Sso { org, email, .. } => ("user", email.clone(), None, vec![*org]),
        Principal::Operator => ("platform_operator", None, None, Vec::new()),
        Principal::Key { id, org, .. } => ("api_key", None, Some(*id), vec![*org]),
        Principal::User { user, email } => ("user", email.clone(), None, app.db.orgs_of_user(*user).await?),
    };
    let mut memberships = Vec::new();
    for org in orgs.into_iter().take(SHOWN) {
        match app.auth.access(&principal, &OrgName::Id(org)).await {
            Ok(access) => memberships.extend(membership(&app, &access).await?),
            // Gone since it was listed.
            Err(AuthError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let org_id = match memberships.as_slice() {
        [only] => Some(only.org_id),
        _ => None,
    };
    let show_switcher = memberships.len() > 1;
    Ok(Json(MeView { me, email, key_id, org_id, memberships, show_switcher }))
}

async fn membership(app: &App, access: &Access) -> Result<Option<MembershipView>, Problem> {
    let found = organizations::get(&mut app.db.read(access.bound()).await?).await?;
    Ok(found.map(|organization| MembershipView {
        org_id: organization.id,
        slug: organization.slug,
        name: organization.name,
        actor_id: access.actor().id.clone(),
        role: access.role(),
        effective_roles: access.role().effective(),
        permissions: access.permissions().map(Permission::name).collect(),
        suspended: organization.suspended_reason.is_some(),
    }))
}
