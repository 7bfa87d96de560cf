//! The read models, each declared once: its table, its key and its columns, in the file that has its statements.
//!
//! Every operation on all of them uses the list here: building and dropping versions, comparing two versions, comparing
//! the active version with a replay, reconstructing an organization's past state, and the checksums of the tests. A
//! test checks the database's catalogue for a table or a column without a declaration.

use std::collections::{BTreeMap, BTreeSet};

use orgstream_events::{Fingerprint, Pipeline, Timestamp};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::{
    DbError, Drift, TenantTx, api_keys, break_glass, catalog_choices, catalog_items, convert::from_bigint, domains,
    idempotency, invitations, kinds, members, organizations, parked, plans, quota_uses, record_fields,
    record_references, records, roles, search, slugs, sso_connections, usage_hours, views,
};

/// All read models, the largest first.
pub const READ_MODELS: &[&ReadModel] = &[
    &search::POSTING_TABLE,
    &search::DOCUMENTS,
    &records::TABLE,
    &record_fields::TABLE,
    &record_references::TABLE,
    &views::VALUES,
    &views::ROWS,
    &idempotency::TABLE,
    &usage_hours::TABLE,
    &api_keys::TABLE,
    &members::TABLE,
    &invitations::TABLE,
    &roles::TABLE,
    &domains::TABLE,
    &sso_connections::TABLE,
    &kinds::TABLE,
    &views::KIND_VIEWS,
    &catalog_items::TABLE,
    &catalog_items::VERSIONS,
    &catalog_choices::TABLE,
    &plans::TABLE,
    &quota_uses::TABLE,
    &slugs::TABLE,
    &break_glass::TABLE,
    &organizations::TABLE,
    &search::STATISTICS,
    &parked::TABLE,
    &parked::OF_SEARCH,
];

/// The columns for a row's owner and version, before those of the read model.
pub const OWNERSHIP: [&str; 2] = ["org_id", "rm_version"];

/// Columns with ids, and how these are formatted.
type Ids = &'static [(&'static str, fn(Uuid) -> String)];

/// A table with the rows of several versions of an organization's read models.
#[derive(Debug)]
pub struct ReadModel {
    /// Its human-readable name, in commands and queries.
    pub name: &'static str,
    /// The table, with its schema.
    pub table: &'static str,
    /// The pipeline that writes it, whose versions its rows have.
    pub pipeline: Pipeline,
    /// The columns that are a function of the events.
    pub columns: &'static [&'static str],
    /// The columns that record local events, and follow from no event of the log.
    pub local: &'static [&'static str],
    /// The columns for internal use, which are never shown.
    pub inward: &'static [&'static str],
    /// Whether its rows follow from the events alone.
    pub from_events: bool,
    /// The key of a row within a version, as an expression by which the table is read in order.
    pub(crate) key: &'static str,
    pub(crate) key_type: &'static str,
    /// The condition that selects its rows of the table, as the rest of a `WHERE` clause.
    pub(crate) condition: &'static str,
    /// The columns with ids, and how these are formatted.
    ids: Ids,
}

impl ReadModel {
    /// Declares a table whose rows have a UUID key, in the column `key`.
    pub(crate) const fn by_id(
        name: &'static str,
        table: &'static str,
        key: &'static str,
        columns: &'static [&'static str],
        ids: Ids,
    ) -> Self {
        Self { ids, ..Self::by_text(name, table, key, columns) }.keyed(key, "uuid")
    }

    /// Declares a table whose rows have a text key. Texts need `COLLATE "C"`, the order that every server and this
    /// program agree on.
    pub(crate) const fn by_text(
        name: &'static str,
        table: &'static str,
        key: &'static str,
        columns: &'static [&'static str],
    ) -> Self {
        let (local, inward, ids) = (&[], &[], &[]);
        let (pipeline, from_events, key_type, condition) = (Pipeline::ReadModels, true, "text", "");
        Self { name, table, pipeline, columns, local, inward, from_events, key, key_type, condition, ids }
    }

    /// Declares a table whose rows have a key of bytes, in the column `key`.
    pub(crate) const fn by_bytes(
        name: &'static str,
        table: &'static str,
        key: &'static str,
        columns: &'static [&'static str],
        ids: Ids,
    ) -> Self {
        Self { ids, ..Self::by_text(name, table, key, columns) }.keyed(key, "bytea")
    }

    const fn keyed(self, key: &'static str, key_type: &'static str) -> Self {
        Self { key, key_type, ..self }
    }

    /// Names the pipeline that writes it, if it is another than that of the queries.
    pub(crate) const fn of(self, pipeline: Pipeline) -> Self {
        Self { pipeline, ..self }
    }

    /// Marks columns as internal: they are never shown.
    pub(crate) const fn without(self, inward: &'static [&'static str]) -> Self {
        Self { inward, ..self }
    }

    /// Restricts the read model to the table's rows with this condition, which depend on local events as well; these
    /// are in the `local` columns.
    pub(crate) const fn with_what_happened(self, condition: &'static str, local: &'static [&'static str]) -> Self {
        Self { condition, local, from_events: false, ..self }
    }

    /// Returns those that a pipeline writes, the largest first.
    pub fn all_of(pipeline: Pipeline) -> impl Iterator<Item = &'static Self> {
        READ_MODELS.iter().copied().filter(move |model| model.pipeline == pipeline)
    }

    /// Returns the read model of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        READ_MODELS.iter().copied().find(|model| model.from_events && model.name == name)
    }

    /// Returns the names of all that follow from events.
    pub fn names() -> impl Iterator<Item = &'static str> {
        READ_MODELS.iter().copied().filter(|model| model.from_events).map(|model| model.name)
    }

    /// The columns that are not compared, as a PostgreSQL array.
    fn ignored(&self) -> String {
        let local: String = self.local.iter().map(|column| format!(",{column}")).collect();
        format!("{{rm_version{local}}}")
    }

    /// Returns the next rows of the version that `tx` sees, by their keys, each as a checksum over its columns.
    pub(crate) async fn page(&self, tx: &mut TenantTx, after: Option<&str>, rows: u32) -> Result<Page, DbError> {
        let Self { table, key, key_type, condition, .. } = self;
        let ignored = self.ignored();
        // Without an alias, the text would be sorted by, and not the key.
        let query = format!(
            "SELECT ({key})::text AS as_text, md5((to_jsonb(item) - '{ignored}'::text[])::text) FROM {table} AS item
            WHERE org_id = $1 AND ($2::text IS NULL OR {key} > $2::{key_type}) {condition} ORDER BY {key} LIMIT $3"
        );
        let page: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(query))
            .bind(tx.org().uuid())
            .bind(after)
            .bind(i64::from(rows))
            .fetch_all(tx.connection())
            .await?;
        let mut found = Page { rows: BTreeMap::new(), count: page.len() };
        for (key, sum) in page {
            found.rows.entry(key).or_default().push(sum);
        }
        Ok(found)
    }

    /// Counts the rows of the version that `tx` sees, independent of the indexes.
    pub(crate) async fn count(&self, tx: &mut TenantTx) -> Result<u64, DbError> {
        count_in_table(tx, self.table, self.condition).await
    }

    /// Returns one row of the version that `tx` sees, without the columns that are not compared.
    pub(crate) async fn row(&self, tx: &mut TenantTx, row: Option<&str>) -> Result<Option<Value>, DbError> {
        let Self { table, key, key_type, condition, .. } = self;
        let ignored = self.ignored();
        let query = format!(
            "SELECT to_jsonb(item) - '{ignored}'::text[] FROM {table} AS item
            WHERE org_id = $1 AND {key} = $2::{key_type} {condition}"
        );
        let row = sqlx::query_scalar(AssertSqlSafe(query)).bind(tx.org().uuid()).bind(row);
        Ok(row.fetch_optional(tx.connection()).await?)
    }

    /// Returns up to `limit` rows after the key `after`, in key order, as JSON for people and programs: with ids and
    /// times in their usual format, and without internal columns. Each comes with its key.
    pub async fn list(
        &self,
        tx: &mut TenantTx,
        after: Option<&str>,
        limit: u16,
    ) -> Result<Vec<(String, Value)>, DbError> {
        let Self { table, key, key_type, condition, .. } = self;
        let query = format!(
            "SELECT ({key})::text AS as_text, to_jsonb(item) FROM {table} AS item
            WHERE org_id = $1 AND ($2::text IS NULL OR {key} > $2::{key_type}) {condition} ORDER BY {key} LIMIT $3"
        );
        let rows: Vec<(String, Value)> = sqlx::query_as(AssertSqlSafe(query))
            .bind(tx.org().uuid())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(tx.connection())
            .await?;
        Ok(rows.into_iter().map(|(key, row)| (key, self.shown(row))).collect())
    }

    fn shown(&self, row: Value) -> Value {
        let Value::Object(mut fields) = row else { return row };
        for column in OWNERSHIP.iter().chain(self.local).chain(self.inward) {
            fields.remove(*column);
        }
        for (name, value) in &mut fields {
            let Value::String(text) = &*value else { continue };
            let id = self.ids.iter().find(|(column, _)| column == name);
            let written = match id {
                Some((_, written)) => text.parse().ok().map(written),
                None if name.ends_with("_at") => text.parse().ok().map(|at: Timestamp| at.to_string()),
                None => None,
            };
            if let Some(written) = written {
                *value = Value::String(written);
            }
        }
        Value::Object(fields)
    }
}

/// Counts the rows of the bound org in a table that satisfy the rest of a condition. Reads the table itself, and no
/// index: a row that a corrupt index misses may still be found by another.
pub(crate) async fn count_in_table(
    tx: &mut TenantTx,
    table: &'static str,
    condition: &'static str,
) -> Result<u64, DbError> {
    const WITHOUT: &str =
        "SELECT set_config('enable_seqscan', 'on', true), set_config('enable_indexscan', 'off', true),
        set_config('enable_indexonlyscan', 'off', true), set_config('statement_timeout', '10min', true)";
    const WITH: &str = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_indexscan', 'on', true),
        set_config('enable_indexonlyscan', 'on', true)";
    sqlx::query(WITHOUT).execute(tx.connection()).await?;
    let query = format!("SELECT count(*) FROM {table} AS item WHERE org_id = $1 {condition}");
    let org = tx.org().uuid();
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(query)).bind(org).fetch_one(tx.connection()).await?;
    sqlx::query(WITH).execute(tx.connection()).await?;
    Ok(from_bigint(count))
}

/// A range of a table.
pub(crate) struct Page {
    /// Checksums by keys. There is one of each, unless the table's own index is corrupt.
    rows: BTreeMap<String, Vec<String>>,
    count: usize,
}

/// A range of a table in two versions, compared.
pub(crate) struct Stretch {
    /// The rows that differ, without their columns.
    pub(crate) differing: Vec<Drift>,
    /// The number of rows in the active version.
    pub(crate) rows: u64,
    /// The key after which the next range starts; none at the end of the table.
    pub(crate) end: Option<String>,
}

impl Stretch {
    /// Compares the next up to `rows` rows of each version, and adds them to the checksums.
    pub(crate) fn compare(
        model: &ReadModel,
        sums: &mut [Fingerprint; 2],
        (shown, built): (&Page, &Page),
        rows: u32,
    ) -> Self {
        // A full page says nothing about rows after its last one.
        let ends = [shown, built].into_iter().filter(|page| page.count >= rows as usize);
        let end = ends.filter_map(|page| page.rows.last_key_value()).map(|(key, _)| key.clone()).min();
        let within = |key: &&String| end.as_ref().is_none_or(|end| *key <= end);
        let keys: BTreeSet<&String> = shown.rows.keys().chain(built.rows.keys()).filter(within).collect();
        let (mut differing, mut count) = (Vec::new(), 0);
        for key in keys {
            let [one, other] = [shown, built].map(|page| page.rows.get(key).map_or(&[][..], Vec::as_slice));
            for (sum, rows) in sums.iter_mut().zip([one, other]) {
                for digest in rows {
                    *sum = Fingerprint::of(&[&sum.0, key.as_bytes(), digest.as_bytes()]);
                }
            }
            count += one.len() as u64;
            if one != other {
                let twice = (one.len() > 1).then(|| format!("there are {} rows of this key", one.len()));
                differing.push(Drift {
                    table: model.table.to_owned(),
                    key: Some(key.clone()),
                    columns: twice.into_iter().collect(),
                    shown: one.first().cloned(),
                    built: other.first().cloned(),
                });
            }
        }
        Self { differing, rows: count, end }
    }
}

impl Drift {
    /// The rows of a table that its key's index misses; none if it misses none.
    pub(crate) fn beside_the_index(model: &ReadModel, found: u64, stored: u64) -> Option<Self> {
        (found != stored).then(|| Self {
            table: model.table.to_owned(),
            key: Some(format!("(the table has {stored} rows, and {found} of them are found by their keys)")),
            columns: Vec::new(),
            shown: Some(stored.to_string()),
            built: None,
        })
    }
}

/// The columns in which two rows differ, when both exist.
pub(crate) fn differing_columns(one: Option<&Value>, other: Option<&Value>) -> Vec<String> {
    let (Some(Value::Object(one)), Some(Value::Object(other))) = (one, other) else { return Vec::new() };
    one.iter().filter(|(name, value)| other.get(*name) != Some(*value)).map(|(name, _)| name.clone()).collect()
}
