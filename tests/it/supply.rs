//! The dependencies against `deny.toml`: licences, bans and sources, as Cargo resolves them. Works offline.

use std::{collections::BTreeSet, env, fs, path::Path, process::Command};

/// The crates that the program is built of: name, version and source as Cargo prints them, and licence.
fn crates() -> Vec<(String, String)> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tree = Command::new(cargo);
    tree.args([
        "tree",
        "--offline",
        "--workspace",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}|{l}",
    ]);
    let output = tree.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: BTreeSet<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let split = lines.iter().filter_map(|line| line.split_once('|'));
    // A repeated crate is marked behind its licence.
    split.map(|(name, licence)| (name.to_owned(), licence.replace(" (*)", ""))).collect()
}

/// The quoted words of a list in `deny.toml`.
fn list(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml")).unwrap();
    let (_, list) = text.split_once(&format!("\n{name} = [")).unwrap();
    let (list, _) = list.split_once("\n]").unwrap();
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

/// Whether licences of the list satisfy an SPDX expression: one of each `OR`, all of each `AND`.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.trim();
    let mut depth = 0;
    for operator in [" AND ", " OR "] {
        let mut parts = Vec::new();
        let mut begin = 0;
        for (at, byte) in expression.bytes().enumerate() {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ if depth == 0 && expression[at..].starts_with(operator) && at >= begin => {
                    parts.push(&expression[begin..at]);
                    begin = at + operator.len();
                }
                _ => {}
            }
        }
        if !parts.is_empty() {
            parts.push(&expression[begin..]);
            let mut met = parts.iter().map(|part| is_met(part, allowed));
            return if operator == " AND " { met.all(|met| met) } else { met.any(|met| met) };
        }
    }
    match expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => is_met(inner, allowed),
        None => allowed.contains(expression),
    }
}

#[test]
fn expressions_of_licences_are_read() {
    let allowed = ["MIT", "ISC"].map(str::to_owned).into();
    for met in ["MIT", "GPL-3.0 OR MIT", "MIT AND ISC", "ISC AND (GPL-3.0 OR MIT)", "(MIT OR X) AND ISC"] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND GPL-3.0", "ISC AND (GPL-3.0 OR X)", ""] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn everything_that_is_built_in_may_be() {
    let (crates, allowed, banned) = (crates(), list("allow"), list("deny"));
    assert!(crates.len() > 200 && banned.contains("ring") && banned.contains("rsa"), "{banned:?}");
    for (name, licence) in crates {
        let licence = licence.replace('/', " OR ").replace("  OR  ", " OR ");
        assert!(is_met(&licence, &allowed), "{name} is under {licence:?}: see deny.toml");
        let bare = name.split(' ').next().unwrap();
        assert!(!banned.contains(bare), "{name} is banned: see deny.toml");
        // A source other than the registry is printed after the version.
        let from = name.split_once(" (").map(|(_, from)| from);
        assert!(
            from.is_none_or(|from| from.starts_with('/') || from.starts_with("proc-macro")),
            "{name} is from elsewhere"
        );
    }
}
