//! The deletion of an organization: who may, what stops at once, what is left, and what happens when it is interrupted anywhere.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orgstream::{
    adapters::{
        identity_provider::{Auth0, IdentityOrganizations, NoIdentityProvider},
        payments::{FakeProvider, PaymentProvider},
    },
    audit::signer::{Pace, Signer},
};
use orgstream_events::{AggregateId, DeletionReceipt, OrgId, PLATFORM_ORG};
use orgstream_projections::audit::SigningDatabase;
use orgstream_stream::Freshness;
use orgstream_transparency::{LogSigner, Receipt, SignedNote};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    api::{Answer, Api, OPERATOR, Org},
    cluster::{Cluster, ClusterOptions, Tenant, create, eventually},
    idp::FakeAuth0,
    invoices::{charge, on_paid_plan},
    kinds::one_of_each,
    support::{database, within_a_second},
};

/// The key that signs in these tests.
fn log_key() -> LogSigner {
    LogSigner::from_seed("audit.test".parse().unwrap(), &[3; 32])
}

/// An API that deletes, with the process that signs.
struct Deleting {
    api: Api,
    stop: CancellationToken,
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Deleting {
    async fn start(grace_hours: u32) -> Self {
        Self::start_with(grace_hours, Arc::new(NoIdentityProvider), None).await
    }

    async fn start_with(
        grace_hours: u32,
        idp: Arc<dyn IdentityOrganizations>,
        payments: Option<Arc<dyn PaymentProvider>>,
    ) -> Self {
        let api = Api::start_deleting(grace_hours, idp, payments).await;
        let stop = CancellationToken::new();
        let db = SigningDatabase::connect(&api.database_options()).await.unwrap();
        let pace = Pace { events: 1, wait: Duration::from_secs(1) };
        let signer = Signer::new(db, log_key(), "quorum none\n", pace).unwrap();
        tokio::spawn(signer.run(stop.clone()));
        Self { api, stop }
    }

    /// A session of a member of an organization, which acts there.
    async fn session(&self, org: &Org, email: &str) -> String {
        let session = self.api.session(email).await;
        self.api.switch(&session, &org.id).await.expect(200);
        session
    }

    async fn owner(&self, org: &Org) -> String {
        self.session(org, &format!("owner@{}.example", org.slug)).await
    }

    async fn delete(&self, bearer: &str, org: &Org) -> Answer {
        self.delete_as(bearer, org, &org.slug).await
    }

    async fn delete_as(&self, bearer: &str, org: &Org, slug: &str) -> Answer {
        let request = self.api.request(Method::DELETE, &format!("/v1/organizations/{}", org.id)).bearer_auth(bearer);
        Answer::of(request.json(&json!({"slug": slug}))).await
    }

    async fn show(&self, bearer: &str, org: &Org) -> Answer {
        self.api.get(bearer, &deletion(&org.id)).await
    }

    async fn cancel(&self, bearer: &str, org: &Org) -> Answer {
        let request = self.api.request(Method::POST, &format!("{}/cancel", deletion(&org.id)));
        Answer::of(request.bearer_auth(bearer)).await
    }

    async fn until_step(&self, bearer: &str, org: &Org, step: &str) -> Value {
        eventually(&format!("the deletion of {} to be at {step}", org.slug), async || {
            let shown = self.show(bearer, org).await.expect(200).json();
            (shown["step"] == step).then_some(shown)
        })
        .await
    }

    async fn receipt(&self, bearer: &str, org: &Org) -> DeletionReceipt {
        let note = self.api.get(bearer, &format!("{}/receipt", deletion(&org.id))).await.expect(200).text;
        let note = SignedNote::parse(note.as_bytes()).unwrap();
        let statement = Receipt::read(&note, log_key().verifier()).unwrap().statement;
        let receipt: DeletionReceipt = serde_json::from_str(&statement).unwrap();
        assert_eq!(serde_json::to_string(&receipt).unwrap(), statement);
        // Canonical: the members are sorted, as those of a sorted map are.
        let sorted: BTreeMap<String, Value> = serde_json::from_str(&statement).unwrap();
        let names: Vec<String> = sorted.keys().map(|name| format!("\"{name}\":")).collect();
        let places: Vec<usize> = names.iter().map(|name| statement.find(name.as_str()).unwrap()).collect();
        assert!(places.is_sorted(), "{statement}");
        receipt
    }

    async fn rows(&self, org: &Org) -> BTreeMap<String, (i64, Option<String>)> {
        rows(&mut self.api.owner().await, org.id.parse::<OrgId>().unwrap().uuid()).await
    }
}

fn deletion(org: &str) -> String {
    format!("/v1/deletions/{org}")
}

/// The rows of an organization in every table that has any organization's: their number, and a hash over them.
async fn rows(owner: &mut PgConnection, org: Uuid) -> BTreeMap<String, (i64, Option<String>)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
        JOIN pg_namespace AS n ON n.oid = relnamespace
        WHERE attname = 'org_id' AND relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg%' ORDER BY 1",
    )
    .fetch_all(&mut *owner)
    .await
    .unwrap();
    assert!(tables.len() >= 30, "{tables:?}");
    let mut found = BTreeMap::new();
    for table in tables {
        let query = format!(
            "SELECT count(*), md5(string_agg(r::text, '' ORDER BY r::text)) FROM {table} AS r WHERE org_id = $1"
        );
        let row = sqlx::query_as(AssertSqlSafe(query)).bind(org).fetch_one(&mut *owner).await.unwrap();
        found.insert(table, row);
    }
    found
}

fn is_empty(rows: &BTreeMap<String, (i64, Option<String>)>) -> bool {
    rows.values().all(|(count, _)| *count == 0)
}

/// Gives an organization something of everything.
async fn furnish(api: &Api, org: &Org) {
    one_of_each(api, org).await;
    let with_secret = json!({"kind": "model", "data": {"name": "with a secret", "api_key": "a secret of the tests"}});
    api.post(&org.owner, &org.path("records"), &with_secret).await.expect(201);
    api.key(org, "admin").await;
    for (route, body) in [
        ("invitations", json!({"email": "guest@elsewhere.example", "role": "viewer"})),
        ("roles", json!({"name": "reader", "permissions": ["records:read"]})),
        ("domains", json!({"domain": format!("{}.example", org.slug)})),
        ("sso-connections", json!({"name": "Sso", "issuer": api.issuer.url(), "audience": org.slug, "jit": false})),
    ] {
        let made = api.post(&org.owner, &org.path(route), &body).await.expect(201);
        api.sees(org, made.header("stream-position")).await;
    }
}

/// Waits until all that an organization has is applied and signed, so that nothing of it moves.
async fn until_signed(api: &Api, org: &Org) {
    let id = org.id.parse::<OrgId>().unwrap().uuid();
    let mut owner = api.owner().await;
    let mut before = None;
    eventually("the log to be signed", async || {
        let is_signed: bool = sqlx::query_scalar(
            "SELECT coalesce((SELECT next_idx FROM audit.heads WHERE org_id = $1)
                = (SELECT max(size) FROM audit.signatures WHERE org_id = $1), false)
                AND NOT EXISTS (SELECT FROM ops.mails WHERE org_id = $1 AND outcome IS NULL)",
        )
        .bind(id)
        .fetch_one(&mut owner)
        .await
        .unwrap();
        let now = rows(&mut owner, id).await;
        let is_still = before.replace(now.clone()) == Some(now);
        (is_signed && is_still).then_some(())
    })
    .await;
}

// S1.36, S5.24, S5.25, S5.27, S5.28, S5.29
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_36_s5_25_s5_27_s5_28_s5_29_deletion_leaves_no_row() {
    let deleting = Deleting::start(0).await;
    let api = &deleting.api;
    let (one, other) = (api.org("gone").await, api.org("stays").await);
    for org in [&one, &other] {
        furnish(api, org).await;
    }
    let session = deleting.owner(&one).await;
    until_signed(api, &other).await;
    let (before, others) = (deleting.rows(&one).await, deleting.rows(&other).await);
    assert!(!is_empty(&before));
    let answer = deleting.delete(&session, &one).await.expect(202);
    assert_eq!(answer.header("location"), deletion(&one.id));
    let shown = deleting.until_step(&session, &one, "done").await;
    assert_eq!(shown["cancellable"], false);
    let left = deleting.rows(&one).await;
    assert!(is_empty(&left), "{left:?}");
    assert_eq!(deleting.rows(&other).await, others);
    // The receipt says so, signed by the key of the logs.
    let receipt = deleting.receipt(&session, &one).await;
    assert_eq!(receipt.org_id.to_string(), one.id);
    for (table, (count, _)) in &before {
        let erased = receipt.rows[table];
        assert!(erased.left == 0 && erased.erased == erased.before, "{table}: {erased:?}");
        assert!(erased.before >= u64::try_from(*count).unwrap() || *count == 0, "{table}: {erased:?} of {count}");
    }
    let log_size = receipt.rows["audit.events"].before;
    assert!(receipt.log_size == log_size && receipt.fence > 0 && receipt.secrets_destroyed > 0, "{receipt:?}");
    assert!(receipt.requested_at <= receipt.sealed_at && receipt.sealed_at <= receipt.completed_at, "{receipt:?}");
    // For good: no command of anybody, no cancellation, and nobody else gets the slug.
    assert_eq!(deleting.cancel(&session, &one).await.expect(404).problem(), "not_found");
    assert_eq!(deleting.cancel(OPERATOR, &one).await.expect(409).problem(), "organization_deleted");
    let suspend = api.post(OPERATOR, &one.path("suspend"), &json!({"reason": "unpaid"})).await;
    assert_eq!(suspend.expect(409).problem(), "organization_deleted");
    assert_eq!(api.get(&one.owner, &one.path("records")).await.status, 404);
    let again = api.post(&other.owner, "/v1/organizations", &json!({"name": "again", "slug": "gone"})).await;
    assert_eq!(again.expect(409).problem(), "slug_taken");
    // Operators see it, strangers do not.
    assert_eq!(deleting.show(&other.owner, &one).await.status, 404);
    let listed = api.get(OPERATOR, "/v1/deletions").await.expect(200).json();
    assert_eq!((&listed["data"][0]["org_id"], &listed["data"][0]["step"]), (&json!(one.id), &json!("done")));
    // What it had elsewhere is free: another one signs people in by the same issuer and audience.
    let connection = json!({"name": "Sso", "issuer": api.issuer.url(), "audience": "gone", "jit": false});
    api.post(&other.owner, &other.path("sso-connections"), &connection).await.expect(201);
}

// S5.26
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_26_keys_are_dead_within_a_second_in_every_process_and_stay_dead_when_a_deletion_is_cancelled() {
    let deleting = Deleting::start(24).await;
    let api = &deleting.api;
    let org = api.org("leaving").await;
    let (key_id, key) = api.key(&org, "admin").await;
    let invite = json!({"email": "guest@elsewhere.example", "role": "viewer"});
    api.post(&org.owner, &org.path("invitations"), &invite).await.expect(201);
    let invitation = api.invited("guest@elsewhere.example", 1).await;
    let session = deleting.owner(&org).await;
    let (second, records) = (api.another().await, org.path("records"));
    for base in [&api.base, &second] {
        assert_eq!(api.status_at(base, &key, &records).await, 200);
        assert_eq!(api.status_at(base, &session, &records).await, 200);
    }
    let tail = api.tail(&key, &org.path("events/stream")).await;
    deleting.delete(&session, &org).await.expect(202);
    for base in [&api.base, &second] {
        within_a_second("the key to be refused", async || {
            (api.status_at(base, &key, &records).await == 401).then_some(())
        })
        .await;
        within_a_second("the session to be refused", async || {
            (api.status_at(base, &session, &records).await == 403).then_some(())
        })
        .await;
    }
    assert_eq!(api.get(&session, &records).await.problem(), "organization_being_deleted");
    tail.ends().await;
    let guest = api.person("guest@elsewhere.example");
    let accept = api.post(&guest, "/v1/invitations/accept", &json!({"token": invitation})).await;
    assert_eq!(accept.expect(403).problem(), "organization_being_deleted");
    let shown = deleting.until_step(&session, &org, "requested").await;
    assert_eq!(shown["cancellable"], true);
    eventually("the deletion to be listed", async || {
        let listed = api.get(OPERATOR, "/v1/deletions").await.expect(200).json();
        (listed["data"][0]["org_id"] == json!(org.id)).then_some(())
    })
    .await;
    deleting.cancel(&session, &org).await.expect(200);
    api.until_status(&session, &records, 200).await;
    assert_eq!(deleting.show(&session, &org).await.expect(200).json()["step"], "cancelled");
    for base in [&api.base, &second] {
        assert_eq!(api.status_at(base, &key, &records).await, 401);
    }
    let rotate = api.post(&org.owner, &org.path(&format!("api-keys/{key_id}/rotate")), &json!({})).await;
    assert_eq!(rotate.expect(409).problem(), "api_key_ended");
    assert_eq!(deleting.cancel(&session, &org).await.expect(409).problem(), "deletion_not_requested");
    let (_, fresh) = api.key(&org, "admin").await;
    api.until_status(&fresh, &records, 200).await;
    // It can be requested again.
    deleting.delete(&session, &org).await.expect(202);
    deleting.until_step(&session, &org, "requested").await;
}

// S5.24
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_24_only_an_owner_who_signed_in_a_moment_ago_and_typed_the_slug_deletes() {
    let deleting = Deleting::start(24).await;
    let api = &deleting.api;
    let org = api.org("kept").await;
    for role in ["admin", "member", "viewer"] {
        let email = format!("{role}@kept.example");
        api.join(&org, &email, role).await;
        let session = deleting.session(&org, &email).await;
        assert_eq!(deleting.delete(&session, &org).await.expect(403).problem(), "forbidden", "{role}");
    }
    // A role of their own that may do it all the same is no owner's.
    let role = json!({"name": "remover", "permissions": ["organization:delete", "records:read"]});
    let made = api.post(&org.owner, &org.path("roles"), &role).await.expect(201);
    api.sees(&org, made.header("stream-position")).await;
    api.join(&org, "remover@kept.example", made.json()["role_id"].as_str().unwrap()).await;
    let remover = deleting.session(&org, "remover@kept.example").await;
    assert_eq!(deleting.delete(&remover, &org).await.expect(403).problem(), "forbidden");
    let (_, key) = api.key(&org, "owner").await;
    assert_eq!(deleting.delete(&key, &org).await.expect(403).problem(), "session_only");
    assert_eq!(deleting.delete(&org.owner, &org).await.expect(403).problem(), "fresh_sign_in_required");
    assert_eq!(deleting.delete(OPERATOR, &org).await.status, 404);
    let stranger = api.org("stranger").await;
    let session = deleting.owner(&stranger).await;
    assert_eq!(deleting.delete_as(&stranger.owner, &org, "kept").await.status, 404);

    let owner = deleting.owner(&org).await;
    let wrong = deleting.delete_as(&owner, &org, "stranger").await.expect(422).json();
    assert_eq!(
        (&wrong["errors"][0]["pointer"], &wrong["errors"][0]["code"]),
        (&json!("/slug"), &json!("slug_differs"))
    );
    let path = format!("/v1/organizations/{}", org.id);
    let stale = api.request(Method::DELETE, &path).bearer_auth(&owner).header("if-match", "\"99\"");
    assert_eq!(Answer::of(stale.json(&json!({"slug": "kept"}))).await.expect(412).problem(), "version_conflict");
    let without = api.request(Method::DELETE, &path).bearer_auth(&owner).json(&json!({}));
    assert_eq!(Answer::of(without).await.status, 422);
    api.sql("UPDATE identity.sessions SET created_at = created_at - interval '11 minutes'").await;
    eventually("the session to be too old", async || {
        let answer = deleting.delete_as(&owner, &org, "stranger").await;
        (answer.status == 403 && answer.problem() == "fresh_sign_in_required").then_some(())
    })
    .await;
    let owner = deleting.owner(&org).await;
    deleting.delete(&owner, &org).await.expect(202);
    assert_eq!(deleting.delete(&owner, &org).await.expect(403).problem(), "organization_being_deleted");
    // Neither another member nor another organization's owner sees it or stops it.
    let admin = api.session("admin@kept.example").await;
    for bearer in [&admin, &session, &stranger.owner, &key] {
        assert!([401, 404].contains(&deleting.show(bearer, &org).await.status));
        assert!([401, 404].contains(&deleting.cancel(bearer, &org).await.status));
    }
    assert_eq!(api.get(&admin, "/v1/deletions").await.status, 403);
    deleting.cancel(OPERATOR, &org).await.expect(200);
}

// S5.30
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_30_a_deletion_ends_billing_with_one_final_invoice_of_what_is_unbilled() {
    let fake = FakeProvider::start(None).await.unwrap();
    let provider: Arc<dyn PaymentProvider> = Arc::new(fake.adapter().unwrap());
    let deleting = Deleting::start_with(0, Arc::new(NoIdentityProvider), Some(provider)).await;
    let org = deleting.api.org("owing").await;
    on_paid_plan(&deleting.api, &org, "10").await;
    charge(&deleting.api, &org, "600000").await;
    let session = deleting.owner(&org).await;
    deleting.delete(&session, &org).await.expect(202);
    deleting.until_step(&session, &org, "done").await;
    let invoices: Vec<Value> =
        fake.invoices().into_iter().filter(|one| one["metadata"]["orgstream"] == format!("{}:1", org.id)).collect();
    assert_eq!((invoices.len(), fake.invoices().len()), (1, 1));
    assert_eq!(invoices[0]["total"], 1_100);
    let receipt = deleting.receipt(&session, &org).await;
    assert_eq!(receipt.invoice.map(|number| number.0), Some(1));
    // The provider was told before anything was erased: a customer whose billing has ended.
    assert!(fake.customers().iter().any(|one| one["metadata"].to_string().contains("ended")), "{:?}", fake.customers());
}

// S5.31
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_31_the_counterpart_at_the_identity_provider_stays() {
    let (auth0, url) = FakeAuth0::start().await;
    let idp = Auth0::new(&url, "id".to_owned(), "secret".to_owned()).unwrap();
    let deleting = Deleting::start_with(0, Arc::new(idp), None).await;
    let org = deleting.api.org("linked").await;
    let session = deleting.owner(&org).await;
    deleting.delete(&session, &org).await.expect(202);
    deleting.until_step(&session, &org, "done").await;
    assert!(auth0.asked("DELETE").is_empty());
    let kept = deleting.receipt(&session, &org).await.identity_kept.unwrap();
    assert_eq!((kept.provider.as_str(), kept.external_id.as_str()), ("auth0", "org_made0"));
}

// S5.11, S5.25
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_11_a_person_whose_personal_organization_was_deleted_gets_another_one_with_another_id() {
    let deleting = Deleting::start(0).await;
    let api = &deleting.api;
    let ann = api.person("ann@personal.example");
    let first = api.sign_in(&ann).await;
    let (session, id) = (first["token"].as_str().unwrap(), first["active_org"]["org_id"].as_str().unwrap().to_owned());
    let shown = eventually("the personal organization", async || {
        let answer = api.get(session, &format!("/v1/organizations/{id}")).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    let org = Org { id: id.clone(), slug: shown["slug"].as_str().unwrap().to_owned(), owner: session.to_owned() };
    deleting.delete(session, &org).await.expect(202);
    deleting.until_step(session, &org, "done").await;
    let [second, third] = [api.sign_in(&ann).await, api.sign_in(&ann).await];
    assert_ne!(second["active_org"]["org_id"], json!(id));
    assert_eq!(second["active_org"]["org_id"], third["active_org"]["org_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_an_older_backup_brings_back_are_erased_again_and_there_is_one_receipt() {
    let deleting = Deleting::start(0).await;
    let api = &deleting.api;
    let org = api.org("restored").await;
    let session = deleting.owner(&org).await;
    deleting.delete(&session, &org).await.expect(202);
    deleting.until_step(&session, &org, "done").await;
    let receipt = deleting.receipt(&session, &org).await;
    let id = org.id.parse::<OrgId>().unwrap();
    let mut owner = api.owner().await;
    for back in [
        "DELETE FROM ops.deletions WHERE org = $1",
        "INSERT INTO rm.slugs (org_id, rm_version, slug) VALUES ($1, 1, 'restored')",
        "INSERT INTO audit.heads (org_id, next_idx) VALUES ($1, 0)",
    ] {
        sqlx::query(back).bind(id.uuid()).execute(&mut owner).await.unwrap();
    }
    // A process that starts compares the receipts in the log with the database.
    api.another().await;
    eventually("the rows to be erased again", async || is_empty(&deleting.rows(&org).await).then_some(())).await;
    eventually("the deletion to be done again", async || {
        (api.get(OPERATOR, &deletion(&org.id)).await.expect(200).json()["step"] == "done").then_some(())
    })
    .await;
    assert_eq!(deleting.receipt(OPERATOR, &org).await, receipt);
    let placement = api.log().placement(PLATFORM_ORG).await.unwrap().unwrap();
    let history = api.log().load(&placement, &AggregateId::Deletion(id), 0, Freshness::Leader).await.unwrap();
    assert_eq!(history.commits.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_eraser_erases_where_a_deletion_is_at_that_step_and_nowhere_else() {
    let deleting = Deleting::start(24).await;
    let api = &deleting.api;
    let (one, other) = (api.org("one").await, api.org("other").await);
    let ids = [&one, &other].map(|org| org.id.parse::<OrgId>().unwrap().uuid());
    let mut owner = api.owner().await;
    let mut eraser = PgConnection::connect(&api.login_url("app_eraser")).await.unwrap();
    let bind =
        |id: Uuid| format!("SELECT set_config('app.org_id', '{id}', false), set_config('app.rm_version', '1', false)");
    sqlx::raw_sql(AssertSqlSafe(bind(ids[0]))).execute(&mut eraser).await.unwrap();
    let refused = sqlx::raw_sql("DELETE FROM audit.events").execute(&mut eraser).await.unwrap_err();
    assert!(refused.to_string().contains("append-only"), "{refused}");
    assert_eq!(sqlx::raw_sql("DELETE FROM rm.members").execute(&mut eraser).await.unwrap().rows_affected(), 0);
    let step = "INSERT INTO ops.deletions (org, step, requested_at, grace_until, fence, due_at)
        VALUES ($1, 'erasing', now(), now(), 1, now() + interval '1 day')";
    sqlx::query(step).bind(ids[0]).execute(&mut owner).await.unwrap();
    assert_eq!(sqlx::raw_sql("DELETE FROM rm.members").execute(&mut eraser).await.unwrap().rows_affected(), 1);
    assert!(sqlx::raw_sql("DELETE FROM audit.events").execute(&mut eraser).await.unwrap().rows_affected() > 0);
    // Of another organization, nothing; and nothing is written at all.
    sqlx::raw_sql(AssertSqlSafe(bind(ids[1]))).execute(&mut eraser).await.unwrap();
    assert_eq!(sqlx::raw_sql("DELETE FROM rm.members").execute(&mut eraser).await.unwrap().rows_affected(), 0);
    assert!(sqlx::raw_sql("DELETE FROM audit.events").execute(&mut eraser).await.is_err());
    for statement in
        ["UPDATE rm.members SET role = 'owner'", "INSERT INTO rm.slugs (org_id, slug) VALUES (app.org(), 'x')"]
    {
        assert!(sqlx::raw_sql(statement).execute(&mut eraser).await.is_err(), "{statement}");
    }
    let rows = deleting.rows(&other).await;
    assert!(rows["rm.members"].0 == 1 && rows["audit.events"].0 > 0, "{rows:?}");
}

#[tokio::test]
async fn a_new_table_needs_a_line_for_its_erasure() {
    let database = database().await;
    assert_eq!(database.db.catalogue().await.unwrap(), []);
    let mut owner = PgConnection::connect(&database.owner_url).await.unwrap();
    let migration = "CREATE TABLE ops.novelties (org_id uuid NOT NULL PRIMARY KEY);
        ALTER TABLE ops.novelties OWNER TO app_owner;
        ALTER TABLE ops.novelties ALTER COLUMN org_id SET STATISTICS 0;
        ALTER TABLE ops.novelties ENABLE ROW LEVEL SECURITY;
        ALTER TABLE ops.novelties FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON ops.novelties AS PERMISSIVE FOR ALL TO app_rw
            USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));
        CREATE POLICY floor ON ops.novelties AS RESTRICTIVE FOR ALL TO PUBLIC
            USING (org_id = (SELECT app.org())) WITH CHECK (org_id = (SELECT app.org()));";
    sqlx::raw_sql(migration).execute(&mut owner).await.unwrap();
    let found = database.db.catalogue().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.contains("ops.novelties cannot be erased"), "{found:?}");
    let line = "CREATE POLICY erasure ON ops.novelties AS PERMISSIVE FOR ALL TO app_eraser
            USING (org_id = (SELECT app.org()) AND (SELECT app.is_erasing())) WITH CHECK (false);
        GRANT SELECT, DELETE ON ops.novelties TO app_eraser;";
    sqlx::raw_sql(line).execute(&mut owner).await.unwrap();
    assert_eq!(database.db.catalogue().await.unwrap(), []);
}

/// Lets nobody store that a deletion is at the next step, as long as a lock is held.
const GATE: &str = "CREATE FUNCTION ops.gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.step <> OLD.step THEN
            PERFORM pg_advisory_xact_lock(hashtext(NEW.step));
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER gate BEFORE UPDATE ON ops.deletions FOR EACH ROW EXECUTE FUNCTION ops.gate()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_survives_kill_at_every_step() {
    let serve = vec!["--deletion-grace-hours".to_owned(), "0".to_owned()];
    let mut cluster = Cluster::start(ClusterOptions { serve, ..ClusterOptions::default() }).await;
    cluster.client.expect_trouble();
    cluster.cli("", &["sign", "--keys", "keys", "--new-key", "audit.test"]).await.success();
    let sign = ["sign", "--keys", "keys", "--sign-seconds", "1", "--http", "127.0.0.1:0"];
    let mut signing = cluster.command("", &sign).0.spawn().unwrap();
    let tenants = cluster.tenants(2).await;
    let [gone, stays] = [&tenants[0], &tenants[1]];
    for tenant in [gone, stays] {
        cluster.client.command(tenant, "one", &create("one")).await.expect(201);
        cluster.until_projected(tenant).await;
    }
    let session = session(&cluster, gone).await;
    let mut owner = cluster.superuser().await;
    sqlx::raw_sql(GATE).execute(&mut owner).await.unwrap();
    let steps = ["billing", "sealing", "shredding", "erasing", "releasing", "signing", "done"];
    for step in steps {
        sqlx::query("SELECT pg_advisory_lock(hashtext($1))").bind(step).execute(&mut owner).await.unwrap();
    }
    let request = cluster.client.request(Method::DELETE, &format!("/v1/organizations/{}", gone.id), &session);
    let answer = request.json(&json!({"slug": gone.slug})).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let mut watcher = cluster.superuser().await;
    for step in steps {
        // What comes before the step is done, and not stored: the process dies, and its transaction with it.
        let waiting: i32 = eventually(&format!("a process before {step}"), async || {
            sqlx::query_scalar(
                "SELECT l.pid FROM pg_locks AS l WHERE locktype = 'advisory' AND NOT granted AND objid = (hashtext($1)::bigint & 4294967295)::oid",
            )
            .bind(step)
            .fetch_optional(&mut watcher)
            .await
            .unwrap()
        })
        .await;
        cluster.api.kill9();
        sqlx::query("SELECT pg_terminate_backend($1)").bind(waiting).execute(&mut watcher).await.unwrap();
        sqlx::query("SELECT pg_advisory_unlock(hashtext($1))").bind(step).execute(&mut owner).await.unwrap();
        // Nobody has to wait until the lease of the dead is over.
        sqlx::query("UPDATE ops.deletions SET due_at = now()").execute(&mut watcher).await.unwrap();
        cluster.api.start();
        cluster.api.ready().await;
    }
    let path = deletion(&gone.id.to_string());
    eventually("the deletion to be done", async || {
        (cluster.client.get(&session, &path).await.expect(200).body["step"] == "done").then_some(())
    })
    .await;
    let left = rows(&mut owner, gone.id.uuid()).await;
    assert!(is_empty(&left), "{left:?}");
    let receipt = cluster.client.get(&session, &format!("{path}/receipt")).await.expect(200).body;
    // The verifier needs the file and the key.
    std::fs::write(cluster.dir().join("receipt"), receipt.as_str().unwrap()).unwrap();
    let log = cluster.log().await;
    let platform = log.placement(PLATFORM_ORG).await.unwrap().unwrap();
    let history = log.load(&platform, &AggregateId::Deletion(gone.id), 0, Freshness::Leader).await.unwrap();
    assert_eq!(history.commits.len(), 1);
    // Workers that read the stream from its beginning bring nothing back, and others' events are applied.
    for worker in &mut cluster.workers {
        worker.kill9();
    }
    sqlx::query("UPDATE ops.low_watermarks SET seq = 0").execute(&mut owner).await.unwrap();
    for worker in &mut cluster.workers {
        worker.start();
    }
    cluster.ready().await;
    cluster.client.command(stays, "two", &create("two")).await.expect(201);
    cluster.until_projected(stays).await;
    let left = rows(&mut owner, gone.id.uuid()).await;
    assert!(is_empty(&left), "{left:?}");
    signing.kill().unwrap();
    signing.wait().unwrap();
}

/// A session of a tenant's owner, which acts there.
async fn session(cluster: &Cluster, tenant: &Tenant) -> String {
    let session = cluster.client.post(&tenant.owner, "/v1/sessions", None, &json!({})).await.expect(201).text("token");
    let switch = cluster.client.request(Method::PUT, "/v1/session/active-org", &session);
    let switched = switch.json(&json!({"org": tenant.id})).send().await.unwrap();
    assert_eq!(switched.status(), 200);
    session
}
