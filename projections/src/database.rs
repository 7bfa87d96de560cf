//! The connections. The pools are private to this file: rows are reached only through a bound transaction.

use std::{fmt, sync::Arc, time::Duration};

use orgstream_transparency::LogKey;
use sqlx::{AssertSqlSafe, Postgres, SqlSafeStr, Transaction, postgres::PgConnectOptions};
use tokio::sync::broadcast;
use tracing::Instrument as _;

use crate::{
    ApplyTx, BoundOrg, DbError, IsolationViolation, Passwords, TenantTx,
    audit::Pin,
    catalog_items::Published,
    catalogue,
    isolation_violation::Alarm,
    migrate,
    pool::{Pool, within},
    pooler,
    search::target::SearchTargets,
    views::PlainKinds,
};

const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const WRITE: &str = "BEGIN";
/// Settings of batches, which take milliseconds. A longer statement is stuck, and blocks others.
const SLICE_SETTINGS: [(&str, &str); 8] = [
    // Rows and checkpoint are lost together and replayed together, so a batch need not wait for the disk.
    ("synchronous_commit", "off"),
    ("statement_timeout", "15s"),
    ("lock_timeout", "3s"),
    ("idle_in_transaction_session_timeout", "15s"),
    // Every statement of a batch uses a primary key. A plan made while the tables were small, or before they had
    // statistics, must not scan them; and a statement that runs for a millisecond is not compiled.
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("jit", "off"),
];
/// A transaction of a few rows would take longer to plan than to run, so its statements are planned once. Those of a
/// backlog are planned for their parameters, which costs them less than a generic plan.
const LIGHT_SETTINGS: [(&str, &str); 1] = [("plan_cache_mode", "force_generic_plan")];
const READ_SETTINGS: [(&str, &str); 6] = [
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "15s"),
    // The right index depends on the given filters, and on the size of the org.
    ("plan_cache_mode", "force_custom_plan"),
    // Every listing has an index in its own order; without statistics the planner would rather collect and sort.
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];
/// Settings of a session, by name.
type Settings<'a> = &'a [(&'static str, &'static str)];

/// Leases and low watermarks have connections of their own: a lease must be renewed however busy the batches are.
const OPS_CONNECTIONS: u32 = 2;
const OPS_SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "15s")];
/// The share of the query connections for sign-ins: these are rare queries, by a key.
const IDENTITY_PART: u32 = 4;
/// The share of the query connections for the catalog, which caches keep away.
const PUBLIC_PART: u32 = 6;
const IDENTITY_SETTINGS: [(&str, &str); 3] =
    [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("idle_in_transaction_session_timeout", "15s")];
const ERASER_SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "15s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("jit", "off"),
];
/// Erasures have one connection: they are rare, and in no hurry.
const ERASER_CONNECTIONS: u32 = 1;
/// How long a batch waits for another transaction's lock, unless its statements have less time altogether.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// The database's address, and the number of connections.
#[derive(Clone)]
pub struct DatabaseOptions {
    /// `postgres://host:port/database`. A user in it is used for every pool, and preflight rejects one with too many
    /// rights; without a user, each pool uses the role made for it.
    pub url: String,
    /// The passwords of the roles, if the server requires them.
    pub passwords: Passwords,
    /// For batches of either class: the most concurrent commits.
    pub rw_connections: u32,
    /// For queries, the catalog, sign-ins and deletions, together.
    pub ro_connections: u32,
}

impl DatabaseOptions {
    /// The connections that a process needs beside those for queries, given those for batches: as many again for
    /// backlogs, those of leases, and the one that writes low watermarks.
    pub fn beside_queries(rw_connections: u32) -> u32 {
        rw_connections.saturating_mul(2).saturating_add(OPS_CONNECTIONS + 1)
    }
}

impl fmt::Debug for DatabaseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the password nor the URL, which may contain another one.
        f.debug_struct("DatabaseOptions")
            .field("rw_connections", &self.rw_connections)
            .field("ro_connections", &self.ro_connections)
            .finish_non_exhaustive()
    }
}

/// The class of a transaction of batches, which determines its connections: a server process that works through a
/// backlog is scheduled after others by the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchClass {
    /// A few messages that a client waits for.
    Light,
    /// Many messages, with more to follow.
    Backlog,
}

/// A problem, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The problem.
    pub what: String,
    /// The remedy.
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
    public: Pool,
    identity: Pool,
    eraser: Pool,
    alarm: Alarm,
    pin: Pin,
    plain_kinds: Arc<PlainKinds>,
    search_targets: SearchTargets,
}

impl Database {
    /// Connects, and fails if the server does not answer.
    pub async fn connect(options: &DatabaseOptions) -> Result<Self, DbError> {
        let database = Self::on_demand(options)?;
        database.batches.reach().await?;
        database.ro.reach().await?;
        Ok(database)
    }

    /// Returns a handle that connects with its first use.
    pub(crate) fn on_demand(options: &DatabaseOptions) -> Result<Self, DbError> {
        let light = [SLICE_SETTINGS.as_slice(), &LIGHT_SETTINGS].concat();
        let pool = |role, settings, connections| pool(options, role, settings, connections);
        let identity = (options.ro_connections / IDENTITY_PART).max(1);
        let public = (options.ro_connections / PUBLIC_PART).max(1);
        Ok(Self {
            batches: pool("app_rw", &light, options.rw_connections)?,
            backlog: pool("app_rw", &SLICE_SETTINGS, options.rw_connections)?,
            ops: pool("app_rw", &OPS_SETTINGS, OPS_CONNECTIONS)?,
            ro: pool(
                "app_ro",
                &READ_SETTINGS,
                options.ro_connections.saturating_sub(identity + public + ERASER_CONNECTIONS),
            )?,
            // Connects with the first query of the catalog: workers never do.
            public: pool("app_public", &READ_SETTINGS, public)?,
            // Connects on the first sign-in: workers never do.
            identity: pool("app_identity", &IDENTITY_SETTINGS, identity)?,
            // Connects with the first deletion: workers never do.
            eraser: pool("app_eraser", &ERASER_SETTINGS, ERASER_CONNECTIONS)?,
            alarm: Alarm::default(),
            pin: Pin::default(),
            plain_kinds: Arc::default(),
            search_targets: SearchTargets::default(),
        })
    }

    /// Returns the handle of a process that knows these search targets.
    pub fn searching(self, search_targets: SearchTargets) -> Self {
        Self { search_targets, ..self }
    }

    /// Returns the handle of a process that was given the key of the audit logs: heads not signed by it are not
    /// trusted.
    pub fn pinning(self, key: Option<LogKey>) -> Self {
        Self { pin: Pin::new(key), ..self }
    }

    /// Closes every connection, and waits for the open transactions.
    pub async fn close(&self) {
        self.batches.close().await;
        self.backlog.close().await;
        self.ops.close().await;
        self.ro.close().await;
        self.public.close().await;
        self.identity.close().await;
        self.eraser.close().await;
    }

    /// Returns everything that must be corrected before this database is used; empty when it is ready.
    pub async fn preflight(&self) -> Result<Vec<Finding>, DbError> {
        // Without session state through a pooler no statement can be relied on, not even a query.
        let mut findings = pooler::sessions(&self.ops).await?;
        if !findings.is_empty() {
            return Ok(findings);
        }
        let light = [SLICE_SETTINGS.as_slice(), &LIGHT_SETTINGS].concat();
        let pools: [(&str, &Pool, Settings<'_>); 6] = [
            ("app_rw", &self.batches, &light),
            ("app_rw", &self.backlog, &SLICE_SETTINGS),
            ("app_rw", &self.ops, &OPS_SETTINGS),
            ("app_ro", &self.ro, &READ_SETTINGS),
            ("app_public", &self.public, &READ_SETTINGS),
            ("app_identity", &self.identity, &IDENTITY_SETTINGS),
        ];
        let mut connection = self.ro.inner().acquire().await?;
        findings.extend(within(catalogue::login(&mut connection)).await?);
        let mut connection = self.ops.inner().acquire().await?;
        findings.extend(within(catalogue::login(&mut connection)).await?);
        if !findings.is_empty() {
            // Such a login violates every other rule too; one finding is enough.
            findings.dedup();
            return Ok(findings);
        }
        // Without its tables the catalogue check could only report the same problem again.
        match within(migrate::pending(&mut connection)).await? {
            Some(pending) => Ok(vec![pending]),
            None => {
                for (login, pool, settings) in pools {
                    findings.extend(pooler::settings(login, pool, settings).await?);
                }
                // The logins that only sign-ins and the catalog use: they must exist before the first of them.
                for pool in [&self.identity, &self.public] {
                    let mut login = pool.inner().acquire().await?;
                    findings.extend(within(catalogue::login(&mut login)).await?);
                }
                findings.extend(within(catalogue::check(&mut connection)).await?);
                Ok(findings)
            }
        }
    }

    /// Fails while the database accepts no writes: a replica, or one that was made read-only.
    pub async fn check_writable(&self) -> Result<(), DbError> {
        let asked = "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'";
        let is_writable: bool = sqlx::query_scalar(asked).fetch_one(self.ops_pool()).await?;
        if is_writable {
            return Ok(());
        }
        Err(DbError::unavailable("it takes no writes: it is a replica, or default_transaction_read_only is on"))
    }

    /// Returns every table, role and view that violates the rules of tenancy.
    pub async fn catalogue(&self) -> Result<Vec<Finding>, DbError> {
        let mut connection = self.ops.inner().acquire().await?;
        within(catalogue::check(&mut connection)).await
    }

    /// Begins a consistent, read-only view of one org's rows.
    pub async fn read(&self, org: BoundOrg) -> Result<TenantTx, DbError> {
        let tx = TenantTx::new(begin(&self.ro, READ, Some(org)).await?, org, self.alarm(), self.pin());
        Ok(tx.searching(self.search_targets.clone()))
    }

    /// Begins a consistent, read-only view of what is published, with the login for which nothing else is there.
    pub async fn read_published(&self) -> Result<Published, DbError> {
        let org = BoundOrg::platform();
        let transaction = begin(&self.public, READ, Some(org)).await?;
        Ok(Published::new(TenantTx::new(transaction, org, self.alarm(), self.pin())))
    }

    pub(crate) fn alarm(&self) -> Alarm {
        self.alarm.clone()
    }

    pub(crate) fn pin(&self) -> Pin {
        self.pin.clone()
    }

    /// Subscribes to isolation violations: rows of a wrong org read from now on.
    pub fn isolation_violations(&self) -> broadcast::Receiver<IsolationViolation> {
        self.alarm.listen()
    }

    /// Begins a transaction in which batches of any number of orgs are opened, one after the other. A statement of it
    /// that takes longer than `timeout` ends it with [`DbError::TimedOut`].
    pub async fn begin_batches(&self, class: BatchClass, timeout: Duration) -> Result<ApplyTx, DbError> {
        // A wait for another transaction's lock must end before the statement does, or it would count against the
        // waiting batch.
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
        let transaction = begin(pool, &statement, None).await?;
        Ok(ApplyTx::new(transaction, Arc::clone(&self.plain_kinds), self.search_targets.clone()))
    }

    /// Begins a batch's transaction that is bound from the start: see `raw`.
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

    /// For deletions, and for nothing else.
    pub(crate) fn eraser_pool(&self) -> &Pool {
        &self.eraser
    }

    pub(crate) fn search_targets(&self) -> &SearchTargets {
        &self.search_targets
    }

    /// For the functions of `resolve`, and for nothing else.
    pub(crate) fn resolver_pool(&self) -> &Pool {
        &self.ro
    }
}

/// Connections of one role, made on demand.
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
    Ok(Pool::new(connect, connections, !["app_ro", "app_public"].contains(&role)))
}

fn names_a_user(url: &str) -> bool {
    let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
    authority.contains('@') || url.split(['?', '&']).skip(1).any(|option| option.starts_with("user="))
}

/// Begins a transaction and binds it, in one round trip.
///
/// It runs in a task of its own, which cannot be cancelled half-way. A caller that is cancelled meanwhile (a client
/// that disconnected) would leave a connection in the pool on which the server has begun a transaction that the client
/// library has not noticed: its next user would read from that transaction's old snapshot.
async fn begin(pool: &Pool, statement: &str, org: Option<BoundOrg>) -> Result<Transaction<'static, Postgres>, DbError> {
    let statement = match org {
        // The only value is a UUID that this program formats: no client's text gets here.
        Some(org) => format!("{statement}; SELECT app.bind('{}')", org.org().uuid()),
        None => statement.to_owned(),
    };
    begin_with(pool, statement).await
}

/// Begins a transaction whose binding is part of the statement.
pub(crate) async fn begin_with(pool: &Pool, statement: String) -> Result<Transaction<'static, Postgres>, DbError> {
    let begun = tokio::spawn(within(begin_at_last(pool.clone(), statement)).in_current_span());
    Ok(begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// A connection that died while idle shows it only now, so each of the pool's may fail once.
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
        // The server sends an error before it closes a connection.
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
