//! The kinds of records that every installation starts with. They are data: one file each, in the form in which an operator
//! registers one, and nothing in the program knows any of them by name.

use orgstream_domain::RegisterKind;

const FILES: [&str; 18] = [
    include_str!("model.json"),
    include_str!("benchmark.json"),
    include_str!("evaluation.json"),
    include_str!("judge.json"),
    include_str!("scorer.json"),
    include_str!("trace.json"),
    include_str!("trace_evaluation.json"),
    include_str!("space.json"),
    include_str!("integration.json"),
    include_str!("policy.json"),
    include_str!("yara_rule.json"),
    include_str!("sdp_configuration.json"),
    include_str!("safety_policy.json"),
    include_str!("analysis_log.json"),
    include_str!("threat_intel.json"),
    include_str!("research_report.json"),
    include_str!("learning_item.json"),
    include_str!("webhook.json"),
];

/// Returns the kinds to register with a new platform.
pub fn default_kinds() -> Result<Vec<RegisterKind>, serde_json::Error> {
    FILES.iter().map(|file| serde_json::from_str(file)).collect()
}

#[cfg(test)]
mod tests {
    use orgstream_events::{CommandId, PLATFORM_ORG, Timestamp};
    use serde_json::json;

    use super::*;
    use orgstream_domain::{Aggregate, DecisionContext, kind::Kind};

    #[test]
    fn every_default_kind_can_be_registered() {
        let (now, command_id) = (Timestamp::default(), CommandId::fresh(1, [1; 10]));
        for kind in default_kinds().unwrap() {
            let name = kind.kind.clone();
            let decided = Kind::default().decide(kind.into(), &DecisionContext { now, command_id, org: PLATFORM_ORG });
            assert_eq!(decided.map(|events| events.len()), Ok(1), "{name}");
        }
    }

    #[test]
    fn the_kinds_that_products_ask_for_are_there() {
        let names: Vec<_> = default_kinds().unwrap().into_iter().map(|kind| kind.kind.to_string()).collect();
        assert_eq!(
            names,
            [
                "model",
                "benchmark",
                "evaluation",
                "judge",
                "scorer",
                "trace",
                "trace_evaluation",
                "space",
                "integration",
                "policy",
                "yara_rule",
                "sdp_configuration",
                "safety_policy",
                "analysis_log",
                "threat_intel",
                "research_report",
                "learning_item",
                "webhook",
            ]
        );
    }

    #[test]
    fn every_default_kind_takes_its_least_record_and_no_other_shape() {
        for kind in default_kinds().unwrap() {
            let validator = orgstream_domain::schema::compile(&kind.schema).unwrap();
            let fields = kind.schema["required"].as_array().unwrap().iter().map(|name| {
                let name = name.as_str().unwrap();
                let schema = &kind.schema["properties"][name];
                let value = match schema["type"].as_str().unwrap() {
                    "object" => json!({}),
                    _ => schema["enum"].get(0).cloned().unwrap_or_else(|| json!("x")),
                };
                (name.to_owned(), value)
            });
            let least = serde_json::Value::Object(fields.collect());
            assert!(validator.is_valid(&least), "{}: {least}", kind.kind);
            assert!(!validator.is_valid(&json!({})), "{}", kind.kind);
            assert!(!validator.is_valid(&json!([])), "{}", kind.kind);
        }
    }
}
