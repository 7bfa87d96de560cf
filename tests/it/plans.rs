//! An organization's plan: the right to set it, and its use by every worker, whenever it was started.

use orgstream_workers::WEIGHTS;
use reqwest::Method;
use serde_json::json;

use crate::{
    api::{Answer, Api, OPERATOR},
    cluster::{Cluster, ClusterOptions, Program, Tenant, create, eventually},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_operator_says_which_plan_an_organization_has() {
    let api = Api::start().await;
    let org = api.org("booked").await;
    let (_, admin) = api.key(&org, "admin").await;
    let plan = async |bearer: &str, plan: &str| {
        let request = api.request(Method::PUT, &org.path("plan")).bearer_auth(bearer);
        Answer::of(request.json(&json!({ "plan": plan }))).await
    };
    let shown = async |position: &str| {
        let path = format!("/v1/organizations/{}", org.id);
        api.get_at(&org.owner, &path, position).await.expect(200).json()["plan"].clone()
    };
    let (_, position) = api.record(&org, "any").await;
    assert_eq!(shown(&position).await, "standard");
    for bearer in [&org.owner, &admin] {
        assert_eq!(plan(bearer, "enterprise").await.expect(403).problem(), "forbidden");
        let command = json!({"type": "change_plan", "plan": "enterprise"});
        assert_eq!(api.post(bearer, &org.path("commands"), &command).await.expect(403).problem(), "forbidden");
    }
    let changed = plan(OPERATOR, "enterprise").await.expect(200);
    assert_eq!(changed.json()["events"], json!(["organization.plan_changed"]));
    assert_eq!(shown(changed.header("stream-position")).await, "enterprise");
    assert_eq!(plan(OPERATOR, "enterprise").await.expect(200).json()["events"], json!([]));
    plan(OPERATOR, "no plan").await.expect(422);
}

/// Waits for a worker to know so many organizations of this weight. It learns a plan with the organization's next
/// transaction.
async fn until_weighed(worker: &Program, weight: &str, count: f64) {
    let name = format!("orgstream_orgs{{weight=\"{weight}\"}}");
    eventually(&format!("{} to have {count} organizations of weight {weight}", worker.name), async || {
        (worker.metric(&name).await == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_reaches_every_worker_that_comes_to_have_the_organization() {
    let work = ["--plan-weight", "standard=1,enterprise=4", "--plan-weight", "tiny=0.5"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(ClusterOptions { work, ..ClusterOptions::default() }).await;
    cluster.client.expect_trouble();
    let (tenant, other) = (cluster.tenant("booked").await, cluster.tenant("usual").await);
    let write = async |cluster: &Cluster, tenant: &Tenant, key: &str| {
        cluster.client.command(tenant, key, &create(key)).await.expect(201);
        cluster.until_projected(tenant).await;
    };
    for tenant in [&tenant, &other] {
        write(&cluster, tenant, "before").await;
    }
    until_weighed(&cluster.workers[0], "4", 0.0).await;

    let args = ["plan", "--org", &tenant.slug, "enterprise"];
    cluster.cli(&tenant.owner, &args).await.failure();
    let said = cluster.cli(cluster.operator(), &args).await.success();
    assert!(said.stderr.contains("booked is on the plan enterprise from"), "{said:?}");
    let said = cluster.cli(cluster.operator(), &args).await.success();
    assert!(said.stderr.contains("was on the plan enterprise already"), "{said:?}");
    cluster.until_projected(&tenant).await;
    write(&cluster, &tenant, "changed").await;
    until_weighed(&cluster.workers[0], "4", 1.0).await;

    cluster.workers[0].kill9();
    cluster.workers[0].start();
    cluster.workers[0].ready().await;
    write(&cluster, &tenant, "restarted").await;
    until_weighed(&cluster.workers[0], "4", 1.0).await;

    // A rebuild replays the whole history, from before the plan was changed.
    cluster.cli(cluster.operator(), &["rebuild", "--org", &tenant.id.to_string()]).await.success();
    write(&cluster, &tenant, "rebuilt").await;
    until_weighed(&cluster.workers[0], "4", 1.0).await;

    cluster.workers[0].stop().await;
    cluster.add_worker().ready().await;
    write(&cluster, &tenant, "taken-over").await;
    until_weighed(&cluster.workers[1], "4", 1.0).await;

    cluster.cli(cluster.operator(), &["plan", "--org", &tenant.slug, "tiny"]).await.success();
    cluster.until_projected(&tenant).await;
    write(&cluster, &tenant, "smaller").await;
    until_weighed(&cluster.workers[1], "4", 0.0).await;
    until_weighed(&cluster.workers[1], "0.5", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_does_not_start_with_weights_that_are_none() {
    let refused = async |weights: &str| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_orgstream"));
        let output = command.args(["work", "--plan-weight", weights]).kill_on_drop(true).output().await.unwrap();
        assert!(!output.status.success(), "{weights}");
        String::from_utf8(output.stderr).unwrap()
    };
    let bounds = format!("\"0\" is no weight: it must be a number from {} to {}", WEIGHTS.0, WEIGHTS.1);
    for (weights, expected) in [
        ("enterprise=0", bounds.as_str()),
        ("enterprise", "says no weight: write PLAN=WEIGHT"),
        ("Enterprise=4", "is not a plan name"),
        ("gold=1,gold=2", "the plan gold is given two weights"),
    ] {
        let error = refused(weights).await;
        assert!(error.contains(expected), "{weights}: {error}");
    }
}
