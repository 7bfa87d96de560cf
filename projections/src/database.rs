//! The connections. The pools are private to this file: whoever wants rows asks for a bound transaction.

use std::{fmt, time::Duration};

use orgstream_transparency::LogKey;
use sqlx::{AssertSqlSafe, Postgres, SqlSafeStr, Transaction, postgres::PgConnectOptions};
use tokio::sync::broadcast;
use tracing::Instrument as _;

use crate::{
    ApplyTx, BoundOrg, DbError, IsolationViolation, Passwords, TenantTx,
    audit::Pin,
    catalogue,
    isolation_violation::Alarm,
    migrate,
    pool::{Pool, within},
    pooler,
};

const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const WRITE: &str = "BEGIN";
/// a batch takes milliseconds. What takes longer is stuck, and holds others up.
const SLICE_SETTINGS: [(&str, &str); 8] = [
    // Rows and checkpoint are lost together and replayed together, so a batch need not wait for the disk.
    ("synchronous_commit", "off"),
    ("statement_timeout", "15s"),
    ("lock_timeout", "3s"),
    ("idle_in_transaction_session_timeout", "15s"),
    // Every statement of a batch goes by a primary key. A plan that was made while the tables were small, or before
    // they had statistics, must not read them whole; and a statement that runs for a millisecond is not compiled.
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("jit", "off"),
];
/// A transaction of a few rows would take longer to plan than to run, so its statements are planned once. Those of a backlog
/// are planned for what they bring, which costs them less than a plan for anything.
const LIGHT_SETTINGS: [(&str, &str); 1] = [("plan_cache_mode", "force_generic_plan")];
const READ_SETTINGS: [(&str, &str); 6] = [
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "15s"),
    // Which index is right depends on which filters are given, and on how large the org is.
    ("plan_cache_mode", "force_custom_plan"),
    // Every listing has an index in its own order; without statistics the planner would rather collect and sort.
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];
/// Settings of a session, by name.
type Settings<'a> = &'a [(&'static str, &'static str)];

/// Leases and marks have connections of their own: a lease must be renewed however busy the batches are.
const OPS_CONNECTIONS: u32 = 2;
const OPS_SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "15s")];
/// The part of the connections for queries that is for who signs in: they are looked up once in a while, by a key.
const IDENTITY_PART: u32 = 4;
const IDENTITY_SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "15s")];
/// How long a batch waits for somebody else's lock, unless its statements have less time altogether.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the database is, and how many connections it may be asked for.
#[derive(Clone)]
pub struct DatabaseOptions {
    /// `postgres://host:port/database`. A user in it is taken for every pool, and preflight refuses one with too many
    /// rights; without a user, each pool has the role that is made for it.
    pub url: String,
    /// The passwords of the roles, where the server asks for them.
    pub passwords: Passwords,
    /// For batches of either class: the most that are committed at the same time.
    pub rw_connections: u32,
    /// For queries, and for who signs in, together.
    pub ro_connections: u32,
}

impl DatabaseOptions {
    /// Connections that a process needs beside those for queries, with so many for batches: as many again for those of
    /// backlogs, those of leases, and the one that marks are written on.
    pub fn beside_queries(rw_connections: u32) -> u32 {
        rw_connections.saturating_mul(2).saturating_add(OPS_CONNECTIONS + 1)
    }
}

impl fmt::Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the password nor the URL, which may hold another one.
        f.debug_struct("DatabaseOptions")
            .field("rw_connections", &self.rw_connections)
            .field("ro_connections", &self.ro_connections)
            .finish_non_exhaustive()
    }
}

/// What a transaction of batches is for, which decides whose connections it uses: a server process that has a backlog to
/// work off is one that the operating system lets others go before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchClass {
    /// A few messages that somebody waits for.
    Light,
    /// More of the same, with more behind it.
    Backlog,
}

/// One thing that is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What makes it right.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; fix: {}", self.what, self.fix)
    }
}

/// A handle to the database; clones share their connections.
#[derive(Debug, Clone)]
pub struct Database {
    batches: Pool,
    backlog: Pool,
    ops: Pool,
    ro: Pool,
    identity: Pool,
    alarm: Alarm,
    pin: Pin,
}

impl Database {
    /// Connects, and fails if nobody answers.
    pub async fn connect(options: &DatabaseOptions) -> Result<Self, DbError> {
        let light = [SLICE_SETTINGS.as_slice(), &LIGHT_SETTINGS].concat();
        let pool = |role, settings, connections| pool(options, role, settings, connections);
        let identity = (options.ro_connections / IDENTITY_PART).max(1);
        let database = Self {
            batches: pool("app_rw", &light, options.rw_connections)?,
            backlog: pool("app_rw", &SLICE_SETTINGS, options.rw_connections)?,
            ops: pool("app_rw", &OPS_SETTINGS, OPS_CONNECTIONS)?,
            ro: pool("app_ro", &READ_SETTINGS, options.ro_connections.saturating_sub(identity))?,
            // Connects when somebody signs in: workers never do.
            identity: pool("app_identity", &IDENTITY_SETTINGS, identity)?,
            alarm: Alarm::default(),
            pin: Pin::default(),
        };
        database.batches.reach().await?;
        database.ro.reach().await?;
        Ok(database)
    }

    /// The same, for a process that was given the key of the audit logs: heads that it has not signed are not believed.
    pub fn pinning(self, key: Option<LogKey>) -> Self {
        Self { pin: Pin::new(key), ..self }
    }

    /// Closes every connection, and waits for the transactions that are under way.
    pub async fn close(&self) {
        self.batches.close().await;
        self.backlog.close().await;
        self.ops.close().await;
        self.ro.close().await;
        self.identity.close().await;
    }

    /// Everything that must be put right before this database is used; nothing is the good answer.
    pub async fn preflight(&self) -> Result<Vec<Finding>, DbError> {
        // Without a pooler's leave no statement can be relied on, not even those that look.
        let mut findings = pooler::sessions(&self.ops).await?;
        if !findings.is_empty() {
            return Ok(findings);
        }
        let light = [SLICE_SETTINGS.as_slice(), &LIGHT_SETTINGS].concat();
        let pools: [(&str, &Pool, Settings<'_>); 5] = [
            ("app_rw", &self.batches, &light),
            ("app_rw", &self.backlog, &SLICE_SETTINGS),
            ("app_rw", &self.ops, &OPS_SETTINGS),
            ("app_ro", &self.ro, &READ_SETTINGS),
            ("app_identity", &self.identity, &IDENTITY_SETTINGS),
        ];
        let mut connection = self.ro.inner().acquire().await?;
        findings.extend(within(catalogue::login(&mut connection)).await?);
        let mut connection = self.ops.inner().acquire().await?;
        findings.extend(within(catalogue::login(&mut connection)).await?);
        if !findings.is_empty() {
            // Such a login breaks every other rule too; one line says it.
            findings.dedup();
            return Ok(findings);
        }
        // Without its tables the catalogue could only repeat the same thing in other words.
        match within(migrate::pending(&mut connection)).await? {
            Some(pending) => Ok(vec![pending]),
            None => {
                for (login, pool, settings) in pools {
                    findings.extend(pooler::settings(login, pool, settings).await?);
                }
                // The login that only people's sign-ins use: it must be there before the first of them.
                let mut identity = self.identity.inner().acquire().await?;
                findings.extend(within(catalogue::login(&mut identity)).await?);
                findings.extend(within(catalogue::check(&mut connection)).await?);
                Ok(findings)
            }
        }
    }

    /// Fails while the database takes no writes: a replica, or one that was made read-only.
    pub async fn check_writable(&self) -> Result<(), DbError> {
        let asked = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'";
        let is_writable: bool = sqlx::query_scalar(asked).fetch_one(self.ops_pool()).await?;
        if is_writable {
            return Ok(());
        }
        Err(DbError::unavailable("it takes no writes: it is a replica, or default_transaction_read_only is on"))
    }

    /// Every table, role and view that breaks the rules of tenancy.
    pub async fn catalogue(&self) -> Result<Vec<Finding>, DbError> {
        let mut connection = self.ops.inner().acquire().await?;
        within(catalogue::check(&mut connection)).await
    }

    /// A consistent, read-only view of one org's rows.
    pub async fn read(&self, org: BoundOrg) -> Result<TenantTx, DbError> {
        Ok(TenantTx::new(begin(&self.ro, READ, Some(org)).await?, org, self.alarm(), self.pin()))
    }

    pub(crate) fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    pub(crate) fn pin(&self) -> Pin {
        self.pin.clone()
    }

    /// Every row of a wrong org that is read from now on.
    pub fn isolation_violations(&self) -> broadcast::Receiver<IsolationViolation> {
        self.alarm.listen()
    }

    /// A transaction that batches of any number of orgs are opened in, one after the other. A statement of it that takes
    /// longer than `timeout` ends it with [`DbError::TimedOut`].
    pub async fn begin_batches(&self, class: BatchClass, timeout: Duration) -> Result<ApplyTx, DbError> {
        // A wait for somebody else's lock must end before the statement does, or it would count against whoever waits.
        let lock = if timeout < Duration::from_secs(1) { LOCK_TIMEOUT } else { LOCK_TIMEOUT.min(timeout / 2) };
        let statement = format!(
            "{WRITE}; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
            timeout.as_millis().max(1),
            lock.as_millis(),
        );
        let pool = match class {
            BatchClass::Light => &self.batches,
            BatchClass::Backlog => &self.backlog,
        };
        Ok(ApplyTx::new(begin(pool, &statement, None).await?))
    }

    /// As a batch begins, but bound from the start: see `raw`.
    pub(crate) async fn begin_raw(&self, org: BoundOrg) -> Result<Transaction<'static, Postgres>, DbError> {
        begin(&self.batches, WRITE, Some(org)).await
    }

    pub(crate) async fn begin_maintenance(&self, org: BoundOrg) -> Result<Transaction<'static, Postgres>, DbError> {
        begin(&self.ops, WRITE, Some(org)).await
    }

    /// For the tables without tenant data, and for nothing else.
    pub(crate) fn ops_pool(&self) -> &Pool {
        &self.ops
    }

    /// For users and sessions, and for nothing else.
    pub(crate) fn identity_pool(&self) -> &Pool {
        &self.identity
    }

    /// For the functions of `resolve`, and for nothing else.
    pub(crate) fn resolver_pool(&self) -> &Pool {
        &self.ro
    }
}

/// Connections of one role, which are made when they are needed.
pub(crate) fn pool(
    options: &DatabaseOptions,
    role: &str,
    settings: &[(&str, &str)],
    connections: u32,
) -> Result<Pool, DbError> {
    let mut connect: PgConnectOptions = options.url.parse()?;
    if !names_a_user(&options.url) {
        connect = connect.username(role);
    }
    if let Some(password) = options.passwords.of(role) {
        connect = connect.password(password);
    }
    let connect = connect.application_name(&format!("orgstream {role}")).options(settings.iter().copied());
    Ok(Pool::new(connect, connections, role != "app_ro"))
}

fn names_a_user(url: &str) -> bool {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
    authority.contains('@') || url.split(['?', '&']).skip(1).any(|option| option.starts_with("user="))
}

/// Begins a transaction and binds it, in one round trip.
///
/// In a task of its own, which nobody can give up half-way. A caller that went away in between (a client that hung up)
/// would leave a connection in the pool on which the server has begun a transaction and the client library has not
/// noticed: whoever got it next would read from that transaction's old snapshot.
async fn begin(pool: &Pool, statement: &str, org: Option<BoundOrg>) -> Result<Transaction<'static, Postgres>, DbError> {
    let statement = match org {
        // The only value is a UUID that this program formats: no text of anybody's gets here.
        Some(org) => format!("{statement}; SELECT app.bind('{}')", org.org().uuid()),
        None => statement.to_owned(),
    };
    begin_with(pool, statement).await
}

/// The same with any binding that is part of the statement.
pub(crate) async fn begin_with(pool: &Pool, statement: String) -> Result<Transaction<'static, Postgres>, DbError> {
    let begun = tokio::spawn(within(begin_at_last(pool.clone(), statement)).in_current_span());
    Ok(begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// A connection that died while it lay idle shows it only now, so each of the pool's may fail once.
async fn begin_at_last(pool: Pool, statement: String) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.inner();
    let mut tries_left = pool.options().get_max_connections();
    loop {
        match pool.begin_with(AssertSqlSafe(statement.clone()).into_sql_str()).await {
            Err(error) if tries_left > 0 && lost_while_idle(&error) => tries_left -= 1,
            other => return other,
        }
    }
}

fn lost_while_idle(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        // The server says goodbye before it closes a connection.
        sqlx::Error::Database(goodbye) => goodbye.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_in_the_url_is_noticed() {
        for with in ["postgres://me@h/d", "postgres://me:secret@h:1/d", "postgres:///d?host=/tmp&user=me"] {
            assert!(names_a_user(with), "{with}");
        }
        for without in ["postgres://h/d", "postgres:///d?host=/tmp", "postgres://h:1/d?password=a@b"] {
            assert!(!names_a_user(without), "{without}");
        }
    }
}
