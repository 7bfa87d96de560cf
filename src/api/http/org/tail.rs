//! The tail: new events of an org, as server-sent events that resume where they broke off.
//!
//! It follows the event log itself, so it is ahead of every projection. Each reader costs the broker one plain subscription,
//! and this process one chunk of messages.

use std::{convert::Infallible, sync::Arc, time::Duration};

use async_stream::stream;
use axum::{
    extract::State,
    http::{HeaderName, header, request::Parts},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt};
use metrics::gauge;
use orgstream_domain::Permission;
use orgstream_events::{Chain, Position};
use orgstream_stream::{Message, StreamError};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::events::after;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            ahead,
            extract::{OrgAccess, Query, header_text, info},
            guard::{Guard, closed},
        },
    },
    app::event_view::{EventSchema, shown_to},
    app::problem::Problem,
    auth::Access,
};

/// The keep-alive interval of a quiet stream.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The reconnection delay of a browser.
pub(crate) const RETRY: Duration = Duration::from_secs(2);
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where to begin.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TailQuery {
    /// Begin after this position (`<org>:<sequence>`, or the sequence alone); now without it. The header
    /// `Last-Event-ID`, which browsers send when they come back, says the same and comes first.
    #[param(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub from: Option<String>,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(follow), Policy::Org(Permission::ReadRecords), Shape::Tail, AuditTrail::ReadNotAudited)
}

/// Follow events
///
/// Server-sent events: `data` is one event as JSON, `id` the position after which to resume. A caller who may read the audit
/// log sees every event; others see the events of what they may read, without the request behind them. An event may come
/// twice around a broken connection, told by its `event_id`. The stream ends (`event: closed`) within a second of the credential
/// no longer allowing it, or when the server stops, and with `event: active_org_changed` within a second of the session being switched to
/// another organization. A stored message that cannot be read is passed over as `event: unreadable`.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/events/stream", operation_id = "follow_events", tag = "events",
    params(TailQuery),
    responses((status = 200, description = "Until one side closes", body = EventSchema, content_type = "text/event-stream")),
)]
pub async fn follow(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    Query(query): Query<TailQuery>,
    parts: Parts,
) -> Result<Response, Problem> {
    let OrgAccess { access, .. } = org;
    let guard = Arc::clone(info(&parts).guard().ok_or_else(|| Problem::internal("a tail has no guard"))?);
    let placement = app.log.placement(access.org()).await?.ok_or_else(Problem::not_found)?;
    let resume = after("Last-Event-ID", header_text(&parts.headers, &LAST_EVENT_ID)?, access.org())?;
    let from = after("from", query.from.as_deref(), access.org())?;
    let named = resume.map(|seq| ("Last-Event-ID", seq)).or(from.map(|seq| ("from", seq)));
    let after = match named {
        Some((name, seq)) => {
            ahead::is_reached(&app, access.org(), name, seq).await?;
            seq
        }
        None => app.log.shard_state(placement.shard).await?.last_seq,
    };
    let messages = app.log.tail(&placement, after.saturating_add(1));
    let events = follow_messages(guard, app, access, messages);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // A proxy that buffers an answer before it passes it on would delay a tail.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    Ok(response)
}

fn follow_messages(
    guard: Arc<Guard>,
    app: Arc<App>,
    mut access: Access,
    messages: impl Stream<Item = Result<Message, StreamError>> + Send,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream! {
        let _counted = Counted::new();
        let (org, stopping) = (access.org(), app.stopping.clone());
        let mut messages = std::pin::pin!(messages);
        yield Ok(Event::default().retry(RETRY).comment("following"));
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => {
                    yield Ok(closed("the server stops; come back"));
                    break;
                }
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        // A changed role shows more or less from here on. `guard` ends the tail of a caller that has lost
                        // the permission to read.
                        match guard.check().await {
                            Ok(now) => access = now,
                            Err(_) => break,
                        }
                        for event in events_of(&app, &access, &message) {
                            yield Ok(event);
                        }
                    }
                    Some(Err(error)) => {
                        tracing::error!(org.id = %org, error = %Chain(&error), "a tail cannot go on");
                        yield Ok(closed("the event log cannot be read"));
                        break;
                    }
                    None => break,
                },
            }
        }
    }
}

/// Returns the events of one commit. Only the last carries the position: a reader that has it has all of them.
fn events_of(app: &App, access: &Access, message: &Message) -> Vec<Event> {
    let org = access.org();
    let position = Position { org, seq: message.seq };
    let stored = match message.open(app.log.keys()) {
        Ok(stored) => stored,
        Err(error) => {
            tracing::warn!(org.id = %org, event.seq = message.seq, error = %Chain(&error), "a tail passes over a message");
            let data = json!({"position": position}).to_string();
            return vec![Event::default().event("unreadable").id(position.to_string()).data(data)];
        }
    };
    let shown = stored.commit.events.into_iter().filter_map(|event| shown_to(access, event, message.seq));
    let mut texts: Vec<String> = shown.filter_map(|view| serde_json::to_string(&view).ok()).collect();
    let last = texts.pop();
    let mut events: Vec<Event> = texts.into_iter().map(|text| Event::default().data(text)).collect();
    events.extend(last.map(|text| Event::default().id(position.to_string()).data(text)));
    events
}

/// One open tail.
pub(crate) struct Counted;

impl Counted {
    pub(crate) fn new() -> Self {
        gauge!("orgstream_http_tails").increment(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!("orgstream_http_tails").decrement(1);
    }
}
