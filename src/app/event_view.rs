//! Events as the API shows them: without internal fields, and only to those who may see them.

use orgstream_domain::{Permission, openapi};
use orgstream_events::{ActorType, EventView, INWARD_FIELDS, OpenedEvent};
use orgstream_projections::CreatedBy;
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, ObjectBuilder, Ref, RefOr, Schema, schema::Type},
};

use crate::auth::Access;

/// Who did something, by id.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ActorView {
    /// Type of actor: `member`, `api_key`, `platform_operator`, `system` or `anonymous`.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "member")]
    pub actor_type: ActorType,
    /// Id of the actor: of a member, a key or an operator.
    #[schema(example = "mem_01h455vb4pex5vsknk084sn02q")]
    pub id: String,
}

impl From<CreatedBy> for ActorView {
    fn from(by: CreatedBy) -> Self {
        Self { actor_type: by.actor_type, id: by.id }
    }
}

/// Removes the internal fields from an event.
pub fn shown(mut event: EventView) -> EventView {
    for (event_type, field) in INWARD_FIELDS {
        if event.header.event_type == event_type
            && let Some(fields) = event.data.as_object_mut()
        {
            fields.remove(field);
        }
    }
    event
}

/// Returns the event as `access` may see it, if it may. A principal that may read the audit log sees everything; others see
/// what they could read of the resource itself, without the data about the request.
pub fn shown_to(access: &Access, event: OpenedEvent, seq: u64) -> Option<EventView> {
    let audits = access.require(Permission::ReadAudit).is_ok();
    if !audits && access.require(permission_for(&event)?).is_err() {
        return None;
    }
    let mut view = shown(EventView::new(event, seq, None));
    if !audits {
        view.context = orgstream_events::Context::default();
        if !may_see_webhook(access)
            && let Some(settings) = view.data.get_mut("settings").and_then(Value::as_object_mut)
        {
            settings.remove("audit_webhook");
        }
    }
    Some(view)
}

/// Whether `access` may see where the audit log is sent, which may be an address with a secret in it: principals that may
/// set it, or read what is sent there.
pub fn may_see_webhook(access: &Access) -> bool {
    [Permission::ManageOrganization, Permission::ReadAudit].iter().any(|permission| access.require(*permission).is_ok())
}

fn permission_for(event: &OpenedEvent) -> Option<Permission> {
    use orgstream_events::Event;

    match event.event {
        Event::Organization(_) => Some(Permission::ReadOrganization),
        Event::Member(_) | Event::Role(_) => Some(Permission::ReadMembers),
        Event::Invitation(_) => Some(Permission::ManageMembers),
        Event::SsoConnection(_) => Some(Permission::ManageSso),
        Event::Domain(_) => Some(Permission::ManageDomains),
        Event::ApiKey(_) => Some(Permission::ReadKeys),
        // What GET …/kinds shows; the platform's events are for operators.
        Event::Kind(_)
        | Event::Record(_)
        | Event::RecordLog(_)
        | Event::UniqueValue(_)
        | Event::CatalogItem(_)
        | Event::CatalogChoice(_) => Some(Permission::ReadRecords),
        Event::Account(_) | Event::Quota(_) | Event::Invoice(_) => Some(Permission::ReadAccount),
        // The platform's, for operators.
        Event::Plan(_) => Some(Permission::ManagePlan),
        Event::Deletion(_) => Some(Permission::Suspend),
        Event::Parking(_) | Event::Access(_) => None,
    }
}

/// The schema of events, whose type belongs to a crate without OpenAPI.
pub struct EventSchema;

impl PartialSchema for EventSchema {
    fn schema() -> RefOr<Schema> {
        let time = |of: &str| {
            described(text("2026-03-01T12:00:00.000Z"), &format!("Time of {of}, RFC 3339 in UTC, milliseconds"))
        };
        let id = |example: &str, of: &str| described(text(example), of);
        let actor = ObjectBuilder::new()
            .description(Some("Actor who caused the event"))
            .property("type", described(text("api_key"), "Type of actor, such as `member` or `api_key`"))
            .property("id", id("key_01h455vb4pex5vsknk084sn02q", "Id of the actor, by its type"))
            .property("auth", any_object("Authentication of the actor; null where there was none"));
        let target = ObjectBuilder::new()
            .property("type", described(text("record"), "Type of the target"))
            .property("id", id("res_01h455vb4pex5vsknk084sn02q", "Id of the target"));
        let code = nullable(described(text("forbidden"), "Error code of a failure; null after a success"));
        let outcome = ObjectBuilder::new()
            .description(Some("Outcome of the action"))
            .property("status", described(text("success"), "Status: `success`, `denied` or `failed`"))
            .property("code", code);
        let aggregate: Object = openapi::aggregate();
        let event = ObjectBuilder::new()
            .property(
                "position",
                described(text("org_01h455vb4pex5vsknk084sn02q:17"), "Position in the organization's stream"),
            )
            .property("idx", number("Index in the audit log, from 0; absent in a tail"))
            .property("v", number("Version of this envelope"))
            .property("org_id", id("org_01h455vb4pex5vsknk084sn02q", "Organization id (`org_` and 26 characters)"))
            .property("event_id", id("evt_01h455vb4pex5vsknk084sn02q", "Event id (`evt_` and 26 characters)"))
            .property("type", described(text("record.created"), "Permanent name of the type of event"))
            .property("schema", number("Version of the shape of `data`"))
            .property(
                "aggregate",
                ObjectBuilder::from(aggregate).property("version", number("Version of the aggregate after the event")),
            )
            .property("occurred_at", time("the occurrence, as the producer states it"))
            .property("recorded_at", time("acceptance"))
            .property("actor", actor)
            .property(
                "targets",
                utoipa::openapi::ArrayBuilder::new().items(target).description(Some("Things that the event is about")),
            )
            .property("outcome", outcome)
            .property(
                "command_id",
                id("cmd_01h455vb4pex5vsknk084sn02q", "Command that caused it (`cmd_` and 26 characters)"),
            )
            .property(
                "causation_id",
                nullable(id("evt_01h455vb4pex5vsknk084sn02q", "Event that caused the command; null for none")),
            )
            .property(
                "correlation_id",
                id("cor_01h455vb4pex5vsknk084sn02q", "Id of the larger piece of work (`cor_` and 26 characters)"),
            )
            .property("request_id", nullable(id("req_018f", "Id of the request; null for none")))
            .property("payload_commit", described(text("9f86d081…"), "SHA-256 over salt and content, hexadecimal"))
            .property(
                "payload_cipher_sha256",
                nullable(described(text(""), "SHA-256 of the encrypted payload, hexadecimal; null for a plain one")),
            )
            .property("data", any_object("Content of the event, in the fields of its type"))
            .property("context", any_object("Origin of the request: `ip` and `user_agent`"));
        [
            "position",
            "org_id",
            "event_id",
            "type",
            "aggregate",
            "occurred_at",
            "recorded_at",
            "actor",
            "data",
            "context",
        ]
        .into_iter()
        .fold(event, ObjectBuilder::required)
        .description(Some("One event: who did what to which thing, and when."))
        .into()
    }
}

impl ToSchema for EventSchema {
    fn name() -> std::borrow::Cow<'static, str> {
        "Event".into()
    }
}

/// Returns a reference to it.
pub fn event_reference() -> Ref {
    Ref::from_schema_name("Event")
}

fn text(example: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).examples([example])
}

fn number(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).description(Some(description)).minimum(Some(0))
}

fn described(object: ObjectBuilder, description: &str) -> ObjectBuilder {
    object.description(Some(description))
}

fn nullable(object: ObjectBuilder) -> ObjectBuilder {
    object.schema_type(utoipa::openapi::schema::SchemaType::from_iter([Type::String, Type::Null]))
}

fn any_object(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Object).description(Some(description))
}
