//! Events of an organization's invoices: what is owed for a calendar month, and what became of it. All amounts are exact.

use serde::{Deserialize, Serialize};

use crate::{Amount, BucketSource, Currency, MeterName, Month, PlanVersion, Timestamp, codec::event_enum};

event_enum! {
    /// The events of an organization's invoices.
    InvoiceEvent about aggregate {
        Opened(InvoiceOpened) = "invoice.opened", 1;
        Finalized(InvoiceFinalized) = "invoice.finalized", 1;
        Paid(InvoicePaid) = "invoice.paid", 1;
        Voided(InvoiceVoided) = "invoice.voided", 1;
        BillingEnded(InvoiceBillingEnded) = "invoice.billing_ended", 1;
        CustomerLinked(InvoiceCustomerLinked) = "invoice.customer_linked", 1;
        Pushed(InvoicePushed) = "invoice.pushed", 1;
        Withdrawn(InvoiceWithdrawn) = "invoice.withdrawn", 1;
        CustomerReleased(InvoiceCustomerReleased) = "invoice.customer_released", 1;
    }
}

/// The number of an invoice in its organization: 1, 2, 3 and so on, without a gap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InvoiceNumber(pub u32);

impl std::fmt::Display for InvoiceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for InvoiceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An invoice was opened: a draft, which takes usage of its month until it is final.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceOpened {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
    /// The month that it is of.
    pub month: Month,
    /// The currency of all its amounts of money.
    pub currency: Currency,
    /// The plan whose fee it has.
    pub plan: PlanVersion,
    /// The fee of the month.
    #[serde(default, skip_serializing_if = "Amount::is_zero")]
    pub fee: Amount,
}

/// What a line of an invoice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceLineType {
    /// The plan, for a month.
    Fee,
    /// Usage.
    Usage,
    /// Usage of a month whose own invoice was final before.
    Adjustment,
}

/// A line of an invoice. Its amount was rounded once, to a millionth of the currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceLine {
    /// What it is for.
    #[serde(rename = "type")]
    pub line_type: InvoiceLineType,
    /// The month of the fee or the usage.
    pub month: Month,
    /// The meter; none for a fee.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<MeterName>,
    /// Where what was used came from; none for a fee.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<BucketSource>,
    /// The amount of the meter; one for a fee.
    pub quantity: Amount,
    /// The money for a million units of the meter; none for what is included, granted or bought before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million: Option<Amount>,
    /// The amount of money.
    pub amount: Amount,
}

/// An invoice became final: its lines and its total never change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceFinalized {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
    /// The lines.
    pub lines: Vec<InvoiceLine>,
    /// The sum of their amounts.
    pub total: Amount,
}

/// An invoice was paid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoicePaid {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
    /// The payment, by the name that it has where it was made.
    pub payment: String,
}

/// An invoice was voided: it is not owed, and what it bills is not billed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceVoided {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
    /// The reason, in the operator's words.
    pub reason: String,
}

/// Billing ended: no fee is owed for later months, until the organization is put on a plan again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceBillingEnded {
    /// When it took effect.
    pub at: Timestamp,
    /// The reason, in the operator's words.
    pub reason: String,
}

/// The payment provider has a customer that stands for the organization.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceCustomerLinked {
    /// When it took effect.
    pub at: Timestamp,
    /// The customer's id at the provider.
    pub customer: String,
}

/// The payment provider has an invoice, and collects it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoicePushed {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
    /// Its id at the provider.
    pub id: String,
}

/// The payment provider does not collect an invoice any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceWithdrawn {
    /// When it took effect.
    pub at: Timestamp,
    /// The invoice.
    pub number: InvoiceNumber,
}

/// The payment provider knows that billing ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceCustomerReleased {
    /// When it took effect.
    pub at: Timestamp,
    /// The customer's id at the provider.
    pub customer: String,
}
