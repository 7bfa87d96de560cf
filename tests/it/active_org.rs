//! A session acts in exactly one organization at a time: the effects of a switch, and the accesses that it never
//! allows.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use orgstream_events::OrgId;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    access::audited,
    api::{Answer, Api, Org, create_model, model},
    support::any_producer,
};

const RECORDS: &str = "/v1/organizations/current/records";

/// Two organizations, and the session of a member of both.
async fn max_in_two(api: &Api, name: &str) -> (Org, Org, String) {
    let (a, b) = (api.org(&format!("{name}-a")).await, api.org(&format!("{name}-b")).await);
    let email = format!("max@{name}.example");
    for org in [&a, &b] {
        api.join(org, &email, "admin").await;
        let (_, position) = api.record(org, &format!("of {}", org.slug)).await;
        api.sees(org, &position).await;
    }
    let session = api.session(&email).await;
    api.switch(&session, &a.id).await.expect(200);
    (a, b, session)
}

// S1.4
// S1.29
// S1.31
// S2.7
// S2.18
// S5.19
// S5.33
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_31_a_switch_is_of_the_session_and_counts() {
    let api = Api::start().await;
    let (a, b, session) = max_in_two(&api, "switch").await;
    let before = api.get(&session, "/v1/session").await.expect(200).json();
    assert_eq!(before["active_org"], json!({"org_id": a.id, "slug": a.slug}));
    assert!(api.get(&session, RECORDS).await.expect(200).text.contains("of switch-a"));
    let after = api.switch(&session, &b.slug).await.expect(200).json();
    assert_eq!(after["active_org"], json!({"org_id": b.id, "slug": b.slug}));
    // Each organization's log has its own side of it, under the user's member id there.
    let entered = audited(&api, &b.owner, &b.id, "access.org_switched", 1).await;
    assert_eq!((&entered[0]["data"]["direction"], &entered[0]["actor"]["type"]), (&json!("entered"), &json!("member")));
    let left = audited(&api, &a.owner, &a.id, "access.org_switched", 2).await;
    assert_eq!(left[0]["data"]["direction"], "left");
    assert_ne!(left[0]["actor"]["id"], entered[0]["actor"]["id"]);
    assert_eq!(after["epoch"].as_u64(), before["epoch"].as_u64().map(|epoch| epoch + 1));
    assert_eq!(api.get(&session, "/v1/session").await.expect(200).json()["epoch"], after["epoch"]);
    let read = api.get(&session, RECORDS).await.expect(200);
    assert!(read.text.contains("of switch-b") && !read.text.contains("of switch-a"), "{read:?}");
    assert_eq!(read.header("x-org-epoch"), after["epoch"].to_string());
    let me = api.get(&session, "/v1/me").await.expect(200).json();
    assert_eq!((&me["org_id"], &me["epoch"]), (&json!(b.id), &after["epoch"]));
    // The other one is not reachable by its path either: a session acts in one at a time.
    for name in [&a.id, &a.slug] {
        let path = format!("/v1/organizations/{name}/records");
        assert_eq!(api.get(&session, &path).await.expect(409).problem(), "active_org_changed");
        assert_eq!(api.post(&session, &path, &model("x")).await.expect(409).problem(), "active_org_changed");
        api.get(&session, &format!("/v1/organizations/{}/records", b.slug)).await.expect(200);
    }
    // Another session of the same user is unaffected; a bare token still has to name the organization.
    let other = api.session("max@switch.example").await;
    api.switch(&other, &a.id).await.expect(200);
    assert!(api.get(&session, RECORDS).await.expect(200).text.contains("of switch-b"));
    let token = api.person("max@switch.example");
    for org in [&a, &b] {
        api.get(&token, &org.path("records")).await.expect(200);
    }
}

// S1.33
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_33_where_one_is_no_member_one_cannot_go() {
    let api = Api::start().await;
    let (a, _, session) = max_in_two(&api, "refused").await;
    let foreign = api.org("refused-foreign").await;
    let nowhere = OrgId::fresh(1_700_000_000_000, [9; 10]).to_string();
    let epoch = api.get(&session, "/v1/session").await.expect(200).json()["epoch"].clone();
    let mut answers = HashSet::new();
    for org in [&foreign.id, &foreign.slug, &nowhere, "no-such-slug"] {
        let mut body = api.switch(&session, org).await.expect(404).json();
        body.as_object_mut().unwrap().remove("request_id");
        answers.insert(body.to_string());
        // Nor by its path, and with the same words.
        let mut body = api.get(&session, &format!("/v1/organizations/{org}/records")).await.expect(404).json();
        body.as_object_mut().unwrap().remove("request_id");
        answers.insert(body.to_string());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    // All of it is in the log of the organization that the session acts in, and nothing in that of the other.
    let denied = audited(&api, &a.owner, &a.id, "access.denied", 8).await;
    assert!(denied.iter().all(|fact| fact["data"]["code"] == "not_found"), "{denied:?}");
    api.gateway.access_log().flush().await;
    audited(&api, &foreign.owner, &foreign.id, "access.denied", 0).await;
    assert!(api.switch(&session, "Not A Slug").await.expect(422).text.contains("/org"));
    let after = api.get(&session, "/v1/session").await.expect(200).json();
    assert_eq!((&after["epoch"], &after["active_org"]["org_id"]), (&epoch, &json!(a.id)));
}

// S1.32
// S2.8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_32_after_a_switch_nothing_is_of_the_old_place() {
    let api = Api::start().await;
    let (a, b, session) = max_in_two(&api, "refresh").await;
    let settings = "/v1/organizations/current";
    let seen = api.get(&session, settings).await.expect(200);
    assert_eq!(seen.json()["id"], a.id);
    let tag = seen.header("etag").to_owned();
    let tail = api.tail(&session, "/v1/organizations/current/events/stream").await;
    api.switch(&session, &b.id).await.expect(200);
    let switched = Instant::now();
    let rest = tail.rest().await;
    assert!(switched.elapsed() < Duration::from_secs(1), "{:?}", switched.elapsed());
    let last = rest.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("event: active_org_changed\n") && last.contains("\"epoch\":3"), "{rest}");
    // Both are at version 1, and the browser's cached copy of the one is not valid for the other.
    let ask = api.request(Method::GET, settings).bearer_auth(&session).header("if-none-match", &tag);
    let fresh = Answer::of(ask).await.expect(200);
    assert_eq!((&fresh.json()["id"], fresh.header("etag")), (&json!(b.id), tag.as_str()));
    for (path, own) in [
        (settings, b.id.as_str()),
        (RECORDS, "of refresh-b"),
        ("/v1/organizations/current/projections", &b.id),
        ("/v1/organizations/current/members", "owner@refresh-b.example"),
    ] {
        let text = api.get(&session, path).await.expect(200).text;
        assert!(text.contains(own), "{path} has nothing of the new place: {text}");
        assert!(!text.contains(&a.id) && !text.contains(&a.slug), "{path}: {text}");
    }
    let tail = api.tail(&session, "/v1/organizations/current/events/stream?from=0").await;
    // There and back is a switch as well.
    api.switch(&session, &a.id).await.expect(200);
    api.switch(&session, &b.id).await.expect(200);
    assert!(tail.rest().await.contains("event: active_org_changed"));
}

// S2.22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_22_a_read_that_is_under_way_ends_with_the_switch() {
    let api = Api::start().await;
    let second = api.another().await;
    let (a, b, session) = max_in_two(&api, "slow").await;
    api.stop_worker().await;
    let (_, unseen) = api.record(&a, "unseen").await;
    for base in [api.base.clone(), second] {
        api.switch(&session, &a.id).await.expect(200);
        // It waits for a position that no worker reaches.
        let slow = reqwest::Client::new().get(format!("{base}{RECORDS}")).bearer_auth(&session);
        let slow = tokio::spawn(Answer::of(slow.header("min-position", &unseen).header("prefer", "wait=20")));
        // A tail in the same process shows that the session is cached there.
        let asked = reqwest::Client::new().get(format!("{base}/v1/session")).bearer_auth(&session);
        let epoch = Answer::of(asked).await.expect(200).json()["epoch"].as_u64().unwrap();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            assert!(!slow.is_finished());
            tokio::task::yield_now().await;
        }
        api.switch(&session, &b.id).await.expect(200);
        let switched = Instant::now();
        let ended = slow.await.unwrap().expect(409);
        assert_eq!(ended.problem(), "active_org_changed");
        assert!(switched.elapsed() < Duration::from_secs(2), "{:?}", switched.elapsed());
        // A repeated request is for the new organization; a request that states its epoch gets the error.
        let ask = |epoch: u64| {
            let request = reqwest::Client::new().get(format!("{base}{RECORDS}")).bearer_auth(&session);
            Answer::of(request.header("x-org-epoch", epoch))
        };
        assert!(ask(epoch + 1).await.expect(200).text.contains("of slow-b"));
        assert_eq!(ask(epoch).await.expect(409).problem(), "active_org_changed");
        assert_eq!(ask(epoch + 7).await.expect(409).problem(), "active_org_changed");
        let post = reqwest::Client::new().post(format!("{base}{RECORDS}")).bearer_auth(&session);
        let post = Answer::of(post.header("x-org-epoch", epoch).json(&model("meant for a"))).await.expect(409);
        assert_eq!(post.problem(), "active_org_changed");
    }
    let bad = api.request(Method::GET, RECORDS).bearer_auth(&session).header("x-org-epoch", "one");
    assert_eq!(Answer::of(bad).await.expect(400).problem(), "invalid_header");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_sends_commands_by_nats_where_it_acts() {
    let api = Api::start().await;
    let (a, b, session) = max_in_two(&api, "nats").await;
    let client = any_producer(&api.nats.url, &api.nats.access).await;
    let send = async |subject: String| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Authorization", format!("Bearer {session}"));
        let body = create_model("by nats").to_string();
        let answer = client.request_with_headers(subject, headers, body.into()).await.unwrap();
        let status = answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap().to_string();
        (status, serde_json::from_slice::<Value>(&answer.payload).unwrap())
    };
    let (status, accepted) = send("cmd.current".to_owned()).await;
    assert_eq!(status, "201", "{accepted}");
    assert!(accepted["position"].as_str().unwrap().starts_with(&a.id), "{accepted}");
    let (status, refused) = send(format!("cmd.{}", b.slug)).await;
    assert_eq!((status.as_str(), &refused["code"]), ("409", &json!("active_org_changed")));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Switch(usize),
    Read,
    Refused,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![(0_usize..3).prop_map(Step::Switch), Just(Step::Read), Just(Step::Refused)];
    prop::collection::vec(prop::collection::vec(step, 1..6), 1..4)
}

// S1.30
// S2.18
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s1_30_whatever_is_switched_at_once_there_is_one_active_organization() {
    let api = Api::start().await;
    let email = "max@property.example";
    let mut orgs = Vec::new();
    for number in 0..3 {
        let org = api.org(&format!("property-{number}")).await;
        api.join(&org, email, "admin").await;
        let (_, position) = api.record(&org, &format!("mark-{number}")).await;
        api.sees(&org, &position).await;
        orgs.push(org);
    }
    let session = api.session(email).await;
    let runtime = tokio::runtime::Handle::current();
    let check = |lanes: Vec<Vec<Step>>| {
        let epoch = async || api.get(&session, "/v1/session").await.expect(200).json()["epoch"].as_u64().unwrap();
        let lane = async |steps: Vec<Step>| {
            let mut epochs = Vec::new();
            for step in steps {
                match step {
                    Step::Switch(to) => {
                        let after = api.switch(&session, &orgs[to].id).await.expect(200).json();
                        epochs.push(after["epoch"].as_u64().unwrap());
                    }
                    // Rows of one organization and no other, or none because of a switch.
                    Step::Read => {
                        let read = api.get(&session, RECORDS).await;
                        let seen = (0..3).filter(|number| read.text.contains(&format!("mark-{number}"))).count();
                        assert!(read.status == 409 && seen == 0 || read.status == 200 && seen <= 1, "{read:?}");
                    }
                    Step::Refused => {
                        api.switch(&session, "no-such-slug").await.expect(404);
                    }
                }
            }
            epochs
        };
        tokio::task::block_in_place(|| {
            runtime.block_on(async {
                let before = epoch().await;
                let epochs: Vec<Vec<u64>> = join_all(lanes.iter().map(|steps| lane(steps.clone()))).await;
                let switches = lanes.iter().flatten().filter(|step| matches!(step, Step::Switch(_))).count() as u64;
                assert_eq!(epoch().await, before + switches, "{lanes:?}");
                // The epochs in each client's answers grew: no answer had an epoch before the client's own.
                assert!(epochs.iter().all(|epochs| epochs.is_sorted_by(|one, next| one < next)), "{epochs:?}");
                let active: Value = api.get(&session, "/v1/session").await.expect(200).json()["active_org"].clone();
                let current = api.get(&session, "/v1/organizations/current").await.expect(200).json();
                assert_eq!(active["org_id"], current["id"]);
            });
        });
    };
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&steps(), |lanes| {
            check(lanes);
            Ok(())
        })
        .unwrap();
}

/// Resolving a session costs next to nothing while it is cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remembered_session_costs_microseconds() {
    let api = Api::start().await;
    let session = api.session("ann@fast.example").await;
    let header = format!("Bearer {session}");
    let auth = api.auth();
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..2_000 {
        let began = Instant::now();
        auth.principal(Some(&header)).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_micros(50), "{:?}", took[took.len() / 2]);
}
