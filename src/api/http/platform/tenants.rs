//! `POST /api/v1/tenants/`: an organization under the name that some clients know it by.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, request::Parts},
    response::Response,
};
use orgstream_domain::{
    Command, CreateOrganization, openapi,
    organization::{organization, tenant_type},
};
use orgstream_events::{Fingerprint, Slug, TenantType};
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
            extract::{Body, SignedIn, idempotency_key, info},
            reply,
        },
    },
    app::{problem::Problem, submit::AcceptedCommand},
    auth::Principal,
    commands::request::Request,
};

/// The number of characters of a name that go into the slug.
const READABLE: usize = 40;

/// A new tenant, which is the same as an organization.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Display name, 1 to 120 characters.
    #[schema(example = "Acme Corp", max_length = 120)]
    pub display_name: String,
    /// Type of tenant in any case of letters: `organization` by default, which may also be called `tenant`.
    #[serde(default = "organization", deserialize_with = "tenant_type")]
    #[schema(schema_with = openapi::tenant_type_of_request)]
    pub tenant_type: TenantType,
    /// Id of the Auth0 organization to bind; without it one is made, where the platform has an Auth0 tenant.
    #[schema(example = "org_9ybsU1dN2dKfDkBi")]
    pub auth0_organization_id: Option<String>,
}

/// The tenant that was made.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreatedTenant {
    /// Tenant id, equal to the organization id (`org_` and 26 characters).
    #[schema(example = "org_01h455vb4pex5vsknk084sn02q")]
    pub tenant_id: String,
    /// Display name, 1 to 120 characters.
    #[schema(example = "Acme Corp")]
    pub display_name: String,
    /// Name in URLs, made from the display name; it can be changed.
    #[schema(value_type = String, example = "acme-corp-3k9x0q2m")]
    pub slug: Slug,
    /// Type of tenant: `personal`, `organization`, `team` or `workspace`.
    #[schema(schema_with = openapi::tenant_type)]
    pub tenant_type: TenantType,
    /// What became of the command.
    #[serde(flatten)]
    pub command: AcceptedCommand,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(create), Policy::SignedIn, Shape::Create, AuditTrail::Events).route(
        routes!(create_without_slash),
        Policy::SignedIn,
        Shape::Create,
        AuditTrail::Events,
    )
}

/// Create a tenant
///
/// The same as creating an organization, for clients that call it a tenant; its slug follows from the name. You become its
/// owner. Only people can do this, no API keys: `session_only`.
#[utoipa::path(
    post, path = "/api/v1/tenants/", operation_id = "create_tenant", tag = "organizations",
    request_body = CreateTenant, responses((status = 201, description = "Created", body = CreatedTenant)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    SignedIn(principal): SignedIn,
    parts: Parts,
    Body(body): Body<CreateTenant>,
) -> Result<Response, Problem> {
    let CreateTenant { display_name, tenant_type, auth0_organization_id } = body;
    // Reported here, because the command calls it by another name.
    if display_name.trim().is_empty() || display_name.chars().count() > 120 {
        return Err(Problem::invalid("/display_name", "length", "must have 1 to 120 characters besides spaces"));
    }
    let key = idempotency_key(&parts)?;
    let slug = slug(&display_name, &principal, key.as_deref())?;
    let (name, slug_of_it) = (display_name.clone(), slug.clone());
    let command = CreateOrganization { name, slug: slug_of_it, tenant_type, auth0_organization_id };
    let request = Request { idempotency_key: key, ..Command::from(command).into() };
    let accepted = app.gateway.create_organization(&principal, &info(&parts).origin(), request).await?;
    let id = accepted.position.org.to_string();
    let location = format!("/v1/organizations/{id}");
    reply::accepted(StatusCode::CREATED, Some(location), accepted, |command| CreatedTenant {
        tenant_id: id,
        display_name,
        slug,
        tenant_type,
        command,
    })
}

/// Create a tenant, without the slash
///
/// The same as `POST /api/v1/tenants/`.
#[utoipa::path(
    post, path = "/api/v1/tenants", operation_id = "create_tenant_without_slash", tag = "organizations",
    request_body = CreateTenant, responses((status = 201, description = "Created", body = CreatedTenant)),
)]
pub async fn create_without_slash(
    state: State<Arc<App>>,
    principal: SignedIn,
    parts: Parts,
    body: Body<CreateTenant>,
) -> Result<Response, Problem> {
    create(state, principal, parts, body).await
}

/// Returns a readable form of the name, with some letters so that two of one name do not collide. Under an idempotency key
/// they are the same again, so that a retry is the same command.
fn slug(name: &str, principal: &Principal, key: Option<&str>) -> Result<Slug, Problem> {
    let mut readable = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            readable.push(c.to_ascii_lowercase());
        } else if !readable.is_empty() && !readable.ends_with('-') {
            readable.push('-');
        }
        if readable.len() >= READABLE {
            break;
        }
    }
    let actor = principal.actor().id;
    let seed = match key {
        Some(key) => Fingerprint::of(&[b"tenant slug ", actor.as_bytes(), b"/", key.as_bytes()]).0,
        None => rand::random(),
    };
    let letters = b"0123456789abcdefghjkmnpqrstvwxyz";
    let end: String =
        seed.iter().take(8).filter_map(|byte| letters.get(usize::from(byte % 32)).copied().map(char::from)).collect();
    let readable = readable.trim_end_matches('-');
    let text = if readable.is_empty() { format!("tenant-{end}") } else { format!("{readable}-{end}") };
    text.parse().map_err(Problem::internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Operator;

    #[test]
    fn a_slug_can_be_read_and_repeats_under_a_key() {
        let slug =
            |name: &str, key: Option<&str>| slug(name, &Principal::Operator(Operator::Token), key).unwrap().to_string();
        assert!(slug("Acme Corp. (EU)", None).starts_with("acme-corp-eu-"));
        assert!(slug("日本", None).starts_with("tenant-"));
        assert_ne!(slug("Acme", None), slug("Acme", None));
        assert_eq!(slug("Acme", Some("k")), slug("Acme", Some("k")));
        assert_ne!(slug("Acme", Some("k")), slug("Acme", Some("l")));
        for name in ["-", "a--b", &"x -".repeat(40), "ä a ä"] {
            assert!(!slug(name, None).contains("--"), "{name}");
        }
    }
}
