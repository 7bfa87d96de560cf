//! Read-your-writes: `Min-Position` says how far the read models must be, `Prefer: wait=N` how long to wait.

use std::{marker::PhantomData, ops::Deref, sync::Arc, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use orgstream_events::{Pipeline, Position};
use orgstream_projections::{BoundOrg, TenantTx, checkpoints};
use serde::Serialize;

use super::{
    ahead, conditional,
    extract::{OrgAccess, PLATFORM, header_text, invalid_header},
    reply,
};
use crate::{api::http::App, app::problem::Problem, auth::Access};

/// The maximum wait of a read.
pub const MAX_WAIT: Duration = Duration::from_secs(30);
/// The position that the rows must have reached.
pub const MIN_POSITION: HeaderName = HeaderName::from_static("min-position");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Returns the caller's maximum wait: `Prefer: wait=N`, in seconds. Other preferences are not ours.
pub fn patience(headers: &HeaderMap) -> Result<Duration, Problem> {
    let preferences = headers.get_all(PREFER).into_iter().filter_map(|value| value.to_str().ok());
    let wait = preferences
        .flat_map(|value| value.split([',', ';']))
        .map(|preference| preference.split_once('=').unwrap_or((preference, "")))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"));
    let Some((_, seconds)) = wait else { return Ok(Duration::ZERO) };
    let digits = Some(seconds.trim().trim_matches('"'))
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    let rule = "wait takes a whole number of seconds, like wait=5";
    let digits = digits.ok_or_else(|| invalid_header("Prefer", rule))?;
    // A value with more digits than the type holds exceeds the maximum, too.
    Ok(digits.parse().map_or(MAX_WAIT, Duration::from_secs).min(MAX_WAIT))
}

/// The pipeline whose tables are read.
pub trait Source: Send + Sync {
    /// The pipeline.
    const PIPELINE: Pipeline;
}

/// The tables behind the queries.
pub struct ReadModels;

impl Source for ReadModels {
    const PIPELINE: Pipeline = Pipeline::ReadModels;
}

/// The audit log.
pub struct AuditLog;

impl Source for AuditLog {
    const PIPELINE: Pipeline = Pipeline::Audit;
}

/// A consistent view of one org's rows, at least as new as the caller asked for.
pub struct View {
    /// The rows.
    pub tx: TenantTx,
    seen: Seen,
}

/// What an answer says of the view that it was made from.
pub struct Seen {
    /// The position of the rows.
    pub position: Position,
    /// The first message before it that could not be applied, so that they lack it.
    parked: Option<u64>,
    known: Option<HeaderValue>,
}

impl Deref for View {
    type Target = Seen;

    fn deref(&self) -> &Seen {
        &self.seen
    }
}

impl View {
    /// Waits according to the headers, and opens the view.
    pub async fn open(app: &App, org: BoundOrg, pipeline: Pipeline, headers: &HeaderMap) -> Result<Self, Problem> {
        let wanted = header_text(headers, &MIN_POSITION)?.map(str::parse::<Position>);
        let wanted = wanted.transpose().map_err(|rule| invalid_header("Min-Position", &rule))?;
        if wanted.is_some_and(|wanted| wanted.org != org.org()) {
            return Err(invalid_header("Min-Position", "this is a position of another organization"));
        }
        let wanted = wanted.map_or(0, |wanted| wanted.seq);
        let (known, patience) = (headers.get(header::IF_NONE_MATCH).cloned(), patience(headers)?);
        let mut tx = app.db.read(org).await?;
        let mut reach = checkpoints::reach(&mut tx, pipeline, wanted).await?;
        if reach.seq < wanted {
            drop(tx);
            ahead::is_reached(app, org.org(), "Min-Position", wanted).await?;
            if patience.is_zero() || !app.gateway.wait_for(org, pipeline, wanted, patience).await? {
                return Err(lagging(pipeline, wanted, reach.seq));
            }
            tx = app.db.read(org).await?;
            reach = checkpoints::reach(&mut tx, pipeline, wanted).await?;
        }
        if reach.lacks_it {
            return Err(parked(pipeline, wanted));
        }
        let position = Position { org: org.org(), seq: reach.seq };
        Ok(Self { tx, seen: Seen { position, parked: reach.parked, known } })
    }

    /// Waits according to the headers, where something else of the org is read before the view is opened.
    pub async fn wait(app: &App, org: BoundOrg, pipeline: Pipeline, headers: &HeaderMap) -> Result<(), Problem> {
        if headers.contains_key(&MIN_POSITION) {
            Self::open(app, org, pipeline, headers).await?;
        }
        Ok(())
    }

    /// Gives the connection back.
    pub fn release(self) -> Seen {
        self.seen
    }
}

impl Seen {
    /// Returns the answer with one resource at a version.
    pub fn one(&self, version: u64, thing: &impl Serialize) -> Response {
        self.answer(&conditional::version_tag(version), reply::json_bytes(thing))
    }

    /// Returns the answer with a listing.
    pub fn listing(&self, rows: &impl Serialize) -> Response {
        let body = reply::json_bytes(rows);
        let tag = body.as_ref().map(|body| conditional::body_tag(body)).unwrap_or_default();
        self.answer(&tag, body)
    }

    /// Returns the headers with the rows' position, and with the message that they lack before it, if they do.
    pub fn position_headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let position = Position { org: self.position.org, seq: self.parked.unwrap_or_default() };
        let parked = self.parked.map(|_| reply::position("projection-parked", position));
        std::iter::once(reply::position("projection-position", self.position)).chain(parked)
    }

    /// Returns an answer of another type than JSON.
    pub fn of_type(&self, content_type: HeaderValue, body: Vec<u8>) -> Response {
        let mut response = self.answer(&conditional::body_tag(&body), Ok(body));
        if response.status() == StatusCode::OK {
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        }
        response
    }

    fn answer(&self, tag: &str, body: Result<Vec<u8>, Problem>) -> Response {
        let body = match body {
            Ok(body) => body,
            Err(problem) => return problem.into_response(),
        };
        let mut response = conditional::answer(self.known.as_ref(), tag, body);
        response.headers_mut().extend(self.position_headers());
        response
    }
}

fn lagging(pipeline: Pipeline, wanted: u64, seq: u64) -> Problem {
    let detail = format!(
        "the {pipeline} pipeline is at {seq} and not yet at {wanted}: try again, or let the read wait with Prefer: wait=5"
    );
    let problem = Problem::new(503, "projection_lagging", "Not there yet", detail);
    Problem { retry_after: Some(Duration::from_secs(1)), ..problem }
}

/// Returns the problem of a requested message that is behind the checkpoint, and yet was not applied.
fn parked(pipeline: Pipeline, wanted: u64) -> Problem {
    let detail = format!(
        "the {pipeline} pipeline could not apply message {wanted}, or an earlier one of the same thing, and has parked it: what \
         you read would lack it until the platform's operator has decided about it. Waiting does not help; without \
         Min-Position the read goes on, and Projection-Parked names the first message that it lacks"
    );
    Problem::new(409, "event_parked", "Not applied", detail)
}

/// A view of the organization of the path.
pub struct OrgView<S> {
    /// The access.
    pub access: Access,
    /// The view.
    pub view: View,
    source: PhantomData<S>,
}

impl<S: Source> FromRequestParts<Arc<App>> for OrgView<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let OrgAccess { access, .. } = OrgAccess::from_request_parts(parts, app).await?;
        let view = View::open(app, access.bound(), S::PIPELINE, &parts.headers).await?;
        Ok(Self { access, view, source: PhantomData })
    }
}

/// A view of data that all organizations share.
pub struct PlatformView(pub View);

impl FromRequestParts<Arc<App>> for PlatformView {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        View::open(app, PLATFORM, Pipeline::ReadModels, &parts.headers).await.map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(text: &'static str) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert(PREFER, HeaderValue::from_static(text));
        patience(&headers).unwrap().as_secs()
    }

    #[test]
    fn patience_is_read_from_prefer_and_bounded() {
        assert_eq!(waits("wait=5"), 5);
        assert_eq!(waits("respond-async, wait = 10"), 10);
        assert_eq!(waits("Wait=3; foo=bar"), 3);
        assert_eq!(waits("wait=600"), 30);
        assert_eq!(waits("wait=99999999999999999999999"), 30);
        for none in ["return=minimal", "await=soon", ""] {
            assert_eq!(waits(none), 0, "{none}");
        }
        assert_eq!(patience(&HeaderMap::new()).unwrap(), Duration::ZERO);
        for bad in ["wait", "wait=", "wait=soon", "wait=-1", "wait=1.5", "respond-async, wait=x"] {
            let mut headers = HeaderMap::new();
            headers.insert(PREFER, HeaderValue::from_static(bad));
            assert_eq!(patience(&headers).unwrap_err().code, "invalid_header", "{bad}");
        }
    }
}
