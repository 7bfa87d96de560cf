//! The OpenAPI document against the routes: nothing missing, nothing undocumented. No server is needed for it.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
};

use orgstream::{
    auth::{Permission, permission::COMMANDS},
    commands::Command,
    http::{
        openapi::{operations, spec},
        permission_table::permissions_page,
        policy::{Policy, ROUTES},
    },
};
use serde_json::Value;

// S3.13
#[test]
fn every_route_is_in_the_policy_table_and_documented() {
    let document = &spec().document;
    let documented: BTreeSet<(String, String)> = operations(document).map(|(method, path, _)| (method, path)).collect();
    let in_table: BTreeSet<(String, String)> =
        ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    assert_eq!(documented, in_table);
    assert_eq!(in_table.len(), ROUTES.len(), "a route is in the table twice");
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn every_operation_says_what_it_takes_and_how_it_fails() {
    let document = &spec().document;
    let mut ids = HashSet::new();
    for (method, path, operation) in operations(document) {
        let of = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{of}");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{of}");
        let parameters = operation["parameters"].as_array().unwrap();
        for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let named = |parameter: &&Value| parameter["name"] == name && parameter["in"] == "path";
            assert!(parameters.iter().any(|parameter| named(&parameter)), "{of} does not document {name}");
        }
        let responses = operation["responses"].as_object().unwrap();
        for status in ["400", "500", "503"] {
            assert!(responses.contains_key(status), "{of} does not document {status}");
        }
        let public = operation["security"].as_array().unwrap().is_empty();
        assert_eq!(responses.contains_key("401"), !public, "{of}");
        assert_eq!(operation.get("requestBody").is_some(), responses.contains_key("415"), "{of}");
    }
}

#[test]
fn every_reference_in_the_document_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = &spec().document;
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(found.len() > 100);
    for reference in found {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

#[test]
fn every_operation_says_which_permission_it_takes() {
    for (method, path, operation) in operations(&spec().document) {
        let route = ROUTES.iter().find(|route| (route.method, route.path) == (&method, &path)).unwrap();
        let permission = operation["x-permission"].as_str().unwrap();
        match route.policy {
            Policy::Org(expected) => assert_eq!(Permission::named(permission), Some(expected), "{method} {path}"),
            _ => assert_eq!(Permission::named(permission), None, "{method} {path}"),
        }
    }
}

// S3.13
#[test]
fn every_command_declares_its_permission() {
    let declared: BTreeSet<&str> = COMMANDS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(declared, Command::NAMES.iter().copied().collect());
    let free: Vec<&str> =
        COMMANDS.iter().filter(|(_, permission, _)| permission.is_none()).map(|(name, ..)| *name).collect();
    let outsiders = ["create_organization", "accept_invitation", "join_by_domain", "join_by_sso"];
    assert_eq!(free, outsiders, "only people who are not in the organization yet need none");
}

#[test]
fn permissions_page_is_what_the_program_does() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/permissions.md");
    let page = permissions_page();
    if std::env::var_os("DOCS_WRITE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &page).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(written, page, "docs/permissions.md is old: DOCS_WRITE=1 writes it anew");
}
