//! Organizations: the tenant itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{extract::State, http::request::Parts, response::Response};
use orgstream_domain::{
    ChangePlan, ChangeSettings, Command, CreateOrganization, RenameOrganization, ResumeOrganization,
    SuspendOrganization, UpgradeOrganization, openapi,
};
use orgstream_events::{
    Branding, DomainName, InvitePolicy, JitProvisioning, LoginMethod, MfaPolicy, OrgId, OrganizationSettings, PlanName,
    Slug, TenantType, Timestamp,
};
use orgstream_projections::organizations::{self, Organization};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    /// Its id, which never changes.
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    pub id: OrgId,
    /// Its name in URLs.
    #[schema(value_type = String, example = "acme")]
    pub slug: Slug,
    /// What people call it.
    #[schema(example = "Acme Corp")]
    pub name: String,
    /// What kind of tenant.
    #[schema(schema_with = openapi::tenant_type)]
    pub tenant_type: TenantType,
    /// Where its data lives.
    #[schema(example = "local")]
    pub region: String,
    /// Why nobody but the platform may act in it; null while everybody may.
    pub suspended_reason: Option<String>,
    /// What it decided about itself.
    pub settings: SettingsView,
    /// What it has booked: `standard` unless the platform's operator says otherwise.
    #[schema(value_type = String, example = "standard")]
    pub plan: PlanName,
    /// The Auth0 organization that stands for it there, if there is one.
    #[schema(example = "org_9ybsU1dN2dKfDkBi")]
    pub auth0_organization_id: Option<String>,
    /// The version that `If-Match` takes.
    #[schema(example = 1)]
    pub version: u64,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// What an organization decided about itself: all of it, the defaults included.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SettingsView {
    /// The longest life of a new API key, in days; null when keys need not expire.
    api_key_max_days: Option<u32>,
    /// Whether the keys that a member issued end when the member is removed.
    revoke_keys_on_creator_exit: bool,
    /// Your own notes.
    custom_metadata: BTreeMap<String, String>,
    /// Whether people become members by signing in.
    #[schema(schema_with = openapi::jit_provisioning)]
    jit_provisioning: JitProvisioning,
    /// Who may be invited.
    #[schema(schema_with = openapi::invite_policy)]
    invite_policy: InvitePolicy,
    /// Whose addresses may be invited, where that is restricted.
    #[schema(value_type = Vec<String>)]
    allowed_domains: BTreeSet<DomainName>,
    /// How it looks.
    branding: BrandingView,
    /// How one may prove who one is; null for every way.
    #[schema(value_type = Option<Vec<String>>)]
    allowed_auth_methods: Option<BTreeSet<LoginMethod>>,
    /// Whether people need a second factor.
    #[schema(schema_with = openapi::mfa_policy)]
    mfa_policy: MfaPolicy,
    /// Where every event of the audit log is posted to; null, too, for who may neither set that nor read the log.
    #[schema(example = "https://siem.acme.example/orgstream")]
    audit_webhook: Option<String>,
}

/// How an organization looks to its members.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BrandingView {
    /// Where its logo is.
    #[schema(example = "https://acme.example/logo.svg")]
    logo_url: Option<String>,
    /// Its colour.
    #[schema(example = "#0a84ff")]
    primary_color: Option<String>,
    /// Where its members get help.
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
    /// 1 to 500 characters; it stays in the audit log.
    #[schema(max_length = 500, example = "unpaid since May")]
    pub reason: String,
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
/// Nobody but the platform may act in it until it is resumed. For platform operators.
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

/// Put an organization on another plan
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
