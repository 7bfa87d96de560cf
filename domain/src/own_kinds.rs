//! Kinds of an organization's own: how they are named, and how many and how large they may be on a plan.

use std::{collections::BTreeMap, str::FromStr};

use orgstream_events::{KindDefinition, KindName, NameError, OWN_KIND, OrgId, PLATFORM_ORG, PlanName, Visibility};
use serde_json::Value;

use crate::{Rejection, RejectionKind, schema::MAX_SCHEMA_BYTES, text::Faults};

/// The kinds that an organization may have of its own, and the size of their schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnKindLimit {
    /// The number of kinds, retired ones included.
    pub kinds: u32,
    /// The size of one schema, in bytes of JSON.
    pub schema_bytes: usize,
}

impl Default for OwnKindLimit {
    fn default() -> Self {
        Self { kinds: 20, schema_bytes: 32_768 }
    }
}

/// The limit of one plan, as an operator writes it: `enterprise=100:65536`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanKinds {
    plan: PlanName,
    limit: OwnKindLimit,
}

/// The reason why a text is not the limit of a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanKindsError {
    /// It is malformed.
    #[error("{0:?} says no limit: write PLAN=KINDS:BYTES, like trial=5:16384, with at most {MAX_SCHEMA_BYTES} bytes")]
    NoLimit(String),
    /// The plan's name is invalid.
    #[error(transparent)]
    Plan(#[from] NameError),
    /// A plan has two limits.
    #[error("the plan {0} is given two limits: leave one of them out")]
    Twice(PlanName),
}

impl FromStr for PlanKinds {
    type Err = PlanKindsError;

    fn from_str(text: &str) -> Result<Self, PlanKindsError> {
        let read = || {
            let (plan, limit) = text.split_once('=')?;
            let (kinds, bytes) = limit.split_once(':')?;
            let schema_bytes = bytes.parse().ok().filter(|bytes| (1..=MAX_SCHEMA_BYTES).contains(bytes))?;
            Some((plan, OwnKindLimit { kinds: kinds.parse().ok()?, schema_bytes }))
        };
        let (plan, limit) = read().ok_or_else(|| PlanKindsError::NoLimit(text.to_owned()))?;
        Ok(Self { plan: plan.parse()?, limit })
    }
}

/// The limits of all plans. A plan that is absent has the default.
#[derive(Debug, Clone, Default)]
pub struct OwnKindLimits(BTreeMap<PlanName, OwnKindLimit>);

impl OwnKindLimits {
    /// Collects the limits, one for each plan.
    pub fn new(list: impl IntoIterator<Item = PlanKinds>) -> Result<Self, PlanKindsError> {
        let mut limits = BTreeMap::new();
        for PlanKinds { plan, limit } in list {
            if limits.insert(plan.clone(), limit).is_some() {
                return Err(PlanKindsError::Twice(plan));
            }
        }
        Ok(Self(limits))
    }

    /// Whether the plan has a limit of its own, and not the default.
    pub fn knows(&self, plan: &PlanName) -> bool {
        self.0.contains_key(plan)
    }

    /// Returns the limit of a plan.
    pub fn of(&self, plan: &PlanName) -> OwnKindLimit {
        self.0.get(plan).copied().unwrap_or_default()
    }
}

impl OwnKindLimit {
    /// Refuses another kind where there are `used` of them.
    pub fn admits_another(self, used: u64, plan: &PlanName) -> Result<(), Rejection> {
        if used < u64::from(self.kinds) {
            return Ok(());
        }
        let detail = format!(
            "this organization has {used} kinds of its own, retired ones included, and its plan ({plan}) allows {}: change one of \
             them (a retired one can be restored), or ask the platform's operator for another plan",
            self.kinds
        );
        Err(Rejection::new(RejectionKind::Conflict, "kind_limit_exceeded", detail))
    }

    /// Refuses a schema that is larger than the plan allows.
    pub fn admits_schema(self, schema: &Value, plan: &PlanName) -> Result<(), Rejection> {
        let bytes = schema.to_string().len();
        if bytes <= self.schema_bytes {
            return Ok(());
        }
        let detail = format!(
            "is {bytes} bytes long; the plan ({plan}) allows {} for a kind of an organization's own: shorten it, divide the kind, or \
             ask the platform's operator for another plan",
            self.schema_bytes
        );
        Err(Rejection::field("/schema", "too_long", detail))
    }
}

/// Adds the fault of a name that `org` cannot register.
pub(crate) fn check_name(kind: &KindName, org: OrgId, faults: &mut Faults) {
    match (kind.is_own(), org == PLATFORM_ORG) {
        (true, true) => {
            let detail =
                format!("must not begin with {OWN_KIND}: those are an organization's own; choose another name");
            faults.add("/kind", "own_prefix", detail);
        }
        (false, false) => {
            let detail = format!(
                "must begin with {OWN_KIND}, as the kinds of an organization's own do: choose {OWN_KIND}{kind}"
            );
            faults.add("/kind", "own_prefix", detail);
        }
        (true, false) | (false, true) => {}
    }
}

/// Adds the fault of a kind of an organization's own whose records others would see.
pub(crate) fn check_visibility(definition: &KindDefinition, faults: &mut Faults) {
    if definition.visibility != Visibility::Private {
        let detail = "must be private, or missing: the records of a kind of an organization's own are its own";
        faults.add("/visibility", "private_only", detail);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_has_a_number_and_a_size() {
        let limits = OwnKindLimits::new(["trial=2:1000".parse().unwrap()]).unwrap();
        let (trial, other): (PlanName, PlanName) = ("trial".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(limits.of(&trial), OwnKindLimit { kinds: 2, schema_bytes: 1_000 });
        assert_eq!(limits.of(&other), OwnKindLimit::default());
        assert!(limits.of(&trial).admits_another(1, &trial).is_ok());
        let refused = limits.of(&trial).admits_another(2, &trial).unwrap_err();
        assert_eq!(refused.code, "kind_limit_exceeded");
        assert!(refused.detail.contains("has 2 kinds") && refused.detail.contains("(trial) allows 2"), "{refused:?}");
        let large = json!({"description": "x".repeat(1_000)});
        assert_eq!(limits.of(&trial).admits_schema(&large, &trial).unwrap_err().errors[0].pointer, "/schema");
        for bad in ["trial", "trial=5", "trial=x:5", "trial=5:0", "trial=5:65537", "=5:1"] {
            assert!(bad.parse::<PlanKinds>().is_err(), "{bad}");
        }
        let twice = ["trial=2:1000", "trial=3:1000"].map(|text| text.parse().unwrap());
        assert_eq!(OwnKindLimits::new(twice).unwrap_err(), PlanKindsError::Twice(trial));
    }
}
