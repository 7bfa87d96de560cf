//! The middleware of every request: id, trace, span, metrics, time limit, and the one place that writes errors.

use std::{
    any::Any,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, MatchedPath, Request},
    http::{HeaderValue, StatusCode, Uri, Version, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use metrics::{counter, histogram};
use orgstream_events::{Context, OrgId};
use orgstream_stream::trace;
use tokio::time::timeout;
use tracing::{Instrument, Span, field::Empty};

use super::{
    bounds::{Room, Slot, Whose},
    compress,
    extract::invalid_header,
    guard::Guard,
    openapi, policy, reply, server, wait,
};
use crate::{
    api::command_body::request_id,
    app::{problem::Problem, submit::Origin},
    auth::{Principal, session::ActiveSession},
    limits::command_rate::CommandRate,
};

/// The time limit of an answer, besides the caller's own wait. Streams start within it and continue beyond.
const TIME_LIMIT: Duration = Duration::from_secs(30);
const NO_PAGE: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
const REQUEST_ID: &str = "x-request-id";
/// The longest `User-Agent` that is recorded.
const MAX_USER_AGENT: usize = 256;

/// The information about a request besides its content.
#[derive(Debug, Clone, Default)]
pub struct RequestInfo(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    id: String,
    trace: Option<String>,
    route: String,
    context: Context,
    span: Option<Span>,
    org: OnceLock<OrgId>,
    session: OnceLock<ActiveSession>,
    caller: OnceLock<Whose>,
    guard: OnceLock<Arc<Guard>>,
    rate: OnceLock<CommandRate>,
    held: Mutex<Held>,
}

/// The shared capacity that a request holds.
#[derive(Debug, Default)]
struct Held {
    /// Until the last byte of the answer is sent.
    slots: Vec<Slot>,
    /// Until the answer is known.
    room: Option<Room>,
}

impl RequestInfo {
    /// Returns the origin of the request, for commands.
    pub fn origin(&self) -> Origin {
        Origin {
            context: self.0.context.clone(),
            request_id: Some(self.0.id.clone()).filter(|id| !id.is_empty()),
            trace: self.0.trace.clone(),
            route: self.0.route.clone(),
        }
    }

    /// Records the org, now that it is proven.
    pub fn found(&self, org: OrgId) {
        if self.0.org.set(org).is_ok()
            && let Some(span) = &self.0.span
        {
            span.record("org.id", org.to_string());
        }
    }

    /// Records the session, as it was when the request came.
    pub fn came_with(&self, session: ActiveSession) {
        let _ = self.0.session.set(session);
    }

    /// Records the caller.
    pub fn came_as(&self, principal: &Principal) {
        let whose = match principal {
            Principal::Key { org, .. } | Principal::Sso { org, .. } => Whose::Org(*org),
            Principal::Operator(_) | Principal::User { .. } => Whose::Caller(principal.actor().id),
        };
        let _ = self.0.caller.set(whose);
    }

    /// Returns the party that the request's room is charged to: the organization that it is about, or the caller.
    pub fn whose(&self) -> Whose {
        let address = || self.0.context.ip.as_deref().and_then(|ip| ip.parse().ok());
        match (self.0.org.get(), self.0.caller.get()) {
            (Some(org), _) => Whose::Org(*org),
            (None, Some(caller)) => caller.clone(),
            (None, None) => Whose::from(address()),
        }
    }

    /// Records the check whether the caller still has access.
    pub fn let_in(&self, guard: Guard) {
        let _ = self.0.guard.set(Arc::new(guard));
    }

    /// Returns the check whether the caller still has access, once it was admitted.
    pub fn guard(&self) -> Option<&Arc<Guard>> {
        self.0.guard.get()
    }

    /// Records the rate that counts the request, or its commands.
    pub fn counts_for(&self, rate: CommandRate) {
        let _ = self.0.rate.set(rate);
    }

    /// Returns the organization whose rate counts the request, or its commands, and the rate, if there is one.
    pub fn rate(&self) -> Option<(OrgId, CommandRate)> {
        Some((*self.0.org.get()?, *self.0.rate.get()?))
    }

    /// Returns the org, once it is proven.
    pub fn org(&self) -> Option<OrgId> {
        self.0.org.get().copied()
    }

    /// Holds slots until the answer is over.
    pub fn hold(&self, slots: impl IntoIterator<Item = Slot>) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).slots.extend(slots);
    }

    /// Holds the room of a body until the request is carried out.
    pub fn hold_room(&self, room: Room) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).room = Some(room);
    }

    /// Releases the room of the body, and hands over the slots.
    fn release(&self) -> Vec<Slot> {
        std::mem::take(&mut *self.0.held.lock().unwrap_or_else(PoisonError::into_inner)).slots
    }

    /// Returns the session, once it is known that there is one.
    pub fn session(&self) -> Option<&ActiveSession> {
        self.0.session.get()
    }
}

/// The outermost layer.
pub async fn observe(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let headers = request.headers();
    let id = request_id(headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()));
    let span = tracing::info_span!(
        "request", http.method = %method, http.route = route, request_id = id, org.id = Empty, http.status = Empty
    );
    let trace = trace::join(&span, headers.get("traceparent").and_then(|value| value.to_str().ok()));
    let limit = TIME_LIMIT + wait::patience(headers).unwrap_or_default();
    let known = Known {
        id: id.clone(),
        trace: Some(trace),
        route: format!("{method} {route}"),
        context: context(&request),
        span: Some(span.clone()),
        org: OnceLock::new(),
        session: OnceLock::new(),
        caller: OnceLock::new(),
        guard: OnceLock::new(),
        rate: OnceLock::new(),
        held: Mutex::default(),
    };
    let info = RequestInfo(Arc::new(known));
    request.extensions_mut().insert(info.clone());
    let work = AssertUnwindSafe(next.run(request)).catch_unwind();
    let mut response = match timeout(limit, work.instrument(span.clone())).await {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => span.in_scope(|| panicked(panic.as_ref())).into_response(),
        Err(_) => timed_out(limit).into_response(),
    };
    if response.status() == StatusCode::NOT_FOUND && route.starts_with(openapi::DOCS) {
        // The documentation pages have an error page of their own.
        response = no_route().await.into_response();
    }
    compress::weaken(&mut response);
    if let Some(problem) = response.extensions_mut().remove::<Arc<Problem>>() {
        write_problem(&mut response, &problem, &info, &uri);
    }
    let slots = info.release();
    if !slots.is_empty() {
        response = response.map(|body| server::held(body, slots));
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Anything but our pages must not be framed or run as a page.
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(NO_PAGE);
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(reply::OWN);
    let (status, took) = (response.status(), started.elapsed());
    span.record("http.status", status.as_u16());
    span.in_scope(|| tracing::debug!(duration_ms = took.as_millis(), "answered"));
    // Only declared routes: paths and methods that callers make up must not create time series.
    let (method, route) = match policy::of(&method, &route) {
        Some(known) => (known.method, known.path.as_str()),
        None => ("other", "unmatched"),
    };
    counter!("orgstream_http_requests_total", "method" => method, "route" => route, "status" => class(status))
        .increment(1);
    histogram!("orgstream_http_request_seconds", "method" => method, "route" => route).record(took);
    response
}

/// Refuses a request by HTTP/1.1 that does not name its server exactly once (RFC 9112, 3.2): intermediaries that choose
/// another one would disagree.
pub async fn names_its_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if request.version() == Version::HTTP_11 && hosts != 1 {
        let said = if hosts == 0 { "is missing" } else { "must not come twice" };
        let mut response = invalid_header("Host", said).into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    next.run(request).await
}

/// Refuses query parameters that are not in the documentation of the route: a filter with a typing error in its name would
/// otherwise silently select everything. And the character U+0000 in any parameter: nothing stored has it, nor could have.
pub async fn known_parameters(request: Request, next: Next) -> Response {
    if [request.uri().path(), request.uri().query().unwrap_or_default()].iter().any(|text| text.contains("%00")) {
        let rule = "a parameter of the path or the query must not contain the character U+0000 (%00)";
        return Problem::invalid("", "nul_character", rule).into_response();
    }
    let path = request.extensions().get::<MatchedPath>();
    let known = path.and_then(|path| openapi::spec().query_parameters(request.method(), path.as_str()));
    if let (Some(query), Some(known)) = (request.uri().query(), known) {
        let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        let unknown = names
            .filter(|name| !name.is_empty())
            .find(|name| !known.iter().any(|known| openapi::is_named(known, name)));
        if let Some(name) = unknown {
            let rule = match known {
                [] => "this route takes no query parameters".to_owned(),
                known => format!("no such query parameter here; there are: {}", known.join(", ")),
            };
            return Problem::invalid_parameter(&name.chars().take(80).collect::<String>(), &rule).into_response();
        }
    }
    next.run(request).await
}

/// The answer to an unknown route.
pub async fn no_route() -> Problem {
    Problem::new(404, "not_found", "Not found", "There is no such route; GET /openapi.json lists them all.")
}

/// The answer to a known route with another method.
pub async fn no_method(parts: Parts) -> Problem {
    let detail = format!("{} is not a method of this path; the header Allow names those that are", parts.method);
    Problem::new(405, "method_not_allowed", "Method not allowed", detail)
}

fn write_problem(response: &mut Response, problem: &Problem, info: &RequestInfo, uri: &Uri) {
    let mut problem = problem.clone().inside(info.0.org.get().copied());
    problem.request_id = Some(info.0.id.clone());
    if problem.status != 404 {
        problem.instance = Some(uri.path().to_owned());
    }
    *response.body_mut() = Body::from(reply::json_bytes(&problem).unwrap_or_default());
    response.headers_mut().remove(header::CONTENT_LENGTH);
}

fn panicked(panic: &(dyn Any + Send)) -> Problem {
    let words = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    Problem::internal(format!("a handler panicked: {}", words.unwrap_or("without words")))
}

fn timed_out(limit: Duration) -> Problem {
    Problem::unavailable(format!(
        "no answer within {} seconds. If this was a command, it is not known whether it took effect: send it again with \
         the same Idempotency-Key",
        limit.as_secs()
    ))
}

fn context(request: &Request) -> Context {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let ip = request.extensions().get::<ConnectInfo<SocketAddr>>();
    Context {
        ip: ip.map(|ConnectInfo(address)| address.ip().to_canonical().to_string()),
        user_agent: agent.map(|agent| agent.chars().take(MAX_USER_AGENT).collect()),
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        0..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::to_bytes, middleware::from_fn, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn answer(path: &str) -> (u16, axum::http::HeaderMap, serde_json::Value) {
        async fn broken() -> &'static str {
            panic!("something about a customer")
        }
        let router = Router::new()
            .route("/broken", get(broken))
            .route("/later", get(async || Problem::unavailable("not now")))
            .method_not_allowed_fallback(no_method)
            .fallback(no_route)
            .layer(from_fn(observe));
        let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        (status, headers, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_answered_without_its_words() {
        let (status, headers, problem) = answer("/broken").await;
        assert_eq!((status, &problem["code"]), (500, &"internal".into()));
        assert_eq!(problem["request_id"], headers[REQUEST_ID].to_str().unwrap());
        assert!(!problem.to_string().contains("customer"), "{problem}");
    }

    #[tokio::test]
    async fn who_should_come_back_is_told_when() {
        let (status, headers, problem) = answer("/later").await;
        assert_eq!((status, &headers[header::RETRY_AFTER]), (503, &HeaderValue::from(1)));
        assert_eq!(
            (&headers[header::CONTENT_TYPE], &problem["instance"]),
            (&"application/problem+json".parse().unwrap(), &"/later".into())
        );
    }

    #[tokio::test]
    async fn what_is_not_there_is_named_the_same_way_everywhere() {
        let (status, _, problem) = answer("/nothing").await;
        assert_eq!((status, &problem["code"]), (404, &"not_found".into()));
        assert!(problem.get("instance").is_none());
    }
}
