//! An organization and its resources.

pub mod account;
pub mod api_keys;
pub mod catalog;
pub mod commands;
pub mod deletions;
pub mod domains;
pub mod events;
pub mod invitations;
mod invoice_pdf;
pub mod invoices;
pub mod kinds;
pub mod limits;
pub mod members;
pub mod nats_credentials;
pub mod organizations;
pub mod projections;
pub mod record_listing;
pub mod record_references;
pub mod record_secrets;
pub mod records;
pub mod roles;
pub mod search;
pub mod sso_connections;
pub mod tail;
pub mod usage;
pub mod usage_series;
pub mod views;

use super::kit::routes::Routes;

pub(super) fn routes() -> Routes {
    Routes::new()
        .merge(organizations::routes())
        .merge(deletions::routes())
        .merge(usage::routes())
        .merge(usage_series::routes())
        .merge(limits::routes())
        .merge(account::routes())
        .merge(invoices::routes())
        .merge(commands::routes())
        .merge(members::routes())
        .merge(invitations::routes())
        .merge(roles::routes())
        .merge(domains::routes())
        .merge(sso_connections::routes())
        .merge(api_keys::routes())
        .merge(nats_credentials::routes())
        .merge(kinds::routes())
        .merge(records::routes())
        .merge(record_references::routes())
        .merge(search::routes())
        .merge(record_secrets::routes())
        .merge(views::routes())
        .merge(catalog::routes())
        .merge(events::routes())
        .merge(tail::routes())
        .merge(projections::routes())
}
