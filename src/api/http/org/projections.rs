//! How far the projections of one org are.

use std::sync::Arc;

use axum::{Json, extract::State};
use orgstream_domain::openapi;
use orgstream_events::{OrgId, Pipeline, Position, Timestamp};
use orgstream_projections::{
    checkpoints,
    parked::{self, Parked},
};
use orgstream_stream::{Placement, ReadLimit, StreamName};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::http::{App, kit::extract::OrgAccess},
    app::problem::Problem,
};

/// Messages that are counted at most. Counting all of a long backlog would be work for the log.
const COUNTED: u16 = 1_000;
/// Messages that are named that could not be applied.
const NAMED: usize = 100;

/// How far one pipeline is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectionView {
    /// Which pipeline.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Everything up to here has been applied or parked.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: Position,
    /// The last message of the organization, or of those that were counted.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub head: Position,
    /// Messages that wait to be applied; counted up to 1,000.
    #[schema(example = 0)]
    pub behind: usize,
    /// When the first of them was recorded; null when nothing waits.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub behind_since: Option<Timestamp>,
    /// Messages that could not be applied, and those that wait behind them; counted up to 1,000.
    #[schema(example = 0)]
    pub parked: usize,
    /// Which messages those are; the first 100. What was read, exported or proven of this pipeline is without them.
    pub without: Vec<LackedView>,
    /// When something was last applied; null before the beginning.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

/// A message that a pipeline has passed and not applied.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LackedView {
    /// Where it is.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: Position,
    /// What it is about: `<type>.<id>`.
    #[schema(example = "record.res_01h455vb4pex5vsknk084sn02q")]
    pub aggregate: String,
    /// `failed` itself, or `waiting` behind one that did.
    #[schema(example = "failed")]
    pub state: &'static str,
    /// What went wrong; empty when waiting.
    pub reason: String,
}

/// How far every pipeline is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectionsView {
    /// The pipelines.
    pub data: Vec<ProjectionView>,
    /// How it was found that the event log lost messages of the part that the organization is in, while the operator has not
    /// decided about it; null as a rule. Until then nothing is taken, and what is shown here is of before.
    pub lost: Option<String>,
}

/// Show how far the projections are
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
