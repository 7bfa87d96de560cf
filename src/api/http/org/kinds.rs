//! The kinds of an organization: the platform's, and those of its own, which it registers and changes; and which records do not
//! satisfy the schema that is valid now.

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use orgstream_domain::{
    FieldError, Permission, RegisterKind, RestoreKind, schema::ValidatedKind, schema_work::MAX_WORK,
};
use orgstream_events::{KindName, Pipeline, RecordId};
use orgstream_projections::{
    Listing, Placed,
    records::{self, Record},
};
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, OrgAccess, Query, Writer},
            page::PageQuery,
            policy::{AuditTrail, Policy, READ, Shape},
            reply,
            routes::Routes,
            wait::View,
        },
        platform::kinds::{self, Catalogue, KindChanges, KindView, RetireQuery},
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A record that does not satisfy the schema of its kind.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct IncompatibleRecord {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Version of the kind that the content was checked against when it was written.
    #[schema(example = 1)]
    pub kind_version: u64,
    /// Faults, at most 20, each with a pointer that begins with `/data`.
    pub errors: Vec<FieldError>,
}

/// One page of the records of a kind, held against its schema.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompatibilityPage {
    /// Name of the kind.
    #[schema(value_type = String, example = "x_ticket")]
    pub kind: KindName,
    /// Version of the kind whose schema was applied.
    #[schema(example = 2)]
    pub kind_version: u64,
    /// Number of records that this page is about, archived ones excluded.
    #[schema(example = 100, maximum = 100)]
    pub checked: usize,
    /// Records of this page that do not satisfy the schema.
    pub data: Vec<IncompatibleRecord>,
    /// Cursor of the next page; null on the last.
    pub next_cursor: Option<String>,
    /// True if there is a next page.
    pub has_more: bool,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    let (reads, manages) = (Policy::Org(Permission::ReadRecords), Policy::Org(Permission::ManageKinds));
    Routes::new()
        .route(routes!(list), reads, READ, AuditTrail::ReadNotAudited)
        .route(routes!(register), manages, Shape::Create, AuditTrail::Events)
        .route(routes!(show), reads, READ, AuditTrail::ReadNotAudited)
        .route(routes!(change), manages, Shape::Change, AuditTrail::Events)
        .route(routes!(retire), manages, Shape::Change, AuditTrail::Events)
        .route(routes!(restore), manages, Shape::Change, AuditTrail::Events)
        .route(routes!(compatibility), reads, READ, AuditTrail::ReadNotAudited)
}

/// List the kinds of an organization
///
/// The platform's and those of its own (`own`).
#[utoipa::path(
    get, path = "/v1/organizations/{org}/kinds", operation_id = "list_organization_kinds", tag = "kinds",
    responses((status = 200, description = "All of them", body = Catalogue)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // One connection at a time: see `records::list`.
    let seen = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?.release();
    let all = kinds::all_known(&app, access.bound()).await?;
    Ok(seen.listing(&Catalogue { data: all.into_iter().map(KindView::from).collect() }))
}

/// Get a kind of an organization
///
/// One of the platform's or of its own.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/kinds/{kind}", operation_id = "get_organization_kind", tag = "kinds",
    responses((status = 200, description = "The kind", body = KindView)),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    Item(name): Item<KindName>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let seen = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?.release();
    let found = kinds::known(&app, access.bound(), &name).await?.ok_or_else(Problem::not_found)?;
    let kind = KindView::from(found);
    Ok(seen.one(kind.version, &kind))
}

/// Register a kind of an organization
///
/// Its name begins with `x_`. It is private: for every other organization there is no such kind. How many there may be and how large
/// a schema may be depends on the plan (`kind_limit_exceeded`).
#[utoipa::path(
    post, path = "/v1/organizations/{org}/kinds", operation_id = "register_organization_kind", tag = "kinds",
    request_body = RegisterKind, responses((status = 201, description = "Registered", body = AcceptedCommand)),
)]
pub async fn register(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<RegisterKind>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Change a kind of an organization
///
/// Existing records stay as they were checked; `GET …/kinds/{kind}/compatibility` names those that do not satisfy the new schema.
#[utoipa::path(
    patch, path = "/v1/organizations/{org}/kinds/{kind}", operation_id = "change_organization_kind", tag = "kinds",
    request_body = KindChanges, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(kind): Item<KindName>,
    Body(changes): Body<KindChanges>,
) -> Result<Response, Problem> {
    writer.submit(&app, changes.of(kind)).await.map(reply::changed)
}

/// Retire a kind of an organization
///
/// No new records of it are taken; the old ones stay. `dry_run=true` says first how many that is about (a `KindReach`).
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/kinds/{kind}", operation_id = "retire_organization_kind", tag = "kinds",
    params(RetireQuery), responses((status = 200, description = "Retired", body = AcceptedCommand)),
)]
pub async fn retire(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(kind): Item<KindName>,
    Query(RetireQuery { dry_run }): Query<RetireQuery>,
) -> Result<Response, Problem> {
    kinds::retire_kind(&app, &writer, kind, dry_run).await
}

/// Restore a kind of an organization
///
/// New records of a retired kind are taken again, by the definition that it had.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/kinds/{kind}/restore", operation_id = "restore_organization_kind", tag = "kinds",
    responses((status = 200, description = "Restored", body = AcceptedCommand)),
)]
pub async fn restore(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(kind): Item<KindName>,
) -> Result<Response, Problem> {
    writer.submit(&app, RestoreKind { kind }).await.map(reply::changed)
}

/// Check the records of a kind against its schema
///
/// Page by page, the newest record first: those that do not satisfy the schema that is valid now, with the reasons, for a kind of
/// either the organization or the platform. A page has at most `limit` records, and fewer where they are large; the cursor is one of
/// this version of the kind.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/kinds/{kind}/compatibility", operation_id = "check_kind_compatibility", tag = "kinds",
    params(PageQuery), responses((status = 200, description = "One page", body = CompatibilityPage)),
)]
pub async fn compatibility(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    Item(name): Item<KindName>,
    headers: HeaderMap,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let kind = app.gateway.handler().kind(access.org(), &name).await?.ok_or_else(Problem::not_found)?;
    let cursors = app.cursors.listing(access.org(), "compatibility", &(&name, kind.version));
    let part = cursors.read(page.cursor.as_deref())?;
    let limit = page.limit()?;
    let mut view = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let Listing { rows, more } = records::list(&mut view.tx, Some(&name), false, &part, limit).await?;
    let seen = view.release();
    let (kind_version, total) = (kind.version, rows.len());
    // Validating is work of the processor, which other requests do not wait for.
    let examined = spawn_blocking(move || Examined::of(&kind, rows)).await.map_err(Problem::internal)?;
    let Examined { checked, last, faulty: data } = examined;
    let next_cursor = last.filter(|_| more || checked < total).map(|last| cursors.after(&last));
    let has_more = next_cursor.is_some();
    Ok(seen.listing(&CompatibilityPage { kind: name, kind_version, checked, data, next_cursor, has_more }))
}

/// The records that were held against a schema.
#[derive(Default)]
struct Examined {
    checked: usize,
    /// The place of the last one.
    last: Option<u64>,
    faulty: Vec<IncompatibleRecord>,
}

impl Examined {
    /// Checks records until they have cost as much as one record may.
    fn of(kind: &ValidatedKind, rows: Vec<Record>) -> Self {
        let (mut examined, mut work) = (Self::default(), 0_u64);
        for record in rows {
            if work > MAX_WORK {
                break;
            }
            (examined.checked, examined.last) = (examined.checked + 1, Some(record.place()));
            // One that was written by this version satisfied it.
            if record.kind_version == kind.version {
                continue;
            }
            work = work.saturating_add(kind.work(&record.data));
            if let Err(errors) = kind.check(&record.data) {
                let Record { id, kind_version, .. } = record;
                examined.faulty.push(IncompatibleRecord { id, kind_version, errors });
            }
        }
        examined
    }
}
