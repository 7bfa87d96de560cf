//! Claims of values that only one organization can have: made for a command whose decision is made, and released if it has
//! no effect.

use orgstream_domain::{Rejection, RejectionKind};
use orgstream_events::{Chain, OrgId};
use orgstream_stream::ClaimError;

use super::{
    handler::CommandHandler,
    request::{Accepted, CommandError},
};

/// A claim that a command made, or found made.
pub(super) struct Claim {
    scope: &'static str,
    value: String,
    /// Its position in the log if it is new; an earlier claim of the organization stays in any case.
    new: Option<u64>,
}

impl CommandHandler {
    /// Claims a value for one organization; `taken` is the refusal when another one has it.
    pub(super) async fn claim(
        &self,
        scope: &'static str,
        value: &str,
        org: OrgId,
        taken: (&'static str, String),
    ) -> Result<Claim, CommandError> {
        made(scope, value, self.log.claim(scope, value, org).await, taken)
    }

    /// Like `claim`, for a value that another command releases: see [`CommandHandler::held`].
    pub(super) async fn claim_anew(
        &self,
        scope: &'static str,
        value: &str,
        org: OrgId,
        taken: (&'static str, String),
    ) -> Result<Claim, CommandError> {
        made(scope, value, self.log.claim_anew(scope, value, org).await, taken)
    }

    /// Returns the organization's claim, queried before a command that ends the need for it, to be released after that. A
    /// new claim in between keeps it.
    pub(super) async fn held(&self, scope: &'static str, value: &str, org: OrgId) -> Result<Claim, CommandError> {
        Ok(Claim { scope, value: value.to_owned(), new: self.log.claim_of(scope, value, org).await? })
    }

    /// Releases what was claimed for a command that certainly had no effect.
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

    /// Releases claims that are no longer needed. A claim whose release fails stays the organization's.
    pub(super) async fn give_back(&self, claims: impl IntoIterator<Item = Claim>, org: OrgId) {
        for Claim { scope, value, new } in claims {
            let Some(seq) = new else { continue };
            if let Err(error) = self.log.release(scope, &value, org, seq).await {
                tracing::warn!(error = %Chain(&error), org.id = %org, scope, "what an organization claimed could not be given back");
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
