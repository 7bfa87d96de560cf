//! Sign-in and identity.

pub mod leaked_keys;
pub mod me;
pub mod sessions;

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::App;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(me::who_am_i))
        .routes(routes!(me::list_memberships))
        .routes(routes!(sessions::list, sessions::start))
        .routes(routes!(sessions::revoke))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::switch))
        .routes(routes!(leaked_keys::report))
}
