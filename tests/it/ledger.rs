//! The account at the command line, and at an auditor's: what is shown, what is listed, and what is computed again without asking
//! anybody.

use std::fs;

use orgstream_verifier::{Outcome, Request, verify_account};
use serde_json::{Value, json};

use crate::{
    auditing::Auditing,
    cluster::{Cluster, ClusterOptions, Tenant, eventually},
};

/// Uses a tenant's account in every way; one hold stays open.
async fn use_it(cluster: &Cluster, tenant: &Tenant) {
    let send = async |key: &str, command: Value| {
        let answer = cluster.client.command(tenant, key, &command).await;
        assert!([200, 201].contains(&answer.status), "{answer:?}");
        answer.body
    };
    let reserve = |amount: &str| json!({"type": "reserve_usage", "meter": "ecu", "amount": amount, "seconds": 3_600});
    let hold = send("run", reserve("40")).await["hold"].clone();
    send("more", json!({"type": "extend_hold", "hold": hold, "amount": "5"})).await;
    send("done", json!({"type": "settle_hold", "hold": hold, "amount": "12.5"})).await;
    let hold = send("other", reserve("1")).await["hold"].clone();
    send("given-up", json!({"type": "release_hold", "hold": hold})).await;
    send("open", reserve("7")).await;
    let charge = json!({"type": "charge_usage", "meter": "tokens", "amount": "100", "model": "=small, \"best\""});
    send("charge", charge).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_shown_credited_and_listed_at_the_command_line() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("spender").await;
    let credit =
        ["account", "credit", "--org", "spender", "ecu", "100", "--reason", "test", "--idempotency-key", "one"];
    let said = cluster.cli(cluster.operator(), &credit).await.success();
    assert!(said.stderr.contains("spender was granted 100 ecu at org_"), "{said:?}");
    let again = cluster.cli(cluster.operator(), &credit).await.success();
    assert!(again.stderr.contains("was granted 100 ecu before"), "{again:?}");
    cluster.cli(&tenant.key, &credit).await.failure();
    use_it(&cluster, &tenant).await;

    let shown = cluster.cli(&tenant.key, &["account", "show"]).await.success();
    let ecu: Vec<&str> =
        shown.stdout.lines().find(|line| line.trim().starts_with("ecu")).unwrap().split_whitespace().collect();
    assert_eq!(ecu[1..5], ["80.5", "7", "12.5", "100"], "{shown:?}");
    assert!(shown.stderr.contains("is on the plan standard"), "{shown:?}");
    let account = cluster.cli(&tenant.key, &["account", "show", "--json"]).await.success().json();
    assert_eq!(account["holds"], 1);

    let lines = cluster.cli(&tenant.owner, &["account", "ledger", "--org", "spender", "--jsonl"]).await.success();
    let lines: Vec<Value> = lines.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<String> = lines
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap();
            format!("{} {} {} {}", text("meter"), text("what"), text("amount"), text("balance"))
        })
        .collect();
    assert!(
        told.contains(&"ecu granted 100 100".to_owned())
            && told.contains(&"ecu used -12.5 87.5".to_owned())
            && told.contains(&"tokens granted 1000000 1000000".to_owned())
            && told.contains(&"tokens used -100 999900".to_owned()),
        "{told:?}"
    );
    assert_eq!(told.len(), 4);
    let csv = cluster
        .cli(&tenant.owner, &["account", "ledger", "--csv", "--org", "spender", "--meter", "tokens"])
        .await
        .success();
    let rows: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(rows[0], "at,meter,what,amount,balance,source,kind,model,by,position");
    assert!(rows.len() == 3 && rows[2].contains(",used,-100,999900,,,\"'=small, \"\"best\"\"\","), "{rows:?}");
    let table =
        cluster.cli(&tenant.owner, &["account", "ledger", "--org", "spender", "--since", "2100-01-01T00:00:00Z"]).await;
    assert!(table.success().stderr.contains("0 changes"));

    // The chart is of the same figures.
    cluster.until_projected(&tenant).await;
    let usage = cluster.cli(&tenant.key, &["usage", "--step", "hour", "--group-by", "model"]).await.success();
    assert!(usage.stdout.contains("ecu by hour (UTC), 12.5 in all") && usage.stdout.contains('█'), "{usage:?}");
    assert!(!usage.stdout.contains('\x1b'), "colours are for terminals: {usage:?}");
    let usage = cluster.cli(&tenant.key, &["usage", "--json"]).await.success().json();
    let totals = &usage["series"]["totals"];
    assert_eq!((&totals[0]["amount"], &totals[1]["amount"]), (&json!("12.5"), &json!("100")));
    let refused = cluster.cli(&tenant.key, &["usage", "--from", "2026-03-01T00:30:00Z"]).await.failure();
    assert!(refused.stderr.contains("must be a moment at which a day begins"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_are_listed_shown_and_published_from_a_file() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("reader").await;
    let listed = eventually("the plans of the start to be listed", async || {
        let listed = cluster.cli(&tenant.key, &["plans", "list"]).await.success().stdout;
        let has = |plan: &&str| listed.lines().any(|line| line.trim().starts_with(*plan));
        ["public", "trial", "standard", "premium", "enterprise"].iter().all(has).then_some(listed)
    })
    .await;
    assert!(listed.contains("100000 tokens"), "{listed}");
    let shown = cluster.cli(&tenant.key, &["plans", "show", "premium"]).await.success();
    let mut plan: Value = shown.json();
    assert_eq!(plan["definition"]["limits"]["concurrency"], 200);
    let file = cluster.dir().join("premium.json");
    fs::write(&file, shown.stdout).unwrap();
    let publish = ["plans", "publish", file.to_str().unwrap()];
    let said = cluster.cli(cluster.operator(), &publish).await.success();
    assert!(said.stderr.contains("was published as it is already"), "{said:?}");
    plan["definition"]["limits"]["concurrency"] = json!(201);
    fs::write(&file, plan.to_string()).unwrap();
    cluster.cli(&tenant.key, &publish).await.failure();
    let said = cluster.cli(cluster.operator(), &publish).await.success();
    assert!(said.stderr.contains("version 2 of premium is published"), "{said:?}");
    eventually("the version to be listed", async || {
        let plans = cluster.cli(&tenant.key, &["plans", "list", "--json"]).await.success().stdout;
        let premium: Value = plans
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(|plan: &Value| plan["plan"] == "premium")?;
        (premium["version"] == 2 && premium["definition"]["limits"]["concurrency"] == 201).then_some(())
    })
    .await;
    cluster.cli(&tenant.key, &["plans", "show", "platinum"]).await.failure();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_balance_follows_from_an_exported_log_without_asking_anybody() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("reproduced").await;
    let credit = ["account", "credit", "--org", "reproduced", "ecu", "100", "--reason", "test"];
    audited.cluster.cli(audited.cluster.operator(), &credit).await.success();
    use_it(&audited.cluster, &tenant).await;
    audited.cluster.until_projected(&tenant).await;
    audited.head(&tenant).await;
    assert!(audited.export(&tenant, "bundle").await);
    let account = audited.cluster.cli(&tenant.key, &["account", "show", "--json"]).await.success().json();
    let (bundle, pin) = (audited.path("bundle"), audited.log_key());
    let request = Request { bundle, pin, policy: None, known: Vec::new() };
    let (report, ledger) = tokio::task::spawn_blocking(move || verify_account(&request)).await.unwrap();
    assert_eq!(report.outcome(), Outcome::NotWitnessed, "{report}");
    let meters = account["meters"].as_array().unwrap();
    let balances = ledger.balances();
    assert_eq!(balances.len(), meters.len());
    for (balance, meter) in balances.iter().zip(meters) {
        assert_eq!(meter["meter"], balance.meter.as_str());
        assert_eq!(meter["available"], balance.left.to_string(), "{balance:?}");
        assert_eq!(meter["held"], balance.held.to_string(), "{balance:?}");
        assert_eq!(meter["spent"], balance.used.to_string(), "{balance:?}");
        let months: Vec<String> = balance.months.values().map(ToString::to_string).collect();
        assert_eq!(months, [balance.used.to_string()]);
    }
}
