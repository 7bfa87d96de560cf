//! An organization's account: what is available of each meter, what is held, and what the plan says about it.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use orgstream_domain::{
    Permission, Rejection, ReserveUsage,
    account::{MeterBalance, OpenTopUp, Part, TopUps},
    openapi,
    plan::{Entitlements, LimitSource},
};
use orgstream_events::{
    Amount, BucketSource, Currency, MeterName, Month, OrgId, PlanName, Timestamp, TopUpId, TopUpRule, UsedBy,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{OrgAccess, Query},
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
    /// Top-ups: when more is bought by itself; null where nothing ever was.
    pub top_up: Option<TopUpView>,
}

/// The top-ups of one meter. Amounts are decimal texts in units of the meter.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopUpView {
    /// Rule; null when nothing is bought by itself.
    #[schema(schema_with = openapi::top_up_rule)]
    pub rule: Option<TopUpRule>,
    /// Top-up that is to be paid; null without one.
    pub open: Option<OpenTopUpView>,
    /// Time at which the next one may be requested after one that was declined, RFC 3339 in UTC; null without such a pause.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub retry_at: Option<Timestamp>,
}

/// A top-up that is to be paid.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OpenTopUpView {
    /// Number of the top-up, from 1.
    #[schema(value_type = u32, example = 3)]
    pub number: TopUpId,
    /// Amount that is bought.
    #[schema(value_type = String, example = "100000")]
    pub amount: Amount,
    /// Money for all of it.
    #[schema(value_type = String, example = "2.5")]
    pub price: Amount,
    /// Currency of the money, by its code in ISO 4217.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// Time of the request, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
}

impl From<&TopUps> for TopUpView {
    fn from(TopUps { rule, open, retry_at, .. }: &TopUps) -> Self {
        let open = open.clone().map(|OpenTopUp { id, amount, price, currency, requested_at }| OpenTopUpView {
            number: id,
            amount,
            price,
            currency,
            requested_at,
        });
        Self { rule: *rule, open, retry_at: *retry_at }
    }
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

/// What would be reserved.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PreviewQuery {
    /// Name of the meter.
    #[param(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Amount in units of the meter, as a decimal text with at most six digits after the point.
    #[param(value_type = String, example = "4000")]
    pub amount: Amount,
}

/// What a reservation would do now. Nothing is held.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PreviewView {
    /// Name of the meter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Amount that would be reserved.
    #[schema(value_type = String, example = "4000")]
    pub amount: Amount,
    /// True if it would be held; false if it would be refused.
    #[schema(example = true)]
    pub granted: bool,
    /// Parts that would be held, in the order of use; empty after a refusal.
    pub parts: Vec<PartView>,
    /// Refusal; null if it would be held.
    pub refusal: Option<RefusalView>,
    /// Position of the last event of the account.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub exact_at: String,
}

/// A part of an amount, by where it comes from.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PartView {
    /// Source of the amount: `allowance` or `overage` of the plan, `grant` of the operator, or `purchase`.
    #[schema(value_type = String, example = "allowance")]
    pub source: BucketSource,
    /// Amount that would be held.
    #[schema(value_type = String, example = "4000")]
    pub amount: Amount,
    /// Amount that would be left there.
    #[schema(value_type = String, example = "69000")]
    pub left: Amount,
    /// Time at which the rest lapses, RFC 3339 in UTC; null without an end.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

impl From<Part> for PartView {
    fn from(Part { source, amount, left, until }: Part) -> Self {
        Self { source, amount, left, until }
    }
}

/// A refusal, as the command would be answered.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RefusalView {
    /// HTTP status: 402 or 429.
    #[schema(example = 402)]
    pub status: u16,
    /// Kind of problem for programs.
    #[schema(example = "insufficient_balance")]
    pub code: &'static str,
    /// Fault, and the way out.
    pub detail: String,
    /// Figures of the refusal, as texts.
    #[schema(example = json!({"required": "7", "available": "6"}))]
    pub figures: BTreeMap<&'static str, String>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAccount), READ, AuditTrail::ReadNotAudited).route(
        routes!(preview),
        Policy::Org(Permission::ReadAccount),
        READ,
        AuditTrail::ReadNotAudited,
    )
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

/// Preview a reservation
///
/// It is the decision about the account as the log has it now, and appends nothing: what is granted here may be refused a moment
/// later. A `reserve_usage` is the only promise.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/account/preview", operation_id = "preview_reservation", tag = "account",
    params(PreviewQuery), responses((status = 200, description = "What would happen", body = PreviewView)),
)]
pub async fn preview(
    State(app): State<Arc<App>>,
    caller: OrgAccess,
    Query(PreviewQuery { meter, amount }): Query<PreviewQuery>,
) -> Result<Response, Problem> {
    let (org, actor) = (caller.access.org(), caller.access.actor());
    let state = Box::pin(app.gateway.handler().account_of(org)).await?.ok_or_else(Problem::not_found)?;
    let AccountState { account, entitlements, position } = state;
    let by = UsedBy { actor_type: actor.actor_type, id: actor.id.clone() };
    let reserve = ReserveUsage { meter: meter.clone(), amount, seconds: None, kind: None, model: None };
    let (parts, refusal) = match account.preview(reserve, entitlements.terms(), by, org, now()) {
        Ok(parts) => (parts.into_iter().map(PartView::from).collect(), None),
        Err(error) => {
            let Problem { status, code, detail, figures, .. } = match Problem::from(Rejection::from(error)) {
                refused @ Problem { status: 402 | 429, .. } => refused,
                mistake => return Err(mistake),
            };
            (Vec::new(), Some(RefusalView { status, code, detail, figures }))
        }
    };
    let granted = refusal.is_none();
    let view = PreviewView { meter, amount, granted, parts, refusal, exact_at: position.to_string() };
    Ok(reply::json(StatusCode::OK, Body::from(reply::json_bytes(&view)?)))
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
                top_up: account.top_ups(name).map(TopUpView::from),
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
