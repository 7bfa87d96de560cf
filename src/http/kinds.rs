//! The catalogue of kinds: the same for all organizations, for everybody to read, for operators to change.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_events::{KindDefinition, KindName, Timestamp, Visibility};
use orgstream_projections::kinds::{self, Kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    App,
    extract::{Body, Item, PlatformWriter},
    reply,
    wait::PlatformView,
};
use crate::{
    commands::{ChangeKind, RegisterKind, RetireKind, openapi},
    gateway::AcceptedCommand,
    problem::Problem,
};

/// A kind of records.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct KindView {
    /// Its name in commands and filters.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// What people call it.
    #[schema(example = "Evaluation")]
    pub title: String,
    /// JSON Schema (2020-12) that every record's data satisfies.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// How far the platform's own records of it are seen.
    #[schema(schema_with = openapi::visibility)]
    pub visibility: Visibility,
    /// What writing one record costs, in the units that limits count.
    #[schema(example = 1)]
    pub cost: u32,
    /// True once no new records of it are taken.
    pub retired: bool,
    /// The version that `If-Match` takes, and that records name as `kind_version`.
    #[schema(example = 1)]
    pub version: u64,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Kind> for KindView {
    fn from(kind: Kind) -> Self {
        let Kind { name, definition, retired, version, created_at, updated_at, seq: _ } = kind;
        let KindDefinition { title, schema, visibility, cost } = definition;
        Self { kind: name, title, schema, visibility, cost, retired, version, created_at, updated_at }
    }
}

/// All kinds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Catalogue {
    /// The kinds, by name.
    pub data: Vec<KindView>,
}

/// Another definition. What is missing stays.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KindChanges {
    /// What people call it from now on.
    #[schema(max_length = 120)]
    pub title: Option<String>,
    /// The schema for records written from now on; those that exist keep what they were checked against.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// How far the platform's own records are seen from now on.
    #[schema(schema_with = openapi::visibility, required = false)]
    pub visibility: Option<Visibility>,
    /// What writing one record costs from now on.
    #[schema(minimum = 1, maximum = 10000)]
    pub cost: Option<u32>,
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
    let KindChanges { title, schema, visibility, cost } = changes;
    writer.submit(&app, ChangeKind { kind, title, schema, visibility, cost }).await.map(reply::changed)
}

/// Retire a kind
///
/// No new records of it are taken; the old ones stay. For platform operators.
#[utoipa::path(
    delete, path = "/v1/kinds/{kind}", operation_id = "retire_kind", tag = "kinds",
    responses((status = 200, description = "Retired", body = AcceptedCommand)),
)]
pub async fn retire(
    State(app): State<Arc<App>>,
    PlatformWriter(writer): PlatformWriter,
    Item(kind): Item<KindName>,
) -> Result<Response, Problem> {
    writer.submit(&app, RetireKind { kind }).await.map(reply::changed)
}
