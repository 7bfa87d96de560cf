//! The lanes that are the furthest behind, over all orgs: the operator's first question.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use orgstream_domain::openapi;
use orgstream_events::{OrgId, Pipeline, Shard, Timestamp};
use orgstream_projections::{BoundOrg, Stray, StrayFound, checkpoints};
use orgstream_stream::StreamName;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{App, kit::extract::SignedIn},
    app::problem::Problem,
};

/// The time without a sign of life after which a worker is not counted.
const SEEN: Duration = Duration::from_secs(15);
/// The maximum number of strays that are shown.
const STRAYS: u16 = 20;

/// One lane: the work of one pipeline for one organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LaneView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Name of the pipeline.
    #[schema(schema_with = openapi::pipeline)]
    pub pipeline: Pipeline,
    /// Wait of the oldest message in memory, in milliseconds; null without a report of a worker.
    pub age_ms: Option<u64>,
    /// Number of messages in memory; null without a report of a worker.
    pub waiting: Option<usize>,
    /// True if the lane is over its memory and reads the log at its own pace.
    pub catching_up: bool,
    /// Milliseconds since which the checkpoint has not moved although the log has more for it; null while it moves. Measured
    /// from outside of the lane.
    pub standing_ms: Option<u64>,
}

/// One shard.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ShardView {
    /// Number of the shard, from 0.
    #[schema(value_type = u16, example = 3)]
    pub shard: Shard,
    /// Id of the worker that owns it; null without an owner.
    #[schema(value_type = Option<String>)]
    pub worker: Option<uuid::Uuid>,
    /// Sequence of the last message of the stream.
    pub head: u64,
    /// Low watermark: sequence up to which every organization that is not catching up is done.
    pub mark: u64,
    /// Number of lanes behind the low watermark.
    pub catching_up: usize,
    /// Finding that the stream lost messages, while the operator has not decided; null otherwise.
    pub lost: Option<String>,
}

/// A message that belongs to no organization of its shard, and was applied nowhere.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct StrayView {
    /// Shard whose stream has the message.
    #[schema(value_type = u16, example = 3)]
    pub shard: Shard,
    /// Sequence of the message in the stream.
    #[schema(example = 17)]
    pub seq: u64,
    /// Subject of the message.
    #[schema(example = "ev.3.org_01h455vb4pex5vsknk084sn02q.record.x")]
    pub subject: String,
    /// Reason for which it belongs to no organization.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q lives in shard 5")]
    pub reason: String,
    /// Time at which a worker read it, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub found_at: Timestamp,
}

impl From<StrayFound> for StrayView {
    fn from(StrayFound { stray, found_at }: StrayFound) -> Self {
        let Stray { shard, seq, subject, reason } = stray;
        Self { shard, seq, subject, reason, found_at }
    }
}

/// The lag of the whole platform.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LagView {
    /// Number of live workers. Each reports every few seconds the lanes that are the furthest behind.
    #[schema(example = 2)]
    pub workers: usize,
    /// Lanes that are the furthest behind: stalled ones, the worst of the others, then other detached ones.
    pub data: Vec<LaneView>,
    /// State of each shard.
    pub shards: Vec<ShardView>,
    /// Messages that belong to no organization of their shard, newest first, at most 20: another program published them.
    pub strays: Vec<StrayView>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(worst), Policy::Operator, Shape::Plain, AuditTrail::NotTenantScoped)
}

/// Show the organizations that are the furthest behind
///
/// For platform operators.
#[utoipa::path(
    get, path = "/v1/platform/lag", operation_id = "get_lag", tag = "projections",
    responses((status = 200, description = "The worst lanes, and every shard", body = LagView)),
)]
pub async fn worst(State(app): State<Arc<App>>, _: SignedIn) -> Result<Json<LagView>, Problem> {
    let leases = app.db.leases().await?;
    let workers = app.db.live_workers(SEEN).await?.len();
    let mut named = Vec::new();
    for lane in app.db.lagging_lanes(SEEN).await? {
        // A worker's recent report may have been overtaken since.
        let mut tx = app.db.read(BoundOrg::named_by_operator(lane.org)).await?;
        if checkpoints::position(&mut tx, lane.pipeline).await? < lane.oldest {
            named.push(lane);
        }
    }
    let mut data: Vec<LaneView> = named
        .iter()
        .map(|lane| LaneView {
            org_id: lane.org,
            pipeline: lane.pipeline,
            age_ms: Some(lane.age_ms),
            waiting: Some(lane.waiting),
            catching_up: lane.catching_up,
            standing_ms: lane.standing_ms,
        })
        .collect();
    let mut shards = Vec::new();
    for shard in app.log.shards() {
        let mark = app.db.low_watermark(shard).await?;
        shards.push(ShardView {
            shard,
            worker: leases.iter().find(|lease| lease.shard == shard).and_then(|lease| lease.owner),
            head: app.log.shard_state(shard).await?.last_seq,
            mark: mark.seq,
            catching_up: mark.catching_up.len(),
            lost: app.log.lost_of(StreamName::Shard(shard)),
        });
        for (org_id, pipeline) in mark.catching_up {
            if !named.iter().any(|lane| (lane.org, lane.pipeline) == (org_id, pipeline)) {
                data.push(LaneView {
                    org_id,
                    pipeline,
                    age_ms: None,
                    waiting: None,
                    catching_up: true,
                    standing_ms: None,
                });
            }
        }
    }
    let strays = app.db.strays(STRAYS).await?.into_iter().map(StrayView::from).collect();
    Ok(Json(LagView { workers, data, shards, strays }))
}
