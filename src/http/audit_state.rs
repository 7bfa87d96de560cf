//! Time travel: an org's state as it was after any event, built from the audit log up to there.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use orgstream_events::Timestamp;
use orgstream_projections::{
    AsOf, Listing, Moment, Page, Placed, TenantTx, TooMany, api_keys, members, organizations, records,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    api_keys::ApiKeyView,
    extract::{OrgAccess, Query},
    members::MemberView,
    organizations::OrganizationView,
    records::RecordView,
};
use crate::problem::Problem;

/// The most events that are applied for one answer.
const MOST: u64 = 100_000;
/// Rows that are read at a time.
const ROWS: u16 = 500;
/// The longest answer.
const MAX_BYTES: usize = 64 << 20;

/// What is looked at.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// The organization itself.
    Organization,
    /// Members, those who left as well.
    Members,
    /// API keys.
    ApiKeys,
    /// Records, archived ones as well.
    #[default]
    Records,
}

/// Which moment of what.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StateQuery {
    /// After the event at this place of the audit log, or at this time.
    #[param(example = "17")]
    pub at: String,
    /// What to look at: `organization`, `members`, `api_keys` or `records`.
    #[param(value_type = Option<String>, example = "records")]
    pub projection: Option<Projection>,
}

/// See the organization as it was
///
/// NDJSON. The first line says which events the state is made of: `size` and `root` of the tree over them, `recorded_at` of
/// the last one, and `signed`, the size of the signed head that they are proven to be the beginning of (null while they are
/// not signed). Each line behind it is a row as its own route shows it. Nothing that is shown changes.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/audit/state", operation_id = "show_past_state", tag = "audit",
    params(StateQuery),
    responses((status = 200, description = "One row per line", body = String, content_type = "application/x-ndjson")),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    org: OrgAccess,
    Query(query): Query<StateQuery>,
) -> Result<Response, Problem> {
    let moment = match query.at.parse::<u64>() {
        Ok(idx) => Moment::Idx(idx),
        Err(_) => {
            let time = query.at.parse::<Timestamp>();
            let rule = "must be a place in the audit log, like 17, or a time, like 2026-03-01T12:00:00Z";
            Moment::Time(time.map_err(|_| Problem::invalid_parameter("at", rule))?)
        }
    };
    let state = match app.db.as_of(org.access.bound(), moment, MOST, rand::random()).await? {
        Ok(state) => state,
        Err(TooMany(events)) => {
            return Err(Problem::too_large(format!(
                "{events} events are more than {MOST}, the most that one answer takes"
            )));
        }
    };
    let bytes = render(state, query.projection.unwrap_or_default()).await?;
    let mut response = Body::from(bytes).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// The first line.
#[derive(Serialize)]
struct Beginning {
    size: u64,
    root: String,
    recorded_at: Option<Timestamp>,
    signed: Option<u64>,
}

async fn render(state: AsOf, projection: Projection) -> Result<Vec<u8>, Problem> {
    let AsOf { mut tx, head, recorded_at, signed } = state;
    let (mut lines, org) = (Lines(Vec::new()), tx.org());
    let signed = signed.map(|signed| signed.head.size);
    lines.push(&Beginning { size: head.size, root: head.root.to_string(), recorded_at, signed })?;
    match projection {
        Projection::Organization => {
            if let Some(organization) = organizations::get(&mut tx).await? {
                lines.push(&OrganizationView::from(organization))?;
            }
        }
        Projection::Members => {
            pages(
                &mut lines,
                &mut tx,
                async |tx, page| members::list(tx, true, None, page, ROWS).await,
                |member| MemberView::new(org, member),
            )
            .await?;
        }
        Projection::ApiKeys => {
            pages(
                &mut lines,
                &mut tx,
                async |tx, page| api_keys::as_events_say(tx, page, ROWS).await,
                ApiKeyView::from,
            )
            .await?;
        }
        Projection::Records => {
            let list = async |tx: &mut TenantTx, page: &Page<u64>| records::list(tx, None, true, page, ROWS).await;
            pages(&mut lines, &mut tx, list, RecordView::from).await?;
        }
    }
    Ok(lines.0)
}

/// All pages of a listing.
async fn pages<T: Placed, V: Serialize>(
    lines: &mut Lines,
    tx: &mut TenantTx,
    list: impl AsyncFn(&mut TenantTx, &Page<T::Place>) -> Result<Listing<T>, orgstream_projections::DbError>,
    view: impl Fn(T) -> V,
) -> Result<(), Problem> {
    let mut page = Page::First;
    loop {
        let Listing { rows, more } = list(tx, &page).await?;
        let last = rows.last().map(Placed::place);
        for row in rows {
            lines.push(&view(row))?;
        }
        match last {
            Some(last) if more => page = Page::After(last),
            _ => return Ok(()),
        }
    }
}

struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, row: &impl Serialize) -> Result<(), Problem> {
        serde_json::to_writer(&mut self.0, row).map_err(|error| Problem::internal(&error))?;
        self.0.push(b'\n');
        if self.0.len() > MAX_BYTES {
            return Err(Problem::too_large(format!("the rows are more than {MAX_BYTES} bytes")));
        }
        Ok(())
    }
}
