//! Secrets in the sources: types with secrets cannot be printed by accident, and environment values are not shown by
//! `--help`.

use std::process::Command;

use crate::sources::{PRODUCT, sources};

/// Text fields that are named like secrets, in printable types: `file: type.field`.
fn shown(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // Whether the next type is printable, and the name of the current type.
    let (mut can, mut inside) = (false, None);
    for line in text.lines() {
        let code = line.trim();
        if let Some(derived) = code.strip_prefix("#[derive(") {
            can |= derived.split([',', ')']).any(|name| ["Debug", "Display"].contains(&name.trim()));
        } else if let Some((_, rest)) = code.split_once("struct ").filter(|_| !line.starts_with("//")) {
            inside = Some(rest.split([' ', '<', '(', ';']).next().unwrap().to_owned()).filter(|_| can);
            can = false;
        } else if line.starts_with('}') {
            (can, inside) = (false, None);
        } else if let (Some(name), Some((field, kind))) = (&inside, code.split_once(": ")) {
            let field = field.rsplit(' ').next().unwrap();
            let kind = kind.trim_end_matches(',');
            let is_text = ["String", "Option<String>", "&'a str", "Option<&'a str>", "Vec<u8>"].contains(&kind);
            let is_secret =
                ["password", "token", "secret", "pepper", "commit_keys", "database_url", "owner_url", "nats_url"]
                    .iter()
                    .any(|word| field == *word || field.ends_with(&format!("_{word}")));
            if is_secret && is_text {
                found.push(format!("{file}: {name}.{field}"));
            }
        }
    }
    found
}

#[test]
fn nothing_that_holds_a_secret_can_be_shown() {
    let text = "#[derive(Clone, Debug)]\npub struct Args {\n    pub token: String,\n    name: String,\n}\n";
    assert_eq!(shown("x", text), ["x: Args.token"]);
    assert_eq!(shown("x", &text.replace("Debug", "Copy")), Vec::<String>::new());
    let files = sources(PRODUCT);
    assert!(files.len() > 200);
    let found: Vec<String> = files.iter().flat_map(|source| shown(&source.path, &source.text)).collect();
    assert!(found.is_empty(), "give these the type Secret or Address of src/secret.rs: {found:#?}");
}

#[test]
fn help_says_nothing_of_what_the_environment_holds() {
    let secrets = [
        ("ORGSTREAM_DATABASE_URL", "postgres://app:hidden@db/orgstream"),
        ("ORGSTREAM_OWNER_URL", "postgres://app:hidden@db/orgstream"),
        ("ORGSTREAM_NATS_URL", "nats://app:hidden@broker"),
        ("ORGSTREAM_NATS_MONITOR_URL", "http://app:hidden@broker:8222"),
        ("ORGSTREAM_OTLP_URL", "http://collector/?key=hidden"),
        ("ORGSTREAM_SMTP_URL", "smtps://app:hidden@mail"),
        ("ORGSTREAM_DATABASE_PASSWORD", "hidden"),
        ("ORGSTREAM_DATABASE_LOGIN_PASSWORDS", "app_rw=hidden"),
        ("ORGSTREAM_COMMIT_KEYS", "first:hidden"),
        ("ORGSTREAM_PEPPER", "hidden"),
        ("ORGSTREAM_PLATFORM_TOKEN", "hidden"),
        ("ORGSTREAM_METRICS_TOKEN", "hidden"),
        ("ORGSTREAM_AUTH0_CLIENT_SECRET", "hidden"),
        ("ORGSTREAM_API_KEY", "hidden"),
        ("ORGSTREAM_SESSION", "hidden"),
        ("ORGSTREAM_TOKEN", "hidden"),
    ];
    for job in ["serve", "work", "sign", "migrate", "replay", "publish", "login", "check-config", "dev"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_orgstream")).args([job, "--help"]).envs(secrets).output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !said.contains("hidden"), "{job}: {said}");
    }
    // Nor is a rejected value repeated.
    let mut refused = Command::new(env!("CARGO_BIN_EXE_orgstream"));
    refused
        .arg("migrate")
        .env("ORGSTREAM_OWNER_URL", "postgres://db/x")
        .env("ORGSTREAM_DATABASE_LOGIN_PASSWORDS", "x=hidden");
    let output = refused.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("LOGIN=TEXT") && !said.contains("hidden"), "{said}");
}
