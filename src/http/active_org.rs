//! A session acts in one organization at a time, and whoever waits for an answer out of one gets none once it acts in
//! another: a read that is under way when the session is switched ends with `active_org_changed`, and so does what streams.

use std::{sync::Arc, time::Duration};

use async_stream::stream;
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    App,
    extract::{header_text, info, invalid_header},
    middleware::RequestInfo,
    reply,
};
use crate::{
    auth::{AuthError, Principal, session::ActiveSession},
    problem::Problem,
};

/// How often a session is looked at while an answer is under way.
pub const CHECK: Duration = Duration::from_millis(400);
/// Which epoch of its session a request is meant for; in an answer, which one it is of.
const EPOCH: HeaderName = HeaderName::from_static("x-org-epoch");
const NDJSON: &str = "application/x-ndjson";

/// Notes the session behind a request, and refuses one that is meant for another epoch of it.
pub async fn note(app: &App, parts: &Parts, principal: &mut Principal) -> Result<(), Problem> {
    let Principal::User { session: Some(session), .. } = principal else { return Ok(()) };
    if let Some(text) = header_text(&parts.headers, &EPOCH)? {
        let epoch =
            text.parse().map_err(|_| invalid_header("X-Org-Epoch", "must be the `epoch` of GET /v1/session"))?;
        *session = app.auth.sessions().expect_epoch(session, epoch).await?;
    }
    info(parts).came_with(session.clone());
    Ok(())
}

/// Around every route: what reads for a session ends when the session is switched.
pub async fn watch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // Whether a change was made must be said even if its maker acts elsewhere by now: it was made where they meant it.
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    // What is about the session itself, or about the person, is the same wherever they act.
    let of_org = request.uri().path().starts_with("/v1/organizations/");
    let known = request.extensions().get::<RequestInfo>().cloned().unwrap_or_default();
    let mut work = std::pin::pin!(next.run(request));
    let mut checks = interval_at(Instant::now() + CHECK, CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let response = loop {
        tokio::select! {
            biased;
            response = &mut work => break response,
            _ = checks.tick(), if reads && of_org => {
                if let Some(session) = known.session()
                    && let Some(changed) = changed(&app, session).await
                {
                    return changed.into_response();
                }
            }
        }
    };
    let Some(session) = known.session().filter(|_| reads && of_org && response.status().is_success()) else {
        return response;
    };
    if let Some(changed) = changed(&app, session).await {
        return changed.into_response();
    }
    let streams = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == NDJSON);
    let mut response = if streams { until_switched(app, session.clone(), response) } else { response };
    response.headers_mut().insert(EPOCH, HeaderValue::from(session.epoch));
    response
}

async fn changed(app: &App, session: &ActiveSession) -> Option<Problem> {
    let now = app.auth.sessions().now(session).await.ok().filter(|now| now.epoch != session.epoch)?;
    Some(AuthError::ActiveOrgChanged { epoch: now.epoch }.into())
}

/// The lines of a long answer until the session is switched; then one line that says so, and the answer breaks off.
fn until_switched(app: Arc<App>, session: ActiveSession, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let lines = stream! {
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            if let Some(problem) = changed(&app, &session).await {
                let mut line = reply::json_bytes(&problem).unwrap_or_default();
                line.push(b'\n');
                yield Ok(Bytes::from(line));
                yield Err(axum::Error::new(std::io::Error::other(problem.detail)));
                break;
            }
            yield chunk;
        }
    };
    Response::from_parts(parts, Body::from_stream(lines))
}
