//! The OpenAPI document against the routes: nothing missing, nothing undocumented. No server is needed for it.

use std::collections::{BTreeSet, HashSet};

use orgstream::{
    api::http::kit::{
        openapi::{documented_path, operations, spec},
        policy::{Policy, ROUTES, RoutePolicy},
    },
    app::error_codes::{CODES, Code},
};
use orgstream_domain::{Command, Permission, Requires};
use serde_json::Value;

use crate::sources::{Source, sources};

// S3.13
#[test]
fn every_route_declares_a_policy_once_and_is_documented() {
    let document = &spec().document;
    let documented: BTreeSet<(String, String)> = operations(document).map(|(method, path, _)| (method, path)).collect();
    let declared: BTreeSet<(String, String)> =
        ROUTES.iter().map(|route| (route.method.to_owned(), documented_path(&route.path))).collect();
    assert_eq!(documented, declared);
    assert_eq!(declared.len(), ROUTES.len(), "a route is declared twice");
    // A handler gets to the router with its policy only.
    for Source { path, text } in sources(&["src/api"]) {
        let is_the_way = path.ends_with("kit/routes.rs");
        assert!(is_the_way || !text.contains("OpenApiRouter"), "{path} adds routes past kit/routes.rs");
    }
    assert_eq!(document["openapi"], "3.1.0");
}

// S5.8
#[test]
fn s5_8_the_document_has_both_words_for_a_tenant() {
    let document = &spec().document;
    assert!(document["info"]["description"].as_str().unwrap().contains("organizations (tenants)"));
    for path in ["/v1/organizations", "/api/v1/tenants/"] {
        assert!(document["paths"][path]["post"].is_object(), "{path}");
    }
    for schema in ["CreateOrganization", "CreateTenant", "UpgradeOrganization"] {
        let field = &document["components"]["schemas"][schema]["properties"]["tenant_type"];
        let text = field["description"].as_str().unwrap_or_else(|| panic!("{schema}: {field}"));
        assert!(text.contains("`organization`") && text.contains("`tenant`"), "{schema}: {text}");
    }
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
        for status in ["400", "404", "422", "429", "500", "503"] {
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
        let is_it = |route: &&RoutePolicy| route.method == method && documented_path(&route.path) == path;
        let route = ROUTES.iter().find(is_it).unwrap();
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
    let names: BTreeSet<&str> = Command::NAMES.iter().copied().collect();
    assert_eq!(names.len(), Command::NAMES.len(), "two commands have one name: {:?}", Command::NAMES);
    let free: Vec<&str> =
        Command::SPECS.iter().filter(|spec| spec.requires == Requires::Person).map(|spec| spec.name).collect();
    let outsiders = ["create_organization", "accept_invitation", "join_by_domain", "join_by_sso"];
    assert_eq!(free, outsiders, "only people who are not in the organization yet need none");
}

/// Codes and the statuses that they come with, as they stand in the source.
fn codes_in_use() -> BTreeSet<(String, u16)> {
    fn quoted(text: &str) -> Option<&str> {
        text.trim_start().strip_prefix('"')?.split_once('"').map(|(code, _)| code)
    }

    let mut found = BTreeSet::new();
    for source in sources(&["src", "domain/src"]) {
        let text = source.product();
        for part in text.split("RejectionKind::").skip(1) {
            let Some((kind, rest)) = part.split_once(',') else { continue };
            let status = match kind {
                "Invalid" => 422,
                "NotFound" => 404,
                "Conflict" => 409,
                "Forbidden" => 403,
                "PaymentRequired" => 402,
                "LimitReached" => 429,
                _ => continue,
            };
            found.extend(quoted(rest).map(|code| (code.to_owned(), status)));
        }
        for part in ["Problem::new(", "Self::new("].iter().flat_map(|call| text.split(call).skip(1)) {
            let Some((status, rest)) = part.trim_start().split_once(',') else { continue };
            if let Ok(status) = status.parse() {
                found.extend(quoted(rest).map(|code| (code.to_owned(), status)));
            }
        }
        // A value claimed for one organization that belonged to another.
        for part in ["self.claim(", "self.claim_anew("].iter().flat_map(|call| text.split(call).skip(1)) {
            let codes = part.split('(').filter_map(quoted).take(3).filter(|code| code.ends_with("_taken"));
            found.extend(codes.map(|code| (code.to_owned(), 409)));
        }
    }
    found
}

#[test]
fn every_code_of_an_error_is_in_the_table_with_its_statuses() {
    let declared: BTreeSet<(String, u16)> =
        CODES.iter().flat_map(|code| code.statuses.iter().map(|status| (code.code.to_owned(), *status))).collect();
    let in_use = codes_in_use();
    assert!(in_use.len() > 60, "{in_use:?}");
    let missing: Vec<_> = in_use.difference(&declared).collect();
    assert!(missing.is_empty(), "put these into src/app/error_codes.rs: {missing:?}");
    // Errors about fields are made in one place that names its code alone.
    let fields = [("validation_error".to_owned(), 422)];
    let dead: Vec<_> = declared.difference(&in_use).filter(|code| !fields.contains(code)).collect();
    assert!(dead.is_empty(), "nothing answers these any more: {dead:?}");
    let responses = &spec().document["components"]["responses"];
    for Code { code, statuses, .. } in CODES.iter().filter(|code| code.code != "method_not_allowed") {
        for status in *statuses {
            let description = responses[format!("Problem{status}")]["description"].as_str().unwrap();
            assert!(description.contains(&format!("`{code}`")), "{code} is not in the description of {status}");
        }
    }
}
