//! What others got wrong about months, keys and charts of accounts: each is a test here, or in `account.rs`, `usage.rs`,
//! `invoices.rs`, `trial.rs` and the tests of the domain.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use orgstream::{
    clock::now,
    commands::{handler::fingerprint, request::Request},
};
use orgstream_domain::Command;
use orgstream_events::{
    AccountEvent, AccountGranted, AccountSettled, Actor, ActorType, AggregateId, Amount, BucketId, BucketSource,
    CommandId, CommitDraft, Context, Draw, Event, Fingerprint, MeterName, Month, OrgId, PLATFORM_ORG, Salt, Timestamp,
    UsedBy, UsedFor,
};
use orgstream_stream::Freshness;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    account::charge,
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
};

async fn send(api: &Api, bearer: &str, org: &Org, command: &Value) -> Answer {
    api.post(bearer, &org.path("commands"), command).await
}

async fn send_keyed(api: &Api, org: &Org, key: &str, command: &Value) -> Answer {
    let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&org.owner);
    Answer::of(request.header("idempotency-key", key).json(command)).await
}

/// Publishes a plan under a name of its own.
async fn publish(api: &Api, plan: &str, definition: &Value) {
    let command = json!({"type": "publish_plan", "plan": plan, "definition": definition});
    api.post(OPERATOR, &format!("/v1/organizations/{PLATFORM_ORG}/commands"), &command).await.expect(200);
}

async fn until_on_plan(api: &Api, org: &Org, plan: &str) {
    eventually("the plan to count", async || {
        let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
        (account["plan"] == plan).then_some(())
    })
    .await;
}

/// Writes events into an organization's history as if they had happened at another time, of a command with this id.
async fn write_at(
    api: &Api,
    aggregate: AggregateId,
    at: Timestamp,
    (org, id, fingerprint): (OrgId, CommandId, Option<Fingerprint>),
    events: Vec<Event>,
) {
    let log = api.log();
    let placement = log.placement(org).await.unwrap().unwrap();
    let history = log.load(&placement, &aggregate, 0, Freshness::Leader).await.unwrap();
    let draft = CommitDraft {
        org,
        aggregate,
        version_before: history.commits.iter().map(|stored| stored.commit.events.len() as u64).sum(),
        command_id: id,
        fingerprint,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: at,
        recorded_at: at,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events,
    };
    log.append(&placement, &draft.seal(|| Salt([3; 32])).unwrap(), history.last, None).await.unwrap();
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::from_unix_ms(now().unix_ms() - days * 86_400_000)
}

// Row 6: one invoice for an organization and a month, whoever closes it and how many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_closers_of_a_month_in_two_processes_make_one_invoice() {
    let api = Api::start().await;
    let org = api.org("monthly").await;
    let id: OrgId = org.id.parse().unwrap();
    let last = Month::of(now()).previous();
    // What it used in the last month, and has to pay for.
    let used_at = Timestamp::from_unix_ms(last.end().unix_ms() - 1);
    let (meter, amount): (MeterName, Amount) = ("tokens".parse().unwrap(), "1500000".parse().unwrap());
    let price_per_million = Some("2".parse().unwrap());
    let granted = AccountGranted {
        at: used_at,
        bucket: BucketId(1),
        meter: meter.clone(),
        source: BucketSource::Overage,
        amount,
        price_per_million,
        from: last.start(),
        until: Some(last.end()),
        plan: None,
        reason: None,
    };
    let settled = AccountSettled {
        at: used_at,
        hold: None,
        reserved_at: used_at,
        meter,
        amount,
        draws: vec![Draw { bucket: BucketId(1), amount }],
        returned: Amount::ZERO,
        used_for: UsedFor::default(),
        by: UsedBy { actor_type: ActorType::System, id: "system".to_owned() },
    };
    let events = [AccountEvent::Granted(granted), AccountEvent::Settled(settled)].map(Event::Account).to_vec();
    let command = (id, CommandId::from_uuid(Uuid::now_v7()), None);
    write_at(&api, AggregateId::Account(id), used_at, command, events).await;
    let (others, close) = (api.another().await, json!({"type": "close_month", "month": last}));
    let answers: Vec<Answer> = stream::iter(0..50)
        .map(|number| {
            let (base, close, org) = (if number % 2 == 0 { &api.base } else { &others }, &close, &org);
            async move {
                let request = reqwest::Client::new().post(format!("{base}{}", org.path("commands")));
                Answer::of(request.bearer_auth(OPERATOR).json(close)).await
            }
        })
        .buffer_unordered(50)
        .collect()
        .await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert!(count(200) >= 1 && count(200) + count(409) == 50, "{answers:?}");
    let invoices = api.get(&org.owner, &org.path("invoices")).await.expect(200).json();
    let invoices = invoices["data"].as_array().unwrap();
    let shown: Vec<_> =
        invoices.iter().map(|invoice| (&invoice["number"], &invoice["month"], &invoice["total"])).collect();
    assert_eq!(shown, [(&json!(1), &json!(last), &json!("3"))]);
}

// Row 20: the same key in two organizations is two effects; in one, 90 days later, it is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_one_organizations_own_and_for_ever() {
    let api = Api::start().await;
    let (one, other) = (api.org("keyed").await, api.org("keyed-too").await);
    let id: OrgId = one.id.parse().unwrap();
    // A credit of 90 days ago, under a key.
    let granted = AccountGranted {
        at: days_ago(90),
        bucket: BucketId(1),
        meter: "ecu".parse().unwrap(),
        source: BucketSource::Grant,
        amount: "10".parse().unwrap(),
        price_per_million: None,
        from: days_ago(90),
        until: None,
        plan: None,
        reason: Some("before".to_owned()),
    };
    let credit = json!({"type": "credit_account", "meter": "ecu", "amount": "10", "reason": "before"});
    let sent = fingerprint(&Request::from(Command::read(credit.clone()).unwrap())).unwrap();
    let command = (id, CommandId::from_idempotency_key(id, "paid-1"), Some(sent));
    let event = Event::Account(AccountEvent::Granted(granted));
    write_at(&api, AggregateId::Account(id), days_ago(90), command, vec![event]).await;
    let credit_keyed = async |org: &Org| {
        let request = api.request(Method::POST, &org.path("commands")).bearer_auth(OPERATOR);
        Answer::of(request.header("idempotency-key", "paid-1").json(&credit)).await
    };
    for _ in 0..3 {
        assert_eq!(credit_keyed(&one).await.expect(200).json()["replayed"], true);
        credit_keyed(&other).await.expect(200);
    }
    for org in [&one, &other] {
        let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
        let ecu = account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == "ecu").unwrap();
        assert_eq!(ecu["available"], "10", "{account}");
        send_keyed(&api, org, "use-1", &charge("ecu", "4")).await.expect(200);
        send_keyed(&api, org, "use-1", &charge("ecu", "4")).await.expect(200);
    }
    for org in [&one, &other] {
        let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
        let ecu = account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == "ecu").unwrap();
        assert_eq!(ecu["available"], "6", "{account}");
    }
}

// Row 28: what a chart adds up to is what the invoice bills, and both are of the same days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_days_of_a_chart_add_up_to_the_lines_of_the_invoice() {
    let api = Api::start().await;
    let org = api.org("charted").await;
    let tokens = json!({"included": "10", "overage": "1000", "price_per_million": "3"});
    let meters = json!({"tokens": tokens, "ecu": {"overage": "1000", "price_per_million": "7"}});
    publish(&api, "charted", &json!({"title": "Charted", "meters": meters})).await;
    let request = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR);
    Answer::of(request.json(&json!({"plan": "charted"}))).await.expect(200);
    until_on_plan(&api, &org, "charted").await;
    for number in 1..=20 {
        let (meter, amount) = (["tokens", "ecu"][number % 2], format!("{number}.{number:06}"));
        let mut command = charge(meter, &amount);
        command["model"] = json!(["small", "large", "other"][number % 3]);
        send(&api, &org.owner, &org, &command).await.expect(200);
    }
    let end = send(&api, OPERATOR, &org, &json!({"type": "end_billing", "reason": "test"})).await.expect(200);
    let invoice = api.get(&org.owner, &org.path("invoices/1")).await.expect(200).json();
    let by_meter = |rows: &Value, name: &str| {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows.as_array().unwrap() {
            let amount: Amount = row[name].as_str().unwrap().parse().unwrap();
            *sums.entry(row["meter"].as_str().unwrap().to_owned()).or_default() += amount.micros();
        }
        sums
    };
    let billed = by_meter(&invoice["lines"], "quantity");
    assert_eq!(billed.len(), 2, "{invoice}");
    let position = end.header("stream-position");
    for query in ["step=day", "step=hour", "step=day&group_by=model,principal"] {
        let series =
            api.get_at(&org.owner, &org.path(&format!("usage/series?{query}")), position).await.expect(200).json();
        assert_eq!(
            (by_meter(&series["data"], "amount"), by_meter(&series["totals"], "amount")),
            (billed.clone(), billed.clone())
        );
        // Days begin at midnight in UTC, and say so.
        for row in series["data"].as_array().unwrap() {
            let begins = row["begins_at"].as_str().unwrap();
            assert!(begins.ends_with('Z') && begins.contains(":00:00.000"), "{row}");
            assert!(query.contains("hour") || begins.ends_with("T00:00:00.000Z"), "{row}");
        }
    }
}
