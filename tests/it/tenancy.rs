//! Shared and separate parts of tenants, as a whole: logs, configuration, roles, machines; and the effects of a failure
//! of the isolation.

use orgstream_events::{PLATFORM_ORG, Shard, UserId};
use reqwest::Method;
use serde_json::json;

use crate::{
    access::audited,
    api::{Answer, Api, OPERATOR, Org, Tail, model},
    cluster::{Cluster, ClusterOptions, create, eventually},
    history::History,
};

/// A user in several organizations, with a role in each.
async fn join(api: &Api, email: &str, org: &Org, role: &str) -> String {
    let user = UserId::from_login(api.issuer.url(), email);
    let body = json!({"email": email, "role": role, "user_id": user});
    let added = api.post(&org.owner, &org.path("members"), &body).await.expect(201);
    api.sees(org, added.header("stream-position")).await;
    added.header("location").to_owned()
}

// S1.19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_19_each_log_has_exactly_its_own() {
    let api = Api::start().await;
    for (slug, count) in [("ten", 10), ("three", 3)] {
        let org = api.org(slug).await;
        for number in 0..count {
            api.record(&org, &number.to_string()).await;
        }
        let created = audited(&api, &org.owner, &org.id, "record.created", count).await;
        assert!(created.iter().all(|event| event["org_id"] == json!(org.id)), "{created:?}");
    }
}

// S4.5
// S3.12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_5_a_role_is_of_one_org_and_changes_at_once() {
    let api = Api::start().await;
    let (a, b) = (api.org("roles-a").await, api.org("roles-b").await);
    let max = api.person("max@both.example");
    join(&api, "max@both.example", &a, "admin").await;
    let in_b = join(&api, "max@both.example", &b, "viewer").await;
    api.post(&max, &a.path("records"), &model("a")).await.expect(201);
    assert_eq!(api.post(&max, &b.path("records"), &model("b")).await.expect(403).problem(), "forbidden");

    let change = api.request(Method::PATCH, &in_b).bearer_auth(&b.owner).json(&json!({"role": "member"}));
    let changed = Answer::of(change).await.expect(200);
    api.sees(&b, changed.header("stream-position")).await;
    let since = tokio::time::Instant::now();
    while api.post(&max, &b.path("records"), &model("b")).await.status != 201 {
        assert!(since.elapsed().as_secs() < 1, "the old role still counts");
    }
    let change = api.request(Method::PATCH, &in_b).bearer_auth(&b.owner).json(&json!({"role": "viewer"}));
    let changed = Answer::of(change).await.expect(200);
    api.sees(&b, changed.header("stream-position")).await;
    let since = tokio::time::Instant::now();
    while api.post(&max, &b.path("records"), &model("b")).await.status != 403 {
        assert!(since.elapsed().as_secs() < 1, "the old role still counts");
    }
    api.post(&max, &a.path("records"), &model("a")).await.expect(201);
}

// S3.23
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_23_what_all_tenants_share_is_the_platforms_to_change() {
    let api = Api::start().await;
    let (a, b) = (api.org("shared-a").await, api.org("shared-b").await);
    let kind = json!({"kind": "probe", "title": "Probe", "schema": {"type": "object"}, "visibility": "private"});
    let made = api.post(OPERATOR, "/v1/kinds", &kind).await.expect(201);
    let probe = json!({"kind": "probe", "data": {}});
    for org in [&a, &b] {
        let read = api.get_at(&org.owner, "/v1/kinds/probe", made.header("stream-position")).await.expect(200);
        assert_eq!(read.json()["title"], "Probe");
        api.post(&org.owner, &org.path("records"), &probe).await.expect(201);
        for (method, path) in [(Method::PATCH, "/v1/kinds/probe"), (Method::DELETE, "/v1/kinds/probe")] {
            let change = api.request(method, path).bearer_auth(&org.owner).json(&json!({"title": "Mine"}));
            assert_eq!(Answer::of(change).await.expect(403).problem(), "forbidden");
        }
        // By the same command, and in its own organization, there is no such kind to retire.
        let retire = json!({"type": "retire_kind", "kind": "probe"});
        api.post(&org.owner, &org.path("commands"), &retire).await.expect(404);
    }
    let retire = api.request(Method::DELETE, "/v1/kinds/probe").bearer_auth(OPERATOR);
    Answer::of(retire).await.expect(200);
    for org in [&a, &b] {
        eventually("the retired kind to be refused", async || {
            (api.post(&org.owner, &org.path("records"), &probe).await.status != 201).then_some(())
        })
        .await;
    }
}

// S3.36
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_36_a_row_of_another_org_ends_the_request_and_gives_the_alarm() {
    const FIGURE: &str = "orgstream_isolation_failures_total";
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (mine, theirs) = (cluster.tenant("mixed-up").await, cluster.tenant("mixed-in").await);
    let client = &cluster.client;
    client.command(&theirs, "plan", &create("secret plan")).await.expect(201);
    for tenant in [&mine, &theirs] {
        cluster.until_projected(tenant).await;
    }
    let events = client.get(&mine.key, &mine.path("audit/events")).await.expect(200).body;
    let event = events["data"][0]["event_id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.api.metric(FIGURE).await, Some(0.0));
    // An attacker with the owner's rights replaces a row of one org by a row of the other.
    let mut owner = cluster.superuser().await;
    sqlx::raw_sql("ALTER TABLE audit.events DISABLE TRIGGER append_only").execute(&mut owner).await.unwrap();
    let mixed = sqlx::query(
        "UPDATE audit.events AS event SET header = wrong.header, payload = wrong.payload
        FROM audit.events AS wrong
        WHERE event.org_id = $1 AND event.idx = (SELECT max(idx) FROM audit.events WHERE org_id = $1)
            AND wrong.org_id = $2 AND wrong.action = 'record.created'",
    );
    let done = mixed.bind(mine.id.uuid()).bind(theirs.id.uuid()).execute(&mut owner).await.unwrap();
    assert_eq!(done.rows_affected(), 1);

    for path in ["audit/events".to_owned(), format!("audit/events/{event}")] {
        let refused = client.get(&mine.key, &mine.path(&path)).await.expect(500);
        assert_eq!(refused.text("code"), "internal");
        let text = refused.body.to_string();
        assert!(!text.contains("secret") && !text.contains(&theirs.id.to_string()), "{text}");
    }
    eventually("both rows to be counted", async || (cluster.api.metric(FIGURE).await? >= 2.0).then_some(())).await;
    assert_eq!(cluster.api.metric(FIGURE).await, Some(2.0));
    let log = cluster.api.log_text();
    let alarm = |line: &&str| line.contains("ERROR") && line.contains("a row of another organization was read");
    assert_eq!(log.lines().filter(alarm).count(), 2, "{log}");
    let path = format!("/v1/organizations/{PLATFORM_ORG}/audit/events?action=access.isolation_failed");
    let alarms = eventually("both alarms to be in the platform's log", async || {
        let found = client.get(cluster.operator(), &path).await.expect(200).body["data"].as_array().unwrap().clone();
        (found.len() >= 2).then_some(found)
    })
    .await;
    assert_eq!(alarms.len(), 2, "{alarms:?}");
    let data = json!({"bound": mine.id, "found": theirs.id, "table": "audit.events"});
    assert!(alarms.iter().all(|alarm| alarm["data"] == data), "{alarms:?}");
    assert_eq!(alarms[0]["outcome"], json!({"status": "failed", "code": "isolation_failed"}));
    client.get(&theirs.key, &theirs.path("audit/events")).await.expect(200);
}

// S1.26
// S3.37
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_26_the_stream_and_the_readers_of_one_org_have_no_event_of_another() {
    const EACH: usize = 20;
    // One shard, so that their messages lie side by side.
    let cluster = Cluster::start(ClusterOptions { shards: 1, ..ClusterOptions::default() }).await;
    let tenants = [cluster.tenant("stream-a").await, cluster.tenant("stream-b").await];
    let mut tails = Vec::new();
    for tenant in &tenants {
        for path in ["events/stream?from=0", "audit/stream?from_idx=0"] {
            let request = cluster.client.request(Method::GET, &tenant.path(path), &tenant.key);
            tails.push((tenant, Tail::open(request).await));
        }
    }
    for number in 0..EACH {
        for tenant in &tenants {
            cluster.client.command(tenant, &format!("n-{number}"), &create(&tenant.slug)).await.expect(201);
        }
    }
    for (tenant, mut tail) in tails {
        let mut records = 0;
        while records < EACH {
            let (_, event) = tail.next().await;
            assert_eq!(event["org_id"], json!(tenant.id), "{event}");
            records += usize::from(event["type"] == "record.created");
        }
    }
    // The subjects name the shard and the organization, and what is stored there names the same.
    let log = cluster.log().await;
    let mut subjects = Vec::new();
    for seq in 1..=log.shard_end(Shard(0)).await.unwrap() {
        subjects.extend(log.message(Shard(0), seq).await.unwrap().map(|message| message.subject));
    }
    assert!(subjects.iter().all(|subject| subject.starts_with("ev.0.org_")), "{subjects:?}");
    for tenant in &tenants {
        let history = History::read(&log, tenant.id).await;
        history.assert_sound();
        assert_eq!(history.records().len(), EACH);
        let prefix = format!("ev.0.{}.", tenant.id);
        let own = subjects.iter().filter(|subject| subject.starts_with(&prefix)).count();
        assert_eq!(own, history.commits.len());
    }
}

// S3.35
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_35_attempts_are_counted() {
    let alone = vec!["--break-glass-approval".to_owned(), "off".to_owned()];
    let cluster = Cluster::start(ClusterOptions { serve: alone, ..ClusterOptions::default() }).await;
    let (mine, theirs) = (cluster.tenant("counted").await, cluster.tenant("asked-for").await);
    for _ in 0..3 {
        cluster.client.get(&mine.key, &theirs.path("records")).await.expect(404);
    }
    // One for the actor's own organization, one for the platform.
    let name = "orgstream_access_events_total{fact=\"access.denied\",code=\"not_found\"}";
    eventually("the attempts to be counted", async || (cluster.api.metric(name).await? >= 6.0).then_some(())).await;
    let path = mine.path("records");
    let (operator, org) = (cluster.operator(), mine.slug.as_str());
    cluster.client.get(operator, &path).await.expect(404);
    cluster.cli(operator, &["break-glass", "--org", org, "--approver", "bob"]).await.failure();
    let why = ["break-glass", "--org", org, "--approver", "bob", "--reason", "ticket 4711 of acme"];
    let said = cluster.cli(operator, &why).await.success();
    assert!(said.stderr.contains("can be read until"), "{said:?}");
    cluster.client.get(operator, &path).await.expect(200);
    cluster.cli(operator, &["break-glass", "--org", org, "--close"]).await.success();
    cluster.client.get(operator, &path).await.expect(404);
    let said = cluster.cli(&mine.key, &["key", "check", &mine.key]).await.success();
    assert!(said.stdout.starts_with("live key "), "{said:?}");
    let wrong = format!("{}0", &mine.key[..mine.key.len() - 1]);
    let wrong = if wrong == mine.key { format!("{}1", &mine.key[..mine.key.len() - 1]) } else { wrong };
    let said = cluster.cli(&mine.key, &["key", "check", &wrong]).await.failure();
    assert!(said.stderr.contains("checksum") && !said.stderr.contains(&wrong), "{said:?}");
    let pattern = cluster.cli(&mine.key, &["key", "pattern"]).await.success();
    assert!(pattern.stdout.starts_with("os_(live|test)_"), "{pattern:?}");
}

/// The processes' memory in bytes, and their connections to the database.
async fn held(cluster: &Cluster) -> (u64, i64) {
    let memory = cluster.api.resident() + cluster.workers[0].resident();
    let count = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'app\\_%'");
    (memory, count.fetch_one(&mut cluster.superuser().await).await.unwrap())
}

// S3.5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_5_a_thousand_tenants_share_one_set_of_processes() {
    const AT_ONCE: usize = 16;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let all = &cluster;
    let found = async |first: usize, count: usize| {
        for chunk in (first..first + count).collect::<Vec<_>>().chunks(AT_ONCE) {
            let made = chunk.iter().map(|number| async move {
                let slug = format!("tenant-{number}");
                let owner = all.person(&format!("owner@{slug}.example"));
                let body = json!({"name": slug, "slug": slug});
                let made = all.client.post(&owner, "/v1/organizations", Some(&slug), &body).await.expect(201);
                let path = format!("/v1/organizations/{}/commands", made.text("id"));
                all.client.post(&owner, &path, Some("first"), &create("a")).await.expect(201);
            });
            futures_util::future::join_all(made).await;
        }
    };
    found(0, 100).await;
    let (memory, connections) = held(&cluster).await;
    found(100, 900).await;
    let last = cluster.person("owner@tenant-999.example");
    let path = "/v1/organizations/tenant-999/records";
    let reads = async || {
        let answer = cluster.client.get(&last, path).await;
        (answer.status == 200 && answer.body["data"].as_array().is_some_and(|rows| rows.len() == 1)).then_some(())
    };
    eventually("the last tenant to be served", reads).await;
    let (more_memory, more_connections) = held(&cluster).await;
    // No tenant has a connection, a stream or a task of its own: what is under way at once may have one. The growth of caches per
    // tenant is bounded, and small.
    assert!(
        more_connections <= connections + i64::try_from(AT_ONCE).unwrap(),
        "{connections} connections became {more_connections}"
    );
    let each = more_memory.saturating_sub(memory) / 900;
    assert!(each < 128 << 10, "every tenant takes {each} bytes: {memory} became {more_memory}");
}
