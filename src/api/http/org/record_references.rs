//! What records refer to, and what refers to them.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::Response};
use orgstream_domain::Permission;
use orgstream_events::{KindName, RecordId};
use orgstream_projections::{
    catalog_items,
    record_references::{self, Reference},
    records,
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Item, PLATFORM, Query},
            page::{Page, PageQuery},
            policy::{AuditTrail, Policy, READ},
            routes::Routes,
            wait::{OrgView, ReadModels},
        },
    },
    app::problem::Problem,
};

/// A reference of a record to another one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReferenceView {
    /// JSON pointer to the reference, from the record's `data`.
    #[schema(example = "/trace")]
    pub pointer: String,
    /// Record id (`res_` and 26 characters) of the record that is referred to.
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of that record, by name.
    #[schema(value_type = String, example = "trace")]
    pub kind: KindName,
    /// Owner of that record: `own` for this organization, `global` for the platform's catalog.
    #[schema(example = "own")]
    pub scope: &'static str,
    /// True once that record is archived, or the item of the catalog withdrawn; null while it is not in the read models yet.
    pub archived: Option<bool>,
}

/// The references of one record.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct References {
    /// References, ordered by pointer.
    pub data: Vec<ReferenceView>,
}

/// A record that refers to another one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ReferrerView {
    /// Record id (`res_` and 26 characters) of the record that refers.
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Kind of that record, by name.
    #[schema(value_type = String, example = "trace_evaluation")]
    pub kind: KindName,
    /// JSON pointer to the reference, from that record's `data`.
    #[schema(example = "/trace")]
    pub pointer: String,
    /// True once that record is archived.
    pub archived: bool,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(references), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited)
        .route(routes!(referrers), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited)
}

/// List what a record refers to
///
/// As it was checked when the record was written. What was archived since is among them, with `archived` true.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/records/{record}/references", operation_id = "list_record_references", tag = "records",
    responses((status = 200, description = "All of them", body = References)),
)]
pub async fn references(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Item(id): Item<RecordId>,
) -> Result<Response, Problem> {
    let tx = &mut org.view.tx;
    records::archived_among(tx, &[id]).await?.get(&id).ok_or_else(Problem::not_found)?;
    let found = record_references::of(tx, id).await?;
    let (global, own): (Vec<&Reference>, Vec<&Reference>) = found.iter().partition(|reference| reference.is_global);
    let ids = |references: Vec<&Reference>| references.into_iter().map(|reference| reference.to).collect::<Vec<_>>();
    let own = records::archived_among(tx, &ids(own)).await?;
    // One connection at a time: see `records::list`.
    let seen = org.view.release();
    let global = if global.is_empty() {
        BTreeMap::new()
    } else {
        catalog_items::withdrawn_among(&mut app.db.read(PLATFORM).await?, &ids(global)).await?
    };
    let view = |Reference { pointer, to: id, to_kind: kind, is_global, .. }: Reference| {
        let (scope, states) = if is_global { ("global", &global) } else { ("own", &own) };
        ReferenceView { pointer, id, kind, scope, archived: states.get(&id).copied() }
    };
    Ok(seen.listing(&References { data: found.into_iter().map(view).collect() }))
}

/// List what refers to a record
///
/// One row for each reference, those of the newest records first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/records/{record}/referrers", operation_id = "list_record_referrers", tag = "records",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<ReferrerView>)),
)]
pub async fn referrers(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Item(id): Item<RecordId>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "referrers", &id);
    let part = cursors.read(page.cursor.as_deref())?;
    let tx = &mut org.view.tx;
    records::archived_among(tx, &[id]).await?.get(&id).ok_or_else(Problem::not_found)?;
    let rows = record_references::to(tx, id, &part, page.limit()?).await?;
    let from: Vec<RecordId> = rows.rows.iter().map(|reference| reference.from).collect();
    let states = records::archived_among(tx, &from).await?;
    let view = |Reference { from: id, from_kind: kind, pointer, .. }: Reference| {
        let archived = states.get(&id).copied().unwrap_or_default();
        ReferrerView { id, kind, pointer, archived }
    };
    Ok(org.view.listing(&cursors.page(&part, rows, view)))
}
