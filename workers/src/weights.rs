//! What a plan is worth: how much of the database's time its orgs may have against those of weight 1.

use std::{collections::BTreeMap, str::FromStr};

use orgstream_events::{NameError, PlanName};

/// The least and the most that a plan may weigh. Further apart, who weighs the least would wait for ever beside who weighs
/// the most.
pub const WEIGHTS: (f64, f64) = (0.01, 100.0);
/// The weight of a plan that nobody said anything about.
const USUAL: f64 = 1.0;

/// What one plan weighs, as an operator writes it: `enterprise=4`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanWeight {
    plan: PlanName,
    weight: f64,
}

/// Why a text does not say what plans weigh.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// There is no weight.
    #[error("{0:?} says no weight: write PLAN=WEIGHT, like enterprise=4")]
    NoWeight(String),
    /// There is no such plan.
    #[error(transparent)]
    Plan(#[from] NameError),
    /// There is no such weight.
    #[error("{0:?} is no weight: it must be a number from {least} to {most}", least = WEIGHTS.0, most = WEIGHTS.1)]
    Weight(String),
    /// There are two weights.
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

/// What plans weigh. A plan that is not among them weighs 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanWeights(BTreeMap<PlanName, f64>);

impl PlanWeights {
    /// All of them, each once.
    pub fn new(list: impl IntoIterator<Item = PlanWeight>) -> Result<Self, WeightError> {
        let mut weights = BTreeMap::new();
        for PlanWeight { plan, weight } in list {
            if weights.insert(plan.clone(), weight).is_some() {
                return Err(WeightError::Twice(plan));
            }
        }
        Ok(Self(weights))
    }

    /// What the plan weighs.
    pub(crate) fn of(&self, plan: &PlanName) -> f64 {
        self.0.get(plan).copied().unwrap_or(USUAL)
    }

    /// What an org weighs before its plan is known: what the usual one does.
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
