//! Replay: the history of one org in its own order, one JSON object per line, in bounded memory.
//!
//! It reads the audit log, where an org's events lie side by side, in short transactions: a slow reader holds nothing.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, stream};
use orgstream_domain::Permission;
use orgstream_events::{OrgId, Position};
use orgstream_projections::{BoundOrg, Database, audit as log};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT, AUDIT_READ, Policy},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        audit::log as audit,
        kit::{
            ahead,
            extract::Query,
            wait::{AuditLog, OrgView},
        },
    },
    app::event_view::EventSchema,
    app::problem::Problem,
};

/// Events in one transaction, and in memory; fewer where they are large.
const CHUNK: u16 = 500;

/// Which part of the history.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ReplayQuery {
    /// Begin after this position (`<org>:<sequence>`, or the sequence alone); at the beginning without it.
    #[param(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub from: Option<String>,
    /// At most so many events; all of them without it.
    #[param(minimum = 1)]
    pub limit: Option<u64>,
}

/// Returns the sequence after which to start.
pub fn after(name: &str, from: Option<&str>, org: OrgId) -> Result<Option<u64>, Problem> {
    let Some(text) = from else { return Ok(None) };
    if let Ok(seq) = text.parse() {
        return Ok(Some(seq));
    }
    let position: Position = text.parse().map_err(|rule: String| Problem::invalid_parameter(name, &rule))?;
    if position.org == org {
        Ok(Some(position.seq))
    } else {
        Err(Problem::invalid_parameter(name, "this is a position of another organization"))
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(replay), Policy::Org(Permission::ReadAudit), AUDIT, AUDIT_READ)
}

/// Replay events
///
/// The history of the organization in its own order, as NDJSON: one event per line, each with its `position` and its
/// `idx`. It ends where the audit log ended when the request came (`Projection-Position`); to go on later, give the last
/// `position` as `from`. Where a message of the history could not be taken in there is a `parking.parked` in its place, with
/// its sequence, its SHA-256 and the reason; what became of it says a `parking.settled`, behind which its events stand if it was
/// taken in after all. To see what happens from then on, follow the tail.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/events", operation_id = "replay_events", tag = "events",
    params(ReplayQuery),
    responses((status = 200, description = "One event per line", body = EventSchema, content_type = "application/x-ndjson")),
)]
pub async fn replay(
    State(app): State<Arc<App>>,
    mut org: OrgView<AuditLog>,
    Query(query): Query<ReplayQuery>,
) -> Result<Response, Problem> {
    if query.limit == Some(0) {
        return Err(Problem::invalid_parameter("limit", "must be 1 or more"));
    }
    let after = after("from", query.from.as_deref(), org.access.org())?.unwrap_or(0);
    if after > org.view.position.seq {
        // A newly appended event is not in the audit log yet, and it is no error to ask for what follows it.
        ahead::is_reached(&app, org.access.org(), "from", after).await?;
    }
    let end = log::size(&mut org.view.tx).await?;
    let begin = log::first_from(&mut org.view.tx, after.saturating_add(1)).await?.unwrap_or(end);
    let end = query.limit.map_or(end, |limit| end.min(begin.saturating_add(limit)));
    let positions = org.view.position_headers();
    let lines = lines(app.db.clone(), org.access.bound(), begin, end);
    // The transaction ends here; the stream has its own.
    drop(org);
    let mut response = Body::from_stream(lines).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.extend(positions);
    Ok(response)
}

fn lines(db: Database, org: BoundOrg, begin: u64, end: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    stream::try_unfold((db, begin), move |(db, next)| async move {
        if next >= end {
            return Ok(None);
        }
        let limit = u16::try_from(end - next).map_or(CHUNK, |left| left.min(CHUNK));
        let chunk = chunk(&db, org, next, limit).await;
        // The head of the answer is sent; the only signal left is to abort the connection.
        let (bytes, events) = chunk.map_err(|problem| std::io::Error::other(problem.detail))?;
        if events == 0 {
            return Err(std::io::Error::other("the audit log ends before its own size"));
        }
        Ok(Some((bytes, (db, next + events))))
    })
}

async fn chunk(db: &Database, org: BoundOrg, from: u64, limit: u16) -> Result<(Bytes, u64), Problem> {
    let rows = log::from_idx(&mut db.read(org).await?, from, limit).await?.entries;
    let mut bytes = Vec::with_capacity(rows.len() * 512);
    for row in &rows {
        serde_json::to_writer(&mut bytes, &audit::entry(row)?).map_err(Problem::internal)?;
        bytes.push(b'\n');
    }
    Ok((bytes.into(), rows.len() as u64))
}

#[cfg(test)]
mod tests {
    use orgstream_events::PLATFORM_ORG;

    use super::*;

    #[test]
    fn a_position_is_of_this_org_or_refused() {
        let mine = OrgId::fresh(1_700_000_000_000, [1; 10]);
        assert_eq!(after("from", None, mine).unwrap(), None);
        assert_eq!(after("from", Some("7"), mine).unwrap(), Some(7));
        assert_eq!(after("from", Some(&format!("{mine}:7")), mine).unwrap(), Some(7));
        for bad in [&format!("{PLATFORM_ORG}:7"), "", "-1", "x:7", "org_:7"] {
            assert_eq!(after("from", Some(bad), mine).unwrap_err().status, 400, "{bad}");
        }
    }
}
