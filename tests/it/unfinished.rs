//! Incomplete results, unknown outcomes, and unread output: each is reported.

use std::{process::Stdio, time::Duration};

use async_nats::{HeaderMap, client::Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use crate::{
    cluster::{Cluster, ClusterOptions, PATIENCE, create, eventually},
    parking::{Intruder, fresh_record},
    support::TempDir,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_is_interrupted_says_how_far_it_came() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("interrupted").await;
    let mut command = cluster.command(&tenant.key, &["publish", "-", "--batch", "1"]).0;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut publisher = Command::from(command).kill_on_drop(true).spawn().unwrap();
    let mut lines = publisher.stdin.take().unwrap();
    for name in ["one", "two", "three"] {
        lines.write_all(format!("{}\n", create(name.to_owned())).as_bytes()).await.unwrap();
    }
    lines.flush().await.unwrap();
    // The third waits for a fourth, or for the end of the input, which does not come.
    eventually("two records", async || {
        let answer = cluster.client.get(&tenant.key, &tenant.path("records")).await.expect(200);
        (answer.body["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    let pid = Pid::from_raw(i32::try_from(publisher.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = timeout(PATIENCE, publisher.wait_with_output()).await.expect("it ends without more input").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["2 accepted, 0 were there already, 0 refused", "interrupted", "--from 3 goes on from there"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    drop(lines);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_no_worker_comes_to_is_under_way_and_ends_with_3() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("undecided").await;
    let record = fresh_record();
    Intruder::of(&cluster).await.orphans(tenant.id, record).await;
    let path = tenant.path("parked");
    let parked = async || cluster.client.get(cluster.operator(), &path).await.expect(200).body;
    eventually("three parked messages", async || (parked().await["data"].as_array()?.len() == 3).then_some(())).await;
    cluster.workers[0].stop().await;

    let subject = format!("record.{record}");
    let retry = ["park", "retry", "--org", &tenant.slug, "--wait", "1", &subject];
    let mut command = cluster.command(cluster.operator(), &retry).0;
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("under way: no worker has come to it within 1s"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_the_log_without_its_keys_says_that_nothing_can_be_verified() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("keyless").await;
    let id = tenant.id.to_string();
    let commands: [&[&str]; 5] = [
        &["replay", "--verify", "--org", &id],
        &["check-config"],
        &["rebuild", "--all"],
        &["work"],
        &["serve", "--http", "127.0.0.1:0"],
    ];
    for args in commands {
        for given in [None, Some(""), Some("first:00")] {
            let command = cluster.command("", args).env_remove("ORGSTREAM_COMMIT_KEYS");
            let command = command.env("ORGSTREAM_PEPPER", "a pepper that is long enough for a test");
            let command = match given {
                Some(keys) => command.env("ORGSTREAM_COMMIT_KEYS", keys),
                None => command,
            };
            let said = timeout(PATIENCE, command.run()).await.expect("it goes on").failure();
            let all = format!("{}{}", said.stdout, said.stderr);
            assert!(all.contains("--commit-keys (ORGSTREAM_COMMIT_KEYS)"), "{args:?} {given:?}: {all}");
            assert!(given.is_some() || all.contains("nothing in it can be verified"), "{args:?}: {all}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_by_nats_have_the_room_of_those_by_http_and_are_told_when_there_is_none() {
    let serve = vec!["--http-body-mib".to_owned(), "1".to_owned()];
    let cluster = Cluster::start(ClusterOptions { serve, ..ClusterOptions::default() }).await;
    let (tenant, other) = (cluster.tenant("bulky").await, cluster.tenant("beside").await);
    let third = cluster.tenant("third").await;
    let nats = cluster.producer().await;
    let send = async |tenant: &crate::cluster::Tenant, name: String| {
        let mut headers = HeaderMap::new();
        headers.insert("Authorization", format!("Bearer {}", tenant.key));
        let body = serde_json::to_vec(&create(name)).unwrap();
        let request = Request::new().headers(headers).payload(body.into()).timeout(Some(PATIENCE));
        let answer = nats.send_request(format!("cmd.{}", tenant.id), request).await.unwrap();
        let status = answer.headers.as_ref().unwrap().get("Orgstream-Status").unwrap();
        let status: u16 = status.as_str().parse().unwrap();
        (status, serde_json::from_slice::<Value>(&answer.payload).unwrap())
    };
    let large = "x".repeat(600 << 10);
    assert_eq!(send(&third, "before".to_owned()).await.0, 201);
    assert_ne!(send(&third, large.clone()).await.0, 503);

    // Bodies that take nearly the whole room and never complete.
    let mut slow = Vec::new();
    for tenant in [&tenant, &other] {
        let address = cluster.client.base.strip_prefix("http://").unwrap().to_owned();
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: 1048576\r\n\r\n",
            tenant.path("commands"),
            tenant.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // A body that is not read for lack of room is not sent to its end.
        slow.push(tokio::spawn(async move {
            let _ = stream.write_all(&vec![b' '; 900 << 10]).await;
            std::future::pending::<()>().await;
        }));
    }
    let refused = eventually("no room", async || {
        let (status, answer) = send(&third, large.clone()).await;
        (status == 503).then_some(answer)
    })
    .await;
    assert_eq!((&refused["code"], &refused["retry_after_ms"]), (&json!("overloaded"), &json!(1000)));
    // A small body has room beside them, and there is room for a large one when they are gone.
    assert_eq!(send(&third, "beside".to_owned()).await.0, 201);
    for slow in slow {
        slow.abort();
    }
    eventually("room", async || (send(&third, large.clone()).await.0 != 503).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_does_not_answer_is_told_of_once_and_counted() {
    // It accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://127.0.0.1:{}/?key=hidden", silent.local_addr().unwrap().port());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            held.push(stream);
        }
    });
    let dir = TempDir::new();
    let mut dev = Command::new(env!("CARGO_BIN_EXE_orgstream"))
        .args(["dev", "--http", "127.0.0.1:0", "--otlp-url", &collector, "--data-dir"])
        .arg(dir.path())
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200")
        .env("NO_COLOR", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(dev.stderr.take().unwrap()).lines();
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Ok(Some(line)) = lines.next_line().await {
            all.push(line);
        }
        all
    });
    let demo: Value = eventually("the demo", async || {
        serde_json::from_slice(&std::fs::read(dir.path().join("demo.json")).ok()?).ok()
    })
    .await;
    let (base, key) = (demo["base_url"].as_str().unwrap(), demo["orgs"][0]["api_key"].as_str().unwrap());
    let http = reqwest::Client::new();
    let lost = async || {
        http.get(format!("{base}/v1/organizations/acme/records")).bearer_auth(key).send().await.unwrap();
        let operator = demo["platform_admin_token"].as_str().unwrap();
        let shown =
            http.get(format!("{base}/metrics")).bearer_auth(operator).send().await.unwrap().text().await.unwrap();
        let line = shown.lines().find(|line| line.starts_with("orgstream_traces_lost_total ")).unwrap().to_owned();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    // Three times at least, one after the other.
    let mut before = 0.0;
    for round in 0..3 {
        before = eventually(&format!("lost spans, round {round}"), async || {
            let now = lost().await;
            (now > before).then_some(now)
        })
        .await;
    }
    let pid = Pid::from_raw(i32::try_from(dev.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    timeout(Duration::from_secs(60), dev.wait()).await.expect("it stops").unwrap();
    let said = reading.await.unwrap();
    let told: Vec<_> = said.iter().filter(|line| line.contains("--otlp-url") || line.contains("xport")).collect();
    assert_eq!(told.len(), 1, "{said:#?}");
    assert!(told[0].contains("WARN") && !said.iter().any(|line| line.contains("hidden")), "{said:#?}");
}
