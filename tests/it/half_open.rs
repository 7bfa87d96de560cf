//! Dead database connections without a report, and poolers that drop session settings: simulated by a proxy that
//! behaves as such networks and poolers do.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use futures_util::future::join_all;
use orgstream_events::{OrgId, UserId};
use orgstream_projections::{BoundOrg, Database, DatabaseOptions, identity::SignIn};
use orgstream_servers::stable_listener;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Duration, timeout},
};
use uuid::Uuid;

use crate::{
    cluster::{PATIENCE, eventually},
    support::{APP_PASSWORD, TempDir, TestDatabase, database},
    trouble::Rig,
};

/// A route to a database that can be blocked.
struct Proxy {
    port: u16,
    /// Counts how often it was blocked: earlier connections stay open, and no data passes.
    blocked: Arc<watch::Sender<u64>>,
}

impl Proxy {
    /// `without_options` removes the settings of sessions, as PgBouncer with `ignore_startup_parameters = options`.
    async fn before(database: &TestDatabase, without_options: bool) -> (Self, DatabaseOptions) {
        let options = database.options();
        let (_, rest) = options.url.split_once("://").unwrap();
        let (address, path) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let blocked = Arc::new(watch::Sender::new(0));
        let (address, blocking) = (address.to_owned(), Arc::clone(&blocked));
        let url = format!("postgres://127.0.0.1:{port}/{path}");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (address, mut blocked) = (address.clone(), blocking.subscribe());
                tokio::spawn(async move {
                    let mut client = client;
                    let mut server = TcpStream::connect(address).await.unwrap();
                    let open = async {
                        if without_options {
                            pass_beginning(&mut client, &mut server).await?;
                        }
                        copy_bidirectional(&mut client, &mut server).await
                    };
                    tokio::select! {
                        _ = open => {}
                        // Neither closed nor read from again.
                        _ = blocked.changed() => std::future::pending().await,
                    }
                });
            }
        });
        (Self { port, blocked }, DatabaseOptions { url, ..options })
    }

    fn block(&self) {
        self.blocked.send_modify(|count| *count += 1);
    }
}

/// Forwards the first messages of a session, without the settings in them.
async fn pass_beginning(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<()> {
    const TLS: u32 = 80_877_103;
    loop {
        let length = client.read_u32().await?;
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        client.read_exact(&mut body).await?;
        if body[..4] == TLS.to_be_bytes() {
            client.write_all(b"N").await?;
            continue;
        }
        let texts: Vec<&[u8]> = body[4..].split(|byte| *byte == 0).take_while(|text| !text.is_empty()).collect();
        let mut kept = body[..4].to_vec();
        for pair in texts.chunks(2).filter(|pair| pair[0] != b"options") {
            for text in pair {
                kept.extend([text, &b"\0"[..]].concat());
            }
        }
        kept.push(0);
        server.write_u32(u32::try_from(kept.len() + 4).unwrap()).await?;
        return server.write_all(&kept).await;
    }
}

async fn sign_in(db: &Database) -> bool {
    let user = UserId::from_login("https://issuer.example", "somebody");
    let sign_in =
        SignIn { user, issuer: "https://issuer.example", subject: "somebody", email: None, email_verified: false };
    db.note_sign_in(&sign_in).await.is_ok()
}

/// Whether every kind of query gets an answer, several at a time.
async fn all_answer(db: &Database) -> bool {
    let org = BoundOrg::named_by_operator(OrgId::from_uuid(Uuid::now_v7()));
    let ask = async || {
        let user = UserId::from_login("https://issuer.example", "nobody");
        db.read(org).await.is_ok()
            && db.orgs_of_user(user).await.is_ok()
            && db.leases().await.is_ok()
            && sign_in(db).await
    };
    join_all((0..4).map(|_| ask())).await.into_iter().all(|answered| answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_lead_nowhere_are_replaced_in_every_pool() {
    let database = database().await;
    let (proxy, options) = Proxy::before(&database, false).await;
    let db = Database::connect(&options).await.unwrap();
    assert!(all_answer(&db).await);
    for _ in 0..2 {
        proxy.block();
        eventually("every pool to answer again", async || all_answer(&db).await.then_some(())).await;
    }
    db.close().await;
    assert!(proxy.port > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_connections_lead_nowhere_goes_on_with_others() {
    let mut database = database().await;
    let (proxy, options) = Proxy::before(&database, false).await;
    database.db = Database::connect(&options).await.unwrap();
    let rig = Rig::start(database, |options| options.message_timeout = Duration::from_secs(2)).await;
    let org = rig.place().await;
    rig.write(&org).await;
    rig.until_applied(&org).await;
    proxy.block();
    rig.write(&org).await;
    // Running work is given up, and so are leases and low watermarks; all of it is resumed on other connections.
    timeout(2 * PATIENCE, rig.assert_whole(&org, 2)).await.unwrap();
    rig.write(&org).await;
    rig.assert_whole(&org, 3).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_drops_the_settings_of_sessions_is_found_out() {
    let database = database().await;
    assert_eq!(database.db.preflight().await.unwrap(), []);
    let (_, options) = Proxy::before(&database, true).await;
    let db = Database::connect(&options).await.unwrap();
    let findings = db.preflight().await.unwrap();
    for (login, setting) in [
        ("app_rw", "lock_timeout is 0 and not 3s"),
        ("app_ro", "statement_timeout is 0 and not 10s"),
        ("app_public", "statement_timeout is 0 and not 10s"),
        ("app_identity", "statement_timeout is 0 and not 10s"),
    ] {
        let found = findings.iter().find(|found| found.what.contains(login) && found.what.contains(setting));
        assert!(found.is_some_and(|found| found.fix.contains("pool_mode = session")), "{findings:#?}");
    }
    db.close().await;
}

/// PgBouncer before a database, in a mode of its own.
struct Pooler {
    child: Child,
    options: DatabaseOptions,
    _dir: TempDir,
}

impl Pooler {
    /// None where it is not installed.
    async fn before(database: &TestDatabase, mode: &str) -> Option<Self> {
        const PROGRAM: &str = "/usr/sbin/pgbouncer";
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        let options = database.options();
        let (_, rest) = options.url.split_once("://").unwrap();
        let (address, name) = rest.split_once('/').unwrap();
        let (host, server_port) = address.rsplit_once(':').unwrap();
        let dir = TempDir::new();
        let port = stable_listener(dir.path()).unwrap().local_addr().unwrap().port();
        let password = APP_PASSWORD;
        let users: String = ["app_rw", "app_ro", "app_public", "app_identity"]
            .iter()
            .map(|user| format!("\"{user}\" \"{password}\"\n"))
            .collect();
        let path = |file: &str| dir.path().join(file).display().to_string();
        let settings = format!(
            "[databases]\n{name} = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = scram-sha-256\nauth_file = {}\nunix_socket_dir =\nlogfile = {}\npool_mode = {mode}\n\
             ignore_startup_parameters = options, extra_float_digits\n",
            path("users"),
            path("log"),
        );
        fs::write(path("users"), users).unwrap();
        fs::write(path("settings"), settings).unwrap();
        fs::write(path("log"), "").unwrap();
        let mut command = Command::new(PROGRAM);
        if rustix::process::getuid().is_root() {
            // It does not run as root.
            for file in ["", "users", "settings", "log"] {
                let owned = Command::new("chown").args(["nobody", &path(file)]).status().unwrap();
                assert!(owned.success());
            }
            command.args(["--user", "nobody"]);
        }
        let child = command.arg(path("settings")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let options = DatabaseOptions { url: format!("postgres://127.0.0.1:{port}/{name}"), ..options };
        eventually("the pooler to listen", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        Some(Self { child, options, _dir: dir })
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_is_told_how_it_has_to_be() {
    let database = database().await;
    for (mode, expected) in
        [("transaction", "lends this connection another session"), ("session", "lacks what was set")]
    {
        let Some(pooler) = Pooler::before(&database, mode).await else {
            eprintln!("there is no pgbouncer here; the proxy of the other test drops the same settings");
            return;
        };
        let db = Database::connect(&pooler.options).await.unwrap();
        let findings = db.preflight().await.unwrap();
        assert!(findings.iter().any(|found| found.what.contains(expected)), "{mode}: {findings:#?}");
        db.close().await;
    }
}
