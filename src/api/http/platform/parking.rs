//! Parked events, which could not be applied, and an operator's decisions about them.

use std::sync::Arc;

use axum::{Json, extract::State, response::Response};
use orgstream_domain::{Permission, RetryParked, SkipParked, openapi};
use orgstream_events::{Pipeline, Timestamp};
use orgstream_projections::{
    Page as Part,
    parked::{self, Parked},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, OrgAccess, Query, Writer},
            page::{Page, PageQuery},
            reply,
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A message that a pipeline could not apply, or that waits behind such a one.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ParkedView {
    /// Name of the pipeline.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Stream sequence of the message; skipping takes it.
    #[schema(example = 17)]
    pub seq: u64,
    /// Aggregate whose events wait: `<type>.<id>`.
    #[schema(example = "record.res_01h455vb4pex5vsknk084sn02q")]
    pub aggregate: String,
    /// State: `failed`, or `waiting` behind a message that failed.
    #[schema(example = "failed")]
    pub state: &'static str,
    /// Error in words; empty when waiting.
    pub reason: String,
    /// Number of attempts to apply it.
    pub attempts: u32,
    /// Time of the first parking, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub parked_at: Timestamp,
}

impl From<Parked> for ParkedView {
    fn from(parked: Parked) -> Self {
        let aggregate = parked.aggregate().to_owned();
        let Parked { pipeline, seq, subject: _, state, reason, attempts, parked_at } = parked;
        Self { pipeline, seq, aggregate, state: state.name(), reason, attempts, parked_at }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ManageParking), Shape::Plain, AuditTrail::ReadNotAudited)
        .route(routes!(retry), Policy::Org(Permission::ManageParking), Shape::Create, AuditTrail::Events)
        .route(routes!(skip), Policy::Org(Permission::ManageParking), Shape::Create, AuditTrail::Events)
}

/// List parked messages
///
/// In stream order, pipeline by pipeline. For platform operators.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/parked", operation_id = "list_parked", tag = "parking",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<ParkedView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<ParkedView>>, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "parked", &());
    let after = match cursors.read::<(Pipeline, u64)>(page.cursor.as_deref())? {
        Part::First => None,
        Part::After(place) => Some(place),
        Part::Before(_) => return Err(Problem::invalid_parameter("cursor", "this listing goes forward only")),
    };
    let limit = page.limit()?;
    let mut rows = parked::list(&mut app.db.read(org.access.bound()).await?, after, limit + 1).await?;
    let has_more = rows.len() > usize::from(limit);
    rows.truncate(limit.into());
    let next_cursor = rows.last().filter(|_| has_more).map(|row| cursors.after(&(row.pipeline, row.seq)));
    let data = rows.into_iter().map(ParkedView::from).collect();
    Ok(Json(Page { data, next_cursor, prev_cursor: None, has_more }))
}

/// Retry parked messages
///
/// Applies those of one aggregate again, in order. For platform operators.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/parked/retry", operation_id = "retry_parked", tag = "parking",
    request_body = RetryParked, responses((status = 200, description = "Decided", body = AcceptedCommand)),
)]
pub async fn retry(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<RetryParked>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}

/// Skip a parked message
///
/// Gives up the first one of an aggregate, then applies the others in order. For platform operators.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/parked/skip", operation_id = "skip_parked", tag = "parking",
    request_body = SkipParked, responses((status = 200, description = "Decided", body = AcceptedCommand)),
)]
pub async fn skip(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<SkipParked>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}
