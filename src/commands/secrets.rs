//! The secrets of API keys: created here, given once to the caller, and known to no other party.

use orgstream_domain::{
    IssueApiKey, Rejection, RotateApiKey,
    api_key::{ApiKey, ApiKeyCommand, ApiKeyError},
    credentials::key::KeyToken,
    organization::Organization,
};
use orgstream_events::{AggregateId, KeyEnvironment, Timestamp};
use orgstream_stream::Placement;

use super::{
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};

impl CommandHandler {
    /// The token is derived from the command, so that a retry is given the same one and no other party can make it.
    pub(super) async fn issue_api_key(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: IssueApiKey,
    ) -> Result<Accepted, CommandError> {
        let max_days = self.max_key_days(to.placement).await?;
        let token = KeyToken::generate(command.environment, self.pepper().derive(attempt.command_id.uuid().as_bytes()));
        let (stored, inherited) = (token.stored(self.pepper()), attempt.caller.scopes.names());
        let creator = self.vouching(to.placement, attempt.actor()).await?;
        let issue = ApiKeyCommand::Issue { command, token: stored, inherited, creator, max_days };
        let accepted = self.execute::<ApiKey>(attempt, to, issue).await?;
        Ok(Accepted { token: Some(token), ..accepted })
    }

    pub(super) async fn rotate_api_key(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: RotateApiKey,
    ) -> Result<Accepted, CommandError> {
        let max_days = self.max_key_days(to.placement).await?;
        let key = self.aggregates.look::<ApiKey>(to.placement, &to.aggregate).await?;
        self.not_ended(to.placement, key.state.issued_at()).await?;
        // A missing key is refused by its own rules.
        let environment = key.state.issued().map_or(KeyEnvironment::Live, |issued| issued.environment);
        let token = KeyToken::generate(environment, self.pepper().derive(attempt.command_id.uuid().as_bytes()));
        let stored = token.stored(self.pepper());
        let rotate = ApiKeyCommand::Rotate { command, token: stored, max_days };
        let accepted = self.execute::<ApiKey>(attempt, to, rotate).await?;
        Ok(Accepted { token: Some(token), ..accepted })
    }

    /// Refuses a key that ended when a deletion of its organization was requested.
    async fn not_ended(&self, placement: &Placement, issued_at: Option<Timestamp>) -> Result<(), CommandError> {
        let organization = AggregateId::Organization(placement.org);
        let organization = self.aggregates.look::<Organization>(placement, &organization).await?;
        if organization.state.has_ended_key_of(issued_at) {
            return Err(Rejection::from(ApiKeyError::Ended).into());
        }
        Ok(())
    }

    async fn max_key_days(&self, placement: &Placement) -> Result<Option<u32>, CommandError> {
        let organization =
            self.aggregates.look::<Organization>(placement, &AggregateId::Organization(placement.org)).await?;
        Ok(organization.state.profile().and_then(|profile| profile.settings.api_key_max_days))
    }
}
