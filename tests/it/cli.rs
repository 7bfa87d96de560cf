//! The client commands, as used by people and by scripts.

use std::{collections::HashSet, fs, io::Write, os::unix::fs::PermissionsExt, process::Stdio, thread, time::Duration};

use orgstream_events::Pipeline;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    cluster::{Cluster, ClusterOptions, Tenant, create, eventually},
    history::History,
    support::connect_as,
};

/// Lines of a file, each a command.
fn ndjson(commands: impl IntoIterator<Item = Value>) -> String {
    commands.into_iter().map(|command| format!("{command}\n")).collect()
}

async fn names(cluster: &Cluster, tenant: &Tenant) -> Vec<String> {
    let history = History::read(&cluster.log().await, tenant.id).await;
    history.assert_sound();
    let mut names: Vec<String> =
        history.records().into_values().map(|record| record.data["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_was_killed_goes_on_where_it_was() {
    const LINES: usize = 6_000;
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("publisher").await;
    let mut lines: Vec<String> = (0..LINES).map(|number| format!("line {number}")).collect();
    // The same line twice is two records.
    lines.extend(["line 7".to_owned(), "line 7".to_owned()]);
    let file = cluster.dir().join("commands.ndjson");
    fs::write(&file, ndjson(lines.iter().map(create))).unwrap();
    let file = file.to_str().unwrap();

    // It is given the first half and waits for more, so that it is killed in the middle however fast it is.
    let mut publisher = cluster.command(&tenant.key, &["publish", "-", "--batch", "50"]);
    publisher.0.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut publisher = publisher.0.spawn().unwrap();
    let mut input = publisher.stdin.take().unwrap();
    let half = ndjson(lines[..LINES / 2].iter().map(create));
    let writer = thread::spawn(move || {
        // Fails once the reader is killed, and keeps the pipe open until then.
        let _ = input.write_all(half.as_bytes());
        input
    });
    eventually("the publisher to be in the middle of it", async || {
        assert!(publisher.try_wait().unwrap().is_none(), "it has not had everything");
        (names(&cluster, &tenant).await.len() > 500).then_some(())
    })
    .await;
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    drop(writer.join().unwrap());
    let there = names(&cluster, &tenant).await.len();
    assert!(there < lines.len(), "{there} of {} lines", lines.len());

    let publish = ["publish", file, "--json"];
    let said = cluster.cli(&tenant.key, &publish).await.success().json();
    let number = |said: &Value, name: &str| usize::try_from(said[name].as_u64().unwrap()).unwrap();
    let (accepted, replayed) = (number(&said, "accepted"), number(&said, "replayed"));
    // The killed publisher's last request may have continued after it.
    assert!(replayed >= there && accepted > 0 && accepted + replayed == lines.len(), "{there} were there; {said}");
    lines.sort();
    assert_eq!(names(&cluster, &tenant).await, lines);
    // Once more, and from standard input, in other batches: nothing changes.
    let said = cluster.cli(&tenant.key, &["publish", file, "--json", "--batch", "77"]).await.success().json();
    assert_eq!((number(&said, "accepted"), number(&said, "replayed")), (0, lines.len()));
    let mut piped = cluster.command(&tenant.key, &["publish", "-", "--json"]);
    piped.0.stdin(fs::File::open(file).unwrap());
    let said = piped.run().await.success();
    assert_eq!(said.stdout.lines().count(), 1);
    assert_eq!((number(&said.json(), "accepted"), number(&said.json(), "refused")), (0, 0));
    assert_eq!(names(&cluster, &tenant).await, lines);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_outlives_the_api_and_names_the_lines_that_are_refused() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client.expect_trouble();
    let tenant = cluster.tenant("patient").await;
    let file = cluster.dir().join("commands.ndjson");
    let bad = json!({"type": "create_record", "kind": "model", "data": {}});
    let commands = (0..3_000).map(|number| if number == 1_234 { bad.clone() } else { create(number.to_string()) });
    fs::write(&file, ndjson(commands)).unwrap();
    let args = ["publish", file.to_str().unwrap(), "--batch", "20", "--json"];
    let publisher = tokio::spawn(cluster.command(&tenant.key, &args).run());
    for _ in 0..3 {
        let before = names(&cluster, &tenant).await.len();
        eventually("the publisher to go on", async || {
            (publisher.is_finished() || names(&cluster, &tenant).await.len() > before).then_some(())
        })
        .await;
        cluster.api.kill9();
        cluster.api.start();
    }
    let said = publisher.await.unwrap().failure();
    let totals = said.json();
    assert_eq!((&totals["refused"], said.stdout.lines().count()), (&json!(1), 1), "{said:?}");
    assert!(said.stderr.contains("line 1235: ") && said.stderr.contains("validation_error"), "{said:?}");
    assert_eq!(names(&cluster, &tenant).await.len(), 2_999);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_the_audit_log_line_by_line() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, other) = (cluster.tenant("replayed").await, cluster.tenant("other").await);
    let many: Vec<Value> = (0..700).map(|number| create(number.to_string())).collect();
    let made = cluster.client.command(&tenant, "many", &many.into()).await.expect(200);
    cluster.client.command(&other, "x", &create("not to be seen")).await.expect(201);
    let middle = made.body[349]["position"].as_str().unwrap().to_owned();
    // Without waiting: what was acknowledged is in the output.
    let said = cluster.cli(&tenant.key, &["replay"]).await.success();
    let lines: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();

    let mut audited: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = cluster.client.get(&tenant.key, &tenant.path(&format!("audit/events?limit=100{cursor}"))).await;
        let page = page.expect(200).body;
        audited.extend(page["data"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    audited.reverse();
    assert_eq!(lines.len(), 703);
    assert_eq!(lines, audited);
    let history = History::read(&cluster.log().await, tenant.id).await;
    let ids: Vec<String> = history.events().map(|(.., event)| event.header.event_id.to_string()).collect();
    assert_eq!(lines.iter().map(|line| line["event_id"].as_str().unwrap()).collect::<Vec<_>>(), ids);

    // From a position on, by id or slug; and the platform's operator is denied.
    let said = cluster.cli(&tenant.key, &["replay", "--org", &tenant.slug, "--from", &middle]).await.success();
    let rest: Vec<Value> = said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let place = lines.iter().position(|line| line["position"] == middle).unwrap();
    assert_eq!(rest, lines[place + 1..]);
    let said = cluster.cli(cluster.operator(), &["replay", "--org", &tenant.slug]).await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("not_found"), "{said:?}");
    let said = cluster.cli(&other.key, &["replay", "--org", &tenant.slug]).await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("not_found"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_config_finds_what_is_unsafe_and_changes_nothing() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let said = cluster.cli("", &["check-config"]).await.success();
    let found: Vec<Vec<&str>> = said.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(found, [["NATS", "ok"], ["PostgreSQL", "ok"], ["history", "ok"]]);

    let finds = async |variables: &[(&str, &str)], words: &[&str]| {
        let mut command = cluster.command("", &["check-config"]);
        for (name, value) in variables {
            command = command.env(name, value);
        }
        let said = command.run().await.failure();
        for word in words {
            assert!(said.stdout.contains(word), "{word}: {said:?}");
        }
        assert!(said.stderr.contains("found"), "{said:?}");
        said
    };
    // A superuser could read the rows of all orgs, so it is no login for the program.
    let (_, password) = cluster.owner_url.split_once("//postgres:").unwrap();
    let (password, _) = password.split_once('@').unwrap();
    let variables = [("ORGSTREAM_DATABASE_URL", &*cluster.owner_url), ("ORGSTREAM_DATABASE_PASSWORD", password)];
    let said = finds(&variables, &["PostgreSQL", "row-level security", "leave the user out"]).await;
    assert!(!said.stdout.contains(password) && !said.stderr.contains(password), "{said:?}");
    // A database without the program's tables.
    let mut connection = PgConnection::connect(&cluster.owner_url).await.unwrap();
    sqlx::raw_sql("CREATE DATABASE empty").execute(&mut connection).await.unwrap();
    let (server, _) = cluster.owner_url.rsplit_once('/').unwrap();
    let (_, address) = server.rsplit_once('@').unwrap();
    let empty = format!("postgres://{address}/empty");
    finds(&[("ORGSTREAM_DATABASE_URL", &empty)], &["PostgreSQL", "orgstream migrate"]).await;
    let mut inside = PgConnection::connect(&format!("{server}/empty")).await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')";
    let tables: i64 = sqlx::query_scalar(AssertSqlSafe(tables)).fetch_one(&mut inside).await.unwrap();
    assert_eq!(tables, 0);
    // A search target that does not answer, a file that is none, and a target that organizations are in and that is not named.
    let targets = cluster.dir().join("targets.json");
    let named = |text: String| {
        fs::write(&targets, text).unwrap();
        targets.to_str().unwrap().to_owned()
    };
    let away = json!({"targets": {"far": {"type": "opensearch", "url": "http://127.0.0.1:1"}}});
    finds(&[("ORGSTREAM_SEARCH_TARGETS", &named(away.to_string()))], &["search", "far"]).await;
    finds(&[("ORGSTREAM_SEARCH_TARGETS", &named("{".to_owned()))], &["search", "line 1"]).await;
    let place = "INSERT INTO ops.search_indexes (org, version, target) VALUES ('00000000-0000-0000-0000-000000000001', 1, 'gone')";
    let mut owner = cluster.superuser().await;
    sqlx::raw_sql(place).execute(&mut owner).await.unwrap();
    finds(&[], &["search", "target gone", "not name: 1"]).await;
    sqlx::raw_sql("DELETE FROM ops.search_indexes").execute(&mut owner).await.unwrap();
    // A server that acknowledges before it syncs.
    let lazy = orgstream_servers::Nats::start(&cluster.dir().join("lazy"), false).await.unwrap();
    let creds = lazy.access.serve().to_str().unwrap().to_owned();
    let producers = lazy.access.producers().to_str().unwrap().to_owned();
    let lazily = [
        ("ORGSTREAM_NATS_URL", &*lazy.url),
        ("ORGSTREAM_NATS_MONITOR_URL", &*lazy.monitor_url),
        ("ORGSTREAM_NATS_CREDS", &*creds),
        ("ORGSTREAM_NATS_PRODUCERS", &*producers),
    ];
    finds(&lazily, &["NATS", "sync_interval: always"]).await;
    let streams = async_nats::jetstream::new(connect_as(&lazy.url, &lazy.access.admin()).await);
    assert!(streams.get_stream("EV_0").await.is_err(), "looking has made a stream");
    // No server at all.
    let variables = [
        ("ORGSTREAM_NATS_URL", "nats://127.0.0.1:1"),
        ("ORGSTREAM_NATS_MONITOR_URL", "http://127.0.0.1:1"),
        ("ORGSTREAM_DATABASE_URL", "postgres://127.0.0.1:1/none"),
    ];
    let said = finds(&variables, &["NATS", "PostgreSQL"]).await;
    assert!(said.stderr.contains("2 problems"), "{said:?}");
    // `serve` and `work` refuse to start on the findings of `check-config`, with the same words.
    for job in ["serve", "work"] {
        let mut command = cluster.command("", &[job, "--http", "127.0.0.1:0"]);
        command = command.env("ORGSTREAM_PEPPER", "a pepper that is long enough for a test");
        for (name, value) in lazily {
            command = command.env(name, value);
        }
        let said = command.run().await.failure();
        assert!(said.stderr.contains("sync_interval: always"), "{job}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_command_says_what_it_lacks_and_keeps_its_output_clean() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("scripted").await;
    cluster.client.command(&tenant, "one", &create("one")).await.expect(201);
    cluster.until_projected(&tenant).await;
    // Without a key, with an invalid one, and without a server.
    let said = cluster.command("", &["lag"]).env_remove("ORGSTREAM_API_KEY").run().await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("ORGSTREAM_API_KEY"), "{said:?}");
    assert!(said.stderr.contains("orgstream demo"), "where to get one: {said:?}");
    let said = cluster.cli("os_live_nonsense", &["lag"]).await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("ORGSTREAM_API_KEY"), "{said:?}");
    let said = cluster.command(&tenant.key, &["lag"]).env("ORGSTREAM_URL", "http://127.0.0.1:1").run().await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("is it running?"), "{said:?}");
    for said in [&said.stderr, &cluster.cli(&tenant.key, &["lag", "--org", "nobody"]).await.failure().stderr] {
        assert!(!said.contains(&tenant.key), "no key is printed");
    }

    // A script's input is on standard output, all of it and nothing else.
    let lag = cluster.cli(&tenant.key, &["lag", "--json"]).await.success();
    let pipelines: HashSet<String> =
        lag.json()["data"].as_array().unwrap().iter().map(|row| row["pipeline"].to_string()).collect();
    assert_eq!(pipelines.len(), Pipeline::ALL.len());
    assert_eq!(lag.stderr, "");
    let all = cluster.cli(cluster.operator(), &["lag", "--all", "--json"]).await.success();
    assert_eq!(all.json()["shards"].as_array().unwrap().len(), usize::from(cluster.options.shards));
    let parked = cluster.cli(cluster.operator(), &["park", "list", "--org", &tenant.slug, "--json"]).await.success();
    assert_eq!(parked.json()["data"], json!([]));
    let table = cluster.cli(&tenant.key, &["lag"]).await.success();
    assert!(Pipeline::NAMES.iter().all(|name| table.stdout.contains(name)), "{table:?}");

    let file = cluster.dir().join("one.ndjson");
    fs::write(&file, ndjson([create("two")])).unwrap();
    let said = cluster.cli(&tenant.key, &["publish", file.to_str().unwrap()]).await.success();
    assert_eq!((said.stdout.as_str(), said.stderr.contains("1 accepted")), ("", true), "{said:?}");
    let said = cluster.cli(&tenant.key, &["replay"]).await.success();
    assert!(said.stdout.lines().all(|line| line.starts_with('{')), "{said:?}");
    assert!(said.stderr.contains(&format!("{} events", said.stdout.lines().count())), "{said:?}");
    let said = cluster.cli(&tenant.key, &["publish", "/no/such/file"]).await.failure();
    assert!(said.stdout.is_empty() && said.stderr.contains("/no/such/file"), "{said:?}");

    // Rebuilding needs no key, because it needs the servers themselves.
    let id = tenant.id.to_string();
    let said = tokio::time::timeout(Duration::from_secs(30), cluster.cli("", &["rebuild", "--org", &id])).await;
    let said = said.unwrap().success();
    assert_eq!(said.stdout, "", "{said:?}");
    let history = History::read(&cluster.log().await, tenant.id).await;
    history.assert_projected(&mut cluster.superuser().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_signs_in_once_and_the_other_commands_are_theirs() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (tenant, email) = (cluster.tenant("terminal").await, "owner@terminal.example");
    let config = cluster.dir().join("config");
    let run = async |args: &[&str]| {
        let mut command = cluster.command("", args);
        command.0.env("XDG_CONFIG_HOME", &config);
        command.run().await
    };
    let refused = run(&["session", "show"]).await.failure();
    assert!(refused.stderr.contains("orgstream login"), "{}", refused.stderr);
    run(&["login"]).await.failure();
    let signed_in = run(&["login", "--email", email, "--issuer", cluster.issuer.url()]).await.success();
    assert!(signed_in.stderr.contains("acting in personal-"), "{}", signed_in.stderr);
    let file = config.join("orgstream/session.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let session = run(&["session", "show"]).await.success().json();
    assert_eq!((&session["current"], &session["epoch"]), (&json!(true), &json!(1)));

    let switched = run(&["session", "switch", "terminal"]).await.success();
    assert!(switched.stderr.contains("acts in terminal now (epoch 2)"), "{}", switched.stderr);
    let shown = run(&["session", "show"]).await.success().json();
    assert_eq!(shown["active_org"]["org_id"], tenant.id.to_string());
    // A command that names no organization applies to the one that the session acts in.
    let lag = run(&["lag", "--json"]).await.success().json();
    assert!(lag["data"][0]["head"].as_str().unwrap().starts_with(&tenant.id.to_string()), "{lag}");
    let listed = run(&["session", "list", "--json"]).await.success().json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    // By the environment, with no file.
    let stored: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let mut other = cluster.command("", &["session", "show"]);
    other.0.env("XDG_CONFIG_HOME", cluster.dir()).env("ORGSTREAM_SESSION", stored["token"].as_str().unwrap());
    assert_eq!(other.run().await.success().json()["id"], session["id"]);

    run(&["session", "revoke"]).await.success();
    assert!(!file.exists());
    run(&["session", "show"]).await.failure();
}
