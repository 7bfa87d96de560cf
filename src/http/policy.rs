//! Every route there is, and who may use it: the one table that the extractors obey, the documentation quotes and a
//! test compares with the router. A route that is missing here answers nobody.

use std::{collections::HashMap, sync::LazyLock};

use axum::http::Method;
use orgstream_events::Pipeline;

use crate::auth::Permission;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Everybody, without a credential.
    Public,
    /// Everybody who proves who they are.
    SignedIn,
    /// The platform's operators.
    Operator,
    /// Whoever has this permission in the organization of the path.
    Org(Permission),
    /// Whoever is in the organization of the path; every command then needs its own permission.
    OrgCommands,
}

impl Policy {
    /// What kind of thing the route is about.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Public | Self::SignedIn => "",
            Self::Operator => "platform",
            Self::Org(permission) => permission.subject(),
            Self::OrgCommands => "commands",
        }
    }
}

/// What a route does, as far as its headers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Reads what a pipeline made: `Min-Position`, `Prefer`, `If-None-Match`, `Projection-Position`.
    View(Pipeline),
    /// Makes something new: `Idempotency-Key`, `Stream-Position`.
    Create,
    /// Changes something that is there: `If-Match` besides.
    Change,
    /// Commands, which say themselves what they do.
    Commands,
    /// Follows what happens: `Last-Event-ID`.
    Tail,
    /// Answers without any of these.
    Plain,
}

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct RoutePolicy {
    /// The HTTP method.
    pub method: &'static str,
    /// The path as the router has it.
    pub path: &'static str,
    /// Who may use it.
    pub policy: Policy,
    /// What it does.
    pub shape: Shape,
}

const READ: Shape = Shape::View(Pipeline::ReadModels);
const AUDIT: Shape = Shape::View(Pipeline::Audit);

const fn route(method: &'static str, path: &'static str, policy: Policy, shape: Shape) -> RoutePolicy {
    RoutePolicy { method, path, policy, shape }
}

use Permission as P;
use Policy::{Operator, Org, OrgCommands, Public, SignedIn};
use Shape::{Change, Commands, Create, Plain, Tail};

/// The table.
pub const ROUTES: &[RoutePolicy] = &[
    route("GET", "/healthz", Public, Plain),
    route("GET", "/readyz", Public, Plain),
    route("GET", "/metrics", Public, Plain),
    route("GET", "/openapi.json", Public, Plain),
    route("GET", "/v1/me", SignedIn, Plain),
    route("GET", "/v1/me/memberships", SignedIn, Plain),
    route("GET", "/v1/sessions", SignedIn, Plain),
    route("POST", "/v1/sessions", SignedIn, Plain),
    route("DELETE", "/v1/sessions/{session}", SignedIn, Plain),
    route("GET", "/v1/session", SignedIn, Plain),
    route("PUT", "/v1/session/active-org", SignedIn, Plain),
    route("POST", "/api/v1/tenants/", SignedIn, Create),
    route("POST", "/api/v1/tenants", SignedIn, Create),
    route("GET", "/v1/kinds", Public, READ),
    route("POST", "/v1/kinds", Operator, Create),
    route("GET", "/v1/kinds/{kind}", Public, READ),
    route("PATCH", "/v1/kinds/{kind}", Operator, Change),
    route("DELETE", "/v1/kinds/{kind}", Operator, Change),
    route("POST", "/v1/leaked-keys", Public, Plain),
    route("GET", "/v1/platform/caches", Operator, Plain),
    route("GET", "/v1/platform/lag", Operator, Plain),
    route("POST", "/v1/invitations/accept", SignedIn, Create),
    route("POST", "/v1/organizations", SignedIn, Create),
    route("GET", "/v1/organizations/{org}", Org(P::ReadOrganization), READ),
    route("PATCH", "/v1/organizations/{org}", Org(P::ManageOrganization), Change),
    route("PATCH", "/v1/organizations/{org}/settings", Org(P::ManageOrganization), Change),
    route("POST", "/v1/organizations/{org}/upgrade", Org(P::ManageOrganization), Change),
    route("POST", "/v1/organizations/{org}/suspend", Org(P::Suspend), Change),
    route("POST", "/v1/organizations/{org}/resume", Org(P::Suspend), Change),
    route("PUT", "/v1/organizations/{org}/plan", Org(P::ManagePlan), Change),
    route("POST", "/v1/organizations/{org}/commands", OrgCommands, Commands),
    route("GET", "/v1/organizations/{org}/members", Org(P::ReadMembers), READ),
    route("POST", "/v1/organizations/{org}/members", Org(P::ManageMembers), Create),
    route("GET", "/v1/organizations/{org}/members/{member}", Org(P::ReadMembers), READ),
    route("PATCH", "/v1/organizations/{org}/members/{member}", Org(P::ManageMembers), Change),
    route("DELETE", "/v1/organizations/{org}/members/{member}", Org(P::ManageMembers), Change),
    route("GET", "/v1/organizations/{org}/invitations", Org(P::ManageMembers), READ),
    route("POST", "/v1/organizations/{org}/invitations", Org(P::ManageMembers), Create),
    route("GET", "/v1/organizations/{org}/invitations/{invitation}", Org(P::ManageMembers), READ),
    route("DELETE", "/v1/organizations/{org}/invitations/{invitation}", Org(P::ManageMembers), Change),
    route("POST", "/v1/organizations/{org}/invitations/{invitation}/resend", Org(P::ManageMembers), Change),
    route("GET", "/v1/organizations/{org}/roles", Org(P::ReadMembers), READ),
    route("POST", "/v1/organizations/{org}/roles", Org(P::ManageRoles), Create),
    route("GET", "/v1/organizations/{org}/roles/{role}", Org(P::ReadMembers), READ),
    route("PATCH", "/v1/organizations/{org}/roles/{role}", Org(P::ManageRoles), Change),
    route("DELETE", "/v1/organizations/{org}/roles/{role}", Org(P::ManageRoles), Change),
    route("GET", "/v1/organizations/{org}/domains", Org(P::ManageDomains), READ),
    route("POST", "/v1/organizations/{org}/domains", Org(P::ManageDomains), Create),
    route("GET", "/v1/organizations/{org}/domains/{domain}", Org(P::ManageDomains), READ),
    route("DELETE", "/v1/organizations/{org}/domains/{domain}", Org(P::ManageDomains), Change),
    route("POST", "/v1/organizations/{org}/domains/{domain}/verify", Org(P::ManageDomains), Change),
    route("GET", "/v1/organizations/{org}/sso-connections", Org(P::ManageSso), READ),
    route("POST", "/v1/organizations/{org}/sso-connections", Org(P::ManageSso), Create),
    route("GET", "/v1/organizations/{org}/sso-connections/{connection}", Org(P::ManageSso), READ),
    route("DELETE", "/v1/organizations/{org}/sso-connections/{connection}", Org(P::ManageSso), Change),
    route("PUT", "/v1/organizations/{org}/sso-connections/{connection}/default", Org(P::ManageSso), Change),
    route("GET", "/v1/organizations/{org}/api-keys", Org(P::ReadKeys), READ),
    route("POST", "/v1/organizations/{org}/api-keys", Org(P::ManageKeys), Create),
    route("GET", "/v1/organizations/{org}/api-keys/{key}", Org(P::ReadKeys), READ),
    route("DELETE", "/v1/organizations/{org}/api-keys/{key}", Org(P::ManageKeys), Change),
    route("POST", "/v1/organizations/{org}/api-keys/{key}/rotate", Org(P::ManageKeys), Change),
    route("GET", "/v1/organizations/{org}/records", Org(P::ReadRecords), READ),
    route("POST", "/v1/organizations/{org}/records", Org(P::WriteRecords), Create),
    route("GET", "/v1/organizations/{org}/records/{record}", Org(P::ReadRecords), READ),
    route("PUT", "/v1/organizations/{org}/records/{record}", Org(P::WriteRecords), Change),
    route("DELETE", "/v1/organizations/{org}/records/{record}", Org(P::WriteRecords), Change),
    route("GET", "/v1/organizations/{org}/audit/events", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/events/{event}", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/events/{event}/proof", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/state", Org(P::ReadAudit), Plain),
    route("GET", "/v1/organizations/{org}/audit/stream", Org(P::ReadAudit), Tail),
    route("GET", "/v1/organizations/{org}/audit/checkpoint", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/checkpoints", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/policy", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/handovers", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/audit/tile/{*path}", Org(P::ReadAudit), Plain),
    route("GET", "/v1/organizations/{org}/audit/consistency", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/events", Org(P::ReadAudit), AUDIT),
    route("GET", "/v1/organizations/{org}/events/stream", Org(P::ReadRecords), Tail),
    route("GET", "/v1/organizations/{org}/projections", Org(P::ReadProjections), Plain),
    route("POST", "/v1/organizations/{org}/break-glass", Org(P::BreakGlass), Plain),
    route("DELETE", "/v1/organizations/{org}/break-glass", Org(P::BreakGlass), Plain),
    route("GET", "/v1/organizations/{org}/parked", Org(P::ManageParking), Plain),
    route("POST", "/v1/organizations/{org}/parked/retry", Org(P::ManageParking), Create),
    route("POST", "/v1/organizations/{org}/parked/skip", Org(P::ManageParking), Create),
];

static BY_ROUTE: LazyLock<HashMap<(&str, &str), RoutePolicy>> =
    LazyLock::new(|| ROUTES.iter().map(|route| ((route.method, route.path), *route)).collect());

/// The entry of a route. A HEAD is a GET whose body nobody wants.
pub fn of(method: &Method, path: &str) -> Option<RoutePolicy> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    BY_ROUTE.get(&(method.as_str(), path)).copied()
}
