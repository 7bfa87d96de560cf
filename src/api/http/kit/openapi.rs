//! The OpenAPI document: the documentation of handlers, completed from what routes declare.

use std::{
    collections::{HashMap, HashSet},
    sync::LazyLock,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::map_response,
    response::Response,
};
use serde_json::{Map, Value, json};
use utoipa::openapi::{
    ContactBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, ServerBuilder, tag::TagBuilder,
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    policy::{self, Policy, Shape},
    reply,
};
use crate::{api::http::documented, app::error_codes as codes};

/// What follows the name of a documented parameter with members.
const MEMBERS: &str = "[…]";

/// The path of its pages.
pub const DOCS: &str = "/docs";

/// The document, and the data derived from it.
pub struct Spec {
    /// The document.
    pub document: Value,
    bytes: Bytes,
    queries: HashMap<(String, String), Vec<String>>,
}

impl Spec {
    /// Returns the names of the query parameters of a route; none when there is no such route.
    pub fn query_parameters(&self, method: &Method, path: &str) -> Option<&[String]> {
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        self.queries.get(&(method.to_owned(), path.to_owned())).map(Vec::as_slice)
    }
}

/// Returns the document of this program.
pub fn spec() -> &'static Spec {
    static SPEC: LazyLock<Spec> = LazyLock::new(|| {
        let (_, document) = documented().split();
        let mut document = serde_json::to_value(&document).unwrap_or_default();
        // By the paths of the router, which `complete` converts to OpenAPI form.
        let queries =
            operations(&document).map(|(method, path, operation)| ((method, path), queries(operation))).collect();
        complete(&mut document);
        let bytes = serde_json::to_vec(&document).unwrap_or_default().into();
        Spec { document, bytes, queries }
    });
    &SPEC
}

/// Iterates over the operations of a document: method, path, description.
pub fn operations(document: &Value) -> impl Iterator<Item = (String, String, &Value)> {
    let paths = document.get("paths").and_then(Value::as_object).into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object().into_iter().flatten();
        operations.map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
    })
}

fn queries(operation: &Value) -> Vec<String> {
    let parameters = operation.get("parameters").and_then(Value::as_array).into_iter().flatten();
    let queries = parameters.filter(|parameter| parameter.get("in") == Some(&json!("query")));
    let name = |parameter: &Value| {
        let name = parameter.get("name")?.as_str()?;
        let has_members = parameter.get("style") == Some(&json!("deepObject"));
        Some(if has_members { format!("{name}{MEMBERS}") } else { name.to_owned() })
    };
    queries.filter_map(name).collect()
}

/// Whether a documented query parameter has this name, as it stands in a request. One with members has any name of the form
/// `name[member]`.
pub fn is_named(documented: &str, name: &str) -> bool {
    match documented.strip_suffix(MEMBERS) {
        None => documented == name,
        Some(parameter) => {
            let member = name.strip_prefix(parameter);
            member.is_some_and(|member| ["[", "%5B", "%5b"].iter().any(|bracket| member.starts_with(bracket)))
        }
    }
}

/// Returns the head of the document.
pub fn head() -> OpenApi {
    let tag = |name: &str, description: &str| TagBuilder::new().name(name).description(Some(description)).build();
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Orgstream")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(include_str!("openapi.md")))
                .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
                .contact(Some(ContactBuilder::new().name(Some("Orgstream")).build()))
                .build(),
        )
        .servers(Some([ServerBuilder::new().url("/").build()]))
        .tags(Some([
            tag("commands", "Requests to change something: one command or a thousand."),
            tag("records", "Documents of an organization, each of a kind."),
            tag("events", "The history of an organization: replay and live tail."),
            tag("audit", "The audit log: events, proofs, exports."),
            tag("organizations", "Tenants: settings, plan, limits, usage, break-glass access."),
            tag("members", "People in an organization, with their roles."),
            tag("invitations", "Invitations by e-mail, each for one person."),
            tag("roles", "Custom roles of an organization."),
            tag("domains", "Domains that an organization has claimed or proven."),
            tag("sso", "OpenID Connect issuers of an organization's own."),
            tag("api keys", "Credentials of programs; each belongs to one organization."),
            tag("kinds", "Kinds of record with their schemas: the same for all organizations."),
            tag("catalog", "What the platform publishes for all readers, and what an organization sees of it."),
            tag("account", "What an organization may use, what it used, and what it owes for that."),
            tag("projections", "Progress of read models and audit log."),
            tag("parking", "Events that could not be applied. For operators."),
            tag("me", "The caller and their memberships."),
            tag("sessions", "Sign-in, sessions, and the active organization."),
            tag("health", "Liveness, readiness, metrics, caches."),
        ]))
        .build()
}

/// Get the OpenAPI document
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "health",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub async fn openapi_json() -> Response {
    reply::json(StatusCode::OK, Body::from(spec().bytes.clone()))
}

/// Serves the pages under `/docs`, from files inside the program.
pub fn docs() -> Router {
    let pages: Router = SwaggerUi::new(DOCS).config(Config::from("/openapi.json")).into();
    pages.layer(map_response(guarded))
}

/// Adds the browser restrictions of our pages, into which people paste their tokens.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Adds to every operation what follows from its policy: parameters, headers, errors and its permission.
fn complete(document: &mut Value) {
    if let Some(components) = document.pointer_mut("/components").and_then(Value::as_object_mut) {
        for (section, entries) in [
            ("parameters", parameters()),
            ("headers", headers()),
            ("responses", problems()),
            ("securitySchemes", security_schemes()),
        ] {
            components.insert(section.to_owned(), entries);
        }
        if let Some(schemas) = components.get_mut("schemas").and_then(Value::as_object_mut) {
            for (name, schema) in extra_schemas() {
                schemas.entry(name).or_insert(schema);
            }
        }
    }
    describe_choices(document);
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in paths.iter_mut() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap_or_default();
            if let (Some(route), Some(operation)) = (policy::of(&method, path), operation.as_object_mut()) {
                complete_operation(operation, path, route.policy, route.shape);
            }
        }
    }
    *paths = std::mem::take(paths).into_iter().map(|(path, item)| (documented_path(&path), item)).collect();
    // A schema that was only a part of another one, and is inlined there, needs no name.
    while drop_unused_schemas(document) {}
}

/// Gives a field that may be null the description of what it is otherwise, which stands inside the choice.
fn describe_choices(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let choices = fields.get("oneOf").and_then(Value::as_array);
            let found =
                choices.and_then(|choices| choices.iter().find_map(|choice| choice.get("description").cloned()));
            if let Some(found) = found {
                fields.entry("description").or_insert(found);
            }
            fields.values_mut().for_each(describe_choices);
        }
        Value::Array(items) => items.iter_mut().for_each(describe_choices),
        _ => {}
    }
}

/// Drops the schemas that nothing refers to; returns whether there were any. Those may have had the only references to
/// others.
fn drop_unused_schemas(document: &mut Value) -> bool {
    fn referred(value: &Value, found: &mut HashSet<String>) {
        match value {
            Value::Object(fields) => {
                let reference = fields.get("$ref").and_then(Value::as_str);
                let name = reference.and_then(|reference| reference.strip_prefix("#/components/schemas/"));
                found.extend(name.map(str::to_owned));
                fields.values().for_each(|field| referred(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| referred(item, found)),
            _ => {}
        }
    }
    let mut used = HashSet::new();
    referred(document, &mut used);
    let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = schemas.len();
    schemas.retain(|name, _| used.contains(name));
    schemas.len() < before
}

/// Converts a path of the router to OpenAPI form, where a parameter that extends to the end looks like every other.
pub fn documented_path(path: &str) -> String {
    path.replace("{*", "{")
}

fn complete_operation(operation: &mut Map<String, Value>, path: &str, policy: Policy, shape: Shape) {
    let has_body = operation.contains_key("requestBody");
    let mut parameters: Vec<Value> = path_parameters(path);
    if let Some(Value::Array(own)) = operation.remove("parameters") {
        parameters.extend(own.into_iter().filter(|parameter| parameter.get("in") == Some(&json!("query"))));
    }
    let mut names = vec!["XRequestId", "Traceparent"];
    let mut answers = vec!["XRequestId"];
    // The errors of all routes, and those of all authenticated ones.
    let mut errors = vec!["400", "404", "422", "429", "500", "503"];
    let in_org = matches!(policy, Policy::Org(_) | Policy::OrgCommands);
    if in_org {
        names.extend(["XTenantId", "XOrgEpoch"]);
    }
    if policy != Policy::Public {
        errors.extend(["401", "403", "409"]);
    }
    match shape {
        Shape::View(_) => {
            names.extend(["MinPosition", "Prefer", "IfNoneMatch"]);
            answers.extend(["ProjectionPosition", "ProjectionParked", "ETag"]);
        }
        Shape::Create | Shape::Change | Shape::Commands => {
            names.push("IdempotencyKey");
            answers.extend(["StreamPosition", "ETag", "IdempotencyReplayed"]);
            if in_org {
                answers.extend(["RateLimitPolicy", "RateLimit"]);
            }
            errors.push("409");
            if shape != Shape::Create {
                names.push("IfMatch");
                errors.push("412");
            }
        }
        Shape::Shared => {
            names.push("IfNoneMatch");
            answers.push("ETag");
        }
        Shape::Tail => names.push("LastEventId"),
        Shape::Plain => {}
    }
    if in_org && matches!(shape, Shape::View(_) | Shape::Tail) {
        answers.extend(["RateLimitPolicy", "RateLimit"]);
    }
    if shape == Shape::Commands {
        errors.push("402");
    }
    if has_body {
        // A report of leaked keys is validly signed, or refused.
        errors.extend(["403", "408", "413", "415"]);
    }
    let reference = |section: &str, name: &str| json!({"$ref": format!("#/components/{section}/{name}")});
    parameters.extend(names.into_iter().map(|name| reference("parameters", name)));
    operation.insert("parameters".to_owned(), Value::Array(parameters));
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    if let Some(responses) = responses.as_object_mut() {
        for response in responses.values_mut().filter_map(Value::as_object_mut) {
            let own = response.entry("headers").or_insert_with(|| json!({}));
            for name in &answers {
                own.as_object_mut().map(|own| own.insert(header_name(name).to_owned(), reference("headers", name)));
            }
        }
        let is_listing_or_thing = matches!(shape, Shape::View(_) | Shape::Shared) && !path.ends_with("/events");
        if is_listing_or_thing || path.ends_with("/audit/events") {
            responses.insert("304".to_owned(), json!({"description": "You have it already (`If-None-Match`)"}));
        }
        for status in errors {
            responses.entry(status).or_insert_with(|| reference("responses", &format!("Problem{status}")));
        }
    }
    let user_or_key = [json!({"api_key": []}), json!({"user": []})];
    let operator = [json!({"operator": []})];
    let security: Vec<Value> = match policy {
        Policy::Public => Vec::new(),
        Policy::Operator => operator.into(),
        Policy::SignedIn | Policy::OrgCommands => user_or_key.into_iter().chain(operator).collect(),
        Policy::Org(permission) => {
            let has_roles = orgstream_events::Role::BUILT_IN.into_iter().any(|role| permission.is_granted_to(role));
            let operator = operator.into_iter().filter(|_| permission.is_operators());
            user_or_key.into_iter().filter(|_| has_roles).chain(operator).collect()
        }
    };
    operation.insert("security".to_owned(), Value::Array(security));
    let permission = match policy {
        Policy::Public => "public",
        Policy::SignedIn => "signed_in",
        Policy::Operator => "operator",
        Policy::OrgCommands => "by_command",
        Policy::Org(permission) => permission.name(),
    };
    operation.insert("x-permission".to_owned(), json!(permission));
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| name.trim_start_matches('*'))
        .map(|name| {
            let (description, example) = match name {
                "org" => {
                    ("The organization, by id or slug, or `current` for the one that the credential acts in", "acme")
                }
                "session" => ("The session, by id, or `current`", "current"),
                "member" => ("The member", "mem_01h455vb4pex5vsknk084sn02q"),
                "invitation" => ("The invitation", "inv_01h455vb4pex5vsknk084sn02q"),
                "role" => ("The role", "role_01h455vb4pex5vsknk084sn02q"),
                "connection" => ("The connection", "conn_01h455vb4pex5vsknk084sn02q"),
                "domain" => ("The domain's id", "dom_01h455vb4pex5vsknk084sn02q"),
                "key" => ("The key's id (not the token)", "key_01h455vb4pex5vsknk084sn02q"),
                "record" => ("The record", "res_01h455vb4pex5vsknk084sn02q"),
                "view" => ("The view, by its name", "by_model_and_day"),
                "event" => ("The event", "evt_01h455vb4pex5vsknk084sn02q"),
                "kind" => ("The kind", "evaluation"),
                "plan" => ("The plan", "premium"),
                "deletion" => ("The organization of the deletion, by its id", "org_01h455vb4pex5vsknk084sn02q"),
                "path" => ("Which tile, or which bundle", "0/000"),
                _ => ("", ""),
            };
            json!({
                "name": name, "in": "path", "required": true, "description": description,
                "schema": {"type": "string"}, "example": example,
            })
        })
        .collect()
}

fn header_name(component: &str) -> &'static str {
    match component {
        "XRequestId" => "X-Request-Id",
        "ProjectionPosition" => "Projection-Position",
        "ProjectionParked" => "Projection-Parked",
        "StreamPosition" => "Stream-Position",
        "IdempotencyReplayed" => "Idempotency-Replayed",
        "RateLimitPolicy" => "RateLimit-Policy",
        "RateLimit" => "RateLimit",
        _ => "ETag",
    }
}

fn parameters() -> Value {
    let header = |name: &str, description: &str, example: &str| json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}, "example": example});
    json!({
        "XRequestId": header("X-Request-Id", "Names the request in logs and audit; made up when it is missing.", "req-7"),
        "Traceparent": header(
            "traceparent",
            "W3C trace context to continue.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        "XTenantId": header(
            "X-Tenant-ID",
            "Says again which organization is meant, by id or slug (`X-Org-Id` does the same). Another one than the \
             path's is refused: `tenant_mismatch`.",
            "acme",
        ),
        "XOrgEpoch": header(
            "X-Org-Epoch",
            "With a session: the `epoch` that the request is meant for. If the session has been switched since, it is \
             refused: `active_org_changed`.",
            "1",
        ),
        "IdempotencyKey": header(
            "Idempotency-Key",
            "1 to 255 visible characters, bare or quoted. The same command under the same key has one effect and the \
             same answer; another command under it is refused: `idempotency_key_reused`.",
            "import-7",
        ),
        "IfMatch": header(
            "If-Match",
            "The ETag of what you saw. If it has changed since, the command is refused: `version_conflict`.",
            "\"3\"",
        ),
        "IfNoneMatch": header("If-None-Match", "The ETag of what you have. If it is the same still: 304.", "\"3\""),
        "MinPosition": header(
            "Min-Position",
            "How far the read models must be: `Stream-Position` of a command.",
            "org_01h455vb4pex5vsknk084sn02q:17",
        ),
        "LastEventId": header(
            "Last-Event-ID",
            "The `id` of the last event that you have: the stream goes on after it.",
            "org_01h455vb4pex5vsknk084sn02q:17",
        ),
        "Prefer": header("Prefer", "How long to wait for `Min-Position`, in seconds, at most 30; 0 without it.", "wait=5"),
    })
}

fn headers() -> Value {
    let header = |description: &str, example: &str| json!({"description": description, "schema": {"type": "string"}, "example": example});
    json!({
        "XRequestId": header("Names the request.", "req_0199f0c0"),
        "StreamPosition": header("Where the command stands: what `Min-Position` takes.", "org_01h455vb4pex5vsknk084sn02q:17"),
        "ProjectionPosition": header("How far what was read is.", "org_01h455vb4pex5vsknk084sn02q:17"),
        "ProjectionParked": header(
            "The first message on the way there that could not be applied; what was read is without it. Only when there is one.",
            "org_01h455vb4pex5vsknk084sn02q:9",
        ),
        "ETag": header("The version: what `If-Match` takes.", "\"3\""),
        "IdempotencyReplayed": header("`true` when the command had been accepted before, under the same key.", "true"),
        "RetryAfter": header("When to try again, in seconds.", "1"),
        "RateLimitPolicy": header(
            "The rate of the organization's commands, or of its reads, where there is one: `q` of them in `w` seconds. A field of              draft-ietf-httpapi-ratelimit-headers.",
            "\"commands\";q=200;w=10",
        ),
        "RateLimit": header(
            "What is left of it at the process that answers: `r` at once; `t` seconds until all are there again.",
            "\"commands\";r=150;t=3",
        ),
    })
}

/// The meaning of statuses that come as a problem. Their codes follow from the table of codes.
const PROBLEMS: [(u16, &str); 14] = [
    (400, "It cannot be read"),
    (401, "No valid credential"),
    (402, "Not before something is paid for"),
    (403, "Not for this caller"),
    (404, "Not here, or not for this caller"),
    (408, "Not in time"),
    (409, "Not now, or a rule of the thing itself"),
    (412, "Changed in the meantime"),
    (413, "Over a limit"),
    (415, "Another content type"),
    (422, "It can be read, but is wrong"),
    (429, "More than may be sent, or too much at once"),
    (500, "A fault of ours"),
    (503, "Try again later"),
];

fn problems() -> Value {
    let one = |(status, meaning): (u16, &str)| {
        let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/XRequestId"}});
        if matches!(status, 409 | 429 | 503)
            && let Some(headers) = headers.as_object_mut()
        {
            headers.insert("Retry-After".to_owned(), json!({"$ref": "#/components/headers/RetryAfter"}));
        }
        let content = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
        let description = format!("{meaning}:\n{}", codes::of_status(status));
        (format!("Problem{status}"), json!({"description": description, "headers": headers, "content": content}))
    };
    Value::Object(PROBLEMS.into_iter().map(one).collect())
}

fn security_schemes() -> Value {
    let bearer = |description: &str| json!({"type": "http", "scheme": "bearer", "description": description});
    json!({
        "api_key": bearer("An API key of one organization: `os_live_…` or `os_test_…`"),
        "user": bearer("A session (`os_ses_…`) of POST /v1/sessions, or a token (JWT) of a configured OpenID Connect issuer"),
        "operator": bearer("The platform operator's token"),
    })
}

/// Schemas that are named only by hand.
fn extra_schemas() -> Vec<(String, Value)> {
    use utoipa::{PartialSchema, ToSchema};

    use crate::app::event_view::EventSchema;
    use crate::app::problem::Problem;
    use orgstream_domain::FieldError;

    let value = |schema| serde_json::to_value(schema).unwrap_or_default();
    vec![
        (Problem::name().into_owned(), value(Problem::schema())),
        (FieldError::name().into_owned(), value(FieldError::schema())),
        (EventSchema::name().into_owned(), value(EventSchema::schema())),
    ]
}
