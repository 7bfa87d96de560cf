//! NATS credentials, derived from the caller's API key.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header, request::Parts},
    response::Response,
};
use orgstream_events::{AccessEvent, KeyPublicId, NatsCredentialsIssued, OrgId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{SignedIn, info},
            reply,
        },
    },
    app::problem::Problem,
    auth::{AuthError, Principal, authenticator::OrgName},
};

/// Credentials for NATS.
#[derive(Serialize, ToSchema)]
pub struct NatsCredentialsView {
    /// Content of a `.creds` file for NATS clients. It is shown in this answer and nowhere else.
    #[schema(example = "-----BEGIN NATS USER JWT-----\n…")]
    pub credentials: String,
    /// Organization that takes the commands, on `cmd.<org>`.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Public part of the API key's token.
    #[schema(value_type = String, example = "GBxCK2BwmHM4")]
    pub public_id: KeyPublicId,
    /// Prefix of the inboxes that answers can be read on: the custom inbox prefix of a NATS client.
    #[schema(example = "_INBOX_GBxCK2BwmHM4")]
    pub inbox_prefix: String,
    /// Time of expiry, that of the key; null for none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(
        routes!(make),
        Policy::SignedIn,
        Shape::Plain,
        AuditTrail::AccessEvent("access.nats_credentials_issued"),
    )
}

/// Make credentials for NATS
///
/// For a caller with an API key: a NATS user that may send commands to the key's organization, with what the key may do,
/// and read the answers. Requests then need no key in their headers. Revoking or rotating the key ends what they may. It counts
/// as a command of the organization, whose audit log names the key and the credentials' end.
#[utoipa::path(
    post, path = "/v1/nats-credentials", operation_id = "make_nats_credentials", tag = "api keys",
    responses((status = 201, description = "Made", body = NatsCredentialsView)),
)]
pub async fn make(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
) -> Result<Response, Problem> {
    let Principal::Key { id: key_id, public_id, org: org_id, .. } = principal.clone() else {
        return Err(AuthError::KeyOnly.into());
    };
    let unable = || {
        let detail = "this server makes no credentials for NATS: send commands by HTTP";
        Problem::new(404, "nats_credentials_unavailable", "Not here", detail)
    };
    let producers = app.producers.as_ref().ok_or_else(unable)?;
    let access = app.auth.access(&principal, &OrgName::Id(org_id)).await?;
    let admitted = access.rules().map(|rules| app.gateway.admission().admit(org_id, rules, 1));
    if let Some(refusal) = admitted.and_then(|admitted| admitted.refusal) {
        return Err(refusal.into());
    }
    let (slug, expires_at) = app.auth.keys().binding(&public_id).await?;
    let made = producers.issue(&public_id, org_id, slug.as_ref(), expires_at);
    let credentials = made.map_err(Problem::internal)?;
    let issued = NatsCredentialsIssued { key_id, public_id: public_id.clone(), expires_at };
    let (origin, fact) = (info(&parts).origin(), AccessEvent::NatsCredentialsIssued(issued));
    app.gateway.access_log().write_down(access.bound(), access.actor(), &origin, fact).await?;
    let inbox_prefix = format!("_INBOX_{public_id}");
    let view = NatsCredentialsView { credentials, org_id, public_id, inbox_prefix, expires_at };
    let mut response = reply::json(StatusCode::CREATED, Body::from(reply::json_bytes(&view)?));
    response.headers_mut().insert(header::CACHE_CONTROL, reply::NEVER_KEPT);
    Ok(response)
}
