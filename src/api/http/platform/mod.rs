//! The operators' routes.

pub mod break_glass;
pub mod caches;
pub mod health;
pub mod kinds;
pub mod lag;
pub mod parking;
pub mod tenants;

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::App;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(tenants::create))
        .routes(routes!(tenants::create_without_slash))
        .routes(routes!(break_glass::open, break_glass::close))
        .routes(routes!(break_glass::approve))
        .routes(routes!(caches::list))
        .routes(routes!(kinds::list, kinds::register))
        .routes(routes!(kinds::show, kinds::change, kinds::retire))
        .routes(routes!(kinds::restore))
        .routes(routes!(parking::list))
        .routes(routes!(parking::retry))
        .routes(routes!(parking::skip))
        .routes(routes!(lag::worst))
}
