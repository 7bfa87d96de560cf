//! Payments, with a provider that can be down, lose answers, decline, and tell twice and out of order: what the log says is
//! collected once, and what was paid is granted once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use orgstream::{
    adapters::payments::{Collection, FakeProvider, Item, Payable, PaymentProvider, Stripe},
    clock::now,
    jobs::payments::{self, Seen},
};
use orgstream_events::{OrgId, PLATFORM_ORG};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
    invoices::{charge, end, list, on_paid_plan, send},
};

/// An API whose payments are collected at a fake provider.
struct Paying {
    api: Api,
    fake: FakeProvider,
    provider: Arc<Stripe>,
    seen: Seen,
    now: Instant,
}

impl Paying {
    async fn start() -> Self {
        let fake = FakeProvider::start(None).await.unwrap();
        let provider = Arc::new(fake.adapter().unwrap());
        let api = Api::start_paying(Arc::clone(&provider) as Arc<dyn PaymentProvider>).await;
        Self { api, fake, provider, seen: Seen::default(), now: Instant::now() }
    }

    /// Lets the loop run once, two hours later.
    async fn round(&mut self) {
        self.now += Duration::from_hours(2);
        let handler = self.api.gateway.handler();
        payments::round(self.api.log(), handler, &*self.provider, self.now, &mut self.seen).await.unwrap();
    }

    /// The invoices of an organization at the provider: mark, status and total.
    fn invoices_of(&self, org: &Org) -> Vec<(String, String, i64)> {
        let text = |invoice: &Value, pointer: &str| invoice.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        let all = self.fake.invoices().into_iter().map(|invoice| {
            (text(&invoice, "/metadata/orgstream"), text(&invoice, "/status"), invoice["total"].as_i64().unwrap())
        });
        all.filter(|(mark, ..)| mark.starts_with(&org.id)).collect()
    }

    /// Lets the customer pay an invoice there.
    fn pays(&self, org: &Org, number: u32) {
        let mark = format!("{}:{number}", org.id);
        let there = self.fake.invoices().into_iter().find(|one| one["metadata"]["orgstream"] == *mark).unwrap();
        self.fake.pay(there["id"].as_str().unwrap());
    }

    fn customers_of(&self, org: &Org) -> Vec<Value> {
        self.fake.customers().into_iter().filter(|one| one["metadata"]["orgstream"] == org.id.as_str()).collect()
    }

    /// Sends a report, signed by the provider.
    async fn report(&self, report: &Value) -> Answer {
        let body = report.to_string();
        let signature = self.fake.sign(body.as_bytes(), now());
        self.deliver(body, &signature).await
    }

    async fn deliver(&self, body: String, signature: &str) -> Answer {
        let request = self.api.request(Method::POST, "/v1/payment-reports").header("stripe-signature", signature);
        Answer::of(request.header("content-type", "application/json").body(body)).await
    }

    async fn meter(&self, org: &Org) -> Value {
        let account = self.api.get(&org.owner, &org.path("account")).await.expect(200).json();
        account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == "tokens").unwrap().clone()
    }
}

fn paid(org: &Org, item: &str, payment: &str) -> Value {
    let mark = format!("{}:{item}", org.id);
    json!({"type": "invoice.paid", "data": {"object": {"id": payment, "metadata": {"orgstream": mark}}}})
}

async fn owe(api: &Api, org: &Org, tokens: &str) {
    charge(api, org, tokens).await;
    send(api, OPERATOR, org, &end()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_10_each_paying_organization_has_a_customer_and_invoices_of_its_own() {
    let mut paying = Paying::start().await;
    let (one, other, free) = (paying.api.org("one").await, paying.api.org("other").await, paying.api.org("free").await);
    for (org, tokens) in [(&one, "600000"), (&other, "1100000")] {
        on_paid_plan(&paying.api, org, "10").await;
        owe(&paying.api, org, tokens).await;
    }
    for _ in 0..3 {
        paying.round().await;
    }
    assert_eq!(paying.invoices_of(&one), [(format!("{}:1", one.id), "open".to_owned(), 1_100)]);
    assert_eq!(paying.invoices_of(&other), [(format!("{}:1", other.id), "open".to_owned(), 1_200)]);
    let customers = [&one, &other, &free].map(|org| paying.customers_of(org));
    assert_eq!(customers.each_ref().map(Vec::len), [1, 1, 0]);
    assert_ne!(customers[0][0]["id"], customers[1][0]["id"]);
    assert_eq!(paying.fake.invoices().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_30_a_provider_that_is_down_for_a_day_or_loses_answers_is_told_of_each_thing_once() {
    let mut paying = Paying::start().await;
    let org = paying.api.org("patient").await;
    on_paid_plan(&paying.api, &org, "0").await;
    paying.fake.behave(|behaviour| behaviour.is_down = true);
    owe(&paying.api, &org, "600000").await;
    for _ in 0..12 {
        paying.round().await;
    }
    assert_eq!(list(&paying.api, &org).await["data"][0]["status"], "final");
    paying.fake.behave(|behaviour| {
        behaviour.is_down = false;
        behaviour.loses_answers = true;
        behaviour.finds_nothing = true;
    });
    for _ in 0..10 {
        paying.round().await;
    }
    paying.fake.behave(|behaviour| behaviour.loses_answers = false);
    // Two processes at the same time.
    let (mut first, mut second) = (std::mem::take(&mut paying.seen), Seen::default());
    let (log, handler, later) = (paying.api.log(), paying.api.gateway.handler(), paying.now + Duration::from_hours(2));
    let (one, two) = tokio::join!(
        payments::round(log, handler, &*paying.provider, later, &mut first),
        payments::round(log, handler, &*paying.provider, later, &mut second)
    );
    one.and(two).unwrap();
    // A day later, when no key is known any more, it is found by its mark.
    paying.fake.forget_keys();
    paying.fake.behave(|behaviour| behaviour.finds_nothing = false);
    for _ in 0..3 {
        paying.round().await;
    }
    assert_eq!(paying.invoices_of(&org), [(format!("{}:1", org.id), "open".to_owned(), 100)]);
    let customers = paying.customers_of(&org);
    assert_eq!(customers.len(), 1);
    assert!(customers[0]["metadata"]["orgstream_billing_ended"].is_string(), "{customers:?}");
    assert_eq!(paying.fake.items(), 1);
    // What is void here is void there.
    let void = json!({"type": "void_invoice", "number": 1, "reason": "goodwill"});
    send(&paying.api, OPERATOR, &org, &void).await.expect(200);
    paying.round().await;
    assert_eq!(paying.invoices_of(&org)[0].1, "void");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_is_noted_once_however_often_and_in_whatever_order_it_is_reported() {
    let mut paying = Paying::start().await;
    let org = paying.api.org("reported").await;
    on_paid_plan(&paying.api, &org, "0").await;
    owe(&paying.api, &org, "600000").await;
    owe(&paying.api, &org, "500000").await;
    // Before the program has noted that the provider has them.
    let finalized = json!({
        "type": "invoice.finalized", "data": {"object": {"metadata": {"orgstream": format!("{}:1", org.id)}}},
    });
    let reports = [paid(&org, "2", "in_2"), paid(&org, "1", "in_1"), paid(&org, "2", "in_2"), finalized];
    for report in reports.iter().cycle().take(12) {
        paying.report(report).await.expect(204);
    }
    paying.round().await;
    for report in &reports {
        paying.report(report).await.expect(204);
    }
    let invoices = list(&paying.api, &org).await;
    let settled: Vec<_> =
        invoices["data"].as_array().unwrap().iter().map(|one| (&one["status"], &one["payment"])).collect();
    assert_eq!(settled, [(&json!("paid"), &json!("in_2")), (&json!("paid"), &json!("in_1"))]);
    // What is paid already is not collected.
    assert_eq!(paying.invoices_of(&org), []);
    // A payment of what is not open, or not there, changes nothing and is not repeated for ever.
    let refund = json!({"type": "charge.refunded", "data": {"object": {}}});
    for report in [paid(&org, "1", "in_9"), paid(&org, "77", "in_77"), paid(&org, "top-up-1", "in_78"), refund] {
        paying.report(&report).await.expect(204);
    }
    assert_eq!(list(&paying.api, &org).await, invoices);
    let body = paid(&org, "1", "in_1").to_string();
    for signature in ["", "t=1,v1=00", &paying.fake.sign(b"another body", now())] {
        let refused = paying.deliver(body.clone(), signature).await.expect(403);
        assert_eq!(refused.problem(), "bad_signature");
    }
    let unsigned = paying.api.request(Method::POST, "/v1/payment-reports").json(&json!({}));
    Answer::of(unsigned).await.expect(400);
}

/// An organization whose plan sells tokens, of which 1,000 are included, and which buys 500 when fewer than 200 are left.
async fn topping_up(paying: &Paying, slug: &str) -> Org {
    let org = paying.api.org(slug).await;
    let meters = json!({"tokens": {"included": "1000", "top_up_price_per_million": "20000"}});
    let publish = json!({"type": "publish_plan", "plan": slug, "definition": {"title": slug, "meters": meters}});
    let platform = format!("/v1/organizations/{PLATFORM_ORG}/commands");
    paying.api.post(OPERATOR, &platform, &publish).await.expect(200);
    let request = paying.api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR).json(&json!({"plan": slug}));
    Answer::of(request).await.expect(200);
    let rule = json!({"below": "200", "amount": "500", "monthly_limit": "5000"});
    let change = json!({"type": "change_top_up", "meter": "tokens", "rule": rule});
    send(&paying.api, &org.owner, &org, &change).await.expect(200);
    org
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_up_is_charged_once_whatever_is_lost_and_granted_once_whoever_reports_it() {
    let mut paying = Paying::start().await;
    let org = topping_up(&paying, "once").await;
    charge(&paying.api, &org, "900").await;
    let open = paying.meter(&org).await["top_up"]["open"].clone();
    assert_eq!((&open["number"], &open["amount"], &open["price"]), (&json!(1), &json!("500"), &json!("10")));
    paying.fake.behave(|behaviour| behaviour.loses_answers = true);
    for _ in 0..8 {
        paying.round().await;
    }
    paying.fake.behave(|behaviour| behaviour.loses_answers = false);
    // The provider reports it, too, before the loop sees it, and again after that.
    let reports = paying.fake.take_reports();
    assert_eq!(reports.len(), 1);
    paying.report(&reports[0]).await.expect(204);
    paying.round().await;
    paying.report(&reports[0]).await.expect(204);
    paying.round().await;
    assert_eq!(paying.invoices_of(&org), [(format!("{}:top-up-1", org.id), "paid".to_owned(), 1_000)]);
    let meter = paying.meter(&org).await;
    assert_eq!((&meter["available"], &meter["top_up"]["open"]), (&json!("600"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decline_is_seen_and_nothing_is_attempted_again_before_its_time() {
    let mut paying = Paying::start().await;
    let org = topping_up(&paying, "declined").await;
    paying.fake.behave(|behaviour| behaviour.declines = Some("insufficient_funds".to_owned()));
    charge(&paying.api, &org, "900").await;
    for _ in 0..5 {
        paying.round().await;
        charge(&paying.api, &org, "1").await;
    }
    // One attempt: it is void, so that nothing collects it later.
    assert_eq!(paying.invoices_of(&org), [(format!("{}:top-up-1", org.id), "void".to_owned(), 1_000)]);
    let meter = paying.meter(&org).await;
    assert_eq!((&meter["available"], &meter["top_up"]["open"]), (&json!("95"), &Value::Null));
    assert!(meter["top_up"]["retry_at"].is_string(), "{meter}");
    let declines = eventually("the decline in the audit log", async || {
        let path = org.path("audit/events?action=account.top_up_declined");
        let declines = paying.api.get(&org.owner, &path).await.expect(200).json()["data"].clone();
        (!declines.as_array().unwrap().is_empty()).then_some(declines)
    })
    .await;
    assert_eq!(declines.as_array().unwrap().len(), 1);
    assert_eq!(declines[0]["data"]["reason"], "insufficient_funds");
    // Changing the rule is no way around the pause.
    paying.fake.behave(|behaviour| behaviour.declines = None);
    for rule in [Value::Null, json!({"below": "200", "amount": "500"})] {
        let change = json!({"type": "change_top_up", "meter": "tokens", "rule": rule});
        send(&paying.api, &org.owner, &org, &change).await.expect(200);
    }
    paying.round().await;
    assert_eq!(paying.fake.invoices().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_who_has_no_way_to_pay_yet_is_a_decline() {
    let mut paying = Paying::start().await;
    let org = topping_up(&paying, "cardless").await;
    paying.fake.behave(|behaviour| behaviour.refuses = Some("missing".to_owned()));
    charge(&paying.api, &org, "900").await;
    for _ in 0..2 {
        paying.round().await;
    }
    let meter = paying.meter(&org).await;
    assert_eq!((&meter["available"], &meter["top_up"]["open"]), (&json!("100"), &Value::Null));
    assert_eq!(paying.invoices_of(&org)[0].1, "void");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_here_is_not_collected_there_whatever_was_noted() {
    let mut paying = Paying::start().await;
    let org = paying.api.org("settled").await;
    on_paid_plan(&paying.api, &org, "0").await;
    for tokens in ["600000", "500000", "400000"] {
        owe(&paying.api, &org, tokens).await;
    }
    // The process dies before it notes the pushes: the provider has them, and nothing says so.
    let id: OrgId = org.id.parse().unwrap();
    let state = paying.api.gateway.handler().invoices_of(id).await.unwrap().unwrap();
    let customer = paying.provider.customer(id, "settled").await.unwrap();
    for (number, invoice) in state.invoices.all() {
        let what = Payable { org: id, item: Item::Invoice(*number) };
        let (customer, money, currency) = (customer.clone(), invoice.total, invoice.currency.clone());
        let collection = Collection { what, customer, money, currency, description: "x".to_owned() };
        paying.provider.push_invoice(&collection).await.unwrap();
    }
    let link = json!({"type": "link_billing_customer", "customer": customer});
    let void = json!({"type": "void_invoice", "number": 1, "reason": "goodwill"});
    let transfer = json!({"type": "mark_invoice_paid", "number": 2, "payment": "transfer"});
    for command in [&link, &void, &transfer] {
        send(&paying.api, OPERATOR, &org, command).await.expect(200);
    }
    // One that its customer pays there at the same time keeps nothing else waiting.
    paying.pays(&org, 1);
    for _ in 0..3 {
        paying.round().await;
    }
    let statuses: Vec<_> = paying.invoices_of(&org).into_iter().map(|(_, status, _)| status).collect();
    assert_eq!(statuses, ["paid", "void", "open"]);
    // A report that was lost is made good by asking.
    paying.pays(&org, 3);
    paying.fake.take_reports();
    for _ in 0..5 {
        paying.round().await;
    }
    let invoices = list(&paying.api, &org).await;
    let settled: Vec<_> = invoices["data"].as_array().unwrap().iter().map(|one| one["status"].clone()).collect();
    assert_eq!(settled, ["paid", "paid", "void"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_at_the_provider_is_not_taken_for_what_is_owed() {
    let mut paying = Paying::start().await;
    let org = paying.api.org("edited").await;
    on_paid_plan(&paying.api, &org, "0").await;
    paying.fake.behave(|behaviour| behaviour.adds = 5);
    owe(&paying.api, &org, "600000").await;
    for _ in 0..3 {
        paying.round().await;
    }
    assert_eq!(paying.invoices_of(&org), [(format!("{}:1", org.id), "draft".to_owned(), 105)]);
    assert_eq!(list(&paying.api, &org).await["data"][0]["status"], "final");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_takes_time_is_granted_when_it_is_reported() {
    let mut paying = Paying::start().await;
    let org = topping_up(&paying, "slow").await;
    paying.fake.behave(|behaviour| behaviour.is_undecided = true);
    charge(&paying.api, &org, "900").await;
    for _ in 0..3 {
        paying.round().await;
    }
    let known = paying.fake.invoices();
    assert_eq!((known.len(), &known[0]["status"]), (1, &json!("open")));
    paying.fake.pay(known[0]["id"].as_str().unwrap());
    for report in paying.fake.take_reports() {
        paying.report(&report).await.expect(204);
    }
    assert_eq!(paying.meter(&org).await["available"], "600");
}
