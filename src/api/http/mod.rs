//! The HTTP API: requests to commands and queries, without decisions of its own.
//!
//! A request passes [`middleware`], then the extractors of its handler, which prove the caller and its org as the route's
//! [`policy`](kit::policy) demands it. A handler writes by way of the gateway and reads by way of a view that is bound to the proven org;
//! there is no other way to either.

pub mod audit;
pub mod identity;
pub mod kit;
pub mod org;
pub mod platform;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
};
use metrics_exporter_prometheus::PrometheusHandle;
use orgstream_projections::Database;
use orgstream_stream::Log;
use orgstream_stream::broker::Producers;
use orgstream_workers::WorkerStatus;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::routes;

use crate::{
    adapters::payments::PaymentProvider,
    app::{
        admit::Admit,
        plan_reads::PlanReads,
        submit::{Gateway, Origin},
    },
    auth::{Authenticator, approval::GlassApproval, leaks::LeakReporters},
    jobs::{Failing, audit_webhook::WebhookKeys},
    secret::Secret,
};
use audit::feed::AuditFeed;
use kit::bounds::{Bounds, Limits};
use kit::looks::Looks;
use kit::page::CursorKey;
use kit::policy::{AuditTrail, Policy, Shape};
use kit::proxies::TrustedProxies;
use kit::routes::Routes;
use platform::health::Readiness;

/// How long requests in flight may take to end when the server stops: longer than an append is tried.
const GRACE: Duration = Duration::from_secs(16);
/// The interval at which histograms are emptied into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// The parts of the API.
pub struct Parts {
    /// The entry point for commands.
    pub gateway: Arc<Gateway>,
    /// The authentication.
    pub auth: Arc<Authenticator>,
    /// The read models and the audit log.
    pub db: Database,
    /// The event log, for tails.
    pub log: Log,
    /// The key that signs cursors; the same for all servers behind one address.
    pub cursor_key: [u8; 32],
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// The trusted reporters of leaked keys.
    pub leak_reporters: LeakReporters,
    /// The trusted proxies.
    pub proxies: TrustedProxies,
    /// The keys that sign posts of audit logs.
    pub webhook_keys: WebhookKeys,
    /// Whether a break-glass grant needs the approval of another operator.
    pub break_glass_approval: GlassApproval,
    /// The signing keys of producers' NATS credentials, if there are any.
    pub producers: Option<Arc<Producers>>,
    /// The payment provider, if there is one.
    pub payments: Option<Arc<dyn PaymentProvider>>,
    /// The worker of this process, if it has one.
    pub worker: Option<watch::Receiver<WorkerStatus>>,
    /// The in-flight limits.
    pub limits: Limits,
    /// The token for `/metrics`, besides the operator's.
    pub metrics_token: Option<Secret>,
}

/// The state that every handler can reach.
pub struct App {
    /// The entry point for commands.
    pub gateway: Arc<Gateway>,
    /// The authentication.
    pub auth: Arc<Authenticator>,
    /// The read models and the audit log.
    pub db: Database,
    /// The event log.
    pub log: Log,
    /// The trusted reporters of leaked keys.
    pub leak_reporters: LeakReporters,
    pub(crate) proxies: TrustedProxies,
    pub(crate) webhook_keys: WebhookKeys,
    pub(crate) break_glass_approval: GlassApproval,
    pub(crate) producers: Option<Arc<Producers>>,
    pub(crate) payments: Option<Arc<dyn PaymentProvider>>,
    pub(crate) cursors: CursorKey,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) metrics_token: Option<Secret>,
    pub(crate) bounds: Arc<Bounds>,
    pub(crate) looks: Arc<Looks>,
    pub(crate) audit_feed: Arc<AuditFeed>,
    pub(crate) plan_reads: PlanReads,
    pub(crate) readiness: Readiness,
    /// Background jobs that wait to be started again.
    pub(crate) failing: Failing,
    /// Cancelled when the server stops: streams end, everything else is finished.
    pub(crate) stopping: CancellationToken,
}

impl App {
    /// The admission of one request.
    pub fn admit<'a>(&'a self, origin: &'a Origin) -> Admit<'a> {
        Admit { auth: &self.auth, access_log: self.gateway.access_log(), origin }
    }

    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { gateway, auth, db, log, cursor_key, metrics, leak_reporters, .. } = parts;
        let failing = Failing::default();
        let Parts {
            proxies,
            webhook_keys,
            break_glass_approval,
            producers,
            payments,
            worker,
            limits,
            metrics_token,
            ..
        } = parts;
        Arc::new(Self {
            readiness: Readiness::new(log.clone(), db.clone(), worker, failing.clone()),
            failing,
            looks: Looks::new(Arc::clone(&auth)),
            audit_feed: AuditFeed::new(db.clone()),
            plan_reads: PlanReads::default(),
            gateway,
            auth,
            db,
            log,
            leak_reporters,
            proxies,
            webhook_keys,
            break_glass_approval,
            producers,
            payments,
            cursors: CursorKey::new(cursor_key),
            metrics,
            metrics_token,
            bounds: Arc::new(Bounds::new(limits)),
            stopping: CancellationToken::new(),
        })
    }
}

/// Returns all routes, with their documentation.
fn documented() -> Routes {
    Routes::with_openapi(kit::openapi::head())
        .merge(org::routes())
        .merge(audit::routes())
        .merge(identity::routes())
        .merge(platform::routes())
        .route(routes!(kit::openapi::openapi_json), Policy::Public, Shape::Plain, AuditTrail::NotTenantScoped)
}

/// Returns the router of the API.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = documented().split();
    let proxies = app.proxies.clone();
    router
        .route_layer(from_fn(kit::middleware::known_parameters))
        .route_layer(from_fn(kit::active_org::watch))
        .route_layer(from_fn_with_state(Arc::clone(&app), kit::rate_limit::show))
        .with_state(app)
        .merge(kit::openapi::docs())
        .method_not_allowed_fallback(kit::middleware::no_method)
        .fallback(kit::middleware::no_route)
        .layer(from_fn(kit::compress::may_shrink))
        .layer(kit::compress::layer())
        .layer(from_fn(kit::middleware::names_its_host))
        .layer(from_fn(kit::middleware::observe))
        .layer(from_fn_with_state(proxies, kit::proxies::forwarded))
}

/// Serves requests until `stop`, then ends streams, finishes requests in flight and returns.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let stopping = app.stopping.clone();
    let upkeep = tokio::spawn(keep_up(app.metrics.clone(), stop.clone()));
    let router = router(Arc::clone(&app));
    let room = |peer: std::net::SocketAddr| {
        let address = peer.ip().to_canonical();
        app.bounds.connection(address, app.proxies.trusts(address))
    };
    let mut server = std::pin::pin!(kit::server::serve(listener, router, room, stop.clone()));
    tokio::select! {
        () = &mut server => {}
        () = stop.cancelled() => {
            stopping.cancel();
            if timeout(GRACE, server).await.is_err() {
                tracing::warn!("some requests did not end in time");
            }
        }
    }
    upkeep.abort();
}

async fn keep_up(metrics: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = interval(UPKEEP);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}
