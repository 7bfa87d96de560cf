//! The proofs of the audit log, for verification without trust: signed heads, tiles, proofs, in the text formats of C2SP.
//!
//! Everything here is read from what the signing process stored. This process holds no key and can prove nothing that was
//! not signed.

use std::{io, str::FromStr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use orgstream_domain::Permission;
use orgstream_events::{EventId, cause};
use orgstream_projections::{
    BoundOrg, Database, DbError,
    audit::{self, AuditCheckpoint, AuditEntry},
};
use orgstream_transparency::{AddCheckpoint, Evidence, LogKey, Plan, TILE_WIDTH, Tile, leaf_hash, verify_inclusion};
use orgstream_verifier::{Payload, encode_entries, encode_payloads};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT, AUDIT_READ, AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Item, OrgAccess, Query},
            page::{Page, PageQuery},
            reply,
            wait::{self, AuditLog, OrgView},
        },
    },
    app::problem::Problem,
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// A full tile never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

/// Which checkpoint.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CheckpointQuery {
    /// The one of exactly so many events.
    #[param(example = 256)]
    pub size: Option<u64>,
    /// One of so many events or more. If there is none yet, one is made while you wait (`Prefer: wait=10`).
    #[param(example = 300)]
    pub at_least: Option<u64>,
}

/// A signed head, as listings show it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckpointView {
    /// Number of events that the head covers.
    #[schema(example = 256)]
    pub size: u64,
    /// Root hash of the tree, base64.
    pub root: String,
    /// Time of signing by this system's clock, RFC 3339 in UTC. Witnesses state their own in their signatures.
    #[schema(value_type = String, format = DateTime)]
    pub made_at: orgstream_events::Timestamp,
    /// Number of witnesses that signed it.
    pub witnesses: usize,
    /// Signed note (C2SP checkpoint) to keep.
    pub note: String,
}

impl From<AuditCheckpoint> for CheckpointView {
    fn from(checkpoint: AuditCheckpoint) -> Self {
        let AuditCheckpoint { head, made_at, note } = checkpoint;
        let origin = note.text().lines().next().unwrap_or_default();
        let witnesses = note.signatures().iter().filter(|line| line.name.as_str() != origin).count();
        Self { size: head.size, root: head.root.to_string(), made_at, witnesses, note: note.to_string() }
    }
}

fn no_checkpoint() -> Problem {
    let detail =
        "There is no such checkpoint. The newest is at audit/checkpoint, all of them are at audit/checkpoints.";
    Problem::new(404, "not_found", "Not found", detail)
}

fn not_signed_yet() -> Problem {
    let detail = "The log is not signed that far yet: try again, or ask for it with audit/checkpoint?at_least=SIZE and \
                  Prefer: wait=10.";
    let problem = Problem::new(503, "projection_lagging", "Not there yet", detail);
    Problem { retry_after: Some(Duration::from_secs(1)), ..problem }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(event_proof), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
        .route(routes!(checkpoint), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
        .route(routes!(checkpoints), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
        .route(routes!(policy), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
        .route(routes!(handovers), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
        .route(routes!(tile), Policy::Org(Permission::ReadAudit), Shape::Plain, AUDIT_READ)
        .route(routes!(consistency), Policy::Org(Permission::ReadAudit), AUDIT, AuditTrail::ReadNotAudited)
}

/// Get the signed head of the audit log
///
/// A C2SP checkpoint: the log's name, how many events it has, the root over them, the signatures of the log and of
/// witnesses. Keep it: no later log can contradict it without being found out.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/checkpoint", operation_id = "get_audit_checkpoint", tag = "audit",
    params(CheckpointQuery), responses((status = 200, description = "A signed note", body = String, content_type = "text/plain")),
)]
pub async fn checkpoint(
    State(app): State<Arc<App>>,
    mut org: OrgView<AuditLog>,
    Query(query): Query<CheckpointQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = match (query.size, query.at_least) {
        (Some(_), Some(_)) => return Err(Problem::invalid_parameter("size", "excludes at_least")),
        (Some(size), None) => audit::checkpoint_at(&mut org.view.tx, size).await?,
        (None, None) => audit::newest_checkpoint(&mut org.view.tx).await?,
        (None, Some(wanted)) => {
            let newest = audit::newest_checkpoint(&mut org.view.tx).await?;
            match newest.filter(|newest| newest.head.size >= wanted) {
                Some(newest) => Some(newest),
                None => Some(wait_for(&app, &org, wanted, wait::patience(&headers)?).await?),
            }
        }
    };
    let found = found.ok_or_else(no_checkpoint)?;
    Ok(org.view.text(found.note.to_string()))
}

/// Requests a checkpoint and waits for it.
async fn wait_for(
    app: &App,
    org: &OrgView<AuditLog>,
    wanted: u64,
    patience: Duration,
) -> Result<AuditCheckpoint, Problem> {
    let mut tx = app.db.read(org.access.bound()).await?;
    if audit::size(&mut tx).await? < wanted {
        return Err(Problem::invalid_parameter("at_least", "the audit log does not have that many events"));
    }
    audit::ask_for_checkpoint(tx).await?;
    if !app.gateway.wait_for_signature(org.access.bound(), wanted, patience).await? {
        return Err(not_signed_yet());
    }
    let newest = audit::newest_checkpoint(&mut app.db.read(org.access.bound()).await?).await?;
    newest.ok_or_else(not_signed_yet)
}

/// List signed heads
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/checkpoints", operation_id = "list_audit_checkpoints", tag = "audit",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<CheckpointView>)),
)]
pub async fn checkpoints(
    State(app): State<Arc<App>>,
    mut org: OrgView<AuditLog>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "audit_checkpoints", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = audit::checkpoints(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, CheckpointView::from)))
}

/// Get the operator's policy of keys
///
/// The log's public key and the witnesses that it asks, as a C2SP policy. Advice: an auditor pins keys that came from
/// elsewhere.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/policy", operation_id = "get_audit_policy", tag = "audit",
    responses((status = 200, description = "A policy", body = String, content_type = "text/plain")),
)]
pub async fn policy(mut org: OrgView<AuditLog>) -> Result<Response, Problem> {
    let policy = audit::policy(&mut org.view.tx).await?.ok_or_else(Problem::not_found)?;
    let key: LogKey = policy.vkey.parse().map_err(Problem::internal)?;
    let origin = format!("{}/{}", key.name(), org.access.org());
    let key = key.named(origin.parse().map_err(Problem::internal)?);
    Ok(org.view.text(format!("log {key}\n{}", policy.witnesses)))
}

/// List hand-overs of the log's key
///
/// Notes that the old key and the new one signed: a holder of an old key can follow.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/handovers", operation_id = "list_audit_handovers", tag = "audit",
    responses((status = 200, description = "Signed notes, the oldest first", body = HandOvers)),
)]
pub async fn handovers(mut org: OrgView<AuditLog>) -> Result<Response, Problem> {
    let data = audit::handovers(&mut org.view.tx).await?;
    Ok(org.view.listing(&HandOvers { data }))
}

/// Notes by which keys handed over.
#[derive(Debug, Serialize, ToSchema)]
pub struct HandOvers {
    /// Signed notes, oldest first: one for each replaced key.
    pub data: Vec<String>,
}

/// One file of the log's static part.
#[derive(Debug, Clone, Copy)]
pub enum TileFile {
    /// Hashes of the tree.
    Hashes(Tile),
    /// The headers below a tile of leaves.
    Entries(Tile),
    /// The payloads of those headers.
    Payloads(Tile),
}

impl TileFile {
    fn tile(self) -> Tile {
        match self {
            Self::Hashes(tile) | Self::Entries(tile) | Self::Payloads(tile) => tile,
        }
    }
}

impl FromStr for TileFile {
    type Err = orgstream_transparency::FormatError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let leaves = |place: &str| format!("tile/0/{place}").parse();
        if let Some(place) = path.strip_prefix("entries/") {
            return leaves(place).map(Self::Entries);
        }
        if let Some(place) = path.strip_prefix("payloads/") {
            return leaves(place).map(Self::Payloads);
        }
        format!("tile/{path}").parse().map(Self::Hashes)
    }
}

/// Get a tile of the audit log
///
/// As C2SP tlog-tiles has it: `<level>/<index>` are 256 hashes of the tree, `entries/<index>` the headers of 256 events, each
/// behind two bytes of length; `.p/<width>` asks for the first so many. `payloads/<index>` are what the headers commit to: for
/// each event a letter (`P` here, `W` withheld, `E` erased), four bytes of length, and the bytes.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/tile/{*path}", operation_id = "get_audit_tile", tag = "audit",
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "application/octet-stream")),
)]
pub async fn tile(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    Item(file): Item<TileFile>,
) -> Result<Response, Problem> {
    let bound = org.access.bound();
    let mut tx = app.db.read(bound).await?;
    let tile = file.tile();
    let body = if let TileFile::Hashes(tile) = file {
        let hashes = audit::tile(&mut tx, tile).await?.ok_or_else(Problem::not_found)?;
        Body::from(hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>())
    } else {
        let first = tile.index().saturating_mul(TILE_WIDTH.into());
        let end = first.saturating_add(tile.width().into());
        if audit::size(&mut tx).await? < end {
            return Err(Problem::not_found());
        }
        Body::from_stream(tile_of_events(app.db.clone(), bound, file, (first, end)))
    };
    drop(tx);
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, BYTES);
    let keep = if tile.width() == TILE_WIDTH { FOR_EVER } else { reply::OWN };
    response.headers_mut().insert(header::CACHE_CONTROL, keep);
    Ok(response)
}

/// Streams the bytes of a tile's events, a page of the log at a time.
fn tile_of_events(
    db: Database,
    org: BoundOrg,
    file: TileFile,
    (first, end): (u64, u64),
) -> impl Stream<Item = Result<Bytes, io::Error>> {
    stream::try_unfold((db, first), move |(db, next)| async move {
        let left = u16::try_from(end.saturating_sub(next)).unwrap_or(TILE_WIDTH);
        if left == 0 {
            return Ok(None);
        }
        let read = async { audit::from_idx(&mut db.read(org).await?, next, left).await };
        // The head of the answer is sent; the only signal left is to abort the connection.
        let rows = read.await.map_err(io::Error::other)?.entries;
        if rows.is_empty() {
            return Err(io::Error::other("the audit log ends before its own size"));
        }
        let bytes = match file {
            TileFile::Payloads(_) => Some(encode_payloads(&rows.iter().map(payload).collect::<Vec<Payload>>())),
            TileFile::Hashes(_) | TileFile::Entries(_) => encode_entries(rows.iter().map(|row| &*row.sealed.header)),
        };
        let bytes =
            bytes.ok_or_else(|| io::Error::other("a header is longer than a bundle of entries has room for"))?;
        Ok(Some((Bytes::from(bytes), (db, next + rows.len() as u64))))
    })
}

/// Returns the payload as far as it may be disclosed. The content of an undecodable event is unknown.
pub(crate) fn payload(entry: &AuditEntry) -> Payload {
    match entry.sealed.read_header() {
        Ok(header) if !orgstream_events::is_inward(&header.event_type) => Payload::Here(entry.sealed.payload.to_vec()),
        _ => Payload::Withheld,
    }
}

/// Between which heads.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ConsistencyQuery {
    /// The size of the head that you hold.
    #[param(example = 256)]
    pub from: u64,
    /// The size of a later checkpoint; the newest without it.
    #[param(example = 512)]
    pub to: Option<u64>,
}

/// Prove consistency of two heads
///
/// The proof that the first `from` events of the checkpoint `to` are those of the head that you hold, as the body of a C2SP
/// `add-checkpoint` request: `old <from>`, the hashes, and the checkpoint that they lead to.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/consistency", operation_id = "prove_audit_consistency", tag = "audit",
    params(ConsistencyQuery),
    responses((status = 200, description = "The proof", body = String, content_type = "text/plain")),
)]
pub async fn consistency(
    mut org: OrgView<AuditLog>,
    Query(query): Query<ConsistencyQuery>,
) -> Result<Response, Problem> {
    let tx = &mut org.view.tx;
    let to = match query.to {
        Some(size) => audit::checkpoint_at(tx, size).await?,
        None => audit::newest_checkpoint(tx).await?,
    };
    let to = to.ok_or_else(no_checkpoint)?;
    let plan = Plan::consistency(query.from, to.head.size);
    let plan = plan.map_err(|error| Problem::invalid_parameter("from", error))?;
    let proof = audit::prove(tx, &plan).await?;
    let text = AddCheckpoint::new(query.from, proof, to.note).map_err(Problem::internal)?;
    Ok(org.view.text(text.to_string()))
}

/// Prove one event
///
/// A C2SP tlog-proof: the event's place in the log, the hashes from it to the root, and the signed head. With the event's
/// header bytes and the log's key it is evidence offline and for ever.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/events/{event}/proof", operation_id = "prove_audit_event", tag = "audit",
    responses((status = 200, description = "The proof", body = String, content_type = "text/plain")),
)]
pub async fn event_proof(mut org: OrgView<AuditLog>, Item(id): Item<EventId>) -> Result<Response, Problem> {
    let tx = &mut org.view.tx;
    let entry = audit::get(tx, id).await?.ok_or_else(Problem::not_found)?;
    let index = entry.idx;
    let signed = audit::checkpoint_with(tx, index).await?.ok_or_else(not_signed_yet)?;
    let plan = Plan::inclusion(index, signed.head.size).map_err(Problem::internal)?;
    let proof = audit::prove(tx, &plan).await?;
    // The reader of a proof must not be the first to find out that it proves something else.
    if let Err(error) = verify_inclusion(leaf_hash(&entry.sealed.header), index, signed.head, &proof) {
        let what = format!("event {index} is not in the tree of the signed head of {} events", signed.head.size);
        return Err(DbError::Altered { org: tx.org(), what, cause: Some(cause(error)) }.into());
    }
    Ok(org.view.text(Evidence { extra: None, index, proof, checkpoint: signed.note }.to_string()))
}

impl crate::api::http::kit::wait::View {
    /// Returns a text of its own format.
    fn text(&self, text: String) -> Response {
        self.of_type(TEXT, text.into_bytes())
    }
}
