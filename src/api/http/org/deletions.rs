//! Deletions of organizations: requested in the organization, and read and cancelled beside it, because nobody acts in it any more.

use std::sync::Arc;

use axum::{
    body::Body as HttpBody,
    extract::State,
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use orgstream_domain::{CancelDeletion, Command, Permission, RequestDeletion};
use orgstream_events::{InvoiceNumber, OrgId, Timestamp, UserId};
use orgstream_projections::deletions::{Deletion, DeletionFacts, DeletionStep};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            conditional,
            extract::{Body, Item, SignedIn, Writer, idempotency_key, info},
            policy::{AuditTrail, Policy, Shape},
            reply,
            routes::Routes,
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
    auth::{Access, Principal},
    commands::request::Request,
};

/// A deletion.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeletionView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Step: `requested`, `billing`, `sealing`, `shredding`, `erasing`, `releasing`, `signing`, `done` or `cancelled`.
    #[schema(example = "requested")]
    pub step: String,
    /// Condition that the step waits for, in words; null for none.
    #[schema(example = "the end of the grace period")]
    pub waits_for: Option<String>,
    /// Time of the request, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
    /// Time until which nothing is done, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub grace_until: Timestamp,
    /// True while an owner, or an operator, can cancel it.
    pub cancellable: bool,
    /// Number of the last invoice; null without one, and before the step `sealing`.
    #[schema(value_type = Option<u32>, example = 7)]
    pub invoice: Option<InvoiceNumber>,
    /// Time of the organization's last event, RFC 3339 in UTC; null before that.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub sealed_at: Option<Timestamp>,
    /// Number of secrets whose keys were destroyed.
    #[schema(example = 3)]
    pub secrets_destroyed: u64,
    /// Rows of each table; empty before the step `erasing`.
    pub tables: Vec<TableErased>,
    /// Time at which the bytes of the events were removed from the stream, RFC 3339 in UTC; null before that.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub stream_bytes_removed_at: Option<Timestamp>,
}

/// The rows of a table of the organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TableErased {
    /// Name of the table.
    #[schema(example = "rm.records")]
    pub table: String,
    /// Number of rows before the erasure.
    #[schema(example = 120)]
    pub before: u64,
    /// Number of rows that were erased.
    #[schema(example = 120)]
    pub erased: u64,
}

/// Deletions.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeletionsView {
    /// Deletions: those under way first, then the latest; at most 1,000.
    pub data: Vec<DeletionView>,
}

impl From<Deletion> for DeletionView {
    fn from(deletion: Deletion) -> Self {
        let DeletionFacts { invoice, sealed_at, secrets_destroyed, rows, .. } = deletion.facts;
        let tables = rows.into_iter().filter(|(_, rows)| rows.before > 0 || rows.erased > 0);
        Self {
            org_id: deletion.org,
            step: deletion.step.name(),
            waits_for: deletion.waits_for,
            requested_at: deletion.requested_at,
            grace_until: deletion.grace_until,
            cancellable: deletion.step < DeletionStep::Sealing,
            invoice,
            sealed_at,
            secrets_destroyed,
            tables: tables
                .map(|(table, rows)| TableErased { table, before: rows.before, erased: rows.erased })
                .collect(),
            stream_bytes_removed_at: deletion.bytes_removed_at,
        }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(request), Policy::Org(Permission::DeleteOrganization), Shape::Change, AuditTrail::Events)
        .route(routes!(list), Policy::Operator, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(show), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(receipt), Policy::SignedIn, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(cancel), Policy::SignedIn, Shape::Change, AuditTrail::Events)
}

/// Delete an organization
///
/// For owners, with a session of the last ten minutes, and with the slug typed once more. From the answer on nobody acts in the
/// organization: within a second every API key, session, invitation and stream of it is refused, by HTTP and by NATS. When the grace
/// period is over, everything that the organization has is erased, for good; people stay, without their memberships.
/// `Location` leads to the deletion, where an owner can cancel it. API keys stay ended even then.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}", operation_id = "delete_organization", tag = "organizations",
    request_body = RequestDeletion, responses((status = 202, description = "Requested", body = AcceptedCommand)),
)]
pub async fn request(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<RequestDeletion>,
) -> Result<Response, Problem> {
    let accepted = writer.submit(&app, command).await?;
    let location = format!("/v1/deletions/{}", writer.access.org());
    reply::accepted(StatusCode::ACCEPTED, Some(location), accepted, |command| command)
}

/// List deletions
///
/// For operators.
#[utoipa::path(
    get, path = "/v1/deletions", operation_id = "list_deletions", tag = "organizations",
    responses((status = 200, description = "Deletions", body = DeletionsView)),
)]
pub async fn list(State(app): State<Arc<App>>, _: SignedIn) -> Result<Response, Problem> {
    let data = app.db.deletions().await?.into_iter().map(DeletionView::from).collect();
    Ok(reply::json(StatusCode::OK, HttpBody::from(reply::json_bytes(&DeletionsView { data })?)))
}

/// Get a deletion
///
/// By the id of its organization. For the organization's owners, for who requested it also when there are none any more, and for
/// operators.
#[utoipa::path(
    get, path = "/v1/deletions/{deletion}", operation_id = "get_deletion", tag = "organizations",
    responses((status = 200, description = "The deletion", body = DeletionView)),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    Item(org): Item<OrgId>,
) -> Result<Response, Problem> {
    let view = find(&app, &principal, org).await?;
    Ok(reply::json(StatusCode::OK, HttpBody::from(reply::json_bytes(&view)?)))
}

/// Get the receipt of a deletion
///
/// A signed note, once the deletion is done: what was erased, and when. `orgstream-verify receipt` verifies it with the public key of
/// the audit logs.
#[utoipa::path(
    get, path = "/v1/deletions/{deletion}/receipt", operation_id = "get_deletion_receipt", tag = "organizations",
    responses((status = 200, description = "The receipt", body = String, content_type = "text/plain")),
)]
pub async fn receipt(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    Item(org): Item<OrgId>,
) -> Result<Response, Problem> {
    find(&app, &principal, org).await?;
    let note = app.gateway.handler().receipt(org).await?.ok_or_else(Problem::not_found)?;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, text), (header::CACHE_CONTROL, reply::OWN)], note).into_response())
}

/// Cancel a deletion
///
/// By the id of its organization, until it is sealed. For its owners, and for operators. People act in the organization again; API keys
/// stay ended.
#[utoipa::path(
    post, path = "/v1/deletions/{deletion}/cancel", operation_id = "cancel_deletion", tag = "organizations",
    responses((status = 200, description = "Cancelled", body = AcceptedCommand)),
)]
pub async fn cancel(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    Item(org): Item<OrgId>,
    parts: Parts,
) -> Result<Response, Problem> {
    let access = access(&app, &principal, org).await?.ok_or_else(Problem::not_found)?;
    let request = Request {
        idempotency_key: idempotency_key(&parts)?,
        expected_version: conditional::if_match(&parts.headers)?.last().copied(),
        ..Request::from(Command::from(CancelDeletion {}))
    };
    app.gateway.cancel_deletion(&access, &info(&parts).origin(), request).await.map(reply::changed)
}

/// Returns the access of an owner or an operator to a deletion; none for any other caller.
async fn access(app: &App, principal: &Principal, org: OrgId) -> Result<Option<Access>, Problem> {
    if principal.operator().is_some() {
        return Ok(Some(app.auth.operator_of(principal, org)));
    }
    Ok(app.auth.owner_of(principal, org).await?)
}

/// Returns a deletion, for those who may read of it.
async fn find(app: &App, principal: &Principal, org: OrgId) -> Result<DeletionView, Problem> {
    let stored = app.db.deletion(org).await?;
    let person: Option<UserId> = principal.person().ok();
    let has_requested = stored.as_ref().is_some_and(|one| one.requested_by.is_some() && one.requested_by == person);
    if !has_requested && access(app, principal, org).await?.is_none() {
        return Err(Problem::not_found());
    }
    // The log may have a request, or its end, that the job has not seen.
    let requested = app.gateway.handler().deletion(org).await?;
    match (stored, requested) {
        (Some(stored), Some(requested)) if stored.requested_at == requested.requested_at => Ok(stored.into()),
        (Some(stored), None) if stored.step.is_closed() => Ok(stored.into()),
        (Some(stored), None) => {
            let step = DeletionStep::Cancelled.name();
            Ok(DeletionView { step, cancellable: false, waits_for: None, ..stored.into() })
        }
        (_, Some(requested)) => Ok(DeletionView {
            org_id: org,
            step: DeletionStep::Requested.name(),
            waits_for: None,
            requested_at: requested.requested_at,
            grace_until: requested.grace_until,
            cancellable: requested.sealed_at.is_none(),
            invoice: None,
            sealed_at: requested.sealed_at,
            secrets_destroyed: 0,
            tables: Vec::new(),
            stream_bytes_removed_at: None,
        }),
        (None, None) => Err(Problem::not_found()),
    }
}
