//! Custom roles of an organization, composed of the existing permissions.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use orgstream_domain::{ChangeRole, DefineRole, Permission, RemoveRole};
use orgstream_events::{RoleId, Timestamp};
use orgstream_projections::roles::{self, CustomRole};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, READ, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, Query, Writer},
            page::{Page, PageQuery},
            reply,
            wait::{OrgView, ReadModels},
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A role of the organization's own.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RoleView {
    /// Custom role id (`role_` and 26 characters): the `role` of members, invitations and keys.
    #[schema(value_type = String, example = "role_01h455vb4pex5vsknk084sn02q")]
    pub id: RoleId,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Ingest")]
    pub name: String,
    /// Names of permissions of the role.
    #[schema(example = json!(["records:read", "records:write"]))]
    pub permissions: Vec<String>,
    /// True until the role is removed.
    pub active: bool,
    /// Version of the organization's custom roles at the last change of this one.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of creation, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<CustomRole> for RoleView {
    fn from(role: CustomRole) -> Self {
        let CustomRole { id, name, permissions, active, version, created_at, updated_at, seq: _ } = role;
        Self { id, name, permissions, active, version, created_at, updated_at }
    }
}

/// Another name or other permissions. What is missing stays.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RoleChange {
    /// New display name, 1 to 120 characters.
    pub name: Option<String>,
    /// New and complete names of permissions of the role; none that the caller does not have.
    pub permissions: Option<Vec<String>>,
}

/// What became of a command about a role.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedRole {
    /// Custom role id (`role_` and 26 characters).
    #[schema(value_type = String, example = "role_01h455vb4pex5vsknk084sn02q")]
    pub role_id: RoleId,
    /// What became of the command.
    #[serde(flatten)]
    pub command: AcceptedCommand,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(define), Policy::Org(Permission::ManageRoles), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(change), Policy::Org(Permission::ManageRoles), Shape::Change, AuditTrail::Events)
        .route(routes!(remove), Policy::Org(Permission::ManageRoles), Shape::Change, AuditTrail::Events)
}

/// List roles
///
/// Those that the organization made itself, the newest first. Owner, admin, member, viewer and auditor are always there.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/roles", operation_id = "list_roles", tag = "roles",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<RoleView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "roles", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = roles::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, RoleView::from)))
}

/// Get a role
#[utoipa::path(
    get, path = "/v1/organizations/{org}/roles/{role}", operation_id = "get_role", tag = "roles",
    responses((status = 200, description = "The role", body = RoleView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<RoleId>) -> Result<Response, Problem> {
    let found = roles::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    // All roles are one aggregate, because their names must be distinct, so they share a version.
    let version = roles::version(&mut org.view.tx).await?;
    Ok(org.view.one(version, &RoleView::from(found)))
}

/// Create a role
///
/// Never more than you may yourself (`role_above_own`). Members, invitations and keys name it by its id.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/roles", operation_id = "define_role", tag = "roles",
    request_body = DefineRole, responses((status = 201, description = "Made", body = AcceptedRole)),
)]
pub async fn define(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<DefineRole>,
) -> Result<Response, Problem> {
    let accepted = writer.submit(&app, command).await?;
    let role_id = RoleId::derive(accepted.command_id);
    let location = format!("/v1/organizations/{}/roles/{role_id}", accepted.position.org);
    reply::accepted(StatusCode::CREATED, Some(location), accepted, |command| AcceptedRole { role_id, command })
}

/// Change a role
///
/// It reaches all members and keys with the role within a second.
#[utoipa::path(
    patch, path = "/v1/organizations/{org}/roles/{role}", operation_id = "change_role", tag = "roles",
    request_body = RoleChange, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<RoleId>,
    Body(RoleChange { name, permissions }): Body<RoleChange>,
) -> Result<Response, Problem> {
    writer.submit(&app, ChangeRole { id, name, permissions }).await.map(reply::changed)
}

/// Remove a role
///
/// Its members and keys may do nothing from then on, until they have another.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/roles/{role}", operation_id = "remove_role", tag = "roles",
    responses((status = 200, description = "Removed", body = AcceptedCommand)),
)]
pub async fn remove(State(app): State<Arc<App>>, writer: Writer, Item(id): Item<RoleId>) -> Result<Response, Problem> {
    writer.submit(&app, RemoveRole { id }).await.map(reply::changed)
}
