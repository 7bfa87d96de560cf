//! Commands as producers send them: one, or many at once, each with its own outcome.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::StatusCode,
    response::Response,
};
use orgstream_events::Position;
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, OneOfBuilder, RefOr, Schema},
};

use super::{
    App,
    extract::{Writer, read_body},
    reply,
};
use crate::{
    commands::Command,
    gateway::{AcceptedCommand, CommandOutcome, MAX_BATCH},
    problem::Problem,
    submission::{CommandEnvelope, Submission, carry_out},
};

/// A command, bare or with what may be said around it; or up to 1,000 of them.
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
            .examples([json!({"type": "create_record", "kind": "evaluation", "data": {"score": 0.93}})])
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

/// What became of one command, or of each.
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
        schemas.push(("CommandOutcome".to_owned(), CommandOutcome::schema()));
        AcceptedCommand::schemas(schemas);
        CommandOutcome::schemas(schemas);
    }
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
    let (format, body) = read_body(request).await?;
    let mut request = match Submission::read(&body, format, writer.key.as_deref())? {
        Submission::One(request) => *request,
        Submission::Many(requests) => {
            if writer.expected.is_some() {
                return Err(Problem::bad_request("If-Match is for one command; several have `expected_version` each"));
            }
            let outcomes = carry_out(&app.gateway, &writer.access, &writer.origin, requests).await;
            let outcomes: Vec<CommandOutcome> = outcomes.into_iter().map(CommandOutcome::from).collect();
            return many(&outcomes);
        }
    };
    match (writer.expected, request.expected_version) {
        (Some(header), Some(version)) if header != version => {
            return Err(Problem::bad_request("the header If-Match and `expected_version` differ"));
        }
        (header, version) => request.expected_version = version.or(header),
    }
    let makes_something = request.command.makes_something();
    let accepted = app.gateway.submit(&writer.access, &writer.origin, request).await?;
    Ok(if makes_something { reply::created(accepted) } else { reply::changed(accepted) })
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
