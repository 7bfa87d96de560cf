//! What somebody is being answered ends when they may not have it any more.

use std::time::{Duration, Instant};

use orgstream_events::OrgId;
use reqwest::Method;

use crate::api::{Answer, Api};

/// Something that waits is no different: what it would show is not shown any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_waits_ends_with_the_right_to_it() {
    let api = Api::start().await;
    let org = api.org("waiting").await;
    let (id, key) = api.key(&org, "admin").await;
    // The audit log of the organization stands still, and everything else goes on.
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
    // What is held up delays the revocation too; from when it counts for anybody, it counts for who waits.
    let asked = async || (api.get(&key, &org.path("records")).await.status == 401).then_some(());
    crate::cluster::eventually("the key to be dead", asked).await;
    let ended = Instant::now();
    assert_eq!(waiting.await.unwrap().expect(401).problem(), "unauthenticated");
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
}
