//! Liveness, readiness and metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::try_join;
use metrics_exporter_prometheus::PrometheusHandle;
use orgstream_events::{Chain, Fingerprint, Shard};
use orgstream_projections::{BoundOrg, Database};
use orgstream_stream::Log;
use orgstream_workers::WorkerStatus;
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::{join, net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::extract::{SignedIn, header_text},
    },
    app::problem::Problem,
    clock::now,
    jobs::Failing,
    secret::Secret,
};

/// The timeout of each dependency.
const TIMEOUT: Duration = Duration::from_secs(2);
const METRICS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Checks that every dependency of the program is available.
pub struct Readiness {
    log: Log,
    db: Database,
    worker: Option<watch::Receiver<WorkerStatus>>,
    failing: Failing,
    /// The migrations are applied: they do not go away under a running program.
    migrated: AtomicBool,
}

impl Readiness {
    /// Creates the checks. `worker` is the one of this process, if it has one.
    pub fn new(log: Log, db: Database, worker: Option<watch::Receiver<WorkerStatus>>, failing: Failing) -> Self {
        Self { log, db, worker, failing, migrated: AtomicBool::new(false) }
    }

    /// Returns what is missing.
    pub async fn look(&self) -> ReadyView {
        let (nats, streams, database, migrations, shards) = join!(
            check("nats", self.nats()),
            check("streams", self.streams()),
            check("database", self.database()),
            check("migrations", self.migrations()),
            check("shards", self.shards()),
        );
        let waiting_for: Vec<WaitView> =
            [nats, streams, database, migrations, shards].into_iter().flatten().chain(self.job()).collect();
        ReadyView { ready: waiting_for.is_empty(), waiting_for }
    }

    /// A background job that failed and waits to be started again.
    fn job(&self) -> Option<WaitView> {
        let (job, reason) = self.failing.first()?;
        Some(WaitView { part: "jobs", detail: format!("the job {} failed: {reason}", job.name()) })
    }

    async fn nats(&self) -> Result<(), String> {
        self.log.client().flush().await.map_err(|error| Chain(&error).to_string())?;
        match self.log.client().connection_state() {
            async_nats::connection::State::Connected => Ok(()),
            state => Err(format!("the connection is {state}")),
        }
    }

    async fn streams(&self) -> Result<(), String> {
        // They are created together: when the first and the last exist, all do.
        let last = self.log.shards().last().unwrap_or(Shard(0));
        let states = try_join(self.log.shard_state(Shard(0)), self.log.shard_state(last)).await;
        states.map(|_| ()).map_err(|error| Chain(&error).to_string())?;
        if let Some((stream, what)) = self.log.lost().into_iter().next() {
            return Err(format!(
                "the log lost data: stream {stream}: {what}. Nothing is taken and nothing applied of it until an operator has \
                 decided: see `orgstream history`"
            ));
        }
        let troubles = self.log.troubles();
        let Some((shard, reason)) = troubles.first() else { return Ok(()) };
        Err(format!(
            "{} shards take no appends; shard {shard}: {reason}. If NATS answers otherwise, its disk was full: make space, and \
             restart nats-server (its monitor says more: /healthz?details=true)",
            troubles.len()
        ))
    }

    async fn database(&self) -> Result<(), String> {
        self.db.read(BoundOrg::platform()).await.map_err(|error| Chain(&error).to_string())?;
        self.db.check_writable().await.map_err(|error| Chain(&error).to_string())?;
        match self.worker.as_ref().and_then(|worker| worker.borrow().database.clone()) {
            Some(trouble) => Err(format!("nothing is applied and nothing is parked: {trouble}")),
            None => Ok(()),
        }
    }

    async fn migrations(&self) -> Result<(), String> {
        if self.migrated.load(Ordering::Relaxed) {
            return Ok(());
        }
        let findings = self.db.preflight().await.map_err(|error| Chain(&error).to_string())?;
        if findings.is_empty() {
            self.migrated.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// Checks that every shard has a worker. A program without a worker of its own is ready regardless.
    async fn shards(&self) -> Result<(), String> {
        let Some(worker) = &self.worker else { return Ok(()) };
        let status = worker.borrow().clone();
        if !status.started {
            return Err("the worker has not looked for shards yet".to_owned());
        }
        if let Some((shard, problem)) = status.problems.iter().next() {
            return Err(format!("{} shards cannot be worked on; shard {shard}: {problem}", status.problems.len()));
        }
        let mut idle: Vec<Shard> = self.log.shards().filter(|shard| !status.shards.contains(shard)).collect();
        if !idle.is_empty() {
            let leases = self.db.leases().await.map_err(|error| Chain(&error).to_string())?;
            let held = |shard: &Shard| {
                leases.iter().any(|lease| lease.shard == *shard && lease.owner.is_some() && lease.expires_at > now())
            };
            idle.retain(|shard| !held(shard));
        }
        if idle.is_empty() { Ok(()) } else { Err(format!("{} of the shards have no worker", idle.len())) }
    }
}

/// The program lives.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// Fixed text `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// Version of the program.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
}

/// Whether the program can work.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadyView {
    /// True if nothing is missing.
    pub ready: bool,
    /// Parts that are missing, each with one line.
    pub waiting_for: Vec<WaitView>,
}

/// What is missing.
#[derive(Debug, Serialize, ToSchema)]
pub struct WaitView {
    /// Part: `nats`, `streams`, `database`, `migrations` or `shards`.
    #[schema(example = "nats")]
    pub part: &'static str,
    /// State of the part in one line.
    #[schema(example = "no answer within 2 seconds")]
    pub detail: String,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(healthz), Policy::Public, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(readyz), Policy::Public, Shape::Plain, AuditTrail::NotTenantScoped)
        .route(routes!(metrics), Policy::Operator, Shape::Plain, AuditTrail::NotTenantScoped)
}

/// Check liveness
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = "health",
    responses((status = 200, description = "It is", body = HealthView)),
)]
pub async fn healthz() -> Json<HealthView> {
    Json(HealthView { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Check readiness
///
/// Asks everything that it needs, each time. Not ready is no reason to restart it.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "health",
    responses(
        (status = 200, description = "It can", body = ReadyView),
        (status = 503, description = "It waits for something", body = ReadyView),
    ),
)]
pub async fn readyz(State(app): State<Arc<App>>) -> Response {
    Box::pin(app.readiness.look()).await.into_response()
}

impl IntoResponse for ReadyView {
    fn into_response(self) -> Response {
        let status = if self.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(self)).into_response()
    }
}

/// Show metrics
///
/// In Prometheus' text format. With the operator's token, or with that of `--metrics-token`.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "health",
    responses((status = 200, description = "The figures", body = String, content_type = "text/plain")),
)]
pub async fn metrics(State(app): State<Arc<App>>, mut parts: Parts) -> Result<Response, Problem> {
    let given = header_text(&parts.headers, &header::AUTHORIZATION)?.and_then(|text| text.strip_prefix("Bearer "));
    let is_theirs = app.metrics_token.as_ref().map(Secret::reveal).zip(given).is_some_and(|(token, given)| {
        // Of equal length whatever was given, so that the time discloses nothing.
        let hash = |text: &str| Fingerprint::of(&[text.as_bytes()]).0;
        hash(token).ct_eq(&hash(given)).into()
    });
    if !is_theirs {
        SignedIn::from_request_parts(&mut parts, &app).await?;
    }
    Ok(figures(&app.metrics))
}

/// Serves the metrics alone, for clients that can reach `listener`, until `stop`.
pub async fn serve_figures(
    listener: TcpListener,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new().route("/metrics", get(async move || figures(&metrics)));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Serves the probes of a worker process: `/healthz`, `/readyz` and `/metrics`, until `stop`.
pub async fn serve_worker(
    listener: TcpListener,
    log: Log,
    db: Database,
    (status, failing): (watch::Receiver<WorkerStatus>, Failing),
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let readiness = Arc::new(Readiness::new(log, db, Some(status), failing));
    let upkeep = tokio::spawn(crate::api::http::keep_up(metrics.clone(), stop.clone()));
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(async move || Box::pin(readiness.look()).await))
        .route("/metrics", get(async move || figures(&metrics)));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    upkeep.abort();
    served
}

fn figures(metrics: &PrometheusHandle) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TEXT)], metrics.render()).into_response()
}

async fn check(part: &'static str, work: impl Future<Output = Result<(), String>>) -> Option<WaitView> {
    let answer = timeout(TIMEOUT, work).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} seconds", TIMEOUT.as_secs())));
    answer.err().map(|detail| WaitView { part, detail })
}
