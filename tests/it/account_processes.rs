//! Accounts in several processes: one serves each, the others send it what comes to them, and whatever is killed, frozen or
//! forged, everything is used once.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use orgstream_events::{Amount, PLATFORM_ORG};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    account::{charge, ledger, reserve},
    cluster::{Answer, Client, Cluster, ClusterOptions, PATIENCE, Program, Tenant, eventually},
    support::connect_as,
};

/// Processes of the API.
const PROCESSES: usize = 4;
/// Organizations that are served at once while processes are killed, and the most calls of a caller, one after the other.
const SERVED: usize = 4;
const CALLS: usize = 6;
/// What a call uses.
const USE: u64 = 20_000;
/// Calls of one organization in a round, about: many callers make fewer each.
const IN_ALL: usize = 600;
/// How long an answer may take where thousands wait for one, and the pause before a command is sent again.
const ANSWER: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(50);
/// Kills in each round.
const KILLS: usize = 5;
/// The subjects of commands between processes.
const COMMANDS: &str = "orgstream.api.account.";

/// A number that the environment may set.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |number| number.parse().unwrap())
}

/// Starts more processes of the API beside the cluster's own; returns a client of each, the cluster's own first.
async fn more_apis(cluster: &Cluster, count: usize) -> (Vec<Program>, Vec<Client>) {
    let mut apis: Vec<Program> = (1..count).map(|number| cluster.another_api(&format!("api-{number}"))).collect();
    for api in &mut apis {
        api.ready().await;
    }
    let clients = std::iter::once(cluster.client.clone()).chain(apis.iter().map(|api| cluster.client.of(api)));
    let clients = clients.collect();
    (apis, clients)
}

/// Puts an organization on a plan of its own.
async fn on_plan(cluster: &Cluster, tenant: &Tenant, definition: &Value) {
    let (client, operator, plan) = (&cluster.client, cluster.operator(), format!("plan-{}", tenant.slug));
    let publish = json!({"type": "publish_plan", "plan": plan, "definition": definition});
    client.post(operator, &format!("/v1/organizations/{PLATFORM_ORG}/commands"), None, &publish).await.expect(200);
    eventually("the plan to be taken", async || {
        let put = client.request(Method::PUT, &tenant.path("plan"), operator).json(&json!({"plan": plan}));
        Answer::of(put).await.filter(|answer| answer.status == 200)
    })
    .await;
}

/// Waits until an organization's plan counts in a process.
async fn until_planned(client: &Client, tenant: &Tenant) {
    eventually("the plan to count", async || {
        let account = client.get(&tenant.owner, &tenant.path("account")).await.expect(200).body;
        (account["plan"] == format!("plan-{}", tenant.slug)).then_some(())
    })
    .await;
}

/// Sends a command until it is answered for good, to one process and then to the next.
async fn insist(clients: &[Client], tenant: &Tenant, key: &str, command: &Value) -> Answer {
    let deadline = Instant::now() + 2 * PATIENCE;
    let mut turn = key.bytes().map(usize::from).sum::<usize>();
    loop {
        turn += 1;
        let client = &clients[turn % clients.len()];
        let request = client.request(Method::POST, &tenant.path("commands"), &tenant.key).json(command);
        match Answer::of(request.header("Idempotency-Key", key).timeout(ANSWER)).await {
            Some(answer) if matches!(answer.status, 200 | 201 | 402 | 422) => return answer,
            other => assert!(Instant::now() < deadline, "{key} was at last answered {other:?}"),
        }
        sleep(PAUSE).await;
    }
}

/// One use: at once, or reserved and then settled.
async fn call(clients: &[Client], tenant: &Tenant, key: &str, number: usize) -> u16 {
    let amount = USE.to_string();
    if number.is_multiple_of(2) {
        return insist(clients, tenant, key, &charge("tokens", &amount)).await.status;
    }
    let reserved = insist(clients, tenant, key, &reserve("tokens", &amount)).await;
    if reserved.status != 201 {
        return reserved.status;
    }
    let settle = json!({"type": "settle_hold", "hold": reserved.body["hold"], "amount": amount});
    insist(clients, tenant, &format!("end-of-{key}"), &settle).await.status
}

/// The sum of amounts in the rows of a list.
fn sum<'a>(rows: impl IntoIterator<Item = &'a Value>, name: &str) -> u64 {
    rows.into_iter().map(|row| row[name].as_str().unwrap().parse::<Amount>().unwrap().micros()).sum()
}

/// Account, log, rows of usage and invoice are one figure.
async fn assert_balanced(cluster: &Cluster, client: &Client, tenant: &Tenant, limit: u64) {
    let micros = limit * 1_000_000;
    let ledger = ledger(&cluster.log().await, tenant.id).await;
    assert_eq!(ledger.settled.micros(), micros, "{ledger:?}");
    let account = client.get(&tenant.owner, &tenant.path("account")).await.expect(200).body;
    let tokens = account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == "tokens").unwrap();
    assert_eq!(
        (&tokens["available"], &tokens["held"], &tokens["used_this_month"]),
        (&json!("0"), &json!("0"), &json!(limit.to_string())),
    );
    let position = account["exact_at"].as_str().unwrap();
    let rows = client.get_at(&tenant.owner, &tenant.path("usage/series?step=hour"), position).await.expect(200).body;
    assert_eq!(sum(rows["data"].as_array().unwrap(), "amount"), micros, "{rows}");
    // Nothing is unbilled once billing has ended, and a second end bills nothing.
    for _ in 0..2 {
        let end = json!({"type": "end_billing", "reason": "test"});
        client.post(cluster.operator(), &tenant.path("commands"), None, &end).await.expect(200);
    }
    let invoices = client.get(&tenant.owner, &tenant.path("invoices")).await.expect(200).body;
    assert_eq!(invoices["data"].as_array().unwrap().len(), 1, "{invoices}");
    let invoice = client.get(&tenant.owner, &tenant.path("invoices/1")).await.expect(200).body;
    assert_eq!(sum(invoice["lines"].as_array().unwrap(), "quantity"), micros, "{invoice}");
}

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Api(usize),
    Nats,
    Postgres,
}

async fn kill(cluster: &mut Cluster, apis: &mut [Program], victim: Victim) {
    match victim {
        Victim::Api(number) => {
            let api = match number.checked_sub(1) {
                Some(place) => &mut apis[place],
                None => &mut cluster.api,
            };
            api.kill9();
            api.start();
            api.ready().await;
        }
        Victim::Nats => {
            cluster.nats.kill9().await;
            cluster.nats.restart().await.unwrap();
        }
        Victim::Postgres => {
            cluster.postgres.kill9().await;
            cluster.postgres.restart().await.unwrap();
        }
    }
}

// Row 1 of the known faults of others: granted is never more than the limit, and nobody is refused while there is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_42_four_processes_serve_accounts_exactly_whatever_is_killed() {
    let callers = setting("ORGSTREAM_TEST_CALLERS", 80) / SERVED;
    let calls = (IN_ALL / callers).clamp(1, CALLS);
    let seeds = setting("ORGSTREAM_TEST_SEEDS", 5);
    let first: u64 = std::env::var("ORGSTREAM_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let (mut apis, clients) = more_apis(&cluster, PROCESSES).await;
    // Five of six calls get what they ask for.
    let limit = (callers * calls * 5 / 6) as u64 * USE;
    for round in 0..seeds {
        let seed = first.wrapping_add(round as u64);
        eprintln!("to see the same again: ORGSTREAM_TEST_SEED={seed} ORGSTREAM_TEST_SEEDS=1");
        let mut random = StdRng::seed_from_u64(seed);
        let mut tenants = Vec::new();
        for number in 0..SERVED {
            let tenant = cluster.tenant(&format!("killed-{round}-{number}")).await;
            let included = limit / 2;
            let tokens = json!({
                "included": included.to_string(), "overage": (limit - included).to_string(), "price_per_million": "2",
            });
            on_plan(&cluster, &tenant, &json!({"title": "Shared", "meters": {"tokens": tokens}})).await;
            tenants.push(tenant);
        }
        for (client, tenant) in clients.iter().flat_map(|client| tenants.iter().map(move |tenant| (client, tenant))) {
            until_planned(client, tenant).await;
        }
        let of_caller = async |tenant: &Tenant, caller: usize| {
            let mut answers = Vec::with_capacity(calls);
            for number in 0..calls {
                answers.push(call(&clients, tenant, &format!("call-{caller}-{number}"), caller + number).await);
            }
            answers
        };
        let of_tenant = async |tenant: &Tenant| {
            let answers = join_all((0..callers).map(|caller| of_caller(tenant, caller))).await;
            answers.concat()
        };
        let kills = async {
            let apis_first = (0..PROCESSES).map(Victim::Api);
            let mut victims: Vec<Victim> = apis_first.chain([Victim::Nats, Victim::Postgres]).collect();
            victims.shuffle(&mut random);
            for victim in victims.into_iter().take(KILLS) {
                eprintln!("killing {victim:?}");
                kill(&mut cluster, &mut apis, victim).await;
                sleep(Duration::from_millis(random.random_range(0..300))).await;
            }
        };
        let (answers, ()) = tokio::join!(join_all(tenants.iter().map(of_tenant)), kills);
        for (tenant, answers) in tenants.iter().zip(answers) {
            let count = |status| answers.iter().filter(|answer| **answer == status).count();
            let granted = callers * calls * 5 / 6;
            assert_eq!((count(200), count(402)), (granted, callers * calls - granted), "{answers:?}");
            assert_balanced(&cluster, &clients[round % clients.len()], tenant, limit).await;
        }
    }
}

/// A counter of a process.
async fn counted(api: &Program, name: &str) -> u64 {
    api.metric(name).await.unwrap_or_default() as u64
}

/// The commands that a process has sent to another and that were answered there.
async fn answered(api: &Program) -> u64 {
    counted(api, "orgstream_account_forwards_total{outcome=\"answered\"}").await
}

/// Waits until the account of an organization is served by one of two processes; returns that one, and the other.
async fn server_and_other<'a>(
    cluster: &Cluster,
    tenant: &Tenant,
    apis: [&'a Program; 2],
) -> (&'a Program, &'a Program) {
    let place = eventually("one process to serve the account", async || {
        for (place, api) in apis.into_iter().enumerate() {
            let before = answered(api).await;
            cluster
                .client
                .of(api)
                .post(&tenant.key, &tenant.path("commands"), None, &charge("tokens", "1"))
                .await
                .expect(200);
            if answered(api).await > before {
                return Some(1 - place);
            }
        }
        None
    })
    .await;
    (apis[place], apis[1 - place])
}

async fn conflicts([one, other]: [&Program; 2]) -> u64 {
    let name = "orgstream_append_conflicts_total";
    counted(one, name).await + counted(other, name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_served_by_one_process_whichever_a_command_comes_to() {
    const EACH: usize = 60;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (apis, clients) = more_apis(&cluster, 2).await;
    let tenant = cluster.tenant("served").await;
    let both = [&cluster.api, &apis[0]];
    let (_, other) = server_and_other(&cluster, &tenant, both).await;
    let (before, sent, lost) =
        (ledger(&cluster.log().await, tenant.id).await, answered(other).await, conflicts(both).await);
    let answers = join_all((0..2 * EACH).map(async |number| {
        let request = clients[number % 2].request(Method::POST, &tenant.path("commands"), &tenant.key);
        let request = request.header("Idempotency-Key", format!("call-{number}"));
        // Some of them are more than there is.
        let amount = if number % 10 < 2 { "2000000" } else { "3" };
        Answer::of(request.json(&charge("tokens", amount))).await.unwrap()
    }))
    .await;
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 402).collect();
    let accepted = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((accepted, refused.len()), (2 * EACH * 8 / 10, 2 * EACH * 2 / 10));
    // A refusal is the same from either.
    for refused in refused {
        assert_eq!(
            (&refused.body["code"], &refused.body["figures"]["required"]),
            (&json!("insufficient_balance"), &json!("2000000"))
        );
        assert!(refused.body["figures"]["available"].is_string(), "{refused:?}");
    }
    assert!(answered(other).await - sent >= EACH as u64, "all that came to {} were sent on", other.name);
    assert_eq!(conflicts(both).await, lost, "nobody competed");
    let after = ledger(&cluster.log().await, tenant.id).await;
    assert_eq!(after.commands - before.commands, accepted);
    assert!(after.commits - before.commits < accepted, "{after:?}");
    // Each of them again, to the other process: nothing more happens.
    for number in 0..2 * EACH {
        let request = clients[(number + 1) % 2].request(Method::POST, &tenant.path("commands"), &tenant.key);
        let request = request.header("Idempotency-Key", format!("call-{number}"));
        let amount = if number % 10 < 2 { "2000000" } else { "3" };
        let again = Answer::of(request.json(&charge("tokens", amount))).await.unwrap();
        assert!(again.status == 402 || again.body["replayed"] == true, "{again:?}");
    }
    assert_eq!(ledger(&cluster.log().await, tenant.id).await.commands, after.commands);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_does_not_answer_holds_nobody_up_and_nothing_is_used_twice() {
    const CALLERS: usize = 30;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (apis, _) = more_apis(&cluster, 2).await;
    let tenant = cluster.tenant("frozen").await;
    let (server, other) = server_and_other(&cluster, &tenant, [&cluster.api, &apis[0]]).await;
    let client = cluster.client.of(other);
    let before = ledger(&cluster.log().await, tenant.id).await;
    let send = async |client: &Client, number: usize| {
        let request = client.request(Method::POST, &tenant.path("commands"), &tenant.key).json(&charge("tokens", "7"));
        Answer::of(request.header("Idempotency-Key", format!("call-{number}"))).await.unwrap().expect(200)
    };
    // It keeps its connection, and says nothing.
    server.signal(Signal::STOP);
    let begun = Instant::now();
    join_all((0..CALLERS).map(|number| send(&client, number))).await;
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    // Then it reads what it was sent.
    server.signal(Signal::CONT);
    let awake = cluster.client.of(server);
    for number in 0..CALLERS {
        for client in [&client, &awake] {
            assert_eq!(send(client, number).await.body["replayed"], true);
        }
    }
    let after = ledger(&cluster.log().await, tenant.id).await;
    assert_eq!(after.commands - before.commands, CALLERS);
    assert_eq!(after.settled.less(before.settled), Amount::from_micros(7_000_000 * CALLERS as u64).unwrap());
    let (again, _) = server_and_other(&cluster, &tenant, [server, other]).await;
    assert_eq!(again.name, server.name, "it serves the account again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_between_processes_is_believed_where_it_was_signed_for_and_once() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (apis, _) = more_apis(&cluster, 2).await;
    let tenant = cluster.tenant("forged").await;
    // Whoever has the credentials of a process, and not its keys.
    let broker = connect_as(&cluster.nats.url, &cluster.nats.access.serve()).await;
    let mut heard = broker.subscribe("orgstream.api.>").await.unwrap();
    broker.flush().await.unwrap();
    let (server, other) = server_and_other(&cluster, &tenant, [&cluster.api, &apis[0]]).await;
    cluster
        .client
        .of(other)
        .post(&tenant.key, &tenant.path("commands"), Some("real"), &charge("tokens", "5"))
        .await
        .expect(200);
    // Every process announces itself again and again; the other one's announcement says where it takes commands.
    let (mut real, mut ids) = (None, BTreeSet::new());
    let (real, to_other) = timeout(PATIENCE, async {
        loop {
            let message = heard.next().await.unwrap();
            match message.subject.as_str() {
                "orgstream.api.here" => drop(ids.insert(uuid::Uuid::from_slice(&message.payload).unwrap())),
                subject if subject.starts_with(COMMANDS) => real = Some(message),
                _ => {}
            }
            let subject_of = |id: &uuid::Uuid| format!("{COMMANDS}{}", id.simple());
            if let Some(real) = &real
                && let Some(other) = ids.iter().map(subject_of).find(|other| *other != real.subject.as_str())
            {
                break (real.clone(), other);
            }
        }
    })
    .await
    .expect("a command on its way and an announcement of the other process");
    let to_server = real.subject.to_string();
    let refused =
        async |api: &Program| counted(api, "orgstream_account_forwards_refused_total{reason=\"not_authentic\"}").await;
    let (before, others) = (refused(server).await, refused(other).await);
    let history = ledger(&cluster.log().await, tenant.id).await;
    let mut changed = real.payload.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    broker.publish(to_server.clone(), "nothing of ours".into()).await.unwrap();
    broker.publish(to_server.clone(), changed.into()).await.unwrap();
    broker.publish(to_other, real.payload.clone()).await.unwrap();
    // As it was, it is the same command again, whoever is told.
    for _ in 0..3 {
        broker.publish_with_reply(to_server.clone(), "orgstream.api.answer.mine", real.payload.clone()).await.unwrap();
    }
    broker.flush().await.unwrap();
    eventually("what is forged to be refused", async || {
        (refused(server).await >= before + 2 && refused(other).await > others).then_some(())
    })
    .await;
    cluster
        .client
        .of(server)
        .post(&tenant.key, &tenant.path("commands"), Some("after"), &charge("tokens", "1"))
        .await
        .expect(200);
    let after = ledger(&cluster.log().await, tenant.id).await;
    assert_eq!(after.commands, history.commands + 1, "{after:?}");
}

// Rows 13 and 26: what a client or a process held that is gone returns at its deadline, and the limit holds meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_by_those_who_are_killed_is_free_by_its_deadline_and_never_more_is_held() {
    const LIMIT: usize = 5;
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let (mut apis, clients) = more_apis(&cluster, 2).await;
    let tenant = cluster.tenant("held").await;
    let definition =
        json!({"title": "Five", "meters": {"tokens": {"included": "50"}}, "limits": {"concurrency": LIMIT}});
    on_plan(&cluster, &tenant, &definition).await;
    for client in &clients {
        until_planned(client, &tenant).await;
    }
    let hold = json!({"type": "reserve_usage", "meter": "tokens", "amount": "10", "seconds": 12});
    let post = |client: &Client, key: String| {
        client.request(Method::POST, &tenant.path("commands"), &tenant.key).header("Idempotency-Key", key).json(&hold)
    };
    let storm = async |name: &str| {
        let answers =
            stream::iter(0..30).map(|number| Answer::of(post(&clients[number % 2], format!("{name}-{number}"))));
        let answers: Vec<_> = answers.buffer_unordered(30).collect().await;
        answers.into_iter().flatten().filter(|answer| answer.status == 201).count()
    };
    // Clients that go away before they are answered, at whatever step that is.
    let impatient = (0..10).map(|number| {
        post(&clients[number % 2], format!("gone-{number}")).timeout(Duration::from_millis(2 * number as u64)).send()
    });
    let _ = join_all(impatient).await;
    storm("first").await;
    let account = async || clients[0].get(&tenant.owner, &tenant.path("account")).await.expect(200).body;
    let shown = eventually("all of it to be held", async || {
        storm("again").await;
        let account = account().await;
        (account["holds"] == LIMIT).then_some(account)
    })
    .await;
    assert_eq!(shown["meters"][0]["available"], "0", "{shown}");
    // Those who held it do not come back, nor do the processes that served them.
    cluster.api.kill9();
    apis[0].kill9();
    cluster.api.start();
    apis[0].start();
    cluster.api.ready().await;
    apis[0].ready().await;
    let (log, mut number) = (cluster.log().await, 0);
    eventually("what was held to be free", async || {
        number += 1;
        storm(&format!("later-{number}")).await;
        (ledger(&log, tenant.id).await.commands >= 2 * LIMIT).then_some(())
    })
    .await;
    let ledger = ledger(&log, tenant.id).await;
    assert_eq!((ledger.most_open, ledger.settled), (LIMIT, Amount::ZERO), "{ledger:?}");
}
