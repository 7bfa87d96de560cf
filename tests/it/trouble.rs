//! Trouble of the database, and messages of no org: nothing is skipped for it, no event is blamed, nothing busy-loops.

use async_nats::jetstream;
use orgstream::app::problem::Problem;
use orgstream_events::{Chain, OrgId, Pipeline, Shard, UserId};
use orgstream_projections::{
    BoundOrg, Database, DatabaseOptions, Passwords, checkpoints, identity::SignIn, migrate_with, parked,
};
use orgstream_stream::{Log, LogOptions, Placement, SyncMode};
use orgstream_workers::{Worker, WorkerOptions, WorkerStatus};
use reqwest::Method;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    cluster::{Answer, Cluster, ClusterOptions, PATIENCE, eventually},
    parking::{Intruder, commit, created, fresh_record, goes_on, parked as parked_rows, until_parked},
    support::{Nats, TestDatabase, commit_keys, connect_as, database, own_database},
};

/// A worker of this process, with servers of its own.
pub(crate) struct Rig {
    nats: Nats,
    pub(crate) database: TestDatabase,
    log: Log,
    options: WorkerOptions,
    status: watch::Receiver<WorkerStatus>,
    stop: CancellationToken,
    worker: JoinHandle<()>,
}

fn begin(
    log: &Log,
    database: &TestDatabase,
    options: &WorkerOptions,
) -> (watch::Receiver<WorkerStatus>, CancellationToken, JoinHandle<()>) {
    let worker = Worker::new(log.clone(), database.db.clone(), options.clone());
    let (status, stop) = (worker.status(), CancellationToken::new());
    (status, stop.clone(), tokio::spawn(worker.run(stop)))
}

impl Rig {
    pub(crate) async fn start(database: TestDatabase, change: impl FnOnce(&mut WorkerOptions)) -> Self {
        let nats = Nats::start(false).await;
        let options = LogOptions::new(&nats.url, commit_keys());
        let options = LogOptions { creds: Some(nats.access.admin()), shards: 2, sync: SyncMode::Relaxed, ..options };
        let log = Log::connect(&options).await.unwrap();
        log.ensure_streams().await.unwrap();
        let mut options = WorkerOptions::new(Uuid::now_v7());
        change(&mut options);
        let (status, stop, worker) = begin(&log, &database, &options);
        Self { nats, database, log, options, status, stop, worker }
    }

    pub(crate) async fn stop_worker(&mut self) {
        self.stop.cancel();
        timeout(PATIENCE, &mut self.worker).await.expect("the worker to stop").unwrap();
    }

    /// Starts another worker, after the last was stopped.
    pub(crate) fn start_worker(&mut self) {
        self.options.id = Uuid::now_v7();
        (self.status, self.stop, self.worker) = begin(&self.log, &self.database, &self.options);
    }

    pub(crate) async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.database.owner_url).await.unwrap()
    }

    pub(crate) async fn place(&self) -> Placement {
        self.log.place(OrgId::from_uuid(Uuid::now_v7())).await.unwrap()
    }

    /// A new record of the organization.
    pub(crate) async fn write(&self, org: &Placement) -> u64 {
        let commit = commit(org.org, fresh_record(), 0, vec![created("written")]);
        self.log.append(org, &commit, 0, None).await.unwrap().seq
    }

    pub(crate) async fn until_applied(&self, org: &Placement) {
        let last = self.log.head(org).await.unwrap();
        eventually("all pipelines to be done", async || {
            let mut tx = self.database.db.read(BoundOrg::named_by_operator(org.org)).await.ok()?;
            for pipeline in Pipeline::ALL {
                if checkpoints::position(&mut tx, pipeline).await.ok()? < last {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    async fn parked(&self, org: &Placement) -> usize {
        let mut tx = self.database.db.read(BoundOrg::named_by_operator(org.org)).await.unwrap();
        parked::list(&mut tx, None, 1_000).await.unwrap().len()
    }

    /// Asserts that everything was applied, nothing parked, and the audit log is in the order of the stream.
    pub(crate) async fn assert_whole(&self, org: &Placement, messages: usize) {
        self.until_applied(org).await;
        assert_eq!(self.parked(org).await, 0);
        let mut superuser = self.superuser().await;
        let audited = "SELECT seq FROM audit.events WHERE org_id = $1 ORDER BY idx";
        let audited: Vec<i64> =
            sqlx::query_scalar(audited).bind(org.org.uuid()).fetch_all(&mut superuser).await.unwrap();
        assert!(audited.is_sorted() && audited.len() == messages, "{audited:?}");
        let rows = "SELECT count(*) FROM rm.records WHERE org_id = $1";
        let rows: i64 = sqlx::query_scalar(rows).bind(org.org.uuid()).fetch_one(&mut superuser).await.unwrap();
        assert_eq!(rows, i64::try_from(messages).unwrap());
    }

    async fn until_in_trouble(&mut self) -> String {
        let status = timeout(PATIENCE, self.status.wait_for(|status| status.database.is_some())).await;
        status.expect("the worker to say so").unwrap().database.clone().unwrap()
    }

    async fn until_out_of_trouble(&mut self) {
        let status = timeout(PATIENCE, self.status.wait_for(|status| status.database.is_none())).await;
        status.expect("the worker to say so").unwrap();
    }

    pub(crate) async fn end(mut self) {
        self.stop_worker().await;
    }
}

/// Transactions of this database that were rolled back, as the server counts them.
async fn undone(superuser: &mut PgConnection) -> i64 {
    let undone = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    sqlx::query_scalar(undone).fetch_one(superuser).await.unwrap()
}

pub(crate) async fn run(superuser: &mut PgConnection, statements: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(statements.into())).execute(superuser).await.unwrap();
}

/// Lets every organization write while the database is in the state made by `begins`, until so many transactions failed
/// that a guilty event would have been parked, and repairs it by `ends`.
async fn assert_nobody_is_blamed(mut rig: Rig, everywhere: bool, begins: &[&str], ends: &[&str]) {
    let mut orgs = Vec::new();
    for _ in 0..6 {
        orgs.push(rig.place().await);
    }
    for org in &orgs {
        rig.write(org).await;
        rig.until_applied(org).await;
    }
    let mut superuser = rig.superuser().await;
    let before = undone(&mut superuser).await;
    for statement in begins {
        run(&mut superuser, *statement).await;
    }
    for org in &orgs {
        rig.write(org).await;
    }
    if everywhere {
        rig.until_in_trouble().await;
    }
    // Each of them has failed often enough to be parked, if it were the cause.
    let failed = eventually("the transactions to fail again and again", async || {
        let failed = undone(&mut superuser).await - before;
        (failed >= 12).then_some(failed)
    })
    .await;
    for org in &orgs {
        rig.write(org).await;
    }
    for statement in ends {
        run(&mut superuser, *statement).await;
    }
    for org in &orgs {
        rig.assert_whole(org, 3).await;
    }
    rig.until_out_of_trouble().await;
    let failed = undone(&mut superuser).await - before - failed;
    assert!(failed < 500, "{failed} transactions failed");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_no_writes_for_a_while_has_nothing_parked() {
    let rig = Rig::start(own_database().await, |_| {}).await;
    // As after a failover: existing connections find a server that accepts no writes.
    let begins = ["ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"];
    let ends = ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"];
    assert_nobody_is_blamed(rig, true, &begins, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_away_for_a_while_has_nothing_parked() {
    let rig = Rig::start(own_database().await, |_| {}).await;
    let begins = ["ALTER TABLE rm.records RENAME TO records_that_are_away"];
    // The audit log continues meanwhile.
    assert_nobody_is_blamed(rig, false, &begins, &["ALTER TABLE rm.records_that_are_away RENAME TO records"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_is_away_for_a_while_has_nothing_parked() {
    let rig = Rig::start(own_database().await, |_| {}).await;
    let begins = [
        "ALTER FUNCTION ops.open_batch RENAME TO open_batch_that_is_away",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app_rw'",
    ];
    let ends = ["ALTER FUNCTION ops.open_batch_that_is_away RENAME TO open_batch"];
    assert_nobody_is_blamed(rig, true, &begins, &ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_for_a_while_has_nothing_parked() {
    let rig = Rig::start(own_database().await, |_| {}).await;
    let begins = ["REVOKE INSERT ON rm.records, audit.events FROM app_rw"];
    assert_nobody_is_blamed(rig, true, &begins, &["GRANT INSERT ON rm.records, audit.events TO app_rw"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_in_while_nothing_can_be_written_is_told_to_come_again() {
    let database = own_database().await;
    let mut superuser = PgConnection::connect(&database.owner_url).await.unwrap();
    database.db.check_writable().await.unwrap();
    run(
        &mut superuser,
        "ALTER ROLE app_identity SET default_transaction_read_only = on;
        ALTER ROLE app_rw SET default_transaction_read_only = on;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'app\\_%'",
    )
    .await;
    let user = UserId::from_login("https://issuer.example", "somebody");
    let (issuer, subject) = ("https://issuer.example", "somebody");
    let sign_in = SignIn { user, issuer, subject, email: None, email_verified: false };
    let problem = Problem::from(database.db.note_sign_in(&sign_in).await.unwrap_err());
    assert_eq!((problem.status, problem.code), (503, "unavailable"));
    // A connection that was just ended may be tried first.
    crate::cluster::eventually("it to be said that nothing can be written", async || {
        let said = Chain(&database.db.check_writable().await.unwrap_err()).to_string();
        said.contains("takes no writes").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_one_login_opens_no_other() {
    let database = own_database().await;
    let own = |names: &[&str]| -> Vec<_> {
        names.iter().map(|login| format!("{login}=the secret of {login}").parse().unwrap()).collect()
    };
    let all = Passwords::new(None, own(&["app_rw", "app_ro", "app_public", "app_audit", "app_sign", "app_identity"]));
    migrate_with(&database.owner_url, &all).await.unwrap();
    let user = UserId::from_login("https://issuer.example", "somebody");
    let org = BoundOrg::named_by_operator(OrgId::from_uuid(Uuid::now_v7()));
    let told = DatabaseOptions { passwords: Passwords::new(None, own(&["app_rw", "app_ro"])), ..database.options() };
    let db = Database::connect(&told).await.unwrap();
    db.read(org).await.unwrap();
    db.leases().await.unwrap();
    db.personal_org(user).await.unwrap_err();
    db.read_published().await.unwrap_err();
    let told = DatabaseOptions { passwords: all, ..database.options() };
    let db = Database::connect(&told).await.unwrap();
    assert_eq!(db.personal_org(user).await.unwrap(), None);
    db.read_published().await.unwrap();
    let shared = Passwords::new(Some("the secret of app_rw".to_owned()), []);
    Database::connect(&DatabaseOptions { passwords: shared, ..database.options() }).await.unwrap_err();
}

/// Publishes a byte where the program would publish nothing.
async fn publish(rig: &Rig, subject: String) -> u64 {
    let jetstream = jetstream::new(connect_as(&rig.nats.url, &rig.nats.access.admin()).await);
    jetstream.publish(subject, "x".into()).await.unwrap().await.unwrap().sequence
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_in_a_shard_where_its_organization_does_not_live_is_told_of_once_and_begins_nothing() {
    let rig = Rig::start(database().await, |_| {}).await;
    let (org, unapplied) = (rig.place().await, rig.place().await);
    rig.write(&org).await;
    rig.until_applied(&org).await;
    let mut found = Vec::new();
    // One that has a checkpoint, one that has none yet, one that does not exist, and none at all.
    for (shard, whose) in [
        (1 - org.shard.0, org.org.to_string()),
        (1 - unapplied.shard.0, unapplied.org.to_string()),
        (0, OrgId::from_uuid(Uuid::now_v7()).to_string()),
        (1, "nobody".to_owned()),
    ] {
        for aggregate in ["record.x", "organization.y"] {
            let subject = format!("ev.{shard}.{whose}.{aggregate}");
            found.push((Shard(shard), publish(&rig, subject.clone()).await, subject));
        }
    }
    found.sort();
    eventually("all of them to be told of", async || {
        let strays = rig.database.db.strays(20).await.unwrap();
        let mut told: Vec<_> = strays.into_iter().map(|found| found.stray).collect();
        told.sort_by_key(|stray| (stray.shard, stray.seq));
        let told: Vec<_> = told.into_iter().map(|stray| (stray.shard, stray.seq, stray.subject)).collect();
        (told == found).then_some(())
    })
    .await;
    // They delay no org, and do not count as the beginning of any.
    for org in [&org, &unapplied] {
        rig.write(org).await;
    }
    rig.assert_whole(&org, 2).await;
    rig.assert_whole(&unapplied, 1).await;
    for shard in [Shard(0), Shard(1)] {
        let end = rig.log.shard_end(shard).await.unwrap();
        eventually("the mark to pass them", async || {
            (rig.database.db.low_watermark(shard).await.unwrap().seq == end).then_some(())
        })
        .await;
    }
    let mut superuser = rig.superuser().await;
    let strange =
        "SELECT count(*) FROM ops.checkpoints WHERE (org_id = $1 AND shard <> $2) OR (org_id = $3 AND shard <> $4)";
    let strange: i64 = sqlx::query_scalar(strange)
        .bind(org.org.uuid())
        .bind(i32::from(org.shard.0))
        .bind(unapplied.org.uuid())
        .bind(i32::from(unapplied.shard.0))
        .fetch_one(&mut superuser)
        .await
        .unwrap();
    assert_eq!(strange, 0);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_far_behind_passes_over_nothing_that_it_does_not_know_the_owner_of() {
    const MESSAGES: usize = 600;
    let mut rig = Rig::start(database().await, |options| options.far_behind = 100).await;
    timeout(PATIENCE, rig.status.wait_for(|status| status.started)).await.unwrap().unwrap();
    rig.stop_worker().await;
    // Its creation was not read by any worker: it has none.
    let org = rig.place().await;
    for _ in 0..MESSAGES {
        rig.write(&org).await;
    }
    rig.start_worker();
    rig.assert_whole(&org, MESSAGES).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_read_can_be_given_up_and_does_not_keep_anybody_from_rebuilding() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let tenant = cluster.tenant("unreadable").await;
    let intruder = Intruder::of(&cluster).await;
    let aggregates = ["record.bad", "spaceship", "record.a.b"];
    let mut seqs = Vec::new();
    for aggregate in aggregates {
        seqs.push(intruder.publish(tenant.id, aggregate, 0, b"x".to_vec()).await);
    }
    let rows = until_parked(&cluster, &tenant, Pipeline::ALL.len() * seqs.len()).await;
    let named: Vec<&str> = rows.iter().filter_map(|row| row["aggregate"].as_str()).collect();
    assert_eq!(named, Pipeline::ALL.map(|_| aggregates).concat());
    let operator = cluster.operator();
    let id = tenant.id.to_string();
    let said = cluster.cli("", &["rebuild", "--org", &id]).await.failure();
    assert!(said.stderr.contains("parked"), "{said:?}");

    // A read that requires one of them gets an error, and another one is informed of what it lacks.
    for path in ["records", "audit/events"] {
        let position = format!("{}:{}", tenant.id, seqs[1]);
        let request = cluster.client.request(Method::GET, &tenant.path(path), &tenant.key);
        let refused = Answer::of(request.header("Min-Position", &position)).await.unwrap().expect(409);
        assert_eq!(refused.body["code"], "event_parked");
        let read = cluster.client.get(&tenant.key, &tenant.path(path)).await.expect(200);
        assert_eq!(read.headers["projection-parked"], format!("{}:{}", tenant.id, seqs[0]));
    }
    let progress = cluster.client.get(&tenant.key, &tenant.path("projections")).await.expect(200).body;
    for pipeline in progress["data"].as_array().unwrap() {
        let without: Vec<_> = pipeline["without"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["position"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(without, seqs.iter().map(|seq| format!("{}:{seq}", tenant.id)).collect::<Vec<_>>());
    }
    // The last of them is the head of the stream, and a full read still completes.
    let said = cluster.cli(&tenant.key, &["replay"]).await.success();
    assert!(said.stderr.contains("could not be applied"), "{said:?}");

    for (aggregate, seq) in aggregates.iter().zip(&seqs) {
        for pipeline in Pipeline::NAMES {
            let (seq, org) = (seq.to_string(), tenant.slug.as_str());
            let retry = ["park", "retry", "--org", org, "--pipeline", pipeline, aggregate];
            let said = cluster.cli(operator, &retry).await.failure();
            assert!(said.stderr.contains("still parked"), "{said:?}");
            let skip = ["park", "skip", "--org", org, "--pipeline", pipeline, "--seq", &seq, "--reason", "not ours"];
            cluster.cli(operator, &[&skip[..], &[aggregate]].concat()).await.success();
        }
    }
    until_parked(&cluster, &tenant, 0).await;
    goes_on(&cluster, &tenant, "afterwards").await;
    cluster.cli("", &["rebuild", "--org", &id]).await.success();
    goes_on(&cluster, &tenant, "rebuilt").await;
    assert!(parked_rows(&cluster, &tenant).await.is_empty());
    let read = cluster.client.get(&tenant.key, &tenant.path("records")).await.expect(200);
    assert!(!read.headers.contains_key("projection-parked"), "{read:?}");
}
