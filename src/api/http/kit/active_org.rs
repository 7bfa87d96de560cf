//! A session acts in one organization at a time, and whoever waits for an answer out of one gets none once it acts in
//! another: a read that is under way when the session is switched ends with `active_org_changed`, and so does what streams.

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

/// Which epoch of its session a request is meant for; in an answer, which one it is of.
const EPOCH: HeaderName = HeaderName::from_static("x-org-epoch");

/// Stores the session behind a request, and refuses one that is meant for another epoch of it.
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

/// Around every route: what reads ends when its reader may not read it any more, or acts elsewhere.
pub async fn watch(request: Request, next: Next) -> Response {
    // Whether a change was made must be said even if its maker acts elsewhere by now: it was made where they meant it.
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
    // Who was let in a moment ago may still be here, but for what happened to their session in this process.
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

/// Why whoever is let in may not be answered any more, once that is so.
async fn lost(known: &RequestInfo) -> AuthError {
    loop {
        sleep(CHECK).await;
        if let Some(guard) = known.guard() {
            return guard.lost().await;
        }
    }
}
