//! Sessions: their rights, their lifetime, their user, and how they end.

use std::time::{Duration, Instant};

use orgstream_events::{OrgId, SessionId};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    api::{Answer, Api, model},
    support::within_a_second,
};

const COOKIE: &str = "__Host-orgstream_session";

async fn run(owner: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(owner).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_a_secret_that_is_shown_once() {
    let api = Api::start().await;
    let ann = api.person("ann@acme.example");
    let answer = api.post(&ann, "/v1/sessions", &json!({})).await.expect(201);
    assert_eq!(answer.header("cache-control"), "no-store");
    let begun = answer.json();
    let token = begun["token"].as_str().unwrap();
    assert!(token.starts_with("os_ses_") && token.len() == 57, "{token}");
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with(&format!("{COOKIE}={token};")), "{cookie}");
    for part in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let shown = api.get(token, "/v1/session").await.expect(200);
    assert!(!shown.text.contains(token));
    let session = shown.json();
    assert_eq!((&session["id"], &session["current"], &session["epoch"]), (&begun["id"], &json!(true), &json!(1)));
    assert_eq!((&session["method"], &session["second_factor"]), (&json!("oidc"), &json!(false)));
    assert!(session["ip"] == "127.0.0.1" && session["expires_at"].as_str() < session["ends_at"].as_str(), "{session}");
    let listed = api.get(&ann, "/v1/sessions").await.expect(200);
    assert_eq!((&listed.json()["data"][0]["id"], &listed.json()["data"][0]["current"]), (&begun["id"], &json!(false)));
    assert!(!listed.text.contains(token));
    // No usable secret is stored.
    let mut owner = api.owner().await;
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT to_jsonb(s)::text FROM identity.sessions AS s").fetch_all(&mut owner).await.unwrap();
    assert!(stored.len() == 1 && !stored[0].contains(&token[7..20]), "{stored:?}");
    // A session cannot start a session, and a token alone is none.
    assert_eq!(api.post(token, "/v1/sessions", &json!({})).await.expect(403).problem(), "sign_in_required");
    assert_eq!(api.get(&ann, "/v1/session").await.expect(403).problem(), "session_required");
    // Nor is a text that only looks like one.
    let mut wrong = token.to_owned();
    wrong.replace_range(20..21, if &token[20..21] == "a" { "b" } else { "a" });
    for bad in [wrong.as_str(), "os_ses_", "os_ses_x"] {
        assert_eq!(api.get(bad, "/v1/me").await.expect(401).problem(), "unauthenticated");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_brings_its_session_by_cookie_from_our_own_pages_only() {
    let api = Api::start().await;
    let session = api.session("ann@acme.example").await;
    let cookie = format!("theme=dark; {COOKIE}={session}");
    let ask = |method: Method, path: &str, headers: &[(&str, &str)]| {
        let request = api.request(method, path).header("cookie", &cookie);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(request.json(&model("x")))
    };
    let records = "/v1/organizations/current/records";
    ask(Method::GET, "/v1/me", &[]).await.expect(200);
    ask(Method::GET, records, &[("sec-fetch-site", "cross-site")]).await.expect(200);
    let host = api.base.strip_prefix("http://").unwrap();
    let own = format!("http://{host}");
    for headers in [&[("sec-fetch-site", "same-origin")], &[("sec-fetch-site", "none")], &[("origin", own.as_str())]] {
        ask(Method::POST, records, headers).await.expect(201);
    }
    for headers in [
        &[][..],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[("origin", own.as_str()), ("sec-fetch-site", "cross-site")],
    ] {
        let refused = ask(Method::POST, records, headers).await.expect(403);
        assert_eq!(refused.problem(), "cross_site_request", "{headers:?}");
    }
    let refused = ask(Method::DELETE, "/v1/sessions/current", &[]).await.expect(403);
    assert_eq!(refused.problem(), "cross_site_request");
    let left = ask(Method::DELETE, "/v1/sessions/current", &[("sec-fetch-site", "same-origin")]).await.expect(204);
    assert!(left.header("set-cookie").contains("Max-Age=0"), "{left:?}");
    ask(Method::GET, "/v1/me", &[]).await.expect(401);
}

// S5.20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_20_what_was_chosen_stays_chosen_everywhere() {
    let api = Api::start().await;
    let (email, a) = ("max@stays.example", api.org("stays").await);
    api.join(&a, email, "member").await;
    let session = api.session(email).await;
    api.switch(&session, "stays").await.expect(200);
    let second = api.another().await;
    for base in [&api.base, &second, &api.base] {
        let request = reqwest::Client::new().get(format!("{base}/v1/session")).bearer_auth(&session);
        assert_eq!(Answer::of(request).await.expect(200).json()["active_org"]["slug"], "stays");
    }
    // The next sign-in begins in the user's last organization.
    assert_eq!(api.sign_in(&api.person(email)).await["active_org"]["slug"], "stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_ended_is_refused_everywhere_within_a_second() {
    let api = Api::start().await;
    let second = api.another().await;
    let ann = api.person("ann@ends.example");
    let (one, other) = (api.session("ann@ends.example").await, api.session("ann@ends.example").await);
    let there = async |session: &str| {
        Answer::of(reqwest::Client::new().get(format!("{second}/v1/me")).bearer_auth(session)).await.status
    };
    for round in 0..3 {
        let session = api.session("ann@ends.example").await;
        assert_eq!(there(&session).await, 200);
        let id = api.get(&session, "/v1/session").await.expect(200).json()["id"].as_str().unwrap().to_owned();
        let revoke = api.request(Method::DELETE, &format!("/v1/sessions/{id}")).bearer_auth(&ann);
        Answer::of(revoke).await.expect(204);
        let ended = Instant::now();
        assert_eq!(api.get(&session, "/v1/me").await.status, 401, "where it was ended it ends at once");
        while there(&session).await == 200 {
            assert!(ended.elapsed() < Duration::from_secs(1), "round {round}");
        }
        // It is no session of this user any more, and was never another's.
        let again = api.request(Method::DELETE, &format!("/v1/sessions/{id}")).bearer_auth(&ann);
        Answer::of(again).await.expect(404);
    }
    let eve = api.session("eve@ends.example").await;
    let id = api.get(&one, "/v1/session").await.expect(200).json()["id"].as_str().unwrap().to_owned();
    let unknown = SessionId::fresh(1, [7; 10]).to_string();
    let mut answers = Vec::new();
    for id in [&id, &unknown] {
        let request = api.request(Method::DELETE, &format!("/v1/sessions/{id}")).bearer_auth(&eve);
        let mut body = Answer::of(request).await.expect(404).json();
        body.as_object_mut().unwrap().remove("request_id");
        answers.push(body);
    }
    assert_eq!(answers[0], answers[1]);
    api.get(&one, "/v1/me").await.expect(200);
    let own = api.request(Method::DELETE, "/v1/sessions/current").bearer_auth(&one);
    Answer::of(own).await.expect(204);
    api.get(&one, "/v1/me").await.expect(401);
    api.get(&other, "/v1/me").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_it_is_not_used_and_in_any_case() {
    let api = Api::start_with(|identity| {
        identity.session_idle_hours = 2;
        identity.session_hours = 48;
    })
    .await;
    let mut owner = api.owner().await;
    let session = api.session("ann@lasts.example").await;
    let times = async |session: &str| {
        let shown = api.get(session, "/v1/session").await.expect(200).json();
        ["last_seen_at", "expires_at", "ends_at"].map(|name| shown[name].as_str().unwrap().to_owned())
    };
    let before = times(&session).await;
    // Used again within the minute, it is not recorded; after that it is, and the expiry moves with it.
    assert_eq!(times(&session).await, before);
    run(&mut owner, "UPDATE identity.sessions SET last_seen_at = now() - interval '2 minutes', expires_at = now() + interval '1 hour'").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let after = loop {
        let after = times(&session).await;
        if after[1] > before[1] {
            break after;
        }
        assert!(Instant::now() < deadline, "{before:?} {after:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(after[0] >= before[0] && after[2] == before[2], "{before:?} {after:?}");
    // Never beyond its longest lifetime.
    run(&mut owner, "UPDATE identity.sessions SET last_seen_at = now() - interval '2 minutes', ends_at = now() + interval '30 minutes'").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = times(&session).await;
        if now[1] == now[2] {
            break;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for end in ["expires_at", "ends_at"] {
        let session = api.session("ann@lasts.example").await;
        api.get(&session, "/v1/me").await.expect(200);
        run(&mut owner, &format!("UPDATE identity.sessions SET {end} = now() - interval '1 second'")).await;
        let deadline = Instant::now() + Duration::from_secs(5);
        while api.get(&session, "/v1/me").await.status == 200 {
            assert!(Instant::now() < deadline, "{end} is no end");
        }
        assert_eq!(api.switch(&session, "anywhere").await.expect(401).problem(), "unauthenticated");
    }
    assert_eq!(api.get(&api.person("ann@lasts.example"), "/v1/sessions").await.expect(200).json()["data"], json!([]));
}

// S1.35
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_35_who_was_removed_is_out_at_once_with_the_same_session() {
    let api = Api::start().await;
    let (email, org) = ("ann@removed.example", api.org("removed").await);
    let member = api.join(&org, email, "admin").await;
    let session = api.session(email).await;
    api.switch(&session, &org.id).await.expect(200);
    let made = api.post(&session, "/v1/organizations/current/records", &model("stays")).await.expect(201);
    let remove = api.request(Method::DELETE, &org.path(&format!("members/{member}"))).bearer_auth(&org.owner);
    Answer::of(remove).await.expect(200);
    within_a_second("she is out", async || {
        (api.get(&session, "/v1/organizations/current/records").await.status != 200).then_some(())
    })
    .await;
    for path in ["/v1/organizations/current/records", &org.path("records")] {
        api.get(&session, path).await.expect(404);
        api.post(&session, path, &model("x")).await.expect(404);
    }
    assert_eq!(api.get(&session, "/v1/session").await.expect(200).json()["active_org"], Value::Null);
    api.switch(&session, &org.id).await.expect(404);
    // Resources made by the member belong to the organization.
    api.get_at(&org.owner, made.header("location"), made.header("stream-position")).await.expect(200);
}

/// The identity tables contain ids of organizations and none of their rows, and users that these do not have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_in_is_nothing_that_an_organization_sees() {
    let api = Api::start().await;
    let (email, org) = ("ann@apart.example", api.org("apart").await);
    api.join(&org, email, "owner").await;
    let session = api.session(email).await;
    let personal: OrgId =
        api.get(&session, "/v1/me").await.expect(200).json()["personal_org"].as_str().unwrap().parse().unwrap();
    api.switch(&session, &org.id).await.expect(200);
    for path in ["members", "audit/events", "records", "projections"] {
        let text = api.get(&session, &org.path(path)).await.expect(200).text;
        for secret in ["usr_", &personal.to_string(), "os_ses_", "issuer"] {
            assert!(!text.contains(secret), "{path} shows {secret}: {text}");
        }
    }
}
