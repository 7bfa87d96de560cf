//! A streamed answer ends when its reader loses the right to it: every form of a stream, by every credential, within a
//! second, in every process.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use orgstream::{auth::approval::GlassApproval, dev::issuer::DevIssuer};
use orgstream_events::OrgId;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    api::{Answer, Api, OPERATOR, Org, model},
    authority::own_issuer,
};

/// The routes that stream: downloads in every form, and tails.
pub(crate) const DOWNLOADS: [&str; 4] =
    ["events", "audit/export?format=jsonl", "audit/export?format=csv", "audit/export?format=ocsf"];
pub(crate) const TAILS: [&str; 2] = ["events/stream", "audit/stream"];
/// The most data in transit to a client that does not read: in hyper, in the kernel, on both sides.
pub(crate) const ON_ITS_WAY: usize = 2 << 20;

/// An answer being read.
pub(crate) struct Reading {
    pub(crate) path: &'static str,
    answer: Response,
}

impl Reading {
    pub(crate) async fn begin(base: &str, bearer: &str, org: &Org, path: &'static str) -> Self {
        let client = reqwest::Client::builder().no_gzip().build().unwrap();
        let answer = client.get(format!("{base}{}", org.path(path))).bearer_auth(bearer).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        Self { path, answer }
    }

    /// Reads the rest, and returns whether it ended as a complete answer does.
    async fn rest(mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        loop {
            match timeout(Duration::from_secs(20), self.answer.chunk())
                .await
                .unwrap_or_else(|_| panic!("{} goes on and on", self.path))
            {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return (bytes, true),
                Err(_) => return (bytes, false),
            }
        }
    }
}

/// An organization whose history is longer than what can be in transit.
pub(crate) async fn big(api: &Api, name: &str) -> Org {
    let org = api.org(name).await;
    let text = "x".repeat(60_000);
    for batch in 0..10 {
        let commands: Vec<Value> = (0..15)
            .map(|nth| {
                let data = json!({"name": format!("{batch}-{nth}"), "notes": text});
                json!({"type": "create_record", "kind": "model", "data": data})
            })
            .collect();
        let request = api.request(Method::POST, &org.path("commands")).bearer_auth(&org.owner);
        let request = request.header("idempotency-key", format!("batch-{batch}")).json(&commands);
        let answer = Answer::of(request).await.expect(200);
        assert!(!answer.text.contains("refused"), "{answer:?}");
    }
    let (_, position) = api.record(&org, "last").await;
    api.get_at(&org.owner, &org.path("audit/events?limit=1"), &position).await.expect(200);
    org
}

/// The ways to lose a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    KeyRevoked,
    MemberRemoved,
    RoleTaken,
    SessionEnded,
    SessionSwitched,
    ConnectionRemoved,
    GlassClosed,
    Suspended,
}

pub(crate) const LOSSES: [Loss; 8] = [
    Loss::KeyRevoked,
    Loss::MemberRemoved,
    Loss::RoleTaken,
    Loss::SessionEnded,
    Loss::SessionSwitched,
    Loss::ConnectionRemoved,
    Loss::GlassClosed,
    Loss::Suspended,
];

/// A principal that may read all of the organization, and the action that ends that.
pub(crate) async fn somebody(
    api: &Api,
    org: &Org,
    loss: Loss,
    idp: &DevIssuer,
) -> (String, (Method, String, String, Value)) {
    let email = format!("{loss:?}@readers.example").to_lowercase();
    let owners = |method, path: &str, body| (method, org.owner.clone(), org.path(path), body);
    match loss {
        Loss::KeyRevoked | Loss::Suspended => {
            let (id, token) = api.key(org, "admin").await;
            let end = match loss {
                Loss::KeyRevoked => owners(Method::DELETE, &format!("api-keys/{id}"), json!({})),
                _ => (Method::POST, OPERATOR.to_owned(), org.path("suspend"), json!({"reason": "unpaid"})),
            };
            (token, end)
        }
        Loss::MemberRemoved | Loss::RoleTaken => {
            let id = api.join(org, &email, "admin").await;
            let path = format!("members/{id}");
            let end = match loss {
                Loss::MemberRemoved => owners(Method::DELETE, &path, json!({})),
                _ => owners(Method::PATCH, &path, json!({"role": "auditor"})),
            };
            (api.person(&email), end)
        }
        Loss::SessionEnded | Loss::SessionSwitched => {
            api.join(org, &email, "admin").await;
            let session = api.session(&email).await;
            let own = api.get(&session, "/v1/session").await.expect(200).json()["active_org"]["org_id"].clone();
            api.switch(&session, &org.id).await.expect(200);
            let end = match loss {
                Loss::SessionEnded => (Method::DELETE, session.clone(), "/v1/sessions/current".to_owned(), json!({})),
                _ => (Method::PUT, session.clone(), "/v1/session/active-org".to_owned(), json!({"org": own})),
            };
            (session, end)
        }
        Loss::ConnectionRemoved => {
            let body = json!({"name": "own", "issuer": idp.url(), "audience": "orgstream"});
            let made = api.post(&org.owner, &org.path("sso-connections"), &body).await.expect(201);
            let user = orgstream_events::UserId::from_login(idp.url(), &email);
            let member = json!({"email": email, "role": "admin", "user_id": user});
            let added = api.post(&org.owner, &org.path("members"), &member).await.expect(201);
            api.sees(org, added.header("stream-position")).await;
            let path = format!("sso-connections/{}", made.json()["connection_id"].as_str().unwrap());
            (idp.mint(&email, Duration::from_hours(1)).unwrap(), owners(Method::DELETE, &path, json!({})))
        }
        Loss::GlassClosed => {
            let open = json!({"reason": "ticket 4711: it is slow", "approver": "bob", "expires_in_seconds": 600});
            api.post(OPERATOR, &org.path("break-glass"), &open).await.expect(201);
            let end = (Method::DELETE, OPERATOR.to_owned(), org.path("break-glass"), json!({}));
            (OPERATOR.to_owned(), end)
        }
    }
}

/// Whether the loss ends a route: a principal that is an auditor by now still reads the audit log.
fn ends(loss: Loss, path: &str) -> bool {
    loss != Loss::RoleTaken || path == "events/stream"
}

/// The routes that the principal can read at first: an operator with a break-glass grant as well.
pub(crate) fn routes() -> impl Iterator<Item = &'static str> {
    DOWNLOADS.into_iter().chain(TAILS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_read_ends_within_a_second_of_not_being_allowed_any_more() {
    let api = Api::start_with(|identity| identity.break_glass_approval = GlassApproval::Off).await;
    let second = api.another().await;
    let org = big(&api, "ending").await;
    let whole = api.get(&org.owner, &org.path("events")).await.expect(200).text.len();
    assert!(whole > 4 * ON_ITS_WAY, "{whole}");
    let (idp, stop) = own_issuer(&api, "own").await;
    for loss in LOSSES {
        let (bearer, (method, by, path, body)) = somebody(&api, &org, loss, &idp).await;
        let mut readings = Vec::new();
        for base in [&api.base, &second] {
            for path in routes() {
                readings.push(Reading::begin(base, &bearer, &org, path).await);
            }
        }
        let end = Answer::of(api.request(method, &path).bearer_auth(&by).json(&body)).await;
        assert!(end.status < 300, "{loss:?}: {end:?}");
        let ended = Instant::now();
        // Nothing is read for the second that it may take. Meanwhile an event occurs that the client must not learn of.
        sleep(Duration::from_secs(1).saturating_sub(ended.elapsed())).await;
        if loss != Loss::Suspended {
            api.post(&org.owner, &org.path("records"), &model(&format!("after {loss:?}"))).await.expect(201);
        }
        let rest = |reading: Reading| async move { (reading.path, reading.rest_if(loss).await) };
        let rests = join_all(readings.into_iter().map(rest));
        for (path, rest) in rests.await {
            let Some((bytes, is_whole)) = rest else { continue };
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(&format!("after {loss:?}")), "{loss:?} {path}: it went on");
            assert!(bytes.len() < ON_ITS_WAY, "{loss:?} {path}: {} bytes came", bytes.len());
            let tail: String = text.chars().rev().take(400).collect::<Vec<_>>().into_iter().rev().collect();
            if TAILS.contains(&path) {
                let event = if loss == Loss::SessionSwitched { "event: active_org_changed" } else { "event: closed" };
                assert!(is_whole && text.contains(event), "{loss:?} {path}: {tail}");
            } else {
                assert!(!is_whole, "{loss:?} {path}: a part looks like the whole");
                // Data not sent at the abort is lost, including the line with the reason.
            }
        }
    }
    stop.cancel();
}

impl Reading {
    /// The rest, if the loss ends the route.
    pub(crate) async fn rest_if(self, loss: Loss) -> Option<(Vec<u8>, bool)> {
        if ends(loss, self.path) { Some(self.rest().await) } else { None }
    }
}

/// A waiting read is no different: its result is not returned any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_ends_with_the_right_to_it() {
    let api = Api::start().await;
    let org = api.org("waiting").await;
    let (id, key) = api.key(&org, "admin").await;
    // The audit log of the organization is stalled, and everything else continues.
    let mut holder = api.owner().await;
    sqlx::raw_sql("BEGIN").execute(&mut holder).await.unwrap();
    let hold = "SELECT FROM ops.checkpoints WHERE org_id = $1 AND pipeline = 'audit' FOR UPDATE";
    let org_id: OrgId = org.id.parse().unwrap();
    sqlx::query(hold).bind(org_id.uuid()).execute(&mut holder).await.unwrap();
    let (_, unseen) = api.record(&org, "unseen").await;
    let request = api.request(Method::GET, &org.path("audit/events")).bearer_auth(&key);
    let waiting = request.header("min-position", unseen).header("prefer", "wait=30");
    let waiting = tokio::spawn(Answer::of(waiting));
    let answered = api.get(&key, &org.path("records")).await.expect(200);
    assert!(!waiting.is_finished(), "{answered:?}");
    let revoke = api.request(Method::DELETE, &org.path(&format!("api-keys/{id}"))).bearer_auth(&org.owner);
    Answer::of(revoke).await.expect(200);
    // The blocked transaction delays the revocation too; once it applies to any request, it applies to waiting ones.
    let asked = async || (api.get(&key, &org.path("records")).await.status == 401).then_some(());
    crate::cluster::eventually("the key to be dead", asked).await;
    let ended = Instant::now();
    assert_eq!(waiting.await.unwrap().expect(401).problem(), "unauthenticated");
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
}
