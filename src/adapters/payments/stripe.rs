//! Stripe's REST API, limited to customers and invoices, at a pinned version of it.
//!
//! What is collected is an invoice there with one item, the total: the lines are computed here. What an attempt makes has a key
//! that Stripe remembers for a day and a mark in its metadata that is looked for before it is made again, so no attempt makes
//! anything twice.

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use hmac::{Hmac, KeyInit, Mac};
use orgstream_events::{Amount, Currency, OrgId, Timestamp, cause};
use reqwest::{Method, Response, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use sha2::Sha256;

use super::{Charge, Collection, Payable, Payment, PaymentError, PaymentProvider, ReportError, Withdrawal};
use crate::{clock::now, secret::Secret};

/// The version of the API whose fields are read here.
const VERSION: &str = "2024-06-20";
/// The header of an answer that a key was remembered with.
const REPLAYED: &str = "idempotent-replayed";
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest difference between the time of a report's signature and ours, in milliseconds.
const TOLERANCE_MS: u64 = 300_000;

/// An account at Stripe.
pub struct Stripe {
    url: String,
    key: Secret,
    webhook_secret: Secret,
    http: reqwest::Client,
}

impl fmt::Debug for Stripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stripe").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Found<T> {
    data: Vec<T>,
}

#[derive(Deserialize)]
struct Customer {
    id: String,
}

#[derive(Deserialize)]
struct Invoice {
    id: String,
    status: Option<String>,
    currency: String,
    total: i64,
}

impl Invoice {
    fn is(&self, status: &str) -> bool {
        self.status.as_deref() == Some(status)
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: RefusalReason,
}

#[derive(Deserialize)]
struct RefusalReason {
    decline_code: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
struct Report {
    #[serde(rename = "type")]
    event_type: String,
    data: ReportData,
}

#[derive(Deserialize)]
struct ReportData {
    object: serde_json::Value,
}

impl Stripe {
    /// Uses the account of this key at `url`, which is `https://api.stripe.com` but for tests.
    pub fn new(url: &str, key: Secret, webhook_secret: Secret) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key, webhook_secret, http })
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Response, PaymentError> {
        let (query, separator) = (form(query)?, if query.is_empty() { "" } else { "?" });
        checked(self.send(self.http.get(format!("{}/v1/{path}{separator}{query}", self.url))).await?).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)], key: &str) -> Result<Response, PaymentError> {
        checked(self.try_post(path, fields, key).await?).await
    }

    /// Returns the answer, whatever its status. A key that is remembered with an error is given up for another one, of this
    /// minute: what is made twice is found by its mark.
    async fn try_post(&self, path: &str, fields: &[(&str, &str)], key: &str) -> Result<Response, PaymentError> {
        let answer = self.post_once(path, fields, key).await?;
        let is_replayed = answer.headers().get(REPLAYED).is_some_and(|replayed| replayed == "true");
        if answer.status().is_success() || !is_replayed {
            return Ok(answer);
        }
        let minute = now().unix_ms() / 60_000;
        self.post_once(path, fields, &format!("{key}-{minute}")).await
    }

    async fn post_once(&self, path: &str, fields: &[(&str, &str)], key: &str) -> Result<Response, PaymentError> {
        let request = self.http.request(Method::POST, format!("{}/v1/{path}", self.url));
        let request = request.header("Idempotency-Key", key).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request.body(form(fields)?)).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, PaymentError> {
        let request = request.bearer_auth(self.key.reveal()).header("Stripe-Version", VERSION);
        request.send().await.map_err(failed)
    }

    async fn find<T: for<'de> Deserialize<'de>>(&self, what: &str, mark: &str) -> Result<Option<T>, PaymentError> {
        let query = format!("metadata['orgstream']:'{mark}'");
        let answer = self.get(&format!("{what}/search"), &[("query", &query), ("limit", "1")]).await?;
        let found: Found<T> = answer.json().await.map_err(failed)?;
        Ok(found.data.into_iter().next())
    }

    async fn invoice(&self, id: &str) -> Result<Invoice, PaymentError> {
        self.get(&format!("invoices/{id}"), &[]).await?.json().await.map_err(failed)
    }

    async fn make_customer(&self, org: OrgId, name: &str) -> Result<String, PaymentError> {
        let mark = org.to_string();
        if let Some(Customer { id }) = self.find("customers", &mark).await? {
            return Ok(id);
        }
        let fields = [("name", name), ("metadata[orgstream]", &mark)];
        let made = self.post("customers", &fields, &format!("customer-{mark}")).await?;
        let made: Customer = made.json().await.map_err(failed)?;
        Ok(made.id)
    }

    /// Makes what is collected, or finds it, and has it as it is after that: a draft no more. `is_collected` says whether Stripe
    /// collects it by itself from then on.
    async fn make(&self, collection: &Collection, is_collected: bool) -> Result<Invoice, PaymentError> {
        let Collection { what, customer, money, currency, description } = collection;
        let (mark, units) = (what.to_string(), minor_units(*money, currency));
        let currency_there = currency.as_str().to_ascii_lowercase();
        let invoice: Invoice = match self.find("invoices", &mark).await? {
            Some(found) => found,
            None => {
                let fields = [
                    ("customer", customer.as_str()),
                    ("currency", &currency_there),
                    ("auto_advance", "false"),
                    ("pending_invoice_items_behavior", "exclude"),
                    ("metadata[orgstream]", &mark),
                ];
                let made = self.post("invoices", &fields, &format!("invoice-{mark}")).await?;
                made.json().await.map_err(failed)?
            }
        };
        // A repeated key answers with the invoice as it was when it was made: this asks for it as it is.
        let mut invoice = self.invoice(&invoice.id).await?;
        if invoice.is("draft") && invoice.total == 0 && units > 0 {
            let units = units.to_string();
            let fields = [
                ("customer", customer.as_str()),
                ("invoice", &invoice.id),
                ("amount", &units),
                ("currency", &currency_there),
                ("description", description),
            ];
            self.post("invoiceitems", &fields, &format!("item-{mark}")).await?;
            invoice = self.invoice(&invoice.id).await?;
        }
        // What was changed there, or is of another history of ours, is not what is owed.
        if u64::try_from(invoice.total) != Ok(units) || invoice.currency != currency_there {
            let Invoice { id, total, currency, .. } = invoice;
            let what = format!("it has {total} {currency} as {id} where {units} {currency_there} are owed");
            return Err(refused(&what));
        }
        if !invoice.is("draft") {
            return Ok(invoice);
        }
        let path = format!("invoices/{}/finalize", invoice.id);
        let fields = [("auto_advance", if is_collected { "true" } else { "false" })];
        self.post(&path, &fields, &format!("finalize-{mark}")).await?;
        self.invoice(&invoice.id).await
    }

    async fn collect_at_once(&self, collection: &Collection) -> Result<Charge, PaymentError> {
        if minor_units(collection.money, &collection.currency) == 0 {
            return Ok(Charge::Declined("amount_too_small".to_owned()));
        }
        let invoice = self.make(collection, false).await?;
        let mut refusal = None;
        if invoice.is("open") {
            let (path, key) = (format!("invoices/{}/pay", invoice.id), format!("pay-{}", collection.what));
            let answer = self.try_post(&path, &[("off_session", "true")], &key).await?;
            if is_refusal(answer.status()) {
                refusal = Some(reason(answer).await);
                // Nothing collects it later.
                self.take_back(&invoice.id).await?;
            } else {
                checked(answer).await?;
            }
        }
        let invoice = self.invoice(&invoice.id).await?;
        Ok(if invoice.is("paid") {
            Charge::Paid(invoice.id)
        } else if invoice.is("void") {
            Charge::Declined(refusal.unwrap_or_else(|| "declined".to_owned()))
        } else {
            Charge::Pending(invoice.id)
        })
    }

    async fn take_back(&self, id: &str) -> Result<Withdrawal, PaymentError> {
        let invoice = self.invoice(id).await?;
        if invoice.is("paid") {
            return Ok(Withdrawal::Paid);
        }
        if invoice.is("draft") {
            let request = self.http.request(Method::DELETE, format!("{}/v1/invoices/{id}", self.url));
            checked(self.send(request).await?).await?;
        } else if !invoice.is("void") {
            self.post(&format!("invoices/{id}/void"), &[], &format!("void-{id}")).await?;
        }
        Ok(Withdrawal::Done)
    }

    /// Whether one of the signatures is of our secret, over this body and at about this time.
    fn is_signed(&self, signature: &str, body: &[u8], now: Timestamp) -> bool {
        let parts = || signature.split(',').filter_map(|part| part.trim().split_once('='));
        let Some(at) = parts().find(|(name, _)| *name == "t").map(|(_, at)| at) else { return false };
        let Ok(seconds) = at.parse::<i64>() else { return false };
        if seconds.saturating_mul(1_000).abs_diff(now.unix_ms()) > TOLERANCE_MS {
            return false;
        }
        let Some(mac) = tag(&self.webhook_secret, at, body) else { return false };
        let is_ours = |text: &str| unhex(text).is_some_and(|tag| mac.clone().verify_slice(&tag).is_ok());
        parts().filter(|(name, _)| *name == "v1").any(|(_, text)| is_ours(text))
    }
}

impl PaymentProvider for Stripe {
    fn customer<'a>(&'a self, org: OrgId, name: &'a str) -> BoxFuture<'a, Result<String, PaymentError>> {
        Box::pin(self.make_customer(org, name))
    }

    fn push_invoice<'a>(&'a self, collection: &'a Collection) -> BoxFuture<'a, Result<String, PaymentError>> {
        Box::pin(async { Ok(self.make(collection, true).await?.id) })
    }

    fn withdraw<'a>(
        &'a self,
        what: &'a Payable,
        id: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Withdrawal, PaymentError>> {
        Box::pin(async move {
            let id = match id {
                Some(id) => Some(id.to_owned()),
                None => self.find::<Invoice>("invoices", &what.to_string()).await?.map(|found| found.id),
            };
            match id {
                Some(id) => self.take_back(&id).await,
                None => Ok(Withdrawal::Done),
            }
        })
    }

    fn is_paid<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, PaymentError>> {
        Box::pin(async move { Ok(self.invoice(id).await?.is("paid")) })
    }

    fn charge<'a>(&'a self, collection: &'a Collection) -> BoxFuture<'a, Result<Charge, PaymentError>> {
        Box::pin(self.collect_at_once(collection))
    }

    fn release<'a>(&'a self, customer: &'a str, ended_at: Timestamp) -> BoxFuture<'a, Result<(), PaymentError>> {
        Box::pin(async move {
            let (ended, key) = (ended_at.to_string(), format!("release-{customer}-{}", ended_at.unix_ms()));
            let fields = [("metadata[orgstream_billing_ended]", ended.as_str())];
            self.post(&format!("customers/{customer}"), &fields, &key).await.map(drop)
        })
    }

    fn payment(&self, signature: &str, body: &[u8], now: Timestamp) -> Result<Option<Payment>, ReportError> {
        if !self.is_signed(signature, body, now) {
            return Err(ReportError::Unsigned);
        }
        let report: Report = serde_json::from_slice(body).map_err(|_| ReportError::Unreadable)?;
        if report.event_type != "invoice.paid" {
            return Ok(None);
        }
        let text = |pointer: &str| report.data.object.pointer(pointer).and_then(serde_json::Value::as_str);
        // An invoice of another program in the same account has no mark of ours.
        let Some(mark) = text("/metadata/orgstream") else { return Ok(None) };
        let id = text("/id").ok_or(ReportError::Unreadable)?.to_owned();
        Ok(Some(Payment { what: mark.parse()?, id }))
    }
}

fn form(fields: &[(&str, &str)]) -> Result<String, PaymentError> {
    serde_urlencoded::to_string(fields)
        .map_err(|error| PaymentError { what: "a request that is no form".to_owned(), cause: Some(cause(error)) })
}

/// The MAC of a report that is signed at a time, in seconds.
pub(super) fn tag(secret: &Secret, at: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.reveal().as_bytes()).ok()?;
    for part in [at.as_bytes(), b".", body] {
        mac.update(part);
    }
    Some(mac)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

/// Returns an amount of money in the smallest units of its currency as Stripe takes them, rounded once, half of one up.
fn minor_units(amount: Amount, currency: &Currency) -> u64 {
    const WHOLE: [&str; 14] =
        ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF"];
    // With two digits that have to be zero.
    const HUNDREDS: [&str; 2] = ["ISK", "UGX"];
    // With three digits of which the last has to be zero.
    const THOUSANDTHS: [&str; 5] = ["BHD", "JOD", "KWD", "OMR", "TND"];
    let code = currency.as_str();
    // The millionths of the smallest amount, and its units.
    let (micros, units) = if WHOLE.contains(&code) || code == "XPF" {
        (1_000_000, 1)
    } else if HUNDREDS.contains(&code) {
        (1_000_000, 100)
    } else if THOUSANDTHS.contains(&code) {
        (10_000, 10)
    } else {
        (10_000, 1)
    };
    (amount.micros() + micros / 2) / micros * units
}

/// Whether an answer to a payment says that this one will not be made: no card, a declined one, or one that asks its holder.
/// Others are about the request, the account or the moment.
fn is_refusal(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 404 | 409 | 429)
}

/// Returns the provider's code for an error.
async fn reason(answer: Response) -> String {
    let status = answer.status();
    let refusal: Option<Refusal> = answer.json().await.ok();
    let code = refusal.and_then(|Refusal { error }| error.decline_code.or(error.code));
    code.unwrap_or_else(|| status.as_u16().to_string())
}

/// Fails for an answer that is an error, with its code and the number of the request, by which it is found at the provider.
async fn checked(answer: Response) -> Result<Response, PaymentError> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let request = answer.headers().get("request-id").and_then(|id| id.to_str().ok()).unwrap_or("-").to_owned();
    let status = answer.status();
    Err(refused(&format!("it answers {status}, {}, request {request}", reason(answer).await)))
}

fn refused(what: &str) -> PaymentError {
    PaymentError { what: format!("the payment provider: {what}"), cause: None }
}

/// Describes an error, without the address: its path identifies what it was about, and its host is in the settings.
fn failed(error: reqwest::Error) -> PaymentError {
    if error.is_timeout() {
        return refused("no answer in time");
    }
    if error.is_decode() {
        return refused("an unreadable answer");
    }
    let what = "the payment provider: it cannot be reached".to_owned();
    PaymentError { what, cause: Some(cause(error.without_url())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_rounded_to_what_its_currency_has() {
        for (amount, currency, units) in [
            ("59.3", "EUR", 5_930),
            ("0.004999", "EUR", 0),
            ("0.005", "EUR", 1),
            ("59.5", "JPY", 60),
            ("59.5", "ISK", 6_000),
            ("1.2345", "KWD", 1_230),
        ] {
            assert_eq!(minor_units(amount.parse().unwrap(), &currency.parse().unwrap()), units, "{amount} {currency}");
        }
    }

    const BODY: &str = r#"{"type":"invoice.paid","data":{"object":{"id":"in_1","payment_intent":"pi_1","metadata":{"orgstream":"org_01h455vb4pex5vsknk084sn02q:3"}}}}"#;
    /// HMAC-SHA256 of `1700000000.` and the body under `whsec_test_secret`, by another implementation.
    const TAG: &str = "bf1374eabb13fc4f0f37255f5263656170818001807b4b957775f5e7c7fdf800";

    fn payment(signature: &str, body: &str, seconds: i64) -> Result<Option<Payment>, ReportError> {
        let stripe = Stripe::new("http://127.0.0.1:9", "k".to_owned().into(), "whsec_test_secret".to_owned().into());
        stripe.unwrap().payment(signature, body.as_bytes(), Timestamp::from_unix_ms(seconds * 1_000))
    }

    #[test]
    fn a_report_is_believed_if_our_secret_signed_it_a_moment_ago() {
        let at = 1_700_000_000;
        let good = format!("t={at},v1={TAG}");
        let found = payment(&good, BODY, at).unwrap().unwrap();
        assert_eq!((found.what.to_string().as_str(), found.id.as_str()), ("org_01h455vb4pex5vsknk084sn02q:3", "in_1"));
        // While a secret is exchanged there are two signatures, and older schemes are ignored.
        let several = format!("t={at},v0={TAG},v1={},v1={TAG}", "0".repeat(64));
        for (signature, seconds) in [(&good, at - 300), (&good, at + 300), (&several, at)] {
            assert!(payment(signature, BODY, seconds).is_ok());
        }
        let other = BODY.replace(":3", ":4");
        let (moved, old) = (format!("t={},v1={TAG}", at + 1), format!("t={at},v0={TAG}"));
        for (signature, body, seconds) in [
            (good.as_str(), BODY, at + 301),
            (&good, BODY, at - 301),
            (&good, &other, at),
            (&moved, BODY, at),
            (&old, BODY, at),
            ("", BODY, at),
            ("t=,v1=", BODY, at),
            ("t=1700000000,v1=zz", BODY, at),
        ] {
            assert_eq!(payment(signature, body, seconds), Err(ReportError::Unsigned), "{signature}");
        }
    }
}
