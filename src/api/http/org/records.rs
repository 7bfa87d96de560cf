//! Records of organizations, each of a kind that defines its schema.

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use orgstream_domain::{ArchiveRecord, CreateRecord, Permission, UpdateRecord};
use orgstream_events::{KindName, Pipeline, RecordId, Timestamp};
use orgstream_projections::records::{self, Archived, Record};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, READ, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, FilterMembers, Item, OrgAccess, Query, Writer},
            page::{Page, PageQuery},
            reply,
            wait::{OrgView, ReadModels, View},
        },
        org::record_listing::AskedListing,
        platform::kinds,
    },
    app::event_view::ActorView,
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A record.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecordView {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Version of the kind that the content was checked against.
    #[schema(example = 1)]
    pub kind_version: u64,
    /// Content of the record, all of it.
    #[schema(example = json!({"name": "sonnet-small", "provider": "in-house"}))]
    pub data: Value,
    /// True once the record is archived.
    pub archived: bool,
    /// Actor who created it.
    pub created_by: ActorView,
    /// Version of the thing, counted from 1; `If-Match` takes it.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of creation, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Record> for RecordView {
    fn from(record: Record) -> Self {
        let Record { id, kind, kind_version, data, archived, created_by, version, created_at, updated_at, .. } = record;
        Self { id, kind, kind_version, data, archived, created_by: created_by.into(), version, created_at, updated_at }
    }
}

/// Which records, and in which order.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RecordQuery {
    /// Kind of record, by name. Filters, and every order but that of creation, need one.
    #[param(value_type = Option<String>, example = "model")]
    pub kind: Option<KindName>,
    /// Archived records: `exclude` (the default), `include` or `only`. `false` and `true` mean the first two.
    #[param(value_type = Option<String>, example = "include")]
    pub archived: Option<ArchivedQuery>,
    /// Time of the least recent last change, RFC 3339. Needs `kind`.
    #[param(format = DateTime)]
    pub updated_since: Option<String>,
    /// Order: `created`, `updated` or a field that the kind declares with `x-sort`, each after `-` for the greatest or newest
    /// first; `-created` unless said otherwise. Records without the field are not listed.
    #[param(example = "-created")]
    pub sort: Option<String>,
    /// True adds `total`, the number of records on all pages, counted up to 10,000.
    #[param(example = false)]
    pub count: Option<bool>,
}

/// Whether archived records are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchivedQuery {
    /// No.
    #[default]
    #[serde(alias = "false")]
    Exclude,
    /// Yes.
    #[serde(alias = "true")]
    Include,
    /// Nothing else is.
    Only,
}

impl From<ArchivedQuery> for Archived {
    fn from(archived: ArchivedQuery) -> Self {
        match archived {
            ArchivedQuery::Exclude => Self::Exclude,
            ArchivedQuery::Include => Self::Include,
            ArchivedQuery::Only => Self::Only,
        }
    }
}

/// The number of records up to which a listing is counted.
const MAX_COUNT: u32 = 10_000;

/// One page of records.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RecordPage {
    /// Records of this page.
    pub data: Vec<RecordView>,
    /// Cursor of the next page; null on the last.
    pub next_cursor: Option<String>,
    /// Cursor of the page before; null on the first.
    pub prev_cursor: Option<String>,
    /// True if there is a next page.
    pub has_more: bool,
    /// Number of records on all pages, at most 10,000; only with `count=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 128, maximum = 10000)]
    pub total: Option<u64>,
    /// True when there are more than `total`; only with `count=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = false)]
    pub total_capped: Option<bool>,
}

/// New content, whole: not a difference.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordContent {
    /// New content of the record, all of it, as the kind's schema has it today.
    #[schema(example = json!({"name": "sonnet-small", "provider": "in-house", "status": "retired"}))]
    pub data: Value,
}

/// Why a record is archived.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ArchiveQuery {
    /// Why, at most 500 characters; it stays in the audit log.
    pub reason: Option<String>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited)
        .route(routes!(create), Policy::Org(Permission::WriteRecords), Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited)
        .route(routes!(update), Policy::Org(Permission::WriteRecords), Shape::Change, AuditTrail::Events)
        .route(routes!(archive), Policy::Org(Permission::WriteRecords), Shape::Change, AuditTrail::Events)
}

/// List records
///
/// The newest first, unless `sort` says otherwise. `filter[field]=value` has those whose field has the value, for the fields that
/// their kind declares with `x-filter`; `GET /v1/kinds/{kind}` shows them. Repeated, or as `filter[field][in]=a,b`, it has those with
/// one of the values; `[gt]`, `[gte]`, `[lt]` and `[lte]` are bounds. Numbers compare as decimals and times as moments. All
/// conditions hold, for at most 8 fields.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/records", operation_id = "list_records", tag = "records",
    params(
        RecordQuery,
        (
            "filter" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode,
            description = "Values or bounds of fields that the kind declares with `x-filter`, such as `filter[status]=completed` \
                           or `filter[score][gte]=0.5`. Needs `kind`.",
        ),
        PageQuery,
    ),
    responses((status = 200, description = "One page", body = RecordPage)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    headers: HeaderMap,
    Query(query): Query<RecordQuery>,
    FilterMembers(members): FilterMembers,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    // A page may be counted or not.
    let scope = (RecordQuery { count: None, ..query.clone() }, &members);
    let cursors = app.cursors.listing(access.org(), "records", &scope);
    let limit = page.limit()?;
    // A kind of its own may be as new as the records.
    View::wait(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let asked = AskedListing::read(&app, access.bound(), &query, &members).await?;
    let AskedListing { filter, order } = &asked;
    // Opened once the kind was read: a request that waits for a second connection while it holds one would wait for others
    // that do the same.
    let mut view = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let tx = &mut view.tx;
    let found = if asked.is_plain() {
        let part = cursors.read(page.cursor.as_deref())?;
        let with_archived = filter.archived == Archived::Include;
        let rows = records::list(tx, filter.kind.as_ref(), with_archived, &part, limit).await?;
        cursors.page(&part, rows, RecordView::from)
    } else {
        let part = cursors.read(page.cursor.as_deref())?;
        let rows = records::find(tx, filter, order, &part, limit).await?;
        cursors.page(&part, rows, |listed| RecordView::from(listed.record))
    };
    let counted = if query.count.unwrap_or_default() {
        // One more shows that the limit is exceeded.
        Some(records::count(tx, filter, &order.by, MAX_COUNT + 1).await?)
    } else {
        None
    };
    let seen = view.release();
    if let Some(kind) = query.kind.as_ref().filter(|_| found.data.is_empty()) {
        kinds::must_be_known(&app, access.bound(), kind).await?;
    }
    let Page { data, next_cursor, prev_cursor, has_more } = found;
    let (total, total_capped) =
        (counted.map(|count| count.min(MAX_COUNT.into())), counted.map(|count| count > MAX_COUNT.into()));
    Ok(seen.listing(&RecordPage { data, next_cursor, prev_cursor, has_more, total, total_capped }))
}

/// Get a record
///
/// Archived ones too.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/records/{record}", operation_id = "get_record", tag = "records",
    responses((status = 200, description = "The record", body = RecordView)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Item(id): Item<RecordId>) -> Result<Response, Problem> {
    let found = records::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    let view = RecordView::from(found);
    Ok(org.view.one(view.version, &view))
}

/// Create a record
#[utoipa::path(
    post, path = "/v1/organizations/{org}/records", operation_id = "create_record", tag = "records",
    request_body = CreateRecord, responses((status = 201, description = "Created", body = AcceptedCommand)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<CreateRecord>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Replace the content of a record
#[utoipa::path(
    put, path = "/v1/organizations/{org}/records/{record}", operation_id = "update_record", tag = "records",
    request_body = RecordContent, responses((status = 200, description = "Updated", body = AcceptedCommand)),
)]
pub async fn update(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<RecordId>,
    Body(RecordContent { data }): Body<RecordContent>,
) -> Result<Response, Problem> {
    writer.submit(&app, UpdateRecord { id, data }).await.map(reply::changed)
}

/// Archive a record
///
/// It is out of sight from now on. Its content and its history stay.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/records/{record}", operation_id = "archive_record", tag = "records",
    params(ArchiveQuery), responses((status = 200, description = "Archived", body = AcceptedCommand)),
)]
pub async fn archive(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<RecordId>,
    Query(ArchiveQuery { reason }): Query<ArchiveQuery>,
) -> Result<Response, Problem> {
    writer.submit(&app, ArchiveRecord { id, reason }).await.map(reply::changed)
}
