//! Domains of an organization: claimed, proven by DNS, and then a way to join for every owner of an address there.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::{
    ClaimDomain, Permission, ProveDomain, RemoveDomain,
    domain::{RECORD_KEY, record_name},
};
use orgstream_events::{DomainId, DomainName, Timestamp};
use orgstream_projections::domains::{self, Domain, DomainStatus};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, READ, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, Query, Writer},
            page::{Page, PageQuery},
            reply,
            wait::{OrgView, ReadModels},
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A domain, and what proves it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DomainView {
    /// Domain id (`dom_` and 26 characters).
    #[schema(value_type = String, example = "dom_01h455vb4pex5vsknk084sn02q")]
    pub id: DomainId,
    /// Domain name in lower case.
    #[schema(value_type = String, example = "acme.example")]
    pub domain: DomainName,
    /// State: `claimed`, `proven` or `removed`.
    #[schema(value_type = String, example = "claimed")]
    pub status: DomainStatus,
    /// TXT record that proves the domain.
    pub record: TxtRecord,
    /// Version of the thing, counted from 1; `If-Match` takes it.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of the claim, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A TXT record.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TxtRecord {
    /// Name of the DNS record.
    #[schema(example = "_orgstream-challenge.acme.example")]
    pub name: String,
    /// Text of the DNS record.
    #[schema(example = "orgstream-domain-verification=5f0c6f9a0c4e4d5f8a7b6c5d4e3f2a1b")]
    pub value: String,
}

impl From<Domain> for DomainView {
    fn from(domain: Domain) -> Self {
        let Domain { id, domain, challenge, status, version, created_at, updated_at, seq: _ } = domain;
        let record = TxtRecord { name: record_name(&domain), value: format!("{RECORD_KEY}{challenge}") };
        Self { id, domain, status, record, version, created_at, updated_at }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ManageDomains), READ, AuditTrail::ReadNotAudited)
        .route(routes!(claim), Policy::Org(Permission::ManageDomains), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ManageDomains), READ, AuditTrail::ReadNotAudited)
        .route(routes!(remove), Policy::Org(Permission::ManageDomains), Shape::Change, AuditTrail::Events)
        .route(routes!(prove), Policy::Org(Permission::ManageDomains), Shape::Change, AuditTrail::Events)
}

/// List domains
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/domains", operation_id = "list_domains", tag = "domains",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<DomainView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "domains", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = domains::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, DomainView::from)))
}

/// Get a domain
///
/// With the TXT record that proves it.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/domains/{domain}", operation_id = "get_domain", tag = "domains",
    responses((status = 200, description = "The domain", body = DomainView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<DomainId>) -> Result<Response, Problem> {
    let found = domains::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    let view = DomainView::from(found);
    Ok(org.view.one(view.version, &view))
}

/// Claim a domain
///
/// It is worth nothing until it is proven. Domains of public mail services are refused (`public_domain`).
#[utoipa::path(
    post, path = "/v1/organizations/{org}/domains", operation_id = "claim_domain", tag = "domains",
    request_body = ClaimDomain, responses((status = 201, description = "Claimed", body = AcceptedCommand)),
)]
pub async fn claim(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<ClaimDomain>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Prove a domain
///
/// Looks for the TXT record now. With `jit_provisioning` set to `restricted`, a person who signs in with a verified address of
/// a proven domain becomes a member.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/domains/{domain}/verify", operation_id = "prove_domain", tag = "domains",
    responses((status = 200, description = "Proven", body = AcceptedCommand)),
)]
pub async fn prove(State(app): State<Arc<App>>, writer: Writer, Item(id): Item<DomainId>) -> Result<Response, Problem> {
    writer.submit(&app, ProveDomain { id }).await.map(reply::changed)
}

/// Remove a domain
///
/// Members who came by it stay.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/domains/{domain}", operation_id = "remove_domain", tag = "domains",
    responses((status = 200, description = "Given up", body = AcceptedCommand)),
)]
pub async fn remove(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<DomainId>,
) -> Result<Response, Problem> {
    writer.submit(&app, RemoveDomain { id }).await.map(reply::changed)
}
