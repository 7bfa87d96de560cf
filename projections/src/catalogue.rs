//! The rules of tenancy, checked against the database's own catalogue, so that a forgotten table is found.

use sqlx::PgConnection;

use crate::{DbError, Finding};

/// The oldest server that supports what the migrations use (`security_invoker` views).
const OLDEST_SERVER: i32 = 150_000;

/// Returns the problems of the login itself, and of the server.
pub(crate) async fn login(connection: &mut PgConnection) -> Result<Vec<Finding>, DbError> {
    let login = sqlx::query!(
        r#"SELECT
            current_user::text AS "name!",
            current_setting('server_version') AS "version!",
            current_setting('server_version_num')::integer AS "version_number!",
            ARRAY(
                SELECT rolname::text FROM pg_roles
                WHERE (rolsuper OR rolbypassrls) AND pg_has_role(current_user, oid, 'MEMBER') ORDER BY rolname
            ) AS "above_policies!""#
    )
    .fetch_one(connection)
    .await?;
    let mut findings = Vec::new();
    if login.version_number < OLDEST_SERVER {
        findings.push(Finding {
            what: format!("PostgreSQL {} is too old", login.version),
            fix: "use PostgreSQL 15 or newer".to_owned(),
        });
    }
    if !login.above_policies.is_empty() {
        findings.push(Finding {
            what: format!(
                "the database login {} passes by row-level security (it is, or can become, {})",
                login.name,
                login.above_policies.join(", ")
            ),
            fix: "leave the user out of the database URL, so that app_rw and app_ro are used".to_owned(),
        });
    }
    Ok(findings)
}

/// Returns everything in the database that violates the rules.
pub(crate) async fn check(connection: &mut PgConnection) -> Result<Vec<Finding>, DbError> {
    Ok(sqlx::query_file_as!(Finding, "src/catalogue.sql").fetch_all(connection).await?)
}
