//! The limits of an organization: what each is, where it comes from, and what of it is left.

use std::sync::Arc;

use axum::{body::Body, extract::State, http::StatusCode, response::Response};
use orgstream_domain::{Permission, account::MAX_HOLDS, plan::LimitSource};
use orgstream_events::{Amount, MeterName, Month, OrgId, Timestamp};
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
    commands::{accounts::AccountState, quotas::QuotaUse},
    limits::command_rate::{LimitedBy, RateState},
};

/// All limits of an organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LimitsView {
    /// Organization id (`org_` and 26 characters).
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub org_id: OrgId,
    /// Limits, each with what is left of it.
    pub data: Vec<LimitView>,
}

/// One limit. Figures are decimal texts in its unit; what is not known here is null.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LimitView {
    /// Name of the limit: `commands` and `reads` (at once, and again over `window_seconds`), `requests` (under way at one process of the API),
    /// `holds` (open at the same time), `monthly_usage` (of one meter), `own_kinds`, `members`, `api_keys`, `webhooks` or
    /// `storage_bytes` (content of records).
    #[schema(example = "monthly_usage")]
    pub name: &'static str,
    /// Name of the meter; null where the limit is of none.
    #[schema(value_type = Option<String>, example = "tokens")]
    pub meter: Option<MeterName>,
    /// Source of the limit: `organization`, `plan` or `default`.
    #[schema(value_type = String, example = "plan")]
    pub source: LimitSource,
    /// Limit; null where there is none.
    #[schema(example = "200000")]
    pub limit: Option<String>,
    /// Seconds in which a limit of a rate is whole again; null for other limits.
    #[schema(example = 10)]
    pub window_seconds: Option<u64>,
    /// Part that is used.
    #[schema(example = "23000")]
    pub used: Option<String>,
    /// Part that open holds have.
    #[schema(example = "4000")]
    pub held: Option<String>,
    /// Part that is left.
    #[schema(example = "173000")]
    pub available: Option<String>,
    /// Time at which more is left, RFC 3339 in UTC, if nothing else happens; null where time changes nothing.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub resets_at: Option<Timestamp>,
    /// Position of the account for which the figures are exact; null for figures of the process that answers.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub exact_at: Option<String>,
}

impl LimitView {
    /// Begins with a limit of which nothing is known.
    fn new(name: &'static str, source: LimitSource) -> Self {
        Self {
            name,
            meter: None,
            source,
            limit: None,
            window_seconds: None,
            used: None,
            held: None,
            available: None,
            resets_at: None,
            exact_at: None,
        }
    }

    /// Sets the figures of a limit that is counted.
    fn counted(self, limit: u64, used: u64) -> Self {
        let figure = |count: u64| Some(count.to_string());
        Self { limit: figure(limit), used: figure(used), available: figure(limit.saturating_sub(used)), ..self }
    }
}

impl From<LimitedBy> for LimitSource {
    fn from(by: LimitedBy) -> Self {
        match by {
            LimitedBy::Organization => Self::Organization,
            LimitedBy::Plan => Self::Plan,
        }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAccount), READ, AuditTrail::ReadNotAudited)
}

/// Show the limits
///
/// Holds, caps and quotas are exact at `exact_at`. The rates and the requests under way are figures of the
/// process that answers; processes share a rate in equal parts.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/limits", operation_id = "show_limits", tag = "account",
    responses((status = 200, description = "Limits", body = LimitsView)),
)]
pub async fn show(State(app): State<Arc<App>>, caller: OrgAccess) -> Result<Response, Problem> {
    let (org, now) = (caller.access.org(), now());
    let handler = app.gateway.handler();
    let state = Box::pin(handler.account_of(org)).await?.ok_or_else(Problem::not_found)?;
    let kinds = Box::pin(handler.own_kinds_of(org)).await?.ok_or_else(Problem::not_found)?;
    let rules = app.auth.rules(org).await?;
    let admission = app.gateway.admission();
    let rate = admission.rate(&rules).map(|rate| admission.state(org, rate));
    let reads = admission.read_rate(&rules, Box::pin(handler.reads_of_plan(&rules.plan)).await?);
    let reads = reads.map(|rate| admission.state(org, rate));
    let mut data = vec![of_rate("commands", rate, now), of_rate("reads", reads, now)];
    let (under_way, most) = app.bounds.requests_under_way(org);
    data.push(LimitView::new("requests", LimitSource::Default).counted(most as u64, under_way as u64));
    data.extend(of_account(&state, now));
    let source = if kinds.is_plans { LimitSource::Plan } else { LimitSource::Default };
    data.push(LimitView::new("own_kinds", source).counted(kinds.limit.into(), kinds.used));
    let quotas = Box::pin(handler.quotas_of(org)).await?.ok_or_else(Problem::not_found)?;
    data.extend(quotas.into_iter().map(of_quota));
    let body = reply::json_bytes(&LimitsView { org_id: org, data })?;
    Ok(reply::json(StatusCode::OK, Body::from(body)))
}

/// Returns a quota.
fn of_quota(QuotaUse { quota, limit, used, at }: QuotaUse) -> LimitView {
    let source = limit.as_ref().map_or(LimitSource::Default, |limit| limit.source);
    let figure = |count: u64| count.to_string();
    let most = limit.map(|limit| limit.most);
    LimitView {
        limit: most.map(figure),
        used: used.map(figure),
        available: most.zip(used).map(|(most, used)| figure(most.saturating_sub(used))),
        exact_at: used.and(at).map(|at| at.to_string()),
        ..LimitView::new(quota.name(), source)
    }
}

/// Returns a rate.
fn of_rate(name: &'static str, state: Option<RateState>, now: Timestamp) -> LimitView {
    let Some(RateState { rate, left, full_in }) = state else {
        return LimitView::new(name, LimitSource::Default);
    };
    let full_ms = i64::try_from(full_in.as_millis()).unwrap_or(i64::MAX);
    LimitView {
        limit: Some(rate.burst.to_string()),
        window_seconds: Some(rate.window().as_secs()),
        available: Some(left.to_string()),
        resets_at: (full_ms > 0).then(|| Timestamp::from_unix_ms(now.unix_ms().saturating_add(full_ms))),
        ..LimitView::new(name, rate.by.into())
    }
}

/// Returns what the account decides: open holds, and what may be used of each meter in a month.
fn of_account(state: &AccountState, now: Timestamp) -> Vec<LimitView> {
    let AccountState { account, entitlements, position } = state;
    let terms = entitlements.terms();
    let account = account.as_of(now, &terms);
    let exact_at = Some(position.to_string());
    let most = MAX_HOLDS as u64;
    let (limit, source) = entitlements.concurrency().map_or((most, LimitSource::Default), |(limit, source)| {
        if u64::from(limit.get()) > most { (most, LimitSource::Default) } else { (limit.get().into(), source) }
    });
    let holds = LimitView {
        resets_at: account.holds().values().map(|hold| hold.deadline).min(),
        exact_at: exact_at.clone(),
        ..LimitView::new("holds", source).counted(limit, account.holds().len() as u64)
    };
    let month = Month::of(now);
    let caps = terms.meters.iter().filter_map(|(meter, of_plan)| {
        let cap = of_plan.cap?;
        let of_month =
            account.holds().values().filter(|hold| hold.meter == *meter && Month::of(hold.reserved_at) == month);
        let held = of_month.fold(Amount::ZERO, |sum, hold| sum.plus(hold.amount()).unwrap_or(Amount::MAX));
        let taken = account.balance(meter, now).used_this_month;
        Some(LimitView {
            meter: Some(meter.clone()),
            limit: Some(cap.to_string()),
            used: Some(taken.less(held).to_string()),
            held: Some(held.to_string()),
            available: Some(cap.less(taken).to_string()),
            resets_at: Some(month.end()),
            exact_at: exact_at.clone(),
            ..LimitView::new("monthly_usage", LimitSource::Plan)
        })
    });
    std::iter::once(holds).chain(caps).collect()
}
