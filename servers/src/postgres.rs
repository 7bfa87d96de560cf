//! A private PostgreSQL cluster: one superuser with a generated password, reachable from this machine only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use orgstream_events::{Cause, Chain, cause};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    ServerError,
    account::Account,
    folder::{Folder, create, write_private},
    process::{Server, Spec, all_gone, end_leftovers, working_in},
    tools::{self, PostgresTools},
};

const NAME: &str = "PostgreSQL";
const PROGRAM: &str = "postgres";
const SUPERUSER: &str = "postgres";
/// Timeout of a start: after a crash it replays its log before it answers.
const READY_TIME: Duration = Duration::from_mins(3);
const STOP_TIME: Duration = Duration::from_secs(30);
const ABORT_TIME: Duration = Duration::from_secs(10);
const TRIES: usize = 4;
/// The folders of the data when the account that PostgreSQL runs as cannot reach the intended folder.
const ELSEWHERE: [&str; 2] = ["/var/lib/orgstream", "/var/tmp/orgstream"];

/// The options of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct PostgresOptions {
    /// Never wait for the disk. A crash of the machine destroys the data, one of the program does not: for tests only.
    pub without_fsync: bool,
    /// Concurrent connections.
    pub max_connections: u16,
    /// Pages kept in memory, in MiB.
    pub shared_buffers_mib: u32,
    /// Keep the time of every commit, which shows when a row became visible.
    pub commit_timestamps: bool,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { without_fsync: false, max_connections: 100, shared_buffers_mib: 128, commit_timestamps: false }
    }
}

/// A running cluster, stopped when dropped.
pub struct Postgres {
    /// The URL of the database `postgres` for the superuser, including the password.
    pub superuser_url: String,
    /// The address it listens on.
    pub host: &'static str,
    /// The port, the same at every start unless another process has taken it.
    pub port: u16,
    password: String,
    data: PathBuf,
    elsewhere: bool,
    account: Option<Account>,
    tools: PostgresTools,
    options: PostgresOptions,
    server: Server,
    // Last, so that the folder is free only when the server is gone.
    folder: Folder,
}

impl Postgres {
    /// Starts a cluster that keeps everything in `dir`, which is its own, and makes it first if there is none; returns
    /// when it answers a query.
    ///
    /// When this process is root it runs as `postgres` or `nobody`. If that account cannot reach `dir`, the data is
    /// elsewhere: [`Postgres::data_dir`] returns the place, and it is logged.
    pub async fn start(dir: &Path, options: PostgresOptions) -> Result<Self, ServerError> {
        let account = Account::unprivileged()?;
        let folder = Folder::take(dir)?;
        let (home, elsewhere) = home(&folder, account.as_ref()).await?;
        let data = home.join("data");
        let tools = tools::postgres(version_of(&data)).await?;
        if let Some(account) = &account
            && !account.reaches(&tools.postgres)
        {
            let problem = format!(
                "the user {} cannot run this program, and PostgreSQL does not run as root: install PostgreSQL where every \
                 user can reach it, or run orgstream as an ordinary user",
                account.name
            );
            return Err(ServerError::Folder { path: tools.postgres, problem });
        }
        end_earlier(&folder, &data).await?;
        let password = match fs::read_to_string(folder.join("password")) {
            Ok(password) => password,
            Err(_) if data.exists() => {
                let problem = format!(
                    "the superuser's password is missing, but {} has data: bring the file back, or remove both to begin anew",
                    data.display()
                );
                return Err(ServerError::Folder { path: folder.join("password"), problem });
            }
            Err(_) => {
                let password = generated_password();
                folder.write("password", password.as_bytes())?;
                password
            }
        };
        if !data.exists() {
            initialize(&folder, &home, &tools, account.as_ref(), &password, options).await?;
        }
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let [port] = folder.ports()?;
            let superuser_url = url(&password, port, "postgres");
            match launch(&folder, &data, &tools, account.as_ref(), options, port, &superuser_url).await {
                Ok(server) => {
                    let host = "127.0.0.1";
                    return Ok(Self {
                        superuser_url,
                        host,
                        port,
                        password,
                        data,
                        elsewhere,
                        account,
                        tools,
                        options,
                        server,
                        folder,
                    });
                }
                Err(error) if tries_left == 0 || !lost_the_port(&error) => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Returns the exit status, if it ended without being stopped.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.server.ended()
    }

    /// The folder of the data.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The URL of another database of the cluster, as the superuser.
    pub fn url(&self, database: &str) -> String {
        url(&self.password, self.port, database)
    }

    /// Creates a database and returns its URL, as the superuser. An existing one stays unchanged.
    pub async fn create_database(&self, name: &str) -> Result<String, ServerError> {
        create_database(&self.superuser_url, name).await?;
        Ok(self.url(name))
    }

    /// Stops it gracefully: connections are ended, everything is on disk.
    pub async fn stop(mut self) {
        self.halt().await;
    }

    /// Stops it and removes the data, wherever that is.
    pub async fn stop_and_remove(mut self) {
        self.halt().await;
        let _ = fs::remove_dir_all(&self.data);
        if self.elsewhere
            && let Some(home) = self.data.parent()
        {
            let _ = fs::remove_dir_all(home);
        }
        let _ = fs::remove_dir_all(self.folder.path());
    }

    /// Kills it as a crash would, and returns when the postmaster and all its children are gone.
    pub async fn kill9(&mut self) {
        self.server.kill().await;
        // The children notice that their postmaster is gone; a new one refuses to start before the last of them is.
        all_gone(&self.data, PROGRAM, Duration::from_secs(2)).await;
    }

    /// Restarts it with the same data on the same port; a running one is stopped first.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.halt().await;
        let (account, port) = (self.account.as_ref(), self.port);
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let launched =
                launch(&self.folder, &self.data, &self.tools, account, self.options, port, &self.superuser_url);
            match launched.await {
                Ok(server) => {
                    self.server = server;
                    return Ok(());
                }
                Err(error) if tries_left == 0 || !lost_the_port(&error) => return Err(error),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn halt(&mut self) {
        self.server.stop(STOP_TIME).await;
        all_gone(&self.data, PROGRAM, ABORT_TIME).await;
    }
}

/// Creates a database in the cluster of `superuser_url`, unless it exists.
pub(super) async fn create_database(superuser_url: &str, name: &str) -> Result<(), ServerError> {
    let plain = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !plain {
        let problem = "a database is named with 1 to 63 of a-z, 0-9 and _".to_owned();
        return Err(ServerError::Folder { path: name.into(), problem });
    }
    let mut connection = PgConnection::connect(superuser_url).await?;
    let created = sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).execute(&mut connection).await;
    connection.close().await?;
    match created {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P04") => Ok(()),
        other => other.map(|_| ()).map_err(ServerError::from),
    }
}

fn url(password: &str, port: u16, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}")
}

/// 32 letters and digits, so that it needs no quoting anywhere.
fn generated_password() -> String {
    const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letter = || LETTERS.get(rand::random_range(0..LETTERS.len())).copied().map_or('0', char::from);
    std::iter::repeat_with(letter).take(32).collect()
}

/// The major version that wrote the data, if there is data.
fn version_of(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// Returns the folder of the data, reachable for the account, and whether it differs from the intended one.
///
/// The choice was made and stored at the first start, so that data is never searched in two places.
async fn home(folder: &Folder, account: Option<&Account>) -> Result<(PathBuf, bool), ServerError> {
    let decided = folder.join("location");
    if let Ok(place) = fs::read_to_string(&decided) {
        let place = PathBuf::from(place.trim_end_matches('\n'));
        let elsewhere = place != folder.path();
        if elsewhere {
            create(&place, 0o711)?;
        }
        return Ok((place, elsewhere));
    }
    let Some(account) = account.filter(|account| !account.reaches(folder.path())) else {
        return Ok((folder.path().to_owned(), false));
    };
    for base in ELSEWHERE.map(Path::new) {
        if create(base, 0o711).is_err() || !is_ours_alone(base) || !account.reaches(base) {
            continue;
        }
        let place = base.join(name_of(folder.path()));
        // A data directory that was removed and made again at the same path: this is data of the old one.
        all_gone(&place.join("data"), PROGRAM, Duration::ZERO).await;
        let _ = fs::remove_dir_all(&place);
        create(&place, 0o711)?;
        write_private(&decided, format!("{}\n", place.display()).as_bytes())?;
        tracing::info!(
            meant = %folder.path().display(), used = %place.display(), user = account.name,
            "PostgreSQL's user cannot reach its folder, so its data goes elsewhere"
        );
        return Ok((place, true));
    }
    let problem =
        format!("the user {} cannot reach it; make every folder above it enterable (chmod o+x)", account.name);
    Err(ServerError::Folder { path: folder.path().to_owned(), problem })
}

/// Whether only root can write to a folder. In /var/tmp any user could have made it before.
fn is_ours_alone(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
}

/// A name for a path: short and unique.
fn name_of(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let hash = orgstream_events::Fingerprint::of(&[path.as_os_str().as_bytes()]).to_string();
    hash.chars().take(20).collect()
}

/// Ends the remains of an earlier run in the folder, so that no lock of PostgreSQL has to be removed by hand.
async fn end_earlier(folder: &Folder, data: &Path) -> Result<(), ServerError> {
    end_leftovers(&folder.join("children.json"), Signal::INT, STOP_TIME).await?;
    // The folder is locked, so any process still working in it is a leftover, even if it was not recorded.
    for pid in working_in(data, PROGRAM) {
        let _ = rustix::process::kill_process(pid, Signal::INT);
    }
    all_gone(data, PROGRAM, ABORT_TIME).await;
    // PostgreSQL clears its own lock file unless the number in it belongs to any process. By now it cannot be one of
    // its own.
    let lock = data.join("postmaster.pid");
    if let Ok(text) = fs::read_to_string(&lock)
        && let Some(pid) = text.lines().next().and_then(|pid| pid.trim().parse::<u32>().ok())
        && Path::new(&format!("/proc/{pid}")).exists()
    {
        fs::remove_file(&lock).map_err(ServerError::io(format!("remove {}", lock.display())))?;
    }
    Ok(())
}

/// Makes the cluster beside its place and moves it there when it is complete, so that a crash leaves none or all of it.
async fn initialize(
    folder: &Folder,
    home: &Path,
    tools: &PostgresTools,
    account: Option<&Account>,
    password: &str,
    options: PostgresOptions,
) -> Result<(), ServerError> {
    let (draft, secret) = (home.join("data.new"), home.join("password.new"));
    let _ = fs::remove_dir_all(&draft);
    create(&draft, 0o700)?;
    write_private(&secret, password.as_bytes())?;
    if let Some(account) = account {
        account.own(&draft)?;
        account.own(&secret)?;
    }
    let log = folder.join("initdb.log");
    let mut result = Ok(());
    // The second one is for machines without the first.
    for locale in ["--locale=C.UTF-8", "--no-locale"] {
        let output = fs::File::create(&log).map_err(ServerError::io(format!("write {}", log.display())))?;
        let errors = output.try_clone().map_err(ServerError::io("share the log"))?;
        let mut initdb = tokio::process::Command::new(&tools.initdb);
        initdb.arg("--pgdata").arg(&draft).arg("--pwfile").arg(&secret);
        initdb.args(["--username", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8", locale]);
        if options.without_fsync {
            initdb.arg("--no-sync");
        }
        initdb.current_dir("/").stdin(Stdio::null()).stdout(output).stderr(errors).kill_on_drop(true);
        if let Some(account) = account {
            initdb.uid(account.uid).gid(account.gid);
        }
        let status = initdb.status().await.map_err(ServerError::io(format!("run {}", tools.initdb.display())))?;
        if status.success() {
            result = Ok(());
            break;
        }
        result = Err(ServerError::not_ready(NAME, format!("initdb ended with {status}"), &log));
    }
    let _ = fs::remove_file(&secret);
    result?;
    let data = home.join("data");
    fs::rename(&draft, &data).map_err(ServerError::io(format!("create {}", data.display())))
}

fn lost_the_port(error: &ServerError) -> bool {
    matches!(error, ServerError::NotReady { tail, .. } if tail.contains("Address already in use"))
}

async fn launch(
    folder: &Folder,
    data: &Path,
    tools: &PostgresTools,
    account: Option<&Account>,
    options: PostgresOptions,
    port: u16,
    superuser_url: &str,
) -> Result<Server, ServerError> {
    let (log, children) = (folder.join("postgres.log"), folder.join("children.json"));
    let mut args = vec!["-D".to_owned(), data.to_string_lossy().into_owned()];
    for setting in settings(options, port) {
        args.extend(["-c".to_owned(), setting]);
    }
    let spec = Spec {
        name: NAME,
        program: &tools.postgres,
        args,
        log: &log,
        children: &children,
        account,
        // Fast: connections are ended, and the data is complete on disk.
        stop: Signal::INT,
        on_our_death: "INT",
        abort: Signal::QUIT,
    };
    let mut server = Server::spawn(spec).await?;
    let deadline = Instant::now() + READY_TIME;
    loop {
        if let Some(status) = server.ended() {
            return Err(ServerError::not_ready(NAME, format!("it ended with {status}"), &log));
        }
        match answers(superuser_url).await.map_err(|error| Chain(&error).to_string()) {
            Ok(()) => return Ok(server),
            Err(reason) if Instant::now() > deadline => {
                server.stop(STOP_TIME).await;
                let reason = format!("after {} s, {reason}", READY_TIME.as_secs());
                return Err(ServerError::not_ready(NAME, reason, &log));
            }
            // It is up and rejects the login, and will continue to.
            Err(reason) if reason.contains("password authentication failed") => {
                server.stop(STOP_TIME).await;
                let reason = format!("{reason}: is the password file that of another cluster?");
                return Err(ServerError::not_ready(NAME, reason, &log));
            }
            Err(_) => sleep(Duration::from_millis(25)).await,
        }
    }
}

/// Sizes for a small machine with other work to do. On the command line, so that a newer version of this program needs
/// no file of an older one changed.
fn settings(options: PostgresOptions, port: u16) -> Vec<String> {
    let mut settings = vec![
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        // No socket file: nothing to collide, nothing to leave behind, no path that can be too long for one.
        "unix_socket_directories=".to_owned(),
        format!("max_connections={}", options.max_connections),
        format!("shared_buffers={}MB", options.shared_buffers_mib),
        "effective_cache_size=512MB".to_owned(),
        // A private server has no replicas, so the log contains only what crash recovery needs.
        "wal_level=minimal".to_owned(),
        "max_wal_senders=0".to_owned(),
        "wal_buffers=16MB".to_owned(),
        "max_wal_size=2GB".to_owned(),
        "checkpoint_timeout=15min".to_owned(),
        "random_page_cost=1.1".to_owned(),
        // Compiling costs more than it gains for statements of a few milliseconds.
        "jit=off".to_owned(),
        "log_checkpoints=off".to_owned(),
        "log_line_prefix=%m [%p] %q%u@%d ".to_owned(),
        // A failing statement is logged without its parameters.
        "log_parameter_max_length_on_error=0".to_owned(),
    ];
    if options.without_fsync {
        // Commits are still handed to the kernel, so that a killed process loses nothing.
        settings.push("fsync=off".to_owned());
    }
    if options.commit_timestamps {
        settings.push("track_commit_timestamp=on".to_owned());
    }
    settings
}

/// Whether it answers a query.
async fn answers(superuser_url: &str) -> Result<(), Cause> {
    let query = async {
        let mut connection = PgConnection::connect(superuser_url).await?;
        sqlx::raw_sql("SELECT 1").execute(&mut connection).await?;
        connection.close().await
    };
    timeout(Duration::from_secs(5), query).await.map_err(|_| cause("it does not answer"))?.map_err(cause)
}
