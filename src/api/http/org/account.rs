//! An organization's account: what is available of each meter, what is held, and what the plan says about it.

use std::{num::NonZeroU32, sync::Arc};

use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use orgstream_domain::{
    Permission,
    account::MeterBalance,
    plan::{Entitlements, LimitSource},
};
use orgstream_events::{Amount, MeterName, Month, OrgId, PlanName, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::OrgAccess,
            policy::{AuditTrail, Policy, READ},
            reply,
            routes::Routes,
        },
    },
    app::problem::Problem,
    clock::now,
    commands::accounts::AccountState,
};

/// What an organization may use, and what of that is left.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct AccountView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Name of the plan.
    #[schema(value_type = String, example = "standard")]
    pub plan: PlanName,
    /// Version of the plan, counted from 1; 0 for a plan that was never published.
    #[schema(example = 1)]
    pub plan_version: u64,
    /// End of the trial, RFC 3339 in UTC; null for a plan that is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub trial_ends_at: Option<Timestamp>,
    /// True when the trial is over, so that nothing is used before a paid plan is chosen.
    #[schema(example = false)]
    pub billing_required: bool,
    /// Balance of each meter, by name.
    pub meters: Vec<MeterView>,
    /// Number of open holds.
    #[schema(example = 2)]
    pub holds: usize,
    /// Limit of open holds; null without one.
    pub concurrency: Option<ConcurrencyView>,
    /// Position of the last event of the account.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub exact_at: String,
}

/// The balance of one meter. Amounts are decimal texts in units of the meter.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MeterView {
    /// Name of the meter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Amount that can be used now.
    #[schema(value_type = String, example = "73000")]
    pub available: Amount,
    /// Amount that open holds have.
    #[schema(value_type = String, example = "4000")]
    pub held: Amount,
    /// Amount that was granted in what can be used now.
    #[schema(value_type = String, example = "100000")]
    pub granted: Amount,
    /// Amount that was used of it.
    #[schema(value_type = String, example = "23000")]
    pub spent: Amount,
    /// Amount that was used or is held in this calendar month (UTC), wherever it came from.
    #[schema(value_type = String, example = "27000")]
    pub used_this_month: Amount,
    /// Cap of a month; null without one.
    #[schema(value_type = Option<String>, example = "200000")]
    pub cap: Option<Amount>,
    /// Amount that the plan includes in each month.
    #[schema(value_type = String, example = "100000")]
    pub included: Amount,
    /// Time of the next month's allowance, RFC 3339 in UTC; null where the plan includes nothing.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resets_at: Option<Timestamp>,
}

/// A limit of open holds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ConcurrencyView {
    /// Number of holds that may be open at the same time.
    #[schema(value_type = u32, example = 50)]
    pub limit: NonZeroU32,
    /// Source of the limit: `organization` or `plan`.
    #[schema(value_type = String, example = "plan")]
    pub source: LimitSource,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAccount), READ, AuditTrail::ReadNotAudited)
}

/// Show the account
///
/// It is read from the log, so it has everything that was accepted before. What is used is sent as commands: `reserve_usage`,
/// then `settle_hold` or `release_hold`; or `charge_usage` at once.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/account", operation_id = "show_account", tag = "account",
    responses((status = 200, description = "Account", body = AccountView)),
)]
pub async fn show(State(app): State<Arc<App>>, caller: OrgAccess) -> Result<Response, Problem> {
    let state = app.gateway.handler().account_of(caller.access.org()).await?.ok_or_else(Problem::not_found)?;
    let body = reply::json_bytes(&AccountView::new(&state, now()))?;
    Ok(reply::json(StatusCode::OK, Body::from(body)))
}

impl AccountView {
    fn new(state: &AccountState, now: Timestamp) -> Self {
        let AccountState { account, entitlements, position } = state;
        let terms = entitlements.terms();
        let account = account.as_of(now, &terms);
        let meter = |name: &MeterName| {
            let MeterBalance { available, held, granted, spent, used_this_month } = account.balance(name, now);
            let of_plan = terms.meters.get(name);
            let included = of_plan.map_or(Amount::ZERO, |terms| terms.included);
            MeterView {
                meter: name.clone(),
                available,
                held,
                granted,
                spent,
                used_this_month,
                cap: of_plan.and_then(|terms| terms.cap),
                included,
                resets_at: (!included.is_zero()).then(|| Month::of(now).end()),
            }
        };
        let Entitlements { plan, .. } = entitlements;
        Self {
            org_id: position.org,
            plan: plan.plan.clone(),
            plan_version: plan.version,
            trial_ends_at: terms.trial_ends_at,
            billing_required: terms.require_billing(now),
            meters: account.meters(&terms).into_iter().map(meter).collect(),
            holds: account.holds().len(),
            concurrency: entitlements.concurrency().map(|(limit, source)| ConcurrencyView { limit, source }),
            exact_at: position.to_string(),
        }
    }
}
