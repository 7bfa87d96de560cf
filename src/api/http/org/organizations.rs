//! Organizations: the tenant itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{extract::State, http::request::Parts, response::Response};
use orgstream_domain::{
    ChangePlan, ChangeSettings, Command, CreateOrganization, Permission, RenameOrganization, ResumeOrganization,
    SuspendOrganization, UpgradeOrganization, openapi,
};
use orgstream_events::{
    Branding, DomainName, InvitePolicy, JitProvisioning, LoginMethod, MfaPolicy, OrgId, OrganizationSettings, PlanName,
    Slug, TenantType, Timestamp,
};
use orgstream_projections::organizations::{self, Organization};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::api::http::kit::{
    policy::{AuditTrail, Policy, READ, Shape},
    routes::Routes,
};
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Body, SignedIn, Writer, idempotency_key, info},
            reply,
            wait::{OrgView, ReadModels},
        },
    },
    app::{event_view::may_see_webhook, problem::Problem, submit::AcceptedCommand},
    commands::request::Request,
};

/// An organization.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct OrganizationView {
    /// Organization id (`org_` and 26 characters); it never changes.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub id: OrgId,
    /// Name in URLs: 2 to 128 characters of a-z, 0-9 and single `-`, `.`, `_` or `~`.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Acme Corp")]
    pub name: String,
    /// Type of tenant: `personal`, `organization`, `team` or `workspace`.
    #[schema(schema_with = openapi::tenant_type)]
    pub tenant_type: TenantType,
    /// Region that holds the data.
    #[schema(example = "local")]
    pub region: String,
    /// Reason of the suspension; null while the organization is not suspended.
    pub suspended_reason: Option<String>,
    /// Settings of the organization.
    pub settings: SettingsView,
    /// Name of the plan; `standard` unless an operator changed it.
    #[schema(value_type = String, example = "standard")]
    pub plan: PlanName,
    /// Id of the bound Auth0 organization; null without one.
    #[schema(example = "org_9ybsU1dN2dKfDkBi")]
    pub auth0_organization_id: Option<String>,
    /// Version of the thing, counted from 1; `If-Match` takes it.
    #[schema(example = 1)]
    pub version: u64,
    /// Time of creation, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Time of the last change, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// What an organization decided about itself: all of it, the defaults included.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SettingsView {
    /// Longest life of a new API key, in days; null for no limit.
    api_key_max_days: Option<u32>,
    /// True (the default) if the keys that a member issued end with the membership.
    revoke_keys_on_creator_exit: bool,
    /// Notes of the organization, by key.
    custom_metadata: BTreeMap<String, String>,
    /// Membership by signing in: `not_allowed`, or `restricted` to proven domains.
    #[schema(schema_with = openapi::jit_provisioning)]
    jit_provisioning: JitProvisioning,
    /// Addresses that may be invited: `all`, `restricted` or `none`.
    #[schema(schema_with = openapi::invite_policy)]
    invite_policy: InvitePolicy,
    /// Domains whose addresses may be invited, while `invite_policy` is `restricted`.
    #[schema(value_type = Vec<String>)]
    allowed_domains: BTreeSet<DomainName>,
    /// Look of the organization for its members.
    branding: BrandingView,
    /// Ways to authenticate; null for every way.
    #[schema(value_type = Option<Vec<String>>)]
    allowed_auth_methods: Option<BTreeSet<LoginMethod>>,
    /// Second factor of people: `optional` or `required`.
    #[schema(schema_with = openapi::mfa_policy)]
    mfa_policy: MfaPolicy,
    /// Address that the audit log is posted to; null for none, and for a caller who may neither set it nor read the log.
    #[schema(example = "https://siem.acme.example/orgstream")]
    audit_webhook: Option<String>,
}

/// How an organization looks to its members.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BrandingView {
    /// `https` address of the logo; null for none.
    #[schema(example = "https://acme.example/logo.svg")]
    logo_url: Option<String>,
    /// Colour: `#` and six hexadecimal digits; null for none.
    #[schema(example = "#0a84ff")]
    primary_color: Option<String>,
    /// E-mail address that members get help at; null for none.
    #[schema(example = "help@acme.example")]
    support_email: Option<String>,
}

impl From<OrganizationSettings> for SettingsView {
    fn from(settings: OrganizationSettings) -> Self {
        let OrganizationSettings {
            api_key_max_days,
            revoke_keys_on_creator_exit,
            custom_metadata,
            jit_provisioning,
            invite_policy,
            allowed_domains,
            branding: Branding { logo_url, primary_color, support_email },
            allowed_auth_methods,
            mfa_policy,
            audit_webhook,
        } = settings;
        Self {
            api_key_max_days,
            revoke_keys_on_creator_exit,
            custom_metadata,
            jit_provisioning,
            invite_policy,
            allowed_domains,
            branding: BrandingView { logo_url, primary_color, support_email },
            allowed_auth_methods,
            mfa_policy,
            audit_webhook,
        }
    }
}

impl From<Organization> for OrganizationView {
    fn from(organization: Organization) -> Self {
        let Organization {
            id,
            slug,
            name,
            tenant_type,
            region,
            suspended_reason,
            settings,
            plan,
            limits: _,
            external_id: auth0_organization_id,
            // Nobody reads an organization that is being deleted here, and the end of its keys is a matter of the keys.
            delete_at: _,
            keys_ended_at: _,
            version,
            created_at,
            updated_at,
            seq: _,
        } = organization;
        let settings = settings.into();
        Self {
            id,
            slug,
            name,
            tenant_type,
            region,
            suspended_reason,
            settings,
            plan,
            auth0_organization_id,
            version,
            created_at,
            updated_at,
        }
    }
}

/// Why something is done.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "unpaid since May")]
    pub reason: String,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route(routes!(create), Policy::SignedIn, Shape::Create, AuditTrail::Events)
        .route(routes!(show), Policy::Org(Permission::ReadOrganization), READ, AuditTrail::ReadNotAudited)
        .route(routes!(rename), Policy::Org(Permission::ManageOrganization), Shape::Change, AuditTrail::Events)
        .route(routes!(change_settings), Policy::Org(Permission::ManageOrganization), Shape::Change, AuditTrail::Events)
        .route(routes!(upgrade), Policy::Org(Permission::ManageOrganization), Shape::Change, AuditTrail::Events)
        .route(routes!(suspend), Policy::Org(Permission::Suspend), Shape::Change, AuditTrail::Events)
        .route(routes!(change_plan), Policy::Org(Permission::ManagePlan), Shape::Change, AuditTrail::Events)
        .route(routes!(resume), Policy::Org(Permission::Suspend), Shape::Change, AuditTrail::Events)
}

/// Create an organization
///
/// You become its owner. Only people can do this, no API keys; the e-mail address of your token must be verified.
#[utoipa::path(
    post, path = "/v1/organizations", operation_id = "create_organization", tag = "organizations",
    request_body = CreateOrganization, responses((status = 201, description = "Created", body = AcceptedCommand)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
    Body(command): Body<CreateOrganization>,
) -> Result<Response, Problem> {
    let request = Request { idempotency_key: idempotency_key(&parts)?, ..Command::from(command).into() };
    app.gateway.create_organization(&principal, &info(&parts).origin(), request).await.map(reply::created)
}

/// Get an organization
#[utoipa::path(
    get, path = "/v1/organizations/{org}", operation_id = "get_organization", tag = "organizations",
    responses((status = 200, description = "The organization", body = OrganizationView)),
)]
pub async fn show(mut org: OrgView<ReadModels>) -> Result<Response, Problem> {
    let found = organizations::get(&mut org.view.tx).await?.ok_or_else(Problem::not_found)?;
    let mut view = OrganizationView::from(found);
    if !may_see_webhook(&org.access) {
        view.settings.audit_webhook = None;
    }
    Ok(org.view.one(view.version, &view))
}

/// Rename an organization
///
/// An old slug goes on leading here.
#[utoipa::path(
    patch, path = "/v1/organizations/{org}", operation_id = "rename_organization", tag = "organizations",
    request_body = RenameOrganization, responses((status = 200, description = "Renamed", body = AcceptedCommand)),
)]
pub async fn rename(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<RenameOrganization>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}

/// Change the settings of an organization
///
/// What is missing stays; `null` takes a setting away.
#[utoipa::path(
    patch, path = "/v1/organizations/{org}/settings", operation_id = "change_settings", tag = "organizations",
    request_body = ChangeSettings, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change_settings(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<ChangeSettings>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}

/// Upgrade a personal organization
///
/// Makes of it one that others can join. Its id, its data, its keys and its history stay.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/upgrade", operation_id = "upgrade_organization", tag = "organizations",
    request_body = UpgradeOrganization,
    responses((status = 200, description = "Upgraded", body = AcceptedCommand)),
)]
pub async fn upgrade(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<UpgradeOrganization>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}

/// Suspend an organization
///
/// Only the platform may act in it until it is resumed. For platform operators.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/suspend", operation_id = "suspend_organization", tag = "organizations",
    request_body = Reason, responses((status = 200, description = "Suspended", body = AcceptedCommand)),
)]
pub async fn suspend(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(Reason { reason }): Body<Reason>,
) -> Result<Response, Problem> {
    writer.submit(&app, SuspendOrganization { reason }).await.map(reply::changed)
}

/// Resume an organization
///
/// Ends a suspension. For platform operators.
#[utoipa::path(
    post, path = "/v1/organizations/{org}/resume", operation_id = "resume_organization", tag = "organizations",
    request_body = Reason, responses((status = 200, description = "Resumed", body = AcceptedCommand)),
)]
pub async fn resume(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(Reason { reason }): Body<Reason>,
) -> Result<Response, Problem> {
    writer.submit(&app, ResumeOrganization { reason }).await.map(reply::changed)
}

/// Change the plan of an organization
///
/// What a plan is worth in the workers' time is a setting of the workers. For platform operators.
#[utoipa::path(
    put, path = "/v1/organizations/{org}/plan", operation_id = "change_plan", tag = "organizations",
    request_body = ChangePlan, responses((status = 200, description = "Changed", body = AcceptedCommand)),
)]
pub async fn change_plan(
    State(app): State<Arc<App>>,
    writer: Writer,
    Body(command): Body<ChangePlan>,
) -> Result<Response, Problem> {
    writer.submit(&app, command).await.map(reply::changed)
}
