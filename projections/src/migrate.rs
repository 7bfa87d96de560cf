//! Database migration. For the deploy login; the program itself only checks whether it was done.

use std::{collections::HashMap, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection,
    migrate::{Migrate as _, Migrator},
    postgres::PgConnectOptions,
};

use crate::{
    DbError, Finding,
    passwords::{LOGINS, Passwords},
};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// The reason why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Not reachable, or the login lacks the right.
    #[error("the database refused")]
    Database(#[from] sqlx::Error),
    /// A migration failed, or contradicts what was applied before.
    #[error("a migration failed")]
    Migration(#[from] sqlx::migrate::MigrateError),
}

/// Applies the missing migrations, as the login of `owner_url`, and sets the password, if given, for all login roles.
pub async fn migrate(owner_url: &str, app_password: Option<&str>) -> Result<(), MigrateError> {
    migrate_with(owner_url, &Passwords::new(app_password.map(str::to_owned), [])).await
}

/// Applies the missing migrations, with a password for each login.
pub async fn migrate_with(owner_url: &str, passwords: &Passwords) -> Result<(), MigrateError> {
    let mut connection = PgConnection::connect(owner_url).await?;
    // `run` would give a future that is not `Send`.
    MIGRATIONS.run_direct(None, &mut connection, false).await?;
    // Where statements are logged, these must not be.
    let quiet: PgConnectOptions = owner_url.parse()?;
    let mut quiet = quiet.disable_statement_logging().connect().await?;
    for login in LOGINS {
        if let Some(password) = passwords.of(login) {
            set_password(&mut quiet, login, password).await?;
        }
    }
    quiet.close().await?;
    connection.close().await?;
    Ok(())
}

/// Roles belong to the cluster, so another database's migration may change the same one at the same time.
async fn set_password(connection: &mut PgConnection, role: &str, password: &str) -> Result<(), sqlx::Error> {
    // The statement takes no parameters; the server itself does the quoting.
    let statement = sqlx::query_scalar!(
        r#"SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text) AS "sql!""#,
        role,
        password
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut tries_left = 10;
    loop {
        let changed = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await;
        match changed {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("XX000") && tries_left > 0 => {
                tries_left -= 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other.map(|_| ()),
        }
    }
}

/// Returns what `migrate` would have to do, if anything. Migrations of a newer program do not prevent a start.
pub(crate) async fn pending(connection: &mut PgConnection) -> Result<Option<Finding>, DbError> {
    let known = sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "known!""#, &*MIGRATIONS.table_name)
        .fetch_one(&mut *connection)
        .await?;
    let applied: HashMap<i64, _> = if known {
        let applied = connection.list_applied_migrations(&MIGRATIONS.table_name).await;
        let applied = applied.map_err(|error| sqlx::Error::Configuration(error.into()))?;
        applied.into_iter().map(|migration| (migration.version, migration.checksum)).collect()
    } else {
        HashMap::new()
    };
    let missing = MIGRATIONS.iter().filter(|migration| !applied.contains_key(&migration.version)).count();
    let other = MIGRATIONS
        .iter()
        .find(|migration| applied.get(&migration.version).is_some_and(|checksum| *checksum != migration.checksum));
    Ok(if let Some(other) = other {
        Some(Finding {
            what: format!("migration {} was applied with another content", other.version),
            fix: "use the database that belongs to this version, or the version that belongs to it".to_owned(),
        })
    } else if missing > 0 {
        Some(Finding {
            what: format!("{missing} database migrations are pending"),
            fix: "run `orgstream migrate` with the login that owns the schema".to_owned(),
        })
    } else {
        None
    })
}
