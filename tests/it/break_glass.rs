//! Only explicit authorization gives access to a tenant, for a time, with a reason, and visible to the tenant.

use std::time::{Duration, Instant};

use orgstream::{auth::approval::GlassApproval, dev::issuer::Person};
use reqwest::Method;
use serde_json::{Value, json};

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
    let api = Api::start_with(|identity| identity.break_glass_approval = GlassApproval::Off).await;
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
    let nobody = json!({"reason": request(1)["reason"], "expires_in_seconds": 1});
    api.post(OPERATOR, &other.path("break-glass"), &nobody).await.expect(201);
    let fact = audited(&api, &other.owner, &other.id, "access.break_glass_opened", 1).await.remove(0);
    assert_eq!((&fact["data"]["approver"], &fact["data"]["approval"]), (&json!("nobody"), &json!("off")));
    api.request(Method::DELETE, &other.path("break-glass")).bearer_auth(OPERATOR).send().await.unwrap();
    let without = json!({"approver": "bob", "expires_in_seconds": 60});
    api.post(OPERATOR, &path, &without).await.expect(422);
    assert_eq!(reads(&api, &org).await, [404; 6]);

    let opened = api.post(OPERATOR, &path, &request(3600)).await.expect(201).json();
    assert_eq!(reads(&api, &org).await, [200; 6]);
    assert_eq!(reads(&api, &other).await, [404; 6]);
    // The access is read-only: nothing can be changed, and no member added.
    api.post(OPERATOR, &org.path("records"), &model("b")).await.expect(404);
    api.post(
        OPERATOR,
        &org.path("commands"),
        &json!({"type": "revoke_api_key", "id": "key_01h455vb4pex5vsknk084sn02q"}),
    )
    .await
    .expect(404);

    // The tenant sees all of it: the operator, the reason, the expiry, and every single read.
    let fact = audited(&api, &org.owner, &org.id, "access.break_glass_opened", 1).await.remove(0);
    assert_eq!((&fact["actor"]["type"], &fact["actor"]["id"]), (&json!("platform_operator"), &json!("operator")));
    assert_eq!(fact["data"]["reason"], request(1)["reason"]);
    assert_eq!((&fact["data"]["approver"], &fact["data"]["id"]), (&json!("bob"), &opened["id"]));
    // No approval was required, which is recorded as well.
    assert_eq!(fact["data"]["approval"], "off");
    assert_eq!(fact["data"]["expires_at"], opened["expires_at"]);
    let looks = audited(&api, &org.owner, &org.id, "access.break_glass_used", 6).await;
    assert_eq!(looks[2]["data"]["route"], "GET /v1/organizations/{org}/records");
    assert!(looks.iter().all(|look| look["data"]["id"] == opened["id"]), "{looks:?}");

    let close = api.request(Method::DELETE, &path).bearer_auth(OPERATOR);
    Answer::of(close).await.expect(200);
    assert_eq!(reads(&api, &org).await, [404; 6]);
    audited(&api, &org.owner, &org.id, "access.break_glass_closed", 1).await;

    // It expires, too.
    let asked = Instant::now();
    api.post(OPERATOR, &path, &request(2)).await.expect(201);
    assert_eq!(api.get(OPERATOR, &org.path("records")).await.status, 200);
    api.until_status(OPERATOR, &org.path("records"), 404).await;
    let lasted = asked.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&lasted), "{lasted:?}");
    assert_eq!(reads(&api, &org).await, [404; 6]);
}

const HOUR: Duration = Duration::from_hours(1);

/// An API whose operators are people: those that its issuer marks as such, for the operators' audience.
async fn with_people() -> Api {
    Api::start_with(|identity| {
        identity.operator_issuer = Some(format!("{}=operators", identity.issuer_urls[0]));
        identity.operator_claim = Some("groups=orgstream-operators".parse().unwrap());
    })
    .await
}

fn operator_as(api: &Api, email: &str, claims: Value) -> String {
    let person = Person { email, email_verified: true, amr: &[] };
    api.issuer.mint_with(&person, claims, HOUR).unwrap()
}

fn operator(api: &Api, email: &str) -> String {
    operator_as(api, email, json!({"aud": "operators", "groups": ["staff", "orgstream-operators"]}))
}

// S3.10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_10_operators_are_people_and_their_names_are_in_every_entry() {
    let api = with_people().await;
    let org = api.org("operated").await;
    let ann = operator(&api, "ann@platform.example");
    let me = api.get(&ann, "/v1/me").await.expect(200).json();
    assert_eq!((&me["type"], &me["email"]), (&json!("platform_operator"), &json!("ann@platform.example")));
    api.post(&ann, &org.path("suspend"), &json!({"reason": "unpaid"})).await.expect(200);
    api.post(&ann, &org.path("resume"), &json!({"reason": "paid"})).await.expect(200);
    let fact = audited(&api, &org.owner, &org.id, "organization.suspended", 1).await.remove(0);
    assert_eq!(
        (&fact["actor"]["type"], &fact["actor"]["id"]),
        (&json!("platform_operator"), &json!("ann@platform.example"))
    );
    api.get(&ann, "/v1/platform/lag").await.expect(200);
    assert_eq!(api.post(&ann, "/v1/sessions", &json!({})).await.expect(403).problem(), "session_only");
    // The token is valid at the beginning.
    api.get(OPERATOR, "/v1/platform/lag").await.expect(200);
    // A user without the claim is no operator: a user of the issuer, or unknown.
    for (claims, status) in [
        (json!({"groups": ["orgstream-operators"]}), 403),
        (json!({"aud": "operators"}), 401),
        (json!({"aud": "operators", "groups": ["orgstream"]}), 401),
        (json!({"aud": "operators", "groups": {"orgstream-operators": true}}), 401),
    ] {
        let other = operator_as(&api, "eve@platform.example", claims.clone());
        api.get(&other, "/v1/platform/lag").await.expect(status);
    }
}

// S3.10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_10_a_second_person_approves_or_nothing_is_opened() {
    let api = with_people().await;
    let (org, other) = (api.org("four-eyes").await, api.org("elsewhere").await);
    let (ann, bob) = (operator(&api, "ann@platform.example"), operator(&api, "bob@platform.example"));
    let (path, approvals) = (org.path("break-glass"), org.path("break-glass/approvals"));
    let ask = |approval: Option<&str>, seconds: u64| {
        let mut ask = json!({"reason": request(1)["reason"], "expires_in_seconds": seconds});
        if let Some(approval) = approval {
            ask["approval"] = json!(approval);
        }
        ask
    };
    let consent = json!({"operator": "ann@platform.example", "reason": request(1)["reason"], "expires_in_seconds": 60});
    // Without an approval, no operator gets access: not a person, and least of all the shared token.
    for bearer in [&ann, &OPERATOR.to_owned()] {
        for body in [ask(None, 60), request(60)] {
            assert_eq!(api.post(bearer, &path, &body).await.expect(403).problem(), "approval_required");
        }
    }
    assert_eq!(api.post(OPERATOR, &approvals, &consent).await.expect(403).problem(), "operator_is_nobody");
    assert_eq!(api.post(&org.owner, &approvals, &consent).await.expect(403).problem(), "forbidden");
    // An operator cannot approve their own request, in any case of letters.
    let own = api.post(&ann, &approvals, &consent).await.expect(422).json();
    assert_eq!(own["errors"][0]["code"], "same_person");
    let approved = api.post(&bob, &approvals, &consent).await.expect(201).json();
    let approval = approved["approval"].as_str().unwrap();
    let refused = async |bearer: &str, path: &str, body: &Value| {
        assert_ne!(api.post(bearer, path, body).await.expect(403).problem(), "approval_required");
    };
    // It is valid for her, here, for this reason, and for no longer.
    refused(&bob, &path, &ask(Some(approval), 60)).await;
    refused(OPERATOR, &path, &ask(Some(approval), 60)).await;
    refused(&ann, &other.path("break-glass"), &ask(Some(approval), 60)).await;
    refused(&ann, &path, &ask(Some(approval), 61)).await;
    refused(&ann, &path, &ask(Some(&format!("{approval}x")), 60)).await;
    let mut reason = ask(Some(approval), 60);
    reason["reason"] = json!("just to have a look");
    refused(&ann, &path, &reason).await;
    assert_eq!(api.get(&ann, &org.path("records")).await.status, 404);

    let opened = api.post(&ann, &path, &ask(Some(approval), 60)).await.expect(201).json();
    api.get(&ann, &org.path("records")).await.expect(200);
    // It is open to her alone: not to the approver, nor to the token.
    for bearer in [&bob, &OPERATOR.to_owned()] {
        api.get(bearer, &org.path("records")).await.expect(404);
    }
    let fact = audited(&api, &org.owner, &org.id, "access.break_glass_opened", 1).await.remove(0);
    assert_eq!(fact["actor"]["id"], "ann@platform.example");
    assert_eq!(
        (&fact["data"]["approver"], &fact["data"]["approval"]),
        (&json!("bob@platform.example"), &json!("given"))
    );
    assert_eq!(fact["data"]["id"], opened["id"]);
    let consent = audited(&api, &org.owner, &org.id, "access.break_glass_approved", 1).await.remove(0);
    assert_eq!((&consent["actor"]["id"], &consent["data"]["id"]), (&json!("bob@platform.example"), &opened["id"]));
    assert_eq!(consent["data"]["operator"], "ann@platform.example");
    let look = audited(&api, &org.owner, &org.id, "access.break_glass_used", 1).await.remove(0);
    assert_eq!(look["actor"]["id"], "ann@platform.example");
    // Once.
    Answer::of(api.request(Method::DELETE, &path).bearer_auth(&ann)).await.expect(200);
    refused(&ann, &path, &ask(Some(approval), 60)).await;
    api.get(&ann, &org.path("records")).await.expect(404);
}
