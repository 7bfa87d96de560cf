//! All routes, and their authorization: the one table that the extractors obey, the documentation quotes and a test compares
//! with the router. A route that is missing here serves no caller.

use std::{collections::HashMap, sync::LazyLock};

use axum::http::Method;
use orgstream_domain::Permission;
use orgstream_events::Pipeline;

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
#[derive(Debug, Clone, Copy)]
pub struct RoutePolicy {
    /// The HTTP method.
    pub method: &'static str,
    /// The path as the router has it.
    pub path: &'static str,
    /// The callers that may use it.
    pub policy: Policy,
    /// Its operation.
    pub shape: Shape,
    /// Its records in the audit log.
    pub audit_trail: AuditTrail,
}

const READ: Shape = Shape::View(Pipeline::ReadModels);
const AUDIT: Shape = Shape::View(Pipeline::Audit);

/// The contents of the audit log were shown.
pub const AUDIT_READ: AuditTrail = AuditTrail::AccessEvent("access.audit_read");
const AUDIT_EXPORTED: AuditTrail = AuditTrail::AccessEvent("access.audit_exported");

const fn route(
    method: &'static str,
    path: &'static str,
    policy: Policy,
    shape: Shape,
    audit_trail: AuditTrail,
) -> RoutePolicy {
    RoutePolicy { method, path, policy, shape, audit_trail }
}

use AuditTrail::{AccessEvent, Events, NotTenantScoped, ReadNotAudited};
use Permission as P;
use Policy::{Operator, Org, OrgCommands, Public, SignedIn};
use Shape::{Change, Commands, Create, Plain, Tail};

/// The table.
pub const ROUTES: &[RoutePolicy] = &[
    route("GET", "/healthz", Public, Plain, NotTenantScoped),
    route("GET", "/readyz", Public, Plain, NotTenantScoped),
    route("GET", "/metrics", Operator, Plain, NotTenantScoped),
    route("GET", "/openapi.json", Public, Plain, NotTenantScoped),
    route("GET", "/v1/me", SignedIn, Plain, NotTenantScoped),
    route("GET", "/v1/me/memberships", SignedIn, Plain, NotTenantScoped),
    route("GET", "/v1/sessions", SignedIn, Plain, NotTenantScoped),
    route("POST", "/v1/sessions", SignedIn, Plain, AccessEvent("access.signed_in")),
    route("DELETE", "/v1/sessions/{session}", SignedIn, Plain, NotTenantScoped),
    route("GET", "/v1/session", SignedIn, Plain, NotTenantScoped),
    route("PUT", "/v1/session/active-org", SignedIn, Plain, AccessEvent("access.org_switched")),
    route("POST", "/api/v1/tenants/", SignedIn, Create, Events),
    route("POST", "/api/v1/tenants", SignedIn, Create, Events),
    route("GET", "/v1/kinds", Public, READ, NotTenantScoped),
    route("POST", "/v1/kinds", Operator, Create, Events),
    route("GET", "/v1/kinds/{kind}", Public, READ, NotTenantScoped),
    route("PATCH", "/v1/kinds/{kind}", Operator, Change, Events),
    route("DELETE", "/v1/kinds/{kind}", Operator, Change, Events),
    route("POST", "/v1/kinds/{kind}/restore", Operator, Change, Events),
    route("POST", "/v1/leaked-keys", Public, Plain, Events),
    route("POST", "/v1/nats-credentials", SignedIn, Plain, AccessEvent("access.nats_credentials_issued")),
    route("GET", "/v1/platform/caches", Operator, Plain, NotTenantScoped),
    route("GET", "/v1/platform/lag", Operator, Plain, NotTenantScoped),
    route("POST", "/v1/invitations/accept", SignedIn, Create, Events),
    route("POST", "/v1/organizations", SignedIn, Create, Events),
    route("GET", "/v1/organizations/{org}", Org(P::ReadOrganization), READ, ReadNotAudited),
    route("PATCH", "/v1/organizations/{org}", Org(P::ManageOrganization), Change, Events),
    route("PATCH", "/v1/organizations/{org}/settings", Org(P::ManageOrganization), Change, Events),
    route("POST", "/v1/organizations/{org}/upgrade", Org(P::ManageOrganization), Change, Events),
    route("POST", "/v1/organizations/{org}/suspend", Org(P::Suspend), Change, Events),
    route("POST", "/v1/organizations/{org}/resume", Org(P::Suspend), Change, Events),
    route("PUT", "/v1/organizations/{org}/plan", Org(P::ManagePlan), Change, Events),
    route("PUT", "/v1/organizations/{org}/limits", Org(P::ManagePlan), Change, Events),
    route("GET", "/v1/organizations/{org}/usage", Org(P::ReadOrganization), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/commands", OrgCommands, Commands, Events),
    route("GET", "/v1/organizations/{org}/members", Org(P::ReadMembers), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/members", Org(P::ManageMembers), Create, Events),
    route("GET", "/v1/organizations/{org}/members/{member}", Org(P::ReadMembers), READ, ReadNotAudited),
    route("PATCH", "/v1/organizations/{org}/members/{member}", Org(P::ManageMembers), Change, Events),
    route("DELETE", "/v1/organizations/{org}/members/{member}", Org(P::ManageMembers), Change, Events),
    route("GET", "/v1/organizations/{org}/invitations", Org(P::ManageMembers), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/invitations", Org(P::ManageMembers), Create, Events),
    route("GET", "/v1/organizations/{org}/invitations/{invitation}", Org(P::ManageMembers), READ, ReadNotAudited),
    route("DELETE", "/v1/organizations/{org}/invitations/{invitation}", Org(P::ManageMembers), Change, Events),
    route("POST", "/v1/organizations/{org}/invitations/{invitation}/resend", Org(P::ManageMembers), Change, Events),
    route("GET", "/v1/organizations/{org}/roles", Org(P::ReadMembers), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/roles", Org(P::ManageRoles), Create, Events),
    route("GET", "/v1/organizations/{org}/roles/{role}", Org(P::ReadMembers), READ, ReadNotAudited),
    route("PATCH", "/v1/organizations/{org}/roles/{role}", Org(P::ManageRoles), Change, Events),
    route("DELETE", "/v1/organizations/{org}/roles/{role}", Org(P::ManageRoles), Change, Events),
    route("GET", "/v1/organizations/{org}/domains", Org(P::ManageDomains), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/domains", Org(P::ManageDomains), Create, Events),
    route("GET", "/v1/organizations/{org}/domains/{domain}", Org(P::ManageDomains), READ, ReadNotAudited),
    route("DELETE", "/v1/organizations/{org}/domains/{domain}", Org(P::ManageDomains), Change, Events),
    route("POST", "/v1/organizations/{org}/domains/{domain}/verify", Org(P::ManageDomains), Change, Events),
    route("GET", "/v1/organizations/{org}/sso-connections", Org(P::ManageSso), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/sso-connections", Org(P::ManageSso), Create, Events),
    route("GET", "/v1/organizations/{org}/sso-connections/{connection}", Org(P::ManageSso), READ, ReadNotAudited),
    route("DELETE", "/v1/organizations/{org}/sso-connections/{connection}", Org(P::ManageSso), Change, Events),
    route("PUT", "/v1/organizations/{org}/sso-connections/{connection}/default", Org(P::ManageSso), Change, Events),
    route("GET", "/v1/organizations/{org}/api-keys", Org(P::ReadKeys), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/api-keys", Org(P::ManageKeys), Create, Events),
    route("GET", "/v1/organizations/{org}/api-keys/{key}", Org(P::ReadKeys), READ, ReadNotAudited),
    route("DELETE", "/v1/organizations/{org}/api-keys/{key}", Org(P::ManageKeys), Change, Events),
    route("POST", "/v1/organizations/{org}/api-keys/{key}/rotate", Org(P::ManageKeys), Change, Events),
    route("GET", "/v1/organizations/{org}/records", Org(P::ReadRecords), READ, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/records", Org(P::WriteRecords), Create, Events),
    route("GET", "/v1/organizations/{org}/records/{record}", Org(P::ReadRecords), READ, ReadNotAudited),
    route("PUT", "/v1/organizations/{org}/records/{record}", Org(P::WriteRecords), Change, Events),
    route("DELETE", "/v1/organizations/{org}/records/{record}", Org(P::WriteRecords), Change, Events),
    route("GET", "/v1/organizations/{org}/audit/events", Org(P::ReadAudit), AUDIT, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/audit/events/{event}", Org(P::ReadAudit), AUDIT, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/audit/events/{event}/proof", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/state", Org(P::ReadAudit), Plain, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/audit/stream", Org(P::ReadAudit), Tail, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/audit/checkpoint", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/checkpoints", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/policy", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/handovers", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/tile/{*path}", Org(P::ReadAudit), Plain, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/audit/consistency", Org(P::ReadAudit), AUDIT, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/webhook", Org(P::ReadAudit), Plain, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/audit/export", Org(P::ReadAudit), Plain, AUDIT_EXPORTED),
    route("GET", "/v1/organizations/{org}/events", Org(P::ReadAudit), AUDIT, AUDIT_READ),
    route("GET", "/v1/organizations/{org}/events/stream", Org(P::ReadRecords), Tail, ReadNotAudited),
    route("GET", "/v1/organizations/{org}/projections", Org(P::ReadProjections), Plain, ReadNotAudited),
    route(
        "POST",
        "/v1/organizations/{org}/break-glass",
        Org(P::BreakGlass),
        Plain,
        AccessEvent("access.break_glass_opened"),
    ),
    route(
        "DELETE",
        "/v1/organizations/{org}/break-glass",
        Org(P::BreakGlass),
        Plain,
        AccessEvent("access.break_glass_closed"),
    ),
    route(
        "POST",
        "/v1/organizations/{org}/break-glass/approvals",
        Org(P::BreakGlass),
        Plain,
        AccessEvent("access.break_glass_approved"),
    ),
    route("GET", "/v1/organizations/{org}/parked", Org(P::ManageParking), Plain, ReadNotAudited),
    route("POST", "/v1/organizations/{org}/parked/retry", Org(P::ManageParking), Create, Events),
    route("POST", "/v1/organizations/{org}/parked/skip", Org(P::ManageParking), Create, Events),
];

static BY_ROUTE: LazyLock<HashMap<(&str, &str), RoutePolicy>> =
    LazyLock::new(|| ROUTES.iter().map(|route| ((route.method, route.path), *route)).collect());

/// Returns the entry of a route. A HEAD is a GET whose body is not sent.
pub fn of(method: &Method, path: &str) -> Option<RoutePolicy> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    BY_ROUTE.get(&(method.as_str(), path)).copied()
}
