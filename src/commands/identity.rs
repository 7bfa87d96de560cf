//! An organization's counterpart at the external identity provider: resolved before the organization is decided, so that
//! both are in one commit.
//!
//! It is created under a name that follows from the organization's id. A retry, after whatever failure, finds it.

use orgstream_domain::{
    CreateOrganization, Rejection, RejectionKind, UpgradeOrganization,
    organization::{ExternalIdentity, Organization, OrganizationCommand},
};
use orgstream_events::{AggregateId, Chain, OrgId, TenantType};

use super::{
    claiming::Claim,
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};
use crate::adapters::identity_provider::{AUTH0, IdpError};

impl CommandHandler {
    /// Returns the counterpart that the caller names, or a new one where the platform has a provider. Personal organizations
    /// have none.
    pub(super) async fn identity(
        &self,
        org: OrgId,
        command: &CreateOrganization,
        claims: &mut Vec<Claim>,
    ) -> Result<Option<ExternalIdentity>, CommandError> {
        let Some(id) = &command.auth0_organization_id else {
            if command.tenant_type == TenantType::Personal {
                return Ok(None);
            }
            return self.provisioned(org, &command.name).await;
        };
        if !self.idp.exists(id).await.map_err(|error| unavailable(&error))? {
            let detail = format!("Auth0 has no organization {id} in this tenant");
            return Err(Rejection::field("/auth0_organization_id", "unknown", detail).into());
        }
        let detail =
            format!("{id} stands for another organization already: give another one, or none to have one made");
        claims.push(self.claim(AUTH0, id, org, ("identity_taken", detail)).await?);
        Ok(Some(ExternalIdentity { provider: AUTH0.to_owned(), external_id: id.clone() }))
    }

    /// Upgrades a personal organization, and links its counterpart at the provider.
    pub(super) async fn upgrade_organization(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: UpgradeOrganization,
    ) -> Result<Accepted, CommandError> {
        let org = to.placement.org;
        let organization = self.aggregates.look::<Organization>(to.placement, &AggregateId::Organization(org)).await?;
        let personal = organization.state.profile().filter(|profile| profile.tenant_type == TenantType::Personal);
        let identity = match personal {
            Some(profile) if profile.external_id.is_none() => self.provisioned(org, &profile.name).await?,
            _ => None,
        };
        self.execute::<Organization>(attempt, to, OrganizationCommand::Upgrade { command, identity }).await
    }

    async fn provisioned(&self, org: OrgId, name: &str) -> Result<Option<ExternalIdentity>, CommandError> {
        let made = self.idp.provision(org, name).await.map_err(|error| unavailable(&error))?;
        Ok(made.map(|external_id| ExternalIdentity { provider: AUTH0.to_owned(), external_id }))
    }
}

fn unavailable(error: &IdpError) -> CommandError {
    tracing::warn!(error = %Chain(error), "the external identity provider cannot be asked");
    let detail = "the external identity provider does not answer; nothing was created, try again";
    Rejection::new(RejectionKind::Conflict, "identity_provider_unavailable", detail).into()
}
