//! Plans: the last version of each, as rows of the platform's organization. They are for people; an account decides by what the
//! log has.

use std::collections::BTreeMap;

use orgstream_events::{PlanDefinition, PlanEvent, PlanName, PlanPublished, Timestamp};
use sqlx::{PgConnection, types::Json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    DbError, TenantTx,
    apply::RowVersion,
    convert::{column, from_bigint, parsed, to_bigint},
    read_model::ReadModel,
};

/// The last version of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Its name.
    pub name: PlanName,
    /// Its version, counted from 1.
    pub version: u64,
    /// All that it says.
    pub definition: PlanDefinition,
    /// When it was published.
    pub updated_at: Timestamp,
}

pub(crate) const TABLE: ReadModel = ReadModel::by_text(
    "plans",
    "rm.plans",
    "name COLLATE \"C\"",
    &["name", "version", "definition", "updated_at", "seq"],
);

/// A batch's changes to the rows: the last version of each plan.
#[derive(Default)]
pub(crate) struct Changeset<'a> {
    changes: BTreeMap<&'a PlanName, (&'a PlanPublished, RowVersion)>,
}

impl<'a> Changeset<'a> {
    pub(crate) fn apply(&mut self, name: &'a PlanName, event: &'a PlanEvent, row_version: RowVersion) {
        let PlanEvent::Published(published) = event;
        self.changes.insert(name, (published, row_version));
    }

    pub(crate) async fn write(self, connection: &mut PgConnection, org: Uuid) -> Result<(), DbError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = self.changes.into_iter().collect();
        sqlx::query!(
            "INSERT INTO rm.plans (org_id, name, version, definition, updated_at, seq)
            SELECT $1, change.* FROM unnest($2::text[], $3::bigint[], $4::jsonb[], $5::timestamptz[], $6::bigint[]) AS change
            ON CONFLICT (org_id, rm_version, name) DO UPDATE SET
                version = excluded.version,
                definition = excluded.definition,
                updated_at = excluded.updated_at,
                seq = excluded.seq",
            org,
            column(&rows, |(name, _)| name.as_str()) as _,
            &column(&rows, |(_, (published, _))| to_bigint(published.version)),
            column(&rows, |(_, (published, _))| Json(&published.definition)) as _,
            &column(&rows, |(_, (_, row_version))| row_version.at),
            &column(&rows, |(_, (_, row_version))| row_version.seq),
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}

struct Row {
    name: String,
    version: i64,
    definition: Json<PlanDefinition>,
    updated_at: OffsetDateTime,
}

impl TryFrom<Row> for Plan {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        Ok(Self {
            name: parsed("a plan name", row.name)?,
            version: from_bigint(row.version),
            definition: row.definition.0,
            updated_at: row.updated_at.into(),
        })
    }
}

/// Returns all plans, by name. There are few.
pub async fn list(tx: &mut TenantTx) -> Result<Vec<Plan>, DbError> {
    let org = tx.org().uuid();
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT name, version, definition AS "definition: Json<PlanDefinition>", updated_at
        FROM rm.plans WHERE org_id = $1 ORDER BY name"#,
        org,
    );
    rows.fetch_all(tx.connection()).await?.into_iter().map(Plan::try_from).collect()
}

/// Returns one plan.
pub async fn get(tx: &mut TenantTx, name: &PlanName) -> Result<Option<Plan>, DbError> {
    let org = tx.org().uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT name, version, definition AS "definition: Json<PlanDefinition>", updated_at
        FROM rm.plans WHERE org_id = $1 AND name = $2"#,
        org,
        name.as_str(),
    );
    row.fetch_optional(tx.connection()).await?.map(Plan::try_from).transpose()
}
