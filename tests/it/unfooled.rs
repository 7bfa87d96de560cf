//! For any change by a database superuser, in any table: verification detects it, or reports what it did not compare.

use std::fs;

use futures_util::future::join_all;
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, Commit, CommitDraft, CommitKeys, Context, Event, OrgId, Pipeline,
    RecordId, Salt, Timestamp,
};
use orgstream_transparency::LogSigner;
use reqwest::Method;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{
    audit_attacks::{edit, execute},
    auditing::{Auditing, HOST, copy, remake_manifest},
    cluster::{Cluster, ClusterOptions, Said, Tenant},
    parking::{Intruder, commit, created, fresh_record, goes_on, until_parked},
    support::COMMIT_KEYS,
};

async fn verify(cluster: &Cluster, tenant: &Tenant) -> Said {
    cluster.cli("", &["replay", "--verify", "--org", &tenant.id.to_string()]).await
}

/// A session without any restriction on its superuser.
async fn attacker(cluster: &Cluster) -> PgConnection {
    let mut database = cluster.superuser().await;
    sqlx::raw_sql("SET session_replication_role = replica").execute(&mut database).await.unwrap();
    database
}

async fn all(database: &mut PgConnection, org: OrgId, statements: &[&str]) {
    for sql in statements {
        execute(database, sql, org.uuid()).await;
    }
}

const BACK: &str = "UPDATE ops.checkpoints SET seq = 0 WHERE org_id = $1 AND active";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_says_where_it_ends_and_no_checkpoint_does() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenants = audited.cluster.tenants(6).await;
    for tenant in &tenants {
        audited.records(tenant, (0..5).map(|number| format!("true {number}"))).await;
        audited.head(tenant).await;
    }
    audited.stop_signing();
    let cluster = &audited.cluster;
    let said = verify(cluster, &tenants[0]).await.success();
    for what in ["all three say the same", "not compared: the log's key", "not compared: what follows from no event"] {
        assert!(said.stdout.contains(what), "{said:?}");
    }

    let forgeries: [(&[&str], &[&str]); 6] = [
        // Nothing is left of the audit log, and the checkpoints claim that it was always empty.
        (
            &[
                BACK,
                "DELETE FROM audit.signatures WHERE org_id = $1",
                "DELETE FROM audit.checkpoints WHERE org_id = $1",
                "DELETE FROM audit.events WHERE org_id = $1",
                "DELETE FROM audit.heads WHERE org_id = $1",
                "UPDATE rm.members SET role = 'viewer' WHERE org_id = $1",
            ],
            &["the checkpoint of audit is at 0", "is not in the audit log", "rm.members"],
        ),
        (
            &[
                "UPDATE ops.checkpoints SET seq = 0 WHERE org_id = $1 AND active AND pipeline = 'read_models'",
                r#"UPDATE rm.records SET data = '{"forged": true}' WHERE org_id = $1"#,
            ],
            &["the checkpoint of read_models is at 0", "rm.records"],
        ),
        (
            &[BACK, "UPDATE audit.events SET fingerprint = sha256('x'), seq = seq + 1 WHERE org_id = $1 AND idx = 7"],
            &["that the stream has not", "is not in the audit log"],
        ),
        (&["DELETE FROM ops.checkpoints WHERE org_id = $1"], &["audit has no checkpoint", "read_models has no checkpoint"]),
        (
            &["UPDATE ops.checkpoints SET seq = seq + 50 WHERE org_id = $1 AND active"],
            &["the checkpoint of audit is at", "and the stream ends at"],
        ),
        (
            &["INSERT INTO ops.parked SELECT org_id, 'audit', 1, 9999, 'record', 'x', 'ev.0.x.record.x', '', 'failed', 'x', 1, now(),
                true, 0 FROM ops.checkpoints WHERE org_id = $1 AND active AND pipeline = 'audit'"],
            &["ops.parked has a message of audit at"],
        ),
    ];
    let mut database = attacker(cluster).await;
    for (tenant, (forgery, _)) in tenants.iter().zip(&forgeries) {
        all(&mut database, tenant.id, forgery).await;
    }
    let said = join_all(tenants.iter().map(|tenant| verify(cluster, tenant))).await;
    for (said, (_, named)) in said.into_iter().zip(&forgeries) {
        let said = said.failure();
        for what in *named {
            assert!(said.stdout.contains(what), "{what}: {said:?}");
        }
        assert!(!said.stdout.contains("say the same"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_and_never_applied_is_missed() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("hidden").await;
    goes_on(&cluster, &tenant, "before").await;
    // The messages are not applied, and the checkpoints claim that they were.
    cluster.workers[0].stop().await;
    let mut last = String::new();
    for name in ["one", "two"] {
        let made = cluster.client.command(&tenant, name, &crate::cluster::create(name)).await.expect(201);
        last = made.text("position");
    }
    let seq = last.rsplit(':').next().unwrap();
    let passed = format!("UPDATE ops.checkpoints SET seq = {seq} WHERE org_id = $1 AND active");
    assert_eq!(execute(&mut attacker(&cluster).await, &passed, tenant.id.uuid()).await, Pipeline::ALL.len() as u64);
    let said = verify(&cluster, &tenant).await.failure();
    assert!(said.stdout.contains(&format!("the event at {last} is not in the audit log")), "{said:?}");
    assert!(said.stdout.contains("is missing"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_that_nobody_signed_is_named_and_the_rest_is_compared() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("junk").await;
    let intruder = Intruder::of(&cluster).await;
    let subject = format!("record.{}", fresh_record());
    let seq = intruder.publish(tenant.id, &subject, 0, b"\x00junk".to_vec()).await;
    until_parked(&cluster, &tenant, Pipeline::ALL.len()).await;
    goes_on(&cluster, &tenant, "beside").await;
    // It waits for an operator's decision, and that is the only difference.
    let waits = format!("at {}:{seq} is not in the audit log: it is parked", tenant.id);
    let said = verify(&cluster, &tenant).await.failure();
    assert!(said.stdout.contains(&waits) && said.stdout.matches("! ").count() == 1, "{said:?}");
    for pipeline in Pipeline::NAMES {
        let (org, seq) = (tenant.slug.clone(), seq.to_string());
        let args = ["park", "skip", "--org", &org, "--pipeline", pipeline, "--seq", &seq, "--reason", "x", &subject];
        cluster.cli(cluster.operator(), &args).await.success();
    }
    until_parked(&cluster, &tenant, 0).await;
    let said = verify(&cluster, &tenant).await.success();
    assert!(said.stdout.contains(&format!("at {}:{seq} was given up", tenant.id)), "{said:?}");
    assert!(said.stdout.contains(&format!("the message {}:{seq} is in no account", tenant.id)), "{said:?}");
    // And later messages are compared as usual.
    let forged = r#"UPDATE rm.records SET data = '{"forged": true}' WHERE org_id = $1"#;
    assert!(execute(&mut cluster.superuser().await, forged, tenant.id.uuid()).await > 0);
    assert!(verify(&cluster, &tenant).await.failure().stdout.contains("rm.records"));
    // A parked message that is not in the tables is reported as parked.
    let record = fresh_record();
    let orphans = intruder.orphans(tenant.id, record).await;
    until_parked(&cluster, &tenant, 3).await;
    let said = verify(&cluster, &tenant).await.failure();
    assert!(said.stdout.contains(&format!("the message {}:{} is parked", tenant.id, orphans[0])), "{said:?}");
}

/// A state of the past: the status, and the lines.
async fn state(audited: &Auditing, tenant: &Tenant, at: &str) -> (u16, Vec<Value>) {
    let path = tenant.path(&format!("audit/state?at={at}"));
    let answer = audited.cluster.client.request(Method::GET, &path, &tenant.key).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_what_the_pinned_key_signed_and_events_say_when_it_was() {
    let mut audited = Auditing::start_pinned().await;
    audited.start_signing();
    let cluster = &audited.cluster;
    let [timed, forged, resigned] =
        [cluster.tenant("timed").await, cluster.tenant("forged").await, cluster.tenant("resigned").await];
    for tenant in [&timed, &forged, &resigned] {
        audited.records(tenant, (0..20).map(|number| format!("true {number}"))).await;
        audited.head(tenant).await;
    }
    audited.stop_signing();
    let mut database = attacker(&audited.cluster).await;
    let (status, lines) = state(&audited, &timed, "6").await;
    assert_eq!((status, &lines[0]["size"], &lines[0]["keys_of"]), (200, &7.into(), &"pinned".into()), "{lines:?}");
    assert_eq!(lines[0]["unproven"].as_array().unwrap().len(), 2);

    // A column beside the event has its time, and is not trusted.
    let (_, lines) = state(&audited, &timed, "2").await;
    let at = lines[0]["recorded_at"].as_str().unwrap().to_owned();
    let (_, before) = state(&audited, &timed, &at).await;
    let moved = format!("UPDATE audit.events SET recorded_at = '{at}' WHERE org_id = $1 AND idx = 20");
    assert_eq!(execute(&mut database, &moved, timed.id.uuid()).await, 1);
    let (status, lines) = state(&audited, &timed, &at).await;
    assert_eq!((status, &lines), (200, &before));
    assert!(lines[0]["size"].as_u64().unwrap() < 20, "{lines:?}");
    // Nor a header, of any event: the tree over all of them is checked.
    edit(&mut database, timed.id.uuid(), 20).await;
    assert_eq!(state(&audited, &timed, &at).await.0, 500);

    // A forged head, under a signature line that was made for another.
    let org = forged.id.uuid();
    edit(&mut database, org, 6).await;
    let headers: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT header FROM audit.events WHERE org_id = $1 AND idx < 7 ORDER BY idx")
            .bind(org)
            .fetch_all(&mut database)
            .await
            .unwrap();
    let tree: orgstream_transparency::Frontier =
        headers.iter().map(|header| orgstream_transparency::leaf_hash(header)).collect();
    all(&mut database, forged.id, &["DELETE FROM audit.checkpoints WHERE org_id = $1 AND size <> 23"]).await;
    sqlx::query("UPDATE audit.checkpoints SET size = 7, root = $2 WHERE org_id = $1")
        .bind(org)
        .bind(tree.root().0.to_vec())
        .execute(&mut database)
        .await
        .unwrap();
    all(
        &mut database,
        forged.id,
        &[
            "DELETE FROM audit.signatures WHERE org_id = $1 AND size <> 23",
            "UPDATE audit.signatures SET size = 7 WHERE org_id = $1",
        ],
    )
    .await;
    assert_eq!(state(&audited, &forged, "6").await.0, 500);
    let served = audited.cluster.client.get(&forged.key, &forged.path("audit/checkpoint")).await;
    assert_eq!(served.status, 500, "{served:?}");

    // All of it signed anew, with a key that was added to the database.
    let thief = LogSigner::from_seed(HOST.parse().unwrap(), &[9; 32]);
    let org = resigned.id.uuid();
    edit(&mut database, org, 6).await;
    let headers: Vec<Vec<u8>> = sqlx::query_scalar("SELECT header FROM audit.events WHERE org_id = $1 ORDER BY idx")
        .bind(org)
        .fetch_all(&mut database)
        .await
        .unwrap();
    let tree: orgstream_transparency::Frontier =
        headers.iter().map(|header| orgstream_transparency::leaf_hash(header)).collect();
    let note = thief.named(format!("{HOST}/{}", resigned.id).parse().unwrap()).sign(tree.head());
    let line = note.signatures().first().unwrap();
    all(
        &mut database,
        resigned.id,
        &[
            "DELETE FROM audit.checkpoints WHERE org_id = $1 AND size <> 23",
            "DELETE FROM audit.signatures WHERE org_id = $1 AND size <> 23",
        ],
    )
    .await;
    for (sql, bytes) in [
        ("UPDATE audit.checkpoints SET root = $2 WHERE org_id = $1", tree.root().0.to_vec()),
        ("UPDATE audit.signatures SET key_id = $2 WHERE org_id = $1", line.key_id.to_vec()),
        ("UPDATE audit.heads SET frontier = $2 WHERE org_id = $1", tree.to_bytes()),
    ] {
        sqlx::query(AssertSqlSafe(sql)).bind(org).bind(bytes).execute(&mut database).await.unwrap();
    }
    sqlx::query("UPDATE audit.signatures SET line = $2 WHERE org_id = $1")
        .bind(org)
        .bind(line.to_string())
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("INSERT INTO ops.log_policies (vkey, witnesses) VALUES ($1, '')")
        .bind(thief.verifier().to_string())
        .execute(&mut database)
        .await
        .unwrap();
    assert_eq!(state(&audited, &resigned, "6").await.0, 500);
    let pin = audited.path("keys/log.vkey");
    let id = resigned.id.to_string();
    let args = ["replay", "--verify", "--org", &id, "--log-key", pin.to_str().unwrap()];
    let said = audited.cluster.cli("", &args).await.failure();
    assert!(said.stdout.contains("the head of 23 events is signed by no key of the log"), "{said:?}");
    let said = audited.cluster.cli("", &["rebuild", "--org", &id]).await.failure();
    assert!(said.stderr.contains("is signed by no key of the log"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_built_or_proven_from_an_audit_log_that_was_altered() {
    let mut audited = Auditing::start_pinned().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("altered").await;
    audited.records(&tenant, (0..300).map(|number| format!("true {number}"))).await;
    audited.head(&tenant).await;
    let (id, pin) = (tenant.id.to_string(), audited.path("keys/log.vkey"));
    let rebuild = audited.cluster.command("", &["rebuild", "--org", &id]);
    let said = rebuild.env("ORGSTREAM_LOG_KEY", pin.to_str().unwrap()).run().await.success();
    assert!(said.stderr.contains("303 are as the key that was given has signed them"), "{said:?}");
    audited.stop_signing();
    let mut database = attacker(&audited.cluster).await;
    edit(&mut database, tenant.id.uuid(), 17).await;
    let version = async |database: &mut PgConnection| -> i32 {
        let shown = "SELECT version FROM ops.checkpoints WHERE org_id = $1 AND pipeline = 'read_models' AND active";
        sqlx::query_scalar(shown).bind(tenant.id.uuid()).fetch_one(database).await.unwrap()
    };
    let before = version(&mut database).await;
    for flags in [&[][..], &["--verify"], &["--roll-back"]] {
        let said = audited.cluster.cli("", &[&["rebuild", "--org", &id], flags].concat()).await.failure();
        assert!(said.stderr.contains("event 17 is another"), "{flags:?}: {said:?}");
        audited.cluster.cli("", &["rebuild", "--org", &id, "--drop-old"]).await.success();
        if flags == ["--verify"] {
            break;
        }
    }
    assert_eq!(version(&mut database).await, before);
    // A request for a proof of it fails.
    let path = tenant.path("audit/events?from_idx=17&to_idx=18");
    let listed = audited.cluster.client.get(&tenant.key, &path).await.expect(200);
    let event = listed.body["data"][0]["event_id"].as_str().unwrap();
    let proof = audited.cluster.client.get(&tenant.key, &tenant.path(&format!("audit/events/{event}/proof"))).await;
    assert_eq!(proof.status, 500, "{proof:?}");
    assert!(!audited.export(&tenant, "altered").await, "an export of it says so");
}

fn at(org: OrgId, record: RecordId, recorded_at: Timestamp) -> Commit {
    let draft = CommitDraft {
        org,
        aggregate: AggregateId::Record(record),
        version_before: 0,
        command_id: CommandId::from_uuid(Uuid::now_v7()),
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: recorded_at,
        recorded_at,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events: vec![Event::Record(created("dated"))],
    };
    draft.seal(|| Salt([7; 32])).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_ran_ahead_and_a_retry_are_no_forgeries() {
    let mut audited = Auditing::start_unwitnessed().await;
    let [ahead, retried] = [audited.cluster.tenant("ahead").await, audited.cluster.tenant("retried").await];
    let intruder = Intruder::of(&audited.cluster).await;
    let now = i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    // Ten minutes ahead.
    let record = fresh_record();
    let early = at(ahead.id, record, Timestamp::from_unix_ms(now + 600_000));
    intruder.publish_signed(ahead.id, &format!("record.{record}"), 0, &early).await;
    goes_on(&audited.cluster, &ahead, "after").await;
    // Signed with a key that the workers get later: parked by all, from years ago, and applied by an operator's
    // decision.
    let record = fresh_record();
    let subject = format!("record.{record}");
    let keys = CommitKeys::single("second", [7; 32]).unwrap();
    let placement = audited.cluster.log().await.placement(retried.id).await.unwrap().unwrap();
    let full = format!("ev.{}.{}.{subject}", placement.shard, retried.id);
    let old = commit(retried.id, record, 0, vec![created("old")]).encode().unwrap();
    intruder.publish(retried.id, &subject, 0, keys.sign(&full, Some(0), &old).unwrap()).await;
    until_parked(&audited.cluster, &retried, Pipeline::ALL.len()).await;
    goes_on(&audited.cluster, &retried, "beside").await;
    let both = format!("{COMMIT_KEYS},second:{}", "07".repeat(32));
    audited.cluster.options.work = vec!["--commit-keys".to_owned(), both.clone()];
    audited.cluster.workers[0].stop().await;
    audited.cluster.add_worker().ready().await;
    for pipeline in Pipeline::NAMES {
        let args = ["park", "retry", "--org", &retried.slug, "--pipeline", pipeline, &subject];
        audited.cluster.cli(audited.cluster.operator(), &args).await.success();
    }
    until_parked(&audited.cluster, &retried, 0).await;
    goes_on(&audited.cluster, &retried, "afterwards").await;

    audited.start_signing();
    // An event applied late has a mark before it that records this; a wrong clock is noted.
    for (tenant, bundle, noted) in [(&ahead, "ahead", Some("a clock was wrong")), (&retried, "retried", None)] {
        audited.head(tenant).await;
        audited.export(tenant, bundle).await;
        let verdict = audited.verify(bundle, &[]).await.expect(10);
        let notes = verdict.report["notes"].as_array().unwrap();
        let is_noted = |noted: &str| notes.iter().any(|note| note.as_str().unwrap().contains(noted));
        assert!(noted.is_none_or(is_noted), "{:#}", verdict.report);
        let id = tenant.id.to_string();
        let compare = audited.cluster.command("", &["replay", "--verify", "--org", &id]);
        let said = compare.env("ORGSTREAM_COMMIT_KEYS", &both).run().await.success();
        assert!(said.stdout.contains("all three say the same, and every event is signed"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_of_a_bundle_are_compared_or_said_not_to_be() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("tables").await;
    audited.records(&tenant, ["one".to_owned()]).await;
    audited.head(&tenant).await;
    assert!(audited.export(&tenant, "bundle").await);
    let python = |bundle: &str| {
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/verify.py");
        let mut python = std::process::Command::new("python3");
        python.arg(script).arg(audited.path(bundle)).arg(audited.path("keys/log.vkey"));
        let output = python.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let change = |name: &str, change: &dyn Fn(&std::path::Path)| {
        let bundle = audited.path(name);
        copy(&audited.path("bundle"), &bundle);
        change(&bundle);
    };
    let edit_csv = |bundle: &std::path::Path| {
        let path = bundle.join("events.csv");
        let text = fs::read_to_string(&path).unwrap().replace("organization.created", "organization.creator");
        fs::write(path, text).unwrap();
    };
    change("edited", &|bundle| {
        edit_csv(bundle);
        remake_manifest(bundle);
    });
    audited.verify("edited", &[]).await.expect(40).naming(&["events.csv"]);
    let (code, said) = python("edited");
    assert_eq!(code, 10, "{said}");
    assert!(said.contains("not compared with the events: events.jsonl, events.csv, events.ocsf.jsonl"), "{said}");
    // A file with the name of a table, in no manifest.
    let manifest = |bundle: &std::path::Path, keep: &dyn Fn(&str) -> bool| {
        let path = bundle.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        manifest["files"].as_array_mut().unwrap().retain(|file| keep(file["path"].as_str().unwrap()));
        fs::write(path, manifest.to_string()).unwrap();
    };
    change("unlisted", &|bundle| {
        edit_csv(bundle);
        manifest(bundle, &|path| path != "events.csv");
    });
    audited.verify("unlisted", &[]).await.expect(40).naming(&["events.csv", "the manifest does not name it"]);
    change("empty", &|bundle| manifest(bundle, &|_| false));
    audited.verify("empty", &[]).await.expect(40);

    // An auditor that pinned the log's key does not trust another one of the same name.
    let made = audited.cluster.cli("", &["sign", "--keys", "other", "--new-key", HOST]).await.success();
    assert!(made.stdout.contains(HOST));
    let said = audited.cluster.cli("", &["sign", "--keys", "other", "--http", "127.0.0.1:0"]).await.failure();
    assert!(said.stderr.contains("were signed by another key"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_no_index_of_its_key_leads_to_is_found() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("twice").await;
    goes_on(&cluster, &tenant, "true").await;
    let id = tenant.id.to_string();
    cluster.cli("", &["rebuild", "--org", &id, "--verify"]).await.success();
    let mut database = attacker(&cluster).await;
    let ready = async |database: &mut PgConnection, is: bool| {
        let set = format!("UPDATE pg_index SET indisready = {is} WHERE indexrelid = 'rm.records_pkey'::regclass");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(database).await.unwrap();
    };
    ready(&mut database, false).await;
    let twice = "INSERT INTO rm.records SELECT (jsonb_populate_record(record, '{\"data\": {\"forged\": true}}')).*
        FROM rm.records AS record WHERE org_id = $1 LIMIT 1";
    let mut other = attacker(&cluster).await;
    assert_eq!(execute(&mut other, twice, tenant.id.uuid()).await, 1);
    ready(&mut database, true).await;
    let said = verify(&cluster, &tenant).await.failure();
    assert!(said.stdout.contains("rm.records (the table has 2 rows, and 1 of them are found"), "{said:?}");
    let said = cluster.cli("", &["rebuild", "--org", &id, "--verify"]).await.failure();
    assert!(said.stdout.contains("the table has 2 rows, and 1 of them are found"), "{said:?}");
}
