//! How users join an organization, their rights there, and how they leave: invitations and their mails, roles, domains,
//! personal organizations, and the settings that control joining.

use std::time::Duration;

use futures_util::future::join_all;
use orgstream::{
    dev::issuer::{DevIssuer, Person},
    jobs::mail::Sender,
};
use orgstream_domain::credentials::{invitation::InvitationToken, key::Pepper};
use orgstream_events::{
    Actor, ActorType, AggregateId, CommandId, CommitDraft, Context, Event, InvitationEvent, InvitationId,
    InvitationResent, Salt, Timestamp,
};
use orgstream_projections::outbox::MailOutcome;
use orgstream_stream::{Freshness, Log, LogOptions};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Answer, Api, Org, PEPPER, mail_args, model, token_in},
    support::{commit_keys, within_a_second},
};

const PATIENCE: Duration = Duration::from_secs(30);

impl Api {
    pub(crate) async fn invite(&self, bearer: &str, org: &Org, email: &str, role: &str) -> Answer {
        self.post(bearer, &org.path("invitations"), &json!({"email": email, "role": role})).await
    }

    pub(crate) async fn accept(&self, bearer: &str, token: &str) -> Answer {
        self.post(bearer, "/v1/invitations/accept", &json!({"token": token})).await
    }

    pub(crate) async fn patch(&self, bearer: &str, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).bearer_auth(bearer).json(body)).await
    }

    pub(crate) async fn delete(&self, bearer: &str, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path).bearer_auth(bearer)).await
    }

    /// A user that was invited and has joined: the issuer's token, and the member id.
    pub(crate) async fn joined(&self, org: &Org, email: &str, role: &str) -> (String, String) {
        self.invite(&org.owner, org, email, role).await.expect(201);
        let person = self.person(email);
        let joined = self.accept(&person, &self.invited(email, 1).await).await.expect(201);
        self.sees(org, joined.header("stream-position")).await;
        (person, joined.json()["member_id"].as_str().unwrap().to_owned())
    }

    /// A new organization of a tenant type.
    async fn org_of_type(&self, slug: &str, tenant_type: &str) -> Org {
        let owner = self.person(&format!("owner@{slug}.example"));
        if tenant_type == "personal" {
            self.sign_in(&owner).await;
            let me = self.get(&owner, "/v1/me").await.expect(200).json();
            let own = &me["memberships"][0];
            assert_eq!((&me["personal_org"], &own["tenant_type"]), (&own["org_id"], &json!("personal")));
            let text = |field: &str| own[field].as_str().unwrap().to_owned();
            return Org { id: text("org_id"), slug: text("slug"), owner };
        }
        let body = json!({"name": slug, "slug": slug, "tenant_type": tenant_type});
        let made = self.post(&owner, "/v1/organizations", &body).await.expect(201);
        let id = made.json()["id"].as_str().unwrap().to_owned();
        let org = Org { id, slug: slug.to_owned(), owner };
        self.until_status(&org.owner, &org.path("records"), 200).await;
        org
    }

    pub(crate) async fn settings(&self, org: &Org) -> Value {
        self.get(&org.owner, &format!("/v1/organizations/{}", org.id)).await.expect(200).json()["settings"].clone()
    }
}

// S2.9, S5.12, S5.15, S5.16, S4.1, S4.2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_9_whoever_makes_an_organization_owns_it_and_can_invite_at_once() {
    let api = Api::start().await;
    let owner = api.person("owner@made.example");
    let made = json!({"display_name": "Made", "slug": "made", "tenant_type": "organization"});
    let made = api.post(&owner, "/v1/organizations", &made).await.expect(201);
    let org = Org { id: made.json()["id"].as_str().unwrap().to_owned(), slug: "made".to_owned(), owner };
    api.invite(&org.owner, &org, "ann@made.example", "admin").await.expect(201);

    let me = api.get(&org.owner, "/v1/me").await.expect(200).json();
    assert_eq!(me["memberships"][0]["effective_roles"], json!(["owner", "admin", "member", "viewer"]));
    let permissions = me["memberships"][0]["permissions"].as_array().unwrap();
    assert!(permissions.contains(&json!("members:manage")) && !permissions.contains(&json!("parking:manage")));
    let member = api.get(&org.owner, &org.path("members")).await.expect(200).json()["data"][0].clone();
    for (field, value) in
        [("role", "owner"), ("status", "active"), ("email", "owner@made.example"), ("org_id", org.id.as_str())]
    {
        assert_eq!(member[field], value, "{member}");
    }
    assert_eq!(member["id"], me["memberships"][0]["actor_id"]);
    assert!(member["id"].as_str().unwrap().starts_with("mem_"), "{member}");
    assert_eq!(member["effective_roles"][1], "admin");
    let shown = api.get(&org.owner, &format!("/v1/organizations/{}", org.id)).await.expect(200).json();
    assert_eq!(
        (&shown["id"], &shown["slug"], &shown["name"], &shown["tenant_type"]),
        (&json!(org.id), &json!("made"), &json!("Made"), &json!("organization"))
    );
    assert!(shown["created_at"].is_string() && shown["settings"].is_object());
    for name in [String::new(), "x".repeat(121)] {
        let refused = json!({"display_name": name, "slug": "other"});
        assert_eq!(api.post(&org.owner, "/v1/organizations", &refused).await.expect(422).problem(), "validation_error");
    }
}

// S2.10, S2.11, S5.23
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_10_s2_11_an_invitation_goes_out_by_mail_and_whoever_accepts_it_is_a_member() {
    let api = Api::start().await;
    let org = api.org("inviting").await;
    let issued = api.invite(&org.owner, &org, "Ann@inviting.example", "admin").await.expect(201);
    assert!(!issued.text.contains("osi_"), "the token is in the mail alone: {issued:?}");
    let (path, position) = (issued.header("location").to_owned(), issued.header("stream-position").to_owned());
    let shown = api.get_at(&org.owner, &path, &position).await.expect(200);
    let invitation = shown.json();
    assert_eq!((&invitation["status"], &invitation["role"]), (&json!("pending"), &json!("admin")), "{invitation}");
    assert!(!shown.text.contains("token"), "{shown:?}");

    let token = api.invited("Ann@inviting.example", 1).await;
    let mail = api.mails("Ann@inviting.example").remove(0);
    assert!(mail.contains(&format!("https://app.example/join#token={token}")), "{mail}");
    assert!(mail.contains("owner@inviting.example has invited you to join inviting"), "{mail}");
    let mut outbox = tokio::process::Command::new(env!("CARGO_BIN_EXE_orgstream"));
    outbox.args(["outbox", "--last", "--data-dir"]).arg(api.outbox.parent().unwrap());
    let printed = outbox.output().await.unwrap();
    assert!(printed.status.success() && String::from_utf8(printed.stdout).unwrap().contains(&token));
    // The address counts, regardless of case.
    let ann = api.person("ann@INVITING.example");
    let joined = api.accept(&ann, &token).await.expect(201);
    assert_eq!(joined.json()["events"], json!(["invitation.accepted", "member.added"]));
    assert_eq!(joined.json()["org_id"], org.id);
    api.sees(&org, joined.header("stream-position")).await;
    let member = api.get(&ann, joined.header("location")).await.expect(200).json();
    assert_eq!((&member["role"], &member["status"]), (&json!("admin"), &json!("active")));
    let accepted = api.get(&org.owner, &path).await.expect(200).json();
    assert_eq!((&accepted["status"], &accepted["member_id"]), (&json!("accepted"), &member["id"]));
    // Both events name the new member as the actor, and the audit log shows no secret.
    let audit = api.get_at(&org.owner, &org.path("audit/events"), joined.header("stream-position")).await.expect(200);
    assert!(!audit.text.contains("token_mac") && !audit.text.contains(&token), "{audit:?}");
    let by: Vec<Value> =
        audit.json()["data"].as_array().unwrap().iter().map(|event| event["actor"]["id"].clone()).collect();
    assert_eq!(by[..2], [member["id"].clone(), member["id"].clone()]);
}

// S2.12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_12_only_who_may_manage_members_invites_and_nobody_above_their_own_role() {
    let api = Api::start().await;
    let org = api.org("ranks").await;
    for role in ["member", "viewer", "auditor"] {
        let (_, key) = api.key(&org, role).await;
        assert_eq!(api.invite(&key, &org, "x@ranks.example", "viewer").await.expect(403).problem(), "forbidden");
    }
    let (_, admin) = api.key(&org, "admin").await;
    assert_eq!(api.invite(&admin, &org, "x@ranks.example", "owner").await.expect(403).problem(), "role_above_own");
    // "Editor" is another name of the role member.
    let issued = api.invite(&admin, &org, "x@ranks.example", "Editor").await.expect(201);
    let shown =
        api.get_at(&admin, issued.header("location"), issued.header("stream-position")).await.expect(200).json();
    assert_eq!(shown["role"], "member");
    assert_eq!(api.invite(&admin, &org, "owner@RANKS.example", "viewer").await.expect(409).problem(), "already_member");
    let owners = json!({"email": "y@ranks.example", "role": "owner"});
    let owners = api.post(&org.owner, &org.path("invitations"), &owners).await.expect(201);
    assert_eq!(api.delete(&admin, owners.header("location")).await.expect(403).problem(), "role_above_own");
    // A key cannot join.
    assert_eq!(api.accept(&admin, &"osi_x".repeat(3)).await.status, 422);
    let token = api.invited("x@ranks.example", 1).await;
    assert_eq!(api.accept(&admin, &token).await.expect(403).problem(), "session_only");
}

// S2.13, S2.14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_13_s2_14_an_invitation_is_good_once_for_a_time_and_for_one_address() {
    let api = Api::start().await;
    let org = api.org("once").await;
    let (ann, bob) = (api.person("ann@once.example"), api.person("bob@once.example"));
    api.invite(&org.owner, &org, "ann@once.example", "member").await.expect(201);
    let token = api.invited("ann@once.example", 1).await;
    assert_eq!(api.accept(&bob, &token).await.expect(403).problem(), "invitation_other_email");
    let keyed = || {
        let request = api.request(Method::POST, "/v1/invitations/accept").bearer_auth(&ann);
        Answer::of(request.header("idempotency-key", "join").json(&json!({"token": token})))
    };
    let first = keyed().await.expect(201);
    api.sees(&org, first.header("stream-position")).await;
    let again = keyed().await.expect(201);
    assert_eq!(again.json()["member_id"], first.json()["member_id"]);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(api.accept(&ann, &token).await.expect(409).problem(), "invitation_used");

    // Revoked.
    let issued = api.invite(&org.owner, &org, "bob@once.example", "member").await.expect(201);
    let token = api.invited("bob@once.example", 1).await;
    let revoked =
        api.delete(&org.owner, &format!("{}?reason=a%20mistake", issued.header("location"))).await.expect(200);
    assert_eq!(api.accept(&bob, &token).await.expect(409).problem(), "invitation_revoked");
    let path = format!("{}/resend", issued.header("location"));
    assert_eq!(api.post(&org.owner, &path, &json!({})).await.expect(409).problem(), "invitation_revoked");
    assert_eq!(revoked.json()["events"], json!(["invitation.revoked"]));

    // Sent again: the token before is void.
    let issued = api.invite(&org.owner, &org, "cem@once.example", "member").await.expect(201);
    let (cem, old) = (api.person("cem@once.example"), api.invited("cem@once.example", 1).await);
    let path = format!("{}/resend", issued.header("location"));
    let resent = api.post(&org.owner, &path, &json!({"expires_in_days": 30})).await.expect(200);
    api.sees(&org, resent.header("stream-position")).await;
    assert_eq!(api.accept(&cem, &old).await.expect(404).problem(), "not_found");
    let new = api.invited("cem@once.example", 2).await;
    assert_ne!(old, new);
    // Expired: as if it had been sent again a month ago.
    let id = issued.json()["id"].as_str().unwrap().to_owned();
    let late = expired(&api, &org, id.parse().unwrap()).await;
    let refused = timeout(PATIENCE, async {
        loop {
            let answer = api.accept(&cem, &late).await;
            if answer.status != 404 {
                return answer;
            }
        }
    });
    assert_eq!(refused.await.unwrap().expect(409).problem(), "invitation_expired");
    // And with a new mail it is valid again.
    api.post(&org.owner, &path, &json!({})).await.expect(200);
    api.accept(&cem, &api.invited("cem@once.example", 3).await).await.expect(201);
    for token in ["osi_nonsense", "os_live_x"] {
        assert_eq!(api.accept(&cem, token).await.expect(422).problem(), "validation_error");
    }
}

/// Writes into the history that the invitation was sent again long ago, and returns the token of that mail.
async fn expired(api: &Api, org: &Org, id: InvitationId) -> String {
    let pepper = Pepper::new(PEPPER.as_bytes()).unwrap();
    let command = CommandId::fresh(1_700_000_000_000, [9; 10]);
    let token = InvitationToken::of(&pepper, command);
    let options = LogOptions::new(&api.nats.url, commit_keys());
    let options = LogOptions { creds: Some(api.nats.access.serve()), shards: 2, ..options };
    let log = Log::connect(&options).await.unwrap();
    let placement = log.placement(org.id.parse().unwrap()).await.unwrap().unwrap();
    let aggregate = AggregateId::Invitation(id);
    let history = log.load(&placement, &aggregate, 0, Freshness::Leader).await.unwrap();
    let expires_at = Timestamp::from_unix_ms(1_700_600_000_000);
    let event = InvitationEvent::Resent(InvitationResent { expires_at, token_mac: token.mac(&pepper) });
    let at = Timestamp::from_unix_ms(1_700_000_000_000);
    let draft = CommitDraft {
        org: placement.org,
        aggregate,
        version_before: history.commits.len() as u64,
        command_id: command,
        fingerprint: None,
        actor: Actor { actor_type: ActorType::System, id: "system".to_owned(), auth: None },
        occurred_at: at,
        recorded_at: at,
        causation_id: None,
        correlation_id: None,
        request_id: None,
        context: Context::default(),
        events: vec![Event::Invitation(event)],
    };
    let commit = draft.seal(|| Salt([3; 32])).unwrap();
    log.append(&placement, &commit, history.last, None).await.unwrap();
    token.reveal().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hundred_who_accept_one_invitation_at_once_one_becomes_a_member() {
    let api = Api::start().await;
    let org = api.org("crowd").await;
    api.invite(&org.owner, &org, "ann@crowd.example", "member").await.expect(201);
    let (ann, token) = (api.person("ann@crowd.example"), api.invited("ann@crowd.example", 1).await);
    let answers = join_all((0..200).map(|_| api.accept(&ann, &token))).await;
    let joined: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 201).collect();
    assert_eq!(joined.len(), 1);
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!((answer.status, answer.problem().as_str()), (409, "invitation_used"));
    }
    api.sees(&org, joined[0].header("stream-position")).await;
    let members = api.get(&org.owner, &org.path("members")).await.expect(200).json();
    assert_eq!(members["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_that_nobody_could_send_leaves_when_somebody_can() {
    let api = Api::start_mailing(|_| mail_args()).await;
    let org = api.org("waiting").await;
    let issued = api.invite(&org.owner, &org, "ann@waiting.example", "member").await.expect(201);
    api.sees(&org, issued.header("stream-position")).await;
    // A process leases the mail and dies: others do not lease it at once, but it is not lost either.
    let taken = api.db.take_mails().await.unwrap();
    assert_eq!((taken.len(), taken[0].attempts), (1, 1));
    assert_eq!(api.db.take_mails().await.unwrap(), []);
    api.sql("UPDATE ops.mails SET next_at = now()").await;
    let folder = orgstream::config::MailArgs { mail_folder: Some(api.outbox.clone()), ..mail_args() };
    let mailer = folder.mailer().unwrap().unwrap();
    let (stop, pepper) = (CancellationToken::new(), Pepper::new(PEPPER.as_bytes()).unwrap());
    let sending = {
        let (sender, stop) = (Sender::new(api.db.clone(), mailer, pepper), stop.clone());
        tokio::spawn(async move { sender.run(stop).await })
    };
    let token = api.invited("ann@waiting.example", 1).await;
    api.accept(&api.person("ann@waiting.example"), &token).await.expect(201);
    // The final state of a mail stays.
    stop.cancel();
    sending.await.unwrap();
    api.sql("UPDATE ops.mails SET next_at = now()").await;
    assert_eq!(api.db.take_mails().await.unwrap(), []);
    api.db.finish_mail(&taken[0], MailOutcome::Sent).await.unwrap();
    assert_eq!(api.mails("ann@waiting.example").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_leave_by_smtp() {
    let (mails, mut received) = mpsc::channel(10);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(mailbox(connection, mails.clone()));
        }
    });
    let api = Api::start_mailing(|_| orgstream::config::MailArgs {
        smtp_url: Some(format!("smtp://{address}").into()),
        ..mail_args()
    });
    let api = api.await;
    let org = api.org("smtp").await;
    api.invite(&org.owner, &org, "ann@smtp.example", "viewer").await.expect(201);
    let mail = timeout(PATIENCE, received.recv()).await.unwrap().unwrap();
    assert!(mail.contains("RCPT TO:<ann@smtp.example>") && mail.contains("Subject: Invitation to smtp"), "{mail}");
    api.accept(&api.person("ann@smtp.example"), &token_in(&mail).unwrap()).await.expect(201);
}

/// The part of a mail server that one mail needs.
async fn mailbox(connection: tokio::net::TcpStream, mails: mpsc::Sender<String>) {
    let (reading, mut writing) = connection.into_split();
    let (mut lines, mut said, mut in_mail) = (BufReader::new(reading).lines(), String::new(), false);
    writing.write_all(b"220 test\r\n").await.unwrap();
    while let Ok(Some(line)) = lines.next_line().await {
        said.push_str(&line);
        said.push('\n');
        let answer = match (in_mail, line.split(' ').next().unwrap_or_default()) {
            (true, ".") => {
                in_mail = false;
                mails.send(std::mem::take(&mut said)).await.unwrap();
                "250 taken"
            }
            (true, _) => continue,
            (false, "DATA") => {
                in_mail = true;
                "354 go on"
            }
            (false, "QUIT") => "221 bye",
            (false, _) => "250 fine",
        };
        if writing.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

// S1.34, S2.27, S4.5, S4.6, S4.8, S4.13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_34_members_are_found_by_email_change_roles_at_once_and_leave_what_they_made() {
    let api = Api::start().await;
    let (org, other) = (api.org("staff").await, api.org("elsewhere").await);
    let (ann, id) = api.joined(&org, "ann@staff.example", "member").await;
    // S4.6, S4.13
    let found = api.get(&org.owner, &org.path("members?email=ANN%40staff.example")).await.expect(200).json();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    assert_eq!(found["data"][0]["id"], id);
    let same = json!({"email": "Ann@Staff.example", "role": "viewer"});
    assert_eq!(api.post(&org.owner, &org.path("members"), &same).await.expect(409).problem(), "email_taken");
    // S4.8
    let elsewhere = api.post(&other.owner, &other.path("members"), &same).await.expect(201).json();
    assert_ne!(elsewhere["member_id"], id);

    // What a role no longer allows is denied within a second.
    let mut hers = Vec::new();
    let mut used = Vec::new();
    for (kind, data) in [
        ("model", json!({"name": "tested"})),
        ("benchmark", json!({"name": "spelling", "task": "generation", "metrics": [{"name": "accuracy"}]})),
    ] {
        let made = api.post(&org.owner, &org.path("records"), &json!({"kind": kind, "data": data})).await.expect(201);
        used.push(made.json()["id"].clone());
    }
    for (kind, data) in [
        ("evaluation", json!({"model": used[0], "benchmark": used[1], "status": "completed"})),
        ("judge", json!({"name": "hers", "instructions": "Rate it."})),
        ("trace", json!({"name": "hers", "started_at": "2026-03-01T12:00:00Z"})),
    ] {
        let made = json!({"kind": kind, "data": data});
        let made = api.post(&ann, &org.path("records"), &made).await.expect(201).json();
        hers.push((kind, made["id"].clone()));
    }
    let member = org.path(&format!("members/{id}"));
    api.patch(&org.owner, &member, &json!({"role": "viewer"})).await.expect(200);
    let refused = within_a_second("she is a viewer", async || {
        let answer = api.post(&ann, &org.path("records"), &model("more")).await;
        (answer.status != 201).then_some(answer)
    });
    assert_eq!(refused.await.expect(403).problem(), "forbidden");

    // S1.34, S2.27
    let removed = api.delete(&org.owner, &member).await.expect(200);
    api.sees(&org, removed.header("stream-position")).await;
    within_a_second("she is out", async || (api.get(&ann, &org.path("records")).await.status == 404).then_some(()))
        .await;
    for (kind, made) in hers {
        let kept = api.get(&org.owner, &org.path(&format!("records?kind={kind}"))).await.expect(200).json();
        let listed: Vec<_> = kept["data"].as_array().unwrap().iter().collect();
        assert_eq!(listed.len(), 1, "{kept}");
        assert_eq!((&listed[0]["id"], &listed[0]["created_by"]["id"]), (&made, &json!(id)));
        assert_eq!(listed[0]["archived"], false);
    }
    let members = api.get(&org.owner, &org.path("members")).await.expect(200).json();
    let owner = members["data"][0]["id"].as_str().unwrap().to_owned();
    let refused = api.delete(&org.owner, &org.path(&format!("members/{owner}"))).await.expect(409);
    assert_eq!(refused.problem(), "last_owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_end_with_who_issued_them_unless_the_organization_says_otherwise() {
    let api = Api::start().await;
    let (org, other) = (api.org("strict").await, api.org("lenient").await);
    let keep = json!({"revoke_keys_on_creator_exit": false});
    api.patch(&other.owner, &other.path("settings"), &keep).await.expect(200);
    let mut keys = Vec::new();
    for (org, email) in [(&org, "ann@strict.example"), (&other, "ann@lenient.example")] {
        let (ann, id) = api.joined(org, email, "admin").await;
        let issued =
            api.post(&ann, &org.path("api-keys"), &json!({"name": "hers", "role": "member"})).await.expect(201);
        api.sees(org, issued.header("stream-position")).await;
        let key = issued.json()["token"].as_str().unwrap().to_owned();
        api.get(&key, &org.path("records")).await.expect(200);
        api.delete(&org.owner, &org.path(&format!("members/{id}"))).await.expect(200);
        if org.slug == "strict" {
            within_a_second("her key ends", async || {
                (api.get(&key, &org.path("records")).await.status == 401).then_some(())
            })
            .await;
        }
        keys.push(key);
    }
    api.get(&keys[1], &other.path("records")).await.expect(200);
}

// S3.15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_of_an_organizations_own_open_what_they_say_and_change_at_once() {
    let api = Api::start().await;
    let (org, other) = (api.org("own-roles").await, api.org("other-roles").await);
    let ingest = json!({"name": "Ingest", "permissions": ["records:write"]});
    let made = api.post(&org.owner, &org.path("roles"), &ingest).await.expect(201);
    let role = made.json()["role_id"].as_str().unwrap().to_owned();
    api.sees(&org, made.header("stream-position")).await;
    // The same name is free in another organization, and taken in this one.
    api.post(&other.owner, &other.path("roles"), &ingest).await.expect(201);
    let refused = api.post(&org.owner, &org.path("roles"), &ingest).await.expect(422).json();
    assert_eq!((&refused["errors"][0]["pointer"], &refused["errors"][0]["code"]), (&json!("/name"), &json!("taken")));
    // Not another organization's role, and none that does not exist.
    let foreign = json!({"name": "x", "role": role});
    assert_eq!(
        api.post(&other.owner, &other.path("api-keys"), &foreign).await.expect(422).problem(),
        "validation_error"
    );

    let (_, key) = api.key(&org, &role).await;
    let (ann, _) = api.joined(&org, "ann@own-roles.example", &role).await;
    for bearer in [&key, &ann] {
        api.post(bearer, &org.path("records"), &model("x")).await.expect(201);
        api.get(bearer, &org.path("records")).await.expect(403);
        api.get(bearer, &org.path("members")).await.expect(403);
    }
    let me = api.get(&ann, "/v1/me").await.expect(200).json();
    assert_eq!(me["memberships"][0]["permissions"], json!(["records:write"]));
    // Never more than the caller's own rights, and no admin by a custom role either.
    let (_, admin) = api.key(&org, "admin").await;
    let above = json!({"name": "Boss", "permissions": ["parking:manage"]});
    assert_eq!(api.post(&admin, &org.path("roles"), &above).await.expect(403).problem(), "role_above_own");

    // A change applies to all holders of the role.
    let path = org.path(&format!("roles/{role}"));
    let changed = api.patch(&org.owner, &path, &json!({"permissions": ["records:read"]})).await.expect(200);
    let shown = api.get_at(&org.owner, &path, changed.header("stream-position")).await.expect(200).json();
    assert_eq!((&shown["name"], &shown["permissions"]), (&json!("Ingest"), &json!(["records:read"])));
    for bearer in [&key, &ann] {
        within_a_second("the role reaches who has it", async || {
            (api.get(bearer, &org.path("records")).await.status == 200).then_some(())
        })
        .await;
        api.post(bearer, &org.path("records"), &model("x")).await.expect(403);
    }
    api.delete(&org.owner, &path).await.expect(200);
    within_a_second("the role is gone", async || {
        (api.get(&key, &org.path("records")).await.status == 403).then_some(())
    })
    .await;
}

// S4.23, S4.24, S5.14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_23_a_personal_organization_is_upgraded_in_place() {
    let api = Api::start().await;
    let org = api.org_of_type("solo", "personal").await;
    let (record, position) = api.record(&org, "mine").await;
    let (_, key) = api.key(&org, "member").await;
    let before = api.get_at(&org.owner, &org.path("audit/events"), &position).await.expect(200).json();
    let refusals = [
        ("invitations", json!({"email": "ann@solo.example", "role": "member"})),
        ("members", json!({"email": "ann@solo.example", "role": "member"})),
        ("roles", json!({"name": "x", "permissions": []})),
        ("domains", json!({"domain": "solo.example"})),
    ];
    for (path, body) in &refusals {
        let refused = api.post(&org.owner, &org.path(path), body).await.expect(409);
        assert_eq!(refused.problem(), "personal_organization", "{path}");
        assert!(refused.text.contains("upgrade it first"), "{refused:?}");
    }
    let branding = json!({"branding": {"primary_color": "#0a84ff"}});
    let refused = api.patch(&org.owner, &org.path("settings"), &branding).await.expect(409);
    assert_eq!(refused.problem(), "personal_organization");

    let upgraded = api.post(&org.owner, &org.path("upgrade"), &json!({})).await.expect(200);
    let position = upgraded.header("stream-position");
    assert_eq!(upgraded.json()["events"], json!(["organization.upgraded"]));
    let path = format!("/v1/organizations/{}", org.slug);
    let shown = api.get_at(&org.owner, &path, position).await.expect(200).json();
    assert_eq!((&shown["id"], &shown["tenant_type"]), (&json!(org.id), &json!("organization")));
    api.get(&key, &org.path(&format!("records/{record}"))).await.expect(200);
    let after = api.get_at(&org.owner, &org.path("audit/events"), position).await.expect(200).json();
    let (before, after) = (before["data"].as_array().unwrap(), after["data"].as_array().unwrap());
    assert_eq!(after[after.len() - before.len()..], before[..], "the history is what it was");
    // S4.24
    let (ann, _) = api.joined(&org, "ann@solo.example", "member").await;
    api.get(&ann, &org.path(&format!("records/{record}"))).await.expect(200);
    api.patch(&org.owner, &org.path("settings"), &branding).await.expect(200);
    let again = api.post(&org.owner, &org.path("upgrade"), &json!({"tenant_type": "team"})).await.expect(409);
    assert_eq!(again.problem(), "not_a_personal_organization");
}

// S3.1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_1_every_type_of_tenant_is_isolated_alike() {
    let api = Api::start().await;
    let mut orgs = Vec::new();
    for tenant_type in ["personal", "organization", "team", "workspace"] {
        let org = api.org_of_type(&format!("a-{tenant_type}"), tenant_type).await;
        let (record, position) = api.record(&org, tenant_type).await;
        api.get_at(&org.owner, &org.path(&format!("records/{record}")), &position).await.expect(200);
        orgs.push((org, record));
    }
    for (mine, _) in &orgs {
        for (theirs, record) in orgs.iter().filter(|(theirs, _)| theirs.id != mine.id) {
            api.get(&mine.owner, &theirs.path("records")).await.expect(404);
            api.get(&mine.owner, &mine.path(&format!("records/{record}"))).await.expect(404);
        }
    }
    let unknown = json!({"name": "x", "slug": "a-tribe", "tenant_type": "tribe"});
    assert_eq!(
        api.post(&orgs[0].0.owner, "/v1/organizations", &unknown).await.expect(422).problem(),
        "validation_error"
    );
}

// S1.14, S3.24, S4.16, S4.19, S4.20, S4.21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_20_settings_are_an_organizations_own_and_have_a_shape() {
    let api = Api::start().await;
    let (org, other) = (api.org("tuned").await, api.org("untouched").await);
    let defaults = api.settings(&other).await;
    assert_eq!((&defaults["jit_provisioning"], &defaults["invite_policy"]), (&json!("not_allowed"), &json!("all")));
    let change = json!({
        "jit_provisioning": "restricted",
        "invite_policy": "restricted",
        "allowed_domains": ["tuned.example"],
        "branding": {"logo_url": "https://tuned.example/logo.svg", "primary_color": "#0a84ff"},
        "custom_metadata": {"crm": "42"},
    });
    let changed = api.patch(&org.owner, &org.path("settings"), &change).await.expect(200);
    let path = format!("/v1/organizations/{}", org.id);
    let shown = api.get_at(&org.owner, &path, changed.header("stream-position")).await.expect(200);
    assert_eq!(shown.header("etag"), changed.header("etag"));
    let settings = &shown.json()["settings"];
    for (key, value) in change.as_object().unwrap() {
        let fields = value.as_object();
        match fields {
            Some(fields) => fields.iter().for_each(|(name, field)| assert_eq!(&settings[key][name], field, "{key}")),
            None => assert_eq!(&settings[key], value, "{key}"),
        }
    }
    // S1.14, S3.24, S4.21
    assert_eq!(api.settings(&other).await, defaults);
    // S4.20
    let unknown = api.patch(&org.owner, &org.path("settings"), &json!({"jit": true})).await.expect(422).json();
    assert_eq!(unknown["errors"][0]["pointer"], "/jit");
    assert!(unknown["errors"][0]["detail"].as_str().unwrap().contains("jit"), "{unknown}");
    for bad in [
        json!({"invite_policy": "some"}),
        json!({"jit_provisioning": "all"}),
        json!({"allowed_domains": ["Not A Domain"]}),
        json!({"branding": {"primary_color": "blue"}}),
        json!({"custom_metadata": {"k": "x".repeat(501)}}),
    ] {
        assert_eq!(api.patch(&org.owner, &org.path("settings"), &bad).await.expect(422).problem(), "validation_error");
    }
    // S4.19
    let (_, member) = api.key(&org, "member").await;
    let note = json!({"custom_metadata": {"crm": "43"}});
    assert_eq!(api.patch(&member, &org.path("settings"), &note).await.expect(403).problem(), "forbidden");
    let stale = api.request(Method::PATCH, &org.path("settings")).bearer_auth(&org.owner).header("if-match", "\"1\"");
    assert_eq!(Answer::of(stale.json(&note)).await.expect(412).problem(), "version_conflict");
    let audit = api
        .get_at(
            &org.owner,
            &org.path("audit/events?action=organization.settings_changed"),
            changed.header("stream-position"),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(audit["data"].as_array().unwrap().len(), 1);
}

// S4.3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_3_an_organization_says_who_may_be_invited() {
    let api = Api::start().await;
    let org = api.org("guarded").await;
    let set = async |change: Value| {
        let answer = api.patch(&org.owner, &org.path("settings"), &change).await;
        answer.expect(200)
    };
    set(json!({"invite_policy": "none"})).await;
    assert_eq!(api.invite(&org.owner, &org, "x@guarded.example", "viewer").await.expect(403).problem(), "invites_off");
    set(json!({"invite_policy": "restricted", "allowed_domains": ["guarded.example"]})).await;
    api.invite(&org.owner, &org, "X@Guarded.example", "viewer").await.expect(201);
    for outside in ["x@sub.guarded.example", "x@other.example"] {
        let refused = api.invite(&org.owner, &org, outside, "viewer").await.expect(403);
        assert_eq!(refused.problem(), "domain_not_allowed");
    }
    set(json!({"invite_policy": "all"})).await;
    api.invite(&org.owner, &org, "x@other.example", "viewer").await.expect(201);
}

// S4.11, S4.10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_11_slugs_have_bounds_and_some_are_reserved() {
    let api = Api::start().await;
    let ann = api.person("ann@slugs.example");
    let make = async |slug: &str| {
        let made = json!({"name": "x", "slug": slug});
        api.post(&ann, "/v1/organizations", &made).await
    };
    for bad in ["a", &"a".repeat(129), "Acme", "a b", ".a", "a..b", "mem_01h455vb4pex5vsknk084sn02q", "admin", "www"] {
        let refused = make(bad).await.expect(422);
        assert_eq!(refused.json()["errors"][0]["pointer"], "/slug", "{bad}: {refused:?}");
    }
    let longest = "a".repeat(128);
    for good in ["ab", "acme.example", "a_b~c-d", &longest] {
        let made = make(good).await.expect(201);
        let id = made.json()["id"].clone();
        let by_slug = async {
            loop {
                let answer = api.get(&ann, &format!("/v1/organizations/{good}")).await;
                if answer.status != 404 {
                    return answer.expect(200).json()["id"].clone();
                }
            }
        };
        assert_eq!(timeout(PATIENCE, by_slug).await.unwrap(), id);
        assert_eq!(make(good).await.expect(409).problem(), "slug_taken");
    }
}

// S2.15, S2.16, S2.17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_15_whoever_signs_in_with_an_address_of_a_proven_domain_joins_where_that_is_on() {
    let api = Api::start().await;
    let org = api.org("domains").await;
    let joins = async |email: &str| {
        let me = api.get(&api.person(email), "/v1/me").await.expect(200).json();
        me["memberships"].as_array().unwrap().iter().any(|membership| membership["org_id"] == org.id)
    };
    // S2.17
    let public = api.post(&org.owner, &org.path("domains"), &json!({"domain": "gmail.com"})).await.expect(422).json();
    assert_eq!(public["errors"][0]["code"], "public_domain");
    let claimed = api.post(&org.owner, &org.path("domains"), &json!({"domain": "acme.test"})).await.expect(201);
    let (path, position) = (claimed.header("location").to_owned(), claimed.header("stream-position").to_owned());
    let shown = api.get_at(&org.owner, &path, &position).await.expect(200).json();
    assert_eq!(
        (&shown["status"], &shown["record"]["name"]),
        (&json!("claimed"), &json!("_orgstream-challenge.acme.test"))
    );
    api.patch(&org.owner, &org.path("settings"), &json!({"jit_provisioning": "restricted"})).await.expect(200);
    let unproven = api.post(&org.owner, &format!("{path}/verify"), &json!({})).await.expect(409);
    assert_eq!(unproven.problem(), "domain_not_proven");
    assert!(!joins("early@acme.test").await, "the domain is not proven yet");
    api.dns.say("_orgstream-challenge.acme.test", "v=spf1 -all");
    api.dns.say("_orgstream-challenge.acme.test", shown["record"]["value"].as_str().unwrap());
    let proven = api.post(&org.owner, &format!("{path}/verify"), &json!({})).await.expect(200);
    api.sees(&org, proven.header("stream-position")).await;

    // Turned off again.
    let off = json!({"jit_provisioning": "not_allowed"});
    api.patch(&org.owner, &org.path("settings"), &off).await.expect(200);
    assert!(!joins("x@acme.test").await);
    api.patch(&org.owner, &org.path("settings"), &json!({"jit_provisioning": "restricted"})).await.expect(200);
    assert!(joins("x@Acme.test").await);
    assert!(!joins("x@other.test").await);
    assert!(!joins("x@sub.acme.test").await);
    // An unverified address.
    let nobody_checked = Person { email: "y@acme.test", email_verified: false, amr: &[] };
    let unverified = api.issuer.mint_as(&nobody_checked, Duration::from_hours(1)).unwrap();
    let me = api.get(&unverified, "/v1/me").await.expect(200).json();
    assert_eq!(me["memberships"], json!([]));

    // A removed member does not come back by signing in again.
    let x = api.get(&org.owner, &org.path("members?email=x%40acme.test")).await.expect(200).json()["data"][0].clone();
    assert_eq!(x["role"], "member");
    let removed =
        api.delete(&org.owner, &org.path(&format!("members/{}", x["id"].as_str().unwrap()))).await.expect(200);
    api.sees(&org, removed.header("stream-position")).await;
    within_a_second("x is out", async || (!joins("x@acme.test").await).then_some(())).await;
    let given_up = api.delete(&org.owner, &path).await.expect(200);
    api.sees(&org, given_up.header("stream-position")).await;
    assert!(!joins("late@acme.test").await);

    // S2.16: off by default, for an organization whose domain is proven and whose settings nobody has touched.
    let fresh = api.org("domains-fresh").await;
    let claimed = api.post(&fresh.owner, &fresh.path("domains"), &json!({"domain": "fresh.test"})).await.expect(201);
    let (path, position) = (claimed.header("location").to_owned(), claimed.header("stream-position").to_owned());
    let shown = api.get_at(&fresh.owner, &path, &position).await.expect(200).json();
    api.dns.say("_orgstream-challenge.fresh.test", shown["record"]["value"].as_str().unwrap());
    let proven = api.post(&fresh.owner, &format!("{path}/verify"), &json!({})).await.expect(200);
    let proven = api.get_at(&fresh.owner, &path, proven.header("stream-position")).await.expect(200).json();
    assert_eq!(proven["status"], "proven");
    let stays_out = api.session("z@fresh.test").await;
    for bearer in [&stays_out, &api.person("z@fresh.test")] {
        let me = api.get(bearer, "/v1/me").await.expect(200).json();
        let of_fresh = |place: &Value| place["org_id"] == fresh.id;
        assert!(!me["memberships"].as_array().unwrap().iter().any(of_fresh), "{me}");
        api.get(bearer, &fresh.path("records")).await.expect(404);
    }
    let members = api.get(&fresh.owner, &fresh.path("members")).await.expect(200).json();
    assert_eq!(members["data"].as_array().unwrap().len(), 1, "{members}");
}

// S4.17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_17_people_sign_in_by_their_organizations_own_issuer_and_nowhere_else_by_it() {
    let api = Api::start().await;
    let (org, other) = (api.org("sso").await, api.org("bystander").await);
    let folder = api.outbox.parent().unwrap().join("own-issuer");
    std::fs::create_dir_all(&folder).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let idp = DevIssuer::load_or_create(&folder, issuer.clone()).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(idp.clone().serve(listener, stop.clone()));
    let token = |email: &str| idp.mint(email, Duration::from_hours(1)).unwrap();

    // This issuer is not known yet.
    api.get(&token("ann@sso.example"), "/v1/me").await.expect(401);
    let body = |name: &str, audience: &str| json!({"name": name, "issuer": issuer, "audience": audience, "jit": true});
    let connections = org.path("sso-connections");
    let first = api.post(&org.owner, &connections, &body("Main", "orgstream")).await.expect(201);
    let second = api.post(&org.owner, &connections, &body("Spare", "somewhere-else")).await.expect(201);
    let again = api.post(&org.owner, &connections, &body("Again", "orgstream")).await.expect(409);
    assert_eq!(again.problem(), "sso_connection_exists");
    let inward = json!({"name": "x", "issuer": "https://metadata.internal", "audience": "x"});
    assert_eq!(api.post(&org.owner, &connections, &inward).await.expect(422).problem(), "validation_error");
    let path = first.header("location").to_owned();
    for location in [second.header("location"), &path] {
        let put = api.request(Method::PUT, &format!("{location}/default")).bearer_auth(&org.owner);
        let changed = Answer::of(put).await.expect(200);
        api.sees(&org, changed.header("stream-position")).await;
    }
    let listed = api.get(&org.owner, &connections).await.expect(200).json();
    let defaults: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|one| (&one["name"], &one["is_default"])).collect();
    assert_eq!(defaults, [(&json!("Spare"), &json!(false)), (&json!("Main"), &json!(true))]);
    assert!(listed["data"][1]["jit"].as_bool().unwrap());

    // Signed in, but no member: the organization does not add members at sign-in.
    let ann = token("ann@sso.example");
    let me = api.get(&ann, "/v1/me").await.expect(200).json();
    assert_eq!((&me["memberships"], &me["email"]), (&json!([]), &json!("ann@sso.example")));
    api.get(&ann, &org.path("records")).await.expect(404);
    api.patch(&org.owner, &org.path("settings"), &json!({"jit_provisioning": "restricted"})).await.expect(200);
    let me = api.get(&ann, "/v1/me").await.expect(200).json();
    assert_eq!((&me["memberships"][0]["org_id"], &me["memberships"][0]["role"]), (&json!(org.id), &json!("member")));
    api.post(&ann, &org.path("records"), &model("hers")).await.expect(201);

    // This issuer's claims count in this organization alone, for any subject.
    let forged = token("owner@bystander.example");
    api.get(&forged, &other.path("records")).await.expect(404);
    let created = api.post(&forged, "/v1/organizations", &json!({"name": "x", "slug": "by-sso"})).await.expect(403);
    assert_eq!(created.problem(), "own_issuer_only");
    api.invite(&other.owner, &other, "ann@sso.example", "owner").await.expect(201);
    let invited = api.invited("ann@sso.example", 1).await;
    assert_eq!(api.accept(&ann, &invited).await.expect(403).problem(), "own_issuer_only");

    // Removed: its tokens are denied within a second.
    api.delete(&org.owner, &path).await.expect(200);
    within_a_second("its tokens are refused", async || {
        (api.get(&ann, &org.path("records")).await.status == 401).then_some(())
    })
    .await;
    stop.cancel();
}
