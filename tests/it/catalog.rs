//! The catalog: what the platform publishes is there for everybody, what it has not published for nobody; what an organization
//! sees of it beside its own; and that no organization changes anything of it for another.

use orgstream::api::http::kit::policy::{Policy, ROUTES, Shape};
use orgstream_events::{PLATFORM_ORG, RecordId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, OPERATOR, Org, model};

/// What no draft may show.
const MARK: &str = "unpublished-marker";

/// What an anonymous reader gets.
async fn anonymous(api: &Api, path: &str) -> Answer {
    Answer::of(api.request(Method::GET, path)).await
}

/// A record of the platform's own: its id.
async fn draft(api: &Api, kind: &str, data: &Value) -> String {
    let path = format!("/v1/organizations/{PLATFORM_ORG}/records");
    let made = api.post(OPERATOR, &path, &json!({"kind": kind, "data": data})).await.expect(201).json();
    made["id"].as_str().unwrap().to_owned()
}

/// Replaces the content of a record of the platform's own.
async fn redraft(api: &Api, id: &str, data: &Value) {
    let path = format!("/v1/organizations/{PLATFORM_ORG}/records/{id}");
    let request = api.request(Method::PUT, &path).bearer_auth(OPERATOR).json(&json!({"data": data}));
    Answer::of(request).await.expect(200);
}

/// Publishes a record of the platform's own, and waits until readers have it.
async fn publish(api: &Api, id: &str) -> Value {
    let request = api.request(Method::POST, &format!("/v1/catalog-items/{id}/publish")).bearer_auth(OPERATOR);
    shown(api, Answer::of(request).await.expect(200)).await
}

async fn withdraw(api: &Api, id: &str) -> Value {
    let path = format!("/v1/catalog-items/{id}/withdraw");
    shown(api, api.post(OPERATOR, &path, &json!({"reason": "superseded"})).await.expect(200)).await
}

/// Waits until the platform's read models have what was accepted.
async fn shown(api: &Api, accepted: Answer) -> Value {
    api.get_at(OPERATOR, "/v1/catalog-items", accepted.header("stream-position")).await.expect(200);
    accepted.json()
}

async fn published(api: &Api, kind: &str, data: &Value) -> String {
    let id = draft(api, kind, data).await;
    assert_eq!(publish(api, &id).await["events"], json!(["catalog_item.published"]));
    id
}

/// The entries that an organization sees, by id and scope.
async fn entries(api: &Api, bearer: &str, path: &str) -> Vec<(String, String)> {
    let page = api.get(bearer, path).await.expect(200).json();
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    page["data"].as_array().unwrap().iter().map(|row| (text(row, "id"), text(row, "scope"))).collect()
}

async fn choose(api: &Api, org: &Org, id: &str, choice: &str) {
    let path = org.path(&format!("catalog/{id}/choice"));
    let request = api.request(Method::PUT, &path).bearer_auth(&org.owner).json(&json!({"choice": choice}));
    api.sees(org, Answer::of(request).await.expect(200).header("stream-position")).await;
}

fn global(id: &str) -> (String, String) {
    (id.to_owned(), "global".to_owned())
}

fn own(id: &str) -> (String, String) {
    (id.to_owned(), "own".to_owned())
}

// S1.21
// S1.22
// S2.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_20_what_the_platform_publishes_is_there_for_everybody() {
    let api = Api::start().await;
    let (a, b) = (api.org("catalog-a").await, api.org("catalog-b").await);
    let model = published(&api, "model", &json!({"name": "global model"})).await;
    let metrics = json!([{"name": "helpfulness", "higher_is_better": true}]);
    let benchmark = published(&api, "benchmark", &json!({"name": "B", "task": "generation", "metrics": metrics})).await;
    let evaluation = json!({"model": model, "benchmark": benchmark, "status": "completed"});
    let at = "2026-04-02T00:00:00Z";
    for (kind, data) in [
        ("evaluation", evaluation),
        ("space", json!({"name": "Public space", "models": [model]})),
        // S1.21
        ("research_report", json!({"title": "Q1", "abstract": "A", "published_at": at, "models": [model]})),
        // S1.22
        ("learning_item", json!({"title": "Rubrics", "format": "article"})),
    ] {
        let id = published(&api, kind, &data).await;
        let item = anonymous(&api, &format!("/v1/catalog/{kind}/{id}")).await.expect(200).json();
        assert_eq!((&item["id"], &item["data"], &item["version"]), (&json!(id), &data, &json!(1)), "{kind}");
        let listed = anonymous(&api, &format!("/v1/catalog/{kind}")).await.expect(200).json();
        assert_eq!(listed["data"], json!([item]), "{kind}");
        for org in [&a, &b] {
            let seen = entries(&api, &org.owner, &org.path(&format!("catalog?kind={kind}"))).await;
            assert_eq!(seen, [global(&id)], "{kind} in {}", org.slug);
        }
    }
    let catalog = anonymous(&api, "/v1/catalog").await.expect(200).json();
    let count = |kind: &str| {
        catalog["data"].as_array().unwrap().iter().find(|row| row["kind"] == kind).map(|row| row["items"].clone())
    };
    assert_eq!((count("model"), count("judge"), count("trace")), (Some(json!(1)), Some(json!(0)), None));
    // Nothing of an organization without signing in.
    for path in ["catalog", "catalog?kind=model", "records", "members"] {
        assert_eq!(anonymous(&api, &a.path(path)).await.expect(401).problem(), "unauthenticated");
    }
    // What is not of the catalog is not there, whatever it is.
    for path in ["/v1/catalog/trace", "/v1/catalog/modle", &format!("/v1/catalog/space/{model}")] {
        assert_eq!(anonymous(&api, path).await.expect(404).problem(), "not_found", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_23_no_organization_changes_an_item() {
    let api = Api::start().await;
    let org = api.org("changer").await;
    let (_, key) = api.key(&org, "admin").await;
    let id = published(&api, "model", &json!({"name": "global"})).await;
    let platform = format!("/v1/organizations/{PLATFORM_ORG}");
    let (content, choice, reason) =
        (json!({"data": {"name": "mine"}}), json!({"choice": "pinned"}), json!({"reason": "mine"}));
    for (method, path, body, status) in [
        (Method::PUT, org.path(&format!("records/{id}")), Some(&content), 404),
        (Method::DELETE, org.path(&format!("records/{id}")), None, 404),
        (Method::PUT, format!("{platform}/records/{id}"), Some(&content), 404),
        (Method::DELETE, format!("{platform}/records/{id}"), None, 404),
        (Method::PUT, format!("{platform}/catalog/{id}/choice"), Some(&choice), 404),
        (Method::POST, format!("/v1/catalog-items/{id}/publish"), None, 403),
        (Method::POST, format!("/v1/catalog-items/{id}/withdraw"), Some(&reason), 403),
        (Method::GET, "/v1/catalog-items".to_owned(), None, 403),
    ] {
        let mut request = api.request(method.clone(), &path).bearer_auth(&key);
        if let Some(body) = body {
            request = request.json(body);
        }
        Answer::of(request).await.expect(status);
    }
    for (command, status) in [
        (json!({"type": "update_record", "id": id, "data": {"name": "mine"}}), 404),
        (json!({"type": "archive_record", "id": id}), 404),
        (json!({"type": "publish_catalog_item", "id": id}), 403),
        (json!({"type": "withdraw_catalog_item", "id": id, "reason": "mine"}), 403),
    ] {
        api.post(&key, &org.path("commands"), &command).await.expect(status);
        api.post(&key, &format!("{platform}/commands"), &command).await.expect(404);
    }
    // A record of the same id is the organization's own, and changes nothing of the item.
    let same = json!({"kind": "model", "id": id, "data": {"name": "mine"}});
    let made = api.post(&key, &org.path("records"), &same).await.expect(201);
    api.sees(&org, made.header("stream-position")).await;
    let item = anonymous(&api, &format!("/v1/catalog/model/{id}")).await.expect(200).json();
    assert_eq!((&item["data"], &item["version"]), (&json!({"name": "global"}), &json!(1)));
    assert_eq!(entries(&api, &key, &org.path("catalog?kind=model")).await, [own(&id), global(&id)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_published_as_it_was_and_withdrawn_with_all_of_them() {
    let api = Api::start().await;
    let id = draft(&api, "model", &json!({"name": "one"})).await;
    let path = format!("/v1/catalog/model/{id}");
    let item = async |query: &str| anonymous(&api, &format!("{path}{query}")).await;
    item("").await.expect(404);
    publish(&api, &id).await;
    assert_eq!(publish(&api, &id).await["events"], json!([]), "it was published as it is");
    redraft(&api, &id, &json!({"name": "two"})).await;
    assert_eq!(item("").await.expect(200).json()["data"]["name"], "one");
    // Nothing but what was looked at.
    let stale = api.request(Method::POST, &format!("/v1/catalog-items/{id}/publish?record_version=1"));
    assert_eq!(Answer::of(stale.bearer_auth(OPERATOR)).await.expect(412).problem(), "version_conflict");
    publish(&api, &id).await;
    let (first, newest) = (item("?version=1").await.expect(200), item("").await.expect(200));
    assert_eq!((&first.json()["data"]["name"], &first.json()["version"]), (&json!("one"), &json!(1)));
    assert_eq!((&newest.json()["data"]["name"], &newest.json()["version"]), (&json!("two"), &json!(2)));
    item("?version=3").await.expect(404);

    // Its tag walks with the version, and any cache may keep both for as long as it says.
    assert_eq!((first.header("etag"), newest.header("etag")), ("\"1\"", "\"2\""));
    assert_eq!(first.header("cache-control"), "public, max-age=86400, immutable");
    assert_eq!(newest.header("cache-control"), "public, max-age=60");
    for (path, tag, status) in [
        (path.clone(), newest.header("etag"), 304),
        (path.clone(), "\"1\"", 200),
        (format!("{path}?version=1"), "\"1\"", 304),
    ] {
        let again = Answer::of(api.request(Method::GET, &path).header("if-none-match", tag)).await.expect(status);
        assert!(again.header("cache-control").starts_with("public"), "{again:?}");
    }
    let list = anonymous(&api, "/v1/catalog/model").await.expect(200);
    let tag = list.header("etag").to_owned();
    let again = api.request(Method::GET, "/v1/catalog/model").header("if-none-match", &tag);
    assert_eq!(Answer::of(again).await.expect(304).header("etag"), tag);
    let head = Answer::of(api.request(Method::HEAD, &path)).await.expect(200);
    assert_eq!((head.header("etag"), head.text.as_str()), (newest.header("etag"), ""));

    // Withdrawn: gone with all versions, and those are not back with the next one.
    assert_eq!(withdraw(&api, &id).await["events"], json!(["catalog_item.withdrawn"]));
    assert_eq!(withdraw(&api, &id).await["events"], json!([]));
    for query in ["", "?version=1", "?version=2"] {
        let gone = item(query).await.expect(404);
        assert_eq!((gone.problem().as_str(), gone.header("cache-control")), ("not_found", "no-store"), "{query}");
    }
    assert_eq!(anonymous(&api, "/v1/catalog/model").await.expect(200).json()["data"], json!([]));
    let all = api.get(OPERATOR, "/v1/catalog-items").await.expect(200).json();
    assert_eq!((&all["data"][0]["status"], &all["data"][0]["version"]), (&json!("withdrawn"), &json!(2)));
    publish(&api, &id).await;
    assert_eq!(item("").await.expect(200).json()["version"], 3);
    item("?version=3").await.expect(200);
    item("?version=2").await.expect(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_published_is_in_no_answer_to_others() {
    let api = Api::start().await;
    let org = api.org("curious").await;
    let id = draft(&api, "model", &json!({"name": MARK})).await;
    let opt_in = json!({"title": MARK, "severity": "high", "published_at": "2026-02-15T00:00:00Z"});
    let intel = draft(&api, "threat_intel", &opt_in).await;
    let gone = published(&api, "model", &json!({"name": format!("{MARK}, withdrawn")})).await;
    withdraw(&api, &gone).await;
    let changed = published(&api, "model", &json!({"name": "was published"})).await;
    redraft(&api, &changed, &json!({"name": format!("{MARK}, changed")})).await;
    // The read models have all of it.
    publish(&api, &draft(&api, "space", &json!({"name": "Last"})).await).await;
    let place = |path: &str, id: &str| {
        let kind = if id == intel { "threat_intel" } else { "model" };
        path.replace("{kind}", kind).replace("{record}", id)
    };
    let mut walked = 0;
    for route in ROUTES.iter().filter(|route| route.method == "GET" && route.policy == Policy::Public) {
        if route.path.contains("{*") || route.path.contains("metrics") {
            continue;
        }
        for id in [&id, &intel, &gone, &changed] {
            let answer = anonymous(&api, &place(&route.path, id)).await;
            assert!(!answer.text.contains(MARK), "{}: {answer:?}", route.path);
            walked += usize::from(answer.status == 200);
        }
    }
    assert!(walked > 10, "{walked}");
    for query in
        ["catalog?include_global=true", "catalog?include_global=true&hidden=true", "catalog?pinned=true", "records"]
    {
        let answer = api.get(&org.owner, &org.path(query)).await.expect(200);
        assert!(!answer.text.contains(MARK), "{query}: {answer:?}");
    }
    // What is not published looks like what does not exist, through every door.
    let nobodys = RecordId::fresh(1_700_000_000_000, [9; 10]).to_string();
    for id in [&id, &gone, &nobodys] {
        assert_eq!(anonymous(&api, &format!("/v1/catalog/model/{id}")).await.expect(404).problem(), "not_found");
        let request = api.request(Method::PUT, &org.path(&format!("catalog/{id}/choice"))).bearer_auth(&org.owner);
        Answer::of(request.json(&json!({"choice": "pinned"}))).await.expect(404);
        let report = json!({"title": "T", "abstract": "A", "published_at": "2026-03-01T00:00:00Z", "models": [id]});
        let report = json!({"kind": "research_report", "data": report});
        let refused = api.post(&org.owner, &org.path("records"), &report).await.expect(422);
        assert_eq!(refused.problem(), "reference_not_found");
    }
    // Nor is anything published that refers to it.
    let space = draft(&api, "space", &json!({"name": "Space", "models": [id]})).await;
    let request = api.request(Method::POST, &format!("/v1/catalog-items/{space}/publish")).bearer_auth(OPERATOR);
    let refused = Answer::of(request).await.expect(422).json();
    assert_eq!(
        (&refused["code"], &refused["errors"][0]["pointer"]),
        (&json!("reference_not_found"), &json!("/data/models/0"))
    );
    let trace = draft(&api, "trace", &json!({"name": "T", "started_at": "2026-03-01T12:00:00Z"})).await;
    let request = api.request(Method::POST, &format!("/v1/catalog-items/{trace}/publish")).bearer_auth(OPERATOR);
    assert_eq!(Answer::of(request).await.expect(422).problem(), "kind_private");
    let request = api.request(Method::POST, &format!("/v1/catalog-items/{nobodys}/publish")).bearer_auth(OPERATOR);
    Answer::of(request).await.expect(404);
}

/// Whatever else the API answers, no cache that several share may keep it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_catalog_is_for_shared_caches() {
    let api = Api::start().await;
    let org = api.org("private").await;
    let (id, position) = api.record(&org, "mine").await;
    api.sees(&org, &position).await;
    let path = |path: &str| path.replace("{org}", &org.id).replace("{record}", &id).replace("{kind}", "model");
    let mut answered = 0;
    for route in ROUTES.iter().filter(|route| route.method == "GET") {
        if route.shape == Shape::Tail {
            continue;
        }
        let answer = api.get(&org.owner, &path(&route.path)).await;
        let kept = answer.header("cache-control");
        if route.shape == Shape::Shared && answer.status == 200 {
            assert!(kept.starts_with("public, max-age="), "{}: {kept}", route.path);
        } else {
            assert!(!kept.contains("public"), "{}: {kept}", route.path);
            assert!(kept.contains("private") || kept.contains("no-store"), "{}: {kept}", route.path);
        }
        answered += usize::from(answer.status == 200);
    }
    assert!(answered > 20, "{answered}");
}

// S2.19
// S2.3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_19_the_active_organization_decides_what_is_beside_the_published() {
    let api = Api::start().await;
    let (a, b) = (api.org("view-a").await, api.org("view-b").await);
    let item = published(&api, "model", &json!({"name": "global"})).await;
    let email = "max@view.example";
    let mut mine = Vec::new();
    for org in [&a, &b] {
        api.join(org, email, "member").await;
        let (id, position) = api.record(org, &format!("of {}", org.slug)).await;
        api.sees(org, &position).await;
        mine.push(id);
    }
    let session = api.session(email).await;
    for (org, id) in [&a, &b].into_iter().zip(&mine) {
        api.switch(&session, &org.id).await.expect(200);
        let seen = entries(&api, &session, "/v1/organizations/current/catalog").await;
        assert_eq!(seen, [own(id), global(&item)], "{}", org.slug);
    }
    // A cursor of one is none of the other.
    let first = api.get(&a.owner, &a.path("catalog?limit=1")).await.expect(200).json();
    let cursor = first["next_cursor"].as_str().unwrap();
    api.get(&b.owner, &b.path(&format!("catalog?limit=1&cursor={cursor}"))).await.expect(400);
    // Only kinds of the catalog are in it: a trace is none.
    let trace = json!({"kind": "trace", "data": {"name": "T", "started_at": "2026-03-01T12:00:00Z"}});
    let made = api.post(&a.owner, &a.path("records"), &trace).await.expect(201);
    api.sees(&a, made.header("stream-position")).await;
    assert_eq!(entries(&api, &a.owner, &a.path("catalog")).await, [own(&mine[0]), global(&item)]);
    let refused = api.get(&a.owner, &a.path("catalog?kind=trace")).await.expect(422).json();
    assert_eq!(refused["errors"][0]["pointer"], "/kind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_36_what_is_public_beside_ones_own_is_there_when_it_is_asked_for() {
    let api = Api::start().await;
    let (a, b) = (api.org("intel-a").await, api.org("intel-b").await);
    let intel = |title: &str| json!({"title": title, "severity": "high", "published_at": "2026-02-15T00:00:00Z"});
    let public = published(&api, "threat_intel", &intel("public")).await;
    let mut mine = Vec::new();
    for org in [&a, &b] {
        let body = json!({"kind": "threat_intel", "data": intel(&org.slug)});
        let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201);
        api.sees(org, made.header("stream-position")).await;
        mine.push(made.json()["id"].as_str().unwrap().to_owned());
    }
    for (org, id) in [&a, &b].into_iter().zip(&mine) {
        for (query, expected) in [
            ("", vec![own(id)]),
            ("&include_global=false", vec![own(id)]),
            ("&include_global=true", vec![own(id), global(&public)]),
            ("&include_public_threat_intel=true", vec![own(id), global(&public)]),
            ("&include_public_threat_intel=false", vec![own(id)]),
        ] {
            let path = org.path(&format!("catalog?kind=threat_intel{query}"));
            assert_eq!(entries(&api, &org.owner, &path).await, expected, "{query} in {}", org.slug);
        }
        assert_eq!(entries(&api, &org.owner, &org.path("catalog")).await, [own(id)], "an opt-in kind among all");
    }
    let both = a.path("catalog?include_global=true&include_public_threat_intel=false");
    assert_eq!(api.get(&a.owner, &both).await.expect(400).problem(), "invalid_parameter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_pins_and_hides_for_itself_alone() {
    let api = Api::start().await;
    let (a, b) = (api.org("chooser-a").await, api.org("chooser-b").await);
    let one = published(&api, "model", &json!({"name": "one"})).await;
    let two = published(&api, "model", &json!({"name": "two"})).await;
    let intel = json!({"title": "I", "severity": "high", "published_at": "2026-02-15T00:00:00Z"});
    let intel = published(&api, "threat_intel", &intel).await;
    let see = async |org: &Org, query: &str| entries(&api, &org.owner, &org.path(&format!("catalog{query}"))).await;
    choose(&api, &a, &one, "hidden").await;
    choose(&api, &a, &intel, "pinned").await;
    assert_eq!(see(&a, "").await, [global(&two)]);
    assert_eq!(see(&a, "?hidden=true").await, [global(&two), global(&one)]);
    assert_eq!(see(&a, "?pinned=true").await, [global(&intel)]);
    assert_eq!(see(&a, "?include_global=true").await, [global(&intel), global(&two)]);
    let rows = api.get(&a.owner, &a.path("catalog?hidden=true&include_global=true")).await.expect(200).json();
    let labels: Vec<_> =
        rows["data"].as_array().unwrap().iter().map(|row| (row["pinned"].clone(), row["hidden"].clone())).collect();
    assert_eq!(labels, [(json!(true), json!(false)), (json!(false), json!(false)), (json!(false), json!(true))]);
    // Of another organization nothing changes.
    assert_eq!(see(&b, "").await, [global(&two), global(&one)]);
    assert_eq!(see(&b, "?pinned=true").await, []);
    anonymous(&api, &format!("/v1/catalog/model/{one}")).await.expect(200);
    // The last choice counts, by any door; and it can be taken back.
    let command = json!({"type": "choose_catalog_item", "id": one, "choice": "pinned"});
    let chosen = api.post(&a.owner, &a.path("commands"), &command).await.expect(200);
    api.sees(&a, chosen.json()["position"].as_str().unwrap()).await;
    assert_eq!(see(&a, "?pinned=true&include_global=false").await, []);
    assert_eq!(see(&a, "?pinned=true").await, [global(&intel), global(&one)]);
    let clear = async |id: &str| {
        let path = a.path(&format!("catalog/{id}/choice"));
        Answer::of(api.request(Method::DELETE, &path).bearer_auth(&a.owner)).await
    };
    let cleared = clear(&one).await.expect(200);
    api.sees(&a, cleared.header("stream-position")).await;
    assert_eq!(see(&a, "").await, [global(&two), global(&one)]);
    clear(&one).await.expect(404);
    // Who may, by role; and what was chosen is in the audit log.
    let (_, member) = api.key(&a, "member").await;
    let path = a.path(&format!("catalog/{two}/choice"));
    let request = api.request(Method::PUT, &path).bearer_auth(&member).json(&json!({"choice": "hidden"}));
    assert_eq!(Answer::of(request).await.expect(403).problem(), "forbidden");
    api.get(&member, &a.path("catalog")).await.expect(200);
    let path = a.path("audit/events?action=catalog_choice.made");
    let events = api.get_at(&a.owner, &path, cleared.header("stream-position")).await.expect(200).json();
    assert_eq!(events["data"].as_array().unwrap().len(), 3, "{events}");
    assert_eq!(events["data"][0]["targets"], json!([{"type": "catalog_item", "id": one}]));
    // A withdrawn item is chosen by nobody any more.
    withdraw(&api, &intel).await;
    assert_eq!(see(&a, "?pinned=true").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_lead_through_what_is_ones_own_and_what_is_published() {
    let api = Api::start().await;
    let org = api.org("pager").await;
    let (mut expected, mut items) = (Vec::new(), Vec::new());
    for number in 0..3 {
        items.push(global(&published(&api, "model", &json!({"name": format!("global {number}")})).await));
    }
    for number in 0..3 {
        let body = if number == 1 { json!({"kind": "space", "data": {"name": "S"}}) } else { model("own") };
        let made = api.post(&org.owner, &org.path("records"), &body).await.expect(201);
        api.sees(&org, made.header("stream-position")).await;
        expected.push(own(made.json()["id"].as_str().unwrap()));
    }
    expected.reverse();
    expected.extend(items.into_iter().rev());
    for limit in 1..=7 {
        let (mut seen, mut cursor, mut pages) = (Vec::new(), String::new(), Vec::new());
        loop {
            let path = org.path(&format!("catalog?limit={limit}{cursor}"));
            let rows = entries(&api, &org.owner, &path).await;
            let page = api.get(&org.owner, &path).await.expect(200).json();
            assert_eq!(page["has_more"].as_bool().unwrap(), !page["next_cursor"].is_null());
            seen.extend(rows.clone());
            pages.push((rows, page["prev_cursor"].clone()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
            assert!(pages.len() < 10, "the listing does not end");
        }
        assert_eq!(seen, expected, "{limit} a page");
        // And back: each page leads to the one before.
        for pair in pages.windows(2) {
            let back = pair[1].1.as_str().unwrap();
            let path = org.path(&format!("catalog?limit={limit}&cursor={back}"));
            assert_eq!(entries(&api, &org.owner, &path).await, pair[0].0, "{limit} a page, back");
        }
        assert!(pages[0].1.is_null());
    }
    // The same in what everybody reads.
    let first = anonymous(&api, "/v1/catalog/model?limit=2").await.expect(200).json();
    let next = format!("/v1/catalog/model?limit=2&cursor={}", first["next_cursor"].as_str().unwrap());
    let rest = anonymous(&api, &next).await.expect(200).json();
    assert_eq!((first["data"].as_array().unwrap().len(), rest["data"].as_array().unwrap().len()), (2, 1));
    assert_eq!(rest["has_more"], false);
}
