//! The database alone isolates orgs: the limits of the program's logins with arbitrary SQL.
//!
//! The tables are read from the catalogue, so a new table is tested the day it appears.

use std::{collections::BTreeSet, time::Duration};

use orgstream_events::{KeyId, Pipeline, Timestamp};
use orgstream_projections::{
    BatchClass, Comparison, Database, DatabaseOptions, Page, Passwords, READ_MODELS,
    audit::SigningDatabase,
    checkpoints,
    key_uses::{self, KeyUse},
    parked, records,
    search::{
        PostgresTarget,
        target::{IndexVersion, SearchTarget as _, Writer},
    },
};
use orgstream_transparency::LogSigner;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use crate::{
    projections::{History, lease},
    support::{self, TestDatabase},
    views::declare_view,
};

const PRIVILEGE: &str = "42501";
const DUPLICATE: &str = "23505";

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// Every table with an `org_id`.
async fn tenant_tables(owner: &mut PgConnection) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name)::text FROM information_schema.columns
        JOIN information_schema.tables USING (table_schema, table_name)
        WHERE column_name = 'org_id' AND table_type = 'BASE TABLE' ORDER BY 1",
    )
    .fetch_all(owner)
    .await
    .unwrap();
    assert!(tables.len() >= 11, "{tables:?}");
    tables
}

async fn bind(connection: &mut PgConnection, org: Uuid) -> Transaction<'_, Postgres> {
    let mut tx = connection.begin().await.unwrap();
    let bind = sqlx::query(
        "SELECT set_config('app.org_id', $1, true), set_config('app.rm_version', '1', true),
            set_config('app.search_version', '1', true)",
    );
    bind.bind(org.to_string()).execute(&mut *tx).await.unwrap();
    tx
}

/// Runs one statement and returns its error code, or the number of rows it touched.
async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<u64, String> {
    match sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await {
        Ok(done) => Ok(done.rows_affected()),
        Err(sqlx::Error::Database(error)) => Err(error.code().unwrap_or_default().into_owned()),
        Err(other) => panic!("{sql}: {other}"),
    }
}

/// A checkpoint of the audit log with a signature, and a tile, which a real log has when it is longer.
async fn sign(database: &TestDatabase, history: &History) {
    let db = SigningDatabase::connect(&database.options()).await.unwrap();
    let mut tx = db.begin(history.bound()).await.unwrap();
    let head = tx.head().await.unwrap();
    let origin = tx.note_checkpoint(format!("rls.test/{}", history.org), head).await.unwrap();
    let key = LogSigner::from_seed(origin.parse().unwrap(), &[1; 32]);
    tx.keep(head.size, &key.sign(head).signatures()[0]).await.unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    let mut connection = connect(&database.app_url("app_sign")).await;
    let mut tx = bind(&mut connection, history.org.uuid()).await;
    let tile = format!(
        "INSERT INTO audit.tiles VALUES ('{}', 0, 0, decode(repeat('00', 8192), 'hex'), decode(repeat('00', 32), 'hex'))",
        history.org.uuid()
    );
    attempt(&mut tx, &tile).await.unwrap();
    tx.commit().await.unwrap();
}

/// Two orgs with rows in every table.
async fn two_orgs(database: &TestDatabase) -> (History, History) {
    let db = &database.db;
    let epoch = lease(db).await;
    declare_view(db, epoch, "trace", "/n").await;
    let (a, b) = (History::eventful(1), History::eventful(2));
    for history in [&a, &b] {
        for pipeline in Pipeline::ALL {
            history.apply(db, pipeline, epoch, 100).await;
        }
        let last = history.commits.last().unwrap().seq;
        let mut tx = db.begin_batches(BatchClass::Light, crate::projections::SLICE).await.unwrap();
        let shard = orgstream_events::Shard(3);
        tx.open(history.bound(), Pipeline::Audit, shard, epoch, Some(last), last + 1).await.unwrap();
        let subject = format!("ev.3.{}.record.{}", history.org, history.record(1));
        let state = parked::ParkedState::Failed;
        let (subject, verified, expected) = (subject.as_str(), true, None);
        let message =
            parked::Park { seq: last, subject, message: &[0], verified, expected, state, reason: "", attempts: 1 };
        parked::park(&mut tx, history.bound(), &[message]).await.unwrap();
        // Compared with itself, there is no difference.
        let mut comparison = Comparison::begin(db, history.bound(), Pipeline::ReadModels, 1).await.unwrap().unwrap();
        while !comparison.go_on(2).await.unwrap() {}
        assert_eq!(comparison.differences(), 0);
        comparison.keep(&mut tx, history.bound()).await.unwrap();
        tx.commit().await.unwrap();
        sign(database, history).await;
        let used = KeyUse {
            key: KeyId::derive(history.command(100)),
            last_used_at: Timestamp::from_unix_ms(crate::projections::BIRTH),
            ip: None,
            user_agent: None,
        };
        key_uses::write(db, history.bound(), &[used]).await.unwrap();
        let target = PostgresTarget::new(&database.options()).unwrap();
        let at = IndexVersion { org: history.bound(), version: 7 };
        target.write(at, Writer { epoch, is_shown: false }, &[]).await.unwrap();
        db.take_webhook(history.bound(), "https://siem.example", Duration::from_secs(1)).await.unwrap();
    }
    (a, b)
}

// S1.2
// S3.6
// S3.14
#[tokio::test]
async fn every_tenant_table_obeys_the_rules() {
    let database = support::database().await;
    assert_eq!(database.db.preflight().await.unwrap(), []);
    let mut owner = connect(&database.owner_url).await;
    for table in tenant_tables(&mut owner).await {
        let insert = format!("INSERT INTO {table} (org_id) VALUES (NULL)");
        assert_eq!(attempt(&mut owner, &insert).await, Err("23502".to_owned()), "{table} takes a row of no org");
    }
    let others: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name)::text FROM information_schema.columns
        WHERE column_name = 'org_id' AND (data_type <> 'uuid' OR is_nullable <> 'NO')
            AND (table_schema, table_name) IN (SELECT table_schema, table_name FROM information_schema.tables
                WHERE table_type = 'BASE TABLE')",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert!(others.is_empty(), "org_id is no uuid, or may be null: {others:?}");
}

#[tokio::test]
async fn a_forgotten_rule_is_found() {
    let database = support::database().await;
    let mut owner = connect(&database.owner_url).await;
    let mistakes = [
        ("CREATE TABLE rm.forgotten (org_id uuid)", "rm.forgotten has row-level security off"),
        ("CREATE TABLE rm.orgless (id uuid)", "rm.orgless has no column org_id"),
        ("ALTER TABLE rm.records NO FORCE ROW LEVEL SECURITY", "rm.records does not bind its owner"),
        ("DROP POLICY floor ON rm.kinds", "rm.kinds has no restrictive floor for everybody"),
        ("DROP POLICY tenant ON rm.members", "rm.members has no permissive policy by app.org()"),
        ("ALTER TABLE rm.slugs ALTER org_id SET STATISTICS 100", "rm.slugs is planned by the statistics of org_id"),
        ("CREATE UNIQUE INDEX everyone ON rm.slugs (slug)", "rm.slugs: the unique index rm.everyone is not per org"),
        (
            "ALTER TABLE rm.api_keys ADD CONSTRAINT loose FOREIGN KEY (id) REFERENCES rm.records_of_all (id)",
            "rm.api_keys: the foreign key loose may point into another org",
        ),
        ("GRANT TRUNCATE ON rm.records TO app_rw", "the role app_rw may TRUNCATE rm.records"),
        ("GRANT DELETE ON audit.events TO app_rw", "the role app_rw may DELETE audit.events"),
        ("ALTER TABLE audit.events DISABLE TRIGGER append_only", "audit.events may be changed"),
        ("CREATE MATERIALIZED VIEW rm.stale AS SELECT 1", "rm.stale is a materialized view"),
        ("CREATE VIEW rm.leak AS SELECT * FROM rm.records", "the view rm.leak reads with the rights of its owner"),
        ("ALTER FUNCTION app.org() IMMUTABLE", "app.org() is missing or not STABLE"),
        ("ALTER FUNCTION app.rm_version() IMMUTABLE", "app.rm_version() is missing or not STABLE"),
        ("ALTER FUNCTION app.search_version() IMMUTABLE", "app.search_version() is missing or not STABLE"),
        ("DROP POLICY version ON rm.slugs", "rm.slugs shows every version of its rows"),
        (
            "CREATE UNIQUE INDEX once ON rm.slugs (org_id, slug)",
            "rm.slugs: the unique index rm.once is not per version",
        ),
        ("CREATE TABLE rm.unversioned (org_id uuid NOT NULL)", "rm.unversioned has no column rm_version"),
        ("ALTER FUNCTION app.org_of_slug SET search_path = public", "runs with the rights of its owner"),
        ("GRANT USAGE ON SCHEMA rm TO app_identity", "the role app_identity may use the schema rm"),
        ("GRANT USAGE ON SCHEMA identity TO app_ro", "the role app_ro may use the schema identity"),
        (
            "CREATE VIEW identity.all_users AS SELECT * FROM identity.users",
            "identity.all_users reads with the rights of its owner",
        ),
        ("GRANT SELECT ON rm.records TO app_public", "the role app_public may read rm.records"),
        ("GRANT SELECT (title) ON rm.kinds TO app_public", "the role app_public may read rm.kinds"),
        ("GRANT DELETE ON rm.catalog_items TO app_public", "the role app_public may write rm.catalog_items"),
        ("DROP POLICY published ON rm.catalog_items", "rm.catalog_items shows app_public more than what is published"),
        (
            "ALTER POLICY published ON rm.catalog_versions USING (true)",
            "rm.catalog_versions shows app_public more than what is published",
        ),
        ("GRANT USAGE ON SCHEMA identity TO app_public", "the role app_public may use the schema identity"),
        ("GRANT CREATE ON SCHEMA rm TO app_rw", "the role app_rw may create objects in the schema rm"),
    ];
    attempt(&mut owner, "CREATE TABLE rm.records_of_all (org_id uuid NOT NULL, id uuid PRIMARY KEY)").await.unwrap();
    for (mistake, what) in mistakes {
        attempt(&mut owner, mistake).await.unwrap();
        let findings = database.db.catalogue().await.unwrap();
        assert!(findings.iter().any(|finding| finding.what.contains(what)), "{mistake}: {findings:?}");
    }
    assert!(!database.db.preflight().await.unwrap().is_empty());
}

// S1.24
// S3.16
#[tokio::test]
async fn unbound_queries_are_refused_even_on_empty_tables() {
    let database = support::database().await;
    let tables = tenant_tables(&mut connect(&database.owner_url).await).await;
    for role in ["app_rw", "app_ro", "app_public", "app_audit", "app_sign"] {
        let mut connection = connect(&database.app_url(role)).await;
        for table in &tables {
            let read = attempt(&mut connection, &format!("SELECT * FROM {table}")).await;
            assert_eq!(read, Err(PRIVILEGE.to_owned()), "{role} on {table}");
        }
        // After a bound transaction the setting is '' and no longer absent.
        bind(&mut connection, Uuid::from_u128(1)).await.commit().await.unwrap();
        for table in &tables {
            let read = attempt(&mut connection, &format!("SELECT count(*) FROM {table}")).await;
            assert_eq!(read, Err(PRIVILEGE.to_owned()), "{role} on {table}, after another org");
        }
    }
}

// S1.24
// S3.7
// S3.9
// S5.34
#[tokio::test]
async fn bound_queries_see_and_touch_one_org() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let mut owner = connect(&database.owner_url).await;
    for table in tenant_tables(&mut owner).await {
        let all: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE org_id = $1")))
            .bind(a.org.uuid())
            .fetch_one(&mut owner)
            .await
            .unwrap();
        assert!(all > 0, "{table} is empty, so nothing is tested");
        for role in ["app_rw", "app_ro"] {
            let mut connection = connect(&database.app_url(role)).await;
            let mut tx = bind(&mut connection, a.org.uuid()).await;
            let seen: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(format!("SELECT org_id FROM {table}")))
                .fetch_all(&mut *tx)
                .await
                .unwrap();
            assert_eq!(seen.len() as u64, all.unsigned_abs(), "{role} on {table}");
            assert!(seen.iter().all(|org| *org == a.org.uuid()), "{role} on {table}");
        }

        let mut connection = connect(&database.app_url("app_rw")).await;
        let mut tx = bind(&mut connection, a.org.uuid()).await;
        let foreign = format!(
            "INSERT INTO {table} SELECT (jsonb_populate_record(r, '{{\"org_id\": \"{}\"}}')).* FROM {table} AS r LIMIT 1",
            b.org.uuid()
        );
        assert_eq!(attempt(&mut tx, &foreign).await, Err(PRIVILEGE.to_owned()), "a row tagged B into {table}");
        drop(tx);
        for change in ["UPDATE", "DELETE FROM"] {
            let set = if change == "UPDATE" { "SET org_id = org_id" } else { "" };
            let mut tx = bind(&mut connection, a.org.uuid()).await;
            let changed = attempt(&mut tx, &format!("{change} {table} {set} WHERE org_id = '{}'", b.org.uuid())).await;
            assert!(changed == Ok(0) || changed == Err(PRIVILEGE.to_owned()), "{change} {table}: {changed:?}");
        }
    }
}

// S3.9
// S5.35
#[tokio::test]
async fn s3_9_the_database_alone_keeps_orgs_apart() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let tables = tenant_tables(&mut connect(&database.owner_url).await).await;
    for role in ["app_rw", "app_ro", "app_audit"] {
        let mut connection = connect(&database.app_url(role)).await;
        for table in &tables {
            for (org, other) in [(&a, &b), (&b, &a)] {
                let mut tx = bind(&mut connection, org.org.uuid()).await;
                // No query in any form returns anything of the other org.
                for question in [
                    format!("SELECT * FROM {table} WHERE org_id = '{}'", other.org.uuid()),
                    format!("SELECT * FROM {table} AS a JOIN {table} AS b ON a.org_id <> b.org_id"),
                    format!(
                        "SELECT * FROM (TABLE {table} UNION ALL TABLE {table}) AS x WHERE org_id <> '{}'",
                        org.org.uuid()
                    ),
                ] {
                    let found = attempt(&mut tx, &format!("SAVEPOINT ask; {question}")).await;
                    assert!(found == Ok(0) || found == Err(PRIVILEGE.to_owned()), "{role}: {question}: {found:?}");
                    attempt(&mut tx, "ROLLBACK TO SAVEPOINT ask").await.unwrap();
                }
            }
        }
    }
}

// S1.24
#[tokio::test]
async fn rows_of_a_version_that_is_not_shown_are_invisible() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let mut owner = connect(&database.owner_url).await;
    let versioned: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name)::text FROM information_schema.columns
        WHERE column_name = 'rm_version' ORDER BY 1",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    let declared: BTreeSet<&str> = READ_MODELS.iter().map(|model| model.table).collect();
    assert!(versioned.iter().map(String::as_str).eq(declared), "{versioned:?}");
    for table in versioned {
        // Messages parked by the read models have a version, those parked by the audit pipeline have none.
        let mine = if table == "ops.parked" { "pipeline = 'read_models'" } else { "true" };
        if table == "ops.parked" {
            attempt(&mut owner, "UPDATE ops.parked SET pipeline = 'read_models'").await.unwrap();
        }
        let copy = format!(
            "INSERT INTO {table} SELECT (jsonb_populate_record(r, '{{\"rm_version\": 2}}')).* FROM {table} AS r WHERE {mine}"
        );
        assert!(attempt(&mut owner, &copy).await.unwrap() > 0, "{table}");
        for role in ["app_rw", "app_ro"] {
            let mut connection = connect(&database.app_url(role)).await;
            for org in [a.org.uuid(), b.org.uuid()] {
                let mut tx = bind(&mut connection, org).await;
                let versions: Vec<i32> =
                    sqlx::query_scalar(AssertSqlSafe(format!("SELECT DISTINCT rm_version FROM {table}")))
                        .fetch_all(&mut *tx)
                        .await
                        .unwrap();
                assert_eq!(versions, [1], "{role} on {table}");
            }
        }
        // Nor can one be written to by mistake, or a row be moved from one to the other.
        let mut connection = connect(&database.app_url("app_rw")).await;
        let changes = [
            format!(
                "INSERT INTO {table} SELECT (jsonb_populate_record(r, '{{\"rm_version\": 3}}')).* FROM {table} AS r"
            ),
            format!("UPDATE {table} SET rm_version = 3"),
        ];
        for change in changes {
            let mut tx = bind(&mut connection, a.org.uuid()).await;
            assert_eq!(attempt(&mut tx, &change).await, Err(PRIVILEGE.to_owned()), "{change}");
        }
        let mut tx = bind(&mut connection, a.org.uuid()).await;
        let deleted = attempt(&mut tx, &format!("DELETE FROM {table} WHERE rm_version = 2")).await;
        assert_eq!(deleted, Ok(0), "{table}");
    }
    // The owner of a slug, key or membership is looked up in the active version.
    attempt(&mut owner, "DELETE FROM rm.slugs WHERE rm_version = 1").await.unwrap();
    attempt(&mut owner, "DELETE FROM rm.api_keys WHERE rm_version = 1").await.unwrap();
    attempt(&mut owner, "DELETE FROM rm.members WHERE rm_version = 1 AND status = 'active'").await.unwrap();
    let db = &database.db;
    assert_eq!(db.org_of_slug(&"acme-1".parse().unwrap()).await.unwrap(), None);
    assert_eq!(db.org_of_key(&"key000000002".parse().unwrap()).await.unwrap(), None);
    let user = orgstream_events::UserId::fresh(crate::projections::BIRTH, [1; 10]);
    assert_eq!(db.orgs_of_user(user).await.unwrap(), []);
    attempt(&mut owner, "UPDATE ops.checkpoints SET version = 2 WHERE pipeline = 'read_models'").await.unwrap();
    assert_eq!(db.org_of_slug(&"acme-1".parse().unwrap()).await.unwrap(), Some(a.org));
    assert_eq!(db.org_of_key(&"key000000002".parse().unwrap()).await.unwrap(), Some(b.org));
    assert_eq!(db.orgs_of_user(user).await.unwrap().len(), 2);
}

/// A small generator, so that a failing seed can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }
}

// S1.24
#[tokio::test]
async fn one_reused_connection_never_shows_a_foreign_row() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let tables = tenant_tables(&mut connect(&database.owner_url).await).await;
    let orgs = [a.org.uuid(), b.org.uuid(), Uuid::from_u128(7)];
    let roles = ["app_rw", "app_ro"];
    for (seed, plans) in [(1, "auto"), (2, "force_generic_plan"), (3, "force_custom_plan"), (4, "force_generic_plan")] {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut connection = connect(&database.app_url(dice.pick(&roles))).await;
        attempt(&mut connection, &format!("SET plan_cache_mode = {plans}")).await.unwrap();
        for step in 0..400 {
            let bound = *dice.pick(&orgs);
            let asked = *dice.pick(&orgs);
            let table = dice.pick(&tables);
            let place = format!("seed {seed} step {step}: {table} bound to {bound} asked for {asked}");
            // The same few texts again and again, so that they are prepared once and run for every org.
            let unscoped = format!("SELECT org_id FROM {table}");
            let scoped = format!("SELECT org_id FROM {table} WHERE org_id = $1");
            match dice.roll(5) {
                0 => {
                    let unbound: Result<Vec<Uuid>, _> =
                        sqlx::query_scalar(AssertSqlSafe(unscoped)).fetch_all(&mut connection).await;
                    assert!(unbound.is_err(), "{place}: unbound");
                }
                1 => {
                    let mut tx = bind(&mut connection, bound).await;
                    let rows: Vec<Uuid> =
                        sqlx::query_scalar(AssertSqlSafe(scoped)).bind(asked).fetch_all(&mut *tx).await.unwrap();
                    assert!(rows.iter().all(|org| *org == bound && *org == asked), "{place}");
                    assert_eq!(rows.is_empty(), bound != asked || bound == orgs[2], "{place}");
                    tx.commit().await.unwrap();
                }
                kind => {
                    let mut tx = bind(&mut connection, bound).await;
                    let rows: Vec<Uuid> =
                        sqlx::query_scalar(AssertSqlSafe(unscoped.clone())).fetch_all(&mut *tx).await.unwrap();
                    assert!(rows.iter().all(|org| *org == bound), "{place}");
                    assert_eq!(rows.is_empty(), bound == orgs[2], "{place}");
                    match kind {
                        2 => tx.commit().await.unwrap(),
                        3 => tx.rollback().await.unwrap(),
                        _ => {
                            // A transaction that fails in the middle, with the binding in it.
                            assert!(attempt(&mut tx, "SELECT 1 / 0").await.is_err());
                            drop(tx);
                        }
                    }
                }
            }
        }
    }
}

// S1.24
#[tokio::test]
async fn one_pooled_connection_serves_orgs_in_turn() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let options = DatabaseOptions {
        url: database.app_url("app_ro"),
        passwords: Passwords::default(),
        rw_connections: 1,
        ro_connections: 1,
    };
    let db = Database::connect(&options).await.unwrap();
    let mut dice = Dice(5);
    for _ in 0..200 {
        let (one, other) = if dice.roll(2) == 0 { (&a, &b) } else { (&b, &a) };
        let mut tx = db.read(one.bound()).await.unwrap();
        let rows = records::list(&mut tx, None, true, &Page::First, 100).await.unwrap().rows;
        assert_eq!(rows.len(), 6);
        assert!(rows.iter().all(|row| (0..6).any(|nth| row.id == one.record(nth))));
        assert_eq!(records::get(&mut tx, other.record(2)).await.unwrap(), None);
        assert!(checkpoints::position(&mut tx, Pipeline::Audit).await.unwrap() > 0);
        if dice.roll(2) == 0 {
            tx.finish().await.unwrap();
        }
    }
}

// S3.15
#[tokio::test]
async fn keys_are_per_org() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let mut connection = connect(&database.app_url("app_rw")).await;
    let copy = |to: Uuid| {
        format!(
            "INSERT INTO rm.slugs (org_id, slug) VALUES ('{to}', 'shared');
            INSERT INTO rm.kinds (org_id, name, title, schema, visibility, cost, status, version, created_at, updated_at, seq)
            VALUES ('{to}', 'shared', '', '{{}}', 'private', 1, 'active', 1, now(), now(), 1)"
        )
    };
    for org in [a.org.uuid(), b.org.uuid()] {
        let mut tx = bind(&mut connection, org).await;
        attempt(&mut tx, &copy(org)).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = bind(&mut connection, org).await;
        assert_eq!(attempt(&mut tx, &copy(org)).await, Err(DUPLICATE.to_owned()));
    }

    // S4.12: a member id is in an org once, whatever the login and the address.
    let member: Uuid = sqlx::query_scalar("SELECT id FROM rm.members WHERE org_id = $1 LIMIT 1")
        .bind(a.org.uuid())
        .fetch_one(&mut connect(&database.owner_url).await)
        .await
        .unwrap();
    let again = format!(
        "INSERT INTO rm.members (org_id, id, user_id, email, role, status, version, created_at, updated_at, seq)
        VALUES ('{}', '{member}', gen_random_uuid(), 'another@acme.example', 'viewer', 'active', 1, now(), now(), 1)",
        a.org.uuid()
    );
    let mut tx = bind(&mut connection, a.org.uuid()).await;
    assert_eq!(attempt(&mut tx, &again).await, Err(DUPLICATE.to_owned()));
    drop(tx);

    // Both orgs have a record of one id, and each has its own.
    let mut tx = bind(&mut connection, b.org.uuid()).await;
    let steal = format!(
        "INSERT INTO rm.records (org_id, id, kind, kind_version, data, status, created_by_type, created_by_id, version,
            created_at, created_seq, updated_at, seq)
        VALUES ('{}', '{}', 'trace', 1, '\"of B\"', 'active', 'member', 'mem_b', 1, now(), 1, now(), 1)",
        b.org.uuid(),
        a.record(0).uuid()
    );
    assert_eq!(attempt(&mut tx, &steal).await, Ok(1));
    tx.commit().await.unwrap();
    for (history, data) in [(&a, serde_json::json!(["new", 1])), (&b, serde_json::json!("of B"))] {
        let mut tx = database.db.read(history.bound()).await.unwrap();
        assert_eq!(records::get(&mut tx, a.record(0)).await.unwrap().unwrap().data, data);
    }

    // No foreign key can reach across: each includes the org.
    let loose: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_constraint AS f JOIN pg_attribute AS o ON o.attrelid = f.conrelid AND o.attname = 'org_id'
        WHERE f.contype = 'f' AND NOT o.attnum = ANY (f.conkey)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(loose, 0);
}

#[tokio::test]
async fn the_logins_cannot_do_more_than_they_need() {
    let database = support::database().await;
    let (a, _) = two_orgs(&database).await;
    let mut owner = connect(&database.owner_url).await;
    for role in ["app_rw", "app_ro", "app_public", "app_audit", "app_sign", "app_identity"] {
        let mut connection = connect(&database.app_url(role)).await;
        let mut statements = vec![
            "SET ROLE app_owner".to_owned(),
            "SET ROLE app_resolver".to_owned(),
            "CREATE TABLE public.mine (id int)".to_owned(),
            "CREATE TEMPORARY TABLE mine (id int)".to_owned(),
            "UPDATE audit.events SET action = 'x'".to_owned(),
            "DELETE FROM audit.events".to_owned(),
        ];
        for table in tenant_tables(&mut owner).await {
            statements.push(format!("TRUNCATE {table}"));
            statements.push(format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"));
        }
        for statement in statements {
            let mut tx = bind(&mut connection, a.org.uuid()).await;
            assert_eq!(attempt(&mut tx, &statement).await, Err(PRIVILEGE.to_owned()), "{role}: {statement}");
        }
    }
    // Even its owner can change the audit log only deliberately.
    for statement in ["UPDATE audit.events SET action = 'x'", "DELETE FROM audit.events", "TRUNCATE audit.events"] {
        assert_eq!(attempt(&mut owner, statement).await, Err(PRIVILEGE.to_owned()), "{statement}");
    }
}

/// Users and organizations' data: neither login reaches the other's tables, whatever it binds.
#[tokio::test]
async fn people_and_organizations_are_behind_different_logins() {
    let database = support::database().await;
    let (a, _) = two_orgs(&database).await;
    let mut owner = connect(&database.owner_url).await;
    let user = "INSERT INTO identity.users (user_id, issuer, subject) VALUES (gen_random_uuid(), 'i', 's')";
    attempt(&mut owner, user).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', table_schema, table_name)::text FROM information_schema.tables
        WHERE table_type = 'BASE TABLE' AND table_schema IN ('rm', 'audit', 'ops', 'identity') ORDER BY 1",
    )
    .fetch_all(&mut owner)
    .await
    .unwrap();
    assert!(tables.iter().any(|table| table == "identity.sessions") && tables.len() > 15, "{tables:?}");
    for role in ["app_rw", "app_ro", "app_public", "app_audit", "app_identity"] {
        let mut connection = connect(&database.app_url(role)).await;
        for table in &tables {
            let is_own = table.starts_with("identity.") && role == "app_identity";
            if is_own {
                assert!(attempt(&mut connection, &format!("SELECT * FROM {table}")).await.is_ok(), "{role} on {table}");
            } else if table.starts_with("identity.") || role == "app_identity" {
                for statement in [
                    format!("SELECT * FROM {table}"),
                    format!("INSERT INTO {table} DEFAULT VALUES"),
                    format!("DELETE FROM {table}"),
                ] {
                    let mut tx = bind(&mut connection, a.org.uuid()).await;
                    assert_eq!(attempt(&mut tx, &statement).await, Err(PRIVILEGE.to_owned()), "{role}: {statement}");
                }
            }
        }
        // Nor can it assume another role, or call one of the resolver functions.
        if role == "app_identity" {
            for statement in ["SELECT app.org_of_slug('acme-1')", "SELECT app.org()", "SET ROLE app_rw"] {
                assert_eq!(attempt(&mut connection, statement).await, Err(PRIVILEGE.to_owned()), "{statement}");
            }
            assert_eq!(attempt(&mut connection, "DELETE FROM identity.users").await, Err(PRIVILEGE.to_owned()));
        }
    }
    // No column of theirs makes them tenant tables by mistake.
    let orgs: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'identity' AND column_name = 'org_id'",
    )
    .fetch_one(&mut owner)
    .await
    .unwrap();
    assert_eq!(orgs, 0);
}

/// Whatever the login of readers without a credential binds and asks, it sees what is published and nothing else.
#[tokio::test]
async fn the_login_of_the_public_reaches_what_is_published_and_nothing_else() {
    let database = support::database().await;
    let (a, _) = two_orgs(&database).await;
    let mut owner = connect(&database.owner_url).await;
    let platform = orgstream_events::PLATFORM_ORG.uuid();
    let item = |org: Uuid, number: u32, status: &str| {
        let id = Uuid::from_u128(number.into());
        format!(
            "INSERT INTO rm.catalog_items (org_id, rm_version, id, kind, kind_version, data, item_version, shown_since, status,
                version, created_at, created_seq, updated_at, seq)
            VALUES ('{org}', 1, '{id}', 'model', 1, '{{}}', 3, 2, '{status}', 3, now(), {number}, now(), {number});
            INSERT INTO rm.catalog_versions (org_id, rm_version, key, id, item_version, kind, kind_version, data,
                published_at, seq)
            SELECT '{org}', 1, decode('{number:02x}', 'hex') || decode(lpad(nth::text, 2, '0'), 'hex'), '{id}', nth, 'model',
                1, '{{}}', now(), {number} FROM generate_series(1, 3) AS nth"
        )
    };
    // The tables' owner is bound by their policies as everybody is; this login is above them.
    for statement in
        [item(platform, 1, "published"), item(platform, 2, "withdrawn"), item(a.org.uuid(), 3, "published")]
    {
        attempt(&mut owner, &statement).await.unwrap();
    }
    let mut connection = connect(&database.app_url("app_public")).await;
    let ids = |table: &str, column: &str| format!("SELECT {column}::bigint FROM {table} ORDER BY 1");
    // Of the progress of any organization it learns one version: the one of the platform's read models that is shown.
    for (org, items, versions, shown) in
        [(platform, vec![1], vec![2, 3], vec![1]), (a.org.uuid(), vec![], vec![], vec![])]
    {
        let mut tx = bind(&mut connection, org).await;
        let seen: Vec<i64> =
            sqlx::query_scalar(AssertSqlSafe(ids("rm.catalog_items", "seq"))).fetch_all(&mut *tx).await.unwrap();
        assert_eq!(seen, items, "{org}");
        let seen: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(ids("rm.catalog_versions", "item_version")))
            .fetch_all(&mut *tx)
            .await
            .unwrap();
        // None from before the withdrawal.
        assert_eq!(seen, versions, "{org}");
        let seen: Vec<i64> =
            sqlx::query_scalar(AssertSqlSafe(ids("ops.checkpoints", "version"))).fetch_all(&mut *tx).await.unwrap();
        assert_eq!(seen, shown, "{org}");
    }
    let open = ["rm.catalog_items", "rm.catalog_versions"];
    for org in [platform, a.org.uuid()] {
        for table in tenant_tables(&mut owner).await {
            let mut statements = vec![format!("INSERT INTO {table} DEFAULT VALUES"), format!("DELETE FROM {table}")];
            if !open.contains(&table.as_str()) {
                statements.push(format!("SELECT * FROM {table}"));
            }
            for statement in statements {
                let mut tx = bind(&mut connection, org).await;
                assert_eq!(attempt(&mut tx, &statement).await, Err(PRIVILEGE.to_owned()), "{statement}");
            }
        }
    }
    for statement in [
        "SELECT app.org_of_slug('acme-1')",
        "SELECT seq FROM ops.checkpoints",
        "UPDATE rm.catalog_items SET kind = 'x'",
        "SET ROLE app_ro",
        "SELECT * FROM identity.users",
    ] {
        let mut tx = bind(&mut connection, platform).await;
        assert_eq!(attempt(&mut tx, statement).await, Err(PRIVILEGE.to_owned()), "{statement}");
    }
}

#[tokio::test]
async fn resolvers_answer_with_an_id_and_open_no_table() {
    let database = support::database().await;
    let (a, b) = two_orgs(&database).await;
    let db = &database.db;
    for slug in ["acme-1", "ajax-1"] {
        assert_eq!(db.org_of_slug(&slug.parse().unwrap()).await.unwrap(), Some(a.org), "{slug}");
    }
    assert_eq!(db.org_of_slug(&"nobody".parse().unwrap()).await.unwrap(), None);
    assert_eq!(db.org_of_key(&"key000000002".parse().unwrap()).await.unwrap(), Some(b.org));
    let mut tx = db.read(a.bound()).await.unwrap();
    let member =
        orgstream_projections::members::list(&mut tx, false, None, &Page::First, 1).await.unwrap().rows.remove(0);
    drop(tx);
    let mut orgs = [a.org, b.org];
    orgs.sort();
    assert_eq!(db.orgs_of_user(member.user_id).await.unwrap(), orgs);

    let mac = |number| orgstream_events::Fingerprint::of(&[b"token", &[number]]);
    assert_eq!(db.org_of_invitation(&mac(2)).await.unwrap(), Some(b.org));
    assert_eq!(db.org_of_invitation(&mac(9)).await.unwrap(), None);
    assert_eq!(db.orgs_of_domain(&"acme.example".parse().unwrap()).await.unwrap(), orgs);
    assert_eq!(db.orgs_of_domain(&"other.example".parse().unwrap()).await.unwrap(), []);

    assert_eq!(db.orgs_of_login("https://issuer.example", "audience 104").await.unwrap(), orgs);
    for (issuer, audience) in [("https://issuer.example", "audience 105"), ("https://other.example", "audience 104")] {
        assert_eq!(db.orgs_of_login(issuer, audience).await.unwrap(), []);
    }

    // Two orgs with one key id: no result is better than a guess.
    let mut connection = connect(&database.app_url("app_rw")).await;
    let mut tx = bind(&mut connection, a.org.uuid()).await;
    attempt(&mut tx, "UPDATE rm.api_keys SET public_id = 'key000000002'").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(db.org_of_key(&"key000000002".parse().unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn preflight_refuses_a_login_above_the_policies() {
    let database = support::database().await;
    let options = DatabaseOptions {
        url: database.owner_url.clone(),
        passwords: Passwords::default(),
        rw_connections: 1,
        ro_connections: 1,
    };
    let findings = Database::connect(&options).await.unwrap().preflight().await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].what.contains("passes by row-level security"), "{findings:?}");
}

#[tokio::test]
async fn preflight_refuses_pending_and_foreign_migrations() {
    let database = support::database().await;
    let mut owner = connect(&database.owner_url).await;
    attempt(&mut owner, "UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 4").await.unwrap();
    let findings = database.db.preflight().await.unwrap();
    assert!(findings[0].what.contains("migration 4 was applied with another content"), "{findings:?}");
    attempt(&mut owner, "DELETE FROM _sqlx_migrations WHERE version >= 4").await.unwrap();
    let findings = database.db.preflight().await.unwrap();
    assert!(findings[0].what.contains("migrations are pending"), "{findings:?}");
    attempt(&mut owner, "DROP TABLE _sqlx_migrations").await.unwrap();
    assert!(database.db.preflight().await.unwrap()[0].what.contains("migrations are pending"));
}
