//! The arguments of handlers: authenticated callers in their org, ids, queries and bodies. All faults of a request are
//! reported here, before a handler runs.

use std::{fmt::Display, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::{Body as HttpBody, BodyDataStream, Bytes},
    extract::{FromRequest, FromRequestParts, MatchedPath, RawPathParams, Request as HttpRequest},
    http::{HeaderMap, HeaderName, Method, header, request::Parts},
};
use futures_util::StreamExt;
use orgstream_domain::Command;
use orgstream_events::{AccessEvent, AuditRead, BreakGlassUsed};
use orgstream_projections::BoundOrg;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout_at};

use super::{
    active_org, conditional, cookie,
    guard::Guard,
    middleware::RequestInfo,
    policy::{self, Policy, RoutePolicy, Shape},
};
use crate::{
    api::{
        body::read_parameters,
        command_body as submission,
        command_body::{Format, MAX_BODY},
        http::App,
    },
    app::{access_log::DeniedRequest, problem::Problem, submit::Origin},
    auth::{Access, AuthError, Principal, authenticator::OrgName},
    commands::request::{Accepted, Request},
};

/// How much of a body that is too large is still read, so that its sender gets to read the answer.
const DRAIN: usize = 16 << 20;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The minimum rate of a body, in bytes per second, and the time for which it does not apply. A whole body is then received,
/// or refused, before the request's time limit.
const SLOWEST: usize = 64 << 10;
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum memory that is reserved before any of a body has been received, in bytes.
const AT_FIRST: usize = 16 << 10;
/// Headers that may repeat which org is meant.
const ORG_ASSERTIONS: [HeaderName; 2] = [HeaderName::from_static("x-tenant-id"), HeaderName::from_static("x-org-id")];

/// Returns the problem of an invalid header.
pub fn invalid_header(name: &str, rule: &str) -> Problem {
    Problem::new(400, "invalid_header", "Invalid header", format!("{name}: {rule}"))
}

/// Returns the text of a header that may come once.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(invalid_header(name.as_str(), "must not come twice"));
    }
    let text = first.map(|value| value.to_str().map_err(|_| invalid_header(name.as_str(), "must be visible ASCII")));
    text.transpose()
}

/// Returns the policy of the route.
fn policy_of(parts: &Parts) -> Result<&'static RoutePolicy, Problem> {
    let path = parts.extensions.get::<MatchedPath>();
    let found = path.and_then(|path| policy::of(&parts.method, path.as_str()));
    found.ok_or_else(|| Problem::internal(format!("{} {} has no policy", parts.method, parts.uri.path())))
}

/// Returns the request's information besides its content.
pub fn info(parts: &Parts) -> RequestInfo {
    parts.extensions.get::<RequestInfo>().cloned().unwrap_or_default()
}

/// Returns the named parameters of the path.
async fn path_params(parts: &mut Parts, app: &Arc<App>) -> Result<Vec<(String, String)>, Problem> {
    let raw = RawPathParams::from_request_parts(parts, app).await;
    let raw = raw.map_err(|error| Problem::invalid_parameter("path", error.body_text()))?;
    Ok(raw.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Returns the organization, as the path names it.
fn named_org(params: &[(String, String)]) -> Option<&str> {
    params.iter().find(|(name, _)| name == "org").map(|(_, value)| value.as_str())
}

/// An authenticated caller.
pub struct SignedIn(pub Principal);

impl FromRequestParts<Arc<App>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let policy = policy_of(parts)?.policy;
        let credential = cookie::credential(parts)?;
        let origin = info(parts).origin();
        let params = path_params(parts, app).await.unwrap_or_default();
        let place = named_org(&params).and_then(|name| OrgName::parse(name).ok());
        let principal = app.auth.principal_at(credential.as_deref(), place.as_ref()).await;
        let mut principal = app.admit(&origin).principal(principal)?;
        info(parts).came_as(&principal);
        if policy_of(parts)?.shape != Shape::Tail {
            info(parts).hold([app.bounds.request_of_caller(&principal.actor().id)?]);
        }
        active_org::note(app, parts, &mut principal).await?;
        match policy {
            Policy::SignedIn | Policy::Org(_) | Policy::OrgCommands => Ok(Self(principal)),
            Policy::Operator if principal.operator().is_some() => Ok(Self(principal)),
            Policy::Operator => {
                let problem = Problem::new(403, "forbidden", "Not allowed", "only the platform's operator may do this");
                let attempt = DeniedRequest { target: policy.subject(), asked: None };
                app.gateway.access_log().denied(&principal, &origin, attempt, &problem);
                Err(problem)
            }
            Policy::Public => Err(Problem::internal("a public route asks who is there")),
        }
    }
}

/// A caller in the organization of the path, with the permission of the route.
pub struct OrgAccess {
    /// The access.
    pub access: Access,
    /// The caller.
    pub principal: Principal,
}

impl FromRequestParts<Arc<App>> for OrgAccess {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let SignedIn(principal) = SignedIn::from_request_parts(parts, app).await?;
        let params = path_params(parts, app).await?;
        let named = named_org(&params);
        let name =
            OrgName::parse(named.unwrap_or_default()).map_err(|rule| Problem::invalid_parameter("org", &rule))?;
        if name == OrgName::Current {
            // One address serves several organizations: a client's cached answer of one must disclose nothing of another.
            parts.headers.remove(header::IF_NONE_MATCH);
        }
        let (&RoutePolicy { policy, audit_trail, shape, .. }, origin, access_log) =
            (policy_of(parts)?, info(parts).origin(), app.gateway.access_log());
        let attempt = DeniedRequest { target: policy.subject(), asked: named };
        let access = app.admit(&origin).organization(&principal, &name, attempt).await?;
        let not_allowed = |asked, error: AuthError| {
            let problem = Problem::from(error);
            access_log.not_allowed(&access, &origin, DeniedRequest { asked, ..attempt }, &problem);
            problem
        };
        for header in ORG_ASSERTIONS {
            if let Some(text) = header_text(&parts.headers, &header)? {
                let asserted = match OrgName::parse(text) {
                    Ok(OrgName::Id(org)) => Some(org),
                    Ok(OrgName::Slug(slug)) => app.db.org_of_slug(&slug).await?,
                    Ok(OrgName::Current) => Some(access.org()),
                    Err(rule) => return Err(invalid_header(header.as_str(), &rule)),
                };
                if asserted != Some(access.org()) {
                    return Err(not_allowed(Some(text), AuthError::TenantMismatch));
                }
            }
        }
        match policy {
            Policy::Org(permission) => {
                access.require(permission).map_err(|error| not_allowed(named, error))?;
                if let Some(id) = access.grant().filter(|_| !permission.is_operators()) {
                    let (route, path) = (origin.route.clone(), parts.uri.path().to_owned());
                    let used = AccessEvent::BreakGlassUsed(BreakGlassUsed { id, route, path });
                    access_log.write_down(access.bound(), access.actor(), &origin, used).await?;
                } else if audit_trail == policy::AUDIT_READ {
                    let (route, query) = (origin.route.clone(), parts.uri.query().map(str::to_owned));
                    let read = AccessEvent::AuditRead(AuditRead { route, query, repeated: 1 });
                    access_log.record(access.bound(), access.actor(), &origin, read);
                }
            }
            Policy::OrgCommands => {}
            Policy::Public | Policy::SignedIn | Policy::Operator => {
                return Err(Problem::internal("a route without an organization asks for one"));
            }
        }
        info(parts).found(access.org());
        if matches!(shape, Shape::Create | Shape::Change | Shape::Commands)
            && let Some(rate) = access.rules().and_then(|rules| app.gateway.admission().rate(rules))
        {
            info(parts).counts_for(rate);
        }
        // What the platform's operators read is not the organization's.
        if (matches!(shape, Shape::View(_) | Shape::Tail)
            || shape == Shape::Plain && matches!(parts.method, Method::GET | Method::HEAD))
            && let Some(rules) = access.rules()
            && let Some(rate) = app.gateway.admission().read_rate(rules, app.plan_reads.of(&app.gateway, &rules.plan))
        {
            info(parts).counts_for(rate);
            if let Err(over) = app.gateway.admission().admit_read(access.org(), rate) {
                let problem = Problem::from(over);
                let attempt = DeniedRequest { target: "reads", asked: None };
                access_log.not_allowed(&access, &origin, attempt, &problem);
                return Err(problem);
            }
        }
        if shape == Shape::Tail {
            info(parts).hold(app.bounds.stream(&principal.actor().id, access.org())?);
        } else {
            info(parts).hold([app.bounds.request_of_org(access.org())?]);
        }
        let permission = if let Policy::Org(permission) = policy { Some(permission) } else { None };
        let credential = cookie::credential(parts)?.unwrap_or_default();
        info(parts).let_in(Guard::new(Arc::clone(app), credential, access.org(), permission, &principal));
        if principal.operator().is_some() && app.log.placement(access.org()).await?.is_none() {
            // An operator may act in every organization, but not in one that does not exist.
            return Err(Problem::not_found());
        }
        Ok(Self { access, principal })
    }
}

/// A caller that sends commands, with its headers.
pub struct Writer {
    /// The access.
    pub access: Access,
    /// The origin of the request.
    pub origin: Origin,
    /// The idempotency key.
    pub key: Option<String>,
    /// The versions that the caller saw, any of them; none is all.
    pub expected: Vec<u64>,
}

/// Returns the idempotency key of the headers.
pub fn idempotency_key(parts: &Parts) -> Result<Option<String>, Problem> {
    header_text(&parts.headers, &IDEMPOTENCY_KEY)?.map(submission::idempotency_key).transpose()
}

impl Writer {
    fn new(access: Access, parts: &Parts) -> Result<Self, Problem> {
        Ok(Self {
            access,
            origin: info(parts).origin(),
            key: idempotency_key(parts)?,
            expected: conditional::if_match(&parts.headers)?,
        })
    }

    /// Carries out one command.
    pub async fn submit(&self, app: &App, command: impl Into<Command>) -> Result<Accepted, Problem> {
        let command = command.into();
        self.carry_out(app, Request { idempotency_key: self.key.clone(), ..command.into() }).await
    }

    /// Carries out one request, if the target is at one of the versions that the caller saw. They are tried one after the
    /// other: a command that is refused for its version has no effect.
    pub async fn carry_out(&self, app: &App, request: Request) -> Result<Accepted, Problem> {
        let Some((last, others)) = self.expected.split_last() else {
            return app.gateway.submit(&self.access, &self.origin, request).await;
        };
        for version in others {
            let request = Request { expected_version: Some(*version), ..request.clone() };
            match app.gateway.submit(&self.access, &self.origin, request).await {
                Err(problem) if problem.status == 412 => {}
                outcome => return outcome,
            }
        }
        let request = Request { expected_version: Some(*last), ..request };
        app.gateway.submit(&self.access, &self.origin, request).await
    }
}

impl FromRequestParts<Arc<App>> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let OrgAccess { access, .. } = OrgAccess::from_request_parts(parts, app).await?;
        Self::new(access, parts)
    }
}

/// An operator who changes data that all organizations share.
pub struct PlatformWriter(pub Writer);

impl FromRequestParts<Arc<App>> for PlatformWriter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let SignedIn(principal) = SignedIn::from_request_parts(parts, app).await?;
        let access = app.auth.platform(&principal)?;
        Writer::new(access, parts).map(Self)
    }
}

/// The last parameter of the path: the resource of the request.
pub struct Item<T>(pub T);

impl<T> FromRequestParts<Arc<App>> for Item<T>
where
    T: FromStr + Send,
    T::Err: Display,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let params = path_params(parts, app).await?;
        let (name, text) = params.last().ok_or_else(|| Problem::internal("the path names no item"))?;
        text.parse().map(Self).map_err(|error: T::Err| Problem::invalid_parameter(name, error))
    }
}

/// The last two parameters of the path: a resource, and what it is a part of.
pub struct ItemOf<P, T>(pub P, pub T);

impl<P, T> FromRequestParts<Arc<App>> for ItemOf<P, T>
where
    P: FromStr + Send,
    P::Err: Display,
    T: FromStr + Send,
    T::Err: Display,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let params = path_params(parts, app).await?;
        let [.., (whose, part_of), (name, text)] = params.as_slice() else {
            return Err(Problem::internal("the path names no item of another"));
        };
        let part_of = part_of.parse().map_err(|error: P::Err| Problem::invalid_parameter(whose, error))?;
        text.parse().map(|item| Self(part_of, item)).map_err(|error: T::Err| Problem::invalid_parameter(name, error))
    }
}

/// The query. Undocumented parameters never get here.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        read_parameters(query_pairs(parts)?).map(Self).map_err(|misfit| {
            let (name, rule) = misfit.named();
            Problem::invalid_parameter(name, rule)
        })
    }
}

/// One member of a query parameter that has several: `filter[score][gte]=1` is one of `filter`, named `score` and `gte`.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// The names in brackets.
    pub names: Vec<String>,
    /// The value.
    pub value: String,
}

/// The members of the parameter `filter`, in the order of the query.
pub struct FilterMembers(pub Vec<Member>);

impl FromRequestParts<Arc<App>> for FilterMembers {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        let mut members = Vec::new();
        for (name, value) in query_pairs(parts)? {
            let Some(rest) = name.strip_prefix("filter[") else { continue };
            let names: Vec<String> =
                rest.strip_suffix(']').unwrap_or_default().split("][").map(str::to_owned).collect();
            if names.iter().any(|name| name.is_empty() || name.contains(['[', ']'])) {
                let shown: String = name.chars().take(80).collect();
                let rule = "must have its members in brackets: filter[field]=value or filter[field][gte]=value";
                return Err(Problem::invalid_parameter(&shown, rule));
            }
            members.push(Member { names, value });
        }
        Ok(Self(members))
    }
}

/// Returns the names and values of the query.
fn query_pairs(parts: &Parts) -> Result<Vec<(String, String)>, Problem> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let axum::extract::Query(pairs) =
        pairs.map_err(|_| Problem::invalid_parameter("query", "must be names and values: a=1&b=2"))?;
    Ok(pairs)
}

/// A JSON body of a known shape.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: HttpRequest, app: &Arc<App>) -> Result<Self, Problem> {
        let (format, bytes) = read_body(app, request).await?;
        match format {
            Format::Json => submission::parse_json(&bytes).map(Self),
            Format::MessagePack => Err(Problem::unsupported("this route takes application/json")),
        }
    }
}

/// Reads the body, up to the limit, and its declared format. It takes room as it comes, and holds it until the request is
/// carried out; a declared length takes none.
pub async fn read_body(app: &App, request: HttpRequest) -> Result<(Format, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let content_type = header_text(&parts.headers, &header::CONTENT_TYPE)?;
    let format = match content_type {
        None => Err(Problem::unsupported("send the header Content-Type: application/json")),
        Some(text) => Format::from_content_type(text),
    };
    let format = match header_text(&parts.headers, &header::CONTENT_ENCODING)? {
        Some(encoding) if !encoding.trim().eq_ignore_ascii_case("identity") => {
            Err(Problem::unsupported("send the body as it is: without Content-Encoding, or with identity"))
        }
        _ => format,
    };
    let announced =
        header_text(&parts.headers, &header::CONTENT_LENGTH)?.and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) && parts.headers.contains_key(header::EXPECT) {
        // The sender waits for `100 Continue` before it sends the body, so there is nothing to drain.
        return Err(submission::body_too_large());
    }
    let info = info(&parts);
    let mut room = app.bounds.body(info.whose());
    let mut coming = Coming::new(body);
    let mut bytes = Vec::with_capacity(announced.unwrap_or_default().min(AT_FIRST));
    let mut size = 0;
    loop {
        let chunk = tokio::select! {
            chunk = coming.next() => chunk?,
            refused = room.is_taken_back() => {
                drop((room, bytes));
                return Err(coming.read_away(size, refused).await);
            }
        };
        let Some(chunk) = chunk else { break };
        size += chunk.len();
        if size <= MAX_BODY {
            if let Err(refused) = coming.kept_waiting_by(room.hold(size)).await {
                drop((room, bytes));
                return Err(coming.read_away(size, refused).await);
            }
            bytes.extend_from_slice(&chunk);
        } else if size > DRAIN {
            break;
        }
    }
    room.is_whole();
    info.hold_room(room);
    if size > MAX_BODY { Err(submission::body_too_large()) } else { Ok((format?, bytes.into())) }
}

/// A body in transfer, which has to come as fast as [`SLOWEST`] says.
struct Coming {
    body: BodyDataStream,
    /// When more of it must have been received.
    due: Instant,
}

impl Coming {
    fn new(body: HttpBody) -> Self {
        Self { body: body.into_data_stream(), due: Instant::now() + TIMEOUT }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let Ok(chunk) = timeout_at(self.due, self.body.next()).await else {
            return Err(Problem::body_too_slow(TIMEOUT, SLOWEST));
        };
        let chunk = chunk.transpose().map_err(|error| Problem::bad_request(format!("the body broke off: {error}")))?;
        let came = chunk.as_ref().map_or(0, Bytes::len);
        self.due += Duration::from_secs_f64(came as f64 / SLOWEST as f64);
        Ok(chunk)
    }

    /// Drains the rest of a body of which `size` bytes came, so that its sender gets to read why it was refused.
    async fn read_away(&mut self, mut size: usize, refused: Problem) -> Problem {
        while size <= DRAIN
            && let Ok(Some(chunk)) = self.next().await
        {
            size += chunk.len();
        }
        refused
    }

    /// Waits for something that the sender cannot hurry, and extends its time.
    async fn kept_waiting_by<T>(&mut self, other: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let done = other.await;
        self.due += since.elapsed();
        done
    }
}

/// The org of data that all organizations share and read.
pub const PLATFORM: BoundOrg = BoundOrg::platform();
