//! Commands by NATS request: the same handler, outcomes and errors as over HTTP.

use async_nats::{Client, HeaderMap, client::Request};
use orgstream_events::{CommandId, OrgId, RecordId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    cluster::{Answer, Cluster, ClusterOptions, PATIENCE, Tenant, create},
    history::History,
};

const JSON: &str = "application/json";
const MESSAGE_PACK: &str = "application/msgpack";

/// One request, for either transport.
#[derive(Clone)]
struct Sent {
    org: String,
    authorization: Option<String>,
    content_type: &'static str,
    key: Option<String>,
    body: Vec<u8>,
}

impl Sent {
    fn new(tenant: &Tenant, body: &Value) -> Self {
        Self {
            org: tenant.id.to_string(),
            authorization: Some(format!("Bearer {}", tenant.key)),
            content_type: JSON,
            key: None,
            body: serde_json::to_vec(body).unwrap(),
        }
    }

    fn into_message_pack(mut self) -> Self {
        let value: Value = serde_json::from_slice(&self.body).unwrap();
        self.body = rmp_serde::to_vec_named(&value).unwrap();
        self.content_type = MESSAGE_PACK;
        self
    }

    fn keyed(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    async fn by_http(&self, cluster: &Cluster) -> Answer {
        let path = format!("{}/v1/organizations/{}/commands", cluster.client.base, self.org);
        let mut request = cluster.client.http.request(Method::POST, path);
        request = request.header("Content-Type", self.content_type).body(self.body.clone());
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(key) = &self.key {
            request = request.header("Idempotency-Key", key);
        }
        Answer::of(request).await.unwrap()
    }

    async fn by_nats(&self, nats: &Client) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", self.content_type);
        if let Some(authorization) = &self.authorization {
            headers.insert("Authorization", authorization.as_str());
        }
        if let Some(key) = &self.key {
            headers.insert("Idempotency-Key", key.as_str());
        }
        let request = Request::new().headers(headers).payload(self.body.clone().into()).timeout(Some(PATIENCE));
        let answer = nats.send_request(format!("cmd.{}", self.org), request).await.unwrap();
        let headers: reqwest::header::HeaderMap = answer
            .headers
            .unwrap()
            .iter()
            .map(|(name, values)| {
                let name: reqwest::header::HeaderName = name.to_string().parse().unwrap();
                (name, values[0].as_str().parse().unwrap())
            })
            .collect();
        let status = headers["orgstream-status"].to_str().unwrap().parse().unwrap();
        Answer { status, headers, body: serde_json::from_slice(&answer.payload).unwrap() }
    }
}

/// The body without what must differ: ids and positions of two commands, and the parts specific to HTTP.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| {
                !["command_id", "id", "position", "token", "request_id", "instance"].contains(&name.as_str())
            })
            .map(|(name, value)| (name.clone(), if name == "org_id" { json!("whose") } else { comparable(value) }))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(comparable).collect(),
        // The clock advances between two answers.
        Value::String(text) => text.split("this server's").next().into(),
        other => other.clone(),
    }
}

/// Asserts that both transports give the same answer, and returns the one by NATS.
async fn same(cluster: &Cluster, nats: &Client, what: &str, by_http: &Sent, by_nats: &Sent) -> Answer {
    let (http, nats) = (by_http.by_http(cluster).await, by_nats.by_nats(nats).await);
    assert_eq!(nats.status, http.status, "{what}: {nats:?} {http:?}");
    assert_eq!(comparable(&nats.body), comparable(&http.body), "{what}");
    for header in ["content-type", "idempotency-replayed", "retry-after"] {
        assert_eq!(nats.headers.get(header), http.headers.get(header), "{what}: {header}");
    }
    nats
}

/// Requests with effects, tried in two organizations: in one by HTTP, in the other by NATS.
async fn good_ones(cluster: &Cluster, tenant: &Tenant) -> Vec<(&'static str, Value)> {
    let record = cluster.client.command(tenant, "r", &create("r")).await.expect(201).text("id");
    let update = json!({"type": "update_record", "id": record, "data": {"name": "new"}});
    let archive = json!({"type": "archive_record", "id": nobody(tenant)});
    let many = json!([create("a"), update, archive, {"type": "drop_table"}]);
    vec![
        ("a new record", create("plain")),
        ("new content", update),
        ("an envelope", json!({"command": create("wrapped"), "occurred_at": "2026-01-01T00:00:00Z"})),
        ("a new key", json!({"type": "issue_api_key", "name": "more", "role": "member"})),
        ("settings", json!({"type": "change_settings", "api_key_max_days": 30})),
        ("a member", json!({"type": "add_member", "email": "new@example.com", "role": "member"})),
        ("several", many),
    ]
}

/// A record that does not exist.
fn nobody(tenant: &Tenant) -> String {
    RecordId::derive(CommandId::from_idempotency_key(tenant.id, "nobody")).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_by_nats_is_answered_as_by_http() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, twin) = (cluster.tenant("producer").await, cluster.tenant("twin").await);
    let other = cluster.tenant("neighbour").await;
    let nats = cluster.producer().await;
    let by_tenant = |body: &Value| Sent::new(&tenant, body);
    let record = cluster.client.command(&tenant, "other", &create("other")).await.expect(201).text("id");
    cluster.client.command(&twin, "other", &create("other")).await.expect(201);
    let nowhere = OrgId::derive(CommandId::from_idempotency_key(tenant.id, "nowhere")).to_string();
    let viewer = json!({"type": "issue_api_key", "name": "viewer", "role": "viewer"});
    let viewer = cluster.client.command(&tenant, "viewer", &viewer).await.expect(201).text("token");
    let member = json!({"type": "issue_api_key", "name": "member", "role": "member"});
    let member = cluster.client.command(&tenant, "member", &member).await.expect(201).text("token");

    let (good, mirrored) = (good_ones(&cluster, &tenant).await, good_ones(&cluster, &twin).await);
    for ((what, body), (_, mirrored)) in good.iter().zip(&mirrored) {
        let key = what.replace(' ', "-");
        let (here, there) = (by_tenant(body).keyed(&key), Sent::new(&twin, mirrored).keyed(&key));
        let answer = same(&cluster, &nats, what, &here, &there).await;
        assert!(answer.status < 400, "{what}: {answer:?}");
        // A repetition gives the same again.
        let again = same(&cluster, &nats, what, &here, &there).await;
        assert_eq!(again.status, answer.status, "{what}");
        if answer.body.is_object() {
            assert_eq!((&again.body["replayed"], &again.body["id"]), (&json!(true), &answer.body["id"]), "{what}");
        }
        // The same bytes of MessagePack mean the same.
        let key = format!("{key}-packed");
        let (here, there) = (here.into_message_pack().keyed(&key), there.into_message_pack().keyed(&key));
        let packed = same(&cluster, &nats, what, &here, &there).await;
        assert!(packed.status == answer.status || *what == "a member", "{what}: {packed:?}");
    }

    let update = json!({"type": "update_record", "id": record, "data": {"name": "new"}});
    let refused = [
        ("an unknown kind", json!({"type": "create_record", "kind": "no_such", "data": {}})),
        ("data that breaks the schema", json!({"type": "create_record", "kind": "model", "data": {"name": 7}})),
        ("an unknown field", json!({"type": "create_record", "kind": "model", "data": {}, "colour": "red"})),
        ("an unknown command", json!({"type": "drop_table"})),
        ("no command", json!({"kind": "model"})),
        ("an id of another kind", json!({"type": "archive_record", "id": tenant.id})),
        ("a record that is not there", json!({"type": "archive_record", "id": nobody(&tenant)})),
        ("another version", json!({"command": update, "expected_version": 99})),
        ("the future", json!({"command": create("x"), "occurred_at": "2099-01-01T00:00:00Z"})),
        ("nothing", json!([])),
        ("too many", Value::Array(vec![create("x"); 1_001])),
        ("a number", json!(7)),
        ("what is for operators", json!({"type": "suspend_organization", "reason": "no"})),
        ("a plan of one's own choice", json!({"type": "change_plan", "plan": "enterprise"})),
        ("what makes another organization", json!({"type": "create_organization", "name": "x", "slug": "xxx"})),
    ];
    for (what, body) in &refused {
        let sent = by_tenant(body).keyed(&what.replace(' ', "-"));
        let answer = same(&cluster, &nats, what, &sent, &sent).await;
        assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
        let packed = sent.into_message_pack();
        assert_eq!(same(&cluster, &nats, what, &packed, &packed).await.status, answer.status, "{what}");
    }

    let bytes = |body: &[u8], content_type| Sent { body: body.to_vec(), content_type, ..by_tenant(&json!({})) };
    let from = |authorization: Option<&str>| Sent {
        authorization: authorization.map(str::to_owned),
        ..by_tenant(&create("x"))
    };
    let to = |org: &str| Sent { org: org.to_owned(), ..by_tenant(&create("x")) };
    let bearer = |token: &str| format!("Bearer {token}");
    let broken_key = format!("{}x", tenant.key);
    for (what, status, code, sent) in [
        ("no JSON", 400, "malformed_body", bytes(b"{\"type\": oops}", JSON)),
        ("half a JSON", 400, "malformed_body", bytes(b"{\"type\":", JSON)),
        ("no UTF-8", 400, "malformed_body", bytes(b"{\"type\": \"\xff\"}", JSON)),
        ("no body", 400, "malformed_body", bytes(b"", JSON)),
        ("no MessagePack", 400, "malformed_body", bytes(&[0xc1], MESSAGE_PACK)),
        ("JSON that says it is MessagePack", 400, "malformed_body", bytes(b"{}", MESSAGE_PACK)),
        ("XML", 415, "unsupported_media_type", bytes(b"<command/>", "application/xml")),
        ("nobody", 401, "unauthenticated", from(None)),
        ("no scheme", 401, "unauthenticated", from(Some(&tenant.key))),
        ("a key with a typing error", 401, "unauthenticated", from(Some(&bearer(&broken_key)))),
        ("something", 401, "unauthenticated", from(Some("Bearer something"))),
        ("a viewer", 403, "forbidden", from(Some(&bearer(&viewer)))),
        ("a neighbour's key", 404, "not_found", from(Some(&bearer(&other.key)))),
        ("a neighbour's owner", 404, "not_found", from(Some(&bearer(&other.owner)))),
        ("an organization that is not there", 404, "not_found", to(&nowhere)),
        ("a slug that is not there", 404, "not_found", to("no-such-slug")),
        ("a neighbour", 404, "not_found", to(&other.id.to_string())),
        ("an id of another kind", 400, "", to(&record)),
        ("several without keys", 400, "idempotency_key_missing", by_tenant(&json!([create("x")]))),
        ("a key with spaces", 400, "invalid_header", by_tenant(&create("x")).keyed("a b")),
        ("an operator in an organization", 404, "not_found", from(Some(&bearer(cluster.operator())))),
        (
            "an operator nowhere",
            404,
            "not_found",
            Sent { org: nowhere.clone(), ..from(Some(&bearer(cluster.operator()))) },
        ),
    ] {
        let answer = same(&cluster, &nats, what, &sent, &sent).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if !code.is_empty() {
            assert_eq!(answer.body["code"], code, "{what}");
        }
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{what}");
    }
    // A user, a member's key and the slug work as well.
    for (what, sent) in [
        ("its owner", from(Some(&bearer(&tenant.owner)))),
        ("a member", from(Some(&bearer(&member)))),
        ("the slug", to(&tenant.slug)),
    ] {
        assert_eq!(same(&cluster, &nats, what, &sent, &sent).await.status, 201, "{what}");
    }

    cluster.until_projected(&tenant).await;
    let (log, mut database) = (cluster.log().await, cluster.superuser().await);
    for (whose, extra) in [(&tenant, true), (&twin, true), (&other, false)] {
        let history = History::read(&log, whose.id).await;
        history.assert_sound();
        history.assert_projected(&mut database).await;
        assert_eq!(history.records().len() > 1, extra, "{}", whose.slug);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_by_nats_has_an_outcome_for_each_command() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("batch").await;
    let nats = cluster.producer().await;
    let commands: Vec<Value> = (0..1_000)
        .map(|number| match number % 10 {
            9 => json!({"type": "create_record", "kind": "model", "data": {}}),
            _ => create(format!("record {number}")),
        })
        .collect();
    let sent = Sent::new(&tenant, &commands.into()).into_message_pack().keyed("batch");
    let first = sent.by_nats(&nats).await;
    assert_eq!(first.status, 200, "{first:?}");
    let outcomes = first.body.as_array().unwrap();
    assert_eq!(outcomes.len(), 1_000);
    for (number, outcome) in outcomes.iter().enumerate() {
        if number % 10 == 9 {
            assert_eq!((&outcome["status"], &outcome["error"]["status"]), (&json!("refused"), &json!(422)));
            assert_eq!(outcome["error"]["errors"][0]["pointer"], "/data", "{outcome}");
        } else {
            let command = CommandId::from_idempotency_key(tenant.id, &format!("batch/{number}"));
            assert_eq!((&outcome["status"], &outcome["replayed"]), (&json!("accepted"), &json!(false)));
            assert_eq!(outcome["command_id"], command.to_string());
        }
    }
    let again = sent.by_nats(&nats).await;
    for (first, again) in outcomes.iter().zip(again.body.as_array().unwrap()) {
        assert_eq!(
            (&first["id"], &first["position"], &first["version"]),
            (&again["id"], &again["position"], &again["version"])
        );
    }
    let history = History::read(&cluster.log().await, tenant.id).await;
    assert_eq!(history.records().len(), 900);
    for (number, outcome) in outcomes.iter().enumerate().filter(|(number, _)| number % 10 != 9) {
        let record = &history.records()[outcome["id"].as_str().unwrap()];
        assert_eq!(record.data["name"], format!("record {number}"));
    }
}
