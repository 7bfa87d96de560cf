//! The weights of plans: the shares of the database's time of their orgs, relative to weight 1.

use std::{collections::BTreeMap, str::FromStr};

use orgstream_events::{NameError, PlanName};

/// The least and the greatest weight of a plan. With a larger range, an org of the least weight would wait for ever
/// beside one of the greatest.
pub const WEIGHTS: (f64, f64) = (0.01, 100.0);
/// The weight of a plan that is not configured.
const USUAL: f64 = 1.0;

/// The weight of one plan, as an operator writes it: `enterprise=4`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanWeight {
    plan: PlanName,
    weight: f64,
}

/// The reason why a text is no valid list of plan weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The weight is missing.
    #[error("{0:?} says no weight: write PLAN=WEIGHT, like enterprise=4")]
    NoWeight(String),
    /// The plan does not exist.
    #[error(transparent)]
    Plan(#[from] NameError),
    /// The weight is invalid.
    #[error("{0:?} is no weight: it must be a number from {least} to {most}", least = WEIGHTS.0, most = WEIGHTS.1)]
    Weight(String),
    /// The plan has two weights.
    #[error("the plan {0} is given two weights: leave one of them out")]
    Twice(PlanName),
}

impl FromStr for PlanWeight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let (plan, number) = text.split_once('=').ok_or_else(|| WeightError::NoWeight(text.to_owned()))?;
        let (least, most) = WEIGHTS;
        let weight = number.parse().ok().filter(|weight| (least..=most).contains(weight));
        Ok(Self { plan: plan.parse()?, weight: weight.ok_or_else(|| WeightError::Weight(number.to_owned()))? })
    }
}

/// The weights of plans. A plan that is not among them has weight 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanWeights(BTreeMap<PlanName, f64>);

impl PlanWeights {
    /// Makes the weights from a list that has each plan once.
    pub fn new(list: impl IntoIterator<Item = PlanWeight>) -> Result<Self, WeightError> {
        let mut weights = BTreeMap::new();
        for PlanWeight { plan, weight } in list {
            if weights.insert(plan.clone(), weight).is_some() {
                return Err(WeightError::Twice(plan));
            }
        }
        Ok(Self(weights))
    }

    /// The weight of the plan.
    pub(crate) fn of(&self, plan: &PlanName) -> f64 {
        self.0.get(plan).copied().unwrap_or(USUAL)
    }

    /// The weight of an org before its plan is known: that of the default plan.
    pub(crate) fn usual(&self) -> f64 {
        self.of(&PlanName::default())
    }

    /// Every weight that an org can have, some of them more than once.
    pub(crate) fn all(&self) -> impl Iterator<Item = f64> {
        self.0.values().copied().chain([USUAL])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(text: &str) -> Result<PlanWeights, WeightError> {
        PlanWeights::new(text.split(',').map(str::parse).collect::<Result<Vec<PlanWeight>, _>>()?)
    }

    #[test]
    fn a_plan_weighs_what_was_said_and_1_otherwise() {
        let weights = weights("standard=0.5,enterprise=4,big-one=100").unwrap();
        let of = |plan: &str| weights.of(&plan.parse().unwrap()).to_string();
        assert_eq!(["standard", "enterprise", "big-one", "gold"].map(of), ["0.5", "4", "100", "1"]);
        assert_eq!([weights.usual(), PlanWeights::default().usual()].map(|usual| usual.to_string()), ["0.5", "1"]);
    }

    #[test]
    fn what_is_no_weight_is_refused_in_words() {
        for (text, expected) in [
            ("enterprise", "\"enterprise\" says no weight: write PLAN=WEIGHT, like enterprise=4"),
            ("enterprise=", "\"\" is no weight: it must be a number from 0.01 to 100"),
            ("enterprise=lots", "\"lots\" is no weight"),
            ("enterprise=0", "\"0\" is no weight"),
            ("enterprise=-1", "\"-1\" is no weight"),
            ("enterprise=NaN", "\"NaN\" is no weight"),
            ("enterprise=inf", "\"inf\" is no weight"),
            ("enterprise=101", "\"101\" is no weight"),
            ("Enterprise=4", "\"Enterprise\" is not a plan name"),
            ("=4", "\"\" is not a plan name"),
            ("gold=2,gold=2", "the plan gold is given two weights"),
        ] {
            let error = weights(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
