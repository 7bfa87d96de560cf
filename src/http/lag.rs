//! Who is the furthest behind, over all orgs: the operator's first question.

use std::sync::Arc;

use axum::{Json, extract::State};
use orgstream_events::{OrgId, Pipeline, Shard};
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, extract::SignedIn};
use crate::{commands::openapi, problem::Problem};

/// One lane: the work of one pipeline for one organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LaneView {
    /// Whose.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Which pipeline.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// How long the oldest message in memory has waited, in milliseconds; null where no worker of this process knows.
    pub age_ms: Option<u64>,
    /// Messages in memory that wait; null where no worker of this process knows.
    pub waiting: Option<usize>,
    /// Whether the lane was over budget and reads the log at its own pace.
    pub detached: bool,
}

/// One shard.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ShardView {
    /// Which.
    #[schema(value_type = u16, example = 3)]
    pub shard: Shard,
    /// The worker that has it; null when nobody has.
    #[schema(value_type = Option<String>)]
    pub worker: Option<uuid::Uuid>,
    /// The last message of its stream.
    pub head: u64,
    /// Everything up to here is done for every organization that is not detached.
    pub mark: u64,
    /// How many lanes are behind the mark.
    pub detached: usize,
}

/// The lag of the whole platform.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LagView {
    /// Where `data` comes from: the `worker` of this process, or the `database`, which knows detached lanes only.
    #[schema(example = "worker")]
    pub source: &'static str,
    /// The lanes that are the furthest behind, the worst first.
    pub data: Vec<LaneView>,
    /// Every shard.
    pub shards: Vec<ShardView>,
}

/// Show who is the furthest behind
///
/// For platform operators.
#[utoipa::path(
    get, path = "/v1/platform/lag", operation_id = "get_lag", tag = "projections",
    responses((status = 200, description = "The worst lanes, and every shard", body = LagView)),
)]
pub async fn worst(State(app): State<Arc<App>>, _: SignedIn) -> Result<Json<LagView>, Problem> {
    let leases = app.db.leases().await?;
    let mut shards = Vec::new();
    let mut detached = Vec::new();
    for shard in app.log.shards() {
        let mark = app.db.shard_mark(shard).await?;
        shards.push(ShardView {
            shard,
            worker: leases.iter().find(|lease| lease.shard == shard).and_then(|lease| lease.owner),
            head: app.log.shard_state(shard).await?.last_seq,
            mark: mark.seq,
            detached: mark.detached.len(),
        });
        detached.extend(mark.detached);
    }
    let worker = app.worker.as_ref().map(|worker| worker.worst.borrow().clone());
    let source = if worker.is_some() { "worker" } else { "database" };
    let data = match worker {
        Some(lanes) => lanes
            .into_iter()
            .map(|lane| LaneView {
                org_id: lane.org,
                pipeline: lane.pipeline,
                age_ms: Some(lane.age_ms),
                waiting: Some(lane.waiting),
                detached: lane.detached,
            })
            .collect(),
        None => detached
            .into_iter()
            .map(|(org_id, pipeline)| LaneView { org_id, pipeline, age_ms: None, waiting: None, detached: true })
            .collect(),
    };
    Ok(Json(LagView { source, data, shards }))
}
