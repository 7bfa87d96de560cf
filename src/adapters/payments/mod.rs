//! The payment provider, if the platform has one: it collects what final invoices and top-ups say. Amounts and numbers are
//! computed here; the provider is told of them, and reports payments.

mod fake;
mod stripe;

use std::{fmt, str::FromStr};

use futures_util::future::BoxFuture;
use orgstream_events::{Amount, Cause, Currency, InvoiceNumber, MeterName, Month, OrgId, Timestamp, TopUpId};

pub use fake::{Behaviour, FakeProvider};
pub use stripe::Stripe;

/// The reason for the provider's missing answer.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct PaymentError {
    /// The provider, and what it did.
    pub what: String,
    /// The cause, if it has nothing about the organization in it.
    #[source]
    pub cause: Option<Cause>,
}

/// The reason why a report is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No secret of ours has signed it, or too long ago.
    #[error("the report is not signed by the payment provider, or more than five minutes ago")]
    Unsigned,
    /// It has another form than the provider's reports.
    #[error("the report has another form than the payment provider's")]
    Unreadable,
}

/// What an organization has to pay. As text it is the mark by which the provider knows it: `<organization>:<number>`, or
/// `<organization>:top-up-<number>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payable {
    /// The organization.
    pub org: OrgId,
    /// Its invoice, or its top-up.
    pub item: Item,
}

/// What an organization pays for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// An invoice.
    Invoice(InvoiceNumber),
    /// A top-up.
    TopUp(TopUpId),
}

const TOP_UP: &str = "top-up-";

impl fmt::Display for Payable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Item::Invoice(number) => write!(f, "{}:{number}", self.org),
            Item::TopUp(TopUpId(number)) => write!(f, "{}:{TOP_UP}{number}", self.org),
        }
    }
}

impl FromStr for Payable {
    type Err = ReportError;

    fn from_str(text: &str) -> Result<Self, ReportError> {
        let (org, item) = text.split_once(':').ok_or(ReportError::Unreadable)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| ReportError::Unreadable);
        let item = match item.strip_prefix(TOP_UP) {
            Some(top_up) => Item::TopUp(TopUpId(number(top_up)?)),
            None => Item::Invoice(InvoiceNumber(number(item)?)),
        };
        Ok(Self { org: org.parse().map_err(|_| ReportError::Unreadable)?, item })
    }
}

/// Money to collect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// What it is for.
    pub what: Payable,
    /// The customer at the provider.
    pub customer: String,
    /// The money.
    pub money: Amount,
    /// Its currency.
    pub currency: Currency,
    /// What the customer reads about it.
    pub description: String,
}

impl Collection {
    /// Returns what an invoice says to its customer.
    pub fn describe_invoice(number: InvoiceNumber, month: Month) -> String {
        format!("Invoice {number} for {month}")
    }

    /// Returns what a top-up says to its customer.
    pub fn describe_top_up(meter: &MeterName, amount: Amount) -> String {
        format!("{amount} {meter}")
    }
}

/// What became of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// It was paid: the payment at the provider.
    Paid(String),
    /// It was not, and is not collected any more: the provider's code for that.
    Declined(String),
    /// It may still be paid, which is reported: its id at the provider.
    Pending(String),
}

/// What became of something that is to be collected no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// Nothing collects it.
    Done,
    /// It was paid before.
    Paid,
}

/// A payment that the provider reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// What was paid.
    pub what: Payable,
    /// What was paid at the provider, by its id there: the same however often it is reported.
    pub id: String,
}

/// What collects payments. Each call may be repeated at any time: what an earlier attempt made is found, and made once.
pub trait PaymentProvider: fmt::Debug + Send + Sync + 'static {
    /// Creates the customer that stands for an organization, or finds it; returns its id.
    fn customer<'a>(&'a self, org: OrgId, name: &'a str) -> BoxFuture<'a, Result<String, PaymentError>>;

    /// Has an invoice collected; returns its id at the provider.
    fn push_invoice<'a>(&'a self, collection: &'a Collection) -> BoxFuture<'a, Result<String, PaymentError>>;

    /// Has something collected no more, by its id at the provider, or by its mark where that is not known.
    fn withdraw<'a>(
        &'a self,
        what: &'a Payable,
        id: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Withdrawal, PaymentError>>;

    /// Whether an invoice that is collected was paid, by its id at the provider.
    fn is_paid<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, PaymentError>>;

    /// Collects at once, with the customer's way of paying.
    fn charge<'a>(&'a self, collection: &'a Collection) -> BoxFuture<'a, Result<Charge, PaymentError>>;

    /// Notes at the provider that billing of a customer ended, and when.
    fn release<'a>(&'a self, customer: &'a str, ended_at: Timestamp) -> BoxFuture<'a, Result<(), PaymentError>>;

    /// Reads a report of the provider; none if it is about something else than a payment of ours.
    fn payment(&self, signature: &str, body: &[u8], now: Timestamp) -> Result<Option<Payment>, ReportError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_what_is_collected() {
        let org = OrgId::fresh(1_700_000_000_000, [1; 10]);
        for item in [Item::Invoice(InvoiceNumber(7)), Item::TopUp(TopUpId(7))] {
            let what = Payable { org, item };
            assert_eq!(what.to_string().parse(), Ok(what));
        }
        for text in ["", "7", "org_x:7", &format!("{org}:"), &format!("{org}:top-up-"), &format!("{org}:refund-1")] {
            assert_eq!(text.parse::<Payable>(), Err(ReportError::Unreadable), "{text}");
        }
    }
}
