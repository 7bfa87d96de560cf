//! An organization and its resources.

pub mod api_keys;
pub mod commands;
pub mod domains;
pub mod events;
pub mod invitations;
pub mod members;
pub mod nats_credentials;
pub mod organizations;
pub mod projections;
pub mod records;
pub mod roles;
pub mod sso_connections;
pub mod tail;
pub mod usage;

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::App;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(organizations::create))
        .routes(routes!(organizations::show, organizations::rename))
        .routes(routes!(organizations::change_settings))
        .routes(routes!(organizations::upgrade))
        .routes(routes!(organizations::suspend))
        .routes(routes!(organizations::change_plan))
        .routes(routes!(organizations::resume))
        .routes(routes!(usage::change_limits))
        .routes(routes!(usage::show))
        .routes(routes!(commands::submit))
        .routes(routes!(members::list, members::add))
        .routes(routes!(members::show, members::change_role, members::remove))
        .routes(routes!(invitations::list, invitations::issue))
        .routes(routes!(invitations::show, invitations::revoke))
        .routes(routes!(invitations::resend))
        .routes(routes!(invitations::accept))
        .routes(routes!(roles::list, roles::define))
        .routes(routes!(roles::show, roles::change, roles::remove))
        .routes(routes!(domains::list, domains::claim))
        .routes(routes!(domains::show, domains::remove))
        .routes(routes!(domains::prove))
        .routes(routes!(sso_connections::list, sso_connections::add))
        .routes(routes!(sso_connections::show, sso_connections::remove))
        .routes(routes!(sso_connections::set_default))
        .routes(routes!(api_keys::list, api_keys::issue))
        .routes(routes!(api_keys::show, api_keys::revoke))
        .routes(routes!(api_keys::rotate))
        .routes(routes!(nats_credentials::make))
        .routes(routes!(records::list, records::create))
        .routes(routes!(records::show, records::update, records::archive))
        .routes(routes!(events::replay))
        .routes(routes!(tail::follow))
        .routes(routes!(projections::list))
}
