//! Commands of producers: one, or many at once, each with its own outcome.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use orgstream_domain::Command;
use orgstream_events::Position;
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema,
        schema::{Discriminator, Type},
    },
};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::{
        command_body::{CommandEnvelope, Submission, carry_out},
        http::{
            App,
            kit::{
                extract::{Writer, read_body},
                reply,
            },
        },
    },
    app::{
        problem::Problem,
        submit::{AcceptedCommand, CommandOutcome, MAX_BATCH},
    },
};

/// A command, bare or in an envelope; or up to 1,000 of them.
pub struct CommandBody;

impl PartialSchema for CommandBody {
    fn schema() -> RefOr<Schema> {
        let reference = |name: &str| utoipa::openapi::Ref::from_schema_name(name);
        let one = OneOfBuilder::new().item(reference("Command")).item(reference("CommandEnvelope"));
        let many = ArrayBuilder::new().items(one).min_items(Some(1)).max_items(Some(MAX_BATCH));
        OneOfBuilder::new()
            .item(reference("Command"))
            .item(reference("CommandEnvelope"))
            .item(many)
            .description(Some("One command, or an array of 1 to 1,000."))
            .examples([json!({"type": "create_record", "kind": "model", "data": {"name": "sonnet-small"}})])
            .into()
    }
}

impl ToSchema for CommandBody {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("Command".to_owned(), Command::schema()));
        schemas.push(("CommandEnvelope".to_owned(), CommandEnvelope::schema()));
        Command::schemas(schemas);
        CommandEnvelope::schemas(schemas);
    }
}

/// The outcome of one command, or of each.
pub struct CommandAnswer;

impl PartialSchema for CommandAnswer {
    fn schema() -> RefOr<Schema> {
        let reference = |name: &str| utoipa::openapi::Ref::from_schema_name(name);
        let many = ArrayBuilder::new().items(reference("CommandOutcome"));
        OneOfBuilder::new()
            .item(reference("AcceptedCommand"))
            .item(many)
            .description(Some("For one command, what became of it. For an array, one outcome for each, in its order."))
            .into()
    }
}

impl ToSchema for CommandAnswer {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("AcceptedCommand".to_owned(), AcceptedCommand::schema()));
        schemas.extend(outcomes());
        AcceptedCommand::schemas(schemas);
    }
}

/// Returns the schemas of the outcomes of several commands: one object for each `status`, distinguished by it.
///
/// The derived form would be `allOf`, which client generators cannot distinguish.
fn outcomes() -> [(String, RefOr<Schema>); 3] {
    let status = |name: &str| {
        let says = "Status of the command: `accepted` or `refused`.";
        ObjectBuilder::new().schema_type(Type::String).description(Some(says)).enum_values(Some([name]))
    };
    let fields = match AcceptedCommand::schema() {
        RefOr::T(Schema::Object(fields)) => fields,
        // It is a struct, and a struct is an object.
        RefOr::T(_) | RefOr::Ref(_) => Object::default(),
    };
    let mut accepted = ObjectBuilder::new().schema_type(Type::Object).description(Some("It is in the event log."));
    accepted = accepted.property("status", status("accepted")).required("status");
    for (name, field) in fields.properties {
        accepted = accepted.property(name, field);
    }
    for name in fields.required {
        accepted = accepted.required(name);
    }
    let refused = ObjectBuilder::new().schema_type(Type::Object).description(Some("It is not, for the reason given."));
    let refused = refused.property("status", status("refused")).required("status");
    let mut error = Ref::from_schema_name("Problem");
    "Reason of the refusal.".clone_into(&mut error.description);
    let refused = refused.property("error", error).required("error");
    let mut by_status = Discriminator::new("status");
    let mut either = OneOfBuilder::new().description(Some("What became of one of several commands."));
    for (name, schema) in [("accepted", "AcceptedOutcome"), ("refused", "RefusedOutcome")] {
        let reference = Ref::from_schema_name(schema);
        by_status.mapping.insert(name.to_owned(), reference.ref_location.clone());
        either = either.item(reference);
    }
    [
        ("AcceptedOutcome".to_owned(), accepted.into()),
        ("RefusedOutcome".to_owned(), refused.into()),
        ("CommandOutcome".to_owned(), either.discriminator(Some(by_status)).into()),
    ]
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(submit), Policy::OrgCommands, Shape::Commands, AuditTrail::Events)
}

/// Send commands
///
/// One command, or an array of up to 1,000. Several need idempotency keys: the header `Idempotency-Key` (command number
/// N then has the key `<header>/N`, counted from 0) or `idempotency_key` in each. Several are answered with 200 and one
/// outcome each: that one is refused does not stop the others. Commands about the same thing are carried out in the
/// order of the array.
///
/// The body may be `application/msgpack` instead: the same objects, with ids and times as text.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/commands", operation_id = "submit_commands", tag = "commands",
    request_body(
        content((inline(CommandBody) = "application/json"), (inline(CommandBody) = "application/msgpack")),
        description = "One command, or an array of 1 to 1,000",
    ),
    responses(
        (status = 200, description = "What became of it, or of each", body = inline(CommandAnswer)),
        (status = 201, description = "One command, which made something new", body = AcceptedCommand),
    ),
)]
pub async fn submit(State(app): State<Arc<App>>, writer: Writer, request: Request) -> Result<Response, Problem> {
    let (format, body) = read_body(&app, request).await?;
    let request = match Submission::read(&body, format, writer.key.as_deref())? {
        Submission::One(request) => *request,
        Submission::Many(requests) => {
            if !writer.expected.is_empty() {
                return Err(Problem::bad_request("If-Match is for one command; several have `expected_version` each"));
            }
            let outcomes = carry_out(&app.gateway, &writer.access, &writer.origin, requests).await;
            let outcomes: Vec<CommandOutcome> = outcomes.into_iter().map(CommandOutcome::from).collect();
            return many(&outcomes);
        }
    };
    if let Some(version) = request.expected_version
        && !writer.expected.is_empty()
        && writer.expected != [version]
    {
        return Err(Problem::bad_request("the header If-Match and `expected_version` differ"));
    }
    let creates = request.command.spec().creates;
    let accepted = writer.carry_out(&app, request).await?;
    Ok(if creates { reply::created(accepted) } else { reply::changed(accepted) })
}

fn many(outcomes: &[CommandOutcome]) -> Result<Response, Problem> {
    let furthest = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            CommandOutcome::Accepted(accepted) => accepted.position.parse::<Position>().ok(),
            CommandOutcome::Refused { .. } => None,
        })
        .max_by_key(|position| position.seq);
    let all_replayed = !outcomes.is_empty()
        && outcomes.iter().all(|outcome| matches!(outcome, CommandOutcome::Accepted(accepted) if accepted.replayed));
    let mut response = reply::json(StatusCode::OK, Body::from(reply::json_bytes(&outcomes)?));
    let headers = response.headers_mut();
    if let Some(position) = furthest {
        let (name, value) = reply::position("stream-position", position);
        headers.insert(name, value);
    }
    if all_replayed {
        headers.insert(reply::REPLAYED, reply::TRUE);
    }
    Ok(response)
}
