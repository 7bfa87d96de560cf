//! API keys: shown once when they are issued, and never again.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_events::{KeyEnvironment, KeyId, KeyPublicId, Role, Timestamp};
use orgstream_projections::api_keys::{self, ApiKey};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    event_view::ActorView,
    extract::{Body, Item, Query, Writer},
    page::{Page, PageQuery},
    reply,
    wait::{OrgView, ReadModels},
};
use crate::{
    commands::{IssueApiKey, RevokeApiKey, openapi},
    gateway::AcceptedCommand,
    problem::Problem,
};

/// An API key, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiKeyView {
    /// Which.
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub id: KeyId,
    /// What people call it.
    #[schema(example = "ci")]
    pub name: String,
    /// The part of the token that names it.
    #[schema(value_type = String, example = "GBxCK2BwmHM4")]
    pub public_id: KeyPublicId,
    /// The last four characters of the token.
    #[schema(example = "5rKc")]
    pub last4: String,
    /// What its bearer may do.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// What it is meant for.
    #[schema(schema_with = openapi::key_environment)]
    pub environment: KeyEnvironment,
    /// When it ends by itself, if it does.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, if it was.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
    /// Who issued it.
    pub created_by: ActorView,
    /// The version that `If-Match` takes.
    #[schema(example = 1)]
    pub version: u64,
    /// When it was issued.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<ApiKey> for ApiKeyView {
    fn from(key: ApiKey) -> Self {
        let ApiKey {
            id,
            name,
            public_id,
            secret_mac: _,
            last4,
            role,
            environment,
            expires_at,
            revoked_at,
            created_by,
            version,
            created_at,
            updated_at,
            seq: _,
        } = key;
        let created_by = created_by.into();
        Self {
            id,
            name,
            public_id,
            last4,
            role,
            environment,
            expires_at,
            revoked_at,
            created_by,
            version,
            created_at,
            updated_at,
        }
    }
}

/// Why a key is revoked.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RevokeQuery {
    /// Why, at most 500 characters; it stays in the audit log.
    pub reason: Option<String>,
}

/// List API keys
///
/// The newest first, revoked ones included.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/api-keys", operation_id = "list_api_keys", tag = "api keys",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<ApiKeyView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "api_keys", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = api_keys::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, ApiKeyView::from)))
}

/// Get an API key
#[utoipa::path(
    get, path = "/v1/organizations/{org}/api-keys/{key}", operation_id = "get_api_key", tag = "api keys",
    responses((status = 200, description = "The key, without its secret", body = ApiKeyView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<KeyId>) -> Result<Response, Problem> {
    let found = api_keys::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    let view = ApiKeyView::from(found);
    Ok(org.view.one(view.version, &view))
}

/// Issue an API key
///
/// The answer's `token` is the key. It is shown here and nowhere else.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/api-keys", operation_id = "issue_api_key", tag = "api keys",
    request_body = IssueApiKey, responses((status = 201, description = "Issued", body = AcceptedCommand)),
)]
pub async fn issue(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<IssueApiKey>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Revoke an API key
///
/// It stops working within a second. Its row stays for the auditor.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/api-keys/{key}", operation_id = "revoke_api_key", tag = "api keys",
    params(RevokeQuery), responses((status = 200, description = "Revoked", body = AcceptedCommand)),
)]
pub async fn revoke(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<KeyId>,
    Query(RevokeQuery { reason }): Query<RevokeQuery>,
) -> Result<Response, Problem> {
    writer.submit(&app, RevokeApiKey { id, reason }).await.map(reply::changed)
}
