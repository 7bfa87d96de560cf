//! The plans that every installation starts with. They are data: one file each, in the form in which an operator publishes one.
//! A plan that an operator has published stays as it is.

use orgstream_domain::PublishPlan;

const FILES: [&str; 5] = [
    include_str!("public.json"),
    include_str!("trial.json"),
    include_str!("standard.json"),
    include_str!("premium.json"),
    include_str!("enterprise.json"),
];

/// Returns the plans.
pub fn default_plans() -> Result<Vec<PublishPlan>, serde_json::Error> {
    FILES.into_iter().map(serde_json::from_str).collect()
}

#[cfg(test)]
mod tests {
    use orgstream_events::PlanName;

    use super::*;

    #[test]
    fn every_organization_begins_on_a_plan_that_there_is() {
        let plans = default_plans().unwrap();
        for name in [PlanName::default(), PlanName::public(), PlanName::trial()] {
            assert_eq!(plans.iter().filter(|plan| plan.plan == name).count(), 1, "{name}");
        }
    }
}
