//! The edges of the API: its concurrency limits, its handling of headers, its answers to browsers.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use flate2::read::GzDecoder;
use futures_util::future::join_all;
use orgstream::config::HttpArgs;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{
    api::{Answer, Api, OPERATOR, Tail, create_model, model},
    cluster::{Cluster, ClusterOptions, PATIENCE, Tenant, eventually},
};

async fn connect(base: &str) -> TcpStream {
    TcpStream::connect(base.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Everything until the other side closes.
async fn until_closed(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection is not closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_never_asks_is_closed() {
    let api = Api::start().await;
    let (silent, mut half) = (connect(&api.base).await, connect(&api.base).await);
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    let mut again = connect(&api.base).await;
    let whole = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    again.write_all(whole).await.unwrap();
    again.read_exact(&mut [0; 15]).await.unwrap();
    again.write_all(&whole[..20]).await.unwrap();
    let closed = join_all([silent, half, again].map(until_closed)).await;
    assert!(closed[0].is_empty() && closed[1].is_empty(), "{closed:?}");
    assert_eq!(closed[2].matches("HTTP/1.1").count(), 0, "the head that never came was answered: {closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_the_bound_are_told_so() {
    let api = Api::start().await;
    let few = HttpArgs { http_connections: 8, ..HttpArgs::default() };
    let base = api.another_with(few).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&base).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
        held.push(stream);
    }
    let refused = until_closed(connect(&base).await).await;
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: 1"), "{head}");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["code"], "too_many_connections");
    drop(held);
    eventually("room for a connection", async || {
        let asked = reqwest::get(format!("{base}/healthz")).await.ok()?;
        (asked.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_key_are_bounded_and_others_have_theirs() {
    let api = Api::start().await;
    let org = api.org("streams").await;
    let ((_, key), (_, other)) = (api.key(&org, "admin").await, api.key(&org, "admin").await);
    let path = org.path("events/stream");
    let mut open = Vec::new();
    for _ in 0..32 {
        open.push(api.tail(&key, &path).await);
    }
    for path in [&path, &org.path("audit/stream")] {
        let refused = api.get(&key, path).await.expect(429);
        assert_eq!((refused.problem(), refused.header("retry-after")), ("too_many_streams".to_owned(), "5"));
    }
    api.get(&key, &org.path("records")).await.expect(200);
    let _theirs = api.tail(&other, &path).await;
    open.pop();
    eventually("room for a stream", async || {
        let again = api.request(Method::GET, &path).bearer_auth(&key).send().await.unwrap();
        (again.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_bodies_take_bounded_memory_and_are_all_carried_out() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("large").await;
    let before = cluster.api.resident();
    let body = |number: usize| {
        let name = |n: usize| format!("{number}-{n}-{}", "x".repeat(900));
        Value::Array((0..1_000).map(|n| crate::cluster::create(name(n))).collect())
    };
    let bodies: Vec<Value> = (0..24).map(body).collect();
    let sent = bodies.iter().enumerate().map(|(number, body)| {
        let (client, tenant) = (cluster.client.clone(), tenant.clone());
        async move {
            let patient = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
            let mut statuses = Vec::new();
            // Again, as it is asked for, under the same key.
            eventually("the body to be carried out", async || {
                let request = patient.post(format!("{}{}", client.base, tenant.path("commands")));
                let request = request.bearer_auth(&tenant.key).header("idempotency-key", number.to_string());
                let status = request.json(body).send().await.unwrap().status().as_u16();
                statuses.push(status);
                (status == 200).then_some(())
            })
            .await;
            statuses
        }
    });
    let statuses: Vec<u16> = join_all(sent).await.concat();
    assert!(statuses.iter().all(|status| [200, 429, 503].contains(status)), "{statuses:?}");
    let grown = (cluster.api.peak() - before) >> 20;
    assert!(grown < 256, "24 bodies of 1 MiB at once took {grown} MiB");
}

const READERS: u16 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_told_that_it_lags_and_those_who_wait_share_one_look() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("waiting").await;
    cluster.until_projected(&tenant).await;
    cluster.workers[0].stop().await;
    let made = cluster.client.command(&tenant, "one", &crate::cluster::create("one")).await.expect(201);
    let position = made.text("position");
    let request = cluster.client.request(Method::GET, &tenant.path("records"), &tenant.key);
    let told = request.header("min-position", &position).send().await.unwrap();
    assert_eq!((told.status().as_u16(), &told.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(told.json::<Value>().await.unwrap()["code"], "projection_lagging");
    let mut superuser = cluster.superuser().await;
    let before = commits(&mut superuser).await;
    let waits = (0..READERS).map(|_| {
        let request = cluster.client.request(Method::GET, &tenant.path("records"), &tenant.key);
        request.header("min-position", &position).header("prefer", "wait=8").send()
    });
    let statuses: Vec<u16> =
        join_all(waits).await.into_iter().map(|answer| answer.unwrap().status().as_u16()).collect();
    assert!(statuses.iter().all(|status| *status == 503), "{statuses:?}");
    // Each reads a few times before it waits. From then on there is one check every 50 ms of the position and four a
    // second of the right to wait for all of them together; one check of the right for each would be 32 for each.
    let looks = commits(&mut superuser).await - before;
    assert!(looks < 10 * i64::from(READERS), "{looks} transactions for {READERS} readers who wait for the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_follow_an_audit_log_share_what_is_found_in_it() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("followed").await;
    let mut keys = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let body = json!({"name": name, "role": "auditor"});
        let made = cluster.client.post(&tenant.owner, &tenant.path("api-keys"), None, &body).await.expect(201);
        keys.push(made.text("token"));
    }
    cluster.until_projected(&tenant).await;
    let mut superuser = cluster.superuser().await;
    // Four tails, each with a key of its own, and then thirty times as many with the same keys.
    let mut tails = follow(&cluster, &tenant, &keys).await;
    let few = looks_a_second(&cluster, &tenant, &mut superuser, &mut tails, "few").await;
    let more = (1..30).flat_map(|_| keys.clone()).collect::<Vec<String>>();
    tails.extend(follow(&cluster, &tenant, &more).await);
    let many = looks_a_second(&cluster, &tenant, &mut superuser, &mut tails, "many").await;
    assert!(many < 4.0 * few, "{few} transactions a second for 4 readers, {many} for 120");
}

async fn follow(cluster: &Cluster, tenant: &Tenant, keys: &[String]) -> Vec<Tail> {
    let url = format!("{}{}", cluster.client.base, tenant.path("audit/stream"));
    join_all(keys.iter().map(|key| Tail::open(reqwest::Client::new().get(&url).bearer_auth(key)))).await
}

/// The database transactions per second while all of the tails receive eight events, one after the other.
async fn looks_a_second(
    cluster: &Cluster,
    tenant: &Tenant,
    superuser: &mut PgConnection,
    tails: &mut [Tail],
    names: &str,
) -> f64 {
    let (before, began) = (commits(superuser).await, Instant::now());
    for number in 0..8 {
        let name = format!("{names}-{number}");
        let made = cluster.client.command(tenant, &name, &crate::cluster::create(&name)).await.expect(201);
        let seen = join_all(tails.iter_mut().map(|tail| async {
            loop {
                let (_, event) = tail.next().await;
                if event["type"] == "record.created" && event["targets"][0]["id"] == made.text("id") {
                    return;
                }
            }
        }));
        seen.await;
    }
    let looks = u32::try_from(commits(superuser).await - before).unwrap();
    f64::from(looks) / began.elapsed().as_secs_f64()
}

/// Transactions of the database so far.
async fn commits(superuser: &mut PgConnection) -> i64 {
    superuser.ping().await.unwrap();
    let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    sqlx::query_scalar(sql).fetch_one(superuser).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_nothing_has_reached_is_refused() {
    let api = Api::start().await;
    let org = api.org("ahead").await;
    let (_, position) = api.record(&org, "one").await;
    api.sees(&org, &position).await;
    let beyond = format!("{}:999999", org.id);
    let most = format!("{}:{}", org.id, u64::MAX);
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let request = api.request(Method::GET, path).bearer_auth(&org.owner);
        Answer::of(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    };
    for beyond in [&beyond, &most] {
        for (path, headers) in [
            (org.path("events/stream"), &[("last-event-id", beyond.as_str())][..]),
            (org.path(&format!("events/stream?from={beyond}")), &[]),
            (org.path(&format!("events?from={beyond}")), &[]),
            (org.path("records"), &[("min-position", beyond.as_str())]),
            (org.path("records"), &[("min-position", beyond.as_str()), ("prefer", "wait=20")]),
            (org.path("audit/events"), &[("min-position", beyond.as_str()), ("prefer", "wait=20")]),
        ] {
            assert_eq!(ask(&path, headers).await.expect(400).problem(), "position_beyond_end", "{path} {headers:?}");
        }
    }
    for idx in ["999999", &u64::MAX.to_string()] {
        for (path, headers) in [
            (org.path("audit/stream"), &[("last-event-id", idx)][..]),
            (org.path(&format!("audit/stream?from_idx={idx}")), &[]),
            (org.path(&format!("audit/export?from_idx={idx}")), &[]),
        ] {
            assert_eq!(ask(&path, headers).await.expect(400).problem(), "position_beyond_end", "{path} {headers:?}");
        }
    }
    // Returned positions are accepted: the last event's own, and the end itself.
    ask(&org.path("records"), &[("min-position", &position), ("prefer", "wait=20")]).await.expect(200);
    let _resumed = api.tail_after(&org.owner, &org.path("events/stream"), &position).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_webhooks_delay_nobody_else() {
    /// Holds every post until it is released.
    #[derive(Clone, Default)]
    struct Slow(Arc<AtomicUsize>, Arc<Notify>);

    const SLOW: usize = 12;
    let api = Api::start().await;
    let slow = Slow::default();
    let hold = post(async |State(Slow(posts, go_on)): State<Slow>| {
        posts.fetch_add(1, Ordering::Relaxed);
        go_on.notified().await;
        StatusCode::OK
    });
    let slow_url = listen(Router::new().route("/", hold).with_state(slow.clone())).await;
    let arrived = Arc::new(Notify::new());
    let take = post(async |State(arrived): State<Arc<Notify>>| arrived.notify_one());
    let quick_url = listen(Router::new().route("/", take).with_state(Arc::clone(&arrived))).await;

    let send_to = async |slug: &str, url: &str| {
        let org = api.org(slug).await;
        let request = api.request(Method::PATCH, &org.path("settings")).bearer_auth(&org.owner);
        Answer::of(request.json(&json!({"audit_webhook": url}))).await.expect(200);
    };
    for number in 0..SLOW {
        send_to(&format!("slow-{number}"), &slow_url).await;
    }
    eventually("all slow ones to be under way at the same time", async || {
        (slow.0.load(Ordering::Relaxed) >= SLOW).then_some(())
    })
    .await;
    send_to("quick", &quick_url).await;
    timeout(PATIENCE, arrived.notified()).await.expect("the quick one is not sent to");
    slow.1.notify_waiters();
}

async fn listen(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_plain_utf_8_and_says_so() {
    let api = Api::start().await;
    let org = api.org("encodings").await;
    let send = async |headers: &[(&str, &str)]| {
        let request = api.request(Method::POST, &org.path("records")).bearer_auth(&org.owner);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Answer::of(request.body(model("x").to_string())).await
    };
    for good in ["application/json", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\""] {
        send(&[("content-type", good)]).await.expect(201);
    }
    send(&[("content-type", "application/json"), ("content-encoding", "identity")]).await.expect(201);
    for bad in [
        &[("content-type", "application/json; charset=latin1")][..],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
        &[("content-type", "application/json"), ("content-encoding", "br")],
    ] {
        assert_eq!(send(bad).await.expect(415).problem(), "unsupported_media_type", "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_says_about_itself_is_taken_at_its_word_or_refused() {
    let api = Api::start().await;
    let org = api.org("headers").await;
    let (id, position) = api.record(&org, "a").await;
    api.sees(&org, &position).await;
    let path = org.path(&format!("records/{id}"));
    for bad in ["wait=abc", "wait=-1", "wait", "respond-async, wait=1.5"] {
        let read = api.request(Method::GET, &path).bearer_auth(&org.owner).header("prefer", bad);
        assert_eq!(Answer::of(read).await.expect(400).problem(), "invalid_header", "{bad}");
    }
    for (what, status) in [
        (org.path("records?kind=a%00b"), 422),
        (org.path("audit/events?action=%00"), 422),
        (org.path("records/%00"), 422),
        ("/v1/kinds/mo%00del".to_owned(), 422),
    ] {
        let refused = api.get(&org.owner, &what).await.expect(status);
        assert_eq!(refused.json()["errors"][0]["code"], "nul_character", "{what}");
    }
    let put = async |tag: &str, name: &str| {
        let request = api.request(Method::PUT, &path).bearer_auth(&org.owner).header("if-match", tag);
        Answer::of(request.json(&json!({"data": {"name": name}}))).await
    };
    // In the forms that compressing proxies send, and as lists.
    assert_eq!(put("W/\"1\"", "b").await.expect(200).header("etag"), "\"2\"");
    assert_eq!(put("\"1\", \"2\"", "c").await.expect(200).header("etag"), "\"3\"");
    assert_eq!(put("\"3\", W/\"1\"", "d").await.expect(200).header("etag"), "\"4\"");
    for stale in ["\"1\", \"2\"", "W/\"3\"", "\"something else\""] {
        assert_eq!(put(stale, "e").await.expect(412).problem(), "version_conflict", "{stale}");
    }
    for invalid in ["1", "\"1\" \"2\"", "\"1\","] {
        assert_eq!(put(invalid, "e").await.expect(400).problem(), "invalid_header", "{invalid}");
    }
    let path = format!("/v1/organizations/{}", org.id);
    let rename_to = async |name: &str| {
        let request = api.request(Method::PATCH, &path).bearer_auth(&org.owner);
        Answer::of(request.json(&json!({"name": name}))).await
    };
    let refused = rename_to("Acme \u{202e}moc.live").await.expect(422).json();
    assert_eq!(refused["errors"][0]["code"], "control_character", "{refused}");
    rename_to("شرکت می\u{200c}خواهم").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_is_sent_small_and_what_is_told_once_is_not() {
    let api = Api::start().await;
    let org = api.org("small").await;
    let ask = |method, path: &str| api.request(method, path).bearer_auth(&org.owner).header("accept-encoding", "gzip");
    let small = ask(Method::GET, "/openapi.json").send().await.unwrap();
    assert_eq!(
        (&small.headers()["content-encoding"], &small.headers()["vary"]),
        (&"gzip".parse().unwrap(), &"accept-encoding".parse().unwrap())
    );
    let bytes = small.bytes().await.unwrap();
    let mut text = String::new();
    GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, api.get(&org.owner, "/openapi.json").await.expect(200).text);
    assert!(bytes.len() * 4 < text.len(), "{} of {}", bytes.len(), text.len());

    for number in 0..20 {
        api.record(&org, &format!("m{number}")).await;
    }
    let commands: Vec<Value> = (0..40).map(|number| create_model(&number.to_string())).collect();
    let sent = ask(Method::POST, &org.path("commands")).header("idempotency-key", "k").json(&commands).send().await;
    let sent = sent.unwrap();
    assert!(sent.status() == 200 && !sent.headers().contains_key("content-encoding"), "{sent:?}");
    let replayed = ask(Method::GET, &org.path("events")).send().await.unwrap();
    assert!(replayed.status() == 200 && !replayed.headers().contains_key("content-encoding"), "{replayed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_told_what_our_pages_may_do() {
    let api = Api::start().await;
    let page = Answer::of(api.request(Method::GET, "/docs/")).await.expect(200);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert!(
        !page.text.contains("<script>") && !page.text.contains("style=") && !page.text.contains("onload="),
        "{page:?}"
    );
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("x-frame-options"), "DENY");
    let settings = Answer::of(api.request(Method::GET, "/docs/swagger-initializer.js")).await.expect(200);
    assert!(!settings.text.contains("\"persistAuthorization\": true"), "{settings:?}");
    let other = Answer::of(api.request(Method::GET, "/healthz")).await.expect(200);
    assert_eq!(other.header("x-content-type-options"), "nosniff");
    assert_eq!(other.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_without_tls() {
    let api = Api::start().await;
    let mut stream = connect(&api.base).await;
    // The preface and empty settings, as a client with prior knowledge sends them.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.expect("no frame").unwrap();
    assert_eq!(frame[3], 4, "the first frame is no SETTINGS: {frame:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_are_not_for_everybody() {
    const TOKEN: &str = "the token of whoever collects the figures";
    let api = Api::start().await;
    let org = api.org("figures").await;
    Answer::of(api.request(Method::GET, "/metrics")).await.expect(401);
    api.get(TOKEN, "/metrics").await.expect(401);
    api.get(&org.owner, "/metrics").await.expect(403);
    api.get(OPERATOR, "/metrics").await.expect(200);
    let with_token = HttpArgs { metrics_token: Some(TOKEN.to_owned().into()), ..HttpArgs::default() };
    let base = api.another_with(with_token).await;
    assert_eq!(api.status_at(&base, TOKEN, "/metrics").await, 200);
    assert_eq!(api.status_at(&base, &TOKEN[1..], "/metrics").await, 401);
    assert_eq!(api.status_at(&base, TOKEN, "/v1/me").await, 401);
}
