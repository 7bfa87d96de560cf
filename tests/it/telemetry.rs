//! Traces, from the caller to the projection commit, as a collector receives them; and the content of `/metrics`.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::State, routing::post};
use serde_json::json;
use tokio::{net::TcpListener, process::Command, sync::Mutex, time::timeout};

use crate::support::TempDir;

type Received = Arc<Mutex<Vec<u8>>>;

async fn collect(State(received): State<Received>, body: Bytes) {
    received.lock().await.extend_from_slice(&body);
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Spans are protobuf, which contains names and trace ids verbatim.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_reaches_from_the_caller_to_the_projection() {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Without a path it is a collector's address, and the path is the standard one.
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/traces", post(collect)).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, app).await });

    let dir = TempDir::new();
    let mut dev = Command::new(env!("CARGO_BIN_EXE_orgstream"))
        .args(["dev", "--http", "127.0.0.1:0", "--otlp-url", &collector, "--data-dir"])
        .arg(dir.path())
        // Ten spans a second need not wait for a full batch.
        .env("OTEL_BSP_SCHEDULE_DELAY", "200")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let demo = timeout(Duration::from_secs(60), async {
        loop {
            if let Ok(text) = std::fs::read(dir.path().join("demo.json")) {
                return serde_json::from_slice::<serde_json::Value>(&text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let demo = demo.await.expect("orgstream dev is ready within a minute");

    let (base, key) = (demo["base_url"].as_str().unwrap(), demo["orgs"][0]["api_key"].as_str().unwrap());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let answer = reqwest::Client::new()
        .post(format!("{base}/v1/organizations/acme/commands"))
        .bearer_auth(key)
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .json(&json!({"type": "create_record", "kind": "model", "data": {"name": "traced"}}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);

    let id: Vec<u8> =
        (0..trace.len()).step_by(2).map(|at| u8::from_str_radix(&trace[at..at + 2], 16).unwrap()).collect();
    let seen = timeout(Duration::from_secs(60), async {
        loop {
            let bytes = received.lock().await.clone();
            if contains(&bytes, &id) && contains(&bytes, b"project") && contains(&bytes, b"read_models") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(seen.await.is_ok(), "the collector never got the projection's span of this trace");

    let secrets = std::fs::read(dir.path().join("secrets.json")).unwrap();
    let secrets: serde_json::Value = serde_json::from_slice(&secrets).unwrap();
    let token = secrets["platform_token"].as_str().unwrap();
    // Some metrics are updated once a second.
    let wanted = [
        "orgstream_append_seconds",
        "orgstream_projection_lag_seconds",
        "orgstream_org_lag_seconds",
        "orgstream_worst_org_lag_seconds",
        "orgstream_lanes",
        "orgstream_batch_seconds",
        "orgstream_stage_seconds",
        "orgstream_orgs",
        "orgstream_orgs_stalled",
    ];
    let shown = timeout(Duration::from_secs(30), async {
        loop {
            let asked = reqwest::Client::new().get(format!("{base}/metrics")).bearer_auth(token).send().await;
            let metrics = asked.unwrap().text().await.unwrap();
            let missing: Vec<_> = wanted.iter().filter(|name| !metrics.contains(*name)).collect();
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(shown.await.is_ok(), "/metrics does not show all of {wanted:?}");
    dev.start_kill().unwrap();
    dev.wait().await.unwrap();
}
