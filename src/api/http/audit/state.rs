//! Time travel: an org's state after any event, built from the audit log up to there.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use orgstream_domain::Permission;
use orgstream_events::{Position, Timestamp};
use orgstream_projections::{
    AsOf, BoundOrg, Listing, Moment, Page, Placed, ReadModel, TenantTx, TooMany, api_keys,
    audit::{self, KeysOf},
    members,
    organizations::{self, Organization},
    records,
};
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams,
    openapi::{Object, ObjectBuilder, schema::Type},
};
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AUDIT_READ, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::extract::{OrgAccess, Query},
        org::{api_keys::ApiKeyView, members::MemberView, organizations::OrganizationView, records::RecordView},
    },
    app::problem::Problem,
    clock::now,
};

/// The maximum number of events that are applied for one answer.
const MOST: u64 = 100_000;
/// The number of rows that are read at a time.
const ROWS: u16 = 500;
/// The longest answer.
const MAX_BYTES: usize = 64 << 20;

/// The maximum number of named messages that the state lacks.
const NAMED: usize = 100;

/// The default projection.
const DEFAULT: &str = "records";

/// Which moment of what.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct StateQuery {
    /// After the event at this place of the audit log, or at this time. Neither may lie in the future.
    #[param(example = "17")]
    pub at: String,
    /// The read model to look at; `records` without it.
    #[param(schema_with = projections)]
    pub projection: Option<String>,
}

/// Returns the names of the read models.
fn projections() -> Object {
    let names: Vec<&str> = ReadModel::names().collect();
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).examples(["records"]).build()
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(show), Policy::Org(Permission::ReadAudit), Shape::Plain, AUDIT_READ)
}

/// Get the state at an event or a time
///
/// NDJSON. The first line says which events the state is made of: `size` and `root` of the tree over them, `recorded_at` of
/// the last one, and `signed`, the size of the newest signed head, whose beginning they are or which they begin with (null while nothing is
/// signed), how many of the events that head does not cover, `unsigned`, and which messages the audit log had passed by then
/// and not taken in, `without` (the first 100): the state lacks what they say. The head's signature is verified: `keys_of`
/// is `pinned` where that was by a key that this installation was given, and `database` where it had to be by one that its
/// database names. `unproven` names what rows have that no head is signed over. A time is compared with what the events
/// themselves say. Each line behind it is a row: of `organization`,
/// `members`, `api_keys` and `records` as its own route shows it, of the others as the table has it, without what is the
/// product's own. Nothing that is shown changes.
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
    let name = query.projection.as_deref().unwrap_or(DEFAULT);
    let Some(model) = ReadModel::named(name) else {
        let names: Vec<&str> = ReadModel::names().collect();
        return Err(Problem::invalid_parameter("projection", format!("must be one of: {}", names.join(", "))));
    };
    let moment = match query.at.parse::<u64>() {
        Ok(idx) => Moment::Idx(idx),
        Err(_) => {
            let time = query.at.parse::<Timestamp>();
            let rule = "must be a place in the audit log, like 17, or a time, like 2026-03-01T12:00:00Z";
            Moment::Time(time.map_err(|_| Problem::invalid_parameter("at", rule))?)
        }
    };
    not_to_come(&app, org.access.bound(), moment).await?;
    let state = match app.db.as_of(org.access.bound(), moment, MOST, rand::random()).await? {
        Ok(state) => state,
        Err(TooMany(events)) => {
            return Err(Problem::too_large(format!(
                "{events} events are more than {MOST}, the most that one answer takes"
            )));
        }
    };
    let bytes = render(state, model).await?;
    let mut response = Body::from(bytes).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Refuses a future moment: its state is unknown, and the current one is not it.
async fn not_to_come(app: &App, org: BoundOrg, moment: Moment) -> Result<(), Problem> {
    let mut tx = app.db.read(org).await?;
    let size = audit::size(&mut tx).await?;
    match moment {
        Moment::Idx(idx) if idx >= size => {
            let detail =
                format!("the audit log has {size} events, so the last place in it is {}", size.saturating_sub(1));
            Err(Problem::invalid("/at", "in_future", detail))
        }
        Moment::Time(time) if time > now() => {
            // The clock that recorded the last event may be ahead of this one.
            let last = audit::from_idx(&mut tx, size.saturating_sub(1), 1).await?;
            let last = last.entries.first().and_then(|entry| entry.sealed.read_header().ok());
            if last.is_some_and(|header| time <= header.recorded_at) {
                return Ok(());
            }
            Err(Problem::invalid("/at", "in_future", format!("lies in the future: it is {} here", now())))
        }
        Moment::Idx(_) | Moment::Time(_) => Ok(()),
    }
}

/// The first line.
#[derive(Serialize)]
struct Beginning {
    size: u64,
    root: String,
    recorded_at: Option<Timestamp>,
    signed: Option<u64>,
    unsigned: u64,
    without: Vec<Position>,
    keys_of: Option<KeysOf>,
    unproven: [&'static str; 2],
}

/// State of the read models that is in no header, so that no signed head proves it.
const UNPROVEN: [&str; 2] = ["sequences in the stream", "fingerprints of commands"];

async fn render(state: AsOf, model: &ReadModel) -> Result<Vec<u8>, Problem> {
    let unsigned = state.unsigned();
    let AsOf { mut tx, head, recorded_at, signed, keys_of, plan, without } = state;
    let (mut lines, org) = (Lines(Vec::new()), tx.org());
    let signed = signed.map(|signed| signed.head.size);
    let without = without.into_iter().take(NAMED).map(|seq| Position { org, seq }).collect();
    lines.push(&Beginning {
        size: head.size,
        root: head.root.to_string(),
        recorded_at,
        signed,
        unsigned,
        without,
        keys_of: signed.map(|_| keys_of),
        unproven: UNPROVEN,
    })?;
    match model.name {
        "organization" => {
            if let Some(organization) = organizations::get(&mut tx).await? {
                let plan = plan.map(|(plan, _)| plan).unwrap_or_default();
                lines.push(&OrganizationView::from(Organization { plan, ..organization }))?;
            }
        }
        "members" => {
            pages(
                &mut lines,
                &mut tx,
                async |tx, page| members::list(tx, true, None, page, ROWS).await,
                |member| MemberView::new(org, member),
            )
            .await?;
        }
        "api_keys" => {
            pages(
                &mut lines,
                &mut tx,
                async |tx, page| api_keys::as_events_say(tx, page, ROWS).await,
                ApiKeyView::from,
            )
            .await?;
        }
        "records" => {
            let list = async |tx: &mut TenantTx, page: &Page<u64>| records::list(tx, None, true, page, ROWS).await;
            pages(&mut lines, &mut tx, list, RecordView::from).await?;
        }
        _ => {
            let mut after = None;
            loop {
                let rows = model.list(&mut tx, after.as_deref(), ROWS).await?;
                let is_last = rows.len() < usize::from(ROWS);
                for (key, row) in rows {
                    lines.push(&row)?;
                    after = Some(key);
                }
                if is_last {
                    break;
                }
            }
        }
    }
    Ok(lines.0)
}

/// Iterates over all pages of a listing.
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
        serde_json::to_writer(&mut self.0, row).map_err(Problem::internal)?;
        self.0.push(b'\n');
        if self.0.len() > MAX_BYTES {
            return Err(Problem::too_large(format!("the rows are more than {MAX_BYTES} bytes")));
        }
        Ok(())
    }
}
