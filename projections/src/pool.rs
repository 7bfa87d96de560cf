//! Connection pools that detect and drop dead connections.
//!
//! A server that ends a connection reports it. A network that drops all packets, or a machine that is gone, reports
//! nothing, and a caller that waits for an answer on such a connection waits for ever. So every statement outside of a
//! transaction has a timeout here beyond the server's own, transactions have one where they are begun and where they
//! are used, and a connection is returned to its pool, or taken out after it was idle, only once it has answered; and
//! one that writes, only once it has confirmed that it still may.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use orgstream_events::Chain;
use sqlx::{
    Connection, Describe, Either, Execute, Executor, PgConnection, PgPool, Postgres, SqlStr,
    postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};
use tokio::time::timeout;

use crate::DbError;

/// Timeout for finding or making a connection.
const ACQUIRE: Duration = Duration::from_secs(10);
/// Timeout for an answer: longer than the server lets any statement run, plus the pool's own time.
const SILENCE: Duration = Duration::from_secs(20);
/// Timeout for the liveness check of a connection before it is used; and after, when the statement of a cancelled
/// caller may still be running.
const PING: Duration = Duration::from_secs(2);
const RELEASE: Duration = Duration::from_secs(16);
/// Timeout for closing a pool.
const CLOSE: Duration = Duration::from_secs(5);
/// A connection that was used within this time is assumed to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// Age at which a connection is replaced, and idle time after which it is closed.
const LIFETIME: Duration = Duration::from_mins(15);
const IDLE: Duration = Duration::from_mins(5);

/// When a connection of a pool was last found dead: those not used since are not worth a try.
#[derive(Debug, Clone, Default)]
struct Deaths(Arc<Mutex<Option<Instant>>>);

impl Deaths {
    fn note(&self, error: &sqlx::Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        tracing::warn!(error = %Chain(error), "a connection to the database leads nowhere and is replaced, with all that lay idle beside it");
    }

    fn any_within(&self, time: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < time)
    }
}

fn silent(limit: Duration) -> sqlx::Error {
    let text = format!("the database has not answered for {} seconds", limit.as_secs());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, text))
}

async fn ping(connection: &mut PgConnection, limit: Duration, deaths: &Deaths) -> Result<(), sqlx::Error> {
    let answered = timeout(limit, connection.ping()).await;
    answered.unwrap_or_else(|_| Err(silent(limit))).inspect_err(|error| deaths.note(error))
}

/// Checks whether a connection that writes still may. A session keeps the `default_transaction_read_only` that it began
/// with, whatever the database or the login is given later, so one that may not write is never checked again.
async fn writes(connection: &mut PgConnection, limit: Duration, deaths: &Deaths) -> Result<bool, sqlx::Error> {
    let answered = timeout(limit, is_writable(connection)).await;
    answered.unwrap_or_else(|_| Err(silent(limit))).inspect_err(|error| deaths.note(error))
}

/// Whether the session may write.
pub(crate) async fn is_writable(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let asked = sqlx::query_scalar("SELECT current_setting('transaction_read_only') = 'off'");
    asked.fetch_one(connection).await
}

/// Returns the result of `work`, or a timeout error once no answer can be expected any more.
pub(crate) async fn within<T, E: From<sqlx::Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(SILENCE, work).await.unwrap_or_else(|_| Err(silent(SILENCE).into()))
}

/// A pool whose statements end, in time or with an error.
#[derive(Debug, Clone)]
pub(crate) struct Pool(PgPool);

impl Pool {
    /// Makes a pool of at most this many connections, opened on demand; `is_to_write` enables the check for
    /// writability.
    pub(crate) fn new(connect: PgConnectOptions, connections: u32, is_to_write: bool) -> Self {
        let deaths = Deaths::default();
        let died = deaths.clone();
        let options = PgPoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(ACQUIRE)
            // One line for each caller that waits would be a flood; timeouts are reported.
            .acquire_slow_threshold(ACQUIRE)
            .max_lifetime(LIFETIME)
            .idle_timeout(IDLE)
            // That would cost a round trip each time.
            .test_before_acquire(false)
            .before_acquire(move |connection, lay| {
                let deaths = deaths.clone();
                Box::pin(async move {
                    if deaths.any_within(lay.idle_for) {
                        return Err(silent(lay.idle_for));
                    }
                    match lay.idle_for > FRESH {
                        true if is_to_write => writes(connection, PING, &deaths).await,
                        true => ping(connection, PING, &deaths).await.map(|()| true),
                        false => Ok(true),
                    }
                })
            })
            .after_release(move |connection, _| {
                let deaths = died.clone();
                // Its user may have been cancelled in the middle of a statement.
                Box::pin(async move {
                    if is_to_write {
                        return writes(connection, RELEASE, &deaths).await;
                    }
                    ping(connection, RELEASE, &deaths).await.map(|()| true)
                })
            });
        Self(options.connect_lazy_with(connect))
    }

    /// For transactions, and for callers that need the same connection several times.
    pub(crate) fn inner(&self) -> &PgPool {
        &self.0
    }

    /// Closes every connection, and waits for running statements; not for dead connections.
    pub(crate) async fn close(&self) {
        if timeout(CLOSE, self.0.close()).await.is_err() {
            tracing::warn!("connections to the database that do not answer are left as they are");
        }
    }

    /// Fails if the server does not answer.
    pub(crate) async fn reach(&self) -> Result<(), DbError> {
        drop(self.0.acquire().await?);
        Ok(())
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let answers = (&self.0).fetch_many(query);
        stream::unfold(Some(answers), |answers| async move {
            let mut answers = answers?;
            match timeout(SILENCE, answers.next()).await {
                Ok(answer) => answer.map(|answer| (answer, Some(answers))),
                Err(_) => Some((Err(silent(SILENCE)), None)),
            }
        })
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(within((&self.0).fetch_optional(query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        (&self.0).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        (&self.0).describe(sql)
    }
}
