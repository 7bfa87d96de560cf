//! Connections of an organization to issuers of its own.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use orgstream_domain::{AddSsoConnection, Permission, RemoveSsoConnection, SetDefaultSsoConnection};
use orgstream_events::{ConnectionId, Timestamp};
use orgstream_projections::sso_connections::{self, SsoConnection};
use serde::Serialize;
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

/// An issuer that people sign in to this organization with.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SsoConnectionView {
    /// SSO connection id (`conn_` and 26 characters).
    #[schema(value_type = String, example = "conn_01h455vb4pex5vsknk084sn02q")]
    pub id: ConnectionId,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Okta")]
    pub name: String,
    /// Issuer of the tokens (`iss`).
    #[schema(example = "https://acme.okta.example")]
    pub issuer: String,
    /// Audience of the tokens (`aud`).
    #[schema(example = "orgstream-acme")]
    pub audience: String,
    /// True if a person becomes a member by signing in with the connection, while `jit_provisioning` is `restricted`.
    pub jit: bool,
    /// True for the connection that people are sent to by default.
    pub is_default: bool,
    /// True until the connection is removed.
    pub active: bool,
    /// Version of the organization's connections at the last change of this one.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of creation, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<SsoConnection> for SsoConnectionView {
    fn from(connection: SsoConnection) -> Self {
        let SsoConnection {
            id,
            name,
            issuer,
            audience,
            jit,
            is_default,
            active,
            version,
            created_at,
            updated_at,
            seq: _,
        } = connection;
        Self { id, name, issuer, audience, jit, is_default, active, version, created_at, updated_at }
    }
}

/// What became of a command about a connection.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AcceptedConnection {
    /// SSO connection id (`conn_` and 26 characters).
    #[schema(value_type = String, example = "conn_01h455vb4pex5vsknk084sn02q")]
    pub connection_id: ConnectionId,
    /// What became of the command.
    #[serde(flatten)]
    pub command: AcceptedCommand,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ManageSso), READ, AuditTrail::ReadNotAudited)
        .route(routes!(add), Policy::Org(Permission::ManageSso), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ManageSso), READ, AuditTrail::ReadNotAudited)
        .route(routes!(remove), Policy::Org(Permission::ManageSso), Shape::Change, AuditTrail::Events)
        .route(routes!(set_default), Policy::Org(Permission::ManageSso), Shape::Change, AuditTrail::Events)
}

/// List connections
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/sso-connections", operation_id = "list_sso_connections", tag = "sso",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<SsoConnectionView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "sso_connections", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = sso_connections::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, SsoConnectionView::from)))
}

/// Get a connection
#[utoipa::path(
    get, path = "/v1/organizations/{org}/sso-connections/{connection}", operation_id = "get_sso_connection", tag = "sso",
    responses((status = 200, description = "The connection", body = SsoConnectionView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<ConnectionId>) -> Result<Response, Problem> {
    let found = sso_connections::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    // All connections are one aggregate, because one of them is the default, so they share a version.
    let version = sso_connections::version(&mut org.view.tx).await?;
    Ok(org.view.one(version, &SsoConnectionView::from(found)))
}

/// Add a connection
///
/// Tokens of this issuer are accepted in this organization and nowhere else. With `jit`, a person who signs in by it becomes a
/// member, while the organization's `jit_provisioning` is `restricted`.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/sso-connections", operation_id = "add_sso_connection", tag = "sso",
    request_body = AddSsoConnection, responses((status = 201, description = "Added", body = AcceptedConnection)),
)]
pub async fn add(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<AddSsoConnection>,
) -> Result<Response, Problem> {
    let accepted = writer.submit(&app, command).await?;
    let connection_id = ConnectionId::derive(accepted.command_id);
    let location = format!("/v1/organizations/{}/sso-connections/{connection_id}", accepted.position.org);
    let added = |command| AcceptedConnection { connection_id, command };
    reply::accepted(StatusCode::CREATED, Some(location), accepted, added)
}

/// Make a connection the default
#[utoipa::path(
    put, path = "/v1/organizations/{org}/sso-connections/{connection}/default",
    operation_id = "set_default_sso_connection", tag = "sso",
    responses((status = 200, description = "The default now", body = AcceptedCommand)),
)]
pub async fn set_default(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<ConnectionId>,
) -> Result<Response, Problem> {
    writer.submit(&app, SetDefaultSsoConnection { id }).await.map(reply::changed)
}

/// Remove a connection
///
/// Its tokens are refused within a second. Members who came by it stay.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/sso-connections/{connection}", operation_id = "remove_sso_connection",
    tag = "sso", responses((status = 200, description = "Removed", body = AcceptedCommand)),
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<ConnectionId>,
) -> Result<Response, Problem> {
    writer.submit(&app, RemoveSsoConnection { id }).await.map(reply::changed)
}
