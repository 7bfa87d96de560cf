//! Checks that cannot be circumvented: every table and column is compared, a filter uses the events' headers and not
//! the columns beside them, and what is missing from a bundle has a reason or makes it incomplete.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use orgstream_events::PLATFORM_ORG;
use orgstream_projections::{OWNERSHIP, READ_MODELS, ReadModel};
use orgstream_verifier::{Payload, decode_payloads, encode_payloads};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    audit_attacks::{disarm, edit, execute},
    auditing::{Auditing, copy, remake_manifest},
    cluster::{Cluster, ClusterOptions, Said, Tenant, create, eventually},
    support::database,
};

/// Tables with rows of organizations that are no read model, and the reason why their rows need not follow from the
/// events.
const NO_READ_MODEL: [(&str, &str); 14] = [
    ("audit.events", "is the log: `audit::check` compares every column"),
    ("audit.heads", "the edge of its tree: compared by `audit::check`"),
    ("audit.tiles", "its tree: compared by `audit::check`"),
    ("audit.checkpoints", "its signed heads: compared by `audit::check`"),
    ("audit.signatures", "what was signed: compared with the keys of the log"),
    ("ops.plans", "knows no versions: compared with the replay by itself"),
    ("ops.checkpoints", "how far the pipelines are here"),
    ("ops.rebuilds", "what is being built here"),
    ("ops.search_indexes", "which search target has an index"),
    ("ops.search_writers", "who wrote an index last, in a search target"),
    ("ops.drift", "what a comparison found here"),
    ("ops.mails", "what is still to be sent"),
    ("ops.key_uses", "what API processes saw"),
    ("ops.audit_webhooks", "how far a collector is"),
];

#[tokio::test]
async fn every_table_and_every_column_of_a_read_model_is_declared() {
    let database = database().await;
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT table_schema || '.' || table_name, column_name, udt_name FROM information_schema.columns
        WHERE table_schema IN ('rm', 'ops', 'audit', 'identity', 'public', 'app')",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let mut tables: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    for (table, column, column_type) in &columns {
        tables.entry(table).or_default().insert(column, column_type);
    }
    for (table, columns) in &tables {
        let declared = READ_MODELS.iter().find(|model| model.table == *table);
        let is_versioned = columns.contains_key("rm_version");
        assert_eq!(declared.is_some(), is_versioned, "{table} is a read model that no file declares, or none at all");
        let Some(model) = declared else {
            let is_known = NO_READ_MODEL.iter().any(|(known, _)| known == table);
            assert!(!columns.contains_key("org_id") || is_known, "{table}: is it compared with anything?");
            continue;
        };
        let named: BTreeSet<&str> = OWNERSHIP.iter().chain(model.columns).chain(model.local).copied().collect();
        assert_eq!(columns.keys().copied().collect::<BTreeSet<_>>(), named, "the columns of {table}");
        for (column, column_type) in columns {
            // The past state has the same format as everywhere else, and shows no secret.
            assert_eq!(*column_type == "timestamptz", column.ends_with("_at"), "{table}.{column}");
            let is_kept_back = model.inward.contains(column) || !model.from_events;
            assert!(*column_type != "bytea" || is_kept_back, "{table}.{column} would be shown");
        }
        assert!(model.inward.iter().all(|column| model.columns.contains(column)), "{table}");
    }
    let declared: BTreeSet<&str> = READ_MODELS.iter().map(|model| model.table).collect();
    assert_eq!(declared.len(), tables.values().filter(|columns| columns.contains_key("rm_version")).count());
}

/// The read models with rows of the platform alone.
const OF_THE_PLATFORM: [&str; 4] = ["kinds", "plans", "catalog_items", "catalog_versions"];

/// An organization with a row in every read model.
async fn with_everything(cluster: &Cluster) -> Tenant {
    let tenant = cluster.tenant("whole").await;
    let client = &cluster.client;
    let model = client.command(&tenant, "record", &create("a record")).await.expect(201).body["id"].clone();
    let benchmark =
        json!({"kind": "benchmark", "data": {"name": "B", "task": "generation", "metrics": [{"name": "accuracy"}]}});
    let benchmark =
        client.post(&tenant.owner, &tenant.path("records"), Some("benchmark"), &benchmark).await.expect(201);
    // It is in views, with a greatest value.
    let data = json!({"model": model, "benchmark": benchmark.body["id"], "status": "completed", "score": 0.5,
        "finished_at": "2026-03-01T12:00:00Z"});
    let evaluation = json!({"kind": "evaluation", "data": data});
    client.post(&tenant.owner, &tenant.path("records"), Some("evaluation"), &evaluation).await.expect(201);
    let (operator, platform) = (cluster.operator(), format!("/v1/organizations/{PLATFORM_ORG}/records"));
    let draft = json!({"kind": "model", "data": {"name": "global"}});
    let item = client.post(operator, &platform, Some("draft"), &draft).await.expect(201).body["id"].clone();
    let item = item.as_str().unwrap();
    let publish = client.request(reqwest::Method::POST, &format!("/v1/catalog-items/{item}/publish"), operator);
    assert_eq!(publish.send().await.unwrap().status(), 200);
    let choose = client.request(reqwest::Method::PUT, &tenant.path(&format!("catalog/{item}/choice")), &tenant.owner);
    assert_eq!(choose.json(&json!({"choice": "pinned"})).send().await.unwrap().status(), 200);
    let space = json!({"type": "create_record", "kind": "space", "data": {"name": "night"}});
    client.command(&tenant, "space", &space).await.expect(201);
    let trace = json!({"kind": "trace", "data": {"name": "t", "started_at": "2026-03-01T12:00:00Z"}});
    let trace = client.post(&tenant.owner, &tenant.path("records"), Some("trace"), &trace).await.expect(201);
    let charge = json!({"type": "charge_usage", "meter": "tokens", "amount": "2"});
    client.command(&tenant, "charge", &charge).await.expect(200);
    let of_it = json!({"kind": "trace_evaluation", "data": {"trace": trace.body["id"], "score": 1}});
    client.post(&tenant.owner, &tenant.path("records"), Some("judged"), &of_it).await.expect(201);
    for (path, body) in [
        ("invitations", json!({"email": "guest@whole.example", "role": "viewer"})),
        ("roles", json!({"name": "reader", "permissions": ["records:read"]})),
        ("domains", json!({"domain": "whole.example"})),
        ("sso-connections", json!({"name": "Main", "issuer": "https://whole.okta.example", "audience": "orgstream"})),
    ] {
        client.post(&tenant.owner, &tenant.path(path), Some(path), &body).await.expect(201);
    }
    let glass = json!({"reason": "ticket 4711: looked at in a test", "approver": "bob", "expires_in_seconds": 60});
    client.post(cluster.operator(), &tenant.path("break-glass"), None, &glass).await.expect(201);
    cluster.cli(cluster.operator(), &["plan", "--org", &tenant.slug, "enterprise"]).await.success();
    cluster.until_projected(&tenant).await;
    tenant
}

async fn verify(cluster: &Cluster, org: &str) -> Said {
    cluster.cli("", &["replay", "--verify", "--org", org]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_of_any_read_model_is_found_and_each_can_be_seen_as_it_was() {
    let alone = vec!["--break-glass-approval".to_owned(), "off".to_owned()];
    let cluster = Cluster::start(ClusterOptions { serve: alone, ..ClusterOptions::default() }).await;
    let tenant = with_everything(&cluster).await;
    let (org, mut database) = (tenant.id.to_string(), cluster.superuser().await);
    verify(&cluster, &org).await.success();
    verify(&cluster, &PLATFORM_ORG.to_string()).await.success();

    // The past state: all of them, and no internal column.
    let state = async |at: &str, name: &str| {
        let path = tenant.path(&format!("audit/state?at={at}&projection={name}"));
        let answer = cluster.client.request(reqwest::Method::GET, &path, &tenant.owner).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let size = cluster.client.get(&tenant.owner, &tenant.path("audit/events?limit=1")).await.expect(200);
    let last = size.body["data"][0]["idx"].as_u64().unwrap();
    for name in ReadModel::names() {
        let (status, text) = state(&last.to_string(), name).await;
        assert_eq!((status, text.lines().count() > 1), (200, !OF_THE_PLATFORM.contains(&name)), "{name}: {text}");
        for secret in ["_mac", "token_command", "user_id", "fingerprint"] {
            assert!(!text.lines().skip(1).any(|line| line.contains(secret)), "{name}: {secret} in {text}");
        }
    }
    let (_, then) = state("2", "organization").await;
    let (_, now) = state(&last.to_string(), "organization").await;
    assert!(then.contains("\"plan\":\"standard\"") && now.contains("\"plan\":\"enterprise\""), "{then} {now}");
    let (_, role) = state(&last.to_string(), "roles").await;
    assert!(role.contains("\"id\":\"role_") && role.contains("Z\""), "as everywhere: {role}");
    // A future state cannot be shown.
    for future in ["2999-01-01T00:00:00Z".to_owned(), (last + 1_000).to_string()] {
        let (status, text) = state(&future, "records").await;
        assert_eq!((status, text.contains("/at")), (422, true), "{text}");
    }
    let (status, text) = state("1", "secrets").await;
    assert_eq!((status, text.contains("sso_connections")), (400, true), "{text}");

    // Each table, by one column of one row.
    // Which views a version took up is what a replay is made by: an edit there is found by the rows of the views.
    let edited = || READ_MODELS.iter().copied().filter(|model| model.from_events && model.name != "kind_views");
    for model in edited() {
        let org = if OF_THE_PLATFORM.contains(&model.name) { PLATFORM_ORG } else { tenant.id };
        let column = match model.name {
            "slugs" => "slug = slug || 'x'",
            "postings" | "search_statistics" => "length = length + 1",
            "view_rows" => "records = records + 1",
            "view_values" => "rank = rank + 1",
            _ => "seq = seq + 1",
        };
        let table = model.table;
        let one =
            format!("UPDATE {table} SET {column} WHERE ctid = (SELECT ctid FROM {table} WHERE org_id = $1 LIMIT 1)");
        assert_eq!(execute(&mut database, &one, org.uuid()).await, 1, "{table} has no row");
    }
    let found = verify(&cluster, &org).await.failure().stdout;
    let kinds = verify(&cluster, &PLATFORM_ORG.to_string()).await.failure().stdout;
    for model in edited() {
        let said = if OF_THE_PLATFORM.contains(&model.name) { &kinds } else { &found };
        assert!(said.contains(&format!("! {} ", model.table)), "{}: {said}", model.table);
    }
    assert!(!found.contains("ops.plans"), "{found}");
    execute(&mut database, "UPDATE ops.plans SET plan = 'standard' WHERE org_id = $1", tenant.id.uuid()).await;
    assert!(verify(&cluster, &org).await.failure().stdout.contains("ops.plans"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_beside_the_bytes_hides_nothing_and_is_found() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("edited").await;
    let (org, name) = (tenant.id.uuid(), tenant.id.to_string());
    audited.records(&tenant, (0..300).map(|number| format!("signed {number}"))).await;
    audited.head(&tenant).await;
    let whole = eventually("a head over all events", async || {
        let said = verify(&audited.cluster, &name).await.success();
        said.stdout.contains("all three say the same, and every event is signed").then_some(said)
    });
    assert!(whole.await.stdout.contains("; 0 events are behind it"));
    audited.stop_signing();
    audited.records(&tenant, (0..7).map(|number| format!("unsigned {number}"))).await;
    let cluster = &audited.cluster;
    // Heads that are older than the newest events count, and the events that they do not cover are reported.
    let said = verify(cluster, &name).await.success();
    let compared = cluster.cli("", &["replay", "--verify", "--json", "--org", &name]).await.success().json();
    let (signed, unsigned) = (compared["signed"].as_u64().unwrap(), compared["unsigned"].as_u64().unwrap());
    assert!(signed >= 303 && unsigned >= 7, "{compared}");
    assert_eq!(compared["audit"][0].as_u64(), Some(signed + unsigned), "{compared}");
    let told = format!("all three say the same; {unsigned} of {} events are not signed yet", signed + unsigned);
    assert!(said.stdout.contains(&told) && !said.stdout.contains("every event is signed"), "{said:?}");

    let mut database = cluster.superuser().await;
    disarm(&mut database).await;
    let listed = async |query: &str| {
        let answer =
            cluster.client.get(&tenant.owner, &tenant.path(&format!("audit/events?{query}"))).await.expect(200);
        let rows = answer.body["data"].as_array().unwrap().clone();
        rows.iter().map(|row| row["idx"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let exported = async |query: &str| {
        let text = audited.text(&tenant, &format!("audit/export?{query}")).await;
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| row["idx"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    // Each filter column, for the event at 50.
    let tests: [(&str, &str, String); 5] = [
        ("action", "'member.removed'", "action=record.created".to_owned()),
        ("outcome", "'denied'", "outcome=success".to_owned()),
        ("actor_id", "'mem_somebody_else'", format!("actor={}", tenant.key_id)),
        ("actor_type", "'system'", "actor_type=api_key".to_owned()),
        ("recorded_at", "now() - interval '9 years'", "since=2021-01-01T00:00:00Z".to_owned()),
    ];
    for (column, value, filter) in tests {
        let within = format!("{filter}&from_idx=49&to_idx=52");
        assert_eq!(listed(&within).await, [51, 50, 49], "{column}");
        let before: (String,) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT {column}::text FROM audit.events WHERE org_id = $1 AND idx = 50"
        )))
        .bind(org)
        .fetch_one(&mut database)
        .await
        .unwrap();
        let set = format!("UPDATE audit.events SET {column} = {value} WHERE org_id = $1 AND idx = 50");
        assert_eq!(execute(&mut database, &set, org).await, 1);
        assert_eq!(listed(&within).await, [51, 50, 49], "an edit of {column} hides an event from a list");
        assert_eq!(exported(&within).await, [49, 50, 51], "an edit of {column} hides an event from an export");
        let said = verify(cluster, &name).await.failure();
        assert!(
            said.stdout.contains(&format!("the columns of event 50 are not what its header says: {column}")),
            "{said:?}"
        );
        let back = format!("UPDATE audit.events SET {column} = '{}' WHERE org_id = $1 AND idx = 50", before.0);
        assert_eq!(execute(&mut database, &back, org).await, 1);
    }
    // Nor does a page end early, or an event match wrongly.
    execute(&mut database, "UPDATE audit.events SET action = 'member.removed' WHERE org_id = $1 AND idx = 5", org)
        .await;
    assert_eq!(listed("action=member.removed").await, Vec::<u64>::new());
    assert_eq!(listed("action=record.created&limit=100&to_idx=103").await.len(), 100);
    execute(&mut database, "UPDATE audit.events SET action = 'record.created' WHERE org_id = $1 AND idx = 5", org)
        .await;
    verify(cluster, &name).await.success();

    // Values derived from the events: the tree's tiles and edge, the place in the stream, the commit's fingerprint.
    for (alter, mend, what) in [
        (
            "UPDATE audit.tiles SET hashes = set_byte(hashes, 7, get_byte(hashes, 7) # 1) WHERE org_id = $1",
            "UPDATE audit.tiles SET hashes = set_byte(hashes, 7, get_byte(hashes, 7) # 1) WHERE org_id = $1",
            "the tile 0/0",
        ),
        (
            "UPDATE audit.heads SET frontier = set_byte(frontier, 9, get_byte(frontier, 9) # 1) WHERE org_id = $1",
            "UPDATE audit.heads SET frontier = set_byte(frontier, 9, get_byte(frontier, 9) # 1) WHERE org_id = $1",
            "the stored edge",
        ),
        (
            "UPDATE audit.heads SET next_idx = next_idx + 1 WHERE org_id = $1",
            "UPDATE audit.heads SET next_idx = next_idx - 1 WHERE org_id = $1",
            "the log says that it has",
        ),
        (
            "UPDATE audit.events SET seq = seq + 1000000 WHERE org_id = $1 AND idx = 309",
            "UPDATE audit.events SET seq = seq - 1000000 WHERE org_id = $1 AND idx = 309",
            "is not in the audit log",
        ),
        (
            "UPDATE audit.events SET fingerprint = sha256('x') WHERE org_id = $1 AND idx = 308",
            "UPDATE audit.events AS one SET fingerprint = done.fingerprint FROM ops.idempotency AS done
            WHERE one.org_id = $1 AND one.idx = 308 AND done.org_id = $1 AND done.command_id = one.command_id",
            "another fingerprint",
        ),
        (
            "UPDATE audit.checkpoints SET root = set_byte(root, 3, get_byte(root, 3) # 1) WHERE org_id = $1",
            "UPDATE audit.checkpoints SET root = set_byte(root, 3, get_byte(root, 3) # 1) WHERE org_id = $1",
            "is signed by no key",
        ),
    ] {
        assert!(execute(&mut database, alter, org).await > 0, "{alter}");
        let said = verify(cluster, &name).await.failure();
        assert!(said.stdout.contains(what), "{what}: {said:?}");
        assert!(execute(&mut database, mend, org).await > 0, "{mend}");
    }
    verify(cluster, &name).await.success();
    // After the newest head, the past is still compared with it.
    edit(&mut database, org, 17).await;
    let answer = cluster.client.get(&tenant.owner, &tenant.path("audit/state?at=309")).await;
    assert_eq!(answer.status, 500, "{answer:?}");
    // Without the index nothing would be detected, so nothing starts without it.
    sqlx::raw_sql("DROP INDEX audit.events_that_do_not_fit").execute(&mut database).await.unwrap();
    let said = cluster.cli("", &["check-config"]).await.failure();
    assert!(said.stdout.contains("events_that_do_not_fit"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_is_missing_without_evidence_makes_a_bundle_incomplete() {
    let mut audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("marked").await;
    audited.records(&tenant, (0..5).map(|number| format!("true {number}"))).await;
    audited.witnessed_head(&tenant, "head.checkpoint").await;
    audited.export(&tenant, "bundle").await;
    audited.stop_signing();
    audited.stop_witness();
    let policy: &[&str] = &["--policy", "policy.txt"];
    audited.verify("bundle", policy).await.expect(0);
    // 0 to 2 are the organization, its owner and a key: the owner's and the key's payloads are withheld by their types.
    let mark = |name: &str, change: fn(usize, Payload) -> Payload| {
        let bundle = audited.path(name);
        copy(&audited.path("bundle"), &bundle);
        let path = bundle.join("tile/payloads/000.p/8");
        let payloads = decode_payloads(&fs::read(&path).unwrap(), 8).unwrap();
        let changed: Vec<Payload> = payloads.into_iter().enumerate().map(|(nth, one)| change(nth, one)).collect();
        fs::write(&path, encode_payloads(&changed)).unwrap();
        without_renderings(&bundle);
    };
    mark("same", |_, payload| payload);
    audited.verify("same", policy).await.expect(0);
    mark("erased", |_, _| Payload::Erased);
    let verdict = audited.verify("erased", policy).await.expect(20).naming(&["000.p/8 0", "erased"]);
    assert_eq!(verdict.report["payloads"], json!([0, 0, 8]));
    mark("withheld", |_, _| Payload::Withheld);
    audited.verify("withheld", policy).await.expect(20).naming(&["000.p/8 5", "withheld"]);
    mark("one-erased", |nth, payload| if nth == 1 { Payload::Erased } else { payload });
    audited.verify("one-erased", policy).await.expect(20).naming(&["000.p/8 1", "erased"]);
    mark("one-withheld", |nth, payload| if nth == 6 { Payload::Withheld } else { payload });
    let verdict = audited.verify("one-withheld", policy).await.expect(20);
    assert!(verdict.findings().iter().all(|finding| !finding.contains("/8 1 ") && !finding.contains("/8 2 ")));
    // A byte behind a mark belongs to no payload.
    mark("marked-and-there", |_, payload| payload);
    let path = audited.path("marked-and-there/tile/payloads/000.p/8");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] = b'W';
    fs::write(&path, bytes).unwrap();
    remake_manifest(&audited.path("marked-and-there"));
    audited.verify("marked-and-there", policy).await.expect(40);
}

/// The renderings contain the payloads, so a bundle that hides payloads leaves them out.
fn without_renderings(bundle: &Path) {
    for rendering in ["events.jsonl", "events.csv", "events.ocsf.jsonl"] {
        fs::remove_file(bundle.join(rendering)).unwrap();
    }
    remake_manifest(bundle);
}
