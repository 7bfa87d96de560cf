//! The audit log: actors and their actions, newest first, for callers with the permission.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::Permission;
use orgstream_events::{ActorType, EventId, EventView, KNOWN_EVENTS, OutcomeStatus, Timestamp};
use orgstream_projections::audit::{self, AuditEntry, AuditFilter};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT, AUDIT_READ, Policy},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Item, Query},
            page::{Page, PageQuery},
            wait::{AuditLog, OrgView},
        },
    },
    app::event_view::{EventSchema, shown},
    app::problem::Problem,
};

/// Which events.
#[derive(Debug, Clone, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// With this name. One that no event has is refused.
    #[param(example = "record.created")]
    pub action: Option<String>,
    /// By this actor: a member, key or operator id.
    #[param(example = "key_01h455vb4pex5vsknk084sn02q")]
    pub actor: Option<String>,
    /// By this kind of actor: `member`, `api_key`, `platform_operator`, `system` or `anonymous`.
    #[param(value_type = Option<String>, example = "api_key")]
    pub actor_type: Option<ActorType>,
    /// Done to this thing: the id of a record, member, key or organization.
    #[param(example = "res_01h455vb4pex5vsknk084sn02q")]
    pub target: Option<String>,
    /// That ended so: `success`, `denied` or `failed`.
    #[param(value_type = Option<String>, example = "denied")]
    pub outcome: Option<OutcomeStatus>,
    /// At this place of the log or behind it.
    #[param(example = 256)]
    pub from_idx: Option<u64>,
    /// Before this place of the log.
    #[param(example = 512)]
    pub to_idx: Option<u64>,
    /// Recorded at this moment or later.
    #[param(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// Recorded before this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

impl AuditQuery {
    /// Converts the filter. An unknown event type is a mistake, and not a query with an empty answer.
    pub fn filter(self) -> Result<AuditFilter, Problem> {
        let Self { action, actor, actor_type, target, outcome, from_idx, to_idx, since, until } = self;
        let names = || KNOWN_EVENTS.iter().flat_map(|known| known.iter()).map(|(name, _)| *name);
        if let Some(action) = action.as_deref().filter(|action| names().all(|name| name != *action)) {
            let action: String = action.chars().take(80).collect();
            let names: Vec<&str> = names().collect();
            let detail = format!("no event is called {action}; there are: {}", names.join(", "));
            return Err(Problem::invalid("/action", "unknown", detail));
        }
        let (actor_id, target_id) = (actor, target);
        Ok(AuditFilter { action, actor_type, actor_id, target_id, outcome, from_idx, to_idx, since, until })
    }
}

/// Returns an entry as the API shows it.
pub fn entry(entry: &AuditEntry) -> Result<EventView, Problem> {
    entry.view().map(shown).map_err(Problem::internal)
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(list), Policy::Org(Permission::ReadAudit), AUDIT, AUDIT_READ).route(
        routes!(show),
        Policy::Org(Permission::ReadAudit),
        AUDIT,
        AUDIT_READ,
    )
}

/// List audit events
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/events", operation_id = "list_audit_events", tag = "audit",
    params(AuditQuery, PageQuery), responses((status = 200, description = "One page", body = Page<EventSchema>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<AuditLog>,
    Query(query): Query<AuditQuery>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "audit_events", &query);
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = audit::list(&mut org.view.tx, &query.filter()?, &part, page.limit()?).await?;
    let Page { data, next_cursor, prev_cursor, has_more } = cursors.page(&part, rows, |row| entry(&row));
    let data: Vec<EventView> = data.into_iter().collect::<Result<_, _>>()?;
    Ok(org.view.listing(&Page { data, next_cursor, prev_cursor, has_more }))
}

/// Get an audit event
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/events/{event}", operation_id = "get_audit_event", tag = "audit",
    responses((status = 200, description = "The event", body = EventSchema)),
)]
pub async fn show(mut org: OrgView<AuditLog>, Item(id): Item<EventId>) -> Result<Response, Problem> {
    let found = audit::get(&mut org.view.tx, id).await?.ok_or_else(Problem::not_found)?;
    // An event never changes, so it has one version permanently.
    Ok(org.view.one(1, &entry(&found)?))
}
