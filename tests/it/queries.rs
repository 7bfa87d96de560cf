//! The database made by the migrations: the stored descriptions of queries, which builds use instead of a database,
//! match it, and large values are stored as intended.

use std::{fs, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqlSafeStr};

use crate::support::database;

#[tokio::test]
async fn every_stored_query_is_as_the_database_sees_it() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.owner_url).await.unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let mut seen = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let stored: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let query = stored["query"].as_str().unwrap();
        let described = connection.describe(AssertSqlSafe(query.to_owned()).into_sql_str()).await;
        let described = described.unwrap_or_else(|error| panic!("{}: {error}: {query}", path.display()));
        let described = serde_json::to_value(described).unwrap();
        assert_eq!(stored["describe"], described, "{}: run migrations/prepare: {query}", path.display());
        seen += 1;
    }
    assert!(seen > 50, "only {seen} queries");
}

#[tokio::test]
async fn what_can_be_large_is_compressed_by_what_is_quick() {
    let database = database().await;
    let mut connection = PgConnection::connect(&database.owner_url).await.unwrap();
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT attrelid::regclass || '.' || attname FROM pg_attribute WHERE attcompression = 'l' ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert_eq!(columns, ["audit.events.payload", "ops.parked.message", "rm.records.data"]);
}
