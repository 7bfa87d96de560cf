//! The usage of an organization as a series: what it used of each meter in each hour or day, for what and by whom.

use std::collections::BTreeMap;

use axum::response::Response;
use orgstream_domain::Permission;
use orgstream_events::{AmountSum, MeterName, Month, Timestamp};
use orgstream_projections::usage_hours::{self, Grouping, Range, Step, UsageRow};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::{
    api::http::kit::{
        extract::Query,
        policy::{AuditTrail, Policy, READ},
        routes::Routes,
        wait::{OrgView, ReadModels},
    },
    app::{event_view::ActorView, problem::Problem},
    clock::now,
};

/// The most rows of an answer.
const MAX_ROWS: usize = 5_000;
/// Rows that are read for one answer, at most: each is an hour's use for one purpose by one principal.
const MAX_READ: u32 = 200_000;
/// The most steps of a range: 31 days of hours.
const MAX_HOURS: i64 = 744;
/// The same in days: a leap year.
const MAX_DAYS: i64 = 366;

/// The range of a series, and by what it is divided.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SeriesQuery {
    /// First moment, RFC 3339 in UTC, at which an hour or a day begins, as `step` says. Without it, the beginning of the month (UTC)
    /// that the last step is in.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-03-01T00:00:00.000Z")]
    pub from: Option<Timestamp>,
    /// First moment after the range, RFC 3339 in UTC, at which an hour or a day begins: at most 744 hours or 366 days after `from`.
    /// Without it, the end of the current step.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-04-01T00:00:00.000Z")]
    pub to: Option<Timestamp>,
    /// Length of a step: `hour` or `day` (UTC); `day` without it.
    #[param(value_type = Option<String>, example = "day")]
    pub step: Option<StepName>,
    /// Names by which rows are divided besides step and meter, separated by commas: `kind`, `model` and `principal`. Sums over all
    /// of them without it.
    #[param(example = "model,principal")]
    pub group_by: Option<String>,
}

/// The length of a step, by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// An hour.
    Hour,
    /// A day in UTC.
    #[default]
    Day,
}

impl From<StepName> for Step {
    fn from(name: StepName) -> Self {
        match name {
            StepName::Hour => Self::Hour,
            StepName::Day => Self::Day,
        }
    }
}

/// What was used in a range of time, step by step. Amounts are decimal texts in units of the meter.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageSeries {
    /// First moment of the range, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    /// First moment after the range, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    /// Length of a step: `hour` or `day` (UTC).
    #[schema(value_type = String, example = "day")]
    pub step: StepName,
    /// Names by which rows are divided besides step and meter.
    #[schema(value_type = Vec<String>, example = json!(["model"]))]
    pub group_by: Vec<&'static str>,
    /// Sums over the whole range, by meter.
    pub totals: Vec<UsageTotal>,
    /// Sums of the steps in which something was used, the earliest first: at most 5,000.
    pub data: Vec<UsageStep>,
}

/// The sum of a range.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageTotal {
    /// Name of the meter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Amount that was used.
    #[schema(value_type = String, example = "23000")]
    pub amount: AmountSum,
    /// Number of settlements and charges.
    #[schema(example = 17)]
    pub uses: u64,
}

/// The sum of one step, as far as it is divided.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageStep {
    /// Beginning of the step, RFC 3339 in UTC. Usage belongs to the moment at which it was reserved.
    #[schema(value_type = String, format = DateTime)]
    pub begins_at: Timestamp,
    /// Name of the meter.
    #[schema(value_type = String, example = "tokens")]
    pub meter: MeterName,
    /// Name of the kind of record that it was about; null where the caller named none, or rows are not divided by it.
    #[schema(example = "evaluation")]
    pub kind: Option<String>,
    /// Name of the model; null where the caller named none, or rows are not divided by it.
    #[schema(example = "small-2")]
    pub model: Option<String>,
    /// Principal that used it; null where rows are not divided by it.
    pub principal: Option<ActorView>,
    /// Amount that was used.
    #[schema(value_type = String, example = "1200")]
    pub amount: AmountSum,
    /// Number of settlements and charges.
    #[schema(example = 3)]
    pub uses: u64,
}

impl From<UsageRow> for UsageStep {
    fn from(row: UsageRow) -> Self {
        let UsageRow { at, meter, kind, model, by, amount, uses } = row;
        Self { begins_at: at, meter, kind, model, principal: by.map(ActorView::from), amount, uses }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAccount), READ, AuditTrail::ReadNotAudited)
}

/// Show usage over time
///
/// What was settled and charged, by hour or day in UTC; days are sums of hours. A month is complete a day after its end, because a
/// hold that was opened in it may be settled until then. With `Min-Position` it has everything that was settled before that.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/usage/series", operation_id = "show_usage_series", tag = "account",
    params(SeriesQuery), responses((status = 200, description = "Usage over time", body = UsageSeries)),
)]
pub async fn show(mut org: OrgView<ReadModels>, Query(query): Query<SeriesQuery>) -> Result<Response, Problem> {
    let step = query.step.unwrap_or_default();
    let range = range(&query, step.into(), now())?;
    let (group_by, grouping) = grouping(query.group_by.as_deref().unwrap_or_default())?;
    let limit = u32::try_from(MAX_ROWS).unwrap_or(u32::MAX).saturating_add(1);
    if !usage_hours::is_within(&mut org.view.tx, range, MAX_READ).await? {
        let rule = format!("this range has more than {MAX_READ} uses for different purposes: ask for a shorter one");
        return Err(Problem::invalid_parameter("to", rule));
    }
    let rows = usage_hours::series(&mut org.view.tx, range, grouping, limit).await?;
    if rows.len() > MAX_ROWS {
        let rule = format!(
            "this range has more than {MAX_ROWS} rows: ask for a part of it, for days (step=day), or divided by less (group_by)"
        );
        return Err(Problem::invalid_parameter("to", rule));
    }
    let mut totals: BTreeMap<MeterName, UsageTotal> = BTreeMap::new();
    for row in &rows {
        let new = || UsageTotal { meter: row.meter.clone(), amount: AmountSum::default(), uses: 0 };
        let total = totals.entry(row.meter.clone()).or_insert_with(new);
        total.amount = total.amount.plus(row.amount);
        total.uses = total.uses.saturating_add(row.uses);
    }
    let Range { from, to, step: _ } = range;
    let (totals, data) = (totals.into_values().collect(), rows.into_iter().map(UsageStep::from).collect());
    Ok(org.view.listing(&UsageSeries { from, to, step, group_by, totals, data }))
}

/// Returns the range that is asked for at a moment.
fn range(query: &SeriesQuery, step: Step, now: Timestamp) -> Result<Range, Problem> {
    let (length, most, name, names) = match step {
        Step::Hour => (step.ms(), MAX_HOURS, "an hour", "hours"),
        Step::Day => (step.ms(), MAX_DAYS, "a day", "days"),
    };
    let current_ends = now.unix_ms().div_euclid(length).saturating_add(1).saturating_mul(length);
    let to = query.to.unwrap_or(Timestamp::from_unix_ms(current_ends));
    let in_last_step = Timestamp::from_unix_ms(to.unix_ms().saturating_sub(1));
    let from = query.from.unwrap_or_else(|| Month::of(in_last_step).start());
    for (parameter, moment) in [("from", from), ("to", to)] {
        if moment.unix_ms().rem_euclid(length) != 0 {
            let rule = format!("must be a moment at which {name} begins in UTC, or give another step");
            return Err(Problem::invalid_parameter(parameter, rule));
        }
    }
    let steps = to.unix_ms().saturating_sub(from.unix_ms()) / length;
    if steps < 1 {
        return Err(Problem::invalid_parameter("to", format!("must be later than the beginning of the range, {from}")));
    }
    if steps > most {
        let rule = format!(
            "must be at most {most} {names} later than the beginning of the range, {from}: ask for a part of it"
        );
        return Err(Problem::invalid_parameter("to", rule));
    }
    Ok(Range { from, to, step })
}

/// Returns the names by which rows are divided, each once, and the same for the query.
fn grouping(names: &str) -> Result<(Vec<&'static str>, Grouping), Problem> {
    let (mut grouping, mut known) = (Grouping::default(), Vec::new());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let (flag, name) = match name {
            "kind" => (&mut grouping.kind, "kind"),
            "model" => (&mut grouping.model, "model"),
            "principal" => (&mut grouping.principal, "principal"),
            _ => {
                let rule =
                    "must be names out of kind, model and principal, separated by commas; rows have their meter anyway";
                return Err(Problem::invalid_parameter("group_by", rule));
            }
        };
        if !std::mem::replace(flag, true) {
            known.push(name);
        }
    }
    Ok((known, grouping))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn asked(from: Option<&str>, to: Option<&str>) -> SeriesQuery {
        SeriesQuery { from: from.map(at), to: to.map(at), ..SeriesQuery::default() }
    }

    #[test]
    fn without_a_range_it_is_this_month_up_to_the_end_of_the_step() {
        for (now, step, from, to) in [
            ("2026-03-10T12:30:00Z", Step::Day, "2026-03-01T00:00:00Z", "2026-03-11T00:00:00Z"),
            ("2026-03-10T12:30:00Z", Step::Hour, "2026-03-01T00:00:00Z", "2026-03-10T13:00:00Z"),
            ("2026-03-31T23:59:59.999Z", Step::Day, "2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z"),
            ("2026-04-01T00:00:00Z", Step::Hour, "2026-04-01T00:00:00Z", "2026-04-01T01:00:00Z"),
        ] {
            let range = range(&asked(None, None), step, at(now)).unwrap();
            assert_eq!((range.from, range.to), (at(from), at(to)), "{now}");
        }
    }

    #[test]
    fn a_range_is_of_whole_steps_and_not_too_long() {
        let now = at("2026-03-10T12:30:00Z");
        for (from, to, step, parameter) in [
            ("2026-03-01T00:30:00Z", "2026-03-02T00:00:00Z", Step::Hour, "from"),
            ("2026-03-01T01:00:00Z", "2026-03-02T00:00:00Z", Step::Day, "from"),
            ("2026-03-01T00:00:00Z", "2026-03-02T00:00:00.001Z", Step::Hour, "to"),
            ("2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", Step::Day, "to"),
            ("2026-03-02T00:00:00Z", "2026-03-01T00:00:00Z", Step::Day, "to"),
            ("2026-03-01T00:00:00Z", "2026-04-01T01:00:00Z", Step::Hour, "to"),
            ("2025-01-01T00:00:00Z", "2026-01-03T00:00:00Z", Step::Day, "to"),
        ] {
            let refused = range(&asked(Some(from), Some(to)), step, now).unwrap_err();
            assert_eq!(refused.code, "invalid_parameter");
            assert!(refused.detail.starts_with(&format!("{parameter}: ")), "{from} {to}: {}", refused.detail);
        }
        assert!(range(&asked(Some("2024-01-01T00:00:00Z"), Some("2025-01-01T00:00:00Z")), Step::Day, now).is_ok());
        assert!(range(&asked(Some("2026-03-01T00:00:00Z"), Some("2026-04-01T00:00:00Z")), Step::Hour, now).is_ok());
    }

    #[test]
    fn names_are_taken_once_and_others_are_refused() {
        let (names, grouping) = grouping("model, principal,model").unwrap();
        assert_eq!(names, ["model", "principal"]);
        assert_eq!(grouping, Grouping { kind: false, model: true, principal: true });
        assert!(super::grouping("").unwrap().0.is_empty());
        assert_eq!(super::grouping("colour").unwrap_err().code, "invalid_parameter");
    }
}
