//! The views that kinds declare of their records: which there are, and their rows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{extract::State, http::HeaderMap, response::Response};
use orgstream_domain::{
    Permission,
    views::{BucketName, KindViewDefinition},
};
use orgstream_events::{Bucket, KindName, OrgId, Pipeline, Timestamp, ViewDefinition};
use orgstream_projections::{
    RebuildJob,
    views::{self, KindViews, ViewFilter, ViewRow},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{ItemOf, OrgAccess, Query},
            page::{Page, PageQuery},
            policy::{AuditTrail, Policy, READ},
            routes::Routes,
            wait::View,
        },
        platform::kinds,
    },
    app::problem::Problem,
};

/// The pause before another read of a view that is being built.
const RETRY: Duration = Duration::from_secs(5);

/// State of a view in an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ViewState {
    /// Its rows have all records.
    Ready,
    /// It is being built beside what is shown.
    Building,
    /// Its build waits for others.
    Waiting,
}

/// A view of an organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeclaredView {
    /// Kind of record, by name.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// Declaration of the view.
    pub definition: KindViewDefinition,
    /// State in this organization: `ready`, `building` or `waiting`.
    pub state: ViewState,
    /// Part of the build that is done, in percent; null when the view is ready.
    #[schema(example = 42, minimum = 0, maximum = 99)]
    pub percent: Option<u64>,
}

/// All views.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeclaredViews {
    /// Views, ordered by kind, then as they were declared.
    pub data: Vec<DeclaredView>,
}

/// Which rows of a view.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RowQuery {
    /// Time of the earliest bucket's start, RFC 3339.
    #[param(format = DateTime)]
    pub from: Option<String>,
    /// Time before which the last bucket starts, RFC 3339.
    #[param(format = DateTime)]
    pub to: Option<String>,
    /// Group, as rows have it in `group`: a JSON array with one value for each pointer of `group_by`.
    #[param(example = "[\"sonnet-small\"]")]
    pub group: Option<String>,
}

/// A row of a view.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ViewRowView {
    /// Time of the bucket's start, RFC 3339 in UTC; null in a view without buckets.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub bucket: Option<Timestamp>,
    /// Values of the group, one for each pointer of `group_by`; null where the records have none.
    #[schema(example = json!(["sonnet-small"]))]
    pub group: Vec<Value>,
    /// Measures by name: exact decimals as texts; null where no record of the row has a value.
    #[schema(example = json!({"runs": "12", "mean_score": "0.93"}))]
    pub measures: BTreeMap<String, Option<String>>,
}

/// One page of a view.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ViewPage {
    /// Kind of record, by name.
    #[schema(value_type = String, example = "evaluation")]
    pub kind: KindName,
    /// Name of the view.
    #[schema(example = "by_model_and_day")]
    pub view: String,
    /// JSON pointers to the values of `group`, in its order.
    #[schema(example = json!(["/model"]))]
    pub group_by: Vec<String>,
    /// Length of time that a row is about, in UTC: `none`, `hour`, `day` or `month`.
    pub bucket: BucketName,
    /// Version of the kind whose declaration the rows follow; null before the first record.
    #[schema(example = 1)]
    pub kind_version: Option<u64>,
    /// Part of the build of a newer declaration that is done, in percent; null when the rows follow the newest.
    #[schema(example = 42, minimum = 0, maximum = 99)]
    pub building: Option<u64>,
    /// Rows of this page: the earliest bucket first, the groups of a bucket ordered by their values as texts.
    pub data: Vec<ViewRowView>,
    /// Cursor of the next page; null on the last.
    pub next_cursor: Option<String>,
    /// Cursor of the page before; null on the first.
    pub prev_cursor: Option<String>,
    /// True if there is a next page.
    pub has_more: bool,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(list), Policy::Org(Permission::ReadRecords), READ, AuditTrail::ReadNotAudited).route(
        routes!(show),
        Policy::Org(Permission::ReadRecords),
        READ,
        AuditTrail::ReadNotAudited,
    )
}

/// List views
///
/// Those that kinds declare, with their state in this organization. A view that was declared or changed after there were records is
/// built beside the rows that are shown.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/views", operation_id = "list_views", tag = "records",
    responses((status = 200, description = "All of them", body = DeclaredViews)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // One connection at a time: see `records::list`.
    View::wait(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let declared = kinds::with_views(&app, access.bound()).await?;
    let percent = built(&app, access.org()).await?;
    let mut view = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let folded = views::folded(&mut view.tx).await?;
    let names: Vec<KindName> = declared.keys().cloned().collect();
    let with_records = views::with_records(&mut view.tx, &names).await?;
    let mut data = Vec::new();
    for (kind, definitions) in declared {
        for definition in definitions {
            let is_ready = !with_records.contains(&kind) || follows(folded.get(&kind), &definition);
            let (state, percent) = match percent {
                _ if is_ready => (ViewState::Ready, None),
                Some(percent) => (ViewState::Building, Some(percent)),
                None => (ViewState::Waiting, Some(0)),
            };
            data.push(DeclaredView { kind: kind.clone(), definition: definition.into(), state, percent });
        }
    }
    Ok(view.release().listing(&DeclaredViews { data }))
}

/// Get the rows of a view
///
/// Archived records are in none. A view that was declared after there were records answers `view_building` until it is built; one
/// that was changed shows the rows of its last declaration, with `building` in the answer.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/views/{kind}/{view}", operation_id = "get_view", tag = "records",
    params(RowQuery, PageQuery), responses((status = 200, description = "One page", body = ViewPage)),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    ItemOf(kind, name): ItemOf<KindName, String>,
    headers: HeaderMap,
    Query(query): Query<RowQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    View::wait(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let known = kinds::known(&app, access.bound(), &kind).await?;
    let declared = known.map(|found| found.definition.views).unwrap_or_default();
    let Some(newest) = declared.iter().find(|view| view.name == name) else {
        return Err(unknown(&kind, &declared));
    };
    let percent = built(&app, access.org()).await?;
    let mut view = View::open(&app, access.bound(), Pipeline::ReadModels, &headers).await?;
    let folded = views::folded(&mut view.tx).await?.remove(&kind);
    let followed = folded.as_ref().and_then(|folded| folded.views.iter().find(|view| view.name == name));
    let has_records = !views::with_records(&mut view.tx, std::slice::from_ref(&kind)).await?.is_empty();
    let (definition, building) = match followed {
        Some(followed) if followed == newest => (newest, None),
        Some(followed) => (followed, Some(percent.unwrap_or_default())),
        None if !has_records => (newest, None),
        None => return Err(being_built(&name, percent)),
    };
    let filter = filter(&query, definition)?;
    let kind_version = folded.as_ref().map(|folded| folded.kind_version);
    let cursors = app.cursors.listing(access.org(), "views", &(&kind, &name, kind_version, &query));
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = views::rows(&mut view.tx, &kind, &name, &filter, &part, page.limit()?).await?;
    let shown = |row: ViewRow| {
        let measures = row.measures(definition).into_iter().collect();
        ViewRowView { bucket: row.bucket, group: row.group, measures }
    };
    let Page { data, next_cursor, prev_cursor, has_more } = cursors.page(&part, rows, shown);
    let (group_by, bucket) = (definition.group_by.clone(), definition.bucket.into());
    Ok(view.release().listing(&ViewPage {
        kind,
        view: name,
        group_by,
        bucket,
        kind_version,
        building,
        data,
        next_cursor,
        prev_cursor,
        has_more,
    }))
}

fn follows(folded: Option<&KindViews>, definition: &ViewDefinition) -> bool {
    folded.is_some_and(|folded| folded.views.contains(definition))
}

/// Returns how much of the organization's build is done, in percent; none when there is none under way.
async fn built(app: &App, org: OrgId) -> Result<Option<u64>, Problem> {
    let jobs = app.db.rebuilds_of(&[org], Pipeline::ReadModels).await?;
    let job = jobs.iter().find(|job| job.state.is_under_way() && job.job == RebuildJob::Build);
    Ok(job.map(|job| (job.events.saturating_mul(100) / job.total.max(1)).min(99)))
}

fn unknown(kind: &KindName, declared: &[ViewDefinition]) -> Problem {
    let names: Vec<&str> = declared.iter().map(|view| view.name.as_str()).collect();
    let there_are = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let detail = format!("the kind {kind} declares no such view; there are: {there_are}");
    Problem::new(404, "not_found", "Not found", detail)
}

fn being_built(name: &str, percent: Option<u64>) -> Problem {
    let how_far = percent.map_or_else(
        || "its build has not begun yet".to_owned(),
        |percent| format!("{percent} % of its build is done"),
    );
    let detail = format!(
        "the view {name} was declared after there were records: {how_far}. Try again later; GET …/views shows the progress"
    );
    let problem = Problem::new(503, "view_building", "Being built", detail);
    Problem { retry_after: Some(RETRY), ..problem }
}

fn filter(query: &RowQuery, view: &ViewDefinition) -> Result<ViewFilter, Problem> {
    let time = |name: &str, text: Option<&str>| {
        let Some(text) = text else { return Ok(None) };
        if view.bucket == Bucket::None {
            return Err(Problem::invalid_parameter(name, "this view has no buckets: its rows are about all time"));
        }
        let rule = "must be a time in RFC 3339, such as 2026-03-01T12:00:00Z, with %2B for +";
        text.parse::<Timestamp>().map(Some).map_err(|_| Problem::invalid_parameter(name, rule))
    };
    let (from, to) = (time("from", query.from.as_deref())?, time("to", query.to.as_deref())?);
    let group = query.group.as_deref().map(|text| group(text, view)).transpose()?;
    Ok(ViewFilter { from, to, group })
}

fn group(text: &str, view: &ViewDefinition) -> Result<Vec<Value>, Problem> {
    let is_one = |value: &Value| !matches!(value, Value::Array(_) | Value::Object(_));
    let values = serde_json::from_str::<Vec<Value>>(text).ok();
    let values = values.filter(|values| values.len() == view.group_by.len() && values.iter().all(is_one));
    values.ok_or_else(|| {
        let pointers = view.group_by.join(", ");
        let rule = format!("must be a JSON array with one value for each of these, in this order: [{pointers}]");
        Problem::invalid_parameter("group", rule)
    })
}
