//! Drift detection: compares two versions of an org's read models row by row, as of one moment, to check that the
//! active rows follow from the events; and the stored results.

use orgstream_events::{Fingerprint, Pipeline};

use crate::{
    ApplyTx, BoundOrg, Database, DbError, TenantTx,
    convert::to_bigint,
    read_model::{Page, READ_MODELS, ReadModel, Stretch, differing_columns},
};

/// The most rows that are named; beyond them, they are counted.
const NAMED: usize = 100;

/// A result of a comparison: the checksums of a table, or a row that differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Drift {
    /// The table.
    pub table: String,
    /// The row's key; none for the checksums of the whole table.
    pub key: Option<String>,
    /// The columns that differ, when both have the row.
    pub columns: Vec<String>,
    /// The checksum of the active row; none when the active version has no such row.
    pub shown: Option<String>,
    /// The checksum of the built row; none when the built version has no such row.
    pub built: Option<String>,
}

/// A comparison in progress, which sees everything as of its beginning.
#[derive(Debug)]
pub struct Comparison {
    tx: TenantTx,
    pipeline: Pipeline,
    shown: i32,
    built: i32,
    table: usize,
    after: Option<String>,
    /// Rows of the table so far, in the active version.
    rows: u64,
    sums: [Fingerprint; 2],
    found: Vec<Drift>,
    differences: u64,
}

impl Comparison {
    /// Begins to compare the version `built` of a pipeline's rows with the active one. None when one is ahead of the
    /// other.
    pub async fn begin(db: &Database, org: BoundOrg, pipeline: Pipeline, built: i32) -> Result<Option<Self>, DbError> {
        let mut tx = db.read(org).await?;
        let equal = sqlx::query!(
            r#"SELECT shown.version FROM ops.checkpoints AS shown JOIN ops.checkpoints AS built
                USING (org_id, pipeline, shard, seq)
            WHERE org_id = $1 AND pipeline = $3 AND shown.active AND built.version = $2"#,
            org.org().uuid(),
            built,
            pipeline.name(),
        )
        .fetch_optional(tx.connection())
        .await?;
        let Some(equal) = equal else { return Ok(None) };
        // By the key's own index: in any other order, every page would read all rows.
        sqlx::query!("SELECT set_config('enable_sort', 'off', true)").fetch_one(tx.connection()).await?;
        let sums = [Fingerprint([0; 32]); 2];
        let (found, differences) = (Vec::new(), 0);
        let shown = equal.version;
        Ok(Some(Self { tx, pipeline, shown, built, table: 0, after: None, rows: 0, sums, found, differences }))
    }

    /// Compares up to `rows` more. Returns whether that was all.
    pub async fn go_on(&mut self, rows: u32) -> Result<bool, DbError> {
        let Some(model) = ReadModel::all_of(self.pipeline).nth(self.table) else { return Ok(true) };
        let shown = self.page(model, self.shown, rows).await?;
        let built = self.page(model, self.built, rows).await?;
        let stretch = Stretch::compare(model, &mut self.sums, (&shown, &built), rows);
        self.rows += stretch.rows;
        for mut drift in stretch.differing {
            self.differences += 1;
            if usize::try_from(self.differences).is_ok_and(|number| number <= NAMED) {
                if drift.columns.is_empty() {
                    drift.columns = self.columns(model, &drift).await?;
                }
                self.found.push(drift);
            }
        }
        self.after = stretch.end;
        if self.after.is_none() {
            self.tx.look_at(self.pipeline, self.shown).await?;
            let stored = model.count(&mut self.tx).await?;
            if let Some(drift) = Drift::beside_the_index(model, std::mem::take(&mut self.rows), stored) {
                self.differences += 1;
                self.found.push(drift);
            }
            let [shown, built] = self.sums.map(|sum| Some(sum.to_string()));
            self.found.push(Drift { table: model.table.to_owned(), key: None, columns: Vec::new(), shown, built });
            self.sums = [Fingerprint([0; 32]); 2];
            self.table += 1;
        }
        Ok(self.table == ReadModel::all_of(self.pipeline).count())
    }

    /// The number of rows found to differ.
    pub fn differences(&self) -> u64 {
        self.differences
    }

    /// Stores the results, in place of those of the org's last comparison.
    pub async fn keep(&self, batch: &mut ApplyTx, org: BoundOrg) -> Result<(), DbError> {
        let (connection, _) = batch.connection(org)?;
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

    async fn page(&mut self, model: &ReadModel, version: i32, rows: u32) -> Result<Page, DbError> {
        self.tx.look_at(self.pipeline, version).await?;
        model.page(&mut self.tx, self.after.as_deref(), rows).await
    }

    /// Returns the columns in which a row differs.
    async fn columns(&mut self, model: &ReadModel, drift: &Drift) -> Result<Vec<String>, DbError> {
        self.tx.look_at(self.pipeline, self.shown).await?;
        let shown = model.row(&mut self.tx, drift.key.as_deref()).await?;
        self.tx.look_at(self.pipeline, self.built).await?;
        let built = model.row(&mut self.tx, drift.key.as_deref()).await?;
        Ok(differing_columns(shown.as_ref(), built.as_ref()))
    }
}

/// The result of comparing all tables.
#[derive(Debug, Default)]
pub struct TablesCompared {
    /// The number of active rows.
    pub rows: u64,
    /// The rows that differ, up to the limit of named ones.
    pub found: Vec<Drift>,
    /// Their number.
    pub differences: u64,
}

/// Compares every read model that follows from the events, row by row and in all columns, as seen by the two
/// transactions.
pub async fn compare_tables(shown: &mut TenantTx, made: &mut TenantTx) -> Result<TablesCompared, DbError> {
    const ROWS: u32 = 500;
    let mut compared = TablesCompared::default();
    for tx in [&mut *shown, &mut *made] {
        // By the key's own index, as above.
        sqlx::query!("SELECT set_config('enable_sort', 'off', true)").fetch_one(tx.connection()).await?;
    }
    // An index in a search target has no rows here.
    let has_index = shown.search_index().await?.is_none();
    let is_here = |model: &&ReadModel| model.from_events && (has_index || model.pipeline != Pipeline::Search);
    for model in READ_MODELS.iter().copied().filter(is_here) {
        let (mut after, mut sums, mut found) = (None::<String>, [Fingerprint([0; 32]); 2], 0);
        loop {
            let one = model.page(shown, after.as_deref(), ROWS).await?;
            let other = model.page(made, after.as_deref(), ROWS).await?;
            let stretch = Stretch::compare(model, &mut sums, (&one, &other), ROWS);
            compared.rows += stretch.rows;
            found += stretch.rows;
            for mut drift in stretch.differing {
                compared.differences += 1;
                if compared.found.len() < NAMED {
                    let one = model.row(shown, drift.key.as_deref()).await?;
                    let other = model.row(made, drift.key.as_deref()).await?;
                    if drift.columns.is_empty() {
                        drift.columns = differing_columns(one.as_ref(), other.as_ref());
                    }
                    compared.found.push(drift);
                }
            }
            after = stretch.end;
            if after.is_none() {
                break;
            }
        }
        if let Some(drift) = Drift::beside_the_index(model, found, model.count(shown).await?) {
            compared.differences += 1;
            compared.found.push(drift);
        }
    }
    Ok(compared)
}

/// Returns the results of the bound org's last comparison: for every table the rows that differ, then its checksums.
pub async fn drift(tx: &mut TenantTx) -> Result<Vec<Drift>, DbError> {
    let org = tx.org().uuid();
    let found = sqlx::query_as!(
        Drift,
        r#"SELECT in_table AS "table", key, columns, shown, built FROM ops.drift WHERE org_id = $1 ORDER BY place"#,
        org,
    );
    Ok(found.fetch_all(tx.connection()).await?)
}
