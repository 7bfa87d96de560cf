//! Invitations, for one person each. Their tokens are in mails and in no answer.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, request::Parts},
    response::Response,
};
use orgstream_domain::{
    IssueInvitation, Permission, ResendInvitation, RevokeInvitation, credentials::invitation::InvitationToken, openapi,
};
use orgstream_events::{InvitationId, MemberId, OrgId, Role, Timestamp};
use orgstream_projections::invitations::{self, Invitation, InvitationStatus};
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
            extract::{Body, Item, Query, SignedIn, Writer, idempotency_key, info},
            page::{Page, PageQuery},
            reply,
            wait::{OrgView, ReadModels},
        },
    },
    app::event_view::ActorView,
    app::{problem::Problem, submit::AcceptedCommand},
};

/// An invitation, without its token.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InvitationView {
    /// Invitation id (`inv_` and 26 characters).
    #[schema(value_type = String, example = "inv_01h455vb4pex5vsknk084sn02q")]
    pub id: InvitationId,
    /// E-mail address that may accept it.
    #[schema(example = "ann@acme.example")]
    pub email: String,
    /// Role of the future member: a built-in name or the id of a custom role.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// State: `pending`, `accepted` or `revoked`. An expired one is pending, and can be sent again.
    #[schema(value_type = String, example = "pending")]
    pub status: InvitationStatus,
    /// Time of expiry, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Member that it became (`mem_` and 26 characters); null until accepted.
    #[schema(value_type = Option<String>, example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub member_id: Option<MemberId>,
    /// Actor who invited.
    pub created_by: ActorView,
    /// Version of the thing, counted from 1; `If-Match` takes it.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of issue, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Invitation> for InvitationView {
    fn from(invitation: Invitation) -> Self {
        let Invitation {
            id,
            email,
            role,
            status,
            expires_at,
            token_mac: _,
            token_command: _,
            member_id,
            created_by,
            version,
            created_at,
            updated_at,
            seq: _,
        } = invitation;
        let created_by = created_by.into();
        Self { id, email, role, status, expires_at, member_id, created_by, version, created_at, updated_at }
    }
}

/// How long an invitation that is sent again can be accepted.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SendAgain {
    /// Days until it expires, 1 to 30; 7 by default.
    #[schema(minimum = 1, maximum = 30)]
    pub expires_in_days: Option<u32>,
}

/// Why an invitation is revoked.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RevokeQuery {
    /// Why, at most 500 characters; it stays in the audit log.
    pub reason: Option<String>,
}

/// What shows that an invitation came to its mailbox.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// Token of the invitation mail (`osi_…`).
    #[schema(value_type = String, example = "osi_3kTMd9sWvXbQ7yPzL2RfNcGhJ8a4E6u1000000")]
    pub token: InvitationToken,
}

/// The new membership.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Joined {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
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
        .route(routes!(list), Policy::Org(Permission::ManageMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(issue), Policy::Org(Permission::ManageMembers), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ManageMembers), READ, AuditTrail::ReadNotAudited)
        .route(routes!(revoke), Policy::Org(Permission::ManageMembers), Shape::Change, AuditTrail::Events)
        .route(routes!(resend), Policy::Org(Permission::ManageMembers), Shape::Change, AuditTrail::Events)
        .route(routes!(accept), Policy::SignedIn, Shape::Create, AuditTrail::Events)
}

/// List invitations
///
/// The newest first, whatever became of them.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/invitations", operation_id = "list_invitations", tag = "invitations",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<InvitationView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "invitations", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = invitations::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, InvitationView::from)))
}

/// Get an invitation
#[utoipa::path(
    get, path = "/v1/organizations/{org}/invitations/{invitation}", operation_id = "get_invitation",
    tag = "invitations", responses((status = 200, description = "The invitation", body = InvitationView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<InvitationId>) -> Result<Response, Problem> {
    let found = invitations::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    let view = InvitationView::from(found);
    Ok(org.view.one(view.version, &view))
}

/// Invite a person
///
/// They get a mail with a token, which is shown nowhere else. Refused to a personal organization
/// (`personal_organization`), above your own role (`role_above_own`), and as the organization's `invite_policy` says
/// (`invites_off`, `domain_not_allowed`).
#[utoipa::path(
    post, path = "/v1/organizations/{org}/invitations", operation_id = "issue_invitation", tag = "invitations",
    request_body = IssueInvitation, responses((status = 201, description = "Invited", body = AcceptedCommand)),
)]
pub async fn issue(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<IssueInvitation>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Send an invitation again
///
/// With a new token; the one before is void. One that was accepted or revoked stays so.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/invitations/{invitation}/resend", operation_id = "resend_invitation",
    tag = "invitations", request_body = SendAgain,
    responses((status = 200, description = "Sent again", body = AcceptedCommand)),
)]
pub async fn resend(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<InvitationId>,
    Body(SendAgain { expires_in_days }): Body<SendAgain>,
) -> Result<Response, Problem> {
    writer.submit(&app, ResendInvitation { id, expires_in_days }).await.map(reply::changed)
}

/// Revoke an invitation
///
/// It can no longer be accepted.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/invitations/{invitation}", operation_id = "revoke_invitation",
    tag = "invitations", params(RevokeQuery),
    responses((status = 200, description = "Revoked", body = AcceptedCommand)),
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<InvitationId>,
    Query(RevokeQuery { reason }): Query<RevokeQuery>,
) -> Result<Response, Problem> {
    writer.submit(&app, RevokeInvitation { id, reason }).await.map(reply::changed)
}

/// Accept an invitation
///
/// You become a member of the organization that invited you. Only people can do this, no API keys, and only with the
/// e-mail address that was invited, as your issuer verified it (else `invitation_other_email`). An invitation is good
/// once (`invitation_used`), for a time (`invitation_expired`), and until it is revoked (`invitation_revoked`).
#[utoipa::path(
    post, path = "/v1/invitations/accept", operation_id = "accept_invitation", tag = "invitations",
    request_body = Accept, responses((status = 201, description = "Joined", body = Joined)),
)]
pub async fn accept(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
    Body(Accept { token }): Body<Accept>,
) -> Result<Response, Problem> {
    let key = idempotency_key(&parts)?;
    let accepted = app.gateway.accept_invitation(&principal, &info(&parts).origin(), key, token).await?;
    let (org_id, member_id) = (accepted.position.org, MemberId::derive(accepted.command_id));
    let location = format!("/v1/organizations/{org_id}/members/{member_id}");
    let joined = |command| Joined { org_id, member_id, command };
    reply::accepted(StatusCode::CREATED, Some(location), accepted, joined)
}
