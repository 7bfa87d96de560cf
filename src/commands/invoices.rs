//! Invoices: what a month is billed by, looked up in the log, and the invoices as the log has them.

use orgstream_domain::{
    CloseMonth, Command,
    account::{Account, MonthlyUsage},
    invoice::{BillingTerms, InvoiceCommand, InvoiceError, InvoiceStatus, Invoices},
};
use orgstream_events::{
    AggregateId, Amount, CommandId, Event, InvoiceEvent, InvoiceLine, InvoiceNumber, Month, OrgId, Position, Timestamp,
    cause,
};
use orgstream_stream::{Freshness, Placement};

use super::{
    handler::{CommandContext, CommandHandler, Target},
    request::{Caller, CommandError, Request},
};
use crate::clock::now;

/// The invoices of an organization as the log has them.
pub struct InvoicesState {
    /// The invoices, as of their last event.
    pub invoices: Invoices,
    /// What the account says was used.
    pub used: MonthlyUsage,
    /// The position of the last event; 0 without one.
    pub position: Position,
    placement: Placement,
}

impl CommandHandler {
    /// Returns what an organization is billed by, and what it used.
    pub(super) async fn billing(&self, placement: &Placement) -> Result<(BillingTerms, MonthlyUsage), CommandError> {
        let entitlements = self.aggregates.entitlements(placement).await?;
        let terms = BillingTerms {
            fees: entitlements.fees,
            plan: entitlements.plan,
            since: entitlements.since,
            currency: self.currency().clone(),
        };
        // What is used after this is billed later.
        Ok((terms, self.used(placement).await?))
    }

    async fn used(&self, placement: &Placement) -> Result<MonthlyUsage, CommandError> {
        let account = AggregateId::Account(placement.org);
        Ok(self.aggregates.load::<Account>(placement, &account, Freshness::Leader).await?.state.used().clone())
    }

    /// Opens the invoice of the last month if one is owed, so that it has the fee of the plan that the organization was on.
    pub(super) async fn open_last_month(
        &self,
        caller: &Caller,
        placement: &Placement,
        now: Timestamp,
    ) -> Result<(), CommandError> {
        let (org, month) = (placement.org, Month::of(now).previous());
        let (terms, used) = self.billing(placement).await?;
        let aggregate = AggregateId::Invoice(org);
        let loaded = self.aggregates.load::<Invoices>(placement, &aggregate, Freshness::Leader).await?;
        if !loaded.state.owes(month, &terms, &used) {
            return Ok(());
        }
        let command = CloseMonth { month };
        let request = Request::from(Command::from(command.clone()));
        let command_id = CommandId::fresh(now.unix_ms(), rand::random());
        let attempt = CommandContext { caller, request: &request, command_id, fingerprint: None, now };
        let to = Target { placement, aggregate };
        self.execute::<Invoices>(&attempt, &to, InvoiceCommand::Close { command, terms, used }).await.map(drop)
    }

    /// Whether closing a month of an organization would lead to something; false when it was never created.
    pub async fn owes(&self, org: OrgId, month: Month) -> Result<bool, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(false) };
        let (terms, used) = self.billing(&placement).await?;
        let loaded =
            self.aggregates.load::<Invoices>(&placement, &AggregateId::Invoice(org), Freshness::Leader).await?;
        Ok(loaded.state.owes(month, &terms, &used))
    }

    /// Returns an organization's invoices; none when it was never created.
    pub async fn invoices_of(&self, org: OrgId) -> Result<Option<InvoicesState>, CommandError> {
        let Some(placement) = self.log.placement(org).await? else { return Ok(None) };
        let loaded =
            self.aggregates.load::<Invoices>(&placement, &AggregateId::Invoice(org), Freshness::Leader).await?;
        let used = self.used(&placement).await?;
        let position = Position { org, seq: loaded.seq };
        Ok(Some(InvoicesState { invoices: loaded.state.clone(), used, position, placement }))
    }

    /// Returns the lines of an invoice and their sum: of a draft, those that it would have if it were final now.
    pub async fn lines_of(
        &self,
        state: &InvoicesState,
        number: InvoiceNumber,
    ) -> Result<Option<(Vec<InvoiceLine>, Amount)>, CommandError> {
        let Some(invoice) = state.invoices.all().get(&number) else { return Ok(None) };
        if invoice.status == InvoiceStatus::Draft {
            let lines = state.invoices.lines_of_draft(number, &state.used, now());
            return lines.map(Some).map_err(|error: InvoiceError| CommandError::Rejected(error.into()));
        }
        let aggregate = AggregateId::Invoice(state.position.org);
        let stored = self.log.commit_at(&state.placement, &aggregate, invoice.seq).await?;
        let lines = stored.commit.events.into_iter().find_map(|opened| match opened.event {
            Event::Invoice(InvoiceEvent::Finalized(event)) if event.number == number => {
                Some((event.lines, event.total))
            }
            _ => None,
        });
        let missing =
            || CommandError::Internal(cause(format!("the invoice {number} is not in the commit that made it final")));
        lines.map(Some).ok_or_else(missing)
    }
}
