//! The HTTP API as its callers see it.

use std::collections::HashSet;

use orgstream_events::{PLATFORM_ORG, Pipeline};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, create_model, model},
    cluster::eventually,
};

/// Method, path, body; then the status, the code, and the required text.
type BadBody<'a> = (&'a str, &'a str, &'a [u8], u16, &'a str, &'a str);
/// Path, headers; then the code, and the required text.
type BadRequest<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said() {
    let api = Api::start().await;
    let org = api.org("bad-input").await;
    let (records, commands) = (org.path("records"), org.path("commands"));
    let over = json!({"kind": "model", "data": {"name": "x".repeat(2_000_000)}}).to_string();
    let many = Value::Array(vec![create_model("x"); 1_001]).to_string();
    let future = json!({"command": create_model("x"), "occurred_at": "2999-01-01T00:00:00Z"}).to_string();
    let keyless = json!([create_model("x")]).to_string();
    let bodies: &[BadBody<'_>] = &[
        ("POST", &records, b"{\"kind\": \"model\",\n ]", 400, "malformed_body", "line 2"),
        ("POST", &records, b"", 400, "malformed_body", "empty"),
        ("POST", &records, b"{\"kind\": \"\xff\"}", 400, "malformed_body", "UTF-8"),
        ("POST", &records, b"{} {}", 400, "malformed_body", "trailing"),
        (
            "POST",
            &records,
            b"{\"kind\":\"model\",\"data\":{\"name\":\"x\"},\"colour\":1}",
            422,
            "validation_error",
            "/colour",
        ),
        ("POST", &records, b"{\"kind\":\"model\",\"data\":{\"name\":7}}", 422, "validation_error", "/data/name"),
        ("POST", &records, b"{\"kind\":\"no_such\",\"data\":{}}", 422, "unknown_kind", "no_such"),
        ("POST", &records, b"{\"kind\":\"No Such\",\"data\":{}}", 422, "validation_error", "/kind"),
        ("POST", &records, over.as_bytes(), 413, "payload_too_large", "1048576"),
        ("POST", &commands, over.as_bytes(), 413, "payload_too_large", "1048576"),
        ("POST", &commands, many.as_bytes(), 413, "payload_too_large", "1000"),
        ("POST", &commands, b"[]", 400, "bad_request", "empty"),
        ("POST", &commands, keyless.as_bytes(), 400, "idempotency_key_missing", "Idempotency-Key"),
        ("POST", &commands, b"7", 400, "bad_request", "object"),
        ("POST", &commands, b"{\"type\":\"drop_table\"}", 422, "validation_error", "drop_table"),
        ("POST", &commands, future.as_bytes(), 422, "validation_error", "/occurred_at"),
        ("PATCH", &records, b"{}", 405, "method_not_allowed", "PATCH"),
        ("POST", "/docs/", b"{}", 405, "method_not_allowed", "POST"),
        ("POST", "/v1/organization", b"{}", 404, "not_found", "/openapi.json"),
    ];
    for (method, path, body, status, code, says) in bodies {
        let request = api.request(Method::from_bytes(method.as_bytes()).unwrap(), path).bearer_auth(&org.owner);
        let request = if *body == many.as_bytes() { request.header("idempotency-key", "k") } else { request };
        let answer = Answer::of(request.header("content-type", "application/json").body(body.to_vec())).await;
        let of = format!("{method} {path} {:?}", String::from_utf8_lossy(&body[..body.len().min(60)]));
        assert_eq!((answer.status, answer.problem().as_str()), (*status, *code), "{of}: {answer:?}");
        assert!(answer.text.contains(says), "{of}: {answer:?}");
    }

    let other = org.id.replace("org_", "mem_");
    let foreign_position = format!("{PLATFORM_ORG}:1");
    let requests: &[BadRequest<'_>] = &[
        (&format!("/v1/organizations/{other}/records"), &[], "invalid_parameter", "org"),
        ("/v1/organizations/Not%20A%20Slug/records", &[], "invalid_parameter", "org"),
        (&org.path(&format!("records/{other}")), &[], "invalid_parameter", "record"),
        (&org.path("records/res_short"), &[], "invalid_parameter", "record"),
        (&format!("{records}?limit=0"), &[], "invalid_parameter", "limit"),
        (&format!("{records}?limit=101"), &[], "invalid_parameter", "limit"),
        (&format!("{records}?limit=many"), &[], "invalid_parameter", "limit"),
        (&format!("{records}?limit=1&limit=2"), &[], "invalid_parameter", "limit"),
        (&format!("{records}?kindd=model"), &[], "invalid_parameter", "kindd"),
        (&format!("{records}?cursor=AAAA"), &[], "invalid_parameter", "cursor"),
        (&format!("{}?x=1", org.path("projections")), &[], "invalid_parameter", "no query parameters"),
        (&format!("{}?since=yesterday", org.path("audit/events")), &[], "invalid_parameter", "since"),
        (&format!("{}?from={foreign_position}", org.path("events")), &[], "invalid_parameter", "from"),
        (&records, &[("min-position", "17")], "invalid_header", "Min-Position"),
        (&records, &[("min-position", &foreign_position)], "invalid_header", "another organization"),
        (&org.path("events/stream"), &[("last-event-id", "x")], "invalid_parameter", "Last-Event-ID"),
    ];
    for (path, headers, code, says) in requests {
        let request = api.request(Method::GET, path).bearer_auth(&org.owner);
        let answer =
            Answer::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, *code), "{path}: {answer:?}");
        assert!(answer.text.contains(says), "{path}: {answer:?}");
    }
    let plain =
        api.request(Method::POST, &records).bearer_auth(&org.owner).header("content-type", "text/plain").body("x");
    assert_eq!(Answer::of(plain).await.problem(), "unsupported_media_type");
    let keyed = api.request(Method::POST, &records).bearer_auth(&org.owner).json(&model("x"));
    assert_eq!(Answer::of(keyed.header("idempotency-key", "a b")).await.problem(), "invalid_header");
    let id = api.request(Method::GET, &records).bearer_auth(&org.owner).header("x-request-id", "mine-1");
    assert_eq!(Answer::of(id).await.header("x-request-id"), "mine-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_under_one_key_has_one_effect_and_one_answer() {
    let api = Api::start().await;
    let org = api.org("once").await;
    let records = org.path("records");
    let send = async |key: &str, name: &str| {
        let request = api.request(Method::POST, &records).bearer_auth(&org.owner).header("idempotency-key", key);
        Answer::of(request.json(&model(name))).await
    };
    let first = send("k", "a").await.expect(201);
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = send("\"k\"", "a").await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), "true");
    for field in ["id", "version", "position", "command_id", "events"] {
        assert_eq!(first.json()[field], again.json()[field], "{field}");
    }
    assert_eq!(send("k", "b").await.expect(422).problem(), "idempotency_key_reused");
    let at_once = futures_util::future::join_all((0..8).map(|_| send("many", "c"))).await;
    let ids: HashSet<String> = at_once.into_iter().map(|answer| answer.expect(201).json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);

    // The same key for another aggregate is found by the read models.
    let put = api.request(Method::PUT, &format!("{records}/{}", first.json()["id"].as_str().unwrap()));
    api.get_at(&org.owner, &records, first.header("stream-position")).await.expect(200);
    let put = put.bearer_auth(&org.owner).header("idempotency-key", "many").json(&json!({"data": {"name": "z"}}));
    assert_eq!(Answer::of(put).await.expect(422).problem(), "idempotency_key_reused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_shown_once_and_the_same_to_a_retry() {
    let api = Api::start().await;
    let org = api.org("keys").await;
    let issue = || {
        let request = api.request(Method::POST, &org.path("api-keys")).bearer_auth(&org.owner);
        Answer::of(request.header("idempotency-key", "k").json(&json!({"name": "ci", "role": "member"})))
    };
    let (first, retry) = (issue().await.expect(201).json(), issue().await.expect(201).json());
    assert_eq!(first["token"], retry["token"]);
    let token = first["token"].as_str().unwrap();
    api.sees(&org, first["position"].as_str().unwrap()).await;
    let me = api.get(token, "/v1/me").await.expect(200).json();
    assert_eq!((&me["type"], &me["org_id"]), (&json!("api_key"), &json!(org.id)));
    let id = first["id"].as_str().unwrap();
    let shown = api.get(&org.owner, &org.path(&format!("api-keys/{id}"))).await.expect(200);
    assert!(!shown.text.contains(token) && !shown.text.contains("secret"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_version_is_not_overwritten() {
    let api = Api::start().await;
    let org = api.org("versions").await;
    let (id, _) = api.record(&org, "a").await;
    let path = org.path(&format!("records/{id}"));
    let put = async |tag: &str, name: &str| {
        let request = api.request(Method::PUT, &path).bearer_auth(&org.owner).header("if-match", tag);
        Answer::of(request.json(&json!({"data": {"name": name}}))).await
    };
    let changed = put("\"1\"", "b").await.expect(200);
    assert_eq!(changed.header("etag"), "\"2\"");
    assert_eq!(put("\"1\"", "c").await.expect(412).problem(), "version_conflict");
    let last = put("*", "c").await.expect(200);
    assert_eq!(last.header("etag"), "\"3\"");
    assert_eq!(put("3", "d").await.expect(400).problem(), "invalid_header");

    let read = api.get_at(&org.owner, &path, last.header("stream-position")).await.expect(200);
    let known = api.request(Method::GET, &path).bearer_auth(&org.owner).header("if-none-match", read.header("etag"));
    assert_eq!(Answer::of(known).await.expect(304).text, "");
    let listing = api.get(&org.owner, &org.path("records")).await.expect(200);
    let tag = listing.header("etag");
    assert!(tag.starts_with("W/\""), "{tag}");
    let known = api.request(Method::GET, &org.path("records")).bearer_auth(&org.owner).header("if-none-match", tag);
    Answer::of(known).await.expect(304);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_changed_by_the_version_that_was_read() {
    let api = Api::start().await;
    let org = api.org("roster").await;
    let add = async |email: &str| {
        let body = json!({"email": email, "role": "viewer"});
        let added = api.post(&org.owner, &org.path("members"), &body).await.expect(201);
        (added.header("location").to_owned(), added.header("stream-position").to_owned())
    };
    let (first, _) = add("a@roster.example").await;
    let (_, position) = add("b@roster.example").await;
    let read = api.get_at(&org.owner, &first, &position).await.expect(200);
    let change = api.request(Method::PATCH, &first).bearer_auth(&org.owner).header("if-match", read.header("etag"));
    Answer::of(change.json(&json!({"role": "member"}))).await.expect(200);
    let owner = api.get(&org.owner, "/v1/me").await.json()["memberships"][0]["actor_id"].as_str().unwrap().to_owned();
    let leave = api.request(Method::DELETE, &org.path(&format!("members/{owner}"))).bearer_auth(&org.owner);
    assert_eq!(Answer::of(leave).await.expect(409).problem(), "last_owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_reads_what_one_wrote_and_nothing_that_nobody_wrote() {
    let api = Api::start().await;
    let org = api.org("positions").await;
    let mut last = String::new();
    for number in 0..20 {
        let (id, position) = api.record(&org, &format!("m{number}")).await;
        let read = api.get_at(&org.owner, &org.path(&format!("records/{id}")), &position).await.expect(200);
        assert!(seq(read.header("projection-position")) >= seq(&position));
        last = position;
    }
    let beyond = format!("{}:{}", org.id, seq(&last) + 1_000);
    let at_once =
        api.request(Method::GET, &org.path("records")).bearer_auth(&org.owner).header("min-position", &beyond);
    assert_eq!(Answer::of(at_once).await.expect(400).problem(), "position_beyond_end");
    let projections = api.get(&org.owner, &org.path("projections")).await.expect(200).json();
    assert_eq!(projections["data"].as_array().unwrap().len(), Pipeline::ALL.len());
    assert!(seq(projections["data"][0]["head"].as_str().unwrap()) >= seq(&last));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_is_walked_both_ways_by_its_own_cursors() {
    let api = Api::start().await;
    let (org, other) = (api.org("pages").await, api.org("other-pages").await);
    let mut made = Vec::new();
    let mut position = String::new();
    for number in 0..7 {
        let (id, at) = api.record(&org, &format!("m{number}")).await;
        (made, position) = ([vec![id], made].concat(), at);
    }
    let page = async |cursor: Option<&str>| {
        let cursor = cursor.map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        api.get_at(&org.owner, &org.path(&format!("records?kind=model&limit=3{cursor}")), &position)
            .await
            .expect(200)
            .json()
    };
    let ids = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = page(None).await;
    let second = page(first["next_cursor"].as_str()).await;
    let third = page(second["next_cursor"].as_str()).await;
    assert_eq!([ids(&first), ids(&second), ids(&third)].concat(), made);
    assert_eq!((&third["has_more"], &third["next_cursor"]), (&json!(false), &Value::Null));
    assert_eq!(ids(&page(third["prev_cursor"].as_str()).await), ids(&second));
    let cursor = first["next_cursor"].as_str().unwrap();
    for path in [
        other.path(&format!("records?kind=model&limit=3&cursor={cursor}")),
        org.path(&format!("records?kind=judge&limit=3&cursor={cursor}")),
        org.path(&format!("members?cursor={cursor}")),
    ] {
        let bearer = if path.contains(&org.id) { &org.owner } else { &other.owner };
        assert_eq!(api.get(bearer, &path).await.expect(400).problem(), "invalid_parameter", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_command_of_many_has_its_own_outcome() {
    let api = Api::start().await;
    let org = api.org("bulk").await;
    let (_, viewer) = api.key(&org, "viewer").await;
    let batch = json!([
        create_model("a"),
        {"type": "create_record", "kind": "model", "data": {"name": 1}},
        {"type": "no_such"},
        {"command": create_model("b"), "idempotency_key": "own"},
        {"type": "create_organization", "name": "x", "slug": "xx"},
    ]);
    let send = async |bearer: &str| {
        let request =
            api.request(Method::POST, &org.path("commands")).bearer_auth(bearer).header("idempotency-key", "b");
        Answer::of(request.json(&batch)).await.expect(200)
    };
    let answer = send(&org.owner).await;
    let outcomes = answer.json();
    let codes: Vec<String> = outcomes
        .as_array()
        .unwrap()
        .iter()
        .map(|outcome| outcome["error"]["code"].as_str().unwrap_or("accepted").to_owned())
        .collect();
    assert_eq!(codes, ["accepted", "validation_error", "validation_error", "accepted", "session_only"]);
    assert_eq!(outcomes[1]["error"]["errors"][0]["pointer"], "/data/name");
    assert!(seq(answer.header("stream-position")) >= seq(outcomes[0]["position"].as_str().unwrap()));
    let again = send(&org.owner).await.json();
    assert_eq!((&again[0]["id"], &again[0]["replayed"]), (&outcomes[0]["id"], &json!(true)));
    let refused = send(&viewer).await.json();
    assert_eq!(refused[0]["error"]["code"], "forbidden");

    let packed = rmp_serde::to_vec_named(&create_model("packed")).unwrap();
    let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&org.owner);
    Answer::of(request.header("content-type", "application/msgpack").body(packed)).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_replayed_and_followed_without_gaps() {
    let api = Api::start().await;
    let org = api.org("history").await;
    let (_, viewer) = api.key(&org, "viewer").await;
    let (_, early) = api.record(&org, "a").await;
    let (_, late) = api.record(&org, "b").await;
    let events = org.path("events");
    let replay = api.get_at(&org.owner, &events, &late).await.expect(200);
    assert_eq!(replay.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = replay.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = lines.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["organization.created", "member.added", "api_key.issued", "record.created", "record.created"]);
    assert!(lines.iter().enumerate().all(|(place, event)| event["idx"] == place));
    assert!(!replay.text.contains("usr_") && !replay.text.contains("secret_mac"), "{replay:?}");
    let rest = api.get(&org.owner, &format!("{events}?from={early}")).await.expect(200);
    assert_eq!(rest.text.lines().count(), 1);
    let limited = api.get(&org.owner, &format!("{events}?from=0&limit=2")).await.expect(200);
    assert_eq!(limited.text.lines().count(), 2);

    let mut tail = api.tail(&org.owner, &org.path("events/stream?from=0")).await;
    for line in &lines {
        let (id, event) = tail.next().await;
        assert_eq!((&id, &event["event_id"]), (&line["position"], &line["event_id"]));
    }
    let (_, live) = api.record(&org, "c").await;
    assert_eq!(tail.next().await.0, live);
    let mut resumed = api.tail_after(&org.owner, &org.path("events/stream"), &early).await;
    assert_eq!([resumed.next().await.0, resumed.next().await.0], [json!(late), json!(live)]);
    // A caller without the right to read the audit log sees what it could read of the resources themselves.
    let mut partial = api.tail(&viewer, &org.path("events/stream?from=0")).await;
    let seen = [partial.next().await.1, partial.next().await.1, partial.next().await.1];
    let types: Vec<&str> = seen.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["organization.created", "member.added", "record.created"]);
    assert!(seen.iter().all(|event| event["context"] == json!({}) && event["data"].get("user_id").is_none()));
    // That is recorded in the log as well, so it comes last here.
    assert_eq!(api.get(&viewer, &events).await.expect(403).problem(), "forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_ends_when_its_key_is_revoked() {
    let api = Api::start().await;
    let org = api.org("revoked").await;
    let (id, key) = api.key(&org, "member").await;
    let mut tail = api.tail(&key, &org.path("events/stream")).await;
    let revoke = api.request(Method::DELETE, &org.path(&format!("api-keys/{id}"))).bearer_auth(&org.owner);
    Answer::of(revoke).await.expect(200);
    let mut last = tail.next().await.1;
    while last.get("reason").is_none() {
        last = tail.next().await.1;
    }
    assert!(last["reason"].as_str().unwrap().contains("revoked"), "{last}");
    tail.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_is_searched() {
    let api = Api::start().await;
    let org = api.org("searched").await;
    let (key, token) = api.key(&org, "member").await;
    let (record, _) = api.record(&org, "a").await;
    let by_key = api.post(&token, &org.path("records"), &model("b")).await.expect(201);
    let search = async |query: &str| {
        let path = org.path(&format!("audit/events?{query}"));
        let found = api.get_at(&org.owner, &path, by_key.header("stream-position")).await.expect(200);
        let page = found.json();
        page["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["event_id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(search("action=record.created").await.len(), 2);
    assert_eq!(search(&format!("actor={key}&actor_type=api_key")).await.len(), 1);
    let of_record = search(&format!("target={record}")).await;
    assert_eq!(of_record.len(), 1);
    assert_eq!(search("until=2020-01-01T00:00:00Z").await.len(), 0);
    assert_eq!(search("since=2020-01-01T00:00:00Z").await.len(), 5);
    let one = api.get(&org.owner, &org.path(&format!("audit/events/{}", of_record[0]))).await.expect(200).json();
    assert_eq!(one["targets"][0]["id"], record);
    assert_eq!(one["context"]["ip"], "127.0.0.1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_platform_decides_is_for_its_operator() {
    let api = Api::start().await;
    let org = api.org("ruled").await;
    let operator = OPERATOR;
    let why = json!({"reason": "unpaid"});
    api.post(operator, &org.path("suspend"), &why).await.expect(200);
    let refused = api.post(&org.owner, &org.path("records"), &model("a")).await.expect(403);
    assert_eq!(refused.problem(), "organization_suspended");
    api.post(operator, &org.path("resume"), &why).await.expect(200);
    api.record(&org, "a").await;

    let kind = json!({"kind": "probe", "title": "Probe", "schema": {"type": "object"}, "visibility": "private"});
    assert_eq!(api.post(&org.owner, "/v1/kinds", &kind).await.expect(403).problem(), "forbidden");
    let made = api.post(operator, "/v1/kinds", &kind).await.expect(201);
    let position = made.header("stream-position");
    let read = api.request(Method::GET, "/v1/kinds/probe").header("min-position", position).header("prefer", "wait=20");
    assert_eq!(Answer::of(read).await.expect(200).json()["title"], "Probe");
    let lag = api.get(operator, "/v1/platform/lag").await.expect(200).json();
    assert_eq!((lag["workers"].as_u64(), lag["shards"].as_array().unwrap().len()), (Some(1), 2));
    assert_eq!(api.get(operator, &org.path("parked")).await.expect(200).json()["data"], json!([]));
    assert_eq!(api.get(operator, &org.path("records")).await.expect(404).problem(), "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_says_what_is_missing() {
    let mut api = Api::start().await;
    let ready = async |api: &Api| Answer::of(api.request(Method::GET, "/readyz")).await;
    let until_ready = async |api: &Api| {
        eventually("it to be ready", async || (ready(api).await.status == 200).then_some(())).await;
    };
    until_ready(&api).await;
    api.nats.kill9().await;
    let answer = ready(&api).await.expect(503).json();
    let parts: Vec<&str> =
        answer["waiting_for"].as_array().unwrap().iter().map(|wait| wait["part"].as_str().unwrap()).collect();
    assert!(parts.contains(&"nats") || parts.contains(&"streams"), "{answer}");
    Answer::of(api.request(Method::GET, "/healthz")).await.expect(200);
    api.nats.restart().await;
    until_ready(&api).await;
}

fn seq(position: &str) -> u64 {
    position.rsplit_once(':').unwrap().1.parse().unwrap()
}
