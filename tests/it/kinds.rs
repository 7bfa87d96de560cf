//! Kinds: those that are shipped, records of each in and between organizations; what a kind declares of its records, by which
//! they are listed and what they refer to. And kinds and events by their names: an unknown name is an error and no empty
//! answer; a kind that was retired for all by one call can be restored by another.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use orgstream::commands::request::Caller;
use orgstream_domain::{ChangeKind, Command, CreateRecord, PublishCatalogItem, Scopes, WithdrawCatalogItem};
use orgstream_events::{Actor, ActorType, AggregateId, PLATFORM_ORG, RecordId, Role};
use orgstream_projections::{
    BoundOrg, SortKey,
    records::{self, Archived, FieldCondition, FieldValues, OrderBy, RecordFilter, RecordOrder},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, OPERATOR, Org, model};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_by_what_there_is_not_is_refused_with_what_there_is() {
    let api = Api::start().await;
    let org = api.org("slips").await;
    let (_, position) = api.record(&org, "one").await;
    api.sees(&org, &position).await;
    for (path, pointer, named) in [
        ("records?kind=modle", "/kind", "model"),
        ("audit/events?action=record.craeted", "/action", "record.created"),
        ("audit/export?action=members.added", "/action", "member.added"),
    ] {
        let refused = api.get(&org.owner, &org.path(path)).await.expect(422);
        let error = &refused.json()["errors"][0];
        assert_eq!(error["pointer"], pointer, "{path}");
        assert!(error["detail"].as_str().unwrap().contains(named), "{path}: {error}");
    }
    // An existing kind without records gives an empty answer.
    for path in ["records?kind=evaluation", "audit/events?action=member.removed"] {
        assert_eq!(api.get(&org.owner, &org.path(path)).await.expect(200).json()["data"], json!([]), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_was_retired_for_everybody_can_be_restored() {
    let api = Api::start().await;
    let (one, other) = (api.org("kind-one").await, api.org("kind-other").await);
    for (org, count) in [(&one, 3), (&other, 1)] {
        for number in 0..count {
            let (_, position) = api.record(org, &format!("{number}")).await;
            api.sees(org, &position).await;
        }
    }
    let path = "/v1/kinds/model";
    let retire = |query: &str| {
        let request = api.request(Method::DELETE, &format!("{path}{query}"));
        Answer::of(request.bearer_auth(OPERATOR))
    };
    // Its impact is shown before it is done, to callers that may do it.
    let reach = retire("?dry_run=true").await.expect(200).json();
    assert_eq!(reach, json!({"kind": "model", "organizations": 2, "records": 4, "complete": true}));
    let asked = api.request(Method::DELETE, &format!("{path}?dry_run=true")).bearer_auth(&one.owner);
    Answer::of(asked).await.expect(403);
    let asked = api.request(Method::DELETE, "/v1/kinds/modle?dry_run=true").bearer_auth(OPERATOR);
    Answer::of(asked).await.expect(404);
    let make = async |expected: u16| api.post(&one.owner, &one.path("records"), &model("next")).await.expect(expected);
    make(201).await;

    let retired = retire("").await.expect(200);
    assert_eq!(retired.json()["events"], json!(["kind.retired"]));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while api.post(&one.owner, &one.path("records"), &model("late")).await.status == 201 {
        assert!(std::time::Instant::now() < deadline, "a retired kind goes on");
    }
    api.post(&one.owner, &format!("{path}/restore"), &json!({})).await.expect(403);
    let restored = api.request(Method::POST, &format!("{path}/restore")).bearer_auth(OPERATOR);
    let restored = Answer::of(restored).await.expect(200);
    assert_eq!(restored.json()["events"], json!(["kind.restored"]));
    while api.post(&one.owner, &one.path("records"), &model("again")).await.status != 201 {
        assert!(std::time::Instant::now() < deadline, "a restored kind does not go on");
    }
    let shown = api.get_at(OPERATOR, path, restored.header("stream-position")).await.expect(200).json();
    assert_eq!((&shown["retired"], shown["version"].as_u64()), (&json!(false), restored.json()["version"].as_u64()));
    // A repetition has no further effect.
    let again = api.request(Method::POST, &format!("{path}/restore")).bearer_auth(OPERATOR);
    assert_eq!(Answer::of(again).await.expect(200).json()["events"], json!([]));
}

/// The kinds of every installation, once the read models have all of them.
pub(crate) async fn shipped(api: &Api) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let kinds = api.get(OPERATOR, "/v1/kinds").await.expect(200).json();
        let found = kinds["data"].as_array().unwrap();
        if found.len() == 18 {
            return found.clone();
        }
        assert!(found.len() < 18 && Instant::now() < deadline, "there are {}", found.len());
    }
}

/// The places of a schema that refer to records: a pointer into the data, with a 0 for an item, and the kind.
fn reference_places(schema: &Value) -> Vec<(String, String, String)> {
    let mut places = Vec::new();
    for (name, property) in schema["properties"].as_object().unwrap() {
        for (path, place) in [(format!("/{name}"), property), (format!("/{name}/0"), &property["items"])] {
            if let Some(kind) = place["x-ref"]["kind"].as_str() {
                places.push((path, kind.to_owned(), place["x-ref"]["scope"].as_str().unwrap_or("own").to_owned()));
            }
        }
    }
    places
}

/// The example of a kind, which refers to the records in `known` wherever it refers to one.
fn example(schema: &Value, known: &BTreeMap<String, String>) -> Value {
    let mut data = schema["examples"][0].clone();
    for (pointer, kind, _) in reference_places(schema) {
        if let Some(place) = data.pointer_mut(&pointer) {
            *place = json!(known[&kind]);
        }
    }
    data
}

/// A record of a shipped kind.
pub(crate) struct OfKind {
    pub(crate) kind: Value,
    pub(crate) data: Value,
    pub(crate) made: Answer,
}

/// Creates a record of every shipped kind from the kind's example, after those that it refers to.
pub(crate) async fn one_of_each(api: &Api, org: &Org) -> Vec<OfKind> {
    let mut left = shipped(api).await;
    let (mut created, mut known) = (Vec::new(), BTreeMap::new());
    while !left.is_empty() {
        let is_next = |kind: &Value| {
            let refers = reference_places(&kind["schema"]).into_iter();
            refers
                .filter(|(pointer, ..)| kind["schema"]["examples"][0].pointer(pointer).is_some())
                .all(|(_, of, _)| known.contains_key(&of))
        };
        let next = left.iter().position(is_next).expect("kinds refer to each other in a circle");
        let kind = left.remove(next);
        let data = example(&kind["schema"], &known);
        let body = json!({"kind": kind["kind"], "data": data});
        let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201);
        known.insert(kind["kind"].as_str().unwrap().to_owned(), made.json()["id"].as_str().unwrap().to_owned());
        created.push(OfKind { kind, data, made });
    }
    created
}

/// The answer to a request about a record: its status, and its body without what differs between requests.
async fn answer(api: &Api, method: Method, bearer: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let mut request = api.request(method, path).bearer_auth(bearer);
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = Answer::of(request).await;
    let mut body = answer.json();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("request_id");
        fields.remove("instance");
    }
    (answer.status, body)
}

// S1.7, S1.8, S1.9, S1.10, S1.11, S1.12, S1.13, S1.15
// S5.2, S5.3, S5.4, S5.5, S5.6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_5_records_of_every_shipped_kind_are_an_organizations_own() {
    let api = Api::start().await;
    let (ours, theirs) = (api.org("kinds-ours").await, api.org("kinds-theirs").await);
    let kinds = shipped(&api).await;
    let made = one_of_each(&api, &ours).await;
    let of_kind = |OfKind { kind, made, .. }: &OfKind| {
        (kind["kind"].as_str().unwrap().to_owned(), made.json()["id"].as_str().unwrap().to_owned())
    };
    let known: BTreeMap<String, String> = made.iter().map(of_kind).collect();
    for OfKind { kind, data, made } in made {
        let (name, schema) = (kind["kind"].as_str().unwrap().to_owned(), &kind["schema"]);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let path = ours.path(&format!("records/{id}"));
        let listing = ours.path(&format!("records?kind={name}"));

        // At home: get, list, update.
        let shown = api.get_at(&ours.owner, &path, made.header("stream-position")).await.expect(200).json();
        assert_eq!((&shown["data"], &shown["kind"]), (&data, &kind["kind"]), "{name}");
        let listed = api.get(&ours.owner, &listing).await.expect(200).json();
        assert_eq!(listed["data"], json!([shown]), "{name}");
        let mut changed = data.clone();
        changed["note"] = json!("ours");
        let request = api.request(Method::PUT, &path).bearer_auth(&ours.owner);
        let updated = Answer::of(request.json(&json!({"data": changed}))).await;
        let shown = if kind["append_only"] == true {
            assert_eq!(updated.expect(409).problem(), "record_append_only", "{name}");
            shown
        } else {
            let updated = updated.expect(200);
            let shown = api.get_at(&ours.owner, &path, updated.header("stream-position")).await.expect(200).json();
            assert_eq!((&shown["data"], &shown["version"]), (&changed, &json!(2)), "{name}");
            shown
        };

        // From another organization: as if it were not there, through every door.
        let nobodys = RecordId::fresh(1_700_000_000_000, [9; 10]).to_string();
        let body = json!({"data": changed});
        for (method, rest, body) in [
            (Method::GET, "", None),
            (Method::GET, "/references", None),
            (Method::GET, "/referrers", None),
            (Method::PUT, "", Some(&body)),
            (Method::DELETE, "", None),
        ] {
            let at = |org: &Org, id: &str| org.path(&format!("records/{id}{rest}"));
            let ask = async |path: String| answer(&api, method.clone(), &theirs.owner, &path, body).await;
            let foreign = ask(at(&theirs, &id)).await;
            assert_eq!(foreign.0, 404, "{name}: {method} {rest}: {foreign:?}");
            assert_eq!(foreign, ask(at(&theirs, &nobodys)).await, "{name}: {method} {rest}");
            assert_eq!(ask(at(&ours, &id)).await.0, 404, "{name}: {method} {rest} of the organization itself");
        }
        let command = |id: &str| json!({"type": "archive_record", "id": id});
        let foreign = api.post(&theirs.owner, &theirs.path("commands"), &command(&id)).await.expect(404);
        assert_eq!(foreign.problem(), "not_found", "{name}");
        let field = if data.get("name").is_some() { "name" } else { "title" };
        for query in [format!("records?kind={name}&archived=include"), format!("records?kind={name}&count=true")] {
            let listed = api.get(&theirs.owner, &theirs.path(&query)).await.expect(200).json();
            assert_eq!(listed["data"], json!([]), "{name}: {query}");
            assert!(listed.get("total").is_none_or(|total| *total == 0), "{name}: {listed}");
        }
        if let Some(value) = data[field].as_str() {
            let filtered = async |org: &Org| {
                let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
                let path = org.path(&format!("records?kind={name}&filter[{field}]={value}"));
                api.get(&org.owner, &path).await.expect(200).json()["data"].clone()
            };
            assert_eq!(filtered(&ours).await, json!([shown]), "{name}");
            assert_eq!(filtered(&theirs).await, json!([]), "{name}");
        }

        // Wrong content is pointed at.
        let mut wrong = data.clone();
        let required = schema["required"][0].as_str().unwrap();
        wrong[required] = json!({"not": "that"});
        let body = json!({"kind": name, "data": wrong});
        let refused = api.post(&ours.owner, &ours.path("records"), &body).await.expect(422).json();
        assert_eq!(refused["errors"][0]["pointer"], format!("/data/{required}"), "{name}: {refused}");
    }

    // What others have cannot be referred to, which looks as if it were not there.
    for kind in &kinds {
        let name = kind["kind"].as_str().unwrap();
        let places = reference_places(&kind["schema"]);
        let mut data = kind["schema"]["examples"][0].clone();
        let Some((pointer, ..)) = places.iter().find(|(pointer, ..)| data.pointer(pointer).is_some()) else { continue };
        for (pointer, of, _) in &places {
            if let Some(place) = data.pointer_mut(pointer) {
                *place = json!(known[of]);
            }
        }
        let path = theirs.path("records");
        let foreign =
            answer(&api, Method::POST, &theirs.owner, &path, Some(&json!({"kind": name, "data": data}))).await;
        for (pointer, ..) in &places {
            if let Some(place) = data.pointer_mut(pointer) {
                *place = json!(RecordId::fresh(1_700_000_000_000, [9; 10]));
            }
        }
        let random = answer(&api, Method::POST, &theirs.owner, &path, Some(&json!({"kind": name, "data": data}))).await;
        assert_eq!((foreign.0, &foreign.1["code"]), (422, &json!("reference_not_found")), "{name}: {foreign:?}");
        assert_eq!(foreign, random, "{name}");
        let pointers: Vec<_> = foreign.1["errors"].as_array().unwrap().iter().map(|error| &error["pointer"]).collect();
        assert!(pointers.contains(&&json!(format!("/data{pointer}"))), "{name}: {pointers:?}");
    }

    // Archived at home: out of the listing, still there by id. What is written once is not archived.
    let once: BTreeSet<&str> =
        kinds.iter().filter(|kind| kind["append_only"] == true).filter_map(|kind| kind["kind"].as_str()).collect();
    assert_eq!(once, BTreeSet::from(["analysis_log", "trace"]));
    for (name, id) in &known {
        let request = api.request(Method::DELETE, &ours.path(&format!("records/{id}"))).bearer_auth(&ours.owner);
        if once.contains(name.as_str()) {
            assert_eq!(Answer::of(request).await.expect(409).problem(), "record_append_only", "{name}");
            continue;
        }
        let position = Answer::of(request).await.expect(200).header("stream-position").to_owned();
        let listed = api.get_at(&ours.owner, &ours.path(&format!("records?kind={name}")), &position).await.expect(200);
        assert_eq!(listed.json()["data"], json!([]), "{name}");
        let shown = api.get(&ours.owner, &ours.path(&format!("records/{id}"))).await.expect(200).json();
        assert_eq!(shown["archived"], true, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_cannot_hold_is_refused_with_a_pointer() {
    let api = Api::start().await;
    let register = async |schema: Value| {
        let body = json!({"kind": "faulty", "title": "Faulty", "visibility": "private", "schema": schema});
        api.post(OPERATOR, "/v1/kinds", &body).await
    };
    let property = |property: Value| json!({"type": "object", "properties": {"a": property}});
    let at = "/schema/properties/a";
    for (schema, pointer, code) in [
        (property(json!({"type": "string", "x-ref": {"kind": "modle"}})), format!("{at}/x-ref/kind"), "unknown_kind"),
        (
            property(json!({"type": "string", "x-ref": {"kind": "model", "scope": "all"}})),
            format!("{at}/x-ref/scope"),
            "unknown_value",
        ),
        (property(json!({"type": "object", "x-filter": true})), format!("{at}/x-filter"), "not_a_scalar"),
        (property(json!({"type": "string", "x-sort": true})), format!("{at}/x-sort"), "not_a_short_text"),
        (property(json!({"type": "number", "x-search": "title"})), format!("{at}/x-search"), "not_a_text"),
        (property(json!({"$ref": "https://127.0.0.1:1/schema.json"})), format!("{at}/$ref"), "remote_reference"),
        (property(json!({"pattern": "(?:a{1000}){1000}"})), format!("{at}/pattern"), "format"),
        (property(json!({"type": "objekt"})), format!("{at}/type"), "enum"),
        (json!({"type": "object", "description": "x".repeat(66_000)}), "/schema".to_owned(), "too_long"),
    ] {
        let refused = register(schema).await.expect(422).json();
        let error = &refused["errors"][0];
        assert_eq!(error["pointer"], pointer, "{refused}");
        // The keyword of a faulty schema depends on how its dialect says it.
        assert!(error["code"] == code || ["format", "enum"].contains(&code), "{refused}");
        assert!(!error["detail"].as_str().unwrap().is_empty(), "{refused}");
    }
    let refused = register(json!({"description": "x".repeat(1 << 20)})).await;
    assert_eq!((refused.status, refused.problem().as_str()), (413, "payload_too_large"));
    // Text that makes a backtracking engine count to the end of time takes no longer than other text.
    let slow = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}});
    let position = register(slow).await.expect(201).header("stream-position").to_owned();
    api.get_at(OPERATOR, "/v1/kinds/faulty", &position).await.expect(200);
    let org = api.org("faulty").await;
    let body = json!({"kind": "faulty", "data": {"a": "a".repeat(100_000) + "!"}});
    let path = org.path("records");
    let refused = tokio::time::timeout(Duration::from_secs(10), api.post(&org.owner, &path, &body));
    assert_eq!(refused.await.unwrap().expect(422).json()["errors"][0]["pointer"], "/data/a");
    // A kind may refer to itself.
    let tree =
        json!({"type": "object", "properties": {"parent": {"type": ["string", "null"], "x-ref": {"kind": "tree"}}}});
    let body = json!({"kind": "tree", "title": "Tree", "visibility": "private", "schema": tree});
    api.post(OPERATOR, "/v1/kinds", &body).await.expect(201);
    // A change is held to the same.
    let change = json!({"schema": {"properties": {"a": {"type": "string", "x-ref": {"kind": "modle"}}}}});
    let request = api.request(Method::PATCH, "/v1/kinds/tree").bearer_auth(OPERATOR).json(&change);
    assert_eq!(Answer::of(request).await.expect(422).json()["errors"][0]["code"], "unknown_kind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_an_earlier_version_is_renewed_and_one_that_was_changed_is_not() {
    let api = Api::start().await;
    let kind = async |name: &str| api.get(OPERATOR, &format!("/v1/kinds/{name}")).await.expect(200).json();
    let change = async |name: &str, body: Value| {
        let request = api.request(Method::PATCH, &format!("/v1/kinds/{name}")).bearer_auth(OPERATOR);
        let position = Answer::of(request.json(&body)).await.expect(200).header("stream-position").to_owned();
        api.get_at(OPERATOR, &format!("/v1/kinds/{name}"), &position).await.expect(200);
    };
    shipped(&api).await;
    let now = kind("space").await;
    // As the first version registered it.
    let text = json!({"type": "string"});
    let earlier = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 200}, "description": text,
        "resources": {"type": "array", "items": text}, "layout": {"type": "object"},
        "tags": {"type": "array", "items": text},
    }});
    let earlier_kind: ChangeKind = serde_json::from_value(json!({"kind": "space", "schema": earlier})).unwrap();
    api.gateway.handler().handle(&system(), Command::from(earlier_kind).into()).await.unwrap();
    change("policy", json!({"title": "House rules"})).await;
    api.another().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    let renewed = loop {
        let renewed = kind("space").await;
        if renewed["version"] == 3 {
            break renewed;
        }
        assert!(Instant::now() < deadline, "it stays as it was: {renewed}");
    };
    assert_eq!(renewed["schema"], now["schema"]);
    // Kinds are renewed in their order, and this one comes after.
    let late = json!({"kind": "late", "title": "Late", "visibility": "private", "schema": {}});
    let position = api.post(OPERATOR, "/v1/kinds", &late).await.expect(201).header("stream-position").to_owned();
    api.get_at(OPERATOR, "/v1/kinds/late", &position).await.expect(200);
    assert_eq!(kind("policy").await["title"], "House rules");

    // What an operator went back to stays.
    change("space", json!({"schema": earlier})).await;
    api.another().await;
    let last = json!({"kind": "latest", "title": "Latest", "visibility": "private", "schema": {}});
    let position = api.post(OPERATOR, "/v1/kinds", &last).await.expect(201).header("stream-position").to_owned();
    api.get_at(OPERATOR, "/v1/kinds/latest", &position).await.expect(200);
    assert_eq!(kind("space").await["version"], 4);
}

/// The program's own caller.
fn system() -> Caller {
    Caller {
        org: PLATFORM_ORG,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        role: Role::Owner,
        scopes: Scopes::ALL,
        proof: None,
        right: None,
        creator: None,
        context: orgstream_events::Context::default(),
        request_id: None,
        trace: None,
    }
}

/// Registers a kind whose records are listed by what they have.
async fn register_runs(api: &Api) {
    let schema = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "maxLength": 200, "x-filter": true, "x-sort": true},
        "state": {"type": "string", "enum": ["queued", "done", "failed"], "x-filter": true},
        "score": {"type": ["number", "null"], "x-filter": true, "x-sort": true},
        "at": {"type": "string", "format": "date-time", "x-filter": true, "x-sort": true},
        "flag": {"type": "boolean", "x-filter": true},
        "rank": {"type": "integer"},
    }});
    let body = json!({"kind": "run", "title": "Run", "visibility": "private", "schema": schema});
    let position = api.post(OPERATOR, "/v1/kinds", &body).await.expect(201).header("stream-position").to_owned();
    api.get_at(OPERATOR, "/v1/kinds/run", &position).await.expect(200);
}

/// Creates a run, and returns its id and position.
async fn run(api: &Api, org: &Org, data: &Value) -> (String, String) {
    let body = json!({"kind": "run", "data": data});
    let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201).json();
    (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
}

/// The names of the records of one page.
fn names(page: &Value) -> Vec<String> {
    let rows = page["data"].as_array().unwrap_or_else(|| panic!("{page}"));
    rows.iter().map(|row| row["data"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_listed_by_what_their_kind_declares() {
    let api = Api::start().await;
    let (org, other) = (api.org("lister").await, api.org("other-lister").await);
    register_runs(&api).await;
    let runs = [
        json!({"name": "a", "state": "done", "score": 0.5, "at": "2026-01-01T00:00:00Z", "flag": true, "rank": 1}),
        json!({"name": "b", "state": "done", "score": 10, "at": "2026-01-01T02:30:00+03:00", "flag": false}),
        json!({"name": "c", "state": "failed", "score": 9.75, "at": "2026-02-01T00:00:00.5Z"}),
        json!({"name": "d", "state": "queued", "score": null}),
        json!({"name": "e", "state": "done", "score": -3, "at": "2026-02-01T00:00:00Z", "flag": true}),
        json!({"name": "f", "state": "queued"}),
    ];
    let (mut ids, mut last) = (Vec::new(), String::new());
    for data in &runs {
        let (id, position) = run(&api, &org, data).await;
        ids.push(id);
        last = position;
    }
    run(&api, &other, &json!({"name": "theirs", "state": "done", "score": 0.5})).await;
    api.sees(&org, &last).await;
    let list = async |query: &str| api.get(&org.owner, &org.path(&format!("records?kind=run{query}"))).await;
    for (query, expected) in [
        ("", "fedcba"),
        ("&sort=created", "abcdef"),
        ("&filter[state]=done", "eba"),
        ("&filter[state]=done&sort=created", "abe"),
        ("&filter[state]=done&filter[state]=failed", "ecba"),
        ("&filter[state][in]=failed,queued", "fdc"),
        ("&filter%5Bstate%5D=done&filter[flag]=true", "ea"),
        ("&filter[state]=done&filter[score][gt]=0", "ba"),
        // Numbers as numbers, however they are written; records without the field are in no range.
        ("&filter[score]=0.50", "a"),
        ("&filter[score]=1e1", "b"),
        ("&filter[score][gte]=9.75", "cb"),
        ("&filter[score][gt]=9.75", "b"),
        ("&filter[score][lt]=10", "eca"),
        ("&filter[score][gte]=-3&filter[score][lte]=0.5", "ea"),
        ("&sort=score", "eacb"),
        ("&sort=-score", "bcae"),
        ("&sort=-score&filter[score][lt]=10&filter[state]=done", "ae"),
        // Moments as moments, whatever their zone.
        ("&sort=at", "baec"),
        ("&filter[at]=2025-12-31T23:30:00Z", "b"),
        ("&filter[at][gt]=2026-02-01T00:00:00Z", "c"),
        ("&filter[name][gte]=b&filter[name][lt]=d&sort=name", "bc"),
        ("&filter[flag]=false", "b"),
        ("&archived=only", ""),
    ] {
        let page = list(query).await.expect(200).json();
        assert_eq!(names(&page).concat(), expected, "{query}");
        let counted = list(&format!("{query}&count=true&limit=1")).await.expect(200).json();
        assert_eq!((&counted["total"], &counted["total_capped"]), (&json!(expected.len()), &json!(false)), "{query}");
        // Page by page, there and back.
        let (mut seen, mut cursor) = (String::new(), None::<String>);
        let mut back = None;
        loop {
            let at = cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let page = list(&format!("{query}&limit=1{at}")).await.expect(200).json();
            seen.push_str(&names(&page).concat());
            back = page["prev_cursor"].as_str().map(str::to_owned).or(back);
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(seen, expected, "{query}, page by page");
        if let Some(back) = back.filter(|_| expected.len() > 1) {
            let page = list(&format!("{query}&limit=100&cursor={back}")).await.expect(200).json();
            assert_eq!(names(&page).concat(), expected[..expected.len() - 1], "{query}, back");
        }
    }

    // A change moves a record to where it belongs, and what it has no more does not find it.
    let put = async |id: &str, data: Value| {
        let request = api.request(Method::PUT, &org.path(&format!("records/{id}"))).bearer_auth(&org.owner);
        let changed = Answer::of(request.json(&json!({"data": data}))).await.expect(200);
        api.sees(&org, changed.header("stream-position")).await;
        changed.json()
    };
    let before = list("&sort=-updated&limit=1").await.expect(200).json()["data"][0]["updated_at"].clone();
    put(&ids[0], json!({"name": "a", "score": 11})).await;
    put(&ids[2], json!({"name": "c", "state": "done"})).await;
    for (query, expected) in [
        ("&sort=-score", "abe"),
        ("&filter[state]=done", "ecb"),
        ("&filter[flag]=true", "e"),
        ("&sort=-updated", "cafedb"),
        ("&sort=updated", "bdefac"),
    ] {
        assert_eq!(names(&list(query).await.expect(200).json()).concat(), expected, "{query}");
    }
    let query = format!("&updated_since={}&sort=updated", before.as_str().unwrap());
    let since = names(&list(&query).await.expect(200).json());
    assert!(since.ends_with(&["a".to_owned(), "c".to_owned()]) && !since.contains(&"b".to_owned()), "{since:?}");

    // Archived ones are out of every listing, unless they are asked for.
    let request = api.request(Method::DELETE, &org.path(&format!("records/{}", ids[1]))).bearer_auth(&org.owner);
    api.sees(&org, Answer::of(request).await.expect(200).header("stream-position")).await;
    for (query, expected) in [
        ("&sort=-score", "ae"),
        ("&sort=-score&archived=include", "abe"),
        ("&sort=-score&archived=true", "abe"),
        ("&archived=only", "b"),
        ("&filter[state]=done&archived=exclude", "ec"),
        ("&filter[state]=done&archived=only", "b"),
    ] {
        assert_eq!(names(&list(query).await.expect(200).json()).concat(), expected, "{query}");
    }

    // What cannot be is refused, with what can.
    for (query, said) in [
        ("records?kind=run&filter[rank]=1", "there are: at, flag, name, score, state"),
        ("records?kind=run&filter[colour]=red", "filter[colour]"),
        ("records?kind=run&sort=state", "there are: created, updated, at, name, score"),
        ("records?kind=run&filter[score]=high", "must be a number"),
        ("records?kind=run&filter[at][gt]=2026-01-01", "RFC 3339"),
        ("records?kind=run&filter[flag]=yes", "true or false"),
        ("records?kind=run&filter[score][near]=1", "there are: eq, in, gt, gte, lt, lte"),
        ("records?kind=run&filter[score][gt]=1&filter[score][gt]=2", "one lower and one upper bound"),
        ("records?kind=run&filter[]=1", "must have its members in brackets"),
        ("records?kind=run&filter=1", "no such query parameter"),
        ("records?kind=run&filters[score]=1", "no such query parameter"),
        ("records?kind=run&updated_since=yesterday", "updated_since"),
        ("records?kind=run&archived=perhaps", "archived"),
        ("records?filter[score]=1", "add kind="),
        ("records?sort=updated", "add kind="),
        ("records?updated_since=2026-01-01T00:00:00Z", "add kind="),
    ] {
        let refused = api.get(&org.owner, &org.path(query)).await.expect(400);
        assert_eq!(refused.problem(), "invalid_parameter", "{query}");
        assert!(refused.json()["detail"].as_str().unwrap().contains(said), "{query}: {}", refused.text);
    }
    api.get(&org.owner, &org.path("records?kind=runn&filter[score]=1")).await.expect(422);
    // A cursor goes with its filter, its order and its organization.
    let cursor = list("&sort=score&limit=1").await.expect(200).json()["next_cursor"].as_str().unwrap().to_owned();
    for query in ["&sort=-score", "&sort=score&filter[flag]=true", "", "&sort=score&archived=only"] {
        list(&format!("{query}&cursor={cursor}")).await.expect(400);
    }
    let path = other.path(&format!("records?kind=run&sort=score&limit=1&cursor={cursor}"));
    api.get(&other.owner, &path).await.expect(400);
    let theirs =
        api.get(&other.owner, &other.path("records?kind=run&filter[score]=0.5&count=true")).await.expect(200).json();
    assert_eq!((names(&theirs), &theirs["total"]), (vec!["theirs".to_owned()], &json!(1)));
}

/// A field of any name is stored, though no index has room for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_with_a_long_name_parks_nothing() {
    let api = Api::start().await;
    let org = api.org("longwinded").await;
    register_runs(&api).await;
    // Such as does not compress.
    let long: String =
        (0..8_000u32).map(|at| char::from(b'!' + (at.wrapping_mul(2_654_435_761) >> 24) as u8 % 90)).collect();
    let long = long.replace('"', "'").replace('\\', "/");
    let (_, position) = run(&api, &org, &json!({"name": "x", "flag": true, long: true})).await;
    let found = api.get_at(&org.owner, &org.path("records?kind=run&filter[flag]=true"), &position).await.expect(200);
    assert_eq!(names(&found.json()), ["x"]);
}

/// More at the same time than a process has connections for queries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filtered_listings_do_not_wait_for_each_other() {
    let api = Api::start().await;
    let org = api.org("crowd").await;
    register_runs(&api).await;
    let (id, position) = run(&api, &org, &json!({"name": "x", "flag": true})).await;
    api.sees(&org, &position).await;
    for path in
        ["records?kind=run&filter[flag]=true", "records?kind=run&filter[flag]=false", "records?kind=run&sort=name"]
    {
        let path = org.path(path);
        let answers = join_all((0..40).map(|_| api.get(&org.owner, &path))).await;
        let wrong: Vec<_> = answers.iter().filter(|answer| ![200, 429].contains(&answer.status)).collect();
        assert!(wrong.is_empty() && answers[0].status == 200, "{path}: {wrong:?}");
    }
    api.get(&org.owner, &org.path(&format!("records/{id}/references"))).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_neither_repeat_nor_lose_a_record_while_others_are_written() {
    let api = Api::start().await;
    let org = api.org("pager").await;
    register_runs(&api).await;
    let mut last = String::new();
    for number in 0..30 {
        last = run(&api, &org, &json!({"name": format!("old-{number:02}"), "score": number % 5})).await.1;
    }
    api.sees(&org, &last).await;
    for sort in ["-created", "score", "-score"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        for page in 0.. {
            let query = format!("records?kind=run&sort={sort}&limit=7{cursor}");
            let answer = api.get(&org.owner, &org.path(&query)).await.expect(200).json();
            seen.extend(names(&answer).into_iter().filter(|name| name.starts_with("old")));
            let Some(next) = answer["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
            // Beside what was read, and beside what comes.
            for score in [0, 4] {
                let name = format!("new-{sort}-{page}-{score}");
                last = run(&api, &org, &json!({"name": name, "score": score})).await.1;
            }
            api.sees(&org, &last).await;
            assert!(page < 100, "the listing does not end");
        }
        let all: BTreeSet<_> = seen.iter().collect();
        assert_eq!((all.len(), seen.len()), (30, 30), "{sort}: {seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_are_read_from_indexes_under_row_level_security() {
    let api = Api::start().await;
    let org = api.org("planner").await;
    register_runs(&api).await;
    let (_, position) = run(&api, &org, &json!({"name": "one", "state": "done", "score": 1})).await;
    api.sees(&org, &position).await;
    let mut tx = api.db.read(BoundOrg::named_by_operator(org.id.parse().unwrap())).await.unwrap();
    let key = |value: Value| SortKey::of(&value).unwrap();
    let any = |field: &str, value: Value| FieldCondition {
        field: field.to_owned(),
        values: FieldValues::Any(vec![key(value)]),
    };
    let range = FieldValues::Range(Bound::Included(key(json!(0))), Bound::Excluded(key(json!(9))));
    let range = FieldCondition { field: "score".to_owned(), values: range };
    let score = || OrderBy::Field("score".to_owned());
    let since = Some("2026-01-01T00:00:00Z".parse().unwrap());
    for (conditions, updated_since, by, index, condition) in [
        (vec![any("state", json!("done"))], None, OrderBy::Created, "record_fields_by_value", "value = "),
        (vec![range.clone()], None, score(), "record_fields_by_value", "value >= "),
        (vec![], None, score(), "record_fields_by_value", "field = "),
        (vec![any("state", json!("done")), range], None, score(), "record_fields_by_value", "value = "),
        (vec![], since, OrderBy::Updated, "records_changed_of_kind", "updated_at >= "),
        (vec![], None, OrderBy::Updated, "records_changed_of_kind", "kind = "),
        (vec![], None, OrderBy::Created, "records_newest_of_kind", "kind = "),
    ] {
        for descending in [false, true] {
            let filter = RecordFilter {
                kind: Some("run".parse().unwrap()),
                archived: Archived::Exclude,
                updated_since,
                conditions: conditions.clone(),
            };
            let order = RecordOrder { by: by.clone(), descending };
            let plan = records::plan(&mut tx, &filter, &order).await.unwrap();
            let text = plan.join("\n");
            assert!(!text.contains("Seq Scan"), "{text}");
            // The condition is one of the index, and no filter over what it gives.
            let uses = plan.iter().zip(plan.iter().skip(1)).any(|(scan, cond)| {
                scan.contains(index)
                    && cond.contains("Index Cond")
                    && cond.contains(condition)
                    && cond.contains("org_id = ")
            });
            assert!(uses, "{index} by {condition}:\n{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_12_a_record_refers_to_what_its_organization_has_and_readers_see_what_became_of_it() {
    let api = Api::start().await;
    shipped(&api).await;
    // As traces and their evaluations, of records that can be archived.
    let text = json!({"type": "string", "maxLength": 100});
    let target = json!({"type": "object", "properties": {"name": text, "started_at": text}});
    let reference = json!({"type": "string", "x-ref": {"kind": "source"}});
    let referrer = json!({"type": "object", "properties": {"trace": reference, "score": {"type": "number"}}});
    for (name, schema) in [("source", target), ("source_evaluation", referrer)] {
        let body = json!({"kind": name, "title": name, "visibility": "private", "schema": schema});
        api.post(OPERATOR, "/v1/kinds", &body).await.expect(201);
    }
    refers(&api, "trace", "trace_evaluation", false).await;
    refers(&api, "source", "source_evaluation", true).await;
}

async fn refers(api: &Api, target: &str, referrer: &str, is_archived: bool) {
    let (org, other) = (
        api.org(&format!("{referrer}-a").replace('_', "-")).await,
        api.org(&format!("{referrer}-b").replace('_', "-")).await,
    );
    let trace = |name: &str| json!({"kind": target, "data": {"name": name, "started_at": "2026-03-01T12:00:00Z"}});
    let create = async |org: &Org, body: &Value| {
        let made = api.post(&org.owner, &org.path("records"), body).await.expect(201).json();
        (made["id"].as_str().unwrap().to_owned(), made["position"].as_str().unwrap().to_owned())
    };
    let archive = async |org: &Org, id: &str| {
        let request = api.request(Method::DELETE, &org.path(&format!("records/{id}"))).bearer_auth(&org.owner);
        Answer::of(request).await.expect(200).header("stream-position").to_owned()
    };
    let (mine, _) = create(&org, &trace("mine")).await;
    let (gone, _) = create(&org, &trace("gone")).await;
    let (foreign, _) = create(&other, &trace("foreign")).await;
    let (model, _) = create(&org, &model("no trace")).await;
    if is_archived {
        archive(&org, &gone).await;
    }
    let of = |trace: &str| json!({"kind": referrer, "data": {"trace": trace, "score": 0.5}});

    // Whatever cannot be referred to is refused alike: another organization's, nobody's, an archived one, another kind.
    let path = org.path("records");
    let nobodys = RecordId::fresh(1_700_000_000_000, [9; 10]).to_string();
    let random = answer(api, Method::POST, &org.owner, &path, Some(&of(&nobodys))).await;
    assert_eq!((random.0, &random.1["code"]), (422, &json!("reference_not_found")), "{random:?}");
    let error = &random.1["errors"][0];
    assert_eq!((&error["pointer"], &error["code"]), (&json!("/data/trace"), &json!("reference_not_found")));
    for id in [&foreign, if is_archived { &gone } else { &foreign }, &model] {
        assert_eq!(answer(api, Method::POST, &org.owner, &path, Some(&of(id))).await, random, "{id}");
    }
    let malformed = api.post(&org.owner, &path, &of("the trace")).await.expect(422).json();
    assert_eq!(
        (&malformed["code"], &malformed["errors"][0]["pointer"]),
        (&json!("validation_error"), &json!("/data/trace"))
    );
    // What is wrong with the rest is said first.
    let mut wrong = of(&nobodys);
    wrong["data"]["score"] = json!("high");
    let refused = api.post(&org.owner, &path, &wrong).await.expect(422).json();
    assert_eq!(refused["errors"][0]["pointer"], "/data/score", "{refused}");
    // Every door: the commands as well.
    let mut command = of(&foreign);
    command["type"] = json!("create_record");
    assert_eq!(
        api.post(&org.owner, &org.path("commands"), &command).await.expect(422).problem(),
        "reference_not_found"
    );

    // One that is there is referred to, both ways.
    let (first, _) = create(&org, &of(&mine)).await;
    let (second, position) = create(&org, &of(&mine)).await;
    let references = async |id: &str, position: &str| {
        api.get_at(&org.owner, &org.path(&format!("records/{id}/references")), position).await.expect(200).json()
    };
    let expected = |id: &str, archived: bool| json!({"data": [{"pointer": "/trace", "id": id, "kind": target, "scope": "own", "archived": archived}]});
    assert_eq!(references(&first, &position).await, expected(&mine, false));
    assert_eq!(references(&mine, &position).await, json!({"data": []}));
    let referrers = async |query: &str| {
        api.get(&org.owner, &org.path(&format!("records/{mine}/referrers{query}"))).await.expect(200).json()
    };
    let row = |id: &str| json!({"id": id, "kind": referrer, "pointer": "/trace", "archived": false});
    assert_eq!(referrers("").await["data"], json!([row(&second), row(&first)]));
    let page = referrers("?limit=1").await;
    assert_eq!(page["data"], json!([row(&second)]));
    let page = referrers(&format!("?limit=1&cursor={}", page["next_cursor"].as_str().unwrap())).await;
    assert_eq!((&page["data"], &page["has_more"]), (&json!([row(&first)]), &json!(false)));
    let back = referrers(&format!("?limit=1&cursor={}", page["prev_cursor"].as_str().unwrap())).await;
    assert_eq!(back["data"], json!([row(&second)]));

    // What is referred to may be archived; who reads sees it, and an update cannot refer to it again.
    if is_archived {
        let position = archive(&org, &mine).await;
        assert_eq!(references(&first, &position).await, expected(&mine, true));
    }
    api.get(&org.owner, &org.path(&format!("records/{first}"))).await.expect(200);
    let (other_trace, _) = create(&org, &trace("another")).await;
    let put = async |trace: &str| {
        let request = api.request(Method::PUT, &org.path(&format!("records/{first}"))).bearer_auth(&org.owner);
        Answer::of(request.json(&json!({"data": {"trace": trace, "score": 1}}))).await
    };
    if is_archived {
        assert_eq!(put(&mine).await.expect(422).problem(), "reference_not_found");
    }
    let position = put(&other_trace).await.expect(200).header("stream-position").to_owned();
    assert_eq!(references(&first, &position).await, expected(&other_trace, false));
    assert_eq!(referrers("").await["data"], json!([row(&second)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_the_catalog_is_referred_to_where_the_kind_says_so() {
    let api = Api::start().await;
    let org = api.org("reader").await;
    let create = |kind: &str, data: Value| Command::from(CreateRecord { kind: kind.parse().unwrap(), data, id: None });
    let handler = api.gateway.handler();
    let catalog = handler.handle(&system(), create("model", json!({"name": "global"})).into()).await.unwrap();
    let AggregateId::Record(id) = catalog.aggregate else { panic!("{catalog:?}") };
    let (own, _) = api.record(&org, "own").await;
    let report = |models: Value| json!({"kind": "research_report", "data": {"title": "T", "abstract": "A", "published_at": "2026-03-01T00:00:00Z", "models": models}});
    let refused = api.post(&org.owner, &org.path("records"), &report(json!([id, own]))).await.expect(422).json();
    let pointers: Vec<_> = refused["errors"].as_array().unwrap().iter().map(|error| error["pointer"].clone()).collect();
    assert_eq!(pointers, ["/data/models/0", "/data/models/1"], "{refused}");
    // What is a draft is not there for others.
    let refused = api.post(&org.owner, &org.path("records"), &report(json!([id]))).await.expect(422);
    assert_eq!(refused.problem(), "reference_not_found");
    let publish = Command::from(PublishCatalogItem { id, record_version: None });
    handler.handle(&system(), publish.into()).await.unwrap();
    let made = api.post(&org.owner, &org.path("records"), &report(json!([id]))).await.expect(201);
    let path = format!("{}/references", made.header("location"));
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = api.get_at(&org.owner, &path, made.header("stream-position")).await.expect(200).json();
        let reference = &found["data"][0];
        assert_eq!((&reference["id"], &reference["scope"]), (&json!(id), &json!("global")), "{found}");
        if reference["archived"] == false {
            break;
        }
        // The platform's own read models may be behind.
        assert!(reference["archived"].is_null() && Instant::now() < deadline, "{found}");
    }
    let withdraw = Command::from(WithdrawCatalogItem { id, reason: "old".to_owned() });
    let withdrawn = handler.handle(&system(), withdraw.into()).await.unwrap();
    api.get_at(OPERATOR, "/v1/catalog-items", &withdrawn.position.to_string()).await.expect(200);
    let found = api.get(&org.owner, &path).await.expect(200).json();
    assert_eq!(found["data"][0]["archived"], true, "{found}");
    let publish = Command::from(PublishCatalogItem { id, record_version: None });
    handler.handle(&system(), publish.into()).await.unwrap();
    // Either: a judge's model may be one's own or the catalog's.
    for (name, model) in [("J", json!(id)), ("K", json!(own))] {
        let body = json!({"kind": "judge", "data": {"name": name, "instructions": "I", "model": model}});
        api.post(&org.owner, &org.path("records"), &body).await.expect(201);
    }
}
