//! A payment provider for development and tests: a server with the requests and the answers of Stripe, as far as they are used
//! here, that moves no money. It can be told to fail, to be slow, to lose answers, to decline, and to report twice and out of
//! order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use hmac::Mac;
use orgstream_events::{Chain, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use super::stripe::{Stripe, tag};
use crate::{clock::now, secret::Secret};

/// How often reports are delivered.
const EVERY: Duration = Duration::from_millis(200);
/// The maximum number of customers, of invoices and of keys that are remembered.
const MAX: usize = 10_000;
const MAX_BODY: usize = 1 << 16;

/// How the provider behaves from now on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// Every answer is 503.
    pub is_down: bool,
    /// What is asked for is done, and the answer lost.
    pub loses_answers: bool,
    /// Nothing is found by its mark, as right after it was made.
    pub finds_nothing: bool,
    /// Payments are declined, with this code.
    pub declines: Option<String>,
    /// Payments are refused as requests that are not valid, with this code: there is no card, or its holder is asked.
    pub refuses: Option<String>,
    /// What is added to the amount of each item, as by a person there.
    pub adds: i64,
    /// A payment is neither made nor declined yet.
    pub is_undecided: bool,
    /// An invoice is paid as soon as it is final.
    pub pays_invoices: bool,
    /// The milliseconds before each answer.
    pub delay_ms: u64,
    /// How often a payment is reported more than once.
    pub repeats: usize,
}

#[derive(Default, Serialize, Deserialize)]
struct Books {
    behaviour: Behaviour,
    /// The answers by idempotency key.
    known: BTreeMap<String, (u16, Value)>,
    customers: BTreeMap<String, Value>,
    invoices: BTreeMap<String, Value>,
    items: usize,
    /// Reports that were not delivered yet.
    reports: Vec<Value>,
}

/// The provider. It ends when this is dropped.
pub struct FakeProvider {
    url: String,
    key: Secret,
    webhook_secret: Secret,
    books: Arc<Mutex<Books>>,
    tasks: Vec<JoinHandle<()>>,
}

struct Server {
    key: Secret,
    books: Arc<Mutex<Books>>,
    /// Where the books are kept from one start to the next.
    file: Option<PathBuf>,
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeProvider {
    /// Starts on a free port of this machine, with what an earlier one left in `file`. `POST /control` sets its [`Behaviour`].
    pub async fn start(file: Option<PathBuf>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let secret = |prefix: &str| Secret::from(format!("{prefix}_{:032x}", rand::random::<u128>()));
        let (key, webhook_secret) = (secret("sk_test"), secret("whsec"));
        let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let books: Books = kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default();
        let books = Arc::new(Mutex::new(books));
        let server = Arc::new(Server { key: key.clone(), books: Arc::clone(&books), file });
        let router = Router::new().route("/control", post(control)).fallback(answer).with_state(server);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(error = %Chain(&error), "the payment provider for development has ended");
            }
        });
        Ok(Self { url, key, webhook_secret, books, tasks: vec![serving] })
    }

    /// Returns its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the adapter for it.
    pub fn adapter(&self) -> anyhow::Result<Stripe> {
        Stripe::new(&self.url, self.key.clone(), self.webhook_secret.clone())
    }

    /// Changes how it behaves.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.books).behaviour);
    }

    /// Forgets idempotency keys, as the provider does after a day.
    pub fn forget_keys(&self) {
        lock(&self.books).known.clear();
    }

    /// Returns every customer, as it is there.
    pub fn customers(&self) -> Vec<Value> {
        lock(&self.books).customers.values().cloned().collect()
    }

    /// Returns every invoice, as it is there.
    pub fn invoices(&self) -> Vec<Value> {
        lock(&self.books).invoices.values().cloned().collect()
    }

    /// Returns the number of items that all invoices together have.
    pub fn items(&self) -> usize {
        lock(&self.books).items
    }

    /// Returns the reports that were not delivered yet, and forgets them.
    pub fn take_reports(&self) -> Vec<Value> {
        std::mem::take(&mut lock(&self.books).reports)
    }

    /// Pays an invoice that is open, as its customer does later.
    pub fn pay(&self, id: &str) {
        lock(&self.books).pay(id);
    }

    /// Signs a report, as the header `Stripe-Signature` of it.
    pub fn sign(&self, body: &[u8], at: Timestamp) -> String {
        signature(&self.webhook_secret, body, at)
    }

    /// Delivers reports to `url` from now on: the last one first, and each as often as it is told to.
    pub fn deliver_to(&mut self, url: String) {
        let (books, secret) = (Arc::clone(&self.books), self.webhook_secret.clone());
        self.tasks.push(tokio::spawn(async move {
            let http = reqwest::Client::new();
            loop {
                sleep(EVERY).await;
                let (reports, repeats) = {
                    let mut books = lock(&books);
                    (std::mem::take(&mut books.reports), books.behaviour.repeats)
                };
                for report in reports.into_iter().rev() {
                    let mut is_delivered = false;
                    for _ in 0..=repeats {
                        let body = report.to_string();
                        let request = http.post(&url).header(header::CONTENT_TYPE, "application/json");
                        let request = request.header("stripe-signature", signature(&secret, body.as_bytes(), now()));
                        let sent = request.body(body).send().await;
                        is_delivered |= sent.is_ok_and(|answer| answer.status().is_success());
                    }
                    let mut books = lock(&books);
                    if !is_delivered && books.reports.len() < MAX {
                        books.reports.push(report);
                    }
                }
            }
        }));
    }
}

fn signature(secret: &Secret, body: &[u8], at: Timestamp) -> String {
    use std::fmt::Write;
    let at = (at.unix_ms() / 1_000).to_string();
    let tag = tag(secret, &at, body).map(|mac| mac.finalize().into_bytes()).unwrap_or_default();
    let mut signature = format!("t={at},v1=");
    for byte in tag {
        // Writing to a text does not fail.
        let _ = write!(signature, "{byte:02x}");
    }
    signature
}

async fn control(State(server): State<Arc<Server>>, Json(behaviour): Json<Behaviour>) -> Json<Behaviour> {
    lock(&server.books).behaviour = behaviour.clone();
    Json(behaviour)
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let delay = lock(&server.books).behaviour.delay_ms;
    sleep(Duration::from_millis(delay)).await;
    let (parts, body) = request.into_parts();
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_authorized = text("authorization") == Some(format!("Bearer {}", server.key.reveal()));
    let is_get = parts.method == Method::GET;
    let sent = if is_get { parts.uri.query().unwrap_or_default().as_bytes().to_vec() } else { read(body).await };
    let sent: BTreeMap<String, String> = serde_urlencoded::from_bytes(&sent).unwrap_or_default();
    let mut books = lock(&server.books);
    if books.behaviour.is_down {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if !is_authorized || text("stripe-version").is_none() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let key = text("idempotency-key");
    let known = key.as_ref().and_then(|key| books.known.get(key)).cloned();
    let is_replayed = known.is_some();
    let path = parts.uri.path().trim_start_matches("/v1/");
    let (status, body) = known.unwrap_or_else(|| books.carry_out(&parts.method, path, &sent));
    if books.is_full() {
        return StatusCode::INSUFFICIENT_STORAGE.into_response();
    }
    if let Some(key) = key {
        books.known.insert(key, (status, body.clone()));
    }
    if let Some(file) = server.file.as_ref().filter(|_| !is_get)
        && let Err(error) = keep(file, &books)
    {
        tracing::warn!(error = %Chain(&error), "the books of the payment provider for development cannot be kept");
    }
    if books.behaviour.loses_answers && !is_get {
        return StatusCode::GATEWAY_TIMEOUT.into_response();
    }
    let replayed = [("idempotent-replayed", if is_replayed { "true" } else { "false" })];
    (StatusCode::from_u16(status).unwrap_or_default(), replayed, Json(body)).into_response()
}

fn keep(file: &Path, books: &Books) -> std::io::Result<()> {
    std::fs::write(file, serde_json::to_vec(books)?)
}

async fn read(body: Body) -> Vec<u8> {
    to_bytes(body, MAX_BODY).await.map(Vec::from).unwrap_or_default()
}

impl Books {
    fn is_full(&self) -> bool {
        [self.known.len(), self.customers.len(), self.invoices.len()].into_iter().any(|len| len > MAX)
    }

    fn carry_out(&mut self, method: &Method, path: &str, sent: &BTreeMap<String, String>) -> (u16, Value) {
        let parts: Vec<&str> = path.split('/').collect();
        self.request(method.as_str(), &parts, sent)
            .unwrap_or_else(|| (404, json!({"error": {"code": "resource_missing"}})))
    }

    fn request(&mut self, method: &str, path: &[&str], sent: &BTreeMap<String, String>) -> Option<(u16, Value)> {
        let mark = sent.get("metadata[orgstream]");
        let done = |value: Value| Some((200, value));
        match (method, path) {
            ("GET", [what, "search"]) => {
                let all = if *what == "customers" { &self.customers } else { &self.invoices };
                let query = sent.get("query")?;
                let finds = |one: &&Value| {
                    let mark = one.pointer("/metadata/orgstream").and_then(Value::as_str).unwrap_or_default();
                    !self.behaviour.finds_nothing && *query == format!("metadata['orgstream']:'{mark}'")
                };
                done(json!({"data": all.values().filter(finds).collect::<Vec<_>>()}))
            }
            ("POST", ["customers"]) => {
                let id = format!("cus_{}", self.customers.len() + 1);
                let made = json!({"id": id, "name": sent.get("name")?, "metadata": {"orgstream": mark?}});
                self.customers.insert(id, made.clone());
                done(made)
            }
            ("POST", ["customers", id]) => {
                let customer = self.customers.get_mut(*id)?;
                let metadata = customer.pointer_mut("/metadata")?.as_object_mut()?;
                let ended = sent.get("metadata[orgstream_billing_ended]")?;
                metadata.insert("orgstream_billing_ended".to_owned(), json!(ended));
                done(customer.clone())
            }
            ("POST", ["invoices"]) => {
                let customer = sent.get("customer").filter(|id| self.customers.contains_key(*id))?;
                let id = format!("in_{}", self.invoices.len() + 1);
                let made = json!({"id": id, "status": "draft", "total": 0, "customer": customer,
                    "currency": sent.get("currency")?, "metadata": {"orgstream": mark?}});
                self.invoices.insert(id, made.clone());
                done(made)
            }
            ("POST", ["invoiceitems"]) => {
                let invoice = self.invoices.get_mut(sent.get("invoice")?)?;
                let amount: i64 = sent.get("amount")?.parse().ok()?;
                invoice["total"] = json!(invoice["total"].as_i64()? + amount + self.behaviour.adds);
                invoice["description"] = json!(sent.get("description")?);
                self.items += 1;
                done(json!({"id": format!("ii_{}", self.items)}))
            }
            ("GET", ["invoices", id]) => done(self.invoices.get(*id)?.clone()),
            ("DELETE", ["invoices", id]) if self.invoices.get(*id)?["status"] == "draft" => {
                done(self.invoices.remove(*id)?)
            }
            ("POST", ["invoices", id, what]) => self.change(id, what, sent),
            _ => None,
        }
    }

    fn change(&mut self, id: &str, what: &str, sent: &BTreeMap<String, String>) -> Option<(u16, Value)> {
        let is_collected = sent.get("auto_advance").is_some_and(|auto| auto == "true");
        let invoice = self.invoices.get_mut(id)?;
        let refused = |code: &str| Some((400, json!({"error": {"code": code}})));
        let status = match (what, invoice["status"].as_str()?) {
            // As there is nothing to pay.
            ("finalize", "draft") if invoice["total"] == 0 => "paid",
            ("finalize", "draft") if is_collected && self.behaviour.pays_invoices => "paid",
            ("finalize", "draft") => "open",
            ("pay", "open") if self.behaviour.refuses.is_some() => {
                return refused(self.behaviour.refuses.as_deref().unwrap_or_default());
            }
            ("pay", "open") => match &self.behaviour.declines {
                Some(code) => {
                    let error = json!({"code": "card_declined", "decline_code": code});
                    return Some((402, json!({"error": error})));
                }
                None if self.behaviour.is_undecided => "open",
                None => "paid",
            },
            ("void", "open") => "void",
            _ => return refused("invoice_not_editable"),
        };
        invoice["status"] = json!(status);
        let changed = invoice.clone();
        if status == "paid" && self.reports.len() < MAX {
            self.reports.push(json!({"type": "invoice.paid", "data": {"object": changed}}));
        }
        Some((200, changed))
    }

    fn pay(&mut self, id: &str) {
        let Some(invoice) = self.invoices.get_mut(id) else { return };
        invoice["status"] = json!("paid");
        self.reports.push(json!({"type": "invoice.paid", "data": {"object": invoice.clone()}}));
    }
}
