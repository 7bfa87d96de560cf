//! Broken glass: an operator of the platform looks into the organization of a tenant, for a while, for a reason, and in
//! front of everybody who reads that organization's audit log.
//!
//! The opening is a fact in the organization's own log before it is answered, and so is every look before anything is
//! shown. It ends by itself, or when it is closed.

use std::{sync::Arc, time::Duration};

use axum::{body::Body as HttpBody, extract::State, http::StatusCode, http::request::Parts, response::Response};
use orgstream_events::{AccessEvent, BreakGlassClosed, BreakGlassId, BreakGlassOpened, Pipeline, Position, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    extract::{Body, OrgAccess, info},
    reply,
};
use crate::{auth::Access, commands::handler::now, gateway::Origin, problem::Problem};

/// The longest that one opening lasts.
const MAX_SECONDS: u32 = 60 * 60;
const MAX_REASON: usize = 500;
const MAX_NAME: usize = 120;
/// How long an answer waits until what it says has come to the read models.
const WAIT: Duration = Duration::from_secs(5);

/// Why an operator has to look.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassRequest {
    /// 10 to 500 characters; the organization reads them.
    #[schema(min_length = 10, max_length = 500, example = "ticket 4711: exports of acme come out empty")]
    pub reason: String,
    /// The other operator, who agreed.
    #[schema(max_length = 120, example = "bob@platform.example")]
    pub approver: String,
    /// After how many seconds it ends by itself: 1 to 3,600.
    #[schema(minimum = 1, maximum = 3600, example = 900)]
    pub expires_in_seconds: u32,
}

/// An opening.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BreakGlassView {
    /// Names it in the organization's audit log.
    #[schema(value_type = String, example = "glass_01h455vb4pex5vsknk084sn02q")]
    pub id: BreakGlassId,
    /// When it ends by itself.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Where it stands in the organization's stream.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
}

/// Look into an organization
///
/// For operators. Until it ends, what the organization has can be read with the operator's token; nothing can be changed.
/// The opening, and every single look, are in the organization's audit log before anything is shown.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/break-glass", operation_id = "break_glass", tag = "organizations",
    request_body = BreakGlassRequest, responses((status = 201, description = "Open", body = BreakGlassView)),
)]
pub async fn open(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    parts: Parts,
    Body(request): Body<BreakGlassRequest>,
) -> Result<Response, Problem> {
    let BreakGlassRequest { reason, approver, expires_in_seconds } = request;
    check_length("/reason", &reason, 10, MAX_REASON)?;
    check_length("/approver", &approver, 1, MAX_NAME)?;
    if approver.trim().eq_ignore_ascii_case(&access.actor().id) {
        return Err(Problem::invalid("/approver", "same_person", "must be somebody else than who asks"));
    }
    if !(1..=MAX_SECONDS).contains(&expires_in_seconds) {
        return Err(Problem::invalid("/expires_in_seconds", "out_of_range", format!("must be 1 to {MAX_SECONDS}")));
    }
    let now = now();
    let id = BreakGlassId::fresh(now.unix_ms(), rand::random());
    let expires_at = Timestamp::from_unix_ms(now.unix_ms() + i64::from(expires_in_seconds) * 1000);
    let opened = BreakGlassOpened { id, reason, approver, expires_at };
    let position = write(&app, &access, &info(&parts).origin(), AccessEvent::BreakGlassOpened(opened)).await?;
    tracing::warn!(org.id = %access.org(), glass.id = %id, "an operator may look into an organization");
    answer(StatusCode::CREATED, position, &BreakGlassView { id, expires_at, position: position.to_string() })
}

/// What was closed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClosedView {
    /// Where that stands in the organization's stream.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
}

/// Look no more
///
/// For operators. Ends whatever is open in the organization.
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/break-glass", operation_id = "close_break_glass", tag = "organizations",
    responses((status = 200, description = "Closed", body = ClosedView)),
)]
pub async fn close(
    State(app): State<Arc<App>>,
    OrgAccess { access, .. }: OrgAccess,
    parts: Parts,
) -> Result<Response, Problem> {
    let closed = AccessEvent::BreakGlassClosed(BreakGlassClosed {});
    let position = write(&app, &access, &info(&parts).origin(), closed).await?;
    answer(StatusCode::OK, position, &ClosedView { position: position.to_string() })
}

/// Writes the fact down, and waits until it holds.
async fn write(app: &App, access: &Access, origin: &Origin, fact: AccessEvent) -> Result<Position, Problem> {
    let position = app.gateway.notes().write_down(access.bound(), access.actor(), origin, fact).await?;
    if !app.gateway.wait_for(access.bound(), Pipeline::ReadModels, position.seq, WAIT).await? {
        tracing::warn!(org.id = %access.org(), "broken glass was answered before the read models had it");
    }
    Ok(position)
}

fn answer(status: StatusCode, position: Position, view: &impl Serialize) -> Result<Response, Problem> {
    let mut response = reply::json(status, HttpBody::from(reply::json_bytes(view)?));
    let (name, value) = reply::position("stream-position", position);
    response.headers_mut().insert(name, value);
    Ok(response)
}

fn check_length(pointer: &str, text: &str, min: usize, max: usize) -> Result<(), Problem> {
    if text.trim().chars().count() < min {
        return Err(Problem::invalid(
            pointer,
            "too_short",
            format!("must have at least {min} characters besides spaces"),
        ));
    }
    if text.chars().count() > max {
        return Err(Problem::invalid(pointer, "too_long", format!("must have at most {max} characters")));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::invalid(pointer, "control_character", "must not contain control characters"));
    }
    Ok(())
}
