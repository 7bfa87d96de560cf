//! The end of a right takes effect within a second however far behind the read models are, and cannot be circumvented
//! by earlier grants, by a setting, or by another audience.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use orgstream::{auth::approval::GlassApproval, dev::issuer::Person};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    api::{Answer, Api, OPERATOR, Org, create_model, model},
    authority::own_issuer,
    cluster::{PATIENCE, eventually},
    revocation::{LOSSES, Loss, ON_ITS_WAY, Reading, TAILS, big, routes, somebody},
    support::within_a_second,
};

impl Api {
    async fn send(&self, bearer: &str, org: &Org, command: &Value) -> Answer {
        self.post(bearer, &org.path("commands"), command).await
    }

    /// Sends a request to a given process.
    async fn at(base: &str, method: Method, bearer: &str, path: &str, body: Option<&Value>) -> Answer {
        let request = reqwest::Client::new().request(method, format!("{base}{path}")).bearer_auth(bearer);
        Answer::of(body.into_iter().fold(request, reqwest::RequestBuilder::json)).await
    }

    /// Issues a key with these fields; returns its id and its token.
    async fn issue(&self, bearer: &str, org: &Org, fields: &Value) -> (String, String) {
        let made = self.post(bearer, &org.path("api-keys"), fields).await.expect(201);
        self.sees(org, made.header("stream-position")).await;
        let made = made.json();
        (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
    }
}

/// The worker is stopped, which simulates an endless backlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_ends_a_right_holds_within_a_second_though_the_read_models_stand_still() {
    let api = Api::start_with(|identity| identity.break_glass_approval = GlassApproval::Off).await;
    let second = api.another().await;
    let org = big(&api, "standing").await;
    let (idp, stop) = own_issuer(&api, "own").await;
    let mut everybody = Vec::new();
    for loss in LOSSES {
        everybody.push((loss, somebody(&api, &org, loss, &idp).await));
    }
    api.stop_worker().await;
    for (loss, (bearer, (method, by, path, body))) in everybody {
        let mut readings = Vec::new();
        for base in [&api.base, &second] {
            for path in routes() {
                readings.push(Reading::begin(base, &bearer, &org, path).await);
            }
            Api::at(base, Method::GET, &bearer, &org.path("records?limit=1"), None).await.expect(200);
        }
        let end = Answer::of(api.request(method, &path).bearer_auth(&by).json(&body)).await;
        assert!(end.status < 300, "{loss:?}: {end:?}");
        let ended = Instant::now();
        for base in [&api.base, &second] {
            within_a_second(&format!("{loss:?} at one of two processes"), async || {
                let read = Api::at(base, Method::GET, &bearer, &org.path("records?limit=1"), None).await.status;
                let write = Api::at(base, Method::POST, &bearer, &org.path("commands"), Some(&create_model("x"))).await;
                ([401, 403, 404, 409].contains(&read) && write.status != 201).then_some(())
            })
            .await;
        }
        // Running reads end in that second, and contain no events from then on.
        sleep(Duration::from_secs(1).saturating_sub(ended.elapsed())).await;
        if loss != Loss::Suspended {
            api.post(&org.owner, &org.path("records"), &model(&format!("after {loss:?}"))).await.expect(201);
        }
        let rest = |reading: Reading| async move { (reading.path, reading.rest_if(loss).await) };
        for (path, rest) in join_all(readings.into_iter().map(rest)).await {
            let Some((bytes, is_whole)) = rest else { continue };
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(&format!("after {loss:?}")), "{loss:?} {path}: it went on");
            assert!(bytes.len() < ON_ITS_WAY, "{loss:?} {path}: {} bytes came", bytes.len());
            assert_eq!(is_whole, TAILS.contains(&path), "{loss:?} {path}");
        }
    }
    stop.cancel();
}

/// A reduction is a loss as well: another secret, a smaller role, stricter rules, and the removal of the granting
/// member.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_narrows_a_right_holds_within_a_second_though_the_read_models_stand_still() {
    let api = Api::start().await;
    let second = api.another().await;
    let (org, strict) = (api.org("narrowing").await, api.org("narrowed").await);
    let (id, replaced) = api.key(&org, "admin").await;
    let role = json!({"name": "Ingest", "permissions": ["records:read", "records:write"]});
    let role = api.post(&org.owner, &org.path("roles"), &role).await.expect(201);
    api.sees(&org, role.header("stream-position")).await;
    let role = role.json()["role_id"].as_str().unwrap().to_owned();
    api.join(&org, "ingest@narrowing.example", &role).await;
    let ingest = api.person("ingest@narrowing.example");
    let (ann, ann_is) = api.joined(&org, "ann@narrowing.example", "admin").await;
    let (_, hers) = api.issue(&ann, &org, &json!({"name": "hers", "role": "admin"})).await;
    let (_, of_hers) = api.issue(&hers, &org, &json!({"name": "of hers", "role": "member"})).await;
    let (_, of_those) = api.issue(&hers, &org, &json!({"name": "of those", "role": "member"})).await;
    let (_, barred) = api.key(&strict, "member").await;
    api.stop_worker().await;

    let ends = async |bearer: &str, org: &Org, status: u16| {
        for base in [&api.base, &second] {
            within_a_second(&format!("{status} at one of two processes"), async || {
                let read = Api::at(base, Method::GET, bearer, &org.path("records"), None).await;
                let write = Api::at(base, Method::POST, bearer, &org.path("commands"), Some(&create_model("x"))).await;
                (read.status == status && write.status == status).then_some(())
            })
            .await;
        }
    };
    for bearer in [&replaced, &ingest, &hers, &of_hers, &of_those] {
        for base in [&api.base, &second] {
            Api::at(base, Method::GET, bearer, &org.path("records"), None).await.expect(200);
        }
    }
    api.get(&barred, &strict.path("records")).await.expect(200);
    api.post(&org.owner, &org.path(&format!("api-keys/{id}/rotate")), &json!({})).await.expect(200);
    ends(&replaced, &org, 401).await;
    let less = json!({"permissions": ["members:read"]});
    api.patch(&org.owner, &org.path(&format!("roles/{role}")), &less).await.expect(200);
    ends(&ingest, &org, 403).await;
    api.delete(&org.owner, &org.path(&format!("members/{ann_is}"))).await.expect(200);
    for bearer in [&hers, &of_hers, &of_those] {
        ends(bearer, &org, 401).await;
    }
    // A removed member cannot list anything, either.
    let me = within_a_second("she is nowhere", async || {
        let me = api.get(&ann, "/v1/me/memberships").await.expect(200).json();
        (!me["data"].to_string().contains(&org.id)).then_some(me)
    });
    me.await;
    let rules = json!({"allowed_auth_methods": ["oidc"]});
    api.patch(&strict.owner, &strict.path("settings"), &rules).await.expect(200);
    ends(&barred, &strict, 403).await;
    for org in [&org, &strict] {
        api.get(&org.owner, &org.path("records")).await.expect(200);
    }
}

/// A request of a thousand commands is one that takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_long_array_ends_with_the_right_of_who_sent_it() {
    let api = Api::start().await;
    let org = api.org("arrays").await;
    let (id, key) = api.key(&org, "member").await;
    let (record, position) = api.record(&org, "one").await;
    // One after the other, because they are about one record: it takes longer than the second.
    let update = |nth: usize| json!({"type": "update_record", "id": record, "data": {"name": format!("v{nth}"), "notes": "x".repeat(900)}});
    let commands: Vec<Value> = (0..1_000).map(update).collect();
    let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&key);
    let sending = tokio::spawn(Answer::of(request.header("idempotency-key", "long").json(&commands)));
    eventually("the first of them", async || {
        let newest = api.get(&org.owner, &org.path(&format!("records/{record}"))).await;
        (newest.json()["version"].as_u64() > Some(1)).then_some(())
    })
    .await;
    assert!(!sending.is_finished(), "{position}");
    api.delete(&org.owner, &org.path(&format!("api-keys/{id}"))).await.expect(200);
    let revoked = Instant::now();
    let outcomes = sending.await.unwrap().expect(200).json();
    let outcomes = outcomes.as_array().unwrap();
    let refused: Vec<&Value> = outcomes.iter().filter(|outcome| outcome["status"] == "refused").collect();
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    assert!(!refused.is_empty() && refused.len() < 1_000, "{} of 1,000", refused.len());
    assert!(refused.iter().all(|outcome| outcome["error"]["code"] == "unauthenticated"), "{:?}", refused[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_log_reads_go_on_and_no_right_that_was_seen_to_end_comes_back() {
    let mut api = Api::start().await;
    let org = api.org("silent").await;
    let (_, key) = api.key(&org, "member").await;
    let (_, unused) = api.key(&org, "member").await;
    let (ended, revoked) = api.key(&org, "member").await;
    let path = org.path("records");
    for key in [&key, &revoked] {
        api.get(key, &path).await.expect(200);
    }
    // From here on the read models have every key.
    api.stop_worker().await;
    api.delete(&org.owner, &org.path(&format!("api-keys/{ended}"))).await.expect(200);
    eventually("the revocation counts", async || (api.get(&revoked, &path).await.status == 401).then_some(())).await;
    api.nats.kill9().await;
    for round in 0..10 {
        for key in [&key, &unused] {
            assert_eq!(api.get(key, &path).await.status, 200, "round {round}");
        }
        assert_eq!(api.get(&revoked, &path).await.status, 401, "round {round}");
    }
    let refused = api.post(&key, &path, &model("m")).await.expect(503);
    assert_eq!(refused.problem(), "unavailable");
    api.nats.restart().await;
    eventually("commands are accepted again", async || {
        (api.post(&key, &path, &model("m")).await.status == 201).then_some(())
    })
    .await;
    api.get(&revoked, &path).await.expect(401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_audience_of_an_issuer_that_may_speak_for_an_owner_is_the_owners_to_connect() {
    let api = Api::start().await;
    let org = api.org("audiences").await;
    let (idp, stop) = own_issuer(&api, "own").await;
    let (ann, _) = api.joined(&org, "ann@audiences.example", "admin").await;
    let connect = async |bearer: &str, audience: &str| {
        let body = json!({"name": audience, "issuer": idp.url(), "audience": audience});
        api.post(bearer, &org.path("sso-connections"), &body).await
    };
    // The first gives no authority yet.
    let first = connect(&ann, "corp-app").await.expect(201);
    assert_eq!(connect(&ann, "evil-app").await.expect(403).problem(), "role_above_own");
    // Nor once it is removed: a user that signed in by it may still be an owner.
    let gone = first.json()["connection_id"].as_str().unwrap().to_owned();
    api.delete(&org.owner, &org.path(&format!("sso-connections/{gone}"))).await.expect(200);
    for audience in ["corp-app", "evil-app"] {
        assert_eq!(connect(&ann, audience).await.expect(403).problem(), "role_above_own");
    }
    connect(&org.owner, "corp-app").await.expect(201);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_comes_back_by_no_key_of_theirs() {
    let api = Api::start().await;
    let org = api.org("left-behind").await;
    let keep = json!({"revoke_keys_on_creator_exit": false});
    for keeps in [false, true] {
        if keeps {
            let kept = api.patch(&org.owner, &org.path("settings"), &keep).await.expect(200);
            api.sees(&org, kept.header("stream-position")).await;
        }
        let email = format!("ann{keeps}@left-behind.example");
        let (ann, id) = api.joined(&org, &email, "admin").await;
        let (_, hers) = api.issue(&ann, &org, &json!({"name": "hers", "role": "admin"})).await;
        let (_, of_hers) = api.issue(&hers, &org, &json!({"name": "of hers", "role": "admin"})).await;
        api.delete(&org.owner, &org.path(&format!("members/{id}"))).await.expect(200);
        let back = json!({"email": email, "role": "admin"});
        for key in [&hers, &of_hers] {
            if !keeps {
                within_a_second("her keys end", async || {
                    (api.get(key, &org.path("records")).await.status == 401).then_some(())
                })
                .await;
                api.post(key, &org.path("members"), &back).await.expect(401);
                continue;
            }
            api.get(key, &org.path("records")).await.expect(200);
            assert_eq!(api.post(key, &org.path("members"), &back).await.expect(403).problem(), "member_was_removed");
        }
        if keeps {
            api.invite(&of_hers, &org, &email, "admin").await.expect(201);
            let token = api.invited(&email, 2).await;
            assert_eq!(api.accept(&ann, &token).await.expect(403).problem(), "member_was_removed");
            // Others still join by it.
            let other = json!({"email": "new@left-behind.example", "role": "viewer"});
            api.post(&of_hers, &org.path("members"), &other).await.expect(201);
        }
        api.get(&ann, &org.path("records")).await.expect(404);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_revokes_a_key_that_may_do_more_than_they() {
    let api = Api::start().await;
    let org = api.org("above").await;
    let (owners, _) = api.key(&org, "owner").await;
    let (ann, _) = api.joined(&org, "ann@above.example", "admin").await;
    let scoped = json!({"name": "janitor", "role": "admin", "scopes": ["api_keys:manage"]});
    let (own, janitor) = api.issue(&org.owner, &org, &scoped).await;
    let (admins, _) = api.issue(&ann, &org, &json!({"name": "hers", "role": "admin"})).await;
    let revoke = async |bearer: &str, id: &str| api.delete(bearer, &org.path(&format!("api-keys/{id}"))).await;
    assert_eq!(revoke(&ann, &owners).await.expect(403).problem(), "role_above_own");
    for id in [&owners, &admins] {
        let code = revoke(&janitor, id).await.expect(403).problem();
        assert!(["role_above_own", "scope_above_own"].contains(&code.as_str()), "{code}");
    }
    revoke(&ann, &admins).await.expect(200);
    revoke(&janitor, &own).await.expect(200);
    revoke(&org.owner, &owners).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_uses_up_nobodys_hour() {
    let limit = |identity: &mut orgstream::config::IdentityArgs| {
        identity.invitations_per_hour = 3;
        identity.organizations_per_hour = 2;
    };
    let api = Api::start_with(limit).await;
    let org = api.org("hours").await;
    let scoped = json!({"name": "members", "role": "admin", "scopes": ["members:manage"]});
    let (_, key) = api.issue(&org.owner, &org, &scoped).await;
    for nth in 0..10 {
        let refused = api.invite(&key, &org, &format!("n{nth}@hours.example"), "viewer").await.expect(403);
        assert_eq!(refused.problem(), "scope_above_own");
        api.invite(&org.owner, &org, "no address", "viewer").await.expect(422);
    }
    for nth in 0..3 {
        api.invite(&org.owner, &org, &format!("n{nth}@hours.example"), "viewer").await.expect(201);
    }
    let over = api.invite(&org.owner, &org, "one@hours.example", "viewer").await.expect(429);
    assert_eq!(over.problem(), "invitation_limit_exceeded");
    // A slug that is taken creates no organization.
    let bob = api.person("bob@hours.example");
    let found = async |slug: &str| api.post(&bob, "/v1/organizations", &json!({"name": slug, "slug": slug})).await;
    for _ in 0..5 {
        assert_eq!(found("hours").await.expect(409).problem(), "slug_taken");
    }
    for slug in ["hours-1", "hours-2"] {
        found(slug).await.expect(201);
    }
    assert_eq!(found("hours-3").await.expect(429).problem(), "organization_limit_exceeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_audit_log_is_posted_to_is_known_to_those_it_concerns() {
    let api = Api::start().await;
    let org = api.org("posted").await;
    let secret = "https://siem.posted.example/a-secret-path";
    let mut tails = Vec::new();
    let mut keys = Vec::new();
    for (role, knows) in [("viewer", false), ("member", false), ("auditor", true), ("admin", true)] {
        let (_, key) = api.key(&org, role).await;
        if role != "auditor" {
            tails.push((api.tail(&key, &org.path("events/stream")).await, role, knows));
        }
        keys.push((key, role, knows));
    }
    let settings = json!({"audit_webhook": secret, "custom_metadata": {"crm": "42"}});
    let changed = api.patch(&org.owner, &org.path("settings"), &settings).await.expect(200);
    for (mut tail, role, knows) in tails {
        let settings = eventually("the settings in the tail", async || {
            let (_, event) = tail.next().await;
            (event["type"] == "organization.settings_changed").then_some(event)
        })
        .await;
        assert_eq!(settings.to_string().contains(secret), knows, "{role}: {settings}");
        assert_eq!(settings["data"]["settings"]["custom_metadata"]["crm"], "42", "{role}");
    }
    for (key, role, knows) in keys {
        let path = if role == "auditor" { org.path("audit/events") } else { format!("/v1/organizations/{}", org.id) };
        let shown = api.get_at(&key, &path, changed.header("stream-position")).await;
        assert_eq!(shown.expect(200).text.contains(secret), knows, "{role}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_setting_locks_an_organization_for_ever() {
    let api = Api::start().await;
    let (org, other) = (api.org("locked").await, api.org("not-locked").await);
    let (idp, stop) = own_issuer(&api, "own").await;
    let connect = async |org: &Org, audience: &str| {
        let body = json!({"name": audience, "issuer": idp.url(), "audience": audience, "jit": true});
        let made = api.post(&org.owner, &org.path("sso-connections"), &body).await.expect(201);
        api.sees(org, made.header("stream-position")).await;
        made.json()["connection_id"].as_str().unwrap().to_owned()
    };
    let (own, foreign) = (connect(&org, "orgstream").await, connect(&other, "other-app").await);
    let scoped = json!({"name": "settings", "role": "admin", "scopes": ["organization:manage"]});
    let (_, key) = api.issue(&org.owner, &org, &scoped).await;
    let set = async |bearer: &str, settings: &Value| api.patch(bearer, &org.path("settings"), settings).await;
    let only = |connection: &str| json!({"allowed_auth_methods": [format!("sso:{connection}")]});
    for bearer in [&key, &org.owner] {
        let refused = set(bearer, &only(&foreign)).await.expect(422);
        assert!(refused.text.contains("unknown_connection"), "{refused:?}");
        // Neither by a key nor by an owner signed in another way.
        assert_eq!(set(bearer, &only(&own)).await.expect(409).problem(), "would_lock_out");
        let factor = set(bearer, &json!({"mfa_policy": "required"})).await.expect(409);
        assert_eq!(factor.problem(), "would_lock_out");
    }
    api.get(&org.owner, &org.path("records")).await.expect(200);

    // An owner signed in by it may make it the only way; then it stays.
    let joining = set(&org.owner, &json!({"jit_provisioning": "restricted"})).await.expect(200);
    api.sees(&org, joining.header("stream-position")).await;
    let boss = idp.mint("boss@locked.example", Duration::from_hours(1)).unwrap();
    let me = api.get(&boss, "/v1/me").await.expect(200).json();
    let member = me["memberships"][0]["actor_id"].as_str().unwrap().to_owned();
    let owner = api.patch(&org.owner, &org.path(&format!("members/{member}")), &json!({"role": "owner"})).await;
    api.sees(&org, owner.expect(200).header("stream-position")).await;
    let narrowed = within_a_second("the boss is an owner", async || {
        let answer = set(&boss, &only(&own)).await;
        (answer.status != 403).then_some(answer)
    });
    narrowed.await.expect(200);
    within_a_second("nobody else comes in", async || {
        (api.get(&org.owner, &org.path("records")).await.status == 403).then_some(())
    })
    .await;
    let remove = api.delete(&boss, &org.path(&format!("sso-connections/{own}"))).await.expect(409);
    assert_eq!(remove.problem(), "last_way_in");

    // The issuer is gone, and the platform's operator enables the other ways again: for members.
    stop.cancel();
    let restore = json!({"type": "restore_sign_in", "reason": "ticket 4711: their issuer is gone"});
    api.send(&org.owner, &org, &restore).await.expect(403);
    api.send(OPERATOR, &org, &restore).await.expect(200);
    within_a_second("the owner is back", async || {
        (api.get(&org.owner, &org.path("records")).await.status == 200).then_some(())
    })
    .await;
    api.get(&other.owner, &org.path("records")).await.expect(404);
    let shown = api.get(&org.owner, &format!("/v1/organizations/{}", org.id)).await.expect(200).json();
    assert_eq!(shown["settings"]["allowed_auth_methods"], Value::Null);
}

/// A request whose headers are there, and the rest of its body later.
struct Late {
    rest: tokio::sync::mpsc::Sender<Result<String, std::io::Error>>,
    body: String,
    answer: tokio::task::JoinHandle<Answer>,
}

impl Late {
    async fn begin(api: &Api, bearer: &str, path: &str, body: &Value) -> Self {
        let body = body.to_string();
        let (rest, pieces) = tokio::sync::mpsc::channel(2);
        rest.send(Ok(body[..1].to_owned())).await.unwrap();
        let request = api.request(Method::POST, path).bearer_auth(bearer).header("content-type", "application/json");
        let request = request.header("idempotency-key", uuid::Uuid::now_v7().to_string());
        let pieces =
            futures_util::stream::unfold(pieces, async |mut pieces| pieces.recv().await.map(|piece| (piece, pieces)));
        let answer = tokio::spawn(Answer::of(request.body(reqwest::Body::wrap_stream(pieces))));
        Self { rest, body, answer }
    }

    async fn finish(self) -> Answer {
        // A request that was answered already takes no more.
        let _ = self.rest.send(Ok(self.body[1..].to_owned())).await;
        drop(self.rest);
        self.answer.await.unwrap()
    }
}

/// The right is that of when the command is carried out, not of when the request's headers came.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_body_that_comes_late_is_carried_out_under_the_right_of_then() {
    let api = Api::start().await;
    let org = api.org("late-body").await;
    let member = json!({"email": "mallory@late-body.example", "role": "admin"});
    let add = json!([{"type": "add_member", "email": "mallory@late-body.example", "role": "admin"}]);
    let (id, key) = api.key(&org, "admin").await;
    let mut late = Vec::new();
    for (path, body) in [("records", model("late")), ("members", member.clone()), ("commands", add)] {
        late.push(Late::begin(&api, &key, &org.path(path), &body).await);
    }
    let (ann, ann_is) = api.joined(&org, "ann@late-body.example", "admin").await;
    let asks_back = json!({"email": "ann@late-body.example", "role": "admin"});
    let returns = Late::begin(&api, &ann, &org.path("members"), &asks_back).await;
    let (bob, bob_is) = api.joined(&org, "bob@late-body.example", "admin").await;
    let issue = json!({"name": "mine", "role": "admin"});
    let demoted = Late::begin(&api, &bob, &org.path("api-keys"), &issue).await;
    api.delete(&org.owner, &org.path(&format!("api-keys/{id}"))).await.expect(200);
    api.delete(&org.owner, &org.path(&format!("members/{ann_is}"))).await.expect(200);
    api.patch(&org.owner, &org.path(&format!("members/{bob_is}")), &json!({"role": "viewer"})).await.expect(200);
    sleep(Duration::from_secs(1)).await;
    for request in late {
        let answer = request.finish().await;
        let text = &answer.text;
        assert!(answer.status == 401 || (answer.status == 200 && text.contains("unauthenticated")), "{answer:?}");
    }
    returns.finish().await.expect(404);
    demoted.finish().await.expect(403);
    let members = api.get(&org.owner, &org.path("members")).await.expect(200).text;
    assert!(!members.contains("mallory@") && !members.contains("ann@"), "{members}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commands_that_wait_for_each_other_end_with_the_right_of_who_sent_them() {
    const WRITERS: usize = 100;
    let api = Api::start().await;
    let org = api.org("in-line").await;
    let (id, key) = api.key(&org, "member").await;
    let (record, _) = api.record(&org, "one").await;
    let path = org.path(&format!("records/{record}"));
    let (began, revoked) = (Instant::now(), std::sync::OnceLock::new());
    // Each of them waits behind all others for the same record.
    let writer = |nth: usize| {
        let (api, path, key, revoked) = (&api, &path, &key, &revoked);
        async move {
            let (mut last, mut before) = (None, 0);
            for round in 0.. {
                assert!(began.elapsed() < PATIENCE, "the key goes on");
                let request = api.request(Method::PUT, path).bearer_auth(key);
                let data = json!({"data": {"name": format!("{nth}-{round}")}});
                match Answer::of(request.json(&data)).await.status {
                    200 => match revoked.get().map(Instant::elapsed) {
                        Some(after) => last = Some(after),
                        None => before += 1,
                    },
                    409 | 429 => {}
                    401 => break,
                    status => panic!("{status}"),
                }
            }
            (last, before)
        }
    };
    let revoke = async {
        sleep(Duration::from_secs(1)).await;
        api.delete(&org.owner, &org.path(&format!("api-keys/{id}"))).await.expect(200);
        revoked.set(Instant::now()).unwrap();
    };
    let (lasts, ()) = tokio::join!(join_all((0..WRITERS).map(writer)), revoke);
    let before: usize = lasts.iter().map(|(_, before)| before).sum();
    assert!(before > 0, "nothing was written while the key was good");
    let latest = lasts.into_iter().filter_map(|(last, _)| last).max();
    assert!(latest < Some(Duration::from_secs(1)), "{latest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_by_which_an_owner_signs_in_is_not_taken_away_by_others() {
    let api = Api::start().await;
    let org = api.org("way-in").await;
    let (idp, stop) = own_issuer(&api, "own").await;
    let body = json!({"name": "own", "issuer": idp.url(), "audience": "orgstream"});
    let made = api.post(&org.owner, &org.path("sso-connections"), &body).await.expect(201);
    let connection = org.path(&format!("sso-connections/{}", made.json()["connection_id"].as_str().unwrap()));
    let email = "sso@way-in.example";
    let user = orgstream_events::UserId::from_login(idp.url(), email);
    let member = json!({"email": email, "role": "owner", "user_id": user});
    let added = api.post(&org.owner, &org.path("members"), &member).await.expect(201);
    api.sees(&org, added.header("stream-position")).await;
    let by_sso = idp.mint(email, Duration::from_hours(1)).unwrap();
    api.get(&by_sso, &org.path("members")).await.expect(200);
    let (ann, _) = api.joined(&org, "ann@way-in.example", "admin").await;
    let (_, key) = api.key(&org, "owner").await;
    for (bearer, status, code) in
        [(&ann, 403, "role_above_own"), (&by_sso, 409, "would_lock_out"), (&key, 409, "would_lock_out")]
    {
        assert_eq!(api.delete(bearer, &connection).await.expect(status).problem(), code);
    }
    api.delete(&org.owner, &connection).await.expect(200);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_the_audit_log_neither_sends_it_elsewhere_nor_stops_it() {
    let api = Api::start().await;
    let org = api.org("silenced").await;
    let scoped = json!({"name": "settings", "role": "admin", "scopes": ["organization:manage"]});
    let (_, key) = api.issue(&org.owner, &org, &scoped).await;
    let settings = org.path("settings");
    let address = json!({"audit_webhook": "https://siem.silenced.example/"});
    api.patch(&org.owner, &settings, &address).await.expect(200);
    for webhook in [json!("https://elsewhere.example/"), Value::Null] {
        let refused = api.patch(&key, &settings, &json!({"audit_webhook": webhook})).await.expect(403);
        assert_eq!(refused.problem(), "scope_above_own");
    }
    api.patch(&key, &settings, &json!({"custom_metadata": {"a": "b"}})).await.expect(200);
}

/// Two owners who change the ways in at the same time, each permitted by what it saw of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settings_and_a_connection_that_change_at_once_leave_a_way_in() {
    let api = Api::start().await;
    let (idp, stop) = own_issuer(&api, "own").await;
    // Each reads what the other changes, and the one does so later than the other: all offsets are tried.
    for (round, offset) in (-8_i64..17).enumerate() {
        let org = api.org(&format!("skew-{round}")).await;
        let audience = format!("app-{round}");
        let body = json!({"name": "own", "issuer": idp.url(), "audience": audience});
        let made = api.post(&org.owner, &org.path("sso-connections"), &body).await.expect(201);
        let id = made.json()["connection_id"].as_str().unwrap().to_owned();
        let email = format!("sso@skew-{round}.example");
        let user = orgstream_events::UserId::from_login(idp.url(), &email);
        let member = json!({"email": email, "role": "owner", "user_id": user});
        let added = api.post(&org.owner, &org.path("members"), &member).await.expect(201);
        api.sees(&org, added.header("stream-position")).await;
        let person = Person { email: &email, email_verified: true, amr: &[] };
        let by_sso = idp.mint_with(&person, json!({"aud": audience}), Duration::from_hours(1)).unwrap();
        let (settings, connection) = (org.path("settings"), org.path(&format!("sso-connections/{id}")));
        let only = json!({"allowed_auth_methods": [format!("sso:{id}")]});
        let later = |offset: i64| sleep(Duration::from_millis(u64::try_from(offset).unwrap_or_default()));
        let set = async {
            later(offset).await;
            api.patch(&by_sso, &settings, &only).await
        };
        let remove = async {
            later(-offset).await;
            api.delete(&org.owner, &connection).await
        };
        let (set, removed) = tokio::join!(set, remove);
        for answer in [&set, &removed] {
            // Refused by the other's change, or by the right that ended with it.
            assert!(answer.status == 200 || (400..500).contains(&answer.status), "{answer:?}");
        }
        eventually("an owner to come in", async || {
            let mut statuses = Vec::new();
            for bearer in [&org.owner, &by_sso] {
                statuses.push(api.get(bearer, &org.path("members")).await.status);
            }
            statuses.contains(&200).then_some(())
        })
        .await;
    }
    stop.cancel();
}
