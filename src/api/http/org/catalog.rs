//! The catalog as an organization sees it: its own records of the catalog's kinds, then what the platform publishes, without what
//! it hides.
//!
//! Own and published rows come from two transactions, each bound to one organization: no policy has two.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, http::HeaderMap, response::Response};
use orgstream_domain::{ChooseCatalogItem, ClearCatalogChoice, Permission, openapi};
use orgstream_events::{CatalogChoice, KindName, Pipeline, RecordId, Timestamp, Visibility};
use orgstream_projections::{
    Listing, Page as Part, Placed, catalog_choices,
    catalog_items::{self, CatalogFilter, CatalogItem},
    kinds::CatalogKind,
    records::{self, Record},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, OrgAccess, Query, Writer},
            page::{CursorPlace, Page, PageQuery},
            policy::{AuditTrail, Policy, READ, Shape},
            reply,
            routes::Routes,
            wait::View,
        },
        platform::catalog::kinds_of_catalog,
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// Which entries of the catalog.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CatalogQuery {
    /// Kind of record, by name; all kinds of the catalog without one.
    #[param(value_type = Option<String>, example = "model")]
    pub kind: Option<KindName>,
    /// Published items: of every kind (`true`), of none (`false`), or else of those whose visibility is `default_on`.
    #[param(example = true)]
    pub include_global: Option<bool>,
    /// Another name of `include_global`.
    #[param(example = true)]
    pub include_public_threat_intel: Option<bool>,
    /// True leaves only the items that the organization has pinned, of every kind.
    #[param(example = false)]
    pub pinned: Option<bool>,
    /// True has the items that the organization hides among the others.
    #[param(example = false)]
    pub hidden: Option<bool>,
}

/// The owner of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Scope {
    Own,
    Global,
}

/// An entry of the catalog: a record of the organization, or a published item.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CatalogEntry {
    /// Record id (`res_` and 26 characters).
    #[schema(value_type = String, example = "res_01h455vb4pex5vsknk084sn02q")]
    pub id: RecordId,
    /// Owner of the entry: `own` for this organization, `global` for the platform.
    #[schema(value_type = String, example = "global")]
    scope: Scope,
    /// Kind of record, by name.
    #[schema(value_type = String, example = "model")]
    pub kind: KindName,
    /// Version of the kind that the content was checked against.
    #[schema(example = 1)]
    pub kind_version: u64,
    /// Version of the record, or of the published item, counted from 1.
    #[schema(example = 1)]
    pub version: u64,
    /// Content, all of it.
    #[schema(example = json!({"name": "sonnet-small", "provider": "in-house"}))]
    pub data: Value,
    /// True for an item that the organization has pinned.
    pub pinned: bool,
    /// True for an item that the organization hides.
    pub hidden: bool,
    /// Time of creation, or of the first publication, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, or of the publication of this version, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// A row of the listing.
#[derive(Debug)]
enum Row {
    Own(Record),
    Global(CatalogItem),
}

/// The position of a row: all own ones come before all published ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogPlace {
    is_global: bool,
    /// The stream sequence of the creation or of the first publication.
    created_seq: u64,
}

impl CursorPlace for CatalogPlace {
    fn to_bytes(&self) -> Vec<u8> {
        [&[u8::from(self.is_global)][..], &self.created_seq.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (is_global, seq) = bytes.split_first()?;
        Some(Self { is_global: *is_global == 1, created_seq: u64::from_be_bytes(seq.try_into().ok()?) })
    }
}

impl Placed for Row {
    type Place = CatalogPlace;

    fn place(&self) -> CatalogPlace {
        match self {
            Self::Own(record) => CatalogPlace { is_global: false, created_seq: record.created_seq },
            Self::Global(item) => CatalogPlace { is_global: true, created_seq: item.created_seq },
        }
    }
}

impl Row {
    fn shown(self, choices: &BTreeMap<RecordId, CatalogChoice>) -> CatalogEntry {
        match self {
            Self::Own(record) => {
                let Record { id, kind, kind_version, data, version, created_at, updated_at, .. } = record;
                let (scope, pinned, hidden) = (Scope::Own, false, false);
                CatalogEntry { id, scope, kind, kind_version, version, data, pinned, hidden, created_at, updated_at }
            }
            Self::Global(item) => {
                let CatalogItem { id, kind, kind_version, data, item_version, created_at, updated_at, .. } = item;
                let is = |choice| choices.get(&id) == Some(&choice);
                let (pinned, hidden) = (is(CatalogChoice::Pinned), is(CatalogChoice::Hidden));
                let (scope, version) = (Scope::Global, item_version);
                CatalogEntry { id, scope, kind, kind_version, version, data, pinned, hidden, created_at, updated_at }
            }
        }
    }
}

/// The choice about an item.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceContent {
    /// Choice, in place of an earlier one.
    #[schema(schema_with = openapi::catalog_choice)]
    pub choice: CatalogChoice,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited)
        .route(routes!(choose), Policy::Org(Permission::ManageCatalog), Shape::Change, AuditTrail::Events)
        .route(routes!(clear), Policy::Org(Permission::ManageCatalog), Shape::Change, AuditTrail::Events)
}

/// List the catalog of an organization
///
/// Its own records of the catalog's kinds that are not archived, the newest first, then what the platform publishes, the item that
/// was published first last. `scope` tells them apart. Published items of the kinds whose visibility is `opt_in` are there when
/// `include_global` asks for them. `Min-Position` and `Projection-Position` are about the organization's own.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/catalog", operation_id = "list_organization_catalog", tag = "catalog",
    params(CatalogQuery, PageQuery), responses((status = 200, description = "One page", body = Page<CatalogEntry>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    headers: HeaderMap,
    Query(query): Query<CatalogQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(access.org(), "catalog", &query);
    let (part, limit) = (cursors.read(page.cursor.as_deref())?, page.limit()?);
    // One transaction at a time: see `records::list`.
    let kinds = wanted_kinds(kinds_of_catalog(&app).await?, &query)?;
    let mut view = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let choices = catalog_choices::all(&mut view.tx).await?;
    let own = match own_part(&part).filter(|_| !kinds.own.is_empty()) {
        Some(part) => records::list_of_kinds(&mut view.tx, &kinds.own, &part, limit).await?,
        None => Listing { rows: Vec::new(), more: false },
    };
    let seen = view.release();
    let rows = match part {
        Part::First | Part::After(_) => {
            let left = limit.saturating_sub(u16::try_from(own.rows.len()).unwrap_or(limit));
            let mut rows: Vec<Row> = own.rows.into_iter().map(Row::Own).collect();
            let more = if own.more {
                true
            } else {
                // Of a full page it is only looked whether there is another one.
                let global = global(&app, &kinds, &choices, &query, &global_part(&part), left.max(1)).await?;
                let is_full = left == 0 && !global.rows.is_empty();
                rows.extend(global.rows.into_iter().take(left.into()).map(Row::Global));
                global.more || is_full
            };
            Listing { rows, more }
        }
        Part::Before(CatalogPlace { is_global: false, .. }) => {
            Listing { rows: own.rows.into_iter().map(Row::Own).collect(), more: own.more }
        }
        Part::Before(CatalogPlace { is_global: true, .. }) => {
            let global = global(&app, &kinds, &choices, &query, &global_part(&part), limit).await?;
            let left = if global.more { 0 } else { usize::from(limit).saturating_sub(global.rows.len()) };
            // The last of the own ones come right before the first of the published ones.
            let skipped = own.rows.len().saturating_sub(left);
            let more = global.more || own.more || skipped > 0;
            let own = own.rows.into_iter().skip(skipped).map(Row::Own);
            Listing { rows: own.chain(global.rows.into_iter().map(Row::Global)).collect(), more }
        }
    };
    Ok(seen.listing(&cursors.page(&part, rows, |row| row.shown(&choices))))
}

/// The kinds of a listing.
struct Kinds {
    own: Vec<KindName>,
    global: Vec<KindName>,
}

fn wanted_kinds(known: Vec<CatalogKind>, query: &CatalogQuery) -> Result<Kinds, Problem> {
    let CatalogQuery { kind, include_global, include_public_threat_intel, pinned, .. } = query;
    let include = match (include_global, include_public_threat_intel) {
        (Some(one), Some(other)) if one != other => {
            let rule = "is the same as include_global: give one of them";
            return Err(Problem::invalid_parameter("include_public_threat_intel", rule));
        }
        (one, other) => one.or(*other),
    };
    if let Some(kind) = kind
        && !known.iter().any(|known| known.name == *kind)
    {
        let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
        let detail = format!("the catalog has no kind {kind}; there are: {}", names.join(", "));
        return Err(Problem::invalid("/kind", "unknown", detail));
    }
    let pinned = pinned.unwrap_or_default();
    let is_global = |visibility| match include {
        Some(include) => include,
        // What was pinned was asked for.
        None => pinned || visibility == Visibility::DefaultOn,
    };
    let known = known.into_iter().filter(|known| kind.as_ref().is_none_or(|kind| known.name == *kind));
    let mut kinds = Kinds { own: Vec::new(), global: Vec::new() };
    for CatalogKind { name, visibility, .. } in known {
        if is_global(visibility) {
            kinds.global.push(name.clone());
        }
        if !pinned {
            kinds.own.push(name);
        }
    }
    Ok(kinds)
}

/// Returns the part of the own rows that a page begins with; none where there are only published ones.
fn own_part(part: &Part<CatalogPlace>) -> Option<Part<u64>> {
    match part {
        Part::First => Some(Part::First),
        Part::After(CatalogPlace { is_global: false, created_seq }) => Some(Part::After(*created_seq)),
        Part::After(CatalogPlace { is_global: true, .. }) => None,
        Part::Before(CatalogPlace { is_global: false, created_seq }) => Some(Part::Before(*created_seq)),
        // From the end of the own ones on.
        Part::Before(CatalogPlace { is_global: true, .. }) => Some(Part::Before(0)),
    }
}

fn global_part(part: &Part<CatalogPlace>) -> Part<u64> {
    match part {
        Part::After(CatalogPlace { is_global: true, created_seq }) => Part::After(*created_seq),
        Part::Before(CatalogPlace { is_global: true, created_seq }) => Part::Before(*created_seq),
        Part::First | Part::After(_) | Part::Before(_) => Part::First,
    }
}

async fn global(
    app: &App,
    kinds: &Kinds,
    choices: &BTreeMap<RecordId, CatalogChoice>,
    query: &CatalogQuery,
    part: &Part<u64>,
    limit: u16,
) -> Result<Listing<CatalogItem>, Problem> {
    if kinds.global.is_empty() {
        return Ok(Listing { rows: Vec::new(), more: false });
    }
    let chosen = |wanted| -> Vec<RecordId> {
        choices.iter().filter(|(_, choice)| **choice == wanted).map(|(id, _)| *id).collect()
    };
    let filter = CatalogFilter {
        kinds: kinds.global.clone(),
        only: query.pinned.unwrap_or_default().then(|| chosen(CatalogChoice::Pinned)),
        without: if query.hidden.unwrap_or_default() { Vec::new() } else { chosen(CatalogChoice::Hidden) },
    };
    Ok(catalog_items::list(&mut app.db.read_published().await?, &filter, part, limit).await?)
}

/// Pin or hide an item of the catalog
///
/// For this organization alone: the item stays what it is for everybody else.
#[utoipa::path(
    put, path = "/v1/organizations/{org}/catalog/{record}/choice", operation_id = "choose_catalog_item", tag = "catalog",
    request_body = ChoiceContent, responses((status = 200, description = "Chosen", body = AcceptedCommand)),
)]
pub async fn choose(
    State(app): State<Arc<App>>,
    writer: Writer,
    Item(id): Item<RecordId>,
    Body(ChoiceContent { choice }): Body<ChoiceContent>,
) -> Result<Response, Problem> {
    writer.submit(&app, ChooseCatalogItem { id, choice }).await.map(reply::changed)
}

/// Clear the choice about an item of the catalog
///
/// The item is neither pinned nor hidden any more.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/catalog/{record}/choice", operation_id = "clear_catalog_choice", tag = "catalog",
    responses((status = 200, description = "Cleared", body = AcceptedCommand)),
)]
pub async fn clear(State(app): State<Arc<App>>, writer: Writer, Item(id): Item<RecordId>) -> Result<Response, Problem> {
    writer.submit(&app, ClearCatalogChoice { id }).await.map(reply::changed)
}
