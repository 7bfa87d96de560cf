//! Each benchmark runs to its end, with as little work as its flags allow: what it measures needs a quiet machine, this does not.
#![cfg(test)]

use std::{collections::BTreeSet, process::Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_orgstream-bench");

/// The command of a benchmark.
fn command(name: &str) -> String {
    name.replace('_', "-")
}

/// Runs the program and returns what it prints.
fn run(args: &[&str]) -> String {
    let done = Command::new(PROGRAM).args(args).current_dir(env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    let (printed, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{args:?}: {printed}{errors}");
    printed.into_owned()
}

/// Declares the benchmarks with their flags, each by its name with underscores: a test for each, and the list of their names.
macro_rules! small {
    ($($name:ident: $flags:literal,)+) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];

        $(
            #[test]
            fn $name() {
                let name = command(stringify!($name));
                let args: Vec<&str> = [name.as_str()].into_iter().chain($flags.split_whitespace()).collect();
                let printed = run(&args);
                assert!(printed.lines().count() > 1, "no figures: {printed}");
            }
        )+
    };
}

small! {
    access: "--times 100",
    account: "--seconds 1 --callers 2",
    append_only: "--records 200 --orgs 2 --bulk 10",
    append: "--seconds 1 --writers 2 --sync default",
    audit: "--events 2000 --exported 500 --proofs 5",
    fairness: "--scenarios F1 --orgs 4 --seeds 1 --events 200 --idle 2 --rate 20 --policies fair",
    history: "--updates 100 --members 20 --others 10",
    project: "--events 500 --orgs 4 --seconds 1",
    search: "--orgs 3 --records 20 --large 100 --queries 5",
    views: "--records 200 --reads 2",
}

#[test]
fn every_benchmark_is_run() {
    let help = run(&["--help"]);
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    // The lines of a command's description are indented further.
    let names = commands.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let found: BTreeSet<String> = names.map(str::to_owned).collect();
    assert_eq!(found, NAMES.iter().map(|name| command(name)).collect());
}
