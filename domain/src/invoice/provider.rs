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
    /// Its id there; none where it is not known whether it ever was there.
    id: Option<String>,
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
    /// To collect no more what was settled otherwise.
    Withdraw {
        /// The invoice.
        number: InvoiceNumber,
        /// Its id at the provider, if that is known.
        id: Option<String>,
    },
    /// That billing ended.
    Release {
        /// The customer.
        customer: String,
        /// When it ended.
        ended_at: Timestamp,
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

impl Invoices {
    /// Returns the customer that stands for the organization at the payment provider.
    pub fn customer(&self) -> Option<&str> {
        self.at_provider.customer.as_deref()
    }

    /// Returns what the payment provider is to be told, at most so much: nothing when it knows all. Each step may be taken
    /// without the others, but a customer comes first.
    pub fn steps(&self, most: usize) -> Vec<ProviderStep> {
        let Some(customer) = &self.at_provider.customer else {
            let is_owed = self.by_number.values().any(|invoice| invoice.status == InvoiceStatus::Final);
            return if is_owed { vec![ProviderStep::Customer] } else { Vec::new() };
        };
        let known = &self.at_provider.invoices;
        let of_invoice =
            self.by_number.iter().filter_map(|(number, invoice)| match (invoice.status, known.get(number)) {
                (InvoiceStatus::Final, None) => Some(ProviderStep::Push {
                    number: *number,
                    customer: customer.clone(),
                    month: invoice.month,
                    total: invoice.total,
                    currency: invoice.currency.clone(),
                }),
                // It may have been pushed by a process that died before it said so.
                (InvoiceStatus::Paid | InvoiceStatus::Void, None) => {
                    Some(ProviderStep::Withdraw { number: *number, id: None })
                }
                (InvoiceStatus::Void, Some(pushed)) if !pushed.is_withdrawn => {
                    Some(ProviderStep::Withdraw { number: *number, id: pushed.id.clone() })
                }
                (InvoiceStatus::Paid, Some(pushed)) if !pushed.is_withdrawn && pushed.id != invoice.payment => {
                    Some(ProviderStep::Withdraw { number: *number, id: pushed.id.clone() })
                }
                _ => None,
            });
        let ended = self.ended_at.filter(|_| self.is_to_release());
        let release = ended.map(|ended_at| ProviderStep::Release { customer: customer.clone(), ended_at });
        of_invoice.chain(release).take(most).collect()
    }

    /// Returns the invoices that the payment provider collects and that are not settled, with their ids there.
    pub fn collected(&self) -> impl Iterator<Item = (InvoiceNumber, &str)> {
        self.at_provider.invoices.iter().filter_map(|(number, pushed)| {
            let invoice = self.by_number.get(number)?;
            Some((*number, pushed.id.as_deref()?)).filter(|_| invoice.status == InvoiceStatus::Final)
        })
    }

    fn is_to_release(&self) -> bool {
        let released = self.at_provider.released_at;
        self.ended_at.is_some_and(|ended| released.is_none_or(|released| released < ended))
    }

    pub(super) fn apply_at_provider(&mut self, event: &InvoiceEvent) {
        let at_provider = &mut self.at_provider;
        match event {
            InvoiceEvent::CustomerLinked(event) => {
                if at_provider.customer.as_ref() != Some(&event.customer) {
                    // It is another account there: what is owed is pushed to that.
                    let by_number = &self.by_number;
                    let is_open = |number: &InvoiceNumber| {
                        by_number.get(number).is_some_and(|one| one.status == InvoiceStatus::Final)
                    };
                    at_provider.invoices.retain(|number, _| !is_open(number));
                    at_provider.customer = Some(event.customer.clone());
                }
            }
            InvoiceEvent::Pushed(event) => {
                let pushed = Pushed { id: Some(event.id.clone()), is_withdrawn: false };
                at_provider.invoices.insert(event.number, pushed);
            }
            InvoiceEvent::Withdrawn(event) => {
                let id = at_provider.invoices.remove(&event.number).and_then(|pushed| pushed.id);
                at_provider.invoices.insert(event.number, Pushed { id, is_withdrawn: true });
            }
            InvoiceEvent::CustomerReleased(event) => at_provider.released_at = Some(event.at),
            InvoiceEvent::Opened(_)
            | InvoiceEvent::Finalized(_)
            | InvoiceEvent::Paid(_)
            | InvoiceEvent::Voided(_)
            | InvoiceEvent::BillingEnded(_) => {}
        }
    }

    /// Returns the event of a note; none where it is known, so that several processes may tell the provider.
    pub(super) fn note(&self, note: ProviderNote, now: Timestamp) -> Result<Option<InvoiceEvent>, InvoiceError> {
        Ok(match note {
            ProviderNote::Customer(LinkBillingCustomer { customer }) => {
                check_name("/customer", &customer)?;
                let is_new = self.at_provider.customer.as_ref() != Some(&customer);
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
