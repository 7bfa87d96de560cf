//! Records of organizations, each of a kind that defines its schema.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::{ArchiveRecord, CreateRecord, Permission, UpdateRecord};
use orgstream_events::{KindName, RecordId, Timestamp};
use orgstream_projections::records::{self, Record};
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
            extract::{Body, Item, Query, Writer},
            page::{Page, PageQuery},
            reply,
            wait::{OrgView, ReadModels},
        },
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
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// Version of the kind that the content was checked against.
    #[schema(example = 1)]
    pub kind_version: u64,
    /// Content of the record, all of it.
    #[schema(example = json!({"score": 0.93}))]
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

/// Which records.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RecordQuery {
    /// Of this kind.
    #[param(value_type = Option<String>, example = "evaluation")]
    pub kind: Option<KindName>,
    /// Archived ones as well.
    pub archived: Option<bool>,
}

/// New content, whole: not a difference.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordContent {
    /// New content of the record, all of it, as the kind's schema has it today.
    #[schema(example = json!({"score": 0.95}))]
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
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/records", operation_id = "list_records", tag = "records",
    params(RecordQuery, PageQuery), responses((status = 200, description = "One page", body = Page<RecordView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(filter): Query<RecordQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "records", &filter);
    let part = cursors.read(page.cursor.as_deref())?;
    let archived = filter.archived.unwrap_or_default();
    let rows = records::list(&mut org.view.tx, filter.kind.as_ref(), archived, &part, page.limit()?).await?;
    if let Some(kind) = filter.kind.as_ref().filter(|_| rows.rows.is_empty()) {
        kinds::must_be_known(&app, kind).await?;
    }
    Ok(org.view.listing(&cursors.page(&part, rows, RecordView::from)))
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
