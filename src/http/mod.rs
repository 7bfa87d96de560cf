//! The HTTP API: requests to commands and queries, and nothing that either of them decides.
//!
//! A request passes [`middleware`], then the extractors of its handler, which prove who asks and in which org as the
//! table in [`policy`] demands it. A handler writes by way of the gateway and reads by way of a view that is bound to
//! the proven org; there is no other way to either.

pub mod active_org;
mod ahead;
pub mod api_keys;
pub mod audit;
pub mod audit_export;
pub mod audit_feed;
pub mod audit_proofs;
pub mod audit_state;
pub mod audit_tail;
pub mod audit_webhook;
pub mod bounds;
pub mod break_glass;
pub mod caches;
pub mod commands;
mod compress;
pub mod conditional;
pub mod cookie;
pub mod domains;
pub mod event_view;
pub mod events;
pub mod extract;
pub mod guard;
pub mod health;
pub mod invitations;
pub mod kinds;
pub mod lag;
pub mod leaked_keys;
pub mod looks;
pub mod me;
pub mod members;
pub mod middleware;
pub mod nats_credentials;
pub mod openapi;
pub mod organizations;
pub mod page;
pub mod parking;
pub mod permission_table;
pub mod policy;
pub mod projections;
pub mod proxies;
pub mod records;
pub mod reply;
pub mod roles;
mod server;
pub mod sessions;
pub mod sso_connections;
pub mod tail;
pub mod tenants;
pub mod usage;
pub mod wait;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
};
use metrics_exporter_prometheus::PrometheusHandle;
use orgstream_projections::Database;
use orgstream_stream::Log;
use orgstream_workers::WorkerStatus;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    audit::webhook::WebhookKeys,
    auth::{Authenticator, leaks::LeakReporters},
    broker::Producers,
    config::GlassApproval,
    gateway::Gateway,
    secret::Secret,
};
use audit_feed::AuditFeed;
use bounds::{Bounds, Limits};
use health::Readiness;
use looks::Looks;
use page::CursorKey;
use proxies::TrustedProxies;

/// How long requests that are under way may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(10);
/// How often histograms are emptied into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// What the API is made of.
pub struct Parts {
    /// The way in for commands.
    pub gateway: Arc<Gateway>,
    /// Who asks.
    pub auth: Arc<Authenticator>,
    /// The read models and the audit log.
    pub db: Database,
    /// The event log, for tails.
    pub log: Log,
    /// Signs cursors; the same for all servers behind one address.
    pub cursor_key: [u8; 32],
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Who may report keys that leaked.
    pub leak_reporters: LeakReporters,
    /// Whose word counts about where a request came from.
    pub proxies: TrustedProxies,
    /// What posts of audit logs are signed with.
    pub webhook_keys: WebhookKeys,
    /// Whether an operator needs another's consent to look into an organization.
    pub break_glass_approval: GlassApproval,
    /// What producers' credentials for NATS are signed with, where there are any.
    pub producers: Option<Arc<Producers>>,
    /// The worker of this process, if it has one.
    pub worker: Option<watch::Receiver<WorkerStatus>>,
    /// How much may be under way.
    pub limits: Limits,
    /// What `/metrics` is shown for, besides the operator's token.
    pub metrics_token: Option<Secret>,
}

/// What every handler can reach.
pub struct App {
    /// The way in for commands.
    pub gateway: Arc<Gateway>,
    /// Who asks.
    pub auth: Arc<Authenticator>,
    /// The read models and the audit log.
    pub db: Database,
    /// The event log.
    pub log: Log,
    /// Who may report keys that leaked.
    pub leak_reporters: LeakReporters,
    pub(crate) proxies: TrustedProxies,
    pub(crate) webhook_keys: WebhookKeys,
    pub(crate) break_glass_approval: GlassApproval,
    pub(crate) producers: Option<Arc<Producers>>,
    pub(crate) cursors: CursorKey,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) metrics_token: Option<Secret>,
    pub(crate) bounds: Arc<Bounds>,
    pub(crate) looks: Arc<Looks>,
    pub(crate) audit_feed: Arc<AuditFeed>,
    pub(crate) readiness: Readiness,
    /// Cancelled when the server stops: streams end, everything else is finished.
    pub(crate) stopping: CancellationToken,
}

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { gateway, auth, db, log, cursor_key, metrics, leak_reporters, .. } = parts;
        let Parts { proxies, webhook_keys, break_glass_approval, producers, worker, limits, metrics_token, .. } = parts;
        Arc::new(Self {
            readiness: Readiness::new(log.clone(), db.clone(), worker),
            looks: Looks::new(Arc::clone(&auth)),
            audit_feed: AuditFeed::new(db.clone()),
            gateway,
            auth,
            db,
            log,
            leak_reporters,
            proxies,
            webhook_keys,
            break_glass_approval,
            producers,
            cursors: CursorKey::new(cursor_key),
            metrics,
            metrics_token,
            bounds: Arc::new(Bounds::new(limits)),
            stopping: CancellationToken::new(),
        })
    }
}

/// Every route, with its documentation.
fn documented() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics))
        .routes(routes!(openapi::openapi_json))
        .routes(routes!(me::who_am_i))
        .routes(routes!(me::list_memberships))
        .routes(routes!(sessions::list, sessions::start))
        .routes(routes!(sessions::revoke))
        .routes(routes!(sessions::show))
        .routes(routes!(sessions::switch))
        .routes(routes!(tenants::create))
        .routes(routes!(tenants::create_without_slash))
        .routes(routes!(organizations::create))
        .routes(routes!(organizations::show, organizations::rename))
        .routes(routes!(organizations::change_settings))
        .routes(routes!(organizations::upgrade))
        .routes(routes!(organizations::suspend))
        .routes(routes!(organizations::change_plan))
        .routes(routes!(organizations::resume))
        .routes(routes!(usage::change_limits))
        .routes(routes!(usage::show))
        .routes(routes!(commands::submit))
        .routes(routes!(members::list, members::add))
        .routes(routes!(members::show, members::change_role, members::remove))
        .routes(routes!(invitations::list, invitations::issue))
        .routes(routes!(invitations::show, invitations::revoke))
        .routes(routes!(invitations::resend))
        .routes(routes!(invitations::accept))
        .routes(routes!(roles::list, roles::define))
        .routes(routes!(roles::show, roles::change, roles::remove))
        .routes(routes!(domains::list, domains::claim))
        .routes(routes!(domains::show, domains::remove))
        .routes(routes!(domains::prove))
        .routes(routes!(sso_connections::list, sso_connections::add))
        .routes(routes!(sso_connections::show, sso_connections::remove))
        .routes(routes!(sso_connections::set_default))
        .routes(routes!(api_keys::list, api_keys::issue))
        .routes(routes!(api_keys::show, api_keys::revoke))
        .routes(routes!(api_keys::rotate))
        .routes(routes!(nats_credentials::make))
        .routes(routes!(leaked_keys::report))
        .routes(routes!(break_glass::open, break_glass::close))
        .routes(routes!(break_glass::approve))
        .routes(routes!(caches::list))
        .routes(routes!(records::list, records::create))
        .routes(routes!(records::show, records::update, records::archive))
        .routes(routes!(kinds::list, kinds::register))
        .routes(routes!(kinds::show, kinds::change, kinds::retire))
        .routes(routes!(kinds::restore))
        .routes(routes!(audit::list))
        .routes(routes!(audit::show))
        .routes(routes!(audit_tail::follow))
        .routes(routes!(audit_export::export))
        .routes(routes!(audit_webhook::show))
        .routes(routes!(audit_state::show))
        .routes(routes!(audit_proofs::event_proof))
        .routes(routes!(audit_proofs::checkpoint))
        .routes(routes!(audit_proofs::checkpoints))
        .routes(routes!(audit_proofs::policy))
        .routes(routes!(audit_proofs::handovers))
        .routes(routes!(audit_proofs::tile))
        .routes(routes!(audit_proofs::consistency))
        .routes(routes!(events::replay))
        .routes(routes!(tail::follow))
        .routes(routes!(projections::list))
        .routes(routes!(parking::list))
        .routes(routes!(parking::retry))
        .routes(routes!(parking::skip))
        .routes(routes!(lag::worst))
}

/// The API.
pub fn router(app: Arc<App>) -> Router {
    let (router, _) = documented().split_for_parts();
    let proxies = app.proxies.clone();
    router
        .route_layer(from_fn(middleware::known_parameters))
        .route_layer(from_fn(active_org::watch))
        .with_state(app)
        .merge(openapi::docs())
        .method_not_allowed_fallback(middleware::no_method)
        .fallback(middleware::no_route)
        .layer(from_fn(compress::may_shrink))
        .layer(compress::layer())
        .layer(from_fn(middleware::observe))
        .layer(from_fn_with_state(proxies, proxies::forwarded))
}

/// Answers requests until `stop`, then ends streams, finishes what is under way and returns.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let stopping = app.stopping.clone();
    let upkeep = tokio::spawn(keep_up(app.metrics.clone(), stop.clone()));
    let router = router(Arc::clone(&app));
    let room = |peer: std::net::SocketAddr| {
        let address = peer.ip().to_canonical();
        app.bounds.connection(address, app.proxies.trusts(address))
    };
    let mut server = std::pin::pin!(server::serve(listener, router, room, stop.clone()));
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
