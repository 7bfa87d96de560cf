//! All invoices of an organization: what it owes for each calendar month, numbered without a gap. Nothing is billed twice.
//!
//! An account's usage only grows, and the invoices remember how much of it they have. What is billed is the difference, decided
//! with the next number in one append, so it does not matter how often or by how many a month is closed. A draft has no lines
//! of its own: until it is final, it is what it would be if it became final now.

mod commands;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use orgstream_events::{
    AggregateType, Amount, BucketSource, Currency, Event, InvoiceBillingEnded, InvoiceCustomerLinked,
    InvoiceCustomerReleased, InvoiceEvent, InvoiceFinalized, InvoiceLine, InvoiceLineType, InvoiceNumber,
    InvoiceOpened, InvoicePaid, InvoicePushed, InvoiceVoided, InvoiceWithdrawn, MeterName, Month, PlanVersion,
    Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    Aggregate, DecisionContext, FieldError, Place, Rejection, RejectionKind,
    account::{MeteredUse, MonthlyUsage, USAGE_DAYS},
    plan::PlanFee,
    text::Faults,
};

pub use commands::{
    CloseMonth, EndBilling, LinkBillingCustomer, MarkInvoicePaid, NoteBillingCustomerReleased, NoteInvoicePushed,
    NoteInvoiceWithdrawn, VoidInvoice,
};
use provider::AtProvider;
pub use provider::{ProviderNote, ProviderStep};

/// The time from the end of a month to its final invoice, in hours: holds of the month last as long.
pub const FINAL_AFTER_HOURS: i64 = 24;
const HOUR_MS: i64 = 3_600_000;

/// The state of an organization's invoices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Invoices {
    /// The time of the last event. It never goes back.
    at: Timestamp,
    by_number: BTreeMap<InvoiceNumber, Invoice>,
    /// The usage that final invoices have, by its month.
    billed: BTreeMap<Month, Vec<BilledUse>>,
    /// The last month whose fee is on an invoice.
    last_fee: Option<Month>,
    /// The last month that was over when its invoice became final.
    last_closed: Option<Month>,
    /// When billing ended, if it ever did.
    ended_at: Option<Timestamp>,
    /// What the payment provider was told.
    at_provider: AtProvider,
}

/// An invoice, without its lines: those are in the commit that made it final.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// The month that it is of.
    pub month: Month,
    /// The status.
    pub status: InvoiceStatus,
    /// The currency.
    pub currency: Currency,
    /// The plan whose fee it has.
    pub plan: PlanVersion,
    /// The fee of the month.
    pub fee: Amount,
    /// The total, once it is final.
    pub total: Amount,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it became final.
    pub finalized_at: Option<Timestamp>,
    /// When it was paid or voided.
    pub settled_at: Option<Timestamp>,
    /// The payment, once it is paid.
    pub payment: Option<String>,
    /// The sequence of the commit that made it final; 0 before.
    pub seq: u64,
}

/// What became of an invoice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceStatus {
    /// It takes usage of its month.
    Draft,
    /// It is owed.
    Final,
    /// It is paid.
    Paid,
    /// It is not owed.
    Void,
}

impl InvoiceStatus {
    /// Returns the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Final => "final",
            Self::Paid => "paid",
            Self::Void => "void",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BilledUse {
    meter: MeterName,
    source: BucketSource,
    price_per_million: Option<Amount>,
    quantity: Amount,
}

impl BilledUse {
    fn is_of(&self, used: &MeteredUse) -> bool {
        let MeteredUse { meter, source, price_per_million, amount: _ } = used;
        (&self.meter, self.source, self.price_per_million) == (meter, *source, *price_per_million)
    }
}

/// What an organization is billed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingTerms {
    /// The plan and its version.
    pub plan: PlanVersion,
    /// When the organization was put on it.
    pub since: Timestamp,
    /// The fees that it had, the oldest first.
    pub fees: Vec<PlanFee>,
    /// The currency of prices and fees.
    pub currency: Currency,
}

impl BillingTerms {
    /// Returns the plan's fee for a month: that of its last version that was published before the month ended.
    fn fee_of(&self, month: Month) -> Amount {
        let last = self.fees.iter().rfind(|fee| fee.at < month.end());
        last.map_or(Amount::ZERO, |fee| fee.monthly_fee)
    }
}

/// A command about invoices, with what was looked up for it.
#[derive(Debug, Clone, PartialEq)]
pub enum InvoiceCommand {
    /// Closes a month.
    Close {
        /// The command as received.
        command: CloseMonth,
        /// What it is billed by.
        terms: BillingTerms,
        /// What the account says was used.
        used: MonthlyUsage,
    },
    /// Ends billing.
    End {
        /// The command as received.
        command: EndBilling,
        /// What it is billed by.
        terms: BillingTerms,
        /// What the account says was used.
        used: MonthlyUsage,
    },
    /// Notes a payment.
    MarkPaid(MarkInvoicePaid),
    /// Voids an invoice.
    Void(VoidInvoice),
    /// Notes what the payment provider was told.
    Note(ProviderNote),
}

/// The invoices as a decision makes them, and the events of that.
struct Billing<'a> {
    invoices: Invoices,
    events: Vec<InvoiceEvent>,
    now: Timestamp,
    terms: &'a BillingTerms,
    used: &'a MonthlyUsage,
}

impl Billing<'_> {
    fn happen(&mut self, event: InvoiceEvent) {
        self.invoices.apply(&event);
        self.events.push(event);
    }

    /// Makes the draft final, if there is one of a month before this one.
    fn finish_drafts_before(&mut self, month: Month) -> Result<(), InvoiceError> {
        match self.invoices.draft() {
            Some((number, draft)) if draft.month < month => self.finish(number),
            _ => Ok(()),
        }
    }

    /// Opens the invoice of a month if something is owed, and makes it final if it is time.
    fn bill(&mut self, month: Month, is_time: bool) -> Result<(), InvoiceError> {
        let number = match self.invoices.draft() {
            Some((_, draft)) if draft.month != month => return Ok(()),
            Some((number, _)) => number,
            None => {
                let number = self.invoices.next_number().ok_or(InvoiceError::TooMuch)?;
                let opened = InvoiceOpened {
                    at: self.now,
                    number,
                    month,
                    currency: self.terms.currency.clone(),
                    plan: self.terms.plan.clone(),
                    fee: self.invoices.fee_of(month, self.terms),
                };
                let (_, total) = self.invoices.lines(month, opened.fee, self.used, self.now)?;
                if total.is_zero() {
                    return Ok(());
                }
                self.happen(InvoiceEvent::Opened(opened));
                number
            }
        };
        if is_time { self.finish(number) } else { Ok(()) }
    }

    fn finish(&mut self, number: InvoiceNumber) -> Result<(), InvoiceError> {
        let (lines, total) = self.invoices.lines_of_draft(number, self.used, self.now)?;
        self.happen(InvoiceEvent::Finalized(InvoiceFinalized { at: self.now, number, lines, total }));
        Ok(())
    }
}

impl Invoices {
    /// Returns every invoice, by number.
    pub fn all(&self) -> &BTreeMap<InvoiceNumber, Invoice> {
        &self.by_number
    }

    /// Returns the invoice that takes usage at the moment.
    pub fn draft(&self) -> Option<(InvoiceNumber, &Invoice)> {
        let (number, last) = self.by_number.last_key_value()?;
        (last.status == InvoiceStatus::Draft).then_some((*number, last))
    }

    /// Returns the lines that a draft would have if it became final now, and their sum.
    pub fn lines_of_draft(
        &self,
        number: InvoiceNumber,
        used: &MonthlyUsage,
        now: Timestamp,
    ) -> Result<(Vec<InvoiceLine>, Amount), InvoiceError> {
        let draft = self.by_number.get(&number).ok_or(InvoiceError::Unknown(number))?;
        self.lines(draft.month, draft.fee, used, now)
    }

    /// Whether something was used up to the end of a month that has a price and is on no invoice, or a fee is owed for it.
    pub fn owes(&self, month: Month, terms: &BillingTerms, used: &MonthlyUsage) -> bool {
        let is_unbilled = || {
            let months = used.range(..=month).filter(|(month, _)| self.is_billable(**month, self.at));
            let mut uses = months.flat_map(|(month, uses)| uses.iter().map(move |used| (month, used)));
            uses.any(|(month, used)| used.price_per_million.is_some() && !self.unbilled(*month, used).is_zero())
        };
        self.draft().is_some() || !self.fee_of(month, terms).is_zero() || is_unbilled()
    }

    fn next_number(&self) -> Option<InvoiceNumber> {
        let last = self.by_number.last_key_value().map_or(0, |(number, _)| number.0);
        last.checked_add(1).map(InvoiceNumber)
    }

    /// Returns the fee that is owed for a month and on no invoice.
    fn fee_of(&self, month: Month, terms: &BillingTerms) -> Amount {
        let is_on_an_invoice = self.last_fee.is_some_and(|last| month <= last);
        let began_later = terms.since >= month.end();
        let ended_before = self.ended_at.is_some_and(|ended| ended >= terms.since && ended < month.start());
        if is_on_an_invoice || began_later || ended_before { Amount::ZERO } else { terms.fee_of(month) }
    }

    fn is_billable(&self, month: Month, now: Timestamp) -> bool {
        month.end().unix_ms() > now.max(self.at).unix_ms() - USAGE_DAYS * 24 * HOUR_MS
    }

    /// Returns the part of what was used in a month that is on no final invoice.
    fn unbilled(&self, month: Month, used: &MeteredUse) -> Amount {
        let billed = self.billed.get(&month).into_iter().flatten().find(|billed| billed.is_of(used));
        billed.map_or(used.amount, |billed| used.amount.less(billed.quantity))
    }

    /// Returns the lines of an invoice of `month` with everything up to its end that is on no other, and their sum.
    fn lines(
        &self,
        month: Month,
        fee: Amount,
        used: &MonthlyUsage,
        now: Timestamp,
    ) -> Result<(Vec<InvoiceLine>, Amount), InvoiceError> {
        let mut lines = Vec::new();
        if !fee.is_zero() {
            lines.push(InvoiceLine {
                line_type: InvoiceLineType::Fee,
                month,
                meter: None,
                source: None,
                quantity: Amount::units(1),
                price_per_million: None,
                amount: fee,
            });
        }
        for (of, uses) in used.range(..=month).filter(|(of, _)| self.is_billable(**of, now)) {
            for used in uses {
                let quantity = self.unbilled(*of, used);
                let price = used.price_per_million.unwrap_or_default();
                // What is not owed is shown on the invoice of its own month.
                if quantity.is_zero() || (used.price_per_million.is_none() && *of != month) {
                    continue;
                }
                let amount = quantity.priced(price).ok_or(InvoiceError::TooMuch)?;
                let line_type = if *of == month { InvoiceLineType::Usage } else { InvoiceLineType::Adjustment };
                lines.push(InvoiceLine {
                    line_type,
                    month: *of,
                    meter: Some(used.meter.clone()),
                    source: Some(used.source),
                    quantity,
                    price_per_million: used.price_per_million,
                    amount,
                });
            }
        }
        let total = lines.iter().map(|line| line.amount).try_fold(Amount::ZERO, Amount::plus);
        Ok((lines, total.ok_or(InvoiceError::TooMuch)?))
    }

    fn invoice(&self, number: InvoiceNumber) -> Result<&Invoice, InvoiceError> {
        self.by_number.get(&number).ok_or(InvoiceError::Unknown(number))
    }
}

/// Returns the moment from which the invoice of a month is final.
pub fn final_at(month: Month) -> Timestamp {
    Timestamp::from_unix_ms(month.end().unix_ms() + FINAL_AFTER_HOURS * HOUR_MS)
}

fn plus(one: Amount, other: Amount) -> Amount {
    one.plus(other).unwrap_or(Amount::MAX)
}

impl Aggregate for Invoices {
    type Command = InvoiceCommand;
    type Event = InvoiceEvent;
    type Error = InvoiceError;
    const TYPE: AggregateType = AggregateType::Invoice;
    const SHAPE: u16 = 2;

    fn apply(&mut self, event: &InvoiceEvent) {
        match event {
            InvoiceEvent::Opened(event) => {
                self.at = event.at;
                if !event.fee.is_zero() {
                    self.last_fee = self.last_fee.max(Some(event.month));
                }
                let invoice = Invoice {
                    month: event.month,
                    status: InvoiceStatus::Draft,
                    currency: event.currency.clone(),
                    plan: event.plan.clone(),
                    fee: event.fee,
                    total: Amount::ZERO,
                    opened_at: event.at,
                    finalized_at: None,
                    settled_at: None,
                    payment: None,
                    seq: 0,
                };
                self.by_number.insert(event.number, invoice);
            }
            InvoiceEvent::Finalized(event) => {
                self.at = event.at;
                let Some(invoice) = self.by_number.get_mut(&event.number) else { return };
                invoice.status = InvoiceStatus::Final;
                invoice.total = event.total;
                invoice.finalized_at = Some(event.at);
                if invoice.month.end() <= event.at {
                    self.last_closed = self.last_closed.max(Some(invoice.month));
                }
                for line in &event.lines {
                    let (Some(meter), Some(source)) = (&line.meter, line.source) else { continue };
                    let InvoiceLine { price_per_million, quantity, .. } = *line;
                    let used = MeteredUse { meter: meter.clone(), source, price_per_million, amount: quantity };
                    let billed = self.billed.entry(line.month).or_default();
                    match billed.iter_mut().find(|billed| billed.is_of(&used)) {
                        Some(billed) => billed.quantity = plus(billed.quantity, quantity),
                        None => billed.push(BilledUse { meter: used.meter, source, price_per_million, quantity }),
                    }
                }
                let oldest = event.at.unix_ms() - USAGE_DAYS * 24 * HOUR_MS;
                self.billed.retain(|month, _| month.end().unix_ms() > oldest);
            }
            InvoiceEvent::Paid(event) => {
                self.at = event.at;
                let Some(invoice) = self.by_number.get_mut(&event.number) else { return };
                invoice.status = InvoiceStatus::Paid;
                invoice.settled_at = Some(event.at);
                invoice.payment = Some(event.payment.clone());
            }
            InvoiceEvent::Voided(event) => {
                self.at = event.at;
                let Some(invoice) = self.by_number.get_mut(&event.number) else { return };
                invoice.status = InvoiceStatus::Void;
                invoice.settled_at = Some(event.at);
            }
            InvoiceEvent::BillingEnded(event) => {
                self.at = event.at;
                self.ended_at = Some(event.at);
            }
            InvoiceEvent::CustomerLinked(InvoiceCustomerLinked { at, .. })
            | InvoiceEvent::Pushed(InvoicePushed { at, .. })
            | InvoiceEvent::Withdrawn(InvoiceWithdrawn { at, .. })
            | InvoiceEvent::CustomerReleased(InvoiceCustomerReleased { at, .. }) => {
                self.at = *at;
                self.apply_at_provider(event);
            }
        }
    }

    fn apply_at(&mut self, event: &InvoiceEvent, place: Place<'_>) {
        self.apply(event);
        if let InvoiceEvent::Finalized(event) = event
            && let Some(invoice) = self.by_number.get_mut(&event.number)
        {
            invoice.seq = place.seq;
        }
    }

    fn decide(&self, command: InvoiceCommand, context: &DecisionContext) -> Result<Vec<InvoiceEvent>, InvoiceError> {
        // Clocks of processes differ; that of the invoices never goes back.
        let now = context.now.max(self.at);
        let billing = |terms, used| Billing { invoices: self.clone(), events: Vec::new(), now, terms, used };
        match command {
            InvoiceCommand::Close { command: CloseMonth { month }, terms, used } => {
                if now < month.end() {
                    return Err(InvoiceError::MonthNotOver { month });
                }
                if self.last_closed.is_some_and(|closed| month <= closed) {
                    return Ok(Vec::new());
                }
                let mut billing = billing(&terms, &used);
                billing.finish_drafts_before(month)?;
                billing.bill(month, now >= final_at(month))?;
                Ok(billing.events)
            }
            InvoiceCommand::End { command: EndBilling { reason }, terms, used } => {
                check_reason(&reason)?;
                let this = Month::of(now);
                let before = this.previous();
                let mut billing = billing(&terms, &used);
                billing.finish_drafts_before(before)?;
                if self.last_closed.is_none_or(|closed| closed < before) {
                    billing.bill(before, true)?;
                }
                billing.bill(this, true)?;
                if self.ended_at.is_none_or(|ended| ended < terms.since) {
                    billing.happen(InvoiceEvent::BillingEnded(InvoiceBillingEnded { at: now, reason }));
                }
                Ok(billing.events)
            }
            InvoiceCommand::MarkPaid(MarkInvoicePaid { number, payment }) => {
                check_name("/payment", &payment)?;
                let invoice = self.invoice(number)?;
                match invoice.status {
                    InvoiceStatus::Draft => Err(InvoiceError::NotFinal(number)),
                    InvoiceStatus::Final => Ok(vec![InvoiceEvent::Paid(InvoicePaid { at: now, number, payment })]),
                    InvoiceStatus::Paid if invoice.payment.as_ref() == Some(&payment) => Ok(Vec::new()),
                    status @ (InvoiceStatus::Paid | InvoiceStatus::Void) => {
                        Err(InvoiceError::Settled { number, status })
                    }
                }
            }
            InvoiceCommand::Note(note) => Ok(self.note(note, now)?.into_iter().collect()),
            InvoiceCommand::Void(VoidInvoice { number, reason }) => {
                check_reason(&reason)?;
                match self.invoice(number)?.status {
                    InvoiceStatus::Draft => Err(InvoiceError::NotFinal(number)),
                    InvoiceStatus::Final => Ok(vec![InvoiceEvent::Voided(InvoiceVoided { at: now, number, reason })]),
                    InvoiceStatus::Void => Ok(Vec::new()),
                    status @ InvoiceStatus::Paid => Err(InvoiceError::Settled { number, status }),
                }
            }
        }
    }

    fn wrap(event: InvoiceEvent) -> Event {
        Event::Invoice(event)
    }

    fn event_of(event: &Event) -> Option<&InvoiceEvent> {
        if let Event::Invoice(event) = event { Some(event) } else { None }
    }
}

fn check_name(pointer: &str, name: &str) -> Result<(), InvoiceError> {
    let mut faults = Faults::default();
    faults.name_elsewhere(pointer, name);
    faults.none_or(InvoiceError::Invalid)
}

fn check_reason(reason: &str) -> Result<(), InvoiceError> {
    let mut faults = Faults::default();
    faults.reason("/reason", reason);
    faults.none_or(InvoiceError::Invalid)
}

/// The reasons why a command about invoices is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvoiceError {
    /// Fields are malformed.
    #[error("{} fields are not as they must be", .0.len())]
    Invalid(Vec<FieldError>),
    /// The month goes on.
    #[error("the month {month} is over at {}: close it then, or end billing before", month.end())]
    MonthNotOver {
        /// The month.
        month: Month,
    },
    /// There is no such invoice.
    #[error("there is no invoice {0}")]
    Unknown(InvoiceNumber),
    /// It takes usage of its month.
    #[error("the invoice {0} is a draft: it is final a day after the end of its month")]
    NotFinal(InvoiceNumber),
    /// It is paid or void.
    #[error("the invoice {number} is {}, which is for good", status.name())]
    Settled {
        /// The invoice.
        number: InvoiceNumber,
        /// What became of it.
        status: InvoiceStatus,
    },
    /// The sum would be too large.
    #[error("an invoice is at most {}: the prices of the plan are too high", Amount::MAX)]
    TooMuch,
}

impl From<InvoiceError> for Rejection {
    fn from(error: InvoiceError) -> Self {
        let detail = error.to_string();
        match error {
            InvoiceError::Invalid(errors) => Self::invalid(errors),
            InvoiceError::MonthNotOver { month } => Self::new(RejectionKind::Conflict, "month_not_over", detail)
                .with([("ends_at", month.end().to_string())]),
            InvoiceError::Unknown(_) => Self::new(RejectionKind::NotFound, "not_found", detail),
            InvoiceError::NotFinal(_) => Self::new(RejectionKind::Conflict, "invoice_not_final", detail),
            InvoiceError::Settled { .. } => Self::new(RejectionKind::Conflict, "invoice_settled", detail),
            InvoiceError::TooMuch => Self::new(RejectionKind::Conflict, "invoice_too_large", detail),
        }
    }
}
