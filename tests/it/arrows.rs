//! Who may know whom: the crates' dependencies as Cargo resolves them, and what the sources reach for.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const CRATES: [&str; 6] = [
    "orgstream-events",
    "orgstream-stream",
    "orgstream-transparency",
    "orgstream-projections",
    "orgstream-verifier",
    "orgstream-workers",
];

/// Everything that a crate of ours depends on to run, directly or not.
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

/// The crates of ours among the dependencies.
fn ours(dependencies: &BTreeSet<String>) -> Vec<&str> {
    dependencies.iter().map(String::as_str).filter(|name| name.starts_with("orgstream")).collect()
}

#[test]
fn crates_depend_on_each_other_in_one_direction() {
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("orgstream-events", &[], &["tokio", "async-nats", "sqlx", "axum", "clap", "reqwest"]),
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

/// The Rust sources below the checkout's `folders`.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> =
        folders.iter().map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    assert!(files.len() >= folders.len(), "no sources in {folders:?}");
    files
}

/// The files below `folders` that contain one of `words`, but for those whose path contains one of `except`.
fn that_say(words: &[&str], folders: &[&str], except: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let say = |file: &PathBuf| words.iter().any(|word| fs::read_to_string(file).unwrap().contains(word));
    let files = sources(folders).into_iter().filter(say);
    let names = files.map(|file| file.strip_prefix(root).unwrap().to_string_lossy().into_owned());
    names.filter(|name| !except.iter().any(|part| name.contains(part))).collect()
}

const NOWHERE: [String; 0] = [];

#[test]
fn only_the_stream_talks_to_jetstream() {
    let folders = ["events/src", "transparency/src", "projections/src", "verifier/src", "workers/src", "src"];
    // The benchmarks measure what JetStream can do without us.
    assert_eq!(that_say(&["jetstream::", "$JS."], &folders, &["src/bench/"]), NOWHERE);
}

#[test]
fn only_the_projections_speak_sql() {
    let folders = ["events/src", "stream/src", "transparency/src", "verifier/src", "workers/src", "src"];
    // Private servers are started, asked whether they answer, and given a database.
    assert_eq!(that_say(&["sqlx::"], &folders, &["src/servers/"]), NOWHERE);
}

#[test]
fn what_is_pure_knows_no_clock_and_no_randomness() {
    let forbidden = ["SystemTime", "Instant::", "OffsetDateTime::now_utc", "Uuid::now_v7", "rand::"];
    assert_eq!(that_say(&forbidden, &["events/src", "transparency/src", "verifier/src"], &[]), NOWHERE);
    // Nor does a decision: the handler, with what it remembers and how long it goes on, hands both in.
    let handling = ["src/commands/handler.rs", "src/commands/cache.rs", "src/commands/patience.rs"];
    let deciding = that_say(&forbidden, &["src/commands"], &handling);
    assert_eq!(deciding, NOWHERE);
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
