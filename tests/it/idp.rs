//! Organizations at an external identity provider: created or bound with Orgstream's, and never deleted.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::IntoResponse,
};
use orgstream::adapters::identity_provider::Auth0;
use orgstream_events::OrgId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::api::{Answer, Api, OPERATOR};

/// Auth0 as far as organizations go, with a record of all requests.
#[derive(Clone, Default)]
pub(crate) struct FakeAuth0(Arc<Mutex<Asked>>);

#[derive(Default)]
struct Asked {
    requests: Vec<(String, String)>,
    /// By name.
    organizations: Vec<(String, String)>,
    is_down: bool,
}

impl FakeAuth0 {
    pub(crate) async fn start() -> (Self, String) {
        let fake = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (fake, url)
    }

    pub(crate) fn asked(&self, method: &str) -> Vec<String> {
        let asked = self.0.lock().unwrap();
        asked.requests.iter().filter(|(m, _)| m == method).map(|(_, path)| path.clone()).collect()
    }
}

async fn answer(State(fake): State<FakeAuth0>, request: Request) -> axum::response::Response {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let authorized = request.headers().get("authorization").is_some_and(|value| value == "Bearer a-token");
    let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut asked = fake.0.lock().unwrap();
    asked.requests.push((method.clone(), path.clone()));
    if asked.is_down {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if path == "/oauth/token" {
        let good = body["client_id"] == "id" && body["client_secret"] == "secret";
        return if good {
            Json(json!({"access_token": "a-token", "expires_in": 86400})).into_response()
        } else {
            StatusCode::UNAUTHORIZED.into_response()
        };
    }
    if !authorized {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(rest) = path.strip_prefix("/api/v2/organizations") else { return StatusCode::NOT_FOUND.into_response() };
    let found = |by: &dyn Fn(&(String, String)) -> bool| asked.organizations.iter().find(|one| by(one)).cloned();
    match (method.as_str(), rest) {
        ("POST", "") => {
            let name = body["name"].as_str().unwrap().to_owned();
            if found(&|(other, _)| *other == name).is_some() {
                return StatusCode::CONFLICT.into_response();
            }
            let id = format!("org_made{}", asked.organizations.len());
            asked.organizations.push((name, id.clone()));
            (StatusCode::CREATED, Json(json!({"id": id}))).into_response()
        }
        ("GET", rest) => {
            let (name, id) = (rest.strip_prefix("/name/"), rest.trim_start_matches('/').to_owned());
            match found(&|(other, other_id)| name.map_or(*other_id == id, |name| name == other)) {
                Some((_, id)) => Json(json!({"id": id})).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        ("DELETE", id) => {
            let id = id.trim_start_matches('/').to_owned();
            asked.organizations.retain(|(_, other)| *other != id);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

// S5.13, S5.31
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_13_s5_31_what_stands_for_an_organization_elsewhere_is_made_or_bound_and_never_deleted() {
    let (auth0, url) = FakeAuth0::start().await;
    let idp = Auth0::new(&url, "id".to_owned(), "secret".to_owned()).unwrap();
    let api = Api::start_with_idp(Arc::new(idp)).await;
    let ann = api.person("ann@idp.example");
    let make = async |body: Value| api.post(&ann, "/v1/organizations", &body).await;
    let linked = async |answer: &Answer| {
        let path = answer.header("location").to_owned();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let shown = api.get(&ann, &path).await;
            if shown.status == 200 {
                return shown.json()["auth0_organization_id"].clone();
            }
            assert!(Instant::now() < deadline, "{shown:?}");
        }
    };

    // Created, in the same commit as the organization.
    let made = make(json!({"name": "Made", "slug": "idp-made"})).await.expect(201);
    assert_eq!(made.json()["events"], json!(["organization.created", "organization.identity_linked"]));
    assert_eq!(linked(&made).await, "org_made0");
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(auth0.0.lock().unwrap().organizations[0].0, id.replace("org_", "orgstream-"));

    // Bound, once it is known that it exists and is bound to no other organization.
    let unknown = json!({"name": "x", "slug": "idp-unknown", "auth0_organization_id": "org_nobodys"});
    let refused = make(unknown).await.expect(422).json();
    assert_eq!(refused["errors"][0]["pointer"], "/auth0_organization_id");
    auth0.0.lock().unwrap().organizations.push(("theirs".to_owned(), "org_theirs1".to_owned()));
    let bound =
        make(json!({"name": "x", "slug": "idp-bound", "auth0_organization_id": "org_theirs1"})).await.expect(201);
    assert_eq!(linked(&bound).await, "org_theirs1");
    let twice = json!({"name": "x", "slug": "idp-twice", "auth0_organization_id": "org_theirs1"});
    assert_eq!(make(twice).await.expect(409).problem(), "identity_taken");

    // A personal one has none, until it is upgraded.
    api.sign_in(&ann).await;
    let me = api.get(&ann, "/v1/me").await.expect(200).json();
    let path = format!("/v1/organizations/{}", me["personal_org"].as_str().unwrap());
    assert_eq!(api.get(&ann, &path).await.expect(200).json()["auth0_organization_id"], Value::Null);
    let upgraded = api.post(&ann, &format!("{path}/upgrade"), &json!({})).await.expect(200);
    assert_eq!(upgraded.json()["events"], json!(["organization.upgraded", "organization.identity_linked"]));

    // A provider that does not answer leaves nothing half done, and a retry finds what an earlier try created.
    auth0.0.lock().unwrap().is_down = true;
    let again = || {
        let request = api.request(Method::POST, "/v1/organizations").bearer_auth(&ann).header("idempotency-key", "k");
        Answer::of(request.json(&json!({"name": "Late", "slug": "idp-late"})))
    };
    assert_eq!(again().await.expect(409).problem(), "identity_provider_unavailable");
    let org = OrgId::derive(orgstream_events::CommandId::from_idempotency_key(
        orgstream_events::PLATFORM_ORG,
        &format!("{}/k", orgstream_events::UserId::from_login(api.issuer.url(), "ann@idp.example")),
    ));
    let name = org.to_string().replace("org_", "orgstream-");
    auth0.0.lock().unwrap().organizations.push((name, "org_early".to_owned()));
    auth0.0.lock().unwrap().is_down = false;
    let late = again().await.expect(201);
    assert_eq!(late.json()["id"], org.to_string());
    assert_eq!(linked(&late).await, "org_early");
    // Whatever ends here, and however a creation fails: its counterpart there stays.
    let there = || {
        let asked = auth0.0.lock().unwrap();
        asked.organizations.iter().map(|(_, id)| id.clone()).collect::<BTreeSet<String>>()
    };
    let before = there();
    assert!(["org_made0", "org_theirs1", "org_early"].iter().all(|id| before.contains(*id)), "{before:?}");
    let taken = make(json!({"name": "x", "slug": "idp-made"})).await.expect(409);
    assert_eq!(taken.problem(), "slug_taken");
    for id in [made.json()["id"].as_str().unwrap(), bound.json()["id"].as_str().unwrap()] {
        let path = format!("/v1/organizations/{id}/suspend");
        api.post(OPERATOR, &path, &json!({"reason": "unpaid"})).await.expect(200);
    }
    assert_eq!((there(), auth0.asked("DELETE")), (before, Vec::<String>::new()));
    assert_eq!(auth0.asked("POST").iter().filter(|path| *path == "/oauth/token").count(), 1, "a token is used again");
}
