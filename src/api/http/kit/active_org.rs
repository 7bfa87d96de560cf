//! The active organization of a session. A session acts in one at a time, and a caller waiting for an answer out of one gets
//! none once the session acts in another: a running read ends with `active_org_changed` when the session is switched, and so
//! does a stream.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, Method, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, sleep};

use super::{
    extract::{header_text, info, invalid_header},
    guard::while_allowed,
    looks::CHECK,
    middleware::RequestInfo,
};
use crate::{
    api::http::App,
    app::problem::Problem,
    auth::{AuthError, Principal},
};

/// The epoch of its session that a request is meant for; in an answer, the one that it is of.
const EPOCH: HeaderName = HeaderName::from_static("x-org-epoch");

/// Records the session of a request, and refuses one that is meant for another epoch of it.
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

/// Wraps every route: a read ends when its caller loses access, or acts elsewhere.
pub async fn watch(request: Request, next: Next) -> Response {
    // The result of a change must be reported even if its caller acts elsewhere by now: it was made where they meant it.
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let known = request.extensions().get::<RequestInfo>().cloned().unwrap_or_default();
    let began = Instant::now();
    let mut work = std::pin::pin!(next.run(request));
    let response = tokio::select! {
        biased;
        response = &mut work => response,
        lost = lost(&known), if reads => return Problem::from(lost).into_response(),
    };
    let Some(guard) = known.guard().filter(|_| reads && response.status().is_success()) else { return response };
    // A caller admitted a moment ago still has access, but for changes to the session in this process.
    let checked = if began.elapsed() > CHECK { guard.check().await.map(|_| ()) } else { guard.is_where_it_was().await };
    if let Err(lost) = checked {
        return Problem::from(lost).into_response();
    }
    let mut response = while_allowed(Arc::clone(guard), response);
    if let Some(session) = known.session() {
        response.headers_mut().insert(EPOCH, HeaderValue::from(session.epoch));
    }
    response
}

/// Returns why an admitted caller has lost access, once that is so.
async fn lost(known: &RequestInfo) -> AuthError {
    loop {
        sleep(CHECK).await;
        if let Some(guard) = known.guard() {
            return guard.lost().await;
        }
    }
}
