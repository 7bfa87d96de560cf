//! The audit log: pages, exports, proofs, tails.

pub mod export;
pub mod feed;
pub mod log;
pub mod proofs;
pub mod state;
pub mod tail;
pub mod webhook;

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::App;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(log::list))
        .routes(routes!(log::show))
        .routes(routes!(tail::follow))
        .routes(routes!(export::export))
        .routes(routes!(webhook::show))
        .routes(routes!(state::show))
        .routes(routes!(proofs::event_proof))
        .routes(routes!(proofs::checkpoint))
        .routes(routes!(proofs::checkpoints))
        .routes(routes!(proofs::policy))
        .routes(routes!(proofs::handovers))
        .routes(routes!(proofs::tile))
        .routes(routes!(proofs::consistency))
}
