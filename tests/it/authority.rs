//! No caller gives, sets or reads more than its role and its scopes allow; and what was granted ends with the authority
//! of the member that granted it.

use std::{collections::BTreeSet, time::Duration};

use orgstream::dev::issuer::{DevIssuer, Person};
use orgstream_domain::{Command, Permission, grants::Grant};
use orgstream_events::Role;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Answer, Api, Org, create_model},
    support::within_a_second,
};

/// A caller with some permissions.
struct Giver {
    name: String,
    bearer: String,
    role: Role,
    may: BTreeSet<Permission>,
}

/// A command that gives something.
struct Gift {
    command: Value,
    /// The permissions that its sender needs.
    needs: Permission,
    /// The role that the recipient gets by it.
    role: Option<Role>,
    /// The permissions that the recipient gets by it.
    gives: BTreeSet<Permission>,
}

impl Gift {
    fn role(command: Value, needs: Permission, role: Role) -> Self {
        Self { command, needs, role: Some(role), gives: Permission::of_role(role) }
    }

    fn permissions(command: Value, needs: Permission, gives: &[Permission]) -> Self {
        Self { command, needs, role: None, gives: gives.iter().copied().collect() }
    }

    fn name(&self) -> &str {
        self.command["type"].as_str().unwrap()
    }

    /// Whether this giver is allowed to.
    fn is_for(&self, giver: &Giver) -> bool {
        let ranks = self.role.is_none_or(|role| giver.role.includes(role));
        giver.may.contains(&self.needs) && ranks && self.gives.is_subset(&giver.may)
    }
}

fn scopes(names: &[&str]) -> BTreeSet<Permission> {
    names.iter().map(|name| Permission::named(name).unwrap()).collect()
}

impl Api {
    /// A key of a role within scopes.
    async fn scoped(&self, org: &Org, role: &str, scopes: &[&str]) -> String {
        let body = json!({"name": "scoped", "role": role, "scopes": scopes});
        let made = self.post(&org.owner, &org.path("api-keys"), &body).await.expect(201);
        self.sees(org, made.header("stream-position")).await;
        made.json()["token"].as_str().unwrap().to_owned()
    }

    async fn command(&self, bearer: &str, org: &Org, key: Option<&str>, command: &Value) -> Answer {
        let request = self.request(Method::POST, &org.path("commands")).bearer_auth(bearer).json(command);
        Answer::of(key.into_iter().fold(request, |request, key| request.header("idempotency-key", key))).await
    }
}

/// The scopes that a key may have alone: each right to give something, without the rest of its role's permissions.
const GIVING: [&str; 6] =
    ["members:manage", "roles:manage", "organization:manage", "api_keys:manage", "sso:manage", "domains:manage"];

async fn givers(api: &Api, org: &Org) -> Vec<Giver> {
    let mut givers = Vec::new();
    for role in Role::BUILT_IN {
        let (_, bearer) = api.key(org, &role.name()).await;
        givers.push(Giver { name: role.to_string(), bearer, role, may: Permission::of_role(role) });
    }
    for scope in GIVING {
        for role in [Role::Owner, Role::Admin] {
            let bearer = api.scoped(org, &role.name(), &[scope]).await;
            givers.push(Giver { name: format!("{role} with {scope}"), bearer, role, may: scopes(&[scope]) });
        }
        // A custom role with that permission alone, given to a member and to a key.
        let body = json!({"name": scope, "permissions": [scope]});
        let made = api.post(&org.owner, &org.path("roles"), &body).await.expect(201);
        let id = made.json()["role_id"].as_str().unwrap().to_owned();
        api.sees(org, made.header("stream-position")).await;
        let email = format!("{}@givers.example", scope.replace(':', "-"));
        api.join(org, &email, &id).await;
        let role = id.parse().unwrap();
        let may = scopes(&[scope]);
        givers.push(Giver {
            name: format!("a person with {scope}"),
            bearer: api.person(&email),
            role,
            may: may.clone(),
        });
        givers.push(Giver { name: format!("a key with {scope}"), bearer: api.key(org, &id).await.1, role, may });
    }
    let most = ["members:manage", "members:read", "records:read", "organization:read", "projections:read"];
    let bearer = api.scoped(org, "admin", &most).await;
    givers.push(Giver { name: "a key for viewers".to_owned(), bearer, role: Role::Admin, may: scopes(&most) });
    givers
}

/// Every command that gives something, with all that it can give. `nth` makes the names of created things unique.
fn gifts(nth: usize, things: &Value) -> Vec<Gift> {
    use Permission as P;
    let mut gifts = Vec::new();
    for role in Role::BUILT_IN {
        let email = format!("{role}-{nth}@gifts.example");
        for command in [
            json!({"type": "add_member", "email": format!("a-{email}"), "role": role}),
            json!({"type": "issue_invitation", "email": format!("i-{email}"), "role": role}),
            json!({"type": "change_member_role", "id": things["member"], "role": role}),
        ] {
            gifts.push(Gift::role(command, P::ManageMembers, role));
        }
        let key = json!({"type": "issue_api_key", "name": "k", "role": role, "scopes": Permission::of_role(role)
            .into_iter().map(Permission::name).collect::<Vec<_>>()});
        gifts.push(Gift::role(key, P::ManageKeys, role));
        let of_role: Vec<P> = Permission::of_role(role).into_iter().collect();
        let names: Vec<&str> = of_role.iter().map(|permission| permission.name()).collect();
        let define = json!({"type": "define_role", "name": format!("{role} {nth}"), "permissions": names});
        gifts.push(Gift::permissions(define, P::ManageRoles, &of_role));
        let change = json!({"type": "change_role", "id": things["role"], "permissions": names});
        gifts.push(Gift::permissions(change, P::ManageRoles, &of_role));
    }
    let settings = |mut change: Value| {
        change["type"] = json!("change_settings");
        change
    };
    let issuer = format!("https://issuer-{nth}.gifts.example");
    gifts.extend([
        Gift::role(json!({"type": "resend_invitation", "id": things["invitation"]}), P::ManageMembers, Role::Admin),
        Gift::role(json!({"type": "rotate_api_key", "id": things["key"]}), P::ManageKeys, Role::Admin),
        // It gives nothing, and requires as much.
        Gift::role(json!({"type": "revoke_api_key", "id": things["revoked"]}), P::ManageKeys, Role::Admin),
        Gift::role(json!({"type": "prove_domain", "id": things["domain"]}), P::ManageDomains, Role::Member),
        Gift::role(
            json!({"type": "add_sso_connection", "name": "x", "issuer": issuer, "audience": "a", "jit": true}),
            P::ManageSso,
            Role::Member,
        ),
        // A user that signed in by this issuer may be an owner by now.
        Gift::role(
            json!({"type": "add_sso_connection", "name": "x", "issuer": things["issuer"], "audience": nth.to_string()}),
            P::ManageSso,
            Role::Owner,
        ),
        Gift::role(settings(json!({"jit_provisioning": "restricted"})), P::ManageOrganization, Role::Member),
        Gift::permissions(
            settings(json!({"audit_webhook": "https://siem.gifts.example/x"})),
            P::ManageOrganization,
            &[P::ReadAudit],
        ),
        Gift::permissions(
            settings(json!({"revoke_keys_on_creator_exit": false})),
            P::ManageOrganization,
            &[P::ManageKeys],
        ),
    ]);
    gifts
}

/// The objects of the gifts: an invitation and a key of an admin, a member, a role, a domain and an issuer.
async fn things(api: &Api, org: &Org) -> Value {
    let made = async |route: &str, body: Value| {
        let made = api.post(&org.owner, &org.path(route), &body).await.expect(201);
        api.sees(org, made.header("stream-position")).await;
        made.json()["id"].clone()
    };
    let invitation = made("invitations", json!({"email": "open@gifts.example", "role": "admin"})).await;
    let key = made("api-keys", json!({"name": "rotated", "role": "admin"})).await;
    let revoked = made("api-keys", json!({"name": "revoked", "role": "admin"})).await;
    let domain = made("domains", json!({"domain": "gifts.example"})).await;
    let issuer = "https://known.gifts.example";
    made("sso-connections", json!({"name": "known", "issuer": issuer, "audience": "known"})).await;
    let role = json!({"name": "changed", "permissions": []});
    let role = api.post(&org.owner, &org.path("roles"), &role).await.expect(201).json()["role_id"].clone();
    let member = api.join(org, "changed@gifts.example", "viewer").await;
    json!({"invitation": invitation, "key": key, "revoked": revoked, "domain": domain, "issuer": issuer, "role": role, "member": member})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gives_more_than_their_role_and_their_scopes_allow() {
    let api = Api::start_with(|identity| identity.invitations_per_hour = 0).await;
    let org = api.org("gifts").await;
    let (givers, things) = (givers(&api, &org).await, things(&api, &org).await);
    // Every command that gives something is among the gifts, and nothing else is.
    let given: BTreeSet<String> = gifts(0, &things).iter().map(|gift| gift.name().to_owned()).collect();
    for gift in gifts(0, &things) {
        let command = Command::read(gift.command.clone()).unwrap();
        assert!(!command.grants().is_empty(), "{} gives nothing?", gift.name());
    }
    for name in Command::NAMES {
        assert_eq!(given.contains(*name), giving(name), "{name}: tell `gifts`");
    }
    let mut wrong = Vec::new();
    for (nth, giver) in givers.iter().enumerate() {
        for gift in gifts(nth + 1, &things) {
            let answer = api.command(&giver.bearer, &org, None, &gift.command).await;
            let may = gift.is_for(giver);
            // An allowed command may still be rejected because of its object, but not because of its sender.
            if (answer.status == 403) == may || answer.status >= 500 || answer.status == 401 || answer.status == 422 {
                wrong.push(format!("{} sends {}: {}", giver.name, gift.command, answer.text));
            }
        }
        // Changes by allowed senders are reverted, so that the next one finds the same state.
        let back = json!({"type": "change_member_role", "id": things["member"], "role": "viewer"});
        api.command(&org.owner, &org, None, &back).await.expect(200);
        let back = json!({"type": "change_role", "id": things["role"], "permissions": []});
        api.command(&org.owner, &org, None, &back).await.expect(200);
    }
    assert!(wrong.is_empty(), "{} answers are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Whether a command of this name can give something new to its recipient, determined by an example of it.
fn giving(name: &str) -> bool {
    let id = |prefix: &str| format!("{prefix}_01h455vb4pex5vsknk084sn02q");
    let fields = json!({
        "id": null, "email": "x@x.example", "role": "viewer", "name": "x", "slug": "xx", "permissions": [],
        "issuer": "https://x.example", "audience": "x", "kind": "model", "domain": "x.example", "plan": "x",
        "reason": "x", "data": {}, "items": [{}], "pipeline": "audit", "title": "x", "schema": {}, "visibility": "private",
        "seq": 1, "aggregate": {"type": "record", "id": id("res")}, "choice": "pinned",
        "definition": {"title": "x"}, "meter": "ecu", "amount": "1", "hold": id("hold"),
        "month": "2026-03", "number": 1, "payment": "transfer", "top_up": 1, "customer": "cus_1",
    });
    // Joining takes what was offered, which is another test.
    // So is the removal of a connection, which takes a person besides (`rights.rs`).
    if ["accept_invitation", "join_by_domain", "join_by_sso", "remove_sso_connection"].contains(&name) {
        return false;
    }
    let ids = ["mem", "inv", "role", "dom", "conn", "key", "res"];
    let (mut read, mut why) = (Vec::new(), Vec::new());
    // The fewest fields that it accepts, found by its own errors.
    for prefix in ids {
        let mut command = json!({"type": name});
        for _ in 0..10 {
            let misfit = match Command::read(command.clone()) {
                Ok(command) => {
                    read.push(command);
                    break;
                }
                Err(misfit) => misfit,
            };
            let (field, _) = misfit.named();
            if command.get(field).is_some() {
                why.push(format!("{field} {misfit}"));
                break;
            }
            command[field] = if field == "id" { json!(id(prefix)) } else { fields[field].clone() };
        }
    }
    if name == "change_settings" {
        read.push(Command::read(json!({"type": name, "jit_provisioning": "restricted"})).unwrap());
    }
    assert!(!read.is_empty(), "what does {name} take? {why:?} Tell `giving`");
    read.iter().any(|command| command.grants().iter().any(|grant| *grant != Grant::Offered))
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
    // The same command under the same key: of herself, by any of her credentials, and at any process.
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
    // Without a secret it is the same command for any sender: a producer may have another key by then.
    let create = create_model("once");
    let made = api.command(&ann, &org, Some("m"), &create).await.expect(201).json();
    let again = api.command(&key, &org, Some("m"), &create).await.expect(201).json();
    assert_eq!((&again["id"], &again["replayed"]), (&made["id"], &json!(true)));
    // Nor to herself, once she may no longer issue keys.
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

/// An issuer that an organization can connect as its own, beside that of the platform.
pub(crate) async fn own_issuer(api: &Api, name: &str) -> (DevIssuer, CancellationToken) {
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
    // Other audiences of the same issuer are free, and any number of organizations may name it.
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
    // Two that have the pair all the same, from before it was exclusive: each is entered by its own name, and nothing
    // is guessed.
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
async fn what_an_organization_gave_up_is_whoevers_next_who_claims_it() {
    let api = Api::start().await;
    let (first, next) = (api.org("first").await, api.org("next").await);
    let (idp, stop) = own_issuer(&api, "own").await;
    // Released and claimed again by the same organization, any number of times; and in between no other gets it.
    let mut connected = connect(&api, &first, &idp).await.expect(201);
    for _ in 0..2 {
        assert_eq!(connect(&api, &next, &idp).await.expect(409).problem(), "sso_connection_taken");
        let path = first.path(&format!("sso-connections/{}", connected.json()["connection_id"].as_str().unwrap()));
        api.delete(&first.owner, &path).await.expect(200);
        connected = connect(&api, &first, &idp).await.expect(201);
    }
    let path = first.path(&format!("sso-connections/{}", connected.json()["connection_id"].as_str().unwrap()));
    api.delete(&first.owner, &path).await.expect(200);
    let taken = connect(&api, &next, &idp).await.expect(201);
    assert_eq!(connect(&api, &first, &idp).await.expect(409).problem(), "sso_connection_taken");
    // Removing it a second time does not release the next one's claim.
    api.delete(&first.owner, &path).await.expect(404);
    assert_eq!(connect(&api, &first, &idp).await.expect(409).problem(), "sso_connection_taken");
    api.sees(&next, taken.header("stream-position")).await;
    let person = idp.mint("ann@next.example", HOUR).unwrap();
    api.get(&person, &next.path("records")).await.expect(404);
    // A domain belongs to the organization that its DNS names, for each one separately: it can be claimed again, and
    // needs its proof again.
    for org in [&first, &next, &first] {
        let claim = json!({"domain": "moved.example"});
        let claimed = api.post(&org.owner, &org.path("domains"), &claim).await.expect(201);
        api.sees(org, claimed.header("stream-position")).await;
        let path = claimed.header("location").to_owned();
        assert_eq!(api.get(&org.owner, &path).await.expect(200).json()["status"], "claimed");
        assert_eq!(api.post(&org.owner, &org.path("domains"), &claim).await.expect(409).problem(), "domain_exists");
        let removed = api.delete(&org.owner, &path).await.expect(200);
        api.sees(org, removed.header("stream-position")).await;
    }
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

    // Bob is an admin, has an invitation for an unused address of his, and one more for his own.
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

    // By the organization's own issuer, which knows him as another subject with the same address, in any case.
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
    // By what he sent while he was an admin; his key's authority lasts as long as the key.
    let friend = api.person("bobs-friend@closed.example");
    assert_eq!(api.accept(&friend, &by_him).await.expect(409).problem(), "invitation_withdrawn");
    let revoke = api.delete(&org.owner, &org.path(&format!("api-keys/{}", key["id"].as_str().unwrap()))).await;
    revoke.expect(200);
    let other = api.person("bobs-other@closed.example");
    assert_eq!(api.accept(&other, &by_his_key).await.expect(409).problem(), "invitation_withdrawn");
    // Invitations sent by others are valid.
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
    // A member with the permission confirms it.
    let listed = api.get(&org.owner, &org.path("invitations")).await.expect(200).json();
    let two = listed["data"].as_array().unwrap().iter().find(|one| one["email"] == "two@demoted.example").unwrap();
    let resend = org.path(&format!("invitations/{}/resend", two["id"].as_str().unwrap()));
    api.post(&org.owner, &resend, &json!({})).await.expect(200);
    let token = api.invited("two@demoted.example", 2).await;
    api.accept(&api.person("two@demoted.example"), &token).await.expect(201);
}
