//! The OpenAPI document in other tools: a linter, and generators of clients in two languages, which omit nothing.
//! `./check` installs them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use orgstream::api::http::kit::openapi::{operations, spec};

use crate::support::TempDir;

fn tools() -> PathBuf {
    let tools = env::var_os("ORGSTREAM_API_TOOLS").map(PathBuf::from);
    let tools = tools.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".orgstream/tools/api"));
    assert!(tools.join("node_modules").is_dir(), "there are no tools in {}: ./check installs them", tools.display());
    tools
}

fn node(program: &str, dir: &Path, args: &[&str]) -> String {
    said(Command::new(tools().join("node_modules/.bin").join(program)).args(args).current_dir(dir))
}

/// The output of a program that must succeed.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.env("NO_COLOR", "1").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {said}");
    said
}

/// A folder with the document in it.
fn written() -> TempDir {
    let dir = TempDir::new();
    fs::write(dir.path().join("openapi.json"), spec().document.to_string()).unwrap();
    dir
}

#[test]
fn a_linter_finds_nothing_wrong_with_the_description() {
    let dir = written();
    // One route ends in a slash on purpose, for clients that expect it.
    let rules = "extends: [recommended]\nrules:\n  no-path-trailing-slash: off\n";
    fs::write(dir.path().join("redocly.yaml"), rules).unwrap();
    let said = node("redocly", dir.path(), &["lint", "openapi.json", "--format", "stylish"]);
    assert!(said.contains("Your API description is valid") && !said.contains(" warning  "), "{said}");
}

#[test]
fn a_typescript_client_is_strict_and_knows_every_command() {
    let dir = written();
    node("openapi-typescript", dir.path(), &["openapi.json", "--output", "api.ts"]);
    let using = r#"
import type { components, operations } from "./api";

type Body = operations["submit_commands"]["requestBody"]["content"]["application/json"];
const one: Body = { type: "create_record", kind: "model", data: { name: "x" } };
const wrapped: Body = { command: { type: "retire_kind", kind: "model" }, idempotency_key: "k" };
const many: Body = [one as components["schemas"]["CreateRecordCommand"]];
// @ts-expect-error there is no such command
const unknown: Body = { type: "drop_table" };
type Refused = operations["submit_commands"]["responses"][429]["content"]["application/problem+json"];
export const code = (refused: Refused): string => refused.code;
export { one, wrapped, many, unknown };
"#;
    fs::write(dir.path().join("use.ts"), using).unwrap();
    node(
        "tsc",
        dir.path(),
        &[
            "--strict",
            "--noEmit",
            "--skipLibCheck",
            "--target",
            "es2022",
            "--moduleResolution",
            "bundler",
            "--module",
            "esnext",
            "use.ts",
            "api.ts",
        ],
    );
}

#[test]
fn a_python_client_has_every_operation() {
    let (dir, python) = (written(), tools().join("python"));
    // Content types that the generator does not know, which it treats as texts and bytes.
    let kinds = "content_type_overrides:\n  application/x-ndjson: text/plain\n  application/msgpack: application/octet-stream\n";
    fs::write(dir.path().join("kinds.yaml"), kinds).unwrap();
    let mut generate = Command::new("python3");
    generate.args(["-m", "openapi_python_client", "generate", "--path", "openapi.json", "--output-path", "client"]);
    generate.args(["--meta", "none", "--config", "kinds.yaml"]).env("PYTHONPATH", &python).current_dir(dir.path());
    let path = env::join_paths([python.join("bin")].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap())));
    let said = said(generate.env("PATH", path.unwrap()));
    assert!(!said.to_lowercase().contains("warning"), "{said}");
    let mut made = Vec::new();
    for tag in fs::read_dir(dir.path().join("client/api")).unwrap().map(|entry| entry.unwrap().path()) {
        if tag.is_dir() {
            made.extend(fs::read_dir(tag).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()));
        }
    }
    for (method, path, operation) in operations(&spec().document) {
        let name = operation["operationId"].as_str().unwrap();
        assert!(made.contains(&format!("{name}.py")), "{method} {path} ({name}) was left out: {said}");
    }
}
