//! The effect of a client with many tails on others: their first read is as fast as any.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream};
use reqwest::{Method, Response};
use tokio::time::{Instant, sleep};

use crate::api::{Api, Org};

/// Timeout of a first read on a busy machine, with all its lookups.
const PROMPT: Duration = Duration::from_secs(1);
/// The limit of one credential.
const OF_KEY: usize = 32;

/// Opens as many tails of `org` as a key may have, for each of `keys` new ones.
async fn follow(api: &Api, org: &Org, keys: usize) -> Vec<Response> {
    let keys = join_all((0..keys).map(|_| api.key(org, "viewer"))).await;
    let all = keys.iter().flat_map(|(_, key)| std::iter::repeat_n(key, OF_KEY));
    let open = |key| api.request(Method::GET, &org.path("events/stream")).bearer_auth(key).send();
    stream::iter(all).map(|key| async move { open(key).await.unwrap() }).buffer_unordered(16).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_much_holds_up_nobodys_first_read() {
    let api = Api::start().await;
    let reader = api.org("reader").await;
    let keys = join_all((0..20).map(|_| api.key(&reader, "viewer"))).await;
    let mut keys = keys.iter().map(|(_, key)| key);
    let path = reader.path("records?limit=1");
    let mut slowest = async |tails: usize| {
        let mut slowest = Duration::ZERO;
        for key in keys.by_ref().take(10) {
            let began = Instant::now();
            api.get(key, &path).await.expect(200);
            slowest = slowest.max(began.elapsed());
            sleep(Duration::from_millis(100)).await;
        }
        println!("beside {tails} tails the slowest first read takes {slowest:?}");
        slowest
    };
    let mut open = Vec::new();
    assert!(slowest(0).await < PROMPT);
    let orgs: usize = std::env::var("TAIL_ORGS").map_or(2, |orgs| orgs.parse().unwrap());
    for number in 0..orgs {
        let org = api.org(&format!("follower-{number}")).await;
        open.extend(follow(&api, &org, 4).await);
    }
    assert!(open.iter().all(|tail| tail.status() == 200));
    let took = slowest(open.len()).await;
    assert!(took < PROMPT, "{took:?}");
}
