//! Stalled checkpoints while their streams continue: provoked from outside, and reported until they move again.

use orgstream_events::{OrgId, Pipeline};
use serde_json::Value;

use crate::cluster::{Cluster, ClusterOptions, Tenant, create, eventually, seq_of, uuid};

const STANDING: &str = "orgstream_orgs_stalled";

async fn start() -> Cluster {
    let work = ["--watch-seconds", "1"].map(str::to_owned).to_vec();
    Cluster::start(ClusterOptions { work, ..ClusterOptions::default() }).await
}

/// The lanes that the API reports as stalled.
async fn standing(cluster: &Cluster) -> Vec<Value> {
    let lag = cluster.client.get(cluster.operator(), "/v1/platform/lag").await.expect(200);
    let lanes = lag.body["data"].as_array().unwrap();
    lanes.iter().filter(|lane| lane["standing_ms"].is_u64()).cloned().collect()
}

/// Waits until this lane, and no other, is reported as stalled.
async fn until_standing(cluster: &Cluster, org: OrgId, pipeline: Pipeline) -> Value {
    eventually("one checkpoint to be said to stand still", async || {
        let lanes = standing(cluster).await;
        let [lane] = lanes.as_slice() else { return None };
        (lane["org_id"] == org.to_string() && lane["pipeline"] == pipeline.name()).then(|| lane.clone())
    })
    .await
}

async fn until_moving(cluster: &Cluster) {
    eventually("nothing to be said to stand still", async || {
        let nothing = standing(cluster).await.is_empty() && cluster.workers[0].metric(STANDING).await == Some(0.0);
        nothing.then_some(())
    })
    .await;
}

async fn write(cluster: &Cluster, tenant: &Tenant, key: &str) -> u64 {
    let made = cluster.client.command(tenant, key, &create(key)).await.expect(201);
    seq_of(tenant, &made.text("position"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_somebody_holds_is_reported_until_it_moves_again() {
    let cluster = start().await;
    let (held, other) = (cluster.tenant("held").await, cluster.tenant("other").await);
    for tenant in [&held, &other] {
        write(&cluster, tenant, "before").await;
        cluster.until_projected(tenant).await;
    }
    let mut holder = cluster.superuser().await;
    sqlx::raw_sql("BEGIN").execute(&mut holder).await.unwrap();
    sqlx::query("SELECT FROM ops.checkpoints WHERE org_id = $1 AND pipeline = 'audit' FOR UPDATE")
        .bind(uuid(held.id))
        .execute(&mut holder)
        .await
        .unwrap();
    for tenant in [&held, &other] {
        write(&cluster, tenant, "meanwhile").await;
    }
    until_standing(&cluster, held.id, Pipeline::Audit).await;
    cluster.until_projected(&other).await;
    let worker = &cluster.workers[0];
    eventually("the figure to count it", async || (worker.metric(STANDING).await == Some(1.0)).then_some(())).await;
    let said = cluster.cli(cluster.operator(), &["lag", "--all"]).await.success();
    assert!(said.stdout.contains(&held.id.to_string()) && said.stderr.contains("does not move"), "{said:?}");
    let told =
        |what: &str| worker.log_text().lines().filter(|line| line.contains(what) && line.contains("audit")).count();
    assert_eq!(told("stands still although its stream goes on"), 1);

    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.unwrap();
    cluster.until_projected(&held).await;
    until_moving(&cluster).await;
    assert_eq!(told("stands still although its stream goes on"), 1);
    assert_eq!(told("moves again"), 1);
}

/// A stall that lag cannot show: the lane has nothing to do, as far as it knows, and no message comes to correct it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_lane_that_has_forgotten_something_is_found_on_the_round() {
    let cluster = start().await;
    let tenant = cluster.tenant("forgotten").await;
    let before = write(&cluster, &tenant, "before").await;
    cluster.cli(cluster.operator(), &["plan", "--org", &tenant.slug, "enterprise"]).await.success();
    cluster.until_projected(&tenant).await;
    sqlx::query("UPDATE ops.checkpoints SET seq = $2 WHERE org_id = $1 AND pipeline = 'read_models'")
        .bind(uuid(tenant.id))
        .bind(i64::try_from(before).unwrap())
        .execute(&mut cluster.superuser().await)
        .await
        .unwrap();
    let lane = until_standing(&cluster, tenant.id, Pipeline::ReadModels).await;
    assert_eq!((&lane["age_ms"], &lane["waiting"]), (&0.into(), &0.into()), "the lane itself says that nothing waits");
    // With its next message the lane learns its checkpoint, and reads again from there.
    write(&cluster, &tenant, "after").await;
    cluster.until_projected(&tenant).await;
    until_moving(&cluster).await;
}
