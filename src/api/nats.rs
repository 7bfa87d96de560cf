//! Commands by NATS request: `cmd.<org>`, with the same bodies, answers and errors as HTTP.
//!
//! The caller is authenticated by nats-server, by the credentials that were derived from an API key, or by a header
//! `Authorization`. The encoding is in `Content-Type`, the key in `Idempotency-Key`. The answer's header [`STATUS`] is what
//! HTTP's status would be, and its body is what HTTP's body would be.

use std::sync::Arc;

use anyhow::Context;
use async_nats::{Client, HeaderMap, HeaderValue, Message, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use metrics::histogram;
use orgstream_events::Chain;
use orgstream_stream::broker::{NatsUser, Producers, REQUEST_INFO};
use orgstream_stream::trace;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    command_body::{Format, MAX_BODY, Submission, body_too_large, carry_out, idempotency_key, request_id},
    http::kit::bounds::{Bounds, Room, Slot, Whose},
    turns::Turns,
};
use crate::{
    app::{
        access_log::DeniedRequest,
        admit::Admit,
        problem::Problem,
        seldom::Seldom,
        submit::{AcceptedCommand, CommandOutcome, Gateway, Origin},
    },
    auth::{Access, AuthError, Authenticator, Principal, authenticator::OrgName},
};

/// All API processes share the requests.
const QUEUE: &str = "orgstream-api";
/// This entry point, as the audit log names it.
const ROUTE: &str = "NATS cmd.{org}";
/// What HTTP's status would be. NATS has a header `Status` of its own, which clients turn into errors of their own.
pub const STATUS: &str = "Orgstream-Status";
/// In an answer, the key whose credentials sent the request: nats-server lets a requester name the subject of the answer,
/// even in another client's inbox, which recognizes by this that the request was not its own.
pub const ASKED_BY: &str = "Orgstream-Key";
/// The maximum number of concurrent requests, in total and of one organization. Others wait with the room that they take.
const MAX_CONCURRENCY: usize = 512;
const AT_ONCE_OF_ONE: usize = 128;
/// The maximum number of requests of one organization that wait for an issuer at the same time. They hold nothing that
/// others wait for.
const ASKING_OF_ONE: usize = 16;

/// The components that a request passes.
#[derive(Clone)]
pub struct Boundary {
    /// The authentication.
    pub auth: Arc<Authenticator>,
    /// The entry point for commands.
    pub gateway: Arc<Gateway>,
    /// The producers that nats-server authenticates; none where it authenticates none.
    pub users: Option<Arc<Producers>>,
    /// The in-flight limits, shared with HTTP.
    pub bounds: Arc<Bounds>,
}

/// The queues of requests.
#[derive(Clone)]
struct Lanes {
    all: Arc<Semaphore>,
    working: Arc<Turns<Whose>>,
    asking: Arc<Turns<Whose>>,
}

impl Lanes {
    fn new() -> Self {
        let all = Arc::new(Semaphore::new(MAX_CONCURRENCY));
        Self { all, working: Turns::new(AT_ONCE_OF_ONE), asking: Turns::new(ASKING_OF_ONE) }
    }
}

/// The capacity that a request holds until it is answered.
type Held = (Slot, Room);
/// A request that is not processed, and why.
type Refused = Box<(Message, Problem)>;

/// A received request.
struct Heard {
    request: Message,
    user: Option<NatsUser>,
    whose: Whose,
}

impl Boundary {
    /// Returns the user that nats-server names.
    fn user(&self, request: &Message) -> Option<NatsUser> {
        let users = self.users.as_ref()?;
        // The server's own header, in its own spelling, and once: it passes on other spellings as clients wrote them.
        let headers = request.headers.as_ref()?;
        let mut infos = headers.iter().filter(|(name, _)| name.to_string() == REQUEST_INFO);
        let (_, values) = infos.next().filter(|(_, values)| values.len() == 1)?;
        users.recognize(values.first().filter(|_| infos.next().is_none())?.as_str())
    }

    /// Takes room for a request, which is in memory already: without room it is refused at once, so that the queue is
    /// bounded.
    fn hear(&self, request: Message) -> Result<(Heard, Held), Refused> {
        let user = self.user(&request);
        // The requested organization does not prove the caller; but where nats-server authenticates none, there is nothing
        // else.
        let (whose, caller) = match &user {
            Some(user) => (Whose::Org(user.org), user.key.to_string()),
            None => (Whose::Caller(request.subject.to_string()), request.subject.to_string()),
        };
        let bytes = request.length.max(request.payload.len());
        let held = self.bounds.request_of_caller(&caller);
        let held = held.and_then(|slot| Ok((slot, self.bounds.message(whose.clone(), bytes)?)));
        match held {
            Ok(held) => Ok((Heard { request, user, whose }, held)),
            Err(problem) => Err(Box::new((request, problem))),
        }
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

/// Serves requests until `stop`, then those in flight.
pub async fn serve(client: Client, boundary: Boundary, stop: CancellationToken) -> anyhow::Result<()> {
    // A slug may have dots, at which NATS divides subjects.
    let subscription = client.queue_subscribe("cmd.>", QUEUE.to_owned()).await;
    let mut requests = subscription.context("commands by NATS cannot be subscribed to")?;
    let lanes = Lanes::new();
    let mut under_way = JoinSet::new();
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = under_way.join_next() => continue,
            request = requests.next() => request,
        };
        let Some(request) = request else { break };
        let (client, boundary, lanes) = (client.clone(), boundary.clone(), lanes.clone());
        match boundary.hear(request) {
            Ok((heard, held)) => {
                under_way.spawn(async move {
                    answer(&client, &boundary, &lanes, heard).await;
                    drop(held);
                });
            }
            Err(refused) => {
                let (request, problem) = *refused;
                turn_away(&client, request, problem).await;
            }
        }
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

/// Answers a request that is not processed.
async fn turn_away(client: &Client, request: Message, problem: Problem) {
    let id = request_id(header(&request, "X-Request-Id"));
    let Some(reply) = request.reply else { return };
    histogram!("orgstream_nats_request_seconds", "status" => problem.status.to_string()).record(0.0);
    let answer = Answer::from(Problem { request_id: Some(id.clone()), ..problem });
    send(client, reply, None, id, answer).await;
}

/// The headers of an answer take at most this much of the server's maximum payload, in bytes.
const HEADERS: usize = 1_024;

/// The answer.
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

async fn answer(client: &Client, boundary: &Boundary, lanes: &Lanes, heard: Heard) {
    let request = &heard.request;
    let Some(reply) = request.reply.clone() else {
        static LINE: Seldom = Seldom::new();
        if let Some(times) = LINE.may_say() {
            let subject = request.subject.as_str();
            tracing::warn!(subject, times, "commands without a reply subject were not carried out: use a request");
        }
        return;
    };
    let started = Instant::now();
    let id = request_id(header(request, "X-Request-Id"));
    let org = org_name(request);
    let span = tracing::info_span!("nats command", org.name = org, request_id = id, status = tracing::field::Empty);
    let trace = trace::join(&span, header(request, "traceparent"));
    let mut origin =
        Origin { request_id: Some(id.clone()), trace: Some(trace), route: ROUTE.to_owned(), ..Origin::default() };
    origin.context.ip = heard.user.as_ref().and_then(|user| user.ip).map(|ip| ip.to_string());
    let answer = carry_out_request(boundary, lanes, &heard, &origin).instrument(span.clone()).await;
    let answer = answer.unwrap_or_else(|problem| Answer::from(Problem { request_id: Some(id.clone()), ..problem }));
    span.record("status", answer.status);
    histogram!("orgstream_nats_request_seconds", "status" => answer.status.to_string()).record(started.elapsed());
    send(client, reply, heard.user.as_ref(), id, answer).await;
}

async fn send(client: &Client, reply: Subject, user: Option<&NatsUser>, id: String, answer: Answer) {
    let mut headers = HeaderMap::new();
    headers.insert(STATUS, answer.status.to_string());
    headers.insert("X-Request-Id", id.as_str());
    headers.insert("Content-Type", if answer.status < 400 { "application/json" } else { "application/problem+json" });
    if let Some(user) = user {
        headers.insert(ASKED_BY, user.key.to_string());
    }
    if answer.replayed {
        headers.insert("Idempotency-Replayed", "true");
    }
    let body = match answer.body {
        Ok(body) if body.len() + HEADERS <= client.max_payload() => Bytes::from(body),
        Ok(body) => {
            let problem = answer_too_large(body.len(), client.max_payload());
            headers.insert(STATUS, problem.status.to_string());
            headers.insert("Content-Type", "application/problem+json");
            let problem = Problem { request_id: Some(id), ..problem };
            serde_json::to_vec(&problem).unwrap_or_default().into()
        }
        Err(error) => {
            tracing::error!(error = %Chain(&error), "an answer has no JSON form");
            return;
        }
    };
    if let Err(error) = client.publish_with_headers(reply, headers, body).await {
        tracing::warn!(error = %Chain(&error), "an answer could not be sent");
    }
}

async fn carry_out_request(
    boundary: &Boundary,
    lanes: &Lanes,
    Heard { request, user, whose, .. }: &Heard,
    origin: &Origin,
) -> Result<Answer, Problem> {
    let gateway = &boundary.gateway;
    let admit = Admit { auth: &boundary.auth, access_log: gateway.access_log(), origin };
    let name = OrgName::parse(org_name(request));
    let principal = async || boundary.principal(user.as_ref(), request, name.as_ref().ok()).await;
    let of_issuer = if Authenticator::asks_an_issuer(header(request, "Authorization")) {
        let _asking = lanes.asking.take(whose.clone()).await;
        Some(principal().await)
    } else {
        None
    };
    let (_turn, _permit) = (lanes.working.take(whose.clone()).await, lanes.all.acquire().await);
    let principal = match of_issuer {
        Some(principal) => principal,
        None => principal().await,
    };
    let principal = admit.principal(principal)?;
    let name = name.map_err(|rule| Problem::invalid_parameter("org", &rule))?;
    let attempt = DeniedRequest { target: "commands", asked: Some(org_name(request)) };
    let access = admit.organization(&principal, &name, attempt).await?;
    let answer = carry_out_body(gateway, &access, request, origin).await;
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

/// Returns the problem of an answer that the server would reject, so that the result would never be reported.
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
    // NATS keeps the case of header names; HTTP clients ignore it, and so must this.
    let headers = request.headers.as_ref()?;
    let found = headers.iter().find(|(key, _)| key.to_string().eq_ignore_ascii_case(name));
    found.and_then(|(_, values)| values.first()).map(HeaderValue::as_str)
}
