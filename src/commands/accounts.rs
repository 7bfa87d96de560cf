//! Accounts: what an organization is entitled to, and the commands that use it. All of it is read from the log, so that what was
//! credited, settled or changed a moment ago counts.

use orgstream_domain::{
    account::{Account, AccountAction},
    organization::Organization,
    plan::{Entitlements, Plan},
};
use orgstream_events::{AggregateId, HoldId, OrgId, PLATFORM_ORG, PlanDefinition, PlanName, Position};
use orgstream_stream::{Freshness, Placement};

use super::{
    aggregates::Aggregates,
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};

/// An account as the log has it.
pub struct AccountState {
    /// The account, as of its last event.
    pub account: Account,
    /// What its organization is entitled to.
    pub entitlements: Entitlements,
    /// The position of its last event; 0 without one.
    pub position: Position,
}

impl CommandHandler {
    /// Decides a command of an account.
    pub(super) async fn account(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
        command: AccountAction,
    ) -> Result<Accepted, CommandError> {
        let creates = matches!(command, AccountAction::Reserve(_));
        let accepted = self.accounts.carry_out(attempt, to.placement, command).await?;
        let hold = creates.then(|| HoldId::derive(accepted.command_id));
        Ok(Accepted { hold, ..accepted })
    }

    /// Returns an organization's account and what it is entitled to; none when it was never created.
    pub async fn account_of(&self, org: OrgId) -> Result<Option<AccountState>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let entitlements = self.aggregates.entitlements(&placement).await?;
        let loaded = self.aggregates.load::<Account>(&placement, &AggregateId::Account(org), Freshness::Leader).await?;
        let position = Position { org, seq: loaded.seq };
        Ok(Some(AccountState { account: loaded.state.clone(), entitlements, position }))
    }

    /// Returns the last version of a plan, and its number; none when it was never published.
    pub async fn plan(&self, name: &PlanName) -> Result<Option<(u64, PlanDefinition)>, CommandError> {
        let placement = self.aggregates.placement(PLATFORM_ORG).await?;
        let loaded = self.aggregates.look::<Plan>(&placement, &AggregateId::Plan(name.clone())).await?;
        Ok(loaded.state.last().map(|(version, definition)| (version, definition.clone())))
    }
}

impl Aggregates {
    /// Returns what an organization is entitled to, at most a second old: its plan, and its own limits before those.
    pub(super) async fn entitlements(&self, placement: &Placement) -> Result<Entitlements, CommandError> {
        let aggregate = AggregateId::Organization(placement.org);
        let organization = self.look::<Organization>(placement, &aggregate).await?;
        let profile = organization.state.profile().ok_or(CommandError::NoOrganization(placement.org))?;
        let platform = self.placement(PLATFORM_ORG).await?;
        let plan = self.look::<Plan>(&platform, &AggregateId::Plan(profile.plan.clone())).await?;
        Ok(Entitlements::resolve(&profile.plan, &plan.state, profile.limits.clone(), profile.plan_since))
    }
}
