//! Every route with credentials that must be denied: none, another org's key, the wrong role, a revoked key, a member
//! who left. The routes come from the policy table, so a new one is covered without being added here.

use orgstream::api::http::kit::policy::{Policy, ROUTES, RoutePolicy};
use orgstream_domain::Permission;
use orgstream_events::{
    CommandId, ConnectionId, DomainId, EventId, InvitationId, KeyId, MemberId, OrgId, RecordId, Role, RoleId,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    api::{Answer, Api, OPERATOR, model},
    support::within_a_second,
};

/// A path with the org given and valid ids that do not exist.
fn path(route: &RoutePolicy, org: &str) -> String {
    let command = CommandId::fresh(1_700_000_000_000, [5; 10]);
    route
        .path
        .replace("{org}", org)
        .replace("{member}", &MemberId::derive(command).to_string())
        .replace("{invitation}", &InvitationId::derive(command).to_string())
        .replace("{role}", &RoleId::derive(command).to_string())
        .replace("{domain}", &DomainId::from_uuid(command.uuid()).to_string())
        .replace("{connection}", &ConnectionId::derive(command).to_string())
        .replace("{key}", &KeyId::derive(command).to_string())
        .replace("{record}", &RecordId::derive(command).to_string())
        .replace("{event}", &EventId::derive(command, "", 0).to_string())
        .replace("{kind}", "no_such_kind")
        .replace("{*path}", "payloads/000.p/3")
        + match route.path.rsplit('/').next() {
            Some("consistency") => "?from=0",
            Some("state") => "?at=2",
            _ => "",
        }
}

/// The answer's status; the body too, unless the route streams.
async fn call(api: &Api, route: &RoutePolicy, org: &str, bearer: Option<&str>) -> (u16, Value) {
    let mut request = api.request(Method::from_bytes(route.method.as_bytes()).unwrap(), &path(route, org));
    if let Some(bearer) = bearer {
        request = request.bearer_auth(bearer);
    }
    if route.method != "GET" && route.method != "DELETE" {
        request = request.json(&json!({}));
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    if status < 400 {
        return (status, Value::Null);
    }
    let mut body: Value = answer.json().await.unwrap();
    body.as_object_mut().unwrap().remove("request_id");
    (status, body)
}

fn of_orgs() -> impl Iterator<Item = (&'static RoutePolicy, Option<Permission>)> {
    ROUTES.iter().filter_map(|route| match route.policy {
        Policy::Org(permission) => Some((route, Some(permission))),
        Policy::OrgCommands => Some((route, None)),
        Policy::Public | Policy::SignedIn | Policy::Operator => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_anywhere() {
    let api = Api::start().await;
    let org = api.org("locked").await;
    let unknown = "os_live_000000000000_000000000000000000000000000000002AO7tm";
    for route in ROUTES.iter().filter(|route| route.policy != Policy::Public) {
        for bearer in [None, Some(""), Some("nonsense"), Some(unknown), Some("eyJhbGciOiJub25lIn0.e30.")] {
            let (status, body) = call(&api, route, &org.id, bearer).await;
            assert_eq!((status, &body["code"]), (401, &json!("unauthenticated")), "{route:?} as {bearer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_orgs_things_look_like_nothing() {
    let api = Api::start().await;
    let (mine, theirs) = (api.org("mine").await, api.org("theirs").await);
    let (_, key) = api.key(&mine, "admin").await;
    let (record, _) = api.record(&theirs, "secret plan").await;
    let nowhere = OrgId::fresh(1_700_000_000_000, [9; 10]).to_string();
    for (route, _) in of_orgs() {
        for bearer in [&key, &mine.owner] {
            let foreign = call(&api, route, &theirs.id, Some(bearer)).await;
            let absent = call(&api, route, &nowhere, Some(bearer)).await;
            assert_eq!(foreign.0, 404, "{route:?}: {foreign:?}");
            assert_eq!(foreign, absent, "{route:?}");
            assert_eq!(foreign, call(&api, route, &theirs.slug, Some(bearer)).await, "{route:?} by slug");
            assert_eq!(foreign, call(&api, route, "no-such-slug", Some(bearer)).await, "{route:?} by a free slug");
        }
    }
    // The other org's record under this org's path, and the other org in this org's headers.
    let answer = api.get(&key, &mine.path(&format!("records/{record}"))).await.expect(404);
    assert!(!answer.text.contains("secret"), "{answer:?}");
    for header in ["x-tenant-id", "x-org-id"] {
        for value in [&theirs.id, &theirs.slug, &nowhere] {
            let request = api.request(Method::GET, &mine.path("records")).bearer_auth(&key).header(header, value);
            assert_eq!(Answer::of(request).await.expect(403).problem(), "tenant_mismatch");
        }
        let request = api.request(Method::GET, &mine.path("records")).bearer_auth(&key).header(header, &mine.slug);
        Answer::of(request).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_opens_what_the_table_says_and_nothing_else() {
    let api = Api::start().await;
    let org = api.org("roles").await;
    for role in Role::BUILT_IN {
        let (_, key) = api.key(&org, &role.name()).await;
        for (route, permission) in of_orgs() {
            let (status, body) = call(&api, route, &org.id, Some(&key)).await;
            let allowed = permission.is_none_or(|permission| permission.is_granted_to(role));
            assert_eq!(status == 403, !allowed, "{role} {route:?}: {status} {body}");
            assert_ne!(status, 401, "{role} {route:?}");
            assert!(status < 500, "{role} {route:?}: {body}");
        }
        for route in ROUTES.iter().filter(|route| route.path == "/healthz") {
            let (status, body) = call(&api, route, &org.id, Some(&key)).await;
            assert_eq!(status, 200, "{body}");
        }
    }
    for route in ROUTES.iter().filter(|route| route.policy == Policy::Operator) {
        let (status, _) = call(&api, route, &org.id, Some(&org.owner)).await;
        assert_eq!(status, 403, "{route:?}");
    }
    for (route, permission) in of_orgs() {
        let (status, body) = call(&api, route, &org.id, Some(OPERATOR)).await;
        let open = permission.is_none_or(Permission::is_operators);
        assert_eq!(status == 404, !open, "operator {route:?}: {status} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_away_stops_working() {
    let api = Api::start().await;
    let org = api.org("taken").await;
    let (id, key) = api.key(&org, "admin").await;
    api.get(&key, &org.path("records")).await.expect(200);
    let revoke = api.request(Method::DELETE, &org.path(&format!("api-keys/{id}"))).bearer_auth(&org.owner);
    Answer::of(revoke).await.expect(200);
    within_a_second("the key is revoked", async || {
        (api.get(&key, &org.path("records")).await.status != 200).then_some(())
    })
    .await;
    for (route, _) in of_orgs() {
        assert_eq!(call(&api, route, &org.id, Some(&key)).await.0, 401, "{route:?}");
    }

    let ann = api.person("ann@taken.example");
    let ann_is = orgstream_events::UserId::from_login(api.issuer.url(), "ann@taken.example");
    let body = json!({"email": "ann@taken.example", "role": "admin", "user_id": ann_is});
    let added = api.post(&org.owner, &org.path("members"), &body).await.expect(201);
    api.sees(&org, added.header("stream-position")).await;
    api.get(&ann, &org.path("records")).await.expect(200);
    let remove = api.request(Method::DELETE, added.header("location")).bearer_auth(&org.owner);
    Answer::of(remove).await.expect(200);
    within_a_second("ann is out", async || (api.get(&ann, &org.path("records")).await.status != 200).then_some(()))
        .await;
    for (route, _) in of_orgs() {
        assert_eq!(call(&api, route, &org.id, Some(&ann)).await.0, 404, "{route:?}");
    }
    assert_eq!(api.get(&ann, "/v1/me").await.expect(200).json()["memberships"], json!([]));
    let refused = api.post(&ann, &org.path("records"), &model("a")).await.expect(404);
    assert_eq!(refused.problem(), "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_people_are_elsewhere_is_shown_nowhere() {
    let api = Api::start().await;
    let org = api.org("private").await;
    let (_, key) = api.key(&org, "owner").await;
    let (_, position) = api.record(&org, "a").await;
    api.get_at(&key, &org.path("audit/events"), &position).await.expect(200);
    for (route, _) in of_orgs().filter(|(route, _)| route.method == "GET" && !route.path.ends_with("/stream")) {
        let answer = api.get(&key, &path(route, &org.id)).await;
        // Schemas of kinds, which are public, say which fields are secrets.
        let declares = route.path.contains("/kinds");
        for secret in
            ["usr_", "user_id", "secret_mac", "secret"].into_iter().filter(|word| !declares || *word != "secret")
        {
            assert!(!answer.text.contains(secret), "{route:?} shows {secret}: {}", answer.text);
        }
    }
}
