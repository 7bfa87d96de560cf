//! What routes declare beside their handlers: authorization, operation and audit trail. The extractors obey it, and the
//! documents quote it.

use std::{collections::HashMap, sync::LazyLock};

use axum::http::Method;
use orgstream_domain::Permission;
use orgstream_events::Pipeline;

use crate::api::http::documented;

/// The callers that may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// All callers, without a credential.
    Public,
    /// All authenticated callers.
    SignedIn,
    /// The platform's operators.
    Operator,
    /// Callers with this permission in the organization of the path.
    Org(Permission),
    /// Members of the organization of the path; every command then needs its own permission.
    OrgCommands,
}

impl Policy {
    /// Returns the type of resource that the route is about.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Public | Self::SignedIn => "",
            Self::Operator => "platform",
            Self::Org(permission) => permission.subject(),
            Self::OrgCommands => "commands",
        }
    }
}

/// The operation of a route, as far as its headers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Reads a pipeline's tables: `Min-Position`, `Prefer`, `If-None-Match`, `Projection-Position`.
    View(Pipeline),
    /// Creates a resource: `Idempotency-Key`, `Stream-Position`.
    Create,
    /// Changes an existing resource: `If-Match` besides.
    Change,
    /// Commands, which define their operations themselves.
    Commands,
    /// Follows events: `Last-Event-ID`.
    Tail,
    /// Reads what is the same for everybody, and any cache may keep: `If-None-Match`, `Cache-Control: public`.
    Shared,
    /// Answers without any of these.
    Plain,
}

/// The records in the organization's audit log of a request by this route, besides denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditTrail {
    /// The change: the events of the command.
    Events,
    /// This access event.
    AccessEvent(&'static str),
    /// None: it shows the organization's data, and changes nothing.
    ReadNotAudited,
    /// None: it involves no organization.
    NotTenantScoped,
}

/// One route.
#[derive(Debug, Clone)]
pub struct RoutePolicy {
    /// The HTTP method.
    pub method: &'static str,
    /// The path as the router has it.
    pub path: String,
    /// The callers that may use it.
    pub policy: Policy,
    /// Its operation.
    pub shape: Shape,
    /// Its records in the audit log.
    pub audit_trail: AuditTrail,
}

/// Reads the read models.
pub const READ: Shape = Shape::View(Pipeline::ReadModels);
/// Reads the index of words.
pub const SEARCH: Shape = Shape::View(Pipeline::Search);
/// Reads the audit log.
pub const AUDIT: Shape = Shape::View(Pipeline::Audit);

/// The contents of the audit log were shown.
pub const AUDIT_READ: AuditTrail = AuditTrail::AccessEvent("access.audit_read");
/// The audit log was exported.
pub const AUDIT_EXPORTED: AuditTrail = AuditTrail::AccessEvent("access.audit_exported");

/// All routes, as the rooms declare them.
pub static ROUTES: LazyLock<Vec<RoutePolicy>> = LazyLock::new(|| documented().into_policies());

static BY_ROUTE: LazyLock<HashMap<(&str, &str), &RoutePolicy>> =
    LazyLock::new(|| ROUTES.iter().map(|route| ((route.method, route.path.as_str()), route)).collect());

/// Returns the entry of a route. A HEAD is a GET whose body is not sent.
pub fn of(method: &Method, path: &str) -> Option<&'static RoutePolicy> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    BY_ROUTE.get(&(method.as_str(), path)).copied()
}
