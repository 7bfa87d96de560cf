//! Kinds and events by their names: an unknown name is an error and no empty answer; and a kind that was retired for
//! all by one call can be restored by another.

use reqwest::Method;
use serde_json::json;

use crate::api::{Answer, Api, OPERATOR, model};

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
