//! Messages that the audit log could not apply are visible in pages, exports, offline verification, replays, and past
//! states.

use std::fs;

use orgstream_events::{Fingerprint, Pipeline};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    auditing::{Auditing, Verdict},
    cluster::{Said, Tenant, create, seq_of},
    parking::{Intruder, commit, created, fresh_record, parked, until_parked, updated},
};

/// A reader of one tenant's log by every available interface.
struct Auditor<'a> {
    audited: &'a Auditing,
    tenant: &'a Tenant,
}

impl Auditor<'_> {
    /// All entries, the oldest first, by pages.
    async fn pages(&self) -> Vec<Value> {
        let (client, mut cursor, mut entries) = (&self.audited.cluster.client, String::new(), Vec::new());
        loop {
            let path = self.tenant.path(&format!("audit/events?limit=7{cursor}"));
            let page = client.get(&self.tenant.owner, &path).await.expect(200).body;
            entries.extend(page["data"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        entries.reverse();
        entries
    }

    /// Exports the log as a bundle and verifies that, with the independent verifier too.
    async fn bundle(&self, name: &str) -> Verdict {
        self.audited.head(self.tenant).await;
        self.audited.export(self.tenant, name).await;
        self.audited.verify(name, &[]).await
    }

    /// The lines of a text, as JSON.
    async fn lines(&self, path: &str) -> Vec<Value> {
        let text = self.audited.text(self.tenant, path).await;
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A past state: the line that describes its source.
    async fn past(&self, at: &str) -> Value {
        let path = self.tenant.path(&format!("audit/state?at={at}"));
        let client = &self.audited.cluster.client;
        let answer = client.request(Method::GET, &path, &self.tenant.owner).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    }

    async fn compare(&self) -> Said {
        self.audited.cluster.cli("", &["replay", "--verify", "--org", &self.tenant.id.to_string()]).await
    }

    async fn decide(&self, verb: &str, pipeline: &str, seq: u64, subject: &str) -> Said {
        let (cluster, seq) = (&self.audited.cluster, seq.to_string());
        let mut args = vec!["park", verb, "--org", &self.tenant.slug, "--pipeline", pipeline, subject];
        if verb == "skip" {
            args.extend(["--seq", &seq, "--reason", "garbage, see incident 7"]);
        }
        cluster.cli(cluster.operator(), &args).await
    }
}

fn of_type<'a>(entries: &'a [Value], name: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["type"] == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_at_the_log_sees_where_a_message_is_missing_and_why_and_what_became_of_it() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("lacking").await;
    let auditor = Auditor { audited: &audited, tenant: &tenant };
    audited.records(&tenant, (0..3).map(|number| format!("before {number}"))).await;
    auditor.bundle("clean").await.expect(10);

    let (intruder, record) = (Intruder::of(&audited.cluster).await, fresh_record());
    let subject = format!("record.{record}");
    let mut seqs = vec![intruder.publish(tenant.id, &subject, 0, b"garbage".to_vec()).await];
    for (version, event) in [created("v1"), updated("v2")].into_iter().enumerate() {
        let next = commit(tenant.id, record, version as u64, vec![event]);
        seqs.push(intruder.publish_signed(tenant.id, &subject, seqs[version], &next).await);
    }
    until_parked(&audited.cluster, &tenant, Pipeline::ALL.len() * seqs.len()).await;
    audited.records(&tenant, (0..3).map(|number| format!("behind {number}"))).await;

    // In its place: after earlier events, before later ones.
    let entries = auditor.pages().await;
    for (place, entry) in entries.iter().enumerate() {
        assert_eq!(entry["idx"], place, "numbered without a gap");
    }
    let in_order: Vec<u64> = entries.iter().map(|entry| seq_of(&tenant, entry["position"].as_str().unwrap())).collect();
    assert!(in_order.is_sorted(), "{in_order:?}");
    let marks = of_type(&entries, "parking.parked");
    assert_eq!(marks.iter().map(|mark| mark["data"]["seq"].as_u64().unwrap()).collect::<Vec<_>>(), seqs);
    let (mark, hash) = (marks[0], Fingerprint::of(&[b"garbage"]).to_string());
    assert_eq!(mark["position"], format!("{}:{}", tenant.id, seqs[0]));
    assert_eq!((&mark["data"]["sha256"], &mark["data"]["waiting"]), (&json!(hash), &json!(false)));
    assert!(mark["data"]["reason"].as_str().unwrap().contains("not authentic"), "{mark}");
    assert!(mark["data"]["parked_at"].is_string() && mark["actor"]["type"] == "system", "{mark}");
    assert_eq!(mark["targets"], json!([{"type": "record", "id": record.to_string()}]));
    assert_eq!((&marks[1]["data"]["waiting"], &marks[1]["data"]["reason"]), (&json!(true), &json!("")));
    let idx = mark["idx"].as_u64().unwrap();
    for path in ["audit/export".to_owned(), "events".to_owned(), format!("events?from={}", seqs[0] - 1)] {
        let lines = auditor.lines(&path).await;
        let mark = lines.iter().find(|line| line["idx"] == idx).unwrap_or_else(|| panic!("{path}: {lines:#?}"));
        assert_eq!((&mark["type"], &mark["data"]["sha256"]), (&json!("parking.parked"), &json!(hash)), "{path}");
    }
    assert_eq!(auditor.lines(&format!("events?from={}", seqs[0] - 1)).await[0]["idx"], idx);

    // Offline: incomplete, with the position and the reason, whatever the manifest says.
    let verdict = auditor.bundle("parked").await.expect(20).naming(&[&hash, "not authentic", &seqs[0].to_string()]);
    assert_eq!((&verdict.report["lacked"], &verdict.report["given_up"]), (&json!(3), &json!(0)), "{}", verdict.report);
    let path = audited.path("parked/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(manifest["without"].as_array().unwrap().len(), 3);
    manifest.as_object_mut().unwrap().remove("without");
    fs::write(&path, manifest.to_string()).unwrap();
    audited.verify("parked", &[]).await.expect(20).naming(&[&hash]);
    let args = ["audit", "verify", "--bundle", "parked", "--pin", "keys/log.vkey"];
    let said = audited.cluster.cli("", &args).await.failure();
    assert!(said.stdout.contains("INCOMPLETE") && said.stdout.contains("3 messages that are parked"), "{said:?}");
    // In the comparison with the stream, and in the past state.
    let said = auditor.compare().await.failure();
    assert!(said.stdout.contains(&format!("{}:{} is not in the audit log", tenant.id, seqs[0])), "{said:?}");
    let without: Vec<String> = seqs.iter().map(|seq| format!("{}:{seq}", tenant.id)).collect();
    assert_eq!(auditor.past(&entries.len().saturating_sub(1).to_string()).await["without"], json!(without));
    assert_eq!(auditor.past(&idx.to_string()).await["without"], json!(without[..1]));
    assert_eq!(auditor.past(&(idx - 1).to_string()).await["without"], json!([]));

    // Another failed retry adds nothing.
    auditor.decide("retry", "audit", seqs[0], &subject).await.failure();
    assert_eq!(of_type(&auditor.pages().await, "parking.parked").len(), 3);
    assert_eq!(of_type(&auditor.pages().await, "parking.settled").len(), 0);

    // Given up: recorded in the log, signed, with the decision before it; and the waiting messages follow that.
    let before = entries.last().unwrap()["recorded_at"].as_str().unwrap().to_owned();
    for pipeline in Pipeline::NAMES {
        auditor.decide("skip", pipeline, seqs[0], &subject).await.success();
    }
    assert_eq!(parked(&audited.cluster, &tenant).await, Vec::<Value>::new());
    let after = auditor.pages().await;
    assert_eq!(after[..entries.len()], entries, "what was there stays as it was");
    let tail: Vec<(&str, Option<&str>)> = after
        .iter()
        .skip_while(|entry| entry["type"] != "parking.skipped" || entry["aggregate"]["id"] != "audit")
        .filter(|entry| entry["type"] != "parking.skipped" || entry["aggregate"]["id"] == "audit")
        .map(|entry| (entry["type"].as_str().unwrap(), entry["data"]["outcome"].as_str()))
        .filter(|(name, _)| !name.starts_with("access."))
        .collect();
    let expected = [
        ("parking.skipped", None),
        ("parking.settled", Some("given_up")),
        ("parking.settled", Some("applied")),
        ("record.created", None),
        ("parking.settled", Some("applied")),
        ("record.updated", None),
    ];
    assert_eq!(tail, expected, "{after:#?}");
    let settled = of_type(&after, "parking.settled");
    let decision = after.iter().find(|entry| entry["event_id"] == settled[0]["causation_id"]).unwrap();
    assert_eq!(
        (&decision["type"], &decision["actor"]["type"]),
        (&json!("parking.skipped"), &json!("platform_operator"))
    );
    let verdict = auditor.bundle("given-up").await.expect(10);
    assert_eq!((&verdict.report["lacked"], &verdict.report["given_up"]), (&json!(0), &json!(1)), "{}", verdict.report);
    let notes = verdict.report["notes"].to_string();
    assert!(notes.contains(&format!("event {idx}: message {}", seqs[0])) && notes.contains("gave it up"), "{notes}");
    let said = auditor.compare().await.success();
    assert!(said.stdout.contains(&format!("at {}:{} was given up", tenant.id, seqs[0])), "{said:?}");
    assert!(!said.stdout.contains("all three say the same,"), "{said:?}");
    // Past states stay consistent: what was applied late is not in an earlier one.
    let then = auditor.past(&before).await;
    assert!(then["size"].as_u64().unwrap() <= entries.len() as u64 && then["without"] == json!(without), "{then}");
    let now = auditor.past(&(after.len() - 1).to_string()).await;
    assert_eq!(now["without"], json!(without[..1]), "what was given up is missing for ever");
    audited.cluster.cli("", &["rebuild", "--org", &tenant.id.to_string()]).await.success();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_retried_stands_behind_its_mark_and_the_log_is_whole_again() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("retried").await;
    let (auditor, client) = (Auditor { audited: &audited, tenant: &tenant }, &audited.cluster.client);
    let made = client.command(&tenant, "made", &create("one")).await.expect(201);
    let id = made.text("id");
    let mut database = audited.cluster.superuser().await;
    sqlx::raw_sql("ALTER TABLE audit.events ADD CONSTRAINT poison CHECK (action <> 'record.archived') NOT VALID")
        .execute(&mut database)
        .await
        .unwrap();
    let archive = json!({"type": "archive_record", "id": id});
    client.command(&tenant, "archived", &archive).await.expect(200);
    let rows = until_parked(&audited.cluster, &tenant, 1).await;
    let seq = rows[0]["seq"].as_u64().unwrap();
    assert_eq!(rows[0]["pipeline"], "audit");
    audited.records(&tenant, ["behind".to_owned()]).await;
    let entries = auditor.pages().await;
    let marks = of_type(&entries, "parking.parked");
    assert!(marks.len() == 1 && marks[0]["data"]["reason"].as_str().unwrap().contains("poison"), "{marks:#?}");
    auditor.bundle("parked").await.expect(20).naming(&["poison", &seq.to_string()]);
    let said = audited.cluster.cli("", &["rebuild", "--org", &tenant.id.to_string()]).await.failure();
    assert!(said.stderr.contains("lacks 1 messages"), "{said:?}");

    sqlx::raw_sql("ALTER TABLE audit.events DROP CONSTRAINT poison").execute(&mut database).await.unwrap();
    auditor.decide("retry", "audit", seq, &format!("record.{id}")).await.success();
    let after = auditor.pages().await;
    assert_eq!(after[..entries.len()], entries);
    let place = after.iter().position(|entry| entry["type"] == "record.archived").unwrap();
    assert!(place > entries.len(), "{after:#?}");
    let settled = &after[place - 1];
    assert_eq!((&settled["type"], &settled["data"]["outcome"]), (&json!("parking.settled"), &json!("applied")));
    assert_eq!(settled["data"]["command_id"], after[place]["command_id"]);
    assert_eq!(after[place]["position"], format!("{}:{seq}", tenant.id));
    let verdict = auditor.bundle("whole").await.expect(10);
    assert_eq!((&verdict.report["lacked"], &verdict.report["given_up"]), (&json!(0), &json!(0)), "{}", verdict.report);
    let said = auditor.compare().await.success();
    assert!(said.stdout.contains("all three say the same"), "{said:?}");
    // A reader that continues from before it misses nothing, and gets the mark first.
    let replayed = auditor.lines(&format!("events?from={}", seq - 1)).await;
    let first = (&replayed[0]["type"], replayed.iter().filter(|line| line["type"] == "record.archived").count());
    assert_eq!(first, (&json!("parking.parked"), 1), "{replayed:#?}");
    audited.cluster.cli("", &["rebuild", "--org", &tenant.id.to_string()]).await.success();
    let found = client.get(&tenant.key, &tenant.path(&format!("records/{id}"))).await.expect(200);
    assert_eq!(found.body["archived"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_parked_before_there_were_marks_gets_one_when_it_is_decided_about() {
    let mut audited = Auditing::start_unwitnessed().await;
    audited.start_signing();
    let tenant = audited.cluster.tenant("older").await;
    let auditor = Auditor { audited: &audited, tenant: &tenant };
    audited.records(&tenant, ["one".to_owned()]).await;
    let mut database = audited.cluster.superuser().await;
    sqlx::query(
        "INSERT INTO ops.parked (org_id, pipeline, rm_version, seq, aggregate_type, aggregate_id, subject, message, state,
            reason, attempts, verified) VALUES ($1, 'audit', 1, 1, 'record', 'old', $2, 'x', 'failed', 'of old', 1, false)",
    )
    .bind(tenant.id.uuid())
    .bind(format!("ev.0.{}.record.old", tenant.id))
    .execute(&mut database)
    .await
    .unwrap();
    auditor.bundle("unmarked").await.expect(20).naming(&["no entry stands in its place", "of old"]);
    auditor.decide("skip", "audit", 1, "record.old").await.success();
    let entries = auditor.pages().await;
    let marks: Vec<&Value> = entries.iter().filter(|entry| entry["actor"]["type"] == "system").collect();
    let told: Vec<(&Value, &Value)> = marks.iter().map(|mark| (&mark["type"], &mark["data"]["seq"])).collect();
    assert_eq!(told, [(&json!("parking.parked"), &json!(1)), (&json!("parking.settled"), &json!(1))], "{entries:#?}");
    let verdict = auditor.bundle("marked").await.expect(10);
    assert_eq!(verdict.report["given_up"], 1);
}
