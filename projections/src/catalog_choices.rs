//! What an organization pinned and hid of the catalog: one row for each item that it ever chose about.

use std::collections::BTreeMap;

use orgstream_events::{CatalogChoice, CatalogChoiceEvent, RecordId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    apply::RowVersion,
    convert::{column, from_wire, wire_name},
    read_model::ReadModel,
};

/// No choice any more.
const NONE: &str = "none";

pub(crate) const TABLE: ReadModel = ReadModel::by_id(
    "catalog_choices",
    "rm.catalog_choices",
    "item_id",
    &["item_id", "choice", "version", "updated_at", "seq"],
    &[("item_id", |id| RecordId::from_uuid(id).to_string())],
);

/// A batch's changes to the rows: the last choice about each item.
#[derive(Default)]
pub(crate) struct Changeset {
    changes: BTreeMap<RecordId, (String, RowVersion)>,
}

impl Changeset {
    pub(crate) fn apply(&mut self, event: &CatalogChoiceEvent, row_version: RowVersion) {
        let (item, choice) = match event {
            CatalogChoiceEvent::Made(event) => (event.item, wire_name(&event.choice)),
            CatalogChoiceEvent::Cleared(event) => (event.item, NONE.to_owned()),
        };
        self.changes.insert(item, (choice, row_version));
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = self.changes.into_iter().collect();
        sqlx::query!(
            "INSERT INTO rm.catalog_choices (org_id, item_id, choice, version, updated_at, seq)
            SELECT $1, change.* FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[], $6::bigint[]) AS change
            ON CONFLICT (org_id, rm_version, item_id) DO UPDATE SET
                choice = excluded.choice,
                version = excluded.version,
                updated_at = excluded.updated_at,
                seq = excluded.seq",
            org,
            &column(&rows, |(item, _)| item.uuid()),
            column(&rows, |(_, (choice, _))| choice.as_str()) as _,
            &column(&rows, |(_, (_, row_version))| row_version.version),
            &column(&rows, |(_, (_, row_version))| row_version.at),
            &column(&rows, |(_, (_, row_version))| row_version.seq),
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Returns all choices of the organization, by item. There are at most a thousand.
pub async fn all(tx: &mut TenantTx) -> Result<BTreeMap<RecordId, CatalogChoice>, DbError> {
    let org = tx.org().uuid();
    let rows =
        sqlx::query!("SELECT item_id, choice FROM rm.catalog_choices WHERE org_id = $1 AND choice <> 'none'", org);
    let rows = rows.fetch_all(tx.connection()).await?;
    let choice = |choice| from_wire("a choice in the catalog", choice);
    rows.into_iter().map(|row| Ok((RecordId::from_uuid(row.item_id), choice(row.choice)?))).collect()
}
