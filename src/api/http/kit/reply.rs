//! Answers: JSON, results of commands, and problems.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use orgstream_events::{AggregateId, OrgId, Position};
use serde::Serialize;

use super::conditional::version_tag;
use crate::{
    app::{problem::Problem, submit::AcceptedCommand},
    commands::request::Accepted,
};

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Marks an answer that was given before, under the same idempotency key.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Its only value.
pub const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Answers are private, and valid at the moment.
pub const OWN: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Answers that are the same for everybody, which any cache may keep for a minute.
pub const FOR_A_MINUTE: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// Answers for everybody that never change, which a cache keeps for a day: what is withdrawn is gone by then.
pub const FOR_A_DAY: HeaderValue = HeaderValue::from_static("public, max-age=86400, immutable");

/// Answers with a secret in them.
pub const NEVER_KEPT: HeaderValue = HeaderValue::from_static("no-store");

/// Returns the bytes of an answer.
pub fn json_bytes(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(Problem::internal)
}

/// Returns an answer of JSON bytes.
pub fn json(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// Returns a position as a header.
pub fn position(name: &'static str, position: Position) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::from_str(&position.to_string());
    (HeaderName::from_static(name), value.unwrap_or(HeaderValue::from_static("")))
}

/// Returns the answer to a command that created something.
pub fn created(accepted: Accepted) -> Response {
    let location = location(accepted.position.org, &accepted.aggregate);
    self::accepted(StatusCode::CREATED, location, accepted, |command| command)
        .unwrap_or_else(IntoResponse::into_response)
}

/// Returns the answer to a command that changed something.
pub fn changed(accepted: Accepted) -> Response {
    self::accepted(StatusCode::OK, None, accepted, |command| command).unwrap_or_else(IntoResponse::into_response)
}

/// Returns the answer to an accepted command; `show` may add to it.
pub fn accepted<T: Serialize>(
    status: StatusCode,
    location: Option<String>,
    accepted: Accepted,
    show: impl FnOnce(AcceptedCommand) -> T,
) -> Result<Response, Problem> {
    let (at, tag, replayed) = (accepted.position, version_tag(accepted.version), accepted.replayed);
    let body = json_bytes(&show(accepted.into()))?;
    let mut response = json(status, Body::from(body));
    let headers = response.headers_mut();
    let (name, value) = position("stream-position", at);
    headers.insert(name, value);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    if replayed {
        headers.insert(REPLAYED, TRUE);
    }
    if let Some(location) = location.and_then(|path| HeaderValue::from_str(&path).ok()) {
        headers.insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Returns the path of a resource. Members, roles and parked events are parts of one aggregate, which has no path; the
/// handler that adds a member knows the member's own.
fn location(org: OrgId, aggregate: &AggregateId) -> Option<String> {
    match aggregate {
        AggregateId::Organization(id) => Some(format!("/v1/organizations/{id}")),
        AggregateId::ApiKey(id) => Some(format!("/v1/organizations/{org}/api-keys/{id}")),
        AggregateId::Record(id) => Some(format!("/v1/organizations/{org}/records/{id}")),
        AggregateId::Kind(name) if name.is_own() => Some(format!("/v1/organizations/{org}/kinds/{name}")),
        AggregateId::Kind(name) => Some(format!("/v1/kinds/{name}")),
        AggregateId::Invitation(id) => Some(format!("/v1/organizations/{org}/invitations/{id}")),
        AggregateId::Domain(id) => Some(format!("/v1/organizations/{org}/domains/{id}")),
        AggregateId::Account(_) => Some(format!("/v1/organizations/{org}/account")),
        AggregateId::Invoice(_) => Some(format!("/v1/organizations/{org}/invoices")),
        AggregateId::Deletion(id) => Some(format!("/v1/deletions/{id}")),
        AggregateId::Plan(_)
        | AggregateId::Member(_)
        | AggregateId::CatalogItem(_)
        | AggregateId::CatalogChoice(_)
        | AggregateId::Role(_)
        | AggregateId::SsoConnection(_)
        | AggregateId::RecordLog(_)
        | AggregateId::UniqueValue(_)
        | AggregateId::Quota(_)
        | AggregateId::Parking(_)
        | AggregateId::Access(_) => None,
    }
}

impl IntoResponse for Problem {
    /// The middleware writes the body, because only there the request is known.
    fn into_response(self) -> Response {
        let mut response =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}
