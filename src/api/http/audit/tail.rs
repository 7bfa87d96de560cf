//! The tail of the audit log, for external collectors: server-sent events that are numbered without gaps, so the collector
//! can tell that it has missed nothing.
//!
//! It follows the table and not the stream: its entries are numbered, and about to be signed.

use std::{convert::Infallible, sync::Arc, time::Duration};

use async_stream::stream;
use axum::{
    extract::State,
    http::{header, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::Stream;
use orgstream_domain::Permission;
use orgstream_projections::{BoundOrg, audit as log};
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};
use utoipa::IntoParams;

use super::feed::{Newest, Window};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT_READ, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            ahead,
            extract::{OrgAccess, Query, header_text, invalid_header},
            guard::closed,
        },
        org::tail::{Counted, KEEP_ALIVE, LAST_EVENT_ID, RETRY},
    },
    app::event_view::EventSchema,
    app::problem::Problem,
};

/// The pause before a failed read is retried.
const AGAIN: Duration = Duration::from_millis(250);

/// Where to begin.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditTailQuery {
    /// Begin at this place of the log; at its end without it. The header `Last-Event-ID` (the place of the last event that
    /// you have) comes first.
    #[param(example = 256)]
    pub from_idx: Option<u64>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(follow), Policy::Org(Permission::ReadAudit), Shape::Tail, AUDIT_READ)
}

/// Follow the audit log
///
/// Server-sent events: `data` is one event as JSON, `id` its place in the log, `idx`. Places have no gaps, so a reader that has seen
/// 0 to N has seen everything up to N. The stream ends (`event: closed`) within a second of the credential no longer allowing it,
/// or when the server stops, and with `event: active_org_changed` when the session is switched to another organization.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/stream", operation_id = "follow_audit_events", tag = "audit",
    params(AuditTailQuery),
    responses((status = 200, description = "Until one side closes", body = EventSchema, content_type = "text/event-stream")),
)]
pub async fn follow(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    Query(query): Query<AuditTailQuery>,
    parts: Parts,
) -> Result<Response, Problem> {
    let bound = org.access.bound();
    let last = header_text(&parts.headers, &LAST_EVENT_ID)?.map(str::parse::<u64>);
    let last = last.transpose().map_err(|_| invalid_header("Last-Event-ID", "must be a place in the audit log"))?;
    let last = last.map(|last| ("Last-Event-ID", last.saturating_add(1)));
    let size = log::size(&mut app.db.read(bound).await?).await?;
    let next = match last.or(query.from_idx.map(|idx| ("from_idx", idx))) {
        Some((name, next)) => {
            ahead::is_in_log(name, next, size)?;
            next
        }
        None => size,
    };
    let window = app.audit_feed.follow(bound, size);
    let events = follow_log(app, bound, window, next);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // A proxy that buffers an answer before it passes it on would delay a tail.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    Ok(response)
}

fn follow_log(
    app: Arc<App>,
    org: BoundOrg,
    mut window: watch::Receiver<Window>,
    mut next: u64,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream! {
        let _counted = Counted::new();
        let stopping = app.stopping.clone();
        yield Ok(Event::default().retry(RETRY).comment("following"));
        loop {
            let newest = window.borrow_and_update().from(next);
            let texts = match newest {
                Newest::Entries(texts) => Ok(texts),
                Newest::Gone => app.audit_feed.read(org, next).await,
                Newest::Ended(problem) => Err(problem),
            };
            let has_some = match texts {
                Ok(texts) => {
                    let has_some = !texts.is_empty();
                    for text in texts {
                        yield Ok(Event::default().id(next.to_string()).data(text));
                        next += 1;
                    }
                    has_some
                }
                // The tables may be unavailable for a while; an entry that cannot be shown at all is the end.
                Err(problem) if problem.status == 503 => {
                    sleep(AGAIN).await;
                    true
                }
                Err(problem) => {
                    yield Ok(closed(&problem.detail));
                    break;
                }
            };
            if stopping.is_cancelled() {
                yield Ok(closed("the server stops; come back"));
                break;
            }
            if !has_some {
                tokio::select! {
                    () = stopping.cancelled() => {}
                    changed = window.changed() => if changed.is_err() {
                        yield Ok(closed("the audit log is not followed any more; come back"));
                        break;
                    },
                }
            }
        }
    }
}
