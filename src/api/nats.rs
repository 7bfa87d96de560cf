//! Commands by NATS request: `cmd.<org>`, with the same bodies, answers and errors as HTTP.
//!
//! Who asks is whoever nats-server says, by the credentials that were made for an API key, or, with a header
//! `Authorization`, whoever that proves. The encoding is in `Content-Type`, the key in `Idempotency-Key`. The answer's header
//! `Status` is what HTTP's status would be, and its body is what HTTP's body would be.

use std::sync::Arc;

use anyhow::Context;
use async_nats::{Client, HeaderMap, HeaderValue, Message, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use metrics::histogram;
use orgstream_stream::broker::{NatsUser, Producers, REQUEST_INFO};
use orgstream_stream::trace;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    command_body::{Format, MAX_BODY, Submission, body_too_large, carry_out, idempotency_key, request_id},
    http::kit::bounds::Bounds,
};
use crate::{
    app::{
        access_log::Attempt,
        problem::Problem,
        submit::{AcceptedCommand, CommandOutcome, Gateway, Origin},
    },
    auth::{Access, AuthError, Authenticator, Principal, authenticator::OrgName},
};

/// All API processes share the requests.
const QUEUE: &str = "orgstream-api";
/// This way in, as the audit log names it.
const ROUTE: &str = "NATS cmd.{org}";
/// Requests under way at the same time. When there are more, they wait with the room that they take.
const AT_ONCE: usize = 512;

/// What a request goes through.
#[derive(Clone)]
pub struct Door {
    /// Who asks.
    pub auth: Arc<Authenticator>,
    /// The way in.
    pub gateway: Arc<Gateway>,
    /// Whose credentials nats-server vouches for; none where it vouches for nobody.
    pub users: Option<Arc<Producers>>,
    /// How much may be in memory, with what comes by HTTP.
    pub bounds: Arc<Bounds>,
}

impl Door {
    /// Whom nats-server names.
    fn user(&self, request: &Message) -> Option<NatsUser> {
        let users = self.users.as_ref()?;
        // The server's own header, in its own spelling, and once: it leaves other spellings to whoever wrote them.
        let headers = request.headers.as_ref()?;
        let mut infos = headers.iter().filter(|(name, _)| name.to_string() == REQUEST_INFO);
        let (_, values) = infos.next().filter(|(_, values)| values.len() == 1)?;
        users.recognize(values.first().filter(|_| infos.next().is_none())?.as_str())
    }

    async fn principal(
        &self,
        user: Option<&NatsUser>,
        request: &Message,
        org: Option<&OrgName>,
    ) -> Result<Principal, AuthError> {
        match (header(request, "Authorization"), user) {
            (None, Some(user)) => self.auth.keys().principal_of(&user.key).await,
            (authorization, _) => self.auth.principal_at(authorization, org).await,
        }
    }
}

/// Answers requests until `stop`, then those that have begun.
pub async fn serve(client: Client, door: Door, stop: CancellationToken) -> anyhow::Result<()> {
    // A slug may have dots, at which NATS divides subjects.
    let subscription = client.queue_subscribe("cmd.>", QUEUE.to_owned()).await;
    let mut requests = subscription.context("commands by NATS cannot be subscribed to")?;
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut under_way = JoinSet::new();
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = under_way.join_next() => continue,
            request = requests.next() => request,
        };
        let Some(mut request) = request else { break };
        // It is in memory already: who finds no room is told so at once, so that what waits here is bounded in bytes.
        let held = match door.bounds.message(request.length.max(request.payload.len())) {
            Ok(held) => held,
            Err(problem) => {
                request.payload = Bytes::new();
                turn_away(&client, request, problem).await;
                continue;
            }
        };
        let (client, door, room) = (client.clone(), door.clone(), Arc::clone(&room));
        under_way.spawn(async move {
            if let Ok(permit) = room.acquire_owned().await {
                answer(&client, &door, request).await;
                drop(permit);
            }
            drop(held);
        });
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

/// Answers what is not looked at.
async fn turn_away(client: &Client, request: Message, problem: Problem) {
    let id = request_id(header(&request, "X-Request-Id"));
    let Some(reply) = request.reply else { return };
    histogram!("orgstream_nats_request_seconds", "status" => problem.status.to_string()).record(0.0);
    let answer = Answer::from(Problem { request_id: Some(id.clone()), ..problem });
    send(client, reply, id, answer).await;
}

/// What goes back around the body takes at most this much of what the server lets through, in bytes.
const HEADERS: usize = 1_024;

/// What goes back.
struct Answer {
    status: u16,
    body: serde_json::Result<Vec<u8>>,
    replayed: bool,
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self { status: problem.status, body: serde_json::to_vec(&problem), replayed: false }
    }
}

async fn answer(client: &Client, door: &Door, request: Message) {
    let Some(reply) = request.reply.clone() else {
        tracing::warn!(subject = %request.subject, "a command without a reply subject was not carried out: use a request");
        return;
    };
    let started = Instant::now();
    let id = request_id(header(&request, "X-Request-Id"));
    let org = org_name(&request);
    let span = tracing::info_span!("nats command", org.name = org, request_id = id, status = tracing::field::Empty);
    let trace = trace::join(&span, header(&request, "traceparent"));
    let mut origin =
        Origin { request_id: Some(id.clone()), trace: Some(trace), route: ROUTE.to_owned(), ..Origin::default() };
    let user = door.user(&request);
    origin.context.ip = user.as_ref().and_then(|user| user.ip).map(|ip| ip.to_string());
    let answer = carry_out_request(door, user.as_ref(), &request, &origin).instrument(span.clone()).await;
    let answer = answer.unwrap_or_else(|problem| Answer::from(Problem { request_id: Some(id.clone()), ..problem }));
    span.record("status", answer.status);
    histogram!("orgstream_nats_request_seconds", "status" => answer.status.to_string()).record(started.elapsed());
    send(client, reply, id, answer).await;
}

async fn send(client: &Client, reply: Subject, id: String, answer: Answer) {
    let mut headers = HeaderMap::new();
    headers.insert("Status", answer.status.to_string());
    headers.insert("X-Request-Id", id.as_str());
    headers.insert("Content-Type", if answer.status < 400 { "application/json" } else { "application/problem+json" });
    if answer.replayed {
        headers.insert("Idempotency-Replayed", "true");
    }
    let body = match answer.body {
        Ok(body) if body.len() + HEADERS <= client.max_payload() => Bytes::from(body),
        Ok(body) => {
            let problem = answer_too_large(body.len(), client.max_payload());
            headers.insert("Status", problem.status.to_string());
            headers.insert("Content-Type", "application/problem+json");
            let problem = Problem { request_id: Some(id), ..problem };
            serde_json::to_vec(&problem).unwrap_or_default().into()
        }
        Err(error) => {
            tracing::error!(%error, "an answer has no JSON form");
            return;
        }
    };
    if let Err(error) = client.publish_with_headers(reply, headers, body).await {
        tracing::warn!(%error, "an answer could not be sent");
    }
}

async fn carry_out_request(
    door: &Door,
    user: Option<&NatsUser>,
    request: &Message,
    origin: &Origin,
) -> Result<Answer, Problem> {
    let (auth, gateway) = (&door.auth, &door.gateway);
    let notes = gateway.notes();
    let name = OrgName::parse(org_name(request));
    let principal = door.principal(user, request, name.as_ref().ok()).await;
    let principal = principal.map_err(|error| notes.refused(error, origin))?;
    auth.keys().admit(&principal, &origin.context).map_err(|error| notes.refused(error, origin))?;
    let name = name.map_err(|rule| Problem::invalid_parameter("org", &rule))?;
    let access = auth.access(&principal, &name).await.map_err(|error| {
        let problem = Problem::from(error);
        let attempt = Attempt { target: "commands", asked: Some(org_name(request)) };
        notes.turned_away(&principal, origin, attempt, &problem);
        problem
    })?;
    let held = door.bounds.message_of(access.org(), request.length.max(request.payload.len()));
    let answer = match held {
        Ok(_held) => carry_out_body(gateway, &access, request, origin).await,
        Err(problem) => Err(problem),
    };
    answer.map_err(|problem| problem.inside(Some(access.org())))
}

async fn carry_out_body(
    gateway: &Gateway,
    access: &Access,
    request: &Message,
    origin: &Origin,
) -> Result<Answer, Problem> {
    if request.payload.len() > MAX_BODY {
        return Err(body_too_large());
    }
    let content_type = header(request, "Content-Type").unwrap_or("application/json");
    let format = Format::from_content_type(content_type)?;
    let key = header(request, "Idempotency-Key").map(idempotency_key).transpose()?;
    match Submission::read(&request.payload, format, key.as_deref())? {
        Submission::One(command) => {
            let status = if command.command.spec().creates { 201 } else { 200 };
            let accepted = AcceptedCommand::from(gateway.submit(access, origin, *command).await?);
            Ok(Answer { status, replayed: accepted.replayed, body: serde_json::to_vec(&accepted) })
        }
        Submission::Many(commands) => {
            let outcomes = carry_out(gateway, access, origin, commands).await;
            let outcomes: Vec<CommandOutcome> = outcomes.into_iter().map(CommandOutcome::from).collect();
            Ok(Answer { status: 200, replayed: false, body: serde_json::to_vec(&outcomes) })
        }
    }
}

/// An answer that the server would not let through, so that nobody would ever hear what was done.
fn answer_too_large(size: usize, limit: usize) -> Problem {
    Problem::new(
        413,
        "answer_too_large",
        "The answer is too large",
        format!(
            "The request was carried out, but its answer has {size} bytes, and this NATS server lets {limit} through. Ask \
             again for less at a time: the same commands, each with its own idempotency key (of several under one header \
             Idempotency-Key, command number N has the key `<header>/N`), are answered as they were and have no second effect."
        ),
    )
}

fn org_name(request: &Message) -> &str {
    request.subject.as_str().strip_prefix("cmd.").unwrap_or_default()
}

fn header<'a>(request: &'a Message, name: &str) -> Option<&'a str> {
    // NATS keeps the case of header names; HTTP clients do not care about it, and neither should these.
    let headers = request.headers.as_ref()?;
    let found = headers.iter().find(|(key, _)| key.to_string().eq_ignore_ascii_case(name));
    found.and_then(|(_, values)| values.first()).map(HeaderValue::as_str)
}
