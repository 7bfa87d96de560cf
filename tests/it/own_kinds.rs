//! Kinds of an organization's own: they work like the platform's, are there for nobody else, are as many and as large as the plan
//! allows, cost what a schema may cost, and say which records a change of them leaves behind.

use async_nats::{HeaderMap, client::Request};
use futures_util::future::join_all;
use orgstream_events::{OWN_KIND, PLATFORM_ORG};
use orgstream_projections::{BoundOrg, kinds};
use reqwest::Method;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::{Cluster, ClusterOptions, PATIENCE, eventually},
    history::digests,
    kinds::shipped,
    sources::{PRODUCT, sources},
};

fn ticket() -> Value {
    json!({"kind": "x_ticket", "title": "Ticket",
        "schema": {"type": "object", "required": ["subject"], "properties": {
            "subject": {"type": "string", "maxLength": 120, "x-search": "title"},
            "status": {"type": "string", "enum": ["open", "closed"], "x-filter": true},
            "points": {"type": "number", "x-filter": true, "x-sort": true},
            "model": {"type": "string", "x-ref": {"kind": "model", "scope": "either"}},
            "parent": {"type": "string", "x-ref": {"kind": "x_ticket"}},
        }},
        "views": [{"name": "by_status", "group_by": ["/status"], "measures": [
            {"name": "tickets", "fold": "count"}, {"name": "points", "fold": "sum", "of": "/points"}]}]})
}

/// Sends a request without a body, or with one.
async fn send(api: &Api, method: Method, bearer: &str, path: &str, body: Option<&Value>) -> Answer {
    let request = api.request(method, path).bearer_auth(bearer);
    Answer::of(body.into_iter().fold(request, reqwest::RequestBuilder::json)).await
}

async fn register(api: &Api, org: &Org, kind: &Value) -> String {
    let made = api.post(&org.owner, &org.path("kinds"), kind).await.expect(201);
    made.header("stream-position").to_owned()
}

async fn write(api: &Api, org: &Org, kind: &str, data: Value) -> (String, String) {
    let made = api.post(&org.owner, &org.path("records"), &json!({"kind": kind, "data": data})).await.expect(201);
    (made.json()["id"].as_str().unwrap().to_owned(), made.header("stream-position").to_owned())
}

/// The code, and the pointer to the first field that is wrong.
fn refusal(answer: &Answer) -> (u16, String, Value) {
    (answer.status, answer.problem(), answer.json()["errors"][0]["pointer"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_an_organizations_own_works_like_one_of_the_platforms() {
    let api = Api::start().await;
    let org = api.org("own").await;
    let made = api.post(&org.owner, &org.path("kinds"), &ticket()).await.expect(201);
    assert_eq!(made.json()["events"], json!(["kind.registered"]));
    assert!(made.header("location").ends_with(&format!("/v1/organizations/{}/kinds/x_ticket", org.id)));
    let shown = api.get_at(&org.owner, made.header("location"), made.header("stream-position")).await.expect(200);
    assert_eq!((&shown.json()["own"], &shown.json()["visibility"]), (&json!(true), &json!("private")));

    // Records: listed by its fields, searched, folded and referred to.
    let (model, _) = api.record(&org, "a model").await;
    let data = json!({"subject": "a heron", "status": "open", "points": 3, "model": model});
    let (first, _) = write(&api, &org, "x_ticket", data).await;
    let data = json!({"subject": "another heron", "status": "closed", "points": 5, "parent": first});
    let (second, position) = write(&api, &org, "x_ticket", data).await;
    let listed = org.path("records?kind=x_ticket&filter[points][gte]=1&sort=-points");
    let listed = api.get_at(&org.owner, &listed, &position).await.expect(200).json();
    let ids: Vec<_> = listed["data"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect();
    assert_eq!(ids, [json!(second), json!(first)]);
    for (query, count) in
        [("q=heron", 2), ("q=heron&kind=x_ticket", 2), ("q=heron&kind=x_ticket&filter[status]=open", 1)]
    {
        let found = api.get_at(&org.owner, &org.path(&format!("search?{query}")), &position).await.expect(200).json();
        assert_eq!(found["total"], count, "{query}: {found}");
    }
    let rows = api.get_at(&org.owner, &org.path("views/x_ticket/by_status"), &position).await.expect(200).json();
    let row = |group: &str, points: &str| json!({"bucket": null, "group": [group], "measures": {"tickets": "1", "points": points}});
    assert_eq!(rows["data"], json!([row("closed", "5"), row("open", "3")]));
    let referrers = org.path(&format!("records/{first}/referrers"));
    let referrers = api.get_at(&org.owner, &referrers, &position).await.expect(200).json();
    assert_eq!(referrers["data"][0]["id"], json!(second), "{referrers}");
    let dangling = json!({"kind": "x_ticket", "data": {"subject": "x", "parent": model}});
    let refused = api.post(&org.owner, &org.path("records"), &dangling).await;
    assert_eq!(refusal(&refused), (422, "reference_not_found".to_owned(), json!("/data/parent")));

    // One whose records are written once, and that refers to the other.
    let line = json!({"kind": "x_line", "title": "Line", "append_only": true, "schema": {"properties": {
        "text": {"type": "string", "x-search": "body"}, "of": {"type": "string", "x-ref": {"kind": "x_ticket"}}}}});
    register(&api, &org, &line).await;
    let items = json!([{"text": "one", "of": first}, {"text": "two"}]);
    let append = json!({"type": "append_records", "kind": "x_line", "items": items});
    let appended = api.post(&org.owner, &org.path("commands"), &append).await.expect(201);
    let position = appended.header("stream-position");
    let listed = api.get_at(&org.owner, &org.path("records?kind=x_line"), position).await.expect(200).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);

    // All of them in one list, each with whose it is.
    let all = api.get(&org.owner, &org.path("kinds")).await.expect(200).json();
    let own: Vec<_> = all["data"].as_array().unwrap().iter().filter(|kind| kind["own"] == true).collect();
    let own: Vec<_> = own.into_iter().map(|kind| kind["kind"].as_str().unwrap()).collect();
    assert_eq!(own, ["x_line", "x_ticket"]);
    assert!(all["data"].as_array().unwrap().iter().any(|kind| kind["kind"] == "model" && kind["own"] == false));
    let shared = api.get(&org.owner, "/v1/kinds").await.expect(200).json();
    assert!(!shared.to_string().contains("\"x_"), "{shared}");

    // A view that is declared late is built.
    let path = org.path("kinds/x_ticket");
    let mut views = ticket()["views"].clone();
    views.as_array_mut().unwrap().push(json!({"name": "all", "measures": [{"name": "tickets", "fold": "count"}]}));
    let changed = send(&api, Method::PATCH, &org.owner, &path, Some(&json!({"views": views}))).await.expect(200);
    assert_eq!((&changed.json()["version"], &changed.json()["events"]), (&json!(2), &json!(["kind.changed"])));
    api.sees(&org, changed.header("stream-position")).await;
    let built = eventually("the late view", async || {
        let found = api.get(&org.owner, &org.path("views/x_ticket/all")).await;
        (found.status != 503).then(|| found.expect(200).json())
    })
    .await;
    assert_eq!(built["data"][0]["measures"], json!({"tickets": "2"}));
    let listed = api.get(&org.owner, &org.path("views")).await.expect(200).json();
    let of_ticket = listed["data"].as_array().unwrap().iter().filter(|view| view["kind"] == "x_ticket");
    assert_eq!(of_ticket.map(|view| view["state"].as_str().unwrap()).collect::<Vec<_>>(), ["ready"; 2]);

    // Retired, with its reach first, and restored.
    let reach = send(&api, Method::DELETE, &org.owner, &format!("{path}?dry_run=true"), None).await.expect(200);
    assert_eq!(reach.json(), json!({"kind": "x_ticket", "organizations": 1, "records": 2, "complete": true}));
    send(&api, Method::DELETE, &org.owner, &path, None).await.expect(200);
    let late = json!({"kind": "x_ticket", "data": {"subject": "late"}});
    let refused = api.post(&org.owner, &org.path("records"), &late).await;
    assert_eq!((refused.status, refused.problem()), (422, "kind_retired".to_owned()));
    let restored = send(&api, Method::POST, &org.owner, &format!("{path}/restore"), None).await.expect(200);
    let position = restored.header("stream-position");
    api.post(&org.owner, &org.path("records"), &late).await.expect(201);

    // The audit log has each change, as about the kind.
    let events = org.path("audit/events?target=x_ticket&limit=100");
    let events = api.get_at(&org.owner, &events, position).await.expect(200).json();
    let mut types: Vec<_> =
        events["data"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    types.sort_unstable();
    assert_eq!(types, ["kind.changed", "kind.registered", "kind.restored", "kind.retired"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_is_registered_by_whom_its_name_says_and_by_those_with_the_permission() {
    let api = Api::start().await;
    let org = api.org("named").await;
    for (name, registers) in [("viewer", false), ("member", false), ("admin", true)] {
        let (_, key) = api.key(&org, name).await;
        let mut kind = ticket();
        kind["kind"] = json!(format!("x_of_{name}"));
        kind["schema"]["properties"]["parent"] = json!({});
        let answer = api.post(&key, &org.path("kinds"), &kind).await;
        assert_eq!(answer.status, if registers { 201 } else { 403 }, "{name}");
        kind["type"] = json!("register_kind");
        let answer = api.post(&key, &org.path("commands"), &kind).await;
        assert_eq!(answer.status, if registers { 409 } else { 403 }, "{name}");
        api.get(&key, &org.path("kinds")).await.expect(200);
    }
    // An operator has no say in it, and an organization none in the platform's.
    api.post(OPERATOR, &org.path("kinds"), &ticket()).await.expect(404);
    api.post(&org.owner, "/v1/kinds", &ticket()).await.expect(403);
    for (path, bearer, name) in
        [(org.path("kinds"), &*org.owner, "ticket"), ("/v1/kinds".to_owned(), OPERATOR, "x_ticket")]
    {
        let mut kind = ticket();
        kind["kind"] = json!(name);
        kind["schema"]["properties"]["parent"] = json!({});
        let refused = api.post(bearer, &path, &kind).await;
        assert_eq!(refusal(&refused), (422, "validation_error".to_owned(), json!("/kind")), "{name}");
        assert_eq!(refused.json()["errors"][0]["code"], "own_prefix");
    }
    let shared = json!({"kind": "x_shared", "title": "Shared", "visibility": "default_on", "schema": {}});
    let refused = api.post(&org.owner, &org.path("kinds"), &shared).await;
    assert_eq!(refusal(&refused), (422, "validation_error".to_owned(), json!("/visibility")));
    // The platform's kinds are shown there, and are not the organization's to change.
    api.get(&org.owner, &org.path("kinds/model")).await.expect(200);
    let change = json!({"title": "Mine"});
    send(&api, Method::PATCH, &org.owner, &org.path("kinds/model"), Some(&change)).await.expect(404);
    for rest in ["kinds/model", "kinds/model?dry_run=true"] {
        send(&api, Method::DELETE, &org.owner, &org.path(rest), None).await.expect(404);
    }
    // Whatever keys the platform's own organization has.
    let path = format!("/v1/organizations/{PLATFORM_ORG}");
    let key = api.post(OPERATOR, &format!("{path}/api-keys"), &json!({"name": "k", "role": "owner"})).await;
    if key.status == 201 {
        let token = key.json()["token"].as_str().unwrap().to_owned();
        let mut kind = ticket();
        kind["kind"] = json!("ticket");
        let refused = api.post(&token, &format!("{path}/kinds"), &kind).await;
        assert!((400..500).contains(&refused.status) && refused.status != 409, "{refused:?}");
    }
    // References: to its own kinds only its own, and from the platform's kinds none.
    for (place, code, pointer) in [
        (json!({"kind": "x_of_admin", "scope": "global"}), "private_only", "/schema/properties/a/x-ref/scope"),
        (json!({"kind": "x_missing"}), "unknown_kind", "/schema/properties/a/x-ref/kind"),
    ] {
        let schema = json!({"properties": {"a": {"type": "string", "x-ref": place}}});
        let kind = json!({"kind": "x_referring", "title": "Referring", "schema": schema});
        let refused = api.post(&org.owner, &org.path("kinds"), &kind).await.expect(422).json();
        assert_eq!((&refused["errors"][0]["code"], &refused["errors"][0]["pointer"]), (&json!(code), &json!(pointer)));
    }
    let schema = json!({"properties": {"a": {"type": "string", "x-ref": {"kind": "x_of_admin"}}}});
    let kind = json!({"kind": "referring", "title": "Referring", "visibility": "private", "schema": schema});
    let refused = api.post(OPERATOR, "/v1/kinds", &kind).await.expect(422).json();
    assert_eq!(refused["errors"][0]["code"], "unknown_kind");
}

/// What a question about a kind is answered, with the name of the kind taken out.
async fn asked(api: &Api, org: &Org, kind: &str) -> Vec<(String, u16, Value)> {
    let schema = json!({"properties": {"a": {"type": "string", "x-ref": {"kind": kind}}}});
    let referring = json!({"kind": "x_referring", "title": "Referring", "schema": schema});
    let record = json!({"kind": kind, "data": {"subject": "s"}});
    let append = json!({"type": "append_records", "kind": kind, "items": [{"subject": "s"}]});
    let title = json!({"title": "Mine"});
    let of = |rest: &str| format!("kinds/{kind}{rest}");
    let mut answers = Vec::new();
    for (method, rest, body) in [
        (Method::GET, of(""), None),
        (Method::GET, of("/compatibility"), None),
        (Method::PATCH, of(""), Some(&title)),
        (Method::DELETE, of(""), None),
        (Method::DELETE, of("?dry_run=true"), None),
        (Method::POST, of("/restore"), None),
        (Method::GET, format!("records?kind={kind}"), None),
        (Method::GET, format!("records?kind={kind}&sort=-points"), None),
        (Method::GET, format!("records?kind={kind}&filter[points]=1"), None),
        (Method::GET, format!("search?q=heron&kind={kind}"), None),
        (Method::GET, format!("search?q=heron&kind={kind}&filter[status]=open"), None),
        (Method::GET, format!("views/{kind}/by_status"), None),
        (Method::GET, format!("catalog?kind={kind}"), None),
        (Method::POST, "records".to_owned(), Some(&record)),
        (Method::POST, "commands".to_owned(), Some(&append)),
        (Method::POST, "kinds".to_owned(), Some(&referring)),
    ] {
        let answer = send(api, method.clone(), &org.owner, &org.path(&rest), body).await;
        let text = answer.text.replace(kind, "KIND");
        let mut body: Value = serde_json::from_str(&text).unwrap();
        for field in ["request_id", "instance"] {
            body.as_object_mut().unwrap().remove(field);
        }
        answers.push((format!("{method} {}", rest.replace(kind, "KIND")), answer.status, body));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_organizations_kind_does_not_exist_even_where_there_is_one_of_the_same_name() {
    let api = Api::start().await;
    // What is answered about a kind that is not there names those that are.
    shipped(&api).await;
    let (one, other) = (api.org("kind-a").await, api.org("kind-b").await);
    register(&api, &one, &ticket()).await;
    let (first, position) =
        write(&api, &one, "x_ticket", json!({"subject": "a heron", "status": "open", "points": 3})).await;
    api.sees(&one, &position).await;
    let (theirs, missing) = (asked(&api, &other, "x_ticket").await, asked(&api, &other, "x_tickes").await);
    assert_eq!(theirs, missing);
    assert!(theirs.iter().all(|(_, status, _)| (400..500).contains(status)), "{theirs:#?}");
    let all = api.get(&other.owner, &other.path("kinds")).await.expect(200);
    assert!(!all.text.contains("x_ticket"), "{}", all.text);
    assert!(!api.get(&other.owner, &other.path("views")).await.expect(200).text.contains("x_ticket"));

    // The same name with another schema, other fields and no view.
    let schema = json!({"type": "object", "required": ["amount"], "additionalProperties": false, "properties": {
        "amount": {"type": "integer", "x-filter": true}, "note": {"type": "string", "x-search": "body"}}});
    let same = json!({"kind": "x_ticket", "title": "Slip", "schema": schema});
    register(&api, &other, &same).await;
    let (second, position) = write(&api, &other, "x_ticket", json!({"amount": 7, "note": "a heron"})).await;
    api.sees(&other, &position).await;
    for (org, data, pointer) in
        [(&one, json!({"amount": 7}), "/data"), (&other, json!({"subject": "a heron", "amount": 1}), "/data")]
    {
        let refused = api.post(&org.owner, &org.path("records"), &json!({"kind": "x_ticket", "data": data})).await;
        assert_eq!(refusal(&refused), (422, "validation_error".to_owned(), json!(pointer)));
    }
    for (org, id, works, fails) in [
        (&one, &first, "filter[points]=3", "filter[amount]=7"),
        (&other, &second, "filter[amount]=7", "filter[points]=3"),
    ] {
        let listed = api.get(&org.owner, &org.path(&format!("records?kind=x_ticket&{works}"))).await.expect(200).json();
        assert_eq!((listed["data"].as_array().unwrap().len(), &listed["data"][0]["id"]), (1, &json!(id)));
        api.get(&org.owner, &org.path(&format!("records?kind=x_ticket&{fails}"))).await.expect(400);
        let found =
            api.get_at(&org.owner, &org.path("search?q=heron&kind=x_ticket"), &position_of(&api, org).await).await;
        let found = found.expect(200).json();
        assert_eq!((&found["total"], &found["data"][0]["id"]), (&json!(1), &json!(id)), "{found}");
    }
    let rows = api.get(&one.owner, &one.path("views/x_ticket/by_status")).await.expect(200).json();
    assert_eq!(rows["data"][0]["measures"], json!({"tickets": "1", "points": "3"}));
    api.get(&other.owner, &other.path("views/x_ticket/by_status")).await.expect(404);
    // One's record is no target of the other's reference.
    let referring = json!({"kind": "x_referring", "title": "Referring", "schema": {"properties": {
        "of": {"type": "string", "x-ref": {"kind": "x_ticket"}}}}});
    register(&api, &other, &referring).await;
    let record = json!({"kind": "x_referring", "data": {"of": first}});
    let refused = api.post(&other.owner, &other.path("records"), &record).await;
    assert_eq!(refusal(&refused), (422, "reference_not_found".to_owned(), json!("/data/of")));
    write(&api, &other, "x_referring", json!({"of": second})).await;
    // What one does to its kind is nothing to the other.
    send(&api, Method::DELETE, &one.owner, &one.path("kinds/x_ticket"), None).await.expect(200);
    write(&api, &other, "x_ticket", json!({"amount": 8})).await;

    // The rows themselves.
    let title = async |org: &Org| {
        let bound = BoundOrg::named_by_operator(org.id.parse().unwrap());
        let mut tx = api.db.read(bound).await.unwrap();
        let list = kinds::list(&mut tx).await.unwrap();
        list.into_iter().map(|kind| kind.definition.title).collect::<Vec<_>>()
    };
    eventually("the rows to be written", async || {
        (title(&other).await == ["Referring", "Slip"] && title(&one).await == ["Ticket"]).then_some(())
    })
    .await;
}

/// The end of what the read models have of an organization.
async fn position_of(api: &Api, org: &Org) -> String {
    let answer = api.get(&org.owner, &org.path("records?limit=1")).await.expect(200);
    answer.header("projection-position").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_of_one_organizations_kind_is_folded_whatever_others_have_under_its_name() {
    let api = Api::start().await;
    let (plain, folding) = (api.org("plain").await, api.org("folding").await);
    let bare = json!({"kind": "x_ticket", "title": "Ticket", "schema": {"type": "object"}});
    register(&api, &plain, &bare).await;
    // Another version of a higher number, so that what is remembered of it is beyond the other's.
    let renamed = json!({"title": "Bare ticket"});
    send(&api, Method::PATCH, &plain.owner, &plain.path("kinds/x_ticket"), Some(&renamed)).await.expect(200);
    let (_, position) = write(&api, &plain, "x_ticket", json!({"status": "open"})).await;
    api.sees(&plain, &position).await;
    register(&api, &folding, &ticket()).await;
    let (_, position) = write(&api, &folding, "x_ticket", json!({"subject": "s", "status": "open", "points": 2})).await;
    let rows =
        api.get_at(&folding.owner, &folding.path("views/x_ticket/by_status"), &position).await.expect(200).json();
    assert_eq!(rows["data"][0]["measures"], json!({"tickets": "1", "points": "2"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_has_as_many_kinds_and_as_large_ones_as_its_plan_allows() {
    let plans = ["standard=3:400".parse().unwrap(), "large=5:65536".parse().unwrap()];
    let api = Api::start_with(|identity| identity.plan_kinds = plans.to_vec()).await;
    let org = api.org("limited").await;
    let kind = |name: &str, bytes: usize| json!({"kind": name, "title": "K", "schema": {"type": "object", "description": "x".repeat(bytes)}});
    // Together, with the keys that make repetitions of them.
    let names: Vec<String> = (0..8).map(|number| format!("x_k{number}")).collect();
    let register = async |name: &String| {
        let request = api.request(Method::POST, &org.path("kinds")).bearer_auth(&org.owner);
        Answer::of(request.header("idempotency-key", name).json(&kind(name, 10))).await
    };
    let made = join_all(names.iter().map(&register)).await;
    let there: Vec<&String> =
        names.iter().zip(&made).filter(|(_, made)| made.status == 201).map(|(name, _)| name).collect();
    assert_eq!(there.len(), 3, "{made:?}");
    for refused in made.iter().filter(|made| made.status != 201) {
        assert_eq!((refused.status, refused.problem()), (409, "kind_limit_exceeded".to_owned()));
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("has 3 kinds") && detail.contains("(standard) allows 3"), "{detail}");
    }
    // A repetition is answered as before, and a name that is taken is that.
    let again = register(there[0]).await.expect(201);
    assert_eq!(again.header("idempotency-replayed"), "true");
    let taken = api.post(&org.owner, &org.path("kinds"), &kind(there[0], 10)).await;
    assert_eq!((taken.status, taken.problem()), (409, "kind_exists".to_owned()));
    // One that is retired counts, and can be another.
    let path = org.path(&format!("kinds/{}", there[0]));
    send(&api, Method::DELETE, &org.owner, &path, None).await.expect(200);
    assert_eq!(api.post(&org.owner, &org.path("kinds"), &kind("x_more", 10)).await.problem(), "kind_limit_exceeded");
    send(&api, Method::POST, &org.owner, &format!("{path}/restore"), None).await.expect(200);
    // The size of a change counts as that of a new one.
    let large = json!({"schema": kind("x", 500)["schema"]});
    let refused = send(&api, Method::PATCH, &org.owner, &path, Some(&large)).await;
    assert_eq!(refusal(&refused), (422, "validation_error".to_owned(), json!("/schema")));
    assert!(refused.json()["detail"].as_str().unwrap().contains("(standard) allows 400"), "{refused:?}");
    // Another plan allows more, for a new organization and for this one.
    send(&api, Method::PUT, OPERATOR, &org.path("plan"), Some(&json!({"plan": "large"}))).await.expect(200);
    eventually("the plan to count", async || {
        let changed = send(&api, Method::PATCH, &org.owner, &path, Some(&large)).await;
        (changed.status == 200).then_some(())
    })
    .await;
    for name in ["x_fourth", "x_fifth"] {
        api.post(&org.owner, &org.path("kinds"), &kind(name, 500)).await.expect(201);
    }
    assert_eq!(api.post(&org.owner, &org.path("kinds"), &kind("x_sixth", 10)).await.problem(), "kind_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_schema_is_refused_with_a_pointer_and_costs_little() {
    let api = Api::start().await;
    let org = api.org("hostile").await;
    let many =
        |count: usize| -> Map<String, Value> { (0..count).map(|number| (format!("p{number}"), json!({}))).collect() };
    let patterns: Map<String, Value> = (0..900).map(|number| (format!("p{number}[a-z]{{700}}"), json!(true))).collect();
    let mut doubling = json!({"$defs": {"d24": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/d0"}}});
    let mut chain = json!({"$defs": {"d400": {}}, "$ref": "#/$defs/d0"});
    for step in 0..400 {
        let next = format!("#/$defs/d{}", step + 1);
        chain["$defs"][format!("d{step}")] = json!({"$ref": next});
        if step < 24 {
            doubling["$defs"][format!("d{step}")] = json!({"allOf": [{"$ref": next}, {"$ref": next}]});
        }
    }
    let deep = (0..40).fold(json!({}), |inner, _| json!({"not": inner}));
    for (name, schema, pointer) in [
        (
            "an external reference",
            json!({"properties": {"a": {"$ref": "https://example.com/a"}}}),
            "/schema/properties/a/$ref",
        ),
        ("a file", json!({"$ref": "file:///etc/passwd"}), "/schema/$ref"),
        ("900 KB", json!({"description": "x".repeat(900_000)}), "/schema"),
        ("10,000 properties", json!({"properties": many(10_000)}), "/schema"),
        (
            "an exploding pattern",
            json!({"properties": {"a": {"pattern": "(?:a{1000}){1000}"}}}),
            "/schema/properties/a",
        ),
        ("many patterns", json!({"patternProperties": patterns}), "/schema"),
        ("backtracking", json!({"properties": {"a": {"pattern": "(?=a)b"}}}), "/schema/properties/a"),
        ("what doubles", doubling, "/schema"),
        ("a long chain", chain, "/schema"),
        ("a circle", json!({"properties": {"next": {"$ref": "#"}}}), "/schema/properties/next/$ref"),
        ("deep nesting", deep, "/schema"),
        ("no object", json!([1]), "/schema"),
    ] {
        let kind = json!({"kind": "x_hostile", "title": "Hostile", "schema": schema});
        let started = std::time::Instant::now();
        let refused = api.post(&org.owner, &org.path("kinds"), &kind).await.expect(422);
        assert!(started.elapsed() < std::time::Duration::from_secs(10), "{name} took {:?}", started.elapsed());
        let (_, code, at) = refusal(&refused);
        assert_eq!(code, "validation_error", "{name}");
        assert!(at.as_str().unwrap().starts_with(pointer), "{name}: {at}");
    }
    api.get(&org.owner, &org.path("kinds/x_hostile")).await.expect(404);
    let too_large = json!({"kind": "x_hostile", "title": "Hostile", "schema": {"description": "x".repeat(1_100_000)}});
    api.post(&org.owner, &org.path("kinds"), &too_large).await.expect(413);

    // A schema that is taken and data that it takes can be too much together.
    let few: Vec<usize> = (0..5_000).collect();
    let kind = json!({"kind": "x_large", "title": "Large", "schema": {"properties": {"a": {"items": {"enum": few}}}}});
    register(&api, &org, &kind).await;
    let record = json!({"kind": "x_large", "data": {"a": vec![1; 100_000]}});
    let refused = api.post(&org.owner, &org.path("records"), &record).await;
    assert_eq!(refusal(&refused), (422, "validation_error".to_owned(), json!("/data")));
    assert_eq!(refused.json()["errors"][0]["code"], "too_complex");
    write(&api, &org, "x_large", json!({"a": vec![1; 1_000]})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_schema_names_the_records_that_do_not_satisfy_it() {
    let api = Api::start().await;
    let org = api.org("compatible").await;
    let kind = |name: &str, most: u32| {
        let schema = json!({"type": "object", "required": ["points"], "properties": {"points": {"type": "number", "maximum": most}}});
        json!({"kind": name, "title": "K", "visibility": "private", "schema": schema})
    };
    for (name, kinds, bearer) in
        [("x_scored", org.path("kinds"), org.owner.as_str()), ("scored", "/v1/kinds".to_owned(), OPERATOR)]
    {
        api.post(bearer, &kinds, &kind(name, 100)).await.expect(201);
        let mut ids = Vec::new();
        for points in [1, 50, 2, 60, 70] {
            ids.push(write(&api, &org, name, json!({"points": points})).await);
        }
        let path = org.path(&format!("kinds/{name}/compatibility"));
        let position = ids[4].1.clone();
        let all = api.get_at(&org.owner, &path, &position).await.expect(200).json();
        assert_eq!((&all["checked"], &all["data"], &all["has_more"]), (&json!(5), &json!([]), &json!(false)));
        let schema = json!({"schema": kind(name, 10)["schema"]});
        let changed = send(&api, Method::PATCH, bearer, &format!("{kinds}/{name}"), Some(&schema)).await.expect(200);
        assert_eq!(changed.json()["version"], 2);
        // One is archived, and one is written again as it must be now.
        send(&api, Method::DELETE, &org.owner, &org.path(&format!("records/{}", ids[4].0)), None).await.expect(200);
        let fits = json!({"data": {"points": 6}});
        let record = org.path(&format!("records/{}", ids[3].0));
        let position = eventually("the new schema to be the one that counts", async || {
            let over = json!({"kind": name, "data": {"points": 99}});
            if api.post(&org.owner, &org.path("records"), &over).await.status == 201 {
                return None;
            }
            let written = send(&api, Method::PUT, &org.owner, &record, Some(&fits)).await.expect(200);
            Some(written.header("stream-position").to_owned())
        })
        .await;
        let found = api.get_at(&org.owner, &path, &position).await.expect(200).json();
        let named: Vec<_> =
            found["data"].as_array().unwrap().iter().filter(|one| one["id"] == ids[1].0.as_str()).collect();
        assert_eq!(named.len(), 1, "{found}");
        assert_eq!((&named[0]["kind_version"], &found["kind_version"]), (&json!(1), &json!(2)));
        let error = &named[0]["errors"][0];
        assert_eq!((&error["pointer"], &error["code"]), (&json!("/data/points"), &json!("maximum")));
        for fine in [&ids[0], &ids[2], &ids[3], &ids[4]] {
            assert!(!found["data"].to_string().contains(&fine.0), "{found}");
        }
        // Page by page, each record once.
        let (mut checked, mut faulty, mut cursor) = (0, 0, String::new());
        loop {
            let page = api.get(&org.owner, &format!("{path}?limit=2{cursor}")).await.expect(200).json();
            checked += page["checked"].as_u64().unwrap();
            faulty += page["data"].as_array().unwrap().len();
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!((json!(checked), faulty), (found["checked"].clone(), found["data"].as_array().unwrap().len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_kinds_come_by_nats_too_and_are_the_same_after_a_rebuild() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("by-nats").await;
    let nats = cluster.producer().await;
    let command = async |command: &Value| {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", "application/json");
        headers.insert("Authorization", format!("Bearer {}", tenant.key).as_str());
        let request = Request::new()
            .headers(headers)
            .payload(serde_json::to_vec(command).unwrap().into())
            .timeout(Some(PATIENCE));
        let answer = nats.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
        let status: u16 = answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap().as_str().parse().unwrap();
        (status, serde_json::from_slice::<Value>(&answer.payload).unwrap())
    };
    let mut kind = ticket();
    kind["type"] = json!("register_kind");
    assert_eq!(command(&kind).await.0, 201);
    let change = json!({"type": "change_kind", "kind": "x_ticket", "title": "Tickets"});
    assert_eq!(command(&change).await.1["version"], 2);
    for points in 1..=3 {
        let data = json!({"subject": format!("heron {points}"), "status": "open", "points": points});
        assert_eq!(command(&json!({"type": "create_record", "kind": "x_ticket", "data": data})).await.0, 201);
    }
    let (status, refused) = command(&json!({"type": "change_kind", "kind": "x_other", "title": "T"})).await;
    assert_eq!((status, &refused["code"]), (404, &json!("not_found")));
    cluster.until_projected(&tenant).await;

    let mut database = cluster.superuser().await;
    // The platform publishes its plans meanwhile.
    let own = async |database: &mut PgConnection| {
        let mut rows = digests(database).await;
        rows.retain(|(_, org), _| *org == tenant.id.uuid());
        rows
    };
    let before = own(&mut database).await;
    let (org, none) = (tenant.id.to_string(), "");
    cluster.cli(none, &["replay", "--verify", "--org", &org]).await.success();
    cluster.cli(none, &["rebuild", "--org", &org]).await.success();
    assert_eq!(own(&mut database).await, before);
    cluster.cli(none, &["replay", "--verify", "--org", &org]).await.success();
    let kind = cluster.client.get(&tenant.key, &tenant.path("kinds/x_ticket")).await.expect(200);
    assert_eq!(kind.body["title"], "Tickets");
}

#[test]
fn whose_a_kind_is_is_asked_in_one_place() {
    // Where rows of kinds are read, and where a kind's aggregate is named: each goes by `KindName::owner`, or is about the
    // platform's kinds alone.
    let known = [
        ("kinds::get(", ["src/api/http/platform/kinds.rs"].as_slice()),
        ("kinds::list(", &["src/api/http/org/search.rs", "src/api/http/platform/kinds.rs"]),
        (
            "kinds::with_views(",
            &["src/api/http/org/views.rs", "src/api/http/platform/kinds.rs", "src/jobs/view_builds.rs"],
        ),
        ("AggregateId::Kind(name.clone())", &["src/commands/handler.rs"]),
        ("starts_with(OWN_KIND)", &["events/src/names.rs"]),
    ];
    for (text, places) in known {
        let found = sources(PRODUCT).into_iter().filter(|source| source.product().contains(text));
        let mut found: Vec<String> = found.map(|source| source.path).collect();
        // That is where the rows are.
        found.retain(|path| !path.starts_with("projections/"));
        assert_eq!(found, places, "{text}");
    }
    assert_eq!(OWN_KIND, "x_");
}
