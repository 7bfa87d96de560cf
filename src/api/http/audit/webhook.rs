//! The webhook of an organization's audit log, and its progress.

use std::sync::Arc;

use axum::{Json, extract::State};
use orgstream_domain::Permission;
use orgstream_events::Timestamp;
use orgstream_projections::{audit, organizations};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{App, kit::extract::OrgAccess},
    app::problem::Problem,
};

/// How far the audit log has been sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookView {
    /// Address that the log is posted to; null while the setting `audit_webhook` is off.
    #[schema(example = "https://siem.acme.example/orgstream")]
    pub url: Option<String>,
    /// Public key of the posts: `webhook-signature` is an Ed25519 signature, `v1a` of Standard Webhooks.
    pub public_key: String,
    /// Index in the audit log of the first event that is not confirmed.
    #[schema(example = 256)]
    pub next_idx: u64,
    /// Number of events in the log that are not confirmed.
    #[schema(example = 0)]
    pub behind: u64,
    /// Number of failed attempts since the last success.
    #[schema(example = 0)]
    pub failures: u32,
    /// Outcome of the last failed attempt; null without one.
    pub error: Option<String>,
    /// Time of the last confirmation, RFC 3339 in UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub delivered_at: Option<Timestamp>,
    /// Time of the next attempt after a failure, RFC 3339 in UTC.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub try_at: Option<Timestamp>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAudit), Shape::Plain, AuditTrail::ReadNotAudited)
}

/// Show the audit webhook
///
/// The setting `audit_webhook` says where to (`PATCH …/settings`). Every event is posted there in order, from the first on,
/// until it is answered with 2xx; a post has `from_idx` and `next_idx`, and the next one begins where it ended, so a collector that
/// receives can prove that nothing is missing. What was not seen to be confirmed comes again, and may have grown: know events by
/// their `idx`.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/webhook", operation_id = "show_audit_webhook", tag = "audit",
    responses((status = 200, description = "How far it is", body = WebhookView)),
)]
pub async fn show(State(app): State<Arc<App>>, org: OrgAccess) -> Result<Json<WebhookView>, Problem> {
    let mut tx = app.db.read(org.access.bound()).await?;
    let url = organizations::get(&mut tx).await?.and_then(|found| found.settings.audit_webhook);
    let state = audit::webhook(&mut tx).await?.filter(|state| Some(&state.url) == url.as_ref());
    let next_idx = state.as_ref().map_or(0, |state| state.next_idx);
    let behind = if url.is_some() { audit::size(&mut tx).await?.saturating_sub(next_idx) } else { 0 };
    let failures = state.as_ref().map_or(0, |state| state.failures);
    Ok(Json(WebhookView {
        public_key: app.webhook_keys.public(org.access.org()),
        url,
        next_idx,
        behind,
        failures,
        delivered_at: state.as_ref().and_then(|state| state.delivered_at),
        try_at: state.as_ref().filter(|_| failures > 0).map(|state| state.try_at),
        error: state.and_then(|state| state.error),
    }))
}
