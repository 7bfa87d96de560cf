//! The limits on what one organization, or one user, may trigger without a raised limit.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, OPERATOR};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_does_not_send_a_thousand_mails() {
    let api = Api::start().await;
    let org = api.org("mailing").await;
    let invite =
        |nth: usize| json!({"type": "issue_invitation", "email": format!("n{nth}@mailing.example"), "role": "viewer"});
    let commands: Vec<Value> = (0..1_000).map(invite).collect();
    let send = || {
        let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&org.owner);
        Answer::of(request.header("idempotency-key", "mailing").json(&commands))
    };
    let sent = send().await.expect(200);
    let outcomes = sent.json();
    let accepted = |outcomes: &Value| {
        let all = outcomes.as_array().unwrap();
        all.iter().filter(|outcome| outcome["status"] == "accepted").count()
    };
    assert_eq!(accepted(&outcomes), 100);
    for outcome in outcomes.as_array().unwrap().iter().filter(|outcome| outcome["status"] == "refused") {
        assert_eq!(outcome["error"]["code"], "invitation_limit_exceeded", "{outcome}");
    }
    api.sees(&org, sent.header("stream-position")).await;
    // Completed commands are only replayed, and the rest waits for its hour: nor is one sent again, or one by one.
    assert_eq!(accepted(&send().await.expect(200).json()), 100);
    let one = json!({"email": "one@mailing.example", "role": "viewer"});
    let refused = api.post(&org.owner, &org.path("invitations"), &one).await.expect(429);
    assert_eq!(refused.problem(), "invitation_limit_exceeded");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 3_600);
    let id = outcomes[0]["id"].as_str().unwrap();
    let resend = org.path(&format!("invitations/{id}/resend"));
    assert_eq!(api.post(&org.owner, &resend, &json!({})).await.expect(429).problem(), "invitation_limit_exceeded");
    // Another organization has an hour of its own.
    let other = api.org("other-mailing").await;
    api.post(&other.owner, &other.path("invitations"), &one).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_does_not_make_sixty_organizations_at_once() {
    let api = Api::start().await;
    let ann = api.person("ann@many.example");
    let made = join_all((0..60).map(|nth| {
        let request = api.request(Method::POST, "/v1/organizations").bearer_auth(&ann);
        let request = request.header("idempotency-key", format!("many-{nth}"));
        Answer::of(request.json(&json!({"name": "x", "slug": format!("many-{nth}")})))
    }))
    .await;
    let (made, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (20, 40));
    for answer in refused {
        assert_eq!(answer.expect(429).problem(), "organization_limit_exceeded");
    }
    // By the other name of the same route it is the same, and a repetition under its key does not count.
    let tenant = json!({"display_name": "x"});
    let refused = api.post(&ann, "/api/v1/tenants/", &tenant).await.expect(429);
    assert_eq!(refused.problem(), "organization_limit_exceeded");
    let slug = made[0].json()["id"].clone();
    let nth = (0..60).find(|nth| made[0].json()["slug"] == format!("many-{nth}"));
    if let Some(nth) = nth {
        let request = api.request(Method::POST, "/v1/organizations").bearer_auth(&ann);
        let request = request.header("idempotency-key", format!("many-{nth}"));
        let again = Answer::of(request.json(&json!({"name": "x", "slug": format!("many-{nth}")}))).await.expect(201);
        assert_eq!(again.json()["id"], slug);
    }
    // Another user may, and a first sign-in still creates its personal organization.
    api.org("of-somebody-else").await;
    api.session("ann@many.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_has_so_many_sessions_and_no_more() {
    let api = Api::start_with(|identity| identity.sessions_per_person = 5).await;
    let ann = api.person("ann@sessions.example");
    let begin = || Answer::of(api.request(Method::POST, "/v1/sessions").bearer_auth(&ann).json(&json!({})));
    begin().await.expect(201);
    let begun = join_all((0..20).map(|_| begin())).await;
    assert_eq!(begun.iter().filter(|answer| answer.status == 201).count(), 4);
    let refused = begin().await.expect(409);
    assert_eq!(refused.problem(), "too_many_sessions");
    // With the issuer's token the user can list the sessions to end.
    let sessions = api.get(&ann, "/v1/sessions").await.expect(200).json();
    assert_eq!(sessions["data"].as_array().unwrap().len(), 5);
    let path = format!("/v1/sessions/{}", sessions["data"][0]["id"].as_str().unwrap());
    Answer::of(api.request(Method::DELETE, &path).bearer_auth(&ann)).await.expect(204);
    begin().await.expect(201);
    api.session("bob@sessions.example").await;
    api.get(OPERATOR, "/v1/platform/lag").await.expect(200);
}
