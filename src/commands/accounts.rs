//! Accounts: what an organization is entitled to, and the commands that use it. All of it is read from the log, so that what was
//! credited, settled or changed a moment ago counts.

use std::{num::NonZeroU32, sync::Arc};

use orgstream_domain::{
    Command,
    account::{Account, AccountAction},
    organization::Organization,
    plan::{Entitlements, Plan},
};
use orgstream_events::{AggregateId, HoldId, OrgId, PLATFORM_ORG, PlanDefinition, PlanName, Position, cause};
use orgstream_stream::{Freshness, Placement};
use tokio_util::sync::CancellationToken;

use super::{
    account_peers::AccountPeers,
    aggregates::Aggregates,
    handler::{CommandContext, CommandHandler, Target},
    request::{Accepted, CommandError},
};
use crate::auth::Authenticator;

/// An account as the log has it.
pub struct AccountState {
    /// The account, as of its last event.
    pub account: Account,
    /// What its organization is entitled to.
    pub entitlements: Entitlements,
    /// The position of its last event; 0 without one.
    pub position: Position,
}

/// Returns what a command does to an account; none if it is about something else, or needs to be decided where it came to.
pub(super) fn action_of(command: &Command) -> Option<AccountAction> {
    match command.clone() {
        Command::ReserveUsage(command) => Some(AccountAction::Reserve(command)),
        Command::ExtendHold(command) => Some(AccountAction::Extend(command)),
        Command::SettleHold(command) => Some(AccountAction::Settle(command)),
        Command::ReleaseHold(command) => Some(AccountAction::Release(command)),
        Command::ChargeUsage(command) => Some(AccountAction::Charge(command)),
        Command::CreditAccount(command) => Some(AccountAction::Credit(command)),
        Command::RequestTopUp(command) => Some(AccountAction::RequestTopUp(command)),
        Command::PayTopUp(command) => Some(AccountAction::PayTopUp(command)),
        Command::DeclineTopUp(command) => Some(AccountAction::DeclineTopUp(command)),
        _ => None,
    }
}

impl CommandHandler {
    /// Sends the commands of an account to the process that serves it.
    pub fn with_account_peers(mut self, peers: Arc<AccountPeers>) -> Self {
        self.accounts = self.accounts.with_peers(peers);
        self
    }

    /// Carries out the commands of accounts that other processes send, until `stop`.
    pub async fn serve_accounts(
        &self,
        auth: &Arc<Authenticator>,
        stop: CancellationToken,
    ) -> Result<(), async_nats::SubscribeError> {
        match self.accounts.peers() {
            Some(peers) => self.accounts.serve(peers, auth, stop).await,
            None => {
                stop.cancelled().await;
                Ok(())
            }
        }
    }

    /// Decides a command of an account.
    pub(super) async fn account(
        &self,
        attempt: &CommandContext<'_>,
        to: &Target<'_>,
    ) -> Result<Accepted, CommandError> {
        let action = match &attempt.request.command {
            Command::ChangeTopUp(command) => {
                Some(AccountAction::ChangeTopUp { command: command.clone(), currency: self.currency().clone() })
            }
            command => action_of(command),
        };
        let Some(action) = action else {
            return Err(CommandError::Internal(cause("the command is about no account")));
        };
        let creates = matches!(action, AccountAction::Reserve(_));
        let accepted = Box::pin(self.accounts.carry_out(attempt, to.placement, action)).await?;
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

impl CommandHandler {
    /// Returns the reads per second that a plan allows; none without a limit.
    pub async fn reads_of_plan(&self, name: &PlanName) -> Result<Option<NonZeroU32>, CommandError> {
        let plan = self.plan(name).await?;
        Ok(plan.and_then(|(_, definition)| definition.limits.reads_per_second))
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
