//! The platform's kinds: the same for all organizations, readable by all, changed by operators.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use orgstream_domain::{ChangeKind, RegisterKind, RestoreKind, RetireKind, openapi, views::KindViewDefinition};
use orgstream_events::{KindDefinition, KindName, Timestamp, ViewDefinition, Visibility};
use orgstream_projections::{
    BoundOrg,
    kinds::{self, Kind, Reach},
};
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
            extract::{Body, Item, PLATFORM, PlatformWriter, Query, Writer},
            reply,
            wait::PlatformView,
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A kind of records.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KindView {
    /// Permanent name in commands and filters.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Evaluation")]
    pub title: String,
    /// JSON Schema (2020-12) that every record's data satisfies.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// Reach of the platform's own records of the kind.
    #[schema(schema_with = openapi::visibility)]
    pub visibility: Visibility,
    /// Cost of writing one record, in the units of limits: 1 to 10,000.
    #[schema(example = 1)]
    pub cost: u32,
    /// Views of the records, at most 8.
    pub views: Vec<KindViewDefinition>,
    /// True if its records are written once: never changed, never archived.
    #[schema(example = false)]
    pub append_only: bool,
    /// True if it is the organization's own; false if it is the platform's.
    #[schema(example = false)]
    pub own: bool,
    /// True once the kind takes no new records.
    pub retired: bool,
    /// Version of the kind; `If-Match` takes it, and records name it as `kind_version`.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of registration, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Kind> for KindView {
    fn from(kind: Kind) -> Self {
        let Kind { name, definition, retired, version, created_at, updated_at, seq: _ } = kind;
        let KindDefinition { title, schema, visibility, cost, views, append_only } = definition;
        let views = views.into_iter().map(KindViewDefinition::from).collect();
        Self {
            own: name.is_own(),
            kind: name,
            title,
            schema,
            visibility,
            cost,
            views,
            append_only,
            retired,
            version,
            created_at,
            updated_at,
        }
    }
}

/// All kinds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Catalogue {
    /// Kinds, ordered by name.
    pub data: Vec<KindView>,
}

/// Another definition. What is missing stays.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KindChanges {
    /// New display name, 1 to 120 characters.
    #[schema(max_length = 120)]
    pub title: Option<String>,
    /// JSON Schema (2020-12) for records that are written from now on; existing records stay as they were checked.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// New reach of the platform's own records of the kind.
    #[schema(schema_with = openapi::visibility, required = false)]
    pub visibility: Option<Visibility>,
    /// New cost of writing one record, in the units of limits: 1 to 10,000.
    #[schema(minimum = 1, maximum = 10000)]
    pub cost: Option<u32>,
    /// New views of the records, all of them, at most 8; an empty list takes them away.
    #[schema(max_items = 8)]
    pub views: Option<Vec<KindViewDefinition>>,
}

/// Returns what `org` means by the name of a kind: its own kind, or the platform's.
pub(crate) async fn known(app: &App, org: BoundOrg, name: &KindName) -> Result<Option<Kind>, Problem> {
    Ok(kinds::get(&mut app.db.read(org.owner_of_kind(name)).await?, name).await?)
}

/// Returns all kinds that `org` has: the platform's and its own, by name.
pub(crate) async fn all_known(app: &App, org: BoundOrg) -> Result<Vec<Kind>, Problem> {
    let mut all = kinds::list(&mut app.db.read(PLATFORM).await?).await?;
    if org != PLATFORM {
        all.retain(|kind| !kind.name.is_own());
        all.extend(kinds::list(&mut app.db.read(org).await?).await?);
    }
    all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

/// Returns the kinds that declare views or once did, the platform's and those of `org`, with those that they declare.
pub(crate) async fn with_views(app: &App, org: BoundOrg) -> Result<BTreeMap<KindName, Vec<ViewDefinition>>, Problem> {
    let mut all = kinds::with_views(&mut app.db.read(PLATFORM).await?).await?;
    if org != PLATFORM {
        all.retain(|kind, _| !kind.is_own());
        all.extend(kinds::with_views(&mut app.db.read(org).await?).await?);
    }
    Ok(all)
}

/// Checks that the kind exists, where a query for it was empty: an unknown kind is a mistake, and not a query with an empty
/// answer.
pub(crate) async fn must_be_known(app: &App, org: BoundOrg, name: &KindName) -> Result<(), Problem> {
    if known(app, org, name).await?.is_some() {
        return Ok(());
    }
    let names: Vec<String> = all_known(app, org).await?.into_iter().map(|kind| kind.name.to_string()).collect();
    let detail = format!("there is no kind {name}; there are: {}", names.join(", "));
    Err(Problem::invalid("/kind", "unknown", detail))
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Public, READ, AuditTrail::NotTenantScoped)
        .route(routes!(register), Policy::Operator, Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Public, READ, AuditTrail::NotTenantScoped)
        .route(routes!(change), Policy::Operator, Shape::Change, AuditTrail::Events)
        .route(routes!(retire), Policy::Operator, Shape::Change, AuditTrail::Events)
        .route(routes!(restore), Policy::Operator, Shape::Change, AuditTrail::Events)
}

/// List kinds
#[utoipa::path(
    get, path = "/v1/kinds", operation_id = "list_kinds", tag = "kinds",
    responses((status = 200, description = "All of them", body = Catalogue)),
)]
pub async fn list(PlatformView(mut view): PlatformView) -> Result<Response, Problem> {
    let kinds = kinds::list(&mut view.tx).await?;
    Ok(view.listing(&Catalogue { data: kinds.into_iter().map(KindView::from).collect() }))
}

/// Get a kind
#[utoipa::path(
    get, path = "/v1/kinds/{kind}", operation_id = "get_kind", tag = "kinds",
    responses((status = 200, description = "The kind", body = KindView)),
)]
pub async fn show(Item(name): Item<KindName>, PlatformView(mut view): PlatformView) -> Result<Response, Problem> {
    let found = kinds::get(&mut view.tx, &name).await?.ok_or_else(Problem::not_found)?;
    let kind = KindView::from(found);
    Ok(view.one(kind.version, &kind))
}

/// Register a kind
///
/// For platform operators.
#[utoipa::path(
    post, path = "/v1/kinds", operation_id = "register_kind", tag = "kinds",
    request_body = RegisterKind, responses((status = 201, description = "Registered", body = AcceptedCommand)),
)]
pub async fn register(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Body(command): Body<RegisterKind>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Change a kind
///
/// For platform operators.
#[utoipa::path(
    patch, path = "/v1/kinds/{kind}", operation_id = "change_kind", tag = "kinds",
    request_body = KindChanges, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(kind): Item<KindName>,
    Body(changes): Body<KindChanges>,
) -> Result<Response, Problem> {
    writer.submit(&app, changes.of(kind)).await.map(reply::changed)
}

impl KindChanges {
    /// Returns the command that makes them.
    pub(crate) fn of(self, kind: KindName) -> ChangeKind {
        let Self { title, schema, visibility, cost, views } = self;
        ChangeKind { kind, title, schema, visibility, cost, views }
    }
}

/// Whether it is to be done.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RetireQuery {
    /// `true` changes nothing, and answers with what retiring the kind would touch.
    #[param(example = false)]
    pub dry_run: Option<bool>,
}

/// What retiring a kind would touch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KindReach {
    /// Permanent name of the kind.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// Number of organizations with records of the kind, which could write no more of them.
    #[schema(example = 12)]
    pub organizations: u64,
    /// Number of records of the kind, archived ones included; all of them stay.
    #[schema(example = 3400)]
    pub records: u64,
    /// False when there are more than were counted.
    pub complete: bool,
}

/// Retire a kind
///
/// No new records of it are taken in any organization; the old ones stay. `dry_run=true` says first how many that is about
/// (a `KindReach`), and `POST /v1/kinds/{kind}/restore` takes it back. For platform operators.
#[utoipa::path(
    delete, path = "/v1/kinds/{kind}", operation_id = "retire_kind", tag = "kinds",
    params(RetireQuery), responses((status = 200, description = "Retired", body = AcceptedCommand)),
)]
pub async fn retire(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(kind): Item<KindName>,
    Query(RetireQuery { dry_run }): Query<RetireQuery>,
) -> Result<Response, Problem> {
    retire_kind(&app, &writer, kind, dry_run).await
}

/// Retires a kind of the organization that the writer writes to, or answers what that would touch.
pub(crate) async fn retire_kind(
    app: &App,
    writer: &Writer,
    kind: KindName,
    dry_run: Option<bool>,
) -> Result<Response, Problem> {
    if !dry_run.unwrap_or_default() {
        return writer.submit(app, RetireKind { kind }).await.map(reply::changed);
    }
    let org = writer.access.bound();
    let is_its = kind.owner(org.org()) == org.org();
    if !is_its || known(app, org, &kind).await?.is_none() {
        return Err(Problem::not_found());
    }
    let Reach { organizations, records, is_all: complete } = app.db.reach_of_kind(org, &kind).await?;
    Ok(Json(KindReach { kind, organizations, records, complete }).into_response())
}

/// Restore a kind
///
/// New records of a retired kind are taken again, by the definition that it had. For platform operators.
#[utoipa::path(
    post, path = "/v1/kinds/{kind}/restore", operation_id = "restore_kind", tag = "kinds",
    responses((status = 200, description = "Restored", body = AcceptedCommand)),
)]
pub async fn restore(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(kind): Item<KindName>,
) -> Result<Response, Problem> {
    writer.submit(&app, RestoreKind { kind }).await.map(reply::changed)
}
