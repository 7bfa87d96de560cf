//! The audit log: pages, exports, proofs, tails.

pub mod export;
pub mod feed;
pub mod log;
pub mod proofs;
pub mod state;
pub mod tail;
pub mod webhook;

use super::kit::routes::Routes;

pub(super) fn routes() -> Routes {
    Routes::new()
        .merge(log::routes())
        .merge(tail::routes())
        .merge(export::routes())
        .merge(webhook::routes())
        .merge(state::routes())
        .merge(proofs::routes())
}
