//! API keys: shown once when they are issued, and never again.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::{IssueApiKey, Permission, RevokeApiKey, RotateApiKey, openapi};
use orgstream_events::{KeyEnvironment, KeyId, KeyPublicId, Role, Timestamp};
use orgstream_projections::api_keys::{self, ApiKey, PreviousToken};
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
    app::event_view::ActorView,
    app::{problem::Problem, submit::AcceptedCommand},
};

/// An API key, without its secret.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiKeyView {
    /// API key id, not its token (`key_` and 26 characters).
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    pub id: KeyId,
    /// Display name, 1 to 120 characters.
    #[schema(example = "ci")]
    pub name: String,
    /// Public part of the token, which names the key.
    #[schema(value_type = String, example = "GBxCK2BwmHM4")]
    pub public_id: KeyPublicId,
    /// Last four characters of the token.
    #[schema(example = "5rKc")]
    pub last4: String,
    /// Role of the key: a built-in name or the id of a custom role.
    #[schema(schema_with = openapi::role)]
    pub role: Role,
    /// Purpose of the key: `live` or `test`.
    #[schema(schema_with = openapi::key_environment)]
    pub environment: KeyEnvironment,
    /// Time of expiry, RFC 3339 in UTC; null for none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Names of permissions that bound the role; null for all of the role.
    pub scopes: Option<Vec<String>>,
    /// Networks (CIDR) that the key works from; empty for any.
    pub allowed_ips: Vec<String>,
    /// Token before the last rotation; null without one.
    pub previous: Option<PreviousTokenView>,
    /// Time of revocation, RFC 3339 in UTC; null while it works.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
    /// Time of the last use, to the minute and some seconds late; null before the first.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    /// Address of the last use.
    #[schema(example = "192.0.2.7")]
    pub last_used_ip: Option<String>,
    /// User agent of the last use.
    #[schema(example = "curl/8.5")]
    pub last_used_user_agent: Option<String>,
    /// Actor who issued the key.
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

/// A token that was replaced.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PreviousTokenView {
    /// Public part of that token, which named the key.
    #[schema(value_type = String, example = "GBxCK2BwmHM4")]
    pub public_id: KeyPublicId,
    /// Time at which it stops working, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub ends_at: Timestamp,
}

impl From<PreviousToken> for PreviousTokenView {
    fn from(previous: PreviousToken) -> Self {
        Self { public_id: previous.public_id, ends_at: previous.ends_at }
    }
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
            scopes,
            allowed_ips,
            previous,
            revoked_at,
            last_use,
            created_by,
            version,
            created_at,
            updated_at,
            seq: _,
        } = key;
        let created_by = created_by.into();
        let (last_used_at, last_used_ip, last_used_user_agent) =
            last_use.map_or((None, None, None), |used| (Some(used.last_used_at), used.ip, used.user_agent));
        Self {
            id,
            name,
            public_id,
            last4,
            role,
            environment,
            expires_at,
            scopes,
            allowed_ips,
            previous: previous.map(Into::into),
            revoked_at,
            last_used_at,
            last_used_ip,
            last_used_user_agent,
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

/// Which keys.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct KeyQuery {
    /// Only those that were not used at this moment or later.
    #[param(value_type = Option<String>, format = DateTime)]
    pub unused_since: Option<Timestamp>,
}

/// What a rotation says.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rotation {
    /// Seconds for which the token before still works, 0 (the default) to 604,800.
    #[schema(maximum = 604_800, example = 3600)]
    pub overlap_seconds: u32,
    /// New time of expiry, RFC 3339; excludes `expires_in_days`. Without both, it stays as it is.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Days until it expires, 1 to 3,650; excludes `expires_at`.
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadKeys), READ, AuditTrail::ReadNotAudited)
        .route(routes!(issue), Policy::Org(Permission::ManageKeys), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadKeys), READ, AuditTrail::ReadNotAudited)
        .route(routes!(revoke), Policy::Org(Permission::ManageKeys), Shape::Change, AuditTrail::Events)
        .route(routes!(rotate), Policy::Org(Permission::ManageKeys), Shape::Change, AuditTrail::Events)
}

/// List API keys
///
/// The newest first, revoked ones included.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/api-keys", operation_id = "list_api_keys", tag = "api keys",
    params(KeyQuery, PageQuery), responses((status = 200, description = "One page", body = Page<ApiKeyView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(query): Query<KeyQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "api_keys", &query);
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = api_keys::list(&mut org.view.tx, query.unused_since, &part, page.limit()?).await?;
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

/// Rotate an API key
///
/// The key gets another secret; the answer's `token` is it, shown here and nowhere else. The token before goes on for
/// `overlap_seconds`, so that nothing has to change at one moment. A caller gets no key that may do more than they may.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/api-keys/{key}/rotate", operation_id = "rotate_api_key", tag = "api keys",
    request_body = Rotation, responses((status = 200, description = "Rotated", body = AcceptedCommand)),
)]
pub async fn rotate(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<KeyId>,
    Body(rotation): Body<Rotation>,
) -> Result<Response, Problem> {
    let Rotation { overlap_seconds, expires_at, expires_in_days } = rotation;
    let command = RotateApiKey { id, overlap_seconds, expires_at, expires_in_days };
    writer.submit(&app, command).await.map(reply::changed)
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
