//! Trials: what a new person has, what ends with it, and how they go on.

use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, CommitDraft, Context, Event, OrganizationEvent, OrganizationPlanChanged,
    PlanName, Salt, Timestamp,
};
use orgstream_stream::Freshness;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::{Answer, Api, OPERATOR},
    cluster::eventually,
};

/// A person with their personal organization.
struct Person {
    session: String,
    org: String,
}

impl Person {
    async fn sign_in(api: &Api, email: &str) -> Self {
        let signed_in = api.sign_in(&api.person(email)).await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self { session: text(&signed_in["token"]), org: text(&signed_in["active_org"]["org_id"]) }
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/organizations/{}/{rest}", self.org)
    }

    async fn account(&self, api: &Api) -> Value {
        api.get(&self.session, &self.path("account")).await.expect(200).json()
    }

    async fn charge(&self, api: &Api, amount: &str) -> Answer {
        let charge = json!({"type": "charge_usage", "meter": "tokens", "amount": amount});
        api.post(&self.session, &self.path("commands"), &charge).await
    }

    /// Writes into the history that the trial began 31 days ago, and waits until it is over.
    async fn end_trial(&self, api: &Api) {
        let log = api.log();
        let placement = log.placement(self.org.parse().unwrap()).await.unwrap().unwrap();
        let aggregate = AggregateId::Organization(placement.org);
        let history = log.load(&placement, &aggregate, 0, Freshness::Leader).await.unwrap();
        let begun = Timestamp::from_unix_ms(orgstream::clock::now().unix_ms() - 31 * 86_400_000);
        let changed = OrganizationPlanChanged { plan: PlanName::trial() };
        let version = history.commits.iter().map(|stored| stored.commit.events.len() as u64).sum();
        let draft = CommitDraft {
            org: placement.org,
            aggregate,
            version_before: version,
            command_id: CommandId::from_uuid(Uuid::now_v7()),
            fingerprint: None,
            actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
            occurred_at: begun,
            recorded_at: begun,
            causation_id: None,
            correlation_id: None,
            request_id: None,
            context: Context::default(),
            events: vec![Event::Organization(OrganizationEvent::PlanChanged(changed))],
        };
        log.append(&placement, &draft.seal(|| Salt([3; 32])).unwrap(), history.last, None).await.unwrap();
        eventually("the trial to be over", async || {
            (self.account(api).await["billing_required"] == true).then_some(())
        })
        .await;
    }

    /// Puts the organization on a plan, and waits until it counts.
    async fn choose(&self, api: &Api, plan: &str) {
        let request = api.request(Method::PUT, &self.path("plan")).bearer_auth(OPERATOR).json(&json!({"plan": plan}));
        Answer::of(request).await.expect(200);
        eventually("the plan to count", async || (self.account(api).await["plan"] == plan).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_37_a_new_person_is_on_the_trial_plan_with_its_tokens_of_a_month() {
    let api = Api::start().await;
    let ann = Person::sign_in(&api, "ann@trial.example").await;
    let account = ann.account(&api).await;
    assert_eq!((&account["plan"], &account["billing_required"]), (&json!("trial"), &json!(false)));
    assert_eq!(account["concurrency"], json!({"limit": 5, "source": "plan"}));
    let tokens = account["meters"].as_array().unwrap().iter().find(|meter| meter["meter"] == "tokens").unwrap();
    assert_eq!((&tokens["included"], &tokens["available"]), (&json!("100000"), &json!("100000")));
    let ends: Timestamp = account["trial_ends_at"].as_str().unwrap().parse().unwrap();
    let days = (ends.unix_ms() - orgstream::clock::now().unix_ms()) / 86_400_000;
    assert!((29..=30).contains(&days), "{account}");
    let shown = api.get(&ann.session, &format!("/v1/organizations/{}", ann.org)).await.expect(200).json();
    assert_eq!((&shown["plan"], &shown["tenant_type"]), (&json!("trial"), &json!("personal")));
    ann.charge(&api, "100000").await.expect(200);
    assert_eq!(ann.charge(&api, "0.000001").await.expect(402).problem(), "insufficient_balance");
    // An organization that somebody makes is on the standard plan, as before.
    let org = api.org("no-trial").await;
    assert_eq!(api.get(&org.owner, &org.path("account")).await.expect(200).json()["plan"], "standard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_38_s5_39_s5_40_after_the_trial_reads_go_on_and_a_paid_plan_ends_what_is_required() {
    let api = Api::start().await;
    let people = [Person::sign_in(&api, "ann@over.example").await, Person::sign_in(&api, "bob@over.example").await];
    for person in &people {
        person.charge(&api, "2").await.expect(200);
        let reserve = json!({"type": "reserve_usage", "meter": "tokens", "amount": "10", "seconds": 600});
        let hold =
            api.post(&person.session, &person.path("commands"), &reserve).await.expect(201).json()["hold"].clone();
        person.end_trial(&api).await;
        let refused = person.charge(&api, "1").await.expect(402);
        assert_eq!(refused.problem(), "billing_required");
        assert!(refused.json()["figures"]["trial_ended_at"].is_string(), "{}", refused.text);
        // What is under way completes.
        let settle = json!({"type": "settle_hold", "hold": hold, "amount": "7"});
        let settled = api.post(&person.session, &person.path("commands"), &settle).await.expect(200);
        // S5.40
        for path in ["account", "records", "usage", "usage/series", "limits", "events", "audit/events"] {
            api.get_at(&person.session, &person.path(path), settled.header("stream-position")).await.expect(200);
        }
        api.post(&person.session, &person.path("records"), &crate::api::model("kept")).await.expect(201);
    }
    let [ann, bob] = &people;
    ann.choose(&api, "standard").await;
    ann.charge(&api, "1").await.expect(200);
    // A conversion alone is no paid plan.
    api.post(&bob.session, &bob.path("upgrade"), &json!({})).await.expect(200);
    assert_eq!(bob.charge(&api, "1").await.expect(402).problem(), "billing_required");
    bob.choose(&api, "premium").await;
    bob.charge(&api, "1").await.expect(200);
    let account = bob.account(&api).await;
    assert_eq!((&account["billing_required"], &account["trial_ends_at"]), (&json!(false), &Value::Null));
}
