//! docker-compose.yml against the program: every command, flag and setting in it exists, and no secret has a default.

use std::{collections::BTreeSet, fs, path::Path};

use clap::CommandFactory;
use orgstream::cli::Cli;
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("docker-compose.yml")).unwrap()
}

/// The services that run the program, by name.
fn programs(compose: &Value) -> Vec<(&String, &Value)> {
    let services = compose["services"].as_object().unwrap();
    services.iter().filter(|(_, service)| service["image"] == "orgstream").collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

#[test]
fn every_program_is_started_with_what_it_knows() {
    let (compose, cli) = (compose(), Cli::command());
    let programs = programs(&compose);
    let mut started = BTreeSet::new();
    for (name, service) in &programs {
        let words = strings(&service["command"]);
        let jobs = words.iter().take_while(|word| !word.starts_with('-'));
        let command = jobs.fold(&cli, |command, word| {
            command.find_subcommand(word).unwrap_or_else(|| panic!("{name}: there is no command {word}"))
        });
        let settings: Vec<_> = command.get_arguments().chain(cli.get_arguments()).collect();
        for flag in words.iter().filter_map(|word| word.strip_prefix("--")) {
            assert!(
                settings.iter().any(|setting| setting.get_long() == Some(flag)),
                "{name}: there is no flag --{flag}"
            );
        }
        let environment = service.get("environment").and_then(Value::as_object);
        let given: BTreeSet<&str> = environment.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        for variable in &given {
            let known = settings.iter().any(|setting| setting.get_env().is_some_and(|env| env == *variable));
            assert!(known, "{name}: there is no setting {variable}");
        }
        for setting in command.get_arguments().filter(|setting| setting.is_required_set()) {
            let variable = setting.get_env().unwrap().to_str().unwrap();
            assert!(given.contains(variable), "{name} needs {variable}");
        }
        started.insert(words[0]);
    }
    assert_eq!(started, BTreeSet::from(["migrate", "nats", "serve", "sign", "work"]));
}

#[test]
fn every_secret_must_be_given_and_is_in_the_recipe() {
    let (text, operations) = (read("docker-compose.yml"), read("docs/operations.md"));
    let (_, recipe) = operations.split_once("\nfor name in POSTGRES_PASSWORD ").unwrap();
    let (recipe, _) = recipe.split_once("\n```").unwrap();
    let recipe = format!("POSTGRES_PASSWORD {recipe}");
    let mut secrets = 0;
    for part in text.split("${").skip(1) {
        let (name, rest) = part.split_once(':').unwrap();
        assert!(rest.starts_with('?'), "{name} has a default, or may be left out");
        assert!(recipe.contains(name), "{name} is not made by the recipe in docs/operations.md");
        secrets += 1;
    }
    assert!(secrets >= 5, "{secrets}");
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let secret = ["PASSWORD:", "PEPPER:", "TOKEN:", "COMMIT_KEYS:"].iter().any(|name| line.contains(name));
        assert!(!secret || line.contains("${"), "a secret in the open: {line}");
    }
}

#[test]
fn acknowledged_commands_are_on_disk_and_only_the_api_is_published() {
    let compose = compose();
    let nats = read("deploy/nats.conf");
    assert!(nats.contains("sync_interval: always") && nats.contains("store_dir"));
    assert!(nats.contains("include \"access/access.conf\""), "whoever reaches NATS is let in");
    let services = compose["services"].as_object().unwrap();
    for (name, service) in services.iter().filter(|(name, _)| *name != "nats-init") {
        let published = service.get("ports").map(strings).unwrap_or_default();
        assert!(published.is_empty() || name == "serve", "{name} is published");
        assert!(published.iter().all(|port| port.starts_with("127.0.0.1:")), "{name} is open to everybody");
        let ends = ["migrate", "streams"].contains(&name.as_str());
        assert!(ends || service["healthcheck"]["test"].is_array(), "{name} has no health check");
        let networks = strings(&service["networks"]);
        assert!(networks == ["servers"] || name == "serve", "{name} is on {networks:?}");
    }
    assert_eq!(compose["networks"]["servers"]["internal"], true);
    let ends = |name: &str| ["migrate", "streams", "nats-init"].contains(&name);
    for (name, service) in programs(&compose).into_iter().filter(|(name, _)| !ends(name)) {
        let waits = &service["depends_on"];
        assert_eq!(waits["migrate"]["condition"], "service_completed_successfully", "{name}");
        // The signing process does not use the streams.
        if name != "sign" {
            assert_eq!(waits["nats"]["condition"], "service_healthy", "{name}");
            assert_eq!(waits["streams"]["condition"], "service_completed_successfully", "{name}");
            assert_eq!(service["environment"]["ORGSTREAM_NATS_MONITOR_URL"], "http://nats:8222", "{name}");
        }
        let has_key = service["volumes"].as_array().is_some_and(|volumes| volumes.contains(&"keys:/keys".into()));
        assert_eq!(has_key, name == "sign", "{name} and the key of the audit logs");
    }
}

#[test]
fn each_part_has_its_own_credentials_for_nats_and_no_others() {
    let compose = compose();
    for (name, service) in compose["services"].as_object().unwrap().iter().filter(|(name, _)| *name != "nats-init") {
        let volumes = service.get("volumes").map(strings).unwrap_or_default();
        let access: Vec<&str> = volumes.into_iter().filter(|volume| volume.starts_with("access-")).collect();
        let expected = match name.as_str() {
            "nats" => vec!["access-server:/etc/nats/access:ro"],
            "serve" => vec!["access-serve:/access:ro"],
            "work" => vec!["access-work:/access:ro"],
            "streams" => vec!["access-admin:/access:ro"],
            _ => vec![],
        };
        assert_eq!(access, expected, "{name}");
    }
}

#[test]
fn the_image_runs_as_nobody_special() {
    let dockerfile = read("Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("the image names a user");
    assert!(user.parse::<u32>().is_ok_and(|uid| uid > 0), "{user}");
    assert_eq!(dockerfile.lines().filter(|line| line.starts_with("FROM ")).count(), 2, "what builds does not run");
}
