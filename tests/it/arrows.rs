//! The allowed dependencies: between crates as Cargo resolves them, and in the sources.

use std::{collections::BTreeSet, env, fs, path::Path, process::Command};

use crate::sources::{Source, sources};

const CRATES: [&str; 8] = [
    "orgstream-events",
    "orgstream-domain",
    "orgstream-stream",
    "orgstream-transparency",
    "orgstream-projections",
    "orgstream-verifier",
    "orgstream-workers",
    "orgstream-servers",
];

/// The runtime dependencies of a workspace crate, direct and indirect.
fn dependencies(of: &str) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.args(["tree", "--offline", "--package", of, "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let output = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    // The first line is the crate itself.
    lines.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// The workspace crates among the dependencies.
fn ours(dependencies: &BTreeSet<String>) -> Vec<&str> {
    dependencies.iter().map(String::as_str).filter(|name| name.starts_with("orgstream")).collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let cases: [(&str, &[&str], &[&str]); 8] = [
        ("orgstream-events", &[], &["tokio", "async-nats", "sqlx", "axum", "clap", "reqwest"]),
        ("orgstream-domain", &["orgstream-events"], &["tokio", "async-nats", "sqlx", "axum", "clap", "reqwest"]),
        ("orgstream-stream", &["orgstream-events"], &["sqlx", "axum", "clap"]),
        ("orgstream-transparency", &[], &["tokio", "async-nats", "sqlx", "axum", "clap", "reqwest", "rand", "time"]),
        (
            "orgstream-projections",
            &["orgstream-events", "orgstream-transparency"],
            &["async-nats", "axum", "clap", "reqwest"],
        ),
        (
            "orgstream-verifier",
            &["orgstream-events", "orgstream-transparency"],
            &["tokio", "async-nats", "sqlx", "axum", "reqwest"],
        ),
        (
            "orgstream-workers",
            &["orgstream-events", "orgstream-projections", "orgstream-stream", "orgstream-transparency"],
            &["axum", "clap"],
        ),
        ("orgstream-servers", &["orgstream-events", "orgstream-stream"], &["axum", "clap"]),
    ];
    assert_eq!(cases.map(|(name, ..)| name), CRATES);
    for (name, knows, never) in cases {
        let dependencies = dependencies(name);
        assert_eq!(ours(&dependencies), knows, "what {name} knows");
        for other in never {
            assert!(!dependencies.contains(*other), "{name} must never know {other}");
        }
    }
    let known: Vec<_> = CRATES.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    assert_eq!(ours(&dependencies("orgstream")), known, "the program knows all, and nothing knows the program");
}

/// The files below `folders` that contain one of `words`, except those whose path contains one of `except`.
fn that_say(words: &[&str], folders: &[&str], except: &[&str]) -> Vec<String> {
    let say = |source: &Source| words.iter().any(|word| source.text.contains(word));
    let names = sources(folders).into_iter().filter(say).map(|source| source.path);
    names.filter(|name| !except.iter().any(|part| name.contains(part))).collect()
}

const NOWHERE: [String; 0] = [];

#[test]
fn only_the_stream_talks_to_jetstream() {
    // The benchmarks, too, use JetStream directly: to measure its raw limit.
    let folders = [
        "events/src",
        "domain/src",
        "transparency/src",
        "projections/src",
        "servers/src",
        "verifier/src",
        "workers/src",
        "src",
    ];
    assert_eq!(that_say(&["jetstream::", "$JS."], &folders, &[]), NOWHERE);
}

#[test]
fn only_the_projections_speak_sql() {
    // Private servers, which are not among these, are checked for readiness, and given a database.
    let folders = ["events/src", "domain/src", "stream/src", "transparency/src", "verifier/src", "workers/src", "src"];
    assert_eq!(that_say(&["sqlx::"], &folders, &[]), NOWHERE);
}

#[test]
fn what_is_pure_knows_no_clock_and_no_randomness() {
    let forbidden = ["SystemTime", "Instant::", "OffsetDateTime::now_utc", "Uuid::now_v7", "rand::"];
    let pure = ["events/src", "domain/src", "transparency/src", "verifier/src"];
    assert_eq!(that_say(&forbidden, &pure, &[]), NOWHERE);
}

#[test]
fn the_verifier_writes_nothing_and_asks_nobody() {
    let forbidden = ["fs::write", "File::create", "OpenOptions", "fs::remove", "fs::rename", "create_dir", "std::net"];
    assert_eq!(that_say(&forbidden, &["verifier/src"], &[]), NOWHERE);
}

#[test]
fn decisions_read_no_projection() {
    assert_eq!(that_say(&["orgstream_projections"], &["src/commands"], &[]), NOWHERE);
}

/// The modules of the program, each with those that it may use, in an order in which none uses a later one.
const ROOMS: [(&str, &[&str]); 19] = [
    ("clock", &[]),
    ("secret", &[]),
    ("tenant_cache", &[]),
    ("terminal", &[]),
    ("adapters", &["clock", "secret"]),
    ("auth", &["adapters", "clock", "tenant_cache"]),
    ("org_queues", &[]),
    ("peers", &[]),
    ("limits", &["auth", "peers", "tenant_cache"]),
    ("commands", &["adapters", "auth", "clock", "org_queues", "peers", "tenant_cache"]),
    ("app", &["auth", "clock", "commands", "limits", "org_queues", "secret"]),
    ("jobs", &["adapters", "app", "clock", "commands", "tenant_cache"]),
    ("api", &["adapters", "app", "auth", "clock", "commands", "jobs", "limits", "secret", "tenant_cache"]),
    ("config", &["adapters", "api", "auth", "limits", "secret"]),
    ("telemetry", &["config", "jobs", "terminal"]),
    ("client", &["config", "secret", "terminal"]),
    ("audit", &["client", "terminal"]),
    ("process", &["adapters", "api", "app", "auth", "commands", "config", "jobs", "limits", "peers", "secret"]),
    ("dev", &["adapters", "app", "audit", "auth", "commands", "config", "jobs", "process", "terminal"]),
];

/// The modules that a source names: `crate::room`, alone or in braces.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (place, _) in text.match_indices("crate::") {
        let rest = &text[place + "crate::".len()..];
        let name = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        let Some(inside) = rest.strip_prefix('{') else {
            rooms.insert(name(rest));
            continue;
        };
        let (mut depth, mut is_new) = (0, true);
        for (at, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_new = true,
                c if is_new && c.is_ascii_alphabetic() => {
                    rooms.insert(name(&inside[at..]));
                    is_new = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

#[test]
fn rooms_of_the_program_know_each_other_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (place, (room, may_know)) in ROOMS.iter().enumerate() {
        let earlier: Vec<&str> = ROOMS[..place].iter().map(|(room, _)| *room).collect();
        assert!(may_know.iter().all(|other| earlier.contains(other)), "{room} comes before what it may know");
        let path = if root.join(room).is_dir() { format!("src/{room}") } else { format!("src/{room}.rs") };
        let mut known = BTreeSet::new();
        for source in sources(&[&path]) {
            known.extend(rooms_named(&source.text));
        }
        known.remove(*room);
        assert_eq!(known, may_know.iter().map(|room| (*room).to_owned()).collect(), "what src/{room} knows");
    }
    // The command line may use all of them; nothing is outside of the modules.
    let rooms: BTreeSet<String> =
        ROOMS.iter().map(|(room, _)| *room).chain(["cli", "lib", "main"]).map(str::to_owned).collect();
    let found: BTreeSet<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_owned())
        .collect();
    assert_eq!(found, rooms);
}

#[test]
fn every_crate_of_the_workspace_is_built_quickly() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert_eq!(members.len(), CRATES.len() + 1, "the crates here and the benchmarks");
    for name in members.iter().map(|member| format!("orgstream-{member}")).chain(["orgstream".to_owned()]) {
        assert!(
            manifest.contains(&format!("[profile.dev.package.{name}]\nopt-level = 0\n")),
            "{name} in [profile.dev]"
        );
    }
}
