//! The audit log from its reader's view: its events, proofs, exports, and the results of verification.

use std::{collections::BTreeSet, fs};

use orgstream_transparency::{
    AddCheckpoint, Checkpoint, Evidence, Frontier, Hash, Policy, SignedNote, TreeHead, leaf_hash, verify_consistency,
    verify_event,
};
use orgstream_verifier::{decode_entries, decode_payloads};
use serde_json::{Value, json};

use crate::{
    auditing::{Auditing, copy, flip, remake_manifest},
    cluster::{Cluster, ClusterOptions, Tenant, create, eventually},
};

async fn events(cluster: &Cluster, tenant: &Tenant, query: &str) -> Vec<Value> {
    let answer = cluster.client.get(&tenant.key, &tenant.path(&format!("audit/events?limit=100&{query}"))).await;
    answer.expect(200).body["data"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_19_each_audit_log_has_exactly_its_own_events() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (a, b) = (cluster.tenant("first").await, cluster.tenant("second").await);
    for (tenant, actions) in [(&a, 10), (&b, 3)] {
        for number in 0..actions {
            let key = format!("action-{number}");
            cluster.client.command(tenant, &key, &create(format!("{} {number}", tenant.slug))).await.expect(201);
        }
    }
    for (tenant, actions) in [(&a, 10), (&b, 3)] {
        cluster.until_projected(tenant).await;
        let made = events(&cluster, tenant, "action=record.created").await;
        assert_eq!(made.len(), actions);
        let all = events(&cluster, tenant, "").await;
        assert_eq!(all.len(), actions + 3, "the org, its owner, a key, and the records");
        for (nth, event) in all.iter().rev().enumerate() {
            assert_eq!((&event["org_id"], &event["idx"]), (&json!(tenant.id), &json!(nth)));
        }
        for event in &made {
            assert!(event["data"]["data"]["name"].as_str().unwrap().starts_with(&tenant.slug), "{event}");
            assert_eq!((&event["actor"]["type"], &event["actor"]["id"]), (&json!("api_key"), &json!(tenant.key_id)));
        }
        assert_eq!(events(&cluster, tenant, "from_idx=2&to_idx=4").await.len(), 2);
        assert_eq!(events(&cluster, tenant, "outcome=denied").await.len(), 0);
        assert_eq!(events(&cluster, tenant, "outcome=success&from_idx=3").await.len(), actions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_20_s2_25_s2_26_people_are_members_in_each_log_and_named_one_by_one() {
    const ORGS: usize = 20;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (consultant, colleague) = (cluster.person("ann@firm.example"), cluster.person("bob@firm.example"));
    let mut names = BTreeSet::new();
    for number in 0..ORGS {
        let found = json!({"name": format!("Customer {number}"), "slug": format!("customer-{number}")});
        let made = cluster
            .client
            .post(&consultant, "/v1/organizations", Some(&format!("found-{number}")), &found)
            .await
            .expect(201);
        let org = made.text("id");
        let path = |rest: &str| format!("/v1/organizations/{org}/{rest}");
        let record = create(format!("by ann in {number}"));
        let acted = eventually("the owner to be let in", async || {
            let answer = cluster.client.post(&consultant, &path("commands"), Some("one"), &record).await;
            (answer.status < 300).then_some(answer)
        })
        .await;
        let position = acted.text("position");
        let log = cluster.client.get_at(&consultant, &path("audit/events?limit=100"), &position).await.expect(200);
        let log = log.body["data"].as_array().unwrap().clone();
        assert!(log.iter().all(|event| event["org_id"] == json!(org)), "{log:?}");
        let created: Vec<_> = log.iter().filter(|event| event["type"] == "record.created").collect();
        assert_eq!(created.len(), 1, "only what was done here");
        let actor = &created[0]["actor"];
        assert_eq!(actor["type"], "member");
        assert!(
            names.insert(actor["id"].as_str().unwrap().to_owned()),
            "the same person is another member in each org"
        );

        if number == 0 {
            // Two users, two names; and the second has one of their own.
            let bob = orgstream_events::UserId::from_login(cluster.issuer.url(), "bob@firm.example");
            let add = json!({"email": "bob@firm.example", "role": "member", "user_id": bob});
            let added = cluster.client.post(&consultant, &path("members"), Some("bob"), &add).await.expect(201);
            let bob = added.headers["location"].to_str().unwrap().rsplit('/').next().unwrap().to_owned();
            let acted = eventually("the second member to be let in", async || {
                let body = create("by bob");
                let answer = cluster.client.post(&colleague, &path("commands"), Some("two"), &body).await;
                (answer.status < 300).then_some(answer)
            })
            .await;
            let at = acted.text("position");
            let path = path(&format!("audit/events?action=record.created&actor={bob}"));
            let log = cluster.client.get_at(&consultant, &path, &at).await.expect(200);
            let log = log.body["data"].as_array().unwrap().clone();
            assert_eq!(log.len(), 1);
            assert_eq!(log[0]["data"]["data"]["name"], "by bob");
            assert_ne!(Some(bob.as_str()), actor["id"].as_str());
        }
    }
    assert_eq!(names.len(), ORGS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_and_two_heads_are_proven_to_whoever_has_the_key() {
    let audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("proofs").await;
    audited.records(&tenant, (0..20).map(|number| format!("first {number}"))).await;
    let old = audited.witnessed_head(&tenant, "old.checkpoint").await;
    let old: Checkpoint = old.text().parse().unwrap();
    audited.records(&tenant, (0..300).map(|number| format!("second {number}"))).await;
    let new = audited.witnessed_head(&tenant, "new.checkpoint").await;
    let new: Checkpoint = new.text().parse().unwrap();
    let size = new.head().size;
    assert_eq!((old.head().size, size), (23, 323));

    // The tree is the one over the headers, recomputed independently.
    let mut headers =
        decode_entries(&audited.bytes(&tenant, "audit/tile/entries/000").await, 256).unwrap().concat_owned();
    let rest = audited.bytes(&tenant, "audit/tile/entries/001.p/67").await;
    headers.extend(decode_entries(&rest, 67).unwrap().concat_owned());
    let leaves: Vec<Hash> = headers.iter().map(|header| leaf_hash(header)).collect();
    let tree: Frontier = leaves.iter().copied().collect();
    assert_eq!(tree.head(), new.head());
    let tile: Vec<u8> = leaves[..256].iter().flat_map(|leaf| leaf.0).collect();
    assert_eq!(audited.bytes(&tenant, "audit/tile/0/000").await, tile);
    let root = orgstream_transparency::subtree_root(&leaves[..256]);
    assert_eq!(audited.bytes(&tenant, "audit/tile/1/000.p/1").await, root.0);

    // One event.
    let key = audited.log_key().named(new.origin().parse().unwrap());
    let witness = fs::read_to_string(audited.path("witness/witness.vkey")).unwrap().trim_end().parse().unwrap();
    let policy = Policy::new(key, vec![witness], 1).unwrap();
    let seventh = &events(&audited.cluster, &tenant, "from_idx=7&to_idx=8").await[0];
    let path = format!("audit/events/{}/proof", seventh["event_id"].as_str().unwrap());
    let file = audited.text(&tenant, &path).await;
    let proven = verify_event(&headers[7], file.as_bytes(), &policy).unwrap();
    assert_eq!(proven.index, 7);
    assert!(verify_event(&headers[8], file.as_bytes(), &policy).is_err());
    assert_eq!(Evidence::parse(file.as_bytes()).unwrap().to_string(), file);

    // Two heads.
    let text = audited.text(&tenant, &format!("audit/consistency?from=23&to={size}")).await;
    let proof = proof_of(&text);
    verify_consistency(old.head(), new.head(), &proof).unwrap();
    let other = TreeHead { root: Hash([7; 32]), ..old.head() };
    assert!(verify_consistency(other, new.head(), &proof).is_err());
    assert!(AddCheckpoint::parse(text.as_bytes()).is_ok());

    // A missing item is reported as missing, with a pointer to where it is.
    for (path, status) in [
        ("audit/tile/0/002", 404),
        ("audit/tile/9/000", 400),
        ("audit/tile/entries/00", 400),
        ("audit/checkpoint?size=17", 404),
        ("audit/checkpoint?at_least=100000", 400),
        ("audit/consistency?from=400", 400),
        ("audit/events/evt_01h455vb4pex5vsknk084sn02q/proof", 404),
    ] {
        let answer = audited.cluster.client.get(&tenant.key, &tenant.path(path)).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    let listed = audited.cluster.client.get(&tenant.key, &tenant.path("audit/checkpoints")).await.expect(200);
    assert_eq!((&listed.body["data"][0]["size"], &listed.body["data"][0]["witnesses"]), (&json!(size), &json!(1)));
    // What is withheld from readers is withheld here: a member's user id, and the hashes of secrets.
    let payloads = audited.bytes(&tenant, "audit/tile/payloads/000").await;
    let withheld = decode_payloads(&payloads, 256).unwrap();
    let withheld = withheld.iter().filter(|payload| **payload == orgstream_verifier::Payload::Withheld).count();
    assert_eq!(withheld, 2, "a member was added, a key was issued");
}

trait ConcatOwned {
    fn concat_owned(&self) -> Vec<Vec<u8>>;
}

impl ConcatOwned for Vec<&[u8]> {
    fn concat_owned(&self) -> Vec<Vec<u8>> {
        self.iter().map(|part| part.to_vec()).collect()
    }
}

/// The hashes of a proof of consistency, as text.
fn proof_of(text: &str) -> Vec<Hash> {
    text.lines().skip(1).take_while(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_is_verified_offline_and_every_byte_of_it_counts() {
    let mut audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("exported").await;
    audited.records(&tenant, (0..10).map(|number| format!("=cmd|' /C calc'!A{number}"))).await;
    audited.witnessed_head(&tenant, "known.checkpoint").await;
    audited.export(&tenant, "bundle").await;
    audited.records(&tenant, (0..600).map(|number| format!("later {number}"))).await;
    audited.witnessed_head(&tenant, "newer.checkpoint").await;
    // It continues where it was; the edge of then is gone.
    audited.export(&tenant, "bundle").await;
    let policy: &[&str] = &["--policy", "policy.txt"];
    let known = [policy, &["--known", "known.checkpoint", "--known", "newer.checkpoint"]].concat();
    // Without servers and network: only files and the key are left.
    audited.stop_signing();
    audited.stop_witness();
    let whole = audited.verify("bundle", &known).await.expect(0);
    assert_eq!(whole.report["notes"], json!([]), "{:#}", whole.report);
    assert_eq!((&whole.report["events"], &whole.report["payloads"]), (&json!(613), &json!([611, 2, 0])));
    audited.verify("bundle", &[]).await.expect(10).naming(&["no witness was asked for"]);

    let csv = fs::read_to_string(audited.path("bundle/events.csv")).unwrap();
    assert_eq!(csv.lines().count(), 614);
    for line in csv.lines() {
        assert!(!line.split(',').any(|cell| cell.starts_with('=') || cell.starts_with("\"=")), "{line}");
    }
    let ocsf = fs::read_to_string(audited.path("bundle/events.ocsf.jsonl")).unwrap();
    let created: Value = serde_json::from_str(ocsf.lines().last().unwrap()).unwrap();
    assert_eq!((&created["class_uid"], &created["type_uid"]), (&json!(3004), &json!(300_401)));
    assert_eq!(created["metadata"]["sequence"], 612);

    // One byte anywhere, with and without an updated manifest.
    let files: Vec<String> = list(&audited.path("bundle"));
    assert!(files.len() >= 14, "{files:?}");
    let counts = |file: &&String| match file.split_once('/') {
        // One checkpoint for all of them; the content of a manifest or a policy file is not signed.
        Some(("checkpoints", size)) => size == "613",
        None => file.starts_with("events"),
        Some(_) => true,
    };
    for file in files.iter().filter(counts) {
        for remade in [false, true] {
            let changed = audited.path("changed");
            let _ = fs::remove_dir_all(&changed);
            copy(&audited.path("bundle"), &changed);
            flip(&changed.join(file), 100);
            if remade {
                remake_manifest(&changed);
            }
            audited.verify("changed", policy).await.expect(40).naming(&[file]);
        }
    }
    // The event is named.
    let changed = audited.path("changed");
    let _ = fs::remove_dir_all(&changed);
    copy(&audited.path("bundle"), &changed);
    let path = changed.join("tile/entries/001");
    let bytes = fs::read(&path).unwrap();
    let first = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    flip(&path, 2 + first + 2 + 200);
    audited.verify("changed", policy).await.expect(40).naming(&["tile/entries/001 257", "its bytes"]);

    // Some of it is missing: what is there is proven, and reported as a part.
    let part = audited.path("part");
    copy(&audited.path("bundle"), &part);
    for file in ["tile/entries/001", "tile/payloads/001", "events.jsonl", "events.csv", "events.ocsf.jsonl"] {
        fs::remove_file(part.join(file)).unwrap();
    }
    remake_manifest(&part);
    audited.verify("part", policy).await.expect(20).naming(&["256 of 613 events"]);

    // Another log's key proves nothing here.
    audited.cluster.cli("", &["sign", "--keys", "other", "--new-key", "audit.test"]).await.success();
    let args = ["audit", "verify", "--bundle", "bundle", "--pin", "other/log.vkey"];
    let said = audited.cluster.cli("", &args).await.failure();
    assert!(said.stdout.starts_with("INVALID") && said.stdout.contains("not signed"), "{said:?}");
}

/// The files below a folder, by their paths in it.
fn list(dir: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                left.push(entry);
            } else {
                files.push(entry.strip_prefix(dir).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_was_away_or_forgot_nothing_is_caught_up_with() {
    let mut audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("away").await;
    audited.records(&tenant, (0..5).map(|number| format!("before {number}"))).await;
    audited.witnessed_head(&tenant, "before.checkpoint").await;
    audited.stop_witness();
    audited.records(&tenant, (0..5).map(|number| format!("meanwhile {number}"))).await;
    let alone = audited.head(&tenant).await;
    assert_eq!(alone.signatures().len(), 1, "the log does not wait for its witnesses");
    // It comes back on another port, so the signing process is reconfigured.
    audited.stop_signing();
    audited.start_witness().await;
    audited.start_signing();
    let note = audited.witnessed_head(&tenant, "after.checkpoint").await;
    assert_eq!(note.text(), alone.text(), "the same head, now with a signature more");
    assert!(SignedNote::parse(note.to_string().as_bytes()).is_ok());

    // A witness that has lost its state refuses to continue under its key.
    audited.stop_witness();
    fs::remove_file(audited.path("witness/witness.json")).unwrap();
    let args = ["witness", "--dir", "witness", "--log-key", "keys/log.vkey", "--http", "127.0.0.1:0"];
    let said = audited.cluster.cli("", &args).await.failure();
    assert!(said.stderr.contains("forgotten what it signed"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_comes_back_misses_nothing_of_the_audit_log() {
    let api = crate::api::Api::start().await;
    let org = api.org("collected").await;
    let (_, auditor) = api.key(&org, "auditor").await;
    let mut tail = api.tail(&auditor, &org.path("audit/stream?from_idx=0")).await;
    for expected in 0..3 {
        let (id, event) = tail.next().await;
        assert_eq!((id, &event["idx"]), (json!(expected.to_string()), &json!(expected)));
    }
    drop(tail);
    for number in 0..5 {
        api.record(&org, &format!("meanwhile {number}")).await;
    }
    let mut tail = api.tail_after(&auditor, &org.path("audit/stream"), "2").await;
    for expected in 3..8 {
        assert_eq!(tail.next().await.1["idx"], json!(expected));
    }
    let (_, viewer) = api.key(&org, "viewer").await;
    api.get(&viewer, &org.path("audit/stream")).await.expect(403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_is_seen_as_it_was_and_stays_as_it_is() {
    let audited = Auditing::start().await;
    let tenant = audited.cluster.tenant("past").await;
    let client = &audited.cluster.client;
    let made = client.command(&tenant, "make", &create("first name")).await.expect(201);
    let id = made.text("id");
    let update = json!({"type": "update_record", "id": id, "data": {"name": "second name"}});
    client.command(&tenant, "update", &update).await.expect(200);
    let archive = json!({"type": "archive_record", "id": id});
    client.command(&tenant, "archive", &archive).await.expect(200);
    audited.cluster.until_projected(&tenant).await;
    audited.head(&tenant).await;
    let at = async |at: &str, projection: &str| {
        let args = ["replay", "--org", &tenant.slug, "--at", at, "--projection", projection];
        let said = audited.cluster.cli(&tenant.key, &args).await.success();
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    // 0 to 2 founded it.
    for (idx, rows) in [("2", 0), ("3", 1), ("4", 1), ("5", 1)] {
        let seen = at(idx, "records").await;
        assert_eq!(seen.len(), 1 + rows, "{seen:?}");
        assert_eq!((&seen[0]["size"], &seen[0]["signed"]), (&json!(idx.parse::<u64>().unwrap() + 1), &json!(6)));
    }
    assert_eq!(at("3", "records").await[1]["data"]["name"], "first name");
    let second = at("4", "records").await;
    assert_eq!((&second[1]["data"]["name"], &second[1]["archived"]), (&json!("second name"), &json!(false)));
    assert_eq!(at("5", "records").await[1]["archived"], true);
    // At the end it equals the active version, and at the beginning there is nothing but the org.
    let shown = client.get(&tenant.key, &tenant.path(&format!("records/{id}"))).await.expect(200);
    assert_eq!(at("5", "records").await[1], shown.body);
    assert_eq!(at("0", "members").await.len(), 1);
    assert_eq!(at("0", "organization").await[1]["slug"], json!(tenant.slug));
    assert_eq!(at("1", "members").await.len(), 2);
    assert_eq!(at("2", "api_keys").await[1]["id"], json!(tenant.key_id));
    let time = second[0]["recorded_at"].as_str().unwrap().to_owned();
    assert_eq!(at(&time, "records").await.len(), 2);
    assert_eq!(at("2000-01-01T00:00:00Z", "organization").await[0]["size"], 0);
    // Other readers see no trace: neither rows nor versions are left.
    let mut database = audited.cluster.superuser().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM rm.records WHERE rm_version < 0")
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(left, 0);
    // A past that was edited is not shown.
    sqlx::raw_sql("ALTER TABLE audit.events DISABLE TRIGGER USER").execute(&mut database).await.unwrap();
    crate::audit_attacks::edit(&mut database, tenant.id.uuid(), 3).await;
    let answer = client.get(&tenant.key, &tenant.path("audit/state?at=4")).await;
    assert_eq!(answer.status, 500, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_hands_over_and_whoever_pinned_it_can_follow() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("rotated").await;
    audited.records(&tenant, ["under the first key".to_owned()]).await;
    let old = audited.head(&tenant).await;
    fs::write(audited.path("old.checkpoint"), old.to_string()).unwrap();
    fs::copy(audited.path("keys/log.vkey"), audited.path("pinned.vkey")).unwrap();
    audited.stop_signing();
    let handed = audited.cluster.cli("", &["sign", "--keys", "keys", "--hand-over"]).await.success();
    assert_ne!(handed.stdout, fs::read_to_string(audited.path("pinned.vkey")).unwrap());
    assert_eq!(handed.stdout, fs::read_to_string(audited.path("keys/log.vkey")).unwrap());
    audited.start_signing();
    audited.records(&tenant, ["under the second key".to_owned()]).await;
    let new = audited.head(&tenant).await;
    assert_ne!(old.signatures()[0].key_id, new.signatures()[0].key_id);
    audited.export(&tenant, "bundle").await;
    let verify = async |bundle: &str, pin: &str| {
        let args = ["audit", "verify", "--bundle", bundle, "--pin", pin, "--known", "old.checkpoint"];
        audited.cluster.cli("", &args).await
    };
    for pin in ["pinned.vkey", "keys/log.vkey"] {
        let said = verify("bundle", pin).await;
        assert!(said.stdout.starts_with("VALID, NOT WITNESSED"), "{pin}: {said:?}");
    }
    // Without the note one key does not lead to the other.
    let alone = audited.path("alone");
    copy(&audited.path("bundle"), &alone);
    fs::remove_dir_all(alone.join("handovers")).unwrap();
    remake_manifest(&alone);
    let said = verify("alone", "pinned.vkey").await;
    assert!(said.stdout.starts_with("INVALID") && said.stdout.contains("not signed"), "{said:?}");
}
