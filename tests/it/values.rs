//! Acknowledged data reads back as it was sent, by every interface; other data is rejected, with the location.

use std::collections::BTreeMap;

use async_nats::{HeaderMap, client::Request};
use futures_util::{StreamExt, stream};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngSeed, TestRunner},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, ClusterOptions, PATIENCE, Tenant};

/// Data that cannot be stored, as its sender writes it, and the location of the fault.
const REFUSED: &[(&str, &str)] = &[
    (r#"{"a": 18446744073709551616}"#, "/data/a"),
    (r#"{"a": -9223372036854775809}"#, "/data/a"),
    (r#"{"a": [3.14159265358979323846264338327950288]}"#, "/data/a/0"),
    (r#"{"a": 1e-400}"#, "/data/a"),
    (r#"{"a": 1e400}"#, "/data/a"),
    (r#"{"a": -0.0}"#, "/data/a"),
    (r#"{"a": {"b": 1, "b": 2}}"#, "/data/a/b"),
    (r#"{"a": {"b": 1, "\u0062": 2}}"#, "/data/a/b"),
    (r#"{"a": "x\u0000"}"#, "/data/a"),
    (r#"{"a": "\ud83d"}"#, "/data/a"),
    (r#"{"$serde_json::private::RawValue": "{}"}"#, "/data/$serde_json::private::RawValue"),
    (r#"{"zz": 1, "$serde_json::private::RawValue": "{}"}"#, "/data/$serde_json::private::RawValue"),
    (r#"{"a": [{"$serde_json::private::Number": "1"}]}"#, "/data/a/0/$serde_json::private::Number"),
];

/// Data that is stored unchanged.
const KEPT: &[&str] = &[
    r#"{"a": 18446744073709551615, "b": -9223372036854775808, "c": 0, "d": 9007199254740993}"#,
    r#"{"a": 1.0, "b": 0.1, "c": 1e16, "d": 1e17, "e": 1.8446744073709550e19, "f": 1e20, "g": 123456789012345680000.0}"#,
    r#"{"a": 5e-324, "b": 1.7976931348623157e308, "c": 2.2250738585072014e-308, "d": 1e-7, "e": -1e15, "f": 0.0}"#,
    r#"{"": "", "a/b": {"~": "\u0001\"\\\u007f"}, "ü": "😀\ud83d\ude00", "__proto__": null, "type": "x", "data": [[], {}]}"#,
    r#"{"longer name": 1, "b": 2, "aa": 3, "a": 4, "$ref": "x", "$serde_json": 1}"#,
];

/// Data of any form; some of it is rejected.
fn arbitrary(count: usize) -> Vec<String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_filter("JSON", |number| number.is_finite()).prop_map(|number| json!(number).to_string()),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?",
        any::<String>().prop_map(|text| json!(text).to_string()),
        prop::sample::select(vec!["null", "true", "1e16", "-0.0", "18446744073709551616"]).prop_map(str::to_owned),
    ];
    let value = leaf.prop_recursive(4, 20, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((any::<String>(), inner), 0..5).prop_map(|fields| {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{}:{value}", json!(name))).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    });
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(15), ..Config::default() });
    (0..count).map(|_| format!("{{\"v\":{}}}", value.new_tree(&mut runner).unwrap().current())).collect()
}

/// The same in MessagePack, converted without text: the numbers keep their types.
fn packed(data: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(&json!({"type": "create_record", "kind": "anything", "data": data})).unwrap()
}

async fn started(slug: &str) -> (Cluster, Tenant) {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant(slug).await;
    let kind = json!({"kind": "anything", "title": "Anything", "schema": {}, "visibility": "private"});
    cluster.client.post(cluster.operator(), "/v1/kinds", Some("anything"), &kind).await.expect(201);
    (cluster, tenant)
}

async fn send(cluster: &Cluster, tenant: &Tenant, (method, path): (Method, &str), body: impl Into<Vec<u8>>) -> Answer {
    let request = cluster.client.request(method, &tenant.path(path), &tenant.owner);
    Answer::of(request.header("Content-Type", "application/json").body(body.into())).await.unwrap()
}

async fn send_packed(cluster: &Cluster, tenant: &Tenant, body: Vec<u8>) -> Answer {
    let request = cluster.client.request(Method::POST, &tenant.path("commands"), &tenant.owner);
    Answer::of(request.header("Content-Type", "application/msgpack").body(body)).await.unwrap()
}

async fn send_by_nats(nats: &async_nats::Client, tenant: &Tenant, format: &str, body: Vec<u8>) -> (u16, Value) {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", format);
    headers.insert("Authorization", format!("Bearer {}", tenant.key));
    let request = Request::new().headers(headers).payload(body.into()).timeout(Some(PATIENCE));
    let answer = nats.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
    let status = answer.headers.unwrap().get("Orgstream-Status").unwrap().as_str().parse().unwrap();
    (status, serde_json::from_slice(&answer.payload).unwrap())
}

/// One JSON value per line.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn text(cluster: &Cluster, tenant: &Tenant, path: &str) -> String {
    let answer = cluster.client.request(Method::GET, &tenant.path(path), &tenant.owner).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200, "{path}");
    answer.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_reads_back_everywhere_and_the_rest_is_refused() {
    let (cluster, tenant) = started("values").await;
    let nats = cluster.producer().await;
    let create = |data: &str| format!("{{\"kind\": \"anything\", \"data\": {data}}}");
    let command = |data: &str| format!("{{\"type\": \"create_record\", \"kind\": \"anything\", \"data\": {data}}}");

    for (data, pointer) in REFUSED {
        let by_route = send(&cluster, &tenant, (Method::POST, "records"), create(data)).await;
        let by_command = send(&cluster, &tenant, (Method::POST, "commands"), command(data)).await;
        let enveloped = format!("{{\"command\": {}}}", command(data));
        let enveloped = send(&cluster, &tenant, (Method::POST, "commands"), enveloped).await;
        for answer in [by_route, by_command] {
            assert_eq!(
                (answer.status, &answer.body["errors"][0]["pointer"]),
                (422, &json!(pointer)),
                "{data}: {answer:?}"
            );
        }
        assert_eq!((enveloped.status, &enveloped.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{data}");
        let (status, body) = send_by_nats(&nats, &tenant, "application/json", command(data).into()).await;
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(pointer)), "{data}: {body}");
    }

    // The expected content of each record, by its id.
    let mut sent: BTreeMap<String, String> = BTreeMap::new();
    for data in KEPT {
        let value: Value = serde_json::from_str(data).unwrap();
        let made = send(&cluster, &tenant, (Method::POST, "records"), create(data)).await.expect(201);
        sent.insert(made.text("id"), value.to_string());
        let made = send_packed(&cluster, &tenant, packed(&value)).await.expect(201);
        sent.insert(made.text("id"), value.to_string());
        let (status, made) = send_by_nats(&nats, &tenant, "application/msgpack", packed(&value)).await;
        assert_eq!(status, 201, "{made}");
        sent.insert(made["id"].as_str().unwrap().to_owned(), value.to_string());
        // An update takes the same way.
        let path = format!("records/{}", made["id"].as_str().unwrap());
        send(&cluster, &tenant, (Method::PUT, &path), format!("{{\"data\": {data}}}")).await.expect(200);
    }
    let outcomes: Vec<(String, Answer)> = stream::iter(arbitrary(80))
        .map(async |data| {
            let answer = send(&cluster, &tenant, (Method::POST, "records"), create(&data)).await;
            (data, answer)
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut taken = 0;
    for (data, answer) in outcomes {
        if answer.status == 201 {
            taken += 1;
            let value: Value = serde_json::from_str(&data).unwrap();
            sent.insert(answer.text("id"), value.to_string());
        } else {
            assert_eq!(answer.status, 422, "{data}: {answer:?}");
            assert!(answer.body["errors"][0]["pointer"].as_str().unwrap().starts_with("/data/v"), "{data}: {answer:?}");
        }
    }
    assert!(taken > 20, "{taken} of 80 were taken");

    cluster.until_projected(&tenant).await;
    for (id, data) in &sent {
        let row = text(&cluster, &tenant, &format!("records/{id}")).await;
        assert_eq!(serde_json::from_str::<Value>(&row).unwrap()["data"].to_string(), *data, "{id}");
    }
    let events = text(&cluster, &tenant, "events").await;
    let exported = text(&cluster, &tenant, "audit/export").await;
    let replayed = cluster.cli(&tenant.owner, &["replay", "--org", &tenant.slug]).await.success().stdout;
    for (what, all) in [("events", events), ("export", exported), ("replay", replayed)] {
        let mut seen = 0;
        for event in lines(&all) {
            if let Some(data) = event["aggregate"]["id"].as_str().and_then(|id| sent.get(id)) {
                assert_eq!(event["data"]["data"].to_string(), *data, "{what}: {event}");
                seen += 1;
            }
        }
        assert_eq!(seen, sent.len() + KEPT.len(), "{what}");
    }
    let last = lines(&text(&cluster, &tenant, "events").await).len() - 1;
    let state = text(&cluster, &tenant, &format!("audit/state?at={last}&projection=records")).await;
    let rows: BTreeMap<String, String> = lines(&state)
        .into_iter()
        .filter_map(|row| {
            let row = if row["row"].is_object() { row["row"].clone() } else { row };
            Some((row["id"].as_str()?.to_owned(), row["data"].to_string()))
        })
        .collect();
    for (id, data) in &sent {
        assert_eq!(rows.get(id), Some(data), "{id} as of {last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_differ_in_a_number_or_a_repeated_field_are_not_the_same() {
    let (cluster, tenant) = started("numbers").await;
    let send = async |key: &str, data: &str| {
        let body = format!("{{\"type\": \"create_record\", \"kind\": \"anything\", \"data\": {data}}}");
        let request = cluster.client.request(Method::POST, &tenant.path("commands"), &tenant.owner);
        let request = request.header("Content-Type", "application/json").header("Idempotency-Key", key);
        Answer::of(request.body(body)).await.unwrap()
    };
    send("k", r#"{"a": 1.0}"#).await.expect(201);
    assert_eq!(send("k", r#"{"a": 1.0}"#).await.expect(201).body["replayed"], true);
    for other in [r#"{"a": 1}"#, r#"{"a": 1.0000000000000002}"#] {
        assert_eq!(send("k", other).await.expect(422).body["code"], "idempotency_key_reused", "{other}");
    }
    for inexact in [r#"{"a": 1.00000000000000000001}"#, r#"{"a": 2, "a": 1.0}"#] {
        assert_eq!(send("k", inexact).await.expect(422).body["code"], "validation_error", "{inexact}");
    }
    // Of several, only the invalid ones are rejected.
    let body = format!(
        "[{good}, {{\"command\": {bad}}}, {good}]",
        good = r#"{"type": "create_record", "kind": "anything", "data": {}}"#,
        bad = r#"{"type": "create_record", "kind": "anything", "data": {"a": [-0.0]}}"#
    );
    let request = cluster.client.request(Method::POST, &tenant.path("commands"), &tenant.owner);
    let request = request.header("Content-Type", "application/json").header("Idempotency-Key", "many").body(body);
    let outcomes = Answer::of(request).await.unwrap().expect(200).body;
    assert_eq!((&outcomes[0]["status"], &outcomes[2]["status"]), (&json!("accepted"), &json!("accepted")));
    assert_eq!(outcomes[1]["error"]["errors"][0]["pointer"], "/data/a/0", "{outcomes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_is_an_object_and_a_fault_is_said_in_words_of_the_api() {
    let (cluster, tenant) = started("shapes").await;
    let own = format!("/v1/organizations/{}", tenant.id);
    let path = |rest: &str| format!("{own}{rest}");
    for (method, path, body, pointer, says) in [
        ("POST", path("/records"), r#"["anything", {"name": "x"}]"#, "", "must be an object"),
        ("PATCH", own.clone(), r#"["Acme Corp"]"#, "", "must be an object"),
        ("PATCH", own.clone(), r#"{"name": "a", "name": "b"}"#, "/name", "once"),
        ("PATCH", own.clone(), r#"{"slug": 7}"#, "/slug", "must be a text"),
        (
            "PATCH",
            path("/settings"),
            r##"{"branding": ["https://a.example/l.svg", "#ffffff"]}"##,
            "/branding",
            "object",
        ),
        ("PATCH", path("/settings"), r#"{"custom_metadata": {"a": "1", "a": "2"}}"#, "/custom_metadata/a", "once"),
        ("PATCH", path("/settings"), r#"{"api_key_max_days": -1}"#, "/api_key_max_days", "whole number from 0"),
        ("PATCH", path("/settings"), r#"{"mfa_policy": "maybe"}"#, "/mfa_policy", "optional, required"),
        ("POST", path("/members"), r#"["a@b.example", "member"]"#, "", "must be an object"),
        ("POST", path("/api-keys"), r#"{"name": "x", "role": "member", "scopes": "all"}"#, "/scopes", "an array"),
        ("POST", "/v1/organizations".to_owned(), r#"["space", "space-1"]"#, "", "must be an object"),
        ("POST", "/v1/organizations".to_owned(), r#"{"name": "x\u0000", "slug": "abc"}"#, "/name", "U+0000"),
    ] {
        let request = cluster.client.request(Method::from_bytes(method.as_bytes()).unwrap(), &path, &tenant.owner);
        let answer = Answer::of(request.header("Content-Type", "application/json").body(body)).await.unwrap();
        let place = format!("{method} {path} {body}: {answer:?}");
        assert_eq!((answer.status, &answer.body["errors"][0]["pointer"]), (422, &json!(pointer)), "{place}");
        assert!(answer.body["detail"].as_str().unwrap().contains(says), "{place}");
        for rust in ["struct", "expected", "invalid type", "variant", "u32", "sequence"] {
            assert!(!answer.body.to_string().contains(rust), "{place}");
        }
    }
    for (query, name) in
        [("records?limit=abc", "limit"), ("records?archived=maybe", "archived"), ("events?limit=-1", "limit")]
    {
        let answer = cluster.client.get(&tenant.owner, &tenant.path(query)).await.expect(400);
        let says = answer.text("detail");
        let has_rule = says.contains("must be") || says.contains("there are: exclude,");
        assert!(says.starts_with(name) && has_rule, "{query}: {says}");
        assert!(!says.contains("digit") && !says.contains("provided string"), "{query}: {says}");
    }
}
