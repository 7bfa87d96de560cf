//! Usage over time: what an account used, the fold of its log and the sums of the series are one figure, to the unit.

use std::collections::BTreeMap;

use futures_util::{StreamExt, future::join_all, stream};
use orgstream_events::{Amount, PLATFORM_ORG};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::{Cluster, ClusterOptions, eventually},
    history::digests,
};

/// Callers at the same time.
const CALLERS: u64 = 8;
/// What each of them does.
const STEPS: u64 = 30;

/// A sequence that looks random and is the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn micros(amount: &Value) -> u64 {
    amount.as_str().unwrap().parse::<Amount>().unwrap().micros()
}

async fn send(api: &Api, bearer: &str, org: &str, command: &Value) -> Answer {
    api.post(bearer, &format!("/v1/organizations/{org}/commands"), command).await
}

/// Uses what is there in every way, as one caller of many; some holds stay open.
async fn use_it(api: &Api, org: &Org, bearer: &str, seed: u64) {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..STEPS {
        let meter = ["tokens", "ecu"][usize::try_from(numbers.below(2)).unwrap()];
        let amount = Amount::from_micros(numbers.below(5_000_000) + 1).unwrap();
        let mut command = json!({"type": "reserve_usage", "meter": meter, "amount": amount, "seconds": 3_600});
        let model = [None, Some("small"), Some("large")][usize::try_from(numbers.below(3)).unwrap()];
        if let Some(model) = model {
            command["model"] = json!(model);
            command["kind"] = json!("evaluation");
        }
        if numbers.below(3) == 0 {
            command["type"] = json!("charge_usage");
            command.as_object_mut().unwrap().remove("seconds");
            send(api, bearer, &org.id, &command).await.expect(200);
            continue;
        }
        let hold = send(api, bearer, &org.id, &command).await.expect(201).json()["hold"].clone();
        let end = match numbers.below(10) {
            0 => continue,
            1 => json!({"type": "release_hold", "hold": hold}),
            _ => {
                let used = Amount::from_micros(numbers.below(amount.micros() + 1)).unwrap();
                json!({"type": "settle_hold", "hold": hold, "amount": used})
            }
        };
        send(api, bearer, &org.id, &end).await.expect(200);
    }
}

/// The sums of the rows of a series, by meter, once it has everything up to a position; its totals are the same.
async fn sums(api: &Api, org: &Org, position: &str, query: &str) -> BTreeMap<String, u64> {
    let answer = api.get_at(&org.owner, &org.path(&format!("usage/series?{query}")), position).await.expect(200).json();
    let sum = |rows: &Value| {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows.as_array().unwrap() {
            *sums.entry(row["meter"].as_str().unwrap().to_owned()).or_default() += micros(&row["amount"]);
        }
        sums
    };
    assert_eq!(sum(&answer["data"]), sum(&answer["totals"]), "{query}");
    sum(&answer["data"])
}

// Account, log and rows are one figure. S3.4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_4_the_usage_of_an_organization_is_what_its_account_and_its_log_say_to_the_unit() {
    let api = Api::start().await;
    let (org, idle) = (api.org("metered").await, api.org("quiet").await);
    let definition =
        json!({"title": "Metered", "meters": {"tokens": {"included": "100000"}, "ecu": {"included": "100000"}}});
    let publish = json!({"type": "publish_plan", "plan": "metered", "definition": definition});
    send(&api, OPERATOR, &PLATFORM_ORG.to_string(), &publish).await.expect(200);
    let request = api.request(Method::PUT, &org.path("plan")).bearer_auth(OPERATOR).json(&json!({"plan": "metered"}));
    Answer::of(request).await.expect(200);
    eventually("the plan to be the organization's", async || {
        let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
        (account["plan"] == "metered").then_some(())
    })
    .await;
    let (key_id, key) = api.key(&org, "member").await;
    join_all((0..CALLERS).map(|caller| {
        let bearer = if caller % 2 == 0 { &key } else { &org.owner };
        use_it(&api, &org, bearer, caller)
    }))
    .await;

    let account = api.get(&org.owner, &org.path("account")).await.expect(200).json();
    let position = account["exact_at"].as_str().unwrap();
    let used: BTreeMap<String, u64> = account["meters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|meter| {
            let used = micros(&meter["used_this_month"]) - micros(&meter["held"]);
            assert_eq!(used, micros(&meter["spent"]), "nothing lapsed, and nothing was used before: {meter}");
            (meter["meter"].as_str().unwrap().to_owned(), used)
        })
        .collect();
    assert!(used.len() == 2 && used.values().all(|used| *used > 1_000_000), "{used:?}");

    let log = api.get_at(&org.owner, &org.path("events"), position).await.expect(200).text;
    let mut folded: BTreeMap<String, u64> = BTreeMap::new();
    let mut uses = 0;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["type"] == "account.settled" {
            let data = &event["data"];
            *folded.entry(data["meter"].as_str().unwrap().to_owned()).or_default() += micros(&data["amount"]);
            uses += 1;
        }
    }
    assert_eq!(folded, used, "the fold of the log is the account");

    for step in ["hour", "day"] {
        for group_by in ["", "model", "principal", "kind,model,principal"] {
            let query = format!("step={step}&group_by={group_by}");
            assert_eq!(sums(&api, &org, position, &query).await, used, "{query}");
        }
    }
    let by =
        api.get_at(&org.owner, &org.path("usage/series?group_by=principal,model,kind"), position).await.expect(200);
    let by = by.json();
    let rows = by["data"].as_array().unwrap();
    let count: u64 = rows.iter().map(|row| row["uses"].as_u64().unwrap()).sum();
    assert_eq!(count, uses);
    let types: Vec<&str> = rows.iter().map(|row| row["principal"]["type"].as_str().unwrap()).collect();
    assert!(types.contains(&"member") && types.contains(&"api_key"), "{by}");
    assert!(rows.iter().any(|row| row["principal"]["id"] == key_id), "{by}");
    assert!(rows.iter().all(|row| row["model"].is_null() == row["kind"].is_null()), "{by}");
    assert_eq!(by["group_by"], json!(["principal", "model", "kind"]));

    // Another organization has its own, which is nothing.
    let none = api.get(&idle.owner, &idle.path("usage/series")).await.expect(200).json();
    assert_eq!((&none["totals"], &none["data"]), (&json!([]), &json!([])));
    api.get(&idle.owner, &org.path("usage/series")).await.expect(404);
    let (_, viewer) = api.key(&org, "viewer").await;
    api.get(&viewer, &org.path("usage/series")).await.expect(200);
    let (_, auditor) = api.key(&org, "auditor").await;
    api.get(&auditor, &org.path("usage/series")).await.expect(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_usage_is_bounded_and_a_mistake_is_named() {
    let api = Api::start().await;
    let org = api.org("ranged").await;
    for (query, parameter) in [
        ("from=2026-03-01T00:30:00Z&to=2026-03-02T00:00:00Z&step=hour", "from"),
        ("from=2026-03-01T01:00:00Z&to=2026-03-02T00:00:00Z", "from"),
        ("from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "to"),
        ("from=2026-03-01T00:00:00Z&to=2026-05-01T00:00:00Z&step=hour", "to"),
        ("from=2020-03-01T00:00:00Z&to=2026-05-01T00:00:00Z", "to"),
        ("from=yesterday", "from"),
        ("step=minute", "step"),
        ("group_by=colour", "group_by"),
        ("groupby=model", "groupby"),
    ] {
        let refused = api.get(&org.owner, &org.path(&format!("usage/series?{query}"))).await.expect(400);
        assert_eq!(refused.problem(), "invalid_parameter", "{query}");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.starts_with(&format!("{parameter}: ")), "{query}: {detail}");
    }
    let whole = "from=2026-03-01T00:00:00Z&to=2026-04-01T00:00:00Z&step=hour";
    let answer = api.get(&org.owner, &org.path(&format!("usage/series?{whole}"))).await.expect(200).json();
    assert_eq!(
        (&answer["from"], &answer["to"]),
        (&json!("2026-03-01T00:00:00.000Z"), &json!("2026-04-01T00:00:00.000Z"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_sums_each_use_once_whatever_is_used_meanwhile() {
    const USES: usize = 60;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("summed").await;
    let charge = json!({"type": "charge_usage", "meter": "tokens", "amount": "1.5", "model": "small"});
    let charge_all = async |keys: &str| {
        stream::iter(0..USES)
            .for_each_concurrent(4, |number| {
                let (cluster, tenant, charge) = (&cluster, &tenant, &charge);
                let key = format!("{keys}-{number}");
                async move {
                    cluster.client.command(tenant, &key, charge).await.expect(200);
                }
            })
            .await;
    };
    charge_all("before").await;
    cluster.until_projected(&tenant).await;
    let mut database = cluster.superuser().await;
    let before = digests(&mut database).await;
    let id = tenant.id.to_string();
    let rebuild = async || cluster.cli("", &["rebuild", "--org", &id]).await.success();
    rebuild().await;
    assert_eq!(digests(&mut database).await, before);
    tokio::join!(charge_all("meanwhile"), rebuild());
    cluster.until_projected(&tenant).await;
    let series = cluster.client.get(&tenant.owner, &tenant.path("usage/series")).await.expect(200).body;
    assert_eq!(series["totals"], json!([{"meter": "tokens", "amount": "180", "uses": 120}]), "{series}");
    let after = digests(&mut database).await;
    rebuild().await;
    assert_eq!(digests(&mut database).await, after);
}

/// One limit by its name, and the meter that it is of.
async fn limit(api: &Api, org: &Org, name: &str) -> Value {
    let limits = api.get(&org.owner, &org.path("limits")).await.expect(200).json();
    limits["data"].as_array().unwrap().iter().find(|limit| limit["name"] == name).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_says_where_it_comes_from_and_what_is_left_of_it() {
    let api = Api::start().await;
    let (org, other) = (api.org("bounded").await, api.org("unbounded").await);
    let definition = json!({
        "title": "Bounded", "meters": {"tokens": {"included": "100", "cap": "50"}, "ecu": {}}, "limits": {"concurrency": 3},
    });
    let publish = json!({"type": "publish_plan", "plan": "bounded", "definition": definition});
    send(&api, OPERATOR, &PLATFORM_ORG.to_string(), &publish).await.expect(200);
    for (path, body) in [("plan", json!({"plan": "bounded"})), ("limits", json!({"commands_per_second": 20}))] {
        let request = api.request(Method::PUT, &org.path(path)).bearer_auth(OPERATOR).json(&body);
        Answer::of(request).await.expect(200);
    }
    eventually("plan and limit to count", async || {
        let rate = limit(&api, &org, "commands").await;
        (rate["limit"] == "200" && limit(&api, &org, "holds").await["limit"] == "3").then_some(())
    })
    .await;
    let reserve = json!({"type": "reserve_usage", "meter": "tokens", "amount": "20", "seconds": 600});
    let reserved = send(&api, &org.owner, &org.id, &reserve).await.expect(201);
    // What is left is said before it is gone.
    assert_eq!(reserved.header("ratelimit-policy"), "\"commands\";q=200;w=10");
    let said = reserved.header("ratelimit").to_owned();
    let left: u32 = said.strip_prefix("\"commands\";r=").unwrap().split(';').next().unwrap().parse().unwrap();
    assert!((190..200).contains(&left) && said.ends_with(";t=1"), "{said}");
    send(&api, &org.owner, &org.id, &json!({"type": "charge_usage", "meter": "tokens", "amount": "7.5"}))
        .await
        .expect(200);

    let rate = limit(&api, &org, "commands").await;
    assert_eq!((&rate["source"], &rate["window_seconds"]), (&json!("organization"), &json!(10)));
    assert_eq!((&rate["used"], &rate["exact_at"]), (&Value::Null, &Value::Null), "unknown is null");
    let holds = limit(&api, &org, "holds").await;
    assert_eq!(
        (&holds["source"], &holds["limit"], &holds["used"], &holds["available"]),
        (&json!("plan"), &json!("3"), &json!("1"), &json!("2"))
    );
    assert!(holds["resets_at"].is_string() && holds["exact_at"].is_string(), "{holds}");
    let usage = limit(&api, &org, "monthly_usage").await;
    assert_eq!((&usage["meter"], &usage["source"]), (&json!("tokens"), &json!("plan")));
    assert_eq!(
        (&usage["limit"], &usage["used"], &usage["held"], &usage["available"]),
        (&json!("50"), &json!("7.5"), &json!("20"), &json!("22.5"))
    );
    assert!(usage["resets_at"].as_str().unwrap().ends_with("-01T00:00:00.000Z"), "{usage}");
    let kinds = limit(&api, &org, "own_kinds").await;
    assert_eq!((&kinds["source"], &kinds["limit"], &kinds["used"]), (&json!("default"), &json!("20"), &json!("0")));
    let requests = limit(&api, &org, "requests").await;
    assert!(requests["used"].as_str().unwrap().parse::<u32>().unwrap() >= 1, "this one: {requests}");

    // Without a rate there is nothing to say; holds are bounded for everybody.
    let free = limit(&api, &other, "commands").await;
    assert_eq!((&free["limit"], &free["source"]), (&Value::Null, &json!("default")));
    let charge = json!({"type": "charge_usage", "meter": "tokens", "amount": "1"});
    let charged = send(&api, &other.owner, &other.id, &charge).await.expect(200);
    assert!(!charged.headers.contains_key("ratelimit"), "{charged:?}");
    api.get(&other.owner, &org.path("limits")).await.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_over_the_rate_says_what_is_left_beside_when_to_come_back() {
    let api = Api::start().await;
    let org = api.org("hasty").await;
    let request = api.request(Method::PUT, &org.path("limits")).bearer_auth(OPERATOR);
    Answer::of(request.json(&json!({"commands_per_second": 1}))).await.expect(200);
    let refused = eventually("the rate to be used up", async || {
        let answer = api.post(&org.owner, &org.path("records"), &crate::api::model("x")).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert_eq!((refused.problem().as_str(), refused.header("retry-after")), ("rate_limit_exceeded", "1"));
    assert_eq!(refused.header("ratelimit-policy"), "\"commands\";q=10;w=10");
    assert_eq!(refused.header("ratelimit"), "\"commands\";r=0;t=10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_says_what_a_reservation_would_do_and_holds_nothing() {
    let api = Api::start().await;
    let org = api.org("curious").await;
    let credit = json!({"type": "credit_account", "meter": "ecu", "amount": "10", "reason": "test"});
    send(&api, OPERATOR, &org.id, &credit).await.expect(200);
    let preview = async |query: &str| api.get(&org.owner, &org.path(&format!("account/preview?{query}"))).await;
    let before = api.get(&org.owner, &org.path("account")).await.expect(200).json();
    let granted = preview("meter=ecu&amount=4.5").await.expect(200).json();
    assert_eq!((&granted["granted"], &granted["refusal"]), (&json!(true), &Value::Null));
    assert_eq!(granted["parts"], json!([{"source": "grant", "amount": "4.5", "left": "5.5", "until": null}]));
    let included = preview("meter=tokens&amount=1").await.expect(200).json();
    assert_eq!(included["parts"][0]["source"], "allowance");
    let refused = preview("meter=ecu&amount=11").await.expect(200).json();
    assert_eq!((&refused["granted"], &refused["parts"]), (&json!(false), &json!([])));
    assert_eq!(
        (&refused["refusal"]["status"], &refused["refusal"]["code"]),
        (&json!(402), &json!("insufficient_balance"))
    );
    assert_eq!(refused["refusal"]["figures"], json!({"required": "11", "available": "10"}));
    // What is no reservation is a mistake.
    assert_eq!(preview("meter=gold&amount=1").await.expect(422).problem(), "validation_error");
    for bad in ["meter=ecu&amount=-1", "meter=ecu&amount=1e3", "meter=ecu", "amount=1"] {
        assert_eq!(preview(bad).await.expect(400).problem(), "invalid_parameter", "{bad}");
    }
    assert_eq!(api.get(&org.owner, &org.path("account")).await.expect(200).json(), before, "nothing happened");
}
