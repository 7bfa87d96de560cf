//! An organization's usage and limits.

use std::{num::NonZeroU32, sync::Arc};

use axum::{extract::State, response::Response};
use orgstream_domain::{ChangeLimits, Permission};
use orgstream_events::{OrgId, PlanName, Timestamp};
use orgstream_projections::usage;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, READ, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Writer},
            reply,
            wait::{OrgView, ReadModels},
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
    clock::now,
    limits::command_rate::{CommandRate, LimitedBy},
};

/// What an organization uses, and may use.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Name of the plan.
    #[schema(value_type = String, example = "standard")]
    pub plan: PlanName,
    /// Events in the audit log.
    pub events: EventsView,
    /// Number of active members.
    #[schema(example = 3)]
    pub members: u64,
    /// Number of API keys that work.
    #[schema(example = 2)]
    pub api_keys: u64,
    /// Limit of commands; null without one.
    pub commands: Option<CommandsView>,
}

/// How many events there are.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EventsView {
    /// Number of events since the beginning of the audit log.
    #[schema(example = 12_345)]
    pub total: u64,
    /// Number of events since `since`.
    #[schema(example = 678)]
    pub this_month: u64,
    /// Beginning of this month, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// A limit of commands.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CommandsView {
    /// Commands per second on average.
    #[schema(value_type = u32, example = 50)]
    pub per_second: NonZeroU32,
    /// Commands at once after a pause.
    #[schema(value_type = u32, example = 500)]
    pub burst: NonZeroU32,
    /// Source of the limit: `organization` or `plan`.
    #[schema(example = "plan")]
    pub limited_by: &'static str,
}

impl From<CommandRate> for CommandsView {
    fn from(CommandRate { of: _, per_second, burst, by }: CommandRate) -> Self {
        let limited_by = match by {
            LimitedBy::Organization => "organization",
            LimitedBy::Plan => "plan",
        };
        Self { per_second, burst, limited_by }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(change_limits), Policy::Org(Permission::ManagePlan), Shape::Change, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadOrganization), READ, AuditTrail::ReadNotAudited)
}

/// Show usage and limits
#[utoipa::path(
    get, path = "/v1/organizations/{org}/usage", operation_id = "show_usage", tag = "organizations",
    responses((status = 200, description = "Usage and limits", body = UsageView)),
)]
pub async fn show(State(app): State<Arc<App>>, mut org: OrgView<ReadModels>) -> Result<Response, Problem> {
    let since = month_of(now());
    let found = usage::get(&mut org.view.tx, since).await?;
    let rules = app.auth.rules(org.view.tx.org()).await?;
    let view = UsageView {
        org_id: org.view.tx.org(),
        plan: rules.plan.clone(),
        events: EventsView { total: found.events, this_month: found.events_since, since },
        members: found.members,
        api_keys: found.api_keys,
        commands: app.gateway.admission().rate(&rules).map(CommandsView::from),
    };
    Ok(org.view.listing(&view))
}

/// Change the limits of an organization
///
/// They go before those of its plan; what is missing or null is what the plan says. Every process of the API goes by them
/// within a second or so. For platform operators.
#[utoipa::path(
    put, path = "/v1/organizations/{org}/limits", operation_id = "change_limits", tag = "organizations",
    request_body = ChangeLimits, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change_limits(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<ChangeLimits>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}

/// Returns the start of the month of `time`, in UTC.
fn month_of(time: Timestamp) -> Timestamp {
    let time = time.to_datetime();
    time.replace_day(1).unwrap_or(time).replace_time(time::Time::MIDNIGHT).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_begins_at_midnight_of_its_first_day() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(month_of(at("2026-02-28T23:59:59.999Z")), at("2026-02-01T00:00:00.000Z"));
        assert_eq!(month_of(at("2026-03-01T00:00:00.000Z")), at("2026-03-01T00:00:00.000Z"));
    }
}
