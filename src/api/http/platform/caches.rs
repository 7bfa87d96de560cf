//! The caches of this process that have tenants' data: for operators who verify that they are separated by org.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{App, kit::extract::SignedIn},
    tenant_cache::CacheView,
};

/// The caches of the process that answers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CachesView {
    /// Caches of this process.
    pub data: Vec<CacheView>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(list), Policy::Operator, Shape::Plain, AuditTrail::NotTenantScoped)
}

/// List caches
///
/// What the process that answers remembers at the moment: numbers by organization, and nothing of what it is. No entry is
/// found without its organization. For operators.
#[utoipa::path(
    get, path = "/v1/platform/caches", operation_id = "list_caches", tag = "health",
    responses((status = 200, description = "Every cache of tenants' things", body = CachesView)),
)]
pub async fn list(State(app): State<Arc<App>>, _: SignedIn) -> Json<CachesView> {
    let mut data = app.auth.caches();
    data.extend(app.gateway.handler().caches());
    data.extend(app.gateway.quotas().caches());
    Json(CachesView { data })
}
