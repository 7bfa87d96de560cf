//! Output of commands under failures: the reader stops, the disk is full, the shell evaluates it as settings, or Ctrl-C
//! comes before there is any output.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    cluster::{Cluster, ClusterOptions, create, eventually},
    support::{COMMIT_KEYS, TempDir},
};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orgstream"));
    command.env_remove("ORGSTREAM_API_KEY").env_remove("RUST_LOG");
    command
}

async fn ended(command: Command) -> Output {
    tokio::process::Command::from(command).kill_on_drop(true).output().await.unwrap()
}

/// Runs it with a pipe without a reader, and returns its exit code and messages.
async fn unread(mut command: Command) -> (i32, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped());
    told(command).await
}

/// Runs it with a full disk behind its output.
async fn full(mut command: Command) -> (i32, String) {
    command.stdout(fs::File::create("/dev/full").unwrap()).stderr(Stdio::piped());
    told(command).await
}

async fn told(command: Command) -> (i32, String) {
    let mut command = tokio::process::Command::from(command);
    let child = command.kill_on_drop(true).spawn().unwrap();
    drop(command);
    let output = child.wait_with_output().await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_no_further_and_a_full_disk_make_no_command_panic() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("piped").await;
    for number in 0..3 {
        cluster.client.command(&tenant, &number.to_string(), &create(format!("{number}"))).await.expect(201);
    }
    cluster.until_projected(&tenant).await;
    let (slug, id, operator) = (tenant.slug.as_str(), tenant.id.to_string(), cluster.operator());
    let file = cluster.dir().join("none.ndjson");
    fs::write(&file, "\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    let commands: [(&str, &[&str]); 14] = [
        (&tenant.key, &["lag"]),
        (&tenant.key, &["lag", "--json"]),
        (operator, &["lag", "--all"]),
        (&tenant.key, &["replay"]),
        (&tenant.key, &["replay", "--at", "2"]),
        (&tenant.key, &["usage"]),
        (&tenant.key, &["usage", "--json"]),
        (operator, &["park", "list", "--org", slug]),
        (operator, &["park", "list", "--org", slug, "--json"]),
        ("", &["rebuild", "status"]),
        ("", &["check-config"]),
        ("", &["replay", "--verify", "--org", &id]),
        ("", &["key", "pattern"]),
        (&tenant.key, &["publish", &file, "--json"]),
    ];
    for (credential, args) in commands {
        let (code, said) = unread(cluster.command(credential, args).0).await;
        assert!(code == 0 && !said.contains("panicked") && !said.contains("rror"), "{args:?}: {code} {said}");
        let (code, said) = full(cluster.command(credential, args).0).await;
        // A verdict is found, whether or not it can be printed.
        let is_verdict = args.contains(&"--verify") || args[0] == "check-config";
        assert_eq!(code, i32::from(!is_verdict), "{args:?}: {said}");
        assert!(said.contains("error: the output cannot be written: No space left"), "{args:?}: {said}");
        assert_eq!(said.matches("error:").count(), 1, "{args:?}: {said}");
    }
    // Nor is a failing standard error a reason to panic.
    let mut command = cluster.command(&tenant.key, &["replay"]).0;
    command.stderr(fs::File::create("/dev/full").unwrap());
    let output = ended_with_stderr(command).await;
    assert_eq!(output.status.code(), Some(0));
    let mut command = cluster.command("nonsense", &["lag"]).0;
    command.stderr(fs::File::create("/dev/full").unwrap());
    assert_eq!(ended_with_stderr(command).await.status.code(), Some(1));

    // A bad verdict stays bad.
    let mut database = cluster.superuser().await;
    let edit = "UPDATE rm.records SET seq = seq + 1 WHERE org_id = $1";
    crate::audit_attacks::execute(&mut database, edit, tenant.id.uuid()).await;
    let verify = ["replay", "--verify", "--org", &id];
    assert_eq!(unread(cluster.command("", &verify).0).await.0, 1);
    assert_eq!(full(cluster.command("", &verify).0).await.0, 1);
    // And an unreachable database is named.
    let url = "postgres://127.0.0.1:1/nowhere?password=hidden";
    for job in [&verify[..], &["check-config"]] {
        let said = cluster.command("", job).env("ORGSTREAM_DATABASE_URL", url).run().await.failure();
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(all.contains("postgres://127.0.0.1:1/nowhere") && !all.contains("hidden"), "{job:?}: {said:?}");
    }
    let named = cluster.owner_url.rsplit_once('/').unwrap().0.rsplit_once('@').unwrap().1;
    let missing = format!("postgres://{named}/no_such_database");
    let said = cluster.command("", &verify).env("ORGSTREAM_DATABASE_URL", &missing).run().await.failure();
    assert!(said.stderr.contains(&missing) && said.stderr.contains("no_such_database"), "{said:?}");
}

async fn ended_with_stderr(mut command: Command) -> Output {
    command.stdout(Stdio::null());
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    child.wait_with_output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_keeps_its_verdict_whoever_reads_it() {
    let dir = TempDir::new();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut made = program();
    made.args(["sign", "--keys", &at("keys"), "--new-key", "audit.test"]);
    assert!(ended(made).await.status.success());
    fs::create_dir(dir.path().join("bundle")).unwrap();
    let verify = |json: bool| {
        let mut verify = program();
        verify.args(["audit", "verify", "--bundle", &at("bundle"), "--pin", &at("keys/log.vkey")]);
        verify.args(json.then_some("--json"));
        verify
    };
    for json in [false, true] {
        assert_eq!(ended(verify(json)).await.status.code(), Some(40));
        assert_eq!(unread(verify(json)).await, (40, String::new()));
        let (code, said) = full(verify(json)).await;
        assert_eq!((code, said.contains("the output cannot be written")), (40, true), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shell_evaluates_is_whole_or_takes_the_old_settings_away() {
    let dir = TempDir::new();
    let demo = r#"{"base_url": "http://127.0.0.1:9", "nats_url": "n", "nats_access": "a", "nats_monitor_url": "m", "postgres_url": "p@q",
        "issuer_url": "i", "platform_admin_token": "t", "users": [],
        "orgs": [{"id": "org_01h455vb4pex5vsknk084sn02q", "slug": "acme", "name": "Acme", "api_key": "key-of-acme"}]}"#;
    fs::write(dir.path().join("demo.json"), demo).unwrap();
    let shell = async |org: &str, data_dir: &Path| {
        let mut shell = Command::new("sh");
        let script = "eval \"$($PROGRAM demo $DEMO_ORG 2>/dev/null)\"; echo \"$? ${ORGSTREAM_API_KEY-none} ${ORGSTREAM_URL-none}\"";
        shell.args(["-c", script]).env("PROGRAM", env!("CARGO_BIN_EXE_orgstream")).env("DEMO_ORG", org);
        shell.env("ORGSTREAM_API_KEY", "of-somebody-else").env("ORGSTREAM_URL", "elsewhere");
        shell.env("ORGSTREAM_DATA_DIR", data_dir);
        String::from_utf8(ended(shell).await.stdout).unwrap()
    };
    assert_eq!(shell("acme", dir.path()).await, "0 key-of-acme http://127.0.0.1:9\n");
    assert_eq!(shell("nosuch", dir.path()).await, "1 none none\n");
    assert_eq!(shell("acme", &dir.path().join("nowhere")).await, "1 none none\n");
    let mut said = program();
    said.args(["demo", "nosuch", "--data-dir"]).arg(dir.path());
    let said = ended(said).await;
    assert!(!said.status.success() && String::from_utf8(said.stderr).unwrap().contains("there are: acme"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_to_stop_while_it_starts_stops() {
    let dir = TempDir::new();
    let mut dev = program();
    dev.args(["dev", "--http", "127.0.0.1:0", "--data-dir"]).arg(dir.path());
    let dev =
        tokio::process::Command::from(dev).stderr(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn();
    let dev = dev.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(dev.id().unwrap()).unwrap()).unwrap();
    eventually("the start to begin", async || dir.path().join("nats").exists().then_some(())).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output =
        tokio::time::timeout(Duration::from_secs(30), dev.wait_with_output()).await.expect("it goes on").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("stopped before everything was started"), "{said}");
    assert!(!dir.path().join("demo.json").exists(), "it went on to the end");

    // A process that waits for a missing server can be stopped as well.
    for job in ["serve", "work"] {
        let mut command = program();
        command.args([job, "--http", "127.0.0.1:0"]).env("ORGSTREAM_PEPPER", "a pepper that is long enough for a test");
        command
            .env("ORGSTREAM_COMMIT_KEYS", COMMIT_KEYS)
            .env("ORGSTREAM_DATABASE_URL", "postgres://127.0.0.1:1/none")
            .env("ORGSTREAM_NATS_URL", "nats://127.0.0.1:1");
        let mut child =
            tokio::process::Command::from(command).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut log = tokio::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut log, &mut line).await.unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{job} goes on");
            sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{job}: {status} {line}");
    }
    // And an invalid address is reported before anything is started.
    let mut refused = program();
    refused.args(["dev", "--otlp-url", "nonsense", "--data-dir"]).arg(dir.path().join("other"));
    let said = ended(refused).await;
    assert!(!said.status.success() && String::from_utf8(said.stderr).unwrap().contains("--otlp-url"));
    assert!(!dir.path().join("other").exists());
}
