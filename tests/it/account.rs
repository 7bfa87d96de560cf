//! Accounts through the API: what one organization uses is its own, exact whatever comes at once, and refused with a way out.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use orgstream_events::{AccountEvent, AggregateId, Amount, Event, HoldId, OrgId, PLATFORM_ORG};
use orgstream_stream::Log;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
    history::History,
};

/// Callers at the same time.
const CALLERS: usize = 50;

async fn send(api: &Api, bearer: &str, org: &str, command: &Value) -> Answer {
    api.post(bearer, &format!("/v1/organizations/{org}/commands"), command).await
}

/// Sends a command under an idempotency key.
async fn send_keyed(api: &Api, org: &Org, key: &str, command: &Value) -> Answer {
    let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&org.owner);
    Answer::of(request.header("idempotency-key", key).json(command)).await
}

async fn credit(api: &Api, org: &Org, meter: &str, amount: &str) {
    let command = json!({"type": "credit_account", "meter": meter, "amount": amount, "reason": "test"});
    send(api, OPERATOR, &org.id, &command).await.expect(200);
}

async fn account(api: &Api, org: &Org) -> Value {
    api.get(&org.owner, &org.path("account")).await.expect(200).json()
}

/// The balance of one meter.
async fn meter(api: &Api, org: &Org, name: &str) -> Value {
    let account = account(api, org).await;
    account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == name).unwrap().clone()
}

/// What an account's log says, whoever wrote it: an independent sum of its events.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) commits: usize,
    pub(crate) commands: usize,
    /// The actors of its commands.
    actors: BTreeMap<String, usize>,
    reserved: Amount,
    pub(crate) settled: Amount,
    open: HashSet<HoldId>,
    /// The most holds that were open at one time.
    pub(crate) most_open: usize,
}

impl Ledger {
    fn take_in(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Reserved(reserved) => {
                self.reserved = self.reserved.plus(reserved.amount).unwrap();
                assert!(self.open.insert(reserved.hold), "{} is opened twice", reserved.hold);
                self.most_open = self.most_open.max(self.open.len());
            }
            AccountEvent::Settled(settled) => {
                self.settled = self.settled.plus(settled.amount).unwrap();
                assert!(settled.hold.is_none_or(|hold| self.open.remove(&hold)), "{settled:?} ends nothing");
            }
            AccountEvent::Released(released) => assert!(self.open.remove(&released.hold), "{released:?} ends nothing"),
            AccountEvent::HoldsExpired(expired) => {
                for expired in &expired.holds {
                    assert!(self.open.remove(&expired.hold), "{expired:?} ends nothing");
                }
            }
            _ => {}
        }
    }
}

pub(crate) async fn ledger(log: &Log, org: OrgId) -> Ledger {
    let (history, mut ledger) = (History::read(log, org).await, Ledger::default());
    history.assert_sound();
    let mut known = HashSet::new();
    let of_account =
        |event: &&orgstream_events::OpenedEvent| event.header.aggregate.aggregate == AggregateId::Account(org);
    for stored in &history.commits {
        ledger.commits += usize::from(stored.commit.events.iter().any(|event| of_account(&event)));
        for command in stored.commit.commands() {
            let Some(first) = command.events.first().filter(of_account) else { continue };
            assert!(known.insert(command.command_id), "{} is there twice", command.command_id);
            ledger.commands += 1;
            *ledger.actors.entry(first.header.actor.id.clone()).or_default() += 1;
            for event in command.events {
                assert_eq!(event.header.actor, first.header.actor);
                if let Event::Account(event) = &event.event {
                    ledger.take_in(event);
                }
            }
        }
    }
    ledger
}

/// Publishes a plan under a name of its own, and puts the organization on it.
async fn on_plan(api: &Api, org: &Org, plan: &str, definition: &Value) {
    let publish = json!({"type": "publish_plan", "plan": plan, "definition": definition});
    send(api, OPERATOR, &PLATFORM_ORG.to_string(), &publish).await.expect(200);
    let request = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR).json(&json!({"plan": plan}));
    Answer::of(request).await.expect(200);
    eventually("the plan to be the organization's", async || (account(api, org).await["plan"] == plan).then_some(()))
        .await;
}

pub(crate) fn reserve(meter: &str, amount: &str) -> Value {
    json!({"type": "reserve_usage", "meter": meter, "amount": amount})
}

pub(crate) fn charge(meter: &str, amount: &str) -> Value {
    json!({"type": "charge_usage", "meter": meter, "amount": amount})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_17_what_one_organization_has_and_uses_is_its_own() {
    let api = Api::start().await;
    let (one, other) = (api.org("paying").await, api.org("idle").await);
    credit(&api, &one, "ecu", "100").await;
    let before = account(&api, &other).await;
    assert_eq!(meter(&api, &one, "ecu").await["available"], "100");
    assert_eq!(meter(&api, &other, "ecu").await["available"], "0");
    send(&api, &one.owner, &one.id, &charge("ecu", "12.5")).await.expect(200);
    let held = send(&api, &one.owner, &one.id, &reserve("ecu", "40")).await.expect(201).json();
    let left = meter(&api, &one, "ecu").await;
    assert_eq!((&left["available"], &left["held"], &left["spent"]), (&json!("47.5"), &json!("40"), &json!("12.5")));
    assert_eq!(account(&api, &other).await, before);
    // What is another's is as if it were not there.
    let settle = json!({"type": "settle_hold", "hold": held["hold"], "amount": "1"});
    assert_eq!(send(&api, &other.owner, &other.id, &settle).await.expect(409).problem(), "hold_not_open");
    send(&api, &other.owner, &one.id, &settle).await.expect(404);
    assert_eq!(
        send(&api, &other.owner, &other.id, &charge("ecu", "1")).await.expect(402).problem(),
        "insufficient_balance"
    );
    send(&api, &one.owner, &one.id, &settle).await.expect(200);
    assert_eq!(meter(&api, &one, "ecu").await["available"], "86.5");
    // A key is its organization's: the same one is another command elsewhere.
    credit(&api, &other, "ecu", "10").await;
    for org in [&one, &other, &one] {
        send_keyed(&api, org, "same", &charge("ecu", "2")).await.expect(200);
    }
    assert_eq!(meter(&api, &one, "ecu").await["available"], "84.5");
    assert_eq!(meter(&api, &other, "ecu").await["available"], "8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_42_what_is_included_cannot_be_overspent_by_callers_at_once() {
    let api = Api::start().await;
    let org = api.org("parallel").await;
    let definition = json!({"title": "Small", "meters": {"tokens": {"included": "1000"}}});
    on_plan(&api, &org, "small", &definition).await;
    let answers: Vec<Answer> = stream::iter(0..200)
        .map(|number| {
            let (api, org) = (&api, &org);
            async move { send_keyed(api, org, &format!("call-{number}"), &reserve("tokens", "7")).await }
        })
        .buffer_unordered(CALLERS)
        .collect()
        .await;
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for answer in &answers {
        *counts.entry(answer.status).or_default() += 1;
        if answer.status == 402 {
            let refused = answer.json();
            assert_eq!(
                (&refused["figures"]["required"], &refused["figures"]["available"]),
                (&json!("7"), &json!("6")),
                "{refused}"
            );
        }
    }
    assert_eq!(counts, BTreeMap::from([(201, 142), (402, 58)]));
    let left = meter(&api, &org, "tokens").await;
    assert_eq!((&left["available"], &left["held"]), (&json!("6"), &json!("994")));
    // Each call again, and again by others: nothing more happens.
    for number in 0..200 {
        let again = send_keyed(&api, &org, &format!("call-{number}"), &reserve("tokens", "7")).await;
        assert!(again.status == 402 || again.json()["replayed"] == true, "{}", again.text);
    }
    assert_eq!(meter(&api, &org, "tokens").await, left);
    let other = send_keyed(&api, &org, "call-0", &reserve("tokens", "8")).await;
    assert!([402, 422].contains(&other.status), "{}", other.text);
    // Callers at once share commits, and nothing else.
    let ledger = ledger(api.log(), org.id.parse().unwrap()).await;
    assert_eq!((ledger.commands, ledger.reserved), (142, "994".parse().unwrap()));
    assert!(ledger.commits < ledger.commands, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_share_a_commit_are_each_of_their_own_caller() {
    let api = Api::start().await;
    let org = api.org("together").await;
    credit(&api, &org, "ecu", "1000").await;
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(api.key(&org, "member").await);
    }
    let (_, viewer) = api.key(&org, "viewer").await;
    let answers = join_all((0..120).map(async |number| {
        let (_, key) = &keys[number % keys.len()];
        match number % 6 {
            // Those that are refused take nothing from the others.
            4 => send(&api, &viewer, &org.id, &charge("ecu", "1")).await,
            5 => send(&api, key, &org.id, &charge("ecu", "1000000")).await,
            _ => send(&api, key, &org.id, &charge("ecu", "1")).await,
        }
    }))
    .await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(200), count(403), count(402)), (80, 20, 20));
    let ledger = ledger(api.log(), org.id.parse().unwrap()).await;
    assert_eq!((ledger.commands, ledger.settled), (81, "80".parse().unwrap()));
    for (id, _) in &keys {
        assert_eq!(ledger.actors.get(id), Some(&20), "{ledger:?}");
    }
    // What is in the log is what the account has, and what the audit log says of each.
    let shown = meter(&api, &org, "ecu").await;
    assert_eq!((&shown["available"], &shown["spent"]), (&json!("920"), &json!("80")));
    let entries = eventually("the audit log to have all of it", async || {
        let path = org.path("audit/events?action=account.settled&limit=100");
        let page = api.get(&org.owner, &path).await.expect(200).json();
        let entries = page["data"].as_array().unwrap().clone();
        (entries.len() == 80).then_some(entries)
    })
    .await;
    for (id, _) in &keys {
        assert_eq!(entries.iter().filter(|entry| entry["actor"]["id"] == **id).count(), 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_settlement_has_one_effect_and_another_amount_is_refused() {
    let api = Api::start().await;
    let org = api.org("once").await;
    credit(&api, &org, "ecu", "100").await;
    let reserved = send_keyed(&api, &org, "run", &reserve("ecu", "10")).await.expect(201).json();
    let hold = reserved["hold"].as_str().unwrap().to_owned();
    assert_eq!(send_keyed(&api, &org, "run", &reserve("ecu", "10")).await.expect(201).json()["hold"], hold);
    let settle = |amount: &str| json!({"type": "settle_hold", "hold": hold, "amount": amount});
    assert_eq!(send_keyed(&api, &org, "more", &settle("10.5")).await.expect(409).problem(), "more_than_held");
    for _ in 0..3 {
        send_keyed(&api, &org, "settle", &settle("4")).await.expect(200);
    }
    assert_eq!(send_keyed(&api, &org, "settle", &settle("5")).await.expect(422).problem(), "idempotency_key_reused");
    assert_eq!(send_keyed(&api, &org, "again", &settle("4")).await.expect(409).problem(), "hold_not_open");
    assert_eq!(meter(&api, &org, "ecu").await["available"], "96");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_31_a_limit_of_concurrency_is_the_plans_or_the_organizations_own_and_holds_within_a_second() {
    let api = Api::start().await;
    let (org, other) = (api.org("busy").await, api.org("calm").await);
    let definition = json!({"title": "Two", "meters": {"ecu": {}}, "limits": {"concurrency": 2}});
    on_plan(&api, &org, "two", &definition).await;
    for _ in 0..2 {
        send(&api, &org.owner, &org.id, &reserve("ecu", "0")).await.expect(201);
    }
    let refused = send(&api, &org.owner, &org.id, &reserve("ecu", "0")).await.expect(429);
    assert_eq!(
        (refused.problem(), refused.json()["figures"]["limit"].clone()),
        ("hold_limit_exceeded".to_owned(), json!("2"))
    );
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=900).contains(&wait), "{wait}");
    send(&api, &other.owner, &other.id, &reserve("ecu", "0")).await.expect(201);
    let request = api.request(Method::PUT, &org.path("limits")).bearer_auth(OPERATOR).json(&json!({"concurrency": 3}));
    Answer::of(request).await.expect(200);
    let third = eventually("the organization's own limit to count", async || {
        let answer = send(&api, &org.owner, &org.id, &reserve("ecu", "0")).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    send(&api, &org.owner, &org.id, &reserve("ecu", "0")).await.expect(429);
    let shown = account(&api, &org).await;
    assert_eq!((&shown["concurrency"], &shown["holds"]), (&json!({"limit": 3, "source": "organization"}), &json!(3)));
    let release = json!({"type": "release_hold", "hold": third["hold"]});
    send(&api, &org.owner, &org.id, &release).await.expect(200);
    send(&api, &org.owner, &org.id, &reserve("ecu", "0")).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_never_settled_returns_at_its_deadline() {
    let api = Api::start().await;
    let org = api.org("crashed").await;
    credit(&api, &org, "ecu", "10").await;
    let held = json!({"type": "reserve_usage", "meter": "ecu", "amount": "10", "seconds": 1});
    let hold = send(&api, &org.owner, &org.id, &held).await.expect(201).json()["hold"].clone();
    eventually("what was held to return", async || (meter(&api, &org, "ecu").await["available"] == "10").then_some(()))
        .await;
    let settle = json!({"type": "settle_hold", "hold": hold, "amount": "10"});
    assert_eq!(send(&api, &org.owner, &org.id, &settle).await.expect(409).problem(), "hold_not_open");
    send(&api, &org.owner, &org.id, &charge("ecu", "10")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_30_the_cap_of_a_month_is_refused_beyond_and_says_when_it_ends() {
    let api = Api::start().await;
    let org = api.org("capped").await;
    let definition = json!({"title": "Capped", "meters": {"tokens": {"included": "100", "cap": "30"}}});
    on_plan(&api, &org, "capped", &definition).await;
    send(&api, &org.owner, &org.id, &charge("tokens", "30")).await.expect(200);
    let refused = send(&api, &org.owner, &org.id, &charge("tokens", "0.000001")).await.expect(429);
    assert_eq!(refused.problem(), "usage_cap_reached");
    let shown = meter(&api, &org, "tokens").await;
    assert_eq!((&shown["cap"], &shown["used_this_month"]), (&json!("30"), &json!("30")));
    assert_eq!(refused.json()["figures"]["resets_at"], shown["resets_at"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_operator_credits_and_publishes_plans_and_a_viewer_uses_nothing() {
    let api = Api::start().await;
    let org = api.org("roles").await;
    let credit = json!({"type": "credit_account", "meter": "ecu", "amount": "1", "reason": "mine"});
    let publish = json!({"type": "publish_plan", "plan": "free", "definition": {"title": "Free"}});
    for command in [&credit, &publish] {
        assert_eq!(send(&api, &org.owner, &org.id, command).await.expect(403).problem(), "forbidden");
    }
    let (_, viewer) = api.key(&org, "viewer").await;
    api.get(&viewer, &org.path("account")).await.expect(200);
    assert_eq!(send(&api, &viewer, &org.id, &charge("tokens", "1")).await.expect(403).problem(), "forbidden");
    let (_, auditor) = api.key(&org, "auditor").await;
    api.get(&auditor, &org.path("account")).await.expect(403);
    for (command, pointer) in [
        (json!({"type": "charge_usage", "meter": "tokens", "amount": "-1"}), "/amount"),
        (json!({"type": "charge_usage", "meter": "tokens", "amount": "0"}), "/amount"),
        (json!({"type": "charge_usage", "meter": "tokens", "amount": 1.5}), "/amount"),
        (json!({"type": "charge_usage", "meter": "tokens", "amount": "1e3"}), "/amount"),
        (json!({"type": "charge_usage", "meter": "tokens", "amount": "99999999999999999999"}), "/amount"),
        (json!({"type": "charge_usage", "meter": "gold", "amount": "1"}), "/meter"),
        (json!({"type": "reserve_usage", "meter": "tokens", "amount": "1", "seconds": 0}), "/seconds"),
        (json!({"type": "settle_hold", "hold": "hold_1", "amount": "1"}), "/hold"),
    ] {
        let refused = send(&api, &org.owner, &org.id, &command).await.expect(422).json();
        assert_eq!(refused["errors"][0]["pointer"], pointer, "{command}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_38_after_the_trial_usage_is_billing_required_and_reads_go_on() {
    let api = Api::start().await;
    let org = api.org("tried").await;
    on_plan(
        &api,
        &org,
        "trial",
        &json!({
            "title": "Trial", "trial_days": 30, "meters": {"tokens": {"included": "100000"}},
        }),
    )
    .await;
    let shown = account(&api, &org).await;
    assert_eq!(shown["billing_required"], false);
    assert_eq!(meter(&api, &org, "tokens").await["included"], "100000");
    let hours = Duration::from_millis(
        u64::try_from(
            shown["trial_ends_at"].as_str().unwrap().parse::<orgstream_events::Timestamp>().unwrap().unix_ms()
                - orgstream::clock::now().unix_ms(),
        )
        .unwrap(),
    )
    .as_secs()
        / 3_600;
    assert!((719..=720).contains(&hours), "{shown}");
    send(&api, &org.owner, &org.id, &charge("tokens", "100000")).await.expect(200);
    assert_eq!(
        send(&api, &org.owner, &org.id, &charge("tokens", "1")).await.expect(402).problem(),
        "insufficient_balance"
    );
    api.get(&org.owner, &org.path("records")).await.expect(200);
}
