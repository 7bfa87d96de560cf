//! Break-glass grants: a platform operator's temporary read access to the organization of a tenant, with a reason, and
//! visible to all readers of that organization's audit log.
//!
//! The grant is an access event in the organization's own log before it is answered, and so is every read before anything is
//! shown. It expires, or is closed.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body as HttpBody,
    extract::State,
    http::{StatusCode, header, request::Parts},
    response::Response,
};
use orgstream_domain::Permission;
use orgstream_events::{
    AccessEvent, Approval, BreakGlassApproved, BreakGlassClosed, BreakGlassId, BreakGlassOpened, Pipeline, Position,
    Timestamp, UserId,
};
use orgstream_projections::break_glass;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, OrgAccess, info},
            reply,
        },
    },
    app::{problem::Problem, submit::Origin},
    auth::approval::GlassApproval,
    auth::{Access, Operator, Principal, approval::Approval as Consent},
    clock::now,
};

/// The maximum duration of one grant.
const MAX_SECONDS: u32 = 60 * 60;
const MAX_REASON: usize = 500;
const MAX_NAME: usize = 120;
const MAX_OPERATOR: usize = 300;
/// How long an answer waits until its event has reached the read models.
const WAIT: Duration = Duration::from_secs(5);

/// Why an operator has to look.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassRequest {
    /// Reason for the organization, 10 to 500 characters.
    #[schema(min_length = 10, max_length = 500, example = "ticket 4711: exports of acme come out empty")]
    pub reason: String,
    /// Approval by another operator (`osg_…`), from `POST …/break-glass/approvals`. Optional only where the platform asks for
    /// none.
    pub approval: Option<String>,
    /// Name of the operator who agreed, as the caller states it, where the platform asks for no approval; the organization
    /// reads that it is unverified.
    #[schema(max_length = 120, example = "bob@platform.example")]
    pub approver: Option<String>,
    /// Seconds until the access ends by itself: 1 to 3,600, and no more than approved.
    #[schema(minimum = 1, maximum = 3600, example = 900)]
    pub expires_in_seconds: u32,
}

/// What an operator consents to.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    /// Operator who is to read, as their `GET /v1/me` names them.
    #[schema(max_length = 300, example = "ann@platform.example")]
    pub operator: String,
    /// Reason, exactly as the other operator will give it, 10 to 500 characters.
    #[schema(min_length = 10, max_length = 500, example = "ticket 4711: exports of acme come out empty")]
    pub reason: String,
    /// Longest duration of the access in seconds, 1 to 3,600.
    #[schema(minimum = 1, maximum = 3600, example = 900)]
    pub expires_in_seconds: u32,
}

/// The consent, for whom it was given.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApprovalView {
    /// Approval for one use (`osg_…`). It is shown in this answer and nowhere else.
    #[schema(example = "osg_…")]
    pub approval: String,
    /// Time until which it can be used: one hour, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub usable_until: Timestamp,
}

/// An opening.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BreakGlassView {
    /// Id of the access in the organization's audit log (`glass_` and 26 characters).
    #[schema(value_type = String, example = "glass_01h455vb4pex5vsknk084sn02q")]
    pub id: BreakGlassId,
    /// Time at which it ends by itself, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Position of the event in the organization's stream.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(
            routes!(open),
            Policy::Org(Permission::BreakGlass),
            Shape::Plain,
            AuditTrail::AccessEvent("access.break_glass_opened"),
        )
        .route(
            routes!(close),
            Policy::Org(Permission::BreakGlass),
            Shape::Plain,
            AuditTrail::AccessEvent("access.break_glass_closed"),
        )
        .route(
            routes!(approve),
            Policy::Org(Permission::BreakGlass),
            Shape::Plain,
            AuditTrail::AccessEvent("access.break_glass_approved"),
        )
}

/// Open break-glass access
///
/// For operators. Until it ends, what the organization has can be read by the operator who opened it; nothing can be changed. The
/// opening, and every single look, are in the organization's audit log before anything is shown. Unless the platform's setting
/// says otherwise it takes the approval of another operator (`approval_required`), and both are people who signed in: the
/// static token names no person.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/break-glass", operation_id = "break_glass", tag = "organizations",
    request_body = BreakGlassRequest, responses((status = 201, description = "Open", body = BreakGlassView)),
)]
pub async fn open(
    State(app): State<Arc<App>>,
    OrgAccess { access, principal }: OrgAccess,
    parts: Parts,
    Body(request): Body<BreakGlassRequest>,
) -> Result<Response, Problem> {
    let BreakGlassRequest { reason, approval, approver, expires_in_seconds } = request;
    check_request(&reason, expires_in_seconds)?;
    let now = now();
    let (id, approver, approval) = match (approval, app.break_glass_approval) {
        (Some(text), _) => {
            let approval = approved(&app, &access, &principal, &text, &reason, expires_in_seconds).await?;
            (approval.id, approval.approver, Approval::Given)
        }
        (None, GlassApproval::Required) => {
            let detail = "another operator has to approve first (POST …/break-glass/approvals), or the platform to be started \
                          with --break-glass-approval off";
            return Err(Problem::new(403, "approval_required", "Not alone", detail));
        }
        (None, GlassApproval::Off) => {
            let approver = approver.unwrap_or_else(|| "nobody".to_owned());
            check_length("/approver", &approver, 1, MAX_NAME)?;
            if approver.trim().eq_ignore_ascii_case(&access.actor().id) {
                return Err(Problem::invalid("/approver", "same_person", "must be another person than the caller"));
            }
            (BreakGlassId::fresh(now.unix_ms(), rand::random()), approver, Approval::Off)
        }
    };
    let expires_at = Timestamp::from_unix_ms(now.unix_ms() + i64::from(expires_in_seconds) * 1000);
    let opened = BreakGlassOpened { id, reason, approver, approval: Some(approval), expires_at };
    let position = write(&app, &access, &info(&parts).origin(), AccessEvent::BreakGlassOpened(opened)).await?;
    tracing::warn!(org.id = %access.org(), glass.id = %id, "an operator may look into an organization");
    answer(StatusCode::CREATED, position, &BreakGlassView { id, expires_at, position: position.to_string() })
}

/// Approve break-glass access of another operator
///
/// For operators who are people. The answer is for the one who is named, for this organization, this reason and no longer than
/// this. That it was approved, and by whom, is in the organization's audit log before the answer.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/break-glass/approvals", operation_id = "approve_break_glass",
    tag = "organizations", request_body = ApprovalRequest,
    responses((status = 201, description = "Approved", body = ApprovalView)),
)]
pub async fn approve(
    State(app): State<Arc<App>>,
    OrgAccess { access, principal }: OrgAccess,
    parts: Parts,
    Body(request): Body<ApprovalRequest>,
) -> Result<Response, Problem> {
    let ApprovalRequest { operator, reason, expires_in_seconds } = request;
    let (user, approver) = person(&principal)?;
    check_request(&reason, expires_in_seconds)?;
    check_length("/operator", &operator, 1, MAX_OPERATOR)?;
    if operator.eq_ignore_ascii_case(approver) {
        return Err(Problem::invalid("/operator", "same_person", "must be another person than the approver"));
    }
    let now = now();
    let approval = Consent {
        id: BreakGlassId::fresh(now.unix_ms(), rand::random()),
        org: access.org(),
        operator,
        reason,
        seconds: expires_in_seconds,
        approver: approver.to_owned(),
        user,
        until: Consent::end(now),
    };
    let text = approval.sealed(app.gateway.handler().pepper());
    let text = text.ok_or_else(|| Problem::invalid("/reason", "too_long", "must be shorter"))?;
    let Consent { id, operator, reason, seconds, until, .. } = approval;
    let fact = AccessEvent::BreakGlassApproved(BreakGlassApproved { id, operator, reason, seconds });
    app.gateway.access_log().write_down(access.bound(), access.actor(), &info(&parts).origin(), fact).await?;
    tracing::info!(org.id = %access.org(), glass.id = %id, "an operator approves another's look");
    let view = ApprovalView { approval: text.reveal().to_owned(), usable_until: until };
    let mut response = reply::json(StatusCode::CREATED, HttpBody::from(reply::json_bytes(&view)?));
    response.headers_mut().insert(header::CACHE_CONTROL, reply::NEVER_KEPT);
    Ok(response)
}

/// Returns the operator as a person. The static token identifies no person: that two people had it can be neither said nor
/// seen.
fn person(principal: &Principal) -> Result<(UserId, &str), Problem> {
    match principal.operator() {
        Some(Operator::Person { user, name }) => Ok((*user, name.as_str())),
        _ => Err(Problem::new(
            403,
            "operator_is_nobody",
            "Not with the static token",
            "an approval is between two people: sign in at the operators' issuer (--operator-issuer)",
        )),
    }
}

/// Returns another operator's approval, if it matches this grant.
async fn approved(
    app: &App,
    access: &Access,
    principal: &Principal,
    text: &str,
    reason: &str,
    seconds: u32,
) -> Result<Consent, Problem> {
    let (user, name) = person(principal)?;
    let wrong = |detail: &str| Problem::new(403, "approval_not_valid", "Not approved", detail);
    let consent = Consent::open(app.gateway.handler().pepper(), text)
        .filter(|consent| consent.org == access.org() && consent.operator.eq_ignore_ascii_case(name))
        .ok_or_else(|| wrong("this is no approval of a look of yours into this organization"))?;
    if consent.user == user {
        return Err(wrong("an approval is another person's"));
    }
    if consent.until <= now() {
        return Err(wrong("this approval was good for an hour, which is over: ask for another one"));
    }
    if consent.reason != reason || consent.seconds < seconds {
        return Err(wrong("something else was approved: give the same reason, and no more seconds"));
    }
    if break_glass::was_open(&mut app.db.read(access.bound()).await?, consent.id).await? {
        return Err(wrong("this approval was used: each is for one opening"));
    }
    Ok(consent)
}

fn check_request(reason: &str, expires_in_seconds: u32) -> Result<(), Problem> {
    check_length("/reason", reason, 10, MAX_REASON)?;
    if (1..=MAX_SECONDS).contains(&expires_in_seconds) {
        return Ok(());
    }
    Err(Problem::invalid("/expires_in_seconds", "out_of_range", format!("must be 1 to {MAX_SECONDS}")))
}

/// What was closed.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClosedView {
    /// Position of the event in the organization's stream.
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q:17")]
    pub position: String,
}

/// End break-glass access
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

/// Writes the access event, and waits until it is effective.
async fn write(app: &App, access: &Access, origin: &Origin, fact: AccessEvent) -> Result<Position, Problem> {
    let position = app.gateway.access_log().write_down(access.bound(), access.actor(), origin, fact).await?;
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
