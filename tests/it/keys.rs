//! API keys in full: their limits, their rotation, their expiry, and the records of their use.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use orgstream_events::UserId;
use p256::ecdsa::{Signature, signature::Signer};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    access::audited,
    api::{Answer, Api, OPERATOR, Org, REPORTER, model, reporter_key},
    cluster::eventually,
};

/// The promised bound: revoked access stops working within this, in every process.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Issues a key; its id and token.
async fn issue(api: &Api, org: &Org, bearer: &str, fields: &Value) -> (String, String) {
    let mut body = json!({"name": "ci", "role": "member"});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    let made = api.post(bearer, &org.path("api-keys"), &body).await.expect(201);
    api.sees(org, made.header("stream-position")).await;
    let made = made.json();
    (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
}

async fn rotate(api: &Api, org: &Org, id: &str, overlap_seconds: u64) -> String {
    let path = org.path(&format!("api-keys/{id}/rotate"));
    let rotated = api.post(&org.owner, &path, &json!({"overlap_seconds": overlap_seconds})).await.expect(200);
    api.sees(org, rotated.header("stream-position")).await;
    rotated.json()["token"].as_str().unwrap().to_owned()
}

/// Waits until every process denies the request, which must be within [`AT_ONCE`] of now.
async fn refused_everywhere(api: &Api, bases: &[&str], bearer: &str, path: &str, status: u16) {
    let since = Instant::now();
    for base in bases {
        while api.status_at(base, bearer, path).await != status {
            assert!(since.elapsed() < AT_ONCE, "{base} still lets it in after {:?}", since.elapsed());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

// S1.16
// S1.28
// S2.23
// S5.7
// S5.22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_16_a_key_is_of_one_org_and_says_which() {
    let api = Api::start().await;
    let (a, b) = (api.org("one-a").await, api.org("one-b").await);
    let (id_a, key_a) = api.key(&a, "admin").await;
    let (_, key_b) = api.key(&b, "admin").await;
    for (key, org) in [(&key_a, &a), (&key_b, &b)] {
        let me = api.get(key, "/v1/me").await.expect(200).json();
        assert_eq!(me["org_id"], json!(org.id));
        api.record(org, &org.slug).await;
    }
    let keys = api.get(&b.owner, &b.path("api-keys")).await.expect(200).json();
    assert!(keys["data"].as_array().unwrap().iter().all(|key| key["id"] != json!(id_a)), "{keys}");
    api.get(&key_b, &b.path(&format!("api-keys/{id_a}"))).await.expect(404);
    api.get(&key_a, &b.path("records")).await.expect(404);
    api.get(&key_a, &a.path("records")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_bound_a_key_within_its_role() {
    let api = Api::start().await;
    let org = api.org("scoped").await;
    let (_, reader) = issue(&api, &org, &org.owner, &json!({"scopes": ["records:read"]})).await;
    api.get(&reader, &org.path("records")).await.expect(200);
    let refused = api.post(&reader, &org.path("records"), &model("a")).await.expect(403);
    assert!(refused.text.contains("this API key does not have the permission records:write"), "{refused:?}");
    api.get(&reader, &org.path("members")).await.expect(403);

    // A key makes no key above itself, and is given none.
    let fields = json!({"role": "admin", "scopes": ["api_keys:manage", "api_keys:read", "records:read"]});
    let (_, minting) = issue(&api, &org, &org.owner, &fields).await;
    let (full, _) = issue(&api, &org, &org.owner, &json!({})).await;
    let above = json!({"name": "x", "role": "member", "scopes": ["records:write"]});
    let refused = api.post(&minting, &org.path("api-keys"), &above).await.expect(403);
    assert_eq!(refused.problem(), "scope_above_own");
    let refused = api.post(&minting, &org.path("api-keys"), &json!({"name": "x", "role": "owner"})).await.expect(403);
    assert_eq!(refused.problem(), "role_above_own");
    let refused = api.post(&minting, &org.path(&format!("api-keys/{full}/rotate")), &json!({})).await.expect(403);
    assert_eq!(refused.problem(), "scope_above_own");
    let (id, heir) = issue(&api, &org, &minting, &json!({"role": "admin"})).await;
    let view = api.get(&heir, &org.path(&format!("api-keys/{id}"))).await.expect(200).json();
    assert_eq!(view["scopes"], fields["scopes"]);
    assert_eq!(api.post(&heir, &org.path("records"), &model("a")).await.expect(403).problem(), "forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_is_the_same_key_with_two_tokens_for_a_while() {
    let api = Api::start().await;
    let org = api.org("rotating").await;
    let (id, first) = issue(&api, &org, &org.owner, &json!({})).await;
    let second = rotate(&api, &org, &id, 3600).await;
    assert_ne!(first, second);
    for token in [&first, &second] {
        assert_eq!(api.get(token, "/v1/me").await.expect(200).json()["key_id"], json!(id));
    }
    let view = api.get(&org.owner, &org.path(&format!("api-keys/{id}"))).await.expect(200).json();
    assert_eq!((&view["public_id"], &view["previous"]["public_id"]), (&json!(second[8..20]), &json!(first[8..20])));
    // Without an overlap the second ends now, and the first, which is older still, with it.
    let third = rotate(&api, &org, &id, 0).await;
    let base = api.base.clone();
    for old in [&first, &second] {
        refused_everywhere(&api, &[&base], old, &org.path("records"), 401).await;
    }
    api.get(&third, &org.path("records")).await.expect(200);
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 1).await.remove(0);
    assert_eq!((&fact["data"]["code"], &fact["data"]["key_id"]), (&json!("rotated"), &json!(id)));
    let rotations = audited(&api, &org.owner, &org.id, "api_key.rotated", 2).await;
    assert!(rotations.iter().all(|event| event["data"].get("secret_mac").is_none()), "{rotations:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_may_be_bound_to_addresses() {
    let api = Api::start().await;
    let org = api.org("addressed").await;
    let (_, here) = issue(&api, &org, &org.owner, &json!({"allowed_ips": ["127.0.0.0/8", "::1"]})).await;
    let (id, elsewhere) = issue(&api, &org, &org.owner, &json!({"allowed_ips": ["192.0.2.0/24"]})).await;
    api.get(&here, &org.path("records")).await.expect(200);
    api.get(&elsewhere, &org.path("records")).await.expect(401);
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 1).await.remove(0);
    assert_eq!((&fact["data"]["code"], &fact["actor"]["id"]), (&json!("ip_not_allowed"), &json!(id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_key_was_used_is_known_to_the_minute() {
    let api = Api::start().await;
    let org = api.org("used").await;
    let (used, token) = issue(&api, &org, &org.owner, &json!({})).await;
    let (idle, _) = issue(&api, &org, &org.owner, &json!({})).await;
    api.get(&token, &org.path("records")).await.expect(200);
    let show = async || api.get(&org.owner, &org.path(&format!("api-keys/{used}"))).await.expect(200).json();
    let view =
        eventually("its use to be noted", async || Some(show().await).filter(|view| !view["last_used_at"].is_null()))
            .await;
    assert_eq!(view["last_used_ip"], "127.0.0.1");
    assert!(view["last_used_at"].as_str().unwrap().ends_with(":00.000Z"), "{view}");
    // Of the two, the unused one.
    let list = async |since: &str| {
        let found = api.get(&org.owner, &org.path(&format!("api-keys?unused_since={since}"))).await.expect(200).json();
        found["data"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list("2100-01-01T00:00:00Z").await, [idle.clone(), used.clone()]);
    assert!(list("2020-01-01T00:00:00Z").await.is_empty());
    // No event for any of it.
    assert_eq!(view["version"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_ends_with_its_time_and_with_its_creator_if_the_org_says_so() {
    let api = Api::start().await;
    let org = api.org("ending").await;
    let ann = api.person("ann@ending.example");
    let ann_is = UserId::from_login(api.issuer.url(), "ann@ending.example");
    let body = json!({"email": "ann@ending.example", "role": "admin", "user_id": ann_is});
    let added = api.post(&org.owner, &org.path("members"), &body).await.expect(201);
    api.sees(&org, added.header("stream-position")).await;
    let (kept, of_ann) = issue(&api, &org, &ann, &json!({})).await;
    let settings = async |policy: &serde_json::Value| {
        let change = api.request(Method::PATCH, &org.path("settings")).bearer_auth(&org.owner).json(policy);
        let changed = Answer::of(change).await.expect(200);
        api.sees(&org, changed.header("stream-position")).await;
    };
    settings(&json!({"revoke_keys_on_creator_exit": false})).await;

    let leave = api.request(Method::DELETE, added.header("location")).bearer_auth(&org.owner);
    let left = Answer::of(leave).await.expect(200);
    api.sees(&org, left.header("stream-position")).await;
    api.get(&of_ann, &org.path("records")).await.expect(200);
    settings(&json!({"revoke_keys_on_creator_exit": true})).await;
    refused_everywhere(&api, &[&api.base], &of_ann, &org.path("records"), 401).await;
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 1).await.remove(0);
    assert_eq!((&fact["data"]["code"], &fact["data"]["key_id"]), (&json!("creator_left"), &json!(kept)));

    let soon = orgstream_events::Timestamp::from_unix_ms(orgstream::clock::now().unix_ms() + 4_000);
    let (_, short) = issue(&api, &org, &org.owner, &json!({"expires_at": soon})).await;
    // It is valid until then, and invalid afterwards, without any further action.
    let (mut before, mut last) = (0, 200);
    while last == 200 {
        let asked = orgstream::clock::now();
        last = api.get(&short, &org.path("records")).await.status;
        before += u32::from(last == 200);
        let ago = asked.unix_ms() - soon.unix_ms();
        assert!(ago < 0 || last == 401, "it goes on {ago} ms after its time");
        assert!(last == 200 || orgstream::clock::now() >= soon, "it has ended before its time: {last}");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(before > 0 && last == 401, "{before} answers, then {last}");
    let fact = audited(&api, &org.owner, &org.id, "access.key_refused", 2).await.remove(0);
    assert_eq!(fact["data"]["code"], "expired");
}

// S5.26
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_26_what_is_revoked_or_suspended_stops_within_a_second_in_every_process() {
    let api = Api::start().await;
    let other = api.another().await;
    let bases = [api.base.as_str(), other.as_str()];
    let org = api.org("stopping").await;
    let (id, key) = issue(&api, &org, &org.owner, &json!({})).await;
    let (_, second) = issue(&api, &org, &org.owner, &json!({})).await;
    let path = org.path("records");
    for base in bases {
        for bearer in [&key, &second, &org.owner] {
            eventually("everybody to be let in", async || {
                (api.status_at(base, bearer, &path).await == 200).then_some(())
            })
            .await;
        }
    }
    let revoke = api.request(Method::DELETE, &org.path(&format!("api-keys/{id}"))).bearer_auth(&org.owner);
    let revoked = Answer::of(revoke).await.expect(200);
    api.sees(&org, revoked.header("stream-position")).await;
    refused_everywhere(&api, &bases, &key, &path, 401).await;

    // Every key and every member at once, without individual revocations.
    for base in bases {
        assert_eq!(api.status_at(base, &second, &path).await, 200);
        assert_eq!(api.status_at(base, &org.owner, &path).await, 200);
    }
    let suspended = api.post(OPERATOR, &org.path("suspend"), &json!({"reason": "unpaid"})).await.expect(200);
    let seen = api.get_at(OPERATOR, &org.path("projections"), suspended.header("stream-position")).await;
    seen.expect(200);
    for bearer in [&second, &org.owner] {
        refused_everywhere(&api, &bases, bearer, &path, 403).await;
        assert_eq!(api.get(bearer, &path).await.expect(403).problem(), "organization_suspended");
    }
    // A member still sees that, and a stranger nothing at all.
    let me = api.get(&org.owner, "/v1/me").await.expect(200).json();
    assert_eq!(me["memberships"][0]["suspended"], true);
    let stranger = api.org("stranger").await;
    api.get(&stranger.owner, &path).await.expect(404);
    api.post(OPERATOR, &org.path("resume"), &json!({"reason": "paid"})).await.expect(200);
    api.until_status(&second, &path, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_found_in_public_ends() {
    let api = Api::start().await;
    let org = api.org("leaking").await;
    let (id, key) = issue(&api, &org, &org.owner, &json!({})).await;
    let (_, other) = issue(&api, &org, &org.owner, &json!({})).await;
    let findings = json!([
        {"token": key, "type": "orgstream_api_key", "url": "https://code.example/acme/.env", "source": "commit"},
        {"token": Api::forge(&other, &key), "type": "orgstream_api_key", "url": "u", "source": "content"},
        {"token": "os_live_nonsense", "type": "orgstream_api_key", "url": "u", "source": "content"},
    ]);
    let body = findings.to_string();
    let signature: Signature = reporter_key().sign(body.as_bytes());
    let signature = STANDARD.encode(signature.to_der());
    let report = |body: &str, name: &str, signature: &str| {
        let request = api.request(Method::POST, "/v1/leaked-keys").header("content-type", "application/json");
        let request = request.header("github-public-key-identifier", name);
        request.header("github-public-key-signature", signature).body(body.to_owned())
    };
    let unsigned = report(&body.replace("commit", "tweet"), REPORTER, &signature);
    assert_eq!(Answer::of(unsigned).await.expect(403).problem(), "bad_signature");
    let stranger = report(&body, "somebody", &signature);
    assert_eq!(Answer::of(stranger).await.expect(403).problem(), "bad_signature");
    api.get(&key, &org.path("records")).await.expect(200);

    let verdicts = Answer::of(report(&body, REPORTER, &signature)).await.expect(200);
    assert!(!verdicts.text.contains(&key), "{verdicts:?}");
    let labels: Vec<Value> = verdicts.json().as_array().unwrap().iter().map(|one| one["label"].clone()).collect();
    assert_eq!(labels, ["true_positive", "false_positive", "false_positive"]);
    refused_everywhere(&api, &[&api.base], &key, &org.path("records"), 401).await;
    api.get(&other, &org.path("records")).await.expect(200);
    let fact = audited(&api, &org.owner, &org.id, "api_key.revoked", 1).await.remove(0);
    assert_eq!((&fact["actor"]["id"], &fact["targets"][0]["id"]), (&json!("leaked_keys"), &json!(id)));
    let reason = fact["data"]["reason"].as_str().unwrap();
    assert!(reason.contains("https://code.example/acme/.env"), "{reason}");
}

// S1.25
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_25_what_is_remembered_is_remembered_by_org() {
    let api = Api::start().await;
    let (a, b) = (api.org("cached-a").await, api.org("cached-b").await);
    // The same id in both, with different content: each is read through the cache, and each gets its own.
    let id = "res_01h455vb4pex5vsknk084sn02q";
    for (org, name) in [(&a, "of a"), (&b, "of b")] {
        let (_, key) = api.key(org, "member").await;
        let command = json!({"type": "create_record", "kind": "model", "data": {"name": name}, "id": id});
        let made = api.post(&key, &org.path("commands"), &command).await.expect(201);
        api.sees(org, made.header("stream-position")).await;
        for _ in 0..2 {
            let record = api.get(&key, &org.path(&format!("records/{id}"))).await.expect(200).json();
            assert_eq!(record["data"]["name"], name);
        }
    }
    for (org, name) in [(&a, "of a"), (&b, "of b")] {
        let again = json!({"type": "update_record", "id": id, "data": {"name": format!("again {name}")}});
        let changed = api.post(&org.owner, &org.path("commands"), &again).await.expect(200).json();
        assert_eq!((&changed["version"], &changed["id"]), (&json!(2), &json!(id)));
    }
    api.get(&a.owner, "/v1/platform/caches").await.expect(403);
    let caches = api.get(OPERATOR, "/v1/platform/caches").await.expect(200).json();
    for name in ["api_keys", "memberships", "commands/records"] {
        let cache = caches["data"].as_array().unwrap().iter().find(|cache| cache["name"] == name).unwrap();
        assert!(cache["key"].as_str().unwrap().starts_with("org"), "{cache}");
        for org in [&a, &b] {
            assert!(
                cache["entries"][&org.id].as_u64().is_some_and(|count| count > 0),
                "{name} of {}: {cache}",
                org.slug
            );
        }
    }
}
