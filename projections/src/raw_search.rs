//! For the benchmark of searches alone: PostgreSQL's own full text with a GIN index, over the same texts and under the same
//! policies.

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::{DbError, TenantTx};

/// Makes the table and its index, anew, from the records that there are. For a database that only the benchmark uses.
pub async fn full_text_table(owner_url: &str) -> Result<(), DbError> {
    let script = "DROP TABLE IF EXISTS rm.full_text;
        CREATE TABLE rm.full_text (
            org_id uuid NOT NULL, rm_version integer NOT NULL, id uuid NOT NULL, words tsvector NOT NULL,
            PRIMARY KEY (org_id, rm_version, id)
        );
        INSERT INTO rm.full_text
        SELECT org_id, rm_version, id, to_tsvector('simple', concat_ws(' ', data ->> 'name', data ->> 'text')) FROM rm.records;
        CREATE INDEX full_text_words ON rm.full_text USING gin (words);
        ALTER TABLE rm.full_text ALTER COLUMN org_id SET STATISTICS 0;
        ALTER TABLE rm.full_text ENABLE ROW LEVEL SECURITY;
        ALTER TABLE rm.full_text FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant ON rm.full_text AS PERMISSIVE FOR ALL TO app_rw, app_ro USING (org_id = (SELECT app.org()));
        CREATE POLICY floor ON rm.full_text AS RESTRICTIVE FOR ALL TO PUBLIC USING (org_id = (SELECT app.org()));
        CREATE POLICY version ON rm.full_text AS RESTRICTIVE FOR ALL TO PUBLIC
            USING (rm_version = (SELECT app.rm_version()));
        GRANT SELECT ON rm.full_text TO app_ro";
    let mut connection = PgConnection::connect(owner_url).await?;
    sqlx::raw_sql(script).execute(&mut connection).await?;
    for table in ["rm.full_text", "rm.postings", "rm.search_documents", "rm.search_statistics", "rm.records"] {
        // Each is a statement of its own: it runs in no transaction.
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("VACUUM (ANALYZE) {table}"))).execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}

/// Returns the sizes of the index of words and of the other one, with their tables, in bytes.
pub async fn sizes(owner_url: &str) -> Result<(i64, i64), DbError> {
    let mut connection = PgConnection::connect(owner_url).await?;
    let sizes = sqlx::query_as(
        "SELECT pg_total_relation_size('rm.postings') + pg_total_relation_size('rm.search_documents'),
            pg_total_relation_size('rm.full_text')",
    );
    let sizes = sizes.fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(sizes)
}

/// Returns the best 20 by the full text: `query` is in the language of `to_tsquery`.
pub async fn full_text(tx: &mut TenantTx, query: &str) -> Result<Vec<Uuid>, DbError> {
    let found = sqlx::query_scalar(
        "SELECT id FROM rm.full_text WHERE org_id = $1 AND words @@ to_tsquery('simple', $2)
        ORDER BY ts_rank(words, to_tsquery('simple', $2)) DESC, id DESC LIMIT 20",
    );
    Ok(found.bind(tx.org().uuid()).bind(query).fetch_all(tx.connection()).await?)
}
