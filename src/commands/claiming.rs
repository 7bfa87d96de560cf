//! What one organization alone can have: claimed for a command whose decision is made, and given back if nothing comes of it.

use orgstream_domain::{Rejection, RejectionKind};
use orgstream_events::OrgId;
use orgstream_stream::ClaimError;

use super::{
    handler::CommandHandler,
    request::{Accepted, CommandError},
};

/// A claim that a command made, or found made.
pub(super) struct Claim {
    scope: &'static str,
    value: String,
    /// Where it stands in the log if it is new; one that the organization had before stays whatever happens.
    new: Option<u64>,
}

impl CommandHandler {
    /// Claims what one organization alone can have; `taken` is the refusal when another one has it.
    pub(super) async fn claim(
        &self,
        scope: &'static str,
        value: &str,
        org: OrgId,
        taken: (&'static str, String),
    ) -> Result<Claim, CommandError> {
        made(scope, value, self.log.claim(scope, value, org).await, taken)
    }

    /// The same for what another command gives back: see [`CommandHandler::held`].
    pub(super) async fn claim_anew(
        &self,
        scope: &'static str,
        value: &str,
        org: OrgId,
        taken: (&'static str, String),
    ) -> Result<Claim, CommandError> {
        made(scope, value, self.log.claim_anew(scope, value, org).await, taken)
    }

    /// What the organization has claimed, found before a command that ends the need for it, to be given back after that.
    /// Who claims it anew in between keeps it.
    pub(super) async fn held(&self, scope: &'static str, value: &str, org: OrgId) -> Result<Claim, CommandError> {
        Ok(Claim { scope, value: value.to_owned(), new: self.log.claim_of(scope, value, org).await? })
    }

    /// Gives back what was claimed for a command of which it is certain that nothing came.
    pub(super) async fn settle(
        &self,
        claims: Vec<Claim>,
        org: OrgId,
        result: Result<Accepted, CommandError>,
    ) -> Result<Accepted, CommandError> {
        if result.as_ref().is_err_and(CommandError::is_certain) {
            self.give_back(claims, org).await;
        }
        result
    }

    /// Gives back what nothing needs any more. What cannot be given back stays the organization's.
    pub(super) async fn give_back(&self, claims: impl IntoIterator<Item = Claim>, org: OrgId) {
        for Claim { scope, value, new } in claims {
            let Some(seq) = new else { continue };
            if let Err(error) = self.log.release(scope, &value, org, seq).await {
                tracing::warn!(%error, org.id = %org, scope, "what an organization claimed could not be given back");
            }
        }
    }
}

fn made(
    scope: &'static str,
    value: &str,
    claimed: Result<Option<u64>, ClaimError>,
    taken: (&'static str, String),
) -> Result<Claim, CommandError> {
    match claimed {
        Ok(new) => Ok(Claim { scope, value: value.to_owned(), new }),
        Err(ClaimError::Taken { .. }) => Err(Rejection::new(RejectionKind::Conflict, taken.0, taken.1).into()),
        Err(ClaimError::Stream(error)) => Err(error.into()),
    }
}
