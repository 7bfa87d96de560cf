//! Secrets of records, for those who may use them.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::Response,
};
use orgstream_domain::Permission;
use orgstream_events::RecordId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, Writer},
            policy::{AuditTrail, Policy, Shape},
            reply,
            routes::Routes,
        },
    },
    app::{problem::Problem, reveal::Revealed},
    secret::Secret,
};

/// Which secret, and what for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretUse {
    /// Field of the record's content that the kind declares with `x-secret`.
    #[schema(example = "api_key", max_length = 63)]
    pub field: String,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(example = "run 17 calls the provider", max_length = 500)]
    pub reason: String,
}

/// The value of a secret.
#[derive(Serialize, ToSchema)]
pub struct SecretValue {
    /// Value of the secret. It is shown in this answer and nowhere else.
    #[schema(value_type = String, example = "sk-not-a-real-key")]
    pub value: Secret,
    /// Number of the value in its field, counted from 1.
    #[schema(example = 1)]
    pub version: u64,
    /// Fingerprint of the value, as reads of the record show it: 8 hexadecimal digits.
    #[schema(example = "1a2b3c4d")]
    pub fingerprint: String,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(
        routes!(reveal),
        Policy::Org(Permission::UseSecrets),
        Shape::Plain,
        AuditTrail::AccessEvent("access.secret_used"),
    )
}

/// Use a secret of a record
///
/// Answers with its value, as the log has it at this moment, also of an archived record. The audit log has who used it and the
/// reason before the answer is sent. It counts as a command of the organization, and against the uses of an hour.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/records/{record}/secret-uses", operation_id = "use_record_secret", tag = "records",
    request_body = SecretUse, responses((status = 200, description = "The value", body = SecretValue)),
)]
pub async fn reveal(
    State(app): State<Arc<App>>,
    Writer { access, origin, .. }: Writer,
    Item(record): Item<RecordId>,
    Body(SecretUse { field, reason }): Body<SecretUse>,
) -> Result<Response, Problem> {
    let Revealed { secret, value } = Box::pin(app.gateway.reveal(&access, &origin, (record, &field), &reason)).await?;
    let view = SecretValue { value, version: secret.version, fingerprint: secret.fingerprint };
    let mut response = reply::json(StatusCode::OK, axum::body::Body::from(reply::json_bytes(&view)?));
    response.headers_mut().insert(header::CACHE_CONTROL, reply::NEVER_KEPT);
    Ok(response)
}
