//! Notes of an organization.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use orgstream_domain::{Permission, WithdrawNote, WriteNote};
use orgstream_events::{NoteId, Timestamp};
use orgstream_projections::notes::{self, Note};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, Item, Query, Writer},
            page::{Page, PageQuery},
            policy::{AuditTrail, Policy, READ, Shape},
            reply,
            routes::Routes,
            wait::{OrgView, ReadModels},
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
};

/// A note.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct NoteView {
    /// Note id (`note_` and 26 characters).
    #[schema(value_type = String, example = "note_01h455vb4pex5vsknk084sn02q")]
    pub id: NoteId,
    /// Text, 1 to 2,000 characters.
    #[schema(example = "Maintenance on Sunday at 06:00 UTC.")]
    pub text: String,
    /// Version of the thing, counted from 1; `If-Match` takes it.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of writing, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl From<Note> for NoteView {
    fn from(Note { id, text, version, created_at }: Note) -> Self {
        Self { id, text, version, created_at }
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(list), Policy::Org(Permission::ReadOrganization), READ, AuditTrail::ReadNotAudited)
        .route(routes!(write), Policy::Org(Permission::ManageNotes), Shape::Create, AuditTrail::Events)
        .route(routes!(withdraw), Policy::Org(Permission::ManageNotes), Shape::Change, AuditTrail::Events)
}

/// List notes
///
/// The newest first.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/notes", operation_id = "list_notes", tag = "organizations",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<NoteView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    mut org: OrgView<ReadModels>,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let cursors = app.cursors.listing(org.access.org(), "notes", &());
    let part = cursors.read(page.cursor.as_deref())?;
    let rows = notes::list(&mut org.view.tx, &part, page.limit()?).await?;
    Ok(org.view.listing(&cursors.page(&part, rows, NoteView::from)))
}

/// Write a note
#[utoipa::path(
    post, path = "/v1/organizations/{org}/notes", operation_id = "write_note", tag = "organizations",
    request_body = WriteNote, responses((status = 201, description = "Written", body = AcceptedCommand)),
)]
pub async fn write(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<WriteNote>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::created)
}

/// Withdraw a note
#[utoipa::path(
    delete, path = "/v1/organizations/{org}/notes/{note}", operation_id = "withdraw_note", tag = "organizations",
    responses((status = 200, description = "Withdrawn", body = AcceptedCommand)),
)]
pub async fn withdraw(State(app): State<Arc<App>>, writer: Writer, Item(id): Item<NoteId>) -> Result<Response, Problem> {
    writer.submit(&app, WithdrawNote { id }).await.map(reply::changed)
}
