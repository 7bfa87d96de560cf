//! An organization's usage, and its rate limits.

use orgstream::peers::{Peers, alone};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    access::audited,
    api::{Answer, Api, OPERATOR, Org, create_model, model},
    cluster::{Cluster, ClusterOptions, PATIENCE, create, eventually},
    support::{Nats, connect_as},
};

/// More than the capacity of a bucket of one command a second, plus its refill while a test runs.
const MANY: usize = 200;

impl Api {
    async fn set_limit(&self, bearer: &str, org: &Org, commands_per_second: Value) -> Answer {
        let request = self.request(Method::PUT, &org.path("limits")).bearer_auth(bearer);
        Answer::of(request.json(&json!({"commands_per_second": commands_per_second}))).await
    }

    async fn usage(&self, org: &Org) -> Value {
        self.get(&org.owner, &org.path("usage")).await.expect(200).json()
    }

    /// Waits until the API enforces the limit.
    async fn until_limited(&self, org: &Org, limit: &Value) {
        eventually("the limit to be known", async || (self.usage(org).await["commands"] == *limit).then_some(())).await;
    }

    /// Sends many commands at once; returns their outcomes.
    async fn send_many(&self, org: &Org, keys: &str) -> Vec<Value> {
        let one = |n| {
            let key = format!("{keys}-{n}");
            json!({"command": create_model(&key), "idempotency_key": key})
        };
        let commands: Vec<Value> = (0..MANY).map(one).collect();
        let answer = self.post(&org.owner, &org.path("commands"), &commands.into()).await.expect(200);
        answer.json().as_array().unwrap().clone()
    }
}

/// The number of accepted ones: all up to one, and none behind it.
fn taken(outcomes: &[Value]) -> usize {
    assert_eq!(outcomes.len(), MANY);
    let taken = outcomes.iter().filter(|outcome| outcome["status"] == "accepted").count();
    for (place, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome["status"] == "accepted", place < taken, "{place}: {outcome}");
        if place >= taken {
            assert_eq!(outcome["error"]["code"], "rate_limit_exceeded", "{outcome}");
            assert!(outcome["error"]["retry_after_ms"].as_u64().is_some_and(|wait| wait <= 1_000), "{outcome}");
        }
    }
    taken
}

// S3.28
// S3.33
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_4_each_organization_has_its_own_usage_and_limits() {
    let api = Api::start().await;
    let (limited, free) = (api.org("limited").await, api.org("free").await);
    for org in [&limited, &free] {
        assert_eq!(api.usage(org).await["commands"], Value::Null);
        assert_eq!(taken(&api.send_many(org, "before").await), MANY);
    }
    assert_eq!(api.set_limit(&limited.owner, &limited, json!(1)).await.expect(403).problem(), "forbidden");
    let changed = api.set_limit(OPERATOR, &limited, json!(1)).await.expect(200);
    assert_eq!(changed.json()["events"], json!(["organization.limits_changed"]));
    assert_eq!(api.set_limit(OPERATOR, &limited, json!(1)).await.expect(200).json()["events"], json!([]));
    let told = audited(&api, &limited.owner, &limited.id, "organization.limits_changed", 1).await.remove(0);
    assert_eq!(told["actor"]["type"], "platform_operator");
    assert_eq!(told["data"]["limits"], json!({"commands_per_second": 1}));
    for bad in [json!(0), json!(-1), json!(1.5), json!("fast")] {
        api.set_limit(OPERATOR, &limited, bad).await.expect(422);
    }
    api.until_limited(&limited, &json!({"per_second": 1, "burst": 10, "limited_by": "organization"})).await;
    assert_eq!(api.usage(&free).await["commands"], Value::Null);

    // At the same moment, one is refused what is over its limit, and the other nothing.
    let (over, all) = tokio::join!(api.send_many(&limited, "burst"), api.send_many(&free, "burst"));
    let first = taken(&over);
    // The burst, and what a bucket of one a second gets back while a request is carried out.
    assert!((10..30).contains(&first), "{first}");
    assert_eq!(taken(&all), MANY);
    // A single command gets the status, with the time to wait.
    let alone = eventually("the bucket to be empty", async || {
        let alone = api.post(&limited.owner, &limited.path("records"), &model("alone")).await;
        (alone.status != 201).then_some(alone)
    })
    .await
    .expect(429);
    assert_eq!((alone.problem(), alone.header("retry-after")), ("rate_limit_exceeded".to_owned(), "1"));
    // A replayed command is answered again, and uses none of the rate.
    let again = eventually("every key to be known", async || {
        let again = api.send_many(&limited, "burst").await;
        let replayed = again.iter().take(first).filter(|outcome| outcome["replayed"] == true).count();
        (replayed == first).then_some(again)
    })
    .await;
    assert!(taken(&again) >= first);
    let told = eventually("the refusal to be in the audit log", async || {
        let path = limited.path("audit/events?action=access.denied");
        let denied = api.get(&limited.owner, &path).await.expect(200).json()["data"].as_array().unwrap().clone();
        denied.into_iter().find(|denied| denied["data"]["code"] == "rate_limit_exceeded")
    })
    .await;
    assert_eq!(told["data"]["target"], "commands", "{told}");

    // The platform's own commands do not count for the organization, and it may have as much as before.
    let lifted = api.set_limit(OPERATOR, &limited, Value::Null).await.expect(200);
    api.sees(&limited, lifted.header("stream-position")).await;
    api.until_limited(&limited, &Value::Null).await;
    assert_eq!(taken(&api.send_many(&limited, "after").await), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_counts_what_an_organization_has() {
    let api = Api::start().await;
    let org = api.org("counted").await;
    let usage = api.usage(&org).await;
    assert_eq!((&usage["org_id"], &usage["plan"]), (&json!(org.id), &json!("standard")));
    assert_eq!((&usage["members"], &usage["api_keys"]), (&json!(1), &json!(0)));
    let before = usage["events"]["total"].as_u64().unwrap();
    assert_eq!(usage["events"]["this_month"], before);
    assert!(usage["events"]["since"].as_str().is_some_and(|since| since.ends_with("-01T00:00:00.000Z")), "{usage}");

    let (key, _) = api.key(&org, "viewer").await;
    api.join(&org, "ann@counted.example", "member").await;
    let (_, position) = api.record(&org, "one").await;
    api.sees(&org, &position).await;
    let usage = api.usage(&org).await;
    assert_eq!((&usage["members"], &usage["api_keys"]), (&json!(2), &json!(1)));
    eventually("the audit log to have them", async || {
        (api.usage(&org).await["events"]["total"] == before + 3).then_some(())
    })
    .await;
    // Events of another month do not count for this one.
    api.sql("SET session_replication_role = replica; UPDATE audit.events SET recorded_at = recorded_at - interval '32 days'")
        .await;
    let _ = api.record(&org, "two").await;
    let counted = eventually("the new one to be counted", async || {
        let usage = api.usage(&org).await;
        (usage["events"]["total"] == before + 4).then_some(usage)
    })
    .await;
    assert_eq!(counted["events"]["this_month"], 1, "{counted}");

    let revoked = api.request(Method::DELETE, &org.path(&format!("api-keys/{key}"))).bearer_auth(&org.owner);
    api.sees(&org, Answer::of(revoked).await.expect(200).header("stream-position")).await;
    assert_eq!(api.usage(&org).await["api_keys"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_has_a_limit_and_a_publisher_goes_on_at_that_pace() {
    let serve = ["--plan-commands-per-second", "trial=50"].map(str::to_owned).to_vec();
    let cluster = Cluster::start(ClusterOptions { serve, ..ClusterOptions::default() }).await;
    let (trial, usual) = (cluster.tenant("trial").await, cluster.tenant("usual").await);
    cluster.cli(cluster.operator(), &["plan", "--org", "trial", "trial"]).await.success();
    let shown = eventually("the plan's limit", async || {
        let shown = cluster.cli(&trial.key, &["usage"]).await.success();
        shown.stdout.contains("50 a second, 500 at once (by its plan)").then_some(shown)
    })
    .await;
    assert!(shown.stderr.contains("is on the plan trial"), "{shown:?}");
    let shown = cluster.cli(&usual.key, &["usage"]).await.success();
    assert!(shown.stdout.contains("as many as it likes"), "{shown:?}");

    let lines: String = (0..900).map(|number| format!("{}\n", create(number.to_string()))).collect();
    let file = cluster.dir().join("commands.ndjson");
    std::fs::write(&file, lines).unwrap();
    let publish = ["publish", file.to_str().unwrap(), "--json"];
    let paced = cluster.cli(&trial.key, &publish).await.success();
    assert_eq!((&paced.json()["accepted"], &paced.json()["refused"]), (&json!(900), &json!(0)), "{paced:?}");
    assert_eq!(paced.stderr.matches("going on at that pace").count(), 1, "{paced:?}");
    let free = cluster.cli(&usual.key, &publish).await.success();
    assert!(free.json()["accepted"] == 900 && !free.stderr.contains("pace"), "{free:?}");

    // By its own limits, and by those of its plan again.
    let limits =
        async |args: &[&str]| cluster.cli(cluster.operator(), &[&["limits", "--org", "trial"], args].concat()).await;
    let said = limits(&["--commands-per-second", "7"]).await.success();
    assert!(said.stderr.contains("the limits of trial are 7 commands a second from org_"), "{said:?}");
    let said = limits(&["--commands-per-second", "7"]).await.success();
    assert!(said.stderr.contains("trial had that already"), "{said:?}");
    for (args, shown) in [(None, "7 a second, 70 at once (by its organization)"), (Some("--as-plan"), "(by its plan)")]
    {
        if let Some(arg) = args {
            limits(&[arg]).await.success();
        }
        eventually("the limit to be shown", async || {
            cluster.cli(&trial.key, &["usage"]).await.success().stdout.contains(shown).then_some(())
        })
        .await;
    }
    limits(&[]).await.failure();
    limits(&["--commands-per-second", "0"]).await.failure();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_of_the_api_share_one_limit() {
    let api = Api::start().await;
    let second = api.another().await;
    let http = reqwest::Client::new();
    let limit = json!({"per_second": 1, "burst": 10, "limited_by": "organization"});
    let mut tries = 0;
    // Until they have learned of each other, each allows the full rate.
    let both = eventually("two processes to take together what one limit allows", async || {
        tries += 1;
        let org = api.org(&format!("shared-{tries}")).await;
        api.set_limit(OPERATOR, &org, json!(1)).await.expect(200);
        api.until_limited(&org, &limit).await;
        eventually("the limit to be known at the other door", async || {
            let asked = http.get(format!("{second}{}", org.path("usage"))).bearer_auth(&org.owner).send().await.ok()?;
            (asked.json::<Value>().await.ok()?["commands"] == limit).then_some(())
        })
        .await;
        let commands = |door: &str| -> Value {
            let one = |n| json!({"command": create_model("x"), "idempotency_key": format!("{door}-{n}")});
            (0..MANY).map(one).collect::<Vec<_>>().into()
        };
        let here = async { api.post(&org.owner, &org.path("commands"), &commands("here")).await.expect(200).json() };
        let there = async {
            let request = http.post(format!("{second}{}", org.path("commands"))).bearer_auth(&org.owner);
            request.json(&commands("there")).send().await.unwrap().json::<Value>().await.unwrap()
        };
        let (here, there) = tokio::join!(here, there);
        let outcomes = [here, there].into_iter().flat_map(|outcomes| outcomes.as_array().unwrap().clone());
        let both = outcomes.filter(|outcome| outcome["status"] == "accepted").count();
        // The bucket's refill while they are sent is no more than a few.
        (both <= 15).then_some(both)
    })
    .await;
    assert!(both >= 10, "{both} of 10 were taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_the_api_count_each_other() {
    let nats = Nats::start(false).await;
    let process = async || {
        let ((announcer, peers), stop) = (alone(), CancellationToken::new());
        let client = connect_as(&nats.url, &nats.access.serve()).await;
        let stopped = stop.clone();
        tokio::spawn(async move { announcer.run(client, stopped).await });
        (peers, stop)
    };
    let until = async |peers: &Peers, expected: u32| {
        timeout(PATIENCE, peers.counted(expected)).await.unwrap();
        assert_eq!(peers.count().get(), expected);
    };
    let ((first, _stop), (second, stop)) = (process().await, process().await);
    until(&first, 2).await;
    until(&second, 2).await;
    stop.cancel();
    until(&first, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_have_a_rate_of_their_own_which_says_what_is_left_and_when_to_come_back() {
    let api = Api::start().await;
    let (org, other) = (api.org("reader").await, api.org("other-reader").await);
    let set = async |reads: Value| {
        let request = api.request(Method::PUT, &org.path("limits")).bearer_auth(OPERATOR);
        Answer::of(request.json(&json!({"reads_per_second": reads}))).await
    };
    let read = async |org: &Org| api.get(&org.owner, &org.path("records?limit=1")).await;
    // The plan's, once this process knows it.
    let policy = eventually("the plan's rate to be known", async || {
        read(&org).await.expect(200).headers.get("ratelimit-policy").map(|policy| policy.to_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(policy, "\"reads\";q=50000;w=10");
    for bad in [json!(0), json!(-1), json!("many")] {
        set(bad).await.expect(422);
    }
    set(json!(1)).await.expect(200);
    let refused = eventually("the rate to be used up", async || {
        let answer = read(&org).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert_eq!((refused.problem().as_str(), refused.header("retry-after")), ("read_rate_exceeded", "1"));
    assert_eq!(refused.header("ratelimit-policy"), "\"reads\";q=10;w=10");
    assert!(refused.header("ratelimit").starts_with("\"reads\";r=0;t="), "{refused:?}");
    // Commands go on, and others read.
    api.post(&org.owner, &org.path("records"), &model("written")).await.expect(201);
    for _ in 0..20 {
        read(&other).await.expect(200);
    }
    set(Value::Null).await.expect(200);
    eventually("the plan's rate to count again", async || {
        let answer = read(&org).await;
        (answer.status == 200 && answer.header("ratelimit-policy") == "\"reads\";q=50000;w=10").then_some(())
    })
    .await;
    let limits = api.get(&org.owner, &org.path("limits")).await.expect(200).json();
    let reads = limits["data"].as_array().unwrap().iter().find(|limit| limit["name"] == "reads").unwrap().clone();
    assert_eq!(
        (&reads["source"], &reads["limit"], &reads["window_seconds"]),
        (&json!("plan"), &json!("50000"), &json!(10))
    );
    let denied = eventually("the refusals to be in the audit log", async || {
        let path = org.path("audit/events?action=access.denied");
        let denied = api.get(&org.owner, &path).await.expect(200).json()["data"].as_array().unwrap().clone();
        denied.into_iter().find(|denied| denied["data"]["code"] == "read_rate_exceeded")
    })
    .await;
    assert_eq!(denied["data"]["target"], "reads");
}
