//! Events of a plan: what the organizations on it are entitled to.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{Amount, MeterName, PlanName, Quotas, codec::event_enum};

event_enum! {
    /// The events of a plan.
    PlanEvent about aggregate {
        Published(PlanPublished) = "plan.published", 1;
    }
}

/// A version of the plan was published: organizations on the plan have it from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanPublished {
    /// The version, counted from 1.
    pub version: u64,
    /// All that the plan says.
    pub definition: PlanDefinition,
}

/// A version of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanVersion {
    /// The plan.
    pub plan: PlanName,
    /// The version, counted from 1; 0 for a plan that was never published.
    pub version: u64,
}

/// What a plan entitles to. What it does not name has no limit, and what it does not include is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDefinition {
    /// The name for people.
    pub title: String,
    /// What is counted, by its meter.
    #[serde(default)]
    pub meters: BTreeMap<MeterName, MeterTerms>,
    /// The limits.
    #[serde(default)]
    pub limits: PlanLimits,
    /// The money for each calendar month on the plan; it is not divided.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub monthly_fee: Amount,
    /// The days of the trial, counted from the change to the plan; none for a plan without an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_days: Option<NonZeroU32>,
}

/// What a plan says about one meter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeterTerms {
    /// The amount that is included in each calendar month.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub included: Amount,
    /// The amount beyond it that may be used in each calendar month and is paid for afterwards.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub overage: Amount,
    /// The money for a million units of what is used beyond what is included; nothing where that is free.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub price_per_million: Amount,
    /// The money for a million units that are bought before they are used; nothing where none are sold.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub top_up_price_per_million: Amount,
    /// The most that may be used in a calendar month, wherever it comes from; none for no cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<Amount>,
}

/// The limits of a plan. What is absent has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanLimits {
    /// Open holds: operations that run at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU32>,
    /// Reads per second, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_per_second: Option<NonZeroU32>,
    /// What there may be of things that stay.
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
}
