//! The kinds of records that every installation starts with. They are data: one file each, in the form in which an operator
//! registers one, and nothing in the program knows any of them by name.

use orgstream_domain::RegisterKind;
use orgstream_events::{Fingerprint, KindDefinition, KindName};

/// The files. A kind comes after those that it refers to.
const FILES: [&str; 18] = [
    include_str!("model.json"),
    include_str!("benchmark.json"),
    include_str!("judge.json"),
    include_str!("scorer.json"),
    include_str!("evaluation.json"),
    include_str!("trace.json"),
    include_str!("trace_evaluation.json"),
    include_str!("space.json"),
    include_str!("integration.json"),
    include_str!("policy.json"),
    include_str!("threat_intel.json"),
    include_str!("yara_rule.json"),
    include_str!("sdp_configuration.json"),
    include_str!("safety_policy.json"),
    include_str!("analysis_log.json"),
    include_str!("research_report.json"),
    include_str!("learning_item.json"),
    include_str!("webhook.json"),
];

/// The definitions that earlier versions of this program registered, by the SHA-256 of their JSON with sorted names and
/// without spaces. A kind that still has one was not changed by an operator. Lines are added here, and none is removed.
const EARLIER: &[(&str, &str)] = &[
    ("model", "22796e2282b3cb365d9b78189a773bbdddae53af1384dca06371d12b264fc3e9"),
    ("benchmark", "e8283b1a8632d46fe92a9532c2250e975b6ea95b73c1987ba57018e4a5593b16"),
    ("judge", "f150852331ceb20ad1f2ee4b085b08b629e3bd38575dfccdcaf13f6d94f15124"),
    ("scorer", "5548926a135a1507798a37e804e68ed1ee53ebd3b744793f073eea3968b553ad"),
    ("evaluation", "bb4788b8e2cca43bbef53f343f1321731289ff6a991281f79949fb01c425a927"),
    ("trace", "47a7d2d2ad5bef7a3381d6866aa675d3bd68ada758b93d912922f7f199ef8dcf"),
    ("trace_evaluation", "533b8dbcb37b2d31ba4d46a7825800cc8441c7a2b65fca981dbaff81fcddc2fb"),
    ("space", "54dab6d14e8104fea93e6bd62048e9521e719c6647862c6e291730e811fca5ba"),
    ("integration", "2b2f3598595431ec6d6b512cfb146dcaec806f7df5f8493437097c49359979fd"),
    ("policy", "b97a68efebdfd9d51308a28df9154cc655137fa1090f6974142b6de3bc118efa"),
    ("threat_intel", "d4d8f5587de57708c5e2c7a2998f6d9f4eed2c6aa3d447aceedc7339baa85ebb"),
    ("yara_rule", "01397916f67cf6a107c0380f52e56e6f8f41ad4860162d7d31043e38371ac252"),
    ("sdp_configuration", "54a53fd6902d0554963808f357430e3750e740937cb0949b3544b54f61c0cfc2"),
    ("safety_policy", "bd2dcdc8350053524c048cbf601f7688cd1665f9b847aaf6aa561c0c1b3d92fd"),
    ("analysis_log", "59af64adbc3ac5b3fb95f4db2cbaf8011919be75d0fdf935e5abe449785276af"),
    ("research_report", "ca6f27973410bc73d08dd398201d95a0909b4ad5ed650aad3564162c91f3d831"),
    ("learning_item", "01b446b34edb7ea5bfe70bed5c3bcee51326956c3f5e2069a78f89b5392e2a1d"),
    ("webhook", "051cbcd57fbcc48f69dd160be9ae813e4c403a6392efa20108c73a406edb863f"),
    ("space", "cd0f0b9a5c2986d1228cdab54ad9c9992c555cae08b9621106135d19cd64477a"),
    ("policy", "40319b740925ac7a229c4b03e9ef927d40bb798a560895c35cab61bfd70525ef"),
    ("judge", "407e70b6572b9bb4018e0f3c87ff045b0a9789a6ac50ee153f5fb3a720b48a9e"),
    ("scorer", "054aa0ec8e83d477f3ead41934d6ee4101882c392597987d441c89eecc14d418"),
    ("safety_policy", "4b973099e396b2bd5fb73095cf219c7a728a3cfe242273df59ab4a92074eeda3"),
    ("sdp_configuration", "ff7a3f1b989b335fa59bffe8aa791a7763144ab1a3144f8723259b4499f0e527"),
    ("yara_rule", "fd49e7c5e80836f0b2ef8a25bc2e391bc39a61d1fe9ba8be8fdbe922bd28674d"),
    ("model", "1baff1a4d1030dacea78e83a2e711ec394d1b829e2eaf6307a0500482848499e"),
    ("integration", "a68b40f4d03359d287c183beb72373bf7377c3178750be768c13e906ad336051"),
    ("evaluation", "3366aa8fee5512bb044cbc9d82cef77433ef048d4edb29a6001c2d201b58793d"),
    ("trace", "8c4e9f81fbc153060d85f3b81a1a01f192a37a0f9a77b452e05994591b99f46b"),
    ("research_report", "278dc9ba8088443bb11ab6f510e9e1a2f419d2df11f8ea97bea1041c50de551c"),
    ("learning_item", "d8e0f268354b45ea8fd77303dbce3a3ab1fe57bbbdcf149ac9201a5387bb0200"),
];

/// Returns the kinds to register with a new platform.
pub fn default_kinds() -> Result<Vec<RegisterKind>, serde_json::Error> {
    FILES.iter().map(|file| serde_json::from_str(file)).collect()
}

/// Whether an earlier version of this program registered the kind by this definition.
pub fn is_earlier_default(kind: &KindName, definition: &KindDefinition) -> Result<bool, serde_json::Error> {
    // Maps of JSON values are sorted by name.
    let json = serde_json::to_vec(&serde_json::to_value(definition)?)?;
    let found = Fingerprint::of(&[&json]).to_string();
    Ok(EARLIER.iter().any(|(name, sum)| *name == kind.as_str() && *sum == found))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use orgstream_domain::{Aggregate, DecisionContext, annotations::Annotations, kind::Kind, schema::compile};
    use orgstream_events::{CommandId, PLATFORM_ORG, Timestamp, Visibility};
    use serde_json::{Value, json};

    use super::*;

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
                "judge",
                "scorer",
                "evaluation",
                "trace",
                "trace_evaluation",
                "space",
                "integration",
                "policy",
                "threat_intel",
                "yara_rule",
                "sdp_configuration",
                "safety_policy",
                "analysis_log",
                "research_report",
                "learning_item",
                "webhook",
            ]
        );
    }

    #[test]
    fn every_default_kind_takes_its_example_and_no_other_shape() {
        for kind in default_kinds().unwrap() {
            let (name, validator) = (&kind.kind, compile(&kind.schema).unwrap());
            let example = &kind.schema["examples"][0];
            let faults: Vec<String> = validator.iter_errors(example).map(|error| error.to_string()).collect();
            assert!(faults.is_empty(), "{name}: {faults:?}");
            for required in kind.schema["required"].as_array().unwrap() {
                let mut less = example.clone();
                less.as_object_mut().unwrap().remove(required.as_str().unwrap());
                assert!(!validator.is_valid(&less), "{name} without {required}");
            }
            assert!(!validator.is_valid(&json!([])), "{name}");
        }
    }

    #[test]
    fn every_field_of_a_default_kind_says_what_it_is_and_has_an_example() {
        for kind in default_kinds().unwrap() {
            let name = &kind.kind;
            let fields = kind.schema["properties"].as_object().unwrap();
            let example = kind.schema["examples"][0].as_object().unwrap();
            for (field, schema) in fields {
                let description = schema["description"].as_str().unwrap_or_default();
                assert!(description.ends_with('.') && !description.contains('?'), "{name}.{field}: {description}");
                // What went wrong has no place in a good example, and neither has the platform's catalogue in one of an
                // organization.
                let is_without = field == "error" || schema.to_string().contains("\"global\"") || field == "label";
                let is_rare = ["labels", "evaluation", "prerequisites"].contains(&field.as_str());
                // An example of a secret would be used for one.
                let is_without = is_without || schema["x-secret"] == true;
                assert!(example.contains_key(field) || is_without || is_rare, "{name}.{field} has no example");
            }
            assert_eq!(example.keys().find(|field| !fields.contains_key(*field)), None, "{name}");
        }
    }

    #[test]
    fn every_default_kind_is_found_listed_and_refers_to_kinds_before_it() {
        let mut before = BTreeSet::new();
        for kind in default_kinds().unwrap() {
            let annotations = Annotations::read(&kind.schema).unwrap();
            before.insert(kind.kind.clone());
            assert!(annotations.listed.values().any(|field| field.filter), "{}", kind.kind);
            assert!(!annotations.searched.is_empty(), "{}", kind.kind);
            for place in annotations.references {
                assert!(before.contains(&place.kind), "{} refers to {}", kind.kind, place.kind);
            }
        }
    }

    #[test]
    fn what_was_registered_before_is_recognized_and_what_was_changed_is_not() {
        let schema = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 200}, "description": {"type": "string"},
            "resources": {"type": "array", "items": {"type": "string"}}, "layout": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}},
        }});
        let definition = |schema: &Value| {
            let (title, schema) = ("Space".to_owned(), schema.clone());
            let (visibility, views) = (Visibility::DefaultOn, vec![]);
            KindDefinition { title, schema, visibility, cost: 1, views, append_only: false }
        };
        let (space, model) = ("space".parse().unwrap(), "model".parse().unwrap());
        assert!(is_earlier_default(&space, &definition(&schema)).unwrap());
        assert!(!is_earlier_default(&model, &definition(&schema)).unwrap());
        // Two were an organization's own decision before they were for everybody.
        for name in ["research_report", "learning_item"] {
            let found = default_kinds().unwrap().into_iter().find(|kind| kind.kind.as_str() == name).unwrap();
            let RegisterKind { kind, title, schema, cost, .. } = found;
            let (visibility, views) = (Visibility::OptIn, Vec::new());
            let before = KindDefinition { title, schema, visibility, cost, views, append_only: false };
            assert!(is_earlier_default(&kind, &before).unwrap(), "{name}");
        }
        let mut changed = schema.clone();
        changed["required"] = json!([]);
        assert!(!is_earlier_default(&space, &definition(&changed)).unwrap());
        for RegisterKind { kind, title, schema, visibility, cost, views, append_only } in default_kinds().unwrap() {
            let views = orgstream_domain::views::read(views).unwrap();
            let now = KindDefinition { title, schema, visibility, cost, views, append_only };
            assert!(!is_earlier_default(&kind, &now).unwrap(), "{kind} is what it was");
        }
    }
}
