//! The progress of the projections of one org.

use std::sync::Arc;

use axum::{Json, extract::State};
use orgstream_domain::{Permission, openapi};
use orgstream_events::{OrgId, Pipeline, Position, Timestamp};
use orgstream_projections::{
    checkpoints,
    parked::{self, Parked},
};
use orgstream_stream::{Placement, ReadLimit, StreamName};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{App, kit::extract::OrgAccess},
    app::problem::Problem,
};

/// The maximum number of messages that are counted. Counting all of a long backlog would burden the log.
const COUNTED: u16 = 1_000;
/// The maximum number of named messages that could not be applied.
const NAMED: usize = 100;

/// How far one pipeline is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectionView {
    /// Name of the pipeline.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Position up to which everything is applied or parked.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: Position,
    /// Position of the last message of the organization, or of the last that was counted.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub head: Position,
    /// Number of messages to apply, counted up to 1,000.
    #[schema(example = 0)]
    pub behind: usize,
    /// Time of the first of them, RFC 3339 in UTC; null when there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub behind_since: Option<Timestamp>,
    /// Number of parked messages, with those that wait behind them; counted up to 1,000.
    #[schema(example = 0)]
    pub parked: usize,
    /// Parked messages, the first 100: reads, exports and proofs of this pipeline are without them.
    pub without: Vec<LackedView>,
    /// Time of the last applied message, RFC 3339 in UTC; null before the first.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

/// A message that a pipeline has passed and not applied.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LackedView {
    /// Position of the message.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: Position,
    /// Aggregate of the message: `<type>.<id>`.
    #[schema(example = "record.res_01h455vb4pex5vsknk084sn02q")]
    pub aggregate: String,
    /// State: `failed`, or `waiting` behind a message that failed.
    #[schema(example = "failed")]
    pub state: &'static str,
    /// Error in words; empty when waiting.
    pub reason: String,
}

/// How far every pipeline is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectionsView {
    /// State of each pipeline.
    pub data: Vec<ProjectionView>,
    /// Finding that the shard of the organization lost messages, while the operator has not decided; null otherwise. Until then
    /// no command is taken, and reads show the state before.
    pub lost: Option<String>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(
        routes!(list),
        Policy::Org(Permission::ReadProjections),
        Shape::Plain,
        AuditTrail::ReadNotAudited,
    )
}

/// Show the progress of the pipelines
#[utoipa::path(
    get, path = "/v1/organizations/{org}/projections", operation_id = "list_projections", tag = "projections",
    responses((status = 200, description = "Every pipeline", body = ProjectionsView)),
)]
pub async fn list(State(app): State<Arc<App>>, org: OrgAccess) -> Result<Json<ProjectionsView>, Problem> {
    let placement = app.log.placement(org.access.org()).await?.ok_or_else(Problem::not_found)?;
    let mut tx = app.db.read(org.access.bound()).await?;
    let checkpoints = checkpoints::all(&mut tx).await?;
    let parked = parked::list(&mut tx, None, COUNTED).await?;
    drop(tx);
    let mut data = Vec::with_capacity(Pipeline::ALL.len());
    for pipeline in Pipeline::ALL {
        let current = |checkpoint: &&checkpoints::Checkpoint| {
            checkpoint.pipeline == pipeline && checkpoint.active && checkpoint.shard == placement.shard
        };
        let checkpoint = checkpoints.iter().find(current);
        let seq = checkpoint.map_or(0, |checkpoint| checkpoint.seq);
        let backlog = backlog(&app, &placement, seq).await?;
        data.push(ProjectionView {
            pipeline,
            position: Position { org: placement.org, seq },
            head: Position { org: placement.org, seq: backlog.head.max(seq) },
            behind: backlog.messages,
            behind_since: backlog.since,
            parked: parked.iter().filter(|parked| parked.pipeline == pipeline).count(),
            without: without(&parked, pipeline, placement.org),
            updated_at: checkpoint.map(|checkpoint| checkpoint.updated_at),
        });
    }
    let lost = app.log.lost_of(StreamName::Shard(placement.shard)).or_else(|| app.log.lost_of(StreamName::System));
    Ok(Json(ProjectionsView { data, lost }))
}

fn without(parked: &[Parked], pipeline: Pipeline, org: OrgId) -> Vec<LackedView> {
    let of_pipeline = parked.iter().filter(|parked| parked.pipeline == pipeline).take(NAMED);
    of_pipeline
        .map(|parked| LackedView {
            position: Position { org, seq: parked.seq },
            aggregate: parked.aggregate().to_owned(),
            state: parked.state.name(),
            reason: parked.reason.clone(),
        })
        .collect()
}

#[derive(Default)]
struct Backlog {
    messages: usize,
    head: u64,
    since: Option<Timestamp>,
}

async fn backlog(app: &App, placement: &Placement, after: u64) -> Result<Backlog, Problem> {
    let limit = ReadLimit { messages: COUNTED.into(), bytes: 4 << 20 };
    let mut backlog = Backlog { head: after, ..Backlog::default() };
    while backlog.messages < COUNTED.into() {
        let chunk = app.log.read(placement.shard, placement.org, backlog.head + 1, limit).await?;
        if backlog.since.is_none() {
            let first = chunk.messages.first().and_then(|message| message.open(app.log.keys()).ok());
            backlog.since = first.and_then(|stored| stored.commit.events.first().map(|event| event.header.recorded_at));
        }
        backlog.messages = (backlog.messages + chunk.messages.len()).min(COUNTED.into());
        let Some(last) = chunk.messages.last() else { break };
        backlog.head = last.seq;
        if chunk.ended {
            break;
        }
    }
    Ok(backlog)
}
