//! Access events are in the audit log of the org concerned: the denied caller, the denied request, and the key used.

use std::time::Duration;

use orgstream_events::PLATFORM_ORG;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::api::{Answer, Api, OPERATOR, Org};

const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the events of one name in the org's audit log, the newest first, once there are `count`; and checks that its
/// whole stream has no more of them by then.
pub(crate) async fn audited(api: &Api, bearer: &str, org: &str, action: &str, count: usize) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE;
    let path = format!("/v1/organizations/{org}/audit/events?limit=100&action={action}");
    let find = async || api.get(bearer, &path).await.expect(200).json()["data"].as_array().unwrap().clone();
    loop {
        let found = find().await;
        if found.len() >= count {
            break;
        }
        assert!(Instant::now() < deadline, "{} of {count} {action} in {org}: {found:#?}", found.len());
        sleep(Duration::from_millis(20)).await;
    }
    settled(api, bearer, org).await;
    let found = find().await;
    assert_eq!(found.len(), count, "{action} in {org}: {found:#?}");
    found
}

/// Waits until the org's whole stream is in its audit log.
async fn settled(api: &Api, bearer: &str, org: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = api.get(bearer, &format!("/v1/organizations/{org}/projections")).await.expect(200).json();
        let audit = shown["data"].as_array().unwrap().iter().find(|one| one["pipeline"] == "audit").unwrap().clone();
        if audit["behind"] == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{audit}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn denied(api: &Api, org: &Org, count: usize) -> Vec<Value> {
    audited(api, &org.owner, &org.id, "access.denied", count).await
}

// S3.35
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_35_an_attempt_on_another_org_is_in_the_log_of_whoever_made_it() {
    let api = Api::start().await;
    let (mine, theirs) = (api.org("mine").await, api.org("theirs").await);
    let (key_id, key) = api.key(&mine, "admin").await;

    api.get(&key, &theirs.path("records")).await.expect(404);
    let fact = denied(&api, &mine, 1).await.remove(0);
    assert_eq!((&fact["actor"]["type"], &fact["actor"]["id"]), (&json!("api_key"), &json!(key_id)));
    assert_eq!(fact["outcome"], json!({"status": "denied", "code": "not_found"}));
    let data = json!({
        "code": "not_found", "route": "GET /v1/organizations/{org}/records", "target": "records", "asked": theirs.id,
        "repeated": 1,
    });
    assert_eq!(fact["data"], data);
    assert_eq!(fact["targets"], json!([{"type": "records", "id": theirs.id}]));
    assert_eq!(fact["aggregate"], json!({"type": "access", "id": mine.id, "version": 0}));
    assert!(fact["context"]["ip"].is_string() && fact["request_id"].is_string(), "{fact}");

    // A user is named as the member they are in their own organization, and as a user to the platform alone.
    api.get(&mine.owner, &theirs.path("members")).await.expect(404);
    let fact = denied(&api, &mine, 2).await.remove(0);
    assert_eq!(fact["actor"]["type"], "member");
    assert!(fact["actor"]["id"].as_str().unwrap().starts_with("mem_"), "{fact}");

    // An organization that does not exist causes the same event: a caller cannot find out which exist.
    api.get(&key, "/v1/organizations/no-such-org/records").await.expect(404);
    assert_eq!(denied(&api, &mine, 3).await[0]["data"]["asked"], "no-such-org");

    let platform = audited(&api, OPERATOR, &PLATFORM_ORG.to_string(), "access.denied", 3).await;
    assert_eq!(platform[2]["data"], data);
    assert!(platform[1]["actor"]["id"].as_str().unwrap().starts_with("usr_"), "{}", platform[1]);
    // The requested organization gets no event.
    api.gateway.access_log().flush().await;
    let (_, position) = api.record(&theirs, "a").await;
    api.get_at(&theirs.owner, &theirs.path("audit/events"), &position).await.expect(200);
    denied(&api, &theirs, 0).await;
}

// S5.32
// S5.18
// S2.12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_caller_may_not_do_is_in_their_own_log() {
    let api = Api::start().await;
    let org = api.org("inside").await;
    let (_, key) = api.key(&org, "viewer").await;
    let invite = json!({"email": "bob@inside.example", "role": "viewer", "user_id": "usr_01h455vb4pex5vsknk084sn02q"});

    assert_eq!(api.post(&key, &org.path("members"), &invite).await.expect(403).problem(), "forbidden");
    let command = json!({"type": "revoke_api_key", "id": "key_01h455vb4pex5vsknk084sn02q"});
    assert_eq!(api.post(&key, &org.path("commands"), &command).await.expect(403).problem(), "forbidden");
    let other = api.request(Method::GET, &org.path("records")).bearer_auth(&key).header("x-tenant-id", "another");
    assert_eq!(Answer::of(other).await.expect(403).problem(), "tenant_mismatch");
    let absent = api.request(Method::GET, &org.path("records")).bearer_auth(&key).header("x-tenant-id", &org.id);
    Answer::of(absent).await.expect(200);
    let found = api.post(&key, "/v1/organizations", &json!({"name": "x", "slug": "founded-by-key"})).await.expect(403);
    assert_eq!(found.problem(), "session_only");
    assert_eq!(api.get(&key, "/v1/platform/lag").await.expect(403).problem(), "forbidden");

    let facts = denied(&api, &org, 5).await;
    let told: Vec<(&str, &str)> = facts
        .iter()
        .map(|fact| (fact["data"]["code"].as_str().unwrap(), fact["data"]["target"].as_str().unwrap()))
        .collect();
    for expected in [
        ("forbidden", "members"),
        ("forbidden", "api_keys"),
        ("tenant_mismatch", "records"),
        ("session_only", "organization"),
        ("forbidden", "platform"),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not among {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_refused_is_named_in_its_orgs_log() {
    let api = Api::start().await;
    let org = api.org("refusing").await;
    let (id, key) = api.key(&org, "admin").await;
    let (_, other) = api.key(&org, "admin").await;
    // The name of one key with the secret of another, and a valid checksum.
    let forged = Api::forge(&key, &other);
    api.get(&forged, &org.path("records")).await.expect(401);
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 1).await.remove(0);
    assert_eq!(fact["outcome"], json!({"status": "denied", "code": "wrong_secret"}));
    assert_eq!(
        (&fact["actor"]["type"], &fact["targets"]),
        (&json!("anonymous"), &json!([{"type": "api_key", "id": id}]))
    );

    let revoke = api.request(Method::DELETE, &org.path(&format!("api-keys/{id}"))).bearer_auth(&org.owner);
    Answer::of(revoke).await.expect(200);
    api.until_status(&key, &org.path("records"), 401).await;
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 2).await.remove(0);
    assert_eq!((&fact["data"]["code"], &fact["actor"]["id"]), (&json!("revoked"), &json!(id)));
    // A token that names no key only counts in the metrics.
    api.get("os_live_000000000000_000000000000000000000000000000002AO7tm", &org.path("records")).await.expect(401);
    // A later access event has come to the log, so an earlier one would have as well.
    api.get(&other, "/v1/platform/lag").await.expect(403);
    denied(&api, &org, 1).await;
    audited(&api, &org.owner, &org.id, "access.key_refused", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_folded_into_one_fact_with_a_count() {
    let api = Api::start().await;
    let (mine, theirs) = (api.org("flooding").await, api.org("flooded").await);
    let (_, key) = api.key(&mine, "viewer").await;
    for _ in 0..50 {
        api.get(&key, &theirs.path("records")).await.expect(404);
    }
    let each = usize::try_from(orgstream::app::access_log::EACH).unwrap();
    denied(&api, &mine, each).await;
    // The minute ends early when the process does.
    api.gateway.access_log().flush().await;
    let facts = denied(&api, &mine, each + 1).await;
    let repeated: Vec<u64> = facts.iter().map(|fact| fact["data"]["repeated"].as_u64().unwrap()).collect();
    assert_eq!((repeated[0], repeated.iter().sum()), (40, 50), "{repeated:?}");
}
