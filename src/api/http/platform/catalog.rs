//! The catalog: what the platform publishes of its own records. Everybody reads it, without a credential and from any cache;
//! operators publish and withdraw.
//!
//! Readers are served by a database login for which drafts, withdrawn items and organizations' data are not there.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::{PublishCatalogItem, WithdrawCatalogItem, openapi};
use orgstream_events::{KindName, PLATFORM_ORG, RecordId, Timestamp, Visibility};
use orgstream_projections::{
    catalog_items::{self, CatalogFilter, CatalogItem, CatalogVersion},
    kinds::{self, CatalogKind},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, ItemOf, PLATFORM, PlatformWriter, Query, SignedIn},
            page::{Page, PageQuery},
            policy::{AuditTrail, Policy, READ, Shape},
            reply,
            routes::Routes,
            shared::Reader,
            wait::PlatformView,
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A kind of the catalog.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CatalogKindView {
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Model")]
    pub title: String,
    /// Reach of the published items: `default_on` or `opt_in`.
    #[schema(schema_with = openapi::visibility)]
    pub visibility: Visibility,
    /// Number of published items.
    #[schema(example = 128)]
    pub items: u64,
}

/// All kinds of the catalog.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Catalog {
    /// Kinds, ordered by name.
    pub data: Vec<CatalogKindView>,
}

/// A published version of an item.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CatalogItemView {
    /// Record id of the item (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Version of the kind that the content was checked against.
    #[schema(example = 1)]
    pub kind_version: u64,
    /// Version of the item, counted from 1. It never changes.
    #[schema(example = 1)]
    pub version: u64,
    /// Content of this version, all of it.
    #[schema(example = json!({"name": "sonnet-small", "provider": "in-house"}))]
    pub data: Value,
    /// Time of publication of this version, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub published_at: Timestamp,
}

impl From<CatalogItem> for CatalogItemView {
    fn from(item: CatalogItem) -> Self {
        let CatalogItem { id, kind, kind_version, data, item_version, updated_at, .. } = item;
        // What is published was published by its last change.
        Self { id, kind, kind_version, version: item_version, data, published_at: updated_at }
    }
}

impl From<CatalogVersion> for CatalogItemView {
    fn from(version: CatalogVersion) -> Self {
        let CatalogVersion { id, item_version, kind, kind_version, data, published_at } = version;
        Self { id, kind, kind_version, version: item_version, data, published_at }
    }
}

/// Which version of an item.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VersionQuery {
    /// Version of the item, counted from 1; the newest without it. One that was named never changes.
    #[param(minimum = 1, example = 1)]
    pub version: Option<u64>,
}

/// The state of an item, for operators.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CatalogItemState {
    /// Record id of the item (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Newest version of the item, counted from 1.
    #[schema(example = 1)]
    pub version: u64,
    /// State: `published` or `withdrawn`.
    #[schema(example = "published")]
    pub status: &'static str,
    /// Time of the first publication, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last publication or withdrawal, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<CatalogItem> for CatalogItemState {
    fn from(item: CatalogItem) -> Self {
        let CatalogItem { id, kind, item_version: version, withdrawn, created_at, updated_at, .. } = item;
        Self { id, kind, version, status: if withdrawn { "withdrawn" } else { "published" }, created_at, updated_at }
    }
}

/// What is published.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PublishQuery {
    /// Version that the platform's record must have, so that nothing is published but what was looked at.
    #[param(minimum = 1, example = 1)]
    pub record_version: Option<u64>,
}

/// Why an item is withdrawn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// Reason for the platform's audit log, 1 to 500 characters.
    #[schema(example = "superseded", max_length = 500)]
    pub reason: String,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(show), Policy::Public, Shape::Shared, AuditTrail::NotTenantScoped)
        .route(routes!(list), Policy::Public, Shape::Shared, AuditTrail::NotTenantScoped)
        .route(routes!(item), Policy::Public, Shape::Shared, AuditTrail::NotTenantScoped)
        .route(routes!(items), Policy::Operator, READ, AuditTrail::NotTenantScoped)
        .route(routes!(publish), Policy::Operator, Shape::Change, AuditTrail::Events)
        .route(routes!(withdraw), Policy::Operator, Shape::Change, AuditTrail::Events)
}

/// Returns the kinds of which something may be published.
pub(crate) async fn kinds_of_catalog(app: &App) -> Result<Vec<CatalogKind>, Problem> {
    Ok(kinds::of_catalog(&mut app.db.read(PLATFORM).await?).await?)
}

/// Fails unless something may be published of the kind: what was published of one that is private now is not shown.
async fn must_be_in_catalog(app: &App, kind: &KindName) -> Result<(), Problem> {
    let kinds = kinds_of_catalog(app).await?;
    if kinds.iter().any(|known| known.name == *kind) { Ok(()) } else { Err(Problem::not_found()) }
}

/// Get the catalog
///
/// The kinds of which the platform publishes items, with how many there are. Without a credential; any cache may keep it.
#[utoipa::path(
    get, path = "/v1/catalog", operation_id = "get_catalog", tag = "catalog",
    responses((status = 200, description = "All kinds of it", body = Catalog)),
)]
pub async fn show(State(app): State<Arc<App>>, reader: Reader) -> Result<Response, Problem> {
    let kinds = kinds_of_catalog(&app).await?;
    let mut counts = catalog_items::counts(&mut app.db.read_published().await?).await?;
    let view = |CatalogKind { name, title, visibility }: CatalogKind| {
        let items = counts.remove(&name).unwrap_or_default();
        CatalogKindView { kind: name, title, visibility, items }
    };
    let data = kinds.into_iter().map(view).collect();
    reader.listing(&Catalog { data })
}

/// List items of the catalog
///
/// What is published of one kind, the item that was published first comes last. Without a credential; any cache may keep it.
#[utoipa::path(
    get, path = "/v1/catalog/{kind}", operation_id = "list_catalog", tag = "catalog",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<CatalogItemView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    reader: Reader,
    Item(kind): Item<KindName>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(PLATFORM_ORG, "catalog", &kind);
    let (part, limit) = (cursors.read(page.cursor.as_deref())?, page.limit()?);
    must_be_in_catalog(&app, &kind).await?;
    let filter = CatalogFilter { kinds: vec![kind], ..CatalogFilter::default() };
    let rows = catalog_items::list(&mut app.db.read_published().await?, &filter, &part, limit).await?;
    reader.listing(&cursors.page(&part, rows, CatalogItemView::from))
}

/// Get an item of the catalog
///
/// The version that was published last, or the one that `version` names. A withdrawn item is not found, with all its versions.
/// Without a credential; any cache may keep it.
#[utoipa::path(
    get, path = "/v1/catalog/{kind}/{record}", operation_id = "get_catalog_item", tag = "catalog",
    params(VersionQuery), responses((status = 200, description = "The item", body = CatalogItemView)),
)]
pub async fn item(
    State(app): State<Arc<App>>,
    reader: Reader,
    ItemOf(kind, id): ItemOf<KindName, RecordId>,
    Query(VersionQuery { version }): Query<VersionQuery>,
) -> Result<Response, Problem> {
    must_be_in_catalog(&app, &kind).await?;
    let mut view = app.db.read_published().await?;
    let found = match version {
        Some(version) => catalog_items::version(&mut view, id, version).await?.map(CatalogItemView::from),
        None => catalog_items::get(&mut view, id).await?.map(CatalogItemView::from),
    };
    let found = found.filter(|found| found.kind == kind).ok_or_else(Problem::not_found)?;
    if version.is_some() { reader.version(found.version, &found) } else { reader.newest(found.version, &found) }
}

/// List what was published
///
/// Every item that was ever published, withdrawn ones as well, without their contents. For platform operators.
#[utoipa::path(
    get, path = "/v1/catalog-items", operation_id = "list_catalog_items", tag = "catalog",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<CatalogItemState>)),
)]
pub async fn items(
    State(app): State<Arc<App>>,
    _: SignedIn,
    PlatformView(mut view): PlatformView,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(PLATFORM_ORG, "catalog-items", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = catalog_items::list_all(&mut view.tx, &part, page.limit()?).await?;
    Ok(view.listing(&cursors.page(&part, rows, CatalogItemState::from)))
}

/// Publish an item of the catalog
///
/// The platform's record as it is now becomes a version that all readers have and that never changes. Later changes of the
/// record are a draft until it is published again. What it refers to must be published. For platform operators.
#[utoipa::path(
    post, path = "/v1/catalog-items/{record}/publish", operation_id = "publish_catalog_item", tag = "catalog",
    params(PublishQuery), responses((status = 200, description = "Published", body = AcceptedCommand)),
)]
pub async fn publish(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(id): Item<RecordId>,
    Query(PublishQuery { record_version }): Query<PublishQuery>,
) -> Result<Response, Problem> {
    writer.submit(&app, PublishCatalogItem { id, record_version }).await.map(reply::changed)
}

/// Withdraw an item of the catalog
///
/// It is not found any more, with all its versions; caches may have them for a day. The platform's record stays, and may be
/// published again as the next version. For platform operators.
#[utoipa::path(
    post, path = "/v1/catalog-items/{record}/withdraw", operation_id = "withdraw_catalog_item", tag = "catalog",
    request_body = Withdrawal, responses((status = 200, description = "Withdrawn", body = AcceptedCommand)),
)]
pub async fn withdraw(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(id): Item<RecordId>,
    Body(Withdrawal { reason }): Body<Withdrawal>,
) -> Result<Response, Problem> {
    writer.submit(&app, WithdrawCatalogItem { id, reason }).await.map(reply::changed)
}
