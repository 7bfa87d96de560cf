//! Every route as a page for people: `docs/reference/routes.md`, made from the OpenAPI document and what routes declare.

use std::fmt::Write;

use serde_json::Value;

use super::{
    openapi::{documented_path, spec},
    policy::{ROUTES, Shape},
};

const HEAD: &str = "\
# Routes

`GET /openapi.json` describes every route in full, and `/docs` shows it. Written by `DOCS_WRITE=1` from what routes declare and the
OpenAPI document.

* `{org}` is an id, a slug, or `current` for the organization that the credential acts in. A thing of another organization is
  answered with 404, in the same words as a thing that does not exist.
* The column *permission* is explained in [permissions.md](permissions.md): `public` needs no credential, `signed_in` any
  credential, `operator` one of the platform, `by_command` that of each command.
* *view* takes `Min-Position`, `Prefer` and `If-None-Match` and answers `Projection-Position` and `ETag`; *create* and *change*
  take `Idempotency-Key` and answer `Stream-Position`; *change* also takes `If-Match`; *tail* is a stream of server-sent events
  and takes `Last-Event-ID`; *shared* takes `If-None-Match` and answers `ETag` and `Cache-Control: public`; *commands* is what each
  command is. Without a shape a route takes and answers none of these.
* Errors are `application/problem+json` with one of these [codes](errors.md).
";

/// The page.
pub fn routes_page() -> String {
    let document = &spec().document;
    let mut page = HEAD.to_owned();
    let tags = document.get("tags").and_then(Value::as_array).into_iter().flatten();
    for tag in tags {
        let text = |field: &str| tag.get(field).and_then(Value::as_str).unwrap_or_default();
        let name = text("name");
        let mut rows = String::new();
        for route in ROUTES.iter() {
            let path = documented_path(&route.path);
            let operation = document.get("paths").and_then(|paths| paths.get(&path)?.get(route.method.to_lowercase()));
            let Some(operation) = operation.filter(|operation| operation.pointer("/tags/0") == Some(&name.into()))
            else {
                continue;
            };
            let text = |field: &str| operation.get(field).and_then(Value::as_str).unwrap_or_default();
            let (permission, summary, shape) = (text("x-permission"), text("summary"), shape(route.shape));
            let _ = writeln!(rows, "| `{} {path}` | {summary} | `{permission}` | {shape} |", route.method);
        }
        if !rows.is_empty() {
            let head = "| route | summary | permission | shape |\n|---|---|---|---|\n";
            let _ = write!(page, "\n## {name}\n\n{}\n\n{head}{rows}", text("description"));
        }
    }
    page
}

fn shape(shape: Shape) -> &'static str {
    match shape {
        Shape::View(_) => "view",
        Shape::Create => "create",
        Shape::Change => "change",
        Shape::Commands => "commands",
        Shape::Shared => "shared",
        Shape::Tail => "tail",
        Shape::Plain => "",
    }
}
