//! Checks of a pooler between this program and the server: it must preserve sessions.

use sqlx::{AssertSqlSafe, Row};

use crate::{
    DbError, Finding,
    pool::{Pool, within},
};

const FIX: &str = "connect to PostgreSQL itself, or let the pooler give each connection a session of its own that has what was \
    asked for: in PgBouncer pool_mode = session, and `options` not among ignore_startup_parameters";

/// Checks that a connection keeps the same session. Transaction pooling switches it from time to time to another
/// session, which lacks the prepared statements that it has made.
pub(crate) async fn sessions(pool: &Pool) -> Result<Vec<Finding>, DbError> {
    within(async {
        let mut one = pool.inner().acquire().await?;
        let mut other = pool.inner().acquire().await?;
        // By statements that need no preparation.
        sqlx::raw_sql("SELECT set_config('orgstream.session', 'mine', false)").execute(&mut *one).await?;
        // If sessions are shared, this connection has it now, and keeps it.
        sqlx::raw_sql("BEGIN").execute(&mut *other).await?;
        let asked = sqlx::raw_sql("SELECT coalesce(current_setting('orgstream.session', true), '')");
        let said: String = asked.fetch_one(&mut *one).await?.try_get(0)?;
        sqlx::raw_sql("ROLLBACK").execute(&mut *other).await?;
        sqlx::raw_sql("SELECT set_config('orgstream.session', '', false)").execute(&mut *one).await?;
        let lent = Finding {
            what: "a pooler lends this connection another session of the database for every transaction".to_owned(),
            fix: FIX.to_owned(),
        };
        Ok(if said == "mine" { Vec::new() } else { vec![lent] })
    })
    .await
}

/// Checks that the connections of a pool have their settings: those that guard batches and reads are silently lost
/// where a pooler ignores them.
pub(crate) async fn settings(login: &str, pool: &Pool, settings: &[(&str, &str)]) -> Result<Option<Finding>, DbError> {
    within(async {
        let mut connection = pool.inner().acquire().await?;
        let mut differing = Vec::new();
        for (name, wanted) in settings {
            // A constant name of this program.
            let shown = sqlx::raw_sql(AssertSqlSafe(format!("SHOW {name}"))).fetch_one(&mut *connection).await?;
            let shown: String = shown.try_get(0)?;
            if shown != *wanted {
                differing.push(format!("{name} is {shown} and not {wanted}"));
            }
        }
        let what = || format!("a connection of {login} lacks what was set for it: {}", differing.join(", "));
        Ok((!differing.is_empty()).then(|| Finding { what: what(), fix: FIX.to_owned() }))
    })
    .await
}
