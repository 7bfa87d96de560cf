//! The plans of the platform, for everybody who is signed in: what each entitles to, in its last version.

use axum::response::Response;
use orgstream_domain::openapi;
use orgstream_events::{PlanDefinition, PlanName, Timestamp};
use orgstream_projections::plans::{self, Plan};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::kit::{
        extract::{Item, SignedIn},
        policy::{AuditTrail, Policy, READ},
        routes::Routes,
        wait::PlatformView,
    },
    app::problem::Problem,
};

/// A plan in its last version.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlanView {
    /// Permanent name of the plan.
    #[schema(value_type = String, example = "premium")]
    pub plan: PlanName,
    /// Version of the plan, counted from 1.
    #[schema(example = 1)]
    pub version: u64,
    /// All that the plan says.
    #[schema(schema_with = openapi::plan_definition)]
    pub definition: PlanDefinition,
    /// Time of its publication, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl From<Plan> for PlanView {
    fn from(Plan { name, version, definition, updated_at }: Plan) -> Self {
        Self { plan: name, version, definition, updated_at }
    }
}

/// All plans.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PlansView {
    /// Plans, ordered by name.
    pub data: Vec<PlanView>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(list), Policy::SignedIn, READ, AuditTrail::NotTenantScoped).route(
        routes!(show),
        Policy::SignedIn,
        READ,
        AuditTrail::NotTenantScoped,
    )
}

/// List plans
///
/// In their last versions. Operators publish the next one as a command (`publish_plan`) to the platform's organization.
#[utoipa::path(
    get, path = "/v1/plans", operation_id = "list_plans", tag = "account",
    responses((status = 200, description = "All of them", body = PlansView)),
)]
pub async fn list(_: SignedIn, PlatformView(mut view): PlatformView) -> Result<Response, Problem> {
    let plans = plans::list(&mut view.tx).await?;
    Ok(view.listing(&PlansView { data: plans.into_iter().map(PlanView::from).collect() }))
}

/// Get a plan
#[utoipa::path(
    get, path = "/v1/plans/{plan}", operation_id = "get_plan", tag = "account",
    responses((status = 200, description = "The plan", body = PlanView)),
)]
pub async fn show(
    _: SignedIn,
    Item(name): Item<PlanName>,
    PlatformView(mut view): PlatformView,
) -> Result<Response, Problem> {
    let plan = plans::get(&mut view.tx, &name).await?.map(PlanView::from).ok_or_else(Problem::not_found)?;
    Ok(view.one(plan.version, &plan))
}
