//! What somebody was given is theirs alone, and ends with the say of whoever gave it.

use std::time::Duration;

use orgstream::issuer::{DevIssuer, Person};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Answer, Api, Org, create_model},
    support::within_a_second,
};

impl Api {
    async fn command(&self, bearer: &str, org: &Org, key: Option<&str>, command: &Value) -> Answer {
        let request = self.request(Method::POST, &org.path("commands")).bearer_auth(bearer).json(command);
        Answer::of(key.into_iter().fold(request, |request, key| request.header("idempotency-key", key))).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_of_a_key_is_given_again_to_whoever_it_was_made_for_and_to_nobody_else() {
    let api = Api::start().await;
    let second = api.another().await;
    let org = api.org("replayed").await;
    let member = api.join(&org, "ann@replayed.example", "admin").await;
    let ann = api.person("ann@replayed.example");
    let (_, key) = api.key(&org, "admin").await;
    let issue = json!({"type": "issue_api_key", "name": "ci", "role": "admin"});
    let first = api.command(&ann, &org, Some("k"), &issue).await.expect(201).json();
    let token = first["token"].as_str().unwrap();
    // The same words under the same key: of herself, by whichever way she comes, and at whichever process.
    let session = api.session("ann@replayed.example").await;
    api.switch(&session, &org.id).await.expect(200);
    for bearer in [&ann, &session] {
        let again = api.command(bearer, &org, Some("k"), &issue).await.expect(201);
        assert_eq!((&again.json()["token"], &again.json()["replayed"]), (&json!(token), &json!(true)));
    }
    let there = |bearer: &str| {
        let request = reqwest::Client::new().post(format!("{second}{}", org.path("commands"))).bearer_auth(bearer);
        Answer::of(request.header("idempotency-key", "k").json(&issue))
    };
    assert_eq!(there(&ann).await.expect(201).json()["token"], token);
    let rotate = json!({"type": "rotate_api_key", "id": first["id"]});
    let rotated = api.command(&ann, &org, Some("r"), &rotate).await.expect(200).json();
    for bearer in [&org.owner, &key] {
        for (name, command) in [("k", &issue), ("r", &rotate)] {
            let refused = api.command(bearer, &org, Some(name), command).await.expect(422);
            assert_eq!(refused.problem(), "idempotency_key_reused");
            assert!(!refused.text.contains("os_live"), "{refused:?}");
        }
        assert_eq!(there(bearer).await.expect(422).problem(), "idempotency_key_reused");
    }
    // Without a secret it is the same command, whoever repeats it: a producer may have another key by then.
    let create = create_model("once");
    let made = api.command(&ann, &org, Some("m"), &create).await.expect(201).json();
    let again = api.command(&key, &org, Some("m"), &create).await.expect(201).json();
    assert_eq!((&again["id"], &again["replayed"]), (&made["id"], &json!(true)));
    // Nor to herself, once she may not issue any more.
    let demote = json!({"type": "change_member_role", "id": member, "role": "viewer"});
    let demoted = api.command(&org.owner, &org, None, &demote).await.expect(200);
    api.sees(&org, demoted.header("stream-position")).await;
    within_a_second("ann is a viewer", async || {
        let again = api.command(&ann, &org, Some("k"), &issue).await;
        (again.status != 201).then_some(again)
    })
    .await
    .expect(403);
    assert!(rotated["token"].as_str().unwrap().starts_with("os_live_"));
}

/// An issuer that an organization can have as its own, beside that of the platform.
async fn own_issuer(api: &Api, name: &str) -> (DevIssuer, CancellationToken) {
    let folder = api.outbox.parent().unwrap().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = DevIssuer::load_or_create(&folder, format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(issuer.clone().serve(listener, stop.clone()));
    (issuer, stop)
}

async fn connect(api: &Api, org: &Org, issuer: &DevIssuer) -> Answer {
    let body = json!({"name": "own", "issuer": issuer.url(), "audience": "orgstream", "jit": true});
    api.post(&org.owner, &org.path("sso-connections"), &body).await
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_and_an_audience_are_one_organizations_and_no_others() {
    let api = Api::start().await;
    let (attacker, victim) = (api.org("older").await, api.org("younger").await);
    let (idp, stop) = own_issuer(&api, "own").await;
    for org in [&attacker, &victim] {
        api.patch(&org.owner, &org.path("settings"), &json!({"jit_provisioning": "restricted"})).await.expect(200);
    }
    let first = connect(&api, &victim, &idp).await.expect(201);
    api.sees(&victim, first.header("stream-position")).await;
    assert_eq!(connect(&api, &attacker, &idp).await.expect(409).problem(), "sso_connection_taken");
    // Other audiences of the same issuer are free, and as many organizations as like may name it.
    for number in 0..25 {
        let org = api.org(&format!("many-{number}")).await;
        let body = json!({"name": "x", "issuer": idp.url(), "audience": format!("app-{number}"), "jit": true});
        api.post(&org.owner, &org.path("sso-connections"), &body).await.expect(201);
    }
    let person = idp.mint("ann@younger.example", HOUR).unwrap();
    let me = api.get(&person, "/v1/me").await.expect(200).json();
    assert_eq!(me["memberships"][0]["org_id"], victim.id, "{me}");
    api.get(&person, &victim.path("records")).await.expect(200);
    api.get(&person, &attacker.path("records")).await.expect(404);
    // Two who have the pair all the same, from before it was one's: each is entered by its own name, and nobody guesses.
    api.sql("UPDATE rm.sso_connections SET audience = 'orgstream' WHERE audience = 'app-0'").await;
    let unclear = async || api.get(&person, "/v1/me").await;
    let refused = within_a_second("it is ambiguous", async || {
        let answer = unclear().await;
        (answer.status == 401).then_some(answer)
    })
    .await;
    assert!(refused.text.contains("name yours in the path"), "{refused:?}");
    api.get(&person, &victim.path("records")).await.expect(200);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_removed_comes_back_by_no_other_way_in() {
    let api = Api::start().await;
    let org = api.org("closed").await;
    let (idp, stop) = own_issuer(&api, "own").await;
    let connected = connect(&api, &org, &idp).await.expect(201);
    api.sees(&org, connected.header("stream-position")).await;
    let joining = json!({"jit_provisioning": "restricted"});
    let changed = api.patch(&org.owner, &org.path("settings"), &joining).await.expect(200);
    api.sees(&org, changed.header("stream-position")).await;

    // Bob is an admin, has an invitation for an address of his that is not used, and one more for his own.
    let (bob, id) = api.joined(&org, "bob@closed.example", "admin").await;
    api.invite(&bob, &org, "bobs-friend@closed.example", "admin").await.expect(201);
    let by_him = api.invited("bobs-friend@closed.example", 1).await;
    let key = api.post(&bob, &org.path("api-keys"), &json!({"name": "his", "role": "admin"})).await.expect(201).json();
    api.invite(key["token"].as_str().unwrap(), &org, "bobs-other@closed.example", "admin").await.expect(201);
    let by_his_key = api.invited("bobs-other@closed.example", 1).await;
    api.invite(&org.owner, &org, "friend@closed.example", "member").await.expect(201);
    let by_the_owner = api.invited("friend@closed.example", 1).await;
    // An invitation to him, which waits while he is a member by another address.
    let removed = api.delete(&org.owner, &org.path(&format!("members/{id}"))).await.expect(200);
    api.sees(&org, removed.header("stream-position")).await;
    api.invite(&org.owner, &org, "bob@closed.example", "viewer").await.expect(201);
    let to_him = api.invited("bob@closed.example", 2).await;
    let joined = api.accept(&bob, &to_him).await.expect(201);
    let again = joined.json()["member_id"].as_str().unwrap().to_owned();
    api.sees(&org, joined.header("stream-position")).await;
    api.invite(&org.owner, &org, "bob2@closed.example", "viewer").await.expect(201);
    let older = api.invited("bob2@closed.example", 1).await;
    let removed = api.delete(&org.owner, &org.path(&format!("members/{again}"))).await.expect(200);
    api.sees(&org, removed.header("stream-position")).await;

    // By the organization's own issuer, which knows him as somebody else of the same address, whatever its letters.
    for email in ["bob@closed.example", "BOB@Closed.example"] {
        let other = idp.mint(email, HOUR).unwrap();
        let me = api.get(&other, "/v1/me").await.expect(200).json();
        assert_eq!(me["memberships"], json!([]), "{email}");
        api.get(&other, &org.path("records")).await.expect(404);
    }
    assert_eq!(
        api.get(&idp.mint("new@closed.example", HOUR).unwrap(), "/v1/me").await.json()["memberships"][0]["role"],
        "member"
    );
    // By what he sent while he was an admin; his key's word lasts as long as the key.
    let friend = api.person("bobs-friend@closed.example");
    assert_eq!(api.accept(&friend, &by_him).await.expect(409).problem(), "invitation_withdrawn");
    let revoke = api.delete(&org.owner, &org.path(&format!("api-keys/{}", key["id"].as_str().unwrap()))).await;
    revoke.expect(200);
    let other = api.person("bobs-other@closed.example");
    assert_eq!(api.accept(&other, &by_his_key).await.expect(409).problem(), "invitation_withdrawn");
    // What others sent is good.
    api.accept(&api.person("friend@closed.example"), &by_the_owner).await.expect(201);
    // By an invitation from before he was removed, under the login that was removed.
    let renamed = Person { email: "bob2@closed.example", email_verified: true, amr: &[] };
    let renamed = api.issuer.mint_with(&renamed, json!({"sub": "bob@closed.example"}), HOUR).unwrap();
    assert_eq!(api.accept(&renamed, &older).await.expect(403).problem(), "member_was_removed");
    // And by a new one he is back.
    api.invite(&org.owner, &org, "bob@closed.example", "viewer").await.expect(201);
    api.accept(&bob, &api.invited("bob@closed.example", 3).await).await.expect(201);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_give_less_by_now_has_offered_less() {
    let api = Api::start().await;
    let org = api.org("demoted").await;
    let (ann, id) = api.joined(&org, "ann@demoted.example", "admin").await;
    for email in ["one@demoted.example", "two@demoted.example"] {
        api.invite(&ann, &org, email, "admin").await.expect(201);
    }
    api.patch(&org.owner, &org.path(&format!("members/{id}")), &json!({"role": "viewer"})).await.expect(200);
    let token = api.invited("one@demoted.example", 1).await;
    let refused = api.accept(&api.person("one@demoted.example"), &token).await.expect(409);
    assert_eq!(refused.problem(), "invitation_withdrawn");
    // Somebody who may gives their word for it.
    let listed = api.get(&org.owner, &org.path("invitations")).await.expect(200).json();
    let two = listed["data"].as_array().unwrap().iter().find(|one| one["email"] == "two@demoted.example").unwrap();
    let resend = org.path(&format!("invitations/{}/resend", two["id"].as_str().unwrap()));
    api.post(&org.owner, &resend, &json!({})).await.expect(200);
    let token = api.invited("two@demoted.example", 2).await;
    api.accept(&api.person("two@demoted.example"), &token).await.expect(201);
}
