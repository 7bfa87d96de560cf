//! An export: a stretch of the audit log in the format of the reader's tools, and the access event that records it.
//!
//! It is a stream and not a job: the log never changes, so an interrupted export can be resumed by any reader behind the
//! last line that arrived, and no state is kept but the access event in the log itself.

use std::{io, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use orgstream_domain::Permission;
use orgstream_events::{AccessEvent, AuditExported, Pipeline, Position};
use orgstream_projections::{
    BoundOrg, Database,
    audit::{self, AuditEntry, AuditFilter},
    checkpoints,
};
use orgstream_verifier::{CSV_HEAD, Entry};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{log::AuditQuery, proofs::payload};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT_EXPORTED, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            ahead,
            extract::{OrgAccess, Query, info},
            reply,
        },
    },
    app::problem::Problem,
};

/// The number of events that are read at a time; fewer where they are large.
const CHUNK: u16 = 500;

/// The form of an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// One JSON object per line.
    #[default]
    Jsonl,
    /// A table, in which nothing is a formula.
    Csv,
    /// OCSF 1.3 events, one per line.
    Ocsf,
}

impl ExportFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Ocsf => "ocsf",
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Jsonl | Self::Ocsf => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        })
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Ocsf => "ocsf.jsonl",
        }
    }

    /// Formats a line. An undecodable event is an empty line: its bundle says why.
    fn line(self, entry: &AuditEntry) -> String {
        let Ok(read) = Entry::read(entry.idx, &entry.sealed.header, &payload(entry)) else { return String::new() };
        match self {
            Self::Jsonl => read.jsonl(),
            Self::Csv => read.csv(),
            Self::Ocsf => read.ocsf(),
        }
    }
}

/// In which form.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// `jsonl`, `csv` or `ocsf`; `jsonl` without it.
    #[param(value_type = Option<String>, example = "csv")]
    #[serde(default)]
    pub format: ExportFormat,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(export), Policy::Org(Permission::ReadAudit), Shape::Plain, AUDIT_EXPORTED)
}

/// Export audit events
///
/// The oldest first, each with its place in the log, `idx`, up to where the log ended when the request came
/// (`Audit-Range: <first>-<behind the last>`). If it breaks off, go on with `from_idx` behind the last one that arrived. That it
/// was exported is in the log before the first line is sent. A message that the log could not take in has a `parking.parked` in
/// its place, with its sequence, its SHA-256 and the reason, and a `parking.settled` where its fate was decided. For evidence that stands alone take a bundle instead:
/// `orgstream audit export`.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/export", operation_id = "export_audit_events", tag = "audit",
    params(ExportQuery, AuditQuery),
    responses((status = 200, description = "One event per line", body = String, content_type = "application/x-ndjson")),
)]
pub async fn export(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    parts: Parts,
    Query(ExportQuery { format }): Query<ExportQuery>,
    Query(query): Query<AuditQuery>,
) -> Result<Response, Problem> {
    let bound = org.access.bound();
    let mut tx = app.db.read(bound).await?;
    let end = audit::size(&mut tx).await?;
    let parked = checkpoints::reach(&mut tx, Pipeline::Audit, 0).await?.parked;
    drop(tx);
    let filter = query.filter()?;
    let upto = filter.to_idx.map_or(end, |to| to.min(end));
    ahead::is_in_log("from_idx", filter.from_idx.unwrap_or(0), end)?;
    let from = filter.from_idx.unwrap_or(0).min(upto);
    let filter = AuditFilter { from_idx: Some(from), to_idx: Some(upto), ..filter };
    let whole = AuditFilter { from_idx: filter.from_idx, to_idx: filter.to_idx, ..AuditFilter::default() };
    let left_out = (filter != whole).then(|| parts.uri.query().unwrap_or_default().to_owned());
    let format_name = format.name().to_owned();
    let fact = AuditExported { format: format_name, from_idx: from, upto_idx: upto, filter: left_out };
    let (origin, access_log) = (info(&parts).origin(), app.gateway.access_log());
    access_log.write_down(bound, org.access.actor(), &origin, AccessEvent::AuditExported(fact)).await?;
    let mut response = Body::from_stream(lines(app.db.clone(), bound, format, filter)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, format.content_type());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    let name = format!("attachment; filename=\"audit-{}-{from}-{upto}.{}\"", bound.org(), format.extension());
    if let Some(seq) = parked {
        headers.extend([reply::position("projection-parked", Position { org: bound.org(), seq })]);
    }
    for (name, value) in [(header::CONTENT_DISPOSITION.as_str(), name), ("audit-range", format!("{from}-{upto}"))] {
        if let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// The progress: before the first line, behind an event, or at the end.
enum Place {
    Head,
    Behind(Option<u64>),
    End,
}

fn lines(
    db: Database,
    org: BoundOrg,
    format: ExportFormat,
    filter: AuditFilter,
) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let begin = if format == ExportFormat::Csv { Place::Head } else { Place::Behind(None) };
    stream::try_unfold((db, begin), move |(db, place)| {
        let filter = filter.clone();
        async move {
            let after = match place {
                Place::Head => return Ok(Some((Bytes::from(format!("{CSV_HEAD}\n")), (db, Place::Behind(None))))),
                Place::Behind(after) => after,
                Place::End => return Ok(None),
            };
            let read = async { audit::forward(&mut db.read(org).await?, &filter, after, CHUNK).await };
            // The head of the answer is sent; the only signal left is to abort the connection.
            let part = read.await.map_err(io::Error::other)?;
            let next = match part.entries.last() {
                Some(last) if part.more => Place::Behind(Some(last.idx)),
                _ => Place::End,
            };
            let text: String = part.entries.iter().flat_map(|row| [format.line(row), "\n".to_owned()]).collect();
            Ok(Some((Bytes::from(text), (db, next))))
        }
    })
}
