//! Reports of the payment provider: an invoice or a top-up was paid.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderName, StatusCode},
};
use orgstream_events::Chain;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::routes;

use crate::{
    adapters::payments::ReportError,
    api::http::{
        App,
        kit::{
            extract::{header_text, read_body},
            policy::{AuditTrail, Policy, Shape},
            routes::Routes,
        },
    },
    app::problem::Problem,
    clock::now,
    jobs::payments,
};

const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");

/// A report as the payment provider sends it. Other fields of it are not read.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct PaymentReport {
    /// Type of the report; only `invoice.paid` leads to something.
    #[serde(rename = "type")]
    #[schema(example = "invoice.paid")]
    pub report_type: String,
    /// Object that the report is about, as the provider describes it.
    #[schema(value_type = Object, example = json!({"object": {"id": "in_1", "metadata": {}}}))]
    pub data: Value,
}

/// The routes, each with its policy.
pub(super) fn routes() -> Routes {
    Routes::new().route(routes!(report), Policy::Public, Shape::Plain, AuditTrail::Events)
}

/// Report a payment
///
/// For the payment provider, which signs the body (`Stripe-Signature`). A paid invoice is marked as paid, and what a paid top-up
/// bought is granted, once, in whatever order and however often it is reported; other reports change nothing. Without a payment
/// provider there is no such route.
#[utoipa::path(
    post, path = "/v1/payment-reports", operation_id = "report_payment", tag = "account",
    request_body = PaymentReport, responses((status = 204, description = "Noted")),
)]
pub async fn report(State(app): State<Arc<App>>, request: Request) -> Result<StatusCode, Problem> {
    let Some(provider) = app.payments.clone() else { return Err(Problem::not_found()) };
    let signature = header_text(request.headers(), &SIGNATURE)?.map(str::to_owned);
    let signature =
        signature.ok_or_else(|| Problem::bad_request(format!("send the header {SIGNATURE}: reports are signed")))?;
    let (_, bytes) = read_body(&app, request).await?;
    match provider.payment(&signature, &bytes, now()) {
        Ok(Some(payment)) => payments::note(app.gateway.handler(), payment).await?,
        Ok(None) => {}
        Err(error @ ReportError::Unsigned) => {
            tracing::warn!(error = %Chain(&error), "a report of a payment is not believed");
            return Err(Problem::new(403, "bad_signature", "Not signed by a trusted party", error.to_string()));
        }
        Err(error @ ReportError::Unreadable) => {
            tracing::error!(error = %Chain(&error), "a report of the payment provider cannot be read");
            return Err(Problem::bad_request(error.to_string()));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}
