//! Attacks on an audit log that an operator, or an attacker with the operator's powers, could make on a running system,
//! and their results. The attacker has the database as its superuser, the streams, and the log's key, but not the
//! witness's key, nor the heads that customers kept.

use std::fs;

use orgstream_events::Header;
use orgstream_transparency::{Frontier, SignedNote, leaf_hash};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{
    auditing::{Auditing, MOMENT, copy, remake_manifest},
    cluster::{Tenant, eventually},
};

const POLICY: [&str; 2] = ["--policy", "policy.txt"];

pub(crate) async fn execute(database: &mut PgConnection, sql: &str, org: Uuid) -> u64 {
    sqlx::query(AssertSqlSafe(sql.to_owned())).bind(org).execute(database).await.unwrap().rows_affected()
}

/// Disables every trigger of the audit log: after that, nothing technical stops its owner.
pub(crate) async fn disarm(database: &mut PgConnection) {
    for table in ["events", "tiles", "checkpoints", "signatures"] {
        let disarm = format!("ALTER TABLE audit.{table} DISABLE TRIGGER USER");
        sqlx::query(AssertSqlSafe(disarm)).execute(&mut *database).await.unwrap();
    }
}

/// Changes the actor in a stored event, and the hash beside it: the row itself looks consistent.
pub(crate) async fn edit(database: &mut PgConnection, org: Uuid, idx: i64) {
    let header: Vec<u8> = sqlx::query_scalar("SELECT header FROM audit.events WHERE org_id = $1 AND idx = $2")
        .bind(org)
        .bind(idx)
        .fetch_one(&mut *database)
        .await
        .unwrap();
    let mut read: Header = rmp_serde::from_slice(&header).unwrap();
    read.actor.id = "mem_somebody_else_altogether".to_owned();
    let header = rmp_serde::to_vec_named(&read).unwrap();
    sqlx::query("UPDATE audit.events SET header = $3, leaf = $4, actor_id = $5 WHERE org_id = $1 AND idx = $2")
        .bind(org)
        .bind(idx)
        .bind(&header)
        .bind(leaf_hash(&header).0.as_slice())
        .bind(read.actor.id)
        .execute(&mut *database)
        .await
        .unwrap();
}

/// Makes frontier, tiles and heads consistent with the rows again, so that the log signs the changed content.
async fn rechain(database: &mut PgConnection, org: Uuid) {
    for table in ["signatures", "checkpoints", "tiles"] {
        execute(database, &format!("DELETE FROM audit.{table} WHERE org_id = $1"), org).await;
    }
    let count =
        "UPDATE audit.heads SET frontier = NULL, next_idx = (SELECT count(*) FROM audit.events WHERE org_id = $1)
        WHERE org_id = $1";
    assert_eq!(execute(database, count, org).await, 1);
}

/// A log with a witnessed head that its customer keeps, and triggers disabled.
async fn attacked(events: usize) -> (Auditing, Tenant, PgConnection) {
    let audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("attacked").await;
    audited.records(&tenant, (0..events).map(|number| format!("true {number}"))).await;
    audited.witnessed_head(&tenant, "kept.checkpoint").await;
    audited.export(&tenant, "before").await;
    audited.verify("before", &[&POLICY[..], &["--known", "kept.checkpoint"]].concat()).await.expect(0);
    let mut database = audited.cluster.superuser().await;
    disarm(&mut database).await;
    (audited, tenant, database)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_edited_is_found_by_its_bytes() {
    let (mut audited, tenant, mut database) = attacked(300).await;
    let org = tenant.id.uuid();
    // Row 1: the bytes alone.
    let edit_bytes = "UPDATE audit.events SET header = set_byte(header, 60, get_byte(header, 60) # 1)
        WHERE org_id = $1 AND idx = 17";
    assert_eq!(execute(&mut database, edit_bytes, org).await, 1);
    audited.export(&tenant, "bytes").await;
    audited.verify("bytes", &POLICY).await.expect(40).naming(&["tile/entries/000 17", "its bytes"]);
    assert_eq!(execute(&mut database, edit_bytes, org).await, 1, "and back");

    // (The three accounts agree again.)
    let compare = ["replay", "--verify", "--org", &tenant.id.to_string()];
    let compared = audited.cluster.cli("", &compare).await.success();
    assert!(compared.stdout.contains("all three say the same"), "{compared:?}");

    // Row 2: bytes and stored hash. The tree that was signed has the old one.
    edit(&mut database, org, 17).await;
    audited.export(&tenant, "hashes").await;
    let compared = audited.cluster.cli("", &compare).await.failure();
    assert!(compared.stdout.contains("another event than the stream"), "{compared:?}");
    audited.verify("hashes", &POLICY).await.expect(40).naming(&["tile/entries/000 17", "its bytes"]);
    // In the part of the log that has no full tile yet, it is the root.
    edit(&mut database, org, 290).await;
    audited.export(&tenant, "edge").await;
    audited.verify("edge", &POLICY).await.expect(40).naming(&["checkpoints/303", "was signed"]);
    // Nor does the signing process sign another head of such a log.
    let before = audited.head(&tenant).await;
    audited.records(&tenant, ["one more".to_owned()]).await;
    eventually("the signing process to notice", async || {
        let log = fs::read_to_string(audited.path("sign.log")).unwrap();
        log.contains("the audit log is not signed any more").then_some(())
    })
    .await;
    let path = tenant.path("audit/checkpoint");
    let now = audited.cluster.client.get(&tenant.key, &path).await.expect(200);
    assert_eq!(now.body.as_str().unwrap(), before.to_string());
    // The evidence can still be exported.
    let export = ["audit", "export", "--out", "unsigned"];
    let said = audited.cluster.cli(&tenant.key, &export).await.failure();
    assert!(said.stderr.contains("this is not what was signed"), "{said:?}");
    assert!(said.stderr.contains("its newest ones are not signed"), "{said:?}");
    audited.verify("unsigned", &POLICY).await.expect(40).naming(&["its bytes"]);
    audited.stop_signing();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_rewritten_and_signed_again_has_no_witness_and_no_past() {
    let (audited, tenant, mut database) = attacked(300).await;
    edit(&mut database, tenant.id.uuid(), 17).await;
    rechain(&mut database, tenant.id.uuid()).await;
    eventually("the log to be signed again, and the witness to refuse", async || {
        let log = fs::read_to_string(audited.path("sign.log")).unwrap();
        log.contains("a witness did not sign").then_some(())
    })
    .await;
    assert!(fs::read_to_string(audited.path("witness.log")).unwrap().contains("does not continue what was signed"));
    audited.export(&tenant, "rewritten").await;
    // An auditor that requires a witness or holds a head detects it.
    audited.verify("rewritten", &POLICY).await.expect(10).naming(&["0 of the pinned witnesses"]);
    let known = [&POLICY[..], &["--known", "kept.checkpoint"]].concat();
    audited.verify("rewritten", &known).await.expect(30).naming(&["history was rewritten"]);
    // Not covered: with neither, the rewritten log is indistinguishable from the true one.
    audited.verify("rewritten", &[]).await.expect(10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_newest_events_are_missed_by_whoever_has_seen_them() {
    let (audited, tenant, mut database) = attacked(20).await;
    let org = tenant.id.uuid();
    execute(&mut database, "DELETE FROM audit.events WHERE org_id = $1 AND idx >= 20", org).await;
    rechain(&mut database, org).await;
    eventually("the witness to be asked with less than it has seen", async || {
        let log = fs::read_to_string(audited.path("sign.log")).unwrap();
        log.contains("events are lost").then_some(())
    })
    .await;
    let compared = audited.cluster.cli("", &["replay", "--verify", "--org", &tenant.id.to_string()]).await.failure();
    assert!(compared.stdout.contains("is not in the audit log"), "{compared:?}");
    audited.export(&tenant, "shorter").await;
    let known = [&POLICY[..], &["--known", "kept.checkpoint"]].concat();
    audited.verify("shorter", &known).await.expect(30).naming(&["newest events were dropped"]);
    // The stream still has them: the audit log is no longer the stream.
    let history = crate::history::History::read(&audited.cluster.log().await, tenant.id).await;
    assert_eq!(history.events().count(), 23);
    // Not covered: events after the last head that any auditor holds.
    audited.verify("shorter", &[]).await.expect(10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_histories_cannot_both_have_the_witness() {
    let (audited, tenant, _) = attacked(20).await;
    // A reader is shown another log, validly signed with the log's own key.
    let fork = audited.path("fork");
    copy(&audited.path("before"), &fork);
    let entries = fork.join("tile/entries/000.p/23");
    let bytes = fs::read(&entries).unwrap();
    let headers = orgstream_verifier::decode_entries(&bytes, 23).unwrap();
    let changed: Vec<Vec<u8>> = headers
        .iter()
        .enumerate()
        .map(|(idx, header)| {
            let mut header: Header = rmp_serde::from_slice(header).unwrap();
            if idx == 22 {
                header.actor.id = "mem_for_this_reader_only".to_owned();
            }
            rmp_serde::to_vec_named(&header).unwrap()
        })
        .collect();
    fs::write(&entries, orgstream_verifier::encode_entries(changed.iter().map(Vec::as_slice)).unwrap()).unwrap();
    let leaves: Vec<_> = changed.iter().map(|header| leaf_hash(header)).collect();
    let hashes: Vec<u8> = leaves.iter().flat_map(|leaf| leaf.0).collect();
    fs::write(fork.join("tile/0/000.p/23"), hashes).unwrap();
    let tree: Frontier = leaves.into_iter().collect();
    for old in fs::read_dir(fork.join("checkpoints")).unwrap() {
        fs::remove_file(old.unwrap().path()).unwrap();
    }
    let mut note = audited.signer(&tenant).sign(tree.head());
    fs::write(fork.join("checkpoints/23"), note.to_string()).unwrap();
    for rendering in ["events.jsonl", "events.csv", "events.ocsf.jsonl"] {
        fs::remove_file(fork.join(rendering)).unwrap();
    }
    remake_manifest(&fork);
    // Alone it looks consistent; the witness's signature of the true head does not match it.
    audited.verify("fork", &[]).await.expect(10);
    audited.verify("fork", &POLICY).await.expect(10).naming(&["0 of the pinned witnesses"]);
    audited.verify("fork", &["--known", "kept.checkpoint"]).await.expect(30).naming(&["history was rewritten"]);
    let kept = SignedNote::parse(&fs::read(audited.path("kept.checkpoint")).unwrap()).unwrap();
    let witness = fs::read_to_string(audited.path("witness/witness.vkey")).unwrap().trim_end().parse().unwrap();
    assert_eq!(note.add_cosignatures(kept.signatures(), &[witness]), 0);
    // And the witness does not sign it: it has signed another root for that size.
    let url = fs::read_to_string(audited.path("policy.txt")).unwrap();
    let url = url.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    let body = format!("old 23\n\n{note}");
    let answer = reqwest::Client::new().post(format!("{url}/add-checkpoint")).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 409, "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_cannot_be_dated_back_behind_others() {
    let (mut audited, tenant, mut database) = attacked(20).await;
    audited.stop_signing();
    // Before it is signed, a new event is dated back to last year; everything is made consistent.
    audited.records(&tenant, ["new".to_owned()]).await;
    let header: Vec<u8> = sqlx::query_scalar("SELECT header FROM audit.events WHERE org_id = $1 AND idx = 23")
        .bind(tenant.id.uuid())
        .fetch_one(&mut database)
        .await
        .unwrap();
    let mut read: Header = rmp_serde::from_slice(&header).unwrap();
    let year = 365 * 86_400_000;
    read.recorded_at = orgstream_events::Timestamp::from_unix_ms(read.recorded_at.unix_ms() - year);
    let header = rmp_serde::to_vec_named(&read).unwrap();
    sqlx::query("UPDATE audit.events SET header = $2, leaf = $3 WHERE org_id = $1 AND idx = 23")
        .bind(tenant.id.uuid())
        .bind(&header)
        .bind(leaf_hash(&header).0.as_slice())
        .execute(&mut database)
        .await
        .unwrap();
    execute(&mut database, "UPDATE audit.heads SET frontier = NULL WHERE org_id = $1", tenant.id.uuid()).await;
    audited.start_signing();
    audited.witnessed_head(&tenant, "dated.checkpoint").await;
    audited.export(&tenant, "dated").await;
    audited.verify("dated", &POLICY).await.expect(40).naming(&["23", "recorded at", "before an event in front of it"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_gives_up_no_event() {
    let (audited, tenant, _) = attacked(5).await;
    let log = audited.cluster.log().await;
    let placement = log.placement(tenant.id).await.unwrap().unwrap();
    let administrator = audited.cluster.administrator().await;
    let delete = format!("$JS.API.STREAM.MSG.DELETE.EV_{}", placement.shard);
    let answer = administrator.request(delete, r#"{"seq": 1}"#.into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"]["description"].as_str().unwrap().contains("not permitted"), "{answer}");
    // Not covered, for the administrator alone: a whole stream can be deleted, and every process refuses to start on
    // the remainder.
    let history = crate::history::History::read(&log, tenant.id).await;
    history.assert_audited(&mut audited.cluster.superuser().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_key_forges_no_past() {
    let (audited, tenant, mut database) = attacked(20).await;
    // The thief signs a head over invented events for a size that the log has, in the log's own table.
    let other: Frontier = (0..23_u8).map(|number| leaf_hash(&[number])).collect();
    let note = audited.signer(&tenant).sign(other.head());
    let org = tenant.id.uuid();
    let root = other.root().0.to_vec();
    let twice = sqlx::query("INSERT INTO audit.checkpoints (org_id, size, root, origin) VALUES ($1, 23, $2, 'x')");
    let refused = twice.bind(org).bind(&root).execute(&mut database).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23505"), "one root for one size");
    // Put in place of the true one, it is signed by the log and matches nothing.
    sqlx::query("UPDATE audit.checkpoints SET root = $2 WHERE org_id = $1 AND size = 23")
        .bind(org)
        .bind(&root)
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("DELETE FROM audit.signatures WHERE org_id = $1 AND size = 23")
        .bind(org)
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("INSERT INTO audit.signatures (org_id, size, name, key_id, line) VALUES ($1, 23, $2, $3, $4)")
        .bind(org)
        .bind(note.signatures()[0].name.as_str())
        .bind(note.signatures()[0].key_id.as_slice())
        .bind(note.signatures()[0].to_string())
        .execute(&mut database)
        .await
        .unwrap();
    audited.export(&tenant, "forged").await;
    audited.verify("forged", &POLICY).await.expect(40).naming(&["checkpoints/23", "was signed"]);
    // The signing process detects it too, as soon as the log grows, and does not sign the continuation.
    audited.records(&tenant, ["one more".to_owned()]).await;
    let noticed = tokio::time::timeout(MOMENT, async {
        while !fs::read_to_string(audited.path("sign.log")).unwrap().contains("is not signed any more") {
            tokio::task::yield_now().await;
        }
    });
    noticed.await.expect("the signing process does not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn witnesses_of_the_operators_own_convince_whoever_did_not_pin_a_foreign_one() {
    let (mut audited, tenant, mut database) = attacked(20).await;
    fs::copy(audited.path("policy.txt"), audited.path("mine.txt")).unwrap();
    audited.stop_signing();
    audited.stop_witness();
    edit(&mut database, tenant.id.uuid(), 17).await;
    rechain(&mut database, tenant.id.uuid()).await;
    // A witness that has seen none of it, with a key of the operator's.
    audited.start_witness_in("accomplice", "policy.txt").await;
    audited.start_signing();
    audited.witnessed_head(&tenant, "accomplice.checkpoint").await;
    audited.export(&tenant, "accomplice-bundle").await;
    let bundle = "accomplice-bundle";
    let pinned = ["--policy", "mine.txt"];
    audited.verify(bundle, &pinned).await.expect(10).naming(&["0 of the pinned witnesses"]);
    let known = [&pinned[..], &["--known", "kept.checkpoint"]].concat();
    audited.verify(bundle, &known).await.expect(30).naming(&["history was rewritten"]);
    // Not covered: an auditor that takes the list of witnesses from the operator.
    audited.verify(bundle, &POLICY).await.expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_recorded_is_found_where_it_shows_and_nowhere_else() {
    let (audited, tenant, mut database) = attacked(20).await;
    let org = tenant.id.uuid();
    // A change without an event, where customers see it: it follows from no recorded event.
    let changed = "UPDATE rm.records SET data = '{\"model\": \"another\"}' WHERE org_id = $1 AND id = (
        SELECT id FROM rm.records WHERE org_id = $1 ORDER BY id LIMIT 1)";
    assert_eq!(execute(&mut database, changed, org).await, 1);
    let compared = audited.cluster.cli("", &["replay", "--verify", "--org", &tenant.id.to_string()]).await.failure();
    assert!(compared.stdout.contains("records"), "{compared:?}");
    // Not covered: a log proves nothing about what was never put into it.
    audited.export(&tenant, "silent").await;
    audited.verify("silent", &[&POLICY[..], &["--known", "kept.checkpoint"]].concat()).await.expect(0);
}
