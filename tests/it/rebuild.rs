//! Read models rebuilt beside the active ones: the results of queries meanwhile and afterwards, under kills, and the
//! findings of comparisons.

use std::collections::BTreeMap;

use orgstream_events::{OrgId, Pipeline};
use orgstream_projections::{READ_MODELS, ReadModel};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, ClusterOptions, Said, Tenant, create, eventually},
    history::{Digests, History, digests},
    parking::{Intruder, commit, fresh_record, goes_on, parked, states, until_parked, updated},
    workers::{flood, write_on},
};

async fn rebuild(cluster: &Cluster, tenant: &Tenant, flags: &[&str]) -> Said {
    let id = tenant.id.to_string();
    cluster.cli("", &[&["rebuild", "--org", &id], flags].concat()).await
}

/// The last job of an organization, in the form for scripts.
async fn status(cluster: &Cluster, tenant: &Tenant) -> Value {
    let said = cluster.cli("", &["rebuild", "status", "--json"]).await.success();
    let rows = said.json()["data"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["org"] == tenant.id.to_string()).unwrap_or_default()
}

/// The active version, and all that have rows of records.
async fn versions(database: &mut PgConnection, org: OrgId) -> (i32, Vec<i32>) {
    let shown = "SELECT version FROM ops.checkpoints WHERE org_id = $1 AND pipeline = 'read_models' AND active";
    let shown = sqlx::query_scalar(shown).bind(org.uuid()).fetch_one(&mut *database).await.unwrap();
    let stored = "SELECT DISTINCT rm_version FROM rm.records WHERE org_id = $1 ORDER BY 1";
    (shown, sqlx::query_scalar(stored).bind(org.uuid()).fetch_all(database).await.unwrap())
}

fn of(digests: &Digests, org: OrgId) -> BTreeMap<&str, &str> {
    digests.iter().filter(|((_, one), _)| *one == org.uuid()).map(|((table, _), sum)| (&**table, &**sum)).collect()
}

/// Every row of the read models of an organization with the transaction that wrote it, whatever its version.
async fn written(database: &mut PgConnection, org: OrgId) -> Vec<String> {
    let mut rows = Vec::new();
    for table in READ_MODELS.iter().copied().filter(|model| model.from_events).map(|model| model.table) {
        let query = format!("SELECT xmin::text || item::text FROM {table} AS item WHERE org_id = $1 ORDER BY 1");
        let found: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(query)).bind(org.uuid()).fetch_all(&mut *database).await.unwrap();
        rows.extend(found);
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_it_is_done_queries_see_the_old_version_and_then_the_same_rows() {
    const RECORDS: usize = 5_000;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("rebuilt").await, cluster.tenant("other").await);
    flood(&cluster, &tenant, "many", RECORDS).await;
    flood(&cluster, &other, "few", 10).await;
    for one in [&tenant, &other] {
        cluster.until_projected(one).await;
    }
    let mut database = cluster.superuser().await;
    let before = digests(&mut database).await;
    let others = written(&mut database, other.id).await;
    let page = tenant.path("records?limit=100");
    let seen = cluster.client.get(&tenant.key, &page).await.expect(200).body;
    assert_eq!(seen["data"].as_array().unwrap().len(), 100);

    // The organization itself, its key and its rows are visible all the time, and never others.
    let mut rebuilding = tokio::spawn({
        let command = cluster.command("", &["rebuild", "--org", &tenant.id.to_string()]);
        async move { command.run().await }
    });
    let mut reads = 0;
    let said = loop {
        let by_slug = format!("/v1/organizations/{}/records?limit=100", tenant.slug);
        assert_eq!(cluster.client.get(&tenant.key, &by_slug).await.expect(200).body["data"], seen["data"]);
        reads += 1;
        tokio::select! {
            biased;
            said = &mut rebuilding => break said.unwrap().success(),
            () = tokio::task::yield_now() => {}
        }
    };
    assert!(reads > 2 && said.stdout.is_empty(), "{reads} reads, {said:?}");
    assert!(said.stderr.contains("rebuilt the read models of 1 organizations"), "{said:?}");
    assert_eq!(cluster.client.get(&tenant.key, &page).await.expect(200).body["data"], seen["data"]);
    assert_eq!(versions(&mut database, tenant.id).await, (2, vec![1, 2]));
    let after = digests(&mut database).await;
    assert_eq!(before, after);
    assert!(of(&after, tenant.id).len() >= 6, "{after:?}");
    let now = status(&cluster, &tenant).await;
    assert_eq!((&now["state"], &now["version"], &now["previous"]), (&json!("done"), &json!(2), &json!(1)), "{now}");
    assert_eq!(now["events"], now["total"], "{now}");

    // Nothing of the other organization was touched.
    assert_eq!(written(&mut database, other.id).await, others);
    assert_eq!(versions(&mut database, other.id).await, (1, vec![1]));
    assert_eq!(status(&cluster, &other).await, Value::Null);
    for one in [&tenant, &other] {
        goes_on(&cluster, one, "afterwards").await;
    }
    let figure = cluster.workers[0].metric("orgstream_rebuild_events_total").await.unwrap();
    assert!(figure >= RECORDS as f64, "{figure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_meanwhile_is_in_the_new_version_exactly_once() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenants = cluster.tenants(3).await;
    for tenant in &tenants {
        flood(&cluster, tenant, "before", 500).await;
    }
    for round in 0..3 {
        let writers = write_on(&cluster, &tenants, &round.to_string(), 150);
        cluster.cli("", &["rebuild", "--all"]).await.success();
        writers.join_all().await;
    }
    let (log, mut database) = (cluster.log().await, cluster.superuser().await);
    for tenant in &tenants {
        cluster.until_projected(tenant).await;
        // The active version, and the one before it.
        assert_eq!(versions(&mut database, tenant.id).await, (4, vec![3, 4]));
        let history = History::read(&log, tenant.id).await;
        history.assert_sound();
        assert_eq!(history.records().len(), 500 + 3 * 150);
        history.assert_projected(&mut database).await;
        let said = rebuild(&cluster, tenant, &["--verify"]).await.success();
        assert!(said.stderr.contains("are what its events make of them"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_outlives_the_worker_and_the_command_that_asked_for_it() {
    const RECORDS: usize = 8_000;
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("killed").await;
    flood(&cluster, &tenant, "many", RECORDS).await;
    cluster.until_projected(&tenant).await;
    let mut database = cluster.superuser().await;
    let before = digests(&mut database).await;
    rebuild(&cluster, &tenant, &["--detach"]).await.success();
    let mut killed_at = 0;
    for part in [10, 2] {
        killed_at = eventually("the rebuild to be in the middle", async || {
            let events: (String, i64) = sqlx::query_as("SELECT state, events FROM ops.rebuilds WHERE org = $1")
                .bind(tenant.id.uuid())
                .fetch_one(&mut database)
                .await
                .unwrap();
            assert_ne!(events.0, "done", "it was over too soon");
            (events.1 > i64::try_from(RECORDS / part).unwrap()).then_some(events.1)
        })
        .await;
        cluster.workers[0].kill9();
        // Queries see nothing of it.
        let seen = cluster.client.get(&tenant.key, &tenant.path("records?limit=1")).await.expect(200);
        assert_eq!(seen.body["data"].as_array().unwrap().len(), 1);
        assert_eq!(versions(&mut database, tenant.id).await, (1, vec![1, 2]));
        cluster.workers[0].start();
        cluster.workers[0].ready().await;
    }
    let said = rebuild(&cluster, &tenant, &[]).await.success();
    eprintln!("killed at {killed_at}: {said:?}");
    assert_eq!(versions(&mut database, tenant.id).await.0, 2);
    assert_eq!(digests(&mut database).await, before);
    let now = status(&cluster, &tenant).await;
    // No event was applied a second time for it.
    assert_eq!((&now["state"], &now["events"]), (&json!("done"), &now["total"]), "{now}");
    History::read(&cluster.log().await, tenant.id).await.assert_projected(&mut database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_is_parked_in_the_new_version_too_and_what_was_decided_is_decided() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("poisoned").await;
    let intruder = Intruder::of(&cluster).await;
    let (record, operator) = (fresh_record(), cluster.operator());
    let subject = format!("record.{record}");
    let mut seqs = intruder.orphans(tenant.id, record).await;
    let shown = until_parked(&cluster, &tenant, 3).await;
    goes_on(&cluster, &tenant, "beside").await;
    cluster.until_projected(&tenant).await;
    rebuild(&cluster, &tenant, &[]).await.success();
    let mut database = cluster.superuser().await;
    assert_eq!(versions(&mut database, tenant.id).await.0, 2);
    let rows = parked(&cluster, &tenant).await;
    assert_eq!(states(&rows, Pipeline::ReadModels), states(&shown, Pipeline::ReadModels));
    assert_eq!(rows[0]["reason"], shown[0]["reason"]);
    // The same messages, to the byte.
    let messages: Vec<(i32, i64, String, Vec<u8>)> = sqlx::query_as(
        "SELECT rm_version, seq, subject, message FROM ops.parked WHERE org_id = $1 ORDER BY seq, rm_version",
    )
    .bind(tenant.id.uuid())
    .fetch_all(&mut database)
    .await
    .unwrap();
    assert_eq!(messages.len(), 6);
    for pair in messages.chunks(2) {
        assert_eq!((pair[0].0, pair[1].0), (1, 2));
        assert!((&pair[0].1, &pair[0].2, &pair[0].3) == (&pair[1].1, &pair[1].2, &pair[1].3), "{pair:?}");
    }

    // New messages of the aggregate wait, and an operator's decisions are carried out.
    let last = commit(tenant.id, record, 4, vec![updated("v5")]);
    seqs.push(intruder.publish_signed(tenant.id, &subject, seqs[2], &last).await);
    until_parked(&cluster, &tenant, 4).await;
    for (place, seq) in seqs.iter().enumerate() {
        let seq = seq.to_string();
        let skip = ["park", "skip", "--org", &tenant.slug, "--seq", &seq, "--reason", "nobody made it", &subject];
        cluster.cli(operator, &skip).await.success();
        until_parked(&cluster, &tenant, seqs.len() - place - 1).await;
    }
    goes_on(&cluster, &tenant, "afterwards").await;
    cluster.until_projected(&tenant).await;
    let before = digests(&mut database).await;
    // A version that is built after all of that has the same result.
    rebuild(&cluster, &tenant, &[]).await.success();
    assert_eq!(parked(&cluster, &tenant).await, Vec::<Value>::new());
    assert_eq!(digests(&mut database).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_audit_log_lacks_is_a_reason_not_to_build_from_it() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("incomplete").await;
    let intruder = Intruder::of(&cluster).await;
    let subject = format!("record.{}", fresh_record());
    let seq = intruder.publish(tenant.id, &subject, 0, b"garbage".to_vec()).await.to_string();
    until_parked(&cluster, &tenant, Pipeline::ALL.len()).await;
    let said = rebuild(&cluster, &tenant, &[]).await.failure();
    assert!(said.stderr.contains("park list") && said.stderr.contains("lacks 1 messages"), "{said:?}");
    let now = status(&cluster, &tenant).await;
    assert_eq!(now["state"], "failed", "{now}");
    let mut database = cluster.superuser().await;
    assert_eq!(versions(&mut database, tenant.id).await.0, 1);
    goes_on(&cluster, &tenant, "all-the-same").await;

    // Given up in one pipeline alone, it would be missing from the built version.
    let skip = async |pipeline: &str| {
        let args =
            ["park", "skip", "--org", &tenant.slug, "--pipeline", pipeline, "--seq", &seq, "--reason", "x", &subject];
        cluster.cli(cluster.operator(), &args).await.success();
    };
    skip("audit").await;
    until_parked(&cluster, &tenant, Pipeline::ALL.len() - 1).await;
    let said = rebuild(&cluster, &tenant, &[]).await.failure();
    assert!(said.stderr.contains(&format!("gave up message {seq}")), "{said:?}");
    skip("read_models").await;
    skip("search").await;
    until_parked(&cluster, &tenant, 0).await;
    rebuild(&cluster, &tenant, &[]).await.success();
    assert_eq!(versions(&mut database, tenant.id).await.0, 2);
    goes_on(&cluster, &tenant, "afterwards").await;
}

// S3.27
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_27_one_tenants_projection_is_built_again_and_nobody_elses() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("again").await, cluster.tenant("not-again").await);
    for one in [&tenant, &other] {
        flood(&cluster, one, "many", 100).await;
        cluster.until_projected(one).await;
    }
    let mut database = cluster.superuser().await;
    let before = digests(&mut database).await;
    rebuild(&cluster, &tenant, &[]).await.success();
    assert_eq!(versions(&mut database, tenant.id).await.0, 2);
    assert_eq!(versions(&mut database, other.id).await, (1, vec![1]));
    rebuild(&cluster, &tenant, &["--drop-old"]).await.success();
    assert_eq!(digests(&mut database).await, before, "the same rows, of everybody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_goes_back_to_the_version_before_with_everything_since() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("back").await;
    let (log, mut database) = (cluster.log().await, cluster.superuser().await);
    flood(&cluster, &tenant, "before", 100).await;
    let said = rebuild(&cluster, &tenant, &["--roll-back"]).await.failure();
    assert!(said.stderr.contains("no version to go back to"), "{said:?}");
    cluster.until_projected(&tenant).await;
    rebuild(&cluster, &tenant, &[]).await.success();
    let id = tenant.id.to_string();
    for (round, shown) in [1, 2, 1].into_iter().enumerate() {
        // More than is applied while the organization waits.
        flood(&cluster, &tenant, &format!("since-{round}"), 1_000).await;
        let writers = write_on(&cluster, std::slice::from_ref(&tenant), &format!("while-{round}"), 50);
        // For all that have one, and for one.
        let flags =
            if round == 0 { &["rebuild", "--roll-back"][..] } else { &["rebuild", "--roll-back", "--org", &id] };
        let said = cluster.cli("", flags).await.success();
        assert!(said.stderr.contains("rolled back the read models of 1 organizations"), "{said:?}");
        writers.join_all().await;
        cluster.until_projected(&tenant).await;
        assert_eq!(versions(&mut database, tenant.id).await, (shown, vec![1, 2]));
        History::read(&log, tenant.id).await.assert_projected(&mut database).await;
    }
    let before = digests(&mut database).await;
    // A rebuild replaces the version that a roll-forward could have used.
    rebuild(&cluster, &tenant, &[]).await.success();
    assert_eq!(versions(&mut database, tenant.id).await, (3, vec![1, 3]));
    rebuild(&cluster, &tenant, &["--drop-old"]).await.success();
    assert_eq!(versions(&mut database, tenant.id).await, (3, vec![3]));
    assert_eq!(digests(&mut database).await, before);
    let versioned: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name)::text FROM information_schema.columns
        WHERE column_name = 'rm_version' UNION SELECT 'ops.checkpoints'",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    let of_search: Vec<&str> = ReadModel::all_of(Pipeline::Search).map(|model| model.table).collect();
    for table in versioned.iter().filter(|table| *table == "ops.parked" || !of_search.contains(&table.as_str())) {
        let column = if table == "ops.checkpoints" { "pipeline = 'read_models' AND version" } else { "rm_version" };
        let left = format!("SELECT count(*) FROM {table} WHERE org_id = $1 AND {column} <> 3");
        let left: i64 =
            sqlx::query_scalar(AssertSqlSafe(left)).bind(tenant.id.uuid()).fetch_one(&mut database).await.unwrap();
        assert_eq!(left, 0, "{table}");
    }
    rebuild(&cluster, &tenant, &["--roll-back"]).await.failure();
    rebuild(&cluster, &tenant, &[]).await.success();
    assert_eq!(versions(&mut database, tenant.id).await, (4, vec![3, 4]));
    goes_on(&cluster, &tenant, "afterwards").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_names_every_row_that_is_not_what_the_events_say() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("drifted").await, cluster.tenant("other").await);
    flood(&cluster, &tenant, "many", 1_000).await;
    let made = cluster.client.command(&tenant, "one", &create("one")).await.expect(201);
    for one in [&tenant, &other] {
        cluster.until_projected(one).await;
    }
    let said = rebuild(&cluster, &tenant, &["--verify", "--json"]).await.success();
    let found = said.json();
    assert_eq!(found["differences"], 0, "{found}");
    let sums = found["data"].as_array().unwrap();
    assert_eq!(sums.len(), ReadModel::all_of(Pipeline::ReadModels).count(), "{found}");
    assert!(sums.iter().all(|sum| sum["key"] == Value::Null && sum["shown"] == sum["built"]), "{found}");
    let mut database = cluster.superuser().await;
    assert_eq!(versions(&mut database, tenant.id).await, (1, vec![1]), "what was compared with is gone");

    // Manual changes in the tables: a value, a deleted row, an invented one, and a slug.
    let record: orgstream_events::RecordId = made.text("id").parse().unwrap();
    let plant = async |database: &mut PgConnection, statement: &str, id: Uuid| {
        let done = sqlx::query(AssertSqlSafe(statement.to_owned())).bind(id).execute(database).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
    };
    plant(
        &mut database,
        "UPDATE rm.records SET data = '{\"name\": \"other\"}', kind = 'trace' WHERE id = $1",
        record.uuid(),
    )
    .await;
    plant(&mut database, "DELETE FROM rm.members WHERE org_id = $1", tenant.id.uuid()).await;
    plant(&mut database, "INSERT INTO rm.slugs (org_id, rm_version, slug) VALUES ($1, 1, 'stolen')", tenant.id.uuid())
        .await;
    let planted = digests(&mut database).await;
    let said = rebuild(&cluster, &tenant, &["--verify"]).await.failure();
    assert!(said.stdout.contains(&format!("rm.records {record} differs in data, kind")), "{said:?}");
    assert!(said.stdout.contains("rm.slugs stolen should not be there"), "{said:?}");
    assert!(
        said.stdout.lines().any(|line| line.starts_with("rm.members mem_") && line.ends_with("is missing")),
        "{said:?}"
    );
    assert!(said.stderr.contains("3 rows of"), "{said:?}");
    assert_eq!(said.stdout.matches("differs").count(), 1, "{said:?}");
    assert_eq!(digests(&mut database).await, planted, "comparing changes nothing");

    // A rebuild repairs it.
    rebuild(&cluster, &tenant, &[]).await.success();
    let said = rebuild(&cluster, &tenant, &["--verify"]).await.success();
    assert!(!said.stdout.contains("differs"), "{said:?}");
    assert_eq!(versions(&mut database, tenant.id).await, (4, vec![1, 4]), "the version to go back to is kept");
    History::read(&cluster.log().await, tenant.id).await.assert_projected(&mut database).await;
    rebuild(&cluster, &other, &["--verify"]).await.success();
}
