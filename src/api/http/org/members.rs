//! Members of an organization, and their roles.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use orgstream_domain::{AddMember, ChangeMemberRole, Permission, RemoveMember, openapi};
use orgstream_events::{MemberId, OrgId, Role, Timestamp};
use orgstream_projections::members::{self, Member};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
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

/// A member. The person behind it, who may be a member elsewhere too, is never shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MemberView {
    /// Member id (`mem_` and 26 characters).
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: MemberId,
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// E-mail address, unique in the organization.
    #[schema(example = "ann@acme.example")]
    pub email: String,
    /// Role of the member: a built-in name or the id of a custom role.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// Role of the member with every role that it includes: an owner is also an admin.
    #[schema(value_type = Vec<String>, example = json!(["admin", "member", "viewer"]))]
    pub effective_roles: Vec<Role>,
    /// State: `active`, or `removed`.
    #[schema(example = "active")]
    pub status: &'static str,
    /// True until the member leaves.
    pub active: bool,
    /// Version of the organization's members at the last change of this one, counted from 1.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of joining, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl MemberView {
    pub(crate) fn new(org_id: OrgId, member: Member) -> Self {
        let Member { id, user_id: _, email, role, active, version, created_at, updated_at, seq: _ } = member;
        let (effective_roles, status) = (role.effective(), if active { "active" } else { "removed" });
        Self { id, org_id, email, role, effective_roles, status, active, version, created_at, updated_at }
    }
}

/// Filters of the listing.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MemberQuery {
    /// Whether removed members are listed as well; `false` by default.
    pub removed: Option<bool>,
    /// E-mail address of one member, in any case of letters.
    pub email: Option<String>,
}

/// The role of a member.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRole {
    /// New role of the member; it may do no more than the caller.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
}

/// What became of a command about a member.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedMember {
    /// Member id (`mem_` and 26 characters).
    #[schema(value_type = String, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub member_id: MemberId,
    /// What became of the command.
    #[serde(flatten)]
    pub command: AcceptedCommand,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(add), Policy::Org(Permission::ManageMembers), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(change_role), Policy::Org(Permission::ManageMembers), Shape::Change, AuditTrail::Events)
        .route(routes!(remove), Policy::Org(Permission::ManageMembers), Shape::Change, AuditTrail::Events)
}

/// List members
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/members", operation_id = "list_members", tag = "members",
    params(MemberQuery, PageQuery), responses((status = 200, description = "One page", body = Page<MemberView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(filter): Query<MemberQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let org_id = org.access.org();
    let cursors = app.cursors.listing(org_id, "members", &filter);
    let part = cursors.read(page.cursor.as_deref())?;
    let removed = filter.removed.unwrap_or_default();
    let rows = members::list(&mut org.view.tx, removed, filter.email.as_deref(), &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, |member| MemberView::new(org_id, member))))
}

/// Get a member
#[utoipa::path(
    get, path = "/v1/organizations/{org}/members/{member}", operation_id = "get_member", tag = "members",
    responses((status = 200, description = "The member", body = MemberView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<MemberId>) -> Result<Response, Problem> {
    let found = members::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    // All members are one aggregate ("never the last owner" is a rule over all of them), so they share a version.
    let version = members::roster_version(&mut org.view.tx).await?;
    Ok(org.view.one(version, &MemberView::new(org.access.org(), found)))
}

/// Add a member
#[utoipa::path(
    post, path = "/v1/organizations/{org}/members", operation_id = "add_member", tag = "members",
    request_body = AddMember, responses((status = 201, description = "Added", body = AcceptedMember)),
)]
pub async fn add(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<AddMember>,
) -> Result<Response, Problem> {
    let accepted = writer.submit(&app, command).await?;
    let member_id = MemberId::derive(accepted.command_id);
    let location = format!("/v1/organizations/{}/members/{member_id}", accepted.position.org);
    reply::accepted(StatusCode::CREATED, Some(location), accepted, |command| AcceptedMember { member_id, command })
}

/// Change the role of a member
///
/// The last owner stays one.
#[utoipa::path(
    patch, path = "/v1/organizations/{org}/members/{member}", operation_id = "change_member_role", tag = "members",
    request_body = NewRole, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change_role(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<MemberId>,
    Body(NewRole { role }): Body<NewRole>,
) -> Result<Response, Problem> {
    writer.submit(&app, ChangeMemberRole { id, role }).await.map(reply::changed)
}

/// Remove a member
///
/// What they made stays. The last owner stays.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/members/{member}", operation_id = "remove_member", tag = "members",
    responses((status = 200, description = "Removed", body = AcceptedCommand)),
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<MemberId>,
) -> Result<Response, Problem> {
    writer.submit(&app, RemoveMember { id }).await.map(reply::changed)
}
