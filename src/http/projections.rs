//! How far the projections of one org are.

use std::sync::Arc;

use axum::{Json, extract::State};
use orgstream_events::{Pipeline, Position, Timestamp};
use orgstream_projections::{checkpoints, parked};
use orgstream_stream::{Placement, ReadLimit};
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, extract::OrgAccess};
use crate::{commands::openapi, problem::Problem};

/// Messages that are counted at most. Counting all of a long backlog would be work for the log.
const COUNTED: u16 = 1_000;

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
    /// When something was last applied; null before the beginning.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
}

/// How far every pipeline is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProjectionsView {
    /// The pipelines.
    pub data: Vec<ProjectionView>,
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
            updated_at: checkpoint.map(|checkpoint| checkpoint.updated_at),
        });
    }
    Ok(Json(ProjectionsView { data }))
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
