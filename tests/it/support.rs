//! Real servers for tests: a private nats-server each, and a fresh database each. All of it is gone when dropped.

use std::{
    env,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use orgstream_events::CommitKeys;
use orgstream_projections::{Database, DatabaseOptions, Passwords, migrate};
use orgstream_servers::{Postgres, PostgresOptions, TEST_POSTGRES};
use orgstream_stream::broker::AccessFiles;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

/// The roles are the cluster's, so all tests that share one must agree.
pub(crate) const APP_PASSWORD: &str = "the password of the tests";

/// The commit keys of the tests, in the program's setting.
pub(crate) const COMMIT_KEYS: &str = "tests:0707070707070707070707070707070707070707070707070707070707070707";

/// The same keys for what a test opens itself.
pub(crate) fn commit_keys() -> Arc<CommitKeys> {
    Arc::new(COMMIT_KEYS.parse().unwrap())
}

/// A folder that is removed when dropped.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        Self::within(&env::temp_dir())
    }

    pub(crate) fn within(folder: &Path) -> Self {
        let path = folder.join(format!("orgstream-test-{}", unique()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the first value of `look`, which must come within the second that the product promises: for revocations,
/// removals and changes, counted from their answer.
pub(crate) async fn within_a_second<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        let asked = began.elapsed();
        if let Some(seen) = look().await {
            return seen;
        }
        // The last request that was sent in time may be answered late.
        assert!(asked < Duration::from_secs(1), "{what}: not so after {asked:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Unique among the running tests: of this process, and of others.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}_{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection as the user of these credentials.
pub(crate) async fn connect_as(url: &str, creds: &Path) -> Client {
    connect_with(url, &fs::read_to_string(creds).unwrap()).await
}

/// A connection by the text of a credentials file. Its inbox is the one in its tags.
pub(crate) async fn connect_with(url: &str, creds: &str) -> Client {
    let options = ConnectOptions::with_credentials(creds).unwrap();
    options.custom_inbox_prefix(inbox(creds)).connect(url).await.unwrap()
}

/// The inbox of the user of these credentials.
pub(crate) fn inbox(creds: &str) -> String {
    let tags = claims(creds)["nats"]["tags"].take();
    let found = tags.as_array().into_iter().flatten().find_map(|tag| tag.as_str()?.strip_prefix("inbox:"));
    found.unwrap_or("_INBOX").to_owned()
}

/// The claims of the token in credentials.
pub(crate) fn claims(creds: &str) -> Value {
    let jwt = creds.lines().find(|line| line.starts_with("eyJ")).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// A producer that may send to every organization: no credentials made by the program allow that, and a test with
/// several organizations needs it. Only the producers' account's own key, which is kept offline, can sign that.
pub(crate) async fn any_producer(url: &str, access: &AccessFiles) -> Client {
    let keys: Value = serde_json::from_slice(&fs::read(access.offline()).unwrap()).unwrap();
    let permissions = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "tags": ["inbox:_INBOX_any"], "pub": {"allow": ["cmd.>"]}, "sub": {"allow": ["_INBOX_any.>"]}});
    connect_with(url, &minted(keys["producers"].as_str().unwrap(), "any", &permissions)).await
}

/// Credentials signed by the key with this seed.
pub(crate) fn minted(seed: &str, name: &str, nats: &Value) -> String {
    let (issuer, user) = (KeyPair::from_seed(seed).unwrap(), KeyPair::new_user());
    let claims = json!({"jti": name, "iat": 1, "iss": issuer.public_key(), "sub": user.public_key(), "name": name, "nats": nats});
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", part(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#), part(&claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!(
        "-----BEGIN NATS USER JWT-----\n{signed}.{signature}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    )
}

/// A nats-server of this test alone.
pub(crate) struct Nats {
    pub(crate) url: String,
    pub(crate) monitor_url: String,
    pub(crate) access: AccessFiles,
    server: orgstream_servers::Nats,
    dir: TempDir,
}

impl Nats {
    pub(crate) async fn start(sync_always: bool) -> Self {
        let dir = TempDir::new();
        let server = orgstream_servers::Nats::start(dir.path(), sync_always).await.unwrap();
        let (url, monitor_url, access) = (server.url.clone(), server.monitor_url.clone(), server.access.clone());
        Self { url, monitor_url, access, server, dir }
    }

    /// The folder that it keeps everything in.
    pub(crate) fn store(&self) -> &Path {
        self.dir.path()
    }

    /// Kills it as a crash would.
    pub(crate) async fn kill9(&mut self) {
        self.server.kill9().await;
    }

    /// Restarts it, on the same ports with the same data.
    pub(crate) async fn restart(&mut self) {
        self.server.restart().await.unwrap();
    }
}

/// A migrated database of this test alone.
pub(crate) struct TestDatabase {
    /// The program's handle.
    pub(crate) db: Database,
    /// The URL for the login that migrates.
    pub(crate) owner_url: String,
    options: DatabaseOptions,
    // Last, so that the database is dropped when it is no longer used.
    place: Place,
}

struct Place {
    name: String,
    superuser_url: String,
    own: Option<(Postgres, TempDir)>,
}

impl TestDatabase {
    /// The URL for one of the program's roles, for checks that need raw SQL.
    pub(crate) fn app_url(&self, role: impl Display) -> String {
        self.options.url.replace("://", &format!("://{role}:{}@", APP_PASSWORD.replace(' ', "%20")))
    }

    /// The program's options for it.
    pub(crate) fn options(&self) -> DatabaseOptions {
        self.options.clone()
    }

    /// The cluster, when it is this test's own; see [`own_database`].
    pub(crate) fn postgres(&mut self) -> &mut Postgres {
        &mut self.place.own.as_mut().expect("a cluster of one's own: use own_database").0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.own.is_some() {
            return;
        }
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let url = self.superuser_url.clone();
        // The runtime of the test may be at its end, so the last statement has one of its own.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&url).await?;
                sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
                connection.close().await
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("the database {} stays behind: {error}", self.name);
        }
    }
}

/// A fresh database, in the cluster that `./check` started if it did, else in one of its own.
pub(crate) async fn database() -> TestDatabase {
    match env::var(TEST_POSTGRES) {
        Ok(superuser_url) => fresh(superuser_url, None).await,
        Err(_) => own_database().await,
    }
}

/// A fresh database in a cluster that the test may kill.
pub(crate) async fn own_database() -> TestDatabase {
    let dir = TempDir::new();
    let options = PostgresOptions { without_fsync: true, ..PostgresOptions::default() };
    let postgres = Postgres::start(dir.path(), options).await.unwrap();
    fresh(postgres.superuser_url.clone(), Some((postgres, dir))).await
}

async fn fresh(superuser_url: String, own: Option<(Postgres, TempDir)>) -> TestDatabase {
    let name = format!("test_{}", unique());
    let mut connection = PgConnection::connect(&superuser_url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let (server, _) = superuser_url.rsplit_once('/').unwrap();
    let owner_url = format!("{server}/{name}");
    let (_, address) = server.rsplit_once('@').unwrap();
    let url = format!("postgres://{address}/{name}");
    let place = Place { name, superuser_url, own };
    migrate(&owner_url, Some(APP_PASSWORD)).await.unwrap();
    let options = DatabaseOptions {
        url,
        passwords: Passwords::new(Some(APP_PASSWORD.to_owned()), []),
        rw_connections: 8,
        ro_connections: 8,
    };
    let db = Database::connect(&options).await.unwrap();
    TestDatabase { db, owner_url, options, place }
}
