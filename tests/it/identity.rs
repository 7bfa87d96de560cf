//! Users: their sign-ins, their personal organizations, the organizations they may act in, and sign-in requirements.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use orgstream::dev::issuer::{DevIssuer, Person};
use orgstream_events::{OrgId, UserId};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    api::{Answer, Api, OPERATOR, Org, model},
    support::{TempDir, within_a_second},
};

const HOUR: Duration = Duration::from_secs(3600);

async fn count(owner: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(owner).await.unwrap()
}

fn slugs(me: &Value) -> Vec<&str> {
    me["memberships"].as_array().unwrap().iter().map(|place| place["slug"].as_str().unwrap()).collect()
}

impl Api {
    async fn me(&self, bearer: &str) -> Value {
        self.get(bearer, "/v1/me").await.expect(200).json()
    }

    async fn change_settings(&self, org: &Org, settings: &Value) {
        let request = self.request(Method::PATCH, &org.path("settings")).bearer_auth(&org.owner);
        Answer::of(request.json(settings)).await.expect(200);
    }
}

/// Waits for the answer with this code: an organization's requirements apply within a second.
async fn until(wanted: &str, ask: impl AsyncFn() -> Answer) -> Answer {
    within_a_second(wanted, async || {
        let answer = ask().await;
        let code = if answer.status < 400 { "ok".to_owned() } else { answer.problem() };
        (code == wanted).then_some(answer)
    })
    .await
}

// S2.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_1_everybody_sees_what_all_share_and_nobody_more_without_signing_in() {
    let api = Api::start().await;
    let org = api.org("anonymous").await;
    let anonymous = async |path: &str| Answer::of(api.request(Method::GET, path)).await;
    assert!(anonymous("/v1/kinds").await.expect(200).text.contains("evaluation"));
    anonymous("/v1/kinds/evaluation").await.expect(200);
    for path in ["/v1/me", "/v1/me/memberships", "/v1/session", "/v1/sessions", "/v1/organizations/current/records"] {
        assert_eq!(anonymous(path).await.expect(401).problem(), "unauthenticated");
    }
    anonymous(&org.path("records")).await.expect(401);
    let create = api.request(Method::POST, "/api/v1/tenants/").json(&json!({"display_name": "Mine"}));
    assert_eq!(Answer::of(create).await.expect(401).problem(), "unauthenticated");
}

// S5.11
// S4.22
// S2.6
// S2.24
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_11_the_first_sign_in_makes_one_organization_behind_the_scenes() {
    let api = Api::start().await;
    let ann = api.person("ann@home.example");
    assert_eq!(api.me(&ann).await["memberships"], json!([]), "a token alone makes nothing");
    let first = api.sign_in(&ann).await;
    let session = first["token"].as_str().unwrap();
    let me = api.me(session).await;
    let places = me["memberships"].as_array().unwrap();
    assert_eq!(places.len(), 1, "{me}");
    assert_eq!((&places[0]["tenant_type"], &places[0]["role"]), (&json!("personal"), &json!("owner")));
    assert_eq!(places[0]["effective_roles"], json!(["owner", "admin", "member", "viewer"]));
    assert_eq!((&places[0]["visible"], &me["show_switcher"]), (&json!(false), &json!(false)));
    assert_eq!((&me["personal_org"], &me["org_id"]), (&places[0]["org_id"], &places[0]["org_id"]));
    assert_eq!(first["active_org"]["org_id"], me["org_id"]);
    // The second time nothing is created.
    let second = api.sign_in(&ann).await;
    assert_eq!(second["active_org"], first["active_org"]);
    assert_eq!(api.me(&ann).await["memberships"], me["memberships"]);
    // It is an organization like any other: its user can work in it.
    let made = api.post(session, "/v1/organizations/current/records", &model("mine")).await.expect(201);
    api.get_at(session, "/v1/organizations/current/records", made.header("stream-position")).await.expect(200);

    // Beside it, one for work.
    let work = api.org("work").await;
    api.join(&work, "ann@home.example", "member").await;
    let me = api.me(session).await;
    assert_eq!(me["show_switcher"], json!(true));
    assert!(me["memberships"].as_array().unwrap().iter().all(|place| place["visible"] == true), "{me}");
    for org in ["work", places[0]["slug"].as_str().unwrap()] {
        api.switch(session, org).await.expect(200);
        api.post(session, "/v1/organizations/current/records", &model("x")).await.expect(201);
    }
    // A user with an unverified address has one as well, and the address is not in it.
    let eve = Person { email: "eve@home.example", email_verified: false, amr: &[] };
    let eve = api.sign_in(&api.issuer.mint_as(&eve, HOUR).unwrap()).await;
    let members = "/v1/organizations/current/members";
    let members = api.get(eve["token"].as_str().unwrap(), members).await.expect(200).json();
    assert!(members["data"][0]["email"].as_str().unwrap().ends_with("@personal.invalid"), "{members}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s5_11_a_thousand_first_sign_ins_make_one_organization() {
    let api = Api::start_with(|identity| identity.sessions_per_person = 1_000).await;
    let other = api.another().await;
    let ann = api.person("ann@crowd.example");
    let answers: Vec<Value> = stream::iter(0..1_000)
        .map(|number| {
            let here = api.request(Method::POST, "/v1/sessions");
            let there = reqwest::Client::new().post(format!("{other}/v1/sessions"));
            let request = if number % 10 == 0 { there } else { here };
            let request = request.bearer_auth(&ann);
            async move { Answer::of(request).await.expect(201).json() }
        })
        .buffer_unordered(1_000)
        .collect()
        .await;
    let org = &answers[0]["active_org"]["org_id"];
    assert_eq!(answers.len(), 1_000);
    assert!(answers.iter().all(|answer| answer["active_org"]["org_id"] == *org));
    let mut owner = api.owner().await;
    assert_eq!(count(&mut owner, "SELECT count(*) FROM identity.users").await, 1);
    assert_eq!(count(&mut owner, "SELECT count(*) FROM identity.sessions").await, 1_000);
    // Its creation, once: two commits with its plan in the first, and no other organization.
    let id: OrgId = org.as_str().unwrap().parse().unwrap();
    let founded = "SELECT count(*) FROM audit.events WHERE action NOT LIKE 'access.%' AND org_id =";
    let founded = format!("{founded} '{}'", id.uuid());
    let session = answers[0]["token"].as_str().unwrap();
    let current = api.get(session, "/v1/organizations/current/projections").await.expect(200).json();
    let head = current["data"][0]["head"].as_str().unwrap().to_owned();
    api.get_at(session, "/v1/organizations/current/audit/events", &head).await.expect(200);
    assert_eq!(count(&mut owner, &founded).await, 3);
    assert_eq!(count(&mut owner, "SELECT count(*) FROM rm.organizations WHERE tenant_type = 'personal'").await, 1);
}

// S5.17
// S5.8
// S5.15
// S5.16
// S5.9
// S5.12
// S2.9
// S3.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_17_a_tenant_is_created_by_either_name() {
    let api = Api::start().await;
    let ann = api.person("ann@acme.example");
    let session = api.session("ann@acme.example").await;
    let (mut tenants, mut ids) = (Vec::new(), Vec::new());
    for (path, bearer, kind, stored) in [
        ("/api/v1/tenants/", &ann, "ORGANIZATION", "organization"),
        ("/api/v1/tenants", &session, "tenant", "organization"),
        ("/api/v1/tenants/", &session, "Team", "team"),
        ("/api/v1/tenants/", &ann, "workspace", "workspace"),
    ] {
        let body = json!({"display_name": "Acme Corp", "tenant_type": kind});
        let made = api.post(bearer, path, &body).await.expect(201);
        let tenant = made.json();
        assert_eq!(tenant["tenant_type"], stored, "{tenant}");
        assert!(tenant["slug"].as_str().unwrap().starts_with("acme-corp-"), "{tenant}");
        assert_eq!(tenant["tenant_id"], tenant["id"]);
        let id = tenant["tenant_id"].as_str().unwrap().to_owned();
        let shown = api.get_at(&ann, made.header("location"), made.header("stream-position")).await.expect(200).json();
        assert_eq!((&shown["tenant_type"], &shown["name"]), (&json!(stored), &json!("Acme Corp")));
        ids.push(id.clone());
        tenants.push(Org { id, slug: tenant["slug"].as_str().unwrap().to_owned(), owner: ann.clone() });
    }
    // The owner has an owner's rights at once, and each tenant has its own resources only.
    let me = api.me(&ann).await;
    for tenant in &tenants {
        let place = me["memberships"].as_array().unwrap().iter().find(|place| place["org_id"] == *tenant.id).unwrap();
        assert_eq!(place["role"], "owner");
        assert!(place["effective_roles"].as_array().unwrap().contains(&json!("admin")));
        api.join(tenant, "bob@acme.example", "viewer").await;
        let (record, position) = api.record(tenant, &tenant.slug).await;
        for other in &tenants {
            let found = api.get_at(&ann, &tenant.path("records?limit=1"), &position).await.expect(200);
            assert!(found.text.contains(&tenant.slug));
            let status = api.get(&ann, &other.path(&format!("records/{record}"))).await.status;
            assert_eq!(status == 200, other.id == tenant.id, "{} in {}", tenant.slug, other.slug);
        }
    }
    for (body, pointer) in [
        (json!({"display_name": " "}), "/display_name"),
        (json!({"display_name": "x".repeat(121)}), "/display_name"),
        (json!({"display_name": "x", "tenant_type": "club"}), "/tenant_type"),
        (json!({"display_name": "x", "tenant_type": "personal"}), "/tenant_type"),
        (json!({"display_name": "x", "plan": "enterprise"}), "/plan"),
    ] {
        let refused = api.post(&ann, "/api/v1/tenants/", &body).await.expect(422);
        assert!(refused.text.contains(pointer), "{refused:?}");
    }
    // A retry under one key is one tenant.
    let again = || {
        let request = api.request(Method::POST, "/api/v1/tenants/").bearer_auth(&ann);
        Answer::of(request.header("idempotency-key", "k").json(&json!({"display_name": "Twice"})))
    };
    let (first, second) = (again().await.expect(201).json(), again().await.expect(201).json());
    assert_eq!((&first["tenant_id"], &first["slug"]), (&second["tenant_id"], &second["slug"]));
}

// S1.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_1_a_tenant_is_an_organization_with_an_id() {
    let api = Api::start().await;
    let session = api.session("ann@acme.example").await;
    let made = api.post(&session, "/v1/organizations", &json!({"name": "Acme", "slug": "acme"})).await.expect(201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("org_") && id.parse::<OrgId>().is_ok(), "{id}");
    let listed = api.get_at(&session, "/v1/me/memberships", made.header("stream-position")).await.expect(200).json();
    let listed = listed["data"].as_array().unwrap();
    assert!(listed.iter().any(|place| place["org_id"] == *id), "{listed:?}");
}

// S5.18
// S5.21
// S5.22
// S1.28
// S2.23
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_18_a_key_has_one_organization_and_no_session() {
    let api = Api::start().await;
    let (a, b) = (api.org("key-a").await, api.org("key-b").await);
    let ((_, key_a), (_, key_b)) = (api.key(&a, "owner").await, api.key(&b, "owner").await);
    let tenant = json!({"display_name": "Mine"});
    for (method, path, body) in [
        (Method::POST, "/api/v1/tenants/", &tenant),
        (Method::POST, "/v1/organizations", &json!({"name": "x", "slug": "key-made-this"})),
        (Method::POST, "/v1/sessions", &json!({})),
        (Method::GET, "/v1/sessions", &json!({})),
        (Method::GET, "/v1/session", &json!({})),
        (Method::PUT, "/v1/session/active-org", &json!({"org": b.id})),
        (Method::DELETE, "/v1/sessions/current", &json!({})),
    ] {
        for credential in [&key_a, &OPERATOR.to_owned()] {
            let request = api.request(method.clone(), path).bearer_auth(credential).json(body);
            assert_eq!(Answer::of(request).await.expect(403).problem(), "session_only", "{method} {path}");
        }
    }
    for (key, org) in [(&key_a, &a), (&key_b, &b)] {
        let shown = api.get(key, "/v1/organizations/current").await.expect(200).json();
        assert_eq!(shown["id"], *org.id);
        assert_eq!(api.me(key).await["org_id"], *org.id);
    }
    api.get(&key_a, &b.path("records")).await.expect(404);
    // The user behind it switches elsewhere; the key keeps its organization.
    let session = api.sign_in(&a.owner).await["token"].as_str().unwrap().to_owned();
    api.join(&b, &format!("owner@{}.example", a.slug), "member").await;
    api.switch(&session, &b.id).await.expect(200);
    assert_eq!(api.get(&session, "/v1/organizations/current").await.expect(200).json()["id"], *b.id);
    assert_eq!(api.get(&key_a, "/v1/organizations/current").await.expect(200).json()["id"], *a.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_2_whoever_is_on_the_public_plan_makes_no_organizations() {
    let api = Api::start().await;
    let session = api.session("ann@free.example").await;
    let personal = api.me(&session).await["personal_org"].as_str().unwrap().to_owned();
    let plan = async |plan: &str| {
        let request = api.request(Method::PUT, &format!("/v1/organizations/{personal}/plan")).bearer_auth(OPERATOR);
        Answer::of(request.json(&json!({"plan": plan}))).await.expect(200);
    };
    plan("public").await;
    let create = async || api.post(&session, "/api/v1/tenants/", &json!({"display_name": "Mine"})).await;
    let refused = create().await.expect(403);
    assert_eq!(refused.problem(), "plan_required");
    let organization = json!({"name": "x", "slug": "public-x"});
    assert_eq!(api.post(&session, "/v1/organizations", &organization).await.expect(403).problem(), "plan_required");
    plan("premium").await;
    create().await.expect(201);
}

// S4.14
// S4.7
// S4.8
// S4.9
// S4.10
// S1.3
// S3.2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_14_a_verified_address_finds_its_memberships_and_another_one_none() {
    let api = Api::start().await;
    let (a, b) = (api.org("found-a").await, api.org("found-b").await);
    let mut members = Vec::new();
    for org in [&a, &b] {
        let body = json!({"email": "Ada@Lovelace.example", "role": "member"});
        let added = api.post(&org.owner, &org.path("members"), &body).await.expect(201);
        api.sees(org, added.header("stream-position")).await;
        members.push(added.json()["member_id"].clone());
    }
    assert_ne!(members[0], members[1], "one address, two members");
    let ada = api.person("ada@lovelace.example");
    let found = api.get(&ada, "/v1/me/memberships").await.expect(200).json();
    let found: Vec<&Value> = found["data"].as_array().unwrap().iter().map(|place| &place["actor_id"]).collect();
    assert!(members.iter().all(|member| found.contains(&member)) && found.len() == 2, "{found:?}");
    // By id and by slug, it is the same organization, and the user can work there.
    for name in [&a.id, &a.slug] {
        api.get(&ada, &format!("/v1/organizations/{name}/records")).await.expect(200);
    }
    let taken = api.post(&a.owner, "/v1/organizations", &json!({"name": "x", "slug": a.slug})).await.expect(409);
    assert_eq!(taken.problem(), "slug_taken");
    // By pages.
    let first = api.get(&ada, "/v1/me/memberships?limit=1").await.expect(200).json();
    assert_eq!((first["data"].as_array().unwrap().len(), &first["has_more"]), (1, &json!(true)));
    let next = format!("/v1/me/memberships?limit=1&cursor={}", first["next_cursor"].as_str().unwrap());
    let second = api.get(&ada, &next).await.expect(200).json();
    assert_eq!((second["data"].as_array().unwrap().len(), &second["next_cursor"]), (1, &Value::Null));
    assert_ne!(first["data"][0]["org_id"], second["data"][0]["org_id"]);

    let unverified = Person { email: "ada@lovelace.example", email_verified: false, amr: &[] };
    let unverified = api.issuer.mint_as(&unverified, HOUR).unwrap();
    assert_eq!(api.get(&unverified, "/v1/me/memberships").await.expect(200).json()["data"], json!([]));
    api.get(&unverified, &a.path("records")).await.expect(404);
    let session = api.sign_in(&unverified).await;
    let listed = api.get(session["token"].as_str().unwrap(), "/v1/me/memberships").await.expect(200).json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "their own, and nothing by address: {listed}");
    api.switch(session["token"].as_str().unwrap(), &a.id).await.expect(404);
    // Members of one organization are not shown in the other.
    api.join(&b, "only-b@lovelace.example", "viewer").await;
    assert!(!api.get(&a.owner, &a.path("members")).await.expect(200).text.contains("only-b@"));
}

// S4.4
// S4.15
// S4.18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_4_an_organization_says_how_one_signs_in_to_it() {
    let api = Api::start().await;
    let (a, b) = (api.org("strict").await, api.org("relaxed").await);
    let ((_, key_a), (_, key_b)) = (api.key(&a, "admin").await, api.key(&b, "admin").await);
    for refused in [json!({"allowed_auth_methods": ["api_key"]}), json!({"allowed_auth_methods": ["password"]})] {
        let request = api.request(Method::PATCH, &a.path("settings")).bearer_auth(&a.owner).json(&refused);
        assert!(Answer::of(request).await.expect(422).text.contains("/allowed_auth_methods"));
    }
    api.change_settings(&a, &json!({"allowed_auth_methods": ["oidc"]})).await;
    until("auth_method_not_allowed", async || api.get(&key_a, &a.path("records")).await).await.expect(403);
    let settings =
        api.get(&a.owner, &format!("/v1/organizations/{}", a.id)).await.expect(200).json()["settings"].clone();
    assert_eq!(settings["allowed_auth_methods"], json!(["oidc"]));
    api.get(&key_b, &b.path("records")).await.expect(200);
    api.get(&a.owner, &a.path("records")).await.expect(200);
    api.change_settings(&a, &json!({"allowed_auth_methods": null})).await;
    until("ok", async || api.get(&key_a, &a.path("records")).await).await;

    let owner = "owner@strict.example";
    let strong = Person { email: owner, email_verified: true, amr: &["pwd".to_owned(), "otp".to_owned()] };
    let strong = api.issuer.mint_as(&strong, HOUR).unwrap();
    let with_two = Org { id: a.id.clone(), slug: a.slug.clone(), owner: strong.clone() };
    api.change_settings(&with_two, &json!({"mfa_policy": "required"})).await;
    until("mfa_required", async || api.get(&a.owner, &a.path("records")).await).await.expect(403);
    api.get(&key_a, &a.path("records")).await.expect(200);
    api.get(&strong, &a.path("records")).await.expect(200);
    // A session has the factors that it began with.
    let weak = api.session(owner).await;
    api.switch(&weak, &a.id).await.expect(200);
    let refused = api.get(&weak, "/v1/organizations/current/records").await.expect(403);
    assert_eq!(refused.problem(), "mfa_required");
    assert_eq!(api.post(&weak, &a.path("records"), &model("x")).await.expect(403).problem(), "mfa_required");
    let session = api.sign_in(&strong).await;
    assert_eq!(session["second_factor"], true);
    let session = session["token"].as_str().unwrap();
    api.switch(session, &a.id).await.expect(200);
    api.get(session, "/v1/organizations/current/records").await.expect(200);
    api.change_settings(&with_two, &json!({"mfa_policy": "optional"})).await;
    until("ok", async || api.get(&a.owner, &a.path("records")).await).await;
    api.get(&weak, "/v1/organizations/current/records").await.expect(200);
}

// S3.11
// S3.12
// S3.25
// S5.32
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_11_every_request_has_a_tenant_or_goes_no_further() {
    let api = Api::start().await;
    let (a, b) = (api.org("tenant-a").await, api.org("tenant-b").await);
    let (_, key) = api.key(&a, "member").await;
    let nobody = api.person("nobody@nowhere.example");
    api.get(&nobody, &a.path("records")).await.expect(404);
    // A token alone acts in no particular organization.
    for bearer in [nobody.as_str(), &a.owner, OPERATOR] {
        let refused = api.get(bearer, "/v1/organizations/current/records").await.expect(403);
        assert_eq!(refused.problem(), "session_required");
    }
    // An owner of one has no rights in the other.
    api.post(&a.owner, &b.path("records"), &model("x")).await.expect(404);
    let session = api.session("owner@tenant-a.example").await;
    api.switch(&session, &a.id).await.expect(200);
    api.post(&session, &b.path("records"), &model("x")).await.expect(404);
    for (header, status, code) in [
        (None, 200, ""),
        (Some(a.id.as_str()), 200, ""),
        (Some(&a.slug), 200, ""),
        (Some(&b.id), 403, "tenant_mismatch"),
    ] {
        for path in ["/v1/organizations/current/records", &a.path("records")] {
            for bearer in [&key, &session] {
                let request = api.request(Method::GET, path).bearer_auth(bearer);
                let request = header.iter().fold(request, |request, value| request.header("x-tenant-id", *value));
                let answer = Answer::of(request).await.expect(status);
                assert!(code.is_empty() || answer.problem() == code, "{answer:?}");
            }
        }
    }
    // No input of a tenant makes a platform operator.
    for role in ["platform_operator", "operator", "platform_admin"] {
        let body = json!({"email": "x@tenant-a.example", "role": role});
        api.post(&a.owner, &a.path("members"), &body).await.expect(422);
    }
    for field in ["platform_admin", "is_operator"] {
        let body = json!({"email": "x@tenant-a.example", "role": "admin", field: true});
        let refused = api.post(&a.owner, &a.path("members"), &body).await.expect(422);
        assert!(refused.text.contains(field), "{refused:?}");
    }
    for bearer in [&a.owner, &session, &key] {
        api.get(bearer, "/v1/platform/lag").await.expect(403);
    }
}

// S2.20
// S2.25
// S2.26
// S2.5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_25_one_person_is_somebody_else_in_each_of_many_organizations() {
    const CUSTOMERS: usize = 20;
    let api = Api::start().await;
    let email = "max@consultants.example";
    let session = api.session(email).await;
    let mut customers = Vec::new();
    for number in 0..CUSTOMERS {
        let org = api.org(&format!("customer-{number}")).await;
        let role = if number == 1 { "viewer" } else { "admin" };
        let member = api.join(&org, email, role).await;
        customers.push((org, member));
    }
    for (number, (org, _)) in customers.iter().enumerate() {
        api.switch(&session, &org.slug).await.expect(200);
        let made = api.post(&session, "/v1/organizations/current/records", &model(&format!("for {number}"))).await;
        // The same user with the same session, and other rights.
        made.expect(if number == 1 { 403 } else { 201 });
    }
    for (number, (org, member)) in customers.iter().enumerate() {
        // A member of the customer works beside the consultant.
        let (_, position) = api.record(org, &format!("own {number}")).await;
        let log = "audit/events?action=record.created";
        let log = api.get_at(&org.owner, &org.path(log), &position).await.expect(200).json();
        let entries = log["data"].as_array().unwrap();
        assert_eq!(entries.len(), if number == 1 { 1 } else { 2 }, "{log}");
        assert!(entries.iter().all(|entry| entry["actor"]["type"] == "member" && entry["org_id"] == *org.id), "{log}");
        assert!(!log.to_string().contains("usr_"), "{log}");
        let (theirs, own): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry["actor"]["id"] == **member);
        assert_eq!((theirs.len(), own.len()), (usize::from(number != 1), 1), "two people, two names: {log}");
        assert_eq!(own[0]["actor"]["auth"]["method"], "oidc", "{log}");
        for entry in theirs {
            assert_eq!(entry["actor"]["auth"]["method"], "session", "{entry}");
            assert!(entry["actor"]["auth"]["session_id"].as_str().unwrap().starts_with("ses_"), "{entry}");
            assert!(entry["data"].to_string().contains(&format!("for {number}")), "{entry}");
        }
    }
    let ids: std::collections::HashSet<&String> = customers.iter().map(|(_, member)| member).collect();
    assert_eq!(ids.len(), CUSTOMERS);
    assert!(slugs(&api.me(&session).await).len() > CUSTOMERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_of_several_issuers_are_different_people() {
    let dir = TempDir::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let second = DevIssuer::load_or_create(dir.path(), url.clone()).unwrap();
    tokio::spawn(second.clone().serve(listener, tokio_util::sync::CancellationToken::new()));
    let dead_dir = TempDir::new();
    let dead = DevIssuer::load_or_create(dead_dir.path(), "http://127.0.0.1:1".to_owned()).unwrap();
    let api = Api::start_with(|identity| {
        identity.audience = "somebody-else".to_owned();
        identity.issuer_urls[0].push_str("=orgstream");
        identity.issuer_urls.extend([format!("{url}=orgstream"), dead.url().to_owned() + "=orgstream"]);
    })
    .await;
    let (here, there) = (api.person("ann@two.example"), second.mint("ann@two.example", HOUR).unwrap());
    let (one, other) = (api.sign_in(&here).await, api.sign_in(&there).await);
    assert_ne!(one["active_org"]["org_id"], other["active_org"]["org_id"]);
    assert_ne!(
        UserId::from_login(api.issuer.url(), "ann@two.example"),
        UserId::from_login(second.url(), "ann@two.example")
    );
    // An issuer that does not answer does not make a token invalid.
    let away = api.get(&dead.mint("ann@two.example", HOUR).unwrap(), "/v1/me").await.expect(503);
    assert_eq!(away.problem(), "unavailable");
    let stranger_dir = TempDir::new();
    let stranger = DevIssuer::load_or_create(stranger_dir.path(), "http://127.0.0.1:2".to_owned()).unwrap();
    api.get(&stranger.mint("ann@two.example", HOUR).unwrap(), "/v1/me").await.expect(401);
    let forged = DevIssuer::load_or_create(stranger_dir.path(), url).unwrap();
    api.get(&forged.mint("ann@two.example", HOUR).unwrap(), "/v1/me").await.expect(401);
}
