//! Only explicit authorization crosses into a tenant, for a while, for a reason, and in front of the tenant.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    access::audited,
    api::{Answer, Api, OPERATOR, Org, model},
};

fn request(seconds: u64) -> Value {
    json!({"reason": "ticket 4711: exports come out empty", "approver": "bob", "expires_in_seconds": seconds})
}

async fn reads(api: &Api, org: &Org) -> Vec<u16> {
    let mut statuses = Vec::new();
    for path in ["", "members", "api-keys", "records", "audit/events", "events"] {
        let path = org.path(path);
        statuses.push(api.get(OPERATOR, path.trim_end_matches('/')).await.status);
    }
    statuses
}

// S3.10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_10_an_operator_looks_into_a_tenant_only_behind_broken_glass() {
    let api = Api::start().await;
    let (org, other) = (api.org("looked-at").await, api.org("not-looked-at").await);
    api.record(&org, "a").await;
    let path = org.path("break-glass");
    assert_eq!(reads(&api, &org).await, [404; 6]);
    assert_eq!(api.post(&org.owner, &path, &request(60)).await.expect(403).problem(), "forbidden");

    for (field, value, code) in [
        ("reason", json!("   "), "too_short"),
        ("approver", json!("Operator"), "same_person"),
        ("approver", json!(""), "too_short"),
        ("expires_in_seconds", json!(3601), "out_of_range"),
        ("expires_in_seconds", json!(0), "out_of_range"),
    ] {
        let mut wrong = request(60);
        wrong[field] = value;
        let refused = api.post(OPERATOR, &path, &wrong).await.expect(422).json();
        assert_eq!(refused["errors"][0]["code"], code, "{refused}");
    }
    let without = json!({"approver": "bob", "expires_in_seconds": 60});
    api.post(OPERATOR, &path, &without).await.expect(422);
    assert_eq!(reads(&api, &org).await, [404; 6]);

    let opened = api.post(OPERATOR, &path, &request(3600)).await.expect(201).json();
    assert_eq!(reads(&api, &org).await, [200; 6]);
    assert_eq!(reads(&api, &other).await, [404; 6]);
    // Looking is all: nothing can be changed, and nobody let in.
    api.post(OPERATOR, &org.path("records"), &model("b")).await.expect(404);
    api.post(
        OPERATOR,
        &org.path("commands"),
        &json!({"type": "revoke_api_key", "id": "key_01h455vb4pex5vsknk084sn02q"}),
    )
    .await
    .expect(404);

    // The tenant reads all of it: who, why, until when, and each single look.
    let fact = audited(&api, &org.owner, &org.id, "access.break_glass_opened", 1).await.remove(0);
    assert_eq!((&fact["actor"]["type"], &fact["actor"]["id"]), (&json!("platform_operator"), &json!("operator")));
    assert_eq!(fact["data"]["reason"], request(1)["reason"]);
    assert_eq!((&fact["data"]["approver"], &fact["data"]["id"]), (&json!("bob"), &opened["id"]));
    assert_eq!(fact["data"]["expires_at"], opened["expires_at"]);
    let looks = audited(&api, &org.owner, &org.id, "access.break_glass_used", 6).await;
    assert_eq!(looks[2]["data"]["route"], "GET /v1/organizations/{org}/records");
    assert!(looks.iter().all(|look| look["data"]["id"] == opened["id"]), "{looks:?}");

    let close = api.request(Method::DELETE, &path).bearer_auth(OPERATOR);
    Answer::of(close).await.expect(200);
    assert_eq!(reads(&api, &org).await, [404; 6]);
    audited(&api, &org.owner, &org.id, "access.break_glass_closed", 1).await;

    // It ends by itself, too.
    api.post(OPERATOR, &path, &request(2)).await.expect(201);
    assert_eq!(api.get(OPERATOR, &org.path("records")).await.status, 200);
    while api.get(OPERATOR, &org.path("records")).await.status == 200 {
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(reads(&api, &org).await, [404; 6]);
}
