//! Invoices through the API: what is owed is on one invoice, whoever asks for it and how often, and nobody else sees it.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use orgstream::{clock::now, jobs::invoices};
use orgstream_events::{Month, PLATFORM_ORG};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
};

pub(crate) async fn send(api: &Api, bearer: &str, org: &Org, command: &Value) -> Answer {
    api.post(bearer, &org.path("commands"), command).await
}

pub(crate) async fn charge(api: &Api, org: &Org, amount: &str) {
    let command = json!({"type": "charge_usage", "meter": "tokens", "amount": amount});
    send(api, &org.owner, org, &command).await.expect(200);
}

pub(crate) fn end() -> Value {
    json!({"type": "end_billing", "reason": "contract ended"})
}

/// Puts the organization on a plan of its own, on which a million tokens cost 2 beyond the first 100,000.
pub(crate) async fn on_paid_plan(api: &Api, org: &Org, fee: &str) {
    let plan = format!("paid-{}", org.slug);
    let tokens = json!({"included": "100000", "overage": "10000000", "price_per_million": "2"});
    let definition = json!({"title": "Paid", "meters": {"tokens": tokens}, "monthly_fee": fee});
    let publish = json!({"type": "publish_plan", "plan": plan, "definition": definition});
    let platform = format!("/v1/organizations/{PLATFORM_ORG}/commands");
    api.post(OPERATOR, &platform, &publish).await.expect(200);
    let request = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR).json(&json!({"plan": plan}));
    Answer::of(request).await.expect(200);
    eventually("the plan to be the organization's", async || {
        let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
        (account["plan"] == plan.as_str()).then_some(())
    })
    .await;
}

pub(crate) async fn list(api: &Api, org: &Org) -> Value {
    api.get(&org.owner, &org.path("invoices")).await.expect(200).json()
}

async fn show(api: &Api, org: &Org, number: u32) -> Value {
    api.get(&org.owner, &org.path(&format!("invoices/{number}"))).await.expect(200).json()
}

/// The quantities of lines with a price, added up in millionths, over all invoices.
async fn billed(api: &Api, org: &Org) -> u64 {
    let mut sum = 0;
    for invoice in list(api, org).await["data"].as_array().unwrap() {
        let number = u32::try_from(invoice["number"].as_u64().unwrap()).unwrap();
        for line in show(api, org, number).await["lines"].as_array().unwrap() {
            if !line["price_per_million"].is_null() {
                sum += line["quantity"].as_str().unwrap().parse::<orgstream_events::Amount>().unwrap().micros();
            }
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_18_invoices_of_one_organization_are_not_in_another() {
    let api = Api::start().await;
    let (one, other) = (api.org("billed").await, api.org("unbilled").await);
    on_paid_plan(&api, &one, "10").await;
    let before = list(&api, &other).await;
    charge(&api, &one, "600000").await;
    send(&api, OPERATOR, &one, &end()).await.expect(200);
    let mine = list(&api, &one).await;
    assert_eq!(mine["data"].as_array().unwrap().len(), 1, "{mine}");
    assert_eq!(
        (&mine["data"][0]["total"], &mine["data"][0]["status"], &mine["data"][0]["currency"]),
        (&json!("11"), &json!("final"), &json!("EUR"))
    );
    let invoice = show(&api, &one, 1).await;
    let lines: Vec<_> = invoice["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["type"].clone(), line["source"].clone(), line["quantity"].clone(), line["amount"].clone()))
        .collect();
    assert_eq!(
        lines,
        [
            (json!("fee"), json!(null), json!("1"), json!("10")),
            (json!("usage"), json!("allowance"), json!("100000"), json!("0")),
            (json!("usage"), json!("overage"), json!("500000"), json!("1")),
        ]
    );
    assert_eq!(list(&api, &other).await, before);
    assert_eq!(before["data"], json!([]));
    // The same for people.
    let printed = api.request(Method::GET, &one.path("invoices/1/pdf")).bearer_auth(&one.owner).send().await.unwrap();
    assert_eq!(
        (printed.status().as_u16(), &printed.headers()["content-type"]),
        (200, &"application/octet-stream".parse().unwrap())
    );
    let bytes = printed.bytes().await.unwrap();
    let shows = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(bytes.starts_with(b"%PDF-") && shows("Invoice 1") && shows("usage tokens overage") && shows(&one.id));
    api.get(&other.owner, &one.path("invoices/1/pdf")).await.expect(404);
    // By its number, another's is as if it were not there; and nobody looks from outside.
    assert_eq!(api.get(&other.owner, &other.path("invoices/1")).await.expect(404).problem(), "not_found");
    for path in ["invoices", "invoices/1"] {
        api.get(&other.owner, &one.path(path)).await.expect(404);
    }
    let (_, viewer) = api.key(&one, "viewer").await;
    api.get(&viewer, &one.path("invoices/1")).await.expect(200);
    let (_, auditor) = api.key(&one, "auditor").await;
    api.get(&auditor, &one.path("invoices")).await.expect(403);
    assert_eq!(api.get(&one.owner, &one.path("invoices/x")).await.expect(400).problem(), "invalid_parameter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_30_fifty_closers_in_two_processes_make_one_final_invoice_of_what_is_unbilled() {
    let api = Api::start().await;
    let org = api.org("closing").await;
    on_paid_plan(&api, &org, "0").await;
    charge(&api, &org, "1350000.5").await;
    let others = api.another().await;
    let answers: Vec<Answer> = stream::iter(0..50)
        .map(|number| {
            let (api, org, others) = (&api, &org, &others);
            async move {
                let base = if number % 2 == 0 { &api.base } else { others };
                let request =
                    reqwest::Client::new().post(format!("{base}{}", org.path("commands"))).bearer_auth(OPERATOR);
                Answer::of(request.header("idempotency-key", format!("end-{}", number % 20)).json(&end())).await
            }
        })
        .buffer_unordered(50)
        .collect()
        .await;
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for answer in &answers {
        *counts.entry(answer.status).or_default() += 1;
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
    }
    assert!(counts[&200] >= 1, "{counts:?}");
    for number in 0..20 {
        let request = api.request(Method::POST, &org.path("commands")).bearer_auth(OPERATOR);
        Answer::of(request.header("idempotency-key", format!("end-{number}")).json(&end())).await.expect(200);
    }
    let invoices = list(&api, &org).await;
    assert_eq!(invoices["data"].as_array().unwrap().len(), 1, "{invoices}");
    assert_eq!((&invoices["data"][0]["number"], &invoices["data"][0]["total"]), (&json!(1), &json!("2.500001")));
    assert_eq!(billed(&api, &org).await, 1_250_000_500_000);
    // What is used later is on the next, with the next number, and once.
    charge(&api, &org, "7").await;
    for _ in 0..3 {
        send(&api, OPERATOR, &org, &end()).await.expect(200);
    }
    let invoices = list(&api, &org).await;
    let numbers: Vec<_> = invoices["data"].as_array().unwrap().iter().map(|invoice| &invoice["number"]).collect();
    assert_eq!(numbers, [&json!(2), &json!(1)]);
    assert_eq!(billed(&api, &org).await, 1_250_007_500_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_closes_months_and_settles_invoices_and_nobody_else_does() {
    let api = Api::start().await;
    let org = api.org("settled").await;
    on_paid_plan(&api, &org, "49").await;
    let this = Month::of(now());
    let close = |month: Month| json!({"type": "close_month", "month": month});
    let pay = |payment: &str| json!({"type": "mark_invoice_paid", "number": 1, "payment": payment});
    let void = json!({"type": "void_invoice", "number": 1, "reason": "goodwill"});
    for command in [&close(this), &pay("p"), &void, &end()] {
        assert_eq!(send(&api, &org.owner, &org, command).await.expect(403).problem(), "forbidden");
    }
    let early = send(&api, OPERATOR, &org, &close(this.next())).await.expect(409);
    assert_eq!(early.problem(), "month_not_over");
    assert_eq!(early.json()["figures"]["ends_at"], this.next().end().to_string());
    for command in [&pay("p"), &void] {
        assert_eq!(send(&api, OPERATOR, &org, command).await.expect(404).problem(), "not_found");
    }
    // The organization and its plan did not exist then.
    let long_ago = close("2020-02".parse().unwrap());
    assert_eq!(send(&api, OPERATOR, &org, &long_ago).await.expect(200).json()["events"], json!([]));
    send(&api, OPERATOR, &org, &end()).await.expect(200);
    for (payment, events) in [("p", json!(["invoice.paid"])), ("p", json!([]))] {
        assert_eq!(send(&api, OPERATOR, &org, &pay(payment)).await.expect(200).json()["events"], events);
    }
    for command in [&pay("q"), &void] {
        assert_eq!(send(&api, OPERATOR, &org, command).await.expect(409).problem(), "invoice_settled");
    }
    let invoice = show(&api, &org, 1).await;
    assert_eq!((&invoice["status"], &invoice["payment"]), (&json!("paid"), &json!("p")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_looks_at_every_organization_and_invoices_none_that_owes_nothing() {
    let api = Api::start().await;
    let org = api.org("free").await;
    charge(&api, &org, "10").await;
    let mut progress = invoices::Progress::default();
    invoices::round(api.log(), api.gateway.handler(), now(), &mut progress).await.unwrap();
    assert_eq!(progress.months(), 3);
    assert_eq!(list(&api, &org).await["data"], json!([]));
    // Pages end where there is nothing.
    let page = api.get(&org.owner, &org.path("invoices?limit=1")).await.expect(200).json();
    assert_eq!((&page["has_more"], &page["next_cursor"]), (&json!(false), &json!(null)));
    api.get(&org.owner, &org.path("invoices?limit=101")).await.expect(400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invoices_are_listed_in_pages_the_newest_first() {
    let api = Api::start().await;
    let org = api.org("paged").await;
    on_paid_plan(&api, &org, "0").await;
    charge(&api, &org, "100000").await;
    for _ in 0..5 {
        charge(&api, &org, "1").await;
        send(&api, OPERATOR, &org, &end()).await.expect(200);
    }
    let numbers = |page: &Value| -> Vec<u64> {
        page["data"].as_array().unwrap().iter().map(|invoice| invoice["number"].as_u64().unwrap()).collect()
    };
    let page = async |query: &str| {
        api.get(&org.owner, &org.path(&format!("invoices?limit=2{query}"))).await.expect(200).json()
    };
    let first = page("").await;
    let second = page(&format!("&cursor={}", first["next_cursor"].as_str().unwrap())).await;
    let third = page(&format!("&cursor={}", second["next_cursor"].as_str().unwrap())).await;
    assert_eq!([&first, &second, &third].map(numbers), [vec![5, 4], vec![3, 2], vec![1]]);
    assert_eq!(third["has_more"], false);
    let back = page(&format!("&cursor={}", third["prev_cursor"].as_str().unwrap())).await;
    assert_eq!(numbers(&back), [3, 2]);
    let other = api.org("reader").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    api.get(&other.owner, &other.path(&format!("invoices?cursor={cursor}"))).await.expect(400);
}
