//! A plan: what the organizations on it are entitled to, in versions. An organization has the last version of its plan, and
//! its own limits before those of the plan.

use std::{num::NonZeroU32, sync::Arc};

use orgstream_events::{
    AggregateId, AggregateType, Amount, Event, MeterTerms, OrgId, OrganizationLimits, PlanDefinition, PlanEvent,
    PlanName, PlanPublished, PlanVersion, QuotaName, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    About, Aggregate, CommandSpec, DecisionContext, Declared, FieldError, Permission, Place, Rejection, Requires,
    Scope, account::Terms, grants::Grant, openapi, quota::QuotaLimit, text::Faults,
};

/// The maximum number of meters of a plan.
const MAX_METERS: usize = 32;
/// The most that a plan may ask for a month, and for what is used beyond what is included: sums of many of them are amounts.
const MAX_MONEY: u32 = 1_000_000_000;
/// The longest trial, in days.
const MAX_TRIAL_DAYS: u32 = 366;
/// The changes of a plan's fee that are kept, the newest: those of the months that may still be billed.
const MAX_FEES: usize = 500;

/// The state of a plan: its last version. By default it was never published.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    version: u64,
    definition: PlanDefinition,
    fees: Vec<PlanFee>,
}

/// The fee of a plan from a moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFee {
    /// When the first version with it was published.
    pub at: Timestamp,
    /// The fee of a month.
    pub monthly_fee: Amount,
}

impl Plan {
    /// Returns the last version, and its number; none for a plan that was never published.
    pub fn last(&self) -> Option<(u64, &PlanDefinition)> {
        (self.version > 0).then_some((self.version, &self.definition))
    }
}

/// What an organization is entitled to: its plan, and what it has instead of the plan's. Resolved here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlements {
    /// The plan and its version.
    pub plan: PlanVersion,
    /// All that the plan says.
    pub definition: Arc<PlanDefinition>,
    /// The limits of the organization's own, which count instead of the plan's.
    pub own: OrganizationLimits,
    /// When the organization was put on the plan.
    pub since: Timestamp,
    /// The fees that the plan had, the oldest first.
    pub fees: Vec<PlanFee>,
}

/// Where a limit comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitSource {
    /// The organization's own.
    Organization,
    /// Its plan.
    Plan,
    /// Nobody's choice: the same for every organization.
    Default,
}

impl Entitlements {
    /// Resolves what an organization is entitled to.
    pub fn resolve(name: &PlanName, plan: &Plan, own: OrganizationLimits, since: Timestamp) -> Self {
        Self {
            plan: PlanVersion { plan: name.clone(), version: plan.version },
            definition: Arc::new(plan.definition.clone()),
            own,
            since,
            fees: plan.fees.clone(),
        }
    }

    /// Returns the most open holds and the source of that: the organization's own limit, or else that of its plan.
    pub fn concurrency(&self) -> Option<(NonZeroU32, LimitSource)> {
        let own = self.own.concurrency.map(|limit| (limit, LimitSource::Organization));
        own.or_else(|| self.definition.limits.concurrency.map(|limit| (limit, LimitSource::Plan)))
    }

    /// Returns the most reads per second and the source of that.
    pub fn reads_per_second(&self) -> Option<(NonZeroU32, LimitSource)> {
        let own = self.own.reads_per_second.map(|limit| (limit, LimitSource::Organization));
        own.or_else(|| self.definition.limits.reads_per_second.map(|limit| (limit, LimitSource::Plan)))
    }

    /// Returns a quota, if there is a limit.
    pub fn quota(&self, name: QuotaName) -> Option<QuotaLimit> {
        let own = self.own.quotas.get(name).map(|most| (most, LimitSource::Organization));
        let (most, source) =
            own.or_else(|| self.definition.limits.quotas.get(name).map(|most| (most, LimitSource::Plan)))?;
        Some(QuotaLimit { most, source, plan: self.plan.plan.clone() })
    }

    /// Returns the end of the trial, if the plan is one.
    pub fn trial_ends_at(&self) -> Option<Timestamp> {
        const DAY: i64 = 86_400_000;
        let days = i64::from(self.definition.trial_days?.get());
        Some(Timestamp::from_unix_ms(self.since.unix_ms() + days * DAY))
    }

    /// Returns what the account decides of.
    pub fn terms(&self) -> Terms {
        Terms {
            plan: self.plan.clone(),
            meters: self.definition.meters.clone(),
            concurrency: self.concurrency().map(|(limit, _)| limit.get()),
            trial_ends_at: self.trial_ends_at(),
        }
    }
}

/// The next version of a plan. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishPlan {
    /// Name of the plan: 1 to 63 characters of a-z, 0-9, - and _, beginning with a letter.
    #[schema(value_type = String, example = "premium")]
    pub plan: PlanName,
    /// All that the plan says, in place of the version before.
    #[schema(schema_with = openapi::plan_definition)]
    pub definition: PlanDefinition,
}

impl Declared for PublishPlan {
    const SPEC: CommandSpec = CommandSpec {
        name: "publish_plan",
        requires: Requires::Permission(Permission::ManagePlan),
        events: &["plan.published"],
        creates: false,
        scope: Scope::Platform,
        while_suspended: false,
        in_personal: true,
        gives_access: false,
        hourly_limit: None,
    };

    fn about(&self, _: OrgId) -> About {
        About::One(AggregateId::Plan(self.plan.clone()))
    }

    fn grants(&self) -> Vec<Grant> {
        Vec::new()
    }
}

impl Aggregate for Plan {
    type Command = PublishPlan;
    type Event = PlanEvent;
    type Error = PlanError;
    const TYPE: AggregateType = AggregateType::Plan;
    const SHAPE: u16 = 2;

    fn apply(&mut self, event: &PlanEvent) {
        match event {
            PlanEvent::Published(PlanPublished { version, definition }) => {
                self.version = *version;
                self.definition.clone_from(definition);
            }
        }
    }

    fn apply_at(&mut self, event: &PlanEvent, place: Place<'_>) {
        self.apply(event);
        let monthly_fee = self.definition.monthly_fee;
        if self.fees.last().is_none_or(|last| last.monthly_fee != monthly_fee) {
            self.fees.push(PlanFee { at: place.recorded_at, monthly_fee });
            let surplus = self.fees.len().saturating_sub(MAX_FEES);
            self.fees.drain(..surplus);
        }
    }

    fn decide(&self, command: PublishPlan, _: &DecisionContext) -> Result<Vec<PlanEvent>, PlanError> {
        let PublishPlan { plan: _, definition } = command;
        check(&definition)?;
        if self.last().is_some_and(|(_, known)| *known == definition) {
            return Ok(Vec::new());
        }
        Ok(vec![PlanEvent::Published(PlanPublished { version: self.version + 1, definition })])
    }

    fn wrap(event: PlanEvent) -> Event {
        Event::Plan(event)
    }

    fn event_of(event: &Event) -> Option<&PlanEvent> {
        if let Event::Plan(event) = event { Some(event) } else { None }
    }
}

fn check(definition: &PlanDefinition) -> Result<(), PlanError> {
    let mut faults = Faults::default();
    faults.name("/definition/title", &definition.title);
    if definition.meters.len() > MAX_METERS {
        faults.add("/definition/meters", "too_many", format!("must be at most {MAX_METERS}"));
    }
    if definition.trial_days.is_some_and(|days| days.get() > MAX_TRIAL_DAYS) {
        faults.add("/definition/trial_days", "out_of_range", format!("must be 1 to {MAX_TRIAL_DAYS}"));
    }
    if definition.monthly_fee > Amount::units(MAX_MONEY) {
        faults.add("/definition/monthly_fee", "out_of_range", format!("must be at most {MAX_MONEY}"));
    }
    for (meter, terms) in &definition.meters {
        let MeterTerms { included, overage, price_per_million, top_up_price_per_million, cap } = terms;
        let at = |field: &str| format!("/definition/meters/{meter}/{field}");
        if !price_per_million.is_zero() && overage.is_zero() {
            faults.add(at("price_per_million"), "out_of_range", "goes with an overage: nothing else has a price");
        }
        if overage.priced(*price_per_million).is_none_or(|money| money > Amount::units(MAX_MONEY)) {
            let rule = format!("must be so that all of the overage is at most {MAX_MONEY} of money");
            faults.add(at("price_per_million"), "out_of_range", rule);
        }
        if *top_up_price_per_million > Amount::units(MAX_MONEY) {
            faults.add(at("top_up_price_per_million"), "out_of_range", format!("must be at most {MAX_MONEY}"));
        }
        match included.plus(*overage) {
            None => faults.add(
                at("overage"),
                "out_of_range",
                format!("must be at most {} with what is included", Amount::MAX),
            ),
            Some(all) if cap.is_some_and(|cap| cap < all && !overage.is_zero()) => {
                faults.add(
                    at("overage"),
                    "out_of_range",
                    "must not be more than the cap leaves beyond what is included",
                );
            }
            Some(_) => {}
        }
    }
    faults.none_or(PlanError::Invalid)
}

/// The reasons why a plan is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Fields are malformed.
    #[error("{} fields are not as they must be", .0.len())]
    Invalid(Vec<FieldError>),
}

impl From<PlanError> for Rejection {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Invalid(errors) => Self::invalid(errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use orgstream_events::Quotas;
    use serde_json::json;

    use super::*;
    use crate::testing::{fields, given};

    fn publish(definition: serde_json::Value) -> PublishPlan {
        PublishPlan { plan: "premium".parse().unwrap(), definition: serde_json::from_value(definition).unwrap() }
    }

    fn published(version: u64, command: &PublishPlan) -> PlanEvent {
        PlanEvent::Published(PlanPublished { version, definition: command.definition.clone() })
    }

    #[test]
    fn each_publication_is_another_version_unless_nothing_changes() {
        let one = publish(json!({"title": "Premium", "meters": {"tokens": {"included": "100"}}}));
        let other = publish(json!({"title": "Premium", "meters": {"tokens": {"included": "200"}}}));
        assert_eq!(given::<Plan>(&[]).when(one.clone()), Ok(vec![published(1, &one)]));
        let plan = given::<Plan>(&[published(1, &one)]);
        assert_eq!(plan.when(one), Ok(vec![]));
        assert_eq!(plan.when(other.clone()), Ok(vec![published(2, &other)]));
    }

    #[test]
    fn what_cannot_hold_is_pointed_at() {
        let refused = |definition| fields(given::<Plan>(&[]).when(publish(definition)));
        for (definition, pointer) in [
            (json!({"title": ""}), "/definition/title"),
            (json!({"title": "x", "trial_days": 367}), "/definition/trial_days"),
            (
                json!({"title": "x", "meters": {"ecu": {"included": "1000000000000", "overage": "1"}}}),
                "/definition/meters/ecu/overage",
            ),
            (
                json!({"title": "x", "meters": {"ecu": {"included": "10", "overage": "10", "cap": "15"}}}),
                "/definition/meters/ecu/overage",
            ),
            (json!({"title": "x", "monthly_fee": "1000000000.000001"}), "/definition/monthly_fee"),
            (
                json!({"title": "x", "meters": {"ecu": {"price_per_million": "1"}}}),
                "/definition/meters/ecu/price_per_million",
            ),
            (
                json!({"title": "x", "meters": {"ecu": {"overage": "1000000", "price_per_million": "1000000001"}}}),
                "/definition/meters/ecu/price_per_million",
            ),
        ] {
            assert_eq!(refused(definition.clone())[0].0, pointer, "{definition}");
        }
    }

    #[test]
    fn the_organizations_own_limit_counts_before_the_plans() {
        let command = publish(json!({"title": "Trial", "trial_days": 30, "limits": {"concurrency": 5}}));
        let plan = given::<Plan>(&[published(1, &command)]).0;
        let since = "2026-01-31T00:00:00Z".parse().unwrap();
        for (own, limit) in [(Some(2), (2, LimitSource::Organization)), (None, (5, LimitSource::Plan))] {
            let own = own.and_then(NonZeroU32::new);
            let own = OrganizationLimits { concurrency: own, ..OrganizationLimits::default() };
            let entitled = Entitlements::resolve(&command.plan, &plan, own, since);
            assert_eq!(entitled.concurrency().map(|(limit, source)| (limit.get(), source)), Some(limit));
            let terms = entitled.terms();
            assert_eq!(terms.trial_ends_at.unwrap().to_string(), "2026-03-02T00:00:00.000Z");
            assert_eq!((terms.concurrency, terms.plan.version), (Some(limit.0), 1));
        }
    }

    #[test]
    fn a_quota_is_the_organizations_own_or_the_plans_each_by_itself() {
        let quotas = json!({"members": 5, "storage_bytes": 1_u64 << 40});
        let command = publish(json!({"title": "Trial", "limits": {"reads_per_second": 9, "quotas": quotas}}));
        let plan = given::<Plan>(&[published(1, &command)]).0;
        let own = OrganizationLimits {
            quotas: serde_json::from_value(json!({"members": 0, "webhooks": 1})).unwrap(),
            ..OrganizationLimits::default()
        };
        let entitled = Entitlements::resolve(&command.plan, &plan, own, Timestamp::default());
        let quotas = QuotaName::ALL.map(|name| entitled.quota(name).map(|limit| (limit.most, limit.source)));
        let own = |most| Some((most, LimitSource::Organization));
        assert_eq!(quotas, [own(0), None, own(1), Some((1 << 40, LimitSource::Plan))]);
        assert_eq!(entitled.reads_per_second().map(|(rate, _)| rate.get()), Some(9));
        for bad in [json!({"keys": 1}), json!({"members": -1}), json!({"members": 1.5})] {
            assert!(serde_json::from_value::<Quotas>(bad).is_err());
        }
    }
}
