//! Whether the rows that are shown are those that the events make: two versions of an org's read models, compared row by
//! row as they were at one moment, and what was found.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::Fingerprint;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::{
    BoundOrg, Database, DbError, SliceTx, TenantTx,
    convert::to_bigint,
    versions::{TABLES, Versioned},
};

/// The most rows that are named; beyond them, they are counted.
const NAMED: usize = 100;

/// What a comparison found: the checksums of a table, or a row that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Drift {
    /// Which table.
    pub table: String,
    /// The row's key; none for the checksums of the whole table.
    pub key: Option<String>,
    /// The columns that differ, when both have the row.
    pub columns: Vec<String>,
    /// The checksum of what is shown; none when it has no such row.
    pub shown: Option<String>,
    /// The checksum of what was built; none when it has no such row.
    pub built: Option<String>,
}

/// A comparison under way, which sees everything as it was when it began.
#[derive(Debug)]
pub struct Comparison {
    tx: TenantTx,
    shown: i32,
    built: i32,
    table: usize,
    after: Option<String>,
    sums: [Fingerprint; 2],
    found: Vec<Drift>,
    differences: u64,
}

type Page = BTreeMap<String, String>;

impl Comparison {
    /// Begins to compare the version `built` with the one that is shown. None when one is ahead of the other.
    pub async fn begin(db: &Database, org: BoundOrg, built: i32) -> Result<Option<Self>, DbError> {
        let mut tx = db.read(org).await?;
        let equal = sqlx::query!(
            r#"SELECT shown.version FROM ops.checkpoints AS shown JOIN ops.checkpoints AS built
                USING (org_id, pipeline, shard, seq)
            WHERE org_id = $1 AND pipeline = 'read_models' AND shown.active AND built.version = $2"#,
            org.org().uuid(),
            built,
        )
        .fetch_optional(tx.connection())
        .await?;
        let Some(equal) = equal else { return Ok(None) };
        // By the key's own index: in any other order, every page would be made of all rows.
        sqlx::query!("SELECT set_config('enable_sort', 'off', true)").fetch_one(tx.connection()).await?;
        let sums = [Fingerprint([0; 32]); 2];
        let (found, differences) = (Vec::new(), 0);
        Ok(Some(Self { tx, shown: equal.version, built, table: 0, after: None, sums, found, differences }))
    }

    /// Compares up to `rows` more. Whether that was all.
    pub async fn go_on(&mut self, rows: u32) -> Result<bool, DbError> {
        let Some(versioned) = TABLES.get(self.table) else { return Ok(true) };
        let shown = self.page(versioned, self.shown, rows).await?;
        let built = self.page(versioned, self.built, rows).await?;
        // A page that is full says nothing about what comes after its last row.
        let ends = [&shown, &built].into_iter().filter(|page| page.len() >= rows as usize);
        let end = ends.filter_map(|page| page.last_key_value()).map(|(key, _)| key.clone()).min();
        let within = |key: &&String| end.as_ref().is_none_or(|end| *key <= end);
        let keys: BTreeSet<&String> = shown.keys().chain(built.keys()).filter(within).collect();
        let mut differing = Vec::new();
        for key in keys {
            let rows = [shown.get(key), built.get(key)];
            for (sum, row) in self.sums.iter_mut().zip(rows) {
                if let Some(digest) = row {
                    *sum = Fingerprint::of(&[&sum.0, key.as_bytes(), digest.as_bytes()]);
                }
            }
            if rows[0] != rows[1] {
                differing.push(Drift {
                    table: versioned.table.to_owned(),
                    key: Some(key.clone()),
                    columns: Vec::new(),
                    shown: rows[0].cloned(),
                    built: rows[1].cloned(),
                });
            }
        }
        for mut drift in differing {
            self.differences += 1;
            if usize::try_from(self.differences).is_ok_and(|number| number <= NAMED) {
                drift.columns = self.columns(versioned, &drift).await?;
                self.found.push(drift);
            }
        }
        self.after = end;
        if self.after.is_none() {
            let [shown, built] = self.sums.map(|sum| Some(sum.to_string()));
            self.found.push(Drift { table: versioned.table.to_owned(), key: None, columns: Vec::new(), shown, built });
            self.sums = [Fingerprint([0; 32]); 2];
            self.table += 1;
        }
        Ok(self.table == TABLES.len())
    }

    /// Rows that were found to differ.
    pub fn differences(&self) -> u64 {
        self.differences
    }

    /// Writes down what was found, in place of what the last comparison of the org found.
    pub async fn keep(&self, slice: &mut SliceTx, org: BoundOrg) -> Result<(), DbError> {
        let (connection, _) = slice.connection(org)?;
        let id = org.org().uuid();
        sqlx::query!("DELETE FROM ops.drift WHERE org_id = $1", id).execute(&mut *connection).await?;
        for (place, drift) in (0_u64..).zip(&self.found) {
            sqlx::query!(
                "INSERT INTO ops.drift (org_id, place, in_table, key, columns, shown, built)
                VALUES ($1, $2, $3, $4, $5, $6, $7)",
                id,
                to_bigint(place),
                drift.table,
                drift.key,
                &drift.columns,
                drift.shown,
                drift.built,
            )
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// The next rows of a version, by their keys, each as a checksum over its columns.
    async fn page(&mut self, versioned: &Versioned, version: i32, rows: u32) -> Result<Page, DbError> {
        let Versioned { table, key, key_type, condition, ignored } = versioned;
        self.tx.look_at(version).await?;
        // Without a name of its own, the text would be what is sorted by, and not the key.
        let query = format!(
            "SELECT ({key})::text AS as_text, md5((to_jsonb(item) - '{ignored}'::text[])::text) FROM {table} AS item
            WHERE org_id = $1 AND ($2::text IS NULL OR {key} > $2::{key_type}) {condition} ORDER BY {key} LIMIT $3"
        );
        let page: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(query))
            .bind(self.tx.org().uuid())
            .bind(&self.after)
            .bind(i64::from(rows))
            .fetch_all(self.tx.connection())
            .await?;
        Ok(page.into_iter().collect())
    }

    /// The columns in which a row differs.
    async fn columns(&mut self, versioned: &Versioned, drift: &Drift) -> Result<Vec<String>, DbError> {
        let Versioned { table, key, key_type, condition, ignored } = versioned;
        let mut rows = Vec::with_capacity(2);
        for version in [self.shown, self.built] {
            self.tx.look_at(version).await?;
            let query = format!(
                "SELECT to_jsonb(item) - '{ignored}'::text[] FROM {table} AS item
                WHERE org_id = $1 AND {key} = $2::{key_type} {condition}"
            );
            let row: Option<Value> = sqlx::query_scalar(AssertSqlSafe(query))
                .bind(self.tx.org().uuid())
                .bind(&drift.key)
                .fetch_optional(self.tx.connection())
                .await?;
            rows.extend(row);
        }
        let [Value::Object(shown), Value::Object(built)] = rows.as_slice() else { return Ok(Vec::new()) };
        Ok(shown
            .iter()
            .filter(|(name, value)| built.get(*name) != Some(*value))
            .map(|(name, _)| name.clone())
            .collect())
    }
}

/// What the last comparison of the bound org found: for every table the rows that differ, then its checksums.
pub async fn drift(tx: &mut TenantTx) -> Result<Vec<Drift>, DbError> {
    let org = tx.org().uuid();
    let found = sqlx::query_as!(
        Drift,
        r#"SELECT in_table AS "table", key, columns, shown, built FROM ops.drift WHERE org_id = $1 ORDER BY place"#,
        org,
    );
    Ok(found.fetch_all(tx.connection()).await?)
}
