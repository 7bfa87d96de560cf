//! Slow, numerous or malformed requests of strangers and other tenants: they delay no other, and are accepted or
//! denied.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt, future::join_all};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::{
    api::{Answer, Api, Org, create_model, model},
    cluster::PATIENCE,
    support::connect_with,
};

/// Timeout of an answer for an unrelated client: generous for a busy machine, and far below the duration of the others'
/// requests.
const PROMPT: Duration = Duration::from_secs(3);

/// Returns an answer that was prompt.
async fn promptly<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(PROMPT, answer).await.unwrap_or_else(|_| panic!("{what}: no answer within {PROMPT:?}"))
}

/// Sends bytes, and reads the answer until the other side closes.
async fn raw(api: &Api, bytes: &str) -> String {
    let mut stream = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection to be closed");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request head that announces a large body, and a byte of it.
fn head(path: &str, bearer: Option<&str>) -> String {
    let authorization = bearer.map(|bearer| format!("authorization: Bearer {bearer}\r\n")).unwrap_or_default();
    let more = "github-public-key-identifier: x\r\ngithub-public-key-signature: x\r\n";
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}content-length: 1048576\r\n\
         {authorization}\r\n["
    )
}

/// A key without permissions.
async fn powerless(api: &Api, org: &Org) -> String {
    let issue = json!({"name": "nothing", "role": "viewer", "scopes": []});
    api.post(&org.owner, &org.path("api-keys"), &issue).await.expect(201).json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_a_body_and_sends_a_byte_takes_nobodys_room() {
    let api = Api::start().await;
    let mut heads = Vec::new();
    for number in 0..4 {
        let org = api.org(&format!("idle-{number}")).await;
        let key = powerless(&api, &org).await;
        heads.extend((0..8).map(|_| head(&org.path("commands"), Some(&key))));
    }
    let stranger = api.person("mallory@nowhere.example");
    heads.extend((0..8).map(|_| head("/v1/organizations", Some(&stranger))));
    heads.extend((0..8).map(|_| head("/v1/leaked-keys", None)));
    let org = api.org("busy").await;
    let session = api.session("somebody@else.example").await;

    let began = Instant::now();
    let mut held: Vec<_> = heads.iter().map(|head| Box::pin(raw(&api, head))).collect();
    // Until they have sent their requests.
    for held in &mut held {
        assert!(timeout(Duration::from_millis(20), held).await.is_err(), "answered before anything was sent");
    }
    let mut done = 0;
    let others = async {
        while began.elapsed() < Duration::from_secs(8) {
            let path = org.path("commands");
            promptly("a command", api.post(&org.owner, &path, &create_model("x"))).await.expect(201);
            promptly("a switch", api.switch(&session, "no-such-org")).await.expect(404);
            let accept = json!({"token": "osi_x"});
            let refused = promptly("an invitation", api.post(&session, "/v1/invitations/accept", &accept)).await;
            assert!([404, 422].contains(&refused.status), "{refused:?}");
            done += 1;
            sleep(Duration::from_millis(200)).await;
        }
    };
    let (answers, ()) = tokio::join!(join_all(held), others);
    assert!(done > 3, "{done}");
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_too_slow"), "{answer}");
    }
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
}

/// A server that listens, accepts and never answers.
async fn silence() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    url
}

/// A token that this issuer never signed.
fn claim(issuer: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": issuer, "sub": "somebody", "aud": "us", "exp": 9_999_999_999_u64});
    format!("{}.{}.AAAA", part(json!({"alg": "ES256", "kid": "k", "typ": "JWT"})), part(claims))
}

/// A producer's connection, as the key's credentials make it.
async fn producer(api: &Api, key: &str) -> async_nats::Client {
    let made = api.post(key, "/v1/nats-credentials", &Value::Null).await.expect(201).json();
    connect_with(&api.nats.url, made["credentials"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_silent_holds_up_nobody_elses_requests() {
    let api = Api::start().await;
    let (hostile, org) = (api.org("hostile").await, api.org("bystander").await);
    let mut tokens = Vec::new();
    let mut position = String::new();
    for number in 0..4 {
        let issuer = silence().await;
        let connect = json!({"name": format!("silent {number}"), "issuer": issuer, "audience": "us"});
        let made = api.post(&hostile.owner, &hostile.path("sso-connections"), &connect).await.expect(201);
        position = made.header("stream-position").to_owned();
        tokens.push(claim(&issuer));
    }
    api.sees(&hostile, &position).await;
    let key = powerless(&api, &hostile).await;
    let (_, own) = api.key(&org, "admin").await;
    let (theirs, ours) = (producer(&api, &key).await, producer(&api, &own).await);

    let by_nats = (0..900).map(|number: usize| {
        let (theirs, subject) = (theirs.clone(), format!("cmd.{}", hostile.id));
        let token = tokens[number % tokens.len()].clone();
        tokio::spawn(async move {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Authorization", format!("Bearer {token}"));
            let request = async_nats::Request::new().headers(headers).payload("{}".into()).timeout(Some(PATIENCE));
            theirs.send_request(subject, request).await
        })
    });
    let by_nats: Vec<_> = by_nats.collect();
    let by_http = (0..300).map(|number: usize| {
        let request = api.request(Method::GET, &hostile.path("records")).bearer_auth(&tokens[number % tokens.len()]);
        tokio::spawn(async move { request.send().await.map(|answer| answer.status().as_u16()) })
    });
    let by_http: Vec<_> = by_http.collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let subject = format!("cmd.{}", org.id);
        let asked = ours.request(subject, create_model("x").to_string().into());
        let answer = promptly("a command by NATS", asked).await.unwrap();
        let headers = answer.headers.unwrap();
        assert_eq!(headers.get("Orgstream-Status").unwrap().as_str(), "201", "{headers:?}");
        promptly("a read", api.get(&own, &org.path("records?limit=1"))).await.expect(200);
        sleep(Duration::from_millis(100)).await;
    }
    for asked in by_http {
        assert_eq!(timeout(PATIENCE, asked).await.unwrap().unwrap().unwrap(), 503);
    }
    for asked in by_nats {
        let answer = timeout(PATIENCE, asked).await.unwrap().unwrap().unwrap();
        let headers = answer.headers.unwrap();
        // NATS has a header of that name, which makes clients treat an answer as none.
        assert!(headers.get("Status").is_none() && answer.status.is_none(), "{headers:?}");
        assert_eq!(headers.get("Orgstream-Status").unwrap().as_str(), "503");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_by_nats_says_whose_request_it_answers() {
    let api = Api::start().await;
    let (hostile, org) = (api.org("hostile").await, api.org("bystander").await);
    let ((_, theirs), (_, own)) = (api.key(&hostile, "admin").await, api.key(&org, "admin").await);
    let credentials = api.post(&own, "/v1/nats-credentials", &Value::Null).await.expect(201).json();
    let (prefix, public_id) = (credentials["inbox_prefix"].as_str().unwrap(), &credentials["public_id"]);
    let ours = connect_with(&api.nats.url, credentials["credentials"].as_str().unwrap()).await;
    let answer = ours.request(format!("cmd.{}", org.id), create_model("x").to_string().into()).await.unwrap();
    assert_eq!(answer.headers.unwrap().get("Orgstream-Key").unwrap().as_str(), public_id);

    // nats-server lets a requester name any inbox: its reader knows by the header that the reply is not its own.
    let mut inbox = ours.subscribe(format!("{prefix}.>")).await.unwrap();
    ours.flush().await.unwrap();
    let attacker = producer(&api, &theirs).await;
    let (subject, inside) = (format!("cmd.{}", hostile.id), format!("{prefix}.injected"));
    attacker.publish_with_reply(subject, inside, create_model("x").to_string().into()).await.unwrap();
    let injected = timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
    let asked_by = injected.headers.unwrap().get("Orgstream-Key").unwrap().to_string();
    assert!(asked_by != public_id.as_str().unwrap() && theirs.contains(&asked_by), "{asked_by}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_is_kept_as_it_was_said_or_refused() {
    let api = Api::start().await;
    let org = api.org("exact").await;
    let send = async |at: &str| {
        api.post(&org.owner, &org.path("commands"), &json!({"command": create_model("x"), "occurred_at": at})).await
    };
    for (said, kept) in [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("2020-01-01t00:00:00.12z", "2020-01-01T00:00:00.120Z"),
        ("2020-01-01T00:00:00.125000+02:00", "2019-12-31T22:00:00.125Z"),
    ] {
        let made = send(said).await.expect(201).json();
        let path = org.path("audit/events?limit=1");
        let events = api.get_at(&org.owner, &path, made["position"].as_str().unwrap()).await.expect(200).json();
        assert_eq!(events["data"][0]["occurred_at"], kept, "{said}");
    }
    for refused in [
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:00",
        "2020-12-31T23:59:60Z",
        "2020-01-01T00:00:00.1234Z",
        "2020-01-01 00:00:00Z",
        "2020-01-01",
    ] {
        let problem = send(refused).await.expect(422).json();
        assert_eq!(problem["errors"][0]["pointer"], "/occurred_at", "{refused}: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_for_what_was_said_around_the_command_too() {
    let api = Api::start().await;
    let org = api.org("around").await;
    let path = org.path("commands");
    let send = async |key: &str, body: &Value| {
        let request = api.request(Method::POST, &path).bearer_auth(&org.owner).header("idempotency-key", key);
        Answer::of(request.json(body)).await
    };
    let at = |at: &str, cause: &str, belongs: &str| {
        let ids = json!({"causation_id": format!("evt_{cause}1h455vb4pex5vsknk084sn02q"),
            "correlation_id": format!("cor_{belongs}1h455vb4pex5vsknk084sn02q")});
        json!({"command": create_model("x"), "occurred_at": at, "causation_id": ids["causation_id"],
            "correlation_id": ids["correlation_id"]})
    };
    let first = at("2020-01-01T00:00:00Z", "0", "0");
    let made = send("k", &first).await.expect(201).json();
    let again = send("k", &first).await.expect(201).json();
    assert_eq!((&again["replayed"], &again["id"]), (&json!(true), &made["id"]));
    // The same time in another notation is the same.
    assert_eq!(send("k", &at("2020-01-01T01:00:00.000+01:00", "0", "0")).await.expect(201).json()["replayed"], true);
    for other in [
        at("2020-01-01T00:00:01Z", "0", "0"),
        at("2020-01-01T00:00:00Z", "1", "0"),
        at("2020-01-01T00:00:00Z", "0", "1"),
        create_model("x"),
    ] {
        assert_eq!(send("k", &other).await.expect(422).problem(), "idempotency_key_reused", "{other}");
    }
    // So it is before any of it is in a table, and in one request.
    let two = json!([
        {"command": create_model("y"), "idempotency_key": "two", "occurred_at": "2020-01-01T00:00:00Z"},
        {"command": create_model("y"), "idempotency_key": "two", "occurred_at": "2020-01-02T00:00:00Z"},
    ]);
    let outcomes = send("unused", &two).await.expect(200).json();
    assert_eq!(
        (&outcomes[0]["status"], &outcomes[1]["error"]["code"]),
        (&json!("accepted"), &json!("idempotency_key_reused"))
    );

    // A version is a condition: one request may name several, and a repetition gets the same answer.
    let (id, position) = api.record(&org, "versions").await;
    api.sees(&org, &position).await;
    let put = async || {
        let request = api.request(Method::PUT, &org.path(&format!("records/{id}"))).bearer_auth(&org.owner);
        let request = request.header("if-match", "\"7\", \"1\"").header("idempotency-key", "put");
        Answer::of(request.json(&json!({"data": {"name": "new"}}))).await
    };
    assert_eq!(put().await.expect(200).header("etag"), "\"2\"");
    assert_eq!(put().await.expect(200).header("idempotency-replayed"), "true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_has_nothing_in_it_that_nobody_sees() {
    let api = Api::start().await;
    let org = api.org("addresses").await;
    for email in
        ["ann@acme.example\u{200b}", "\u{202e}ann@acme.example", "a\u{200d}nn@acme.example", "ann@acme..example"]
    {
        for (path, body) in [
            ("members", json!({"email": email, "role": "viewer"})),
            ("invitations", json!({"email": email, "role": "viewer"})),
        ] {
            let refused = api.post(&org.owner, &org.path(path), &body).await.expect(422).json();
            assert_eq!(refused["errors"][0]["pointer"], "/email", "{path} {email:?}: {refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_says_once_whom_it_is_for() {
    let api = Api::start().await;
    for (version, hosts, status) in [
        ("1.1", "", "400"),
        ("1.1", "host: a\r\nhost: b\r\n", "400"),
        ("1.1", "host: a\r\n", "200"),
        ("1.1", "host:\r\n", "200"),
        ("1.0", "", "200"),
    ] {
        let asked = format!("GET /healthz HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
        let answer = raw(&api, &asked).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{asked:?}: {answer}");
    }
    // Two lengths of a body are the sender's mistake, or an attack: nothing more is read of that connection.
    let org = api.org("askew").await;
    let body = model("x").to_string();
    let lengths = [
        ("content-length: 5\r\n", "transfer-encoding: chunked\r\n"),
        ("transfer-encoding: chunked\r\n", "content-length: 5\r\n"),
    ];
    for (first, second) in lengths {
        let (path, owner, size) = (org.path("records"), &org.owner, body.len());
        let smuggled = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        let asked = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {owner}\r\n\
             {first}{second}\r\n{size:x}\r\n{body}\r\n0\r\n\r\n{smuggled}"
        );
        let answer = raw(&api, &asked).await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}
