//! The operators' routes.

pub mod break_glass;
pub mod caches;
pub mod catalog;
pub mod health;
pub mod kinds;
pub mod lag;
pub mod parking;
pub mod payment_reports;
pub mod plans;
pub mod tenants;

use super::kit::routes::Routes;

pub(super) fn routes() -> Routes {
    Routes::new()
        .merge(health::routes())
        .merge(tenants::routes())
        .merge(break_glass::routes())
        .merge(caches::routes())
        .merge(kinds::routes())
        .merge(plans::routes())
        .merge(catalog::routes())
        .merge(parking::routes())
        .merge(payment_reports::routes())
        .merge(lag::routes())
}
