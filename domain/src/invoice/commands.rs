//! The commands about invoices, as received.

use orgstream_events::{AggregateId, InvoiceNumber, Month, OrgId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{About, CommandSpec, Declared, Permission, Requires, Scope, grants::Grant};

/// Closes a month: opens its invoice if something is owed, and makes it final a day after the month's end. For platform
/// operators. It may be sent at any time and any number of times; the program does so itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloseMonth {
    /// Calendar month in UTC that is over, as `YYYY-MM`.
    #[schema(value_type = String, example = "2026-03")]
    pub month: Month,
}

/// Ends billing: everything that is owed is on a final invoice at once, and no fee is owed for later months until the
/// organization is put on another plan. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndBilling {
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "ticket 4711: contract ended")]
    pub reason: String,
}

/// Notes that a final invoice was paid. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarkInvoicePaid {
    /// Number of the invoice, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub number: InvoiceNumber,
    /// Name of the payment where it was made, 1 to 200 characters.
    #[schema(max_length = 200, example = "transfer 2026-04-05")]
    pub payment: String,
}

/// Voids a final invoice: it is not owed, and what it bills is not billed again. For platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VoidInvoice {
    /// Number of the invoice, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub number: InvoiceNumber,
    /// Reason for the audit log, 1 to 500 characters.
    #[schema(max_length = 500, example = "ticket 4711: goodwill")]
    pub reason: String,
}

/// Notes the customer that stands for the organization at the payment provider, in place of one before. What is owed is collected
/// there from then on. The program sends it where there is none; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkBillingCustomer {
    /// Id of the customer at the provider, 1 to 200 characters.
    #[schema(max_length = 200, example = "cus_1")]
    pub customer: String,
}

/// Notes that the payment provider has a final invoice. The program sends it; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteInvoicePushed {
    /// Number of the invoice, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub number: InvoiceNumber,
    /// Id of the invoice at the provider, 1 to 200 characters.
    #[schema(max_length = 200, example = "in_1")]
    pub id: String,
}

/// Notes that the payment provider does not collect an invoice any more that was voided, or paid otherwise. The program sends it; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteInvoiceWithdrawn {
    /// Number of the invoice, from 1.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub number: InvoiceNumber,
}

/// Notes that the payment provider knows that billing ended. The program sends it; for platform operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoteBillingCustomerReleased {
    /// Id of the customer at the provider, 1 to 200 characters.
    #[schema(max_length = 200, example = "cus_1")]
    pub customer: String,
}

macro_rules! declare {
    ($($command:ident = $name:literal: [$($event:literal),*];)*) => {$(
        impl Declared for $command {
            const SPEC: CommandSpec = CommandSpec {
                name: $name,
                requires: Requires::Permission(Permission::ManagePlan),
                events: &[$($event),*],
                creates: false,
                scope: Scope::Organization,
                // What was used before is owed all the same.
                while_suspended: true,
                in_personal: true,
                gives_access: false,
                hourly_limit: None,
            };

            fn about(&self, org: OrgId) -> About {
                About::One(AggregateId::Invoice(org))
            }

            fn grants(&self) -> Vec<Grant> {
                Vec::new()
            }
        }
    )*};
}

declare! {
    CloseMonth = "close_month": ["invoice.opened", "invoice.finalized"];
    EndBilling = "end_billing": ["invoice.opened", "invoice.finalized", "invoice.billing_ended"];
    MarkInvoicePaid = "mark_invoice_paid": ["invoice.paid"];
    VoidInvoice = "void_invoice": ["invoice.voided"];
    LinkBillingCustomer = "link_billing_customer": ["invoice.customer_linked"];
    NoteInvoicePushed = "note_invoice_pushed": ["invoice.pushed"];
    NoteInvoiceWithdrawn = "note_invoice_withdrawn": ["invoice.withdrawn"];
    NoteBillingCustomerReleased = "note_billing_customer_released": ["invoice.customer_released"];
}
