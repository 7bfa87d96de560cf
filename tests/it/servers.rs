//! Private servers: they restart with their data on their ports, and they never outlive the process that started them.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use orgstream_servers::{Nats, Postgres, PostgresOptions, ServerError, run_with_postgres};
use sqlx::{Connection, PgConnection};
use tokio::time::{sleep, timeout};

use crate::support::{TempDir, connect_as};

const FAST: PostgresOptions =
    PostgresOptions { without_fsync: true, max_connections: 20, shared_buffers_mib: 32, commit_timestamps: false };
const PATIENCE: Duration = Duration::from_mins(1);

fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.starts_with(" Z"))
}

/// Whether this process is root, by the owner of what it made.
fn is_root(made: &Path) -> bool {
    fs::metadata(made).unwrap().uid() == 0
}

async fn until_gone(pid: u32) {
    let gone = async {
        while is_running(pid) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| panic!("the process {pid} is still there"));
}

async fn execute(postgres: &Postgres, sql: &'static str) {
    let mut connection = PgConnection::connect(&postgres.superuser_url).await.unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn count(postgres: &Postgres) -> i64 {
    let mut connection = PgConnection::connect(&postgres.superuser_url).await.unwrap();
    sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await.unwrap()
}

async fn publish(nats: &Nats) -> u64 {
    let client = connect_as(&nats.url, &nats.access.admin()).await;
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config { name: "kept".to_owned(), ..Default::default() };
    jetstream.get_or_create_stream(config).await.unwrap();
    jetstream.publish("kept", "x".into()).await.unwrap().await.unwrap().sequence
}

#[tokio::test]
async fn nats_keeps_its_data_and_port_over_a_stop() {
    let dir = TempDir::new();
    let nats = Nats::start(&dir.path().join("nats"), false).await.unwrap();
    assert_eq!(publish(&nats).await, 1);
    let (url, pid) = (nats.url.clone(), nats.pid());
    nats.stop().await;
    assert!(!is_running(pid));
    let nats = Nats::start(&dir.path().join("nats"), true).await.unwrap();
    assert_eq!(nats.url, url);
    assert_eq!(publish(&nats).await, 2);
}

#[tokio::test]
async fn nats_syncs_every_write_when_asked_to() {
    for (sync_always, expected) in [(true, "\"sync_always\": true"), (false, "\"sync_interval\"")] {
        let dir = TempDir::new();
        let nats = Nats::start(&dir.path().join("nats"), sync_always).await.unwrap();
        let reply = reqwest::get(format!("{}/jsz?config=true", nats.monitor_url)).await.unwrap().text().await.unwrap();
        assert!(reply.contains(expected), "{reply}");
    }
}

#[tokio::test]
async fn nats_comes_back_after_a_kill() {
    let dir = TempDir::new();
    let mut nats = Nats::start(&dir.path().join("nats"), true).await.unwrap();
    assert_eq!(publish(&nats).await, 1);
    let (url, pid) = (nats.url.clone(), nats.pid());
    nats.kill9().await;
    assert!(!is_running(pid));
    assert!(nats.ended().is_some());
    nats.restart().await.unwrap();
    assert_eq!(nats.url, url);
    assert_eq!(publish(&nats).await, 2);
}

#[tokio::test]
async fn postgres_keeps_its_data_and_port_over_a_stop() {
    let dir = TempDir::new();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
    let (url, pid) = (postgres.superuser_url.clone(), postgres.pid());
    postgres.stop().await;
    assert!(!is_running(pid));
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    assert_eq!(postgres.superuser_url, url);
    assert_eq!(count(&postgres).await, 1);
}

#[tokio::test]
async fn postgres_comes_back_after_a_kill_in_the_middle_of_work() {
    let dir = TempDir::new();
    let mut postgres =
        Postgres::start(&dir.path().join("postgres"), PostgresOptions { without_fsync: false, ..FAST }).await.unwrap();
    execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
    let url = postgres.superuser_url.clone();
    // A busy child does not notice that its postmaster is gone.
    let busy = tokio::spawn(async move {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("SELECT count(*) FROM generate_series(1, 1000000000)").execute(&mut connection).await.map(|_| ())
    });
    let mut watcher = PgConnection::connect(&postgres.superuser_url).await.unwrap();
    let seen = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%generate_series(1, %' AND pid <> pg_backend_pid()";
    let started = async {
        while sqlx::query_scalar::<_, i64>(seen).fetch_one(&mut watcher).await.unwrap() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, started).await.unwrap();
    postgres.kill9().await;
    postgres.restart().await.unwrap();
    assert_eq!(count(&postgres).await, 1);
    assert!(busy.await.unwrap().is_err());
}

#[tokio::test]
async fn postgres_makes_databases_for_local_logins_only() {
    let dir = TempDir::new();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let url = postgres.create_database("orgstream").await.unwrap();
    assert_eq!(postgres.create_database("orgstream").await.unwrap(), url);
    PgConnection::connect(&url).await.unwrap();
    assert!(postgres.create_database("bad\"name").await.is_err());
    let (_, address) = url.split_once('@').unwrap();
    let error = PgConnection::connect(&format!("postgres://postgres:guess@{address}")).await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");
    let password = dir.path().join("postgres/password");
    assert_eq!(fs::metadata(password).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_folder_has_one_owner() {
    let dir = TempDir::new();
    let nats = Nats::start(&dir.path().join("nats"), false).await.unwrap();
    let error = Nats::start(&dir.path().join("nats"), false).await.err().unwrap();
    assert!(matches!(error, ServerError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    nats.stop().await;
    Nats::start(&dir.path().join("nats"), false).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_dropped_is_gone() {
    let dir = TempDir::new();
    let nats = Nats::start(&dir.path().join("nats"), false).await.unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let pids = [nats.pid(), postgres.pid()];
    drop((nats, postgres));
    assert!(!pids.into_iter().any(is_running));
}

#[tokio::test]
async fn data_that_is_no_cluster_fails_with_the_end_of_the_log() {
    let dir = TempDir::new();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let control = postgres.data_dir().join("global/pg_control");
    postgres.stop().await;
    fs::write(control, "nothing").unwrap();
    let error = Postgres::start(&dir.path().join("postgres"), FAST).await.err().unwrap().to_string();
    assert!(error.contains("pg_control"), "{error}");
}

#[tokio::test]
async fn a_lock_file_with_the_number_of_another_process_is_no_obstacle() {
    let dir = TempDir::new();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let lock = postgres.data_dir().join("postmaster.pid");
    postgres.stop().await;
    // A process of the same user, which is all that PostgreSQL checks.
    let mut other = Command::new("sleep");
    other.arg("600");
    if is_root(dir.path()) {
        other.uid(fs::metadata(lock.parent().unwrap()).unwrap().uid());
    }
    let mut other = other.spawn().unwrap();
    fs::write(&lock, format!("{}\n{}\n", other.id(), lock.parent().unwrap().display())).unwrap();
    let started = Postgres::start(&dir.path().join("postgres"), FAST).await;
    assert!(is_running(other.id()));
    other.kill().unwrap();
    other.wait().unwrap();
    started.unwrap();
}

#[tokio::test]
async fn data_that_the_account_cannot_reach_goes_elsewhere() {
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let home = postgres.data_dir().parent().unwrap().to_owned();
    assert_eq!(home.starts_with(dir.path()), !is_root(dir.path()));
    execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
    postgres.stop().await;
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    assert_eq!(count(&postgres).await, 1);
    // The folder is removed and made again: its data is not that of the old one.
    postgres.stop().await;
    fs::remove_dir_all(dir.path().join("postgres")).unwrap();
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    assert_eq!(postgres.data_dir().parent().unwrap(), home);
    execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
    postgres.stop_and_remove().await;
    assert!(!home.exists());
}

const PARENT_OF: &str = "ORGSTREAM_TEST_PARENT_OF";

/// The same test again as another process, which starts servers in `dir`, prints their pids and waits to be killed.
fn parent(test: &str, dir: &Path) -> (Child, Vec<u32>) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(PARENT_OF, dir).stdout(Stdio::piped());
    let mut parent = command.spawn().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.find_map(|line| line.split_once("servers: ").map(|(_, pids)| pids.to_owned())).unwrap();
    (parent, said.split(' ').map(|pid| pid.parse().unwrap()).collect())
}

fn dir_of_parent() -> Option<PathBuf> {
    env::var_os(PARENT_OF).map(PathBuf::from)
}

#[tokio::test]
async fn a_parent_that_is_killed_leaves_no_orphans() {
    if let Some(dir) = dir_of_parent() {
        let nats = Nats::start(&dir.join("nats"), false).await.unwrap();
        let postgres = Postgres::start(&dir.join("postgres"), FAST).await.unwrap();
        execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
        println!("servers: {} {}", nats.pid(), postgres.pid());
        sleep(PATIENCE).await;
    }
    let dir = TempDir::new();
    let (mut parent, pids) = parent("servers::a_parent_that_is_killed_leaves_no_orphans", dir.path());
    assert!(pids.iter().all(|pid| is_running(*pid)));
    parent.kill().unwrap();
    parent.wait().unwrap();
    for pid in pids {
        until_gone(pid).await;
    }
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    assert_eq!(count(&postgres).await, 1);
    Nats::start(&dir.path().join("nats"), false).await.unwrap();
}

#[tokio::test]
async fn servers_that_outlived_their_parent_are_ended_by_the_next_start() {
    if let Some(dir) = dir_of_parent() {
        let nats = Nats::start(&dir.join("nats"), false).await.unwrap();
        let postgres = Postgres::start(&dir.join("postgres"), FAST).await.unwrap();
        execute(&postgres, "CREATE TABLE kept AS SELECT 1").await;
        println!("servers: {} {}", nats.pid(), postgres.pid());
        sleep(PATIENCE).await;
    }
    let dir = TempDir::new();
    // Stopped, they cannot follow the kernel's signal to end gracefully; nats-server gets one that it cannot survive,
    // so for it this is the other test again.
    let (mut parent, pids) =
        parent("servers::servers_that_outlived_their_parent_are_ended_by_the_next_start", dir.path());
    let postmaster = rustix::process::Pid::from_raw(pids[1].try_into().unwrap()).unwrap();
    rustix::process::kill_process(postmaster, rustix::process::Signal::STOP).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(is_running(pids[1]));
    let continued = tokio::spawn(async move {
        sleep(Duration::from_millis(500)).await;
        let _ = rustix::process::kill_process(postmaster, rustix::process::Signal::CONT);
    });
    let postgres = Postgres::start(&dir.path().join("postgres"), FAST).await.unwrap();
    let _nats = Nats::start(&dir.path().join("nats"), false).await.unwrap();
    assert!(!pids.iter().any(|pid| is_running(*pid)));
    assert_eq!(count(&postgres).await, 1);
    continued.await.unwrap();
}

#[tokio::test]
async fn a_test_has_a_database_of_its_own() {
    let one = crate::support::database().await;
    let other = crate::support::database().await;
    assert_ne!(one.owner_url, other.owner_url);
    assert_eq!(one.db.preflight().await.unwrap(), []);
    let mut connection = PgConnection::connect(&one.app_url("app_ro")).await.unwrap();
    let user: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&mut connection).await.unwrap();
    assert_eq!(user, "app_ro");
}

#[tokio::test]
async fn a_test_can_kill_a_cluster_of_its_own() {
    let mut database = crate::support::own_database().await;
    database.postgres().kill9().await;
    database.postgres().restart().await.unwrap();
    let again = orgstream_projections::Database::connect(&database.options()).await.unwrap();
    assert_eq!(again.preflight().await.unwrap(), []);
}

#[tokio::test]
async fn a_program_runs_beside_a_cluster_and_its_status_is_handed_on() {
    let script = "case $ORGSTREAM_TEST_POSTGRES in postgres://postgres:*@127.0.0.1:*) exit 7;; esac";
    let status = run_with_postgres(&"sh".into(), &["-c".into(), script.into()]).await.unwrap();
    assert_eq!(status.code(), Some(7));
}
