//! Quotas of members, API keys, webhooks and storage: no more than there may be, however many ask at once and wherever.

use std::collections::BTreeMap;

use futures_util::{StreamExt, future::join_all, stream};
use orgstream_events::PLATFORM_ORG;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    access::audited,
    api::{Answer, Api, OPERATOR, Org},
    cluster::eventually,
};

/// Callers at the same time.
const CALLERS: usize = 30;
/// Operations of the test that writes and archives at random; `ORGSTREAM_TEST_QUOTA_OPERATIONS` names another number.
const OPERATIONS: usize = 300;

/// Gives an organization quotas of its own, which count in every process when this returns.
async fn set_quotas(api: &Api, org: &Org, quotas: &Value, bases: &[String]) {
    let request = api.request(Method::PUT, &org.path("limits")).bearer_auth(OPERATOR);
    Answer::of(request.json(&json!({"quotas": quotas}))).await.expect(200);
    for base in bases {
        eventually("the quotas to count", async || {
            let limits = at(api, base, Method::GET, &org.owner, &org.path("limits"), None).await;
            let shown: BTreeMap<String, Value> = limits.expect(200).json()["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|limit| (limit["name"].as_str().unwrap().to_owned(), limit["limit"].clone()))
                .collect();
            let counts = |(name, most): (&String, &Value)| shown[name].as_str() == Some(&*most.to_string());
            quotas.as_object().unwrap().iter().all(counts).then_some(())
        })
        .await;
    }
}

async fn at(api: &Api, base: &str, method: Method, bearer: &str, path: &str, body: Option<&Value>) -> Answer {
    let request = api.request_at(base, method, path).bearer_auth(bearer);
    Answer::of(body.into_iter().fold(request, reqwest::RequestBuilder::json)).await
}

/// One limit by its name.
async fn limit(api: &Api, org: &Org, name: &str) -> Value {
    let limits = api.get(&org.owner, &org.path("limits")).await.expect(200).json();
    limits["data"].as_array().unwrap().iter().find(|limit| limit["name"] == name).unwrap().clone()
}

/// A record of a kind that every installation has, whose content is so many bytes long.
fn sized(bytes: usize) -> Value {
    let name = "x".repeat(bytes - r#"{"name":""}"#.len());
    let record = json!({"kind": "model", "data": {"name": name}});
    assert_eq!(record["data"].to_string().len(), bytes);
    record
}

/// The length of the contents of all records that are not archived.
async fn recounted(api: &Api, org: &Org, kind: &str) -> u64 {
    let (mut sum, mut cursor) = (0, String::new());
    loop {
        let page = api.get(&org.owner, &org.path(&format!("records?kind={kind}&limit=100{cursor}"))).await;
        let page = page.expect(200).json();
        sum += page["data"].as_array().unwrap().iter().map(|row| row["data"].to_string().len() as u64).sum::<u64>();
        let Some(next) = page["next_cursor"].as_str() else { return sum };
        cursor = format!("&cursor={next}");
    }
}

async fn archive(api: &Api, base: &str, org: &Org, id: &str) -> Answer {
    at(api, base, Method::DELETE, &org.owner, &org.path(&format!("records/{id}")), None).await
}

/// Waits until a process answers a record of this size like that. Those that it makes meanwhile are archived.
async fn until(api: &Api, base: &str, org: &Org, bytes: usize, status: u16) {
    eventually("the quota to count", async || {
        let made = at(api, base, Method::POST, &org.owner, &org.path("records"), Some(&sized(bytes))).await;
        if made.status == 201 {
            archive(api, base, org, made.json()["id"].as_str().unwrap()).await.expect(200);
        }
        (made.status == status).then_some(())
    })
    .await;
}

/// Gives an organization a quota of storage, which counts in every process when this returns.
async fn set_storage(api: &Api, org: &Org, most: u64, bases: &[String]) {
    for (most, status) in [(0, 409), (most, 201)] {
        set_quotas(api, org, &json!({"storage_bytes": most}), bases).await;
        for base in bases {
            until(api, base, org, 20, status).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_33_quotas_change_by_a_command_and_hold_at_once_at_every_door() {
    let api = Api::start().await;
    let (org, other) = (api.org("doors").await, api.org("open-doors").await);
    let bases = [api.base.clone(), api.another().await];
    let invited = api.invite(&org.owner, &org, "late@doors.example", "viewer").await.expect(201);
    api.sees(&org, invited.header("stream-position")).await;
    let shown = limit(&api, &org, "members").await;
    assert_eq!((&shown["source"], &shown["limit"], &shown["used"]), (&json!("plan"), &json!("5000"), &json!("1")));
    set_quotas(&api, &org, &json!({"members": 4, "api_keys": 3, "webhooks": 0}), &bases).await;
    let told = audited(&api, &org.owner, &org.id, "organization.limits_changed", 1).await.remove(0);
    assert_eq!(told["data"]["limits"]["quotas"], json!({"members": 4, "api_keys": 3, "webhooks": 0}));

    // Members, added at once in two processes: as many as fit.
    let add = async |nth: usize| {
        let member = json!({"email": format!("m{nth}@doors.example"), "role": "viewer"});
        at(&api, &bases[nth % 2], Method::POST, &org.owner, &org.path("members"), Some(&member)).await
    };
    let added = join_all((0..CALLERS).map(add)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = added.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(taken.len(), 3);
    for answer in refused {
        assert_eq!((answer.status, answer.problem().as_str()), (409, "members_quota_exceeded"));
        assert!(!answer.headers.contains_key("retry-after"), "waiting does not help");
        let figures = answer.json()["figures"].clone();
        assert_eq!(
            (&figures["limit"], &figures["used"], &figures["available"]),
            (&json!("4"), &json!("4"), &json!("0"))
        );
    }
    let late = api.session("late@doors.example").await;
    let token = api.invited("late@doors.example", 1).await;
    assert_eq!(api.accept(&late, &token).await.expect(409).problem(), "members_quota_exceeded");
    let member = taken[0].json()["member_id"].as_str().unwrap().to_owned();
    at(&api, &bases[0], Method::DELETE, &org.owner, &org.path(&format!("members/{member}")), None).await.expect(200);
    api.accept(&late, &token).await.expect(201);

    // API keys: those that work.
    let issue = async |nth: usize| {
        let key = json!({"name": format!("k{nth}"), "role": "viewer"});
        at(&api, &bases[nth % 2], Method::POST, &org.owner, &org.path("api-keys"), Some(&key)).await
    };
    let mut issued = Vec::new();
    for _ in 0..3 {
        for answer in join_all((0..CALLERS).map(issue)).await {
            match answer.status {
                201 => issued.push(answer.json()["id"].as_str().unwrap().to_owned()),
                _ => assert!(answer.text.contains("api_keys_quota_exceeded"), "{answer:?}"),
            }
        }
    }
    assert_eq!(issued.len(), 3);
    let key = org.path(&format!("api-keys/{}", issued[0]));
    at(&api, &bases[1], Method::DELETE, &org.owner, &key, None).await.expect(200);
    let again = join_all((0..CALLERS).map(issue)).await;
    assert_eq!(again.iter().filter(|answer| answer.status == 201).count(), 1);
    let keys = limit(&api, &org, "api_keys").await;
    assert_eq!(
        (&keys["used"], &keys["available"], &keys["source"]),
        (&json!("3"), &json!("0"), &json!("organization"))
    );

    // A webhook, where there may be one.
    let webhook = json!({"audit_webhook": "https://siem.doors.example/a"});
    let set = async || at(&api, &bases[0], Method::PATCH, &org.owner, &org.path("settings"), Some(&webhook)).await;
    assert_eq!(set().await.expect(409).problem(), "webhooks_quota_exceeded");
    set_quotas(&api, &org, &json!({"members": 1, "api_keys": 0, "webhooks": 1}), &bases).await;
    eventually("the quota to count", async || (set().await.status == 200).then_some(())).await;

    // Less than there is: everything stays, and nothing is added.
    assert_eq!(add(99).await.expect(409).problem(), "members_quota_exceeded");
    let members = limit(&api, &org, "members").await;
    assert_eq!((&members["used"], &members["limit"], &members["available"]), (&json!("4"), &json!("1"), &json!("0")));
    let denied = eventually("the refusals to be in the audit log", async || {
        let path = org.path("audit/events?action=access.denied&limit=100");
        let denied = api.get(&org.owner, &path).await.expect(200).json()["data"].as_array().unwrap().clone();
        let codes: Vec<String> = denied.iter().map(|one| one["data"]["code"].as_str().unwrap().to_owned()).collect();
        let all = ["members_quota_exceeded", "api_keys_quota_exceeded", "webhooks_quota_exceeded"];
        all.iter().all(|code| codes.iter().any(|known| known == code)).then_some(codes)
    })
    .await;
    // A flood of them is folded: of 116, each process writes ten down, and the others as one.
    let keys = denied.iter().filter(|code| *code == "api_keys_quota_exceeded").count();
    assert!((1..=22).contains(&keys), "{keys}");

    // Another organization has its own.
    api.key(&other, "viewer").await;
    api.join(&other, "free@doors.example", "viewer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_29_what_an_organization_stores_fits_its_quota_to_the_byte() {
    let api = Api::start().await;
    let (org, other) = (api.org("full").await, api.org("roomy").await);
    let bases = [api.base.clone(), api.another().await];
    // What was there before counts.
    let first = api.post(&org.owner, &org.path("records"), &sized(100)).await.expect(201);
    api.sees(&org, first.header("stream-position")).await;
    set_storage(&api, &org, 1_000, &bases).await;
    // At once in two processes: as many as fit, and a byte more is too much.
    let create = async |nth: usize| {
        at(&api, &bases[nth % 2], Method::POST, &org.owner, &org.path("records"), Some(&sized(150))).await
    };
    let made = join_all((0..CALLERS).map(create)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|answer| answer.status == 201);
    assert_eq!(taken.len(), 6);
    let figures = json!({"limit": "1000", "used": "1000", "required": "150", "available": "0"});
    for answer in refused {
        assert_eq!((answer.status, answer.problem().as_str()), (409, "storage_quota_exceeded"));
        assert_eq!(answer.json()["figures"], figures);
        assert!(!answer.headers.contains_key("retry-after"), "waiting does not help");
    }
    let record = |answer: &Answer| answer.json()["id"].as_str().unwrap().to_owned();
    let change = async |id: &str, bytes: usize| {
        let data = json!({"data": sized(bytes)["data"]});
        at(&api, &bases[1], Method::PUT, &org.owner, &org.path(&format!("records/{id}")), Some(&data)).await
    };
    // A change counts by what it adds, and what it takes is room.
    assert_eq!(change(&record(&taken[0]), 151).await.expect(409).problem(), "storage_quota_exceeded");
    change(&record(&taken[0]), 150).await.expect(200);
    change(&record(&taken[0]), 51).await.expect(200);
    let appended = json!({"verdict": "clean", "analysed_at": "2026-03-01T12:00:01Z", "subject": "x"});
    let bytes = appended.to_string().len();
    assert!(bytes < 99);
    let append = json!({"type": "append_records", "kind": "analysis_log", "items": [appended]});
    let append = async || at(&api, &bases[0], Method::POST, &org.owner, &org.path("commands"), Some(&append)).await;
    append().await.expect(201);
    assert_eq!(append().await.expect(409).problem(), "storage_quota_exceeded");
    // Archiving frees it, and once.
    for _ in 0..2 {
        archive(&api, &bases[0], &org, &record(&taken[1])).await.expect(200);
    }
    let room = 99 - bytes + 150;
    assert_eq!(
        at(&api, &bases[1], Method::POST, &org.owner, &org.path("records"), Some(&sized(room + 1))).await.status,
        409
    );
    at(&api, &bases[1], Method::POST, &org.owner, &org.path("records"), Some(&sized(room))).await.expect(201);
    let position = api.post(&org.owner, &org.path("records"), &sized(20)).await.expect(409);
    assert_eq!(position.problem(), "storage_quota_exceeded");
    let storage = limit(&api, &org, "storage_bytes").await;
    assert_eq!(
        (&storage["limit"], &storage["used"], &storage["available"], &storage["source"]),
        (&json!("1000"), &json!("1000"), &json!("0"), &json!("organization"))
    );
    assert!(storage["exact_at"].is_string() && storage["resets_at"].is_null(), "{storage}");

    // Another organization is as it was, and this one's again when its plan is all that counts.
    api.post(&other.owner, &other.path("records"), &sized(200)).await.expect(201);
    let none = json!({});
    Answer::of(api.request(Method::PUT, &org.path("limits")).bearer_auth(OPERATOR).json(&none)).await.expect(200);
    eventually("the plan's quota to count", async || {
        (api.post(&org.owner, &org.path("records"), &sized(200)).await.status == 201).then_some(())
    })
    .await;
    // A repeated command is answered as before although there is no room.
    let keyed = async |bytes: usize| {
        let request = api.request(Method::POST, &org.path("records")).bearer_auth(&org.owner);
        Answer::of(request.header("idempotency-key", "once").json(&sized(bytes))).await
    };
    let before = keyed(60).await.expect(201).json();
    set_quotas(&api, &org, &json!({"storage_bytes": 10}), &bases).await;
    until(&api, &bases[0], &org, 20, 409).await;
    assert_eq!(keyed(60).await.expect(201).json()["id"], before["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_29_after_creates_changes_archives_and_refusals_what_is_used_is_what_is_there() {
    let operations: usize =
        std::env::var("ORGSTREAM_TEST_QUOTA_OPERATIONS").map_or(OPERATIONS, |operations| operations.parse().unwrap());
    let api = Api::start().await;
    let org = api.org("busy-store").await;
    let bases = [api.base.clone(), api.another().await];
    set_storage(&api, &org, 3_000, &bases).await;
    let run = async |nth: usize| {
        let base = &bases[nth % 2];
        let bytes = 20 + nth * 7 % 150;
        let made = at(&api, base, Method::POST, &org.owner, &org.path("records"), Some(&sized(bytes))).await;
        if made.status != 201 {
            assert!(made.text.contains("storage_quota_exceeded"), "{made:?}");
            return (0, 1);
        }
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let path = org.path(&format!("records/{id}"));
        if nth.is_multiple_of(3) {
            let data = json!({"data": sized(20 + nth * 11 % 180)["data"]});
            let changed = at(&api, &bases[(nth + 1) % 2], Method::PUT, &org.owner, &path, Some(&data)).await;
            assert!(matches!(changed.status, 200 | 409), "{changed:?}");
        }
        if !nth.is_multiple_of(4) {
            archive(&api, &bases[(nth + 1) % 2], &org, &id).await.expect(200);
        }
        (1, 0)
    };
    let runs: Vec<(usize, usize)> = stream::iter((0..operations).map(run)).buffer_unordered(16).collect().await;
    let made: usize = runs.iter().map(|(made, _)| made).sum();
    assert!(made > 0 && made < operations, "{made} of {operations} were made: both have to happen");
    let used = eventually("the read models to have everything", async || {
        let shown = api.get(&org.owner, &org.path("projections")).await.expect(200).json();
        let behind = shown["data"].as_array().unwrap().iter().any(|one| one["behind"] != 0);
        if behind { None } else { Some(limit(&api, &org, "storage_bytes").await["used"].clone()) }
    })
    .await;
    let used: u64 = used.as_str().unwrap().parse().unwrap();
    assert_eq!(used, recounted(&api, &org, "model").await);
    assert!(used <= 3_000, "{used}");
    // To the byte what is left: one more is refused, and this much is not.
    let left = usize::try_from(3_000 - used).unwrap();
    if (20..200).contains(&left) {
        let more = async |bytes| api.post(&org.owner, &org.path("records"), &sized(bytes)).await.status;
        assert_eq!((more(left + 1).await, more(left).await), (409, 201));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_was_far_away_comes_near_and_holds() {
    // Near a large quota others may have added something uncounted: that is waited for, once.
    let api = Api::start().await;
    let org = api.org("large").await;
    let bases = [api.base.clone(), api.another().await];
    set_quotas(&api, &org, &json!({"api_keys": 40}), &bases).await;
    let issue = async |nth: usize| {
        let key = json!({"name": format!("k{nth}"), "role": "viewer"});
        at(&api, &bases[nth % 2], Method::POST, &org.owner, &org.path("api-keys"), Some(&key)).await
    };
    let mut issued = 0;
    for round in 0..4 {
        let answers = stream::iter((0..20).map(|nth| issue(round * 20 + nth)));
        let answers: Vec<Answer> = answers.buffer_unordered(20).collect().await;
        for answer in answers {
            match answer.status {
                201 => issued += 1,
                _ => assert!(answer.text.contains("api_keys_quota_exceeded"), "{answer:?}"),
            }
        }
    }
    assert_eq!(issued, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_has_a_code_of_its_own_and_says_to_wait_only_where_that_helps() {
    let api = Api::start().await;
    let org = api.org("told-apart").await;
    let definition = json!({
        "title": "Tight", "meters": {"ecu": {"included": "5", "cap": "3"}},
        "limits": {"concurrency": 1, "quotas": {"members": 1, "api_keys": 0, "webhooks": 0, "storage_bytes": 100}},
    });
    let publish = json!({"type": "publish_plan", "plan": "tight", "definition": definition});
    let commands = format!("/v1/organizations/{PLATFORM_ORG}/commands");
    api.post(OPERATOR, &commands, &publish).await.expect(200);
    let plan = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR);
    Answer::of(plan.json(&json!({"plan": "tight"}))).await.expect(200);
    until(&api, &api.base, &org, 101, 409).await;
    let command = async |command: Value| api.post(&org.owner, &org.path("commands"), &command).await;
    let hold = json!({"type": "reserve_usage", "meter": "ecu", "amount": "0"});
    command(hold.clone()).await.expect(201);
    let mut codes = Vec::new();
    for (name, answer, helps) in [
        ("holds", command(hold).await, true),
        ("cap", command(json!({"type": "charge_usage", "meter": "ecu", "amount": "4"})).await, true),
        ("balance", command(json!({"type": "charge_usage", "meter": "ecu", "amount": "6"})).await, true),
        ("members", command(json!({"type": "add_member", "email": "a@b.example", "role": "viewer"})).await, false),
        ("api_keys", command(json!({"type": "issue_api_key", "name": "k", "role": "viewer"})).await, false),
        ("storage", api.post(&org.owner, &org.path("records"), &sized(101)).await, false),
        (
            "webhooks",
            command(json!({"type": "change_settings", "audit_webhook": "https://siem.example/x"})).await,
            false,
        ),
    ] {
        assert!(matches!(answer.status, 402 | 409 | 429), "{name}: {answer:?}");
        if answer.status == 429 {
            assert!(helps && answer.headers.contains_key("retry-after"), "{name}");
        } else {
            assert!(!answer.headers.contains_key("retry-after"), "{name}: {answer:?}");
        }
        let body = answer.json();
        assert!(body["detail"].as_str().is_some_and(|detail| detail.len() > 40), "{name}: {body}");
        codes.push(body["code"].as_str().unwrap().to_owned());
    }
    assert_eq!(
        codes,
        [
            "hold_limit_exceeded",
            "usage_cap_reached",
            "usage_cap_reached",
            "members_quota_exceeded",
            "api_keys_quota_exceeded",
            "storage_quota_exceeded",
            "webhooks_quota_exceeded",
        ]
    );
    // A plan without them, and all of it goes on.
    let plan = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR);
    Answer::of(plan.json(&json!({"plan": "enterprise"}))).await.expect(200);
    eventually("the plan to count", async || {
        (api.post(&org.owner, &org.path("records"), &sized(150)).await.status == 201).then_some(())
    })
    .await;
    api.key(&org, "viewer").await;
    let storage = limit(&api, &org, "storage_bytes").await;
    assert_eq!((&storage["limit"], &storage["available"]), (&Value::Null, &Value::Null));
}
