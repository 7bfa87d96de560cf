//! What the payment provider was told of an organization's invoices, and what it is to be told next.

use std::collections::BTreeMap;

use orgstream_events::{
    Amount, Currency, InvoiceCustomerLinked, InvoiceCustomerReleased, InvoiceEvent, InvoiceNumber, InvoicePushed,
    InvoiceWithdrawn, Month, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{InvoiceError, InvoiceStatus, Invoices, check_name};
use crate::{LinkBillingCustomer, NoteBillingCustomerReleased, NoteInvoicePushed, NoteInvoiceWithdrawn};

/// What the provider has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct AtProvider {
    /// The customer that stands for the organization.
    customer: Option<String>,
    /// When it knew last that billing ended.
    released_at: Option<Timestamp>,
    invoices: BTreeMap<InvoiceNumber, Pushed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pushed {
    id: String,
    is_withdrawn: bool,
}

/// What the provider is to be told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderStep {
    /// To make the customer that stands for the organization.
    Customer,
    /// To collect a final invoice.
    Push {
        /// The invoice.
        number: InvoiceNumber,
        /// The customer.
        customer: String,
        /// Its month.
        month: Month,
        /// Its total.
        total: Amount,
        /// Its currency.
        currency: Currency,
    },
    /// To collect a void invoice no more.
    Withdraw {
        /// The invoice.
        number: InvoiceNumber,
        /// Its id at the provider.
        id: String,
    },
    /// That billing ended.
    Release {
        /// The customer.
        customer: String,
    },
}

/// A command that notes what the provider was told.
#[derive(Debug, Clone, PartialEq)]
pub enum ProviderNote {
    /// It has a customer.
    Customer(LinkBillingCustomer),
    /// It has an invoice.
    Pushed(NoteInvoicePushed),
    /// It does not collect an invoice any more.
    Withdrawn(NoteInvoiceWithdrawn),
    /// It knows that billing ended.
    Released(NoteBillingCustomerReleased),
}

impl AtProvider {
    pub(super) fn apply(&mut self, event: &InvoiceEvent) {
        match event {
            InvoiceEvent::CustomerLinked(event) => self.customer = Some(event.customer.clone()),
            InvoiceEvent::Pushed(event) => {
                self.invoices.insert(event.number, Pushed { id: event.id.clone(), is_withdrawn: false });
            }
            InvoiceEvent::Withdrawn(event) => {
                if let Some(pushed) = self.invoices.get_mut(&event.number) {
                    pushed.is_withdrawn = true;
                }
            }
            InvoiceEvent::CustomerReleased(event) => self.released_at = Some(event.at),
            InvoiceEvent::Opened(_)
            | InvoiceEvent::Finalized(_)
            | InvoiceEvent::Paid(_)
            | InvoiceEvent::Voided(_)
            | InvoiceEvent::BillingEnded(_) => {}
        }
    }
}

impl Invoices {
    /// Returns the customer that stands for the organization at the payment provider.
    pub fn customer(&self) -> Option<&str> {
        self.at_provider.customer.as_deref()
    }

    /// Returns what the payment provider is to be told next; none when it knows all.
    pub fn next_step(&self) -> Option<ProviderStep> {
        self.to_push().or_else(|| self.to_withdraw()).or_else(|| self.to_release())
    }

    fn to_push(&self) -> Option<ProviderStep> {
        let known = &self.at_provider.invoices;
        let mut open = self.by_number.iter().filter(|(_, invoice)| invoice.status == InvoiceStatus::Final);
        let (number, invoice) = open.find(|(number, _)| !known.contains_key(number))?;
        Some(self.at_provider.customer.clone().map_or(ProviderStep::Customer, |customer| ProviderStep::Push {
            number: *number,
            customer,
            month: invoice.month,
            total: invoice.total,
            currency: invoice.currency.clone(),
        }))
    }

    fn to_withdraw(&self) -> Option<ProviderStep> {
        let is_void = |number| self.by_number.get(number).is_some_and(|invoice| invoice.status == InvoiceStatus::Void);
        let mut collected = self.at_provider.invoices.iter().filter(|(_, pushed)| !pushed.is_withdrawn);
        let (number, pushed) = collected.find(|(number, _)| is_void(number))?;
        Some(ProviderStep::Withdraw { number: *number, id: pushed.id.clone() })
    }

    fn to_release(&self) -> Option<ProviderStep> {
        let customer = self.at_provider.customer.clone().filter(|_| self.is_to_release())?;
        Some(ProviderStep::Release { customer })
    }

    fn is_to_release(&self) -> bool {
        let released = self.at_provider.released_at;
        self.ended_at.is_some_and(|ended| released.is_none_or(|released| released < ended))
    }

    /// Returns the event of a note; none where it is known, so that several processes may tell the provider.
    pub(super) fn note(&self, note: ProviderNote, now: Timestamp) -> Result<Option<InvoiceEvent>, InvoiceError> {
        Ok(match note {
            ProviderNote::Customer(LinkBillingCustomer { customer }) => {
                check_name("/customer", &customer)?;
                // The first one stays, so that there is one.
                let is_new = self.at_provider.customer.is_none();
                is_new.then_some(InvoiceEvent::CustomerLinked(InvoiceCustomerLinked { at: now, customer }))
            }
            ProviderNote::Pushed(NoteInvoicePushed { number, id }) => {
                check_name("/id", &id)?;
                if self.invoice(number)?.status == InvoiceStatus::Draft {
                    return Err(InvoiceError::NotFinal(number));
                }
                let is_new = !self.at_provider.invoices.contains_key(&number);
                is_new.then_some(InvoiceEvent::Pushed(InvoicePushed { at: now, number, id }))
            }
            ProviderNote::Withdrawn(NoteInvoiceWithdrawn { number }) => {
                self.invoice(number)?;
                let is_collected = self.at_provider.invoices.get(&number).is_some_and(|pushed| !pushed.is_withdrawn);
                is_collected.then_some(InvoiceEvent::Withdrawn(InvoiceWithdrawn { at: now, number }))
            }
            ProviderNote::Released(NoteBillingCustomerReleased { customer }) => {
                check_name("/customer", &customer)?;
                let released = InvoiceCustomerReleased { at: now, customer };
                self.is_to_release().then_some(InvoiceEvent::CustomerReleased(released))
            }
        })
    }
}
