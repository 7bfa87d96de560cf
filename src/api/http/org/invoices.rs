//! An organization's invoices: what is owed for each month, and what became of it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use orgstream_domain::{
    Permission,
    invoice::{Invoice, InvoiceStatus, final_at},
};
use orgstream_events::{
    Amount, BucketSource, Currency, InvoiceLine, InvoiceLineType, InvoiceNumber, MeterName, Month, OrgId, PlanName,
    Timestamp,
};
use orgstream_projections::{Listing, Page as Part, Placed};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::invoice_pdf;
use crate::{
    api::http::{
        App,
        kit::{
            extract::{Item, OrgAccess, Query},
            page::{Page, PageQuery},
            policy::{AuditTrail, Policy, READ},
            reply,
            routes::Routes,
        },
    },
    app::problem::Problem,
};

/// An invoice. Amounts of money are decimal texts in its currency, to a millionth.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InvoiceView {
    /// Number in the organization, from 1 and without a gap.
    #[schema(value_type = u32, minimum = 1, example = 1)]
    pub number: InvoiceNumber,
    /// Calendar month in UTC, as `YYYY-MM`.
    #[schema(value_type = String, example = "2026-03")]
    pub month: Month,
    /// Status: `draft`, `final`, `paid` or `void`.
    #[schema(value_type = String, example = "final")]
    pub status: InvoiceStatus,
    /// Currency, by its code in ISO 4217.
    #[schema(value_type = String, example = "EUR")]
    pub currency: Currency,
    /// Sum of the lines; of a draft, as it is now.
    #[schema(value_type = String, example = "59.3")]
    pub total: Amount,
    /// Name of the plan.
    #[schema(value_type = String, example = "premium")]
    pub plan: PlanName,
    /// Version of the plan, counted from 1; 0 for a plan that was never published.
    #[schema(example = 3)]
    pub plan_version: u64,
    /// Time of the opening, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
    /// Time from which a draft is final at the earliest, or since when it is, RFC 3339 in UTC.
    #[schema(value_type = String, format = DateTime)]
    pub final_at: Timestamp,
    /// Time at which it was paid or voided, RFC 3339 in UTC; null before.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub settled_at: Option<Timestamp>,
    /// Name of the payment where it was made; null before.
    #[schema(example = "transfer 2026-04-05")]
    pub payment: Option<String>,
}

/// A line of an invoice.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InvoiceLineView {
    /// Type of the line: `fee`, `usage`, or `adjustment` for usage of an earlier month.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "usage")]
    pub line_type: InvoiceLineType,
    /// Calendar month in UTC of the fee or the usage, as `YYYY-MM`.
    #[schema(value_type = String, example = "2026-03")]
    pub month: Month,
    /// Name of the meter; null for a fee.
    #[schema(value_type = Option<String>, example = "tokens")]
    pub meter: Option<MeterName>,
    /// Source of what was used: `allowance`, `grant`, `purchase` or `overage`, of which only the last has a price; null for
    /// a fee.
    #[schema(value_type = Option<String>, example = "overage")]
    pub source: Option<BucketSource>,
    /// Amount in units of the meter, as a decimal text; of a fee, 1.
    #[schema(value_type = String, example = "4120000")]
    pub quantity: Amount,
    /// Price of a million units; null where there is none.
    #[schema(value_type = Option<String>, example = "2.5")]
    pub price_per_million: Option<Amount>,
    /// Amount of money: quantity by price, rounded once to a millionth, half of one up.
    #[schema(value_type = String, example = "10.3")]
    pub amount: Amount,
}

/// An invoice with its lines.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InvoiceDetails {
    /// Invoice.
    #[serde(flatten)]
    pub invoice: InvoiceView,
    /// Lines, whose amounts add up to the total.
    pub lines: Vec<InvoiceLineView>,
}

impl InvoiceView {
    fn new(number: InvoiceNumber, invoice: &Invoice, total: Amount) -> Self {
        Self {
            number,
            month: invoice.month,
            status: invoice.status,
            currency: invoice.currency.clone(),
            total,
            plan: invoice.plan.plan.clone(),
            plan_version: invoice.plan.version,
            opened_at: invoice.opened_at,
            final_at: invoice.finalized_at.unwrap_or_else(|| final_at(invoice.month)),
            settled_at: invoice.settled_at,
            payment: invoice.payment.clone(),
        }
    }
}

impl From<InvoiceLine> for InvoiceLineView {
    fn from(line: InvoiceLine) -> Self {
        let InvoiceLine { line_type, month, meter, source, quantity, price_per_million, amount } = line;
        Self { line_type, month, meter, source, quantity, price_per_million, amount }
    }
}

impl Placed for InvoiceView {
    type Place = u64;

    fn place(&self) -> u64 {
        self.number.0.into()
    }
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    let reading = Policy::Org(Permission::ReadAccount);
    Routes::new()
        .route(routes!(list), reading, READ, AuditTrail::ReadNotAudited)
        .route(routes!(show), reading, READ, AuditTrail::ReadNotAudited)
        .route(routes!(print), reading, READ, AuditTrail::ReadNotAudited)
}

/// List invoices
///
/// The newest first. They are read from the log, so what was closed, paid or voided before is there.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/invoices", operation_id = "list_invoices", tag = "account",
    params(PageQuery), responses((status = 200, description = "One page", body = Page<InvoiceView>)),
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: OrgAccess,
    Query(page): Query<PageQuery>,
) -> Result<Response, Problem> {
    let org = caller.access.org();
    let cursors = app.cursors.listing(org, "invoices", &());
    let (part, limit) = (cursors.read(page.cursor.as_deref())?, usize::from(page.limit()?));
    let handler = app.gateway.handler();
    let state = handler.invoices_of(org).await?.ok_or_else(Problem::not_found)?;
    let all = state.invoices.all().keys().copied();
    let is_before = |number: InvoiceNumber, end: u64| u64::from(number.0) < end;
    let (mut numbers, more): (Vec<InvoiceNumber>, bool) = match part {
        Part::First => first_of(all.rev(), limit),
        Part::After(place) => first_of(all.rev().filter(|number| is_before(*number, place)), limit),
        Part::Before(place) => first_of(all.filter(|number| !is_before(*number, place + 1)), limit),
    };
    if matches!(part, Part::Before(_)) {
        numbers.reverse();
    }
    let mut rows = Vec::with_capacity(numbers.len());
    for number in numbers {
        let Some(invoice) = state.invoices.all().get(&number) else { continue };
        let total = match invoice.status {
            InvoiceStatus::Draft => handler.lines_of(&state, number).await?.map_or(Amount::ZERO, |(_, total)| total),
            InvoiceStatus::Final | InvoiceStatus::Paid | InvoiceStatus::Void => invoice.total,
        };
        rows.push(InvoiceView::new(number, invoice, total));
    }
    let body = reply::json_bytes(&cursors.page(&part, Listing { rows, more }, |row| row))?;
    Ok(reply::json(StatusCode::OK, Body::from(body)))
}

/// Returns so many, and whether there are more.
fn first_of(numbers: impl Iterator<Item = InvoiceNumber>, limit: usize) -> (Vec<InvoiceNumber>, bool) {
    let mut first: Vec<InvoiceNumber> = numbers.take(limit + 1).collect();
    let more = first.len() > limit;
    first.truncate(limit);
    (first, more)
}

/// Get an invoice
///
/// The lines of a draft are those that it would have if it were final now.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/invoices/{number}", operation_id = "get_invoice", tag = "account",
    responses((status = 200, description = "Invoice", body = InvoiceDetails)),
)]
pub async fn show(
    State(app): State<Arc<App>>,
    caller: OrgAccess,
    Item(number): Item<InvoiceNumber>,
) -> Result<Response, Problem> {
    let body = reply::json_bytes(&details(&app, caller.access.org(), number).await?)?;
    Ok(reply::json(StatusCode::OK, Body::from(body)))
}

/// Get an invoice as a PDF
///
/// For people: the same lines and total. The fonts have the letters of Western European languages; others are printed as `?`.
#[utoipa::path(
    get, path = "/v1/organizations/{org}/invoices/{number}/pdf", operation_id = "print_invoice", tag = "account",
    responses((status = 200, description = "A PDF", body = Vec<u8>, content_type = "application/octet-stream")),
)]
pub async fn print(
    State(app): State<Arc<App>>,
    caller: OrgAccess,
    Item(number): Item<InvoiceNumber>,
) -> Result<impl IntoResponse, Problem> {
    let org = caller.access.org();
    let details = details(&app, org, number).await?;
    let profile = app.gateway.handler().profile(org).await?.ok_or_else(Problem::not_found)?;
    let bytes = invoice_pdf::render(org, &profile.name, &details);
    let file = format!("attachment; filename=\"invoice-{org}-{number}.pdf\"");
    Ok(([(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, file)], bytes))
}

async fn details(app: &App, org: OrgId, number: InvoiceNumber) -> Result<InvoiceDetails, Problem> {
    let handler = app.gateway.handler();
    let state = handler.invoices_of(org).await?.ok_or_else(Problem::not_found)?;
    let invoice = state.invoices.all().get(&number).ok_or_else(Problem::not_found)?;
    let (lines, total) = handler.lines_of(&state, number).await?.ok_or_else(Problem::not_found)?;
    let invoice = InvoiceView::new(number, invoice, total);
    Ok(InvoiceDetails { invoice, lines: lines.into_iter().map(Into::into).collect() })
}
